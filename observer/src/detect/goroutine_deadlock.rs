//! `deadlock` among goroutines: each waits for a lock that the next one seems to have. Go's locks name no owner, so this is
//! never certain.

use super::goroutine_blocked::step;
use super::goroutines::{ago, creator, frames, goroutine_ref, place};
use super::{Context, Finding, Kind, Link, Rule, Severity, Verdict};
use crate::census::ProcessId;
use crate::model::Confidence;
use crate::model::goroutines::{GoHolder, GoProcess, LockQueue, Site};
use std::collections::BTreeSet;

/// The rule.
#[derive(Debug)]
pub struct GoroutineDeadlock;

/// Locks and who seems to have them, each holder a waiter of the next.
#[derive(Debug)]
pub(super) struct Circle<'a> {
    steps: Vec<(LockQueue<'a>, GoHolder<'a>)>,
}

impl Circle<'_> {
    /// Everyone who waits for one of its locks.
    pub(super) fn waiters(&self) -> impl Iterator<Item = u64> {
        self.steps.iter().flat_map(|(queue, _)| queue.waiters.iter().map(|one| one.goid))
    }
}

/// The circles among the locks of a process.
pub(super) fn circles(go: &GoProcess) -> Vec<Circle<'_>> {
    let queues = go.lock_queues();
    let holders: Vec<Option<GoHolder<'_>>> = queues.iter().map(|queue| go.holder(queue)).collect();
    let next = |at: usize| {
        let holder = holders.get(at)?.as_ref()?;
        queues.iter().position(|queue| queue.waiters.iter().any(|one| one.goid == holder.goroutine.goid))
    };
    let mut told = BTreeSet::new();
    let mut circles = Vec::new();
    for start in 0..queues.len() {
        let mut way = vec![start];
        while let Some(at) = way.last().and_then(|at| next(*at)) {
            if let Some(from) = way.iter().position(|seen| *seen == at) {
                way.drain(..from);
                // The way back must come to a waiter: with one lock it would be a holder that waits for itself.
                if way.len() > 1 && way.iter().all(|at| told.insert(*at)) {
                    circles.push(way.clone());
                }
                break;
            }
            way.push(at);
        }
    }
    let mut queues: Vec<Option<LockQueue<'_>>> = queues.into_iter().map(Some).collect();
    let mut take = |at: usize| Some((queues.get_mut(at)?.take()?, (*holders.get(at)?)?));
    circles.into_iter().map(|way| Circle { steps: way.into_iter().filter_map(&mut take).collect() }).collect()
}

impl Rule for GoroutineDeadlock {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for (process, go) in context.go_processes() {
            for circle in circles(go) {
                // Closed since the last of its holders waits.
                let since =
                    circle.steps.iter().map(|(_, holder)| go.waiting_since(holder.goroutine)).max().unwrap_or(0);
                if verdict.has_lasted(since, go.latest.taken_ns, context) {
                    verdict.findings.extend(finding(context, process, go, &circle, since));
                }
            }
        }
        verdict
    }
}

fn finding(
    context: &Context<'_>,
    process: ProcessId,
    go: &GoProcess,
    circle: &Circle<'_>,
    since: u64,
) -> Option<Finding> {
    let steps = &circle.steps;
    let (first, _) = steps.first()?;
    let site = Site::of(first.group)?;
    let name =
        |queue: &LockQueue<'_>| queue.address.map_or_else(|| queue.taker.describe(), |address| format!("{address:#x}"));
    let mut keys: Vec<String> = steps.iter().map(|(queue, _)| name(queue)).collect();
    keys.sort();
    let confidence = steps.iter().map(|(_, holder)| holder.confidence).min()?;
    let mut finding = Finding::new(Kind::Deadlock, context.host, process, &keys.join(","))
        .since_first_look(since, context.host)
        .fact("cycle", steps.len())
        .fact("goroutines", steps.iter().map(|(_, holder)| holder.goroutine.goid).collect::<Vec<_>>())
        .fact("also_blocked", circle.waiters().count().saturating_sub(steps.len()))
        .fact("place", place(&site.place))
        .fact("created_by", site.created_by.as_ref().map(place))
        .fact("stack", frames(&first.group.stack))
        .read_by(go);
    finding.confidence = confidence;
    finding.severity = if confidence == Confidence::Possible { Severity::Warning } else { Severity::Critical };
    finding.title = format!("{} goroutines of {} wait for each other's locks in a circle", steps.len(), finding.comm);
    // Each holder is the one that waits for the next lock.
    let waiters = steps.iter().cycle().skip(steps.len() - 1);
    let words: Vec<String> = waiters
        .zip(steps)
        .map(|((_, waiter), (queue, holder))| {
            let (from, to) = (waiter.goroutine.goid, holder.goroutine.goid);
            format!(
                "goroutine {from} waits for the lock {} at {}, which goroutine {to} seems to have, since it {}",
                name(queue),
                queue.taker.describe(),
                holder.how
            )
        })
        .collect();
    finding.explanation = format!(
        "{}. None has moved for {} or longer ({}). Go's locks do not say who holds them: the holders are inferred from where the goroutines stand. Times count from observer's first look.",
        words.join("; "),
        ago(go, since),
        creator(site.created_by.as_ref())
    );
    finding.remedy = "Take these locks in one order everywhere, or never call out while holding one. The process must be restarted to go on; save its stacks first.".to_owned();
    let waiters = steps.iter().cycle().skip(steps.len() - 1);
    let link = |((_, waiter), (queue, holder)): (&(LockQueue<'_>, GoHolder<'_>), &(LockQueue<'_>, GoHolder<'_>))| {
        let from = goroutine_ref(context.host, process, waiter.goroutine.goid, None);
        Link { from, ..step(context, process, queue, Some((holder, None))) }
    };
    finding.chain = waiters.zip(steps).map(link).collect();
    Some(finding)
}
