//! File descriptors of a process.

use super::stat::{errno_name, read_bounded};
use super::{FdFact, SocketFact};
use crate::census::Pid;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Most of `fdinfo` that is read: about a hundred descriptors of an epoll instance.
const MAX_INFO: u64 = 8192;

/// What descriptor `fd` of thread `tid` refers to; the socket behind it is left out.
///
/// May block (`fdinfo` of an epoll instance takes a mutex that is held while events are copied to the
/// target): call it on a reader of the [`pool`](super::pool).
///
/// # Errors
/// The name of the error number: `ENOENT` for a descriptor that is not open, `EACCES` without permission.
pub fn fd_fact(pid: Pid, tid: Pid, fd: i32) -> Result<FdFact, String> {
    // The thread's own directory: threads may have other tables, and that of an ended main thread is empty.
    let base = format!("/proc/{pid}/task/{tid}");
    let target = std::fs::read_link(format!("{base}/fd/{fd}")).map_err(|e| errno_name(&e))?;
    let info = read_bounded(Path::new(&format!("{base}/fdinfo/{fd}")), MAX_INFO).map_err(|e| errno_name(&e))?;
    let whole = (info.len() as u64) < MAX_INFO;
    let info = String::from_utf8_lossy(&info);
    let flags = field(&info, "flags:").and_then(|text| u32::from_str_radix(text, 8).ok()).unwrap_or(0);
    let inode = field(&info, "ino:").and_then(|text| text.parse().ok());
    let watched =
        if whole { watched(&info, |fd| std::fs::read_link(format!("{base}/fd/{fd}")).ok()) } else { Vec::new() };
    let mut fact =
        FdFact { fd, target: target.to_string_lossy().into_owned(), flags, inode, watched, ..FdFact::default() };
    match fact.target.as_str() {
        EVENTFD => fact.eventfd = field(&info, "eventfd-id:").and_then(|text| text.parse().ok()),
        // A process that has ended, or is in another namespace, reads -1 or 0.
        text if text == "anon_inode:[pidfd]" || text.starts_with("pidfd:") => {
            fact.process = field(&info, "Pid:").and_then(|text| text.parse().ok()).filter(|pid| *pid != 0);
        }
        _ if file_name(target.as_os_str().as_bytes()).is_some() => {
            fact.fifo = fifo(&format!("{base}/fd/{fd}"));
        }
        _ => {}
    }
    Ok(fact)
}

/// Link of an eventfd.
pub(super) const EVENTFD: &str = "anon_inode:[eventfd]";

/// What follows a name in `fdinfo`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The id of an eventfd.
///
/// May block where the descriptor is something else by now: not to be called by whoever must not be held up.
pub(super) fn eventfd_id(pid: Pid, fd: i32) -> Option<u64> {
    let info = read_bounded(Path::new(&format!("/proc/{pid}/fdinfo/{fd}")), MAX_INFO).ok()?;
    field(&String::from_utf8_lossy(&info), "eventfd-id:")?.parse().ok()
}

/// The last part of the link of a named file; what is mounted where may differ between processes. Devices are none.
pub(super) fn file_name(link: &[u8]) -> Option<&[u8]> {
    let path = link.strip_suffix(b" (deleted)").unwrap_or(link);
    let is_device = path.starts_with(b"/dev/") && !path.starts_with(b"/dev/shm/");
    (path.starts_with(b"/") && !is_device).then(|| path.rsplit(|b| *b == b'/').next()).flatten()
}

/// Device and inode of what a link of `/proc/PID/fd` leads to, if that is a FIFO. Whoever serves the file system is not
/// asked, so this does not wait for it.
pub(super) fn fifo(link: &str) -> Option<(u64, u64)> {
    let path = CString::new(link).ok()?;
    let mut found = MaybeUninit::<libc::statx>::uninit();
    let (flags, mask) = (libc::AT_STATX_DONT_SYNC, libc::STATX_TYPE | libc::STATX_INO);
    // SAFETY: the path ends with NUL, and the buffer is as large as the kernel's structure; both outlive the call.
    let answer = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, mask, found.as_mut_ptr()) };
    if answer != 0 {
        return None;
    }
    // SAFETY: on success the kernel has filled the whole structure, which holds integers only.
    let found = unsafe { found.assume_init() };
    let is_fifo = u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFIFO;
    is_fifo.then(|| (libc::makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino))
}

/// The sockets in the `tfd:` lines that `fdinfo` has for an epoll instance (`ep_show_fdinfo`, `fs/eventpoll.c`).
fn watched(info: &str, link: impl Fn(i32) -> Option<PathBuf>) -> Vec<SocketFact> {
    let socket = |line: &str| {
        let fd = line.strip_prefix("tfd:")?.split_whitespace().next()?.parse().ok()?;
        let inode = u64::from_str_radix(line.split("ino:").nth(1)?.split_whitespace().next()?, 16).ok()?;
        let target = link(fd)?;
        let target = target.to_str()?;
        let is_other = ["anon_inode:", "pipe:", "/"].iter().any(|kind| target.starts_with(kind));
        (!is_other).then(|| SocketFact::unknown(inode))
    };
    info.lines().filter_map(socket).collect()
}

/// The inode in `socket:[123]`.
pub(crate) fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::watched;

    #[test]
    fn sockets_that_an_epoll_instance_watches() {
        let info = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\n\
            tfd:        4 events:       19 data:     7f3f03276268  pos:0 ino:60f38 sdev:9\n\
            tfd:        5 events:       19 data:     7f3f03276288  pos:0 ino:60f36 sdev:9\n\
            tfd:        6 events: nonsense\n";
        let link = |fd| Some(if fd == 4 { "socket:[397112]" } else { "pipe:[397120]" }.into());
        let inodes: Vec<u64> = watched(info, link).into_iter().map(|socket| socket.inode).collect();
        assert_eq!(inodes, [397_112]);
    }
}
