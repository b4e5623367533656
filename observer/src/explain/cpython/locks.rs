//! `threading.Lock` and `threading.RLock`: which of them a thread sleeps at, and who has it.
//!
//! Both have a semaphore of their own, at which their waiters sleep. An `RLock` notes its owner. A `Lock` does not, but
//! `with lock:` keeps its `__exit__` on the value stack of the frame for as long as the block lasts.

use super::frames::Frames;
use super::offsets::Offsets;
use super::threads::Thread;
use crate::census::Pid;
use crate::explain::pieces::{Memory, number, word};
use crate::proc::{MemoryRange, RuntimeLock, RuntimeLockKind};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Objects looked at in one reading.
const MAX_OBJECTS: usize = 100_000;
/// Words of frames looked at in one reading.
const MAX_SLOTS: u64 = 400_000;
/// What of each is read: `PyCFunctionObject` up to `m_self`, `lockobject` and `rlockobject` up to the count.
const OBJECT: u32 = 40;
/// Of all three: the semaphore; of a function the method it is, and what it is bound to.
const SEMAPHORE: u64 = 16;
const METHOD: u64 = 16;
const SELF: u64 = 24;
/// Of an `RLock`.
const OWNER: u64 = 24;
const COUNT: u64 = 32;
/// While a thread is in it, it has let go a lock that frames outside of it are inside of.
const LETS_GO: &[u8] = b"Condition.wait";

/// A lock at whose semaphore somebody sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lock {
    Plain,
    Recursive { owner: u64, count: u64 },
}

/// The waits of those sleepers that sleep at a lock of Python.
pub(super) fn read(
    offsets: &Offsets,
    threads: &[Thread],
    sleepers: &[(Pid, u64)],
    memory: &mut Memory<'_>,
) -> Vec<RuntimeLock> {
    let frames = Frames::read(offsets, threads, memory);
    let semaphores: BTreeSet<u64> = sleepers.iter().map(|(_, futex)| *futex).collect();
    let inside = inside(&frames);
    let at_call = at_call(&frames, threads, sleepers);
    let places: Vec<(u64, u64)> = at_call.iter().copied().chain(inside.iter().map(|(_, place)| *place)).collect();
    let slots = slots(&places, memory);
    let (of_calls, of_inside) = slots.split_at(at_call.len());

    let mut objects = Objects { offsets, known: HashMap::new(), types: HashMap::new() };
    objects.read(slots.iter().flatten().copied(), memory);
    let exits = objects.exits(of_inside.iter().flatten().copied(), memory);
    let mut locks: BTreeMap<u64, Lock> = BTreeMap::new();
    for object in of_calls.iter().flatten().chain(exits.values()) {
        let found = objects.lock(*object).filter(|(semaphore, _)| semaphores.contains(semaphore));
        locks.extend(found);
    }
    // By semaphore: who is inside of its lock, and with which `__exit__`. Two of them say nothing.
    let mut holders: BTreeMap<u64, Option<(Pid, u64)>> = BTreeMap::new();
    for ((thread, _), slots) in inside.iter().zip(of_inside) {
        let Some(tid) = threads.get(*thread).map(|thread| thread.tid) else { continue };
        for exit in slots {
            let Some((semaphore, _)) = exits.get(exit).and_then(|lock| objects.lock(*lock)) else { continue };
            let known = holders.entry(semaphore).or_insert(Some((tid, *exit)));
            *known = known.filter(|(other, _)| *other == tid);
        }
    }
    let taken: Vec<u64> = locks.keys().copied().collect();
    let words = memory.words(taken.iter().copied());
    // The lower half of a `sem_t` of glibc is its value: a lock that is free just now has no owner.
    let taken: BTreeSet<u64> = taken
        .into_iter()
        .zip(words)
        .filter(|(_, word)| word.is_some_and(|w| w as u32 == 0))
        .map(|(at, _)| at)
        .collect();
    let by_ident: HashMap<u64, Pid> = threads.iter().map(|thread| (thread.ident, thread.tid)).collect();
    let wait = |(waiter, futex): &(Pid, u64)| {
        let is_taken = taken.contains(futex);
        let (kind, owner, turns) = match locks.get(futex)? {
            Lock::Plain => {
                let (owner, exit) = holders.get(futex).copied().flatten().filter(|_| is_taken)?;
                (RuntimeLockKind::PyLock, Some(owner), exit)
            }
            Lock::Recursive { owner, count } => {
                let owner = by_ident.get(owner).copied().filter(|owner| *count > 0 && is_taken && owner != waiter);
                (RuntimeLockKind::PyRLock, owner, 0)
            }
        };
        Some(RuntimeLock { waiter: *waiter, address: *futex, kind, owner, entering: true, turns })
    };
    sleepers.iter().filter_map(wait).collect()
}

/// The values in use of each frame that has some, by thread: (thread, (address, words)).
fn inside(frames: &Frames) -> Vec<(usize, (u64, u64))> {
    let mut found = Vec::new();
    let mut lets_go = None;
    for frame in &frames.frames {
        if lets_go == Some(frame.thread) {
            continue;
        }
        if frames.code(frame).is_some_and(|code| code.qualname == LETS_GO) {
            lets_go = Some(frame.thread);
        }
        found.extend(frames.in_use(frame).map(|range| (frame.thread, range)));
    }
    found
}

/// All that the innermost frame of each sleeper may refer to: the lock it waits for is among it.
fn at_call(frames: &Frames, threads: &[Thread], sleepers: &[(Pid, u64)]) -> Vec<(u64, u64)> {
    let sleepers: BTreeSet<Pid> = sleepers.iter().map(|(tid, _)| *tid).collect();
    let mut done = BTreeSet::new();
    let innermost = frames.frames.iter().filter(|frame| done.insert(frame.thread));
    let of_sleepers =
        innermost.filter(|frame| threads.get(frame.thread).is_some_and(|thread| sleepers.contains(&thread.tid)));
    of_sleepers.filter_map(|frame| frames.all(frame)).collect()
}

/// Pointers to objects in each of these places, as (address, words).
fn slots(places: &[(u64, u64)], memory: &mut Memory<'_>) -> Vec<Vec<u64>> {
    let mut left = MAX_SLOTS;
    let ranges = places.iter().map(|(addr, words)| {
        let words = (*words).min(left);
        left -= words;
        MemoryRange { addr: *addr, len: (words * 8) as u32 }
    });
    let ranges: Vec<MemoryRange> = ranges.collect();
    let pointers = |bytes: Vec<u8>| {
        let words = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        words.filter(|pointer| *pointer != 0 && pointer.is_multiple_of(8)).collect()
    };
    memory.pieces(&ranges).into_iter().map(pointers).collect()
}

/// Objects as they were read, and the names of their types.
struct Objects<'a> {
    offsets: &'a Offsets,
    known: HashMap<u64, Vec<u8>>,
    types: HashMap<u64, Vec<u8>>,
}

impl Objects<'_> {
    fn read(&mut self, addresses: impl Iterator<Item = u64>, memory: &mut Memory<'_>) {
        let new: BTreeSet<u64> = addresses.filter(|address| !self.known.contains_key(address)).collect();
        let new: Vec<u64> = new.into_iter().take(MAX_OBJECTS.saturating_sub(self.known.len())).collect();
        let pieces = memory.each(new.iter().copied(), OBJECT);
        self.known.extend(new.into_iter().zip(pieces));
        let types = self.known.values().filter_map(|bytes| word(bytes, self.offsets.ob_type));
        let types: BTreeSet<u64> = types.filter(|of| !self.types.contains_key(of)).collect();
        let types: Vec<u64> = types.into_iter().collect();
        let names = memory.words(types.iter().map(|of| of.wrapping_add(self.offsets.tp_name)));
        let names = texts(names.into_iter().map(Option::unwrap_or_default), memory);
        self.types.extend(types.into_iter().zip(names));
    }

    /// An object of this type that is alive.
    fn of_type(&self, address: u64, name: &[u8]) -> Option<&[u8]> {
        let bytes = self.known.get(&address)?;
        let is_alive = number(bytes, 0)? != 0;
        let of = self.types.get(&word(bytes, self.offsets.ob_type)?)?;
        (is_alive && of == name).then_some(bytes)
    }

    /// Those of them that are an `__exit__`, and the object each is bound to, which is read.
    fn exits(&mut self, among: impl Iterator<Item = u64>, memory: &mut Memory<'_>) -> HashMap<u64, u64> {
        let functions = among.filter_map(|address| {
            let bytes = self.of_type(address, b"builtin_function_or_method")?;
            Some((address, (word(bytes, METHOD)?, word(bytes, SELF)?)))
        });
        let functions: BTreeMap<u64, (u64, u64)> = functions.collect();
        let names = memory.words(functions.values().map(|(method, _)| *method));
        let names = texts(names.into_iter().map(Option::unwrap_or_default), memory);
        let exits = functions.into_iter().zip(names).filter(|(_, name)| name == b"__exit__");
        let exits: HashMap<u64, u64> = exits.map(|((address, (_, of)), _)| (address, of)).collect();
        self.read(exits.values().copied(), memory);
        exits
    }

    /// The lock at this address, and its semaphore.
    fn lock(&self, address: u64) -> Option<(u64, Lock)> {
        if let Some(bytes) = self.of_type(address, b"_thread.lock") {
            return Some((word(bytes, SEMAPHORE)?, Lock::Plain));
        }
        let bytes = self.of_type(address, b"_thread.RLock")?;
        Some((word(bytes, SEMAPHORE)?, Lock::Recursive { owner: word(bytes, OWNER)?, count: word(bytes, COUNT)? }))
    }
}

/// Short texts of C.
fn texts(addresses: impl Iterator<Item = u64>, memory: &mut Memory<'_>) -> Vec<Vec<u8>> {
    let pieces = memory.each(addresses, 32).into_iter();
    let text = |mut bytes: Vec<u8>| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or_default();
        bytes.truncate(end);
        bytes
    };
    pieces.map(text).collect()
}
