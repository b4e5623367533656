//! Findings and processes as text and JSON. What a person reads and what a program reads are made from
//! the same values.

pub mod account;
mod chains;
mod debts;
pub mod goroutines;
pub mod json;
pub mod lately;
pub mod pprof;
mod stacks;
mod tasks;
pub mod text;
pub mod timeouts;
mod wakes;

pub use account::Account;

use crate::detect::Judge;
use crate::model::Host;
use serde_json::Value;

/// Facts about the machine and this observer that a report carries.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// Name of the host.
    pub host_name: String,
    /// Kernel release.
    pub kernel: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Where rows come from: `iter_task`, `proc`, `recording`.
    pub census: String,
    /// Rung of each probe family, and why not better.
    pub probes: Value,
    /// How it is told which sockets a process has: `iter_task_file`, or `proc: why`; not of a recording.
    pub descriptors: Option<String>,
}

/// The stacks of these threads as text, those at the same place once, without marks for a terminal.
pub fn stacks_text(host: &Host, tids: &[crate::census::Pid]) -> String {
    let mut out = String::new();
    for group in stacks::groups(host, tids.iter().copied()) {
        let names: Vec<String> = group.tids.iter().map(|tid| host.name(*tid)).collect();
        out.push_str(&format!("{}:\n{}", names.join(", "), stacks::to_text(group.stack, "  ")));
    }
    out
}

/// A chain as text, one line a step, without marks for a terminal.
pub fn chain_text(host: &Host, chain: &[crate::detect::Link]) -> String {
    chain.iter().map(|link| text::link(host, link)).collect::<Vec<_>>().join("\n")
}

/// The threads of one process that a report shows.
#[derive(Debug)]
pub struct ProcessView<'a> {
    /// The process.
    pub id: crate::census::ProcessId,
    /// Its threads, sorted.
    pub threads: Vec<&'a crate::census::ThreadRow>,
    /// What its debts amount to, where they are known.
    pub verdict: Option<crate::model::debts::Verdict>,
}

/// Collects the processes to show.
pub fn processes(judge: &Judge, pids: impl IntoIterator<Item = u32>) -> Vec<ProcessView<'_>> {
    let wanted: std::collections::BTreeSet<u32> = pids.into_iter().collect();
    let mut views: std::collections::BTreeMap<u32, ProcessView<'_>> = std::collections::BTreeMap::new();
    for row in judge.host.rows().iter().filter(|row| wanted.contains(&row.process.pid)) {
        let view = views.entry(row.process.pid).or_insert_with(|| ProcessView {
            id: row.process,
            threads: Vec::new(),
            verdict: judge.verdict(row.process),
        });
        view.threads.push(row);
    }
    views.into_values().collect()
}
