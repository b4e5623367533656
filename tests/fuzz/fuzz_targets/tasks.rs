//! Memory of a tokio program: changes (place, value) to tasks that are sound, at the first reading or at the second.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::explain::fuzzing::MadeUpTasks;
use std::sync::{Mutex, OnceLock};

fn made_up() -> &'static Mutex<(MadeUpTasks, Vec<u8>)> {
    static MADE_UP: OnceLock<Mutex<(MadeUpTasks, Vec<u8>)>> = OnceLock::new();
    MADE_UP.get_or_init(|| {
        let mut made_up = MadeUpTasks::new(5);
        for id in 1..=64 {
            made_up.add(id as usize, id, 3 << 6 | id % 8);
        }
        let good = made_up.memory.clone();
        Mutex::new((made_up, good))
    })
}

fuzz_target!(|changes: &[u8]| {
    let mut guard = made_up().lock().expect("nobody panicked");
    let (made_up, good) = &mut *guard;
    made_up.memory.clone_from(good);
    let mut then = good.clone();
    for change in changes.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) | usize::from(change[2] & 1) << 16;
        let memory = if change[2] & 2 == 0 { &mut made_up.memory } else { &mut then };
        let len = memory.len();
        memory[at % len] = change[3];
    }
    let (tasks, _) = made_up.census(&then);
    assert!(tasks.len() <= good.len() / 128);
    assert!(tasks.iter().all(|task| task.address % 128 == 0 && task.id > 0));
});
