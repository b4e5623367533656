//! What observer said, and the assertions scenarios share.

use crate::contract;
use crate::stack::Stack;
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
        self.json["findings"].as_array().into_iter().flatten().map(Finding)
    }

    /// Findings that concern a process of this victim.
    pub fn about<'a>(&'a self, truth: &Truth) -> Vec<Finding<'a>> {
        let pids: BTreeSet<i64> = truth.pids().into_iter().map(i64::from).collect();
        self.findings().filter(|f| f.pids().iter().any(|p| pids.contains(p))).collect()
    }

    /// The only finding about this victim, which must be of this kind.
    pub fn only<'a>(&'a self, kind: &str, truth: &Truth) -> Result<Finding<'a>> {
        match self.about(truth).as_slice() {
            [one] if one.kind() == kind => Ok(*one),
            other => bail!("expected one {kind} about {}, found {other:#?}; truth: {:#}", truth.pid, truth.all),
        }
    }

    /// Fails unless there is no finding at all.
    pub fn expect_silence(&self, what: &str) -> Result<()> {
        let all: Vec<Finding<'_>> = self.findings().collect();
        ensure!(all.is_empty(), "{what} is healthy, yet: {all:#?}");
        ensure!(self.code == Some(0), "{what} is healthy, yet exit code {:?}", self.code);
        Ok(())
    }

    /// A process of the report.
    pub fn process(&self, pid: i32) -> Result<&Value> {
        let all = self.json["processes"].as_array().context("processes")?;
        all.iter().find(|p| p["pid"] == pid).with_context(|| format!("no process {pid} in the report"))
    }

    /// A thread of the report.
    pub fn thread(&self, pid: i32, tid: i32) -> Result<&Value> {
        let all = self.process(pid)?["threads"].as_array().context("threads")?;
        all.iter().find(|t| t["tid"] == tid).with_context(|| format!("no thread {tid} of {pid} in the report"))
    }
}

/// User stacks.
impl Report {
    /// The stack of a thread.
    pub fn stack(&self, pid: i32, tid: i32) -> Result<Stack> {
        Stack::read(self.thread(pid, tid)?)
    }

    /// All stacks of a process, with the threads' ids and names.
    pub fn stacks(&self, pid: i32) -> Result<Vec<(i64, &str, Stack)>> {
        let threads = self.process(pid)?["threads"].as_array().context("threads")?;
        let read = |thread| -> Result<(i64, &str, Stack)> {
            let thread: &Value = thread;
            let tid = thread["tid"].as_i64().context("tid")?;
            Ok((tid, thread["comm"].as_str().context("comm")?, Stack::read(thread)?))
        };
        threads.iter().map(read).collect()
    }

    /// The stack of the only thread of that name.
    pub fn stack_of(&self, pid: i32, comm: &str) -> Result<Stack> {
        let mut named = self.stacks(pid)?.into_iter().filter(|(_, name, _)| *name == comm);
        let (_, _, stack) = named.next().with_context(|| format!("no thread {comm} in {pid}"))?;
        ensure!(named.next().is_none(), "more than one thread {comm} in {pid}");
        Ok(stack)
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
        self.0["threads"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
    }

    /// Whether this thread is named, in `threads` or in the chain.
    pub fn names(&self, tid: i32) -> bool {
        let tid = i64::from(tid);
        let edges = self.0["chain"].as_array().into_iter().flatten();
        self.threads().contains(&tid)
            || edges.flat_map(|e| [&e["from"]["tid"], &e["held_by"]["tid"]]).any(|t| t.as_i64() == Some(tid))
    }

    /// Fails unless a field has this value.
    pub fn expect(&self, field: &str, value: &str) -> Result<Self> {
        ensure!(self.0[field] == value, "expected {field} {value}: {:#}", self.0);
        Ok(*self)
    }

    /// Fails unless these threads, and no others, are listed.
    pub fn expect_threads(&self, tids: impl IntoIterator<Item = i32>) -> Result<Self> {
        let tids: BTreeSet<i64> = tids.into_iter().map(i64::from).collect();
        ensure!(self.threads() == tids, "expected threads {tids:?}: {:#}", self.0);
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
        ensure!(edge["from"]["pid"] == thread.pid, "wrong process in {edge:#}: {thread:?}");
        if let Some(kind) = &thread.resource {
            ensure!(edge["waits_for"]["kind"] == kind.as_str(), "expected a {kind}: {edge:#}");
        }
        if let Some(object) = thread.waits_for {
            // The object, or the futex word within it that the thread sleeps on.
            let word = thread.syscall.as_ref().map(|(_, _, args)| args[0]);
            let said = address(&edge["waits_for"]["address"]);
            ensure!(said == Some(object) || said == word, "expected address {object:#x}: {edge:#}");
        }
        match thread.owner {
            Some(owner) if thread.owner_pid.is_some() => {
                ensure!(edge["held_by"]["tid"] == owner, "expected owner {owner}: {edge:#}");
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
            ensure!(edge["confidence"] == "certain", "the owner is known: {edge:#}");
        }
        let edges = self.0["chain"].as_array().map_or(0, Vec::len);
        ensure!(edges == truth.threads.len(), "one edge per thread: {:#}", self.0);
        Ok(*self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TRUTH: &str = r#"{"ready":true,"shape":"deadlock","pid":10,"threads":[
        {"name":"a","tid":11,"pid":10,"state":"S","since_ns":1767225600000000000,"inside_tid":11,"inside_pid":10,
         "resource":"mutex","waits_for":"0x2000","owner":12,"owner_pid":10},
        {"name":"b","tid":12,"pid":10,"state":"S","since_ns":1767225600100000000,"inside_tid":12,"inside_pid":10,
         "resource":"mutex","waits_for":"0x1000","owner":11,"owner_pid":10}]}"#;

    fn edge(from: i32, to: i32, address: &str) -> Value {
        json!({ "from": {"pid": 10, "tid": from}, "waits_for": {"kind": "mutex", "address": address},
            "held_by": {"pid": 10, "tid": to}, "confidence": "certain", "how": "glibc mutex owner",
            "woken_by": null })
    }

    fn report(finding: Value) -> Value {
        json!({ "schema": "observer.report/v1", "taken_at": "2026-01-01T00:00:02Z",
            "host": {"name": "h", "kernel": "k", "boot_id": "b"},
            "capability": {"census": "iter_task", "probes": {"poll": "none: x", "futex": "none: x", "connect": "none: x"}},
            "processes": [], "findings": [finding],
            "account": {"threads_seen": 2, "events_seen": 0, "events_dropped": {}, "unwind_failed": {},
                "self_cpu_ns": 1, "self_rss_bytes": 1, "census_ns": 1} })
    }

    fn deadlock() -> Value {
        json!({ "schema": "observer.finding/v1", "id": "x", "kind": "deadlock", "severity": "critical",
            "confidence": "certain", "state": "open", "since": "2026-01-01T00:00:00.1Z",
            "first_seen": "2026-01-01T00:00:01Z", "last_seen": "2026-01-01T00:00:01Z", "pid": 10, "comm": "deadlock",
            "container": null, "pod": null, "threads": [11, 12], "title": "t", "explanation": "e", "remedy": "r",
            "chain": [edge(11, 12, "0x2000"), edge(12, 11, "0x1000")], "evidence": {}, "stacks": [],
            "call_site": null })
    }

    fn check(finding: Value, code: i32) -> Result<()> {
        let truth = Truth::parse(TRUTH)?;
        let report = Report::new(report(finding), Some(code))?;
        report.only("deadlock", &truth)?.expect_cycle(&truth)?;
        Ok(())
    }

    #[test]
    fn the_truth_is_accepted() -> Result<()> {
        check(deadlock(), 1)
    }

    #[test]
    fn every_untruth_is_noticed() {
        for (pointer, wrong) in [
            ("/kind", json!("lock_wait")),
            ("/confidence", json!("likely")),
            ("/severity", json!("warning")),
            ("/state", json!("resolved")),
            ("/since", json!("2025-12-31T23:59:58Z")),
            ("/threads", json!([11])),
            ("/threads", json!([11, 12, 13])),
            ("/chain", json!([edge(11, 12, "0x2000")])),
            ("/chain/0/held_by/tid", json!(13)),
            ("/chain/0/held_by", json!(null)),
            ("/chain/0/from/pid", json!(9)),
            ("/chain/0/waits_for/address", json!("0x1000")),
            ("/chain/0/waits_for/kind", json!("rwlock")),
            ("/chain/1/confidence", json!("possible")),
        ] {
            let mut finding = deadlock();
            let place = finding.pointer_mut(pointer);
            assert!(place.is_some(), "{pointer}");
            if let Some(place) = place {
                *place = wrong.clone();
            }
            assert!(check(finding, 1).is_err(), "{pointer} = {wrong} passed");
        }
        assert!(check(deadlock(), 0).is_err(), "an exit code that does not fit passed");
    }

    #[test]
    fn silence_is_no_finding_and_exit_code_0() -> Result<()> {
        let mut quiet = report(deadlock());
        quiet["findings"] = json!([]);
        Report::new(quiet, Some(0))?.expect_silence("it")?;
        let mut info = deadlock();
        info["severity"] = json!("info");
        let report = Report::new(report(info), Some(0))?;
        ensure!(report.expect_silence("it").is_err(), "a finding of severity info is a finding");
        Ok(())
    }
}
