//! Waits for Java monitors: HotSpot sleeps in short turns, so that the sleep of a thread does not tell them. What stays is
//! the monitor it wants and who has it.

use super::host::Host;
use super::wait::{Class, OwnerScope, OwnerWord, Resource, ResourceKind, Timeout, Wait};
use crate::census::{Pid, ProcessId};
use crate::proc::JavaMonitors;
use std::collections::BTreeMap;

/// Readings that must agree: a thread may have had the monitor, and have come back to it, between two.
const READINGS: u32 = 3;

/// One thread at one monitor.
#[derive(Debug)]
pub(super) struct AtMonitor {
    process: ProcessId,
    pub(super) wait: Wait,
    /// The first of the readings that agree, `CLOCK_MONOTONIC` nanoseconds.
    pub(super) since_ns: u64,
    readings: u32,
}

impl AtMonitor {
    /// Enough readings agree.
    pub(super) fn is_confirmed(&self) -> bool {
        self.readings >= READINGS
    }
}

/// Threads that want to enter a monitor.
#[derive(Debug, Default)]
pub(super) struct Monitors(BTreeMap<Pid, AtMonitor>);

impl Monitors {
    /// Forgets threads that are gone.
    pub(super) fn advance(&mut self, process_of: impl Fn(Pid) -> Option<ProcessId>) {
        self.0.retain(|tid, at| process_of(*tid) == Some(at.process));
    }

    pub(super) fn get(&self, tid: Pid) -> Option<&AtMonitor> {
        self.0.get(&tid)
    }

    pub(super) fn confirmed(&self) -> impl Iterator<Item = (Pid, &AtMonitor)> {
        self.0.iter().filter(|(_, at)| at.is_confirmed()).map(|(tid, at)| (*tid, at))
    }
}

impl Host {
    /// Takes what was read of the monitors of JVMs.
    pub fn learn_monitors(&mut self, all: Vec<JavaMonitors>) {
        let now = self.now_ns();
        for JavaMonitors { process, monitors, missing } in all {
            // What could not be read says nothing, neither for nor against what was known.
            if missing.is_some() {
                continue;
            }
            let by_own: BTreeMap<Pid, Pid> = self.threads_of(process.pid).map(|row| (row.own.0, row.tid)).collect();
            let before = std::mem::take(&mut self.monitors.0);
            let (ours, mut kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
                before.into_iter().partition(|(_, at)| at.process == process);
            for at in monitors.iter().filter(|at| at.entering) {
                let Some(tid) = by_own.get(&at.waiter) else { continue };
                let wait = wait(at.monitor, at.owner);
                let earlier = ours.get(tid).filter(|earlier| earlier.wait == wait);
                let (since_ns, readings) = earlier.map_or((now, 1), |at| (at.since_ns, at.readings + 1));
                kept.insert(*tid, AtMonitor { process, wait, since_ns, readings });
            }
            self.monitors.0 = kept;
        }
    }

    /// Those of these processes that are JVMs.
    pub fn jvms(&self, processes: impl IntoIterator<Item = ProcessId>) -> Vec<ProcessId> {
        let is_jvm = |id: &ProcessId| self.process(*id).is_some_and(|facts| facts.runtime.starts_with("jvm"));
        processes.into_iter().filter(is_jvm).collect()
    }

    /// Whether some thread was at a monitor when they were read last.
    pub fn has_monitors(&self) -> bool {
        !self.monitors.0.is_empty()
    }

    /// Whether some thread's wait for a monitor is not confirmed yet.
    pub fn has_fresh_monitors(&self) -> bool {
        self.monitors.0.values().any(|at| !at.is_confirmed())
    }
}

fn wait(monitor: u64, owner: Option<Pid>) -> Wait {
    // Its short sleeps have limits, the wait has none.
    let wait = Wait::in_call("futex", [0; 6], Class::Lock, Timeout::NONE);
    Wait {
        resource: Some(Resource::at(ResourceKind::Mutex, monitor).detailed("(Java monitor)")),
        owner: owner.map(|own_tid| OwnerWord {
            own_tid,
            scope: OwnerScope::Process,
            how: "owner of the HotSpot monitor, the same in several readings",
            proven: false,
        }),
        ..wait
    }
}
