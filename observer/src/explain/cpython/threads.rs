//! Interpreters, their GILs, and the states of their threads.

use super::offsets::Offsets;
use crate::census::Pid;
use crate::explain::pieces::{Memory, number, word};
use crate::proc::{RuntimeLock, RuntimeLockKind};
use std::collections::{BTreeSet, HashMap};

/// Subinterpreters of one process.
const MAX_INTERPRETERS: usize = 64;
/// Threads are a linked list, so each costs a system call.
const MAX_THREADS: usize = 10_000;
/// `PID_MAX_LIMIT` of a 64-bit kernel.
const MAX_TID: u64 = 1 << 22;
/// `_gil_runtime_state` of 3.13: `interval`, `last_holder`, `locked`, `switch_number`, a condition and a mutex, twice.
const SWITCHES_BEHIND_LOCKED: u64 = 8;
const CONDITION_BEHIND_LOCKED: u64 = 16;
/// `sizeof(pthread_cond_t)`, of glibc and of musl on x86-64.
const CONDITION: u64 = 48;

/// The state of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thread {
    pub(super) tid: Pid,
    /// `threading.get_ident()`, that is `pthread_self`.
    pub(super) ident: u64,
    /// Its innermost frame.
    pub(super) frame: u64,
}

/// A GIL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gil {
    address: u64,
    /// What its waiters sleep at.
    waiters: (u64, u64),
    owner: Option<Pid>,
    switches: u64,
}

impl Gil {
    /// Whether who sleeps at this futex waits for this GIL.
    pub(super) fn contains(&self, futex: u64) -> bool {
        futex == self.address || (self.waiters.0..self.waiters.1).contains(&futex)
    }

    /// The wait of a thread at it.
    pub(super) fn wait(&self, waiter: Pid) -> Option<RuntimeLock> {
        let Self { address, owner, switches: turns, .. } = *self;
        Some(RuntimeLock { waiter, address, kind: RuntimeLockKind::Gil, owner, entering: true, turns })
    }
}

/// What an interpreter shows.
#[derive(Debug, Default)]
pub(super) struct Python {
    pub(super) threads: Vec<Thread>,
    pub(super) gils: Vec<Gil>,
}

/// Reads the lists of interpreters and of their threads.
pub(super) fn read(offsets: &Offsets, runtime: u64, memory: &mut Memory<'_>) -> Result<Python, String> {
    const UNREADABLE: &str = "the list of interpreters cannot be read";
    let mut python = Python::default();
    let mut tids = HashMap::new();
    let mut gils = BTreeSet::new();
    let mut next = memory.word(runtime.wrapping_add(offsets.interpreters_head)).ok_or(UNREADABLE)?;
    let mut seen = BTreeSet::new();
    while next != 0 && seen.insert(next) {
        if seen.len() > MAX_INTERPRETERS {
            return Err("it has more interpreters than are read".to_owned());
        }
        let at = &offsets.interpreter;
        let fields = [at.next, at.threads_head, at.gil].map(|field| next.wrapping_add(field));
        let [Some(following), Some(head), Some(gil)] = memory.words(fields.into_iter())[..] else {
            return Err(UNREADABLE.to_owned());
        };
        threads(offsets, head, memory, &mut python.threads, &mut tids)?;
        gils.insert(gil);
        next = following;
    }
    if python.threads.is_empty() {
        return Err("the interpreter has no threads yet, or none any more".to_owned());
    }
    python.gils = gils.into_iter().filter_map(|gil| read_gil(offsets, gil, &tids, memory)).collect();
    Ok(python)
}

/// `tids`: threads by the address of their state.
fn threads(
    offsets: &Offsets,
    head: u64,
    memory: &mut Memory<'_>,
    found: &mut Vec<Thread>,
    tids: &mut HashMap<u64, Pid>,
) -> Result<(), String> {
    let at = &offsets.thread;
    let len = at.next.max(at.frame).max(at.ident).max(at.native) + 8;
    let mut next = head;
    while next != 0 && !tids.contains_key(&next) {
        if tids.len() >= MAX_THREADS {
            return Err(format!("it has more than {MAX_THREADS} threads"));
        }
        let bytes = memory.bytes(next, len);
        let words = [at.next, at.frame, at.ident, at.native].map(|field| word(&bytes, field));
        let [Some(following), Some(frame), Some(ident), Some(native)] = words else {
            return Err("the list of threads cannot be read".to_owned());
        };
        // Zero: not bound to a thread of the kernel, and in the list all the same.
        let tid = native as Pid;
        tids.insert(next, if native <= MAX_TID { tid } else { 0 });
        if (1..=MAX_TID).contains(&native) {
            found.push(Thread { tid, ident, frame });
        }
        next = following;
    }
    Ok(())
}

fn read_gil(offsets: &Offsets, address: u64, tids: &HashMap<u64, Pid>, memory: &mut Memory<'_>) -> Option<Gil> {
    let at = &offsets.interpreter;
    let conditions = at.gil_locked + CONDITION_BEHIND_LOCKED;
    let bytes = memory.bytes(address, (at.gil_holder + 8).max(conditions));
    let locked = number(&bytes, at.gil_locked)?;
    let switches = word(&bytes, at.gil_locked + SWITCHES_BEHIND_LOCKED)?;
    let holder = word(&bytes, at.gil_holder)?;
    let owner = tids.get(&holder).copied().filter(|tid| *tid != 0 && locked == 1);
    let first = address.checked_add(conditions)?;
    // The second condition is of who has let go and waits for another to take it: not a wait for its holder.
    Some(Gil { address, waiters: (first, first.checked_add(CONDITION)?), owner, switches })
}
