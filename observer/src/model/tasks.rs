//! The tasks of asynchronous programs over time: since when each is seen in the state it is in.
//!
//! A header keeps no time, and none of how often its task was polled. So what is known is that a task of this id was at
//! this address in this state in each of several looks: it may have run in between. It has not where no thread of the
//! process has run.

use super::host::Host;
use crate::census::ProcessId;
use crate::proc::{ProcessTasks, Task, TaskGroup, TaskState};
use std::collections::{BTreeMap, HashMap};

/// Tasks of one process that are told apart over time.
const MOST_LIVES: usize = 200_000;

/// One task in one state.
#[derive(Clone, Copy, Debug)]
struct Life {
    address: u64,
    state: TaskState,
    since_ns: u64,
}

/// The tasks of one process.
#[derive(Debug)]
pub struct TaskProcess {
    /// As read last.
    pub latest: ProcessTasks,
    /// Looks so far.
    pub looks: u64,
    /// `CLOCK_MONOTONIC` of the first, nanoseconds.
    pub first_ns: u64,
    /// Time between the last two looks, nanoseconds; 0: there was one.
    pub gap_ns: u64,
    /// By type and id: several copies of the runtime in one process count for themselves.
    lives: HashMap<(u64, u64), Life>,
}

impl TaskProcess {
    fn new(first_ns: u64, process: ProcessId) -> Self {
        Self { latest: ProcessTasks::new(process), looks: 0, first_ns, gap_ns: 0, lives: HashMap::new() }
    }

    fn learn(&mut self, all: ProcessTasks) {
        let before = std::mem::take(&mut self.lives);
        for (group, task) in all.groups.iter().flat_map(|group| group.members.iter().map(move |task| (group, task))) {
            let Task { id, address, state, .. } = *task;
            let known = before.get(&(group.vtable, id));
            let known = known.filter(|life| (life.address, life.state) == (address, state));
            let since_ns = known.map_or(all.taken_ns, |life| life.since_ns);
            if self.lives.len() < MOST_LIVES {
                self.lives.insert((group.vtable, id), Life { address, state, since_ns });
            }
        }
        self.gap_ns = if self.looks == 0 { 0 } else { all.taken_ns.saturating_sub(self.latest.taken_ns) };
        self.looks += 1;
        self.latest = all;
    }

    /// Since when a task is seen in the state that it is in: `CLOCK_MONOTONIC` nanoseconds. It may have been in it before.
    pub fn since(&self, group: &TaskGroup, task: &Task) -> u64 {
        self.lives.get(&(group.vtable, task.id)).map_or(self.latest.taken_ns, |life| life.since_ns)
    }

    /// How long a task has been seen in the state that it is in, nanoseconds.
    pub fn age(&self, group: &TaskGroup, task: &Task) -> u64 {
        self.latest.taken_ns.saturating_sub(self.since(group, task))
    }

    /// How long the tasks of a group in this state have been seen in it, nanoseconds, the longest first.
    pub fn ages(&self, group: &TaskGroup, state: TaskState) -> Vec<u64> {
        let tasks = group.members.iter().filter(|task| task.state == state);
        let mut ages: Vec<u64> = tasks.map(|task| self.age(group, task)).collect();
        ages.sort_unstable_by_key(|age| std::cmp::Reverse(*age));
        ages
    }
}

/// Asynchronous programs by id.
#[derive(Debug, Default)]
pub(super) struct TaskProcesses(pub(super) BTreeMap<ProcessId, TaskProcess>);

impl Host {
    /// Takes readings of tasks. One that failed says nothing: the last one that did not stays.
    pub fn learn_tasks(&mut self, all: &[ProcessTasks]) {
        for reading in all.iter().filter(|reading| reading.missing.is_none()) {
            if self.threads_of(reading.process.pid).all(|row| row.process != reading.process) {
                continue;
            }
            let known = self.tasks.0.entry(reading.process);
            known.or_insert_with(|| TaskProcess::new(reading.taken_ns, reading.process)).learn(reading.clone());
        }
    }

    /// Since when no thread of a process has run, `CLOCK_MONOTONIC` nanoseconds: nothing in its memory has changed since then, but for
    /// what it shares with others. `None` while one runs, or where that is not known.
    pub fn quiet_since(&self, process: ProcessId) -> Option<u64> {
        let mut latest = None;
        for row in self.threads_of(process.pid).filter(|row| !row.is_exiting()) {
            let since = self.since(row);
            if !row.is_blocked() || !since.exact || row.process != process {
                return None;
            }
            latest = latest.max(Some(since.ns));
        }
        latest
    }

    /// The tasks of a process, if they were read.
    pub fn tasks(&self, process: ProcessId) -> Option<&TaskProcess> {
        self.tasks.0.get(&process)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;
    use crate::model::testkit::{S, census, process, row, tasks};

    fn host() -> Host {
        let mut host = Host::default();
        host.advance(census(100, vec![row(10, 10)]), Default::default());
        host
    }

    #[test]
    fn a_task_is_as_old_as_its_state() {
        let mut host = host();
        let idle = |id| (id, TaskState::Idle);
        host.learn_tasks(&[tasks(10, 100, &[("a", &[idle(1), idle(2), idle(3)])])]);
        host.learn_tasks(&[tasks(10, 103, &[("a", &[idle(1), (2, TaskState::Running), idle(4)])])]);
        host.learn_tasks(&[tasks(10, 107, &[("a", &[idle(1), idle(2), idle(4)])])]);
        let known = host.tasks(process(10)).unwrap();
        let group = &known.latest.groups[0];
        // 1 was idle all the time, 2 ran in between, 4 came later.
        assert_eq!(known.ages(group, TaskState::Idle), [7 * S, 4 * S, 0]);
        assert_eq!((known.looks, known.first_ns), (3, 100 * S));
    }

    #[test]
    fn a_process_is_quiet_since_its_last_thread_is() {
        let mut host = Host::default();
        let mut later = row(10, 11);
        later.off_cpu_since_ns = Some(95 * S);
        host.advance(census(100, vec![row(10, 10), later.clone(), row(20, 20)]), Default::default());
        assert_eq!(host.quiet_since(process(10)), Some(95 * S));
        assert_eq!(host.quiet_since(process(30)), None);
        // One runs; of one it is not known since when it sleeps.
        let mut runs = later.clone();
        (runs.state, runs.off_cpu_since_ns) = (0, None);
        host.advance(census(101, vec![row(10, 10), runs]), Default::default());
        assert_eq!(host.quiet_since(process(10)), None);
        later.off_cpu_since_ns = None;
        host.advance(census(102, vec![row(10, 10), later]), Default::default());
        assert_eq!(host.quiet_since(process(10)), None);
    }

    #[test]
    fn another_task_at_the_same_place_is_another_task() {
        let mut host = host();
        let one = tasks(10, 100, &[("a", &[(1, TaskState::Idle)])]);
        let mut moved = tasks(10, 105, &[("a", &[(1, TaskState::Idle)])]);
        moved.groups[0].members[0].address += 128;
        host.learn_tasks(&[one]);
        host.learn_tasks(&[moved]);
        let known = host.tasks(process(10)).unwrap();
        assert_eq!(known.ages(&known.latest.groups[0], TaskState::Idle), [0]);
        // What could not be read changes nothing, and of a process that is gone nothing is kept.
        host.learn_tasks(&[ProcessTasks::missing(process(10), "EPERM")]);
        assert_eq!(host.tasks(process(10)).unwrap().looks, 2);
        host.learn_tasks(&[tasks(11, 105, &[])]);
        assert!(host.tasks(process(11)).is_none());
        host.advance(census(110, vec![row(12, 12)]), Default::default());
        assert!(host.tasks(process(10)).is_none());
    }
}
