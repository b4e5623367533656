//! From a row (and the memory it points to) to a [`Wait`]. Sans I/O: [`needs`] says which memory and
//! which descriptor to fetch, [`decode`] works with what came back, however little.

mod ends;
mod futex;
mod musl;
mod restart;
mod syscalls;
mod timeout;

use super::file_lock;
use super::wait::{Class, Resource, ResourceKind, Timeout, Wait};
use crate::census::{Clocks, SyscallInProgress, ThreadRow};
use crate::proc::{FdFact, Libc, MemoryFact, MemoryRange, PolledSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use ends::{in_words, with_ends};
pub use futex::may_be_lock;
pub(super) use futex::{CMD_MASK, FUTEX_PRIVATE, FUTEX_WAIT, FUTEX_WAIT_BITSET};
pub use syscalls::{Call, TimeoutAt};
pub use timeout::{ABSURD_NS, as_time_of_day, has_suspicious_millis};

/// Six words.
const SOCKETCALL_LEN: usize = 24;

/// What [`decode`] would like to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Memory of the target.
    pub memory: Vec<MemoryRange>,
    /// A descriptor of the target.
    pub fd: Option<i32>,
    /// The set of descriptors it polls.
    pub set: Option<PolledSet>,
}

/// The memory that came back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory<'a>(pub &'a [MemoryFact]);

impl Memory<'_> {
    /// `N` bytes at `addr`, if some piece covers them.
    pub fn bytes<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        self.0.iter().find_map(|piece| {
            let start = usize::try_from(addr.checked_sub(piece.addr)?).ok()?;
            piece.bytes.get(start..start.checked_add(N)?)?.try_into().ok()
        })
    }

    /// A 32-bit word.
    pub fn u32(&self, addr: u64) -> Option<u32> {
        self.bytes(addr).map(u32::from_ne_bytes)
    }

    /// A 64-bit word.
    pub fn i64(&self, addr: u64) -> Option<i64> {
        self.bytes(addr).map(i64::from_ne_bytes)
    }
}

/// Everything [`decode`] knows beside the row.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Memory of the target.
    pub memory: Memory<'a>,
    /// The descriptor waited on.
    pub fd: Option<&'a FdFact>,
    /// C library of the process.
    pub libc: Libc,
    /// Clocks of the census.
    pub clocks: Clocks,
    /// When the wait began, `CLOCK_MONOTONIC` nanoseconds.
    pub since_ns: u64,
}

/// The call a thread is in, with `restart_syscall` replaced by what it restarts where that shows.
fn call(row: &ThreadRow, memory: Memory<'_>) -> Option<(Call, SyscallInProgress)> {
    let in_progress = row.syscall?;
    let call = Call::lookup(in_progress.number, row.compat);
    if call.name == "socketcall" {
        return Some(socketcall(in_progress, memory).unwrap_or((call, in_progress)));
    }
    if call.name != "restart_syscall" {
        return Some((call, in_progress));
    }
    let restarted = restart::restarted(row, in_progress.args, memory).unwrap_or(call);
    Some((restarted, in_progress))
}

/// The call behind `socketcall`, the one of all sockets that 32-bit programs used to make (`include/uapi/linux/net.h`): its number
/// is the first argument. Its own arguments are elsewhere.
pub fn behind_socketcall(args: &[u64; 6]) -> Option<Call> {
    let name = match args[0] as u32 {
        3 => "connect",
        5 => "accept",
        9 => "send",
        10 => "recv",
        11 => "sendto",
        12 => "recvfrom",
        16 => "sendmsg",
        17 => "recvmsg",
        18 => "accept4",
        19 => "recvmmsg",
        20 => "sendmmsg",
        _ => return None,
    };
    Some(Call::named(name))
}

/// That call with its arguments, which are words in memory.
fn socketcall(in_progress: SyscallInProgress, memory: Memory<'_>) -> Option<(Call, SyscallInProgress)> {
    let call = behind_socketcall(&in_progress.args)?;
    let bytes: [u8; SOCKETCALL_LEN] = memory.bytes(in_progress.args[1] & 0xffff_ffff)?;
    let mut args = [0; 6];
    for (arg, word) in args.iter_mut().zip(bytes.chunks_exact(4)) {
        *arg = u64::from(u32::from_ne_bytes(word.try_into().ok()?));
    }
    Some((call, SyscallInProgress { args, ..in_progress }))
}

/// Which memory and descriptor would sharpen the decoding of this row, given what was read for it already: where the arguments
/// are in memory, what they point to is known once they have been read.
pub fn needs(row: &ThreadRow, memory: Memory<'_>) -> Needs {
    let mut needs = Needs::default();
    let Some(in_progress) = row.syscall else {
        return needs;
    };
    let mut call = Call::lookup(in_progress.number, row.compat);
    let mut args = in_progress.args;
    if call.name == "restart_syscall" {
        needs.memory.extend(restart::needs(row));
        // Whatever it restarts, its timeout or its lock lies behind one of these.
        needs.memory.extend(futex::needs(in_progress.args[0]));
        return needs;
    }
    if call.name == "socketcall" {
        let addr = args[1] & 0xffff_ffff;
        needs.memory.push(MemoryRange { addr, len: SOCKETCALL_LEN as u32 });
        let Some((inner, its)) = socketcall(in_progress, memory) else { return needs };
        (call, args) = (inner, its.args);
    }
    needs.memory.extend(timeout::needs(&call, &args, row.compat));
    if call.is_futex() {
        needs.memory.extend(futex::needs(args[0]));
    }
    if call.class == Class::Connect {
        let len = args[2].min(128) as u32;
        needs.memory.push(MemoryRange { addr: args[1], len });
    }
    if call.class == Class::FileLock && !row.compat && call.name != "flock" {
        needs.memory.push(MemoryRange { addr: args[2], len: file_lock::REQUEST_LEN });
    }
    needs.fd = call.fd(&args);
    needs.set = ends::set(&call, &args, row.compat);
    needs
}

/// Decodes the wait of a blocked thread. `None` when it is not in a system call and not stopped.
pub fn decode(row: &ThreadRow, known: &Known<'_>) -> Option<Wait> {
    let letter = row.state_letter();
    let stopped = row.is_stopped();
    let Some((call, in_progress)) = call(row, known.memory) else {
        let class = if stopped {
            Class::Stopped
        } else if letter == 'D' {
            Class::Io
        } else {
            return None;
        };
        return Some(Wait::in_call("none", [0; 6], class, Timeout::NONE));
    };
    let args = in_progress.args;
    let mut wait = Wait::in_call(call.name, args, call.class, timeout::decode(&call, &args, row.compat, known));
    if call.is_futex() {
        // The layouts of 32-bit libraries differ; the wait is named, its owner is not guessed.
        if row.compat {
            wait.class = Class::Condition;
            wait.resource = Some(Resource::at(ResourceKind::Futex, args[0] & 0xffff_ffff).detailed("(32-bit)"));
        } else {
            futex::decode(&mut wait, &call, known);
        }
    } else {
        wait.resource = resource(&call, &args, known);
        if call.class == Class::Event && watches_only_listeners(&call, &args, known) {
            wait.class = Class::Accept;
        }
        if call.class == Class::Connect {
            wait.peer = socket_address(args[1], known.memory);
            if let (Some(path), Some(resource)) = (unix_address(&args, known.memory), wait.resource.as_mut()) {
                resource.kind = ResourceKind::Unix;
                resource.remote = Some(path);
            }
            if let (Some(peer), Some(resource)) = (wait.peer, wait.resource.as_mut()) {
                resource.remote = Some(peer.to_string());
            }
        }
    }
    if stopped {
        wait.class = Class::Stopped;
    } else if letter == 'D' && !matches!(wait.class, Class::Child) {
        wait.class = Class::Io;
    }
    Some(wait)
}

fn resource(call: &Call, args: &[u64; 6], known: &Known<'_>) -> Option<Resource> {
    match call.class {
        Class::Sleep => return Some(Resource::of(ResourceKind::Time)),
        Class::Child => return Some(child(call, args, known)),
        Class::Event if call.fd_arg.is_none() => return None,
        _ => {}
    }
    let fd = call.fd(args)?;
    let Some(fact) = known.fd.filter(|f| f.fd == fd) else {
        let kind = if call.class == Class::FileLock { ResourceKind::File } else { ResourceKind::Other };
        return Some(Resource { fd: Some(fd), ..Resource::of(kind) });
    };
    Some(described(fact))
}

/// What a descriptor refers to.
pub(super) fn described(fact: &FdFact) -> Resource {
    let mut resource = Resource { fd: Some(fact.fd), ..Resource::of(kind_of(fact)) };
    if let Some(socket) = &fact.socket {
        resource.local.clone_from(&socket.local);
        resource.remote.clone_from(&socket.remote);
    }
    resource.detail = Some(match fact.process {
        Some(pid) => format!("process {pid}"),
        None => fact.target.clone(),
    });
    resource
}

/// An epoll instance whose sockets are all listening: the wait is for a connection, as in `accept`.
fn watches_only_listeners(call: &Call, args: &[u64; 6], known: &Known<'_>) -> bool {
    let watched = known.fd.filter(|fact| call.fd(args) == Some(fact.fd)).map_or(&[][..], |fact| &fact.watched);
    !watched.is_empty() && watched.iter().all(|socket| socket.state == "LISTEN")
}

fn child(call: &Call, args: &[u64; 6], known: &Known<'_>) -> Resource {
    // waitid(P_PIDFD)
    if let Some(fd) = call.fd(args) {
        let fact = known.fd.filter(|fact| fact.fd == fd && fact.process.is_some());
        return fact.map_or_else(|| Resource { fd: Some(fd), ..Resource::of(ResourceKind::Child) }, described);
    }
    let which = match call.name {
        "wait4" | "waitpid" => match args[0] as i32 {
            -1 => "any child".to_owned(),
            0 => "any child of its process group".to_owned(),
            pid if pid < -1 => format!("any child of process group {}", pid.unsigned_abs()),
            pid => format!("process {pid}"),
        },
        "waitid" => match args[0] {
            1 => format!("process {}", args[1]),
            _ => "any child".to_owned(),
        },
        _ => "the child of its vfork".to_owned(),
    };
    Resource::of(ResourceKind::Child).detailed(which)
}

fn kind_of(fact: &FdFact) -> ResourceKind {
    let target = fact.target.as_str();
    if target.starts_with("socket:") {
        return match fact.socket.as_ref().map(|s| s.protocol.as_str()) {
            Some("tcp" | "tcp6") => ResourceKind::Tcp,
            Some("udp" | "udp6") => ResourceKind::Udp,
            Some("unix") => ResourceKind::Unix,
            _ => ResourceKind::Socket,
        };
    }
    if target.starts_with("pidfd:") {
        return ResourceKind::Child;
    }
    if target.starts_with("pipe:") || fact.fifo.is_some() {
        return ResourceKind::Pipe;
    }
    match target {
        "anon_inode:[eventfd]" => ResourceKind::Eventfd,
        "anon_inode:[eventpoll]" => ResourceKind::Epoll,
        "anon_inode:[signalfd]" => ResourceKind::Signal,
        "anon_inode:[pidfd]" => ResourceKind::Child,
        "anon_inode:[timerfd]" => ResourceKind::Time,
        _ if target.starts_with("/dev/pts/") || target.starts_with("/dev/tty") => ResourceKind::Terminal,
        _ if target.starts_with('/') => ResourceKind::File,
        _ => ResourceKind::Other,
    }
}

/// The name in a `sockaddr_un` in the target's memory; `@` stands for the first byte of an abstract one.
fn unix_address(args: &[u64; 6], memory: Memory<'_>) -> Option<String> {
    if i32::from(u16::from_ne_bytes(memory.bytes(args[1])?)) != libc::AF_UNIX {
        return None;
    }
    let len = usize::try_from(args[2].min(110)).ok()?.checked_sub(2)?;
    let name: Vec<u8> =
        (0..len as u64).map_while(|i| memory.bytes::<1>(args[1].checked_add(2 + i)?)).flatten().collect();
    let (mark, name) = match name.split_first()? {
        (0, rest) => ("@", rest),
        _ => ("", &name[..]),
    };
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    Some(format!("{mark}{}", String::from_utf8_lossy(&name[..end]))).filter(|text| !text.is_empty())
}

/// A `sockaddr_in` or `sockaddr_in6` in the target's memory.
fn socket_address(addr: u64, memory: Memory<'_>) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(memory.bytes(addr)?);
    let port = u16::from_be_bytes(memory.bytes(addr.checked_add(2)?)?);
    let ip = match i32::from(family) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(memory.bytes::<4>(addr.checked_add(4)?)?)),
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::from(memory.bytes::<16>(addr.checked_add(8)?)?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests;
