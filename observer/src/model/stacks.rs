//! User stacks as far as they are known, and whose are wanted.

use super::decode::Call;
use super::frames::{self, Place, Reading, parked_at, runs_once, sharpen};
use super::host::{Host, switches};
use super::scope::Scope;
use super::wait::{Class, Wait};
use crate::census::{Pid, ProcessId, ThreadRow};
use crate::proc::{Stack, StackFact, StackWant};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Stacks asked for after one census; the rest is asked for after the next ones.
const MOST_WANTED: usize = 1024;
/// Threads of one process that are asked about because it owes an answer.
const MOST_INDEBTED: usize = 64;
/// Readings of a waiter during which the stack of whom it waits for is awaited: a stack takes one or two, more on a busy machine.
const MOST_AWAITED: u32 = 12;
/// Locks of one process whose holders are looked for at the same time.
const MOST_SOUGHT: usize = 64;

/// A stack, and what it says.
#[derive(Debug)]
pub(super) struct Known {
    fact: StackFact,
    reading: Option<Reading>,
    /// The wait as far as row and stack tell; of a thread whose memory was read as well, the suspect's is better.
    pub(super) wait: Option<Wait>,
    /// The thread slept through from the census before this stack to the one after it.
    pub(super) confirmed: bool,
}

/// A holder inferred from references to its lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByReference {
    /// The thread.
    pub holder: Pid,
    /// It has more references than any other thread, and every other thread was searched.
    pub stands_out: bool,
    /// Others with references.
    pub others: Vec<Pid>,
    /// Threads that could not be searched: they run, or have no stack that can be walked.
    pub unsearched: usize,
    /// It is no lock but something done once, and the thread is in the middle of that: the frame that does it refers to it.
    pub runs: bool,
}

/// The stacks of threads that have not moved since.
#[derive(Debug, Default)]
pub(super) struct Stacks(BTreeMap<Pid, Known>);

impl Stacks {
    /// Drops the stacks of threads that have run since, or are gone; the others are confirmed.
    pub(super) fn advance<'a>(&mut self, row: impl Fn(Pid) -> Option<&'a ThreadRow>) {
        self.0.retain(|tid, known| {
            known.confirmed = row(*tid).is_some_and(|row| is_of(&known.fact, row));
            known.confirmed
        });
    }

    /// What is known of a thread.
    pub(super) fn get(&self, tid: Pid) -> Option<&Known> {
        self.0.get(&tid)
    }

    /// What the stack of a thread says.
    pub(super) fn reading(&self, tid: Pid) -> Option<&Reading> {
        self.get(tid)?.reading.as_ref()
    }

    /// Threads whose stack has been confirmed.
    pub(super) fn confirmed(&self) -> impl Iterator<Item = (Pid, &Known)> {
        self.0.iter().filter(|(_, known)| known.confirmed).map(|(tid, known)| (*tid, known))
    }
}

/// Whether a stack is of the sleep that the row shows.
fn is_of(fact: &StackFact, row: &ThreadRow) -> bool {
    row.process == fact.process && row.is_blocked() && switches(row) == fact.switches
}

impl Host {
    /// Whether there are stacks that the next census will confirm or drop.
    pub fn has_fresh_stacks(&self) -> bool {
        self.stacks.0.values().any(|known| !known.confirmed)
    }

    /// Takes stacks; one whose thread has moved on already is not kept.
    pub fn learn_stacks(&mut self, facts: &[StackFact]) {
        // Threads at the same place share a stack: it is read once.
        let mut readings: HashMap<*const Stack, Option<Reading>> = HashMap::new();
        for fact in facts {
            let Some(row) = self.row(fact.tid).filter(|row| is_of(fact, row)) else { continue };
            let read = || frames::classify(&fact.stack.frames);
            let reading = readings.entry(Arc::as_ptr(&fact.stack)).or_insert_with(read).clone();
            let wait = self.decode(row, None);
            let mut known = Known { fact: fact.clone(), reading, wait: None, confirmed: false };
            known.wait = wait.map(|wait| sharpened(wait, Some(&known)));
            self.stacks.0.insert(fact.tid, known);
            self.sharpen_suspect(fact.tid);
        }
    }

    /// The user stack of a thread in its present sleep, where it was asked for.
    pub fn stack(&self, tid: Pid) -> Option<&Stack> {
        self.shared_stack(tid).map(|stack| &**stack)
    }

    /// Whether the stack of a thread is still to come, while somebody who waits for it has been read only a few times: what its frames tell
    /// is waited for that long, not for ever.
    pub fn awaits_stack(&self, tid: Pid, waiter: Pid) -> bool {
        let readings = self.suspects.get(&waiter).map_or(u32::MAX, |suspect| suspect.readings);
        readings <= MOST_AWAITED && self.stacks.get(tid).is_none() && self.row(tid).and_then(want).is_some()
    }

    /// The same, to be kept: threads at the same place may share it.
    pub fn shared_stack(&self, tid: Pid) -> Option<&Arc<Stack>> {
        self.stacks.get(tid).map(|known| &known.fact.stack)
    }

    /// Whose stacks the judgement needs: waits on a futex that says nothing of an owner, once they have lasted half the
    /// threshold (at once where single processes are looked at), and holders of locks that sleep themselves. Each is asked for once a sleep.
    pub fn stack_wants(&self, scope: &Scope) -> Vec<StackWant> {
        // Of processes that were asked for, at once: a single look must not have to come back for them.
        let long = if scope.processes.is_some() { 0 } else { scope.threshold_ns / 2 };
        let ambiguous = |row: &&ThreadRow| {
            // The cheap questions first: this is asked of every thread at every census.
            let futex = row.syscall.is_some_and(|call| Call::lookup(call.number, row.compat).is_futex());
            futex
                && self.blocked_ns(row) >= long
                && self.stacks.get(row.tid).is_none()
                && scope.contains(row, self)
                && self.is_ownerless(row)
        };
        let mut tids: BTreeSet<Pid> = self.rows().iter().filter(ambiguous).map(|row| row.tid).collect();
        tids.extend(self.holders());
        tids.extend(self.indebted(scope));
        let mut wants = self.report_wants(tids);
        for (process, sought) in self.sought(scope, scope.threshold_ns / 2) {
            wants.retain(|want| want.process.pid != process);
            let searched = |row: &&ThreadRow| {
                self.stacks.get(row.tid).is_some_and(|known| sought.iter().all(|lock| known.fact.sought.contains(lock)))
            };
            let others = self.threads_of(process).filter(|row| !searched(row)).filter_map(want);
            wants.extend(others.map(|want| StackWant { sought: sought.clone(), ..want }));
        }
        wants.truncate(MOST_WANTED);
        wants
    }

    /// Threads, other than those at a futex, of processes that owe an answer: whether they wait for work or stand in a job.
    fn indebted(&self, scope: &Scope) -> Vec<Pid> {
        let long = scope.threshold_ns / 2;
        let processes: BTreeSet<ProcessId> = self.services().indebted(long).collect();
        if processes.is_empty() {
            return Vec::new();
        }
        let mut asked: BTreeMap<ProcessId, usize> = BTreeMap::new();
        let mut is_asked = |row: &&ThreadRow| {
            let is_its = processes.contains(&row.process) && self.blocked_ns(row) >= long && scope.contains(row, self);
            is_its && {
                let count = asked.entry(row.process).or_default();
                *count += 1;
                *count <= MOST_INDEBTED
            }
        };
        self.rows().iter().filter(|row| is_asked(row)).map(|row| row.tid).collect()
    }

    /// Locks that name no owner and have been waited for so long, by process: whoever mentions one may have it.
    fn sought(&self, scope: &Scope, long: u64) -> BTreeMap<Pid, Vec<u64>> {
        let mut sought: BTreeMap<Pid, BTreeSet<u64>> = BTreeMap::new();
        for tid in self.stacks.0.keys() {
            let Some(row) = self.row(*tid).filter(|row| self.blocked_ns(row) >= long && scope.contains(row, self))
            else {
                continue;
            };
            let lock = self.fresh_wait(*tid).and_then(lock_sought);
            sought.entry(row.process.pid).or_default().extend(lock);
        }
        let few = |locks: BTreeSet<u64>| locks.into_iter().take(MOST_SOUGHT).collect::<Vec<u64>>();
        sought.into_iter().filter(|(_, locks)| !locks.is_empty()).map(|(pid, locks)| (pid, few(locks))).collect()
    }

    /// Who probably has the lock that a thread waits for, where the lock does not say: of the threads that sleep with references
    /// to it in live frames and do not wait for it themselves, the one with most of them (with as many, the nearest ones).
    pub fn holder_by_reference(&self, waiter: Pid) -> Option<ByReference> {
        let (row, lock) = self.row(waiter).zip(self.lock_by_frames(waiter))?;
        if self.is_once(waiter) {
            return self.runner(row, lock);
        }
        let mut found: Vec<(Reverse<usize>, u32, Pid)> = Vec::new();
        let mut unsearched = 0;
        let others = self.threads_of(row.process.pid).filter(|other| other.tid != waiter && !other.is_exiting());
        for other in others.filter(|other| self.lock_by_frames(other.tid) != Some(lock)) {
            let searched = |known: &&Known| known.confirmed && known.fact.sought.contains(&lock);
            let Some(known) = self.stacks.get(other.tid).filter(searched) else {
                unsearched += 1;
                continue;
            };
            let depths = || known.fact.mentions.iter().filter(|mention| mention.address == lock).map(|m| m.depth);
            found.extend(depths().min().map(|nearest| (Reverse(depths().count()), nearest, other.tid)));
        }
        found.sort_unstable();
        let (first, others) = found.split_first()?;
        let stands_out = unsearched == 0 && others.first().is_none_or(|second| second.0 > first.0);
        let others = others.iter().map(|(.., tid)| *tid).collect();
        Some(ByReference { holder: first.2, stands_out, others, unsearched, runs: false })
    }

    /// The thread that runs what others wait to have been done once, and keeps a reference to it, to mark it as done in the
    /// end. That reference is in a register of the frame that runs it, which the function called from there saves, or in
    /// the frames of its callers; one farther inside proves less. The waiter may be that thread itself.
    fn runner(&self, waiter: &ThreadRow, once: u64) -> Option<ByReference> {
        let (mut near, mut inside, mut unsearched) = (Vec::new(), Vec::new(), 0);
        for row in self.threads_of(waiter.process.pid).filter(|row| !row.is_exiting()) {
            let searched = |known: &&Known| known.confirmed && known.fact.sought.contains(&once);
            let Some(known) = self.stacks.get(row.tid).filter(searched) else {
                unsearched += 1;
                continue;
            };
            let mentions: Vec<u32> =
                known.fact.mentions.iter().filter(|mention| mention.address == once).map(|m| m.frame).collect();
            if mentions.is_empty() {
                continue;
            }
            let frames = runs_once(&known.fact.stack.frames, known.reading.as_ref());
            let is_near =
                |mention: &u32| frames.iter().any(|frame| (frame.saturating_sub(1)..=frame + 2).contains(mention));
            if mentions.iter().any(is_near) {
                near.push(row.tid);
            } else if self.lock_by_frames(row.tid) != Some(once)
                && mentions.iter().any(|mention| frames.iter().any(|frame| mention < frame))
            {
                inside.push(row.tid);
            }
        }
        let stands_out = unsearched == 0 && near.len() == 1;
        near.append(&mut inside);
        let (holder, others) = near.split_first()?;
        Some(ByReference { holder: *holder, stands_out, others: others.to_vec(), unsearched, runs: true })
    }

    fn is_once(&self, waiter: Pid) -> bool {
        self.stacks.reading(waiter).and_then(|reading| reading.lock).is_some_and(|lock| lock.once)
    }

    /// Whether a thread sleeps on a word of its own, beside which its lock is written.
    pub(super) fn is_parked(&self, tid: Pid) -> bool {
        let lock = self.stacks.reading(tid).and_then(|reading| reading.lock);
        lock.is_some_and(|lock| lock.place == Place::Parked)
    }

    /// The lock that only the frames of a thread say it waits for.
    fn lock_by_frames(&self, tid: Pid) -> Option<u64> {
        lock_without_owner(self.confirmed_wait(tid)?.1)
    }

    fn is_ownerless(&self, row: &ThreadRow) -> bool {
        self.confirmed_wait(row.tid).is_none_or(|(_, wait)| wait.owner.is_none())
    }

    /// What has to be asked to know the stacks of these threads: nothing of those that are known, run at the moment, or have no
    /// user stack that can be walked.
    pub fn report_wants(&self, tids: impl IntoIterator<Item = Pid>) -> Vec<StackWant> {
        let rows = tids.into_iter().filter_map(|tid| self.row(tid));
        rows.filter(|row| self.stacks.get(row.tid).is_none()).filter_map(want).collect()
    }
}

/// The question for a thread's stack; nothing if it runs, or has no user stack that can be walked.
fn want(row: &ThreadRow) -> Option<StackWant> {
    let registers = row.registers.filter(|_| row.is_blocked() && !row.compat && !row.is_kernel_thread())?;
    let (process, tid, switches) = (row.process, row.tid, switches(row));
    Some(StackWant { process, tid, switches, registers, sought: Vec::new() })
}

/// Where the lock lies that a thread waits for, if only its frames say so, and if references tell who has it.
fn lock_without_owner(wait: &Wait) -> Option<u64> {
    let lock = wait.reading.as_ref()?.lock.filter(|lock| lock.guarded && wait.by_frames && wait.class == Class::Lock);
    wait.resource.as_ref().filter(|_| lock.is_some())?.address
}

/// The lock to look for in live frames, also if it is not sure yet that this is the one waited for.
fn lock_sought(wait: &Wait) -> Option<u64> {
    lock_without_owner(wait).or_else(|| parked_at(wait, wait.reading.as_ref()?))
}

/// A wait as sharp as its stack allows.
pub(super) fn sharpened(mut wait: Wait, known: Option<&Known>) -> Wait {
    if let Some((known, reading)) = known.and_then(|known| Some((known, known.reading.clone()?))) {
        sharpen(&mut wait, reading, &known.fact.mentions);
    }
    wait
}
