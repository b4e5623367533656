//! The wait graph: who waits for whom, and where that ends. Only confirmed waits make edges: a thread
//! that slept from one census to the next cannot have let go of anything in between.
//!
//! [`ways`] finds, per thread, who can end its wait: the owner of a lock alone, or any of several who have the other end of
//! a pipe. [`knots`] finds sets of threads whose waits only their own members can end: deadlocks. A [`Chain`] is what is
//! shown: one way from a waiter to its root.

mod far_end;
mod knots;
mod ways;

pub use knots::Knot;
pub use ways::{awaited_child, is_by_frames};

use super::host::Host;
use super::wait::{Confidence, Owner, Resource};
use crate::census::Pid;
use std::collections::{BTreeMap, BTreeSet};

/// Chains longer than this are cut; no sane program has them.
const MAX_HOPS: usize = 1024;

/// How an edge was inferred from references.
pub const BY_REFERENCE: &str = "sleeps with most references to the lock in its live frames";

/// How an edge to the thread was inferred that does what others wait to have been done once.
pub const BY_RUNNING: &str = "runs the initialiser, with a reference to it in live frames";

/// How it is known that nobody can release a lock that names no owner; the owner of such an edge only stands for the others.
pub const NOBODY_LEFT: &str = "nobody in its process is left to release it";

/// What makes the one wait for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// It holds the lock.
    Lock,
    /// It, or its process, holds the file lock.
    FileLock,
    /// Its end is waited for (`pthread_join`).
    Exit,
    /// It is a child process whose end is waited for.
    Child,
    /// It has the other end of the pipe or socket.
    FarEnd,
    /// It traces it.
    Tracer,
    /// Nobody is meant: the call or the wait that a goroutine is in.
    Call,
}

impl Nature {
    /// The name used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lock | Self::FileLock => "holder",
            Self::Exit => "thread",
            Self::Child => "child",
            Self::FarEnd => "other_end",
            Self::Tracer => "tracer",
            Self::Call => "call",
        }
    }

    /// Between the thing waited for and the thread: `mutex 0x10 held by B`.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Lock | Self::FileLock => "held by",
            Self::Exit => "of",
            Self::Child => "which is",
            Self::FarEnd => "whose other end is held by",
            Self::Tracer => "which is",
            Self::Call => "in",
        }
    }
}

/// One step: a waiter, the thing, and who holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Hop {
    /// The waiting thread.
    pub waiter: Pid,
    /// What it waits for.
    pub resource: Resource,
    /// Who holds it; `None` when that cannot be known.
    pub owner: Option<Owner>,
    /// What that means.
    pub nature: Nature,
    /// How sure the edge is.
    pub confidence: Confidence,
    /// How it was learnt.
    pub how: &'static str,
}

impl Hop {
    /// It waits for a lock, of memory or on a file.
    pub fn is_lock(&self) -> bool {
        matches!(self.nature, Nature::Lock | Nature::FileLock)
    }
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

    /// The chain up to whoever holds its last lock: what comes behind, over pipes and sockets, is what that holder does. If the
    /// way over them leads to a lock nobody can be named for, they are left out altogether.
    pub fn up_to_last_lock(&self) -> Self {
        let from = match self.end {
            End::Cycle(_) | End::Abandoned(_) => return self.clone(),
            End::Root(_) => self.hops.iter().rposition(Hop::is_lock),
            End::Unknown => self.hops.iter().position(Hop::is_lock),
        };
        let Some(from) = from else { return self.clone() };
        let over = self.hops.iter().skip(from).position(|hop| hop.nature == Nature::FarEnd);
        match over.and_then(|over| self.hops.split_at_checked(from + over)) {
            Some((locks, [far, ..])) => Self { hops: locks.to_vec(), end: End::Root(far.waiter) },
            _ => self.clone(),
        }
    }
}

/// Who waits for whom on one host, at one moment.
#[derive(Debug, Default)]
pub struct Graph {
    hops: BTreeMap<Pid, Hop>,
    knots: Vec<Knot>,
}

impl Graph {
    /// The graph of a host as it is now.
    pub fn of(host: &Host) -> Self {
        let ways = ways::all(host);
        let knots = knots::find(host, &ways);
        let shown = ways.into_iter().filter(|(_, way)| way.is_shown()).map(|(tid, way)| (tid, way.hop));
        let mut hops: BTreeMap<Pid, Hop> = shown.collect();
        // Of several ways out of a knot's threads those are shown that stay in it.
        for hop in knots.iter().flat_map(Knot::hops) {
            hops.insert(hop.waiter, hop.clone());
        }
        Self { hops, knots }
    }

    /// The edge out of a thread, if its confirmed wait makes one.
    pub fn edge(&self, tid: Pid) -> Option<&Hop> {
        self.hops.get(&tid)
    }

    /// Sets of threads that only wait for each other.
    pub fn knots(&self) -> &[Knot] {
        &self.knots
    }

    /// Every chain of every confirmed waiter.
    pub fn chains(&self, host: &Host) -> Vec<Chain> {
        self.hops.keys().filter_map(|tid| self.chain(host, *tid)).collect()
    }

    /// Follows a waiter to the end of its chain. `None` if it waits for nobody.
    pub fn chain(&self, host: &Host, tid: Pid) -> Option<Chain> {
        let mut hops = vec![self.edge(tid)?.clone()];
        let mut seen = BTreeSet::from([tid]);
        let end = loop {
            let owner = hops.last().and_then(|hop| hop.owner);
            let next = match owner {
                None => break End::Unknown,
                Some(Owner::Thread(next)) => next,
                Some(gone) => break End::Abandoned(gone),
            };
            if !seen.insert(next) {
                let at = hops.iter().position(|hop| hop.waiter == next)?;
                if self.knots.iter().any(|knot| knot.members.contains(&next)) {
                    break End::Cycle(at);
                }
                // A circle that somebody else can open: the way is shown up to where it branches.
                let branch = hops.iter().rposition(|hop| hop.nature == Nature::FarEnd).unwrap_or(at);
                let root = hops.get(branch)?.waiter;
                hops.truncate(branch);
                break End::Root(root);
            }
            // A holder that waits for a lock nobody can be named for is as far as it goes: it is the one to look at.
            let onward = self.edge(next).filter(|hop| hop.owner.is_some() || !is_by_frames(host, next));
            match onward.filter(|_| hops.len() < MAX_HOPS) {
                Some(hop) => hops.push(hop.clone()),
                None => break End::Root(next),
            }
        };
        (!hops.is_empty()).then_some(Chain { hops, end })
    }
}
