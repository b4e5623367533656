//! Which sockets a process has open: from the kernel's file iterator where that is to be had, else from the links of a directory
//! that is opened once, each read by its name alone.

use crate::census::{Pid, ProcessId, SocketFiles, SocketFilesError};
use crate::proc::fds::socket_inode;
use crate::proc::stat::{Identity, errno_name, identity};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::sys::stat::Mode;
use std::collections::BTreeMap;
use std::time::Instant;

/// Descriptors looked at in one process.
const MAX_FDS: usize = 1 << 20;

/// Lists the sockets that processes have open.
#[derive(Clone, Debug, Default)]
pub struct FileTables {
    iterator: Option<SocketFiles>,
    /// Why `/proc` was read although there is an iterator, and how often.
    fallen: BTreeMap<String, u64>,
}

impl FileTables {
    /// By the kernel's iterator; by default they are read from `/proc`.
    pub fn by_iterator(iterator: SocketFiles) -> Self {
        Self { iterator: Some(iterator), fallen: BTreeMap::new() }
    }

    /// Descriptors of a process that are sockets, in order, each with its inode; those of its main thread.
    ///
    /// # Errors
    /// The name of the error number (`ESRCH` also for another process with its number), or `deadline`.
    pub fn sockets_of(&mut self, process: ProcessId, until: Instant) -> Result<Vec<(i32, u32)>, String> {
        if Instant::now() > until {
            return Err("deadline".into());
        }
        let listed = self.iterator.as_ref().map(|iterator| iterator.of(process.pid, until));
        let found = match listed {
            Some(Ok(found)) => found,
            Some(Err(SocketFilesError::Deadline)) => return Err("deadline".into()),
            Some(Err(error)) => {
                *self.fallen.entry(error.to_string()).or_default() += 1;
                links(process.pid, until)?
            }
            None => links(process.pid, until)?,
        };
        match identity(process) {
            Identity::Same => Ok(found),
            Identity::Gone | Identity::Reused => Err("ESRCH".into()),
        }
    }

    /// Why `/proc` was read although there is an iterator, and how often since this was asked last.
    pub(super) fn take_fallen(&mut self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.fallen)
    }
}

/// The same from `/proc`, of whichever process has this number.
fn links(pid: Pid, until: Instant) -> Result<Vec<(i32, u32)>, String> {
    let path = format!("/proc/{pid}/fd");
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
    // As they come from the kernel; nothing says that they must.
    found.sort_unstable();
    Ok(found)
}
