//! `observer.timeouts/v1`, and the same on one screen.

use super::json::{finding, resource, timeout_kind, timestamp};
use super::text::{clean, footer};
use super::{Account, Setting, stacks};
use crate::census::{ProcessId, TimeoutKind};
use crate::detect::{Life, Moment};
use crate::model::audit::{Audit, LimitFrom, ORDER, Risk, Site};
use crate::model::decode::{Call, TimeoutAt};
use crate::model::{Class, Host, duration};
use crate::proc::{Frame, Stack, base_name};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::time::Duration;

/// Sites that text shows; the rest is counted.
const SHOWN: usize = 12;
/// Frames of each.
const FRAMES: usize = 3;

/// The outcome of an audit.
#[derive(Debug)]
pub struct Audited<'a> {
    /// Whose.
    pub process: ProcessId,
    /// The riskiest first.
    pub sites: &'a [Site],
    /// What the rules found meanwhile.
    pub findings: &'a [&'a Life],
    /// What was not kept.
    pub audit: &'a Audit,
    /// How long it looked.
    pub took: Duration,
}

/// Calls by the public names of their kinds, without zeros; malformed ones are `invalid` here.
fn calls(site: &Site) -> Map<String, Value> {
    let mut named = Map::new();
    for (kind, calls) in ORDER.iter().zip(site.calls).filter(|(_, calls)| *calls > 0) {
        let name = if *kind == TimeoutKind::Invalid { "invalid" } else { timeout_kind(*kind) };
        named.insert(name.to_owned(), calls.into());
    }
    named
}

fn site(host: &Host, site: &Site) -> Value {
    let waiting: Vec<Value> = site
        .waiting
        .iter()
        .map(|(tid, since)| json!({ "tid": tid, "waited_ns": host.now_ns().saturating_sub(*since) }))
        .collect();
    let words = site.stack.as_deref().map(callers).unwrap_or_default();
    json!({
        "syscall": site.syscall,
        "class": site.class.name(),
        "risk": site.risk.name(),
        "severity": if site.risk.is_warning() { "warning" } else { "info" },
        "calls": calls(site),
        "counted": if site.probed > 0 { "every_call" } else { "sleeps_seen" },
        "limit_from": site.limit.name(),
        "timeout_min_ns": site.timeouts_ns.map(|range| range.0),
        "timeout_max_ns": site.timeouts_ns.map(|range| range.1),
        "timeout_raw": site.raw,
        "waits_ended": site.ended,
        "typical_wait_ns": site.typical_ns(),
        "longest_wait_ns": site.longest_ns,
        "waiting": waiting,
        "tid": site.tid,
        "resource": site.resource.as_ref().map(resource),
        "members": site.members,
        "remote_peer": site.remote,
        "caller": words.first(),
        "stack": site.stack.as_deref().map_or_else(Vec::new, stacks::frames),
        "stack_end": site.stack.as_deref().map(stacks::end),
    })
}

/// The whole document.
pub fn to_json(setting: &Setting, host: &Host, audited: &Audited<'_>, account: &Account) -> Value {
    let process = audited.process;
    let taken = host.clocks().map(|clocks| timestamp(Moment(clocks.real_ns)));
    let start = host.clocks().map(|clocks| timestamp(Moment::from_boot(process.start_ns, clocks)));
    let facts = host.process(process);
    json!({
        "schema": "observer.timeouts/v1",
        "taken_at": taken,
        "host": { "name": setting.host_name, "kernel": setting.kernel, "boot_id": setting.boot_id },
        "capability": { "census": setting.census, "probes": setting.probes },
        "pid": process.pid,
        "start_time": start,
        "comm": host.row(process.pid).map(|row| row.comm.as_str()),
        "exe": facts.and_then(|facts| facts.exe.as_deref()),
        "audited_ns": u64::try_from(audited.took.as_nanos()).unwrap_or(u64::MAX),
        "sites": audited.sites.iter().map(|one| site(host, one)).collect::<Vec<_>>(),
        "findings": audited.findings.iter().map(|life| finding(host, life)).collect::<Vec<_>>(),
        "lost": { "sleeps": audited.audit.dropped, "sleeps_without_stack": audited.audit.without_stack },
        "account": account.to_json(),
    })
}

/// Code that only passes a wait on: system libraries and runtimes, by module or by function.
fn passes_on(frame: &Frame) -> bool {
    let module = frame.module.as_deref().map_or("", base_name);
    let libraries =
        ["libc.so", "libc-", "libpthread", "ld-linux", "ld-musl", "[vdso]", "libjvm.so", "libnio.so", "libnet.so"];
    let functions = ["runtime.", "syscall.", "internal/", "std::", "core::", "__GI_", "tokio::", "mio::"];
    let name = frame.function.as_deref().unwrap_or("");
    let name = name.strip_prefix('<').unwrap_or(name);
    libraries.iter().any(|library| module.starts_with(library))
        || functions.iter().any(|prefix| name.starts_with(prefix))
}

/// The first frames that tell where a wait belongs, in words.
fn callers(stack: &Stack) -> Vec<String> {
    let named = |skip: bool| {
        let frames = stack.frames.iter().filter(move |frame| !skip || !passes_on(frame));
        frames.take(FRAMES).map(stacks::line).collect::<Vec<String>>()
    };
    let found = named(true);
    if found.is_empty() { named(false) } else { found }
}

fn risk_words(risk: Risk) -> &'static str {
    match risk {
        Risk::RemoteUnlimited => "waits for a remote peer without a limit",
        Risk::Wrong => "wrong timeout",
        Risk::Absurd => "absurd timeout",
        Risk::LocalUnlimited => "waits for another process without a limit",
        Risk::LockUnlimited => "waits for a lock without a deadline",
        Risk::Unknown => "whether there is a limit is unknown",
        Risk::RestUnlimited => "rests without a limit",
        Risk::Limited => "limited",
        Risk::NeverWaits => "never waits",
    }
}

/// `1,200 finite (10 ms to 5.0 s), 3 infinite`.
fn calls_words(site: &Site) -> String {
    let mut words = Vec::new();
    for (kind, calls) in ORDER.iter().zip(site.calls).filter(|(_, calls)| *calls > 0) {
        words.push(match (kind, site.timeouts_ns) {
            (TimeoutKind::Finite, Some((low, high))) if low == high => format!("{calls} finite ({})", duration(low)),
            (TimeoutKind::Finite, Some((low, high))) => {
                format!("{calls} finite ({} to {})", duration(low), duration(high))
            }
            (TimeoutKind::Infinite, _) if site.class == Class::Connect => format!("{calls} without SO_SNDTIMEO"),
            (TimeoutKind::Infinite, _) if site.limit == LimitFrom::Socket => {
                let option = if site.class == Class::Write { "SO_SNDTIMEO" } else { "SO_RCVTIMEO" };
                format!("{calls} without {option}")
            }
            (TimeoutKind::Zero, _) if site.limit == LimitFrom::Socket => format!("{calls} that do not wait"),
            // Nothing asks a futex for no time: the deadline was over when the wait began.
            (TimeoutKind::Zero, _) if Call::named(site.syscall).is_futex() => {
                format!("{calls} with a deadline that had passed")
            }
            (TimeoutKind::Negative | TimeoutKind::Absurd, _) => {
                format!("{calls} {} ({})", timeout_kind(*kind), raw_words(site))
            }
            (TimeoutKind::Invalid, _) => format!("{calls} invalid"),
            (TimeoutKind::None | TimeoutKind::Unknown, _) => format!("{calls} with unknown limit"),
            (kind, _) => format!("{calls} {}", timeout_kind(*kind)),
        });
    }
    let counted = if site.probed > 0 { "" } else { " (seen asleep, short ones are missed)" };
    format!("{}{counted}", words.join(", "))
}

/// The timeout as passed, with its unit: the probes tell milliseconds, or the seconds of a timespec.
fn raw_words(site: &Site) -> String {
    let raw = site.raw.as_deref().unwrap_or("?");
    match (raw.parse::<i64>(), Call::named(site.syscall).timeout) {
        (Ok(_), TimeoutAt::Millis(_)) => format!("{raw} ms"),
        (Ok(_), _) => format!("{raw} s"),
        (Err(_), _) => raw.to_owned(),
    }
}

fn waits_words(host: &Host, site: &Site) -> String {
    let mut words = Vec::new();
    if let Some(typical) = site.typical_ns() {
        words.push(format!("typically {}", duration(typical)));
    }
    words.push(format!("longest {}", duration(site.longest_ns)));
    let longest = site.waiting.values().map(|since| host.now_ns().saturating_sub(*since)).max();
    if let Some(longest) = longest {
        let threads = site.waiting.len();
        let who = if threads == 1 { "1 thread waits".to_owned() } else { format!("{threads} threads wait") };
        words.push(format!("{who} now, for {}", duration(longest)));
    }
    words.join(", ")
}

/// One screen.
pub fn to_text(setting: &Setting, host: &Host, audited: &Audited<'_>, account: &Account) -> String {
    let pid = audited.process.pid;
    let comm = host.row(pid).map(|row| clean(&row.comm)).unwrap_or_default();
    let sites = audited.sites;
    let warnings = sites.iter().filter(|site| site.risk.is_warning()).count();
    let looked = duration(u64::try_from(audited.took.as_nanos()).unwrap_or(u64::MAX));
    let mut out = format!(
        "TIMEOUTS of {comm} pid {pid}, looked at for {looked}: {} call site{}, {warnings} to look at\n",
        sites.len(),
        if sites.len() == 1 { "" } else { "s" },
    );
    for site in sites.iter().take(SHOWN) {
        let mark = if site.risk.is_warning() { "WARNING" } else { "ok" };
        let mark = if site.risk == Risk::Unknown { "?" } else { mark };
        let thing =
            site.resource.as_ref().map(|resource| format!(" at {}", clean(&resource.describe()))).unwrap_or_default();
        let peer = if site.remote == Some(true) { " (remote)" } else { "" };
        let _ = writeln!(out, "{mark:7} {}(){thing}{peer}: {}", site.syscall, risk_words(site.risk));
        let _ = writeln!(out, "        {}; {}", calls_words(site), waits_words(host, site));
        match site.stack.as_deref() {
            Some(stack) => {
                let _ = writeln!(out, "        in {}", clean(&callers(stack).join(" ← ")));
            }
            None => {
                let _ = writeln!(out, "        in unknown code (its stack could not be read)");
            }
        }
    }
    if let Some(more @ 1..) = sites.len().checked_sub(SHOWN) {
        let _ = writeln!(out, "+ {more} more call sites (--output json lists all)");
    }
    if sites.is_empty() {
        out.push_str("nothing waited\n");
    }
    for life in audited.findings {
        let _ = writeln!(out, "FOUND   {}: {}", life.finding.kind.name(), clean(&life.finding.title));
    }
    if !audited.findings.is_empty() {
        let _ = writeln!(out, "        (`observer attach {pid}` tells more)");
    }
    out.push_str(&footer(setting, account));
    out
}
