//! Monitors of Java programs as facts: plain data, made by `explain`, judged by `model`.

use crate::census::{Pid, ProcessId};
use serde::{Deserialize, Serialize};

/// A Java thread that waits for a monitor, and who owns that.
///
/// Thread ids are those of the JVM's own PID namespace: it noted them down itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JavaMonitor {
    /// The thread that waits.
    pub waiter: Pid,
    /// Address of the `ObjectMonitor` in the JVM: the same for all who wait for one object.
    pub monitor: u64,
    /// Who owns it; `None`: nobody, or it cannot be told.
    pub owner: Option<Pid>,
    /// Blocked at the entry of a `synchronized` block. Otherwise in `Object.wait`: as long as it has not been notified
    /// it does not wait for the owner, which is whoever happens to be inside.
    pub entering: bool,
}

/// The monitors of one JVM that somebody waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JavaMonitors {
    /// The JVM.
    pub process: ProcessId,
    /// One per thread that waits, in the JVM's order of threads.
    pub monitors: Vec<JavaMonitor>,
    /// Why nothing could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}
