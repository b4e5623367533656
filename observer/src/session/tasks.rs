//! Whose tasks are read in a turn: those of processes that were asked for as often as their cost allows, of a host's those of
//! processes that owe an answer, or are owed one, for half of the threshold.

use super::Session;
use super::pace::{Look, Pace};
use crate::census::{ProcessId, ThreadRow};
use crate::proc::{Facts, ProcessTasks};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What one turn waits for tasks; what takes longer comes with a later one.
const FOR_TASKS: Duration = Duration::from_millis(250);
/// A process without such a runtime is looked at again after this: it may load a library, or become another program.
const WITHOUT: Duration = Duration::from_secs(60);

/// When the tasks of each process are due.
#[derive(Debug, Default)]
pub(super) struct TaskPace {
    pace: Pace,
    /// Processes that were found to have none, and until when that counts.
    without: BTreeMap<ProcessId, Instant>,
    /// A process was read for the first time, and the rules have not seen that yet.
    is_new: bool,
}

impl Session {
    /// Reads tasks, where they are due, and lets the judge learn them.
    pub(super) fn read_tasks(&mut self, facts: &mut Facts) {
        self.task_pace.is_new = false;
        let is_host = self.judge.scope.processes.is_none();
        let look = if is_host { Look::Host } else { Look::Asked };
        let threshold = Duration::from_nanos(self.judge.scope.threshold_ns);
        let now = Instant::now();
        self.task_pace.without.retain(|_, until| now < *until);
        let mut among = self.may_have_tasks();
        among.retain(|process| !self.task_pace.without.contains_key(process));
        let wanted = self.task_pace.pace.pick(&among, is_host, now);
        if wanted.is_empty() && !self.task_pace.pace.is_awaiting() {
            return;
        }
        self.task_pace.pace.ask(&wanted, FOR_TASKS, look, threshold);
        let mut all = self.task_reader.tasks(&wanted, FOR_TASKS);
        let took: Duration = all.iter().map(|one| Duration::from_nanos(one.cpu_ns)).sum();
        self.task_pace.pace.spend(took, now);
        all.retain(|one| self.task_pace.pace.hear(one.process, one.missing.as_deref()));
        for one in &all {
            if one.none {
                self.task_pace.without.insert(one.process, Instant::now() + WITHOUT);
            } else if one.missing.is_none() {
                self.task_pace.pace.note(one.process, Duration::from_nanos(one.cpu_ns), look, threshold);
            }
        }
        let (read, missing): (Vec<ProcessTasks>, Vec<ProcessTasks>) =
            all.into_iter().partition(|one| one.missing.is_none());
        // Most programs have none: nothing is lost then.
        for why in missing.into_iter().filter(|one| !one.none).filter_map(|one| one.missing) {
            *facts.lost.entry(format!("tasks: {why}")).or_default() += 1;
        }
        for (reason, count) in read.iter().flat_map(|one| &one.lost) {
            *facts.lost.entry(format!("task: {reason}")).or_default() += count;
        }
        self.task_pace.is_new = read.iter().any(|one| self.judge.host.tasks(one.process).is_none());
        self.judge.learn_tasks(&read);
        facts.tasks = read;
    }

    /// Whether the next turn may know more of tasks.
    pub fn awaits_tasks(&self) -> bool {
        self.task_pace.is_new || self.task_pace.pace.is_awaiting()
    }

    /// Processes that are looked at and may run tokio: which of them do, only their files tell.
    fn may_have_tasks(&self) -> BTreeSet<ProcessId> {
        let (host, scope) = (&self.judge.host, &self.judge.scope);
        let is_candidate = |row: &&ThreadRow| {
            !(row.is_exiting() || row.is_kernel_thread() || row.compat)
                && row.process.pid != std::process::id()
                && scope.contains(row, host)
                && !host.is_go(row.process)
                && !host.is_process_stopped(row.process.pid)
        };
        if scope.processes.is_some() {
            return host.leaders().filter(is_candidate).map(|row| row.process).collect();
        }
        let indebted = host.services().indebted(scope.threshold_ns / 2);
        let rows = indebted.filter_map(|process| host.row(process.pid).filter(|row| row.process == process));
        rows.filter(is_candidate).map(|row| row.process).collect()
    }
}
