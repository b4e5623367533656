//! The incidents of Go services as programs (`victims/incidents.go`), and what a finding about each must name.

use crate::golang::{Build, Toolchain};
use crate::guard::Guard;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The start of a program, of which nothing is said: ten thresholds of one second, and some time for clocks.
pub const STARTED: Duration = Duration::from_millis(10_500);

/// An incident.
#[derive(Clone, Copy, Debug)]
pub struct Incident {
    /// Argument of the program.
    pub mode: &'static str,
    /// Kind of the finding.
    pub kind: &'static str,
    /// Functions one of which is the guilty line's.
    pub places: &'static [&'static str],
    /// Function with the `go` statement.
    pub creator: &'static str,
}

/// All four.
pub const ALL: [Incident; 4] = [
    Incident { mode: "poll", kind: "goroutine_blocked", places: &["main.(*Engine).Call"], creator: "main.poll" },
    Incident { mode: "unread", kind: "goroutine_leak", places: &["main.RunAsync.func1"], creator: "main.RunAsync" },
    Incident {
        mode: "cache",
        kind: "gc_stall",
        places: &["main.answer", "main.(*lfu).add", "main.requests.func1"],
        creator: "main.requests",
    },
    Incident { mode: "health", kind: "goroutine_leak", places: &["main.checkHealth"], creator: "main.health" },
];

impl Incident {
    /// The incident of this mode.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn of(mode: &str) -> &'static Self {
        ALL.iter().find(|incident| incident.mode == mode).unwrap_or_else(|| panic!("no incident {mode}"))
    }

    /// The finding of this process that tells the incident, with the guilty line and its creator.
    pub fn expect<'a>(&self, report: &'a Value, pid: i32) -> Result<&'a Value> {
        let finding = found(report, pid, self.kind)?;
        self.expect_place(finding)?;
        Ok(finding)
    }

    /// Whether a finding names the guilty line and its creator, in fields and in words.
    pub fn expect_place(&self, finding: &Value) -> Result<()> {
        let evidence = &finding["evidence"];
        let place = evidence["place"]["function"].as_str().context("a place")?;
        ensure!(self.places.contains(&place), "{finding:#}");
        ensure!(evidence["created_by"]["function"] == self.creator, "{finding:#}");
        for at in ["place", "created_by"] {
            let file = evidence[at]["file"].as_str().context("a file")?;
            ensure!(file.ends_with("incidents.go") && evidence[at]["line"].as_u64() > Some(0), "{finding:#}");
        }
        let title = finding["title"].as_str().context("title")?;
        let explanation = finding["explanation"].as_str().context("explanation")?;
        ensure!(title.contains(place) || explanation.contains(place), "{finding:#}");
        ensure!(explanation.contains(self.creator), "{finding:#}");
        Ok(())
    }
}

/// The finding of this kind about this process.
pub fn found<'a>(report: &'a Value, pid: i32, kind: &str) -> Result<&'a Value> {
    let findings = report["findings"].as_array().context("findings")?;
    let found = findings.iter().find(|finding| finding["kind"] == kind && finding["pid"] == pid);
    found.with_context(|| format!("no {kind} of {pid}: {findings:#?}; account: {:#}", report["account"]))
}

/// A program of these victims in one of its modes, and when it was ready.
pub fn start(go: &Toolchain, source: &str, arguments: &[&str]) -> Result<(Guard, Instant)> {
    let mut command = Command::new(go.build(source, Build::Plain)?);
    command.args(arguments);
    let mut guard = Guard::start(command, Stdio::null())?;
    let line = guard.line(Duration::from_secs(60))?;
    ensure!(line.as_deref() == Some("ready"), "{arguments:?} said {line:?}");
    Ok((guard, Instant::now()))
}
