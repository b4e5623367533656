//! What a thread passes to each of its calls.

use super::event::count;
use super::timeout::Timeout;
use observer_ebpf::{
    ACCOUNT_HABITS_REPLACED, HABITS, Habit, History, TIMEOUT_FINITE, TIMEOUT_INFINITE, TIMEOUT_ZERO, ThreadState,
};

/// One event a thread and call in so many units of 2^20 ns: 100 ms.
const BAD_TICKS: u32 = 96;

/// The slot of a call; taken over from another call if the thread uses too many.
#[inline(always)]
pub(crate) fn slot(thread: *mut ThreadState, nr: u32) -> *mut Habit {
    let mut at = 0;
    while at < HABITS {
        // SAFETY: in bounds of a live map value.
        let habit = unsafe { (&raw mut (*thread).habits).cast::<Habit>().add(at) };
        // SAFETY: a field of a live map value that only this thread writes.
        let call = unsafe { (*habit).call };
        if call == nr + 1 {
            return habit;
        }
        if call == 0 {
            // SAFETY: as above.
            unsafe { (*habit).call = nr + 1 };
            return habit;
        }
        at += 1;
    }
    count(ACCOUNT_HABITS_REPLACED);
    // SAFETY: a field of a live map value that only this thread writes.
    let at = unsafe { core::ptr::read_volatile(&raw const (*thread).next) } as usize & (HABITS - 1);
    // SAFETY: as above; in bounds by the mask.
    unsafe {
        (*thread).next = (at + 1) as u32;
        let habit = (&raw mut (*thread).habits).cast::<Habit>().add(at);
        *habit = Habit { longest_ns: 0, zero: 0, finite: 0, infinite: 0, other: 0, call: nr + 1, bad_tick: 0 };
        habit
    }
}

/// Adds this call to what was passed before it.
///
/// # Safety
///
/// `habit` points into a live map value that only this thread writes.
#[inline(always)]
pub(crate) unsafe fn learn(habit: *mut Habit, timeout: &Timeout) {
    // SAFETY: the caller's promise. The counters stay at their end rather than begin again.
    unsafe {
        let counter = match timeout.kind {
            TIMEOUT_ZERO => &mut (*habit).zero,
            TIMEOUT_FINITE => {
                if timeout.ns as u64 > (*habit).longest_ns {
                    (*habit).longest_ns = timeout.ns as u64;
                }
                &mut (*habit).finite
            }
            TIMEOUT_INFINITE => &mut (*habit).infinite,
            _ => &mut (*habit).other,
        };
        *counter = counter.saturating_add(1);
    }
}

/// What was passed so far.
///
/// # Safety
///
/// As for [`learn`].
#[inline(always)]
pub(crate) unsafe fn history(habit: *const Habit) -> History {
    // SAFETY: the caller's promise.
    unsafe {
        History {
            zero: u64::from((*habit).zero),
            finite: u64::from((*habit).finite),
            infinite: u64::from((*habit).infinite),
            other: u64::from((*habit).other),
            longest_ns: (*habit).longest_ns,
        }
    }
}

/// Whether a bad timeout of this call may be sent now: the last one is long enough ago.
///
/// # Safety
///
/// As for [`learn`].
#[inline(always)]
pub(crate) unsafe fn may_send(habit: *mut Habit, now_ns: u64) -> bool {
    let tick = (now_ns >> 20) as u32 | 1;
    // SAFETY: the caller's promise.
    unsafe {
        let last = (*habit).bad_tick;
        if last != 0 && tick.wrapping_sub(last) < BAD_TICKS {
            return false;
        }
        (*habit).bad_tick = tick;
    }
    true
}
