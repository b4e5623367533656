//! Findings on their way out.

use crate::census::ProcessId;
use crate::detect::{Change, Life as Found, Moment};
use crate::model::Host;
use crate::proc::{Container, Pod};
use crate::report::json;
use serde_json::Value;

/// What happened to a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It is new, or back.
    Opened,
    /// It got worse.
    Changed,
    /// It is over.
    Resolved,
}

impl Life {
    /// The name of the event.
    pub fn event_name(self) -> &'static str {
        match self {
            Self::Opened => "observer.finding.opened",
            Self::Changed => "observer.finding.changed",
            Self::Resolved => "observer.finding.resolved",
        }
    }
}

/// Whom a signal is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entity {
    /// The process.
    pub process: ProcessId,
    /// When it started.
    pub started: Moment,
    /// Name of its main thread.
    pub comm: String,
    /// Executable.
    pub exe: Option<String>,
    /// Command line: exported only where that was asked for.
    pub cmdline: Vec<String>,
    /// Runtime (`go1.24.3`, `native`, …).
    pub runtime: Option<String>,
    /// Path of its cgroup.
    pub cgroup: Option<String>,
    /// Container.
    pub container: Option<Container>,
    /// Pod.
    pub pod: Option<Pod>,
}

impl Entity {
    /// What the host knows of a process.
    pub fn of(host: &Host, process: ProcessId) -> Self {
        let facts = host.process(process);
        let started = host.clocks().map(|clocks| Moment::from_boot(process.start_ns, clocks));
        Self {
            process,
            started: started.unwrap_or_default(),
            comm: host.row(process.pid).map(|row| row.comm.clone()).unwrap_or_default(),
            exe: facts.and_then(|facts| facts.exe.clone()),
            cmdline: facts.map(|facts| facts.cmdline.clone()).unwrap_or_default(),
            runtime: facts.map(|facts| facts.runtime.clone()),
            cgroup: facts.and_then(|facts| facts.cgroup.clone()),
            container: facts.and_then(|facts| facts.container.clone()),
            pod: facts.and_then(|facts| facts.pod.clone()),
        }
    }
}

/// A finding that opened, changed or is over.
#[derive(Clone, Debug)]
pub struct FindingEvent {
    /// What happened.
    pub life: Life,
    /// When it was noticed.
    pub at: Moment,
    /// The finding with its times.
    pub found: Found,
    /// Whom it is about.
    pub entity: Entity,
    /// The same as JSON (`observer.finding/v1`).
    pub json: Value,
    /// The stacks of its threads as text, those at the same place once.
    pub stacks: String,
    /// Who waits for what held by whom, one line a step.
    pub chain: String,
}

impl FindingEvent {
    /// The event of a change. `before`: what was known of the process earlier, since nothing is read of one that has ended.
    pub fn of(host: &Host, change: Change, found: &Found, before: Option<&Entity>) -> Self {
        let life = match change {
            Change::Opened => Life::Opened,
            Change::Worsened => Life::Changed,
            Change::Resolved => Life::Resolved,
        };
        let at = host.clocks().map(|clocks| Moment(clocks.real_ns)).unwrap_or_default();
        let mut entity = Entity::of(host, found.finding.process);
        let mut json = json::finding(host, found);
        if let Some(before) = before.filter(|_| host.process(found.finding.process).is_none()) {
            entity = before.clone();
            json["container"] = serde_json::json!(entity.container);
            json["pod"] = serde_json::json!(entity.pod);
        }
        if entity.comm.is_empty() {
            entity.comm.clone_from(&found.finding.comm);
        }
        let stacks = crate::report::stacks_text(host, &found.finding.threads);
        let chain = crate::report::chain_text(host, &found.finding.chain);
        Self { life, at, found: found.clone(), entity, json, stacks, chain }
    }
}
