//! A CPython made of a few words, with and without lies; the real ones are in `tests/real.rs`.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod real;

use super::*;
use crate::proc::RuntimeLockKind;
use std::collections::BTreeMap;

const RUNTIME: u64 = 0x1000;
const INTERPRETER: u64 = 0x10_0000;
const GIL: u64 = 0x20_0000;
/// One state, one frame and one code object per thread.
const STATES: u64 = 0x30_0000;
const FRAMES: u64 = 0x40_0000;
const CODES: u64 = 0x500_0000;
const TYPES: u64 = 0x60_0000;
const NAMES: u64 = 0x70_0000;
const EXITS: u64 = 0x80_0000;
const LOCKS: u64 = 0x90_0000;
const SEMAPHORES: u64 = 0xa0_0000;
const STEP: u64 = 0x1000;
const IDENTS: u64 = 0x7f00_0000_0000;
/// What the waiters for the GIL sleep at.
const CONDITION: u64 = GIL + 16 + 16;
const METHOD: u64 = NAMES + 0x900;

/// The words of the table that are used: (index, offset). The same as in 3.13.0 where something depends on it.
const TABLE: [(u64, u64); 30] = [
    (1, 0x030d_00f0),
    (2, 0),
    (5, 600),
    (8, 8),
    (9, 16),
    (14, 24),
    (15, 1000),
    (17, 1016),
    (18, 1008),
    (21, 8),
    (23, 72),
    (24, 152),
    (25, 160),
    (28, 88),
    (29, 8),
    (30, 0),
    (31, 56),
    (32, 72),
    (33, 70),
    (37, 128),
    (39, 68),
    (40, 52),
    (41, 96),
    (43, 208),
    (45, 8),
    (47, 24),
    (65, 16),
    (66, 32),
    (69, 16),
    (70, 40),
];

#[derive(Clone)]
struct Fake(BTreeMap<u64, u8>);

impl Fake {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.0.extend((address..).zip(bytes.iter().copied()));
    }

    fn word(&mut self, address: u64, word: u64) {
        self.put(address, &word.to_le_bytes());
    }

    /// Threads 101, 102, … of which number 0 has the GIL; nobody is inside of anything.
    fn python(threads: u64) -> Self {
        let mut fake = Self(BTreeMap::new());
        fake.put(RUNTIME, &[0; 1024]);
        fake.put(RUNTIME, b"xdebugpy");
        for (index, offset) in TABLE {
            fake.word(RUNTIME + index * 8, offset);
        }
        fake.word(RUNTIME + 600, INTERPRETER);
        for (field, value) in [(8, 0), (16, STATES), (24, GIL)] {
            fake.word(INTERPRETER + field, value);
        }
        fake.put(GIL, &[0; 256]);
        fake.word(GIL + 8, STATES);
        fake.word(GIL + 16, 1);
        fake.word(GIL + 24, 7);
        for (number, name) in (0..).zip(["builtin_function_or_method", "_thread.lock", "_thread.RLock", "__exit__"]) {
            fake.put(NAMES + number * 0x100, &[0; 64]);
            fake.put(NAMES + number * 0x100, name.as_bytes());
            fake.word(TYPES + number * 0x100 + 24, NAMES + number * 0x100);
        }
        fake.word(METHOD, NAMES + 0x300);
        for number in 0..threads {
            let (state, frame) = (STATES + number * STEP, FRAMES + number * STEP);
            fake.put(state, &[0; 256]);
            fake.word(state + 8, if number + 1 < threads { state + STEP } else { 0 });
            fake.word(state + 72, frame);
            fake.word(state + 152, IDENTS + number);
            fake.word(state + 160, 101 + number);
            fake.frame(frame, 0, CODES + number * STEP, 0);
            fake.code(CODES + number * STEP, "work");
        }
        fake
    }

    fn frame(&mut self, frame: u64, previous: u64, code: u64, unit: u64) {
        self.put(frame, &[0; 256]);
        self.word(frame + 8, previous);
        self.word(frame, code);
        self.word(frame + 56, code + 208 + unit * 2);
    }

    /// Two local variables, a stack of four; units 4 to 9 are inside of a `with`.
    fn code(&mut self, code: u64, name: &str) {
        self.put(code, &[0; 0x700]);
        self.word(code + 40, code + 0x400);
        self.put(code + 64, &4_u32.to_le_bytes());
        self.put(code + 72, &2_u32.to_le_bytes());
        self.word(code + 128, code + 0x600);
        self.word(code + 0x400 + 16, 4);
        self.put(code + 0x400 + 32, &[0x84, 6, 20, 3]);
        self.word(code + 0x600 + 16, name.len() as u64);
        self.put(code + 0x600 + 40, name.as_bytes());
    }

    fn lock(&mut self, number: u64, recursive: Option<(u64, u64)>) -> u64 {
        let lock = LOCKS + number * STEP;
        self.put(lock, &[0; 64]);
        self.word(lock, 1);
        self.word(lock + 8, TYPES + if recursive.is_some() { 0x200 } else { 0x100 });
        self.word(lock + 16, SEMAPHORES + number * 32);
        let (owner, count) = recursive.unwrap_or_default();
        self.word(lock + 24, owner);
        self.word(lock + 32, count);
        self.word(SEMAPHORES + number * 32, 1 << 32);
        lock
    }

    /// The thread is inside of `with` this lock, at unit 6.
    fn inside(&mut self, thread: u64, lock: u64) {
        let exit = EXITS + thread * STEP;
        self.word(exit, 1);
        self.word(exit + 8, TYPES);
        self.word(exit + 16, METHOD);
        self.word(exit + 24, lock);
        self.word(exit + 32, 0);
        let frame = FRAMES + thread * STEP;
        self.word(frame + 72 + 2 * 8, exit);
        self.at(thread, 6);
    }

    fn at(&mut self, thread: u64, unit: u64) {
        self.word(FRAMES + thread * STEP + 56, CODES + thread * STEP + 208 + unit * 2);
    }

    /// The thread waits for this lock: it is above what is in use.
    fn wants(&mut self, thread: u64, lock: u64) {
        self.word(FRAMES + thread * STEP + 72 + 4 * 8, lock);
    }

    fn piece(&self, range: &MemoryRange) -> Vec<u8> {
        let bytes = (range.addr..range.addr.saturating_add(range.len.into())).map_while(|at| self.0.get(&at).copied());
        bytes.collect()
    }

    fn read(&self, sleepers: &[(Pid, u64)]) -> Result<Vec<RuntimeLock>, String> {
        read_with(&mut |ranges| ranges.iter().map(|range| self.piece(range)).collect(), sleepers)
    }
}

fn read_with(
    read: &mut dyn FnMut(&[MemoryRange]) -> Vec<Vec<u8>>,
    sleepers: &[(Pid, u64)],
) -> Result<Vec<RuntimeLock>, String> {
    let mut read = |ranges: &[MemoryRange]| read(ranges);
    let mut memory = Memory { read: &mut read };
    let offsets = Offsets::read(RUNTIME, &mut memory)?;
    waits(&offsets, RUNTIME, sleepers, &mut memory)
}

fn owners(waits: &[RuntimeLock]) -> Vec<(Pid, RuntimeLockKind, Option<Pid>)> {
    waits.iter().map(|wait| (wait.waiter, wait.kind, wait.owner)).collect()
}

use RuntimeLockKind::{Gil, PyLock, PyRLock};

#[test]
fn the_gil_and_its_holder() {
    let mut fake = Fake::python(3);
    let sleepers = [(102, CONDITION), (103, CONDITION + 40), (101, CONDITION), (103, CONDITION + 48), (103, GIL + 16)];
    let found = fake.read(&sleepers[..2]).unwrap();
    assert_eq!(owners(&found), [(102, Gil, Some(101)), (103, Gil, Some(101))]);
    assert!(found.iter().all(|wait| wait.entering && wait.turns == 7 && wait.address == GIL));
    // Between two turns: known by the address of the GIL itself.
    assert_eq!(owners(&fake.read(&[(102, GIL)]).unwrap()), [(102, Gil, Some(101))]);
    // Whoever has it does not wait for it, and what lies beside the condition is something else.
    assert_eq!(fake.read(&sleepers[2..]).unwrap(), []);
    // Nobody; somebody who is in no list.
    fake.word(GIL + 16, 0);
    assert_eq!(owners(&fake.read(&sleepers[..1]).unwrap()), [(102, Gil, None)]);
    fake.word(GIL + 16, 1);
    fake.word(GIL + 8, STATES + 8);
    assert_eq!(owners(&fake.read(&sleepers[..1]).unwrap()), [(102, Gil, None)]);
}

#[test]
fn a_gil_that_is_passed_on_while_it_is_read_has_no_owner() {
    let mut fake = Fake::python(3);
    let mut turns = 7;
    let mut read = |ranges: &[MemoryRange]| -> Vec<Vec<u8>> {
        if ranges.iter().any(|range| range.addr == GIL) {
            turns += 1;
            fake.word(GIL + 24, turns);
        }
        ranges.iter().map(|range| fake.piece(range)).collect()
    };
    assert_eq!(owners(&read_with(&mut read, &[(102, CONDITION)]).unwrap()), [(102, Gil, None)]);
}

#[test]
fn whoever_is_inside_of_with_has_the_lock() {
    let mut fake = Fake::python(4);
    let lock = fake.lock(0, None);
    fake.inside(0, lock);
    let sleepers = [(102, SEMAPHORES), (103, SEMAPHORES + 32), (104, 0x1234)];
    assert_eq!(owners(&fake.read(&sleepers).unwrap()), [(102, PyLock, Some(101))]);
    // Itself.
    assert_eq!(owners(&fake.read(&[(101, SEMAPHORES)]).unwrap()), [(101, PyLock, Some(101))]);
    let without = |change: &dyn Fn(&mut Fake)| {
        let mut fake = fake.clone();
        change(&mut fake);
        let found = fake.read(&sleepers).unwrap();
        assert!(found.iter().all(|wait| wait.owner.is_none()), "{found:?}");
    };
    // Behind the block and before it, the value is left over from earlier.
    without(&|fake| fake.at(0, 10));
    without(&|fake| fake.at(0, 3));
    // It is not a lock's, not an `__exit__`, or is dead.
    without(&|fake| fake.word(LOCKS + 8, TYPES));
    without(&|fake| fake.put(NAMES + 0x300, b"__enter_"));
    without(&|fake| fake.word(EXITS, 0));
    without(&|fake| fake.word(LOCKS, 0));
    // Nobody has the lock.
    without(&|fake| fake.word(SEMAPHORES, 1 << 32 | 1));
    // Two are inside: one of them was, or let it go.
    without(&|fake| fake.inside(3, lock));
    // `Condition.wait` has let it go.
    without(&|fake| {
        fake.frame(FRAMES + 0x800, FRAMES, CODES + 0x80_0000, 0);
        fake.code(CODES + 0x80_0000, "Condition.wait");
        fake.word(STATES + 72, FRAMES + 0x800);
    });
    // Any other function there changes nothing.
    fake.frame(FRAMES + 0x800, FRAMES, CODES + 0x80_0000, 0);
    fake.code(CODES + 0x80_0000, "Condition.notify");
    fake.word(STATES + 72, FRAMES + 0x800);
    assert_eq!(owners(&fake.read(&sleepers).unwrap()), [(102, PyLock, Some(101))]);
    // Nor does a frame of the interpreter itself in between.
    fake.put(FRAMES + 0x800 + 70, &[3]);
    assert_eq!(owners(&fake.read(&sleepers).unwrap()), [(102, PyLock, Some(101))]);
}

#[test]
fn an_rlock_notes_its_owner() {
    let mut fake = Fake::python(3);
    let lock = fake.lock(0, Some((IDENTS + 2, 1)));
    fake.wants(0, lock);
    let sleepers = [(101, SEMAPHORES)];
    assert_eq!(owners(&fake.read(&sleepers).unwrap()), [(101, PyRLock, Some(103))]);
    for (owner, count) in [(IDENTS + 2, 0), (IDENTS + 9, 1), (IDENTS, 1), (0, 0)] {
        fake.word(lock + 24, owner);
        fake.word(lock + 32, count);
        assert_eq!(owners(&fake.read(&sleepers).unwrap()), [(101, PyRLock, None)]);
    }
}

#[test]
fn what_is_not_3_13_is_refused() {
    let refused = |change: &dyn Fn(&mut Fake)| {
        let mut fake = Fake::python(1);
        change(&mut fake);
        fake.read(&[]).unwrap_err()
    };
    assert!(refused(&|fake| fake.put(RUNTIME, b"\0")).contains("older than 3.13"));
    assert!(refused(&|fake| fake.word(RUNTIME + 8, 0x030e_00f0)).contains("CPython 3.14"));
    assert!(refused(&|fake| fake.word(RUNTIME + 16, 1)).contains("free-threaded"));
    for (index, _) in &TABLE[2..] {
        assert!(refused(&|fake| fake.word(RUNTIME + index * 8, u64::MAX)).contains("table of offsets"), "{index}");
    }
    assert!(refused(&|fake| fake.0.clear()).contains("cannot be read"));
    assert!(refused(&|fake| fake.word(INTERPRETER + 16, 0)).contains("no threads"));
}

#[test]
fn circles_come_to_an_end() {
    let mut fake = Fake::python(3);
    let lock = fake.lock(0, None);
    fake.inside(0, lock);
    fake.word(INTERPRETER + 8, INTERPRETER);
    fake.word(STATES + 2 * STEP + 8, STATES);
    for thread in 0..3 {
        fake.word(FRAMES + thread * STEP + 8, FRAMES + thread * STEP);
    }
    let found = fake.read(&[(102, SEMAPHORES), (103, CONDITION)]).unwrap();
    assert_eq!(owners(&found), [(103, Gil, Some(101)), (102, PyLock, Some(101))]);
}

/// Every word of the memory is a pointer into it or noise: no panic, and an amount of work that has a limit.
#[test]
fn garbage_is_read_within_limits() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..4 {
        let table = Fake::python(1);
        let mut bytes = 0_u64;
        let mut read = |ranges: &[MemoryRange]| -> Vec<Vec<u8>> {
            let piece = |range: &MemoryRange| {
                bytes += u64::from(range.len);
                if (RUNTIME..RUNTIME + 1024).contains(&range.addr) {
                    return table.piece(range);
                }
                let words = (0..range.len.div_ceil(8)).flat_map(|_| {
                    let word = random();
                    // Mostly pointers, so that it goes on and on; small numbers, so that sizes are believed.
                    (if word % 8 < 5 { word << 4 & 0xffff_fff0 } else { word % 64 }).to_le_bytes()
                });
                words.take(range.len as usize).collect()
            };
            ranges.iter().map(piece).collect()
        };
        let _ = read_with(&mut read, &[(102, SEMAPHORES), (103, CONDITION), (round, 8)]);
        assert!(bytes < 1 << 28, "{bytes}");
    }
}

/// Each byte that says something, changed.
#[test]
fn lies_do_no_harm() {
    let mut whole = Fake::python(4);
    let (lock, other) = (whole.lock(0, None), whole.lock(1, Some((IDENTS, 1))));
    whole.inside(0, lock);
    whole.wants(2, other);
    let sleepers = [(102, SEMAPHORES), (103, SEMAPHORES + 32), (104, CONDITION)];
    assert_eq!(whole.read(&sleepers).unwrap().len(), 3);
    let addresses: Vec<u64> = whole.0.iter().filter(|(_, byte)| **byte != 0).map(|(at, _)| *at).collect();
    for at in addresses {
        for value in [0, 0xff] {
            let before = whole.0.insert(at, value).unwrap();
            for wait in whole.read(&sleepers).unwrap_or_default() {
                let living = wait.owner.is_none_or(|owner| owner <= 1 << 22);
                assert!(living && sleepers.iter().any(|(tid, _)| *tid == wait.waiter), "{at:#x}: {wait:?}");
            }
            whole.0.insert(at, before);
        }
        let before = whole.0.remove(&at).unwrap();
        let _ = whole.read(&sleepers);
        whole.0.insert(at, before);
    }
}
