//! Many pieces of a target's memory in one buffer: for tables with a hundred thousand entries, where an allocation for each
//! piece ([`memory`](super::memory)) would cost more than the reading.

use super::MemoryRange;
use super::stat::{Identity, identity};
use crate::census::{Pid, ProcessId};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use std::io::IoSliceMut;

/// `UIO_MAXIOV`: more pieces in one call are refused.
const MAX_PIECES: usize = 1024;

/// Pieces that were read, in the order asked for. Kept and filled again, it allocates nothing.
#[derive(Debug, Default)]
pub struct Pieces {
    bytes: Vec<u8>,
    /// Begin in `bytes`, and how much of it is there.
    spans: Vec<(usize, usize)>,
    runs: Runs,
}

/// Neighbours that are read together.
#[derive(Debug, Default)]
struct Runs {
    /// The pieces by address.
    order: Vec<usize>,
    ranges: Vec<MemoryRange>,
    spans: Vec<(usize, usize)>,
    buffer: Vec<u8>,
}

impl Pieces {
    /// Forgets what was read, and makes room for these.
    pub fn reset(&mut self, ranges: &[MemoryRange]) {
        self.spans.clear();
        let mut end = 0;
        for range in ranges {
            self.spans.push((end, 0));
            end += range.len as usize;
        }
        // What is left of an earlier reading is hidden by the lengths.
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
    }

    /// Puts as much of a piece as there is.
    pub fn put(&mut self, index: usize, bytes: &[u8]) {
        let room = self.spans.get(index + 1).map_or(self.bytes.len(), |next| next.0);
        if let Some(span) = self.spans.get_mut(index)
            && let Some(into) = self.bytes.get_mut(span.0..room)
        {
            span.1 = bytes.len().min(into.len());
            into[..span.1].copy_from_slice(&bytes[..span.1]);
        }
    }

    /// As much of a piece as could be read.
    pub fn get(&self, index: usize) -> &[u8] {
        let Some(&(start, len)) = self.spans.get(index) else { return &[] };
        self.bytes.get(start..start + len).unwrap_or_default()
    }
}

/// Pieces that lie so near to each other are read in one go, with what is between: the kernel finds and holds each page anew
/// for each piece, which costs more than to copy a little more.
const NEAR: u64 = 2048;
/// Such a run is no longer than this.
const LONGEST_RUN: u64 = 64 << 10;

/// Reads pieces of the memory of a process. A piece that cannot be read is short; the others are not affected.
///
/// May block for as long as the target likes: call it on a reader of the [`pool`](super::pool). Whether the PID still
/// belongs to the process meant has to be asked afterwards. The pieces of one call should not be more than some MiB.
///
/// # Errors
/// What the kernel says when it lets us read nothing at all: `ESRCH`, `EPERM`.
pub fn read_pieces(pid: Pid, ranges: &[MemoryRange], into: &mut Pieces) -> Result<(), Errno> {
    into.reset(ranges);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::ESRCH)?);
    let Pieces { bytes, spans, runs } = into;
    let Runs { order, ranges: joined, spans: read, buffer } = runs;
    order.clear();
    joined.clear();
    read.clear();
    order.extend((0..ranges.len()).filter(|&index| ranges[index].len != 0));
    order.sort_unstable_by_key(|&index| ranges[index].addr);
    let end_of = |range: &MemoryRange| range.addr.saturating_add(u64::from(range.len));
    for run in order.chunk_by(|&a, &b| ranges[b].addr.saturating_sub(end_of(&ranges[a])) <= NEAR) {
        // A run that is too long is cut where a piece ends.
        let mut open: Option<MemoryRange> = None;
        for range in run.iter().map(|&index| &ranges[index]) {
            match &mut open {
                Some(whole) if end_of(range) - whole.addr <= LONGEST_RUN => {
                    whole.len = (end_of(range).max(end_of(whole)) - whole.addr) as u32;
                }
                _ => {
                    joined.extend(open.replace(*range));
                }
            }
        }
        joined.extend(open);
    }
    let mut start = 0;
    read.extend(joined.iter().map(|run| {
        let span = (start, 0);
        start += run.len as usize;
        span
    }));
    if buffer.len() < start {
        buffer.resize(start, 0);
    }
    let outcome = fill(pid, joined, buffer, read);
    // Back to the pieces; those that a bad page of a neighbour took along are read by themselves.
    let mut run = 0;
    for &index in order.iter().filter(|_| outcome.is_ok()) {
        let range = &ranges[index];
        while joined.get(run).is_some_and(|whole| end_of(whole) < end_of(range) || whole.addr > range.addr) {
            run += 1;
        }
        let (Some(whole), Some(&(begin, got)), Some(span)) = (joined.get(run), read.get(run), spans.get_mut(index))
        else {
            break;
        };
        let (at, len) = ((range.addr - whole.addr) as usize, range.len as usize);
        let Some(room) = bytes.get_mut(span.0..span.0 + len) else { continue };
        if got >= at + len {
            room.copy_from_slice(&buffer[begin + at..begin + at + len]);
            span.1 = len;
        } else {
            let mut alone = [(0, 0)];
            fill(pid, std::slice::from_ref(range), room, &mut alone)?;
            span.1 = alone[0].1;
        }
    }
    outcome
}

/// Reads ranges one behind the other into a buffer, which is made large enough; `got` is how much of each was read. One that
/// cannot be read is short; the others are not affected.
///
/// As [`read_pieces`], for few large ranges that are looked at where they are.
///
/// # Errors
/// What the kernel says when it lets us read nothing at all: `ESRCH`, `EPERM`.
pub fn read_ranges(
    pid: Pid,
    ranges: &[MemoryRange],
    buffer: &mut Vec<u8>,
    got: &mut Vec<(usize, usize)>,
) -> Result<(), Errno> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::ESRCH)?);
    got.clear();
    let mut start = 0_usize;
    for range in ranges {
        got.push((start, 0));
        start = start.saturating_add(range.len as usize);
    }
    if buffer.len() < start {
        buffer.resize(start, 0);
    }
    fill(pid, ranges, buffer, got)
}

/// Reads ranges into a buffer, where each begins at its span; the spans get how much was read.
fn fill(
    pid: nix::unistd::Pid,
    ranges: &[MemoryRange],
    bytes: &mut [u8],
    spans: &mut [(usize, usize)],
) -> Result<(), Errno> {
    let mut next = 0;
    while next < ranges.len() {
        let rest = &ranges[next..ranges.len().min(next + MAX_PIECES)];
        let remote: Vec<RemoteIoVec> = rest
            .iter()
            .map(|r| RemoteIoVec { base: usize::try_from(r.addr).unwrap_or(usize::MAX), len: r.len as usize })
            .collect();
        let wanted: usize = remote.iter().map(|r| r.len).sum();
        let start = spans.get(next).map_or(0, |span| span.0);
        let got = match bytes.get_mut(start..start + wanted) {
            Some(buffer) if wanted != 0 => process_vm_readv(pid, &mut [IoSliceMut::new(buffer)], &remote),
            _ => Ok(0),
        };
        let mut left = match got {
            Ok(got) => got.min(wanted),
            Err(Errno::EFAULT) => 0,
            Err(errno) => return Err(errno),
        };
        // The kernel goes through the pieces in order and stops at the first bad page: the piece it stopped in is the
        // bad one, the next call goes on behind it.
        for range in rest {
            let got = left.min(range.len as usize);
            left -= got;
            if let Some(span) = spans.get_mut(next) {
                span.1 = got;
            }
            next += 1;
            if got < range.len as usize {
                break;
            }
        }
    }
    Ok(())
}

/// Whether the PID is still that of the process. Asked after reading, a yes proves whose memory it was.
///
/// # Errors
/// Why it is not, in words.
pub fn is_still(process: ProcessId) -> Result<(), &'static str> {
    match identity(process) {
        Identity::Same => Ok(()),
        Identity::Reused => Err("it is gone, and its PID belongs to another process"),
        Identity::Gone => Err("it is gone"),
    }
}
