//! The loop that wires the rooms: census, judgement, facts, recording. It owns all I/O of a look at a
//! host; what it produces are turns.

mod goroutines;

use crate::census::{Census, CensusError, Pid, ProbePlane, ProbeReading, ProcessId, Source, ThreadRow};
use crate::detect::{Change, Judge, Turn};
use crate::explain::{ExplainSettings, Explainer};
use crate::host::{self, Kallsyms};
use crate::kube::{Names, Snapshot};
use crate::model::{Observation, Scope};
use crate::proc::{
    ConnectingSocket, Facts, FarEnds, GatherSettings, Gatherer, LockWaiter, ProcessFacts, RuntimeLocks, RuntimeWant,
    StackFact, StackWant, ThreadWant, children_of, file_locks, stop_fact,
};
use crate::recording::{Recorder, RecordingError};
use crate::report::Account;
use goroutines::GoPace;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The second census of a look follows the first so soon: a finding needs two.
pub const FIRST_GAP: Duration = Duration::from_millis(300);
/// Rounds of questions after one census: a holder found in one may be asked about in the next.
const ROUNDS: usize = 8;
/// In a look at the whole host the locks of runtimes are read at every so many censuses, and at each while a
/// thread is at one: what is known of it must not be older than the census.
const RUNTIME_LOCKS_EVERY: u64 = 5;
/// What a turn spends on stacks that the judgement wants; the rest comes with a later turn.
const FOR_JUDGEMENT: Duration = Duration::from_millis(250);
/// What it spends on the stacks of a finding that is about to be printed.
const FOR_REPORT: Duration = Duration::from_secs(1);

/// Stopped processes of which a turn reads who stopped them.
const MOST_STOPPED: usize = 64;
/// What it spends on finding who holds a file lock.
const FOR_FILE_LOCKS: Duration = Duration::from_millis(50);
/// What it spends on finding who has the other ends of pipes and sockets: for processes that were asked for, and in a
/// look at the whole host.
const FOR_FAR_ENDS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(100));
/// The next search waits for so many times what the last one took: a tenth of the time, or 2 %.
const FAR_ENDS_EVERY: (u32, u32) = (10, 50);

/// Why a look could not go on.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SessionError {
    #[error(transparent)]
    Census(#[from] CensusError),
    #[error(transparent)]
    Recording(#[from] RecordingError),
}

/// A look at a host, in progress.
pub struct Session {
    source: Box<dyn Source>,
    probes: Option<ProbePlane>,
    gatherer: Gatherer,
    explainer: Explainer,
    /// Threads whose stacks are still being worked on.
    unexplained: usize,
    /// Stacks explained between two turns: they belong to the next observation.
    between: Vec<StackFact>,
    /// Loaded when the first kernel stack is to be named.
    kallsyms: Option<Kallsyms>,
    recorder: Option<Recorder>,
    /// Names of pods, where somebody is asked for them, and the version that is known.
    names: Option<(Names, u64)>,
    /// Before this no other ends are searched for.
    no_far_ends_until: Option<Instant>,
    /// Connection attempts of the last listing, and when the next one is due.
    connecting: (Vec<ConnectingSocket>, Option<Instant>),
    /// The processes whose descendants belong to the scope as well.
    parents: Vec<Pid>,
    /// When the goroutines of which process are read next.
    go_pace: GoPace,
    /// A reading of goroutines is under way.
    awaits_goroutines: bool,
    /// What the probes' filter holds, in ids of the initial PID namespace.
    listened_to: BTreeSet<Pid>,
    /// Model, rules, findings.
    pub judge: Judge,
    /// What was seen, lost and spent.
    pub account: Account,
}

impl Session {
    /// A session over a source of rows and a probe plane.
    pub fn new(source: Box<dyn Source>, probes: Option<ProbePlane>, scope: Scope) -> Self {
        Self {
            source,
            probes,
            gatherer: Gatherer::new(GatherSettings::default()),
            explainer: Explainer::new(ExplainSettings::default()),
            unexplained: 0,
            between: Vec::new(),
            kallsyms: None,
            recorder: None,
            names: None,
            no_far_ends_until: None,
            connecting: (Vec::new(), None),
            parents: Vec::new(),
            go_pace: GoPace::default(),
            awaits_goroutines: false,
            listened_to: BTreeSet::new(),
            judge: Judge::new(scope),
            account: Account::default(),
        }
    }

    /// Records every turn.
    pub fn record(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// Gives pods the names that the API server knows.
    pub fn name_pods(&mut self, names: Names) {
        self.names = Some((names, 0));
    }

    /// The pods that the API server knows.
    pub fn pods(&self) -> Option<Arc<Snapshot>> {
        self.names.as_ref().map(|(names, _)| names.snapshot())
    }

    /// Takes the descendants of these processes into the scope, as they come.
    pub fn follow_children(&mut self, parents: Vec<Pid>) {
        self.parents = parents;
    }

    /// Where the rows come from.
    pub fn source_name(&self) -> &'static str {
        self.source.name()
    }

    /// One census, its judgement, and the facts for the next one.
    pub fn turn(&mut self) -> Result<Turn, SessionError> {
        let census = match &self.judge.scope.processes {
            Some(_) => self.source.take()?,
            // With the rows it had: a host is mostly asleep.
            None => self.source.take_again(self.judge.host.give_rows())?,
        };
        let reading = self.read_probes(&census);
        self.account.note_census(&census);
        self.follow(&census);
        let kept = self.recorder.is_some().then(|| (census.clone(), reading.clone()));
        let judging = Instant::now();
        let turn = self.judge.advance(census, reading);
        self.account.judge_ns += nanoseconds(judging);
        self.renew_names();
        let history = self.judge.host.probes();
        self.account.note_probes(history.account(), history.forgotten());
        let mut facts = self.gather();
        facts.stacks.append(&mut self.between);
        let explaining = Instant::now();
        self.explain_suspects(&turn, &mut facts);
        self.read_goroutines(&mut facts);
        self.account.explain_ns += nanoseconds(explaining);
        self.account.lose_facts(&facts.lost);
        self.account.note_readers(self.gatherer.pool_stats() + self.explainer.pool_stats());
        if let (Some(recorder), Some((mut census, probes))) = (&mut self.recorder, kept) {
            // A look at one process must not write down what else runs on the host.
            let relevant = self.judge.host.relevant(&self.judge.scope);
            let seen = census.rows.len();
            census.rows.retain(|row| relevant.contains(&row.process.pid));
            let left_out = (seen - census.rows.len()) as u64;
            if left_out > 0 {
                census.lost.insert("not_recorded".to_owned(), left_out);
            }
            recorder.write(&Observation { census, probes, facts })?;
        }
        if let Some((names, _)) = &self.names {
            // Counted there since the start.
            for (reason, count) in names.lost() {
                self.account.facts_lost.insert(reason.to_owned(), count);
            }
        }
        self.explainer.rest();
        (self.account.self_cpu_ns, self.account.self_rss_bytes) = host::own_usage();
        Ok(turn)
    }

    /// Names that have come since the process was looked at.
    fn renew_names(&mut self) {
        let Some((names, known)) = &mut self.names else { return };
        let version = names.version();
        if std::mem::replace(known, version) != version {
            let pods = names.snapshot();
            self.judge.host.complete_processes(|process| name(&pods, process));
        }
    }

    /// The stacks that the next judgement wants, and those of the findings that are about to be printed.
    fn explain_suspects(&mut self, turn: &Turn, facts: &mut Facts) {
        let mut wants = self.judge.host.stack_wants(&self.judge.scope);
        if self.judge.scope.processes.is_none() {
            // Our own threads wait for work, and our own symbols are large.
            wants.retain(|want| want.process.pid != std::process::id());
        }
        let runtimes = self.runtimes();
        let (mut stacks, locks) = self.explain(&wants, &runtimes, FOR_JUDGEMENT);
        for why in locks.iter().filter_map(|locks| locks.missing.as_ref()) {
            *facts.lost.entry(format!("runtime locks: {why}")).or_default() += 1;
        }
        self.judge.learn_runtime_locks(locks.clone());
        facts.runtime_locks = locks;
        let reported = turn.changes.iter().filter(|(change, _)| *change != Change::Resolved);
        let threads: BTreeSet<Pid> = reported.flat_map(|(_, life)| life.finding.threads.iter().copied()).collect();
        let wants = self.judge.host.report_wants(threads);
        stacks.extend(self.explain(&wants, &[], FOR_REPORT).0);
        facts.stacks.extend(stacks);
        facts.blocked_reads.extend(self.explainer.blocked());
    }

    /// Whether the next turn will know stacks that this one did not.
    pub fn awaits_stacks(&self) -> bool {
        self.judge.host.has_fresh_stacks()
    }

    /// Whether stacks that were asked for are still being worked on.
    pub fn is_explaining(&self) -> bool {
        self.unexplained > 0
    }

    /// Whether the next turn will know more of waits for locks of a runtime.
    pub fn awaits_locks(&self) -> bool {
        self.judge.host.has_fresh_runtime_locks()
    }

    /// Explains every blocked thread of the processes looked at whose stack is not known. The next turn shows which of them
    /// slept through; the answer is how many were asked for.
    pub fn explain_all(&mut self, deadline: Duration) -> usize {
        let explaining = Instant::now();
        let host = &self.judge.host;
        let pids = self.judge.scope.processes.iter().flatten();
        let threads: BTreeSet<Pid> = pids.flat_map(|pid| host.threads_of(*pid)).map(|row| row.tid).collect();
        let wants = host.report_wants(threads);
        let (stacks, _) = self.explain(&wants, &[], deadline);
        self.between.extend(stacks);
        self.account.explain_ns += nanoseconds(explaining);
        wants.len()
    }

    /// Runtimes whose locks are read in this turn: those looked at always, others of the host now and then.
    fn runtimes(&self) -> Vec<RuntimeWant> {
        let (host, scope) = (&self.judge.host, &self.judge.scope);
        if scope.processes.is_none()
            && !self.account.censuses.is_multiple_of(RUNTIME_LOCKS_EVERY)
            && !host.has_runtime_locks()
        {
            return Vec::new();
        }
        let leads = |row: &&ThreadRow| row.tid == row.process.pid && !row.is_exiting() && scope.contains(row, host);
        host.runtime_wants(host.rows().iter().filter(leads).map(|row| row.process))
    }

    fn explain(
        &mut self,
        wants: &[StackWant],
        runtimes: &[RuntimeWant],
        deadline: Duration,
    ) -> (Vec<StackFact>, Vec<RuntimeLocks>) {
        let deadline = if wants.is_empty() && runtimes.is_empty() { Duration::ZERO } else { deadline };
        let explained = self.explainer.answer(wants, runtimes, deadline);
        self.account.fail_unwinds(&explained.lost);
        self.unexplained = explained.pending;
        self.judge.learn_stacks(&explained.stacks);
        (explained.stacks, explained.runtime_locks)
    }

    /// Lets new children into the scope, and tells the probes whom to listen to.
    fn follow(&mut self, census: &Census) {
        let Some(mut pids) = self.judge.scope.processes.clone() else { return };
        if !self.parents.is_empty() {
            pids.extend(children_of(&self.parents, &census.rows));
            self.judge.scope.processes = Some(pids.clone());
        }
        let initial: BTreeSet<Pid> =
            census.rows.iter().filter(|row| pids.contains(&row.process.pid)).map(|row| row.initial.1).collect();
        if let Some(probes) = &mut self.probes
            && self.listened_to != initial
        {
            match probes.set_filter(&initial.iter().copied().collect::<Vec<_>>()) {
                Ok(()) => self.listened_to = initial,
                Err(error) => {
                    log::warn!("{error}");
                    self.account.lose("probe_filter", 1);
                }
            }
        }
    }

    fn read_probes(&mut self, census: &Census) -> ProbeReading {
        let Some(probes) = &mut self.probes else { return ProbeReading::default() };
        probes.note_pids(census);
        probes.drain().unwrap_or_else(|error| {
            log::warn!("{error}");
            self.account.lose("probe_drain", 1);
            ProbeReading::default()
        })
    }

    /// Asks about suspects until no new ones turn up, and lets the judge learn the answers.
    fn gather(&mut self) -> Facts {
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
            let mut sockets_of = Vec::new();
            let mut unread_of = Vec::new();
            let mut stopped = Vec::new();
            if round == 0 {
                let extra = self.whole_processes();
                processes.extend(extra.identify);
                processes.extend(self.maybe_go());
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
    fn of_look<T>(&self, (attached, host): (T, T)) -> T {
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
        let leads = |row: &&ThreadRow| row.tid == row.process.pid && !row.is_kernel_thread() && !row.is_exiting();
        for row in host.rows().iter().filter(leads) {
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
        let leaders = host.rows().iter().filter(|row| row.tid == row.process.pid && !row.is_kernel_thread());
        let among: Vec<ProcessId> = leaders.filter(|row| scope.contains(row, host)).map(|row| row.process).collect();
        facts.file_locks = file_locks(&waiters, &among, Instant::now() + FOR_FILE_LOCKS, &mut facts.lost);
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

fn name(pods: &Snapshot, process: &mut ProcessFacts) {
    if let Some(pod) = &mut process.pod {
        pods.fill(pod, process.container.as_ref());
    }
}

/// Time since then.
fn nanoseconds(start: Instant) -> u64 {
    host::clock::whole_ns(start.elapsed())
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
        runtime_locks,
        processes,
        connecting,
        unread,
        stops,
        blocked_reads,
        file_locks,
        lost,
        goroutines,
    } = more;
    all.threads.extend(threads);
    all.stacks.extend(stacks);
    all.runtime_locks.extend(runtime_locks);
    let known: BTreeSet<ProcessId> = all.processes.iter().map(|p| p.process).collect();
    all.processes.extend(processes.into_iter().filter(|p| !known.contains(&p.process)));
    all.goroutines.extend(goroutines);
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
