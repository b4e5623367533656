//! `abandoned_lock`: a lock whose owner no longer exists, or stayed behind in the parent of a fork.

use super::finding::links_with;
use super::{Context, Finding, Kind, Rule, Severity, Verdict};
use crate::census::Pid;
use crate::model::graph::{Chain, End};
use crate::model::wait::OwnerScope;
use crate::model::{Owner, duration};
use std::collections::{BTreeMap, BTreeSet};

/// The rule.
#[derive(Debug)]
pub struct AbandonedLock;

impl Rule for AbandonedLock {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        // By process and lock: everyone who waits for it, directly or behind another waiter.
        let mut locks: BTreeMap<(Pid, u64), (&Chain, Owner, BTreeSet<Pid>)> = BTreeMap::new();
        for chain in &context.chains {
            let End::Abandoned(owner) = chain.end else {
                continue;
            };
            let Some(last) = chain.hops.last() else {
                continue;
            };
            // Without proof of the layout, a missing owner proves nothing.
            if last.confidence < crate::model::Confidence::Certain {
                continue;
            }
            let Some((row, wait)) = context.host.confirmed_wait(last.waiter) else {
                continue;
            };
            if !context.host.is_owner_gone(last.waiter) {
                verdict.later(context.host.now_ns());
                continue;
            }
            let shared = wait.owner.as_ref().is_some_and(|word| word.scope == OwnerScope::Namespace);
            let process = if shared { 0 } else { row.process.pid };
            let key = (process, last.resource.address.unwrap_or(0));
            let entry = locks.entry(key).or_insert_with(|| (chain, owner, BTreeSet::new()));
            if chain.hops.len() > entry.0.hops.len() {
                entry.0 = chain;
            }
            entry.2.extend(chain.hops.iter().map(|hop| hop.waiter));
        }
        for (chain, owner, waiters) in locks.into_values() {
            if context.in_scope(waiters.iter())
                && let Some(finding) = finding(context, chain, owner, &waiters)
            {
                verdict.findings.push(finding);
            }
        }
        verdict
    }
}

fn finding(context: &Context<'_>, chain: &Chain, owner: Owner, waiters: &BTreeSet<Pid>) -> Option<Finding> {
    let (host, graph) = (context.host, &context.graph);
    let last = chain.hops.last()?;
    let row = host.row(last.waiter)?;
    let address = last.resource.address.unwrap_or(0);
    let since = waiters.iter().filter_map(|tid| Some(host.since(host.row(*tid)?).ns)).min()?;
    let lock = last.resource.describe();
    let (id, what, cause, remedy) = match owner {
        Owner::Elsewhere(tid) => {
            let holder = host.name(tid);
            (
                tid,
                "stayed behind in another process when this one was forked",
                format!(
                    "Its owner is recorded as {holder}, a thread of process {}, which cannot release a private lock of this process: the lock was held at the moment of fork().",
                    host.row(tid).map_or(0, |r| r.process.pid)
                ),
                "Between fork() and exec() call only async-signal-safe functions, or take the lock around fork() with pthread_atfork().",
            )
        }
        Owner::Gone(own) | Owner::Thread(own) => (
            own,
            "no longer exists",
            format!(
                "Its owner is recorded as thread {own}, and no such thread lives: it exited, or was cancelled, without unlocking."
            ),
            "Find the thread that exits with the lock held (an early return, pthread_exit, cancellation, an exception); use a guard, or a robust mutex.",
        ),
    };
    let mut finding = Finding::new(Kind::AbandonedLock, host, row.process, &format!("{address:#x}"))
        .since_mono(since, host)
        .with_threads(waiters.iter().copied())
        .fact("lock", format!("{address:#x}"))
        .fact("owner_tid", id)
        .fact("waiters", waiters.len());
    finding.severity = Severity::Critical;
    finding.confidence = chain.confidence();
    let count = match waiters.len() {
        1 => "1 thread waits".to_owned(),
        n => format!("{n} threads wait"),
    };
    finding.title = format!("{count} for a lock whose owner {what}");
    let age = duration(host.now_ns().saturating_sub(since));
    finding.explanation = format!(
        "{} has waited for {lock} for {age}. {cause} Nobody is left to release it, so this wait never ends.",
        host.name(last.waiter)
    );
    finding.remedy = remedy.to_owned();
    finding.chain = links_with(&chain.hops, waiters, graph, host);
    Some(finding)
}
