//! Stacks for whoever asks, within a deadline; what comes later is handed over with the next answer.

use super::job::{Outcome, Question, explain};
use super::library::Library;
use crate::census::ProcessId;
use crate::proc::pool::{PoolSettings, PoolStats, ReaderPool};
use crate::proc::{
    BlockedRead, Goroutines, ProcessTasks, RuntimeLocks, RuntimeWant, SiteFact, SiteWant, StackFact, StackWant,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// What is known of a file is kept for so long after its last use by [`Explainer::rest`].
const KEPT: Duration = Duration::from_secs(20);

/// Why a process was not even looked at: worth another try.
pub const BUSY: [&str; 2] =
    ["an earlier question about it is not answered yet: ask again", "no reader was free in time: ask again"];

/// How stacks are explained.
#[derive(Clone, Copy, Debug)]
pub struct ExplainSettings {
    /// The readers.
    pub pool: PoolSettings,
}

impl Default for ExplainSettings {
    fn default() -> Self {
        // Names of C++ nest deeply: their readers get a larger stack of their own.
        Self { pool: PoolSettings { workers: 2, stack_bytes: 2 << 20, ..PoolSettings::default() } }
    }
}

/// What an [`Explainer`] answers.
#[derive(Debug, Default)]
pub struct Explained {
    /// One per thread asked for, now or earlier, that is finished by now.
    pub stacks: Vec<StackFact>,
    /// One per call site asked for, now or earlier, that is finished by now.
    pub sites: Vec<SiteFact>,
    /// Threads at locks of their runtime, of the processes asked for.
    pub runtime_locks: Vec<RuntimeLocks>,
    /// Stacks without their root, unusable files, refusals: by reason.
    pub lost: BTreeMap<String, u64>,
    /// Threads that were asked for and are not finished.
    pub pending: usize,
    /// Time the readers spent on reading and walking these stacks, naming excluded, nanoseconds.
    pub walk_ns: u64,
}

/// Walks and names user stacks.
pub struct Explainer {
    pool: ReaderPool,
    library: Arc<Library>,
    /// Under way: the threads asked for of each process.
    pending: BTreeMap<ProcessId, usize>,
    sender: Sender<(ProcessId, Outcome)>,
    outcomes: Receiver<(ProcessId, Outcome)>,
    pages_lost: u64,
    /// Finished, and not handed over yet: at most one per process.
    goroutines: BTreeMap<ProcessId, Goroutines>,
    tasks: BTreeMap<ProcessId, ProcessTasks>,
}

/// What one census of a whole process is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Goroutines,
    Tasks,
}

impl Explainer {
    /// An explainer without threads: its readers start when they are needed.
    pub fn new(settings: ExplainSettings) -> Self {
        let (sender, outcomes) = channel();
        Self {
            pool: ReaderPool::new(settings.pool),
            library: Arc::default(),
            pending: BTreeMap::new(),
            sender,
            outcomes,
            pages_lost: 0,
            goroutines: BTreeMap::new(),
            tasks: BTreeMap::new(),
        }
    }

    /// Another one that shares what is known of files, with a reader of its own: neither waits for the other's questions about a
    /// process.
    pub fn beside(&self) -> Self {
        let pool = PoolSettings { workers: 1, ..ExplainSettings::default().pool };
        Self { library: Arc::clone(&self.library), ..Self::new(ExplainSettings { pool }) }
    }

    /// Explains the stacks of these threads, and returns within `deadline` with what is finished.
    ///
    /// A process answers one question at a time: what it was asked earlier comes first.
    pub fn stacks(&mut self, wants: &[StackWant], deadline: Duration) -> Explained {
        self.answer(wants, &[], deadline)
    }

    /// The stacks of call sites, from what was captured at the call.
    pub fn sites(&mut self, wants: &[SiteWant], deadline: Duration) -> Explained {
        let mut by_process: BTreeMap<ProcessId, Question> = BTreeMap::new();
        for want in wants {
            by_process.entry(want.process).or_default().sites.push(want.clone());
        }
        self.ask(by_process, deadline)
    }

    /// As [`stacks`](Self::stacks), and the threads at locks of these runtimes.
    pub fn answer(&mut self, wants: &[StackWant], runtimes: &[RuntimeWant], deadline: Duration) -> Explained {
        let mut by_process: BTreeMap<ProcessId, Question> = BTreeMap::new();
        for want in wants {
            by_process.entry(want.process).or_default().stacks.push(want.clone());
        }
        for want in runtimes {
            by_process.entry(want.process).or_default().runtime = Some(want.clone());
        }
        self.ask(by_process, deadline)
    }

    /// Takes a census of the goroutines of these processes, and returns within `deadline` with what is finished: at most one
    /// answer per process, also of those asked earlier. One that could not be read says so in
    /// [`Goroutines::missing`]; one that is still being read comes with a later call.
    ///
    /// Of a process with more goroutines than can be read in `longest` there are those that were read.
    pub fn goroutines(&mut self, processes: &[ProcessId], longest: Duration, deadline: Duration) -> Vec<Goroutines> {
        let question = || Question { goroutines: Some(longest), ..Question::default() };
        self.census(processes, question, Of::Goroutines, deadline);
        std::mem::take(&mut self.goroutines).into_values().collect()
    }

    /// Takes a census of the tasks of these processes, as [`goroutines`](Self::goroutines) does of theirs: at most one answer per
    /// process, [`ProcessTasks::missing`] says what could not be read, and [`ProcessTasks::none`] who has no such
    /// runtime.
    pub fn tasks(&mut self, processes: &[ProcessId], deadline: Duration) -> Vec<ProcessTasks> {
        let question = || Question { tasks: true, ..Question::default() };
        self.census(processes, question, Of::Tasks, deadline);
        std::mem::take(&mut self.tasks).into_values().collect()
    }

    fn census(&mut self, processes: &[ProcessId], question: impl Fn() -> Question, of: Of, deadline: Duration) {
        self.ask(processes.iter().map(|process| (*process, question())).collect(), deadline);
        for process in processes {
            if !self.pending.contains_key(process) {
                self.none(*process, Some(of), "reading them failed: a defect of observer");
            }
        }
    }

    fn ask(&mut self, mut by_process: BTreeMap<ProcessId, Question>, deadline: Duration) -> Explained {
        let until = Instant::now() + deadline;
        let mut explained = Explained::default();
        let asked: BTreeSet<ProcessId> = by_process.keys().copied().collect();
        let wanted: BTreeMap<ProcessId, Of> =
            by_process.iter().filter_map(|(process, question)| Some((*process, of(question)?))).collect();
        loop {
            by_process.retain(|process, question| {
                let busy = self.pending.contains_key(process);
                if !busy {
                    self.submit(*process, std::mem::take(question), &mut explained);
                }
                busy
            });
            // What is still in `by_process` waits for its earlier question.
            let left = until.saturating_duration_since(Instant::now());
            let open = if self.pending.keys().any(|process| asked.contains(process)) { left } else { Duration::ZERO };
            match self.outcomes.recv_timeout(open.min(self.pool.grace())) {
                Ok((process, outcome)) => {
                    if let Some(question) = by_process.get_mut(&process) {
                        question.stacks.retain(|want| !outcome.stacks.iter().any(|fact| is_answer(fact, want)));
                        question.sites.retain(|want| !outcome.sites.iter().any(|fact| fact.site == want.site));
                        // It came late: there is no need of another one right behind it.
                        question.goroutines = question.goroutines.filter(|_| outcome.goroutines.is_none());
                    }
                    self.take(process, outcome, &mut explained);
                }
                Err(_) if open.is_zero() => break,
                Err(_) => self.pool.tend(),
            }
        }
        for (process, question) in &by_process {
            explained.lose("stack: deadline", question.size());
            self.none(*process, of(question), BUSY[0]);
        }
        // Not begun: better asked again with fresh registers than walked late.
        for process in self.pool.withdraw() {
            if let Some(count) = self.pending.remove(&process) {
                explained.lose("stack: deadline", count);
                self.none(process, wanted.get(&process).copied(), BUSY[1]);
            }
        }
        let pages = Library::pages_lost();
        if pages > self.pages_lost {
            explained.lost.insert("page of a file that was cut short".to_owned(), pages - self.pages_lost);
            self.pages_lost = pages;
        }
        explained.pending = self.pending.values().sum();
        explained
    }

    fn submit(&mut self, process: ProcessId, question: Question, explained: &mut Explained) {
        if question.is_empty() {
            return;
        }
        let wanted = of(&question);
        let (library, sender, count) = (Arc::clone(&self.library), self.sender.clone(), question.size());
        let submitted = self.pool.submit(process, move |steps| {
            let outcome = Unsent { process, outcome: Outcome::default(), sender: &sender };
            let outcome = outcome.fill(|| explain(&library, process, &question, steps));
            steps.compute();
            library.trim();
            steps.finish();
            drop(outcome);
        });
        match submitted {
            Ok(()) => {
                self.pending.insert(process, count);
            }
            Err(error) => {
                explained.lose(&format!("stack: {}", error.reason()), count);
                self.none(process, wanted, &error.to_string());
            }
        }
    }

    fn take(&mut self, process: ProcessId, outcome: Outcome, explained: &mut Explained) {
        self.pending.remove(&process);
        let Outcome { stacks, sites, runtime_locks, goroutines, tasks, lost, walk_ns } = outcome;
        self.tasks.extend(tasks.map(|tasks| (process, tasks)));
        self.goroutines.extend(goroutines.map(|goroutines| (process, goroutines)));
        explained.runtime_locks.extend(runtime_locks);
        explained.walk_ns += walk_ns;
        explained.stacks.extend(stacks);
        explained.sites.extend(sites);
        for (reason, count) in lost {
            *explained.lost.entry(reason).or_default() += count;
        }
    }

    /// There is no census, for this reason; where none was wanted there need not be one.
    fn none(&mut self, process: ProcessId, wanted: Option<Of>, why: &str) {
        match wanted {
            Some(Of::Goroutines) => {
                self.goroutines.entry(process).or_insert_with(|| Goroutines::missing(process, why));
            }
            Some(Of::Tasks) => {
                self.tasks.entry(process).or_insert_with(|| ProcessTasks::missing(process, why));
            }
            None => {}
        }
    }

    /// Gives the memory back that nobody has needed for a while: names and debug information are read again when a stack is
    /// asked for. Call it now and then in a look that goes on for long.
    pub fn rest(&self) {
        if self.pending.is_empty() && self.library.rest(KEPT) {
            #[cfg(target_env = "gnu")]
            // SAFETY: takes the allocator's own locks and no pointer of ours.
            unsafe {
                // The readers' arenas would keep it.
                libc::malloc_trim(0);
            }
        }
    }

    /// Reads of targets that are stuck now.
    pub fn blocked(&self) -> Vec<BlockedRead> {
        self.pool.blocked()
    }

    /// How the readers fare.
    pub fn pool_stats(&self) -> PoolStats {
        self.pool.stats()
    }
}

impl Explained {
    fn lose(&mut self, reason: &str, count: usize) {
        *self.lost.entry(reason.to_owned()).or_default() += count as u64;
    }
}

/// Which census a question asks for.
fn of(question: &Question) -> Option<Of> {
    let goroutines = question.goroutines.map(|_| Of::Goroutines);
    goroutines.or(question.tasks.then_some(Of::Tasks))
}

/// Whether a stack is the one wanted.
fn is_answer(fact: &StackFact, want: &StackWant) -> bool {
    fact.tid == want.tid && fact.process == want.process && fact.switches == want.switches
}

/// An outcome that is sent when it is dropped, also when the work panics: nobody must wait for it for ever.
struct Unsent<'a> {
    process: ProcessId,
    outcome: Outcome,
    sender: &'a Sender<(ProcessId, Outcome)>,
}

impl Unsent<'_> {
    fn fill(mut self, work: impl FnOnce() -> Outcome) -> Self {
        self.outcome = work();
        self
    }
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        // Nobody listens any more: observer ends.
        let _ = self.sender.send((self.process, std::mem::take(&mut self.outcome)));
    }
}

#[cfg(test)]
mod tests;
