//! `lost_wakeup`: a thread sleeps on a futex whose word no longer holds the awaited value, and nobody is left to wake it.
//!
//! Words change legitimately while somebody sleeps, so the rule speaks only where it knows what the word means (a mutex
//! that is free, a semaphore with tokens, a token for a parked thread, a thread that has ended), or of a plain flag with
//! one sleeper. Counters, condition variables, rwlocks and barriers are never judged.

use super::finding::thread_ref;
use super::{Context, Finding, Kind, Link, Rule, Severity, Verdict};
use crate::census::ThreadRow;
use crate::model::frames::{Reading, Rest};
use crate::model::graph::Nature;
use crate::model::word::{Changed, Layout};
use crate::model::{Confidence, Host, Resource, ResourceKind, Wait, duration};
use crate::proc::Libc;

/// Readings that must agree.
const READINGS: u32 = 3;
/// Ids of threads in a futex word.
const TID_MASK: u32 = 0x3fff_ffff;

/// The rule.
#[derive(Debug)]
pub struct LostWakeup;

impl Rule for LostWakeup {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let host = context.host;
        let mut verdict = Verdict::default();
        for (row, wait) in context.confirmed() {
            let Some(word) = host.changed_word(row.tid) else { continue };
            let Some(meaning) = meaning(host, row, wait, word) else { continue };
            // Both must have lasted: the wait, and the word as it is.
            let since = host.since(row).ns.max(word.since_ns);
            let ripe = verdict.is_ripe(since, context);
            if word.readings < READINGS {
                verdict.later(host.now_ns());
            } else if ripe {
                verdict.findings.push(finding(host, row, wait, word, &meaning));
            }
        }
        verdict
    }
}

/// What a changed word says.
struct Meaning {
    kind: ResourceKind,
    /// What it is, for the title: `a mutex that nobody holds`.
    what: &'static str,
    /// What makes the sleep wrong.
    because: &'static str,
    confidence: Confidence,
}

fn likely(kind: ResourceKind, what: &'static str, because: &'static str) -> Meaning {
    Meaning { kind, what, because, confidence: Confidence::Likely }
}

/// `None` where the word may well change while its sleeper is at rest.
fn meaning(host: &Host, row: &ThreadRow, wait: &Wait, word: &Changed) -> Option<Meaning> {
    let reading = wait.reading.as_ref();
    let lock = reading.and_then(|reading| reading.lock);
    let is_named = |name: &str| lock.is_some_and(|lock| lock.named == name);
    let libc = host.process(row.process).map_or(Libc::Unknown, |process| process.libc);
    let (awaited, found) = (word.awaited, word.found);
    // musl moves its waiters from one word to another: the registers then show the old one.
    if libc == Libc::Musl {
        return None;
    }
    if !word.private {
        let is_join = reading.is_some_and(|reading| reading.rest == Rest::Join);
        let ended = is_join && (1..=TID_MASK).contains(&awaited) && found == 0 && word.sleepers == 1;
        let because = "the id of the thread it waits for is cleared, as the kernel does when a thread ends";
        return ended.then(|| likely(ResourceKind::Thread, "a thread whose id is cleared", because));
    }
    let free = awaited == 2 && found == 0;
    if free && is_named("std Mutex") {
        return Some(likely(ResourceKind::Mutex, "a Rust mutex that nobody holds", FREE));
    }
    let of_glibc = is_named("pthread mutex") || is_named("lll_lock");
    if free && libc == Libc::Glibc && (of_glibc || word.layout == Layout::FreeMutex && is_plain(reading)) {
        return Some(likely(ResourceKind::Mutex, "a mutex that nobody holds", FREE));
    }
    // Anything else that the frames call a lock has a word that is not known here.
    let in_parking_lot = reading.is_some_and(|reading| reading.runtime == "parking_lot");
    if in_parking_lot && (awaited, found) == (1, 0) {
        return Some(likely(ResourceKind::Futex, "a wake-up that it was given", GIVEN));
    }
    let is_parked = awaited == u32::MAX && found <= 1;
    if is_parked && lock.is_none() && (is_plain(reading) || reading.is_some_and(is_park)) {
        return Some(likely(ResourceKind::Futex, "a wake-up that it was given", GIVEN));
    }
    let may_be_semaphore = libc == Libc::Glibc && lock.is_none() && !reading.is_some_and(is_other_than_semaphore);
    // Without a stack it could be a condition variable.
    let has_stack = host.stack(row.tid).is_some();
    if may_be_semaphore && has_stack && awaited == 0 && found < 1 << 31 && word.layout == Layout::Semaphore {
        let because = "the semaphore has a token to take";
        return Some(likely(ResourceKind::Futex, "a semaphore that is not empty", because));
    }
    let is_flag = awaited <= 1 && found <= 1 && word.sleepers == 1;
    (is_flag && is_plain(reading) && is_named_by_program(host, row)).then_some(Meaning {
        kind: ResourceKind::Futex,
        what: "a flag that has changed",
        because: "the word is a flag that has changed since, and no other thread of the process sleeps on it",
        confidence: Confidence::Possible,
    })
}

const FREE: &str = "the lock is free: whoever released it should have woken this thread, the first in the queue";
const GIVEN: &str = "the token that ends its wait has been set";

/// The stack says no more than that it is a futex wait.
fn is_plain(reading: Option<&Reading>) -> bool {
    reading.is_none_or(|reading| reading.by == "syscall" || reading.by.starts_with("__lll_lock_wait"))
}

fn is_park(reading: &Reading) -> bool {
    reading.runtime == "rust" && reading.by.contains("park")
}

fn is_other_than_semaphore(reading: &Reading) -> bool {
    ["cond", "barrier", "atomic", "Condition"].iter().any(|part| reading.by.contains(part))
}

/// Whether the stack shows a function by name right behind the system call. A program without symbols could be in any
/// condition variable or rwlock of its own.
fn is_named_by_program(host: &Host, row: &ThreadRow) -> bool {
    let Some(stack) = host.stack(row.tid) else { return false };
    let mut frames = stack.frames.iter().map(|frame| frame.function.as_deref());
    let inner = frames.next().flatten();
    match inner {
        Some("syscall") => frames.next().flatten().is_some(),
        inner => inner.is_some(),
    }
}

fn finding(host: &Host, row: &ThreadRow, wait: &Wait, word: &Changed, meaning: &Meaning) -> Finding {
    let Changed { address, awaited, found, readings, since_ns, sleepers, .. } = *word;
    let mut finding = Finding::new(Kind::LostWakeup, host, row.process, &format!("{address:#x}"))
        .since_mono(host.since(row).ns, host)
        .with_threads([row.tid])
        .fact("address", format!("{address:#x}"))
        .fact("awaited", awaited)
        .fact("found", found)
        .fact("readings", readings)
        .fact("sleepers", sleepers)
        .fact("changed_for_ns", host.now_ns().saturating_sub(since_ns))
        .fact("blocked_ns", host.blocked_ns(row));
    // A flag of the program's own may be an event count that has been used once: worth a line, not an alarm.
    finding.severity = if meaning.confidence < Confidence::Likely { Severity::Info } else { Severity::Warning };
    finding.confidence = meaning.confidence;
    let name = host.name(row.tid);
    let age = duration(host.blocked_ns(row));
    let others = match sleepers - 1 {
        0 => String::new(),
        1 => " One more thread sleeps on it.".to_owned(),
        n => format!(" {n} more threads sleep on it."),
    };
    let waits = if meaning.kind == ResourceKind::Mutex { "waited for" } else { "slept on" };
    finding.title = format!("{name} has {waits} {} for {age}: its wake-up seems lost", meaning.what);
    finding.explanation = format!(
        "{name} sleeps in {}() until the word at {address:#x} is no longer {awaited}; it was {found} in {readings} readings over {}, and the thread slept on: {}.{others}",
        wait.syscall,
        duration(host.now_ns().saturating_sub(since_ns)),
        meaning.because
    );
    finding.remedy = "Look at who changes this word: a wake-up that is left out, sent before the change, or lost with a lock that was initialised again or overwritten while in use. The stack names the place that waits.".to_owned();
    let resource = wait.resource.clone().unwrap_or(Resource::at(meaning.kind, address));
    finding.chain = vec![Link {
        from: thread_ref(row.tid, host),
        waits_for: resource,
        held_by: None,
        nature: Nature::Lock,
        confidence: meaning.confidence,
        how: format!("the futex word is {found}, not {awaited}"),
    }];
    finding
}
