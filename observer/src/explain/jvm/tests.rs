//! A JVM made of a few words, with and without lies; the real ones are in `tests/real.rs`.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod real;

use super::*;
use crate::explain::pieces::Memory;
use crate::proc::RuntimeLockKind;
use std::collections::BTreeMap;

/// Where the symbols are; no bias.
const SYMBOLS: u64 = 0x1000;
const TABLE: u64 = 0x10_0000;
const STRINGS: u64 = 0x20_0000;
const LIST_POINTER: u64 = 0x30_0000;
const LIST: u64 = 0x31_0000;
const ARRAY: u64 = 0x32_0000;
const THREADS: u64 = 0x40_0000;
const OS_THREADS: u64 = 0x60_0000;
const MONITORS: u64 = 0x70_0000;
const STACKS: u64 = 0x10_0000_0000;
const STACK_SIZE: u64 = 0x10_0000;
const STRIDE: u64 = 48;

/// (type, field, type string, static address or offset).
type Row = (&'static str, &'static str, Option<&'static str>, bool, u64);

const ROWS: [Row; 12] = [
    ("Klass", "_name", Some("Symbol*"), false, 8),
    ("ThreadsSMRSupport", "_java_thread_list", Some("ThreadsList*"), true, LIST_POINTER),
    ("ThreadsList", "_length", Some("const uint"), false, 4),
    ("ThreadsList", "_threads", None, false, 16),
    ("Thread", "_osthread", None, false, 100),
    ("JavaThread", "_current_pending_monitor", None, false, 120),
    ("JavaThread", "_current_waiting_monitor", None, false, 128),
    ("JavaThread", "_stack_base", None, false, 136),
    ("JavaThread", "_stack_size", None, false, 144),
    ("OSThread", "_thread_id", Some("pid_t"), false, 20),
    ("ObjectMonitor", "_owner", None, false, 64),
    ("ObjectMonitor", "_object", None, false, 8),
];
/// What newer ones have.
const WITH_IDS: [Row; 5] = [
    ("ObjectMonitor", "_owner", Some("int64_t"), false, 64),
    ("JavaThread", "_monitor_owner_id", Some("int64_t"), false, 152),
    ("JavaThread", "_lock_stack", Some("LockStack"), false, 200),
    ("LockStack", "_top", Some("uint32_t"), false, 0),
    ("LockStack", "_base[0]", Some("oop"), false, 16),
];

/// Memory byte by byte.
#[derive(Clone, Default)]
struct Fake(BTreeMap<u64, u8>);

impl Fake {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.0.extend((address..).zip(bytes.iter().copied()));
    }

    fn put_word(&mut self, address: u64, word: u64) {
        self.put(address, &word.to_le_bytes());
    }

    fn bytes(&self, range: &MemoryRange) -> Vec<u8> {
        let mut next = range.addr;
        let end = range.addr.saturating_add(u64::from(range.len.min(MemoryRange::MAX_LEN)));
        let known = self.0.range(range.addr..end).take_while(|(address, _)| {
            next = next.wrapping_add(1);
            **address == next.wrapping_sub(1)
        });
        known.map(|(_, byte)| *byte).collect()
    }

    /// The table, and threads without anything to wait for: thread `n` has the TID 101 + n and the id 3 + n.
    fn jvm(rows: &[Row], threads: u64) -> Self {
        let mut fake = Self::default();
        for (place, value) in (0..).zip([TABLE, 0, 8, 16, 24, 32, 40, STRIDE]) {
            fake.put_word(SYMBOLS + 8 * place, SYMBOLS + 0x100 + 8 * place);
            fake.put_word(SYMBOLS + 0x100 + 8 * place, value);
        }
        let mut string = STRINGS;
        for (entry, (of, field, type_string, is_static, at)) in (TABLE..).step_by(STRIDE as usize).zip(rows) {
            fake.put(entry, &[0; STRIDE as usize * 2]);
            for (column, text) in [(0, Some(*of)), (8, Some(*field)), (16, *type_string)] {
                if let Some(text) = text {
                    fake.put(string, text.as_bytes());
                    fake.put(string + text.len() as u64, &[0]);
                    fake.put_word(entry + column, string);
                    string += 100;
                }
            }
            fake.put(entry + 24, &u32::from(*is_static).to_le_bytes());
            fake.put_word(entry + if *is_static { 40 } else { 32 }, *at);
        }
        fake.put_word(LIST_POINTER, LIST);
        fake.put(LIST, &[0; 24]);
        fake.put(LIST + 4, &(threads as u32).to_le_bytes());
        fake.put_word(LIST + 16, ARRAY);
        for number in 0..threads {
            fake.put_word(ARRAY + number * 8, thread(number));
            fake.put(thread(number), &[0; 0x180]);
            fake.put_word(thread(number) + 100, OS_THREADS + number * 64);
            fake.put(OS_THREADS + number * 64 + 20, &(101 + number as u32).to_le_bytes());
            fake.put_word(thread(number) + 136, STACKS + (number + 1) * STACK_SIZE);
            fake.put_word(thread(number) + 144, STACK_SIZE);
            fake.put_word(thread(number) + 152, 3 + number);
            fake.put(thread(number) + 200, &216_u32.to_le_bytes());
        }
        fake
    }

    fn waits(&mut self, number: u64, field: u64, monitor: u64, owner: u64) {
        self.put_word(thread(number) + field, monitor);
        self.put(monitor, &[0; 128]);
        self.put_word(monitor + 64, owner);
    }

    fn read(&self) -> Result<Vec<RuntimeLock>, String> {
        read_with(|range| self.bytes(range))
    }
}

fn thread(number: u64) -> u64 {
    THREADS + number * 0x200
}

/// Through the words that the symbols stand for.
fn read_with(mut piece: impl FnMut(&MemoryRange) -> Vec<u8>) -> Result<Vec<RuntimeLock>, String> {
    let symbols = Symbols(std::array::from_fn(|place| SYMBOLS + 0x100 + 8 * place as u64));
    let mut read = |ranges: &[MemoryRange]| ranges.iter().map(&mut piece).collect();
    let mut memory = Memory { read: &mut read };
    let structs = VmStructs::read(&symbols, 0, &mut memory)?;
    monitors::read(&structs, &mut memory)
}

fn row(waiter: Pid, monitor: u64, owner: Option<Pid>, entering: bool) -> RuntimeLock {
    RuntimeLock { waiter, address: monitor, kind: RuntimeLockKind::Monitor, owner, entering, turns: 0 }
}

const PENDING: u64 = 120;
const WAITING: u64 = 128;

#[test]
fn owners_by_their_thread_and_by_their_stack() {
    let mut fake = Fake::jvm(&ROWS, 6);
    fake.waits(0, PENDING, MONITORS, thread(1));
    fake.waits(1, PENDING, MONITORS + 0x100, STACKS + 0x500);
    fake.waits(2, WAITING, MONITORS + 0x200, 0);
    // Whose stack that is, nobody knows: neither below the first nor above the last.
    fake.waits(3, PENDING, MONITORS + 0x300, STACKS - 8);
    fake.waits(4, PENDING, MONITORS + 0x400, STACKS + 6 * STACK_SIZE);
    // It has got it meanwhile.
    fake.waits(5, PENDING, MONITORS + 0x500, thread(5));
    let expected = [
        row(101, MONITORS, Some(102), true),
        row(102, MONITORS + 0x100, Some(101), true),
        row(103, MONITORS + 0x200, None, false),
        row(104, MONITORS + 0x300, None, true),
        row(105, MONITORS + 0x400, None, true),
    ];
    assert_eq!(fake.read().unwrap(), expected);
}

#[test]
fn owners_by_their_id_and_by_their_lock_stack() {
    let rows = [&WITH_IDS[..], &ROWS[..10], &ROWS[11..]].concat();
    let mut fake = Fake::jvm(&rows, 5);
    fake.waits(0, PENDING, MONITORS, 3 + 4);
    fake.waits(1, PENDING, MONITORS + 0x100, 1);
    fake.put_word(MONITORS + 0x108, MONITORS + 0x800);
    fake.put_word(MONITORS + 0x800, 0xabcd);
    fake.put(thread(3) + 200, &(216_u32 + 16).to_le_bytes());
    fake.put_word(thread(3) + 216, 0x1234);
    fake.put_word(thread(3) + 224, 0xabcd);
    // Of an id that no thread has.
    fake.waits(2, PENDING, MONITORS + 0x200, 999);
    let mut expected = vec![
        row(101, MONITORS, Some(105), true),
        row(102, MONITORS + 0x100, Some(104), true),
        row(103, MONITORS + 0x200, None, true),
    ];
    assert_eq!(fake.read().unwrap(), expected);
    // Two threads that claim the same object or the same id: neither is believed.
    fake.put(thread(4) + 200, &(216_u32 + 8).to_le_bytes());
    fake.put_word(thread(4) + 216, 0xabcd);
    fake.put_word(thread(3) + 152, 3 + 4);
    expected[0].owner = None;
    expected[1].owner = None;
    assert_eq!(fake.read().unwrap(), expected);
    // More than a lock stack holds.
    fake.put(thread(4) + 200, &u32::MAX.to_le_bytes());
    assert_eq!(fake.read().unwrap()[1].owner, Some(104));
}

#[test]
fn what_is_not_published_is_refused() {
    for (place, (of, field, ..)) in ROWS.iter().enumerate() {
        let mut rows = ROWS.to_vec();
        rows.remove(place);
        let why = Fake::jvm(&rows, 1).read().err();
        let is_needed = *of != "Klass" && *field != "_object";
        assert_eq!(why.is_some_and(|why| why.ends_with(&format!("::{field}"))), is_needed, "{field}");
    }
    // Ids, but none of the threads says its own.
    let rows = [&WITH_IDS[..1], &ROWS[..10]].concat();
    assert!(Fake::jvm(&rows, 1).read().unwrap_err().ends_with("::_monitor_owner_id"));
    let rows = [&[("ObjectMonitor", "_owner", Some("Owner\x1b"), false, 0)], &ROWS[..10]].concat();
    assert!(Fake::jvm(&rows, 1).read().unwrap_err().contains("Owner\\x1b"));
    let rows = [&ROWS[..9], &[("OSThread", "_thread_id", None, false, u64::MAX)], &ROWS[10..]].concat();
    assert!(Fake::jvm(&rows, 1).read().unwrap_err().ends_with("_thread_id"));
    let rows = [&ROWS[..8], &[("JavaThread", "_stack_size", None, false, 40_000)], &ROWS[9..]].concat();
    assert!(Fake::jvm(&rows, 1).read().unwrap_err().contains("further apart"));
}

#[test]
fn truncated_memory_is_refused() {
    let whole = Fake::jvm(&ROWS, 3);
    for (from, to) in
        [(SYMBOLS, TABLE), (TABLE + 3 * STRIDE, STRINGS), (LIST_POINTER, LIST), (LIST, ARRAY), (ARRAY + 9, THREADS)]
    {
        let mut fake = whole.clone();
        fake.0.retain(|address, _| !(from..to).contains(address));
        assert!(fake.read().is_err(), "{from:#x}");
    }
    let mut fake = whole.clone();
    fake.0.retain(|address, _| !(THREADS..MONITORS).contains(address));
    assert_eq!(fake.read().unwrap_err(), "none of the JVM's threads can be read");
    // One thread of which a part is missing is left out.
    let mut fake = whole;
    for number in 0..3 {
        fake.waits(number, PENDING, MONITORS, thread(1));
    }
    fake.0.retain(|address, _| !(thread(2) + 140..thread(3)).contains(address));
    assert_eq!(fake.read().unwrap(), [row(101, MONITORS, Some(102), true)]);
}

#[test]
fn absurd_sizes_are_refused() {
    let mut fake = Fake::jvm(&ROWS, 3);
    fake.put(LIST + 4, &u32::MAX.to_le_bytes());
    assert_eq!(fake.read().unwrap_err(), "the JVM claims 4294967295 threads");
    fake.put(LIST + 4, &100_000_u32.to_le_bytes());
    assert!(fake.read().unwrap_err().contains("cannot be read"));
    for (place, value) in [(7, 0), (7, 1 << 40), (7, u64::MAX), (1, 41), (6, u64::MAX)] {
        let mut fake = Fake::jvm(&ROWS, 3);
        fake.put_word(SYMBOLS + 0x100 + 8 * place, value);
        assert!(fake.read().unwrap_err().contains("shape"), "{place} {value}");
    }
    let mut fake = Fake::jvm(&ROWS, 1);
    fake.put(OS_THREADS + 20, &u32::MAX.to_le_bytes());
    assert!(fake.read().is_err());
}

#[test]
fn pointers_that_lead_back_end() {
    // Every word points to itself, and so does every string: the table has no end.
    let word_of = |range: &MemoryRange| {
        (0..range.len as usize).map(|at| (range.addr.wrapping_add(at as u64 & !7)).to_le_bytes()[at % 8]).collect()
    };
    assert!(read_with(word_of).is_err());
    let one = |range: &MemoryRange| vec![1; range.len as usize];
    assert!(read_with(one).is_err());
    // A true table; but the list holds itself and one thread over and over.
    let mut fake = Fake::jvm(&ROWS, 2);
    fake.put_word(ARRAY, LIST_POINTER);
    fake.put_word(LIST_POINTER, LIST_POINTER - 16);
    fake.put_word(LIST_POINTER - 16, 2 << 32);
    fake.put_word(LIST_POINTER - 8, 0);
    assert!(fake.read().is_err());
    let mut fake = Fake::jvm(&ROWS, 20);
    (0..20).for_each(|number| fake.put_word(ARRAY + number * 8, thread(0)));
    fake.put_word(thread(0) + PENDING, thread(0));
    assert_eq!(fake.read().unwrap(), [row(101, thread(0), None, true)]);
    // A table without an end.
    let endless = Fake::jvm(&ROWS, 1);
    let entry = endless.bytes(&MemoryRange { addr: TABLE, len: STRIDE as u32 });
    let read = |range: &MemoryRange| match range.addr.checked_sub(TABLE) {
        Some(from) if range.addr >= TABLE && from < 1 << 28 && range.len > 64 => {
            (0..u64::from(range.len)).map(|at| entry[((from + at) % STRIDE) as usize]).collect()
        }
        _ => endless.bytes(range),
    };
    assert_eq!(read_with(read).unwrap_err(), "gHotSpotVMStructs has no end");
}

#[test]
fn what_changes_between_two_looks_is_not_said() {
    let mut fake = Fake::jvm(&ROWS, 4);
    for number in 0..3 {
        fake.waits(number, PENDING, MONITORS + number * 0x100, thread(3));
    }
    let mut looks = 0;
    let read = |range: &MemoryRange| {
        looks += usize::from(range.addr == LIST_POINTER);
        if looks == 2 {
            // Another owner; another monitor; another thread in its place.
            fake.put_word(MONITORS + 64, thread(1));
            fake.put_word(thread(1) + PENDING, MONITORS);
            fake.put_word(ARRAY + 16, thread(0));
        }
        fake.bytes(range)
    };
    assert_eq!(read_with(read).unwrap(), [row(101, MONITORS, None, true)]);
    assert_eq!(looks, 2);
}

#[test]
fn random_bytes() {
    let rows = [&WITH_IDS[..], &ROWS[..10], &ROWS[11..]].concat();
    let mut whole = Fake::jvm(&rows, 3);
    whole.waits(0, PENDING, MONITORS, 1);
    let addresses: Vec<u64> = whole.0.keys().copied().collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut refused = 0;
    for _ in 0..300 {
        let mut fake = whole.clone();
        for _ in 0..1 + random() % 40 {
            let address = addresses[(random() % addresses.len() as u64) as usize];
            match random() % 3 {
                0 => fake.put_word(address, random()),
                1 => fake.put(address, &[random() as u8]),
                _ => fake.put_word(address & !7, addresses[(random() % addresses.len() as u64) as usize]),
            }
        }
        match fake.read() {
            Ok(found) => assert!(found.len() <= 3),
            Err(why) => refused += usize::from(why.len() < 512),
        }
        assert!(read_with(|range| (0..range.len).map(|_| random() as u8).collect()).is_err());
    }
    assert!((1..300).contains(&refused), "{refused}");
}
