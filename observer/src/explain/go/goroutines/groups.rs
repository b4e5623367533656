//! Goroutines put together: those with the same state, reason, stack and creator are one group, and a stack is named once.

use super::layout::{self, Head, Layout};
use super::reasons::Reasons;
use super::walk::{DISAGREE, NO_FUNCTION};
use super::{Read, waits};
use crate::explain::address_space::{AddressSpace, Place};
use crate::explain::names::Named;
use crate::explain::unwind::RawFrame;
use crate::proc::{GoState, GoWait, Goroutine, GoroutineGroup, Stack, StackEnd};
use foldhash::{HashMap, HashMapExt};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

/// Different stacks that are kept of one process.
const MAX_STACKS: usize = 20_000;
/// Their frames, all together.
const MAX_FRAMES: usize = 400_000;

/// A stack, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StackId(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    state: GoState,
    reason: u8,
    stack: StackId,
    gopc: u64,
    startpc: u64,
}

/// The groups so far.
#[derive(Default)]
pub(super) struct Groups {
    known: HashMap<Key, usize>,
    groups: Vec<(Key, Vec<Goroutine>)>,
    walked: HashMap<Option<&'static str>, HashMap<Vec<RawFrame>, StackId>>,
    /// Frames and why the walk ended, by number.
    stacks: Vec<(Vec<RawFrame>, Option<&'static str>)>,
    frames: usize,
    lost: BTreeMap<String, u64>,
}

/// What the runtime's status means; `None` of one that no living goroutine has.
pub(super) fn state(status: u32) -> Option<GoState> {
    Some(match status {
        layout::RUNNABLE => GoState::Runnable,
        layout::RUNNING => GoState::Running,
        layout::SYSCALL => GoState::Syscall,
        layout::WAITING => GoState::Waiting,
        layout::COPYSTACK => GoState::Copystack,
        layout::PREEMPTED => GoState::Preempted,
        layout::LEAKED => GoState::Leaked,
        _ => return None,
    })
}

/// Why one that is not parked has no stack.
pub(super) fn unparked(status: u32) -> &'static str {
    if status == layout::RUNNING { "running" } else { "changed" }
}

impl Groups {
    /// Counts what is left out.
    pub(super) fn lose(&mut self, reason: &str, count: u64) {
        if count != 0 {
            *self.lost.entry(reason.to_owned()).or_default() += count;
        }
    }

    /// No stack, for this reason.
    pub(super) fn without_stack(&mut self, why: &'static str) -> StackId {
        self.stack(&[], Some(why))
    }

    /// The number of a stack that was walked; `stopped` is why it did not reach its root.
    pub(super) fn stack(&mut self, frames: &[RawFrame], stopped: Option<&'static str>) -> StackId {
        if let Some(why) = stopped {
            let name = if frames.is_empty() { why.to_owned() } else { format!("stack: {why}") };
            self.lose(&name, 1);
        }
        // What does not fit together may have been torn.
        let frames = if matches!(stopped, Some(DISAGREE | NO_FUNCTION)) { &[] } else { frames };
        if let Some(id) = self.walked.get(&stopped).and_then(|known| known.get(frames)) {
            return *id;
        }
        let is_full = self.stacks.len() >= MAX_STACKS || self.frames + frames.len() > MAX_FRAMES;
        if is_full && !frames.is_empty() {
            return self.without_stack("more different stacks than are kept");
        }
        let id = StackId(self.stacks.len() as u32);
        self.frames += frames.len();
        self.stacks.push((frames.to_vec(), stopped));
        self.walked.entry(stopped).or_default().insert(frames.to_vec(), id);
        id
    }

    pub(super) fn add(&mut self, state: GoState, head: &Head, stack: StackId, goroutine: Goroutine) {
        let reason = if matches!(state, GoState::Waiting | GoState::Leaked) { head.reason } else { 0 };
        // The first was started by the runtime itself, in a place that says nothing.
        let gopc = if goroutine.goid == 1 { 0 } else { head.gopc };
        let key = Key { state, reason, stack, gopc, startpc: head.startpc };
        let index = *self.known.entry(key).or_insert(self.groups.len());
        match self.groups.get_mut(index) {
            Some((_, members)) => members.push(goroutine),
            None => self.groups.push((key, vec![goroutine])),
        }
    }

    /// Finds the semaphores that are not in `g`.
    pub(super) fn semaphores(
        &mut self,
        reasons: &Reasons,
        layout: &Layout,
        tables: &[u64],
        target: &mut Read<'_>,
        until: Instant,
    ) -> Result<(), String> {
        let is_waiting = |key: &Key| key.state == GoState::Waiting && reasons.is_semaphore(key.reason);
        let waiting = self.groups.iter().filter(|(key, _)| is_waiting(key)).flat_map(|(_, members)| members);
        let waiters: HashSet<u64> = waiting.map(|goroutine| goroutine.g).collect();
        if waiters.is_empty() {
            return Ok(());
        }
        let found = waits::semaphores(&waiters, layout, tables, target, until)?;
        let waiting = self.groups.iter_mut().filter(|(key, _)| is_waiting(key)).flat_map(|(_, members)| members);
        for goroutine in waiting {
            goroutine.wait = found.get(&goroutine.g).map(|&address| GoWait::Semaphore { address });
        }
        Ok(())
    }

    /// Names everything: the groups, the largest first, and what was left out.
    pub(super) fn finish(
        self,
        reasons: &Reasons,
        space: &AddressSpace,
    ) -> (Vec<GoroutineGroup>, BTreeMap<String, u64>) {
        let stacks: Vec<Arc<Stack>> =
            self.stacks.iter().map(|(frames, why)| named_stack(frames, *why, space)).collect();
        let mut creators: HashMap<u64, Option<(String, String, u32)>> = HashMap::new();
        let mut starts: HashMap<u64, Option<String>> = HashMap::new();
        let mut groups: Vec<GoroutineGroup> = Vec::with_capacity(self.groups.len());
        for (key, members) in self.groups {
            let Some(stack) = stacks.get(key.stack.0 as usize) else { continue };
            let function = starts.entry(key.startpc).or_insert_with(|| outermost(key.startpc, space)).clone();
            let is_system = function.as_deref().is_some_and(|name| is_system(name, stack));
            groups.push(GoroutineGroup {
                state: key.state,
                reason: reasons.name(key.reason).to_owned(),
                stack: Arc::clone(stack),
                created_by: creators.entry(key.gopc).or_insert_with(|| creation(key.gopc, space)).clone(),
                function,
                is_system,
                members,
            });
        }
        groups.sort_by_key(|group| std::cmp::Reverse(group.members.len()));
        (groups, self.lost)
    }
}

/// Goroutines of the runtime itself, as `runtime.isSystemGoroutine` tells them. What runs finalizers and cleanups is the
/// program's while it calls them.
fn is_system(function: &str, stack: &Stack) -> bool {
    match function {
        "runtime.main" | "runtime.corostart" | "runtime.handleAsyncEvent" => false,
        "runtime.runfinq" | "runtime.runFinalizers" | "runtime.runCleanups" => {
            let mut names = stack.frames.iter().filter_map(|frame| frame.function.as_deref());
            !names.any(|name| !name.starts_with("runtime."))
        }
        _ => function.starts_with("runtime."),
    }
}

/// The functions at an address, innermost first.
fn names(address: u64, is_return: bool, space: &AddressSpace) -> Arc<[Named]> {
    match space.at(address.wrapping_sub(u64::from(is_return))) {
        Place::Module(loaded, svma) => loaded.resolve(svma.wrapping_add(u64::from(is_return)), is_return),
        Place::Generated | Place::Nowhere => Arc::default(),
    }
}

/// The function that begins here.
fn outermost(address: u64, space: &AddressSpace) -> Option<String> {
    names(address, false, space).last()?.function.clone()
}

/// The `go` statement: `gopc` is behind the call it became.
fn creation(gopc: u64, space: &AddressSpace) -> Option<(String, String, u32)> {
    let names = names(gopc, true, space);
    let Named { function, file, line, .. } = names.first()?.clone();
    Some((function?, file.unwrap_or_default(), line.unwrap_or_default()))
}

fn named_stack(raw: &[RawFrame], stopped: Option<&str>, space: &AddressSpace) -> Arc<Stack> {
    let mut frames = Vec::with_capacity(raw.len());
    for raw in raw {
        match space.at(raw.lookup()) {
            Place::Module(loaded, lookup) => loaded.name(lookup, raw, true, &mut frames),
            _ => frames.push(raw.bare()),
        }
    }
    let end = stopped.map_or(StackEnd::Root, |why| StackEnd::Stopped(why.to_owned()));
    Arc::new(Stack { frames, end })
}
