//! Locks that a language runtime keeps for its programs, as facts: plain data, made by `explain`, judged by `model`.

use crate::census::{Pid, ProcessId};
use serde::{Deserialize, Serialize};

/// What kind of lock it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeLockKind {
    /// The monitor of a Java object.
    #[default]
    Monitor,
    /// CPython's global interpreter lock.
    Gil,
    /// Python's `threading.Lock`.
    PyLock,
    /// Python's `threading.RLock`.
    #[serde(rename = "py_rlock")]
    PyRLock,
}

impl RuntimeLockKind {
    /// Its waiters sleep in short turns, so that one sleep does not tell their wait.
    pub fn sleeps_in_turns(self) -> bool {
        matches!(self, Self::Monitor | Self::Gil)
    }
}

/// A thread that waits for a lock of its runtime, and who owns that.
///
/// Thread ids are those of the process' own PID namespace: its runtime noted them down itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeLock {
    /// The thread that waits.
    pub waiter: Pid,
    /// Address of the lock in its process: the same for all who wait for it. Of Python's locks, the address they sleep at.
    #[serde(alias = "monitor")]
    pub address: u64,
    /// What it is.
    #[serde(default)]
    pub kind: RuntimeLockKind,
    /// Who owns it; `None`: nobody, or it cannot be told.
    pub owner: Option<Pid>,
    /// The owner keeps it from getting on. Otherwise it waits for something else at the lock (`Object.wait`): as long as
    /// it has not been notified it does not wait for the owner, which is whoever happens to be inside.
    pub entering: bool,
    /// How often it changed hands, or what else tells one hold from the next; 0 where nothing does.
    #[serde(default)]
    pub turns: u64,
}

/// The locks of one process' runtime that somebody waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeLocks {
    /// The process.
    pub process: ProcessId,
    /// One per thread that waits, in the runtime's order of threads.
    #[serde(alias = "monitors")]
    pub waits: Vec<RuntimeLock>,
    /// Why nothing could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// A process whose runtime's locks are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeWant {
    /// The process.
    pub process: ProcessId,
    /// Its threads that sleep at a futex: their ids in its own PID namespace, and the address.
    pub sleepers: Vec<(Pid, u64)>,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;

    #[test]
    fn earlier_recordings_are_read() {
        let earlier =
            r#"{"process":{"pid":7,"start_ns":1},"monitors":[{"waiter":8,"monitor":160,"owner":9,"entering":true}]}"#;
        let read: RuntimeLocks = serde_json::from_str(earlier).unwrap();
        let kind = RuntimeLockKind::Monitor;
        let wait = RuntimeLock { waiter: 8, address: 160, kind, owner: Some(9), entering: true, turns: 0 };
        assert_eq!((read.waits, read.missing), (vec![wait], None));
    }
}
