//! Waits, locks and owners of one host; pure: no I/O, no clock. Time comes with each census.

pub mod audit;
pub mod blocker;
pub mod debts;
pub mod decode;
mod ends;
pub mod file_lock;
pub mod frames;
pub mod goroutines;
pub mod graph;
mod holding;
pub mod host;
pub mod observation;
pub mod probes;
mod runtime_locks;
pub mod scope;
mod stacks;
pub mod tasks;
#[cfg(test)]
pub(crate) mod testkit;
pub mod wait;
mod wants;
pub mod word;

pub use host::{Host, Since, switches};
pub use observation::Observation;
pub use probes::Waker;
pub use scope::{Filter, Scope};
pub use stacks::ByReference;
pub use wait::{Class, Confidence, Owner, OwnerWord, Resource, ResourceKind, Timeout, Wait};

use crate::census::ThreadRow;

/// A duration as a person says it: `850 ms`, `12.3 s`, `4 min 10 s`, `3 h 2 min`.
pub fn duration(ns: u64) -> String {
    let ms = ns / 1_000_000;
    match ms {
        0 => format!("{} µs", ns / 1000),
        1..=999 => format!("{ms} ms"),
        1000..=59_999 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..=3_599_999 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
        3_600_000..=86_399_999 => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
        _ => format!("{} d {} h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
    }
}

/// In which way a thread is stopped.
pub fn stopped_how(row: &ThreadRow) -> &'static str {
    match row.state_letter() {
        't' => "held by a tracer",
        'T' => "stopped by a signal",
        _ if row.is_frozen() => "frozen by its cgroup",
        _ => "stopped",
    }
}
