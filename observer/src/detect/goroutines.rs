//! What the rules about goroutines share: which processes they judge, and how they name places.

use super::{Context, Finding, ThreadRef};
use crate::census::{Pid, ProcessId};
use crate::model::goroutines::{GoProcess, Place};
use crate::model::{Host, duration};
use crate::proc::{Frame, Stack};
use serde_json::{Value, json};

/// Frames of a stack in the evidence.
const FRAMES: usize = 32;

/// Growth is told from noise over so many thresholds, where nobody asked for the process.
pub(super) const THRESHOLDS: u64 = 12;
/// A process that is younger than so many thresholds starts up.
const START_UP: u64 = 10;

impl<'a> Context<'a> {
    /// Go processes that belong to what is looked at, and have been read.
    pub(super) fn go_processes(&self) -> impl Iterator<Item = (ProcessId, &'a GoProcess)> {
        let host = self.host;
        host.go_processes().filter(|(process, _)| {
            let row = host.row(process.pid).or_else(|| host.threads_of(process.pid).next());
            row.is_some_and(|row| row.process == *process && self.scope.contains(row, host))
        })
    }

    /// When the start of a process is over, `CLOCK_MONOTONIC` nanoseconds.
    pub(super) fn started_up(&self, process: ProcessId) -> u64 {
        let start = self.started(process);
        start.saturating_add(self.scope.threshold_ns.saturating_mul(START_UP))
    }

    /// When a process began, `CLOCK_MONOTONIC` nanoseconds.
    pub(super) fn started(&self, process: ProcessId) -> u64 {
        let asleep = self.host.clocks().map_or(0, |clocks| clocks.boot_ns.saturating_sub(clocks.mono_ns));
        process.start_ns.saturating_sub(asleep)
    }
}

/// The frames that matter, innermost first: `main.work (work.go:12)`. What the runtime does to park is left out.
pub(super) fn frames(stack: &Stack) -> Vec<String> {
    let is_runtime = |frame: &Frame| frame.function.as_deref().is_some_and(|name| name.starts_with("runtime."));
    let named = stack.frames.iter().skip_while(|frame| is_runtime(frame)).filter(|frame| !is_goexit(frame));
    let mut lines: Vec<String> = named.take(FRAMES).map(line).collect();
    if lines.is_empty() {
        lines = stack.frames.iter().filter(|frame| !is_goexit(frame)).take(FRAMES).map(line).collect();
    }
    lines
}

fn is_goexit(frame: &Frame) -> bool {
    frame.function.as_deref() == Some("runtime.goexit")
}

fn line(frame: &Frame) -> String {
    let function = frame.function.clone().unwrap_or_else(|| format!("{:#x}", frame.address));
    let (file, line) = (frame.file.clone().unwrap_or_default(), frame.line.unwrap_or(0));
    Place { function, file, line }.describe()
}

/// A place in the evidence.
pub(super) fn place(place: &Place) -> Value {
    json!({ "function": place.function, "file": place.file, "line": place.line })
}

/// Who started them: `started by main.serve (main.go:40)`.
pub(super) fn creator(created_by: Option<&Place>) -> String {
    match created_by {
        Some(place) => format!("started by {}", place.describe()),
        None => "started by the runtime".to_owned(),
    }
}

/// `1 goroutine`, `12 goroutines`.
pub(super) fn goroutines(count: u64) -> String {
    match count {
        1 => "1 goroutine".to_owned(),
        n => format!("{n} goroutines"),
    }
}

/// Bytes as a person says them.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..=9999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// A number per minute as a person says it.
pub(super) fn rate(per_minute: f64) -> String {
    if per_minute >= 10.0 { format!("{per_minute:.0}") } else { format!("{per_minute:.1}") }
}

/// A goroutine for outsiders.
pub(super) fn goroutine_ref(host: &Host, process: ProcessId, goid: u64, tid: Option<Pid>) -> ThreadRef {
    let pid = host.row(process.pid).map_or(process.pid, |row| row.process.pid);
    ThreadRef { pid, tid: tid.unwrap_or(0), goid: Some(goid) }
}

impl Finding {
    /// Of goroutines observer knows no earlier time than that of its first look.
    pub(super) fn since_first_look(mut self, ns: u64, host: &Host) -> Self {
        self = self.since_mono(ns, host).fact("since_exact", false);
        self
    }

    /// Says with what the numbers of goroutines were read.
    pub(super) fn read_by(self, go: &GoProcess) -> Self {
        self.fact("go_version", go.latest.version.as_str())
            .fact("goroutines_total", go.latest.total())
            .fact("watched_ns", go.watched_ns())
            .fact("censuses", go.censuses)
    }
}

/// How long ago, in words.
pub(super) fn ago(go: &GoProcess, ns: u64) -> String {
    duration(go.latest.taken_ns.saturating_sub(ns))
}
