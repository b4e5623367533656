//! What the probes keep by thread, call site and futex word, and the stacks they send.

use crate::{ARGS, COMM_LEN, TIMEOUT_KINDS};

/// A call that has been entered and not left (`start_ns` is not zero), or its thread's last one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// `CLOCK_MONOTONIC` at entry, nanoseconds; 0 once it has returned.
    pub start_ns: u64,
    /// Relative timeout, nanoseconds.
    pub timeout_ns: i64,
    /// Timeout as passed.
    pub timeout_raw: i64,
    /// Argument registers.
    pub args: [u64; ARGS],
    /// The call site; 0 if sites are not told apart.
    pub site: u64,
    /// System call number; `u32::MAX` for a socket.
    pub nr: u32,
    /// `TIMEOUT_*`.
    pub kind: u32,
    /// `FAMILY_*`.
    pub family: u32,
    /// Keeps the structure free of padding.
    pub reserved: u32,
}

/// Who began a TCP connection attempt, and when.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub start_ns: u64,
    /// Thread, in the initial PID namespace.
    pub tid: u32,
    /// Process there.
    pub tgid: u32,
    /// Thread in observer's namespace; 0 if it has no name there.
    pub view_tid: u32,
    /// Process there.
    pub view_tgid: u32,
    /// Name of the thread.
    pub comm: [u8; COMM_LEN],
}

/// Calls of one thread whose timeouts are remembered, one slot each.
pub const HABITS: usize = 4;
/// In an entry of the map `SAMPLE`: only one call in `2^n` of the family is looked at, `n` being these bits.
pub const SAMPLE_MASK: u32 = 31;
/// In an entry of the map `SAMPLE`: above the sampling, how often the family's probes were put back; calls were missed each
/// time. The same bits of [`Habit::call`].
pub const GAP_SHIFT: u32 = 16;
/// What is kept of that: a thread would have to sleep through 2^15 gaps.
pub const GAP_MASK: u32 = 0x7fff << GAP_SHIFT;
/// In [`Habit::call`]: the slot was another call's. What this call was passed before that may have been forgotten, so
/// "never without a limit" cannot be said of it.
pub const REPLACED: u32 = 1 << 31;
/// A thread's first so many zero polls are added to its process at once; of the later ones fewer than so many wait to be
/// added.
pub const PENDING: u32 = 64;

/// The timeouts one thread passed to one system call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    /// Longest finite timeout, nanoseconds.
    pub longest_ns: u64,
    /// Zeros.
    pub zero: u32,
    /// Finite ones.
    pub finite: u32,
    /// Without limit.
    pub infinite: u32,
    /// All others.
    pub other: u32,
    /// System call number plus one in the lower half; 0 while the slot is free. Above it the gap of its family
    /// ([`GAP_SHIFT`]) when this was last added to, and [`REPLACED`].
    pub call: u32,
    /// When a bad timeout of this call was last sent, in units of 2^20 ns; 0 if never.
    pub bad_tick: u32,
    /// Where the last call that was zero or finite was made, as far as its first two arguments tell: of a `poll` the address and
    /// the length of its set.
    pub place: u32,
    /// Zeros and finite ones made there in a row.
    pub run: u32,
}

/// What has been decoded of the call that is being entered.
///
/// It goes through the thread's memory so that the verifier forgets how each value came about: it walks what follows once,
/// not once for every system call and kind of timeout.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    /// Relative timeout, nanoseconds.
    pub timeout_ns: i64,
    /// Timeout as passed.
    pub timeout_raw: i64,
    /// System call number.
    pub nr: u32,
    /// `TIMEOUT_*`.
    pub kind: u32,
    /// `FAMILY_*`.
    pub family: u32,
    /// 1 for a poll of zero milliseconds.
    pub zero: u32,
    /// 1 for a negative or malformed timeout.
    pub bad: u32,
    /// The slot of this call in the thread's habits.
    pub slot: u32,
}

/// What the probes keep by thread, under its `pid_tgid`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ThreadState {
    /// The call it is in, or its last one.
    pub call: Call,
    /// Polls of zero milliseconds not yet added to the process.
    pub pending_zero: u32,
    /// The slot that the next call without one takes over.
    pub next: u32,
    /// The call that is being entered.
    pub decoded: Decoded,
    /// Timeouts by call.
    pub habits: [Habit; HABITS],
}

/// [`Habit`] as an event carries it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// Zeros.
    pub zero: u64,
    /// Finite ones.
    pub finite: u64,
    /// Without limit.
    pub infinite: u64,
    /// All others.
    pub other: u64,
    /// Longest finite timeout, nanoseconds.
    pub longest_ns: u64,
}

impl History {
    /// Nothing before.
    pub const NONE: Self = Self { zero: 0, finite: 0, infinite: 0, other: 0, longest_ns: 0 };
}

/// Key of the map of call sites.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SiteKey {
    /// Initial process id.
    pub tgid: u32,
    /// System call number.
    pub syscall: u32,
    /// Hash of the process, the instruction pointer and some callers.
    pub site: u64,
}

/// What was passed at one call site.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SiteRecord {
    /// Calls by `TIMEOUT_*` kind.
    pub calls: [u64; TIMEOUT_KINDS],
    /// Waits that ended.
    pub ended: u64,
    /// Sum of these, nanoseconds.
    pub total_ns: u64,
    /// Longest of these, nanoseconds.
    pub longest_ns: u64,
    /// Shortest finite timeout, nanoseconds; 0 if none yet.
    pub shortest_timeout_ns: u64,
    /// Longest finite timeout, nanoseconds.
    pub longest_timeout_ns: u64,
    /// The last bad timeout as passed, else the last one.
    pub raw: i64,
    /// `CLOCK_MONOTONIC` at the last call's entry, nanoseconds.
    pub last_ns: u64,
    /// Argument registers of the last call.
    pub args: [u64; ARGS],
    /// Initial thread id of the last call.
    pub tid: u32,
    /// Thread id of the last call in observer's PID namespace; 0 outside it or if not looked up.
    pub view_tid: u32,
    /// 1 once a stack was sent.
    pub has_stack: u32,
    /// 1 once `raw` is a bad timeout.
    pub has_bad: u32,
}

/// Bytes above the stack pointer in a [`UserStack`].
pub const STACK_BYTES: usize = 16 * 1024;

/// A user stack at a call, through a ring buffer of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UserStack {
    /// The call site.
    pub site: u64,
    /// User instruction pointer.
    pub ip: u64,
    /// User stack pointer.
    pub sp: u64,
    /// User frame pointer register.
    pub bp: u64,
    /// Initial thread id.
    pub tid: u32,
    /// Initial process id.
    pub tgid: u32,
    /// Thread id in observer's PID namespace; 0 outside it.
    pub view_tid: u32,
    /// Process id in observer's PID namespace; 0 outside it.
    pub view_tgid: u32,
    /// How many of `bytes` are the thread's; the rest is whatever the ring held.
    pub len: u32,
    /// Keeps the structure free of padding.
    pub reserved: u32,
    /// Memory from `sp` upwards.
    pub bytes: [u8; STACK_BYTES],
}

/// Key of the map of wake-ups by futex word.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WordKey {
    /// Address of the word.
    pub address: u64,
    /// Initial process id.
    pub tgid: u32,
    /// Keeps the structure free of padding.
    pub reserved: u32,
}

/// Who wakes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Wakes {
    /// Wake-ups.
    pub wakes: u64,
    /// `CLOCK_MONOTONIC` of the last, nanoseconds.
    pub last_ns: u64,
    /// By how many `usual` leads.
    pub lead: u64,
    /// Initial thread id of the last waker.
    pub last: u32,
    /// Initial thread id of the usual one (majority vote).
    pub usual: u32,
}

/// Wake-ups of one futex word.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WordRecord {
    /// Who wakes.
    pub wakes: Wakes,
    /// `pid_tgid` of a thread that was woken and whose waker has not returned yet; 0 if none.
    pub owed: u64,
    /// `CLOCK_MONOTONIC` when that thread was woken, nanoseconds.
    pub owed_ns: u64,
}

const _: () = {
    assert!(size_of::<Call>() == 96);
    assert!(size_of::<Attempt>() == 40);
    assert!(size_of::<Habit>() == 40);
    assert!(size_of::<Decoded>() == 40);
    assert!(size_of::<ThreadState>() == 144 + 40 * HABITS);
    assert!(size_of::<History>() == 40);
    assert!(size_of::<SiteKey>() == 16);
    assert!(size_of::<SiteRecord>() == 8 * (TIMEOUT_KINDS + 7 + ARGS) + 16);
    assert!(size_of::<UserStack>() == 56 + STACK_BYTES);
    assert!(size_of::<WordKey>() == 16);
    assert!(size_of::<Wakes>() == 32);
    assert!(size_of::<WordRecord>() == 48);
};
