//! `bad_timeout`: a negative (not -1), absurd or invalid timeout, seen in a wait that lasts now or by the
//! probes at the call.

use super::{CallSite, Context, Finding, Kind, Rule, Severity, Verdict, habit};
use crate::census::{Pid, ProcessId, TimeoutHistory, TimeoutKind};
use crate::model::decode::{Call, TimeoutAt};
use crate::model::{Confidence, Host, duration};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A bad timeout that was passed longer ago than this is over.
const RECENT_NS: u64 = 60_000_000_000;

/// The rule.
#[derive(Debug)]
pub struct BadTimeout;

/// The same mistake: one process, one call, one value.
type Mistake = (ProcessId, &'static str, String);

struct Sight {
    kind: TimeoutKind,
    threads: BTreeSet<Pid>,
    waiting: BTreeSet<Pid>,
    first_ns: u64,
    calls: u64,
    requested_ns: Option<i64>,
    /// What the thread passed before, and the call site: of the first call.
    before: Option<(Pid, TimeoutHistory)>,
    site: Option<(Pid, u64)>,
}

impl Rule for BadTimeout {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let host = context.host;
        let mut mistakes: BTreeMap<Mistake, Sight> = BTreeMap::new();
        for (row, wait) in context.confirmed() {
            let call = Call::named(wait.syscall);
            let audited = call.is_poll() || call.is_futex();
            let bad = matches!(wait.timeout.kind, TimeoutKind::Negative | TimeoutKind::Invalid | TimeoutKind::Absurd);
            if !audited || !bad {
                continue;
            }
            // A deadline differs between threads by when they began; the day is mistake enough.
            let raw = match wait.timeout.kind {
                TimeoutKind::Absurd if call.is_futex() => "a deadline".to_owned(),
                _ => wait.timeout.raw.clone().unwrap_or_default(),
            };
            let since = host.since(row).ns;
            let sight = mistakes
                .entry((row.process, wait.syscall, raw))
                .or_insert_with(|| Sight::new(wait.timeout.kind, since));
            sight.threads.insert(row.tid);
            sight.waiting.insert(row.tid);
            sight.first_ns = sight.first_ns.min(since);
            sight.requested_ns = wait.timeout.requested_ns;
        }
        for (key, bad) in host.probes().bad_timeouts() {
            if host.now_ns().saturating_sub(bad.last_ns) > RECENT_NS {
                continue;
            }
            // A thread that is gone left its process behind; a process that is gone left nothing.
            let Some(row) = host.row(key.tid).or_else(|| host.row(key.pid)) else {
                continue;
            };
            if row.process.pid != key.pid || !context.scope.contains(row, host) {
                continue;
            }
            let name = Call::lookup(key.syscall, false).name;
            let sight = mistakes
                .entry((row.process, name, key.raw.to_string()))
                .or_insert_with(|| Sight::new(bad.kind, bad.first_ns));
            sight.threads.insert(key.tid);
            sight.calls += bad.count;
            sight.first_ns = sight.first_ns.min(bad.first_ns);
            sight.before = sight.before.or(bad.history.map(|history| (key.tid, history)));
            sight.site = sight.site.or((bad.site != 0).then_some((key.tid, bad.site)));
        }
        let findings = mistakes.iter().map(|(mistake, sight)| finding(host, mistake, sight)).collect();
        Verdict { findings, ripe_at_ns: None }
    }
}

impl Sight {
    fn new(kind: TimeoutKind, first_ns: u64) -> Self {
        let (threads, waiting) = (BTreeSet::new(), BTreeSet::new());
        Self { kind, threads, waiting, first_ns, calls: 0, requested_ns: None, before: None, site: None }
    }
}

fn finding(host: &Host, (process, syscall, raw): &Mistake, sight: &Sight) -> Finding {
    let mut finding = Finding::new(Kind::BadTimeout, host, *process, &format!("{syscall}/{raw}"))
        .since_mono(sight.first_ns, host)
        .with_threads(sight.threads.iter().copied())
        .fact("syscall", *syscall)
        .fact("timeout_raw", raw.as_str())
        .fact("timeout_kind", public_name(sight.kind))
        .fact("calls", sight.calls)
        .fact("waiting_now", sight.waiting.len());
    if let Some((tid, history)) = sight.before {
        finding.evidence.insert("history".to_owned(), habit::history(tid, &history));
    }
    let stack = sight.site.and_then(|(tid, site)| Some((tid, host.probes().site_stack(process.pid, site)?)));
    finding.call = stack.map(|(tid, stack)| CallSite { tid, stack: Arc::clone(stack) });
    let before = sight.before.and_then(|(_, history)| habit::in_words(&history, raw)).unwrap_or_default();
    let who = match sight.threads.first() {
        Some(tid) if sight.threads.len() == 1 => host.name(*tid),
        _ => format!("{} threads of {}", sight.threads.len(), finding.comm),
    };
    let waits = if sight.threads.len() == 1 { "waits" } else { "wait" };
    let unit = if matches!(Call::named(syscall).timeout, TimeoutAt::Millis(_)) { " ms" } else { "" };
    let now = match sight.waiting.len() {
        0 => String::new(),
        1 => " It waits in this call right now.".to_owned(),
        n => format!(" {n} threads wait in this call right now."),
    };
    match sight.kind {
        TimeoutKind::Absurd => {
            let long = sight.requested_ns.and_then(|ns| u64::try_from(ns).ok()).map(duration).unwrap_or_default();
            let is_loop = syscall.starts_with("epoll");
            let is_habit = is_loop || Call::named(syscall).is_futex();
            finding.confidence = if is_loop { Confidence::Possible } else { Confidence::Likely };
            finding.severity = if is_habit { Severity::Info } else { Severity::Warning };
            finding.title = format!("{who} {waits} in {syscall}() with a time limit of {long}");
            let means = if is_loop {
                "An event loop passes the time to its next timer here, and that may be far away on purpose (a weekly job, a keep-alive); if none is, a unit was mistaken or an overflow made it."
            } else {
                "Nobody waits that long on purpose: a unit was mistaken, or an overflow made it, and the wait has in effect no limit."
            };
            finding.explanation = format!("The timeout passed is {raw}{unit}, that is {long}.{now} {means}");
            finding.remedy = "Check the unit (ms, µs, ns) and the arithmetic of this timeout; write -1 or null where no limit is meant.".to_owned();
        }
        TimeoutKind::Negative => {
            finding.confidence = Confidence::Certain;
            finding.title = format!("{who} passed the negative timeout {raw}{unit} to {syscall}()");
            let (means, calls) = (meaning(syscall), count(sight.calls));
            finding.explanation = format!(
                "The timeout passed is {raw}{unit}{calls}; only -1 is documented to mean \"for ever\".{before}{now} {means} Some computation of the time left went below zero."
            );
            finding.remedy =
                "Clamp the time left at 0 before the call (deadline minus now, when the deadline has passed)."
                    .to_owned();
        }
        _ => {
            finding.confidence = Confidence::Certain;
            finding.title = format!("{who} passed an invalid timeout to {syscall}(), which fails with EINVAL");
            finding.explanation = format!(
                "The timeout is malformed (seconds {raw}, nanoseconds out of range){}: the kernel refuses it, so the call returns at once and a loop around it spins.{before}",
                count(sight.calls)
            );
            finding.remedy = "Normalise the timespec: 0 ≤ tv_nsec < 1,000,000,000 and tv_sec ≥ 0.".to_owned();
        }
    }
    finding
}

fn count(calls: u64) -> String {
    match calls {
        0 => String::new(),
        1 => ", seen at one call".to_owned(),
        n => format!(", seen at {n} calls"),
    }
}

/// `invalid` is not in the public schema: a malformed time is `negative` by its sign or `unknown`.
fn public_name(kind: TimeoutKind) -> &'static str {
    match kind {
        TimeoutKind::Absurd => "absurd",
        TimeoutKind::Negative => "negative",
        _ => "invalid",
    }
}

fn meaning(syscall: &str) -> &'static str {
    match syscall {
        "poll" | "epoll_wait" | "epoll_pwait" => {
            "The kernel takes any negative value as no limit at all, so this wait ends only when something happens."
        }
        _ => "The kernel refuses a negative time with EINVAL, so the call returns at once and a loop around it spins.",
    }
}
