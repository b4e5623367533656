//! `futex futex_wait futex_waitv`: the waiting operations only. Nothing is done for a wake-up.

use super::syscall::hooks;
use super::timeout::{From, Timeout};
use observer_ebpf::ARGS;

const FUTEX: u32 = 202;
const FUTEX_WAITV: u32 = 449;
const FUTEX_WAIT: u32 = 455;

const OP_MASK: u32 = 0x7f;
const OP_CLOCK_REALTIME: u32 = 0x100;
const OP_WAIT: u32 = 0;
const OP_LOCK_PI: u32 = 6;
const OP_WAIT_BITSET: u32 = 9;
const OP_WAIT_REQUEUE_PI: u32 = 11;
const OP_LOCK_PI2: u32 = 13;

/// Whether `nr` belongs to this family.
#[inline(always)]
pub(crate) fn has(nr: u32) -> bool {
    matches!(nr, FUTEX | FUTEX_WAITV | FUTEX_WAIT)
}

/// Whether the call waits, given its second argument.
#[inline(always)]
pub(crate) fn waits(nr: u32, op: u64) -> bool {
    nr != FUTEX
        || matches!(op as u32 & OP_MASK, OP_WAIT | OP_LOCK_PI | OP_WAIT_BITSET | OP_WAIT_REQUEUE_PI | OP_LOCK_PI2)
}

/// The timeout of a waiting call of this family.
#[inline(always)]
pub(crate) fn timeout(nr: u32, args: &[u64; ARGS]) -> Timeout {
    let clock = |id: u64| {
        if id as u32 == 0 { From::Realtime } else { From::Monotonic }
    };
    match nr {
        FUTEX => {
            let op = args[1] as u32;
            let from = match op & OP_MASK {
                OP_WAIT => From::Now,
                OP_LOCK_PI => From::Realtime,
                _ if op & OP_CLOCK_REALTIME != 0 => From::Realtime,
                _ => From::Monotonic,
            };
            Timeout::timespec(args[3], from)
        }
        FUTEX_WAITV => Timeout::timespec(args[3], clock(args[4])),
        _ => Timeout::timespec(args[4], clock(args[5])),
    }
}

hooks!(fentry_futex, fexit_futex, FUTEX);
hooks!(fentry_futex_waitv, fexit_futex_waitv, FUTEX_WAITV);
hooks!(fentry_futex_wait, fexit_futex_wait, FUTEX_WAIT);
