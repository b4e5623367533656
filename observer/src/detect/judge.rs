//! One host under judgement: the model, the rules and the ledger, fed by a session or by a replay.

use super::debts;
use super::{Change, Finding, Ledger, Life, Moment, Rule, rules, run};
use crate::census::{Census, ProbeReading, ProcessId};
use crate::model::debts::Verdict;
use crate::model::graph::Graph;
use crate::model::{Host, Scope};
use crate::proc::{Facts, Goroutines, ProcessTasks, RuntimeLocks, StackFact};
use std::collections::BTreeMap;

/// What one census brought.
#[derive(Debug, Default)]
pub struct Turn {
    /// Findings that opened, got worse or are over.
    pub changes: Vec<(Change, Life)>,
    /// `CLOCK_MONOTONIC` nanoseconds at which something not ripe yet would be a finding.
    pub ripe_at_ns: Option<u64>,
}

/// Model, rules and ledger.
pub struct Judge {
    /// The host.
    pub host: Host,
    /// What is looked at.
    pub scope: Scope,
    /// Who waits for whom, as last judged.
    pub graph: Graph,
    /// The findings so far.
    pub ledger: Ledger,
    /// What these say last of processes that owe something.
    verdicts: BTreeMap<ProcessId, Verdict>,
    rules: Vec<Box<dyn Rule + Send>>,
}

impl Judge {
    /// A judge who has seen nothing yet.
    pub fn new(scope: Scope) -> Self {
        Self {
            host: Host::default(),
            scope,
            graph: Graph::default(),
            ledger: Ledger::default(),
            verdicts: BTreeMap::new(),
            rules: rules(),
        }
    }

    /// Takes a census and the probes' reading; facts learnt before are confirmed or dropped by it.
    pub fn advance(&mut self, census: Census, reading: ProbeReading) -> Turn {
        let now = Moment(census.clocks.real_ns);
        self.host.advance(census, reading);
        let (verdict, graph) = run(&self.rules, &self.host, &self.scope);
        self.graph = graph;
        let findings: Vec<Finding> = verdict.findings;
        self.verdicts = debts::verdicts(&findings, &self.host);
        Turn { changes: self.ledger.update(findings, now), ripe_at_ns: verdict.ripe_at_ns }
    }

    /// Idle, busy, waiting or hung, and why: what the rules said, else what the numbers say. `None` if the sockets of the process were
    /// not listed.
    pub fn verdict(&self, process: ProcessId) -> Option<Verdict> {
        let by_numbers = self.host.services().verdict(process)?;
        Some(self.verdicts.get(&process).cloned().unwrap_or(by_numbers))
    }

    /// Takes stacks that were explained after that census.
    pub fn learn_stacks(&mut self, stacks: &[StackFact]) {
        self.host.learn_stacks(stacks);
    }

    /// Takes what was read of the locks of runtimes after that census.
    pub fn learn_runtime_locks(&mut self, locks: Vec<RuntimeLocks>) {
        self.host.learn_runtime_locks(locks);
    }

    /// Takes readings of goroutines after that census.
    pub fn learn_goroutines(&mut self, all: &[Goroutines]) {
        self.host.learn_goroutines(all);
    }

    /// Takes readings of tasks after that census.
    pub fn learn_tasks(&mut self, all: &[ProcessTasks]) {
        self.host.learn_tasks(all);
    }

    /// Takes what was gathered after that census.
    pub fn learn(&mut self, facts: Facts) {
        self.host.learn(facts);
    }
}
