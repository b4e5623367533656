//! The state of one host between two censuses: rows, facts, and what follows from both.

use super::debts::Services;
use super::decode::{self, Call, Known, Memory};
use super::ends;
use super::file_lock::{self, FileLock};
use super::goroutines::GoProcesses;
use super::holding::{Named, Queue};
use super::probes::{ProbeHistory, Waker};
use super::runtime_locks::AtLocks;
use super::stacks::{Stacks, sharpened};
use super::tasks::TaskProcesses;
use super::wait::{Class, Confidence, Owner, OwnerScope, Wait};
use super::word::{self, Changed, Sleepers};
use crate::census::{Census, Clocks, Pid, ProbeReading, ProcessId, SyscallInProgress, ThreadRow};
use crate::proc::{
    BlockedRead, ConnectingSocket, Facts, FdFact, Libc, ProcessFacts, SiteFact, SocketFact, StopFact, ThreadFacts,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// What is known of one suspect thread beyond its row.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) facts: ThreadFacts,
    /// The call it was in when the question arose.
    pub(super) syscall: Option<SyscallInProgress>,
    pub(super) wait: Option<Wait>,
    /// The thread slept through from the census before these facts to the census after them.
    pub(super) confirmed: bool,
    /// `CLOCK_MONOTONIC` of the census before these facts, nanoseconds.
    pub(super) learnt_ns: u64,
    /// What the readings of this one sleep say of the lock's owner.
    pub(super) named: Option<Named>,
    /// How often it was read during this one sleep.
    pub(super) readings: u32,
    /// The reading before this one did not come in time.
    pub(super) was_late: bool,
    /// Its futex word, if that is not what it awaits.
    pub(super) changed: Option<Changed>,
}

impl Suspect {
    /// Nothing about this wait changes while the thread sleeps: no need to ask again. The owner of a lock
    /// may change, and what could not be read may become readable.
    pub(super) fn is_settled(&self) -> bool {
        let is_lock = self
            .wait
            .as_ref()
            .is_none_or(|wait| matches!(wait.class, Class::Lock | Class::FileLock) || wait.owner.is_some());
        let is_read = self.facts.memory.iter().all(|piece| piece.error.is_none());
        self.changed.is_none()
            && !is_lock
            && is_read
            && self.facts.fd.as_ref().is_none_or(|fd| fd.is_settled() || self.readings >= READINGS)
    }
}

/// What stays unknown after so many readings of one sleep (a socket of a kind that cannot be listed) is taken as
/// it is: a hang must not be kept back for ever.
const READINGS: u32 = 3;

/// Since when a thread is off the CPU, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub ns: u64,
    /// From the scheduler's own record; otherwise from our first sight of it (a lower bound).
    pub exact: bool,
}

/// One host, as far as it is known now.
#[derive(Debug, Default)]
pub struct Host {
    clocks: Option<Clocks>,
    censuses: u64,
    pub(super) rows: Vec<ThreadRow>,
    /// Their ids, side by side: looked up much more often than rows are read.
    pub(super) tids: Vec<Pid>,
    /// Where the rows of each process are, by process id: those of one process mostly follow each other.
    runs: Vec<(Pid, Range<usize>)>,
    /// For sources without off-CPU times: (switches, first seen) per thread.
    first_seen: HashMap<Pid, (u64, u64)>,
    pub(super) suspects: BTreeMap<Pid, Suspect>,
    processes: BTreeMap<ProcessId, ProcessFacts>,
    /// Holders outside the scope whose own wait is part of a chain.
    pub(super) chased: BTreeSet<Pid>,
    /// Threads outside of it that have the other end of what a suspect waits at.
    pub(super) behind: BTreeSet<Pid>,
    /// Epoll instances and the sockets they watch, for a wait that has just begun again.
    epolls: BTreeMap<(ProcessId, i32), FdFact>,
    connecting: Vec<ConnectingSocket>,
    unread: Vec<(ProcessId, SocketFact)>,
    stops: Vec<StopFact>,
    blocked_reads: Vec<BlockedRead>,
    probes: ProbeHistory,
    /// Threads that were asked about for the sake of their futex word alone, after the last census.
    pub(super) glances: BTreeSet<Pid>,
    /// The last of them: the next ones follow.
    pub(super) glanced: Pid,
    pub(super) stacks: Stacks,
    pub(super) runtime_locks: AtLocks,
    pub(super) go: GoProcesses,
    pub(super) tasks: TaskProcesses,
    pub(super) services: Services,
}

/// How often a row's thread was switched out: the same number twice means it slept in between.
pub fn switches(row: &ThreadRow) -> u64 {
    row.nvcsw.saturating_add(row.nivcsw)
}

impl Host {
    /// Takes the next census and what the probes saw since the last one. Facts learnt before it are
    /// confirmed for threads that slept all the while, and dropped for all others.
    pub fn advance(&mut self, census: Census, reading: ProbeReading) {
        let (last, now) = (self.now_ns(), census.clocks.mono_ns);
        self.clocks = Some(census.clocks);
        self.censuses += 1;
        self.rows = census.rows;
        self.tids.clear();
        self.tids.extend(self.rows.iter().map(|row| row.tid));
        self.find_runs();
        self.glances.clear();
        let (rows, tids) = (&self.rows, &self.tids);
        let find = |tid| find(rows, tids, tid);
        self.suspects.retain(|tid, suspect| {
            let still = find(*tid).is_some_and(|row| {
                let slept = row.is_blocked() && switches(row) == suspect.facts.switches;
                slept && row.process == suspect.facts.process && row.syscall == suspect.syscall
            });
            suspect.confirmed = still;
            still
        });
        self.stacks.advance(find);
        self.runtime_locks.advance(find);
        self.note_first_sight(now);
        self.age_runtime_locks(last);
        let processes: BTreeSet<ProcessId> =
            self.runs.iter().filter_map(|(_, run)| Some(self.rows.get(run.start)?.process)).collect();
        self.processes.retain(|id, _| processes.contains(id));
        self.epolls.retain(|(id, _), _| processes.contains(id));
        self.go.0.retain(|id, _| processes.contains(id));
        self.tasks.0.retain(|id, _| processes.contains(id));
        self.services.retain(|id| processes.contains(id));
        self.probes.learn(reading, now);
        let tids = &self.tids;
        self.probes.forget(|id| tids.binary_search(&id).is_ok() || processes.iter().any(|process| process.pid == id));
    }

    fn find_runs(&mut self) {
        self.runs.clear();
        let mut start = 0;
        for rows in self.rows.chunk_by(|a, b| a.process == b.process) {
            let end = start + rows.len();
            self.runs.extend(rows.first().map(|row| (row.process.pid, start..end)));
            start = end;
        }
        self.runs.sort_unstable_by_key(|(pid, run)| (*pid, run.start));
    }

    /// Gives the rows of the last census away: there is none until the next one.
    pub fn give_rows(&mut self) -> Vec<ThreadRow> {
        self.tids.clear();
        self.runs.clear();
        std::mem::take(&mut self.rows)
    }

    fn note_first_sight(&mut self, now: u64) {
        let mut seen = HashMap::new();
        for row in self.rows.iter().filter(|r| r.off_cpu_since_ns.is_none() && r.is_blocked()) {
            let current = switches(row);
            let first = match self.first_seen.get(&row.tid) {
                Some(&(before, first)) if before == current => first,
                _ => now,
            };
            seen.insert(row.tid, (current, first));
        }
        self.first_seen = seen;
    }

    /// Facts gathered after the last census.
    pub fn learn(&mut self, facts: Facts) {
        self.learn_stacks(&facts.stacks);
        self.probes.learn_sites(&facts.sites);
        let runtime_locks = facts.runtime_locks;
        self.learn_goroutines(&facts.goroutines);
        self.learn_tasks(&facts.tasks);
        for process in facts.processes {
            self.processes.insert(process.process, process);
        }
        self.connecting = facts.connecting;
        self.unread = facts.unread;
        self.stops = facts.stops;
        self.services.learn(&facts.streams, &facts.unlisted, &self.rows);
        self.blocked_reads = facts.blocked_reads;
        let file_locks = facts.file_locks;
        let differs =
            |facts: &ThreadFacts| self.row(facts.tid).is_some_and(|row| word::differs(row, Memory(&facts.memory)));
        let sleepers = facts.threads.iter().any(differs).then(|| Sleepers::of(self));
        for mut facts in facts.threads {
            let Some(row) = self.row(facts.tid).filter(|row| row.process == facts.process) else {
                continue;
            };
            // What could not be read says nothing against what was.
            if facts.is_unread() && self.suspects.get(&facts.tid).is_some_and(|before| self.still_holds(before)) {
                continue;
            }
            let before = self.suspects.get(&facts.tid);
            let readings = 1 + before.map_or(0, |suspect| suspect.readings);
            let was_late = before.is_some_and(|suspect| suspect.facts.is_unread());
            before.into_iter().for_each(|before| ends::keep(&mut facts, &before.facts));
            let wait = self.decode(row, Some((&facts, readings)));
            let wait = wait.map(|wait| {
                let memory = Memory(&facts.memory);
                let lock = file_lock::awaited(&wait, row, facts.fd.as_ref(), memory, &file_locks, &self.rows);
                let wait = decode::with_ends(Wait { file_lock: lock, ..wait }, &facts);
                sharpened(wait, self.stacks.get(facts.tid))
            });
            let syscall = row.syscall;
            let owner = wait.as_ref().and_then(|wait| Some((wait.owner.as_ref()?, self.owner_of(wait, row)?)));
            // An earlier reading that is still here is one of the same sleep.
            let before = self.suspects.get(&facts.tid).and_then(|suspect| suspect.named.as_ref());
            let named = owner.map(|(word, owner)| Named::again(before, word, owner));
            let learnt_ns = self.now_ns();
            let known = self.suspects.get(&facts.tid).and_then(|suspect| suspect.changed.as_ref());
            let changed =
                sleepers.as_ref().and_then(|all| word::again(known, row, Memory(&facts.memory), all, learnt_ns));
            // A word as it should be is all that was asked for.
            if changed.is_none() && self.glances.contains(&facts.tid) && !self.suspects.contains_key(&facts.tid) {
                continue;
            }
            if let Some(fd) = facts.fd.as_ref().filter(|fd| !fd.watched.is_empty() && fd.is_settled()) {
                self.epolls.insert((facts.process, fd.fd), fd.clone());
            }
            let suspect =
                Suspect { facts, syscall, wait, confirmed: false, learnt_ns, named, readings, was_late, changed };
            self.suspects.insert(suspect.facts.tid, suspect);
        }
        // Behind the threads: a wait for one of these locks has what their memory tells.
        self.learn_runtime_locks(runtime_locks);
        self.note_heads();
    }

    /// Finds the first in the queue of each lock.
    fn note_heads(&mut self) {
        let mut heads: BTreeMap<Queue, (u64, Pid)> = BTreeMap::new();
        let mut queues: Vec<(Pid, Queue)> = Vec::new();
        for (tid, suspect) in &self.suspects {
            let Some((row, wait)) = self.row(*tid).zip(suspect.wait.as_ref()) else { continue };
            let Some(queue) = Queue::of(row, wait) else { continue };
            let place = (self.since(row).ns, *tid);
            heads.entry(queue).and_modify(|head| *head = place.min(*head)).or_insert(place);
            queues.push((*tid, queue));
        }
        let now = self.now_ns();
        for (tid, queue) in queues {
            if let Some(named) = self.suspects.get_mut(&tid).and_then(|suspect| suspect.named.as_mut()) {
                let is_head = heads.get(&queue).is_some_and(|head| head.1 == tid);
                named.head_since_ns = is_head.then(|| named.head_since_ns.unwrap_or(now));
            }
        }
    }

    /// Decodes with what was read of it, and how often.
    pub(super) fn decode(&self, row: &ThreadRow, read: Option<(&ThreadFacts, u32)>) -> Option<Wait> {
        let clocks = self.clocks?;
        let known = Known {
            memory: Memory(read.map_or(&[], |(facts, _)| facts.memory.as_slice())),
            fd: self.descriptor(row, read),
            libc: self.processes.get(&row.process).map_or(Libc::Unknown, |p| p.libc),
            clocks,
            since_ns: self.since(row).ns,
        };
        decode::decode(row, &known)
    }

    /// The descriptor a thread waits on: as just read, or what an earlier reading told of an epoll instance.
    fn descriptor<'a>(&'a self, row: &ThreadRow, read: Option<(&'a ThreadFacts, u32)>) -> Option<&'a FdFact> {
        let fresh =
            read.and_then(|(facts, readings)| facts.fd.as_ref().filter(|fd| fd.is_settled() || readings >= READINGS));
        fresh.or_else(|| self.epolls.get(&(row.process, decode::needs(row, Memory::default()).fd?)))
    }

    /// The futex word of a thread, if it has slept on although the word is not what it awaits.
    pub fn changed_word(&self, tid: Pid) -> Option<&Changed> {
        self.suspects.get(&tid).filter(|suspect| suspect.confirmed)?.changed.as_ref()
    }

    /// The memory that was read for this one sleep of a thread.
    pub(super) fn memory_read(&self, tid: Pid) -> Memory<'_> {
        self.suspects.get(&tid).map_or_else(Memory::default, |suspect| Memory(&suspect.facts.memory))
    }

    /// The clocks of the last census.
    pub fn clocks(&self) -> Option<Clocks> {
        self.clocks
    }

    /// `CLOCK_MONOTONIC` of the last census, nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.clocks.map_or(0, |c| c.mono_ns)
    }

    /// Censuses taken so far.
    pub fn censuses(&self) -> u64 {
        self.censuses
    }

    /// All threads, sorted by id.
    pub fn rows(&self) -> &[ThreadRow] {
        &self.rows
    }

    /// One thread.
    pub fn row(&self, tid: Pid) -> Option<&ThreadRow> {
        find(&self.rows, &self.tids, tid)
    }

    /// The first thread of each process, where it is still there.
    pub fn leaders(&self) -> impl Iterator<Item = &ThreadRow> {
        self.runs.chunk_by(|a, b| a.0 == b.0).filter_map(|runs| self.row(runs.first()?.0))
    }

    /// The threads of one process.
    pub fn threads_of(&self, pid: Pid) -> impl Iterator<Item = &ThreadRow> {
        let first = self.runs.partition_point(|(process, _)| *process < pid);
        let its = self.runs.iter().skip(first).take_while(move |(process, _)| *process == pid);
        its.filter_map(|(_, run)| self.rows.get(run.clone())).flatten()
    }

    /// What is known of one process.
    pub fn process(&self, id: ProcessId) -> Option<&ProcessFacts> {
        self.processes.get(&id)
    }

    /// Lets what is known of processes be completed.
    pub fn complete_processes(&mut self, mut complete: impl FnMut(&mut ProcessFacts)) {
        self.processes.values_mut().for_each(&mut complete);
    }

    /// Since when a blocked thread is off the CPU.
    pub fn since(&self, row: &ThreadRow) -> Since {
        // A wait that sleeps in short turns is one wait.
        if let Some(at) = self.runtime_locks.get(row.tid).filter(|at| at.is_confirmed() && at.sleeps_in_turns()) {
            return Since { ns: at.since_ns, exact: false };
        }
        match row.off_cpu_since_ns {
            Some(ns) => Since { ns, exact: true },
            None => Since { ns: self.first_seen.get(&row.tid).map_or(self.now_ns(), |seen| seen.1), exact: false },
        }
    }

    /// Takes stacks of call sites.
    pub fn learn_sites(&mut self, sites: &[SiteFact]) {
        self.probes.learn_sites(sites);
    }

    /// Who usually wakes the futex word a thread sleeps at, or else the thread itself. It says nothing of who holds a lock.
    pub fn waker(&self, row: &ThreadRow) -> Option<Waker> {
        let call = row.syscall.filter(|call| row.is_blocked() && Call::lookup(call.number, row.compat).is_futex())?;
        self.probes.word_waker(row.process.pid, call.args[0]).or_else(|| self.probes.thread_waker(row.tid))
    }

    /// How long it is off the CPU, nanoseconds; 0 for a thread that is not blocked.
    pub fn blocked_ns(&self, row: &ThreadRow) -> u64 {
        if row.is_blocked() { self.now_ns().saturating_sub(self.since(row).ns) } else { 0 }
    }

    /// Applies the stack of a suspect to what its memory told.
    pub(super) fn sharpen_suspect(&mut self, tid: Pid) {
        let known = self.stacks.get(tid);
        if let Some(suspect) = self.suspects.get_mut(&tid) {
            suspect.wait = suspect.wait.take().map(|wait| sharpened(wait, known));
        }
    }

    /// The wait of a thread, with facts where they are known, else from its row alone.
    pub fn wait(&self, tid: Pid) -> Option<Wait> {
        if let Some(at) = self.runtime_locks.get(tid).filter(|at| at.is_plausible()) {
            let reading = self.stacks.reading(tid).cloned();
            return Some(Wait { reading, ..at.wait.clone() });
        }
        match self.suspects.get(&tid) {
            Some(suspect) => suspect.wait.clone(),
            None if let Some(known) = self.stacks.get(tid) => known.wait.clone(),
            None => self.row(tid).filter(|row| row.is_blocked()).and_then(|row| self.decode(row, None)),
        }
    }

    /// What a thread waits for, without the rest of its wait: this is asked of every blocked thread.
    pub fn class(&self, row: &ThreadRow) -> Option<Class> {
        if let Some(at) = self.runtime_locks.get(row.tid).filter(|at| at.is_plausible()) {
            return Some(at.wait.class);
        }
        if self.suspects.contains_key(&row.tid) || self.stacks.get(row.tid).is_some() {
            return self.fresh_wait(row.tid).map(|wait| wait.class);
        }
        self.decode(row, None).filter(|_| row.is_blocked()).map(|wait| wait.class)
    }

    /// The wait of a thread whose memory or stack was read, confirmed or not.
    pub(super) fn fresh_wait(&self, tid: Pid) -> Option<&Wait> {
        match self.suspects.get(&tid) {
            Some(suspect) => suspect.wait.as_ref(),
            None => self.stacks.get(tid)?.wait.as_ref(),
        }
    }

    /// Waits proven to have lasted from one census to the next: their memory or their stack was read in between.
    pub fn confirmed(&self) -> impl Iterator<Item = (&ThreadRow, &Wait)> {
        let at_locks = self.runtime_locks.confirmed().filter_map(|(tid, at)| Some((self.row(tid)?, &at.wait)));
        let is_other = |tid: Pid| self.runtime_locks.get(tid).is_none();
        let suspects = self.suspects.iter().filter(move |(tid, s)| s.confirmed && is_other(**tid));
        let by_memory = suspects.filter_map(|(tid, s)| Some((self.row(*tid)?, s.wait.as_ref()?)));
        let others = self.stacks.confirmed().filter(move |(tid, _)| !self.suspects.contains_key(tid) && is_other(*tid));
        let by_stack = others.filter_map(|(tid, known)| Some((self.row(tid)?, known.wait.as_ref()?)));
        at_locks.chain(by_memory).chain(by_stack)
    }

    /// The confirmed wait of one thread.
    pub fn confirmed_wait(&self, tid: Pid) -> Option<(&ThreadRow, &Wait)> {
        if let Some(at) = self.runtime_locks.get(tid) {
            return Some((self.row(tid)?, &at.wait)).filter(|_| at.is_confirmed());
        }
        let wait = match self.suspects.get(&tid) {
            Some(suspect) => suspect.wait.as_ref().filter(|_| suspect.confirmed),
            None => self.stacks.get(tid).filter(|known| known.confirmed)?.wait.as_ref(),
        };
        Some((self.row(tid)?, wait?))
    }

    /// The kernel stack of a thread, where it was asked for.
    pub fn kernel_stack(&self, tid: Pid) -> &[String] {
        self.suspects.get(&tid).map_or(&[], |s| s.facts.kernel_stack.as_slice())
    }

    /// Looks the owner of a wait up among the living.
    pub fn owner_of(&self, wait: &Wait, waiter: &ThreadRow) -> Option<Owner> {
        if let Some(lock) = &wait.file_lock {
            return self.file_holder(lock).map(|(tid, ..)| Owner::Thread(tid));
        }
        let word = wait.owner.as_ref()?;
        let mut elsewhere = None;
        for row in self.by_own_tid(waiter, word.own_tid).filter(|row| !row.is_exiting()) {
            if row.process.pid == waiter.process.pid || word.scope == OwnerScope::Namespace {
                return Some(Owner::Thread(row.tid));
            }
            elsewhere = Some(row.tid);
        }
        Some(elsewhere.map_or(Owner::Gone(word.own_tid), Owner::Elsewhere))
    }

    /// The thread that holds a file lock, how sure that is, and how it was learnt. The kernel lists processes: of several
    /// threads it is the main one that is named, which is an inference. `None` if no holder is known, or it has ended.
    pub fn file_holder(&self, lock: &FileLock) -> Option<(Pid, Confidence, &'static str)> {
        let holder = lock.holder?;
        let mut living = self.threads_of(holder.pid).filter(|row| !row.is_exiting());
        let first = living.next()?;
        let confidence = match living.next() {
            None => holder.confidence,
            Some(_) => holder.confidence.min(Confidence::Likely),
        };
        Some((first.tid, confidence, holder.how))
    }

    /// The owner of a wait if it lives, how sure that is, and how it was learnt.
    pub fn holder_of(&self, wait: &Wait, waiter: &ThreadRow) -> Option<(Pid, Confidence, &'static str)> {
        if let Some(lock) = &wait.file_lock {
            return self.file_holder(lock);
        }
        let word = wait.owner.as_ref()?;
        let Owner::Thread(tid) = self.owner_of(wait, waiter)? else { return None };
        Some((tid, if word.proven { Confidence::Certain } else { Confidence::Likely }, word.how))
    }

    /// Since when, at least, the lock that a thread waits for has not changed hands (`CLOCK_MONOTONIC`,
    /// nanoseconds): since its owner sleeps, or since this thread is the first in the queue, which the next
    /// release would wake. `None` if that cannot be said of this thread.
    pub fn held_since(&self, waiter: Pid) -> Option<u64> {
        if let Some(at) = self.runtime_locks.get(waiter) {
            // Whoever has it must live.
            self.holder_of(&at.wait, self.row(waiter)?).filter(|_| at.is_confirmed())?;
            return Some(self.kept_since(waiter, at).map_or(at.since_ns, |since| since.min(at.since_ns)));
        }
        let suspect = self.suspects.get(&waiter).filter(|s| s.confirmed)?;
        let (wait, row) = (suspect.wait.as_ref()?, self.row(waiter)?);
        if let Some(lock) = wait.file_lock.as_ref().filter(|lock| lock.is_first) {
            // Its release wakes those that wait for it, see `__locks_wake_up_blocks` in `fs/locks.c`.
            let asleep = self.holder_asleep(lock).filter(|since| *since <= suspect.learnt_ns);
            return asleep.into_iter().chain([self.since(row).ns]).min();
        }
        if let Some(lock) = &wait.file_lock {
            return self.holder_asleep(lock).filter(|since| *since <= suspect.learnt_ns);
        }
        let Owner::Thread(owner) = self.owner_of(wait, row)? else { return None };
        let asleep = self.row(owner).filter(|row| row.is_blocked()).map(|row| self.since(row).ns);
        // An owner that fell asleep after the reading may have let go before.
        let asleep = asleep.filter(|since| *since <= suspect.learnt_ns);
        asleep.into_iter().chain(suspect.named.as_ref().and_then(|named| named.head_since_ns)).min()
    }

    /// Since when the one thread that can release a file lock sleeps.
    fn holder_asleep(&self, lock: &FileLock) -> Option<u64> {
        let (tid, confidence, _) = self.file_holder(lock)?;
        let row = self.row(tid).filter(|row| row.is_blocked() && confidence == Confidence::Certain)?;
        Some(self.since(row).ns)
    }

    /// Whether the owner that a lock records is proven to be gone: named before and after a census in which it
    /// did not live. One reading alone may be of an owner that passed the lock on and ended.
    pub fn is_owner_gone(&self, waiter: Pid) -> bool {
        self.suspects.get(&waiter).is_some_and(|s| s.confirmed && s.named.as_ref().is_some_and(|named| named.gone))
    }

    /// Threads that carry this id in the PID namespace of `waiter`.
    fn by_own_tid(&self, waiter: &ThreadRow, own_tid: Pid) -> impl Iterator<Item = &ThreadRow> {
        // In observer's own namespace ids need no translation.
        let direct = waiter.own.0 == waiter.tid;
        let exact = direct.then(|| self.row(own_tid)).flatten();
        let scan: &[ThreadRow] = if direct { &[] } else { &self.rows };
        let pidns = waiter.pidns;
        exact.into_iter().chain(scan.iter().filter(move |row| row.own.0 == own_tid && row.pidns == pidns))
    }

    /// What processes owe over their sockets, and what they are owed.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Sockets in SYN-SENT.
    pub fn connecting(&self) -> &[ConnectingSocket] {
        &self.connecting
    }

    /// Sockets of stopped processes that have bytes or connections waiting.
    pub fn unread(&self) -> &[(ProcessId, SocketFact)] {
        &self.unread
    }

    /// Why a process is stopped, as far as that is written down.
    pub fn stop(&self, process: ProcessId) -> Option<&StopFact> {
        self.stops.iter().find(|stop| stop.process == process)
    }

    /// Reads of targets that have not come back.
    pub fn blocked_reads(&self) -> &[BlockedRead] {
        &self.blocked_reads
    }

    /// What the probes have told so far.
    pub fn probes(&self) -> &ProbeHistory {
        &self.probes
    }

    /// Stopped, traced or frozen: every thread of the process.
    pub fn is_process_stopped(&self, pid: Pid) -> bool {
        let mut any = false;
        for row in self.threads_of(pid).filter(|row| !row.is_exiting()) {
            if !row.is_stopped() {
                return false;
            }
            any = true;
        }
        any
    }

    /// A name for a thread in sentences: `payments (tid 4242)`.
    pub fn name(&self, tid: Pid) -> String {
        match self.row(tid) {
            Some(row) => format!("{} (tid {tid})", row.comm),
            None => format!("tid {tid}"),
        }
    }

    /// What a thread does right now, in a few words, for the end of a chain.
    pub fn doing(&self, tid: Pid) -> String {
        let Some(row) = self.row(tid) else {
            return "no longer exists".to_owned();
        };
        if !row.is_blocked() {
            return if row.is_exiting() { "is exiting".to_owned() } else { "is running or runnable".to_owned() };
        }
        let time = super::duration(self.blocked_ns(row));
        let Some(wait) = self.wait(tid) else {
            return format!("has been in state {} for {time}", row.state_letter());
        };
        if wait.class == Class::Stopped {
            return format!("has been {} for {time}", super::stopped_how(row));
        }
        let thing = wait.resource.as_ref().map(|r| format!(" on {}", r.describe())).unwrap_or_default();
        format!("has been in {}(){thing} for {time}", wait.syscall)
    }
}

/// The row of a thread: `tids` are those of the rows, sorted.
fn find<'a>(rows: &'a [ThreadRow], tids: &[Pid], tid: Pid) -> Option<&'a ThreadRow> {
    rows.get(tids.binary_search(&tid).ok()?)
}
