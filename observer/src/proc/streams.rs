//! The stream sockets of a process at one moment: TCP connections, unix streams, listeners.
//!
//! Times are `CLOCK_MONOTONIC` nanoseconds, sums are since the connection was made.

use crate::census::ProcessId;
use serde::{Deserialize, Serialize};

/// All of one process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessStreams {
    /// The process that has them open.
    pub process: ProcessId,
    /// When they were listed.
    pub taken_ns: u64,
    /// Connections, the oldest debts first where not all are kept.
    pub connections: Vec<Connection>,
    /// Where it accepts.
    pub listeners: Vec<Listener>,
    /// Connections and listeners that are not kept.
    #[serde(default)]
    pub cut: u32,
}

/// TCP or unix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamKind {
    /// TCP.
    #[default]
    Tcp,
    /// A unix stream (or sequenced packet) socket.
    Unix,
}

/// One connected socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Inode number: stands for the connection as long as it lives.
    pub inode: u64,
    /// Its lowest descriptor in the process.
    pub fd: i32,
    /// TCP or unix.
    pub kind: StreamKind,
    /// `ESTAB`, `CLOSE-WAIT`, …, as `ss` prints it.
    pub state: String,
    /// Own address, or the path of a unix socket.
    pub local: Option<String>,
    /// The peer's address, or its path.
    pub remote: Option<String>,
    /// It was accepted: somebody listens at its local address (or did when it was first seen). `false`: it was connected.
    pub inbound: bool,
    /// Bytes received and not read.
    pub unread: u64,
    /// Bytes sent and not acknowledged (unix: not read by the peer).
    pub unsent: u64,
    /// Bytes received so far; `None` where the kernel does not count them (unix).
    pub received: Option<u64>,
    /// Bytes sent and acknowledged so far; `None` as above.
    pub sent: Option<u64>,
    /// When data came last; `None` if none ever did, or that is not counted (unix).
    pub last_received_ns: Option<u64>,
    /// When data were sent last; `None` as above.
    pub last_sent_ns: Option<u64>,
    /// Times that the oldest unacknowledged data were sent again in a row.
    pub retransmits: u32,
    /// The socket at the other end, where that is on this host: its inode number.
    pub peer: Option<u64>,
    /// The process that has the other end, where that is on this host and was looked for.
    pub peer_process: Option<ProcessId>,
}

/// One listening socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// Inode number.
    pub inode: u64,
    /// Its lowest descriptor in the process.
    pub fd: i32,
    /// TCP or unix.
    pub kind: StreamKind,
    /// Address or path.
    pub local: Option<String>,
    /// Connections that wait to be accepted.
    pub backlog: u64,
    /// How many may.
    pub limit: u64,
    /// Those of them that could be told apart (TCP, inode 0), the oldest first as far as that is known; at most
    /// [`MOST_WAITING`].
    pub waiting: Vec<Unaccepted>,
}

/// Connections that wait in a backlog and are listed one by one.
pub const MOST_WAITING: usize = 64;

/// A connection that nobody has accepted yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unaccepted {
    /// The peer's address.
    pub remote: String,
    /// Bytes it has sent.
    pub unread: u64,
}
