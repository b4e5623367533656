//! `awaiting_reply`: a request was sent, the peer is silent, nothing limits the wait, and somebody pays for it.
//!
//! To wait for a peer is what clients do. It is a finding where the peer cannot answer (it is stopped, hung itself, or does not even
//! acknowledge), or where the process owes answers itself while it waits.

use super::debts::{Owed, SLOW, over, peer_name, progress_json, resource};
use super::{Context, Finding, Kind, Rule, Severity, Verdict};
use crate::census::{Pid, ProcessId};
use crate::model::debts::{Debts, Line, TICK_NS};
use crate::model::{Class, Confidence, duration};
use std::collections::BTreeSet;

/// Times the same data were sent in vain.
const RETRANSMITS: u32 = 3;
/// Findings of a peer that answer why it is silent: it is stuck as a whole.
const SILENCED: [Kind; 6] = [
    Kind::Stopped,
    Kind::PoolExhausted,
    Kind::UnansweredRequests,
    Kind::NotReading,
    Kind::NotAccepting,
    Kind::AwaitingReply,
];
/// Findings about threads: they say so if its main thread is one of them, or if they are all it has.
const OF_THREADS: [Kind; 5] =
    [Kind::Deadlock, Kind::AbandonedLock, Kind::LockWait, Kind::LostWakeup, Kind::Uninterruptible];
/// Descriptors in a set that may be a wait for one of them, with something to be woken by.
const FEW: usize = 2;

/// The rule.
#[derive(Debug)]
pub struct AwaitingReply;

/// Why the wait matters.
struct Reason {
    name: &'static str,
    words: String,
    confidence: Confidence,
}

impl Rule for AwaitingReply {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        // Who waits for somebody who waits in turn is told after that one.
        let mut left: Vec<(ProcessId, &Debts)> = context.indebted().collect();
        let mut told: Vec<ProcessId> = Vec::new();
        loop {
            let before = left.len();
            left.retain(|(process, debts)| {
                let found = check(context, *process, debts, &told, &mut verdict);
                let is_told = found.is_some();
                if let Some(finding) = found {
                    // One dead peer of many is no reason for it to be silent to all others.
                    if finding.evidence.get("because").is_some_and(|why| why != "not_acknowledged") {
                        told.push(*process);
                    }
                    verdict.findings.push(finding);
                }
                !is_told
            });
            if left.len() == before {
                return verdict;
            }
        }
    }
}

/// The oldest wait of a process that is to be reported.
fn check(
    context: &Context<'_>,
    process: ProcessId,
    debts: &Debts,
    told: &[ProcessId],
    verdict: &mut Verdict,
) -> Option<Finding> {
    let host = context.host;
    if context.has_found(process, &[Kind::Stopped, Kind::PoolExhausted]).is_some() {
        return None;
    }
    let owed = Owed::of(debts);
    let mut awaiting: Vec<(&Line, u64)> = debts.awaiting().collect();
    awaiting.sort_by_key(|(_, since)| *since);
    for (line, since) in awaiting {
        if !verdict.is_due(since, context.scope.threshold_ns, debts, context) {
            continue;
        }
        let peer = line.at.peer_process;
        let thread = waiting_thread(context, process, line);
        let reason = unreachable(line).or_else(|| silenced(context, process, line, told)).or_else(|| {
            // A peer on this host in which nothing is wrong answers when it has something to say; one that nobody has asked to look at
            // is as unknown as one elsewhere.
            let is_asked =
                |peer: &ProcessId| context.scope.processes.as_ref().is_none_or(|all| all.contains(&peer.pid));
            let elsewhere = peer.map_or(line.at.peer.is_none(), |peer| !is_asked(&peer));
            let owed = owed.as_ref().filter(|_| elsewhere && thread.is_some() && !listens(context, process, debts))?;
            owing(debts, owed, since, (context.scope.threshold_ns, peer))
        });
        let Some(reason) = reason else { continue };
        let remote = line.at.remote.clone().unwrap_or_else(|| format!("socket {}", line.at.inode));
        let mut finding = Finding::new(Kind::AwaitingReply, host, process, &remote)
            .since_mono(since, host)
            .with_threads(thread)
            .fact("remote", remote.as_str())
            .fact("local", line.at.local.as_deref())
            .fact("fd", line.at.fd)
            .fact("peer_pid", peer.map(|peer| peer.pid))
            .fact("waited_ns", debts.age(since))
            .fact("unacknowledged_bytes", line.at.unsent)
            .fact("retransmits", line.at.retransmits)
            .fact("because", reason.name)
            .fact("unanswered", owed.as_ref().map(|owed| owed.to_json(debts)))
            .fact("progress", progress_json(debts));
        finding.severity = Severity::Warning;
        finding.confidence = reason.confidence;
        let long = duration(debts.age(since));
        let name = peer_name(host, line);
        let who = match thread {
            Some(tid) => host.name(tid),
            None => format!("{} (pid {})", finding.comm, process.pid),
        };
        finding.title = format!("{who} has awaited an answer of {name} for {long}");
        let limit = match thread.and_then(|tid| host.wait(tid)) {
            Some(wait) => format!(" It waits in {}() without a time limit in the call.", wait.syscall),
            None => String::new(),
        };
        let pays = match &owed {
            Some(owed) => format!(
                " Meanwhile it owes answers itself: {}, the oldest for {}.",
                owed.count(),
                duration(debts.age(owed.oldest_ns))
            ),
            None => String::new(),
        };
        finding.explanation = format!(
            "The last that passed over {} is what was sent to {name}, {long} ago. {}{limit}{pays}",
            resource(line).describe(),
            reason.words
        );
        finding.remedy = format!(
            "Look at {name}, and at the path to it: is it there, does it run, what does it wait for. Give the wait a time limit (SO_RCVTIMEO, the client's own timeout), and the connection TCP_USER_TIMEOUT or keep-alives, so that a dead peer ends it."
        );
        finding.chain = over(context, thread.unwrap_or(process.pid), line, "sent last, and nothing has come since");
        return Some(finding);
    }
    None
}

/// What was sent is not even acknowledged.
fn unreachable(line: &Line) -> Option<Reason> {
    let (tries, bytes) = (line.at.retransmits, line.at.unsent);
    (tries >= RETRANSMITS && bytes > 0).then(|| Reason {
        name: "not_acknowledged",
        words: format!(
            "{bytes} byte(s) are not acknowledged after {tries} retransmissions: the peer is cut off, or gone without a word; the kernel gives up after about a quarter of an hour."
        ),
        confidence: Confidence::Likely,
    })
}

/// The peer is on this host and cannot answer.
fn silenced(context: &Context<'_>, process: ProcessId, line: &Line, told: &[ProcessId]) -> Option<Reason> {
    let host = context.host;
    let peer = line.at.peer_process.filter(|peer| *peer != process)?;
    let row = host.row(peer.pid).filter(|row| row.process == peer)?;
    if host.is_process_stopped(peer.pid) {
        let words = format!("The peer, {} (pid {}), {}.", row.comm, peer.pid, host.doing(row.tid));
        return Some(Reason { name: "peer_stopped", words, confidence: Confidence::Certain });
    }
    // It answers somebody: it is not stuck as a whole.
    if host.services().of(peer).is_some_and(|debts| debts.progress.has_served()) {
        return None;
    }
    let name = |what: &str| format!("The peer, {} (pid {}), is stuck itself: {what}.", row.comm, peer.pid);
    let reason = |words| Reason { name: "peer_hung", words, confidence: Confidence::Likely };
    if told.contains(&peer) {
        return Some(reason(name("it awaits an answer in turn")));
    }
    let silences = |finding: &&Finding| {
        let has_main = || {
            let its = || host.threads_of(peer.pid).filter(|row| !row.is_exiting()).map(|row| row.tid);
            finding.threads.contains(&peer.pid)
                || its().next().is_some() && its().all(|tid| finding.threads.contains(&tid))
        };
        finding.severity >= Severity::Warning
            && (finding.process == peer && SILENCED.contains(&finding.kind)
                || OF_THREADS.contains(&finding.kind) && has_main())
    };
    context.found.iter().find(silences).map(|finding| reason(name(&finding.title)))
}

/// The process owes answers that came before it asked.
fn owing(debts: &Debts, owed: &Owed<'_>, since: u64, (threshold_ns, peer): (u64, Option<ProcessId>)) -> Option<Reason> {
    let (longest, _) = owed.learnt(debts);
    let late = debts.age(owed.oldest_ns) >= threshold_ns.max(longest.saturating_mul(SLOW));
    let asked_for = owed.oldest_ns <= since.saturating_add(TICK_NS);
    (late && asked_for).then(|| Reason {
        name: "owes_answers",
        words: match peer {
            Some(peer) => {
                format!("The peer is on this host and was not looked at: attach to process {} as well.", peer.pid)
            }
            None => "Its data were acknowledged; whether the peer works on them cannot be seen from here.".to_owned(),
        },
        confidence: if owed.is_unlike_before(debts, threshold_ns) { Confidence::Likely } else { Confidence::Possible },
    })
}

/// Whether a thread waits for more from a client that is not answered: it does not work for that client, it passes on what comes.
fn listens(context: &Context<'_>, process: ProcessId, debts: &Debts) -> bool {
    let clients: BTreeSet<i32> = debts.unanswered().map(|(line, _)| line.at.fd).collect();
    context.host.threads_of(process.pid).filter_map(|row| context.host.wait(row.tid)).any(|wait| match wait.class {
        Class::Read => clients.contains(&(wait.args[0] as u32 as i32)),
        Class::Event => wait.members.iter().any(|one| one.resource.fd.is_some_and(|fd| clients.contains(&fd))),
        _ => false,
    })
}

/// The thread that waits on this connection, if nothing limits its wait.
fn waiting_thread(context: &Context<'_>, process: ProcessId, line: &Line) -> Option<Pid> {
    let host = context.host;
    host.threads_of(process.pid).filter(|row| context.has_lasted(row.tid)).find_map(|row| {
        let wait = host.wait(row.tid)?;
        let is_on_it = match wait.class {
            Class::Read => wait.args[0] as u32 as i32 == line.at.fd,
            Class::Event => {
                let of_few = wait.members_cut == 0 && wait.members.len() <= FEW;
                of_few && wait.members.iter().any(|member| member.resource.fd == Some(line.at.fd))
            }
            _ => false,
        };
        (is_on_it && wait.timeout.is_unbounded()).then_some(row.tid)
    })
}
