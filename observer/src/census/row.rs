//! One thread as a census saw it, whatever the source (iterator, `/proc`, recording).

pub use crate::host::clock::Clocks;
use serde::{Deserialize, Serialize};

/// Thread or process id, in observer's own PID namespace unless a name says otherwise.
pub type Pid = u32;

/// A process: PIDs are reused, so the identity includes the start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id in observer's PID namespace.
    pub pid: Pid,
    /// Start time of the process, nanoseconds since boot (10 ms steps when read from `/proc`).
    pub start_ns: u64,
}

/// Bits of `task->__state` (`include/linux/sched.h`). States are bit sets: a futex sleeper of kernel
/// 6.1 or later reads 0x2001, so test bits.
pub mod state {
    /// `TASK_INTERRUPTIBLE`.
    pub const INTERRUPTIBLE: u32 = 0x1;
    /// `TASK_UNINTERRUPTIBLE`.
    pub const UNINTERRUPTIBLE: u32 = 0x2;
    /// `__TASK_STOPPED`.
    pub const STOPPED: u32 = 0x4;
    /// `__TASK_TRACED`.
    pub const TRACED: u32 = 0x8;
    /// `EXIT_DEAD` (in `exit_state`).
    pub const EXIT_DEAD: u32 = 0x10;
    /// `EXIT_ZOMBIE` (in `exit_state`).
    pub const EXIT_ZOMBIE: u32 = 0x20;
    /// `TASK_PARKED`.
    pub const PARKED: u32 = 0x40;
    /// `TASK_DEAD`.
    pub const DEAD: u32 = 0x80;
    /// `TASK_NOLOAD`: with `UNINTERRUPTIBLE` an idle kernel thread, not D state.
    pub const NOLOAD: u32 = 0x400;
    /// `TASK_FROZEN` (kernel >= 6.1).
    pub const FROZEN: u32 = 0x8000;
}

/// Task flags (`PF_*`).
pub mod task_flags {
    /// `PF_EXITING`.
    pub const EXITING: u32 = 0x4;
    /// `PF_FORKNOEXEC`: forked, and not executed anything since. Of threads other than the first it says nothing.
    pub const FORKNOEXEC: u32 = 0x40;
    /// `PF_FROZEN` (before 6.1).
    pub const FROZEN: u32 = 0x1_0000;
    /// `PF_KTHREAD`.
    pub const KTHREAD: u32 = 0x20_0000;
}

/// `JOBCTL_TRAP_FREEZE` (bit 23) of `task->jobctl`: held by the version 2 cgroup freezer.
pub const JOBCTL_TRAP_FREEZE: u32 = 1 << 23;

/// User registers of a thread that is in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer register; `None` where the source does not give it (`/proc`).
    pub bp: Option<u64>,
}

/// A system call in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyscallInProgress {
    /// Number, in the table of the task's ABI (x86-64 or i386).
    pub number: u32,
    /// The argument registers.
    pub args: [u64; 6],
}

/// One thread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadRow {
    /// Thread id in observer's PID namespace.
    pub tid: Pid,
    /// The process it belongs to.
    pub process: ProcessId,
    /// Thread and process id in the initial PID namespace (what the probes key on); equal to
    /// `tid`/`process.pid` when observer runs there or the source does not know.
    pub initial: (Pid, Pid),
    /// Thread and process id in the task's innermost PID namespace (what futex words hold).
    pub own: (Pid, Pid),
    /// Inode number of the innermost PID namespace; 0 if unknown.
    pub pidns: u32,
    /// Parent process in observer's PID namespace; 0 if outside.
    pub ppid: Pid,
    /// Tracer's process id; 0 if not traced.
    pub tracer: Pid,
    /// Thread name.
    pub comm: String,
    /// Bits of [`state`].
    pub state: u32,
    /// Exit bits of [`state`].
    pub exit_state: u32,
    /// Bits of [`task_flags`].
    pub flags: u32,
    /// Low word of `task->jobctl`; 0 if unknown.
    pub jobctl: u32,
    /// 32-bit system call ABI.
    pub compat: bool,
    /// Running on a CPU right now.
    pub on_cpu: bool,
    /// Start time of the thread, nanoseconds since boot.
    pub start_ns: u64,
    /// Voluntary context switches.
    pub nvcsw: u64,
    /// Involuntary context switches.
    pub nivcsw: u64,
    /// CPU time used, nanoseconds.
    pub cpu_ns: u64,
    /// When it left the CPU, `CLOCK_MONOTONIC` nanoseconds; `None` while it runs or where the source
    /// cannot tell (then the model counts from first sight).
    pub off_cpu_since_ns: Option<u64>,
    /// Since when it is runnable and waits for a CPU, `CLOCK_MONOTONIC` nanoseconds.
    pub queued_since_ns: Option<u64>,
    /// The system call it is in.
    pub syscall: Option<SyscallInProgress>,
    /// User registers, for user threads.
    pub registers: Option<Registers>,
    /// Id of its cgroup in the default hierarchy; 0 if unknown.
    pub cgroup_id: u64,
    /// `task->blocker`, raw: what a D state task is blocked on; 0 if nothing or unknown.
    pub blocker: u64,
    /// Initial thread id that the lock behind `blocker` names as its owner; 0 if none or unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub blocker_tid: Pid,
    /// Flags of that word of the lock.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub blocker_flags: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl ThreadRow {
    /// A kernel thread.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & task_flags::KTHREAD != 0
    }

    /// Of the first thread of a process: it was forked and has not executed anything since.
    pub fn is_forked_only(&self) -> bool {
        self.flags & task_flags::FORKNOEXEC != 0
    }

    /// A kernel thread that is not in D state: nothing to find out about it.
    pub fn is_kernel_thread_at_rest(&self) -> bool {
        self.is_kernel_thread() && self.state_letter() != 'D'
    }

    /// Dead, a zombie, or on its way out.
    pub fn is_exiting(&self) -> bool {
        self.exit_state != 0 || self.flags & task_flags::EXITING != 0 || self.state & state::DEAD != 0
    }

    /// Frozen by either cgroup freezer or by suspend.
    pub fn is_frozen(&self) -> bool {
        self.state & state::FROZEN != 0 || self.flags & task_flags::FROZEN != 0 || self.jobctl & JOBCTL_TRAP_FREEZE != 0
    }

    /// Stopped by a signal, held by a tracer, or frozen; and not on its way out.
    pub fn is_stopped(&self) -> bool {
        !self.is_exiting() && (matches!(self.state_letter(), 'T' | 't') || self.is_frozen())
    }

    /// The letter `ps` shows: R S D T t Z X I.
    pub fn state_letter(&self) -> char {
        use state as s;
        if self.exit_state & s::EXIT_ZOMBIE != 0 {
            'Z'
        } else if self.exit_state & s::EXIT_DEAD != 0 || self.state & s::DEAD != 0 {
            'X'
        } else if self.state & s::TRACED != 0 {
            't'
        } else if self.state & s::STOPPED != 0 {
            'T'
        } else if self.state & s::UNINTERRUPTIBLE != 0 {
            if self.state & s::NOLOAD != 0 { 'I' } else { 'D' }
        } else if self.state & s::INTERRUPTIBLE != 0 {
            'S'
        } else if self.state & s::FROZEN != 0 {
            'D'
        } else if self.state & s::PARKED != 0 {
            'P'
        } else {
            'R'
        }
    }

    /// Asleep in the kernel: neither running, runnable nor exiting.
    pub fn is_blocked(&self) -> bool {
        self.state & 0xffff != 0 && !self.is_exiting()
    }
}

/// All threads at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Census {
    /// When.
    pub clocks: Clocks,
    /// How long the pass took, nanoseconds: kernel and decoding.
    pub took_ns: u64,
    /// The kernel's part of it; the whole where it cannot be told apart (`/proc`).
    #[serde(default)]
    pub kernel_ns: u64,
    /// One row per thread, sorted by `tid`.
    pub rows: Vec<ThreadRow>,
    /// Threads the source passed over or failed to read, by reason; `rows.len() + sum = threads seen`.
    pub lost: std::collections::BTreeMap<String, u64>,
}

/// How long calls on a socket wait at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketLimit {
    /// For ever.
    None,
    /// So long, nanoseconds.
    After(u64),
}

/// The time limits of a socket: `SO_RCVTIMEO` and `SO_SNDTIMEO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketLimits {
    /// Of `recv`, `accept` and `read`.
    pub receive: SocketLimit,
    /// Of `send`, `write` and `connect`.
    pub send: SocketLimit,
}
