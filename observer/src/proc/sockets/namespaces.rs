//! Network namespaces: which a process is in, and a channel into it.

use super::diag;
use crate::census::{Pid, ProcessId};
use crate::proc::stat::errno_name;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

/// Processes of a namespace through which it may be listed.
pub(super) const TRIED: usize = 3;

/// The process through which a namespace is listed: the first of these that is still in it, as they may have ended since they were
/// found there.
pub(super) fn through(processes: &[ProcessId], inode: u64) -> Pid {
    let is_in = |pid: &Pid| namespace(&pid.to_string()) == Ok(inode);
    let found = processes.iter().take(TRIED).map(|process| process.pid).find(is_in);
    // If none is, the first one says why not.
    found.unwrap_or_else(|| processes.first().map_or(0, |process| process.pid))
}

/// A netlink socket in our own network namespace, or in that `other` one that `pid` is in; `None` when that is refused (it takes
/// `CAP_SYS_ADMIN`), or the process is in another one by now.
pub(super) fn open_in(pid: Pid, other: Option<u64>) -> Option<OwnedFd> {
    let Some(inode) = other else { return diag::open().ok() };
    let namespace = File::open(format!("/proc/{pid}/ns/net")).ok()?;
    if namespace.metadata().ok()?.ino() != inode {
        return None;
    }
    // A thread of its own changes namespace and ends; the socket stays where it was made. Nothing in it waits.
    std::thread::Builder::new()
        .name("observer-netns".into())
        .stack_size(64 * 1024)
        .spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).ok()?;
            diag::open().ok()
        })
        .ok()?
        .join()
        .ok()?
}

/// Inode number of a network namespace, from the link `net:[123]`.
pub(super) fn namespace(pid: &str) -> Result<u64, String> {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).map_err(|e| errno_name(&e))?;
    link.to_str()
        .and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok())
        .ok_or_else(|| "no network namespace".to_owned())
}
