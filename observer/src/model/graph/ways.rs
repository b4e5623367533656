//! Who can end the wait of a thread.

use super::{BY_REFERENCE, BY_RUNNING, Hop, Nature, far_end};
use crate::census::{Pid, ThreadRow};
use crate::model::decode::{Call, FUTEX_PRIVATE, Memory};
use crate::model::file_lock;
use crate::model::frames::Rest;
use crate::model::host::Host;
use crate::model::wait::{Class, Confidence, Owner, Resource, ResourceKind, Wait};
use crate::model::word;
use std::collections::BTreeMap;

/// Threads of a process that are gone through to see whether anybody is left who could release a lock.
const MOST_LEFT: usize = 256;

/// The ways out of one wait.
#[derive(Debug)]
pub(super) struct Way {
    /// The one that is shown.
    pub(super) hop: Hop,
    /// Threads any of which can end the wait; empty if they are not all known, or it can end otherwise.
    pub(super) by: Vec<Pid>,
    /// That nobody has ended it for so long speaks against threads at rest: they are not the ones who would.
    pub(super) spares_idle: bool,
    /// When the ways were looked for (`CLOCK_MONOTONIC`, nanoseconds); `None` if they do not change while these threads sleep.
    pub(super) as_of_ns: Option<u64>,
}

impl Way {
    /// Whether the hop is worth following: a lock without a known owner is, one of several writers is not.
    pub(super) fn is_shown(&self) -> bool {
        self.hop.owner.is_some() || self.hop.is_lock()
    }

    /// The only way: through this hop.
    fn only(hop: Hop) -> Self {
        let by = match hop.owner {
            Some(Owner::Thread(owner)) => vec![owner],
            _ => Vec::new(),
        };
        Self { hop, by, spares_idle: false, as_of_ns: None }
    }
}

/// The ways out of every confirmed wait.
pub(super) fn all(host: &Host) -> BTreeMap<Pid, Way> {
    host.confirmed().filter_map(|(row, wait)| Some((row.tid, way(host, row, wait)?))).collect()
}

fn way(host: &Host, row: &ThreadRow, wait: &Wait) -> Option<Way> {
    let tid = row.tid;
    if file_lock::kind(wait).is_some() {
        let resource = wait.resource.clone()?;
        let holder = wait.file_lock.as_ref().and_then(|lock| host.file_holder(lock));
        let (owner, confidence, how) = match holder {
            Some((holder, confidence, how)) => (Some(Owner::Thread(holder)), confidence, how),
            None => (None, Confidence::Possible, "the kernel names no living holder"),
        };
        return Some(Way::only(Hop { waiter: tid, resource, owner, nature: Nature::FileLock, confidence, how }));
    }
    if let Some(word) = &wait.owner {
        let owner = Some(host.owner_of(wait, row)?);
        let confidence = if word.proven { Confidence::Certain } else { Confidence::Likely };
        let resource = wait.resource.clone()?;
        let nature = if resource.kind == ResourceKind::Thread { Nature::Exit } else { Nature::Lock };
        return Some(Way::only(Hop { waiter: tid, resource, owner, nature, confidence, how: word.how }));
    }
    if let Some(way) = children(host, row, wait) {
        return Some(way);
    }
    if wait.class == Class::Lock {
        let resource = wait.resource.clone()?;
        let how = "the lock does not say who holds it";
        let confidence = Confidence::Possible;
        let hop = Hop { waiter: tid, resource, owner: None, nature: Nature::Lock, confidence, how };
        let by = by_reference(host, tid);
        return Some(Way { by: if by.is_empty() { left(host, row, wait) } else { by }, ..Way::only(hop) });
    }
    far_end::way(host, row, wait)
}

/// The one who probably has a lock that names no owner.
fn by_reference(host: &Host, tid: Pid) -> Vec<Pid> {
    host.holder_by_reference(tid).map(|found| found.holder).into_iter().collect()
}

/// Who is left to release a lock that names no owner, where nobody is seen to have it: any other thread of the process, no other
/// process, since the lock is private; the waiter itself, if it is alone. Nobody is named as soon as one of them does not wait.
fn left(host: &Host, row: &ThreadRow, wait: &Wait) -> Vec<Pid> {
    // The newer calls have their flags elsewhere.
    let has_operation = |name| matches!(name, "futex" | "futex_time64");
    let is_futex = row.syscall.is_some_and(|call| has_operation(Call::lookup(call.number, row.compat).name));
    let is_private = is_futex && wait.args[1] & FUTEX_PRIVATE != 0;
    // Bytes alone may look like a lock.
    let is_seen = wait.reading.as_ref().is_some_and(|reading| reading.rest == Rest::Lock);
    // A lock that is free is no lock that somebody has: a wake-up was lost.
    let has_changed = host.suspects.get(&row.tid).is_some_and(|known| word::differs(row, Memory(&known.facts.memory)));
    if !(is_private && is_seen && wait.timeout.is_unbounded()) || has_changed {
        return Vec::new();
    }
    let mut left = Vec::new();
    for other in host.threads_of(row.process.pid).filter(|other| other.tid != row.tid && !other.is_exiting()) {
        if left.len() == MOST_LEFT || host.confirmed_wait(other.tid).is_none() {
            return Vec::new();
        }
        left.push(other.tid);
    }
    if left.is_empty() {
        left.push(row.tid);
    }
    left
}

/// The edge to the one who probably has a lock that names no owner.
pub(super) fn sharpened_by_reference(host: &Host, hop: Hop) -> Hop {
    let Some(found) = host.holder_by_reference(hop.waiter).filter(|_| hop.owner.is_none() && hop.is_lock()) else {
        return hop;
    };
    let confidence = if found.stands_out { Confidence::Likely } else { Confidence::Possible };
    let how = if found.runs { BY_RUNNING } else { BY_REFERENCE };
    Hop { owner: Some(Owner::Thread(found.holder)), confidence, how, ..hop }
}

/// Of a parent that waits for a child: the one it waits for, or any of several.
fn children(host: &Host, row: &ThreadRow, wait: &Wait) -> Option<Way> {
    let awaited = awaited_children(host, row, wait);
    let resource = || Resource { address: None, ..wait.resource.clone().unwrap_or(Resource::of(ResourceKind::Child)) };
    let hop = Hop {
        waiter: row.tid,
        resource: resource(),
        owner: None,
        nature: Nature::Child,
        // Another thread of the child may still end it.
        confidence: Confidence::Likely,
        how: if wait.process.is_some() {
            "waits on a descriptor of that process (pidfd)"
        } else {
            "parent waits for its child"
        },
    };
    match awaited.as_slice() {
        [] => None,
        [only] => Some(Way::only(Hop { owner: Some(Owner::Thread(*only)), ..hop })),
        _ => Some(Way { by: awaited, ..Way::only(hop) }),
    }
}

/// The one child a thread waits for: named in the call, the child of its vfork, or its only child.
/// Answers with the child's main thread.
pub fn awaited_child(host: &Host, row: &ThreadRow, wait: &Wait) -> Option<Pid> {
    match awaited_children(host, row, wait).as_slice() {
        [only] => Some(*only),
        _ => None,
    }
}

/// The children any of which a thread waits for, by their main threads.
fn awaited_children(host: &Host, row: &ThreadRow, wait: &Wait) -> Vec<Pid> {
    if let Some(pid) = wait.process {
        return host.row(pid).filter(|row| !row.is_exiting()).map(|row| row.tid).into_iter().collect();
    }
    let is_wait = matches!(wait.syscall, "wait4" | "waitpid" | "waitid");
    let is_vfork = row.state_letter() == 'D' && matches!(wait.syscall, "vfork" | "clone" | "clone3");
    if !is_wait && !is_vfork {
        return Vec::new();
    }
    let mut children =
        host.rows().iter().filter(|r| r.tid == r.process.pid && r.ppid == row.process.pid && !r.is_exiting());
    let named = match wait.syscall {
        "wait4" | "waitpid" if (wait.args[0] as i32) > 0 => Some(wait.args[0] as Pid),
        // P_PID
        "waitid" if wait.args[0] == 1 => Some(wait.args[1] as Pid),
        _ => None,
    };
    match named {
        Some(own) => {
            children.find(|child| child_id_in_namespace_of(row, child) == own).map(|r| r.tid).into_iter().collect()
        }
        // The child of a vfork is the one that has not executed anything yet: it is the youngest.
        None if is_vfork => children.max_by_key(|r| r.start_ns).map(|r| r.tid).into_iter().collect(),
        None => children.map(|r| r.tid).collect(),
    }
}

/// A child's process id as its parent knows it.
fn child_id_in_namespace_of(parent: &ThreadRow, child: &ThreadRow) -> Pid {
    if parent.pidns == child.pidns { child.own.1 } else { child.process.pid }
}

/// Whether only the frames say that a thread waits for a lock.
pub fn is_by_frames(host: &Host, waiter: Pid) -> bool {
    host.confirmed_wait(waiter).is_some_and(|(_, wait)| wait.by_frames)
}
