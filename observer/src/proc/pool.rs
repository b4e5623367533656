//! Readers that may be lost.
//!
//! Reading a target's memory, command line or maps takes its mmap lock and may fault in its pages. A target
//! can hold that lock, or never serve a page (userfaultfd, FUSE, a dead NFS server), for as long as it likes. So such reads run
//! on threads of this pool; a thread that does not come back is left behind and replaced, up to a bound, and the
//! process that holds it is not read again until it does. That it holds one is a fact to report.
//!
//! Nobody ever joins these threads: they wait in the kernel in killable sleeps, so they end with observer.

use super::{BlockedRead, ProcError};
use crate::census::ProcessId;
use crate::host::clock;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A clock: `CLOCK_MONOTONIC`, nanoseconds.
pub type Clock = fn() -> u64;

/// Sizes of the pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// Readers that work at the same time.
    pub workers: usize,
    /// Readers that are replaced when they are stuck; with more of them stuck the pool shrinks.
    pub max_stuck: usize,
    /// A step longer than this does not count as a working reader: another one is started for the jobs that wait.
    pub grace: Duration,
    /// A step longer than this is reported as blocked.
    pub blocked_after: Duration,
    /// Stack of a reader, bytes.
    pub stack_bytes: usize,
    /// The clock of [`BlockedRead::since_ns`].
    pub clock: Clock,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            workers: 4,
            max_stuck: 8,
            grace: Duration::from_millis(20),
            blocked_after: Duration::from_millis(100),
            stack_bytes: 256 << 10,
            clock: clock::monotonic_ns,
        }
    }
}

/// How the pool fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Threads, stuck or not.
    pub workers: usize,
    /// Threads that a target keeps now.
    pub stuck: usize,
    /// Readers that a target kept, and in whose place another was started, since the start.
    pub replaced: u64,
    /// Jobs that panicked: a defect of observer.
    pub panicked: u64,
}

impl std::ops::Add for PoolStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            workers: self.workers + other.workers,
            stuck: self.stuck + other.stuck,
            replaced: self.replaced + other.replaced,
            panicked: self.panicked + other.panicked,
        }
    }
}

/// Idle readers end after this long.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce(&Steps) + Send>;

/// The pool.
pub struct ReaderPool {
    shared: Arc<Shared>,
}

struct Shared {
    settings: PoolSettings,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(ProcessId, Job)>,
    running: BTreeMap<u64, Running>,
    next: u64,
    workers: usize,
    idle: usize,
    /// Started, and not come to their first job yet.
    starting: usize,
    replaced: u64,
    panicked: u64,
    closed: bool,
}

struct Running {
    process: ProcessId,
    /// What it reads; empty while it only computes.
    what: &'static str,
    since: Instant,
    since_ns: u64,
    /// Another reader was started in its place, and whether that is counted.
    replaced: bool,
    counted: bool,
}

impl Running {
    fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether it has to be counted as replaced now. A step that is only slow is not.
    fn settle(&mut self, blocked_after: Duration) -> bool {
        let is_new = self.replaced && !self.counted && !self.what.is_empty() && self.age() >= blocked_after;
        self.counted |= is_new;
        is_new
    }
}

/// What a job tells the pool about its progress.
pub struct Steps {
    shared: Arc<Shared>,
    id: u64,
}

impl Steps {
    /// The job goes on to read `what`: the time that counts as blocked begins anew.
    pub fn begin(&self, what: &'static str) {
        let since_ns = (self.shared.settings.clock)();
        let mut state = self.shared.lock();
        if let Some(running) = state.end_step(self.id, self.shared.settings.blocked_after) {
            running.what = what;
            running.since = Instant::now();
            running.since_ns = since_ns;
        }
    }

    /// The job goes on without the target: however long that takes, the target does not block it.
    pub fn compute(&self) {
        self.begin("");
    }

    /// The job reads nothing more: the process may be read again at once.
    pub fn finish(&self) {
        self.shared.lock().end(self.id, self.shared.settings.blocked_after);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn older_than(&self, age: Duration) -> usize {
        self.running.values().filter(|r| r.since.elapsed() >= age).count()
    }

    /// A reader was started: marks whom it stands in for.
    fn note_replacement(&mut self, grace: Duration) {
        if let Some(running) = self.running.values_mut().find(|r| !r.replaced && r.age() >= grace) {
            running.replaced = true;
        }
    }

    /// Counts the readers that were replaced because a target keeps them.
    fn settle(&mut self, blocked_after: Duration) {
        self.replaced += self.running.values_mut().filter_map(|r| r.settle(blocked_after).then_some(1)).sum::<u64>();
    }

    /// A step is over.
    fn end_step(&mut self, id: u64, blocked_after: Duration) -> Option<&mut Running> {
        let running = self.running.get_mut(&id)?;
        self.replaced += u64::from(running.settle(blocked_after));
        Some(running)
    }

    /// A job is over, or reads nothing more.
    fn end(&mut self, id: u64, blocked_after: Duration) {
        self.end_step(id, blocked_after);
        self.running.remove(&id);
    }
}

impl ReaderPool {
    /// A pool without threads: they start with the first jobs.
    pub fn new(settings: PoolSettings) -> Self {
        Self { shared: Arc::new(Shared { settings, state: Mutex::default(), work: Condvar::new() }) }
    }

    /// Hands over a job that reads `process`. It starts as soon as a reader is free.
    ///
    /// # Errors
    /// [`ProcError::Blocked`] while an earlier job of this process has not returned,
    /// [`ProcError::NoReaderFree`] when every reader is stuck.
    pub fn submit(&self, process: ProcessId, job: impl FnOnce(&Steps) + Send + 'static) -> Result<(), ProcError> {
        let mut state = self.shared.lock();
        if let Some(running) = state.running.values().find(|r| r.process == process) {
            return Err(ProcError::Blocked { pid: process.pid, what: running.what, since_ns: running.since_ns });
        }
        let stuck = state.older_than(self.shared.settings.grace);
        if stuck >= self.limit() {
            return Err(ProcError::NoReaderFree { stuck });
        }
        state.queue.push_back((process, Box::new(job)));
        self.start_readers(&mut state);
        if state.workers == 0 {
            // No thread can be had at all.
            state.queue.pop_back();
            return Err(ProcError::NoReaderFree { stuck: 0 });
        }
        self.shared.work.notify_one();
        Ok(())
    }

    /// Replaces stuck readers while jobs wait. Call it from time to time while waiting for results.
    pub fn tend(&self) {
        self.start_readers(&mut self.shared.lock());
    }

    /// Takes back the jobs that no reader has begun; says whose they were.
    pub fn withdraw(&self) -> Vec<ProcessId> {
        self.shared.lock().queue.drain(..).map(|(process, _)| process).collect()
    }

    /// The reads that are stuck now; empty again once they return.
    pub fn blocked(&self) -> Vec<BlockedRead> {
        let limit = self.shared.settings.blocked_after;
        let mut blocked: Vec<_> = self
            .shared
            .lock()
            .running
            .values()
            .filter(|r| r.since.elapsed() >= limit && !r.what.is_empty())
            .map(|r| BlockedRead { process: r.process, what: r.what.to_owned(), since_ns: r.since_ns })
            .collect();
        blocked.sort_by_key(|b| b.process);
        blocked
    }

    /// How the pool fares.
    pub fn stats(&self) -> PoolStats {
        let mut state = self.shared.lock();
        state.settle(self.shared.settings.blocked_after);
        let is_stuck = |r: &&Running| !r.what.is_empty() && r.age() >= self.shared.settings.blocked_after;
        PoolStats {
            workers: state.workers,
            stuck: state.running.values().filter(is_stuck).count(),
            replaced: state.replaced,
            panicked: state.panicked,
        }
    }

    /// How long to wait between two calls of [`ReaderPool::tend`].
    pub fn grace(&self) -> Duration {
        self.shared.settings.grace
    }

    /// Every reader is stuck, and no more are started.
    pub fn exhausted(&self) -> bool {
        self.shared.lock().older_than(self.shared.settings.grace) >= self.limit()
    }

    fn limit(&self) -> usize {
        self.shared.settings.workers + self.shared.settings.max_stuck
    }

    fn start_readers(&self, state: &mut State) {
        let slow = state.older_than(self.shared.settings.grace);
        while state.queue.len() > state.idle + state.starting
            && state.workers.saturating_sub(slow) < self.shared.settings.workers
            && state.workers < self.limit()
        {
            let shared = Arc::clone(&self.shared);
            let spawned = std::thread::Builder::new()
                .name("observer-read".into())
                .stack_size(self.shared.settings.stack_bytes)
                .spawn(move || read_until_idle(&shared));
            if let Err(e) = spawned {
                log::warn!("cannot start a reader thread: {e}");
                return;
            }
            state.workers += 1;
            state.starting += 1;
            state.note_replacement(self.shared.settings.grace);
        }
    }
}

impl Drop for ReaderPool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.queue.clear();
        self.shared.work.notify_all();
    }
}

/// The life of a reader.
fn read_until_idle(shared: &Arc<Shared>) {
    let mut state = shared.lock();
    state.starting -= 1;
    loop {
        let slow = state.older_than(shared.settings.grace);
        // Back from a stuck read, it may find that it was replaced.
        let superfluous = state.workers.saturating_sub(slow) > shared.settings.workers;
        if state.closed || superfluous {
            break;
        }
        let Some((process, job)) = state.queue.pop_front() else {
            state.idle += 1;
            let (woken, wait) = shared.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if wait.timed_out() && state.queue.is_empty() {
                break;
            }
            continue;
        };
        let id = state.next;
        state.next += 1;
        let since_ns = (shared.settings.clock)();
        state.running.insert(
            id,
            Running { process, what: "process", since: Instant::now(), since_ns, replaced: false, counted: false },
        );
        drop(state);
        let steps = Steps { shared: Arc::clone(shared), id };
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&steps)));
        state = shared.lock();
        state.end(id, shared.settings.blocked_after);
        if outcome.is_err() {
            state.panicked += 1;
        }
    }
    state.workers -= 1;
}
