//! Blocked stacks of one interval: where threads spent the time they were off the CPU.

use super::event::Entity;
use crate::census::{Pid, ProcessId};
use crate::detect::{Judge, Moment};
use crate::model::Class;
use crate::proc::Stack;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Stacks of one profile at most; the others are counted.
pub const MOST_STACKS: usize = 500;

/// Threads of one process that are blocked at the same place.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockedStack {
    /// The process.
    pub entity: Arc<Entity>,
    /// Their stack.
    pub stack: Arc<Stack>,
    /// What they wait for.
    pub class: Class,
    /// Nanoseconds they were blocked since the last profile, all together.
    pub blocked_ns: u64,
}

/// The blocked stacks of one interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// The last profile.
    pub since: Moment,
    /// Now.
    pub at: Moment,
    /// The stacks, those of a process together.
    pub stacks: Vec<BlockedStack>,
    /// Stacks beyond [`MOST_STACKS`], the shortest blocked.
    pub left_out: u64,
}

/// Makes profiles of the stacks that are known anyway: none is walked for it.
#[derive(Debug, Default)]
pub struct Profiler {
    /// When the last one was made, `CLOCK_MONOTONIC` nanoseconds.
    last_ns: Option<u64>,
}

impl Profiler {
    /// The blocked stacks since the last time; `None`: this is the first time, no time has passed, or nobody with a known stack is blocked.
    pub fn profile(&mut self, judge: &Judge) -> Option<Profile> {
        let host = &judge.host;
        let clocks = host.clocks()?;
        let interval = clocks.mono_ns.saturating_sub(self.last_ns.replace(clocks.mono_ns)?);
        // Threads at the same place mostly share their stack: the pointer spares comparing frames.
        let mut shared: HashMap<(ProcessId, Class, *const Stack), (Pid, u64)> = HashMap::new();
        for row in host.rows().iter().filter(|row| row.is_blocked()) {
            let Some(stack) = host.shared_stack(row.tid).filter(|stack| !stack.frames.is_empty()) else { continue };
            let blocked_ns = host.blocked_ns(row).min(interval);
            if blocked_ns == 0 || !judge.scope.contains(row, host) {
                continue;
            }
            let class = host.class(row).unwrap_or(Class::Other);
            let (_, sum) = shared.entry((row.process, class, Arc::as_ptr(stack))).or_insert((row.tid, 0));
            *sum = sum.saturating_add(blocked_ns);
        }
        // Two walks of the same place at different times have stacks of their own.
        let mut equal: HashMap<(ProcessId, Class, &Arc<Stack>), u64> = HashMap::new();
        for ((process, class, _), (tid, blocked_ns)) in shared {
            let Some(stack) = host.shared_stack(tid) else { continue };
            let sum = equal.entry((process, class, stack)).or_default();
            *sum = sum.saturating_add(blocked_ns);
        }
        let mut order: Vec<_> = equal.into_iter().collect();
        // Equal times in an order of their own, so that the same state makes the same profile.
        order.sort_by_cached_key(|((process, class, stack), blocked_ns)| {
            (Reverse(*blocked_ns), *process, *class, stack.frames.first().map(|frame| frame.address))
        });
        let left_out = order.len().saturating_sub(MOST_STACKS) as u64;
        order.truncate(MOST_STACKS);
        order.sort_by_key(|((process, ..), _)| *process);
        let mut entities: BTreeMap<ProcessId, Arc<Entity>> = BTreeMap::new();
        let mut stacks = Vec::with_capacity(order.len());
        for ((process, class, stack), blocked_ns) in order {
            let entity = entities.entry(process).or_insert_with(|| Arc::new(Entity::of(host, process))).clone();
            stacks.push(BlockedStack { entity, stack: stack.clone(), class, blocked_ns });
        }
        let (since, at) = (Moment(clocks.real_ns.saturating_sub(interval)), Moment(clocks.real_ns));
        (!stacks.is_empty()).then_some(Profile { since, at, stacks, left_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::census::ThreadRow;
    use crate::model::Scope;
    use crate::model::testkit::{S, census, in_mutex, process, row};
    use crate::proc::{Frame, StackEnd, StackFact};

    fn stack(names: &[&str]) -> Arc<Stack> {
        let frame = |name: &&str| Frame { function: Some((*name).to_owned()), ..Frame::default() };
        Arc::new(Stack { frames: names.iter().map(frame).collect(), end: StackEnd::Root })
    }

    fn learn(judge: &mut Judge, row: &ThreadRow, stack: &Arc<Stack>) {
        let switches = crate::model::switches(row);
        let (stack, sought, mentions) = (stack.clone(), Vec::new(), Vec::new());
        let fact = StackFact { tid: row.tid, process: row.process, switches, stack, sought, mentions };
        judge.learn_stacks(&[fact]);
    }

    fn advance(judge: &mut Judge, at_s: u64, rows: &[ThreadRow]) {
        judge.host.advance(census(at_s, rows.to_vec()), Default::default());
    }

    #[test]
    fn time_is_counted_once_and_at_most_the_interval() {
        let (mut judge, mut profiler) = (Judge::new(Scope::default()), Profiler::default());
        // Both asleep since second 90, one in a call; a third without a stack; another process; one that has just gone to sleep.
        let late = ThreadRow { off_cpu_since_ns: Some(106 * S), ..row(7, 10) };
        let rows = [in_mutex(7, 7, 64), in_mutex(7, 8, 64), row(7, 9), late.clone(), in_mutex(20, 20, 64)];
        advance(&mut judge, 100, &rows[..1]);
        learn(&mut judge, &rows[0], &stack(&["wait", "main"]));
        assert_eq!(profiler.profile(&judge), None, "nothing to count from");
        advance(&mut judge, 108, &rows);
        // Not the same piece of memory, the same place.
        learn(&mut judge, &rows[1], &stack(&["wait", "main"]));
        learn(&mut judge, &late, &stack(&["nap"]));
        learn(&mut judge, &rows[4], &stack(&["wait", "main"]));
        let profile = profiler.profile(&judge).expect("blocked threads");
        let told: Vec<(u32, &str, u64)> = profile
            .stacks
            .iter()
            .map(|one| {
                let first = one.stack.frames.first().and_then(|frame| frame.function.as_deref());
                (one.entity.process.pid, first.unwrap_or_default(), one.blocked_ns / S)
            })
            .collect();
        assert_eq!(told, [(7, "wait", 16), (7, "nap", 2), (20, "wait", 8)], "eight seconds each, not eighteen");
        assert_eq!(profile.at.0 - profile.since.0, 8 * S);
        assert_eq!(profile.left_out, 0);
        assert_eq!(profiler.profile(&judge), None, "no time has passed");
        // One has run: its stack is stale.
        let ran = ThreadRow { nvcsw: 6, ..late };
        advance(&mut judge, 109, &[rows[0].clone(), ran]);
        let profile = profiler.profile(&judge).expect("one is left");
        assert_eq!(profile.stacks.iter().map(|one| one.blocked_ns / S).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn the_longest_blocked_are_kept_and_the_others_counted() {
        let (mut judge, mut profiler) = (Judge::new(Scope::default()), Profiler::default());
        let asleep = |tid: u32| ThreadRow { off_cpu_since_ns: Some(100 * S + u64::from(tid)), ..row(7, tid) };
        let rows: Vec<ThreadRow> = (1..=520).map(asleep).collect();
        advance(&mut judge, 100, &[]);
        profiler.profile(&judge);
        advance(&mut judge, 101, &rows);
        for row in &rows {
            learn(&mut judge, row, &stack(&[&format!("at{}", row.tid)]));
        }
        let profile = profiler.profile(&judge).expect("blocked threads");
        assert_eq!((profile.stacks.len(), profile.left_out), (MOST_STACKS, 20));
        let least = profile.stacks.iter().map(|one| one.blocked_ns).min();
        assert_eq!(least, Some(S - 500), "those that went to sleep last are left out");
        assert!(profile.stacks.iter().all(|one| one.entity.process == process(7)));
    }
}
