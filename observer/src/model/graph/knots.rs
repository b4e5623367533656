//! Knots: threads that wait for nobody but each other.
//!
//! A lock is released by its owner; a pipe may be written to by any of several. A set of threads is stuck for good if each of them
//! can be released by members of the set only. The greatest such set has the waiters behind a deadlock in it as well: the
//! deadlocks are its strongly connected parts that no way leads out of.

use super::ways::{Way, sharpened_by_reference};
use super::{BY_REFERENCE, BY_RUNNING, Hop, NOBODY_LEFT, Nature, far_end};
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
        self.hops()
            .any(|hop| hop.nature == Nature::FarEnd || matches!(hop.how, BY_REFERENCE | BY_RUNNING | NOBODY_LEFT))
    }
}

/// The knots among these waits.
pub(super) fn find(host: &Host, ways: &BTreeMap<Pid, Way>) -> Vec<Knot> {
    let (by, spared) = known(host, ways);
    let stuck = greatest_closed(by);
    let knot = |part| knot(host, ways, &stuck, part).map(|knot| doubted(knot, &spared));
    smallest_closed(&stuck).into_iter().filter_map(knot).collect()
}

/// Who can release whom, of waits of which that is known; and the waits of which threads at rest were left out of account.
fn known(host: &Host, ways: &BTreeMap<Pid, Way>) -> (BTreeMap<Pid, Vec<Pid>>, BTreeSet<Pid>) {
    let counts = |way: &Way, tid: &Pid| !(way.spares_idle && !ways.contains_key(tid) && far_end::is_idle(host, *tid));
    // Whoever has run since the ends were looked at may have passed one on.
    let slept = |way: &Way, tid: &Pid| {
        let since = host.row(*tid).map_or(u64::MAX, |row| host.since(row).ns);
        way.as_of_ns.is_none_or(|as_of| since <= as_of)
    };
    let mut spared = BTreeSet::new();
    let by = |(tid, way): (&Pid, &Way)| {
        let by: Vec<Pid> = way.by.iter().copied().filter(|other| counts(way, other)).collect();
        if by.len() < way.by.len() {
            spared.insert(*tid);
        }
        let is_fresh = by.iter().chain([tid]).all(|other| slept(way, other));
        (is_fresh && !by.is_empty()).then_some((*tid, by))
    };
    let by = ways.iter().filter_map(by).collect();
    (by, spared)
}

/// Threads at rest could still wake up and read: then it is one explanation among others.
fn doubted(mut knot: Knot, spared: &BTreeSet<Pid>) -> Knot {
    for hop in knot.circle.iter_mut().chain(&mut knot.others).filter(|hop| spared.contains(&hop.waiter)) {
        hop.confidence = Confidence::Possible;
    }
    knot
}

/// The greatest set of waiters each of which only members can release, with those who can.
fn greatest_closed(mut by: BTreeMap<Pid, Vec<Pid>>) -> BTreeMap<Pid, Vec<Pid>> {
    let mut waiting_for: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    for (tid, by) in &by {
        for other in by {
            waiting_for.entry(*other).or_default().push(*tid);
        }
    }
    let mut free: Vec<Pid> = waiting_for.keys().copied().filter(|tid| !by.contains_key(tid)).collect();
    while let Some(tid) = free.pop() {
        let released = waiting_for.remove(&tid).unwrap_or_default();
        free.extend(released.into_iter().filter(|waiter| by.remove(waiter).is_some()));
    }
    by
}

/// The smallest sets of that kind in it, in the order of their lowest threads.
fn smallest_closed(stuck: &BTreeMap<Pid, Vec<Pid>>) -> Vec<BTreeSet<Pid>> {
    let mut graph: DiGraphMap<Pid, ()> = DiGraphMap::new();
    for (tid, by) in stuck {
        for other in by {
            graph.add_edge(*tid, *other, ());
        }
    }
    let mut parts: Vec<BTreeSet<Pid>> =
        kosaraju_scc(&graph).into_iter().map(|part| part.into_iter().collect()).collect();
    parts.retain(|part| part.iter().filter_map(|tid| stuck.get(tid)).flatten().all(|next| part.contains(next)));
    parts.sort();
    parts
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
    let how = if hop.nature == Nature::Lock && hop.owner.is_none() { NOBODY_LEFT } else { hop.how };
    Hop { owner, confidence: hop.confidence.max(Confidence::Likely), how, ..hop }
}

#[cfg(test)]
mod tests {
    use super::*;

    type By = BTreeMap<Pid, Vec<Pid>>;

    /// By the definition: no empty ones, and nobody in it can be released by somebody else.
    fn is_closed(by: &By, set: &BTreeSet<Pid>) -> bool {
        let is_inside = |tid: &Pid| by.get(tid).is_some_and(|by| by.iter().all(|other| set.contains(other)));
        !set.is_empty() && set.iter().all(is_inside)
    }

    #[test]
    fn knots_are_the_smallest_closed_sets_of_any_graph() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) % below
        };
        let mut met = [0_usize; 4];
        for _ in 0..3000 {
            let threads = 1 + random(8) as Pid;
            let most = 1 + random(3);
            let mut by = By::new();
            for tid in 0..threads {
                let others: Vec<Pid> = (0..random(most + 1)).map(|_| random(u64::from(threads)) as Pid).collect();
                if !others.is_empty() {
                    by.insert(tid, others);
                }
            }
            let subsets = (1_u32..1 << threads).map(|bits| (0..threads).filter(|tid| bits >> tid & 1 == 1).collect());
            let closed: Vec<BTreeSet<Pid>> = subsets.filter(|set| is_closed(&by, set)).collect();
            let is_smallest = |set: &&BTreeSet<Pid>| !closed.iter().any(|other| other != *set && other.is_subset(set));
            let mut expected: Vec<BTreeSet<Pid>> = closed.iter().filter(is_smallest).cloned().collect();
            expected.sort();
            let found = smallest_closed(&greatest_closed(by.clone()));
            assert_eq!(found, expected, "{by:?}");
            met[found.len().min(3)] += 1;
        }
        assert!(met.iter().all(|count| *count > 10), "graphs with none, one, two and more knots: {met:?}");
    }

    #[test]
    fn a_long_queue_needs_no_deep_stack() {
        let n = 50_000;
        let by: By = (0..n).map(|tid| (tid, vec![(tid + 1).min(n - 1)])).collect();
        assert_eq!(smallest_closed(&greatest_closed(by.clone())), [BTreeSet::from([n - 1])]);
        let mut open = by;
        open.remove(&(n - 1));
        assert!(greatest_closed(open).is_empty());
    }
}
