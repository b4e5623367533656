//! What the probe plane reports: rare events and per-process aggregates, decoded.

use super::row::Pid;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Probe family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// `poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2`.
    Poll,
    /// `futex futex_wait futex_waitv`, waits only.
    Futex,
    /// `connect`, and TCP state changes.
    Connect,
}

impl Family {
    /// The name used in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Futex => "futex",
            Self::Connect => "connect",
        }
    }
}

/// How a timeout was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeoutKind {
    /// The call takes no timeout.
    None,
    /// Returns at once.
    Zero,
    /// Up to 24 hours.
    Finite,
    /// For ever: -1 or a null pointer.
    Infinite,
    /// Negative, and not the documented -1.
    Negative,
    /// Beyond 24 hours.
    Absurd,
    /// Malformed; the kernel refuses it with `EINVAL`. Reported as `negative` or `unknown` in the
    /// public schema by the sign of its seconds.
    Invalid,
    /// Could not be read.
    Unknown,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A negative or invalid timeout was passed.
    BadTimeout,
    /// A wait longer than the threshold ended.
    LongWait,
    /// A connection attempt failed or was slow.
    Connect,
}

/// A rare event of the probe plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeEvent {
    /// What happened.
    pub kind: EventKind,
    /// In which family of calls.
    pub family: Family,
    /// Thread, in observer's PID namespace.
    pub tid: Pid,
    /// Process, in observer's PID namespace.
    pub pid: Pid,
    /// Thread name at that moment.
    pub comm: String,
    /// System call number (x86-64); `None` for a socket state change.
    pub syscall: Option<u32>,
    /// `CLOCK_MONOTONIC` at entry, nanoseconds.
    pub start_ns: u64,
    /// Time waited, nanoseconds; 0 for events sent at entry.
    pub wait_ns: u64,
    /// Return value or negative errno.
    pub ret: i64,
    /// Kind of the timeout passed.
    pub timeout: TimeoutKind,
    /// The timeout as passed (milliseconds, or seconds of the timespec).
    pub timeout_raw: i64,
    /// As a relative duration, nanoseconds.
    pub timeout_ns: i64,
    /// Argument registers.
    pub args: [u64; 6],
    /// Local address of the socket, where known.
    pub local: Option<SocketAddr>,
    /// Remote address of the socket, where known.
    pub remote: Option<SocketAddr>,
}

/// What one process did with one family since the probes were attached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitStats {
    /// Process id in observer's PID namespace (initial id if outside it).
    pub pid: Pid,
    /// The family.
    pub family: Family,
    /// Calls by timeout kind, in the order of the `TIMEOUT_*` constants.
    pub calls: Vec<u64>,
    /// Ended waits by log2 nanoseconds.
    pub waits: Vec<u64>,
    /// Sum of all waits, nanoseconds.
    pub total_ns: u64,
    /// Longest wait that ended, nanoseconds.
    pub longest_ns: u64,
    /// Calls that failed.
    pub failed: u64,
}

/// One drain of the probe plane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeReading {
    /// Events since the last drain.
    pub events: Vec<ProbeEvent>,
    /// Aggregates since attach.
    pub stats: Vec<WaitStats>,
    /// The kernel-side account since attach, by the names of `observer_ebpf::ACCOUNT_NAMES`.
    pub account: std::collections::BTreeMap<String, u64>,
}
