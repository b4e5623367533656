//! File descriptors of a process.

use super::stat::{errno_name, read_bounded};
use super::{FdFact, SocketFact};
use crate::census::Pid;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Most of `fdinfo` that is read: about a hundred descriptors of an epoll instance.
const MAX_INFO: u64 = 8192;
/// Descriptors looked at in one scan of a process.
const MAX_FDS: usize = 1 << 20;

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
    let flags =
        info.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok()).unwrap_or(0);
    let inode = info.lines().find_map(|line| line.strip_prefix("ino:")?.trim().parse().ok());
    let watched =
        if whole { watched(&info, |fd| std::fs::read_link(format!("{base}/fd/{fd}")).ok()) } else { Vec::new() };
    Ok(FdFact { fd, target: target.to_string_lossy().into_owned(), flags, inode, socket: None, watched })
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

/// Every descriptor of `pid` that is a socket, with its inode; only those in `wanted` if given.
///
/// # Errors
/// The name of the error number, or `deadline` when the scan took too long.
pub(crate) fn socket_fds(pid: Pid, wanted: Option<&BTreeSet<u64>>, until: Instant) -> Result<Vec<(i32, u64)>, String> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(|e| errno_name(&e))?;
    for (n, entry) in entries.take(MAX_FDS).enumerate() {
        if n % 256 == 255 && Instant::now() > until {
            return Err("deadline".into());
        }
        // A descriptor that is closed meanwhile is no error.
        let Ok(entry) = entry else { continue };
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(target) = std::fs::read_link(entry.path()) else {
            continue;
        };
        let Some(inode) = target.to_str().and_then(socket_inode) else {
            continue;
        };
        if wanted.is_none_or(|w| w.contains(&inode)) {
            found.push((fd, inode));
        }
    }
    Ok(found)
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
