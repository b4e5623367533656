//! On a reader: the stacks of one process.

use super::address_space::{AddressSpace, Place};
use super::cpython;
use super::go::goroutines;
use super::jvm;
use super::library::Library;
use super::names::PerfMap;
use super::tasks;
use super::unwind::stack_memory::{FIRST, StackMemory};
use super::unwind::{OUT_OF_TIME, RawFrame, Walked, walk};
use crate::census::{Pid, ProcessId};
use crate::proc::maps::{self, Mapping};
use crate::proc::pool::Steps;
use crate::proc::{
    FoundBy, Frame, Goroutines, MemoryFact, MemoryRange, Mention, ProcessTasks, RuntimeLocks, RuntimeWant, SiteFact,
    SiteWant, Stack, StackEnd, StackFact, StackWant, memory,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What glibc and musl call the code that a signal handler returns to; stripped libraries do not have the name.
const SIGNAL_RETURN: &str = "__restore_rt";
/// First functions of a thread or a program, by name: where no call frame information says so.
const ROOTS: [&str; 8] = ["_start", "__clone", "clone", "__clone3", "clone3", "start_thread", "_start_c", "_dlstart"];

/// Threads whose stacks are in our memory at the same time.
const TOGETHER: usize = 256;
/// The usual size of a stack: around one whose mapping is gone nothing is read.
const STACK: u64 = 8 << 20;
/// A process that keeps a reader busy for longer (by its size, or by files made to) gets no more names.
const LONGEST: Duration = Duration::from_secs(10);

/// What is asked of one process.
#[derive(Debug, Default)]
pub(super) struct Question {
    pub(super) stacks: Vec<StackWant>,
    pub(super) sites: Vec<SiteWant>,
    /// Whether the locks of its runtime are wanted.
    pub(super) runtime: Option<RuntimeWant>,
    /// Whether its goroutines are wanted, and how long reading them may take.
    pub(super) goroutines: Option<Duration>,
    /// Whether the tasks of its asynchronous runtime are wanted.
    pub(super) tasks: bool,
}

impl Question {
    pub(super) fn is_empty(&self) -> bool {
        self.size() == 0 && self.runtime.is_none() && !self.is_census()
    }

    /// Whether goroutines or tasks are wanted: there is one answer about the whole process.
    pub(super) fn is_census(&self) -> bool {
        self.goroutines.is_some() || self.tasks
    }

    /// Stacks that are asked for.
    pub(super) fn size(&self) -> usize {
        self.stacks.len() + self.sites.len()
    }
}

/// What came out of one process.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) stacks: Vec<StackFact>,
    pub(super) sites: Vec<SiteFact>,
    pub(super) runtime_locks: Option<RuntimeLocks>,
    pub(super) goroutines: Option<Goroutines>,
    pub(super) tasks: Option<ProcessTasks>,
    /// Stacks that did not reach their root, and files that could not be used, by reason.
    pub(super) lost: BTreeMap<String, u64>,
    /// Time spent on reading and walking the stacks, nanoseconds.
    pub(super) walk_ns: u64,
}

/// Walks and names the stacks of threads of one process. Nobody waits for a stack whose process is gone.
pub(super) fn explain(library: &Library, process: ProcessId, question: &Question, steps: &Steps) -> Outcome {
    let mut outcome = Outcome::default();
    let wants = question.stacks.as_slice();
    steps.begin("maps");
    let (via, mappings) = match mappings(process.pid, wants) {
        Ok(found) => found,
        Err(error) => {
            outcome.goroutines = question.goroutines.map(|_| Goroutines::missing(process, &error));
            outcome.tasks = question.tasks.then(|| ProcessTasks::missing(process, &error));
            return outcome.none(process, question, &error);
        }
    };
    if let Some(want) = &question.runtime {
        steps.begin("locks of its runtime");
        let is_jvm = mappings.iter().any(|mapping| mapping.path().ends_with("/libjvm.so"));
        outcome.runtime_locks = Some(match is_jvm {
            true => jvm::read(process, via, &mappings, library),
            false => cpython::read(want, via, &mappings, library),
        });
    }
    if wants.is_empty() && question.sites.is_empty() && !question.is_census() {
        return outcome;
    }
    steps.begin("program files");
    let space = AddressSpace::new(via, &mappings, library);
    if let Some(within) = question.goroutines {
        outcome.goroutines = Some(goroutines::read(process, via, &space, Instant::now() + within, steps));
    }
    if question.tasks {
        outcome.tasks = Some(tasks::read(process, via, &mappings, &space, steps));
    }
    for (file, why) in &space.unusable {
        log::debug!("{file}: {why}");
        outcome.count("unusable file");
    }
    let until = Instant::now() + LONGEST;
    let mut names = Naming { space: &space, library, via, perf_map: None, known: HashMap::new(), until };
    for wants in wants.chunks(TOGETHER) {
        steps.begin("stacks");
        let walked = walk_all(&space, &mappings, wants, until, &mut outcome);
        // Here nothing is read of the process: a long look at debug information is no sign of a stuck target.
        steps.compute();
        for (want, (walked, mentions)) in wants.iter().zip(walked) {
            let end = walked.end();
            let stack = names.stack(walked.frames, end);
            if let StackEnd::Stopped(why) = &stack.end {
                outcome.count(kind_of(why));
            }
            let (tid, switches, sought) = (want.tid, want.switches, want.sought.clone());
            outcome.stacks.push(StackFact { tid, process, switches, stack, sought, mentions });
        }
    }
    for want in &question.sites {
        steps.begin("stacks");
        let stack = names.site(&mappings, want, &mut outcome);
        steps.compute();
        outcome.sites.push(SiteFact { process, site: want.site, stack });
    }
    outcome
}

/// The mappings of a process, and the thread through which they can be read: a main thread that has ended shows none.
fn mappings(pid: Pid, wants: &[StackWant]) -> Result<(Pid, Vec<Mapping>), String> {
    let mut why = "the process has no memory any more".to_owned();
    for via in std::iter::once(pid).chain(wants.iter().map(|want| want.tid).take(3)) {
        match maps::read(via) {
            Ok(mappings) if !mappings.is_empty() => return Ok((via, mappings)),
            Ok(_) => {}
            Err(error) => why = format!("its maps cannot be read: {}", error.kind()),
        }
    }
    Err(why)
}

fn walk_all(
    space: &AddressSpace,
    mappings: &[Mapping],
    wants: &[StackWant],
    until: Instant,
    outcome: &mut Outcome,
) -> Vec<(Walked, Vec<Mention>)> {
    let began = Instant::now();
    let ranges: Vec<MemoryRange> = wants.iter().map(|want| first_range(mappings, want.registers.sp)).collect();
    let threads: Vec<Pid> = wants.iter().map(|want| want.tid).take(4).collect();
    let process = wants.first().map(|want| want.process);
    let read = process.map_or_else(Vec::new, |process| memory::read(process, &threads, &ranges));
    let walk_one = |(want, piece): (&StackWant, MemoryFact)| {
        let gone = piece.error.as_deref().filter(|error| error.starts_with("ESRCH") || *error == "EPERM");
        if let Some(error) = gone {
            let stopped = Some(format!("its memory cannot be read: {error}"));
            return (Walked { stopped, ..Walked::default() }, Vec::new());
        }
        let mut stack = StackMemory::new(want.tid, Some((piece.addr, piece.bytes)));
        let walked = walk(space, &mut stack, want.registers, until);
        let mentions = walked.mentions(&mut stack, &want.sought);
        (walked, mentions)
    };
    let walked = wants.iter().zip(read).map(walk_one).collect();
    outcome.walk_ns += began.elapsed().as_nanos() as u64;
    walked
}

impl Outcome {
    fn count(&mut self, reason: &str) {
        *self.lost.entry(format!("stack: {reason}")).or_default() += 1;
    }

    fn none(mut self, process: ProcessId, question: &Question, why: &str) -> Self {
        let stack = Arc::new(Stack::missing(why));
        for want in &question.stacks {
            self.count(kind_of(why));
            let (tid, process, switches) = (want.tid, want.process, want.switches);
            let (stack, sought) = (Arc::clone(&stack), want.sought.clone());
            self.stacks.push(StackFact { tid, process, switches, stack, sought, mentions: Vec::new() });
        }
        for want in &question.sites {
            self.count("its process was gone before its call site was looked up");
            self.sites.push(SiteFact { process, site: want.site, stack: Arc::clone(&stack) });
        }
        self
    }
}

/// The reason without what is special to one stack, so that it can be counted by.
fn kind_of(why: &str) -> &str {
    const KINDS: [&str; 10] = [
        OUT_OF_TIME,
        "cut after",
        "no call frame information",
        "another stack",
        "cannot be read",
        "is not code",
        "no frame pointer",
        "leads back to itself",
        "frame pointer",
        "no memory",
    ];
    KINDS.into_iter().find(|kind| why.contains(kind)).unwrap_or("other")
}

/// The first piece of a stack, cut at the end of its mapping.
fn first_range(mappings: &[Mapping], sp: u64) -> MemoryRange {
    let behind = mappings.partition_point(|mapping| mapping.start <= sp);
    let end = behind.checked_sub(1).and_then(|at| mappings.get(at)).map_or(0, |mapping| mapping.end);
    let len = end.saturating_sub(sp).min(FIRST as u64) as u32;
    MemoryRange { addr: sp, len }
}

/// Names frames; threads that stand at the same place share one stack.
struct Naming<'a> {
    space: &'a AddressSpace,
    library: &'a Library,
    /// A thread through which the process is read.
    via: Pid,
    /// Loaded at the first frame that needs it.
    perf_map: Option<Option<Arc<PerfMap>>>,
    known: HashMap<(Vec<RawFrame>, StackEnd), Arc<Stack>>,
    until: Instant,
}

impl Naming<'_> {
    /// The stack of a call site, from what was captured at the call.
    fn site(&mut self, mappings: &[Mapping], want: &SiteWant, outcome: &mut Outcome) -> Arc<Stack> {
        let began = Instant::now();
        let sp = want.registers.sp;
        let mapping = mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&sp));
        // Unmapped since: what lies there now is nothing of this stack either.
        let around = mapping.map_or((sp, sp.saturating_add(STACK)), |mapping| (mapping.start, mapping.end));
        let mut memory = StackMemory::captured(self.via, (sp, want.bytes.clone()), around);
        let walked = walk(self.space, &mut memory, want.registers, self.until);
        outcome.walk_ns += began.elapsed().as_nanos() as u64;
        let end = walked.end();
        if let StackEnd::Stopped(why) = &end {
            outcome.count(kind_of(why));
        }
        self.stack(walked.frames, end)
    }

    fn stack(&mut self, raw: Vec<RawFrame>, end: StackEnd) -> Arc<Stack> {
        let key = (raw, end);
        if let Some(known) = self.known.get(&key) {
            return Arc::clone(known);
        }
        let mut frames = Vec::with_capacity(key.0.len());
        for (at, raw) in key.0.iter().enumerate() {
            let known = frames.len();
            self.name(raw, &mut frames);
            // What stands outside of it was interrupted, it did not call: a signal handler returns here.
            let is_trampoline = |outside: &RawFrame| !outside.is_return && outside.found_by == FoundBy::Unwinding;
            if key.0.get(at + 1).is_some_and(is_trampoline)
                && let Some(frame) = frames.get_mut(known).filter(|frame| frame.function.is_none())
            {
                frame.function = Some(SIGNAL_RETURN.to_owned());
            }
        }
        let is_root = |frame: &Frame| frame.function.as_deref().is_some_and(|name| ROOTS.contains(&name));
        let end = match &key.1 {
            StackEnd::Stopped(_) if frames.last().is_some_and(is_root) => StackEnd::Root,
            end => end.clone(),
        };
        let stack = Arc::new(Stack { frames, end });
        self.known.insert(key, Arc::clone(&stack));
        stack
    }

    fn name(&mut self, raw: &RawFrame, frames: &mut Vec<Frame>) {
        match self.space.at(raw.lookup()) {
            Place::Nowhere => frames.push(raw.bare()),
            Place::Generated => {
                let function = self.perf_map().and_then(|map| map.lookup(raw.lookup())).map(str::to_owned);
                frames.push(Frame { function, ..raw.bare() });
            }
            Place::Module(loaded, lookup) => loaded.name(lookup, raw, Instant::now() < self.until, frames),
        }
    }

    fn perf_map(&mut self) -> Option<&PerfMap> {
        let via = self.via;
        let library = self.library;
        let load = || library.perf_map(via, own_pid(via)?);
        self.perf_map.get_or_insert_with(load).as_deref()
    }
}

/// The process id inside the process' own PID namespace: the last one of `NStgid` in `/proc/PID/status`.
fn own_pid(via: Pid) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{via}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NStgid:"))?.split_ascii_whitespace().last()?.parse().ok()
}
