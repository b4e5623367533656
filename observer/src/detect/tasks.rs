//! What the rules about debts tell of a program's tasks: evidence beside their own, never a finding by itself. A task that is idle
//! waits for something, as it should.

use super::Context;
use crate::census::ProcessId;
use crate::model::duration;
use crate::model::tasks::TaskProcess;
use crate::proc::{TaskGroup, TaskState};
use serde_json::{Value, json};

/// A reading counts for so many thresholds.
const FRESH: u64 = 4;
/// Groups in the evidence.
const GROUPS: usize = 16;

/// The tasks of one process, as read last.
pub(super) struct Tasks<'a> {
    known: &'a TaskProcess,
    threshold_ns: u64,
    /// When they were read no thread of the process had run for so long, nor has one since: so long, at least, each task has been
    /// in its state. 0: not known.
    quiet_ns: u64,
}

impl<'a> Context<'a> {
    /// The tasks of a process, if they were read not long ago.
    pub(super) fn tasks(&self, process: ProcessId) -> Option<Tasks<'a>> {
        let (known, threshold_ns) = (self.host.tasks(process)?, self.scope.threshold_ns);
        let oldest = self.host.now_ns().saturating_sub(threshold_ns.saturating_mul(FRESH));
        let taken_ns = known.latest.taken_ns;
        let quiet_ns = self.host.quiet_since(process).map_or(0, |since| taken_ns.saturating_sub(since));
        (taken_ns >= oldest).then_some(Tasks { known, threshold_ns, quiet_ns })
    }
}

impl Tasks<'_> {
    /// Tasks of a group in this state for the threshold at least, and for how long the oldest of them: at every look, or because
    /// nobody was there who could have changed that.
    fn lasting(&self, group: &TaskGroup, state: TaskState) -> (usize, u64) {
        let ages: Vec<u64> = self.known.ages(group, state).into_iter().map(|age| age.max(self.quiet_ns)).collect();
        let oldest = ages.first().copied().unwrap_or(0);
        (ages.iter().filter(|age| **age >= self.threshold_ns).count(), oldest)
    }

    /// ` Of its 38 tasks of tokio none runs; 12 of server::handle have been idle for 6.1 s, at least.`; empty where there is
    /// nothing to tell.
    pub(super) fn words(&self) -> String {
        let all = &self.known.latest;
        let (total, running) = (all.alive(), all.count(TaskState::Running));
        if total == 0 {
            return String::new();
        }
        let running = if running == 0 { "none runs".to_owned() } else { format!("{running} run") };
        let cut = if all.cut_bytes > 0 { " at least" } else { "" };
        let mut words = format!(" Of its{cut} {total} tasks of tokio {running}");
        let idle = || all.groups.iter().map(|group| (group, self.lasting(group, TaskState::Idle)));
        if let Some((most, (count, _))) =
            idle().max_by_key(|(_, (count, _))| *count).filter(|(_, (count, _))| *count > 0)
        {
            let others = idle().map(|(_, (count, _))| count).sum::<usize>() - count;
            let others = if others > 0 { format!(" and {others} others") } else { String::new() };
            let oldest = idle().map(|(_, (_, oldest))| oldest).max().unwrap_or(0);
            let (how, long) = match self.quiet_ns >= self.threshold_ns {
                true => ("at least", self.quiet_ns),
                false => ("whenever looked at", oldest),
            };
            words.push_str(&format!(
                "; {count} of {}{others} have been idle for {}, {how}",
                most.name(),
                duration(long)
            ));
        }
        words.push('.');
        words + &self.ready_words()
    }

    /// ` 7 more are ready to run, for 5.2 s at least, and no worker takes them.`; empty if there are none.
    pub(super) fn ready_words(&self) -> String {
        let groups = &self.known.latest.groups;
        let ready: usize = groups.iter().map(|group| self.lasting(group, TaskState::Notified).0).sum();
        let oldest = groups.iter().map(|group| self.lasting(group, TaskState::Notified).1).max().unwrap_or(0);
        match ready {
            0 => String::new(),
            ready => format!(
                " {ready} task(s) have been ready to run for up to {}, and no worker takes them.",
                duration(oldest)
            ),
        }
    }

    /// For the evidence.
    pub(super) fn to_json(&self) -> Value {
        let all = &self.known.latest;
        let groups = all.groups.iter().take(GROUPS).map(|group| {
            let (idle, idle_ns) = self.lasting(group, TaskState::Idle);
            let (ready, ready_ns) = self.lasting(group, TaskState::Notified);
            json!({
                "future": group.future,
                "vtable": format!("{:#x}", group.vtable),
                "count": group.alive(),
                "idle_long": idle,
                "oldest_idle_ns": idle_ns,
                "notified_long": ready,
                "oldest_notified_ns": ready_ns,
            })
        });
        json!({
            "total": all.alive(),
            "idle": all.count(TaskState::Idle),
            "notified": all.count(TaskState::Notified),
            "running": all.count(TaskState::Running),
            "looks": self.known.looks,
            "watched_ns": all.taken_ns.saturating_sub(self.known.first_ns),
            "quiet_ns": (self.quiet_ns > 0).then_some(self.quiet_ns),
            "is_whole": all.cut_bytes == 0,
            "groups": groups.collect::<Vec<_>>(),
        })
    }
}
