//! User stacks as far as they are known, and whose are wanted.

use super::decode::Call;
use super::graph::{self, End};
use super::host::{Host, switches};
use super::scope::Scope;
use crate::census::{Pid, ThreadRow};
use crate::proc::{Stack, StackFact, StackWant};
use std::collections::{BTreeMap, BTreeSet};

/// Stacks asked for after one census; the rest is asked for after the next ones.
const MOST_WANTED: usize = 1024;

/// The stacks of threads that have not moved since.
#[derive(Debug, Default)]
pub(super) struct Stacks(BTreeMap<Pid, StackFact>);

impl Stacks {
    /// Drops the stacks of threads that have run since, or are gone.
    pub(super) fn advance<'a>(&mut self, row: impl Fn(Pid) -> Option<&'a ThreadRow>) {
        self.0.retain(|tid, fact| row(*tid).is_some_and(|row| is_of(fact, row)));
    }

    fn get(&self, tid: Pid) -> Option<&Stack> {
        self.0.get(&tid).map(|fact| &*fact.stack)
    }
}

/// Whether a stack is of the sleep that the row shows.
fn is_of(fact: &StackFact, row: &ThreadRow) -> bool {
    row.process == fact.process && row.is_blocked() && switches(row) == fact.switches
}

impl Host {
    /// Takes stacks; one whose thread has moved on already is not kept.
    pub fn learn_stacks(&mut self, facts: &[StackFact]) {
        for fact in facts {
            if self.row(fact.tid).is_some_and(|row| is_of(fact, row)) {
                self.stacks.0.insert(fact.tid, fact.clone());
            }
        }
    }

    /// The user stack of a thread in its present sleep, where it was asked for.
    pub fn stack(&self, tid: Pid) -> Option<&Stack> {
        self.stacks.get(tid)
    }

    /// Whose stacks the judgement needs: waits on a futex that says nothing of an owner, once they have lasted half the
    /// threshold, and the threads at which chains end. Each is asked for once a sleep.
    pub fn stack_wants(&self, scope: &Scope) -> Vec<StackWant> {
        let long = scope.threshold_ns / 2;
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
        for chain in graph::chains(self) {
            if let End::Root(tid) = chain.end {
                tids.insert(tid);
            }
        }
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
