//! Locks of a running CPython, from outside: nothing is attached, stopped or asked.
//!
//! Since 3.13 CPython publishes where its fields are ([`offsets`]), for debuggers; that leads to its threads, to the GIL and
//! to the frames of each thread ([`threads`]), and those to locks and to who is inside of `with lock:` ([`locks`]). Read here:
//! 3.13 with a GIL. Every other version is refused with a reason: nothing is guessed.
//!
//! Not here: a `Lock` that was taken by `acquire()` alone (it records no owner), and locks inside of other objects' `with`
//! (`with condition:` keeps the condition, not its lock).

mod frames;
mod locks;
mod offsets;
mod threads;

use super::image::Image;
use super::library::Library;
use super::pieces::Memory;
use crate::census::{Pid, ProcessId};
use crate::proc::maps::Mapping;
use crate::proc::{MemoryRange, RuntimeLock, RuntimeLocks, RuntimeWant, base_name, memory};
use offsets::Offsets;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// 500 threads take some milliseconds; an interpreter made of bad pointers, each a system call, would take seconds.
const LONGEST: Duration = Duration::from_secs(2);
/// Files of one process that may hold an interpreter.
const MAX_FILES: usize = 8;

/// Which threads of this process wait for its GIL or a lock of Python, and who has that. `via`: a thread of it.
///
/// May block for as long as the target or the file system of its program likes: call it on a reader of the pool.
pub(super) fn read(want: &RuntimeWant, via: Pid, mappings: &[Mapping], library: &Library) -> RuntimeLocks {
    let (process, until) = (want.process, Instant::now() + LONGEST);
    let (waits, missing) = match read_all(want, via, mappings, library, until) {
        _ if Instant::now() >= until => (Vec::new(), Some("reading them took too long".to_owned())),
        Ok(waits) => (waits, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    RuntimeLocks { process, waits, missing }
}

fn read_all(
    want: &RuntimeWant,
    via: Pid,
    mappings: &[Mapping],
    library: &Library,
    until: Instant,
) -> Result<Vec<RuntimeLock>, String> {
    let runtime = runtime_address(via, mappings, library)?;
    let process: ProcessId = want.process;
    let mut read = |ranges: &[MemoryRange]| {
        let ranges = if Instant::now() < until { ranges } else { &[] };
        let facts = memory::read(process, &[via], ranges);
        facts.into_iter().map(|fact| fact.bytes).collect()
    };
    let mut memory = Memory { read: &mut read };
    let offsets = Offsets::read(runtime, &mut memory)?;
    waits(&offsets, runtime, &want.sleepers, &mut memory)
}

/// The program runs on while it is read, so it is looked at twice, and what both looks show is believed.
fn waits(
    offsets: &Offsets,
    runtime: u64,
    sleepers: &[(Pid, u64)],
    memory: &mut Memory<'_>,
) -> Result<Vec<RuntimeLock>, String> {
    let first = look(offsets, runtime, sleepers, memory)?;
    if first.is_empty() {
        return Ok(first);
    }
    let second = look(offsets, runtime, sleepers, memory)?;
    let both = first.into_iter().filter_map(|before| {
        let now = second.iter().find(|now| now.waiter == before.waiter)?;
        let same = RuntimeLock { owner: now.owner, turns: now.turns, ..before } == *now;
        let is_same_hold = before.owner == now.owner && before.turns == now.turns;
        same.then(|| RuntimeLock { owner: now.owner.filter(|_| is_same_hold), ..*now })
    });
    Ok(both.collect())
}

fn look(
    offsets: &Offsets,
    runtime: u64,
    sleepers: &[(Pid, u64)],
    memory: &mut Memory<'_>,
) -> Result<Vec<RuntimeLock>, String> {
    let python = threads::read(offsets, runtime, memory)?;
    let mut waits = Vec::new();
    let mut others = Vec::new();
    for (waiter, futex) in sleepers {
        match python.gils.iter().find(|gil| gil.contains(*futex)) {
            // Who holds it does not wait for it any more.
            Some(gil) => waits.extend(gil.wait(*waiter).filter(|wait| wait.owner != Some(*waiter))),
            None => others.push((*waiter, *futex)),
        }
    }
    if !others.is_empty() {
        waits.extend(locks::read(offsets, &python.threads, &others, memory));
    }
    Ok(waits)
}

/// Where `_PyRuntime` is: a section of its own in the program or in libpython.
fn runtime_address(via: Pid, mappings: &[Mapping], library: &Library) -> Result<u64, String> {
    const SECTION: &str = ".PyRuntime";
    let is_python = |mapping: &&Mapping| {
        let name = base_name(mapping.path());
        mapping.is_file() && mapping.executable && (name.starts_with("libpython") || name.starts_with("python"))
    };
    let mut why = "neither a python program nor libpython is mapped".to_owned();
    let mut seen = BTreeSet::new();
    for mapping in mappings.iter().filter(is_python) {
        if !seen.insert((&mapping.device, mapping.inode)) || seen.len() > MAX_FILES {
            continue;
        }
        let loaded = match library.open(via, mapping) {
            Ok(loaded) => loaded,
            Err(error) => {
                why = format!("the file of its interpreter: {error}");
                continue;
            }
        };
        let image: &Image = &loaded.image;
        match (image.section(SECTION), image.svma_of_offset(mapping.offset, true)) {
            (Some(section), Some(svma)) => return Ok(section.svma.wrapping_add(mapping.start.wrapping_sub(svma))),
            (Some(_), None) => why = "its interpreter is not mapped as its headers say".to_owned(),
            // The program may be a small one in front of its library.
            (None, _) if seen.len() == 1 => why = "its interpreter does not say where its state is".to_owned(),
            (None, _) => {}
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests;
