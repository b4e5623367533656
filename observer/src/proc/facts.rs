//! Facts about suspects: plain data, gathered by this room, judged by `model`.

use super::locks::FileLockFact;
use super::runtime_locks::RuntimeLocks;
use super::stack::{SiteFact, StackFact};
use super::stops::StopFact;
use crate::census::{Pid, ProcessId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What `model` wants to know about one blocked thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadWant {
    /// Its process.
    pub process: ProcessId,
    /// The thread.
    pub tid: Pid,
    /// Context switches (`nvcsw + nivcsw`) of the row that raised the question.
    pub switches: u64,
    /// Pieces of the target's memory.
    pub memory: Vec<MemoryRange>,
    /// A file descriptor the thread waits on.
    pub fd: Option<i32>,
    /// Whether the kernel stack is wanted.
    pub kernel_stack: bool,
    /// Whether it waits for a lock on the file behind that descriptor.
    pub file_lock: bool,
    /// The set of descriptors it polls.
    pub set: Option<PolledSet>,
    /// Whether it is to be found out who has the other end of that descriptor, and of those of the set.
    pub far_end: Option<Way>,
}

/// Where a set of polled descriptors is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolledSet {
    /// An array of `struct pollfd`.
    Poll {
        /// Address of the first.
        addr: u64,
        /// How many.
        count: u64,
    },
    /// Three `fd_set`, to read, to write, exceptions.
    Select {
        /// Highest descriptor plus one.
        count: u64,
        /// Their addresses; 0 for none.
        sets: [u64; 3],
    },
    /// The `tfd:` lines in `fdinfo` of an epoll instance.
    Epoll {
        /// Its descriptor.
        fd: i32,
    },
}

/// What a thread waits for at its end: decides which descriptors of the other end can end that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Way {
    /// Something to read: whoever can write ends it.
    pub reads: bool,
    /// Room to write: whoever can read ends it.
    pub writes: bool,
}

/// A piece of the target's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MemoryRange {
    /// Address in the target.
    pub addr: u64,
    /// Length in bytes; at most [`MemoryRange::MAX_LEN`].
    pub len: u32,
}

impl ThreadFacts {
    /// Whether some of its memory was not read for reasons of the reader's: no time, no reader. Then nothing is said about it.
    pub fn is_unread(&self) -> bool {
        let is_ours = |error: &str| matches!(error, "deadline" | "no reader free" | "blocked");
        self.memory.iter().filter_map(|piece| piece.error.as_deref()).any(is_ours)
    }
}

impl FdFact {
    /// Whether it is clear if an epoll instance watches listening sockets only: every socket is known, or one of the
    /// known ones does not listen.
    pub fn is_settled(&self) -> bool {
        self.watched.iter().any(|s| s.state != "LISTEN" && s.state != UNKNOWN)
            || self.watched.iter().all(|s| s.state != UNKNOWN)
    }
}

/// State of a socket that was not found, or not in time.
const UNKNOWN: &str = "UNKNOWN";

impl SocketFact {
    /// A socket of which nothing is known but its inode.
    pub(super) fn unknown(inode: u64) -> Self {
        let (protocol, state) = ("unknown".to_owned(), UNKNOWN.to_owned());
        Self { inode, protocol, state, ..Self::default() }
    }
}

impl MemoryRange {
    /// Longest piece that is ever read.
    pub const MAX_LEN: u32 = 64 * 1024;
}

/// Bytes read from the target, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFact {
    /// Address in the target.
    pub addr: u64,
    /// The bytes, shorter than asked for where the mapping ends; in recordings as hexadecimal.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
    /// Why nothing (or less) was read: `EFAULT`, `EPERM`, `ESRCH`, `deadline`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a file descriptor refers to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FdFact {
    /// The descriptor.
    pub fd: i32,
    /// The link of `/proc/PID/fd/N`: a path, `pipe:[inode]`, `socket:[inode]`, `anon_inode:[eventpoll]`.
    pub target: String,
    /// Open flags (`O_*`) from `fdinfo`.
    pub flags: u32,
    /// Inode number, where `fdinfo` has it (kernel 5.14).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// The socket behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<SocketFact>,
    /// The sockets an epoll instance watches; of one that is not known, only the inode. Empty where there are none,
    /// or too many to list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watched: Vec<SocketFact>,
    /// Of a FIFO that has a name: device and inode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fifo: Option<(u64, u64)>,
    /// Of an eventfd: its id (kernel 5.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eventfd: Option<u64>,
    /// Of a pidfd: the process, in observer's PID namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Pid>,
}

/// A socket, from socket diagnostics or `/proc/PID/net`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SocketFact {
    /// Inode number of the socket.
    pub inode: u64,
    /// `tcp`, `udp`, `unix`, `netlink`, …
    pub protocol: String,
    /// Kernel state name (`ESTAB`, `SYN-SENT`, `LISTEN`, …), as `ss` prints it.
    pub state: String,
    /// Local address, or the path of a unix socket.
    pub local: Option<String>,
    /// Remote address, or the path of the unix peer.
    pub remote: Option<String>,
    /// Bytes received and not read; for a listener, connections not accepted.
    pub unread: u64,
    /// Bytes not yet acknowledged; for a listener, the backlog limit.
    pub unsent: u64,
    /// Inode number of a unix socket's peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<u64>,
}

/// Who has the other end of a pipe or a socket open, or who else has an eventfd: whoever can end a wait on this end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FarEnd {
    /// The object, as the links of `/proc/PID/fd` name it (`pipe:[123]`, `socket:[456]`; of an eventfd its id).
    pub object: String,
    /// Every descriptor that can end the wait (for a reader: those that can write), sorted.
    pub holders: Vec<EndHolder>,
    /// Processes whose descriptors could not be read: they may have it, too.
    pub unsearched: u32,
    /// Bytes that lie in it, where it is a pipe and that could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<u64>,
    /// When the search began, `CLOCK_MONOTONIC` nanoseconds: it is stale once one of the holders has run since.
    pub taken_ns: u64,
}

/// A descriptor of some process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndHolder {
    /// The process.
    pub process: ProcessId,
    /// Its descriptor there.
    pub fd: i32,
}

/// One descriptor of the set that a thread polls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberFact {
    /// The descriptor.
    pub fd: FdFact,
    /// What it waits for there, as `poll(2)` has it: `POLLIN`, `POLLPRI`, `POLLOUT`, …
    pub events: u32,
    /// The other end of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub far_end: Option<FarEnd>,
}

/// Facts about one blocked thread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadFacts {
    /// The thread.
    pub tid: Pid,
    /// Its process.
    pub process: ProcessId,
    /// Context switches of the row they were gathered for: stale when the thread has moved on.
    pub switches: u64,
    /// When they were read, `CLOCK_MONOTONIC` nanoseconds.
    pub taken_ns: u64,
    /// Memory, in the order asked for.
    pub memory: Vec<MemoryFact>,
    /// The file descriptor asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<FdFact>,
    /// The other end of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub far_end: Option<FarEnd>,
    /// The set that the thread polls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberFact>,
    /// Members of the set that are not listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub members_cut: u32,
    /// Kernel stack, innermost first, as `symbol+0xoffset`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_stack: Vec<String>,
}

/// Which C library the process runs: decides what a futex word means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Libc {
    /// GNU libc, seen in the maps or (static) by its symbols.
    Glibc,
    /// musl.
    Musl,
    /// Neither was recognised.
    #[default]
    Unknown,
}

/// A container, from the cgroup path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Container {
    /// 64 hexadecimal digits (or the task id of a runtime that uses others).
    pub id: String,
    /// `containerd`, `cri-o`, `docker`, `podman`, … or `unknown`.
    pub runtime: String,
}

/// A Kubernetes pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace; known from the API server only.
    pub namespace: Option<String>,
    /// Name; known from the API server only.
    pub name: Option<String>,
    /// UID, from the cgroup path.
    pub uid: String,
    /// Name of the container within the pod; known from the API server only.
    pub container: Option<String>,
}

/// Facts about one process; gathered once per process and cached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessFacts {
    /// The process.
    pub process: ProcessId,
    /// Name of its main thread.
    pub comm: String,
    /// Link of `/proc/PID/exe`.
    pub exe: Option<String>,
    /// Command line.
    pub cmdline: Vec<String>,
    /// Path in the default (or the first useful) cgroup hierarchy.
    pub cgroup: Option<String>,
    /// Container, from the cgroup path.
    pub container: Option<Container>,
    /// Pod, from the cgroup path.
    pub pod: Option<Pod>,
    /// `go1.24.3`, `jvm17`, `cpython3.11`, `node20`, `native`, … or `unknown`.
    pub runtime: String,
    /// C library.
    pub libc: Libc,
    /// Parts that could not be read, with the reason (`exe: EACCES`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// A TCP socket of a process that waits for the answer to its SYN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectingSocket {
    /// The process that holds it.
    pub process: ProcessId,
    /// Its descriptor there.
    pub fd: i32,
    /// Inode number.
    pub inode: u64,
    /// Local address.
    pub local: SocketAddr,
    /// Remote address.
    pub remote: SocketAddr,
    /// When the attempt began, `CLOCK_MONOTONIC` nanoseconds.
    pub since_ns: Option<u64>,
    /// SYNs sent again so far.
    pub retransmits: u32,
    /// When it was listed, `CLOCK_MONOTONIC` nanoseconds: it may have been answered since. 0: nobody wrote that down.
    #[serde(default)]
    pub taken_ns: u64,
}

/// A read of the target that did not come back in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockedRead {
    /// The process that blocks its reader.
    pub process: ProcessId,
    /// What was read: `memory`, `cmdline`, `maps`, …
    pub what: String,
    /// When the read began, `CLOCK_MONOTONIC` nanoseconds.
    pub since_ns: u64,
}

/// Everything gathered between two censuses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Per suspect thread.
    pub threads: Vec<ThreadFacts>,
    /// User stacks, of suspects and of what is reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stacks: Vec<StackFact>,
    /// Stacks at call sites, as they were at the call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteFact>,
    /// Threads at locks of their runtimes.
    #[serde(default, skip_serializing_if = "Vec::is_empty", alias = "monitors")]
    pub runtime_locks: Vec<RuntimeLocks>,
    /// Goroutines of Go processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub goroutines: Vec<super::Goroutines>,
    /// Tasks of asynchronous programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<super::ProcessTasks>,
    /// Per process, when first needed or changed.
    pub processes: Vec<ProcessFacts>,
    /// Sockets in SYN-SENT.
    pub connecting: Vec<ConnectingSocket>,
    /// Sockets of stopped processes with bytes or connections waiting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<(ProcessId, SocketFact)>,
    /// Stream sockets of processes, as listed for this turn; of a process that was not listed now nothing is known to have changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<super::ProcessStreams>,
    /// Processes whose stream sockets were to be listed, and could not be: what was known of them may still hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlisted: Vec<ProcessId>,
    /// Why processes are stopped, where that is written down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stops: Vec<StopFact>,
    /// Reads that are still stuck now.
    pub blocked_reads: Vec<BlockedRead>,
    /// File locks that suspects wait for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub file_locks: Vec<FileLockFact>,
    /// What could not be gathered, by reason.
    pub lost: BTreeMap<String, u64>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Bytes as a hexadecimal string, so that recordings stay readable.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Write;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len() * 2);
        for b in bytes {
            // Writing to a String cannot fail.
            let _ = write!(text, "{b:02x}");
        }
        s.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        if !text.is_ascii() || text.len() % 2 != 0 {
            return Err(D::Error::custom("not an even number of hexadecimal digits"));
        }
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).map_err(D::Error::custom)).collect()
    }
}
