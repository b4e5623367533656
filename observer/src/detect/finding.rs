//! A finding: one thing that is wrong, with its evidence, in a form a pager can show.

use crate::census::{Clocks, Pid, ProcessId};
use crate::model::graph::{Graph, Hop, NOBODY_LEFT, Nature};
use crate::model::{Confidence, Host, Owner, Resource};
use crate::proc::Stack;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The kinds of the public schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "documented in docs/findings.md, by name")]
pub enum Kind {
    Deadlock,
    AbandonedLock,
    LockWait,
    LostWakeup,
    BadTimeout,
    StuckConnect,
    AwaitingReply,
    UnansweredRequests,
    NotAccepting,
    NotReading,
    PoolExhausted,
    Uninterruptible,
    Stopped,
    Unreadable,
    GoroutineLeak,
    GoroutineBlocked,
    GcStall,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Deadlock,
        Self::AbandonedLock,
        Self::LockWait,
        Self::LostWakeup,
        Self::BadTimeout,
        Self::StuckConnect,
        Self::AwaitingReply,
        Self::UnansweredRequests,
        Self::NotAccepting,
        Self::NotReading,
        Self::PoolExhausted,
        Self::Uninterruptible,
        Self::Stopped,
        Self::Unreadable,
        Self::GoroutineLeak,
        Self::GoroutineBlocked,
        Self::GcStall,
    ];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deadlock => "deadlock",
            Self::AbandonedLock => "abandoned_lock",
            Self::LockWait => "lock_wait",
            Self::LostWakeup => "lost_wakeup",
            Self::BadTimeout => "bad_timeout",
            Self::StuckConnect => "stuck_connect",
            Self::AwaitingReply => "awaiting_reply",
            Self::UnansweredRequests => "unanswered_requests",
            Self::NotAccepting => "not_accepting",
            Self::NotReading => "not_reading",
            Self::PoolExhausted => "pool_exhausted",
            Self::Uninterruptible => "uninterruptible",
            Self::Stopped => "stopped",
            Self::Unreadable => "unreadable",
            Self::GoroutineLeak => "goroutine_leak",
            Self::GoroutineBlocked => "goroutine_blocked",
            Self::GcStall => "gc_stall",
        }
    }
}

/// How bad it is. Exit status 1 means at least one warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// A point in time: nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// From `CLOCK_MONOTONIC`, by the clocks of a census.
    pub fn from_mono(ns: u64, clocks: Clocks) -> Self {
        Self::on_another_clock(ns, clocks.mono_ns, clocks.real_ns)
    }

    /// From `CLOCK_BOOTTIME`, on which processes start, by the clocks of a census.
    pub fn from_boot(ns: u64, clocks: Clocks) -> Self {
        Self::on_another_clock(ns, clocks.boot_ns, clocks.real_ns)
    }

    /// A time on a clock that shows `its_now` while it is `now`.
    fn on_another_clock(ns: u64, its_now: u64, now: u64) -> Self {
        Self(u64::try_from(i128::from(ns) + i128::from(now) - i128::from(its_now)).unwrap_or(0))
    }
}

/// A thread, named for outsiders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadRef {
    /// Its process.
    pub pid: Pid,
    /// Its id; 0 for a goroutine that is on no thread.
    pub tid: Pid,
    /// The goroutine that is meant.
    pub goid: Option<u64>,
}

/// One step of a finding's chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Who waits.
    pub from: ThreadRef,
    /// For what.
    pub waits_for: Resource,
    /// Who holds it, if anybody living is known to.
    pub held_by: Option<ThreadRef>,
    /// What that means.
    pub nature: Nature,
    /// How sure.
    pub confidence: Confidence,
    /// How it was learnt.
    pub how: String,
}

/// The call a finding is about, as its stack was when it was made.
#[derive(Clone, Debug, PartialEq)]
pub struct CallSite {
    /// The thread that made it.
    pub tid: Pid,
    /// Its stack then.
    pub stack: Arc<Stack>,
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What kind.
    pub kind: Kind,
    /// How bad.
    pub severity: Severity,
    /// How sure.
    pub confidence: Confidence,
    /// When it began.
    pub since: Moment,
    /// The process it is about.
    pub process: ProcessId,
    /// Name of its main thread.
    pub comm: String,
    /// The threads involved, sorted.
    pub threads: Vec<Pid>,
    /// One line.
    pub title: String,
    /// The evidence, then what it means.
    pub explanation: String,
    /// What to look at first.
    pub remedy: String,
    /// Who waits for what held by whom.
    pub chain: Vec<Link>,
    /// The call it is about, where the probes saw it.
    pub call: Option<CallSite>,
    /// Facts, by name.
    pub evidence: Map<String, Value>,
    /// Stable across repeats.
    pub id: String,
}

impl Finding {
    /// A finding about a process. `key` tells it from others of its kind in the same process: what is
    /// stuck (lock addresses, a socket), never when or how long.
    pub fn new(kind: Kind, host: &Host, process: ProcessId, key: &str) -> Self {
        Self {
            kind,
            severity: Severity::Warning,
            confidence: Confidence::Possible,
            since: Moment::default(),
            process,
            comm: host.row(process.pid).map(|row| row.comm.clone()).unwrap_or_default(),
            threads: Vec::new(),
            title: String::new(),
            explanation: String::new(),
            remedy: String::new(),
            chain: Vec::new(),
            call: None,
            evidence: Map::new(),
            id: id(kind, process, key),
        }
    }

    /// Sets when it began.
    pub fn since_mono(mut self, ns: u64, host: &Host) -> Self {
        if let Some(clocks) = host.clocks() {
            self.since = Moment::from_mono(ns, clocks);
        }
        self
    }

    /// Says so where the times are those of our first sight: the source of rows does not know when a wait began.
    pub(super) fn note_first_sight(&mut self, host: &Host) {
        let is_bound = |tid: &Pid| host.row(*tid).is_some_and(|row| row.is_blocked() && !host.since(row).exact);
        if self.threads.iter().any(is_bound) {
            self.evidence.insert("since_exact".to_owned(), false.into());
            self.explanation.push_str(" Times count from observer's first look: the wait may have begun earlier.");
        }
    }

    /// Adds the threads of the chain and others, sorted, each once.
    pub fn with_threads(mut self, threads: impl IntoIterator<Item = Pid>) -> Self {
        self.threads.extend(threads);
        self.threads.sort_unstable();
        self.threads.dedup();
        self
    }

    /// Adds a fact.
    pub fn fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.evidence.insert(name.to_owned(), value.into());
        self
    }
}

/// Links for outsiders from hops of the graph.
pub fn links(hops: &[Hop], host: &Host) -> Vec<Link> {
    hops.iter()
        .map(|hop| Link {
            from: thread_ref(hop.waiter, host),
            waits_for: hop.resource.clone(),
            held_by: match hop.owner {
                Some(Owner::Thread(tid)) if hop.how != NOBODY_LEFT => Some(thread_ref(tid, host)),
                _ => None,
            },
            nature: hop.nature,
            confidence: hop.confidence,
            how: hop.how.to_owned(),
        })
        .collect()
}

/// Edges listed in one finding at most: a convoy of thousands is told by its numbers.
const MOST_LINKS: usize = 64;

/// The links of one chain, then the first step of everyone else who waits behind it.
pub fn links_with(longest: &[Hop], waiters: &BTreeSet<Pid>, graph: &Graph, host: &Host) -> Vec<Link> {
    let listed: BTreeSet<Pid> = longest.iter().map(|hop| hop.waiter).collect();
    let others = waiters.difference(&listed).filter_map(|tid| graph.edge(*tid).cloned());
    let mut hops = longest.to_vec();
    hops.extend(others.take(MOST_LINKS.saturating_sub(longest.len())));
    links(&hops, host)
}

/// A thread with its process.
pub fn thread_ref(tid: Pid, host: &Host) -> ThreadRef {
    ThreadRef { pid: host.row(tid).map_or(tid, |row| row.process.pid), tid, goid: None }
}

/// FNV-1a over kind, process and key: short, stable between runs, and no secret.
fn id(kind: Kind, process: ProcessId, key: &str) -> String {
    // `/proc` gives start times in 10 ms steps: round, so that every source yields the same id.
    let text = format!("{}/{}/{}/{key}", kind.name(), process.pid, process.start_ns / 10_000_000);
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}
