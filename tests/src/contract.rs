//! The keys every report and finding must have: `CONTRACT.md`, as a table.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

const REPORT: &[&str] = &["schema", "taken_at", "host", "capability", "processes", "findings", "account"];
const HOST: &[&str] = &["name", "kernel", "boot_id"];
const PROBES: &[&str] = &["poll", "futex", "connect"];
const PROCESS: &[&str] = &[
    "pid",
    "start_time",
    "comm",
    "exe",
    "cmdline",
    "cgroup",
    "container",
    "pod",
    "runtime",
    "threads",
    "goroutines",
    "tasks",
    "debts",
];
const DEBTS: &[&str] = &[
    "unanswered",
    "oldest_unanswered_ns",
    "unread_bytes",
    "backlog",
    "awaiting_reply",
    "verdict",
    "why",
    "services",
    "pools",
    "awaiting",
];
const VERDICTS: &[&str] = &["idle", "busy", "waiting", "hung"];
const THREAD: &[&str] = &["tid", "comm", "state", "off_cpu_ns", "wait", "stack", "stack_end", "kernel_stack"];
const FRAME: &[&str] = &["function", "file", "line", "module", "offset", "inlined", "address", "build_id", "found_by"];
const FOUND_BY: &[&str] = &["registers", "unwinding", "frame_pointer", "scan"];
const WAIT: &[&str] =
    &["syscall", "args", "class", "timeout", "resource", "holder", "reading", "far_end", "members", "woken_by"];
const MEMBER: &[&str] = &["fd", "kind", "detail", "local", "remote", "events", "far_end"];
const EVENTS: &[&str] =
    &["in", "pri", "out", "err", "hup", "nval", "rdnorm", "rdband", "wrnorm", "wrband", "msg", "rdhup"];
const RESTS: &[&str] = &["lock", "idle", "io", "child", "sleep", "gc", "join", "work", "condition"];
const TIMEOUT: &[&str] = &["kind", "requested_ns", "remaining_ns", "raw"];
const ACCOUNT: &[&str] =
    &["threads_seen", "events_seen", "events_dropped", "unwind_failed", "self_cpu_ns", "self_rss_bytes", "census_ns"];
const FINDING: &[&str] = &[
    "schema",
    "id",
    "kind",
    "severity",
    "confidence",
    "state",
    "since",
    "first_seen",
    "last_seen",
    "pid",
    "comm",
    "container",
    "pod",
    "threads",
    "title",
    "explanation",
    "remedy",
    "chain",
    "evidence",
    "call_site",
    "stacks",
];
const EDGE: &[&str] = &["from", "waits_for", "held_by", "confidence", "how", "woken_by"];

const CLASSES: &[&str] = &[
    "lock",
    "condition",
    "event",
    "read",
    "write",
    "connect",
    "accept",
    "child",
    "file_lock",
    "sleep",
    "io",
    "stopped",
    "other",
];
const TIMEOUT_KINDS: &[&str] = &["none", "zero", "finite", "infinite", "negative", "absurd", "unknown"];
const CONFIDENCES: &[&str] = &["certain", "likely", "possible"];
const KINDS: &[&str] = &[
    "deadlock",
    "lock_wait",
    "abandoned_lock",
    "lost_wakeup",
    "bad_timeout",
    "stuck_connect",
    "awaiting_reply",
    "unanswered_requests",
    "not_accepting",
    "not_reading",
    "pool_exhausted",
    "goroutine_leak",
    "goroutine_blocked",
    "gc_stall",
    "uninterruptible",
    "stopped",
    "starved",
    "unreadable",
];

fn keys(what: &str, value: &Value, names: &[&str]) -> Result<()> {
    let object = value.as_object().with_context(|| format!("{what} is no object: {value}"))?;
    for name in names {
        ensure!(object.contains_key(*name), "{what} has no {name}: {value}");
    }
    Ok(())
}

fn one_of(what: &str, value: &Value, names: &[&str]) -> Result<()> {
    match value.as_str() {
        Some(s) if names.contains(&s) => Ok(()),
        _ => bail!("{what} is {value}, not one of {names:?}"),
    }
}

fn list<'a>(what: &str, value: &'a Value) -> Result<&'a Vec<Value>> {
    value.as_array().with_context(|| format!("{what} is no list: {value}"))
}

/// A point in time of the contract, as nanoseconds since 1970.
pub fn time_ns(what: &str, value: &Value) -> Result<i128> {
    let text = value.as_str().with_context(|| format!("{what} is no string: {value}"))?;
    let time: jiff::Timestamp = text.parse().with_context(|| format!("{what} is not RFC 3339: {text}"))?;
    Ok(time.as_nanosecond())
}

/// Checks a whole report.
pub fn check_report(report: &Value) -> Result<()> {
    keys("report", report, REPORT)?;
    one_of("schema", &report["schema"], &["observer.report/v1"])?;
    time_ns("taken_at", &report["taken_at"])?;
    keys("host", &report["host"], HOST)?;
    keys("capability", &report["capability"], &["census", "probes"])?;
    keys("probes", &report["capability"]["probes"], PROBES)?;
    keys("account", &report["account"], ACCOUNT)?;
    for process in list("processes", &report["processes"])? {
        keys("process", process, PROCESS)?;
        keys("debts", &process["debts"], DEBTS)?;
        if !process["debts"]["verdict"].is_null() {
            one_of("verdict", &process["debts"]["verdict"], VERDICTS)?;
            ensure!(process["debts"]["unanswered"].is_u64(), "a verdict without numbers: {}", process["debts"]);
        }
        for thread in list("threads", &process["threads"])? {
            check_thread(thread)?;
        }
    }
    for finding in list("findings", &report["findings"])? {
        check_finding(finding)?;
    }
    Ok(())
}

fn check_stack(frames: &Value) -> Result<()> {
    for frame in list("stack", frames)? {
        keys("frame", frame, FRAME)?;
        one_of("found_by", &frame["found_by"], FOUND_BY)?;
        ensure!(frame["inlined"].is_boolean(), "inlined: {frame}");
        ensure!(frame["offset"].as_str().is_some_and(|text| text.starts_with("0x")), "offset: {frame}");
    }
    Ok(())
}

fn check_thread(thread: &Value) -> Result<()> {
    keys("thread", thread, THREAD)?;
    check_stack(&thread["stack"])?;
    let has_frames = !list("stack", &thread["stack"])?.is_empty();
    ensure!(thread["stack_end"].is_string() || !has_frames, "a stack says where it ends: {thread}");
    let wait = &thread["wait"];
    if wait.is_null() {
        return Ok(());
    }
    keys("wait", wait, WAIT)?;
    one_of("class", &wait["class"], CLASSES)?;
    if !wait["timeout"].is_null() {
        keys("timeout", &wait["timeout"], TIMEOUT)?;
        one_of("timeout kind", &wait["timeout"]["kind"], TIMEOUT_KINDS)?;
    }
    if !wait["resource"].is_null() {
        keys("resource", &wait["resource"], &["kind"])?;
    }
    if !wait["reading"].is_null() {
        keys("reading", &wait["reading"], &["rest", "runtime", "by"])?;
        one_of("rest", &wait["reading"]["rest"], RESTS)?;
    }
    if !wait["holder"].is_null() {
        keys("holder", &wait["holder"], &["pid", "tid", "confidence", "how"])?;
    }
    check_far_end(&wait["far_end"])?;
    for member in list("members", &wait["members"])? {
        keys("member", member, MEMBER)?;
        check_far_end(&member["far_end"])?;
        for event in list("events", &member["events"])? {
            one_of("event", event, EVENTS)?;
        }
    }
    Ok(())
}

fn check_far_end(end: &Value) -> Result<()> {
    if end.is_null() {
        return Ok(());
    }
    keys("far_end", end, &["object", "holders", "unsearched"])?;
    for holder in list("holders", &end["holders"])? {
        keys("holder of the other end", holder, &["pid", "fd"])?;
    }
    Ok(())
}

/// Checks one finding.
pub fn check_finding(finding: &Value) -> Result<()> {
    keys("finding", finding, FINDING)?;
    one_of("schema", &finding["schema"], &["observer.finding/v1"])?;
    one_of("kind", &finding["kind"], KINDS)?;
    one_of("severity", &finding["severity"], &["critical", "warning", "info"])?;
    one_of("confidence", &finding["confidence"], CONFIDENCES)?;
    one_of("state", &finding["state"], &["open", "resolved"])?;
    let since = time_ns("since", &finding["since"])?;
    let first = time_ns("first_seen", &finding["first_seen"])?;
    let last = time_ns("last_seen", &finding["last_seen"])?;
    // A tenth of a second: the run-queue clock and the wall clock are compared once per census.
    ensure!(since <= first + 100_000_000, "began after it was seen: {finding}");
    ensure!(first <= last, "first seen after last seen: {finding}");
    for name in ["id", "title", "explanation", "remedy"] {
        let text = finding[name].as_str().unwrap_or_default();
        ensure!(!text.trim().is_empty(), "{name} is empty: {finding}");
    }
    let title = finding["title"].as_str().unwrap_or_default();
    ensure!(!title.contains('\n'), "a title is one line: {title}");
    for edge in list("chain", &finding["chain"])? {
        keys("edge", edge, EDGE)?;
        keys("from", &edge["from"], &["pid", "tid"])?;
        one_of("edge confidence", &edge["confidence"], CONFIDENCES)?;
    }
    list("threads", &finding["threads"])?;
    if !finding["call_site"].is_null() {
        keys("call_site", &finding["call_site"], &["tid", "frames", "end"])?;
        check_stack(&finding["call_site"]["frames"])?;
    }
    for group in list("stacks", &finding["stacks"])? {
        keys("stacks", group, &["threads", "frames", "end"])?;
        check_stack(&group["frames"])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn finding() -> Value {
        json!({ "schema": "observer.finding/v1", "id": "x", "kind": "deadlock", "severity": "critical",
            "confidence": "certain", "state": "open", "since": "2026-01-01T00:00:00Z",
            "first_seen": "2026-01-01T00:00:01Z", "last_seen": "2026-01-01T00:00:01Z", "pid": 1, "comm": "a",
            "container": null, "pod": null, "threads": [1], "title": "t", "explanation": "e", "remedy": "r",
            "chain": [], "evidence": {}, "call_site": null, "stacks": [] })
    }

    #[test]
    fn a_whole_finding_passes() -> Result<()> {
        check_finding(&finding())
    }

    #[test]
    fn each_missing_key_is_noticed() {
        for key in FINDING {
            let mut broken = finding();
            broken.as_object_mut().map(|o| o.remove(*key));
            assert!(check_finding(&broken).is_err(), "{key} was not missed");
        }
    }

    #[test]
    fn unknown_words_and_wrong_order_are_noticed() {
        for (key, wrong) in [
            ("kind", json!("hang")),
            ("severity", json!("fatal")),
            ("since", json!("2026-01-01T00:00:09Z")),
            ("last_seen", json!("2025-01-01T00:00:00Z")),
            ("since", json!("yesterday")),
            ("title", json!("two\nlines")),
            ("remedy", json!("")),
        ] {
            let mut broken = finding();
            broken[key] = wrong;
            assert!(check_finding(&broken).is_err(), "{key} = {} passed", broken[key]);
        }
    }
}
