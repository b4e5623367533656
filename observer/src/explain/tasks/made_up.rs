//! Memory with tasks in it, made up: for tests and for the fuzz target.

use super::vtables::Vtable;
use super::{Sighting, Type, confirm, scan};
use crate::proc::Task;
use std::collections::BTreeMap;

/// Where the memory begins in the target that does not exist.
const BASE: u64 = 0x7f00_0000_0000;
/// Where its tables are.
const TABLES: u64 = 0x5555_0000_0000;
/// What is read at once, bytes.
const PIECE: usize = 4096;

/// Types of tasks, and memory.
#[derive(Debug)]
pub struct MadeUpTasks {
    types: Vec<Type>,
    /// The memory.
    pub memory: Vec<u8>,
}

impl MadeUpTasks {
    /// So many types, of different sizes and alignments, and memory that is empty.
    pub fn new(types: u64) -> Self {
        let one = |number| {
            let scheduler = [32, 64, 48][number as usize % 3];
            let (trailer, id) = (scheduler + 64 + 8 * number, scheduler + 8);
            let vtable = Vtable { svma: 0x80 * number, poll: 0x1000, dealloc: 0, trailer, scheduler, id };
            Type { avma: TABLES + vtable.svma, vtable, module: 0 }
        };
        Self { types: (0..types.max(1)).map(one).collect(), memory: Vec::new() }
    }

    /// Adds a sound task of one of the types: its begin.
    pub fn add(&mut self, of: usize, id: u64, state: u64) -> u64 {
        let Some(Type { avma, vtable, .. }) = self.types.get(of % self.types.len()).copied() else { return 0 };
        let at = self.memory.len();
        self.memory.resize((at + vtable.trailer as usize).next_multiple_of(128), 0);
        let words = [(0, state), (16, avma), (24, 1), (vtable.scheduler, 0x7e00_0000_0010), (vtable.id, id)];
        for (offset, word) in words {
            let begin = at + offset as usize;
            self.memory[begin..begin + 8].copy_from_slice(&word.to_le_bytes());
        }
        BASE + at as u64
    }

    /// The tasks, and what was left out. The memory is `then` at the second reading.
    pub fn census(&self, then: &[u8]) -> (Vec<Task>, BTreeMap<String, u64>) {
        let mut sightings: Vec<Sighting> = Vec::new();
        for (number, piece) in self.memory.chunks(PIECE).enumerate() {
            scan(BASE + (number * PIECE) as u64, piece, &self.types, &mut |sighting| sightings.push(sighting));
        }
        let mut lost = BTreeMap::new();
        let found = confirm(
            &sightings,
            &self.types,
            &mut |ranges, pieces| {
                pieces.reset(ranges);
                for (index, range) in ranges.iter().enumerate() {
                    let at = (range.addr - BASE) as usize;
                    let end = then.len().min(at + range.len as usize);
                    pieces.put(index, then.get(at..end).unwrap_or_default());
                }
                Ok(())
            },
            &mut lost,
        );
        let tasks = found.unwrap_or_default();
        (tasks.into_iter().map(|(_, task)| task).collect(), lost)
    }
}
