//! What a thread passes to each of its calls.

use super::event::count;
use super::timeout::Timeout;
use crate::kernel::setting;
use crate::maps::SAMPLE;
use observer_ebpf::{
    ACCOUNT_HABITS_REPLACED, ARGS, GAP_MASK, HABITS, Habit, History, REPLACED, TIMEOUT_FINITE, TIMEOUT_INFINITE,
    TIMEOUT_ZERO, ThreadState,
};

/// The system call, without what else stands in [`Habit::call`].
const CALL_MASK: u32 = 0xffff;

/// One event a thread and call in so many units of 2^20 ns: 100 ms.
const BAD_TICKS: u32 = 96;

/// The slot of a call; taken over from another call if the thread uses too many.
///
/// Where calls were missed since it was last added to (the family's probes were off), what had a limit is forgotten. What had
/// none stays known: that one is enough to make a wait without a limit no change.
#[inline(always)]
pub(crate) fn slot(thread: *mut ThreadState, nr: u32, family: u32) -> *mut Habit {
    let mut at = 0;
    let mut found = HABITS as u32;
    while at < HABITS {
        // SAFETY: in bounds of a live map value, and a field that only this thread writes.
        let call = unsafe { (*(&raw const (*thread).habits).cast::<Habit>().add(at)).call };
        if call & CALL_MASK == nr + 1 || call == 0 {
            found = at as u32;
            break;
        }
        at += 1;
    }
    // SAFETY: fields of a live map value that only this thread writes. Through memory, as `Decoded` says.
    let at = unsafe {
        if found == HABITS as u32 {
            count(ACCOUNT_HABITS_REPLACED);
            found = (*thread).next;
            (*thread).next = found.wrapping_add(1);
        }
        (&raw mut (*thread).decoded.slot).write_volatile(found);
        (&raw const (*thread).decoded.slot).read_volatile() as usize & (HABITS - 1)
    };
    // SAFETY: in bounds by the mask.
    let habit = unsafe { (&raw mut (*thread).habits).cast::<Habit>().add(at) };
    let gap = match SAMPLE.get(family) {
        Some(word) => *word & GAP_MASK,
        None => 0,
    };
    // SAFETY: a live map value that only this thread writes.
    unsafe {
        let was = (*habit).call;
        if was & CALL_MASK != nr + 1 {
            let call = nr + 1 | gap | if was == 0 { 0 } else { REPLACED };
            *habit =
                Habit { longest_ns: 0, zero: 0, finite: 0, infinite: 0, other: 0, call, bad_tick: 0, place: 0, run: 0 };
        } else if was & GAP_MASK != gap {
            (*habit).call = was & !GAP_MASK | gap;
            (*habit).zero = 0;
            (*habit).finite = 0;
            (*habit).longest_ns = 0;
            (*habit).run = 0;
        }
    }
    habit
}

/// Whether all that was passed to this call since the probes saw its thread first is known, gaps aside.
///
/// # Safety
///
/// As for [`learn`].
#[inline(always)]
pub(crate) unsafe fn is_whole(habit: *const Habit) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*habit).call & REPLACED == 0 }
}

/// Where a thread makes a call: other functions of it, such as those of a resolver, have their sets of descriptors elsewhere.
#[inline(always)]
pub(crate) fn place(args: &[u64; ARGS]) -> u32 {
    args[0] as u32 ^ args[1] as u32
}

/// Whether the last calls at this place had a limit, and were enough to be a habit.
///
/// # Safety
///
/// As for [`learn`].
#[inline(always)]
pub(crate) unsafe fn is_formed(habit: *const Habit, place: u32) -> bool {
    let after = setting!(habit_after);
    // SAFETY: the caller's promise.
    unsafe { (*habit).place == place && (*habit).run >= after }
}

/// Adds this call to what was passed before it.
///
/// # Safety
///
/// `habit` points into a live map value that only this thread writes.
#[inline(always)]
pub(crate) unsafe fn learn(habit: *mut Habit, timeout: &Timeout, place: u32) {
    // SAFETY: the caller's promise. The counters stay at their end rather than begin again.
    unsafe {
        if timeout.kind == TIMEOUT_ZERO || timeout.kind == TIMEOUT_FINITE {
            if (*habit).place != place {
                (*habit).run = 0;
                (*habit).place = place;
            }
            (*habit).run = (*habit).run.saturating_add(1);
        }
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
