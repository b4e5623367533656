//! What the probe plane has told so far, bounded.

use super::decode::Call;
use super::host::Host;
use crate::census::{
    EventKind, Pid, ProbeEvent, ProbeReading, SiteStats, ThreadRow, ThreadWakes, TimeoutHistory, TimeoutKind,
    WaitStats, WordWakes,
};
use crate::proc::{SiteFact, Stack};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Distinct bad timeouts kept; the least recently seen goes first.
const BAD_TIMEOUTS: usize = 1024;
/// Other events kept, newest.
const EVENTS: usize = 1024;
/// Threads with a change of habit kept; the oldest change goes first.
const HABITS: usize = 1024;
/// Stacks of call sites kept; of those, the first come stay.
const STACKS: usize = 4096;
/// A thread leaves the CPU so soon after the entry of a call, on a busy machine, too: a later sleep is another call's.
const SLACK_NS: u64 = 1_000_000_000;

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
    /// What the thread had passed to this call before the first one, where the probe knows.
    pub history: Option<TimeoutHistory>,
    /// Call site of the last one; 0 if not known.
    pub site: u64,
}

/// A call without a limit, by a thread whose calls of this kind always had one.
#[derive(Clone, Debug, PartialEq)]
pub struct Habit {
    /// When it was made, `CLOCK_MONOTONIC` nanoseconds.
    pub start_ns: u64,
    /// Argument registers.
    pub args: [u64; 6],
    /// What the thread had passed to this call before.
    pub history: TimeoutHistory,
    /// The call site; 0 if not known.
    pub site: u64,
}

/// Who wakes a futex word or a thread, from the wake-ups seen since the probes were attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waker {
    /// The thread that wakes most.
    pub usual: Pid,
    /// By how many wake-ups it leads over all others together; equal to `wakes` if it made all of them.
    pub lead: u64,
    /// Wake-ups seen.
    pub wakes: u64,
    /// The thread that woke last.
    pub last: Pid,
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub last_ns: u64,
}

impl Waker {
    /// One thread made more than half of the wake-ups, and there were some.
    pub fn is_steady(&self) -> bool {
        self.wakes >= 3 && self.lead.saturating_mul(2) > self.wakes
    }
}

impl Host {
    /// The change of habit in the very call that a thread is in now.
    pub fn change_of_habit(&self, row: &ThreadRow) -> Option<&Habit> {
        let call = row.syscall.filter(|_| !row.compat)?;
        let (pid, habit) = self.probes().habits.get(&(row.tid, call.number))?;
        // Behind the call's last argument there is whatever the registers held.
        let takes = Call::lookup(call.number, false).arguments();
        let same = call.args.iter().zip(&habit.args).take(takes).all(|(a, b)| a == b);
        let since = self.since(row);
        // A source that knows no times shows the first sight only, which may be any time later.
        let in_time = !since.exact || since.ns.saturating_sub(habit.start_ns) <= SLACK_NS;
        (*pid == row.process.pid && same && in_time).then_some(habit)
    }
}

/// What the probe plane has told so far.
#[derive(Debug, Default)]
pub struct ProbeHistory {
    bad_timeouts: BTreeMap<BadTimeoutKey, BadTimeout>,
    recent: VecDeque<ProbeEvent>,
    stats: Vec<WaitStats>,
    habits: BTreeMap<(Pid, u32), (Pid, Habit)>,
    sites: Vec<SiteStats>,
    stacks: HashMap<(Pid, u64), Arc<Stack>>,
    word_wakes: HashMap<(Pid, u64), WordWakes>,
    thread_wakes: HashMap<Pid, ThreadWakes>,
    account: BTreeMap<String, u64>,
    /// Events forgotten because the history is bounded.
    forgotten: u64,
}

impl ProbeHistory {
    pub(super) fn learn(&mut self, reading: ProbeReading, now_ns: u64) {
        for event in reading.events {
            match (event.kind, event.syscall) {
                (EventKind::BadTimeout, Some(syscall)) => self.note_bad_timeout(&event, syscall),
                (EventKind::Habit, Some(syscall)) if event.timeout == TimeoutKind::Infinite => {
                    self.note_habit(&event, syscall);
                }
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
        self.sites = reading.sites;
        self.word_wakes = reading.word_wakes.into_iter().map(|wakes| ((wakes.pid, wakes.address), wakes)).collect();
        self.thread_wakes = reading.thread_wakes.into_iter().map(|wakes| (wakes.tid, wakes)).collect();
        self.account = reading.account;
        // Bad timeouts older than an hour say nothing about now.
        let before = self.bad_timeouts.len();
        self.bad_timeouts.retain(|_, bad| now_ns.saturating_sub(bad.last_ns) < 3_600_000_000_000);
        self.forgotten += (before - self.bad_timeouts.len()) as u64;
    }

    /// A reading that says what the last one did, without its events: what is shown while the probes cannot be read.
    pub fn once_more(&self) -> ProbeReading {
        ProbeReading {
            stats: self.stats.clone(),
            sites: self.sites.clone(),
            word_wakes: self.word_wakes.values().cloned().collect(),
            thread_wakes: self.thread_wakes.values().cloned().collect(),
            account: self.account.clone(),
            ..ProbeReading::default()
        }
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
            history: event.history,
            site: event.site,
        });
        bad.count += 1;
        bad.site = event.site;
        bad.last_ns = bad.last_ns.max(event.start_ns);
        bad.args = event.args;
    }

    fn note_habit(&mut self, event: &ProbeEvent, syscall: u32) {
        let Some(history) = event.history else { return };
        let habit = Habit { start_ns: event.start_ns, args: event.args, history, site: event.site };
        self.habits.insert((event.tid, syscall), (event.pid, habit));
        if self.habits.len() > HABITS {
            let oldest = self.habits.iter().min_by_key(|(_, (_, habit))| habit.start_ns).map(|(key, _)| *key);
            self.habits.extract_if(.., |key, _| Some(*key) == oldest).count();
            self.forgotten += 1;
        }
    }

    /// Takes stacks of call sites; those of processes that are gone go at [`forget`](Self::forget).
    pub(super) fn learn_sites(&mut self, sites: &[SiteFact]) {
        for fact in sites {
            let key = (fact.process.pid, fact.site);
            if self.stacks.len() >= STACKS && !self.stacks.contains_key(&key) {
                self.forgotten += 1;
                continue;
            }
            self.stacks.insert(key, Arc::clone(&fact.stack));
        }
    }

    /// Drops what belongs to threads and processes that are gone.
    pub(super) fn forget(&mut self, lives: impl Fn(Pid) -> bool) {
        self.habits.retain(|(tid, _), _| lives(*tid));
        self.stacks.retain(|(pid, _), _| lives(*pid));
    }

    /// Threads with a change of habit, and in which system call.
    pub fn habits(&self) -> impl Iterator<Item = (Pid, u32)> {
        self.habits.keys().copied()
    }

    /// Call sites, since attach.
    pub fn sites(&self) -> &[SiteStats] {
        &self.sites
    }

    /// The stack at a call site, where it is known.
    pub fn site_stack(&self, pid: Pid, site: u64) -> Option<&Arc<Stack>> {
        self.stacks.get(&(pid, site))
    }

    /// Who wakes what sleeps at this word of a process.
    pub fn word_waker(&self, pid: Pid, address: u64) -> Option<Waker> {
        let WordWakes { wakes, last, last_ns, usual, lead, .. } = *self.word_wakes.get(&(pid, address))?;
        Some(Waker { usual, lead, wakes, last, last_ns })
    }

    /// Who wakes a thread out of its futex waits.
    pub fn thread_waker(&self, tid: Pid) -> Option<Waker> {
        let ThreadWakes { wakes, last, last_ns, usual, lead, .. } = *self.thread_wakes.get(&tid)?;
        Some(Waker { usual, lead, wakes, last, last_ns })
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
