//! The kernel lock that a thread in D state is blocked on, and who has it, where the kernel keeps both (6.16 with
//! `CONFIG_DETECT_HUNG_TASK_BLOCKER`).

use super::host::Host;
use super::wait::Confidence;
use crate::census::{Pid, ThreadRow};
use observer_ebpf::{BLOCKER_MUTEX, BLOCKER_SEMAPHORE, RWSEM_READER_OWNED};

/// A kernel lock that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// `mutex`, `semaphore`, `rwsem`.
    pub kind: &'static str,
    /// Its address.
    pub address: u64,
    /// Who has it, how sure that is, and how it was learnt.
    pub holder: Option<(Pid, Confidence, &'static str)>,
}

/// What the kernel says a thread is blocked on; `None` if it says nothing.
pub fn blocker(host: &Host, row: &ThreadRow) -> Option<Blocker> {
    if row.blocker == 0 {
        return None;
    }
    let is_read = row.blocker_flags & RWSEM_READER_OWNED != 0;
    let (kind, confidence, how) = match row.blocker & 3 {
        BLOCKER_MUTEX => ("mutex", Confidence::Certain, "owner in the kernel's mutex"),
        // Whoever took it last may have let go, or ended.
        BLOCKER_SEMAPHORE => ("semaphore", Confidence::Possible, "last holder of the kernel's semaphore"),
        _ if is_read => ("rwsem", Confidence::Possible, "last reader of the kernel's rwsem"),
        _ => ("rwsem", Confidence::Certain, "owner of the kernel's rwsem"),
    };
    let is_holder = |other: &&ThreadRow| other.initial.0 == row.blocker_tid && other.tid != row.tid;
    let holder = (row.blocker_tid != 0).then(|| host.rows().iter().find(is_holder)).flatten();
    let holder = holder.filter(|holder| !holder.is_exiting()).map(|holder| (holder.tid, confidence, how));
    Some(Blocker { kind, address: row.blocker & !3, holder })
}
