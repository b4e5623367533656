//! Futex waits of musl (1.2.3, x86-64): the mutexes that keep an owner, and `pthread_join`.
//!
//! A mutex is `_m_type` at 0, `_m_lock` (the futex word) at 4, `_m_waiters` at 8. Types other than normal keep the owner's
//! TID in the word; the normal one keeps `EBUSY` there, which says nobody's name (`src/thread/pthread_mutex_trylock.c`).

use super::futex::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS, Found, Word};
use crate::model::wait::{Class, OwnerScope, OwnerWord, Resource, ResourceKind};

/// `_m_type`: recursive 1, error-checking 2, robust 4, priority inheritance 8, process-shared 128.
const TYPE_OWNED: u32 = 0xf;
const TYPE_ROBUST: u32 = 4;
const TYPE_SHARED: u32 = 128;
/// The word of a normal mutex that is held.
const BUSY: u32 = 16;

/// Where the mutex begins, counted from its futex word.
pub(super) const MUTEX: i64 = -4;
/// `struct pthread`: `self` at 0, `tid` at 48, `detach_state` (the futex word) at 56.
const THREAD: i64 = -56;
const TID: i64 = -8;
/// `DT_EXITING` and `DT_JOINABLE`.
const JOINABLE: std::ops::RangeInclusive<u32> = 1..=2;

/// `FUTEX_WAIT` of musl.
pub(super) fn wait(word: &Word<'_>) -> Option<Found> {
    mutex(word).or_else(|| join(word))
}

fn mutex(word: &Word<'_>) -> Option<Found> {
    let kind = word.at(MUTEX)?;
    let fits = kind & !(TYPE_OWNED | TYPE_SHARED) == 0 && (kind & TYPE_SHARED == 0) == word.private;
    // The waiter itself is counted.
    let waiters = word.at(4)?;
    if !fits || word.value & FUTEX_WAITERS == 0 || !(1..1 << 20).contains(&waiters) {
        return None;
    }
    let now = word.at(0)?;
    let resource = Resource::at(ResourceKind::Mutex, word.uaddr.checked_add_signed(MUTEX)?).detailed(kind_name(kind));
    if kind & TYPE_OWNED == 0 {
        // Sixteen readers of a rwlock would look the same, but for the unused word behind the waiters.
        let is_held = word.value & !FUTEX_WAITERS == BUSY && now & !FUTEX_WAITERS == BUSY;
        return (is_held && word.at(8)? == 0).then_some((Class::Lock, resource, None));
    }
    let tid = now & FUTEX_TID_MASK;
    let is_held = tid != 0 && tid != FUTEX_TID_MASK && now & FUTEX_OWNER_DIED == 0;
    let owner = OwnerWord {
        own_tid: tid,
        scope: if kind & TYPE_SHARED != 0 { OwnerScope::Namespace } else { OwnerScope::Process },
        how: "musl mutex owner",
        proven: true,
    };
    // On its way from one owner to the next it has none: no claim is made then.
    is_held.then_some((Class::Lock, resource, Some(owner)))
}

/// `pthread_join`: on the state of a thread that can be joined; the record begins with its own address.
fn join(word: &Word<'_>) -> Option<Found> {
    let thread = word.uaddr.checked_add_signed(THREAD)?;
    if !word.private || !JOINABLE.contains(&word.value) || word.u64_at(THREAD)? != thread {
        return None;
    }
    let tid = word.at(TID)?;
    if tid == 0 || tid > FUTEX_TID_MASK {
        return None;
    }
    let resource = Resource::at(ResourceKind::Thread, word.uaddr).detailed(tid.to_string());
    let owner = OwnerWord {
        own_tid: tid,
        scope: OwnerScope::Process,
        how: "thread awaited by pthread_join",
        // The id is cleared when the thread has ended, and its waiter woken thereafter.
        proven: true,
    };
    Some((Class::Condition, resource, Some(owner)))
}

fn kind_name(kind: u32) -> String {
    let base = match kind & 3 {
        1 => "recursive",
        2 => "error-checking",
        _ => "normal",
    };
    let robust = if kind & TYPE_ROBUST != 0 { ", robust" } else { "" };
    let shared = if kind & TYPE_SHARED != 0 { ", process-shared" } else { "" };
    format!("({base}{robust}{shared})")
}
