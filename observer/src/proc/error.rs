//! What goes wrong in this room.

use crate::census::Pid;

/// Why a process cannot be looked at, or cannot be read now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcError {
    /// `/proc` has no such number.
    #[error(
        "no such process {pid}: it has ended, or the number belongs to another PID namespace (list them with `ps -e`)"
    )]
    NoSuchProcess {
        /// The number asked for.
        pid: Pid,
    },
    /// It has ended and waits for its parent to collect the exit status.
    #[error(
        "process {pid} ({comm}) is a zombie: it has ended and only its parent, {ppid}, can remove it; look at {ppid}"
    )]
    Zombie {
        /// The process.
        pid: Pid,
        /// Its name.
        comm: String,
        /// Its parent.
        ppid: Pid,
    },
    /// A kernel thread has no memory, files or command line of its own.
    #[error(
        "{pid} ({comm}) is a kernel thread: there is no program to look at; `cat /proc/{pid}/stack` shows where it is"
    )]
    KernelThread {
        /// The thread.
        pid: Pid,
        /// Its name.
        comm: String,
    },
    /// The number is a thread of another process.
    #[error("{tid} ({comm}) is a thread of process {pid}: attach to {pid}")]
    NotALeader {
        /// The number asked for.
        tid: Pid,
        /// The thread's name.
        comm: String,
        /// Its process.
        pid: Pid,
    },
    /// The kernel refuses to show the process to us.
    #[error(
        "no permission to look at process {pid} ({errno}): run as root or with CAP_SYS_PTRACE; a security module or hidepid may refuse, too"
    )]
    NotPermitted {
        /// The process.
        pid: Pid,
        /// Name of the error number.
        errno: String,
    },
    /// `/proc` answered in a way that is not understood.
    #[error("cannot read /proc/{pid}/{file}: {reason}; is /proc mounted?")]
    Unreadable {
        /// The process.
        pid: Pid,
        /// File below `/proc/PID`.
        file: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// An earlier read of this process has not come back: it is not read again until that one does.
    #[error("process {pid} still blocks an earlier read of its {what}: not read again until that returns")]
    Blocked {
        /// The process.
        pid: Pid,
        /// What is being read: `memory`, `cmdline`, …
        what: &'static str,
        /// When that read began, `CLOCK_MONOTONIC` nanoseconds.
        since_ns: u64,
    },
    /// Every reader is held by a process that blocks it, and no more may be started.
    #[error("no reader free: {stuck} are blocked by the processes they read; see the `unreadable` findings")]
    NoReaderFree {
        /// Readers that are held.
        stuck: usize,
    },
}

impl ProcError {
    /// One or two words that can be counted by.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchProcess { .. } => "ESRCH",
            Self::Zombie { .. } => "zombie",
            Self::KernelThread { .. } => "kernel thread",
            Self::NotALeader { .. } => "not a process",
            Self::NotPermitted { .. } => "EPERM",
            Self::Unreadable { .. } => "unreadable",
            Self::Blocked { .. } => "blocked",
            Self::NoReaderFree { .. } => "no reader free",
        }
    }
}
