//! What several readings of one sleep tell of a lock's owner that a single one cannot.
//!
//! A waiter that sleeps proves nothing about its lock's owner: locks are passed on behind its back, and the
//! thread one reading names may have let go, and ended, before the next census.

use super::wait::{Owner, OwnerScope, OwnerWord, Wait};
use crate::census::{Pid, ThreadRow};

/// The owner that the readings of one unbroken sleep agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Its id in the lock.
    own_tid: Pid,
    /// It was named before and after a census in which no such thread could hold the lock.
    pub(super) gone: bool,
    /// Since when the waiter is first in the queue, behind this owner (`CLOCK_MONOTONIC`, nanoseconds). A release wakes
    /// the first in the queue, so there has been none since.
    pub(super) head_since_ns: Option<u64>,
}

impl Named {
    /// Another reading; `owner` is as the census before it knows it.
    pub(super) fn again(before: Option<&Self>, word: &OwnerWord, owner: Owner) -> Self {
        let before = before.filter(|before| before.own_tid == word.own_tid);
        Self {
            own_tid: word.own_tid,
            gone: before.is_some() && !matches!(owner, Owner::Thread(_)),
            head_since_ns: before.and_then(|before| before.head_since_ns),
        }
    }
}

/// The waiters of one lock: the process (0 where several share the lock), its PID namespace, the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Queue(Pid, u32, u64);

impl Queue {
    /// The queue a thread stands in, if its lock names an owner.
    pub(super) fn of(row: &ThreadRow, wait: &Wait) -> Option<Self> {
        let address = wait.resource.as_ref()?.address?;
        Some(match wait.owner.as_ref()?.scope {
            OwnerScope::Process => Self(row.process.pid, row.pidns, address),
            OwnerScope::Namespace => Self(0, row.pidns, address),
        })
    }
}
