//! The facts of one turn: what the judgement asks for, asked until no new question turns up.

use super::{Session, name};
use crate::census::{Pid, ProcessId, ThreadRow};
use crate::host::{self, Kallsyms};
use crate::proc::{Facts, FarEnds, LockWaiter, ThreadWant, file_locks, stop_fact};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Rounds of questions after one census: a holder found in one may be asked about in the next.
const ROUNDS: usize = 8;
/// Stopped processes of which a turn reads who stopped them.
const MOST_STOPPED: usize = 64;
/// What it spends on finding who holds a file lock: among processes that were asked for, and among all of a host.
const FOR_FILE_LOCKS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(50));
/// What it spends on finding who has the other ends of pipes and sockets: for processes that were asked for, and in a
/// look at the whole host.
const FOR_FAR_ENDS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(100));
/// The next search waits for so many times what the last one took: a tenth of the time, or 2 %.
const FAR_ENDS_EVERY: (u32, u32) = (10, 50);

impl Session {
    /// Asks about suspects until no new ones turn up, and lets the judge learn the answers.
    pub(super) fn gather(&mut self) -> Facts {
        let mut all = Facts::default();
        let mut asked = BTreeSet::new();
        let mut far_ends = None;
        for round in 0..ROUNDS {
            let (host, scope) = (&mut self.judge.host, &self.judge.scope);
            let wants = if round == 0 { host.wants(scope) } else { host.wants_more(scope, &asked) };
            if wants.is_empty() && round > 0 {
                break;
            }
            asked.extend(wants.iter().map(|want| want.tid));
            // Who a process is matters once one of its words is odd.
            let whole = wants.iter().filter(|want| !self.judge.host.is_glance(want.tid));
            let mut processes: BTreeSet<ProcessId> = whole.map(|want| want.process).collect();
            let mut in_scope = Vec::new();
            let mut sockets_of = Vec::new();
            let mut unread_of = Vec::new();
            let mut stopped = Vec::new();
            if round == 0 {
                let extra = self.whole_processes();
                processes.extend(extra.identify);
                processes.extend(self.maybe_go());
                in_scope.clone_from(&extra.sockets_of);
                sockets_of = self.due(extra.sockets_of);
                unread_of = extra.unread_of;
                stopped = extra.stopped;
            }
            let processes: Vec<ProcessId> = processes.into_iter().collect();
            let mut facts = self.gatherer.gather(&wants, &processes, &sockets_of, &unread_of);
            if let Some(pods) = self.pods() {
                facts.processes.iter_mut().for_each(|process| name(&pods, process));
            }
            let stacks: Vec<Pid> = wants.iter().filter(|want| want.kernel_stack).map(|want| want.tid).collect();
            self.add_kernel_stacks(&stacks, &mut facts);
            self.add_file_locks(&wants, &mut facts);
            if far_ends.is_none() && wants.iter().any(|want| want.far_end.is_some()) {
                far_ends = self.far_ends();
            }
            if let Some(far_ends) = &mut far_ends {
                far_ends.add(&wants, &mut facts.threads);
                for (reason, count) in far_ends.take_lost() {
                    *facts.lost.entry(reason).or_default() += count;
                }
            }
            if round == 0 && sockets_of.is_empty() {
                facts.connecting.clone_from(&self.connecting.0);
            }
            if round == 0 {
                self.list_streams(&in_scope, &mut facts);
                self.connecting.0.clone_from(&facts.connecting);
                facts.stops = stopped.iter().filter_map(|process| stop_fact(*process)).collect();
            } else {
                // Sockets were asked for in the first round only.
                facts.connecting.clone_from(&all.connecting);
                facts.unread.clone_from(&all.unread);
                facts.stops.clone_from(&all.stops);
            }
            self.judge.learn(facts.clone());
            merge(&mut all, facts);
        }
        if let Some(took) = far_ends.map(|far_ends| far_ends.took()).filter(|took| !took.is_zero()) {
            self.no_far_ends_until = Some(Instant::now() + took * self.of_look(FAR_ENDS_EVERY));
        }
        all
    }

    /// Of two settings, that for processes that were asked for, or that for the whole host.
    pub(super) fn of_look<T>(&self, (attached, host): (T, T)) -> T {
        if self.judge.scope.processes.is_some() { attached } else { host }
    }

    /// The processes whose connection attempts are to be listed now. To list those of a host means a walk through the tables of
    /// every network namespace: twice in the time that makes one of them a finding.
    fn due(&mut self, processes: Vec<ProcessId>) -> Vec<ProcessId> {
        if self.judge.scope.processes.is_some() {
            return processes;
        }
        let now = Instant::now();
        if self.connecting.1.is_some_and(|due| now < due) {
            return Vec::new();
        }
        self.connecting.1 = Some(now + Duration::from_nanos(self.judge.scope.threshold_ns / 2));
        processes
    }

    /// A search for the other ends of what suspects wait at, among all processes: those looked at first. `None` while it
    /// is too early for another.
    fn far_ends(&self) -> Option<FarEnds> {
        if self.no_far_ends_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let (host, scope) = (&self.judge.host, &self.judge.scope);
        let living = host.rows().iter().filter(|row| !row.is_kernel_thread() && !row.is_exiting());
        let among: BTreeSet<ProcessId> = living.map(|row| row.process).collect();
        let asked_for = |id: &ProcessId| scope.processes.as_ref().is_some_and(|pids| pids.contains(&id.pid));
        let (first, rest): (Vec<ProcessId>, Vec<ProcessId>) = among.into_iter().partition(asked_for);
        let among = first.into_iter().chain(rest).collect();
        Some(FarEnds::new(among, host.now_ns(), host::clock::monotonic_ns, self.of_look(FOR_FAR_ENDS)))
    }

    fn whole_processes(&self) -> WholeProcesses {
        let (host, scope) = (&self.judge.host, &self.judge.scope);
        let by_filter = scope.processes.is_none() && scope.filter.needs_identity();
        let mut whole = WholeProcesses::default();
        let is_alive = |row: &&ThreadRow| !row.is_kernel_thread() && !row.is_exiting();
        for row in host.leaders().filter(is_alive) {
            let in_scope = scope.contains(row, host);
            if by_filter || in_scope && scope.processes.is_some() {
                whole.identify.push(row.process);
            }
            if row.is_stopped() && (in_scope || host.is_chased(row.tid)) && whole.stopped.len() < MOST_STOPPED {
                whole.stopped.push(row.process);
            }
            if in_scope {
                whole.sockets_of.push(row.process);
                // The other threads are looked through only where the first one is stopped.
                if row.is_stopped() && host.is_process_stopped(row.process.pid) {
                    whole.unread_of.push(row.process);
                }
            }
        }
        whole
    }

    /// Reads the list of file locks if one of these waits for one.
    fn add_file_locks(&self, wants: &[ThreadWant], facts: &mut Facts) {
        let waits = wants.iter().zip(&facts.threads).filter(|(want, _)| want.file_lock);
        let waiters: Vec<LockWaiter> = waits
            .map(|(want, thread)| LockWaiter {
                pid: want.process.pid,
                inode: thread.fd.as_ref().and_then(|fd| fd.inode),
                path: thread.fd.as_ref().map(|fd| fd.target.clone()),
            })
            .collect();
        if waiters.is_empty() {
            return;
        }
        let (host, scope) = (&self.judge.host, &self.judge.scope);
        let leaders = host.leaders().filter(|row| !row.is_kernel_thread());
        let mut among: Vec<ProcessId> =
            leaders.filter(|row| scope.contains(row, host)).map(|row| row.process).collect();
        // Who had one before is asked first: the time may not suffice for all.
        let known: BTreeSet<Pid> = host.file_holders().collect();
        among.sort_by_key(|process| !known.contains(&process.pid));
        let until = Instant::now() + self.of_look(FOR_FILE_LOCKS);
        facts.file_locks = file_locks(&waiters, &among, until, &mut facts.lost);
    }

    fn add_kernel_stacks(&mut self, tids: &[Pid], facts: &mut Facts) {
        if tids.is_empty() {
            return;
        }
        let stacks = match self.source.kernel_stacks(tids) {
            Ok(stacks) => stacks,
            Err(error) => {
                log::debug!("kernel stacks: {error}");
                *facts.lost.entry("kernel_stack".to_owned()).or_default() += tids.len() as u64;
                return;
            }
        };
        let kallsyms = self.kallsyms.get_or_insert_with(|| {
            Kallsyms::load().unwrap_or_else(|error| {
                log::warn!("{error}");
                Kallsyms::default()
            })
        });
        for thread in &mut facts.threads {
            if let Some(frames) = stacks.get(&thread.tid) {
                thread.kernel_stack = frames.iter().map(|address| kallsyms.name(*address)).collect();
            }
        }
    }
}

#[derive(Default)]
struct WholeProcesses {
    identify: Vec<ProcessId>,
    sockets_of: Vec<ProcessId>,
    unread_of: Vec<ProcessId>,
    stopped: Vec<ProcessId>,
}

fn merge(all: &mut Facts, more: Facts) {
    let Facts {
        threads,
        stacks,
        sites,
        runtime_locks,
        processes,
        connecting,
        unread,
        stops,
        blocked_reads,
        file_locks,
        lost,
        goroutines,
        tasks,
        streams,
        unlisted,
    } = more;
    all.streams.extend(streams);
    all.unlisted.extend(unlisted);
    all.threads.extend(threads);
    all.stacks.extend(stacks);
    all.sites.extend(sites);
    all.runtime_locks.extend(runtime_locks);
    let known: BTreeSet<ProcessId> = all.processes.iter().map(|p| p.process).collect();
    all.processes.extend(processes.into_iter().filter(|p| !known.contains(&p.process)));
    all.goroutines.extend(goroutines);
    all.tasks.extend(tasks);
    all.connecting = connecting;
    all.unread = unread;
    all.stops = stops;
    all.blocked_reads = blocked_reads;
    let known: BTreeSet<u64> = all.file_locks.iter().map(|lock| lock.inode).collect();
    all.file_locks.extend(file_locks.into_iter().filter(|lock| !known.contains(&lock.inode)));
    for (reason, count) in lost {
        *all.lost.entry(reason).or_default() += count;
    }
}
