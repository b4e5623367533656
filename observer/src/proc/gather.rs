//! One call per census: everything the model asked about its suspects, within one deadline.

use super::identity::{Program, outline};
use super::pool::{PoolSettings, PoolStats, ReaderPool};
use super::sockets::{FileTables, Sockets};
use super::stat::{Identity, Stat, errno_name, identity};
use super::work::{Part, Task, add_sockets, fail, not_read, work};
use super::{ConnectingSocket, Facts, ProcessFacts, SocketFact, ThreadFacts, ThreadWant};
use crate::census::ProcessId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// How facts are gathered.
#[derive(Clone, Copy, Debug)]
pub struct GatherSettings {
    /// Longest time one [`Gatherer::gather`] takes.
    pub deadline: Duration,
    /// Processes whose facts are kept.
    pub cached: usize,
    /// The readers.
    pub pool: PoolSettings,
}

impl Default for GatherSettings {
    fn default() -> Self {
        Self { deadline: Duration::from_millis(200), cached: 4096, pool: PoolSettings::default() }
    }
}

/// Gathers facts about suspects.
pub struct Gatherer {
    settings: GatherSettings,
    pool: ReaderPool,
    cache: HashMap<ProcessId, Entry>,
    tables: FileTables,
    /// Connection attempts, and sockets with something waiting, of the last list that was asked for.
    connecting: Seen<ConnectingSocket>,
    unread: Seen<(ProcessId, SocketFact)>,
    /// Counts calls: tells what belongs to this one, and what was used last.
    call: u64,
    sender: Sender<Part>,
    parts: Receiver<Part>,
}

struct Entry {
    program: Program,
    facts: ProcessFacts,
    complete: bool,
    used: u64,
    /// When it is read again, for libraries that are loaded late and processes that are moved to another cgroup.
    due: Instant,
    interval: Duration,
}

/// A process that has just begun is read again after this time, then ever more rarely.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
const LAST_INTERVAL: Duration = Duration::from_secs(600);

/// What a list had, for those that the next one could not look at.
struct Seen<T> {
    found: Vec<T>,
    at: Option<Instant>,
}

/// A list is good for so long: of a whole host they are half a threshold apart.
const SEEN_FOR: Duration = Duration::from_secs(60);

impl<T: Clone> Seen<T> {
    fn nothing() -> Self {
        Self { found: Vec::new(), at: None }
    }

    /// Adds to the next list what the last one had of those that were missed now. Not what had been added to that one: nobody has
    /// seen it for two lists.
    fn complete(&mut self, next: &mut Vec<T>, is_missed: impl Fn(&T) -> bool) {
        let seen = next.clone();
        if self.at.is_some_and(|at| at.elapsed() < SEEN_FOR) {
            next.extend(self.found.iter().filter(|&one| is_missed(one)).cloned());
        }
        *self = Self { found: seen, at: Some(Instant::now()) };
    }
}

impl Gatherer {
    /// A gatherer without threads: its readers start when they are needed.
    pub fn new(mut settings: GatherSettings) -> Self {
        // A read that was given up at the deadline is reported by the same call.
        settings.pool.blocked_after = settings.pool.blocked_after.min(settings.deadline / 2);
        let (sender, parts) = channel();
        let (pool, cache) = (ReaderPool::new(settings.pool), HashMap::new());
        let (connecting, unread) = (Seen::nothing(), Seen::nothing());
        Self { settings, pool, cache, tables: FileTables::default(), connecting, unread, call: 0, sender, parts }
    }

    /// Whose a socket is, is read from these.
    pub fn with(self, tables: FileTables) -> Self {
        Self { tables, ..self }
    }

    /// Gathers facts: for `wants` memory and descriptors, one [`ThreadFacts`] each in the same order; for `processes` who
    /// they are; for `sockets_of` connection attempts; for `unread_of` sockets with something waiting.
    ///
    /// Returns within the deadline, whatever the targets do. What could not be had is in the facts (`error`, `missing`)
    /// and counted in [`Facts::lost`]; of processes whose sockets could not be looked at, there are those they had the last time.
    /// Kernel stacks are not gathered here.
    pub fn gather(
        &mut self,
        wants: &[ThreadWant],
        processes: &[ProcessId],
        sockets_of: &[ProcessId],
        unread_of: &[ProcessId],
    ) -> Facts {
        let start = Instant::now();
        let until = start + self.settings.deadline;
        self.call += 1;
        let mut lost = BTreeMap::new();
        self.take_late(&mut lost);

        let now_ns = (self.settings.pool.clock)();
        let mut threads: Vec<ThreadFacts> = wants.iter().map(|want| not_read(want, now_ns)).collect();
        let mut pending = self.hand_out(wants, processes, &mut threads, until, &mut lost);

        let mut sockets = Sockets::new(self.settings.pool.clock, until).with(self.tables.clone());
        let (mut connecting, missed) = sockets.connecting(sockets_of);
        if !sockets_of.is_empty() {
            self.connecting.complete(&mut connecting, |one| is_missed(&missed, one.process));
        }
        let (mut unread, mut missed) = (Vec::new(), BTreeSet::new());
        for &process in unread_of {
            match sockets.unread(process) {
                Some(found) => unread.extend(found.into_iter().map(|socket| (process, socket))),
                None => {
                    missed.insert(process);
                }
            }
        }
        if !unread_of.is_empty() {
            self.unread.complete(&mut unread, |(process, _)| is_missed(&missed, *process));
        }

        // A quarter of the time is left for the sockets behind the descriptors.
        self.collect(&mut pending, &mut threads, start + self.settings.deadline * 3 / 4, &mut lost);
        add_sockets(wants, &mut threads, &mut sockets);

        for error in threads.iter().flat_map(|t| &t.memory).filter_map(|m| m.error.as_deref()) {
            count(&mut lost, "memory", error);
        }
        for (reason, n) in sockets.into_lost() {
            *lost.entry(reason).or_default() += n;
        }
        let processes = self.known(processes, &mut lost);
        self.trim();
        let blocked_reads = self.pool.blocked();
        Facts { threads, processes, connecting, unread, blocked_reads, lost, ..Facts::default() }
    }

    /// How the readers fare.
    pub fn pool_stats(&self) -> PoolStats {
        self.pool.stats()
    }

    /// What came in after an earlier call gave up: identities are still good, the rest is stale.
    fn take_late(&mut self, lost: &mut BTreeMap<String, u64>) {
        while let Ok(part) = self.parts.try_recv() {
            match part {
                Part::Process { program, facts, complete } => self.keep(program, *facts, complete),
                Part::Memory { .. } => count(lost, "memory", "late"),
                Part::Fd { .. } => count(lost, "fd", "late"),
                Part::Set { .. } => count(lost, "set", "late"),
                Part::Done { .. } => {}
            }
        }
    }

    /// Gives each process to a reader; says which are under way.
    fn hand_out(
        &mut self,
        wants: &[ThreadWant],
        processes: &[ProcessId],
        threads: &mut [ThreadFacts],
        until: Instant,
        lost: &mut BTreeMap<String, u64>,
    ) -> BTreeSet<ProcessId> {
        let mut asked: BTreeMap<ProcessId, (Vec<usize>, bool)> = BTreeMap::new();
        for (index, want) in wants.iter().enumerate() {
            asked.entry(want.process).or_default().0.push(index);
        }
        for &process in processes {
            asked.entry(process).or_default().1 = true;
        }
        let mut pending = BTreeSet::new();
        for (process, (indices, identity)) in asked {
            if Instant::now() > until {
                count(lost, "process", "deadline");
                continue;
            }
            let refused = match self.task(process, wants, &indices, identity) {
                Ok(None) => continue,
                Ok(Some(task)) => {
                    // Kept first, so that a process that blocks its reader is at least known by name.
                    if let Some((program, facts)) = &task.identity {
                        self.keep(program.clone(), facts.clone(), false);
                    }
                    let sender = self.sender.clone();
                    let clock = self.settings.pool.clock;
                    match self.pool.submit(process, move |steps| work(process, task, steps, sender, clock)) {
                        Ok(()) => {
                            pending.insert(process);
                            continue;
                        }
                        Err(e) => e.reason().to_owned(),
                    }
                }
                Err(reason) => {
                    self.cache.remove(&process);
                    reason
                }
            };
            if identity {
                count(lost, "process", &refused);
            }
            fail(threads, &indices, &refused);
            let fds = indices.iter().filter(|&&i| wants[i].fd.is_some()).count();
            for _ in 0..fds {
                count(lost, "fd", &refused);
            }
        }
        pending
    }

    /// What is to be read of a process; nothing if all of it is known. Fails when the process is gone.
    fn task(
        &mut self,
        process: ProcessId,
        wants: &[ThreadWant],
        indices: &[usize],
        identity: bool,
    ) -> Result<Option<Task>, String> {
        let stat = Stat::read(process.pid).map_err(|e| match errno_name(&e).as_str() {
            "ENOENT" => "ESRCH".to_owned(),
            other => other.to_owned(),
        })?;
        if !stat.is(process) {
            return Err("ESRCH (pid reused)".to_owned());
        }
        let mut task = Task { call: self.call, ..Task::default() };
        for &index in indices {
            let want = &wants[index];
            if !want.memory.is_empty() {
                task.memory.push((index, want.memory.clone()));
                task.threads.push(want.tid);
            }
            task.fds.extend(want.fd.map(|fd| (index, want.tid, fd)));
            task.sets.extend(want.set.map(|set| (index, want.tid, set)));
        }
        // A few threads are enough to find one that is alive.
        task.threads.truncate(4);
        if identity {
            let program = Program::of(process.pid, &stat);
            match self.cache.get_mut(&process) {
                Some(entry) if entry.complete && entry.program == program && Instant::now() < entry.due => {
                    entry.facts.comm = stat.comm;
                    entry.used = self.call;
                }
                _ => task.identity = Some((program.clone(), outline(process, &stat, &program))),
            }
        }
        let idle = task.memory.is_empty() && task.fds.is_empty() && task.sets.is_empty() && task.identity.is_none();
        Ok((!idle).then_some(task))
    }

    /// Takes what the readers send until all are done or the time is up.
    fn collect(
        &mut self,
        pending: &mut BTreeSet<ProcessId>,
        threads: &mut [ThreadFacts],
        until: Instant,
        lost: &mut BTreeMap<String, u64>,
    ) {
        while !pending.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match self.parts.recv_timeout(left.min(self.pool.grace())) {
                Ok(Part::Process { program, facts, complete }) => self.keep(program, *facts, complete),
                Ok(Part::Memory { call, wants, taken_ns }) if call == self.call => {
                    for (index, memory) in wants {
                        threads[index].memory = memory;
                        threads[index].taken_ns = taken_ns;
                    }
                }
                Ok(Part::Fd { call, want, fd }) if call == self.call => match *fd {
                    Ok(fd) => threads[want].fd = Some(fd),
                    Err(reason) => count(lost, "fd", &reason),
                },
                Ok(Part::Set { call, want, set }) if call == self.call => match set {
                    Some(set) => {
                        threads[want].members = set.listed;
                        threads[want].members_cut = set.cut;
                    }
                    None => count(lost, "set", "not readable"),
                },
                Ok(Part::Done { call, process }) if call == self.call => {
                    pending.remove(&process);
                }
                Ok(Part::Memory { .. } | Part::Fd { .. } | Part::Set { .. } | Part::Done { .. }) => {}
                Err(_) => self.pool.tend(),
            }
        }
        let not_begun: BTreeSet<ProcessId> = self.pool.withdraw().into_iter().collect();
        let exhausted = self.pool.exhausted();
        for process in pending.iter() {
            let reason = if exhausted && not_begun.contains(process) { "no reader free" } else { "deadline" };
            count(lost, "process", reason);
            for thread in threads.iter_mut().filter(|t| t.process == *process) {
                for memory in thread.memory.iter_mut().filter(|m| m.error.as_deref() == Some("deadline")) {
                    memory.error = Some(reason.to_owned());
                }
            }
        }
    }

    /// Puts facts into the cache; an outline never replaces complete facts of the same program.
    fn keep(&mut self, program: Program, facts: ProcessFacts, complete: bool) {
        let mut interval = FIRST_INTERVAL;
        if let Some(entry) = self.cache.get(&facts.process)
            && entry.complete
            && entry.program == program
        {
            if !complete {
                return;
            }
            interval = (entry.interval * 2).min(LAST_INTERVAL);
        }
        self.cache.insert(
            facts.process,
            Entry { program, facts, complete, used: self.call, due: Instant::now() + interval, interval },
        );
    }

    /// Forgets the processes that nobody asked about for longest.
    fn trim(&mut self) {
        if self.cache.len() <= self.settings.cached {
            return;
        }
        let mut used: Vec<(u64, ProcessId)> = self.cache.iter().map(|(&p, e)| (e.used, p)).collect();
        used.sort_unstable();
        for (_, process) in &used[..used.len() - self.settings.cached] {
            self.cache.remove(process);
        }
    }

    /// The facts of these processes, complete or not.
    fn known(&self, processes: &[ProcessId], lost: &mut BTreeMap<String, u64>) -> Vec<ProcessFacts> {
        let mut known = Vec::new();
        let distinct: BTreeSet<ProcessId> = processes.iter().copied().collect();
        for entry in distinct.iter().filter_map(|p| self.cache.get(p)) {
            let mut facts = entry.facts.clone();
            if !entry.complete {
                facts.missing.push("cmdline, runtime, libc: not read yet, or the process blocks its reader".into());
            }
            if !facts.missing.is_empty() {
                count(lost, "process", "incomplete");
            }
            known.push(facts);
        }
        known
    }
}

/// Whether a process is one of those that could not be looked at, and has not ended.
fn is_missed(missed: &BTreeSet<ProcessId>, process: ProcessId) -> bool {
    missed.contains(&process) && identity(process) == Identity::Same
}

fn count(lost: &mut BTreeMap<String, u64>, what: &str, reason: &str) {
    *lost.entry(format!("{what}: {reason}")).or_default() += 1;
}

#[cfg(test)]
mod tests {
    use super::Seen;

    #[test]
    fn what_was_missed_is_as_it_was_the_last_time_and_no_longer() {
        let mut seen = Seen::nothing();
        let mut list = |found: &[(u32, char)], missed: &[u32]| {
            let mut next = found.to_vec();
            seen.complete(&mut next, |one| missed.contains(&one.0));
            next
        };
        assert_eq!(list(&[(1, 'a'), (2, 'b')], &[1]), [(1, 'a'), (2, 'b')], "there was no list before");
        assert_eq!(list(&[(1, 'c')], &[2]), [(1, 'c'), (2, 'b')]);
        assert_eq!(list(&[(1, 'd')], &[2]), [(1, 'd')], "nobody has seen it for two lists");
        assert!(list(&[], &[]).is_empty(), "looked at, and gone");
    }
}
