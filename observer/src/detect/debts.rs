//! What the rules about debts share: whose they judge, how long something has lasted, and who stands where.

use super::finding::{links, thread_ref};
use super::{Context, Finding, Kind, Link, Severity, Verdict};
use crate::census::{Pid, ProcessId};
use crate::model::debts::{Debts, Line, service};
use crate::model::debts::{State, Verdict as Said};
use crate::model::graph::{End, Nature};
use crate::model::{Confidence, Host, Resource, ResourceKind, duration};
use crate::proc::StreamKind;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Answers that must have been seen before a service's usual times mean anything.
pub(super) const LEARNT: u64 = 20;
/// What so many times the slowest of them has not answered is no slow answer.
pub(super) const BEYOND: u64 = 10;
/// What was read counts for so many thresholds, or for so many times as long as it was since the reading before.
const FRESH: u64 = 4;
/// Which counts up to a minute: so long is the longest pause between two surveys of a host.
const LONGEST_GAP_NS: u64 = 60_000_000_000;
/// Requests that must have come since.
const NEWER: usize = 3;
/// No answer is late that took no longer than so many times the slowest one known.
pub(super) const SLOW: u64 = 3;
/// Links of what a peer's finding says that another one repeats.
const MOST_LINKS: usize = 16;

impl<'a> Context<'a> {
    /// Processes that belong to what is looked at, whose sockets were listed. Not those in a deadlock: why they answer nobody is told.
    pub(super) fn indebted(&self) -> impl Iterator<Item = (ProcessId, &'a Debts)> {
        let host = self.host;
        let listed =
            host.services().iter().filter(|(_, debts)| self.is_recent(debts.taken_ns, debts.progress.elapsed_ns));
        listed.filter(|(process, _)| {
            let row = host.row(process.pid).or_else(|| host.threads_of(process.pid).next());
            row.is_some_and(|row| row.process == *process && self.scope.contains(row, host))
                && self.is_part_of(*process, &[Kind::Deadlock]).is_none()
        })
    }

    /// Whether what was read at `taken_ns`, so long after the reading before, still counts: later it is over, or not known any more.
    pub(super) fn is_recent(&self, taken_ns: u64, gap_ns: u64) -> bool {
        let between = gap_ns.min(LONGEST_GAP_NS).max(self.scope.threshold_ns);
        self.host.now_ns().saturating_sub(taken_ns) <= between.saturating_mul(FRESH)
    }

    /// A finding of one of these kinds that was made of this process already.
    pub(super) fn has_found(&self, process: ProcessId, kinds: &[Kind]) -> Option<&Finding> {
        self.found.iter().find(|finding| finding.process == process && kinds.contains(&finding.kind))
    }

    /// A finding of one of these kinds that a thread of this process is part of.
    pub(super) fn is_part_of(&self, process: ProcessId, kinds: &[Kind]) -> Option<&Finding> {
        let is_its = |tid: &Pid| self.host.row(*tid).is_some_and(|row| row.process == process);
        self.found.iter().find(|finding| {
            finding.severity >= Severity::Warning
                && kinds.contains(&finding.kind)
                && (finding.process == process || finding.threads.iter().any(is_its))
        })
    }

    /// Where the threads of a process stand: the longest wait for a lock that leads somewhere, else its main thread.
    pub(super) fn standing(&self, process: ProcessId) -> Standing {
        let host = self.host;
        let is_its = |tid: Pid| host.row(tid).is_some_and(|row| row.process == process);
        let chain = self
            .chains
            .iter()
            .filter(|chain| chain.hops.first().is_some_and(|hop| hop.is_lock() && is_its(hop.waiter)))
            .filter(|chain| chain.hops.first().is_some_and(|hop| self.has_lasted(hop.waiter)))
            .max_by_key(|chain| chain.hops.len());
        if let Some((chain, first)) = chain.and_then(|chain| Some((chain, chain.hops.first()?))) {
            let (who, lock) = (host.name(first.waiter), first.resource.describe());
            let onward = match chain.end {
                End::Root(root) => format!(", which leads to {}, which {}", host.name(root), host.doing(root)),
                _ => String::new(),
            };
            let words = format!("{who} waits for {lock}{onward}");
            return Standing { threads: vec![first.waiter], chain: links(&chain.hops, host), words };
        }
        let running = host.threads_of(process.pid).find(|row| !row.is_blocked() && !row.is_exiting());
        let row = running.or_else(|| host.row(process.pid)).or_else(|| host.threads_of(process.pid).next());
        match row {
            Some(row) => {
                let reading = host.wait(row.tid).and_then(|wait| wait.reading);
                let at = reading.map(|reading| format!(", in {}", reading.frames())).unwrap_or_default();
                let words = format!("{} {}{at}", host.name(row.tid), host.doing(row.tid));
                Standing { threads: vec![row.tid], chain: Vec::new(), words }
            }
            None => Standing { threads: Vec::new(), chain: Vec::new(), words: "it has no thread".to_owned() },
        }
    }

    /// Whether a thread has been off the CPU for the threshold.
    pub(super) fn has_lasted(&self, tid: Pid) -> bool {
        self.host.row(tid).is_some_and(|row| self.host.blocked_ns(row) >= self.scope.threshold_ns)
    }
}

/// Where the threads of a process stand.
pub(super) struct Standing {
    pub(super) threads: Vec<Pid>,
    pub(super) chain: Vec<Link>,
    pub(super) words: String,
}

impl Verdict {
    /// Whether something had lasted for `long_ns` when the sockets were listed; if not, notes when it would.
    pub(super) fn is_due(&mut self, since_ns: u64, long_ns: u64, debts: &Debts, context: &Context<'_>) -> bool {
        let is_due = debts.age(since_ns) >= long_ns;
        // One that learns more by watching for longer than anybody asked for is not waited for.
        if !is_due && long_ns <= context.scope.threshold_ns {
            self.later(since_ns.saturating_add(long_ns).max(context.host.now_ns()));
        }
        is_due
    }
}

/// Requests of a process that are not answered, by service.
pub(super) struct Owed<'a> {
    pub(super) requests: Vec<(&'a Line, u64)>,
    pub(super) oldest_ns: u64,
    pub(super) services: Vec<&'a str>,
    pub(super) abandoned: usize,
}

impl<'a> Owed<'a> {
    /// `None` if all are answered.
    pub(super) fn of(debts: &'a Debts) -> Option<Self> {
        // Clients that gave up while we looked on, and were not answered before, nor anybody after them: with patience shorter than the
        // threshold they would else hide that nobody is served.
        let answered = |line: &Line| debts.history(service(&line.at)).map_or(0, |history| history.last_ns);
        let left = debts.abandoned().filter(|(line, since)| *since >= debts.first_ns && *since > answered(line));
        let left: Vec<(&Line, u64)> = left.collect();
        let mut requests: Vec<(&Line, u64)> = debts.unanswered().collect();
        if requests.is_empty() && left.len() < NEWER {
            return None;
        }
        requests.extend(left);
        let oldest_ns = requests.iter().map(|(_, since)| *since).min()?;
        let mut services: Vec<&str> = requests.iter().map(|(line, _)| service(&line.at)).collect();
        services.sort_unstable();
        services.dedup();
        Some(Self { requests, oldest_ns, services, abandoned: debts.abandoned().count() })
    }

    /// `12 requests`.
    pub(super) fn count(&self) -> String {
        crate::model::debts::requests(self.requests.len() as u64)
    }

    /// The slowest answer known of any of these services, nanoseconds, and how many are known.
    pub(super) fn learnt(&self, debts: &Debts) -> (u64, u64) {
        let known = self.services.iter().filter_map(|service| debts.history(service));
        known.fold((0, 0), |(longest, count), one| (longest.max(one.longest_ns), count + one.answers))
    }

    /// Whether those who came later were answered: what keeps the oldest waiting is not what keeps the server. A quiet websocket beside
    /// requests that are not answered, for the threshold, says nothing of them.
    pub(super) fn is_served(&self, debts: &Debts, threshold_ns: u64) -> bool {
        let last = self.last_answer(debts).unwrap_or(0);
        !self.requests.iter().any(|(_, since)| *since > last && debts.age(*since) >= threshold_ns)
    }

    /// When any of them answered last.
    pub(super) fn last_answer(&self, debts: &Debts) -> Option<u64> {
        self.services.iter().filter_map(|service| debts.history(service)).map(|one| one.last_ns).max()
    }

    /// Whether what was seen of these services says that this is no slow answer: enough answers, the oldest request many times older than
    /// the slowest of them, others kept coming, for the threshold at least, and none was answered. A few clients who have turned to wait on
    /// purpose (workers in `BLPOP`, at night) do not keep coming.
    pub(super) fn is_unlike_before(&self, debts: &Debts, threshold_ns: u64) -> bool {
        self.services.iter().any(|name| {
            let Some(history) = debts.history(name) else { return false };
            // What is older than the last answer waits for something else: a quiet websocket beside the requests.
            let of_it = self.requests.iter().filter(|(line, _)| service(&line.at) == *name);
            let requests = of_it.filter(|(line, _)| !line.is_one_way(threshold_ns)).map(|(_, since)| *since);
            let since: Vec<u64> = requests.filter(|since| *since > history.last_ns).collect();
            let (Some(oldest), Some(newest)) = (since.iter().min(), since.iter().max()) else { return false };
            history.answers >= LEARNT
                && since.iter().filter(|since| *since > oldest).count() >= NEWER
                && newest - oldest >= threshold_ns
                && debts.age(*oldest) >= history.longest_ns.saturating_mul(BEYOND)
        })
    }

    /// For the evidence.
    pub(super) fn to_json(&self, debts: &Debts) -> Value {
        let (longest, count) = self.learnt(debts);
        json!({
            "count": self.requests.len(),
            "oldest_ns": debts.age(self.oldest_ns),
            "services": self.services,
            "port": self.services.first().and_then(|port| port.parse::<u16>().ok()),
            "abandoned": self.abandoned,
            "answers_seen": count,
            "longest_answer_ns": (count > 0).then_some(longest),
        })
    }
}

/// What a connection is, as something waited for.
pub(super) fn resource(line: &Line) -> Resource {
    let kind = match line.at.kind {
        StreamKind::Tcp => ResourceKind::Tcp,
        StreamKind::Unix => ResourceKind::Unix,
    };
    Resource {
        fd: Some(line.at.fd),
        local: line.at.local.clone(),
        remote: line.at.remote.clone(),
        ..Resource::of(kind)
    }
}

/// A step from a thread over a connection to whoever has its other end, with what is known to be wrong there.
pub(super) fn over(context: &Context<'_>, from: Pid, line: &Line, how: &str) -> Vec<Link> {
    let host = context.host;
    let peer = line.at.peer_process.filter(|peer| host.row(peer.pid).is_some_and(|row| row.process == *peer));
    let mut chain = vec![Link {
        from: thread_ref(from, host),
        waits_for: resource(line),
        held_by: peer.map(|peer| thread_ref(peer.pid, host)),
        nature: Nature::FarEnd,
        confidence: if peer.is_some() { Confidence::Certain } else { Confidence::Likely },
        how: how.to_owned(),
    }];
    let wrong = peer.and_then(|peer| context.found.iter().find(|finding| finding.process == peer));
    chain.extend(wrong.into_iter().flat_map(|finding| finding.chain.iter().take(MOST_LINKS).cloned()));
    chain
}

/// A peer for people: its address, and its name where it is on this host.
pub(super) fn peer_name(host: &Host, line: &Line) -> String {
    let address = line.at.remote.clone().unwrap_or_else(|| format!("socket {}", line.at.inode));
    match line.at.peer_process.and_then(|peer| host.row(peer.pid).filter(|row| row.process == peer)) {
        Some(row) => format!("{address} ({}, pid {})", row.comm, row.process.pid),
        None => address,
    }
}

/// What the process got done between the last two listings, for people.
pub(super) fn progress_words(debts: &Debts) -> String {
    let progress = &debts.progress;
    if progress.elapsed_ns == 0 {
        return String::new();
    }
    format!(
        " In the last {} its threads were switched {} time(s) and used {} of CPU time, {} answer(s) were seen and {} connection(s) accepted.",
        duration(progress.elapsed_ns),
        progress.switches,
        duration(progress.cpu_ns),
        progress.answers,
        progress.accepts
    )
}

/// The same for the evidence.
pub(super) fn progress_json(debts: &Debts) -> Value {
    json!(debts.progress)
}

/// Findings that say a process does not do its work; the first of them is the reason.
const HUNG: [Kind; 12] = [
    Kind::Stopped,
    Kind::Deadlock,
    Kind::AbandonedLock,
    Kind::PoolExhausted,
    Kind::NotAccepting,
    Kind::NotReading,
    Kind::UnansweredRequests,
    Kind::AwaitingReply,
    Kind::LockWait,
    Kind::LostWakeup,
    Kind::GoroutineBlocked,
    Kind::Uninterruptible,
];
/// Of these, those that may be about one connection of many.
const PARTIAL: [Kind; 2] = [Kind::NotReading, Kind::AwaitingReply];

/// What these findings say of the processes they are about. One connection that is stuck says nothing of a process that answers others.
pub(super) fn verdicts(findings: &[Finding], host: &Host) -> BTreeMap<ProcessId, Said> {
    let answers = |process: ProcessId| host.services().of(process).is_some_and(|debts| debts.progress.answers > 0);
    let mut said: BTreeMap<ProcessId, (usize, Said)> = BTreeMap::new();
    for finding in findings.iter().filter(|finding| finding.severity >= Severity::Warning) {
        let Some(place) = HUNG.iter().position(|kind| *kind == finding.kind) else { continue };
        if PARTIAL.contains(&finding.kind) && answers(finding.process) {
            continue;
        }
        if said.get(&finding.process).is_some_and(|(before, _)| *before <= place) {
            continue;
        }
        let peer = finding.evidence.get("remote").and_then(Value::as_str);
        let state = match peer.filter(|_| finding.kind == Kind::AwaitingReply) {
            Some(peer) => State::Waiting(peer.to_owned()),
            None => State::Hung,
        };
        said.insert(finding.process, (place, Said { state, why: finding.title.clone() }));
    }
    said.into_iter().map(|(process, (_, verdict))| (process, verdict)).collect()
}
