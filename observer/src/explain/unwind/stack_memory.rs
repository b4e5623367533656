//! The stack of one thread, read in a few pieces as the walk gets there.

use crate::census::Pid;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use std::io::IoSliceMut;

/// What is read first, from the stack pointer upwards: enough for most stacks.
pub(in crate::explain) const FIRST: usize = 8 << 10;
/// What is read at once when the walk goes beyond it.
const PIECE: usize = 64 << 10;
/// Most that is read of one stack.
const MOST: usize = 8 << 20;
/// A read stops at a page that is not there, but not before its first.
const PAGE: u64 = 4096;

/// Words of a stack.
#[derive(Debug)]
pub(in crate::explain) struct StackMemory {
    tid: Pid,
    /// First address, and the bytes from there.
    pieces: Vec<(u64, Vec<u8>)>,
    read: usize,
    /// Where nothing more is read: the stack of a call that may be over.
    sealed: (u64, u64),
}

impl StackMemory {
    /// The memory of the process that `tid` belongs to; `first` is what was read of it already.
    pub(in crate::explain) fn new(tid: Pid, first: Option<(u64, Vec<u8>)>) -> Self {
        let read = first.as_ref().map_or(0, |(_, bytes)| bytes.len());
        Self { tid, pieces: first.into_iter().collect(), read, sealed: (0, 0) }
    }

    /// The stack as it was when `first` was captured: of the mapping it lies in (from, to) nothing else is read, since
    /// the thread has moved on.
    pub(in crate::explain) fn captured(tid: Pid, first: (u64, Vec<u8>), mapping: (u64, u64)) -> Self {
        Self { sealed: mapping, ..Self::new(tid, Some(first)) }
    }

    /// The word at an address.
    ///
    /// May block for as long as the target likes: call it on a reader of the pool.
    pub(in crate::explain) fn word(&mut self, address: u64) -> Option<u64> {
        if let Some(word) = self.known(address) {
            return Some(word);
        }
        if self.read >= MOST || (self.sealed.0..self.sealed.1).contains(&address) {
            return None;
        }
        let start = address & !(PAGE - 1);
        let bytes = read(self.tid, start, PIECE);
        // A piece that cannot be read counts too, so that a walk over bad addresses ends.
        self.read += bytes.len().max(PAGE as usize);
        if !bytes.is_empty() {
            self.pieces.push((start, bytes));
        }
        self.known(address)
    }

    fn known(&self, address: u64) -> Option<u64> {
        self.pieces.iter().rev().find_map(|(start, bytes)| {
            let at = usize::try_from(address.checked_sub(*start)?).ok()?;
            Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
        })
    }
}

/// Bytes from `start`, as many as there are, at most `len`.
pub(in crate::explain) fn read(tid: Pid, start: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let (Ok(pid), Ok(base)) = (i32::try_from(tid), usize::try_from(start)) else { return Vec::new() };
    let pid = nix::unistd::Pid::from_raw(pid);
    let got = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &[RemoteIoVec { base, len }]);
    bytes.truncate(got.unwrap_or(0));
    bytes
}
