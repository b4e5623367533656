//! The goroutines of a Go process, as facts: plain data, made by `explain`, judged by `model`.

use super::stack::Stack;
use crate::census::{Pid, ProcessId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a goroutine does, by the runtime's own status (`runtime/runtime2.go`); the bit of a running scan is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoState {
    /// In a run queue.
    Runnable,
    /// On a thread, in Go code.
    Running,
    /// On a thread, in a system call or in C.
    Syscall,
    /// Parked.
    #[default]
    Waiting,
    /// Stopped by the scheduler, to be queued again.
    Preempted,
    /// Its stack is being moved.
    Copystack,
    /// Found by the runtime itself to be leaked (Go 1.26 and later).
    Leaked,
}

/// What a parked goroutine waits for, where that can be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum GoWait {
    /// A channel.
    Channel {
        /// Address of its `hchan`.
        address: u64,
        /// Elements in its buffer, and room for them; 0 of 0 is an unbuffered one.
        len: u64,
        /// Room for elements.
        capacity: u64,
        /// It is closed.
        closed: bool,
    },
    /// A semaphore of `sync`: the address of its word inside of a mutex, a wait group or a condition.
    Semaphore {
        /// Address of the word.
        address: u64,
    },
}

/// One goroutine of a [`GoroutineGroup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goroutine {
    /// Its number, which is not used again.
    pub goid: u64,
    /// Address of its `g`, which is.
    pub g: u64,
    /// Program counter it will go on at (`sched.pc`, or that of its thread's last call): with `sp` it tells one wait from
    /// the next.
    pub pc: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// Thread that runs it, in the process' own PID namespace; 0 if none does.
    pub tid: Pid,
    /// Number of the goroutine that started it; 0 if unknown (before Go 1.21).
    pub parent: u64,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<GoWait>,
    /// Bytes of stack it has.
    #[serde(default)]
    pub stack_bytes: u64,
    /// Counts up, and around, each time it stops running (`g.trackingSeq`): the same in two readings, it has not run in
    /// between. `None` where its place is not known (Go 1.18, 1.20, 1.22, 1.23).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran: Option<u8>,
}

/// Goroutines with the same state, wait reason, stack and creator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoroutineGroup {
    /// What they do.
    pub state: GoState,
    /// Why they wait, in the runtime's own words (`chan receive`, `sync.Mutex.Lock`, `IO wait`); empty unless they wait.
    pub reason: String,
    /// Their stack; only what was stable while it was read.
    pub stack: Arc<Stack>,
    /// The `go` statement that started them: function, file, line.
    pub created_by: Option<(String, String, u32)>,
    /// The function they were started with.
    pub function: Option<String>,
    /// Part of the runtime itself (garbage collector, finalizers, timers): not the program's.
    pub is_system: bool,
    /// They.
    pub members: Vec<Goroutine>,
}

/// All goroutines of one process, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goroutines {
    /// The process.
    pub process: ProcessId,
    /// `go1.24.3`.
    pub version: String,
    /// `CLOCK_MONOTONIC` when the reading began, nanoseconds.
    pub taken_ns: u64,
    /// How long it took, nanoseconds.
    pub took_ns: u64,
    /// Of that on a processor, nanoseconds.
    #[serde(default)]
    pub cpu_ns: u64,
    /// Entries of the runtime's table, dead ones included.
    pub slots: u64,
    /// The goroutines, the largest groups first.
    pub groups: Vec<GoroutineGroup>,
    /// Living goroutines without a stack, or left out, by reason: `changed` (it moved while it was read), `deadline`, …
    pub lost: BTreeMap<String, u64>,
    /// Resident memory of the process, bytes; `None` where it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// What the collector takes for live on the heap (`gcController.heapLive`): what the last collection marked, and what
    /// was allocated since, bytes; `None` where it was not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heap_bytes: Option<u64>,
    /// Why nothing could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

impl Goroutines {
    /// None, for this reason.
    pub fn missing(process: ProcessId, why: impl Into<String>) -> Self {
        Self {
            process,
            version: String::new(),
            taken_ns: 0,
            took_ns: 0,
            cpu_ns: 0,
            slots: 0,
            groups: Vec::new(),
            lost: BTreeMap::new(),
            rss_bytes: None,
            heap_bytes: None,
            missing: Some(why.into()),
        }
    }

    /// Living goroutines whose state is known, those of the runtime included.
    pub fn total(&self) -> usize {
        self.groups.iter().map(|group| group.members.len()).sum()
    }
}
