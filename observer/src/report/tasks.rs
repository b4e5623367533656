//! The tasks of an asynchronous program, as JSON and as text.

use super::text::clean;
use crate::model::duration;
use crate::model::tasks::TaskProcess;
use crate::proc::{TaskGroup, TaskState};
use serde_json::{Value, json};
use std::fmt::Write;

/// Groups that a report lists, the largest first.
const GROUPS: usize = 500;
/// Tasks of a group that are listed, those first that have been in their state for longest.
const MEMBERS: usize = 32;
/// Groups shown in the text.
const SHOWN: usize = 5;
/// All states, in the order in which they are told.
const STATES: [TaskState; 4] = [TaskState::Idle, TaskState::Notified, TaskState::Running, TaskState::Complete];

/// The tasks of a process, as read last.
pub(super) fn to_json(known: &TaskProcess) -> Value {
    let all = &known.latest;
    json!({
        "runtime": "tokio",
        "version": all.version,
        "total": all.alive(),
        "idle": all.count(TaskState::Idle),
        "notified": all.count(TaskState::Notified),
        "running": all.count(TaskState::Running),
        "complete": all.count(TaskState::Complete),
        "types": all.types,
        "taken_ns": all.taken_ns,
        "took_ns": all.took_ns,
        "watched_ns": all.taken_ns.saturating_sub(known.first_ns),
        "looks": known.looks,
        "scanned_bytes": all.scanned_bytes,
        "absent_bytes": all.absent_bytes,
        "cut_bytes": all.cut_bytes,
        "lost": all.lost,
        "groups": all.groups.iter().take(GROUPS).map(|group| group_json(known, group)).collect::<Vec<_>>(),
        "groups_cut": all.groups.len().saturating_sub(GROUPS),
    })
}

fn group_json(known: &TaskProcess, group: &TaskGroup) -> Value {
    let mut members: Vec<_> = group.members.iter().map(|task| (known.age(group, task), task)).collect();
    members.sort_by_key(|(age, task)| (std::cmp::Reverse(*age), task.id));
    let longest = |state| known.ages(group, state).first().copied();
    json!({
        "future": group.future,
        "future_shared": group.shared,
        "count": group.alive(),
        "idle": group.count(TaskState::Idle),
        "notified": group.count(TaskState::Notified),
        "running": group.count(TaskState::Running),
        "complete": group.count(TaskState::Complete),
        "longest_idle_ns": longest(TaskState::Idle),
        "longest_notified_ns": longest(TaskState::Notified),
        "bytes": group.bytes,
        "poll": { "function": group.function, "module": group.module, "offset": format!("{:#x}", group.poll) },
        "vtable": format!("{:#x}", group.vtable),
        "tasks": members.iter().take(MEMBERS).map(|(age, task)| json!({
            "id": task.id,
            "address": format!("{:#x}", task.address),
            "state": task.state.name(),
            "cancelled": task.cancelled,
            "seen_so_ns": age,
        })).collect::<Vec<_>>(),
        "tasks_cut": members.len().saturating_sub(MEMBERS),
    })
}

/// A few lines: `38 tokio tasks, 12 of them idle for at least 6.1 s`, and of which types they are.
pub(super) fn to_text(known: &TaskProcess) -> String {
    let all = &known.latest;
    let version = all.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
    let total = all.alive();
    let plural = if total == 1 { "" } else { "s" };
    let mut out = format!("  {total} task{plural} of tokio{version}, read in {}", duration(all.took_ns));
    if all.cut_bytes > 0 {
        let _ = write!(
            out,
            " (up to {} MiB of its address space were not looked through: there may be more)",
            all.cut_bytes >> 20
        );
    }
    out.push('\n');
    let groups: Vec<&TaskGroup> = all.groups.iter().filter(|group| !group.members.is_empty()).collect();
    for group in groups.iter().take(SHOWN) {
        let part = |state: TaskState| {
            let ages = known.ages(group, state);
            let longest = ages.first().filter(|age| **age > 0 && state != TaskState::Complete);
            let long = longest.map(|age| format!(" (seen so for {})", duration(*age))).unwrap_or_default();
            (!ages.is_empty()).then(|| format!("{} {}{long}", ages.len(), state.name()))
        };
        let parts: Vec<String> = STATES.into_iter().filter_map(part).collect();
        let _ = writeln!(out, "    {} in {}", parts.join(", "), clean(&group.name()));
    }
    if let Some(more @ 1..) = groups.len().checked_sub(SHOWN) {
        let _ = writeln!(out, "    + {more} more types of tasks (--output json lists them)");
    }
    out
}
