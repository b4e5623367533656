//! `bad_timeout`, the other half: a wait without a limit by a thread that always gave one, and that still lasts.
//!
//! Most such changes are healthy: an event loop waits for ever when its last timer is gone, a thread pool lets its last
//! worker wait without a limit. So it counts only where one descriptor is waited for, and where that is a connection
//! somebody else has to answer.

use super::{CallSite, Context, Finding, Kind, Rule, Severity, Verdict};
use crate::census::{Pid, ThreadRow, TimeoutHistory, TimeoutKind};
use crate::model::decode::Call;
use crate::model::probes::Habit;
use crate::model::wait::Member;
use crate::model::{Confidence, Host, ResourceKind, Wait, duration};
use crate::proc::FarEnd;
use serde_json::{Value, json};
use std::sync::Arc;

/// So many calls make a habit.
const CALLS: u64 = 8;

/// The rule.
#[derive(Debug)]
pub struct ChangeOfHabit;

impl Rule for ChangeOfHabit {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let host = context.host;
        let mut verdict = Verdict::default();
        for (tid, number) in host.probes().habits() {
            let Some((row, wait)) = host.confirmed_wait(tid) else { continue };
            if row.syscall.is_none_or(|call| call.number != number) || !context.scope.contains(row, host) {
                continue;
            }
            // The wait that lasts now is that call.
            let Some(habit) = host.change_of_habit(row) else { continue };
            let Some((severity, thing)) = judge(row, wait, &habit.history) else { continue };
            if verdict.is_ripe(host.since(row).ns, context) {
                verdict.findings.push(finding(host, row, wait, habit, (severity, &thing)));
            }
        }
        verdict
    }
}

/// How bad it is that this wait has no limit, and what it waits for; `None` if it may be meant.
fn judge(row: &ThreadRow, wait: &Wait, history: &TimeoutHistory) -> Option<(Severity, String)> {
    let call = Call::named(wait.syscall);
    let always = history.zero + history.finite >= CALLS && history.infinite == 0 && history.other == 0;
    if !always || !call.is_poll() || wait.syscall.starts_with("epoll") || wait.timeout.kind != TimeoutKind::Infinite {
        return None;
    }
    // Several descriptors: an event loop, whose timers come and go.
    let [only] = wait.members.as_slice() else { return None };
    if wait.members_cut > 0 {
        return None;
    }
    Some((severity(only, row)?, only.describe()))
}

fn severity(member: &Member, row: &ThreadRow) -> Option<Severity> {
    let thing = &member.resource;
    // Another thread of its own wakes it that way.
    let others = |end: &FarEnd| end.holders.iter().any(|holder| holder.process != row.process);
    if member.far_end.as_ref().is_some_and(|end| !others(end) && end.unsearched == 0) {
        return None;
    }
    match thing.kind {
        // A listening socket has no peer: nobody owes anything there.
        ResourceKind::Tcp | ResourceKind::Udp if has_peer(thing.remote.as_deref()) => Some(Severity::Warning),
        // A display, a bus, a helper process: often waited for at rest.
        ResourceKind::Unix | ResourceKind::Pipe if member.far_end.is_some() => Some(Severity::Info),
        _ => None,
    }
}

fn has_peer(remote: Option<&str>) -> bool {
    remote.is_some_and(|remote| !remote.ends_with(":0"))
}

fn finding(host: &Host, row: &ThreadRow, wait: &Wait, habit: &Habit, (severity, thing): (Severity, &str)) -> Finding {
    let since = host.since(row).ns;
    let mut finding = Finding::new(Kind::BadTimeout, host, row.process, &format!("habit/{}/{}", wait.syscall, row.tid))
        .since_mono(since, host)
        .with_threads([row.tid])
        .fact("syscall", wait.syscall)
        .fact("timeout_raw", wait.timeout.raw.as_deref().unwrap_or("null"))
        .fact("timeout_kind", "infinite")
        .fact("calls", 1)
        .fact("waiting_now", 1)
        .fact("history", history(row.tid, &habit.history));
    let stack = host.probes().site_stack(row.process.pid, habit.site);
    finding.call = stack.map(|stack| CallSite { tid: row.tid, stack: Arc::clone(stack) });
    finding.severity = severity;
    finding.confidence = if severity == Severity::Info { Confidence::Possible } else { Confidence::Likely };
    let (who, long) = (host.name(row.tid), duration(host.blocked_ns(row)));
    finding.title = format!("{who} waits in {}() without a limit, where it always gave one", wait.syscall);
    let before = in_words(&habit.history, "without a limit").unwrap_or_default();
    finding.explanation = format!(
        "It has waited {long} for {thing} and will wait until something comes.{before} Some computation of the timeout \
         may have come out as \"for ever\" (-1, null)."
    );
    finding.remedy = "Look at how the timeout of this call is computed, and give the wait a limit.".to_owned();
    finding
}

/// `12,345`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let from_end = |at: usize| digits.len() - at;
    digits.char_indices().fold(String::new(), |mut text, (at, digit)| {
        if at > 0 && from_end(at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
        text
    })
}

/// The history as evidence.
pub(super) fn history(tid: Pid, history: &TimeoutHistory) -> Value {
    let TimeoutHistory { zero, finite, infinite, other, longest_timeout_ns } = *history;
    json!({ "tid": tid, "zero": zero, "finite": finite, "infinite": infinite, "other": other, "longest_timeout_ns": longest_timeout_ns })
}

/// ` The thread's timeouts for this call before: 0 in 12,345 calls, then -5.`; `None` if there were none.
pub(super) fn in_words(history: &TimeoutHistory, then: &str) -> Option<String> {
    let TimeoutHistory { zero, finite, infinite, other, longest_timeout_ns } = *history;
    let longest = duration(longest_timeout_ns);
    let parts = [
        (zero, "0".to_owned()),
        (finite, format!("up to {longest}")),
        (infinite, "without a limit".to_owned()),
        (other, "negative, absurd or not readable".to_owned()),
    ];
    let calls = |n: u64| if n == 1 { "1 call".to_owned() } else { format!("{} calls", thousands(n)) };
    let told: Vec<String> =
        parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{what} in {}", calls(*n))).collect();
    (!told.is_empty()).then(|| format!(" Its timeouts before: {}, then {then}.", told.join(", ")))
}
