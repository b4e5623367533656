//! The tasks of an asynchronous runtime, as facts: plain data, made by `explain`, judged by `model`.

use super::base_name;
use crate::census::ProcessId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a task does, by the state word of its header (`tokio/src/runtime/task/state.rs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Polled, not finished, and not woken since.
    #[default]
    Idle,
    /// In a run queue: woken, or new.
    Notified,
    /// A thread polls it.
    Running,
    /// Finished; somebody still has a handle of it.
    Complete,
}

impl TaskState {
    /// The name used in JSON and text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Notified => "notified",
            Self::Running => "running",
            Self::Complete => "complete",
        }
    }
}

/// One task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its number (`tokio::task::Id`), which is not used again by this copy of the runtime.
    pub id: u64,
    /// Address of its header, which is used again.
    pub address: u64,
    /// What it does.
    pub state: TaskState,
    /// It has been cancelled.
    #[serde(default)]
    pub cancelled: bool,
}

/// The tasks of one type: those that share the table of functions of their future.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskGroup {
    /// Type of the future (`server::handle::{closure#0}`), where a symbol or debug information names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub future: Option<String>,
    /// That name may be of another type: the compiler keeps one copy of code that is equal.
    #[serde(default)]
    pub shared: bool,
    /// Address of the table, in the target.
    pub vtable: u64,
    /// Path of the file it is from.
    pub module: String,
    /// Address of the function that polls the future, in that file's own numbering.
    pub poll: u64,
    /// The symbol there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Bytes from the header of a task to its trailer: about its size.
    pub bytes: u64,
    /// They.
    pub members: Vec<Task>,
}

impl TaskGroup {
    /// How many of them are in this state.
    pub fn count(&self, state: TaskState) -> usize {
        self.members.iter().filter(|task| task.state == state).count()
    }

    /// How many of them are not finished.
    pub fn alive(&self) -> usize {
        self.members.len() - self.count(TaskState::Complete)
    }

    /// What its tasks are called, for people.
    pub fn name(&self) -> String {
        match &self.future {
            Some(future) if self.shared => format!("{future} (or a type with the same code)"),
            Some(future) => future.clone(),
            None => format!("the type polled at {:#x} of {}", self.poll, base_name(&self.module)),
        }
    }
}

/// All tasks of the runtimes of one process, at one moment: between `taken_ns` and `taken_ns + took_ns`.
///
/// Tasks are those that were spawned: the future given to `block_on` is none, nor is a job of the blocking pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessTasks {
    /// The process.
    pub process: ProcessId,
    /// `1.54.1`, where the program has a path of the runtime's source in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `CLOCK_MONOTONIC` when the reading began, nanoseconds.
    pub taken_ns: u64,
    /// How long it took, nanoseconds.
    pub took_ns: u64,
    /// CPU time of all of it, with what was learnt of files, nanoseconds.
    #[serde(default)]
    pub cpu_ns: u64,
    /// Types of tasks that the program has, whether there are tasks of them or not.
    pub types: u64,
    /// The tasks, the largest groups first.
    pub groups: Vec<TaskGroup>,
    /// Bytes of memory looked through.
    pub scanned_bytes: u64,
    /// Bytes that are not in memory (never used, or swapped out) and were left there.
    pub absent_bytes: u64,
    /// Bytes that were left out: beyond what one reading may look through, unreadable, or too late.
    pub cut_bytes: u64,
    /// What looked like a task and was left out, by reason: `changed` (it ended while it was read), `duplicate`, `limit`.
    pub lost: BTreeMap<String, u64>,
    /// Why nothing could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// It has no such runtime, as far as its files tell: nothing is missing.
    #[serde(default)]
    pub none: bool,
}

impl ProcessTasks {
    /// Nothing is known yet.
    pub fn new(process: ProcessId) -> Self {
        Self {
            process,
            version: None,
            taken_ns: 0,
            took_ns: 0,
            cpu_ns: 0,
            types: 0,
            groups: Vec::new(),
            scanned_bytes: 0,
            absent_bytes: 0,
            cut_bytes: 0,
            lost: BTreeMap::new(),
            missing: None,
            none: false,
        }
    }

    /// None, for this reason.
    pub fn missing(process: ProcessId, why: impl Into<String>) -> Self {
        Self { missing: Some(why.into()), ..Self::new(process) }
    }

    /// Tasks in this state.
    pub fn count(&self, state: TaskState) -> usize {
        self.groups.iter().map(|group| group.count(state)).sum()
    }

    /// Tasks that are not finished: what the runtime itself calls alive.
    pub fn alive(&self) -> usize {
        self.groups.iter().map(TaskGroup::alive).sum()
    }
}
