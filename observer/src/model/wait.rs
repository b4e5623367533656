//! A wait, decoded: which call, on what, for how long, and who holds it.

use super::file_lock::FileLock;
use super::frames::Reading;
use crate::census::{Pid, TimeoutKind};
use crate::proc::FarEnd;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What kind of thing a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A lock somebody holds.
    Lock,
    /// A condition, semaphore, park or barrier: the normal rest of a worker thread.
    Condition,
    /// Readiness: poll, select, epoll, io_uring, signals.
    Event,
    /// Data to read.
    Read,
    /// Room to write.
    Write,
    /// The answer to a connection attempt.
    Connect,
    /// A connection to accept.
    Accept,
    /// A child process.
    Child,
    /// A file lock.
    FileLock,
    /// Time to pass.
    Sleep,
    /// A device or the file system (D state).
    Io,
    /// Stopped, traced or frozen.
    Stopped,
    /// Anything else.
    Other,
}

impl Class {
    /// The name used in JSON and text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Condition => "condition",
            Self::Event => "event",
            Self::Read => "read",
            Self::Write => "write",
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Child => "child",
            Self::FileLock => "file_lock",
            Self::Sleep => "sleep",
            Self::Io => "io",
            Self::Stopped => "stopped",
            Self::Other => "other",
        }
    }
}

/// A timeout as passed to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeout {
    /// How it was given.
    pub kind: TimeoutKind,
    /// What was asked for, relative, nanoseconds.
    pub requested_ns: Option<i64>,
    /// What is left of it at the last census, nanoseconds.
    pub remaining_ns: Option<i64>,
    /// As passed (`-5`, `1.500000000s`, `until 1790000000.000000000`).
    pub raw: Option<String>,
}

impl Timeout {
    /// No timeout can be given to this call.
    pub const NONE: Self = Self::bare(TimeoutKind::None);
    /// Could not be read.
    pub const UNKNOWN: Self = Self::bare(TimeoutKind::Unknown);
    /// For ever.
    pub const INFINITE: Self = Self::bare(TimeoutKind::Infinite);

    const fn bare(kind: TimeoutKind) -> Self {
        Self { kind, requested_ns: None, remaining_ns: None, raw: None }
    }

    /// The wait cannot end by itself.
    pub fn is_unbounded(&self) -> bool {
        matches!(self.kind, TimeoutKind::None | TimeoutKind::Infinite | TimeoutKind::Negative)
    }
}

/// What kind of thing is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of the public schema")]
pub enum ResourceKind {
    Mutex,
    Rwlock,
    Thread,
    Futex,
    Pipe,
    Unix,
    Tcp,
    Udp,
    Socket,
    Eventfd,
    Epoll,
    File,
    Terminal,
    Child,
    Memory,
    Time,
    Signal,
    Descriptors,
    Other,
}

impl ResourceKind {
    /// The name used in JSON and text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mutex => "mutex",
            Self::Rwlock => "rwlock",
            Self::Thread => "thread",
            Self::Futex => "futex",
            Self::Pipe => "pipe",
            Self::Unix => "unix",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Socket => "socket",
            Self::Eventfd => "eventfd",
            Self::Epoll => "epoll",
            Self::File => "file",
            Self::Terminal => "terminal",
            Self::Child => "child",
            Self::Memory => "memory",
            Self::Time => "time",
            Self::Signal => "signal",
            Self::Descriptors => "descriptors",
            Self::Other => "other",
        }
    }
}

/// The thing a thread waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its kind.
    pub kind: ResourceKind,
    /// Address in the waiter's memory (a lock's first byte, not the futex word where they differ).
    pub address: Option<u64>,
    /// File descriptor in the waiter.
    pub fd: Option<i32>,
    /// Local address of a socket.
    pub local: Option<String>,
    /// Remote address of a socket.
    pub remote: Option<String>,
    /// More: the kind of mutex, a path, a process.
    pub detail: Option<String>,
}

impl Resource {
    /// A thing of this kind, nothing else known.
    pub fn of(kind: ResourceKind) -> Self {
        Self { kind, address: None, fd: None, local: None, remote: None, detail: None }
    }

    /// A thing at an address.
    pub fn at(kind: ResourceKind, address: u64) -> Self {
        Self { address: Some(address), ..Self::of(kind) }
    }

    /// The same, with a detail.
    pub fn detailed(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// How a person would call it: `mutex 0x55d0c0`, `tcp 127.0.0.1:80`, `pipe (fd 3)`.
    pub fn describe(&self) -> String {
        // Links of /proc/PID/fd name their kind themselves: `pipe:[1234]`.
        let named = self.detail.as_deref().filter(|detail| detail.starts_with(&format!("{}:", self.kind.name())));
        let mut text = match (self.kind, named) {
            (ResourceKind::Thread, _) => "exit of thread".to_owned(),
            // A set says itself what it is.
            (ResourceKind::Descriptors, None) if self.detail.is_some() => String::new(),
            (_, Some(link)) => link.to_owned(),
            (kind, None) => kind.name().to_owned(),
        };
        if self.kind != ResourceKind::Thread
            && let Some(address) = self.address
        {
            text.push_str(&format!(" {address:#x}"));
        }
        if let Some(remote) = &self.remote {
            text.push_str(&format!(" to {remote}"));
        } else if let Some(detail) = self.detail.as_ref().filter(|_| named.is_none()) {
            text.push_str(&format!(" {detail}"));
        }
        let mut text = text.trim_start().to_owned();
        if let Some(fd) = self.fd {
            text.push_str(&format!(" (fd {fd})"));
        }
        text
    }
}

/// How sure a statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// One reading among others.
    Possible,
    /// An inference, stated.
    Likely,
    /// Proven.
    Certain,
}

/// Where an owner id may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerScope {
    /// A thread of the waiter's own process: the lock is private.
    Process,
    /// Any thread of the waiter's PID namespace: the lock may be shared between processes.
    Namespace,
}

/// An owner as the lock itself names it: a thread id of the waiter's PID namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerWord {
    /// Thread id, in the PID namespace of the waiter.
    pub own_tid: Pid,
    /// Where to look for it.
    pub scope: OwnerScope,
    /// How it was learnt (`glibc mutex owner`).
    pub how: &'static str,
    /// The layout is proven to be that of this lock, so that a missing owner is a fact.
    pub proven: bool,
}

/// The owner of a lock, looked up among the living.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A thread that may hold it.
    Thread(Pid),
    /// A thread of this id lives, but in a process that cannot hold this lock (the parent of a fork).
    Elsewhere(Pid),
    /// No such thread.
    Gone(Pid),
}

/// One descriptor of the set that a thread polls.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// What it is.
    pub resource: Resource,
    /// What is waited for there, as `poll(2)` has it.
    pub events: u32,
    /// Who can make it ready from the other end.
    pub far_end: Option<FarEnd>,
}

impl Member {
    /// What is waited for, by the names of poll(2): `in`, `out`, `hup`, …
    pub fn events(&self) -> Vec<&'static str> {
        const NAMES: [(u32, &str); 12] = [
            (0x1, "in"),
            (0x2, "pri"),
            (0x4, "out"),
            (0x8, "err"),
            (0x10, "hup"),
            (0x20, "nval"),
            (0x40, "rdnorm"),
            (0x80, "rdband"),
            (0x100, "wrnorm"),
            (0x200, "wrband"),
            (0x400, "msg"),
            (0x2000, "rdhup"),
        ];
        NAMES.iter().filter(|(bit, _)| self.events & bit != 0).map(|(_, name)| *name).collect()
    }

    /// `pipe:[12] (fd 3, in)`.
    pub fn describe(&self) -> String {
        let fd = self.resource.fd.map(|fd| format!("fd {fd}"));
        let events = Some(self.events().join("|")).filter(|events| !events.is_empty());
        let place: Vec<String> = fd.into_iter().chain(events).collect();
        let thing = Resource { fd: None, ..self.resource.clone() }.describe();
        if place.is_empty() { thing } else { format!("{thing} ({})", place.join(", ")) }
    }
}

/// A decoded wait.
#[derive(Clone, Debug, PartialEq)]
pub struct Wait {
    /// Name of the system call.
    pub syscall: &'static str,
    /// Its argument registers.
    pub args: [u64; 6],
    /// What kind of thing is waited for.
    pub class: Class,
    /// The timeout given.
    pub timeout: Timeout,
    /// The thing.
    pub resource: Option<Resource>,
    /// Who holds it, as the lock says.
    pub owner: Option<OwnerWord>,
    /// The file lock it waits for, as the kernel lists it.
    pub file_lock: Option<FileLock>,
    /// The one process whose end it waits for by a pidfd, in observer's PID namespace.
    pub process: Option<Pid>,
    /// Who can end it from the other end of the pipe or socket.
    pub far_end: Option<FarEnd>,
    /// The set of descriptors it polls.
    pub members: Vec<Member>,
    /// Members of that set that are not listed.
    pub members_cut: u32,
    /// Remote address of a `connect`.
    pub peer: Option<SocketAddr>,
    /// What the user stack says of it.
    pub reading: Option<Reading>,
    /// It is for a lock that records no owner: so say the frames, not the system call and its memory; of musl's normal
    /// mutex the memory does.
    pub by_frames: bool,
    /// What a thread that sleeps on a word of its own keeps beside it: with `parking_lot`, the address of the lock.
    pub parked: Option<u64>,
}

impl Wait {
    /// A wait in this call, nothing else known.
    pub fn in_call(syscall: &'static str, args: [u64; 6], class: Class, timeout: Timeout) -> Self {
        Self {
            syscall,
            args,
            class,
            timeout,
            resource: None,
            owner: None,
            file_lock: None,
            process: None,
            far_end: None,
            members: Vec::new(),
            members_cut: 0,
            peer: None,
            reading: None,
            by_frames: false,
            parked: None,
        }
    }
}
