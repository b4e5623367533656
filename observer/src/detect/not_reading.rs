//! `not_reading`: bytes that came and that nobody reads.

use super::debts::{Owed, peer_name, progress_json, progress_words};
use super::{Context, Finding, Kind, Rule, Severity, Verdict};
use crate::census::ProcessId;
use crate::model::debts::{Debts, Line, service};
use crate::model::{Class, Confidence, duration};
use crate::proc::StreamKind;
use std::collections::BTreeMap;

/// What lies unread in a connection that the process has made: less is a notice it does not care for while the connection rests.
const MUCH: u64 = 64 << 10;

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
            for line in debts.lines().filter(|line| counts(line, process)) {
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
            if held > 0 && (debts.progress.has_served() || stopped <= held) || writes(context, process) {
                continue;
            }
            for (name, lines) in unread {
                verdict.findings.extend(finding(context, process, debts, &name, &lines));
            }
        }
        verdict
    }
}

fn counts(line: &Line, process: ProcessId) -> bool {
    // What a program owes itself nobody else waits for.
    if line.at.peer_process == Some(process) {
        return false;
    }
    // One who keeps sending to it serves it, and does not care for what it says.
    line.is_open() && line.at.unread > 0 && !line.has_sent() && (line.at.inbound || line.at.unread > MUCH)
}

/// Whether a thread of it has waited for the threshold to get rid of what it has: a full pipe, a terminal.
fn writes(context: &Context<'_>, process: ProcessId) -> bool {
    let host = context.host;
    let mut lasting = host.threads_of(process.pid).filter(|row| context.has_lasted(row.tid));
    lasting.any(|row| host.class(row) == Some(Class::Write))
}

fn finding(
    context: &Context<'_>,
    process: ProcessId,
    debts: &Debts,
    name: &str,
    lines: &[(&Line, u64)],
) -> Option<Finding> {
    let host = context.host;
    let (oldest, since_ns) = *lines.iter().min_by_key(|(_, since)| *since)?;
    let bytes: u64 = lines.iter().map(|(line, _)| line.at.unread).sum();
    let standing = context.standing(process);
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
    finding.remedy = if hot {
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
