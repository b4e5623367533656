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
    /// `read recvfrom recvmsg accept accept4`, only as call sites ([`super::ProbeSettings::sites`]).
    Socket,
}

impl Family {
    /// The name used in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Futex => "futex",
            Self::Connect => "connect",
            Self::Socket => "socket",
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
    /// A call waits without a limit (or with a negative one) where this thread's calls never did: see
    /// [`ProbeEvent::history`].
    Habit,
}

/// The timeouts a thread passed to one system call before this event, since the probes saw it first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeoutHistory {
    /// Calls with a timeout of zero.
    pub zero: u64,
    /// Calls with a finite timeout.
    pub finite: u64,
    /// Calls without a limit.
    pub infinite: u64,
    /// All others: negative, absurd, invalid, unknown.
    pub other: u64,
    /// The longest finite timeout passed, nanoseconds.
    pub longest_timeout_ns: u64,
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
    /// For bad timeouts and changes of habit: what this thread passed to this call before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<TimeoutHistory>,
    /// For bad timeouts and changes of habit: the call site, see [`SiteStack::site`]; 0 if not known.
    #[serde(default)]
    pub site: u64,
}

/// What was passed at one call site since the probes were attached.
///
/// A site is a hash of the process, the call's instruction pointer and as many callers as frame pointers show; where
/// they show none, of the stack pointer: one place of the source may then be several sites, which user space joins
/// by their stacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteStats {
    /// Process id in observer's PID namespace.
    pub pid: Pid,
    /// The site.
    pub site: u64,
    /// System call number (x86-64).
    pub syscall: u32,
    /// Calls by timeout kind, in the order of the `TIMEOUT_*` constants.
    pub calls: Vec<u64>,
    /// Waits that ended.
    pub ended: u64,
    /// Sum of the waits that ended, nanoseconds.
    pub total_ns: u64,
    /// Longest wait that ended, nanoseconds.
    pub longest_ns: u64,
    /// Shortest and longest finite timeout passed, nanoseconds; zeros if there was none.
    pub timeouts_ns: (u64, u64),
    /// The last bad timeout as passed, else the last one.
    pub raw: i64,
    /// Thread of the last call, in observer's PID namespace.
    pub tid: Pid,
    /// `CLOCK_MONOTONIC` at the last call's entry, nanoseconds.
    pub last_ns: u64,
    /// Argument registers of the last call.
    pub args: [u64; 6],
}

/// The user stack at the first call of a site: registers, and the bytes above the stack pointer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteStack {
    /// Process id in observer's PID namespace.
    pub pid: Pid,
    /// Thread, in observer's PID namespace.
    pub tid: Pid,
    /// The site.
    pub site: u64,
    /// User instruction pointer at the call.
    pub ip: u64,
    /// User stack pointer.
    pub sp: u64,
    /// User frame pointer register.
    pub bp: u64,
    /// What lay from `sp` upwards.
    pub bytes: Vec<u8>,
}

/// Who wakes what sleeps at one futex word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WordWakes {
    /// Process id in observer's PID namespace.
    pub pid: Pid,
    /// Address of the word.
    pub address: u64,
    /// Wake-ups of it that woke somebody.
    pub wakes: u64,
    /// Thread that woke last, in observer's PID namespace.
    pub last: Pid,
    /// `CLOCK_MONOTONIC` of that wake-up, nanoseconds.
    pub last_ns: u64,
    /// Thread that wakes most (a majority vote over all wake-ups, right if one thread makes more than half), in
    /// observer's PID namespace.
    pub usual: Pid,
    /// By how many wake-ups it leads.
    pub lead: u64,
}

/// Who wakes one thread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadWakes {
    /// The thread woken, in observer's PID namespace.
    pub tid: Pid,
    /// Times it was woken out of a futex wait by another thread.
    pub wakes: u64,
    /// Thread that woke it last.
    pub last: Pid,
    /// `CLOCK_MONOTONIC` of that, nanoseconds.
    pub last_ns: u64,
    /// Thread that wakes it most, as in [`WordWakes::usual`].
    pub usual: Pid,
    /// By how many wake-ups it leads.
    pub lead: u64,
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
    /// Call sites since attach; empty unless [`super::ProbeSettings::sites`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteStats>,
    /// Stacks of sites seen for the first time since the last drain, and those at bad timeouts and changes of habit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stacks: Vec<SiteStack>,
    /// Who wakes which futex word; empty unless [`super::ProbeSettings::wakes`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub word_wakes: Vec<WordWakes>,
    /// Who wakes which thread; empty unless [`super::ProbeSettings::wakes`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thread_wakes: Vec<ThreadWakes>,
    /// The kernel-side account since attach, by the names of `observer_ebpf::ACCOUNT_NAMES`.
    pub account: std::collections::BTreeMap<String, u64>,
}
