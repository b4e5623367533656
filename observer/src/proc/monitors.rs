//! Java monitors as facts: plain data, read by `explain`, judged by `model`.

use crate::census::{Pid, ProcessId};
use serde::{Deserialize, Serialize};

/// A thread at a monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JavaMonitor {
    /// The thread, in the JVM's own PID namespace.
    pub waiter: Pid,
    /// Address of HotSpot's `ObjectMonitor`.
    pub monitor: u64,
    /// The thread that has it, in the same namespace; `None` if nobody, or if it cannot be known.
    pub owner: Option<Pid>,
    /// Wants to enter; otherwise it has left it in `Object.wait`.
    pub entering: bool,
}

/// The threads at monitors of one JVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JavaMonitors {
    /// The process.
    pub process: ProcessId,
    /// Threads at monitors.
    pub monitors: Vec<JavaMonitor>,
    /// Why nothing could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}
