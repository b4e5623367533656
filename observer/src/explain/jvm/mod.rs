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
use crate::census::{Pid, ProcessId};
use crate::proc::maps::Mapping;
use crate::proc::{JavaMonitor, JavaMonitors, MemoryRange, memory};
use std::time::{Duration, Instant};
use vm_structs::{Symbols, VmStructs};

/// 500 threads take some milliseconds; a JVM made of bad pointers, each a system call, would take seconds.
const LONGEST: Duration = Duration::from_secs(2);
/// Pieces read at once.
const TOGETHER: usize = 1024;

/// Who waits for which monitor in this process, and who owns it. `via`: a thread of it.
///
/// May block for as long as the target or the file system of its libjvm likes: call it on a reader of the pool.
pub(super) fn read(process: ProcessId, via: Pid, mappings: &[Mapping], library: &Library) -> JavaMonitors {
    let until = Instant::now() + LONGEST;
    let read_all = || -> Result<Vec<JavaMonitor>, String> {
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
    let (monitors, missing) = match read_all() {
        _ if Instant::now() >= until => (Vec::new(), Some("reading it took too long".to_owned())),
        Ok(monitors) => (monitors, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    JavaMonitors { process, monitors, missing }
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

/// Reads pieces of memory, one answer per piece in the order asked for: as much of it as there is.
type ReadPieces<'a> = dyn FnMut(&[MemoryRange]) -> Vec<Vec<u8>> + 'a;

/// The JVM's memory; in tests, what they made up.
struct Memory<'a> {
    read: &'a mut ReadPieces<'a>,
}

impl Memory<'_> {
    fn pieces(&mut self, ranges: &[MemoryRange]) -> Vec<Vec<u8>> {
        let mut pieces = Vec::with_capacity(ranges.len());
        for (number, together) in ranges.chunks(TOGETHER).enumerate() {
            pieces.extend((self.read)(together));
            pieces.resize_with(number * TOGETHER + together.len(), Vec::new);
        }
        pieces
    }

    /// Pieces of the same length, one per address.
    fn each(&mut self, addresses: impl Iterator<Item = u64>, len: u32) -> Vec<Vec<u8>> {
        let ranges: Vec<MemoryRange> = addresses.map(|addr| MemoryRange { addr, len }).collect();
        self.pieces(&ranges)
    }

    /// The word at each address.
    fn words(&mut self, addresses: impl Iterator<Item = u64>) -> Vec<Option<u64>> {
        self.each(addresses, 8).iter().map(|bytes| word(bytes, 0)).collect()
    }

    /// The word at an address.
    fn word(&mut self, address: u64) -> Option<u64> {
        self.words(std::iter::once(address)).first().copied().flatten()
    }

    /// As many of `len` bytes from here on as there are.
    fn bytes(&mut self, address: u64, len: u64) -> Vec<u8> {
        let step = u64::from(MemoryRange::MAX_LEN);
        let ranges = (0..len.div_ceil(step)).map(|number| MemoryRange {
            addr: address.wrapping_add(number * step),
            len: (len - number * step).min(step) as u32,
        });
        let ranges: Vec<MemoryRange> = ranges.collect();
        let mut bytes = Vec::new();
        for (range, piece) in ranges.iter().zip(self.pieces(&ranges)) {
            bytes.extend_from_slice(&piece);
            if piece.len() < range.len as usize {
                break;
            }
        }
        bytes
    }
}

/// The word at this place of a piece.
fn word(bytes: &[u8], at: u64) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(usize::try_from(at).ok()?..)?.first_chunk()?))
}

/// The 32-bit number at this place of a piece.
fn number(bytes: &[u8], at: u64) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(usize::try_from(at).ok()?..)?.first_chunk()?))
}
