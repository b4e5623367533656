//! All goroutines of a running program, from outside: its runtime's own table is read while it runs on.
//!
//! Nothing is locked and nobody is stopped, so the reading is a protocol: the length of the table is read before the
//! pointer to it (the runtime writes them in the other order, and the table never shrinks); a `g`, its stack, and the `g`
//! again. What is not the same both times has moved, and is tried once more. Dead goroutines stay in the table.
//!
//! Sources: `runtime/{proc,runtime2,chan,sema,traceback}.go` of Go 1.19 to 1.27.
//!
//! Not here: stacks of goroutines that run at this moment; waits of `select` with several cases; of conditions before
//! Go 1.26. With several Go runtimes in a process (libraries of a C program) the first one found is read.

mod groups;
mod layout;
#[cfg(any(test, fuzzing))]
pub(in crate::explain) mod made_up;
mod reasons;
mod waits;
mod walk;

use super::{Anchors, ModuleData};
use crate::census::{Pid, ProcessId};
use crate::explain::address_space::AddressSpace;
use crate::explain::pieces::word;
use crate::host::clock;
use crate::proc::pieces::{Pieces, is_still, read_pieces};
use crate::proc::pool::Steps;
use crate::proc::{Goroutine, Goroutines, MemoryRange};
use groups::Groups;
use layout::{Head, Layout};
use reasons::Reasons;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use waits::Waits;
use walk::Code;

/// Slots of the table that are looked at; a program with more goroutines has 4 GB of their stacks.
const MAX_SLOTS: u64 = 1 << 20;
/// Goroutines between the two readings of which the program runs on: the fewer, the fewer have moved.
const TOGETHER: usize = 512;
/// What is read of a stack at first, and of a deep one, bytes.
const SHALLOW: u32 = 32 << 10;
const DEEP: u32 = 1 << 20;
/// Deep stacks that are in our memory at the same time.
const DEEP_TOGETHER: usize = 4;
/// Goroutines from the begin and the end of the table that the layout is checked with.
const SAMPLED: usize = 64;
/// The address space of a process on x86-64.
const LARGEST_HEAP: u64 = 1 << 47;
/// Bytes read at once of something large.
const PIECE: u64 = 256 << 10;

/// Reading that goes on counts as a new step so often: less than makes a reader count as blocked.
const STEP: Duration = Duration::from_millis(50);

/// What is missing of a program that only starts: worth another try.
pub const NOT_STARTED: &str = "its runtime has not started yet";

/// Reads pieces of memory; an error says why nothing at all can be read.
pub(in crate::explain) type Read<'a> = dyn FnMut(&[MemoryRange], &mut Pieces) -> Result<(), String> + 'a;

/// The goroutines of a process; what cannot be read says so in it. `via`: a thread of it. After `until` no more are read.
/// `steps` learns that it goes on.
///
/// May block for as long as the target likes: call it on a reader of the pool.
pub(in crate::explain) fn read(
    process: ProcessId,
    via: Pid,
    space: &AddressSpace,
    until: Instant,
    steps: &Steps,
) -> Goroutines {
    let begin = || {
        steps.begin("goroutines");
        Instant::now()
    };
    let mut step = begin();
    let mut target = |ranges: &[MemoryRange], into: &mut Pieces| {
        // Many of them take long: a target that is stuck keeps a single read.
        if step.elapsed() >= STEP {
            step = begin();
        }
        read_pieces(via, ranges, into).map_err(|errno| match errno {
            nix::errno::Errno::EPERM => {
                "its memory may not be read (EPERM): observer needs CAP_SYS_PTRACE, or root".to_owned()
            }
            errno => format!("its memory cannot be read: {errno:?}"),
        })
    };
    let mut done = || {
        // Names come from files: a long look at them is no sign of a stuck target.
        steps.compute();
        is_still(process).map_err(str::to_owned)
    };
    let mut answer = take(process, &mut target, space, until, &mut done);
    if answer.missing.is_none() {
        // Of the process meant, if the PID is still its own behind the reading.
        answer.rss_bytes = resident(via).filter(|_| is_still(process).is_ok());
    }
    answer
}

/// Resident memory (`statm`, second number, in pages), bytes.
fn resident(pid: Pid) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    pages.checked_mul(u64::try_from(page).ok()?)
}

/// The same, of whatever memory. `done` is asked after the last reading whether that was of the process meant.
pub(in crate::explain) fn take(
    process: ProcessId,
    target: &mut Read<'_>,
    space: &AddressSpace,
    until: Instant,
    done: &mut dyn FnMut() -> Result<(), String>,
) -> Goroutines {
    let (taken_ns, began, cpu_ns) = (clock::monotonic_ns(), Instant::now(), clock::thread_cpu_ns());
    let mut answer = Goroutines {
        process,
        version: String::new(),
        taken_ns,
        took_ns: 0,
        cpu_ns: 0,
        slots: 0,
        groups: Vec::new(),
        lost: BTreeMap::new(),
        rss_bytes: None,
        heap_bytes: None,
        missing: None,
    };
    if let Err(why) = fill(&mut answer, target, space, until, done) {
        answer.groups.clear();
        answer.missing = Some(why);
    }
    answer.took_ns = began.elapsed().as_nanos() as u64;
    answer.cpu_ns = clock::thread_cpu_ns().saturating_sub(cpu_ns);
    answer
}

fn fill(
    answer: &mut Goroutines,
    target: &mut Read<'_>,
    space: &AddressSpace,
    until: Instant,
    done: &mut dyn FnMut() -> Result<(), String>,
) -> Result<(), String> {
    let runtime = Runtime::find(space)?;
    answer.version.clone_from(&runtime.version);
    let mut code = Code::new(space);
    let (slots, beyond) = runtime.slots(target)?;
    answer.slots = slots.len() as u64 + beyond;
    answer.heap_bytes = runtime.heap(target)?;
    let reasons = Reasons::read(runtime.address(runtime.module.data)..runtime.address(runtime.module.edata), target)?;
    let layout = runtime.layout(&slots, reasons.len(), target, &mut code)?;
    let mut census = Census::new(layout, reasons);
    census.groups.lose("limit", beyond);
    let mut read = 0;
    for together in slots.chunks(TOGETHER) {
        if Instant::now() >= until {
            census.groups.lose("deadline", (slots.len() - read) as u64);
            break;
        }
        census.round(together, target, &mut code)?;
        read += together.len();
    }
    if !layout.semaphores_in_g {
        let tables = runtime.anchors.semtables.iter().map(|svma| runtime.address(*svma)).collect::<Vec<_>>();
        census.groups.semaphores(&census.reasons, &layout, &tables, target, until)?;
    }
    done()?;
    (answer.groups, answer.lost) = census.groups.finish(&census.reasons, space);
    Ok(())
}

/// The runtime of a process: a file, and where it is mapped.
struct Runtime {
    version: String,
    anchors: Anchors,
    module: ModuleData,
    /// avma = svma + bias (wrapping).
    bias: u64,
}

impl Runtime {
    fn find(space: &AddressSpace) -> Result<Self, String> {
        let mut why = None;
        for (loaded, bias) in space.modules() {
            let table = match loaded.go_or_why() {
                Ok(Some(table)) => table,
                Ok(None) => continue,
                Err(error) => {
                    why = why.or(Some(format!("{}: {error}", loaded.path)));
                    continue;
                }
            };
            match (table.anchors(), table.module()) {
                (Ok(anchors), Some(module)) => {
                    let (version, anchors, module) = (table.version().to_owned(), anchors.clone(), *module);
                    return Ok(Self { version, anchors, module, bias });
                }
                (Err(error), _) => why = why.or(Some(format!("{}: {error}", loaded.path))),
                (Ok(_), None) => {}
            }
        }
        Err(why.unwrap_or_else(|| {
            "no file that is mapped as code has Go's tables: it is no Go program, or a packed one, which has them in \
             memory only"
                .to_owned()
        }))
    }

    fn address(&self, svma: u64) -> u64 {
        svma.wrapping_add(self.bias)
    }

    /// The table of goroutines, and how many more it has than are looked at.
    fn slots(&self, target: &mut Read<'_>) -> Result<(Vec<u64>, u64), String> {
        let mut pieces = Pieces::default();
        let mut read = |svma| {
            target(&[MemoryRange { addr: self.address(svma), len: 8 }], &mut pieces)?;
            word(pieces.get(0), 0).ok_or_else(|| "the table of its goroutines cannot be read".to_owned())
        };
        // In this order: the runtime sets the pointer before the length, and an old table stays readable.
        let len = read(self.anchors.allglen)?;
        let table = read(self.anchors.allgptr)?;
        if len == 0 || table == 0 {
            return Err(NOT_STARTED.to_owned());
        }
        let taken = len.min(MAX_SLOTS);
        let bytes = read_all(table, taken * 8, target)?;
        let slots: Vec<u64> = bytes.chunks_exact(8).filter_map(|bytes| word(bytes, 0)).collect();
        if (slots.len() as u64) < taken {
            return Err(format!(
                "the table of its goroutines is not sound: {len} of them, of which {} can be read",
                slots.len()
            ));
        }
        Ok((slots, len - taken))
    }

    /// Bytes on the heap that the collector takes for live; `None` if that was not found, or cannot be.
    fn heap(&self, target: &mut Read<'_>) -> Result<Option<u64>, String> {
        let Some(svma) = self.anchors.heap_live else { return Ok(None) };
        let mut pieces = Pieces::default();
        target(&[MemoryRange { addr: self.address(svma), len: 8 }], &mut pieces)?;
        Ok(word(pieces.get(0), 0).filter(|bytes| (1..LARGEST_HEAP).contains(bytes)))
    }

    /// How a `g` is laid out: by the version, or if that is not known (or not true), by what the goroutines look like.
    fn layout(
        &self,
        slots: &[u64],
        reasons: usize,
        target: &mut Read<'_>,
        code: &mut Code<'_>,
    ) -> Result<Layout, String> {
        let version = if self.version.is_empty() { "an unknown version of Go" } else { &self.version };
        let minor = layout::minor(&self.version);
        let last = slots.len().saturating_sub(SAMPLED).max(SAMPLED.min(slots.len()));
        let sampled = slots.iter().take(SAMPLED).chain(slots.get(last..).unwrap_or_default());
        let ranges: Vec<MemoryRange> = sampled.map(|g| MemoryRange { addr: *g, len: layout::SAMPLE }).collect();
        let mut why = String::new();
        // Once more: all may have moved, in a program that is only starting.
        for _ in 0..2 {
            let mut pieces = Pieces::default();
            target(&ranges, &mut pieces)?;
            let sample: Vec<&[u8]> = (0..ranges.len()).map(|index| pieces.get(index)).collect();
            let known = minor.and_then(Layout::known);
            let searched = || Layout::search(minor.unwrap_or(u32::MAX), &sample, &mut |pc| code.is_entry(pc));
            let tried = known.into_iter().chain(searched());
            for layout in tried {
                match layout.check(&sample, reasons, &mut |pc| code.is_code(pc), &mut |pc| code.is_entry(pc)) {
                    Ok(()) => return Ok(layout),
                    Err(error) => why = error,
                }
            }
        }
        let why = if why.is_empty() { "their numbers were not found".to_owned() } else { why };
        Err(format!("{version}: its goroutines are not as in the versions known (1.18 to 1.27): {why}"))
    }
}

/// A census under way.
struct Census {
    layout: Layout,
    reasons: Reasons,
    groups: Groups,
    waits: Waits,
    // Kept to be filled again.
    first: Pieces,
    second: Pieces,
    stacks: Pieces,
    threads: Pieces,
}

impl Census {
    fn new(layout: Layout, reasons: Reasons) -> Self {
        let [first, second, stacks, threads] = std::array::from_fn(|_| Pieces::default());
        Self { layout, reasons, groups: Groups::default(), waits: Waits::default(), first, second, stacks, threads }
    }

    /// The goroutines in these slots.
    fn round(&mut self, slots: &[u64], target: &mut Read<'_>, code: &mut Code<'_>) -> Result<(), String> {
        let again = self.look(slots, SHALLOW, false, target, code)?;
        let (deep, moved): (Vec<_>, Vec<_>) = again.into_iter().partition(|(_, is_deep)| *is_deep);
        let of = |slots: Vec<(u64, bool)>| slots.into_iter().map(|(g, _)| g).collect::<Vec<u64>>();
        self.look(&of(moved), SHALLOW, true, target, code)?;
        for deep in of(deep).chunks(DEEP_TOGETHER) {
            self.look(deep, DEEP, true, target, code)?;
        }
        Ok(())
    }

    /// One look at them. Those that should be looked at once more come back, deep stacks marked; not so the `last` time.
    fn look(
        &mut self,
        slots: &[u64],
        most: u32,
        last: bool,
        target: &mut Read<'_>,
        code: &mut Code<'_>,
    ) -> Result<Vec<(u64, bool)>, String> {
        if slots.is_empty() {
            return Ok(Vec::new());
        }
        let layout = self.layout;
        let ranges: Vec<MemoryRange> = slots.iter().map(|g| MemoryRange { addr: *g, len: layout.len() }).collect();
        target(&ranges, &mut self.first)?;
        let mut living: Vec<(u64, Head)> = Vec::with_capacity(slots.len());
        for (index, g) in slots.iter().enumerate() {
            match layout.head(self.first.get(index)) {
                None => self.groups.lose("unreadable", 1),
                Some(head) if head.lives() => living.push((*g, head)),
                Some(_) => {}
            }
        }
        let stack_of = |(_, head): &(u64, Head)| {
            let len = if head.is_parked() && (head.lo..=head.hi).contains(&head.sp) { head.hi - head.sp } else { 0 };
            MemoryRange { addr: head.sp, len: u32::try_from(len).unwrap_or(u32::MAX).min(most) }
        };
        let stacks: Vec<MemoryRange> = living.iter().map(stack_of).collect();
        target(&stacks, &mut self.stacks)?;
        self.waits.read(&living, &layout, target)?;
        let threads: Vec<MemoryRange> = living.iter().map(|(_, head)| thread_of(head, &layout)).collect();
        target(&threads, &mut self.threads)?;
        let ranges: Vec<MemoryRange> =
            living.iter().map(|(g, _)| MemoryRange { addr: *g, len: layout.len() }).collect();
        target(&ranges, &mut self.second)?;
        let mut again = Vec::new();
        let mut frames = Vec::new();
        for (index, (g, before)) in living.iter().enumerate() {
            let Some(head) = layout.head(self.second.get(index)) else {
                self.groups.lose("unreadable", 1);
                continue;
            };
            if !head.lives() {
                continue;
            }
            let Some(state) = groups::state(head.status) else {
                self.groups.lose("unsound", 1);
                continue;
            };
            let is_same = head == *before;
            let range = stacks[index];
            let stack = if !head.is_parked() {
                self.groups.without_stack(groups::unparked(head.status))
            } else if !is_same {
                if !last {
                    again.push((*g, false));
                    continue;
                }
                self.groups.without_stack("changed")
            } else if range.len == 0 {
                self.groups.without_stack("stack pointer outside of the stack")
            } else {
                let bytes = self.stacks.get(index);
                let stopped = code.walk(head.pc, head.sp, head.bp, bytes, &mut frames);
                let is_cut = u64::from(range.len) < head.hi - head.sp;
                if stopped == Some(walk::TOO_SHORT) && is_cut && !last {
                    again.push((*g, true));
                    continue;
                }
                // It may have run on and parked at the same place again while its stack was read.
                if matches!(stopped, Some(walk::DISAGREE | walk::NO_FUNCTION)) && !last {
                    again.push((*g, false));
                    continue;
                }
                self.groups.stack(&frames, stopped)
            };
            let wait = if is_same { self.waits.of(index, *g, &head, &self.reasons, &layout) } else { None };
            let tid = thread(self.threads.get(index), *g, &layout).filter(|_| is_same).unwrap_or(0);
            let goroutine = Goroutine {
                goid: head.goid,
                g: *g,
                pc: head.pc,
                sp: head.sp,
                tid,
                parent: head.parent,
                wait,
                stack_bytes: head.hi.saturating_sub(head.lo),
                ran: head.ran,
            };
            self.groups.add(state, &head, stack, goroutine);
        }
        Ok(again)
    }
}

/// Where the thread of one that has one tells its number and whom it runs.
fn thread_of(head: &Head, layout: &Layout) -> MemoryRange {
    let has_thread = matches!(head.status, layout::RUNNING | layout::SYSCALL) && head.m != 0;
    let len = if has_thread { layout.m_curg + 8 - layout.m_procid } else { 0 };
    MemoryRange { addr: head.m.wrapping_add(layout.m_procid), len: len as u32 }
}

/// The thread that says it runs this one.
fn thread(bytes: &[u8], g: u64, layout: &Layout) -> Option<Pid> {
    let is_it = word(bytes, layout.m_curg - layout.m_procid)? == g;
    word(bytes, 0).filter(|_| is_it).and_then(|tid| Pid::try_from(tid).ok())
}

/// As many of these bytes as there are.
fn read_all(address: u64, len: u64, target: &mut Read<'_>) -> Result<Vec<u8>, String> {
    let mut pieces = Pieces::default();
    let mut bytes = Vec::new();
    for begin in (0..len).step_by(PIECE as usize) {
        let now = (len - begin).min(PIECE);
        target(&[MemoryRange { addr: address.wrapping_add(begin), len: now as u32 }], &mut pieces)?;
        bytes.extend_from_slice(pieces.get(0));
        if (pieces.get(0).len() as u64) < now {
            break;
        }
    }
    Ok(bytes)
}
