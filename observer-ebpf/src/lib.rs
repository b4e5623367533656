//! The contract between the programs in the kernel and the observer in user space.
//!
//! Every structure here crosses the kernel border: integers only, no padding, sizes asserted below.
//! "Initial" ids are those of the initial PID namespace, "view" ids those of the PID namespace
//! observer runs in, "own" ids those of the innermost namespace of the task itself (the ones that a
//! futex word of that task holds).
#![no_std]

mod sockets;
mod threads;

pub use sockets::*;
pub use threads::*;

/// Version of these layouts; the kernel object and user space are built from the same sources, and
/// the loader refuses another version.
pub const ABI_VERSION: u32 = 4;

/// Length of `task->comm` (`TASK_COMM_LEN` of the kernel).
pub const COMM_LEN: usize = 16;
/// Number of system call argument registers.
pub const ARGS: usize = 6;
/// Kernel frames kept per stack.
pub const STACK_FRAMES: usize = 48;
/// Offset of a kernel field that the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// What starts every record of the census stream.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RecordPrefix {
    /// One of the `RECORD_*` kinds.
    pub kind: u32,
    /// Length of the whole record in bytes, this prefix included.
    pub len: u32,
}

/// Kind of a [`CensusHead`].
pub const RECORD_HEAD: u32 = 1;
/// Kind of a [`TaskRecord`].
pub const RECORD_TASK: u32 = 2;
/// Kind of a [`CensusTail`].
pub const RECORD_TAIL: u32 = 3;
/// Kind of a [`StackRecord`].
pub const RECORD_STACK: u32 = 4;
/// Kind of a [`SettledRecord`].
pub const RECORD_SETTLED: u32 = 5;
/// Kind of a [`SocketRecord`].
pub const RECORD_SOCKET: u32 = 6;
/// Kind of a [`SocketFileRecord`].
pub const RECORD_SOCKET_FILE: u32 = 7;

/// First record of a census: the clocks, read in the kernel by the thread that reads the census.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CensusHead {
    /// Kind and length.
    pub prefix: RecordPrefix,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub mono_ns: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds; zero where the helper is missing.
    pub boot_ns: u64,
    /// `sched_info.last_arrival` of the reader: run-queue clock at its last switch-in. The reader has
    /// just slept, so `mono_ns - reader_last_arrival` relates the two clocks to some microseconds.
    pub reader_last_arrival: u64,
    /// Initial TID of the reader.
    pub reader_tid: u32,
    /// Depth of the reader's PID namespace; 0 is the initial one.
    pub view_level: u32,
}

/// One thread, as the census saw it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TaskRecord {
    /// Kind and length.
    pub prefix: RecordPrefix,
    /// Initial thread id (`task->pid`).
    pub tid: u32,
    /// Initial process id (`task->tgid`).
    pub tgid: u32,
    /// Thread id in observer's PID namespace.
    pub view_tid: u32,
    /// Process id in observer's PID namespace.
    pub view_tgid: u32,
    /// Thread id in the task's innermost PID namespace.
    pub own_tid: u32,
    /// Process id in the task's innermost PID namespace.
    pub own_tgid: u32,
    /// Inode number of the innermost PID namespace (as in `/proc/PID/ns/pid`).
    pub pidns: u32,
    /// Process id (view) of the real parent; 0 if it is outside the view.
    pub view_ppid: u32,
    /// Process id (view) of the tracer; 0 if not traced.
    pub view_tracer: u32,
    /// `task->__state` bits.
    pub state: u32,
    /// `task->exit_state` bits.
    pub exit_state: u32,
    /// `task->flags` (`PF_*`).
    pub flags: u32,
    /// Bits `TASK_*` below.
    pub bits: u32,
    /// `task->policy` (`SCHED_*`).
    pub policy: u32,
    /// Low 32 bits of `task->jobctl` (`JOBCTL_*`).
    pub jobctl: u32,
    /// `task->on_cpu`: 1 while it runs.
    pub on_cpu: u32,
    /// `task->start_boottime`, nanoseconds since boot.
    pub start_boot_ns: u64,
    /// `start_boottime` of the thread group leader: with the PID, the identity of the process.
    pub process_start_boot_ns: u64,
    /// Voluntary context switches.
    pub nvcsw: u64,
    /// Involuntary context switches.
    pub nivcsw: u64,
    /// `sched_info.last_arrival`: run-queue clock when it last got a CPU.
    pub last_arrival: u64,
    /// `sched_info.last_queued`: run-queue clock since when it is runnable and waits; 0 if it does not.
    pub last_queued: u64,
    /// `se.sum_exec_runtime`: CPU time used, nanoseconds.
    pub cpu_ns: u64,
    /// CPU time used in the stint that began at `last_arrival` (`sum_exec_runtime -
    /// prev_sum_exec_runtime`); 0 where the scheduling class does not keep it.
    pub stint_ns: u64,
    /// System call number (`orig_ax`), sign-extended; -1 outside system calls.
    pub syscall: i64,
    /// `di si dx r10 r8 r9` (64-bit) or `bx cx dx si di bp` (32-bit tasks).
    pub args: [u64; ARGS],
    /// User instruction pointer.
    pub ip: u64,
    /// User stack pointer.
    pub sp: u64,
    /// User frame pointer register.
    pub bp: u64,
    /// Id of the cgroup in the default hierarchy (inode number of its directory).
    pub cgroup_id: u64,
    /// `task->blocker` (kernel >= 6.16 layouts), raw; 0 where absent.
    pub blocker: u64,
    /// Initial thread id that the lock behind `blocker` names as its owner; 0 if none, or not known.
    pub blocker_tid: u32,
    /// The low three bits of the lock's owner word: flags of the lock, see [`BLOCKER_MUTEX`] and the others.
    pub blocker_flags: u32,
    /// Thread name, NUL-padded.
    pub comm: [u8; COMM_LEN],
}

/// The two low bits of `task->blocker` (`include/linux/hung_task.h`): a mutex.
pub const BLOCKER_MUTEX: u64 = 0;
/// A semaphore: it keeps its last holder only, which may have passed it on.
pub const BLOCKER_SEMAPHORE: u64 = 1;
/// A reader waits for an rwsem.
pub const BLOCKER_RWSEM_READER: u64 = 2;
/// A writer waits for an rwsem.
pub const BLOCKER_RWSEM_WRITER: u64 = 3;
/// In the flags of an rwsem's owner word: a reader was the last to take it, others may have it (`RWSEM_READER_OWNED`).
pub const RWSEM_READER_OWNED: u32 = 1;

/// The task runs 32-bit code in this system call (`TS_COMPAT`).
pub const TASK_COMPAT: u32 = 1;
/// The registers are real (user thread; not an exiting or kernel thread).
pub const TASK_REGS: u32 = 1 << 1;
/// `stint_ns` is meaningful.
pub const TASK_STINT: u32 = 1 << 2;

/// A thread that has slept since an earlier census of the same reader, and is as that one's [`TaskRecord`] said.
///
/// A sleeper changes nothing of itself. What others may change of it (parent, tracer, cgroup, name) is as old as its last
/// whole record: that comes with every [`SETTLED_PASSES`]th census.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SettledRecord {
    /// Kind and length.
    pub prefix: RecordPrefix,
    /// Initial thread id.
    pub tid: u32,
    /// Unused; keeps the structure free of padding.
    pub reserved: u32,
}

/// Slots of the map `SETTLED`; a power of two.
pub const SETTLED_SLOTS: u32 = 32_768;
/// A settled thread is written whole once in so many censuses; a power of two.
pub const SETTLED_PASSES: u32 = 16;

/// What the census remembers of a sleeper, in the slot of its thread id: another thread with the same slot takes it over, and
/// both are written whole.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// Initial thread id; 0 in an empty slot.
    pub tid: u32,
    /// `task->__state` bits.
    pub state: u32,
    /// `task->start_boottime`, nanoseconds: thread ids are used again.
    pub start_boot_ns: u64,
    /// Context switches: the same number means that it has not run.
    pub switches: u64,
    /// The map `GENERATION` when it was written: those of another one are forgotten.
    pub generation: u32,
    /// Unused; keeps the structure free of padding.
    pub reserved: u32,
}

/// Last record of a census: what the kernel side did.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CensusTail {
    /// Kind and length.
    pub prefix: RecordPrefix,
    /// Tasks the iterator passed through the program.
    pub visited: u64,
    /// Tasks written as records.
    pub written: u64,
    /// Helper failures while reading tasks (a record was still written).
    pub faults: u64,
}

/// The kernel stack of one wanted thread.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StackRecord {
    /// Kind and length.
    pub prefix: RecordPrefix,
    /// Initial thread id.
    pub tid: u32,
    /// Thread id in observer's PID namespace.
    pub view_tid: u32,
    /// Number of valid frames, or a negative errno.
    pub frames: i64,
    /// Return addresses, innermost first.
    pub ips: [u64; STACK_FRAMES],
}

/// Probe family: `poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2`.
pub const FAMILY_POLL: u32 = 0;
/// Probe family: `futex futex_wait futex_waitv` (waits); `futex_wake futex_requeue` for the wake history.
pub const FAMILY_FUTEX: u32 = 1;
/// Probe family: `connect`.
pub const FAMILY_CONNECT: u32 = 2;
/// Probe family: `read recvfrom recvmsg accept accept4`; only where call sites are told apart.
pub const FAMILY_SOCKET: u32 = 3;
/// Number of probe families.
pub const FAMILIES: usize = 4;

/// Timeout kind: nothing to decode, or unreadable.
pub const TIMEOUT_UNKNOWN: u32 = 0;
/// Timeout kind: the call takes none (`connect`).
pub const TIMEOUT_NONE: u32 = 1;
/// Timeout kind: returns at once.
pub const TIMEOUT_ZERO: u32 = 2;
/// Timeout kind: finite, up to [`ABSURD_NS`].
pub const TIMEOUT_FINITE: u32 = 3;
/// Timeout kind: waits for ever (`-1`, or a null pointer).
pub const TIMEOUT_INFINITE: u32 = 4;
/// Timeout kind: negative and not the documented -1.
pub const TIMEOUT_NEGATIVE: u32 = 5;
/// Timeout kind: beyond [`ABSURD_NS`].
pub const TIMEOUT_ABSURD: u32 = 6;
/// Timeout kind: malformed (nanoseconds out of range), the kernel answers `EINVAL`.
pub const TIMEOUT_INVALID: u32 = 7;
/// Number of timeout kinds.
pub const TIMEOUT_KINDS: usize = 8;

/// A timeout longer than this is called absurd: 24 hours.
pub const ABSURD_NS: u64 = 24 * 3600 * 1_000_000_000;

/// Buckets of the wait-time histogram: bucket `i` counts waits of `2^i ..2^(i+1)` nanoseconds, the
/// last one everything above.
pub const WAIT_BUCKETS: usize = 40;

/// Key of the aggregation map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessKey {
    /// Initial process id.
    pub tgid: u32,
    /// `FAMILY_*`.
    pub family: u32,
}

/// What one process did with one family of calls since the probes were attached.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProcessWaits {
    /// Calls seen entering, by `TIMEOUT_*` kind.
    pub calls: [u64; TIMEOUT_KINDS],
    /// Calls seen returning, by wait time.
    pub waits: [u64; WAIT_BUCKETS],
    /// Sum of all wait times, nanoseconds.
    pub total_ns: u64,
    /// Longest wait that ended, nanoseconds.
    pub longest_ns: u64,
    /// Calls that returned an error other than a timeout or an interruption.
    pub failed: u64,
}

/// Event: a negative or invalid timeout was passed (sent at entry).
pub const EVENT_BAD_TIMEOUT: u32 = 1;
/// Event: a wait longer than the threshold ended.
pub const EVENT_LONG_WAIT: u32 = 2;
/// Event: a connection attempt failed or was slow.
pub const EVENT_CONNECT: u32 = 3;

/// Event: a wait without limit where this thread's calls never had none (sent at entry).
pub const EVENT_HABIT: u32 = 4;

/// A rare event, through the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// `EVENT_*`.
    pub kind: u32,
    /// `FAMILY_*`.
    pub family: u32,
    /// Initial thread id.
    pub tid: u32,
    /// Initial process id.
    pub tgid: u32,
    /// Thread id in observer's PID namespace; 0 outside it.
    pub view_tid: u32,
    /// Process id in observer's PID namespace; 0 outside it.
    pub view_tgid: u32,
    /// System call number; `u32::MAX` for a socket state change.
    pub syscall: u32,
    /// `TIMEOUT_*`.
    pub timeout_kind: u32,
    /// `CLOCK_MONOTONIC` at entry, nanoseconds.
    pub start_ns: u64,
    /// Time waited, nanoseconds; 0 for events sent at entry.
    pub wait_ns: u64,
    /// Return value; for a socket that failed, the negative errno (`sk_err`) or 0 if unknown.
    pub ret: i64,
    /// The timeout as passed: milliseconds of `poll`/`epoll_wait`, else seconds of the timespec.
    pub timeout_raw: i64,
    /// The timeout as a relative duration in nanoseconds, clamped; 0 where none.
    pub timeout_ns: i64,
    /// The six argument registers at entry.
    pub args: [u64; ARGS],
    /// Address family of the socket (`AF_*`); 0 where none.
    pub address_family: u32,
    /// Local port, host order, in the low half; remote port in the high half.
    pub ports: u32,
    /// Local address, network order; IPv4 in the first four bytes.
    pub local: [u8; 16],
    /// Remote address, network order; IPv4 in the first four bytes.
    pub remote: [u8; 16],
    /// Thread name, NUL-padded.
    pub comm: [u8; COMM_LEN],
    /// Bad timeouts and habits: what this thread passed to this call before.
    pub history: History,
    /// Bad timeouts and habits: the call site; 0 if not known.
    pub site: u64,
}

/// Index into the per-CPU account: TCP state changes the probes looked at. As it is exported, `seen` is these and all calls
/// that were entered.
pub const ACCOUNT_SEEN: u32 = 0;
/// Account: calls of processes that are not observed.
pub const ACCOUNT_FILTERED: u32 = 1;
/// Account: calls measured from entry to return.
pub const ACCOUNT_MEASURED: u32 = 2;
/// Account: events sent.
pub const ACCOUNT_SENT: u32 = 3;
/// Account: events lost, ring buffer full.
pub const ACCOUNT_RING_FULL: u32 = 4;
/// Account: calls not measured, in-flight map full.
pub const ACCOUNT_IN_FLIGHT_FULL: u32 = 5;
/// Account: calls not aggregated, process map full; each once, at its entry.
pub const ACCOUNT_PROCESSES_FULL: u32 = 6;
/// Account: connections not followed, socket map full.
pub const ACCOUNT_SOCKETS_FULL: u32 = 7;
/// Account: returns without a seen entry (the wait began before attach, or there was no room for it).
pub const ACCOUNT_UNPAIRED: u32 = 8;
/// Account: timeouts whose `timespec` could not be read.
pub const ACCOUNT_UNREADABLE: u32 = 9;
/// Account: calls counted and not timed, because their timeout is zero.
pub const ACCOUNT_NOT_TIMED: u32 = 10;
/// Account: calls not looked at further, because their family is sampled.
pub const ACCOUNT_SAMPLED_OUT: u32 = 11;
/// Account: bad timeouts not sent, because the same thread's same call had one in the last 100 ms.
pub const ACCOUNT_REPEATED: u32 = 12;
/// Account: waits ended by a signal; the kernel may begin them again.
pub const ACCOUNT_INTERRUPTED: u32 = 13;
/// Account: calls whose return was not seen: their thread went on to another.
pub const ACCOUNT_RETURN_MISSED: u32 = 14;
/// Account: calls whose thread ended in them, or gave up its id in an `exec`.
pub const ACCOUNT_ENDED_IN_WAIT: u32 = 15;
/// Account: histories forgotten, because a thread uses more than [`HABITS`] calls.
pub const ACCOUNT_HABITS_REPLACED: u32 = 16;
/// Account: stacks not taken, because enough were this second.
pub const ACCOUNT_STACKS_LIMITED: u32 = 17;
/// Account: stacks lost, ring buffer full.
pub const ACCOUNT_STACKS_FULL: u32 = 18;
/// Account: stacks not taken, registers or memory unreadable.
pub const ACCOUNT_STACKS_UNREADABLE: u32 = 19;
/// Account: call sites entered into the map; those no longer there were evicted.
pub const ACCOUNT_SITES_NEW: u32 = 20;
/// Account: socket calls too short to be kept as a site.
pub const ACCOUNT_TOO_SHORT: u32 = 21;
/// Account: wake-ups that woke somebody.
pub const ACCOUNT_WAKES: u32 = 22;
/// Account: futex words entered into the map of wake-ups; those no longer there were evicted.
pub const ACCOUNT_WORDS_NEW: u32 = 23;
/// Account: threads entered into the map of wake-ups; those no longer there were evicted.
pub const ACCOUNT_WOKEN_NEW: u32 = 24;
/// Account: calls whose site could not be entered into the map, which found nothing to evict.
pub const ACCOUNT_SITES_FULL: u32 = 25;
/// Account: wake-ups whose word or thread could not be entered into its map.
pub const ACCOUNT_WAKES_FULL: u32 = 26;
/// Account: calls entered of the first family (`FAMILY_POLL`), whether sampling passes over them or not; those of the others follow
/// in the order of `FAMILY_*`. Futex calls that only wake are not counted.
pub const ACCOUNT_ENTERED: u32 = 27;
/// Number of account entries.
pub const ACCOUNT_ENTRIES: usize = ACCOUNT_ENTERED as usize + FAMILIES;

/// Names of the account entries, in order, as exported.
pub const ACCOUNT_NAMES: [&str; ACCOUNT_ENTRIES] = [
    "seen",
    "filtered",
    "measured",
    "sent",
    "ring_full",
    "in_flight_full",
    "processes_full",
    "sockets_full",
    "unpaired",
    "timeout_unreadable",
    "not_timed",
    "sampled_out",
    "repeated",
    "interrupted",
    "return_missed",
    "ended_in_wait",
    "habits_replaced",
    "stacks_limited",
    "stacks_full",
    "stacks_unreadable",
    "sites_new",
    "too_short",
    "wakes",
    "words_new",
    "woken_new",
    "sites_full",
    "wakes_full",
    "entered_poll",
    "entered_futex",
    "entered_connect",
    "entered_socket",
];

/// What the probes look at: every process.
pub const FILTER_ALL: u32 = 0;
/// What the probes look at: processes in the `FILTER` map only.
pub const FILTER_LISTED: u32 = 1;
/// What the probes look at: processes of observer's own PID namespace and below.
pub const FILTER_NAMESPACE: u32 = 2;

/// Bit of the map `ENABLED`: a program removes the entry of each thread that ends, so entries of calls
/// that have returned may stay for the thread's next call. The lower bits are `1 << FAMILY_*`.
pub const THREAD_EXIT: u32 = 1 << 31;

/// Settings handed over as read-only data before load.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Globals {
    /// [`ABI_VERSION`].
    pub abi: u32,
    /// `FILTER_*`.
    pub filter: u32,
    /// Inode number of observer's PID namespace.
    pub view_pidns: u32,
    /// 1: call sites are told apart. Zero costs nothing: the verifier takes that code out.
    pub sites: u32,
    /// 1: who wakes whom is kept. Zero costs nothing.
    pub wakes: u32,
    /// Finite or zero timeouts in a row at one place after which one without limit is an [`EVENT_HABIT`].
    pub habit_after: u32,
    /// Waits longer than this are reported when they end, nanoseconds.
    pub long_wait_ns: u64,
    /// Connects slower than this are reported, nanoseconds.
    pub slow_connect_ns: u64,
}

/// Byte offsets of kernel fields, resolved from the running kernel's BTF; [`ABSENT`] where the
/// kernel has no such field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is named after the kernel field it locates")]
pub struct Offsets {
    pub task_state: u32,
    pub task_exit_state: u32,
    pub task_flags: u32,
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_comm: u32,
    pub task_real_parent: u32,
    pub task_parent: u32,
    pub task_ptrace: u32,
    pub task_group_leader: u32,
    pub task_start_boottime: u32,
    pub task_nvcsw: u32,
    pub task_nivcsw: u32,
    pub task_last_arrival: u32,
    pub task_last_queued: u32,
    pub task_sum_exec_runtime: u32,
    pub task_prev_sum_exec_runtime: u32,
    pub task_policy: u32,
    pub task_on_cpu: u32,
    pub task_jobctl: u32,
    pub task_thread_info_status: u32,
    pub task_thread_pid: u32,
    pub task_cgroups: u32,
    pub task_blocker: u32,
    pub mutex_owner: u32,
    pub semaphore_last_holder: u32,
    pub rwsem_owner: u32,
    pub task_stack: u32,
    pub css_set_dfl_cgrp: u32,
    pub cgroup_kn: u32,
    pub kernfs_node_id: u32,
    pub pid_level: u32,
    pub pid_numbers: u32,
    pub upid_nr: u32,
    pub upid_ns: u32,
    pub upid_size: u32,
    pub pidns_inum: u32,
    pub regs_orig_ax: u32,
    pub regs_ip: u32,
    pub regs_sp: u32,
    pub regs_bp: u32,
    pub regs_bx: u32,
    pub regs_cx: u32,
    pub regs_dx: u32,
    pub regs_si: u32,
    pub regs_di: u32,
    pub regs_r8: u32,
    pub regs_r9: u32,
    pub regs_r10: u32,
    pub regs_cs: u32,
    pub regs_size: u32,
    pub sock_family: u32,
    pub sock_num: u32,
    pub sock_dport: u32,
    pub sock_rcv_saddr: u32,
    pub sock_daddr: u32,
    pub sock_v6_rcv_saddr: u32,
    pub sock_v6_daddr: u32,
    pub sock_protocol: u32,
    pub sock_err: u32,
    pub sock_rcvtimeo: u32,
    pub sock_sndtimeo: u32,
    pub socket_sk: u32,
    pub file_inode: u32,
    pub inode_ino: u32,
    pub inode_sb: u32,
    pub sb_magic: u32,
}

impl Offsets {
    /// Every field absent.
    pub const NONE: Self = {
        // Offsets is made of `u32` only, and ABSENT is all ones.
        let words = [ABSENT; size_of::<Self>() / 4];
        // SAFETY: same size (asserted by transmute), and every bit pattern is a valid u32.
        unsafe { core::mem::transmute(words) }
    };
}

const _: () = {
    assert!(size_of::<RecordPrefix>() == 8);
    assert!(size_of::<CensusHead>() == 40);
    assert!(size_of::<TaskRecord>() == 256);
    assert!(size_of::<SettledRecord>() == 16);
    assert!(size_of::<Settled>() == 32);
    assert!(size_of::<CensusTail>() == 32);
    assert!(size_of::<StackRecord>() == 24 + 8 * STACK_FRAMES);
    assert!(size_of::<ProcessKey>() == 8);
    assert!(size_of::<ProcessWaits>() == 8 * (TIMEOUT_KINDS + WAIT_BUCKETS + 3));
    assert!(size_of::<Event>() == 224);
    assert!(size_of::<Globals>() == 40);
    assert!(size_of::<Offsets>() == 67 * 4);
};
