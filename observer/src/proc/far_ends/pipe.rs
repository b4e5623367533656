//! What lies in a pipe: asked at a copy of a holder's descriptor, which lives for that long.

use super::EndHolder;
use super::aside::{Lookers, aside};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Instant;

/// Bytes in the pipe with this inode, by a descriptor of whoever has it open. `None` where the kernel (5.6) or a lack of rights forbids
/// it, where the descriptor is something else by now, or where it takes too long: the pipe is locked while a reader copies, and that
/// reader may wait for a page.
pub(super) fn unread(holder: EndHolder, inode: u64, until: Instant) -> Option<u64> {
    static LOOKERS: Lookers = Lookers::new();
    aside(&LOOKERS, until, move || {
        let process = opened(libc::SYS_pidfd_open, [i64::from(holder.process.pid), 0, 0])?;
        let copy = opened(libc::SYS_pidfd_getfd, [i64::from(process.as_raw_fd()), i64::from(holder.fd), 0])?;
        let copy = File::from(copy);
        let metadata = copy.metadata().ok()?;
        if metadata.ino() != inode || !metadata.file_type().is_fifo() {
            return None;
        }
        let mut bytes: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int, which lives on this stack.
        let result = unsafe { libc::ioctl(copy.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        if result < 0 { None } else { u64::try_from(bytes).ok() }
    })
}

/// A system call that returns a new descriptor.
fn opened(number: libc::c_long, arguments: [i64; 3]) -> Option<OwnedFd> {
    let [a, b, c] = arguments;
    // SAFETY: numbers only; the two calls made here take no pointers.
    let fd = unsafe { libc::syscall(number, a, b, c) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just made it for us, and nobody else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
