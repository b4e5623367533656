//! The wait graph: who waits for whom, and where that ends. Only confirmed waits make edges: a thread
//! that slept from one census to the next cannot have let go of anything in between.

use super::file_lock;
use super::host::Host;
use super::wait::{Class, Confidence, Owner, Resource, ResourceKind, Wait};
use crate::census::{Pid, ThreadRow};
use std::collections::BTreeSet;

/// Chains longer than this are cut; no sane program has them.
const MAX_HOPS: usize = 1024;

/// One step: a waiter, the thing, and who holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Hop {
    /// The waiting thread.
    pub waiter: Pid,
    /// What it waits for.
    pub resource: Resource,
    /// Who holds it; `None` when that cannot be known.
    pub owner: Option<Owner>,
    /// How sure the edge is.
    pub confidence: Confidence,
    /// How it was learnt.
    pub how: &'static str,
}

/// Where a chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It runs back into itself, at the hop with this index.
    Cycle(usize),
    /// At a thread that waits for no other thread.
    Root(Pid),
    /// At an owner that does not exist in this process.
    Abandoned(Owner),
    /// At a lock whose owner cannot be known.
    Unknown,
}

/// A waiter followed to the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// The steps, the first waiter's first.
    pub hops: Vec<Hop>,
    /// Where it ends.
    pub end: End,
}

impl Chain {
    /// The weakest edge's confidence.
    pub fn confidence(&self) -> Confidence {
        self.hops.iter().map(|hop| hop.confidence).min().unwrap_or(Confidence::Possible)
    }
}

/// The edge out of a thread, if its confirmed wait makes one.
pub fn edge(host: &Host, tid: Pid) -> Option<Hop> {
    let (row, wait) = host.confirmed_wait(tid)?;
    if file_lock::kind(wait).is_some() {
        let resource = wait.resource.clone()?;
        let holder = wait.file_lock.as_ref().and_then(|lock| host.file_holder(lock));
        let (owner, confidence, how) = match holder {
            Some((holder, confidence, how)) => (Some(Owner::Thread(holder)), confidence, how),
            None => (None, Confidence::Possible, "the kernel names no living holder"),
        };
        return Some(Hop { waiter: tid, resource, owner, confidence, how });
    }
    if let Some(word) = &wait.owner {
        let owner = host.owner_of(wait, row)?;
        let confidence = if word.proven { Confidence::Certain } else { Confidence::Likely };
        let resource = wait.resource.clone()?;
        return Some(Hop { waiter: tid, resource, owner: Some(owner), confidence, how: word.how });
    }
    if let Some(child) = awaited_child(host, row, wait) {
        return Some(Hop {
            waiter: tid,
            resource: Resource { address: None, ..wait.resource.clone().unwrap_or(Resource::of(ResourceKind::Child)) },
            owner: Some(Owner::Thread(child)),
            // Another thread of the child may still end it.
            confidence: Confidence::Likely,
            how: "parent waits for its child",
        });
    }
    if wait.class == Class::Lock {
        let resource = wait.resource.clone()?;
        let how = "the lock does not say who holds it";
        return Some(Hop { waiter: tid, resource, owner: None, confidence: Confidence::Possible, how });
    }
    None
}

/// The one child a thread waits for: named in the call, the child of its vfork, or its only child.
/// Answers with the child's main thread.
pub fn awaited_child(host: &Host, row: &ThreadRow, wait: &Wait) -> Option<Pid> {
    let is_wait = matches!(wait.syscall, "wait4" | "waitpid" | "waitid");
    let is_vfork = row.state_letter() == 'D' && matches!(wait.syscall, "vfork" | "clone" | "clone3");
    if !is_wait && !is_vfork {
        return None;
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
        Some(own) => children.find(|child| child_id_in_namespace_of(row, child) == own).map(|r| r.tid),
        None if is_vfork => {
            // The child of a vfork is the one that has not executed anything yet: it is the youngest.
            children.max_by_key(|r| r.start_ns).map(|r| r.tid)
        }
        None => {
            let first = children.next()?;
            children.next().is_none().then_some(first.tid)
        }
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

/// Whether a hop is a wait for a file lock.
pub fn is_file_lock(host: &Host, hop: &Hop) -> bool {
    host.confirmed_wait(hop.waiter).is_some_and(|(_, wait)| file_lock::kind(wait).is_some())
}

/// Follows a waiter to the end of its chain. `None` if it waits for nobody.
pub fn chain(host: &Host, tid: Pid) -> Option<Chain> {
    let mut hops = vec![edge(host, tid)?];
    let mut seen = BTreeSet::from([tid]);
    let end = loop {
        let owner = hops.last().and_then(|hop| hop.owner);
        let next = match owner {
            None => break End::Unknown,
            Some(Owner::Thread(next)) => next,
            Some(gone) => break End::Abandoned(gone),
        };
        if !seen.insert(next) {
            break hops.iter().position(|hop| hop.waiter == next).map_or(End::Unknown, End::Cycle);
        }
        // A holder that waits for a lock nobody can be named for is as far as it goes: it is the one to look at.
        let onward = edge(host, next).filter(|hop| hop.owner.is_some() || !is_by_frames(host, next));
        match onward.filter(|_| hops.len() < MAX_HOPS) {
            Some(hop) => hops.push(hop),
            None => break End::Root(next),
        }
    };
    Some(Chain { hops, end })
}

/// How an edge was inferred from references.
pub const BY_REFERENCE: &str = "sleeps with most references to the lock in its live frames";

/// How an edge to the thread was inferred that does what others wait to have been done once.
pub const BY_RUNNING: &str = "runs the initialiser, with a reference to it in live frames";

/// Circles that close only by way of locks that name no owner: each of their waiters has a known owner, or the holder is
/// inferred from references to the lock.
pub fn circles_by_reference(host: &Host) -> Vec<Vec<Hop>> {
    let mut seen: BTreeSet<BTreeSet<Pid>> = BTreeSet::new();
    let starts = host.confirmed().filter(|(_, wait)| wait.by_frames).map(|(row, _)| row.tid);
    let circles = starts.filter_map(|start| circle_from(host, start));
    circles.filter(|circle| seen.insert(circle.iter().map(|hop| hop.waiter).collect())).collect()
}

/// Follows a thread until it is met again; `None` if the way ends, or leads into a circle that it is not in.
fn circle_from(host: &Host, start: Pid) -> Option<Vec<Hop>> {
    let mut hops = Vec::new();
    let mut seen = BTreeSet::new();
    let mut at = start;
    while seen.insert(at) && hops.len() < MAX_HOPS {
        let hop = edge_by_reference(host, at)?;
        let Some(Owner::Thread(next)) = hop.owner else { return None };
        hops.push(hop);
        if next == start {
            return Some(hops);
        }
        at = next;
    }
    None
}

/// The edge out of a thread: to its known owner, or to the one who probably is.
fn edge_by_reference(host: &Host, tid: Pid) -> Option<Hop> {
    let hop = edge(host, tid)?;
    if hop.owner.is_some() {
        return Some(hop);
    }
    let found = host.holder_by_reference(tid)?;
    let confidence = if found.stands_out { Confidence::Likely } else { Confidence::Possible };
    let how = if found.runs { BY_RUNNING } else { BY_REFERENCE };
    Some(Hop { owner: Some(Owner::Thread(found.holder)), confidence, how, ..hop })
}

/// Every chain of every confirmed waiter.
pub fn chains(host: &Host) -> Vec<Chain> {
    host.confirmed().filter_map(|(row, _)| chain(host, row.tid)).collect()
}
