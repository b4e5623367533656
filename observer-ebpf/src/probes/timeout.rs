//! Timeouts as passed, sorted by kind.

use crate::kernel::user;
use crate::maps::REALTIME;
use crate::probes::event::count;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use observer_ebpf::{
    ABSURD_NS, ACCOUNT_UNREADABLE, TIMEOUT_ABSURD, TIMEOUT_FINITE, TIMEOUT_INFINITE, TIMEOUT_INVALID, TIMEOUT_NEGATIVE,
    TIMEOUT_NONE, TIMEOUT_UNKNOWN, TIMEOUT_ZERO,
};

const NS_PER_MS: i64 = 1_000_000;
const NS_PER_S: i64 = 1_000_000_000;
/// Seconds beyond this saturate: 9.2e9 s of nanoseconds no longer fit.
const MAX_SECONDS: i64 = 9_000_000_000;

/// A timeout, decoded.
#[derive(Clone, Copy)]
pub(crate) struct Timeout {
    /// `TIMEOUT_*`.
    pub(crate) kind: u32,
    /// Milliseconds, or seconds of the timespec.
    pub(crate) raw: i64,
    /// Relative nanoseconds.
    pub(crate) ns: i64,
}

/// From when a timespec counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// From now.
    Now,
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// `CLOCK_REALTIME`; converted with the offset of the last census.
    Realtime,
}

impl Timeout {
    /// The call takes none.
    pub(crate) const NONE: Self = Self { kind: TIMEOUT_NONE, raw: 0, ns: 0 };

    /// Milliseconds of `poll` and `epoll_wait`: an `int` in the low half of the register.
    #[inline(always)]
    pub(crate) fn milliseconds(register: u64) -> Self {
        let raw = i64::from(register as i32);
        let ns = raw * NS_PER_MS;
        // How event loops that clamp to an `int` write "for ever": absurd by the number, and no mistake.
        let kind = if raw == -1 || raw == i64::from(i32::MAX) {
            TIMEOUT_INFINITE
        } else if raw < 0 {
            TIMEOUT_NEGATIVE
        } else {
            Self::kind_of(ns)
        };
        Self { kind, raw, ns }
    }

    /// A `struct timespec *`.
    #[inline(always)]
    pub(crate) fn timespec(address: u64, from: From) -> Self {
        Self::decode(address, from, true)
    }

    /// A `struct timeval *`, whose microseconds the kernel carries over into seconds.
    #[inline(always)]
    pub(crate) fn timeval(address: u64) -> Self {
        Self::decode(address, From::Now, false)
    }

    #[inline(always)]
    fn decode(address: u64, from: From, nanoseconds: bool) -> Self {
        if address == 0 {
            return Self { kind: TIMEOUT_INFINITE, raw: 0, ns: 0 };
        }
        let Some([seconds, fraction]) = user::<[i64; 2]>(address) else {
            count(ACCOUNT_UNREADABLE);
            return Self { kind: TIMEOUT_UNKNOWN, raw: 0, ns: 0 };
        };
        if seconds < 0 {
            return Self { kind: TIMEOUT_NEGATIVE, raw: seconds, ns: 0 };
        }
        if fraction < 0 || (nanoseconds && fraction >= NS_PER_S) {
            return Self { kind: TIMEOUT_INVALID, raw: seconds, ns: 0 };
        }
        if seconds > MAX_SECONDS || fraction > MAX_SECONDS {
            return Self { kind: TIMEOUT_ABSURD, raw: seconds, ns: i64::MAX };
        }
        let mut ns = seconds * NS_PER_S + if nanoseconds { fraction } else { fraction * 1000 };
        if from != From::Now {
            // SAFETY: the helper has no preconditions.
            ns -= unsafe { bpf_ktime_get_ns() } as i64;
            if from == From::Realtime {
                ns -= REALTIME.get(0).copied().unwrap_or(0);
            }
            if ns < 0 {
                ns = 0;
            }
        }
        Self { kind: Self::kind_of(ns), raw: seconds, ns }
    }

    #[inline(always)]
    fn kind_of(ns: i64) -> u32 {
        if ns == 0 {
            TIMEOUT_ZERO
        } else if ns as u64 > ABSURD_NS {
            TIMEOUT_ABSURD
        } else {
            TIMEOUT_FINITE
        }
    }
}
