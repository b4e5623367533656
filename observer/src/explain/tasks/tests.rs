//! The pass over memory that is made up.

use super::made_up::MadeUpTasks;
use crate::proc::{Task, TaskState};

const IDLE: u64 = 1 << 6;

fn short(tasks: &[Task]) -> Vec<(u64, u64, TaskState)> {
    tasks.iter().map(|task| (task.address, task.id, task.state)).collect()
}

#[test]
fn tasks_are_found_where_they_are() {
    let mut made_up = MadeUpTasks::new(7);
    let mut wanted = Vec::new();
    for id in 1..=200 {
        let bits = [0, 4, 1, 2][id as usize % 4];
        let state = [TaskState::Idle, TaskState::Notified, TaskState::Running, TaskState::Complete][id as usize % 4];
        wanted.push((made_up.add(id as usize, id, bits | IDLE), id, state));
    }
    let (found, lost) = made_up.census(&made_up.memory);
    assert_eq!(short(&found), wanted);
    assert!(lost.is_empty());
}

#[test]
fn what_ends_between_the_readings_is_left_out() {
    let mut made_up = MadeUpTasks::new(7);
    let begins: Vec<u64> = (1..=4).map(|id| made_up.add(0, id, IDLE)).collect();
    let mut then = made_up.memory.clone();
    let at = |index: usize| (begins[index] - begins[0]) as usize;
    // Freed; another one in its place; polled at this moment.
    then[at(0)..at(0) + 8].fill(0);
    let (mut other, size) = (MadeUpTasks::new(7), at(1));
    other.add(0, 77, IDLE);
    then[at(1)..at(1) + size].copy_from_slice(&other.memory[..size]);
    then[at(2)] |= 1;
    let (found, lost) = made_up.census(&then);
    assert_eq!(short(&found), [(begins[2], 3, TaskState::Running), (begins[3], 4, TaskState::Idle)]);
    assert_eq!(lost.get("changed"), Some(&2));
    // All of it is gone.
    let (found, lost) = made_up.census(&[]);
    assert!(found.is_empty());
    assert_eq!(lost.get("changed"), Some(&4));
}

#[test]
fn a_copy_is_no_second_task() {
    let mut made_up = MadeUpTasks::new(7);
    made_up.add(0, 5, IDLE);
    made_up.add(0, 5, IDLE);
    let (found, lost) = made_up.census(&made_up.memory);
    assert_eq!((found.len(), lost.get("duplicate")), (1, Some(&1)));
}

#[test]
fn any_memory_is_survived() {
    let mut made_up = MadeUpTasks::new(7);
    for id in 1..=64 {
        made_up.add(id as usize, id, IDLE);
    }
    let good = made_up.memory.clone();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        made_up.memory.clone_from(&good);
        for _ in 0..random.usize(1..200) {
            let at = random.usize(..good.len());
            made_up.memory[at] = random.u8(..);
        }
        made_up.memory.truncate(random.usize(..=good.len()));
        let (found, _) = made_up.census(&good);
        assert!(found.len() <= 64);
        let (found, _) = made_up.census(&made_up.memory);
        assert!(found.iter().all(|task| task.address.is_multiple_of(128) && task.id > 0));
    }
}
