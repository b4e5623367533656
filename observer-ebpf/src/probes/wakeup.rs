//! Who wakes whom through futexes.
//!
//! A wake-up is seen when its call returns, and only if it woke somebody. The thread it woke may return first: then the
//! word owes it a waker, and the waker pays when it returns.

use super::event::count;
use super::futex;
use crate::maps::{WOKEN, WORDS};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use observer_ebpf::{
    ACCOUNT_WAKES, ACCOUNT_WAKES_FULL, ACCOUNT_WOKEN_NEW, ACCOUNT_WORDS_NEW, Call, Wakes, WordKey, WordRecord,
};

/// A waker returns from its call at most this much later than the thread it woke, if it was this one: 10 ms.
const MOST_DEBT_NS: u64 = 10_000_000;

/// Nobody has woken anybody yet.
const NEVER: Wakes = Wakes { wakes: 0, last_ns: 0, lead: 0, last: 0, usual: 0 };
/// `BPF_NOEXIST`: what is there already stays.
const ONLY_NEW: u64 = 1;

/// One more wake-up by `tid`. Two at once may lose one: the vote does not depend on it.
#[inline(always)]
fn learn(wakes: *mut Wakes, tid: u32, now_ns: u64) {
    // SAFETY: fields of a live map value.
    unsafe {
        (*wakes).wakes += 1;
        (*wakes).last = tid;
        (*wakes).last_ns = now_ns;
        if (*wakes).usual == tid {
            (*wakes).lead += 1;
        } else if (*wakes).lead == 0 {
            (*wakes).usual = tid;
            (*wakes).lead = 1;
        } else {
            (*wakes).lead -= 1;
        }
    }
}

/// `id` was woken by `waker`.
#[inline(always)]
fn woken(id: u64, waker: u32, now_ns: u64) {
    if id as u32 == waker {
        return;
    }
    let wakes = match WOKEN.get_ptr_mut(id) {
        Some(wakes) => wakes,
        None => {
            if WOKEN.insert(id, NEVER, ONLY_NEW).is_ok() {
                count(ACCOUNT_WOKEN_NEW);
            }
            let Some(wakes) = WOKEN.get_ptr_mut(id) else {
                count(ACCOUNT_WAKES_FULL);
                return;
            };
            wakes
        }
    };
    learn(wakes, waker, now_ns);
}

/// The record of a word, made if there is none. The waker and the thread it woke may both come here first, at the same
/// time: neither replaces what the other has made.
#[inline(always)]
fn record(key: WordKey) -> Option<*mut WordRecord> {
    if let Some(word) = WORDS.get_ptr_mut(key) {
        return Some(word);
    }
    if WORDS.insert(key, WordRecord { wakes: NEVER, owed: 0, owed_ns: 0 }, ONLY_NEW).is_ok() {
        count(ACCOUNT_WORDS_NEW);
    }
    let word = WORDS.get_ptr_mut(key);
    if word.is_none() {
        count(ACCOUNT_WAKES_FULL);
    }
    word
}

/// A call that wakes returns, having woken somebody.
#[inline(never)]
pub(crate) fn woke(nr: u32, first: u64) {
    let id = bpf_get_current_pid_tgid();
    let Some(address) = futex::word(nr, first) else {
        return;
    };
    count(ACCOUNT_WAKES);
    let key = WordKey { address, tgid: (id >> 32) as u32, reserved: 0 };
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let Some(word) = record(key) else {
        return;
    };
    // SAFETY: fields of a live map value.
    let (owed, owed_ns) = unsafe {
        learn(&raw mut (*word).wakes, id as u32, now_ns);
        let owed = ((*word).owed, (*word).owed_ns);
        (*word).owed = 0;
        owed
    };
    if owed != 0 && now_ns.wrapping_sub(owed_ns) < MOST_DEBT_NS {
        woken(owed, id as u32, now_ns);
    }
}

/// A wait ends because somebody woke it.
#[inline(never)]
pub(crate) fn was_woken(call: &Call) {
    let id = bpf_get_current_pid_tgid();
    let Some(address) = futex::word(call.nr, call.args[0]) else {
        return;
    };
    let key = WordKey { address, tgid: (id >> 32) as u32, reserved: 0 };
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let Some(word) = record(key) else {
        return;
    };
    // SAFETY: fields of a live map value.
    let (last, last_ns) = unsafe { ((*word).wakes.last, (*word).wakes.last_ns) };
    if last_ns >= call.start_ns && last != id as u32 {
        woken(id, last, now_ns);
    } else {
        // SAFETY: as above.
        unsafe {
            (*word).owed = id;
            (*word).owed_ns = now_ns;
        }
    }
}
