//! Who usually wakes a sleeper, from the wake-ups the probes saw: a hint where a lock names no holder, never its holder.

use super::json::timestamp;
use super::text::clean;
use crate::census::Pid;
use crate::detect::Moment;
use crate::model::{Host, Waker};
use serde_json::{Value, json};

fn waker(host: &Host, tid: Pid) -> Option<Waker> {
    host.row(tid).and_then(|row| host.waker(row)).filter(|waker| waker.wakes > 0)
}

fn at(host: &Host, waker: &Waker) -> Option<String> {
    host.clocks().map(|clocks| timestamp(Moment::from_mono(waker.last_ns, clocks)))
}

fn confidence(waker: &Waker) -> &'static str {
    if waker.is_steady() { "likely" } else { "possible" }
}

/// Who wakes a thread that sleeps at a futex; `null` if it does not, or no wake-up was seen.
pub(super) fn to_json(host: &Host, tid: Pid) -> Value {
    let Some(waker) = waker(host, tid) else { return Value::Null };
    json!({
        "usual_tid": waker.usual,
        "lead": waker.lead,
        "wakes": waker.wakes,
        "last_tid": waker.last,
        "last_at": at(host, &waker),
        "confidence": confidence(&waker),
        "how": "wake history",
    })
}

/// The same in words: `usually woken by thread 12 (12 of 12 wake-ups), last at …`.
pub(super) fn to_text(host: &Host, tid: Pid) -> Option<String> {
    let waker = waker(host, tid)?;
    let last = at(host, &waker).map(|at| format!(", last at {at}")).unwrap_or_default();
    let who = if !waker.is_steady() {
        format!("last woken by {} ({} wake-ups by several threads{last})", host.name(waker.last), waker.wakes)
    } else if waker.lead == waker.wakes {
        format!("usually woken by {} ({} of {} wake-ups{last})", host.name(waker.usual), waker.wakes, waker.wakes)
    } else {
        format!("usually woken by {} (most of {} wake-ups{last})", host.name(waker.usual), waker.wakes)
    };
    Some(format!("{} [{}: wake history]", clean(&who), confidence(&waker)))
}
