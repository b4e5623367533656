//! Who owes whom an answer: requests not answered, bytes not read, connections not accepted, and what is awaited of peers;
//! from one listing of sockets to the next.
//!
//! All times are `CLOCK_MONOTONIC` nanoseconds. What is known holds for the moment of the listing ([`Debts::taken_ns`]): ages count up
//! to then, not up to the census that judges them.

mod desk;
mod history;
mod line;
mod pool;
mod verdict;

pub use desk::Desk;
pub use history::History;
pub use line::{Last, Line};
pub use pool::{Exhausted, Pool};
pub use verdict::{State, Verdict, requests};

use super::host::switches;
use crate::census::{Pid, ProcessId, ThreadRow};
use crate::proc::{Connection, ProcessStreams};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Answers of a process that are kept one by one, the latest ones.
const RECENT: usize = 64;
/// And with those that explain something.
const MOST_RECENT: usize = 8192;
/// Services (local ports or paths) of one process that have a history.
const MOST_SERVICES: usize = 256;
/// One listing may take so long: the namespaces of a host follow each other.
pub(crate) const ONE_LISTING_NS: u64 = 1_000_000_000;
/// What is known of a process that could not be listed since holds for so long: four of the longest pauses between two surveys.
const MOST_HELD_NS: u64 = 240_000_000_000;
/// Farther apart two listings say nothing of what happened in between to what the kernel does not count.
const MOST_GAP_NS: u64 = 10_000_000_000;
/// Two times of the kernel that are no farther apart may be of the same moment: a tick of its slowest clock.
pub const TICK_NS: u64 = 10_000_000;

/// What is known of the sockets of processes.
#[derive(Debug, Default)]
pub struct Services {
    processes: BTreeMap<ProcessId, Debts>,
    /// When sockets were listed last.
    latest_ns: u64,
}

impl Services {
    /// Takes what was listed after the census of these rows (sorted by thread id), and who could not be.
    pub(super) fn learn(&mut self, listed: &[ProcessStreams], unlisted: &[ProcessId], rows: &[ThreadRow]) {
        if listed.is_empty() {
            return;
        }
        let mut work: BTreeMap<ProcessId, Work> = listed.iter().map(|one| (one.process, Work::default())).collect();
        for row in rows {
            if let Some(Work(threads)) = work.get_mut(&row.process) {
                threads.push((row.tid, Done { switches: switches(row), cpu_ns: row.cpu_ns }));
            }
        }
        // What was over before is over.
        let held: Vec<ProcessId> = unlisted.iter().copied().filter(|process| self.of(*process).is_some()).collect();
        for streams in listed {
            self.latest_ns = self.latest_ns.max(streams.taken_ns);
            let work = work.remove(&streams.process).unwrap_or_default();
            self.processes.entry(streams.process).or_insert_with(|| Debts::of(streams)).learn(streams, work);
        }
        for process in held {
            if let Some(debts) = self.processes.get_mut(&process)
                && debts.taken_ns.saturating_add(MOST_HELD_NS) >= self.latest_ns
            {
                debts.held_ns = self.latest_ns;
            }
        }
    }

    /// Forgets the others.
    pub(super) fn retain(&mut self, lives: impl Fn(&ProcessId) -> bool) {
        self.processes.retain(|id, _| lives(id));
    }

    /// What one process owes and is owed; `None` if its sockets were not listed, or not the last time: of a whole host those are
    /// listed again that still seem to owe something. Of one that could not be listed it is what was known before.
    pub fn of(&self, process: ProcessId) -> Option<&Debts> {
        self.processes.get(&process).filter(|debts| self.is_latest(debts))
    }

    /// All processes whose sockets were listed the last time, and those that could not be.
    pub fn iter(&self) -> impl Iterator<Item = (ProcessId, &Debts)> {
        self.processes.iter().filter(|(_, debts)| self.is_latest(debts)).map(|(id, debts)| (*id, debts))
    }

    fn is_latest(&self, debts: &Debts) -> bool {
        debts.taken_ns.max(debts.held_ns).saturating_add(ONE_LISTING_NS) >= self.latest_ns
    }

    /// Idle, busy or waiting, and why, as far as the numbers say; what the rules say goes before.
    pub fn verdict(&self, process: ProcessId) -> Option<Verdict> {
        self.of(process).map(verdict::by_numbers)
    }

    /// Processes that owe an answer, or are owed one, for so long: nanoseconds.
    pub(crate) fn indebted(&self, long_ns: u64) -> impl Iterator<Item = ProcessId> {
        let is_old = move |debts: &Debts| debts.oldest_ns.is_some_and(|since| debts.age(since) >= long_ns);
        self.iter().filter(move |(_, debts)| is_old(debts)).map(|(id, _)| id)
    }
}

/// What a thread has done since it began.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    switches: u64,
    cpu_ns: u64,
}

/// What each thread of a process has done, by thread id.
#[derive(Debug, Default)]
struct Work(Vec<(Pid, Done)>);

impl Work {
    /// What was done since `before`, at least. Threads that have ended since did something, too: at least to end.
    fn since(&self, before: &Self) -> Done {
        let known = |tid: Pid| {
            let at = before.0.binary_search_by_key(&tid, |one| one.0).ok()?;
            before.0.get(at).map(|one| one.1)
        };
        let mut done = Done::default();
        let mut stayed = 0;
        for (tid, now) in &self.0 {
            let then = known(*tid);
            stayed += usize::from(then.is_some());
            // A number that went back is a new thread's.
            let then =
                then.filter(|then| then.switches <= now.switches && then.cpu_ns <= now.cpu_ns).unwrap_or_default();
            done.switches = done.switches.saturating_add(now.switches - then.switches);
            done.cpu_ns = done.cpu_ns.saturating_add(now.cpu_ns - then.cpu_ns);
        }
        done.switches = done.switches.saturating_add(before.0.len().saturating_sub(stayed) as u64);
        done
    }
}

/// What a process has got done between two listings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Time between them, nanoseconds; 0: there was only one.
    pub elapsed_ns: u64,
    /// Context switches of all threads.
    #[serde(rename = "context_switches")]
    pub switches: u64,
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
    /// Bytes read from connections that were there both times.
    pub read_bytes: u64,
    /// Bytes sent and acknowledged on them.
    pub sent_bytes: u64,
    /// Answers seen, at least.
    pub answers: u64,
    /// Connections accepted that are still there.
    pub accepts: u64,
}

impl Progress {
    /// It uses more than a fifth of a CPU.
    pub fn is_hot(&self) -> bool {
        self.elapsed_ns > 0 && self.cpu_ns.saturating_mul(5) > self.elapsed_ns
    }

    /// It answered, accepted or read something.
    pub fn has_served(&self) -> bool {
        self.answers > 0 || self.accepts > 0 || self.read_bytes > 0
    }
}

/// What one process owes and is owed.
#[derive(Debug)]
pub struct Debts {
    /// When its sockets were listed last.
    pub taken_ns: u64,
    /// When they were listed first.
    pub first_ns: u64,
    /// How often.
    pub listings: u64,
    /// Connections and listeners that are not kept.
    pub cut: u32,
    /// Between the last two listings.
    pub progress: Progress,
    lines: BTreeMap<u64, Line>,
    desks: BTreeMap<u64, Desk>,
    services: BTreeMap<String, History>,
    /// The latest answers: when sent, when asked.
    recent: BTreeSet<(u64, u64)>,
    work: Work,
    /// The last listing that was to have its sockets, and failed to: until then nothing is known to have changed.
    held_ns: u64,
    /// Since when the oldest answer is owed, or awaited.
    oldest_ns: Option<u64>,
}

impl Debts {
    fn of(streams: &ProcessStreams) -> Self {
        Self {
            taken_ns: streams.taken_ns,
            first_ns: streams.taken_ns,
            listings: 0,
            cut: 0,
            progress: Progress::default(),
            lines: BTreeMap::new(),
            desks: BTreeMap::new(),
            services: BTreeMap::new(),
            recent: BTreeSet::new(),
            work: Work::default(),
            held_ns: 0,
            oldest_ns: None,
        }
    }

    fn learn(&mut self, streams: &ProcessStreams, work: Work) {
        let is_first = self.listings == 0;
        let Done { switches, cpu_ns } = work.since(&self.work);
        let elapsed_ns = streams.taken_ns.saturating_sub(self.taken_ns);
        let mut progress = Progress { elapsed_ns, switches, cpu_ns, ..Progress::default() };
        let is_watched = streams.taken_ns.saturating_sub(self.taken_ns) <= MOST_GAP_NS;
        let mut before = std::mem::take(&mut self.lines);
        // By the name of the service: the same socket file may have several listeners in turn.
        let mut accepted: BTreeSet<&str> = BTreeSet::new();
        for now in &streams.connections {
            let known = before.remove(&now.inode).filter(|line| line.is_same(now));
            let is_new = known.is_none();
            if is_new && now.inbound && !is_first {
                progress.accepts += 1;
                accepted.extend(now.local.as_deref());
            }
            let (line, answer) = Line::learn(known, now, streams.taken_ns, is_watched);
            if let Some(moved) = line.moved {
                progress.read_bytes += moved.read;
                progress.sent_bytes += moved.sent;
            }
            if let Some((asked, sent)) = answer {
                progress.answers += u64::from(!(is_first && is_new));
                self.note_answer(now, asked, sent);
            }
            self.lines.insert(now.inode, line);
        }
        let mut desks = std::mem::take(&mut self.desks);
        for now in &streams.listeners {
            let has_accepted = now.local.as_deref().is_some_and(|local| accepted.contains(local));
            let desk =
                Desk::learn(desks.remove(&now.inode).filter(|_| is_watched), now, streams.taken_ns, has_accepted);
            self.desks.insert(now.inode, desk);
        }
        self.forget_answers();
        self.progress = if is_first { Progress::default() } else { progress };
        self.work = work;
        self.cut = streams.cut;
        self.taken_ns = streams.taken_ns;
        self.oldest_ns = self.unanswered().chain(self.awaiting()).map(|(_, since)| since).min();
        self.listings += 1;
    }

    fn note_answer(&mut self, connection: &Connection, asked: u64, sent: u64) {
        let name = service(connection).to_owned();
        if self.services.len() < MOST_SERVICES || self.services.contains_key(&name) {
            self.services.entry(name).or_default().note(asked, sent);
        }
        self.recent.insert((sent, asked));
    }

    /// Keeps the latest answers, and those that explain the last use of a connection however many came since.
    fn forget_answers(&mut self) {
        if self.recent.len() <= RECENT {
            return;
        }
        let made = self.lines.values().filter(|line| !line.at.inbound);
        let mut uses: Vec<u64> = made.filter_map(Line::active_ns).collect();
        uses.sort_unstable();
        let explains = |&(sent, asked): &(u64, u64)| {
            let at = uses.partition_point(|used| used.saturating_add(TICK_NS) < asked);
            uses.get(at).is_some_and(|used| *used <= sent.saturating_add(TICK_NS))
        };
        let useless: Vec<(u64, u64)> = self.recent.iter().filter(|answer| !explains(answer)).copied().collect();
        for old in useless.iter().take(useless.len().saturating_sub(RECENT)) {
            self.recent.remove(old);
        }
        while self.recent.len() > MOST_RECENT {
            self.recent.pop_first();
        }
    }

    /// How long something has lasted by the time of the last listing, nanoseconds.
    pub fn age(&self, since_ns: u64) -> u64 {
        self.taken_ns.saturating_sub(since_ns)
    }

    /// Connections, by inode number.
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.values()
    }

    /// Where it accepts.
    pub fn desks(&self) -> impl Iterator<Item = &Desk> {
        self.desks.values()
    }

    /// What is known of the answer times, by local port or path.
    pub fn services(&self) -> impl Iterator<Item = (&str, &History)> {
        self.services.iter().map(|(name, history)| (name.as_str(), history))
    }

    /// The history of one service.
    pub fn history(&self, service: &str) -> Option<&History> {
        self.services.get(service)
    }

    /// Requests that came and have not been answered, and since when, on connections that are open both ways.
    pub fn unanswered(&self) -> impl Iterator<Item = (&Line, u64)> {
        self.lines().filter_map(|line| Some((line, line.owes_since()?)))
    }

    /// Requests that were not answered before the peer gave up.
    pub fn abandoned(&self) -> impl Iterator<Item = (&Line, u64)> {
        self.lines().filter_map(|line| Some((line, line.abandoned_since()?)))
    }

    /// Answers it waits for, and since when.
    pub fn awaiting(&self) -> impl Iterator<Item = (&Line, u64)> {
        self.lines().filter_map(|line| Some((line, line.awaits_since()?)))
    }

    /// Bytes that came and were not read.
    pub fn unread_bytes(&self) -> u64 {
        self.lines().map(|line| line.at.unread).sum()
    }

    /// Connections that nobody has accepted.
    pub fn backlog(&self) -> u64 {
        self.desks().map(|desk| desk.at.backlog).sum()
    }

    /// Whether any debt is to be shown.
    pub fn owes(&self) -> bool {
        self.unread_bytes() > 0
            || self.backlog() > 0
            || self.unanswered().next().is_some()
            || self.awaiting().next().is_some()
    }

    /// The latest answers: (when sent, when asked).
    pub(crate) fn answers(&self) -> impl Iterator<Item = (u64, u64)> {
        self.recent.iter().copied()
    }

    /// Connections over which something it sends has not been taken for so long: it may wait for those readers.
    pub fn held_by_readers(&self, long_ns: u64) -> usize {
        self.lines().filter(|line| line.unsent_since_ns.is_some_and(|since| self.age(since) >= long_ns)).count()
    }
}

/// What a connection belongs to: its local port, or the path of a unix socket.
pub fn service(connection: &Connection) -> &str {
    let local = connection.local.as_deref().unwrap_or("?");
    match connection.kind {
        crate::proc::StreamKind::Tcp => local.rsplit(':').next().unwrap_or(local),
        crate::proc::StreamKind::Unix => local,
    }
}
