//! `not_accepting`: connections that wait in a backlog, and nobody accepts them.

use super::debts::{progress_json, progress_words};
use super::{Context, Finding, Kind, Rule, Severity, Verdict};
use crate::census::ProcessId;
use crate::model::debts::{Debts, Desk, ONE_LISTING_NS};
use crate::model::{Confidence, duration};
use std::collections::BTreeMap;

/// The rule.
#[derive(Debug)]
pub struct NotAccepting;

/// A listening socket, and a process that has it open.
type Open<'a> = (ProcessId, &'a Debts, &'a Desk);

impl Rule for NotAccepting {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        // Processes of one server share a listener: it is one backlog.
        let mut open: BTreeMap<u64, Vec<Open<'_>>> = BTreeMap::new();
        for (process, debts) in context.indebted() {
            for desk in debts.desks().filter(|desk| desk.at.backlog > 0) {
                open.entry(desk.at.inode).or_default().push((process, debts, desk));
            }
        }
        for sharers in open.values() {
            // Of numbers whoever has seen the shortest wait is right. A connection that is known by name waits since it was first
            // seen, by whomever: a sharer may be new.
            let since = |(_, _, desk): &Open<'_>| desk.waits_since().unwrap_or(u64::MAX);
            let newest = sharers.iter().map(|one| one.1.taken_ns).max().unwrap_or(0);
            let is_now = |one: &Open<'_>| one.1.taken_ns.saturating_add(ONE_LISTING_NS) >= newest;
            // One that could not be listed now still knows since when a connection waits that another one sees now.
            let still_waits = |one: &Open<'_>| sharers.iter().any(|other| is_now(other) && one.2.waits_with(other.2));
            let followed = sharers.iter().filter(|&one| one.2.is_followed() && (is_now(one) || still_waits(one)));
            let followed = followed.min_by_key(|one| since(one));
            let Some(latest) = followed.or_else(|| sharers.iter().max_by_key(|one| since(one))) else { continue };
            let (since_ns, debts) = (since(latest), latest.1);
            let is_told = |kind| sharers.iter().any(|(process, ..)| context.has_found(*process, kind).is_some());
            if is_told(&[Kind::Stopped, Kind::PoolExhausted]) || since_ns == u64::MAX {
                continue;
            }
            // Numbers alone: who takes one and gets the next at once looks the same.
            let is_at_work = debts.progress.switches > 0 || debts.progress.elapsed_ns == 0;
            if !latest.2.is_followed() && is_at_work {
                continue;
            }
            if verdict.is_due(since_ns, context.scope.threshold_ns, debts, context) {
                verdict.findings.push(finding(context, sharers, *latest, since_ns));
            }
        }
        verdict
    }
}

/// Which of the processes that have the socket is to be looked at: one with a thread that is stuck in a lock, else the last one of the
/// same program as the first, who has forked the others: it may also have started programs that only inherited the socket.
fn acceptor(context: &Context<'_>, sharers: &[Open<'_>]) -> Option<ProcessId> {
    let host = context.host;
    let stuck = sharers.iter().find(|(process, ..)| !context.standing(*process).chain.is_empty());
    if let Some((process, ..)) = stuck {
        return Some(*process);
    }
    let row = |process: &ProcessId| host.row(process.pid).filter(|row| row.process == *process);
    let is_child = |process: &ProcessId| {
        row(process).is_some_and(|row| sharers.iter().any(|(other, ..)| other.pid == row.ppid && other != process))
    };
    let first = sharers.iter().map(|one| &one.0).find(|process| !is_child(process));
    let program = first.and_then(row).map(|row| row.comm.as_str());
    let is_same = |process: &&ProcessId| row(process).map(|row| row.comm.as_str()) == program;
    sharers.iter().map(|one| &one.0).rfind(is_same).or(first).copied()
}

fn finding(context: &Context<'_>, sharers: &[Open<'_>], (_, debts, desk): Open<'_>, since_ns: u64) -> Finding {
    let host = context.host;
    let process = acceptor(context, sharers).unwrap_or(ProcessId { pid: 0, start_ns: 0 });
    let standing = context.standing(process);
    let name = desk.at.local.clone().unwrap_or_else(|| format!("socket {}", desk.at.inode));
    let age = debts.age(since_ns);
    let (backlog, limit) = (desk.at.backlog, desk.at.limit);
    let mut finding = Finding::new(Kind::NotAccepting, host, process, &name)
        .since_mono(since_ns, host)
        .with_threads(standing.threads.iter().copied())
        .fact("local", name.as_str())
        .fact("backlog", backlog)
        .fact("limit", limit)
        .fact("full", desk.is_full())
        .fact("waited_ns", age)
        .fact("same_connections", desk.is_followed())
        .fact("peers", desk.at.waiting.iter().take(8).map(|one| one.remote.as_str()).collect::<Vec<_>>())
        .fact("processes", sharers.iter().map(|one| one.0.pid).collect::<Vec<_>>())
        .fact("since_exact", false)
        .fact("progress", progress_json(debts));
    finding.severity = if desk.is_full() { Severity::Critical } else { Severity::Warning };
    finding.confidence = if desk.is_followed() { Confidence::Certain } else { Confidence::Likely };
    let long = duration(age);
    let full = if desk.is_full() { ", which is full" } else { "" };
    finding.title = format!(
        "{} has not accepted at {name} for {long}: {backlog} connection(s) wait in a backlog of {limit}{full}",
        finding.comm
    );
    let seen = if desk.is_followed() {
        "the same connection was seen to wait all the while"
    } else {
        "the backlog never shrank and nobody was seen to be accepted"
    };
    let more =
        if desk.is_full() { " Further clients do not get in at all: their connect() waits or fails." } else { "" };
    finding.explanation = format!(
        "{backlog} connection(s) to {name} are made and wait to be accepted; {seen}, for {long} at least.{more} At the same time {}.{}",
        standing.words,
        progress_words(debts)
    );
    finding.remedy = if standing.chain.is_empty() {
        "Read the stack of the thread that should accept: an event loop busy or blocked in a callback, an acceptor at its limit of connections or descriptors, or a thread that has ended.".to_owned()
    } else {
        "The chain shows what the thread waits for: find out why that lock is not let go.".to_owned()
    };
    finding.chain = standing.chain;
    finding
}
