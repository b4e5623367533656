//! User stacks as far as they are known, and whose are wanted.

use super::decode::Call;
use super::frames::{self, Reading, sharpen};
use super::host::{Host, switches};
use super::scope::Scope;
use super::wait::Wait;
use crate::census::{Pid, ThreadRow};
use crate::proc::{Stack, StackFact, StackWant};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Stacks asked for after one census; the rest is asked for after the next ones.
const MOST_WANTED: usize = 1024;

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
            let wait = self.decode(row, None).map(|wait| sharpened(wait, reading.as_ref()));
            let known = Known { fact: fact.clone(), reading, wait, confirmed: false };
            self.stacks.0.insert(fact.tid, known);
            self.sharpen_suspect(fact.tid);
        }
    }

    /// The user stack of a thread in its present sleep, where it was asked for.
    pub fn stack(&self, tid: Pid) -> Option<&Stack> {
        self.stacks.get(tid).map(|known| &*known.fact.stack)
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
        let mut wants = self.report_wants(tids);
        wants.truncate(MOST_WANTED);
        wants
    }

    fn is_ownerless(&self, row: &ThreadRow) -> bool {
        self.confirmed_wait(row.tid).is_none_or(|(_, wait)| wait.owner.is_none())
    }

    /// What has to be asked to know the stacks of these threads: nothing of those that are known, run at the moment, or have no
    /// user stack that can be walked.
    pub fn report_wants(&self, tids: impl IntoIterator<Item = Pid>) -> Vec<StackWant> {
        let rows = tids.into_iter().filter_map(|tid| self.row(tid));
        rows.filter(|row| {
            row.is_blocked() && !row.compat && !row.is_kernel_thread() && self.stacks.get(row.tid).is_none()
        })
        .filter_map(|row| {
            let registers = row.registers?;
            Some(StackWant { process: row.process, tid: row.tid, switches: switches(row), registers })
        })
        .collect()
    }
}

/// A wait as sharp as its stack allows.
pub(super) fn sharpened(mut wait: Wait, reading: Option<&Reading>) -> Wait {
    if let Some(reading) = reading {
        sharpen(&mut wait, reading.clone());
    }
    wait
}
