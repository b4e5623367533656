//! Which sockets a process has open: links of a directory that is opened once, each read by its name alone.

use crate::census::ProcessId;
use crate::proc::fds::socket_inode;
use crate::proc::stat::{Identity, errno_name, identity};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::sys::stat::Mode;
use std::time::Instant;

/// Descriptors looked at in one process.
const MAX_FDS: usize = 1 << 20;

/// Descriptors of a process that are sockets, each with its inode.
///
/// # Errors
/// The name of the error number, or `deadline`.
pub(super) fn sockets_of(process: ProcessId, until: Instant) -> Result<Vec<(i32, u32)>, String> {
    if Instant::now() > until {
        return Err("deadline".into());
    }
    let path = format!("/proc/{}/fd", process.pid);
    let gone = |reason: String| if reason == "ENOENT" { "ESRCH".to_owned() } else { reason };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open(path.as_str(), flags, Mode::empty()).map_err(|e| gone(format!("{e:?}")))?;
    let mut found = Vec::new();
    for (n, entry) in std::fs::read_dir(&path).map_err(|e| gone(errno_name(&e)))?.take(MAX_FDS).enumerate() {
        if n % 256 == 255 && Instant::now() > until {
            return Err("deadline".into());
        }
        // A descriptor that is closed meanwhile is no error.
        let Ok(name) = entry.map(|entry| entry.file_name()) else { continue };
        let target = match readlinkat(&directory, name.as_os_str()) {
            Ok(target) => target,
            Err(Errno::ESRCH) => break,
            Err(_) => continue,
        };
        let inode = target.to_str().and_then(socket_inode).and_then(|inode| u32::try_from(inode).ok());
        if let (Some(fd), Some(inode)) = (name.to_str().and_then(|name| name.parse().ok()), inode) {
            found.push((fd, inode));
        }
    }
    match identity(process) {
        Identity::Same => Ok(found),
        Identity::Gone | Identity::Reused => Err("ESRCH".into()),
    }
}
