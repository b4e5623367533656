//! `unanswered_requests`: a server that has requests and answers none of them, and something that says why this is no wait on purpose.
//!
//! A client in BLPOP, a long-poll, a websocket and a stream in one direction all look like a request without an answer. Age alone says
//! nothing: the threads that should answer are stuck, or the service itself has never before taken nearly as long.

use super::debts::{Owed, SLOW, progress_json, progress_words};
use super::tasks::Tasks;
use super::{Context, Finding, Kind, Link, Rule, Severity, Verdict};
use crate::census::{Pid, ProcessId};
use crate::model::debts::Debts;
use crate::model::frames::{JobKind, Rest, turn_of};
use crate::model::{Class, Confidence, duration};
use crate::proc::base_name;

/// Runtimes that are databases: a session in one of their own locks answers nothing until it is let go.
const DATABASES: [&str; 2] = ["postgresql", "mysql"];
/// Functions of theirs that wait for a lock because the client asked for just that: job queues and leaders elect each other so.
const ON_PURPOSE: [&str; 2] = ["pg_advisory_", "Item_func_get_lock"];
/// Findings that stop a process, or a part of it.
const STUCK: [Kind; 4] = [Kind::AbandonedLock, Kind::LockWait, Kind::LostWakeup, Kind::GoroutineBlocked];
/// Findings that tell the whole story already.
const TOLD: [Kind; 2] = [Kind::Stopped, Kind::PoolExhausted];

/// The rule.
#[derive(Debug)]
pub struct UnansweredRequests;

/// Why the requests are not just slow.
struct Reason {
    name: &'static str,
    words: String,
    remedy: &'static str,
    confidence: Confidence,
    threads: Vec<Pid>,
    chain: Vec<Link>,
}

impl Rule for UnansweredRequests {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for (process, debts) in context.indebted() {
            let Some(owed) = Owed::of(debts) else { continue };
            if context.has_found(process, &TOLD).is_some() {
                continue;
            }
            let threshold = context.scope.threshold_ns;
            if !verdict.is_due(owed.oldest_ns, threshold, debts, context) {
                continue;
            }
            // Where the stacks say it, one answer that once took hours (a dump, a stream) says nothing against it.
            let is_slow = debts.age(owed.oldest_ns) >= owed.learnt(debts).0.saturating_mul(SLOW)
                && context.has_found(process, &[Kind::NotReading]).is_none();
            let by_times =
                || stuck_elsewhere(context, process, &owed, debts).or_else(|| unlike_before(debts, &owed, threshold));
            // Who came later was answered: what is stuck is not all of what these wait for.
            let by_workers = || stuck_workers(context, process).filter(|_| !owed.is_served(debts, threshold));
            let reason =
                in_a_database(context, process).or_else(by_workers).or_else(|| is_slow.then(by_times).flatten());
            verdict.findings.extend(reason.map(|reason| finding(context, process, debts, &owed, reason)));
        }
        verdict
    }
}

/// A session of a database that waits for one of its locks.
fn in_a_database(context: &Context<'_>, process: ProcessId) -> Option<Reason> {
    let host = context.host;
    host.threads_of(process.pid).filter(|row| context.has_lasted(row.tid)).find_map(|row| {
        let (_, wait) = host.confirmed_wait(row.tid)?;
        let reading = wait.reading.as_ref().filter(|reading| reading.rest == Rest::Lock)?;
        let lock = reading.lock.filter(|_| DATABASES.contains(&reading.runtime))?;
        let frames = host.stack(row.tid).map(|stack| stack.frames.iter()).into_iter().flatten();
        let mut names = frames.filter_map(|frame| frame.function.as_deref());
        if names.any(|name| ON_PURPOSE.iter().any(|part| name.contains(part))) {
            return None;
        }
        Some(Reason {
            name: "database_lock",
            words: format!(
                "Its thread {} has waited for a lock of the database ({}, in {}) for {}. Which session has that lock is written in the database's own memory and is not read from outside.",
                host.name(row.tid),
                lock.named,
                reading.by,
                duration(host.blocked_ns(row))
            ),
            remedy: "Ask the database who blocks whom (PostgreSQL: pg_blocking_pids(), pg_locks; MySQL: sys.innodb_lock_waits, performance_schema.metadata_locks): mostly a transaction that was left open.",
            confidence: Confidence::Likely,
            threads: vec![row.tid],
            chain: Vec::new(),
        })
    })
}

/// Every thread that could answer is in the middle of a job, and blocked there.
fn stuck_workers(context: &Context<'_>, process: ProcessId) -> Option<Reason> {
    let host = context.host;
    let mut stuck: Vec<(Pid, JobKind, &'static str, String)> = Vec::new();
    let mut free: Vec<(&'static str, Class)> = Vec::new();
    for row in host.threads_of(process.pid).filter(|row| !row.is_exiting()) {
        let Some((_, wait)) = host.confirmed_wait(row.tid) else {
            // Not looked into: it may be a worker that waits for work, or runs.
            free.push(("", host.class(row).unwrap_or(Class::Other)));
            continue;
        };
        match wait.reading.as_ref() {
            Some(reading) if reading.rest == Rest::Idle => free.push((reading.runtime, wait.class)),
            Some(reading) if let Some(job) = &reading.job => {
                if context.has_lasted(row.tid) {
                    stuck.push((row.tid, job.kind, job.runtime, reading.frames()));
                } else {
                    free.push((job.runtime, Class::Other));
                }
            }
            _ => free.push(("", wait.class)),
        }
    }
    let (first, kind, runtime, frames) = stuck.first()?.clone();
    let may_answer = |(whose, class): &(&str, Class)| {
        let is_loop = matches!(class, Class::Event | Class::Accept | Class::Read);
        match kind {
            // Other loops and workers of the same runtime answer as well; its service threads do not.
            JobKind::Turn | JobKind::Pool => {
                *whose == runtime || whose.is_empty() && (is_loop || *class == Class::Other)
            }
            JobKind::Callback => is_loop || whose.is_empty() && *class == Class::Other,
        }
    };
    if free.iter().any(may_answer) {
        return None;
    }
    let standing = context.standing(process);
    let threads: Vec<Pid> = stuck.iter().filter(|one| one.2 == runtime).map(|one| one.0).collect();
    Some(Reason {
        name: "workers_stuck",
        words: format!(
            "All {} thread(s) of {runtime} that could answer are blocked in the middle of a job: {} in {frames}, {}.{}",
            threads.len(),
            host.name(first),
            host.doing(first),
            turn_words(context, first)
        ),
        remedy: "Read the stacks: a task or callback must not block its thread (a lock, synchronous input or output). Move that work to threads of its own, or use the asynchronous form.",
        confidence: Confidence::Likely,
        threads,
        chain: standing.chain,
    })
}

/// ` The task is server::handle::{{closure}} (handle.rs:12).`, where the stack of its thread shows it.
fn turn_words(context: &Context<'_>, tid: Pid) -> String {
    let Some(frame) = context.host.stack(tid).and_then(|stack| turn_of(&stack.frames)) else { return String::new() };
    let place = frame.file.as_deref().zip(frame.line).map(|(file, line)| format!(" ({}:{line})", base_name(file)));
    format!(" The task is {}{}.", frame.function.as_deref().unwrap_or("unnamed"), place.unwrap_or_default())
}

/// Another finding has a thread of it.
fn stuck_elsewhere(context: &Context<'_>, process: ProcessId, owed: &Owed<'_>, debts: &Debts) -> Option<Reason> {
    let finding = context.is_part_of(process, &STUCK)?;
    // Others are answered: what is stuck is not what these wait for, or not all of it.
    if owed.is_served(debts, context.scope.threshold_ns) || debts.progress.answers > 0 {
        return None;
    }
    Some(Reason {
        name: "finding",
        words: format!("Meanwhile threads of it are stuck ({}): {}.", finding.kind.name(), finding.title),
        remedy: "See to the other finding first: the requests most likely wait behind it.",
        confidence: Confidence::Possible,
        threads: finding.threads.clone(),
        chain: finding.chain.clone(),
    })
}

/// The service has never taken nearly as long.
fn unlike_before(debts: &Debts, owed: &Owed<'_>, threshold_ns: u64) -> Option<Reason> {
    if !owed.is_unlike_before(debts, threshold_ns) {
        return None;
    }
    let (longest, answers) = owed.learnt(debts);
    let idle: Vec<String> = debts
        .pools()
        .iter()
        .filter(|pool| pool.lines.len() > 1 && pool.in_hand() == pool.lines.len())
        .map(|pool| format!("{} to {}", pool.lines.len(), pool.remote))
        .collect();
    let pools = match idle.is_empty() {
        true => String::new(),
        false => format!(" All its connections to others are idle meanwhile ({}).", idle.join(", ")),
    };
    Some(Reason {
        name: "history",
        words: format!(
            "{answers} answers of this service were seen before, none of which took longer than {}; newer requests have kept coming since, and nobody was answered.{pools}",
            duration(longest)
        ),
        remedy: "Look at what these requests wait for inside of the program (its tasks, queues, pools): no thread of it need be blocked for that.",
        confidence: Confidence::Likely,
        threads: Vec::new(),
        chain: Vec::new(),
    })
}

fn finding(context: &Context<'_>, process: ProcessId, debts: &Debts, owed: &Owed<'_>, reason: Reason) -> Finding {
    let long = duration(debts.age(owed.oldest_ns));
    let services = owed.services.join(", ");
    let tasks = context.tasks(process);
    // Where workers are stuck that is the story; the tasks that wait for them are a part of it.
    let doing = tasks.as_ref().map(|tasks| match reason.name {
        "workers_stuck" => tasks.ready_words(true),
        _ => tasks.words(),
    });
    let mut finding = Finding::new(Kind::UnansweredRequests, context.host, process, "requests")
        .since_mono(owed.oldest_ns, context.host)
        .with_threads(reason.threads)
        .fact("unanswered", owed.to_json(debts))
        .fact("because", reason.name)
        .fact("tasks", tasks.as_ref().map(Tasks::to_json))
        .fact("progress", progress_json(debts));
    finding.severity = Severity::Warning;
    finding.confidence = reason.confidence;
    let count = owed.count();
    finding.title = format!("{} has left {count} unanswered, the oldest for {long} (port {services})", finding.comm);
    finding.explanation = format!(
        "{count} came to port {services} and got no answer, the oldest {long} ago. {}{}{}",
        reason.words,
        doing.unwrap_or_default(),
        progress_words(debts)
    );
    finding.remedy = reason.remedy.to_owned();
    finding.chain = reason.chain;
    finding
}
