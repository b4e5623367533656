//! The loop that wires the rooms: census, judgement, facts, recording. It owns all I/O of a look at a
//! host; what it produces are turns.

mod follow;
mod gather;
mod goroutines;
mod pace;
mod streams;
mod tasks;

use crate::census::{
    Census, CensusError, GovernedProbes, Pid, ProbeReading, ProcessId, Registers, SiteStack, Source, ThreadRow,
};
use crate::detect::{Change, Judge, Turn};
use crate::explain::{ExplainSettings, Explainer};
use crate::host::{self, Kallsyms};
use crate::kube::{Names, Snapshot};
use crate::model::audit::Descriptors;
use crate::model::{Observation, Scope};
use crate::proc::{
    ConnectingSocket, Facts, FdFact, FileTables, GatherSettings, Gatherer, ProcessFacts, RuntimeLocks, RuntimeWant,
    SiteFact, SiteWant, StackFact, StackWant, ThreadWant,
};
use crate::recording::{Recorder, RecordingError};
use crate::report::Account;
use follow::Followed;
use pace::Pace;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use streams::StreamPace;
use tasks::TaskPace;

/// The second census of a look follows the first so soon: a finding needs two.
pub const FIRST_GAP: Duration = Duration::from_millis(300);
/// In a look at the whole host the locks of runtimes are read at every so many censuses, and at each while a
/// thread is at one: what is known of it must not be older than the census.
const RUNTIME_LOCKS_EVERY: u64 = 5;
/// What a turn spends on stacks that the judgement wants; the rest comes with a later turn.
const FOR_JUDGEMENT: Duration = Duration::from_millis(250);
/// What it spends on the stacks of a finding that is about to be printed.
const FOR_REPORT: Duration = Duration::from_secs(1);

/// Call sites whose stacks wait to be explained.
const MOST_SITES: usize = 1024;
/// How often one is asked for.
const SITE_TRIES: u32 = 20;
/// How often descriptors are asked for: on a busy machine one deadline is short, and some sockets are of no known kind.
const DESCRIPTOR_TRIES: usize = 5;

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
    /// How the sockets of processes are told.
    descriptors: String,
    probes: Option<GovernedProbes>,
    gatherer: Gatherer,
    explainer: Explainer,
    /// Looks through memory for tasks, which takes longer than to walk a stack.
    task_reader: Explainer,
    /// Threads whose stacks are still being worked on.
    unexplained: usize,
    /// Stacks explained between two turns: they belong to the next observation.
    between: Vec<StackFact>,
    /// Call sites whose stacks are not known yet, by process and site, with how often they were asked for.
    sites_wanted: BTreeMap<(Pid, u64), (SiteWant, u32)>,
    /// Loaded when the first kernel stack is to be named.
    kallsyms: Option<Kallsyms>,
    recorder: Option<Recorder>,
    /// Names of pods, where somebody is asked for them, and the version that is known.
    names: Option<(Names, u64)>,
    /// Before this no other ends are searched for.
    no_far_ends_until: Option<Instant>,
    /// Connection attempts of the last listing, and when the next one is due.
    connecting: (Vec<ConnectingSocket>, Option<Instant>),
    /// Who is in the scope, if it is not the whole host.
    followed: Followed,
    /// When the goroutines of which process are read next.
    go_pace: Pace,
    /// When the tasks of which process are read next, and who turned out to have none.
    task_pace: TaskPace,
    /// Stream sockets, and when they are listed next.
    stream_pace: StreamPace,
    /// What the probes' filter holds, in ids of the initial PID namespace.
    listened_to: BTreeSet<Pid>,
    /// Model, rules, findings.
    pub judge: Judge,
    /// What was seen, lost and spent.
    pub account: Account,
}

impl Session {
    /// A session over a source of rows and a probe plane.
    pub fn new(mut source: Box<dyn Source>, probes: Option<GovernedProbes>, scope: Scope) -> Self {
        let explainer = Explainer::new(ExplainSettings::default());
        let (tables, descriptors) = match source.socket_files() {
            Ok(iterator) => (FileTables::by_iterator(iterator), "iter_task_file".to_owned()),
            Err(why) => (FileTables::default(), format!("proc: {why}")),
        };
        log::debug!("descriptors: {descriptors}");
        Self {
            source,
            probes,
            gatherer: Gatherer::new(GatherSettings::default()).with(tables.clone()),
            descriptors,
            task_reader: explainer.beside(),
            explainer,
            unexplained: 0,
            between: Vec::new(),
            sites_wanted: BTreeMap::new(),
            kallsyms: None,
            recorder: None,
            names: None,
            no_far_ends_until: None,
            connecting: (Vec::new(), None),
            followed: Followed::of(scope.processes.iter().flatten().copied().collect()),
            go_pace: Pace::default(),
            task_pace: TaskPace::default(),
            stream_pace: StreamPace::new(tables),
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

    /// Takes the descendants of the processes asked for into the scope, as they come.
    pub fn follow_children(&mut self) {
        self.followed.with_children();
    }

    /// The processes that were asked for, whatever has become of them; none in a look at the whole host.
    pub fn asked(&self) -> &BTreeSet<Pid> {
        self.followed.asked()
    }

    /// The probes, where there are any.
    pub fn probes(&self) -> Option<&GovernedProbes> {
        self.probes.as_ref()
    }

    /// Where the rows come from.
    pub fn source_name(&self) -> &'static str {
        self.source.name()
    }

    /// How it is told which sockets a process has: `iter_task_file`, or `proc: why`.
    pub fn descriptors_from(&self) -> &str {
        &self.descriptors
    }

    /// One census, its judgement, and the facts for the next one.
    pub fn turn(&mut self) -> Result<Turn, SessionError> {
        let census = match &self.judge.scope.processes {
            Some(_) => self.source.take()?,
            // With the rows it had: a host is mostly asleep.
            None => self.source.take_again(self.judge.host.give_rows())?,
        };
        let mut reading = self.read_probes(&census);
        self.account.note_census(&census);
        self.follow(&census);
        // Before the judgement: a finding shows the stack at its call. They are facts from then on.
        let sites = self.explain_sites(&census, std::mem::take(&mut reading.stacks));
        let kept = self.recorder.is_some().then(|| (census.clone(), reading.clone()));
        let judging = Instant::now();
        let turn = self.judge.advance(census, reading);
        self.account.judge_ns += nanoseconds(judging);
        self.renew_names();
        let history = self.judge.host.probes();
        self.account.note_probes(history.account(), history.forgotten());
        let mut facts = self.gather();
        facts.stacks.append(&mut self.between);
        facts.sites = sites;
        let explaining = Instant::now();
        self.explain_suspects(&turn, &mut facts);
        self.read_goroutines(&turn, &mut facts);
        self.read_tasks(&mut facts);
        self.account.explain_ns += nanoseconds(explaining);
        self.account.lose_facts(&facts.lost);
        self.account
            .note_readers(self.gatherer.pool_stats() + self.explainer.pool_stats() + self.task_reader.pool_stats());
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
        self.account.spending = self.probes.as_ref().map(GovernedProbes::spending);
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
        facts.blocked_reads.extend(self.task_reader.blocked());
    }

    /// The stacks of call sites that are new.
    fn explain_sites(&mut self, census: &Census, captured: Vec<SiteStack>) -> Vec<SiteFact> {
        let mut lost = 0;
        for stack in captured {
            let row =
                census.rows.binary_search_by_key(&stack.pid, |row| row.tid).ok().and_then(|at| census.rows.get(at));
            let Some(row) = row.filter(|_| self.sites_wanted.len() < MOST_SITES) else {
                lost += 1;
                continue;
            };
            let SiteStack { pid, site, ip, sp, bp, bytes, .. } = stack;
            let registers = Registers { ip, sp, bp: Some(bp) };
            self.sites_wanted.insert((pid, site), (SiteWant { process: row.process, site, registers, bytes }, 0));
        }
        if lost > 0 {
            self.account.lose("site_stack", lost);
        }
        if self.sites_wanted.is_empty() {
            return Vec::new();
        }
        let began = Instant::now();
        let wants: Vec<SiteWant> = self.sites_wanted.values().map(|(want, _)| want.clone()).collect();
        let explained = self.explainer.sites(&wants, FOR_JUDGEMENT);
        self.account.fail_unwinds(&explained.lost);
        for fact in &explained.sites {
            self.sites_wanted.remove(&(fact.process.pid, fact.site));
        }
        // One that a busy reader never comes to must not be asked for for ever.
        self.sites_wanted.values_mut().for_each(|(_, asked)| *asked += 1);
        let before = self.sites_wanted.len();
        self.sites_wanted.retain(|_, (_, asked)| *asked < SITE_TRIES);
        self.account.lose("site_stack", (before - self.sites_wanted.len()) as u64);
        self.judge.learn_stacks(&explained.stacks);
        self.between.extend(explained.stacks);
        self.judge.learn_runtime_locks(explained.runtime_locks);
        self.judge.host.learn_sites(&explained.sites);
        self.account.explain_ns += nanoseconds(began);
        explained.sites
    }

    /// Whether the next turn will know stacks that this one did not.
    pub fn awaits_stacks(&self) -> bool {
        self.judge.host.has_fresh_stacks()
    }

    /// Whether stacks that were asked for are still being worked on.
    pub fn is_explaining(&self) -> bool {
        self.unexplained > 0
    }

    /// Whether the next turn will know more of calls whose arguments are in memory.
    pub fn awaits_arguments(&self) -> bool {
        self.judge.host.awaits_arguments()
    }

    /// Whether the next turn may know what could not be read in time by this one.
    pub fn awaits_answers(&self) -> bool {
        self.judge.host.awaits_answers(&self.judge.scope)
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

    /// What these descriptors of a process are, and which limits its sockets have.
    pub fn descriptors(&mut self, process: ProcessId, fds: &BTreeSet<i32>) -> Descriptors {
        let want = |fd: &i32| ThreadWant {
            process,
            tid: process.pid,
            switches: 0,
            memory: Vec::new(),
            fd: Some(*fd),
            kernel_stack: false,
            file_lock: false,
            set: None,
            far_end: None,
        };
        let wants: Vec<ThreadWant> = fds.iter().map(want).collect();
        let mut facts: BTreeMap<i32, FdFact> = BTreeMap::new();
        for _ in 0..DESCRIPTOR_TRIES {
            let is_settled = |fd: i32| {
                facts.get(&fd).is_some_and(|fact| fact.socket.is_some() || !fact.target.starts_with("socket:"))
            };
            let left: Vec<ThreadWant> =
                wants.iter().filter(|want| want.fd.is_some_and(|fd| !is_settled(fd))).cloned().collect();
            if left.is_empty() {
                break;
            }
            let gathered = self.gatherer.gather(&left, &[], &[], &[]);
            self.account.lose_facts(&gathered.lost);
            facts.extend(gathered.threads.into_iter().filter_map(|thread| thread.fd).map(|fact| (fact.fd, fact)));
        }
        let has_socket = facts.values().any(|fact| fact.target.starts_with("socket:"));
        let limits = match has_socket.then(|| self.source.socket_limits(process.pid)) {
            Some(Ok(limits)) => limits,
            Some(Err(error)) => {
                log::debug!("limits of sockets: {error}");
                self.account.lose("socket_limits", 1);
                BTreeMap::new()
            }
            None => BTreeMap::new(),
        };
        Descriptors { facts, limits }
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
        let is_wanted = |row: &&ThreadRow| !row.is_exiting() && scope.contains(row, host);
        host.runtime_wants(host.leaders().filter(is_wanted).map(|row| row.process))
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
        self.judge.host.learn_sites(&explained.sites);
        for fact in &explained.sites {
            self.sites_wanted.remove(&(fact.process.pid, fact.site));
        }
        (explained.stacks, explained.runtime_locks)
    }

    /// Lets new children into the scope and those that are gone out of it, and tells the probes whom to listen to.
    fn follow(&mut self, census: &Census) {
        if self.judge.scope.processes.is_none() {
            return;
        }
        let pids = self.followed.among(census);
        let initial: BTreeSet<Pid> =
            census.rows.iter().filter(|row| pids.contains(&row.process.pid)).map(|row| row.initial.1).collect();
        self.judge.scope.processes = Some(pids);
        if let Some(probes) = &self.probes
            && self.listened_to != initial
        {
            match probes.set_filter(&initial) {
                Ok(Some(left_out)) => {
                    self.account.lose("probe_filter", left_out as u64);
                    self.listened_to = initial;
                }
                // The next turn asks again.
                Ok(None) => {}
                Err(error) => {
                    log::warn!("{error}");
                    self.account.lose("probe_filter", 1);
                }
            }
        }
    }

    fn read_probes(&mut self, census: &Census) -> ProbeReading {
        let Some(probes) = &self.probes else { return ProbeReading::default() };
        match probes.drain(census) {
            Ok(Some(reading)) => return reading,
            // A probe is being taken off or put back: events wait in the kernel.
            Ok(None) => {}
            Err(error) => {
                log::warn!("{error}");
                self.account.lose("probe_drain", 1);
            }
        }
        // Sums, and what is counted by place and by thread, are those of the last time.
        self.judge.host.probes().once_more()
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
