//! `not_reading`: bytes that came and that nobody reads.

use super::debts::{Owed, Standing, peer_name, progress_json, progress_words};
use super::finding::links;
use super::{Context, Finding, Kind, Rule, Severity, Verdict};
use crate::census::{Pid, ProcessId, ThreadRow};
use crate::model::debts::{Debts, Line, service};
use crate::model::graph::{Chain, End};
use crate::model::{Class, Confidence, Host, Owner, ResourceKind, duration};
use crate::proc::StreamKind;
use std::collections::BTreeMap;

/// What lies unread in a connection that the process has made: less is a notice it does not care for while the connection rests.
const MUCH: u64 = 64 << 10;

/// A record without content, as it ends a FastCGI request: PHP leaves it where it is until the script is done.
const LAST_RECORD: u64 = 8;

/// The rule.
#[derive(Debug)]
pub struct NotReading;

impl Rule for NotReading {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for (process, debts) in context.indebted() {
            let told = [Kind::Stopped, Kind::PoolExhausted, Kind::NotReading];
            if context.has_found(process, &told).is_some() {
                continue;
            }
            let mut unread: BTreeMap<String, Vec<(&Line, u64)>> = BTreeMap::new();
            for line in debts.lines().filter(|line| counts(line, process, context.scope.threshold_ns)) {
                let Some(since) = line.unread_since_ns else { continue };
                if !verdict.is_due(since, context.scope.threshold_ns, debts, context) {
                    continue;
                }
                let name = match line.at.inbound {
                    true => service(&line.at).to_owned(),
                    false => line.at.remote.clone().unwrap_or_default(),
                };
                unread.entry(name).or_default().push((line, since));
            }
            if unread.is_empty() {
                continue;
            }
            // Whoever cannot pass on what it reads stops reading: the end of that chain is to blame. It holds back about as much as it
            // cannot pass on, or serves others meanwhile; who hangs reads nobody.
            let held = debts.held_by_readers(context.scope.threshold_ns);
            let stopped: usize = unread.values().map(Vec::len).sum();
            let writer = Writer::of(context, process);
            if held > 0 && (debts.progress.has_served() || stopped <= held) || matches!(writer, Writer::Excused) {
                continue;
            }
            for (name, lines) in unread {
                verdict.findings.extend(finding(context, process, debts, (&name, &lines), &writer));
            }
        }
        verdict
    }
}

fn counts(line: &Line, process: ProcessId, threshold_ns: u64) -> bool {
    // What a program owes itself nobody else waits for.
    if line.at.peer_process == Some(process) {
        return false;
    }
    // It is at work on the request that this belongs to. Of unix sockets it is not known how much was read before.
    let is_last_record = line.at.kind == StreamKind::Unix && line.at.unread == LAST_RECORD;
    let is_at_work = line.is_begun() && !line.is_one_way(threshold_ns);
    if line.at.inbound && (is_at_work || is_last_record) {
        return false;
    }
    // One who keeps sending to it serves it, and does not care for what it says.
    line.is_open() && line.at.unread > 0 && !line.has_sent() && (line.at.inbound || line.at.unread > MUCH)
}

/// A thread of it that has waited for the threshold to get rid of what it has.
enum Writer<'a> {
    None,
    /// Somebody else is to blame: at the end of its way is a process with a finding, a person at a terminal, or a socket, which is judged
    /// by what lies in it.
    Excused,
    /// Into a pipe that is full, and nothing else says why; with its way, where that is known.
    AtPipe(Pid, Option<&'a Chain>),
}

impl<'a> Writer<'a> {
    fn of(context: &'a Context<'_>, process: ProcessId) -> Self {
        let host = context.host;
        let mut found = Self::None;
        for row in host.threads_of(process.pid).filter(|row| context.has_lasted(row.tid)) {
            if host.class(row) != Some(Class::Write) {
                continue;
            }
            let way = context.chains.iter().find(|chain| chain.hops.first().is_some_and(|hop| hop.waiter == row.tid));
            let at = host.wait(row.tid).and_then(|wait| wait.resource).map(|resource| resource.kind);
            if at != Some(ResourceKind::Pipe) || way.is_some_and(|way| is_explained(context, process, way)) {
                return Self::Excused;
            }
            // Who has the other end was not found out yet.
            if way.is_none() && host.wait(row.tid).is_none_or(|wait| wait.far_end.is_none()) {
                return Self::Excused;
            }
            if matches!(found, Self::None) {
                found = Self::AtPipe(row.tid, way);
            }
        }
        found
    }
}

/// Whether what stands behind a full pipe is told elsewhere, or is meant: a pager waits for its reader.
fn is_explained(context: &Context<'_>, process: ProcessId, way: &Chain) -> bool {
    let host = context.host;
    let others = way.hops.iter().filter_map(|hop| match hop.owner {
        Some(Owner::Thread(tid)) => host.row(tid),
        _ => None,
    });
    let is_told = |other: &ThreadRow| {
        let found = || context.found.iter().any(|finding| finding.process == other.process);
        other.process != process && (other.is_stopped() || found())
    };
    let End::Root(root) = way.end else { return true };
    let wait = host.wait(root);
    let rests_at = |kind| wait.as_ref().and_then(|wait| wait.resource.as_ref()).is_some_and(|at| at.kind == kind);
    let writes_on = wait.as_ref().is_some_and(|wait| wait.class == Class::Write) && !rests_at(ResourceKind::Pipe);
    others.into_iter().any(is_told) || rests_at(ResourceKind::Terminal) || writes_on
}

/// Where a thread stands that writes into a full pipe: who does not read it, and what that does instead.
fn at_pipe(host: &Host, tid: Pid, way: Option<&Chain>) -> Standing {
    let onward = match way.map(|way| way.end) {
        Some(End::Root(root)) => {
            format!(", which is full; its other end leads to {}, which {}", host.name(root), host.doing(root))
        }
        _ => ", which is full".to_owned(),
    };
    let words = format!("{} {}{onward}", host.name(tid), host.doing(tid));
    Standing { threads: vec![tid], chain: way.map(|way| links(&way.hops, host)).unwrap_or_default(), words }
}

fn finding(
    context: &Context<'_>,
    process: ProcessId,
    debts: &Debts,
    (name, lines): (&str, &[(&Line, u64)]),
    writer: &Writer<'_>,
) -> Option<Finding> {
    let host = context.host;
    let (oldest, since_ns) = *lines.iter().min_by_key(|(_, since)| *since)?;
    let bytes: u64 = lines.iter().map(|(line, _)| line.at.unread).sum();
    let standing = match writer {
        Writer::AtPipe(tid, way) => at_pipe(host, *tid, *way),
        _ => context.standing(process),
    };
    let age = debts.age(since_ns);
    let hot = debts.progress.is_hot();
    let mut finding = Finding::new(Kind::NotReading, host, process, name)
        .since_mono(since_ns, host)
        .with_threads(standing.threads.iter().copied())
        .fact("service", name)
        .fact("connections", lines.len())
        .fact("unread_bytes", bytes)
        .fact("waited_ns", age)
        .fact("peer", peer_name(host, oldest))
        .fact("running", hot)
        .fact("since_exact", false)
        .fact("progress", progress_json(debts));
    // Nobody waits for it, and no lock is in its way: whoever takes long for each piece reads the next one late.
    let is_at_leisure =
        lines.iter().all(|(line, _)| !line.at.inbound) && Owed::of(debts).is_none() && standing.chain.is_empty();
    finding.severity = if is_at_leisure { Severity::Info } else { Severity::Warning };
    // How much lies in a unix socket says little of what went through it meanwhile.
    let is_seen = lines.iter().any(|(line, _)| line.at.kind == StreamKind::Tcp) || debts.progress.switches == 0;
    finding.confidence = if is_seen { Confidence::Certain } else { Confidence::Possible };
    let long = duration(age);
    let count = lines.len();
    let at = if oldest.at.inbound { format!("its port {name}") } else { format!("its connection to {name}") };
    let at = if name.contains('/') { format!("its socket {name}") } else { at };
    finding.title =
        format!("{} has not read for {long} what came to {at}: {bytes} byte(s) on {count} connection(s)", finding.comm);
    let running =
        if hot { " It is running all the while: something keeps it from coming back to its sockets." } else { "" };
    finding.explanation = format!(
        "{bytes} byte(s) lie in {count} open connection(s) of {at}, the oldest for {long} at least (peer {}), and none of them was read. At the same time {}.{running}{}",
        peer_name(host, oldest),
        standing.words,
        progress_words(debts)
    );
    finding.remedy = if let Writer::AtPipe(..) = writer {
        "The pipe is full: look at the process that has its other end, why it does not read (it is not meant to, it is stuck, it was given the pipe and forgot it). A log must not be able to stop the service: give it a file, a collector that reads, or a write that may fail."
    } else if hot {
        "Profile what it computes (perf top): an event loop must not do long work in a callback."
    } else if standing.chain.is_empty() {
        "Read the stack of the thread that should read this connection: blocked in a callback, waiting for a worker, or the connection was forgotten."
    } else {
        "The chain shows what the thread waits for: find out why that lock is not let go."
    }
    .to_owned();
    finding.chain = standing.chain;
    Some(finding)
}
