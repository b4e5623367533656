//! What a process owes over its sockets, and what it is owed.

use super::ProcessView;
use super::text::{clean, wrap};
use crate::model::debts::{Debts, Line, Pool, State, requests, service};
use crate::model::graph::{Graph, Hop};
use crate::model::{Host, duration};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Entries of each list in JSON; the rest is counted.
const LISTED: usize = 32;
/// Pools, peers and listeners named in the text.
const NAMED: usize = 4;

/// Since when the first of something has lasted, and how much of it there is.
type Group<'a> = (usize, u64, &'a Line);

/// The debts of one process. Numbers are `null` where its sockets were not listed: that is "unknown", never "none".
pub(super) fn to_json(host: &Host, graph: &Graph, view: &ProcessView<'_>) -> Value {
    let is_lock = |tid: u32| graph.edge(tid).is_some_and(Hop::is_lock);
    let lock_waiters = view.threads.iter().filter(|row| is_lock(row.tid)).count();
    let Some((debts, verdict)) = host.services().of(view.id).zip(view.verdict.as_ref()) else {
        return json!({
            "unanswered": null, "oldest_unanswered_ns": null, "unread_bytes": null, "backlog": null, "awaiting_reply": null,
            "oldest_awaiting_ns": null, "abandoned": null, "lock_waiters": lock_waiters, "verdict": null, "why": null,
            "peer": null, "taken_ns": null, "connections": null, "not_listed": null, "progress": null, "services": null,
            "listeners": null, "pools": null, "awaiting": null,
        });
    };
    let oldest = |since: Option<u64>| since.map(|since| debts.age(since));
    let awaiting = by_peer(debts);
    let pools = debts.pools();
    let is_timed = debts.has_times();
    let peer = match &verdict.state {
        State::Waiting(peer) => Some(peer.as_str()),
        _ => None,
    };
    json!({
        "unanswered": is_timed.then(|| debts.unanswered().count()),
        "oldest_unanswered_ns": oldest(debts.unanswered().map(|(_, since)| since).min()),
        "unread_bytes": debts.unread_bytes(),
        "backlog": debts.backlog(),
        "awaiting_reply": is_timed.then(|| debts.awaiting().count()),
        "oldest_awaiting_ns": oldest(debts.awaiting().map(|(_, since)| since).min()),
        "abandoned": is_timed.then(|| debts.abandoned().count()),
        "lock_waiters": lock_waiters,
        "verdict": (verdict.state != State::Unknown).then(|| verdict.state.name()),
        "why": verdict.why,
        "peer": peer,
        "taken_ns": debts.taken_ns,
        "connections": debts.lines().count(),
        "not_listed": debts.cut,
        "progress": (debts.progress.elapsed_ns > 0).then_some(debts.progress),
        "services": by_service(debts).into_iter().take(LISTED).collect::<Vec<_>>(),
        "listeners": debts.desks().take(LISTED).map(|desk| json!({
            "local": desk.at.local,
            "backlog": desk.at.backlog,
            "limit": desk.at.limit,
            "waited_ns": oldest(desk.waits_since()),
        })).collect::<Vec<_>>(),
        "pools": pools.iter().take(LISTED).map(|pool| pool_json(debts, pool)).collect::<Vec<_>>(),
        "awaiting": awaiting.iter().take(LISTED).map(|(remote, (count, since, line))| json!({
            "remote": remote,
            "count": count,
            "oldest_ns": debts.age(*since),
            "peer_pid": line.at.peer_process.map(|peer| peer.pid),
            "retransmits": line.at.retransmits,
        })).collect::<Vec<_>>(),
    })
}

fn pool_json(debts: &Debts, pool: &Pool<'_>) -> Value {
    json!({
        "remote": pool.remote,
        "size": pool.lines.len(),
        "idle": pool.in_hand(),
        "idle_ns": pool.idle_since().map(|since| debts.age(since)),
    })
}

/// What is served at each local port or path: requests that are not answered, and what answers took so far.
fn by_service(debts: &Debts) -> Vec<Value> {
    let mut names: BTreeMap<&str, (usize, Option<u64>)> = debts.services().map(|(name, _)| (name, (0, None))).collect();
    for (line, since) in debts.unanswered() {
        let (count, oldest) = names.entry(service(&line.at)).or_default();
        *count += 1;
        *oldest = Some(oldest.map_or(since, |known: u64| known.min(since)));
    }
    let one = |(name, (count, oldest)): (&str, (usize, Option<u64>))| {
        let history = debts.history(name);
        json!({
            "service": name,
            "unanswered": debts.has_times().then_some(count),
            "oldest_ns": oldest.map(|since| debts.age(since)),
            "answers_seen": history.map_or(0, |history| history.answers),
            "longest_answer_ns": history.map(|history| history.longest_ns),
            "median_answer_ns": history.and_then(|history| history.median_ns()),
            "last_answer_ns": history.map(|history| debts.age(history.last_ns)),
        })
    };
    names.into_iter().map(one).collect()
}

/// Answers that are awaited, by peer.
fn by_peer(debts: &Debts) -> BTreeMap<&str, Group<'_>> {
    let mut peers: BTreeMap<&str, Group<'_>> = BTreeMap::new();
    for (line, since) in debts.awaiting() {
        let group = peers.entry(line.at.remote.as_deref().unwrap_or("?")).or_insert((0, since, line));
        group.0 += 1;
        if since < group.1 {
            (group.1, group.2) = (since, line);
        }
    }
    peers
}

/// A few lines, where there is a debt; else nothing.
pub(super) fn to_text(host: &Host, view: &ProcessView<'_>) -> String {
    let Some((debts, verdict)) = host.services().of(view.id).zip(view.verdict.as_ref()) else { return String::new() };
    if !debts.owes() {
        return String::new();
    }
    let mut owes: Vec<String> = Vec::new();
    if let Some((line, since)) = debts.unanswered().min_by_key(|(_, since)| *since) {
        let (count, age) = (requests(debts.unanswered().count() as u64), duration(debts.age(since)));
        owes.push(format!("{count} unanswered, oldest {age} (port {})", service(&line.at)));
    }
    if debts.unread_bytes() > 0 {
        let lines = debts.lines().filter(|line| line.at.unread > 0).count();
        owes.push(format!("{} byte(s) unread on {lines} connection(s)", debts.unread_bytes()));
    }
    for desk in debts.desks().filter(|desk| desk.at.backlog > 0).take(NAMED) {
        let name = desk.at.local.as_deref().unwrap_or("a socket");
        owes.push(format!("{} of {} not accepted at {name}", desk.at.backlog, desk.at.limit));
    }
    let mut parts: Vec<String> = Vec::new();
    if !owes.is_empty() {
        parts.push(format!("owes: {}", owes.join(", ")));
    }
    for (remote, (count, since, _)) in by_peer(debts).iter().take(NAMED) {
        let age = duration(debts.age(*since));
        parts.push(format!("awaits {count} answer(s) of {remote}, oldest {age}"));
    }
    for pool in debts.pools().iter().filter(|pool| pool.lines.len() > 1).take(NAMED) {
        let size = pool.lines.len();
        let idle = match pool.idle_since() {
            Some(since) => format!("all idle for {}", duration(debts.age(since))),
            None => format!("{} idle", pool.in_hand()),
        };
        parts.push(format!("pool {}: {size} connections, {idle}", pool.remote));
    }
    parts.push(format!("verdict: {}: {}", verdict.state.name(), verdict.why));
    wrap(&clean(&parts.join("; ")), "  ")
}
