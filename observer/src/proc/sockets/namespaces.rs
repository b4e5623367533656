//! Network namespaces: which a process is in, and a channel into it.

use super::diag;
use crate::census::Pid;
use crate::proc::stat::errno_name;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

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
