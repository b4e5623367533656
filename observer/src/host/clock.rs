//! The kernel's clocks.

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The clocks at one census.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub mono_ns: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since 1970.
    pub real_ns: u64,
}

fn nanoseconds(clock: ClockId) -> u64 {
    match clock_gettime(clock) {
        Ok(time) => (time.tv_sec().max(0) as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec() as u64),
        // Only an unknown clock fails, and these exist since Linux 2.6.39.
        Err(_) => 0,
    }
}

/// `CLOCK_MONOTONIC`, nanoseconds.
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// CPU time of the calling thread, nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// `CLOCK_BOOTTIME`, nanoseconds.
pub fn boot_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_BOOTTIME)
}

/// `CLOCK_REALTIME`, nanoseconds since 1970.
pub fn real_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

/// All three, read one after the other.
pub fn now() -> Clocks {
    Clocks { mono_ns: monotonic_ns(), boot_ns: boot_ns(), real_ns: real_ns() }
}

/// A length of time in nanoseconds; 584 years at most.
pub fn whole_ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// `CLOCK_REALTIME - CLOCK_MONOTONIC`, nanoseconds; right until somebody sets the clock.
pub fn realtime_offset_ns() -> i64 {
    real_ns() as i64 - monotonic_ns() as i64
}
