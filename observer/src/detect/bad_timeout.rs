//! `bad_timeout`: a negative (not -1), absurd or invalid timeout, seen in a wait that lasts now or by the
//! probes at the call.

use super::{CallSite, Context, Finding, Kind, Rule, Severity, Verdict, habit};
use crate::census::{Pid, ProcessId, TimeoutHistory, TimeoutKind};
use crate::model::decode::{self, Call, TimeoutAt};
use crate::model::{Confidence, Host, duration};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A bad timeout that was passed longer ago than this is over.
const RECENT_NS: u64 = 60_000_000_000;

/// Timeouts in configurations are round.
const DAY_NS: i64 = 86_400_000_000_000;
/// Settings are no longer than that: 31 days.
const MONTH_NS: i64 = 31 * DAY_NS;

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
    /// A time of day on the monotonic clock: the limit that was meant, nanoseconds.
    meant_ns: Option<u64>,
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
            let of_day = |ns| decode::as_time_of_day(&call, &wait.args, ns, host.clocks()?);
            sight.meant_ns = wait.timeout.requested_ns.and_then(of_day).or(sight.meant_ns);
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
        let (requested_ns, meant_ns) = (None, None);
        Self { kind, threads, waiting, first_ns, calls: 0, requested_ns, meant_ns, before: None, site: None }
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
    let in_millis = matches!(Call::named(syscall).timeout, TimeoutAt::Millis(_));
    // Of a timespec the probes tell the seconds; what was decoded in a wait has its unit.
    let unit = match (in_millis, raw.parse::<i64>()) {
        (true, _) => " ms",
        (false, Ok(_)) => " s",
        (false, Err(_)) => "",
    };
    let now = match sight.waiting.len() {
        0 => String::new(),
        1 => " It waits in this call right now.".to_owned(),
        n => format!(" {n} threads wait in this call right now."),
    };
    match sight.kind {
        TimeoutKind::Absurd if let Some(meant) = sight.meant_ns => {
            let long = sight.requested_ns.and_then(|ns| u64::try_from(ns).ok()).map(duration).unwrap_or_default();
            finding.confidence = Confidence::Likely;
            finding.severity = Severity::Warning;
            finding.evidence.insert("meant_ns".to_owned(), meant.into());
            finding.title = format!(
                "{who} {waits} in {syscall}() until a time of day, by a clock that began when the machine started"
            );
            finding.explanation = format!(
                "The deadline passed would be {} after the wait began if it were a time of day (CLOCK_REALTIME), but this wait goes by CLOCK_MONOTONIC: it would end in {long}.{now} It has in effect no limit.",
                duration(meant)
            );
            finding.remedy = "Take the deadline from the clock that the wait goes by (clock_gettime(CLOCK_MONOTONIC) where pthread_condattr_setclock or pthread_cond_clockwait chose it).".to_owned();
        }
        TimeoutKind::Absurd => {
            let long = sight.requested_ns.and_then(|ns| u64::try_from(ns).ok()).map(duration).unwrap_or_default();
            let is_loop = syscall.starts_with("epoll");
            let is_set = sight.requested_ns.is_some_and(|ns| ns % DAY_NS == 0 && ns <= MONTH_NS);
            let is_habit = is_loop || is_set || Call::named(syscall).is_futex();
            finding.confidence = if is_habit { Confidence::Possible } else { Confidence::Likely };
            finding.severity = if is_habit { Severity::Info } else { Severity::Warning };
            finding.title = format!("{who} {waits} in {syscall}() with a time limit of {long}");
            let means = if is_loop {
                "An event loop passes the time to its next timer here, and that may be far away on purpose (a weekly job, a keep-alive); if none is, a unit was mistaken or an overflow made it."
            } else if is_set {
                "A whole number of days is what a setting looks like (wait_timeout of MySQL and MariaDB); if nobody has set it, a unit was mistaken. The wait has in effect no limit."
            } else if is_habit {
                "Libraries and runtimes write \"for ever\" that way (the longest time they know); if nobody meant that, a unit was mistaken or an overflow made it. The wait has in effect no limit."
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
            let for_ever = match in_millis {
                true => "whoever means \"for ever\" writes -1",
                false => "only a null pointer means \"for ever\"",
            };
            finding.explanation = format!(
                "The timeout passed is {raw}{unit}{calls}; {for_ever}.{before}{now} {means} Some computation of the time left went below zero."
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
