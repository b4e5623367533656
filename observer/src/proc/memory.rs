//! The target's memory, many pieces in one system call, without stopping it.

use super::stat::{Identity, identity};
use super::{MemoryFact, MemoryRange};
use crate::census::{Pid, ProcessId};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use std::io::IoSliceMut;

/// `UIO_MAXIOV`: more pieces in one call are refused.
const MAX_PIECES: usize = 1024;
/// Bytes asked for in one call.
const MAX_BYTES: usize = 4 << 20;

/// Reads pieces of the memory of `process`, in the order asked for.
///
/// May block for as long as the target likes: call it on a reader of the [`pool`](super::pool).
/// `threads` are tried in turn when the main thread has ended and has no memory any more. A piece that cannot be
/// read has its `error` and whatever came before the bad page; the others are not affected. When the PID turns
/// out to belong to another process, every piece says `ESRCH (pid reused)` and has no bytes.
pub fn read(process: ProcessId, threads: &[Pid], ranges: &[MemoryRange]) -> Vec<MemoryFact> {
    let mut facts = Vec::with_capacity(ranges.len());
    let mut rest = ranges;
    while !rest.is_empty() {
        let mut bytes = 0;
        let count = rest
            .iter()
            .take(MAX_PIECES)
            .take_while(|r| {
                bytes += capped(r);
                bytes <= MAX_BYTES
            })
            .count();
        let (now, later) = rest.split_at(count.max(1));
        let mut read = read_batch(process.pid, now);
        for &tid in threads {
            if tid != process.pid && read.iter().all(|f| f.error.as_deref() == Some("ESRCH")) {
                read = read_batch(tid, now);
            }
        }
        facts.append(&mut read);
        rest = later;
    }
    // After the read: only then a matching start time proves whose memory it was.
    let mismatch = match identity(process) {
        Identity::Same => return facts,
        Identity::Reused => "ESRCH (pid reused)",
        Identity::Gone => "ESRCH",
    };
    ranges.iter().map(|r| unread(r.addr, mismatch)).collect()
}

/// A piece that was not read.
pub(crate) fn unread(addr: u64, reason: &str) -> MemoryFact {
    MemoryFact { addr, bytes: Vec::new(), error: Some(reason.to_owned()) }
}

fn capped(range: &MemoryRange) -> usize {
    range.len.min(MemoryRange::MAX_LEN) as usize
}

/// One batch; a call for each bad piece in it, plus one.
fn read_batch(pid: Pid, ranges: &[MemoryRange]) -> Vec<MemoryFact> {
    let Ok(pid) = i32::try_from(pid) else {
        return ranges.iter().map(|r| unread(r.addr, "ESRCH")).collect();
    };
    let pid = nix::unistd::Pid::from_raw(pid);
    let mut facts: Vec<MemoryFact> = Vec::with_capacity(ranges.len());
    let mut buffer = vec![0_u8; ranges.iter().map(capped).sum()];
    while facts.len() < ranges.len() {
        let rest = &ranges[facts.len()..];
        let remote: Vec<RemoteIoVec> = rest
            .iter()
            .map(|r| RemoteIoVec { base: usize::try_from(r.addr).unwrap_or(usize::MAX), len: capped(r) })
            .collect();
        let wanted: usize = remote.iter().map(|r| r.len).sum();
        let outcome = if wanted == 0 {
            Ok(0)
        } else {
            process_vm_readv(pid, &mut [IoSliceMut::new(&mut buffer[..wanted])], &remote)
        };
        let mut left = match outcome {
            Ok(read) => &buffer[..read.min(wanted)],
            Err(Errno::EFAULT) => &[],
            Err(errno) => {
                let reason = format!("{errno:?}");
                facts.extend(rest.iter().map(|r| unread(r.addr, &reason)));
                break;
            }
        };
        // The kernel goes through the pieces in order and stops at the first bad page: the piece it
        // stopped in is the bad one, the next call goes on behind it.
        for range in rest {
            let (bytes, behind) = left.split_at(capped(range).min(left.len()));
            left = behind;
            let short = bytes.len() < capped(range);
            let error = if short {
                Some("EFAULT".to_owned())
            } else if range.len > MemoryRange::MAX_LEN {
                Some(format!("cut at {} bytes", MemoryRange::MAX_LEN))
            } else {
                None
            };
            facts.push(MemoryFact { addr: range.addr, bytes: bytes.to_vec(), error });
            if short {
                break;
            }
        }
    }
    facts
}
