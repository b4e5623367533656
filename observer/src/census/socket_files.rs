//! Which descriptors of a process are sockets: the kernel runs a program over the files of that one process.
//!
//! A walk through `/proc/PID/fd` makes a directory entry, an inode and a link of each descriptor, at some 5 µs; here a record of
//! 16 bytes comes of it. Before 6.1 the iterator goes through the files of the whole host only, and there is no [`SocketFiles`].

use super::decode::Decoder;
use super::row::Pid;
use super::source::CensusError;
use nix::errno::Errno;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;

/// The kernel hands out at most 32 KiB a read (eight pages), and never splits a record.
const BUFFER: usize = 32 * 1024;
/// Descriptors listed of one process.
const MOST: usize = 1 << 20;

/// Lists the descriptors of a process that are sockets.
#[derive(Clone, Debug)]
pub struct SocketFiles {
    program: Arc<OwnedFd>,
}

/// Why the sockets of a process could not be listed.
#[derive(Debug, Error)]
pub enum SocketFilesError {
    /// The time was too short.
    #[error("deadline")]
    Deadline,
    /// It has more descriptors than are listed (2^20).
    #[error("too many descriptors")]
    TooMany,
    /// The kernel refuses.
    #[error("file iterator: {:?}", Errno::from_raw(.0.raw_os_error().unwrap_or_default()))]
    Refused(#[from] io::Error),
    /// What the kernel wrote makes no sense.
    #[error("file iterator: {0}")]
    Malformed(#[from] CensusError),
}

impl SocketFiles {
    /// Over a loaded `iter/task_file` program.
    ///
    /// # Errors
    /// Says why the kernel cannot restrict it to one process.
    pub(super) fn over(program: BorrowedFd<'_>) -> Result<Self, String> {
        let program = program.try_clone_to_owned().map_err(|error| error.to_string())?;
        let own = std::process::id();
        link(&program, &TaskInfo { tid: own, ..TaskInfo::default() }).map_err(|error| format!("link: {error}"))?;
        // A kernel that does not know the restriction ignores the first word, and refuses whatever stands behind it as too
        // long; one that does refuses two restrictions at once.
        match link(&program, &TaskInfo { tid: own, pid: own, pid_fd: 0 }) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Self { program: Arc::new(program) }),
            _ => Err("the file iterator cannot be restricted to one process (kernel 6.1)".to_owned()),
        }
    }

    /// Descriptors of the process `pid` (id of observer's PID namespace) that are sockets, in order, each with the inode number
    /// of its socket: those of its main thread. None if there is no such process; whose they are is for the caller to check
    /// afterwards, as the number may be another process' by then.
    ///
    /// # Errors
    /// The time is up, or the kernel refuses.
    pub fn of(&self, pid: Pid, until: Instant) -> Result<Vec<(i32, u32)>, SocketFilesError> {
        // Zero would be no restriction at all.
        if pid == 0 {
            return Ok(Vec::new());
        }
        let link = link(&self.program, &TaskInfo { tid: pid, ..TaskInfo::default() })?;
        let mut file = iterator(&link)?;
        drop(link);
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; BUFFER];
        loop {
            if Instant::now() > until {
                return Err(SocketFilesError::Deadline);
            }
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => decoder.push(&buffer[..len])?,
                // EAGAIN: the kernel gives the CPU back after a million descriptors that are no sockets.
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error.into()),
            }
            if decoder.socket_files.len() > MOST {
                return Err(SocketFilesError::TooMany);
            }
        }
        decoder.finish()?;
        Ok(decoder.socket_files)
    }
}

/// `struct { … } task` of `union bpf_iter_link_info`.
#[repr(C)]
#[derive(Default)]
struct TaskInfo {
    tid: u32,
    pid: u32,
    pid_fd: u32,
}

/// `struct { … } link_create` of `union bpf_attr`, for an iterator.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_len: u32,
    reserved: u32,
}

/// `struct { … } iter_create` of `union bpf_attr`.
#[repr(C)]
struct IterCreate {
    link: u32,
    flags: u32,
}

/// `BPF_LINK_CREATE` and `BPF_ITER_CREATE` (`enum bpf_cmd`).
const LINK_CREATE: libc::c_long = 28;
const ITER_CREATE: libc::c_long = 33;
/// `BPF_TRACE_ITER` (`enum bpf_attach_type`).
const TRACE_ITER: u32 = 28;

/// Restricts the program; aya's links take no such information.
fn link(program: &OwnedFd, info: &TaskInfo) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: descriptor(program),
        target: 0,
        attach_type: TRACE_ITER,
        flags: 0,
        info: std::ptr::from_ref(info) as u64,
        info_len: size_of::<TaskInfo>() as u32,
        reserved: 0,
    };
    bpf(LINK_CREATE, &attributes)
}

/// One pass of a link, to be read.
fn iterator(link: &OwnedFd) -> io::Result<File> {
    bpf(ITER_CREATE, &IterCreate { link: descriptor(link), flags: 0 }).map(File::from)
}

fn descriptor(fd: &OwnedFd) -> u32 {
    // One that is owned is not negative.
    fd.as_raw_fd() as u32
}

/// `bpf(2)`, for the commands that answer with a descriptor (close-on-exec).
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let size = size_of::<T>();
    // SAFETY: the kernel copies `size` bytes from `attributes`, which are initialised; what they point to is borrowed by the
    // caller, and the kernel has copied it when the call returns.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size) };
    match RawFd::try_from(answer) {
        // SAFETY: a descriptor that the kernel has just made for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
