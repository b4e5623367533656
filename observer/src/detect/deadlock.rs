//! `deadlock`: a cycle of waits, within or across processes.

use super::finding::links_with;
use super::{Context, Finding, Kind, Rule, Severity, Verdict};
use crate::census::{Pid, ThreadRow};
use crate::model::graph::{self, Chain, End, Hop, Knot, Nature};
use crate::model::{ByReference, Class, Confidence, Host, Owner, duration};
use crate::proc::Frame;
use std::collections::BTreeSet;

/// Steps of a circle that the explanation tells; the chain has them all.
const MAX_STEPS: usize = 6;

/// The rule.
#[derive(Debug)]
pub struct Deadlock;

impl Rule for Deadlock {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for knot in context.graph.knots() {
            // The same knot is met by everyone who waits for one of its threads.
            let is_of = |chain: &&Chain| matches!(chain.end, End::Cycle(at) if chain.hops.get(at).is_some_and(|hop| knot.members.contains(&hop.waiter)));
            let met = context.chains.iter().filter(is_of).flat_map(|chain| &chain.hops).map(|hop| hop.waiter);
            let queued: BTreeSet<Pid> = met.filter(|tid| !knot.members.contains(tid)).collect();
            // An inference needs time on its side, too: all of them have waited for long.
            let rows = knot.members.iter().filter_map(|tid| context.host.row(*tid));
            let since = rows.map(|row| context.host.since(row).ns).max().unwrap_or(u64::MAX);
            if context.in_scope(knot.members.iter().chain(&queued))
                && (!knot.is_inferred() || verdict.is_ripe(since, context))
                && is_closed(&mut verdict, context, knot)
            {
                verdict.findings.push(finding(context, knot, &queued));
            }
        }
        verdict
    }
}

/// A file lock of several threads, or of processes that share it, can be released by another one than the cycle goes
/// through: such a cycle counts once all threads of that process have slept for the threshold.
fn is_closed(verdict: &mut Verdict, context: &Context<'_>, knot: &Knot) -> bool {
    let host = context.host;
    let loose = knot.hops().filter(|hop| hop.confidence < Confidence::Certain && hop.nature == Nature::FileLock);
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

fn finding(context: &Context<'_>, knot: &Knot, queued: &BTreeSet<Pid>) -> Finding {
    let (host, graph, cycle) = (context.host, &context.graph, &knot.circle);
    let members: Vec<Pid> = knot.members.iter().copied().collect();
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
    let confidence = knot.hops().map(|hop| hop.confidence).min().unwrap_or(Confidence::Possible);
    let steps: Vec<String> = cycle
        .iter()
        .zip(cycle.iter().cycle().skip(1))
        .map(|(hop, next)| {
            let (waiter, verb) = (host.name(hop.waiter), hop.nature.verb());
            match hop.how {
                graph::NOBODY_LEFT => format!("{waiter} waits for {}", describe(hop)),
                _ => format!("{waiter} waits for {} {verb} {}", describe(hop), host.name(next.waiter)),
            }
        })
        .collect();
    let steps = match steps.len() {
        0..=MAX_STEPS => steps.join("; "),
        n => format!("{}; … {} more …; {}", steps[..MAX_STEPS - 1].join("; "), n - MAX_STEPS, steps[n - 1]),
    };
    let deadline = knot
        .hops()
        .filter_map(|hop| host.confirmed_wait(hop.waiter)?.1.timeout.remaining_ns)
        .min()
        .and_then(|ns| u64::try_from(ns).ok());
    let mut finding = Finding::new(Kind::Deadlock, host, process, &key)
        .since_mono(since, host)
        .with_threads(members.iter().copied().chain(queued.iter().copied()))
        .fact("cycle", cycle.len())
        .fact("members", members.as_slice())
        .fact("processes", processes.iter().copied().collect::<Vec<_>>())
        .fact("also_blocked", queued.iter().copied().collect::<Vec<_>>());
    finding.severity = if confidence == Confidence::Possible { Severity::Warning } else { Severity::Critical };
    finding.confidence = confidence;
    let left = Left::of(host, knot);
    let runs_itself = cycle.iter().all(|hop| hop.how == graph::BY_RUNNING);
    finding.title = match members.len() {
        1 if left.is_some() => format!("{} waits for a lock that nobody is left to release", host.name(members[0])),
        n if left.is_some() => format!("{n} threads of {} wait for locks that nobody is left to release", finding.comm),
        1 if runs_itself => format!("{} waits for something that it is initialising itself", host.name(members[0])),
        1 => format!("{} waits for a lock that it holds itself", host.name(members[0])),
        n if processes.len() > 1 => {
            format!("{n} threads of {} processes wait for each other in a circle", processes.len())
        }
        n => format!("{n} threads of {} wait for each other in a circle", finding.comm),
    };
    let age = duration(host.now_ns().saturating_sub(since));
    let closed = match &left {
        Some(_) => format!("This has lasted for {age}."),
        None => format!("The circle has been closed for {age}."),
    };
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
    let inferred = inference(host, &members, cycle);
    let beside = match knot.others.len() {
        0 => String::new(),
        n => format!(
            " Others could end some of these waits; they are part of it, too: {n} more thread(s) wait for these."
        ),
    };
    let far = match knot.hops().filter(|hop| hop.nature == Nature::FarEnd).map(|hop| hop.confidence).min() {
        None => "",
        Some(Confidence::Possible) => AT_REST,
        Some(_) => FAR_ENDS,
    };
    finding.explanation = format!(
        "{steps}. {closed} {ending}{beside}{others}{inferred}{far}{}",
        left.as_ref().map_or("", |left| left.told().0)
    );
    finding.remedy = if let Some(remedy) = over_pipes(host, knot) {
        remedy
    } else if let Some(left) = &left {
        left.told().1.to_owned()
    } else if runs_itself {
        "Find the initialiser that needs, by way of others, the value that it makes: pass that value in, or make it earlier. The process must be restarted.".to_owned()
    } else if members.len() == 1 {
        "Find the path on which this thread takes the same lock twice; use a recursive lock or split the function. The process must be restarted.".to_owned()
    } else {
        "Take these locks in one order everywhere, or never call out while holding one. The process must be restarted to go on; save its stacks first.".to_owned()
    };
    if let Some(left) = &left {
        finding =
            finding.fact("nobody_left", true).fact("forked", left.forked).fact("in_signal_handler", left.in_handler);
    }
    let behind: BTreeSet<Pid> = queued.iter().copied().chain(knot.others.iter().map(|hop| hop.waiter)).collect();
    finding.chain = links_with(cycle, &behind, graph, host);
    finding
}

/// Locks that name no owner, in processes that have nobody left to release them, and what speaks for which way it came to that.
struct Left {
    forked: bool,
    in_handler: bool,
}

impl Left {
    /// `None` if every lock of the knot has a holder.
    fn of(host: &Host, knot: &Knot) -> Option<Self> {
        let waiters: Vec<Pid> = knot.hops().filter(|hop| hop.how == graph::NOBODY_LEFT).map(|hop| hop.waiter).collect();
        let first = waiters.first()?;
        // Workers are forked, too, and live long: what was held at the fork is met soon, by the one thread that came along.
        let since = host.row(*first).map_or(u64::MAX, |row| host.since(row).ns);
        let slept_ns = host.clocks().map_or(0, |clocks| clocks.boot_ns.saturating_sub(clocks.mono_ns));
        let is_young = |row: &ThreadRow| since.saturating_add(slept_ns) < row.start_ns.saturating_add(YOUNG_NS);
        let is_forked = |row: &ThreadRow| knot.members.len() == 1 && row.is_forked_only() && is_young(row);
        let forked = host.row(*first).and_then(|row| host.row(row.process.pid)).is_some_and(is_forked);
        let is_handler = |frame: &Frame| frame.function.as_deref() == Some(SIGNAL_FRAME);
        let stacks = waiters.iter().filter_map(|tid| host.stack(*tid));
        let in_handler = stacks.into_iter().any(|stack| stack.frames.iter().any(is_handler));
        Some(Self { forked, in_handler })
    }

    /// How it came about, and what to do.
    fn told(&self) -> (&'static str, &'static str) {
        match self {
            Self { in_handler: true, .. } => (
                " Every thread of the process waits, and no other process can release a private lock. A signal handler is on the stack: most likely the code that it has interrupted holds the lock.",
                "Read the stack: a signal handler may call async-signal-safe functions only (no malloc, printf, localtime, logging). Let it set a flag or write to a pipe, and do the work elsewhere. The process must be restarted.",
            ),
            Self { forked: true, .. } => (
                " Every thread of the process waits, and no other process can release a private lock. It was forked and has executed no program since: most likely a thread of its parent held the lock at that moment, and stayed behind.",
                "Between fork() and exec() call only async-signal-safe functions (no malloc, localtime, logging) if the parent has threads; or start helpers by posix_spawn() or before the first thread, or take the lock around fork() with pthread_atfork(). The process must be restarted.",
            ),
            _ => (
                " Every thread of the process waits, and no other process can release a private lock: one of them takes it a second time, or who had it has ended, or stayed behind in the parent of a fork.",
                "Read the stacks for the path on which a thread takes the same lock twice (of a read lock, too: a writer in between makes the second one wait), or ends with it held. The process must be restarted.",
            ),
        }
    }
}

/// A wait that begins so soon after a fork is taken for one that comes of it.
const YOUNG_NS: u64 = 5_000_000_000;

/// What the kernel makes a signal handler return to, as the C library names it.
const SIGNAL_FRAME: &str = "__restore_rt";

/// What circles over pipes and sockets rest on.
const FAR_ENDS: &str = " No other process that observer can see has the other ends of these pipes and sockets open; a signal handler could still use them.";

/// The same, where threads were left out of account.
const AT_REST: &str = " No other process that observer can see has the other ends open; but there the processes have further threads at rest, any of which could still wake up and read.";

/// What to look at first where pipes or sockets are part of it.
fn over_pipes(host: &Host, knot: &Knot) -> Option<String> {
    let far = || knot.hops().filter(|hop| hop.nature == Nature::FarEnd);
    let class = |hop: &Hop| host.confirmed_wait(hop.waiter).map(|(_, wait)| wait.class);
    let writes = far().filter(|hop| class(hop) == Some(Class::Write)).count();
    let waits_for_child = knot.hops().any(|hop| hop.nature == Nature::Child);
    Some(match (far().count(), writes) {
        (0, _) => return None,
        (_, 1..) if waits_for_child => "A process waits for its child before it has read what that writes, and the pipe between them is full: read its output to the end first (communicate() of Python's subprocess, a thread that reads), or let it write to a file.",
        (_, 0) => "Each side waits for the other to speak, or to close: look for an answer that was not sent or not flushed, and for a write end that stayed open (close the unused ends after fork(), O_CLOEXEC).",
        _ => "Both sides write and neither reads: the buffers between them are full. Read while writing (poll(), a thread, communicate() of Python's subprocess), or use non-blocking descriptors.",
    }.to_owned())
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
