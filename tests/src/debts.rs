//! Servers with clients, and what observer says of their debts.

use crate::compile::sources;
use crate::guard::Guard;
use crate::observer::{Observer, Output};
use crate::report::Report;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

/// `--threshold` of the tests about debts.
pub const THRESHOLD: Duration = Duration::from_secs(2);

/// How long a start may take on a busy machine.
const START: Duration = Duration::from_secs(30);

/// A server that says at which port of loopback it listens.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub guard: Guard,
    /// Where it listens; port 0 where that is no port.
    pub address: SocketAddr,
}

impl Server {
    /// Starts a program whose first line is its port.
    pub fn start(command: Command) -> Result<Self> {
        let what = format!("{command:?}");
        let mut guard = Guard::start(command, Stdio::inherit())?;
        let line = guard.line(START)?.with_context(|| format!("{what} ended"))?;
        let port = if line == "ready" { 0 } else { line.parse().with_context(|| format!("{what} said {line}"))? };
        Ok(Self { guard, address: SocketAddr::from(([127, 0, 0, 1], port)) })
    }

    /// Starts `victims/debtors.py`.
    pub fn python(arguments: &[&str]) -> Result<Self> {
        Self::start(debtor(arguments))
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.guard.pid()
    }

    /// Makes it stop doing its duty.
    pub fn stop(&mut self) -> Result<()> {
        self.guard.tell("stop")?;
        let line = self.guard.line(START)?;
        ensure!(line.as_deref() == Some("stopped"), "it said {line:?}");
        Ok(())
    }
}

/// `victims/debtors.py` in one of its modes.
pub fn debtor(arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.arg(sources().join("debtors.py")).args(arguments);
    command
}

/// `observer attach PIDS… --threshold 2s EXTRA…`
pub fn attach(pids: &[i32], extra: &[&str]) -> Result<Output> {
    Observer::new(&["attach"])?
        .args(&pids.iter().map(i32::to_string).collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>())
        .args(&["--threshold", "2s"])
        .args(extra)
        .run()
}

/// One look: the report.
pub fn look(pids: &[i32]) -> Result<Report> {
    attach(pids, &["--once", "--output", "json"])?.report()
}

/// The finding of this kind about this process.
pub fn found<'a>(report: &'a Report, kind: &str, pid: i32) -> Result<&'a Value> {
    let of = |finding: &&Value| finding["kind"] == kind && finding["pid"] == pid;
    let findings = report.json["findings"].as_array().context("findings")?;
    findings.iter().find(of).with_context(|| {
        format!(
            "no {kind} about {pid}: {findings:#?}; debts: {:#}",
            report.process(pid).map_or(&Value::Null, |p| &p["debts"])
        )
    })
}

/// A number of a finding's evidence, by its path (`/unanswered/count`).
pub fn number(finding: &Value, path: &str) -> Result<u64> {
    let value = finding["evidence"].pointer(path);
    value.and_then(Value::as_u64).with_context(|| format!("no {path}: {finding:#}"))
}

/// Kinds of the findings about a process.
pub fn kinds(report: &Report, pid: i32) -> Vec<&str> {
    let findings = report.json["findings"].as_array().into_iter().flatten();
    findings.filter(|finding| finding["pid"] == pid).filter_map(|finding| finding["kind"].as_str()).collect()
}
