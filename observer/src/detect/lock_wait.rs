//! `lock_wait`: a lock held too long: who waits, who holds it, and what the holder is doing.
//!
//! One finding per root: ten waiters in a convoy behind one thread are one problem, not ten.

use super::finding::links_with;
use super::{Context, Finding, Kind, Rule, Severity, Verdict};
use crate::census::Pid;
use crate::model::file_lock::FileLock;
use crate::model::frames::{Job, JobKind, Reading, Rest};
use crate::model::graph::{self, Chain, End, Graph, Hop, Nature};
use crate::model::{Class, Confidence, Host, Owner, ResourceKind, duration};
use std::collections::{BTreeMap, BTreeSet};

/// Steps behind the holder that the explanation tells; the chain has them all.
const MOST_STEPS: usize = 6;

/// The rule.
#[derive(Debug)]
pub struct LockWait;

/// What a chain ends at: the thread at its root, or the lock nobody can be named for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Root {
    Thread(Pid),
    Lock(Pid, u64),
}

impl Rule for LockWait {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let (host, graph) = (context.host, &context.graph);
        let mut verdict = Verdict::default();
        let mut roots: BTreeMap<Root, (&Chain, &Chain, BTreeSet<Pid>)> = BTreeMap::new();
        let chains: Vec<Chain> = context.chains.iter().map(Chain::up_to_last_lock).collect();
        for (chain, whole) in chains.iter().zip(&context.chains) {
            // Waiting for a worker or a child to finish is rest, not a lock; but behind a lock it is
            // the reason, so only the first hop decides.
            let (Some(first), Some(last)) = (chain.hops.first(), chain.hops.last()) else {
                continue;
            };
            let root = match chain.end {
                End::Root(tid) => Root::Thread(tid),
                End::Unknown if last.nature == Nature::FileLock => match file(host, last.waiter) {
                    // Behind another request, for a lock that may have changed hands.
                    Some(lock) if !lock.is_first => continue,
                    Some(lock) => Root::Lock(0, lock.inode),
                    None => Root::Lock(host.row(last.waiter).map_or(0, |row| row.process.pid), address(host, last)),
                },
                // The readers of a rwlock are never recorded, and a job that must not block says enough by itself. Elsewhere
                // the owner could not be read, this time, or whoever has the lock may well be at rest with it.
                End::Unknown
                    if last.resource.kind != ResourceKind::Rwlock && interrupted(host, last.waiter).is_none() =>
                {
                    continue;
                }
                End::Unknown if graph::is_by_frames(host, last.waiter) && interrupted(host, last.waiter).is_none() => {
                    continue;
                }
                End::Unknown => {
                    let pid = host.row(last.waiter).map_or(0, |row| row.process.pid);
                    Root::Lock(pid, address(host, last))
                }
                End::Cycle(_) | End::Abandoned(_) => continue,
            };
            // A holder that is stopped is the whole story: `stopped` tells it, with those who wait.
            let is_stopped = matches!(root, Root::Thread(tid) if host.row(tid).is_some_and(|row| row.is_stopped()));
            if !first.is_lock() || is_stopped {
                continue;
            }
            match leads_followers(host, root, last.waiter) {
                Some(false) => {}
                Some(true) => continue,
                None => {
                    verdict.later(host.now_ns());
                    continue;
                }
            }
            let entry = roots.entry(root).or_insert_with(|| (chain, whole, BTreeSet::new()));
            if chain.hops.len() > entry.0.hops.len() {
                (entry.0, entry.1) = (chain, whole);
            }
            entry.2.extend(chain.hops.iter().map(|hop| hop.waiter));
        }
        for (root, (chain, whole, waiters)) in roots {
            let involved = waiters.iter().chain(match &root {
                Root::Thread(tid) => Some(tid),
                Root::Lock(..) => None,
            });
            if !context.in_scope(involved) {
                continue;
            }
            // A holder may have waited for its child for long before anybody wanted its lock.
            let queue = queued(graph, &waiters);
            let since = queue.iter().filter_map(|tid| Some(host.since(host.row(*tid)?).ns)).min().unwrap_or(0);
            // Long waits alone are a queue that moves: one and the same hold must have lasted, too.
            let held = match root {
                Root::Thread(tid) => held_since(context, tid, &waiters).unwrap_or(host.now_ns()),
                Root::Lock(..) => since,
            };
            if verdict.is_ripe(since.max(held), context)
                && let Some(finding) = finding(context, root, (chain, whole), &waiters, since)
            {
                verdict.findings.push(finding);
            }
        }
        verdict
    }
}

/// Those of them that wait for a lock: others wait for a child or a thread, with a lock held.
fn queued(graph: &Graph, waiters: &BTreeSet<Pid>) -> BTreeSet<Pid> {
    let is_queued = |tid: &Pid| graph.edge(*tid).is_some_and(Hop::is_lock);
    waiters.iter().copied().filter(is_queued).collect()
}

/// Since when a thread holds, without a break, a lock that these wait for.
fn held_since(context: &Context<'_>, holder: Pid, waiters: &BTreeSet<Pid>) -> Option<u64> {
    let (host, graph) = (context.host, &context.graph);
    let behind = |tid: &Pid| graph.edge(*tid).is_some_and(|hop| hop.owner == Some(Owner::Thread(holder)));
    // A holder that waits for its child has slept, and let nothing go, since that wait began.
    let child = |tid| host.confirmed_wait(tid).filter(|(_, w)| w.class == Class::Child).map(|(r, _)| host.since(r).ns);
    waiters.iter().filter(|tid| behind(tid)).filter_map(|tid| host.held_since(*tid).or_else(|| child(*tid))).min()
}

/// Servers of the leader-and-followers kind guard `accept` with a lock: whoever has it waits for work,
/// the others wait for their turn. That is rest. `None` while it is not known what an epoll instance watches, or where the holder stands.
fn leads_followers(host: &Host, root: Root, waiter: Pid) -> Option<bool> {
    let Root::Thread(tid) = root else { return Some(false) };
    let Some(wait) = host.wait(tid) else { return Some(false) };
    // By its frames, a loop that servers enter with the lock held.
    if wait.reading.as_ref().is_some_and(|reading| reading.leads && reading.rest == Rest::Idle) {
        return Some(true);
    }
    // A descriptor that was not read has no kind yet.
    let is_read = wait.resource.as_ref().is_none_or(|r| r.fd.is_none() || r.kind != ResourceKind::Other);
    match wait.class {
        Class::Accept => Some(true),
        Class::Event => (is_read && !host.awaits_stack(tid, waiter)).then_some(false),
        _ => Some(false),
    }
}

/// Tells locks apart: their address, or where that is not known the futex word of the waiter.
fn address(host: &Host, hop: &Hop) -> u64 {
    let word = || host.wait(hop.waiter).map(|wait| wait.args[0]);
    hop.resource.address.or_else(word).unwrap_or(0)
}

/// The file lock that a thread waits for.
fn file(host: &Host, waiter: Pid) -> Option<&FileLock> {
    host.confirmed_wait(waiter)?.1.file_lock.as_ref()
}

/// What a file lock is called in titles: `the lock on /run/app.lock`.
fn lock_on(hop: &Hop) -> String {
    let path = hop.resource.detail.as_deref();
    format!("the lock on {}", path.map_or_else(|| hop.resource.describe(), str::to_owned))
}

/// The job that a lock interrupts, if it is one that must not block: everything else on its thread waits with it. A pool's
/// job may block, and may even be a loop of its own that takes its work under a lock.
fn interrupted(host: &Host, waiter: Pid) -> Option<(&Reading, &Job)> {
    let (_, wait) = host.confirmed_wait(waiter)?;
    let reading = wait.reading.as_ref().filter(|reading| reading.rest == Rest::Lock)?;
    let job = reading.job.as_ref().filter(|job| matches!(job.kind, JobKind::Turn | JobKind::Callback))?;
    Some((reading, job))
}

/// What the holder waits for in its turn, over pipes and sockets.
fn beyond(host: &Host, chain: &Chain, whole: &Chain) -> String {
    let hops = whole.hops.get(chain.hops.len()..).unwrap_or_default();
    let steps: Vec<String> = hops
        .iter()
        .take(MOST_STEPS)
        .filter_map(|hop| {
            let Some(Owner::Thread(next)) = hop.owner else { return None };
            Some(format!("{} {}", hop.nature.verb(), host.name(next)))
        })
        .collect();
    match (steps.is_empty(), whole.end) {
        (true, _) => String::new(),
        (false, End::Root(root)) => {
            format!(" What it waits for leads on: {}, which {}.", steps.join(", then "), host.doing(root))
        }
        (false, _) => format!(" What it waits for leads on: {}.", steps.join(", then ")),
    }
}

fn finding(
    context: &Context<'_>,
    root: Root,
    (chain, whole): (&Chain, &Chain),
    waiters: &BTreeSet<Pid>,
    since: u64,
) -> Option<Finding> {
    let (host, graph, threshold_ns) = (context.host, &context.graph, context.scope.threshold_ns);
    let last = chain.hops.last()?;
    let lock = last.resource.describe();
    let age = host.now_ns().saturating_sub(since);
    let (process, holder) = match root {
        Root::Thread(tid) => (host.row(tid)?.process, Some(tid)),
        Root::Lock(..) => (host.row(last.waiter)?.process, None),
    };
    let on_lock = chain.hops.iter().rfind(|hop| hop.is_lock()).unwrap_or(last);
    // Every lock of the chain, so that the finding stays the same while waiters come and go.
    let on_file = (on_lock.nature == Nature::FileLock).then(|| file(host, on_lock.waiter));
    let (key, name) = match on_file {
        Some(Some(FileLock { device: (major, minor), inode, .. })) => {
            (format!("{holder:?}/file {major:x}:{minor:x}:{inode}"), lock_on(on_lock))
        }
        Some(None) => (format!("{holder:?}/file of {}", on_lock.waiter), lock_on(on_lock)),
        None => {
            let address = format!("{:#x}", address(host, on_lock));
            (format!("{holder:?}/{address}"), address)
        }
    };
    let name = name.strip_prefix("the lock on ").unwrap_or(&name);
    let mut finding = Finding::new(Kind::LockWait, host, process, &key)
        .since_mono(since, host)
        .with_threads(waiters.iter().copied().chain(holder))
        .fact("lock", name)
        .fact("waiters", queued(graph, waiters).len())
        .fact("longest_wait_ns", age);
    finding.confidence = chain.confidence();
    finding.severity = if age >= threshold_ns.saturating_mul(12) { Severity::Critical } else { Severity::Warning };
    let count = match queued(graph, waiters).len() {
        1 => "1 thread waits".to_owned(),
        n => format!("{n} threads wait"),
    };
    let longest = duration(age);
    match holder {
        Some(tid) => {
            let doing = host.doing(tid);
            let first = chain.hops.first().filter(|hop| hop.nature == Nature::FileLock);
            let next = chain.hops.get(1).map(|hop| host.name(hop.waiter));
            let locks = match (first, next) {
                (Some(hop), None) => format!("{} held by", lock_on(hop)),
                (Some(hop), Some(next)) => format!("{} held by {next}, behind", lock_on(hop)),
                (None, None) => "a lock held by".to_owned(),
                (None, Some(_)) => "locks held by".to_owned(),
            };
            finding.title = format!("{count} for {locks} {}, which {doing}", host.name(tid));
            let path = chain
                .hops
                .iter()
                .map(|hop| format!("{} waits for {}", host.name(hop.waiter), hop.resource.describe()))
                .collect::<Vec<_>>()
                .join(", whose holder ");
            finding.explanation = format!(
                "{path}, held by {}. The longest of these waits has lasted {longest}. The holder {doing}; nobody behind it goes on before it does.{}",
                host.name(tid),
                beyond(host, chain, whole)
            );
            let held = on_lock.resource.describe();
            let while_ = if last.is_lock() { "it holds" } else { "another waits for it and holds" };
            finding.remedy = format!(
                "Look at what {} does while {while_} {held}: move the slow call out of the critical section, or give it a time limit.",
                host.name(tid)
            );
            finding = finding.fact("holder_tid", tid).fact("holder_doing", doing);
        }
        None if let Some((reading, job)) = interrupted(host, last.waiter) => {
            let who = host.name(last.waiter);
            let (what, rest) = match job.kind {
                JobKind::Callback => ("a callback of its event loop", "every other event of the loop"),
                _ => ("a task that must not block", "every task scheduled on this thread"),
            };
            finding.confidence = Confidence::Likely;
            finding.title = format!(
                "{} thread {who} has been blocked in {} for {longest}, in the middle of {what}",
                job.runtime, reading.by
            );
            finding.explanation = format!(
                "The stack of {who} is in {}, under {}: it waits for {lock} inside of {what}, and {rest} waits with it. Its holder is not known.",
                reading.by, job.by
            );
            finding.remedy = "Read the stack: the function between the two frames takes the lock. Find who holds it for so long (often the same task, across an await, or one that waits for this thread), and use a lock made for asynchronous code, or none.".to_owned();
            finding = finding.fact("runtime", job.runtime).fact("frames", reading.frames());
        }
        None if last.nature == Nature::FileLock => {
            finding.confidence = Confidence::Possible;
            finding.title = format!("{count} for {} for {longest}; its holder is not known", lock_on(last));
            let lock_of = file(host, last.waiter);
            finding.explanation = format!(
                "{} has waited for {lock} for {longest}. Who took the lock is gone, or the kernel does not tell; {}.",
                host.name(last.waiter),
                match lock_of {
                    Some(lock) if lock.is_cut => "there was no time to look for it in all of the processes",
                    Some(_) => "none of the processes looked at has it",
                    None => "it was not found among the processes that could be looked at in time",
                }
            );
            finding.remedy = "Find the processes that have this file open (`fuser -v` on it, as root): a child may have inherited the lock.".to_owned();
        }
        None => {
            finding.confidence = Confidence::Possible;
            finding.title = format!("{count} for {lock} for {longest}; the lock does not say who holds it");
            finding.explanation = format!(
                "{} has waited for {lock} for {longest}. Locks of this kind do not record their holder, so it is not named here.{}",
                host.name(last.waiter),
                if last.resource.kind == ResourceKind::Rwlock {
                    " Either one reader does not let go, or readers come without a gap and the writer starves."
                } else {
                    ""
                }
            );
            finding.remedy = match last.resource.kind {
                ResourceKind::Rwlock => "Look for a reader that stays inside; if all of them come and go, let the lock prefer writers (PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP).",
                _ => "Look for the thread that holds this lock: one that is not itself waiting for it.",
            }
            .to_owned();
        }
    }
    finding.chain = links_with(&whole.hops, waiters, graph, host);
    Some(finding)
}
