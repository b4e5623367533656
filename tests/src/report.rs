//! What observer said, and the assertions scenarios share.

use crate::contract;
use crate::victim::{Truth, TruthThread, address};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;

/// How far `since` may be from the truth: the victim notes the time just before the wait, the kernel when the
/// thread leaves the CPU, and the machine is shared.
const SINCE_TOLERANCE_NS: i128 = 600_000_000;

/// A report that keeps the contract.
#[derive(Clone, Debug)]
pub struct Report {
    /// The document.
    pub json: Value,
    /// Exit code that came with it.
    pub code: Option<i32>,
}

impl Report {
    /// Checks the contract, exit code included.
    pub fn new(json: Value, code: Option<i32>) -> Result<Self> {
        contract::check_report(&json)?;
        let this = Self { json, code };
        let serious = this.findings().any(|f| f.0["severity"] != "info");
        ensure!(
            code == Some(i32::from(serious)),
            "exit code {code:?} does not fit the findings: {:#}",
            this.json["findings"]
        );
        Ok(this)
    }

    /// All findings.
    pub fn findings(&self) -> impl Iterator<Item = Finding<'_>> {
        self.json["findings"]
            .as_array()
            .into_iter()
            .flatten()
            .map(Finding)
    }

    /// Findings that concern a process of this victim.
    pub fn about<'a>(&'a self, truth: &Truth) -> Vec<Finding<'a>> {
        let pids: BTreeSet<i64> = truth.pids().into_iter().map(i64::from).collect();
        self.findings()
            .filter(|f| f.pids().iter().any(|p| pids.contains(p)))
            .collect()
    }

    /// The only finding about this victim, which must be of this kind.
    pub fn only<'a>(&'a self, kind: &str, truth: &Truth) -> Result<Finding<'a>> {
        match self.about(truth).as_slice() {
            [one] if one.kind() == kind => Ok(*one),
            other => bail!(
                "expected one {kind} about {}, found {other:#?}; truth: {:#}",
                truth.pid,
                truth.all
            ),
        }
    }

    /// Fails unless there is no finding at all.
    pub fn expect_silence(&self, what: &str) -> Result<()> {
        let all: Vec<Finding<'_>> = self.findings().collect();
        ensure!(all.is_empty(), "{what} is healthy, yet: {all:#?}");
        ensure!(
            self.code == Some(0),
            "{what} is healthy, yet exit code {:?}",
            self.code
        );
        Ok(())
    }

    /// A process of the report.
    pub fn process(&self, pid: i32) -> Result<&Value> {
        let all = self.json["processes"].as_array().context("processes")?;
        all.iter()
            .find(|p| p["pid"] == pid)
            .with_context(|| format!("no process {pid} in the report"))
    }

    /// A thread of the report.
    pub fn thread(&self, pid: i32, tid: i32) -> Result<&Value> {
        let all = self.process(pid)?["threads"]
            .as_array()
            .context("threads")?;
        all.iter()
            .find(|t| t["tid"] == tid)
            .with_context(|| format!("no thread {tid} of {pid} in the report"))
    }
}

/// One finding.
#[derive(Clone, Copy, Debug)]
pub struct Finding<'a>(pub &'a Value);

impl Finding<'_> {
    /// Its kind.
    pub fn kind(&self) -> &str {
        self.0["kind"].as_str().unwrap_or("?")
    }

    /// Its own process and those of its chain.
    fn pids(&self) -> BTreeSet<i64> {
        let edges = self.0["chain"].as_array().into_iter().flatten();
        edges
            .flat_map(|e| [&e["from"]["pid"], &e["held_by"]["pid"]])
            .chain([&self.0["pid"]])
            .filter_map(Value::as_i64)
            .collect()
    }

    /// Its threads.
    pub fn threads(&self) -> BTreeSet<i64> {
        self.0["threads"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_i64)
            .collect()
    }

    /// Whether this thread is named, in `threads` or in the chain.
    pub fn names(&self, tid: i32) -> bool {
        let tid = i64::from(tid);
        let edges = self.0["chain"].as_array().into_iter().flatten();
        self.threads().contains(&tid)
            || edges
                .flat_map(|e| [&e["from"]["tid"], &e["held_by"]["tid"]])
                .any(|t| t.as_i64() == Some(tid))
    }

    /// Fails unless a field has this value.
    pub fn expect(&self, field: &str, value: &str) -> Result<Self> {
        ensure!(
            self.0[field] == value,
            "expected {field} {value}: {:#}",
            self.0
        );
        Ok(*self)
    }

    /// Fails unless these threads, and no others, are listed.
    pub fn expect_threads(&self, tids: impl IntoIterator<Item = i32>) -> Result<Self> {
        let tids: BTreeSet<i64> = tids.into_iter().map(i64::from).collect();
        ensure!(
            self.threads() == tids,
            "expected threads {tids:?}: {:#}",
            self.0
        );
        Ok(*self)
    }

    /// Fails unless it began when the truth says (first wait, or the wait that closed the cycle).
    pub fn expect_since(&self, truth: &Truth) -> Result<Self> {
        let since = contract::time_ns("since", &self.0["since"])?;
        let (first, last) = truth.wait_began()?;
        ensure!(
            (first - SINCE_TOLERANCE_NS..=last + SINCE_TOLERANCE_NS).contains(&since),
            "since {since} is not within {SINCE_TOLERANCE_NS} ns of {first}..{last}: {:#}",
            self.0
        );
        Ok(*self)
    }

    /// Fails unless the chain has the edge this thread's truth promises, and returns it.
    pub fn expect_edge(&self, thread: &TruthThread) -> Result<&Value> {
        let edges = self.0["chain"].as_array().context("chain")?;
        let edge = edges
            .iter()
            .find(|e| e["from"]["tid"] == thread.tid)
            .with_context(|| format!("no edge from {thread:?}: {:#}", self.0))?;
        ensure!(
            edge["from"]["pid"] == thread.pid,
            "wrong process in {edge:#}: {thread:?}"
        );
        if let Some(kind) = &thread.resource {
            ensure!(
                edge["waits_for"]["kind"] == kind.as_str(),
                "expected a {kind}: {edge:#}"
            );
        }
        if let Some(object) = thread.waits_for {
            // The object, or the futex word within it that the thread sleeps on.
            let word = thread.syscall.as_ref().map(|(_, _, args)| args[0]);
            let said = address(&edge["waits_for"]["address"]);
            ensure!(
                said == Some(object) || said == word,
                "expected address {object:#x}: {edge:#}"
            );
        }
        match thread.owner {
            Some(owner) if thread.owner_pid.is_some() => {
                ensure!(
                    edge["held_by"]["tid"] == owner,
                    "expected owner {owner}: {edge:#}"
                );
            }
            Some(_) => {}
            None => ensure!(
                edge["held_by"].is_null() || edge["confidence"] != "certain",
                "nobody can be certain of this owner: {edge:#}"
            ),
        }
        Ok(edge)
    }

    /// A certain deadlock of exactly the truth's threads, every edge as it is.
    pub fn expect_cycle(&self, truth: &Truth) -> Result<Self> {
        self.expect("kind", "deadlock")?
            .expect("confidence", "certain")?
            .expect("severity", "critical")?
            .expect("state", "open")?
            .expect_threads(truth.threads.iter().map(|t| t.tid))?
            .expect_since(truth)?;
        for thread in &truth.threads {
            let edge = self.expect_edge(thread)?;
            ensure!(
                edge["confidence"] == "certain",
                "the owner is known: {edge:#}"
            );
        }
        let edges = self.0["chain"].as_array().map_or(0, Vec::len);
        ensure!(
            edges == truth.threads.len(),
            "one edge per thread: {:#}",
            self.0
        );
        Ok(*self)
    }
}
