//! `futex futex_wait futex_waitv`: the waiting operations. Of wake-ups (also `futex_wake futex_requeue`) only those
//! that woke somebody are looked at, when they return, and only for the wake history.

use super::rungs::hooks;
use super::timeout::{From, Timeout};
use crate::kernel::user;
use observer_ebpf::ARGS;

const FUTEX: u32 = 202;
const FUTEX_WAITV: u32 = 449;
const FUTEX_WAKE: u32 = 454;
const FUTEX_WAIT: u32 = 455;
const FUTEX_REQUEUE: u32 = 456;

const OP_MASK: u32 = 0x7f;
const OP_CLOCK_REALTIME: u32 = 0x100;
const OP_WAIT: u32 = 0;
const OP_WAKE: u32 = 1;
const OP_REQUEUE: u32 = 3;
const OP_CMP_REQUEUE: u32 = 4;
const OP_WAKE_OP: u32 = 5;
const OP_LOCK_PI: u32 = 6;
const OP_UNLOCK_PI: u32 = 7;
const OP_WAIT_BITSET: u32 = 9;
const OP_WAKE_BITSET: u32 = 10;
const OP_WAIT_REQUEUE_PI: u32 = 11;
const OP_CMP_REQUEUE_PI: u32 = 12;
const OP_LOCK_PI2: u32 = 13;

/// Whether `nr` belongs to this family.
#[inline(always)]
pub(crate) fn has(nr: u32) -> bool {
    matches!(nr, FUTEX | FUTEX_WAITV | FUTEX_WAIT | FUTEX_WAKE | FUTEX_REQUEUE)
}

/// Whether the call waits, given its second argument.
#[inline(always)]
pub(crate) fn waits(nr: u32, op: u64) -> bool {
    match nr {
        FUTEX => {
            matches!(op as u32 & OP_MASK, OP_WAIT | OP_LOCK_PI | OP_WAIT_BITSET | OP_WAIT_REQUEUE_PI | OP_LOCK_PI2)
        }
        FUTEX_WAITV | FUTEX_WAIT => true,
        _ => false,
    }
}

/// Whether the call that returned `ret` woke somebody, given its second argument. Those that requeue return how many
/// they woke or moved; `FUTEX_UNLOCK_PI` returns zero, and is called only if somebody waits.
#[inline(always)]
pub(crate) fn woke(nr: u32, op: u64, ret: i64) -> bool {
    match nr {
        FUTEX => match op as u32 & OP_MASK {
            OP_WAKE | OP_WAKE_BITSET | OP_WAKE_OP | OP_REQUEUE | OP_CMP_REQUEUE | OP_CMP_REQUEUE_PI => ret > 0,
            OP_UNLOCK_PI => ret == 0,
            _ => false,
        },
        FUTEX_WAKE | FUTEX_REQUEUE => ret > 0,
        _ => false,
    }
}

/// The word that a call of this family is about, given its first argument: `futex_requeue` and `futex_waitv` are
/// given a list of `struct futex_waitv` (value, address, flags), and the first of it is taken.
#[inline(always)]
pub(crate) fn word(nr: u32, first: u64) -> Option<u64> {
    if nr == FUTEX_REQUEUE || nr == FUTEX_WAITV { user::<u64>(first + 8) } else { Some(first) }
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
hooks!(fentry_futex_wake, fexit_futex_wake, FUTEX_WAKE);
hooks!(fentry_futex_requeue, fexit_futex_requeue, FUTEX_REQUEUE);
