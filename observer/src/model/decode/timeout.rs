//! Timeouts: as passed, relative, and what is left of them.

use super::syscalls::{Call, TimeoutAt};
use super::{Known, Memory};
use crate::census::{Clocks, TimeoutKind};
use crate::model::wait::Timeout;
use crate::proc::MemoryRange;

/// A poll-family or futex timeout longer than this is called absurd: 24 hours.
pub const ABSURD_NS: i64 = observer_ebpf::ABSURD_NS as i64;

/// For so long a wait may have lasted before it was first seen: a week.
const UNSEEN_NS: i64 = 7 * ABSURD_NS;

const NS_PER_S: i64 = 1_000_000_000;
const NS_PER_MS: i64 = 1_000_000;

/// `FUTEX_CLOCK_REALTIME` (`include/uapi/linux/futex.h`).
const FUTEX_CLOCK_REALTIME: u64 = 256;
/// Everything but the two flag bits of a futex operation.
const FUTEX_CMD_MASK: u64 = 0x7f;

/// Which clock an absolute deadline is on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    Real,
    Mono,
    Boot,
    Other,
}

impl Clock {
    /// By `clockid_t`; CPU-time and alarm clocks are not translated.
    fn by_id(id: u64) -> Self {
        match id as i32 {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM | libc::CLOCK_REALTIME_COARSE => Self::Real,
            libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_MONOTONIC_COARSE => Self::Mono,
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => Self::Boot,
            _ => Self::Other,
        }
    }

    fn now(self, clocks: Clocks) -> Option<i64> {
        let now = match self {
            Self::Real => clocks.real_ns,
            Self::Mono => clocks.mono_ns,
            Self::Boot => clocks.boot_ns,
            Self::Other => return None,
        };
        i64::try_from(now).ok()
    }
}

/// Where a call keeps its time, resolved for these arguments.
enum Place {
    Nowhere,
    Unseen,
    Millis(i32),
    Relative(u64),
    RelativeMicros(u64),
    Absolute(u64, Clock),
}

fn place(call: &Call, args: &[u64; 6], compat: bool) -> Place {
    // The old call of 32-bit programs has all its arguments in memory.
    if compat && call.name == "select" {
        return Place::Unseen;
    }
    let args = &args.map(|arg| if compat { arg & 0xffff_ffff } else { arg });
    match call.timeout {
        TimeoutAt::No => Place::Nowhere,
        TimeoutAt::Socket => Place::Unseen,
        // An `int`: only the low half of the register counts.
        TimeoutAt::Millis(i) => Place::Millis(args[i] as i32),
        TimeoutAt::Timespec(i) => Place::Relative(args[i]),
        TimeoutAt::Timeval(i) => Place::RelativeMicros(args[i]),
        TimeoutAt::Absolute(i, clock) => Place::Absolute(args[i], Clock::by_id(args[clock])),
        TimeoutAt::AbsoluteRealtime(i) => Place::Absolute(args[i], Clock::Real),
        TimeoutAt::ClockNanosleep if args[1] & 1 != 0 => Place::Absolute(args[2], Clock::by_id(args[0])),
        TimeoutAt::ClockNanosleep => Place::Relative(args[2]),
        TimeoutAt::Futex => {
            let realtime = args[1] & FUTEX_CLOCK_REALTIME != 0;
            match args[1] & FUTEX_CMD_MASK {
                0 => Place::Relative(args[3]),
                // WAIT_BITSET, WAIT_REQUEUE_PI, LOCK_PI2
                9 | 11 | 13 => Place::Absolute(args[3], if realtime { Clock::Real } else { Clock::Mono }),
                // LOCK_PI is on CLOCK_REALTIME always
                6 => Place::Absolute(args[3], Clock::Real),
                _ => Place::Nowhere,
            }
        }
    }
}

/// 32-bit calls pass two 32-bit words; those with `time64` in their name, and those that came after these (5.1), do not.
fn is_short(call: &Call, compat: bool) -> bool {
    compat && !call.name.ends_with("time64") && !matches!(call.name, "epoll_pwait2" | "futex_wait" | "futex_waitv")
}

/// The memory that holds the timeout.
pub(super) fn needs(call: &Call, args: &[u64; 6], compat: bool) -> Option<MemoryRange> {
    let len = if is_short(call, compat) { 8 } else { 16 };
    match place(call, args, compat) {
        Place::Relative(addr) | Place::RelativeMicros(addr) | Place::Absolute(addr, _) if addr != 0 => {
            Some(MemoryRange { addr, len })
        }
        _ => None,
    }
}

fn pair(memory: Memory<'_>, addr: u64, short: bool) -> Option<(i64, i64)> {
    if short {
        let first = memory.u32(addr)? as i32;
        let second = memory.u32(addr.checked_add(4)?)? as i32;
        Some((first.into(), second.into()))
    } else {
        Some((memory.i64(addr)?, memory.i64(addr.checked_add(8)?)?))
    }
}

/// Decodes the timeout of a call in progress.
pub(super) fn decode(call: &Call, args: &[u64; 6], compat: bool, known: &Known<'_>) -> Timeout {
    let elapsed = i64::try_from(known.clocks.mono_ns.saturating_sub(known.since_ns)).unwrap_or(i64::MAX);
    let short = is_short(call, compat);
    match place(call, args, compat) {
        Place::Nowhere => Timeout::NONE,
        Place::Unseen => Timeout::UNKNOWN,
        Place::Millis(-1) => Timeout { raw: Some("-1".to_owned()), ..Timeout::INFINITE },
        // How event loops that clamp to an `int` write "for ever": absurd by the number, and no mistake.
        Place::Millis(i32::MAX) => Timeout { raw: Some(i32::MAX.to_string()), ..Timeout::INFINITE },
        Place::Millis(ms) if ms < 0 => {
            Timeout { kind: TimeoutKind::Negative, requested_ns: None, remaining_ns: None, raw: Some(ms.to_string()) }
        }
        Place::Millis(ms) => relative(i64::from(ms) * NS_PER_MS, elapsed, ms.to_string()),
        Place::Relative(0) | Place::RelativeMicros(0) | Place::Absolute(0, _) => Timeout::INFINITE,
        Place::Relative(addr) => match pair(known.memory, addr, short) {
            None => Timeout::UNKNOWN,
            Some((s, ns)) => from_parts(s, ns, elapsed),
        },
        Place::RelativeMicros(addr) => match pair(known.memory, addr, short) {
            None => Timeout::UNKNOWN,
            Some((s, us)) => from_parts(s, us.saturating_mul(1000), elapsed),
        },
        Place::Absolute(addr, clock) => match pair(known.memory, addr, short) {
            None => Timeout::UNKNOWN,
            Some((s, ns)) => absolute(s, ns, clock, elapsed, known.clocks),
        },
    }
}

fn seconds(s: i64, ns: i64) -> Option<i64> {
    (0..NS_PER_S).contains(&ns).then(|| s.saturating_mul(NS_PER_S).saturating_add(ns))
}

fn malformed(s: i64, raw: String) -> Timeout {
    let kind = if s < 0 { TimeoutKind::Negative } else { TimeoutKind::Invalid };
    Timeout { kind, requested_ns: None, remaining_ns: None, raw: Some(raw) }
}

fn from_parts(s: i64, ns: i64, elapsed: i64) -> Timeout {
    let raw = format!("{s}.{ns:09}s");
    match seconds(s, ns) {
        Some(total) if s >= 0 => relative(total, elapsed, raw),
        _ => malformed(s, raw),
    }
}

fn relative(requested: i64, elapsed: i64, raw: String) -> Timeout {
    let kind = match requested {
        0 => TimeoutKind::Zero,
        r if r > ABSURD_NS => TimeoutKind::Absurd,
        _ => TimeoutKind::Finite,
    };
    Timeout {
        kind,
        requested_ns: Some(requested),
        remaining_ns: Some(requested.saturating_sub(elapsed).max(0)),
        raw: Some(raw),
    }
}

fn absolute(s: i64, ns: i64, clock: Clock, elapsed: i64, clocks: Clocks) -> Timeout {
    let raw = format!("until {s}.{ns:09}");
    let Some(deadline) = seconds(s, ns).filter(|_| s >= 0) else {
        return malformed(s, raw);
    };
    let Some(now) = clock.now(clocks) else {
        return Timeout { raw: Some(raw), ..Timeout::UNKNOWN };
    };
    let remaining = deadline.saturating_sub(now);
    let requested = remaining.saturating_add(elapsed);
    let kind = match requested {
        // The deadline had passed before the wait began.
        r if r <= 0 => TimeoutKind::Zero,
        r if r > ABSURD_NS => TimeoutKind::Absurd,
        _ => TimeoutKind::Finite,
    };
    Timeout { kind, requested_ns: Some(requested.max(0)), remaining_ns: Some(remaining.max(0)), raw: Some(raw) }
}

/// What a deadline on the monotonic clock is if it was meant as a time of day: the limit it would have been, nanoseconds, where that
/// is a sensible one. `requested_ns`: the limit it is.
pub fn as_time_of_day(call: &Call, args: &[u64; 6], requested_ns: i64, clocks: Clocks) -> Option<u64> {
    let Place::Absolute(_, Clock::Mono) = place(call, args, false) else { return None };
    let ahead = Clock::Real.now(clocks)?.checked_sub(Clock::Mono.now(clocks)?)?;
    // A clock whose beginning is that near is no time of day.
    let meant = requested_ns.checked_sub(ahead).filter(|_| ahead > ABSURD_NS)?;
    // Where only the first sight of a wait is known it may have begun long before.
    (-UNSEEN_NS..=ABSURD_NS).contains(&meant).then(|| meant.max(0).unsigned_abs())
}

/// Whether the milliseconds in a register alone are a finding: negative and not -1, or absurd.
pub fn has_suspicious_millis(call: &Call, args: &[u64; 6]) -> bool {
    match place(call, args, false) {
        Place::Millis(ms) => ms < -1 || ms != i32::MAX && i64::from(ms) * NS_PER_MS > ABSURD_NS,
        _ => false,
    }
}
