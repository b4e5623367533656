//! Knots: threads that wait for nobody but each other.
//!
//! A lock is released by its owner; a pipe may be written to by any of several. A set of threads is stuck for good if each of them
//! can be released by members of the set only. The greatest such set has the waiters behind a deadlock in it as well: the
//! deadlocks are its strongly connected parts that no way leads out of.

use super::ways::{Way, sharpened_by_reference};
use super::{Hop, Nature, far_end};
use crate::census::Pid;
use crate::model::host::Host;
use crate::model::wait::{Confidence, Owner};
use petgraph::algo::kosaraju_scc;
use petgraph::graphmap::DiGraphMap;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Threads none of which can go on before another one of them does.
#[derive(Clone, Debug, PartialEq)]
pub struct Knot {
    /// All of them.
    pub members: BTreeSet<Pid>,
    /// One circle through them, beginning with the lowest thread id; the only one if each waits for one other.
    pub circle: Vec<Hop>,
    /// Members outside of the circle, each with a way into it.
    pub others: Vec<Hop>,
}

impl Knot {
    /// The edge shown for each of its members.
    pub fn hops(&self) -> impl Iterator<Item = &Hop> {
        self.circle.iter().chain(&self.others)
    }

    /// Whether it rests on inferences: then it needs time on its side, too.
    pub fn is_inferred(&self) -> bool {
        self.hops().any(|hop| hop.nature == Nature::FarEnd || hop.how == super::BY_REFERENCE)
    }
}

/// The knots among these waits.
pub(super) fn find(host: &Host, ways: &BTreeMap<Pid, Way>) -> Vec<Knot> {
    let stuck = stuck(host, ways);
    let mut graph: DiGraphMap<Pid, ()> = DiGraphMap::new();
    for (tid, by) in &stuck {
        for other in by {
            graph.add_edge(*tid, *other, ());
        }
    }
    let parts = kosaraju_scc(&graph).into_iter().map(|part| part.into_iter().collect::<BTreeSet<Pid>>());
    let is_bottom = |part: &BTreeSet<Pid>| part.iter().flat_map(|tid| &stuck[tid]).all(|next| part.contains(next));
    let mut knots: Vec<Knot> = parts.filter(is_bottom).filter_map(|part| knot(host, ways, &stuck, part)).collect();
    knots.sort_by_key(|knot| knot.members.first().copied());
    knots
}

/// The greatest set of waiters each of which only members can release, with those who can.
fn stuck(host: &Host, ways: &BTreeMap<Pid, Way>) -> BTreeMap<Pid, Vec<Pid>> {
    let counts = |way: &Way, tid: &Pid| !(way.spares_idle && !ways.contains_key(tid) && far_end::is_idle(host, *tid));
    // Whoever has run since the ends were looked at may have passed one on.
    let slept = |way: &Way, tid: &Pid| {
        let since = host.row(*tid).map_or(u64::MAX, |row| host.since(row).ns);
        way.as_of_ns.is_none_or(|as_of| since <= as_of)
    };
    let mut stuck: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    let mut waiting_for: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    let mut free: VecDeque<Pid> = VecDeque::new();
    for (tid, way) in ways {
        let by: Vec<Pid> = way.by.iter().copied().filter(|other| counts(way, other)).collect();
        if by.is_empty() || !by.iter().chain([tid]).all(|other| slept(way, other)) {
            continue;
        }
        for other in &by {
            waiting_for.entry(*other).or_default().push(*tid);
        }
        stuck.insert(*tid, by);
    }
    free.extend(waiting_for.keys().filter(|tid| !stuck.contains_key(tid)));
    while let Some(tid) = free.pop_front() {
        let released = waiting_for.remove(&tid).unwrap_or_default();
        free.extend(released.into_iter().filter(|waiter| stuck.remove(waiter).is_some()));
    }
    stuck
}

/// The ways of a knot's members to its lowest thread, each the shortest, and the circle they make.
fn knot(
    host: &Host,
    ways: &BTreeMap<Pid, Way>,
    stuck: &BTreeMap<Pid, Vec<Pid>>,
    members: BTreeSet<Pid>,
) -> Option<Knot> {
    let first = *members.first()?;
    let mut behind: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    for tid in &members {
        for next in stuck.get(tid)? {
            behind.entry(*next).or_default().push(*tid);
        }
    }
    let mut next: BTreeMap<Pid, Pid> = BTreeMap::new();
    let mut distance: BTreeMap<Pid, usize> = BTreeMap::from([(first, 0)]);
    let mut todo = VecDeque::from([first]);
    while let Some(at) = todo.pop_front() {
        let far = distance.get(&at).map_or(0, |far| far + 1);
        for waiter in behind.get(&at).into_iter().flatten() {
            if !distance.contains_key(waiter) {
                distance.insert(*waiter, far);
                next.insert(*waiter, at);
                todo.push_back(*waiter);
            }
        }
    }
    let from_first = stuck.get(&first)?.iter().min_by_key(|tid| (distance.get(tid), **tid))?;
    next.insert(first, *from_first);
    let hop = |tid: &Pid| Some(towards(host, ways.get(tid)?, *next.get(tid)?));
    let mut circle = Vec::new();
    let mut at = first;
    loop {
        circle.push(hop(&at)?);
        at = *next.get(&at)?;
        if at == first {
            break;
        }
    }
    let on_circle: BTreeSet<Pid> = circle.iter().map(|hop| hop.waiter).collect();
    let others = members.difference(&on_circle).filter_map(hop).collect();
    Some(Knot { members, circle, others })
}

/// The edge of this way that leads to that thread.
fn towards(host: &Host, way: &Way, next: Pid) -> Hop {
    let owner = Some(Owner::Thread(next));
    let hop = sharpened_by_reference(host, way.hop.clone());
    if hop.owner == owner && hop.nature != Nature::FarEnd {
        return hop;
    }
    // Whichever of them it is: all are in the knot.
    Hop { owner, confidence: hop.confidence.max(Confidence::Likely), ..hop }
}
