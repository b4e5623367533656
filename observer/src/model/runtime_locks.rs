//! Waits for locks of language runtimes: what a thread wants and who has it, by the runtime's own memory.
//!
//! Waiters for Java monitors and for Python's GIL sleep in short turns, so that one sleep does not tell their wait; it is
//! several readings that agree. Waiters for Python's locks sleep once, and their owners are read from a moving program.

use super::host::{Host, switches};
use super::wait::{Class, OwnerScope, OwnerWord, Resource, ResourceKind, Timeout, Wait};
use crate::census::{Pid, ProcessId, ThreadRow};
use crate::proc::{RuntimeLock, RuntimeLockKind, RuntimeLocks, RuntimeWant};
use std::collections::BTreeMap;

/// Readings that must agree: a thread may have had the lock, and have come back to it, between two.
const READINGS: u32 = 3;
/// `futex` of x86-64.
const FUTEX: u32 = 202;

/// One thread at one lock.
#[derive(Debug)]
pub(super) struct AtLock {
    process: ProcessId,
    fact: RuntimeLock,
    /// Of a waiter that sleeps once: how often it had been switched out.
    switches: Option<u64>,
    pub(super) wait: Wait,
    /// The first of the readings that agree, later by the time in which nobody looked, `CLOCK_MONOTONIC` nanoseconds.
    pub(super) since_ns: u64,
    /// The census before the last of these readings, `CLOCK_MONOTONIC` nanoseconds.
    read_ns: u64,
    readings: u32,
    /// Readings since it is at locks at all, whether they agree or not.
    tries: u32,
    /// It was confirmed when the last census was judged.
    is_judged: bool,
}

impl AtLock {
    /// Enough readings agree.
    pub(super) fn is_confirmed(&self) -> bool {
        self.readings >= READINGS
    }

    /// Worth showing: that it waits for itself may as well mean that it has got the lock since the census.
    pub(super) fn is_plausible(&self) -> bool {
        self.is_confirmed() || self.fact.owner != Some(self.fact.waiter)
    }

    /// Its wait began before this sleep of the thread.
    pub(super) fn sleeps_in_turns(&self) -> bool {
        self.fact.kind.sleeps_in_turns()
    }

    /// An owner that sleeps has had it all the while. HotSpot passes a monitor on without waking its owner: not there.
    fn is_kept_asleep(&self) -> bool {
        self.fact.kind != RuntimeLockKind::Monitor
    }
}

/// Threads that want to have a lock of their runtime.
#[derive(Debug, Default)]
pub(super) struct AtLocks(BTreeMap<Pid, AtLock>);

impl AtLocks {
    /// Forgets threads that are gone, and those that have slept anew where that ends the wait.
    pub(super) fn advance<'a>(&mut self, row_of: impl Fn(Pid) -> Option<&'a ThreadRow>) {
        self.0.retain(|tid, at| {
            at.is_judged = at.is_confirmed();
            let is_same_sleep = |row: &ThreadRow| at.switches.is_none_or(|n| row.is_blocked() && switches(row) == n);
            row_of(*tid).is_some_and(|row| row.process == at.process && is_same_sleep(row))
        });
    }

    pub(super) fn get(&self, tid: Pid) -> Option<&AtLock> {
        self.0.get(&tid)
    }

    pub(super) fn confirmed(&self) -> impl Iterator<Item = (Pid, &AtLock)> {
        self.0.iter().filter(|(_, at)| at.is_confirmed()).map(|(tid, at)| (*tid, at))
    }
}

impl Host {
    /// Takes what was read of the locks of runtimes.
    pub fn learn_runtime_locks(&mut self, all: Vec<RuntimeLocks>) {
        let now = self.now_ns();
        for RuntimeLocks { process, waits, missing } in all {
            // What could not be read says nothing, neither for nor against what was known.
            if missing.is_some() {
                continue;
            }
            let by_own: BTreeMap<Pid, Pid> = self.threads_of(process.pid).map(|row| (row.own.0, row.tid)).collect();
            let before = std::mem::take(&mut self.runtime_locks.0);
            let (ours, mut kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
                before.into_iter().partition(|(_, at)| at.process == process);
            for fact in waits.into_iter().filter(|fact| fact.entering) {
                let row = by_own.get(&fact.waiter).and_then(|tid| self.row(*tid));
                let Some(row) = row.filter(|row| row.process == process) else { continue };
                let (tid, once) = (row.tid, (!fact.kind.sleeps_in_turns()).then(|| switches(row)));
                let before = ours.get(&tid);
                let tries = before.map_or(1, |at| at.tries.saturating_add(1));
                let earlier = before.filter(|earlier| earlier.fact == fact && earlier.switches == once);
                let (since_ns, readings) = earlier.map_or((now, 1), |at| (at.since_ns, at.readings.saturating_add(1)));
                let is_judged = earlier.is_some_and(|at| at.is_judged);
                // Its short sleeps have limits, the wait has none; a single sleep has its own.
                let asleep = once.and_then(|_| self.wait(tid));
                let asleep = asleep.unwrap_or_else(|| Wait::in_call("futex", [0; 6], Class::Lock, Timeout::NONE));
                let wait = wait(&fact, asleep);
                let read_ns = now;
                let at = AtLock { process, fact, switches: once, wait, since_ns, read_ns, readings, tries, is_judged };
                kept.insert(tid, at);
            }
            self.runtime_locks.0 = kept;
        }
    }

    /// The time since the census at `last_ns` counts for those only whose locks were read in between: others may have let go
    /// of theirs and come back to it, unless its owner has slept all the while.
    pub(super) fn age_runtime_locks(&mut self, last_ns: u64) {
        let passed_ns = self.now_ns().saturating_sub(last_ns);
        let entries = self.runtime_locks.0.iter();
        let unwatched = entries.filter(|(tid, at)| at.read_ns < last_ns && self.kept_since(**tid, at).is_none());
        let unwatched: Vec<Pid> = unwatched.map(|(tid, _)| *tid).collect();
        for tid in unwatched {
            if let Some(at) = self.runtime_locks.0.get_mut(&tid) {
                at.since_ns = at.since_ns.saturating_add(passed_ns);
            }
        }
    }

    /// Since when the owner of the lock that a thread is at sleeps with it, `CLOCK_MONOTONIC` nanoseconds. One that fell asleep
    /// after the reading may have let go before.
    pub(super) fn kept_since(&self, waiter: Pid, at: &AtLock) -> Option<u64> {
        let owner = self.holder_of(&at.wait, self.row(waiter)?)?.0;
        let asleep = self.row(owner).filter(|row| at.is_kept_asleep() && row.is_blocked())?;
        Some(self.since(asleep).ns).filter(|since| *since <= at.read_ns)
    }

    /// Those of these processes whose runtime has locks to be read: JVMs, and CPython where a thread is at a futex.
    pub fn runtime_wants(&self, processes: impl IntoIterator<Item = ProcessId>) -> Vec<RuntimeWant> {
        let want = |process: ProcessId| {
            let runtime = self.process(process)?.runtime.as_str();
            let sleepers = if runtime.starts_with("cpython") { self.sleepers(process) } else { Vec::new() };
            let wanted = runtime.starts_with("jvm") || !sleepers.is_empty();
            wanted.then_some(RuntimeWant { process, sleepers })
        };
        processes.into_iter().filter_map(want).collect()
    }

    /// Threads at a futex, and those between two turns at the GIL: if it has not been passed on, they are still at it.
    fn sleepers(&self, process: ProcessId) -> Vec<(Pid, u64)> {
        let rows = self.threads_of(process.pid).filter(|row| row.process == process);
        let sleepers = rows.filter_map(|row| {
            let futex = row.syscall.filter(|call| call.number == FUTEX && row.is_blocked()).map(|call| call.args[0]);
            let at = self.runtime_locks.get(row.tid).filter(|at| at.fact.kind == RuntimeLockKind::Gil);
            let between = at.filter(|_| !row.is_blocked()).map(|at| at.fact.address);
            Some((row.own.0, futex.or(between)?))
        });
        sleepers.collect()
    }

    /// Whether some thread was at a lock of its runtime when they were read last.
    pub fn has_runtime_locks(&self) -> bool {
        !self.runtime_locks.0.is_empty()
    }

    /// Whether the next judgement will know more of some thread's wait for a lock of its runtime.
    pub fn has_fresh_runtime_locks(&self) -> bool {
        self.runtime_locks.0.values().any(|at| !at.is_judged && at.tries <= READINGS + 1)
    }
}

fn wait(fact: &RuntimeLock, asleep: Wait) -> Wait {
    let (name, how) = match fact.kind {
        RuntimeLockKind::Monitor => ("(Java monitor)", "owner of the HotSpot monitor, the same in several readings"),
        RuntimeLockKind::Gil => {
            ("(Python GIL)", "holder that CPython notes, with the same number of switches in several readings")
        }
        RuntimeLockKind::PyLock => {
            ("(Python lock)", "inside of `with lock:` in several readings (its frame keeps the lock's __exit__)")
        }
        RuntimeLockKind::PyRLock => ("(Python RLock)", "owner that the RLock notes, the same in several readings"),
    };
    Wait {
        class: Class::Lock,
        resource: Some(Resource::at(ResourceKind::Mutex, fact.address).detailed(name)),
        owner: fact.owner.map(|own_tid| OwnerWord { own_tid, scope: OwnerScope::Process, how, proven: false }),
        ..asleep
    }
}
