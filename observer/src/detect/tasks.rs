//! What the rules about debts tell of a program's tasks: evidence beside their own, never a finding by itself. A task that is idle
//! waits for something, as it should.

use super::Context;
use crate::census::ProcessId;
use crate::model::duration;
use crate::model::tasks::TaskProcess;
use crate::proc::{TaskGroup, TaskState};
use serde_json::{Value, json};

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
        let taken_ns = known.latest.taken_ns;
        let quiet_ns = self.host.quiet_since(process).map_or(0, |since| taken_ns.saturating_sub(since));
        self.is_recent(taken_ns, known.gap_ns).then_some(Tasks { known, threshold_ns, quiet_ns })
    }
}

/// Tasks that have been in one state for long.
#[derive(Clone, Copy)]
struct Lasting {
    count: usize,
    /// How long, nanoseconds.
    oldest: u64,
    youngest: u64,
}

impl Tasks<'_> {
    /// Tasks of a group in this state for the threshold at least: at every look, or because nobody was there who could have changed
    /// that. How many, and for how long the oldest and the youngest of them.
    fn lasting(&self, group: &TaskGroup, state: TaskState) -> Lasting {
        let ages = self.known.ages(group, state).into_iter().map(|age| age.max(self.quiet_ns));
        let long: Vec<u64> = ages.filter(|age| *age >= self.threshold_ns).collect();
        Lasting {
            count: long.len(),
            oldest: long.first().copied().unwrap_or(0),
            youngest: long.last().copied().unwrap_or(0),
        }
    }

    /// Whether nobody can have taken a task between the looks.
    fn is_quiet(&self) -> bool {
        self.quiet_ns >= self.threshold_ns
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
        if let Some((most, largest)) = idle().max_by_key(|(_, one)| one.count).filter(|(_, one)| one.count > 0) {
            let count = largest.count;
            let others = idle().map(|(_, one)| one.count).sum::<usize>() - count;
            let others = if others > 0 { format!(" and {others} others") } else { String::new() };
            // What holds of each of them: the listener's task may be idle since the program began.
            let youngest = idle().filter(|(_, one)| one.count > 0).map(|(_, one)| one.youngest).min().unwrap_or(0);
            let (how, long) = match self.is_quiet() {
                true => ("at least", self.quiet_ns),
                false => ("or longer, whenever looked at", youngest),
            };
            let comma = if self.is_quiet() { "," } else { "" };
            words.push_str(&format!(
                "; {count} of {}{others} have been idle for {}{comma} {how}",
                most.name(),
                duration(long)
            ));
        }
        words.push('.');
        words + &self.ready_words(self.is_quiet())
    }

    /// ` 7 task(s) have been ready to run for up to 5.2 s, and no worker takes them.` where the workers are `stuck`; else it is
    /// said what was seen: a busy worker may have run them between two looks. Empty if there are none.
    pub(super) fn ready_words(&self, stuck: bool) -> String {
        let groups = &self.known.latest.groups;
        let lasting = || groups.iter().map(|group| self.lasting(group, TaskState::Notified));
        let oldest = duration(lasting().map(|one| one.oldest).max().unwrap_or(0));
        match lasting().map(|one| one.count).sum::<usize>() {
            0 => String::new(),
            ready if stuck => {
                format!(" {ready} task(s) have been ready to run for up to {oldest}, and no worker takes them.")
            }
            ready => format!(" {ready} task(s) were ready to run whenever looked at, for up to {oldest}."),
        }
    }

    /// For the evidence.
    pub(super) fn to_json(&self) -> Value {
        let all = &self.known.latest;
        let groups = all.groups.iter().take(GROUPS).map(|group| {
            let idle = self.lasting(group, TaskState::Idle);
            let ready = self.lasting(group, TaskState::Notified);
            json!({
                "future": group.future,
                "vtable": format!("{:#x}", group.vtable),
                "count": group.alive(),
                "idle_long": idle.count,
                "oldest_idle_ns": idle.oldest,
                "notified_long": ready.count,
                "oldest_notified_ns": ready.oldest,
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
