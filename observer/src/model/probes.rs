//! What the probe plane has told so far, bounded.

use crate::census::{EventKind, Pid, ProbeEvent, ProbeReading, TimeoutKind, WaitStats};
use std::collections::{BTreeMap, VecDeque};

/// Distinct bad timeouts kept; the least recently seen goes first.
const BAD_TIMEOUTS: usize = 1024;
/// Other events kept, newest.
const EVENTS: usize = 1024;

/// Where a bad timeout was passed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BadTimeoutKey {
    /// Process.
    pub pid: Pid,
    /// Thread.
    pub tid: Pid,
    /// System call number.
    pub syscall: u32,
    /// The timeout as passed.
    pub raw: i64,
}

/// How often and when.
#[derive(Clone, Debug, PartialEq)]
pub struct BadTimeout {
    /// Thread name.
    pub comm: String,
    /// Negative or invalid.
    pub kind: TimeoutKind,
    /// Times seen.
    pub count: u64,
    /// First time, `CLOCK_MONOTONIC` nanoseconds.
    pub first_ns: u64,
    /// Last time, `CLOCK_MONOTONIC` nanoseconds.
    pub last_ns: u64,
    /// Argument registers of the last one.
    pub args: [u64; 6],
}

/// What the probe plane has told so far.
#[derive(Debug, Default)]
pub struct ProbeHistory {
    bad_timeouts: BTreeMap<BadTimeoutKey, BadTimeout>,
    recent: VecDeque<ProbeEvent>,
    stats: Vec<WaitStats>,
    account: BTreeMap<String, u64>,
    /// Events forgotten because the history is bounded.
    forgotten: u64,
}

impl ProbeHistory {
    pub(super) fn learn(&mut self, reading: ProbeReading, now_ns: u64) {
        for event in reading.events {
            match (event.kind, event.syscall) {
                (EventKind::BadTimeout, Some(syscall)) => self.note_bad_timeout(&event, syscall),
                _ => {
                    if self.recent.len() == EVENTS {
                        self.recent.pop_front();
                        self.forgotten += 1;
                    }
                    self.recent.push_back(event);
                }
            }
        }
        self.stats = reading.stats;
        self.account = reading.account;
        // Bad timeouts older than an hour say nothing about now.
        let before = self.bad_timeouts.len();
        self.bad_timeouts.retain(|_, bad| now_ns.saturating_sub(bad.last_ns) < 3_600_000_000_000);
        self.forgotten += (before - self.bad_timeouts.len()) as u64;
    }

    fn note_bad_timeout(&mut self, event: &ProbeEvent, syscall: u32) {
        let key = BadTimeoutKey { pid: event.pid, tid: event.tid, syscall, raw: event.timeout_raw };
        if self.bad_timeouts.len() >= BAD_TIMEOUTS && !self.bad_timeouts.contains_key(&key) {
            let oldest = self.bad_timeouts.iter().min_by_key(|(_, bad)| bad.last_ns).map(|(k, _)| k.clone());
            if let Some(oldest) = oldest {
                self.bad_timeouts.remove(&oldest);
                self.forgotten += 1;
            }
        }
        let bad = self.bad_timeouts.entry(key).or_insert_with(|| BadTimeout {
            comm: event.comm.clone(),
            kind: event.timeout,
            count: 0,
            first_ns: event.start_ns,
            last_ns: event.start_ns,
            args: event.args,
        });
        bad.count += 1;
        bad.last_ns = bad.last_ns.max(event.start_ns);
        bad.args = event.args;
    }

    /// Bad timeouts seen, with how often and when.
    pub fn bad_timeouts(&self) -> impl Iterator<Item = (&BadTimeoutKey, &BadTimeout)> {
        self.bad_timeouts.iter()
    }

    /// The latest long waits and failed or slow connects.
    pub fn recent(&self) -> impl Iterator<Item = &ProbeEvent> {
        self.recent.iter()
    }

    /// Aggregates per process and family, since attach.
    pub fn stats(&self) -> &[WaitStats] {
        &self.stats
    }

    /// The kernel side's account.
    pub fn account(&self) -> &BTreeMap<String, u64> {
        &self.account
    }

    /// Events forgotten because the history is bounded.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }
}
