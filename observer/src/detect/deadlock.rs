//! `deadlock`: a cycle of waits, within or across processes.

use super::finding::links_with;
use super::{Context, Finding, Kind, Rule, Severity, Verdict};
use crate::census::Pid;
use crate::model::graph::{self, End, Hop};
use crate::model::{ByReference, Confidence, Host, Owner, duration};
use std::collections::{BTreeMap, BTreeSet};

/// Steps of a circle that the explanation tells; the chain has them all.
const MAX_STEPS: usize = 6;

/// The rule.
#[derive(Debug)]
pub struct Deadlock;

impl Rule for Deadlock {
    fn check(&self, context: &Context<'_>) -> Verdict {
        // The same cycle is met from each of its threads and from everyone who waits for one of them.
        let mut cycles: BTreeMap<Vec<Pid>, (Vec<Hop>, BTreeSet<Pid>)> = BTreeMap::new();
        for chain in &context.chains {
            let End::Cycle(start) = chain.end else {
                continue;
            };
            let Some((outside, cycle)) = chain.hops.split_at_checked(start) else {
                continue;
            };
            let mut members: Vec<Pid> = cycle.iter().map(|hop| hop.waiter).collect();
            members.sort_unstable();
            let entry = cycles.entry(members).or_insert_with(|| (cycle.to_vec(), BTreeSet::new()));
            entry.1.extend(outside.iter().map(|hop| hop.waiter));
        }
        let mut verdict = Verdict::default();
        for circle in graph::circles_by_reference(context.host) {
            let mut members: Vec<Pid> = circle.iter().map(|hop| hop.waiter).collect();
            members.sort_unstable();
            // An inference needs time on its side, too: all of them have waited for long.
            let since = members.iter().filter_map(|tid| context.host.row(*tid)).map(|row| context.host.since(row).ns);
            if !cycles.contains_key(&members) && verdict.is_ripe(since.max().unwrap_or(u64::MAX), context) {
                cycles.insert(members, (circle, BTreeSet::new()));
            }
        }
        for (members, (cycle, queued)) in cycles {
            if context.in_scope(members.iter().chain(&queued)) && is_closed(&mut verdict, context, &cycle) {
                verdict.findings.push(finding(context.host, &members, rotate(cycle), &queued));
            }
        }
        verdict
    }
}

/// A file lock of several threads, or of processes that share it, can be released by another one than the cycle goes
/// through: such a cycle counts once all threads of that process have slept for the threshold.
fn is_closed(verdict: &mut Verdict, context: &Context<'_>, cycle: &[Hop]) -> bool {
    let host = context.host;
    let loose = cycle.iter().filter(|hop| hop.confidence < Confidence::Certain && graph::is_file_lock(host, hop));
    let holders: BTreeSet<Pid> = loose
        .filter_map(|hop| match hop.owner {
            Some(Owner::Thread(tid)) => Some(host.row(tid)?.process.pid),
            _ => None,
        })
        .collect();
    let mut threads = holders.iter().flat_map(|pid| host.threads_of(*pid)).filter(|row| !row.is_exiting());
    threads.all(|row| {
        let since = if row.is_blocked() { host.since(row).ns } else { host.now_ns() };
        verdict.is_ripe(since, context)
    })
}

/// Begins with the smallest thread id, so that the same cycle reads the same each time.
fn rotate(mut cycle: Vec<Hop>) -> Vec<Hop> {
    let first = cycle.iter().enumerate().min_by_key(|(_, hop)| hop.waiter).map_or(0, |(at, _)| at);
    cycle.rotate_left(first);
    cycle
}

fn finding(host: &Host, members: &[Pid], cycle: Vec<Hop>, queued: &BTreeSet<Pid>) -> Finding {
    let rows: Vec<_> = members.iter().filter_map(|tid| host.row(*tid)).collect();
    let process = rows.iter().map(|row| row.process).min().unwrap_or(crate::census::ProcessId { pid: 0, start_ns: 0 });
    let processes: BTreeSet<Pid> = rows.iter().map(|row| row.process.pid).collect();
    // The cycle closed when the last of its threads went to sleep.
    let since = rows.iter().map(|row| host.since(row).ns).max().unwrap_or(0);
    let key = cycle
        .iter()
        .map(|hop| format!("{}@{:#x}", hop.waiter, hop.resource.address.unwrap_or(0)))
        .collect::<Vec<_>>()
        .join(",");
    let confidence = cycle.iter().map(|hop| hop.confidence).min().unwrap_or(Confidence::Possible);
    let steps: Vec<String> = cycle
        .iter()
        .zip(cycle.iter().cycle().skip(1))
        .map(|(hop, next)| {
            let verb = if hop.resource.kind == crate::model::ResourceKind::Thread { "of" } else { "held by" };
            format!("{} waits for {} {verb} {}", host.name(hop.waiter), describe(hop), host.name(next.waiter))
        })
        .collect();
    let steps = match steps.len() {
        0..=MAX_STEPS => steps.join("; "),
        n => format!("{}; … {} more …; {}", steps[..MAX_STEPS - 1].join("; "), n - MAX_STEPS, steps[n - 1]),
    };
    let deadline = cycle
        .iter()
        .filter_map(|hop| host.confirmed_wait(hop.waiter)?.1.timeout.remaining_ns)
        .min()
        .and_then(|ns| u64::try_from(ns).ok());
    let mut finding = Finding::new(Kind::Deadlock, host, process, &key)
        .since_mono(since, host)
        .with_threads(members.iter().copied().chain(queued.iter().copied()))
        .fact("cycle", members.len())
        .fact("processes", processes.iter().copied().collect::<Vec<_>>())
        .fact("also_blocked", queued.iter().copied().collect::<Vec<_>>());
    finding.severity = if confidence == Confidence::Possible { Severity::Warning } else { Severity::Critical };
    finding.confidence = confidence;
    let runs_itself = cycle.iter().all(|hop| hop.how == graph::BY_RUNNING);
    finding.title = match members.len() {
        1 if runs_itself => format!("{} waits for something that it is initialising itself", host.name(members[0])),
        1 => format!("{} waits for a lock that it holds itself", host.name(members[0])),
        n if processes.len() > 1 => {
            format!("{n} threads of {} processes wait for each other in a circle", processes.len())
        }
        n => format!("{n} threads of {} wait for each other in a circle", finding.comm),
    };
    let age = duration(host.now_ns().saturating_sub(since));
    let ending = match deadline {
        Some(ns) => {
            format!("One of these waits has a time limit and gives up in {}; until then none can go on.", duration(ns))
        }
        None => "None of these waits has a time limit: it will never end by itself.".to_owned(),
    };
    let others = match queued.len() {
        0 => String::new(),
        1 => " One more thread waits behind them.".to_owned(),
        n => format!(" {n} more threads wait behind them."),
    };
    let inferred = inference(host, members, &cycle);
    finding.explanation = format!("{steps}. The circle has been closed for {age}. {ending}{others}{inferred}");
    finding.remedy = if runs_itself {
        "Find the initialiser that needs, by way of others, the value that it makes: pass that value in, or make it earlier. The process must be restarted.".to_owned()
    } else if members.len() == 1 {
        "Find the path on which this thread takes the same lock twice; use a recursive lock or split the function. The process must be restarted.".to_owned()
    } else {
        "Take these locks in one order everywhere, or never call out while holding one. The process must be restarted to go on; save its stacks first.".to_owned()
    };
    finding.chain = links_with(&cycle, queued, host);
    finding
}

/// What a circle rests on that was closed by references.
fn inference(host: &Host, members: &[Pid], cycle: &[Hop]) -> String {
    let inferred: Vec<ByReference> = cycle
        .iter()
        .filter(|hop| hop.how == graph::BY_REFERENCE)
        .filter_map(|hop| host.holder_by_reference(hop.waiter))
        .collect();
    let runs = cycle.iter().any(|hop| hop.how == graph::BY_RUNNING);
    let running = " What is initialised once is waited for until the thread is done that does it: it stands in the function that runs the initialiser, with a reference to it in its live frames.";
    if inferred.is_empty() {
        return if runs { running.to_owned() } else { String::new() };
    }
    let others: BTreeSet<Pid> =
        inferred.iter().flat_map(|found| &found.others).copied().filter(|tid| !members.contains(tid)).collect();
    let unsearched = inferred.iter().map(|found| found.unsearched).max().unwrap_or(0);
    let mut text = if runs { running.to_owned() } else { String::new() };
    text.push_str(" These locks do not record their holder: it is taken to be the thread that sleeps with most references to the lock in its live frames.");
    if !others.is_empty() {
        let names: Vec<String> = others.iter().take(3).map(|tid| host.name(*tid)).collect();
        let more = others.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        text.push_str(&format!(
            " {}{more} have references, too; if one of them is the holder, this is a queue.",
            names.join(", ")
        ));
    }
    if unsearched > 0 {
        text.push_str(&format!(" {unsearched} threads could not be searched, since they run or have no stack."));
    }
    text
}

fn describe(hop: &Hop) -> String {
    match hop.resource.kind {
        crate::model::ResourceKind::Thread => "the exit".to_owned(),
        _ => hop.resource.describe(),
    }
}
