//! Java monitors of a running HotSpot JVM, from outside: nothing is attached, stopped or asked.
//!
//! HotSpot publishes where its fields are ([`vm_structs`]), for its own serviceability agent; that leads to the threads, what
//! they wait for and who owns it ([`monitors`]). Seen to work with JDK 17 and 25. What a JVM does not publish is refused
//! with a reason: nothing is guessed from its version.
//!
//! Not here: `java.util.concurrent` locks and virtual threads that are not mounted; they exist in the Java heap only.

mod monitors;
mod vm_structs;

#[cfg(test)]
mod tests;

use super::library::Library;
use super::pieces::Memory;
use crate::census::{Pid, ProcessId};
use crate::proc::maps::Mapping;
use crate::proc::{MemoryRange, RuntimeLock, RuntimeLocks, memory};
use std::time::{Duration, Instant};
use vm_structs::{Symbols, VmStructs};

/// 500 threads take some milliseconds; a JVM made of bad pointers, each a system call, would take seconds.
const LONGEST: Duration = Duration::from_secs(2);

/// Who waits for which monitor in this process, and who owns it. `via`: a thread of it.
///
/// May block for as long as the target or the file system of its libjvm likes: call it on a reader of the pool.
pub(super) fn read(process: ProcessId, via: Pid, mappings: &[Mapping], library: &Library) -> RuntimeLocks {
    let until = Instant::now() + LONGEST;
    let read_all = || -> Result<Vec<RuntimeLock>, String> {
        let (symbols, bias) = libjvm(via, mappings, library)?;
        let mut read = |ranges: &[MemoryRange]| {
            let ranges = if Instant::now() < until { ranges } else { &[] };
            let facts = memory::read(process, &[via], ranges);
            facts.into_iter().map(|fact| fact.bytes).collect()
        };
        let mut memory = Memory { read: &mut read };
        let structs = VmStructs::read(&symbols, bias, &mut memory)?;
        monitors::read(&structs, &mut memory)
    };
    let (waits, missing) = match read_all() {
        _ if Instant::now() >= until => (Vec::new(), Some("reading it took too long".to_owned())),
        Ok(waits) => (waits, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    RuntimeLocks { process, waits, missing }
}

/// The symbols of the process' libjvm, and its bias.
fn libjvm(via: Pid, mappings: &[Mapping], library: &Library) -> Result<(Symbols, u64), String> {
    let is_libjvm = |mapping: &&Mapping| mapping.is_file() && mapping.path().ends_with("/libjvm.so");
    let mapping = mappings.iter().filter(is_libjvm).find(|mapping| mapping.executable);
    let mapping = mapping.ok_or("no libjvm.so is mapped")?;
    let loaded = library.open(via, mapping).map_err(|why| format!("libjvm.so: {why}"))?;
    let svma = loaded.image.svma_of_offset(mapping.offset, true).ok_or("libjvm.so is not mapped as its headers say")?;
    let symbols = Symbols::find(&loaded.image).ok_or("libjvm.so does not export gHotSpotVMStructs")?;
    Ok((symbols, mapping.start.wrapping_sub(svma)))
}
