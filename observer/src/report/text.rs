//! What a tired engineer reads: findings first, then the threads that matter, then one line for the rest.

use super::{Account, ProcessView, Setting, chains, debts, json, lately, stacks, wakes};
use crate::census::{Pid, ThreadRow, TimeoutKind};
use crate::detect::{CallSite, Change, Life, Link, Severity, ThreadRef};
use crate::host::clock::whole_ns;
use crate::model::decode::in_words;
use crate::model::frames::{Reading, Rest};
use crate::model::goroutines::{GoClass, GoProcess};
use crate::model::graph::{Graph, Hop, Nature};
use crate::model::{Class, Host, Owner, ResourceKind, Wait, duration};
use crate::proc::{EndHolder, FarEnd};
use anstyle::{AnsiColor, Style};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// A process with no more threads than this shows them all.
const SHOW_ALL: usize = 4;
/// Threads listed per process; the rest is counted.
const LISTED: usize = 40;
/// Links of a chain shown.
const LINKS: usize = 20;
/// Different stacks shown under a finding, or under a small process.
const STACKS: usize = 4;
/// Places of goroutines shown of a process.
const GO_SITES: usize = 5;
/// Frames of a goroutine's stack shown under a finding.
const GO_FRAMES: usize = 16;
/// Threads named above a stack that they share.
const NAMED: usize = 3;
/// Width of running text.
const WIDTH: usize = 100;

/// Whether and how to colour.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paint {
    /// Write escape sequences.
    pub colour: bool,
}

impl Paint {
    fn with(self, style: Style, text: &str) -> String {
        if self.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.with(Style::new().bold(), text)
    }

    fn dim(self, text: &str) -> String {
        self.with(Style::new().dimmed(), text)
    }

    fn severity(self, severity: Severity) -> String {
        let colour = match severity {
            Severity::Critical => AnsiColor::Red,
            Severity::Warning => AnsiColor::Yellow,
            Severity::Info => AnsiColor::Blue,
        };
        self.with(Style::new().bold().fg_color(Some(colour.into())), &severity.name().to_uppercase())
    }
}

/// Breaks running text at spaces, each line behind an indent.
pub(super) fn wrap(text: &str, indent: &str) -> String {
    let mut out = String::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH - indent.len() {
            let _ = writeln!(out, "{indent}{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(out, "{indent}{line}");
    out
}

/// Names of targets are their own: control characters must not reach the terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// One finding, whole.
pub fn finding(host: &Host, life: &Life, paint: Paint) -> String {
    let finding = &life.finding;
    let mut out = String::new();
    let age = host.clocks().map(|c| duration(c.real_ns.saturating_sub(finding.since.0))).unwrap_or_default();
    let exact = finding.evidence.get("since_exact").and_then(|v| v.as_bool()) != Some(false);
    let (or_earlier, at_least) = if exact { ("", "") } else { (" or earlier", "≥") };
    let kind = paint.bold(finding.kind.name());
    let sure = json::confidence(finding.confidence);
    let _ = writeln!(
        out,
        "{} {kind} ({sure}) in {} pid {}, since {}{or_earlier} ({at_least}{age})",
        paint.severity(finding.severity),
        clean(&finding.comm),
        finding.process.pid,
        json::timestamp(finding.since),
    );
    out.push_str(&paint.bold(&wrap(&clean(&finding.title), "  ")));
    out.push_str(&wrap(&clean(&finding.explanation), "  "));
    for link in finding.chain.iter().take(LINKS) {
        let sure = paint.dim(&format!("[{}: {}]", json::confidence(link.confidence), link.how));
        let _ = writeln!(out, "    {}  {sure}", steps(host, link));
    }
    if let Some(more @ 1..) = finding.chain.len().checked_sub(LINKS) {
        let _ = writeln!(out, "    + {more} more (--output json lists all)");
    }
    let stack = finding.evidence.get("kernel_stack").and_then(|v| v.as_array());
    for frame in stack.into_iter().flatten().filter_map(|f| f.as_str()).take(12) {
        let _ = writeln!(out, "    {}", paint.dim(&clean(frame)));
    }
    if let Some(call) = &finding.call {
        let group = stacks::Group { tids: vec![call.tid], stack: &call.stack };
        out.push_str(&call_stack(host, &group, "    ", paint));
    }
    let stack = finding.evidence.get("stack").and_then(|v| v.as_array());
    let frames: Vec<&str> = stack.into_iter().flatten().filter_map(|f| f.as_str()).take(GO_FRAMES).collect();
    if !frames.is_empty() {
        let _ = writeln!(out, "    stack of these goroutines:");
        for frame in frames {
            let _ = writeln!(out, "      {}", paint.dim(&clean(frame)));
        }
    }
    let groups = stacks::groups(host, finding.threads.iter().copied());
    let groups: Vec<_> = groups.into_iter().filter(|group| !is_told(finding.call.as_ref(), group)).collect();
    out.push_str(&stack_groups(host, &groups, STACKS, "    ", paint));
    out.push_str(&wrap(&format!("→ {}", clean(&finding.remedy)), "  "));
    out
}

/// Whether the stack at the call is the one the thread still stands at.
fn is_told(call: Option<&CallSite>, group: &stacks::Group<'_>) -> bool {
    call.is_some_and(|call| group.tids == [call.tid] && stacks::is_same_place(&call.stack, group.stack))
}

/// The stack at the call a finding is about.
fn call_stack(host: &Host, group: &stacks::Group<'_>, indent: &str, paint: Paint) -> String {
    let who = group.tids.iter().map(|tid| clean(&host.name(*tid))).collect::<Vec<_>>().join(", ");
    let mut out = format!("{indent}stack at the call, of {who}:\n");
    for line in stacks::to_text(group.stack, "").lines() {
        let _ = writeln!(out, "{indent}  {}", paint.dim(&clean(line)));
    }
    out
}

/// Who waits for what of whom.
fn steps(host: &Host, link: &Link) -> String {
    let held = match link.held_by {
        Some(held) => format!("{} {}", link.nature.verb(), who(host, held)),
        None if link.nature == Nature::Call => {
            return clean(&format!("{} → {}", who(host, link.from), link.waits_for.describe()));
        }
        None => match wakes::to_text(host, link.from.tid) {
            Some(waker) => format!("holder unknown, {waker}"),
            None => "holder unknown".to_owned(),
        },
    };
    let thing = if link.nature == Nature::Exit { "the exit".to_owned() } else { link.waits_for.describe() };
    clean(&format!("{} → {thing} → {held}", who(host, link.from)))
}

/// `goroutine 18`, `goroutine 18 on worker (tid 77)`, `worker (tid 77)`.
fn who(host: &Host, one: ThreadRef) -> String {
    match (one.goid, one.tid) {
        (Some(goid), 0) => format!("goroutine {goid}"),
        (Some(goid), tid) => format!("goroutine {goid} on {}", host.name(tid)),
        (None, tid) => host.name(tid),
    }
}

/// One step of a chain, with how sure it is.
pub(super) fn link(host: &Host, link: &Link) -> String {
    format!("{}  [{}: {}]", steps(host, link), json::confidence(link.confidence), clean(&link.how))
}

/// Stacks, those of the same place once.
fn stack_groups(host: &Host, groups: &[stacks::Group<'_>], most: usize, indent: &str, paint: Paint) -> String {
    let mut out = String::new();
    for group in groups.iter().take(most) {
        let mut who: Vec<String> = group.tids.iter().take(NAMED).map(|tid| clean(&host.name(*tid))).collect();
        if let Some(more @ 1..) = group.tids.len().checked_sub(NAMED) {
            who.push(format!("{more} more"));
        }
        let who = who.join(", ");
        let _ = writeln!(out, "{indent}stack of {who}:");
        for line in stacks::to_text(group.stack, "").lines() {
            let _ = writeln!(out, "{indent}  {}", paint.dim(&clean(line)));
        }
    }
    if let Some(more @ 1..) = groups.len().checked_sub(most) {
        let _ = writeln!(out, "{indent}+ {more} more stacks (--stacks shows all)");
    }
    out
}

/// One line for a finding that opened, got worse or is over.
pub fn change(host: &Host, change: Change, life: &Life, paint: Paint) -> String {
    match change {
        Change::Resolved => {
            let lasted = duration(life.last_seen.0.saturating_sub(life.finding.since.0));
            format!(
                "{} {} in {} pid {} is over after {lasted}: {}\n",
                paint.dim("RESOLVED"),
                life.finding.kind.name(),
                clean(&life.finding.comm),
                life.finding.process.pid,
                clean(&life.finding.title),
            )
        }
        Change::Opened => finding(host, life, paint),
        Change::Worsened => format!("{} {}", paint.bold("WORSE"), finding(host, life, paint)),
    }
}

fn timeout_words(wait: &Wait) -> String {
    let timeout = &wait.timeout;
    let ns = |value: Option<i64>| value.and_then(|ns| u64::try_from(ns).ok()).map(duration);
    match timeout.kind {
        TimeoutKind::None => "-".to_owned(),
        TimeoutKind::Infinite => "infinite".to_owned(),
        TimeoutKind::Unknown => "?".to_owned(),
        TimeoutKind::Zero => "0".to_owned(),
        TimeoutKind::Negative | TimeoutKind::Invalid => {
            format!("{} ({})", json::timeout_kind(timeout.kind), timeout.raw.as_deref().unwrap_or("?"))
        }
        TimeoutKind::Finite | TimeoutKind::Absurd => {
            let asked = ns(timeout.requested_ns).unwrap_or_default();
            let left = ns(timeout.remaining_ns).map(|left| format!(", {left} left")).unwrap_or_default();
            let absurd = if timeout.kind == TimeoutKind::Absurd { "absurd: " } else { "" };
            format!("{absurd}{asked}{left}")
        }
    }
}

/// The call and what it is for: `futex (lock)`, `futex (idle: tokio)`, `futex (condition, in a job of tokio)`.
fn call_words(wait: &Wait) -> String {
    let class = wait.class.name();
    match &wait.reading {
        Some(reading) if reading.rest == Rest::Idle => format!("{} (idle: {})", wait.syscall, reading.runtime),
        Some(Reading { job: Some(job), .. }) => format!("{} ({class}, in a job of {})", wait.syscall, job.runtime),
        _ => format!("{} ({class})", wait.syscall),
    }
}

/// A thread that only waits for work.
fn is_idle(row: &ThreadRow, wait: Option<&Wait>) -> bool {
    row.state_letter() == 'S'
        && wait.is_some_and(|wait| {
            matches!(
                wait.class,
                Class::Condition | Class::Event | Class::Sleep | Class::Accept | Class::Child | Class::Read
            ) && !matches!(wait.timeout.kind, TimeoutKind::Negative | TimeoutKind::Absurd)
                && wait.reading.as_ref().is_none_or(|reading| reading.job.is_none())
        })
}

fn thread_line(host: &Host, graph: &Graph, row: &ThreadRow, wait: Option<&Wait>) -> [String; 7] {
    let blocked = host.blocked_ns(row);
    let time = match (row.is_blocked(), host.since(row).exact) {
        (false, _) => "-".to_owned(),
        (true, true) => duration(blocked),
        (true, false) => format!("≥{}", duration(blocked)),
    };
    let call = wait.map_or_else(|| "-".to_owned(), call_words);
    let thing = wait.and_then(|w| w.resource.as_ref()).map_or_else(|| "-".to_owned(), |r| clean(&r.describe()));
    let held = match wait.and_then(|wait| host.owner_of(wait, row)) {
        None => match graph.edge(row.tid) {
            Some(Hop { owner: Some(Owner::Thread(tid)), nature, .. }) if *nature != Nature::FarEnd => {
                format!("{} {}", nature.verb(), clean(&host.name(*tid)))
            }
            _ => String::new(),
        },
        Some(Owner::Thread(tid)) => format!("held by {}", clean(&host.name(tid))),
        Some(Owner::Elsewhere(tid)) => {
            format!("owner left behind in {}", clean(&host.name(tid)))
        }
        Some(Owner::Gone(tid)) => format!("owner tid {tid} is gone"),
    };
    let timeout = wait.map_or_else(|| "-".to_owned(), timeout_words);
    let comm = if row.compat { format!("{} [32-bit]", row.comm) } else { row.comm.clone() };
    let far = wait.and_then(|wait| wait.far_end.as_ref()).map(|end| far_end(host, end)).unwrap_or_default();
    let watched = wait.filter(|wait| wait.resource.as_ref().is_some_and(|r| r.kind == ResourceKind::Epoll));
    let watched = watched.filter(|wait| !wait.members.is_empty()).map(|wait| in_words(&wait.members, wait.members_cut));
    let watched = watched.map(|words| format!(", watching {}", clean(&words))).unwrap_or_default();
    let place = format!("{thing}{watched}{far} {held}");
    [row.tid.to_string(), clean(&comm), row.state_letter().to_string(), time, call, timeout, place]
}

/// Who has the other end: `, other end: writer (pid 77, fd 4)`.
fn far_end(host: &Host, end: &FarEnd) -> String {
    let name = |pid: u32| host.row(pid).map_or_else(|| "?".to_owned(), |row| clean(&row.comm));
    let one = |holder: &EndHolder| {
        let pid = holder.process.pid;
        format!("{} (pid {pid}, fd {})", name(pid), holder.fd)
    };
    let mut who: Vec<String> = end.holders.iter().take(NAMED).map(one).collect();
    if let Some(more @ 1..) = end.holders.len().checked_sub(NAMED) {
        who.push(format!("{more} more"));
    }
    if end.holders.is_empty() {
        who.push("nobody found".to_owned());
    }
    if end.unsearched > 0 {
        who.push(format!("{} processes not searched", end.unsearched));
    }
    let unread = end.unread.filter(|bytes| *bytes > 0).map(|bytes| format!(" with {bytes} bytes unread"));
    format!("{}, other end: {}", unread.unwrap_or_default(), who.join(", "))
}

fn table(lines: &[[String; 7]]) -> String {
    let head = ["TID", "NAME", "STATE", "FOR", "CALL (CLASS)", "TIMEOUT", "WAITS FOR"].map(str::to_owned);
    let mut widths = [0; 7];
    for line in lines.iter().chain([&head]) {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for line in [&head].into_iter().chain(lines) {
        let mut text = String::from("  ");
        for (cell, width) in line.iter().zip(widths) {
            let pad = width - cell.chars().count();
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', pad + 2));
        }
        let _ = writeln!(out, "{}", text.trim_end());
    }
    out
}

/// Whose stacks a process shows beside those of its findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stacks {
    /// Nobody's.
    None,
    /// Of the threads that are listed.
    Listed,
    /// Every thread's.
    All,
}

/// One process: the threads that matter, the rest folded.
pub fn process(
    host: &Host,
    graph: &Graph,
    view: &ProcessView<'_>,
    involved: &BTreeSet<u32>,
    with_stacks: Stacks,
    paint: Paint,
) -> String {
    let facts = host.process(view.id);
    let comm = host.row(view.id.pid).map(|row| clean(&row.comm)).unwrap_or_default();
    let mut out = format!("{} {} ({comm})", paint.bold("PROCESS"), view.id.pid);
    if let Some(facts) = facts {
        let _ = write!(out, ", {}", facts.runtime);
        if let Some(exe) = &facts.exe {
            let _ = write!(out, ", {}", clean(exe));
        }
        if let Some(container) = &facts.container {
            let _ = write!(out, ", container {:.12}", clean(&container.id));
        }
        if let Some(pod) = &facts.pod {
            let _ = write!(out, ", pod {}", clean(&pod.uid));
        }
    }
    let total = view.threads.len();
    let _ = writeln!(out, ", {total} thread{}", if total == 1 { "" } else { "s" });
    let mut lines = Vec::new();
    let mut listed = Vec::new();
    let mut folded: BTreeMap<String, usize> = BTreeMap::new();
    let mut cut = 0;
    for row in &view.threads {
        let wait = host.wait(row.tid);
        let shown = total <= SHOW_ALL || involved.contains(&row.tid) || !is_idle(row, wait.as_ref());
        if shown && lines.len() < LISTED {
            lines.push(thread_line(host, graph, row, wait.as_ref()));
            listed.push(row.tid);
        } else if shown {
            cut += 1;
        } else if let Some(wait) = &wait {
            *folded.entry(call_words(wait)).or_default() += 1;
        }
    }
    if !lines.is_empty() {
        out.push_str(&table(&lines));
    }
    if cut > 0 {
        let _ = writeln!(out, "  + {cut} more threads like these (--output json lists all)");
    }
    if !folded.is_empty() {
        let idle: usize = folded.values().sum();
        let mut by_count: Vec<_> = folded.into_iter().collect();
        by_count.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let what: Vec<String> = by_count.iter().map(|(call, count)| format!("{count} in {call}")).collect();
        let _ = writeln!(out, "  + {idle} idle thread{}: {}", if idle == 1 { "" } else { "s" }, what.join(", "));
    }
    out.push_str(&debts::to_text(host, view));
    if let Some(go) = host.goroutines(view.id) {
        out.push_str(&goroutines(go));
    }
    if let Some(known) = host.tasks(view.id).filter(|known| known.latest.types > 0) {
        out.push_str(&super::tasks::to_text(known));
    }
    let alone: Vec<Pid> = listed.iter().copied().filter(|tid| !involved.contains(tid)).collect();
    out.push_str(&chains::to_text(host, graph, &alone));
    out.push_str(&lately::to_text(host, view.id.pid));
    let (tids, most) = match with_stacks {
        Stacks::None => (Vec::new(), 0),
        // Those of a finding are printed with it.
        Stacks::Listed => (alone, STACKS),
        Stacks::All => (view.threads.iter().map(|row| row.tid).collect(), usize::MAX),
    };
    out.push_str(&stack_groups(host, &stacks::groups(host, tids), most, "  ", paint));
    out
}

/// The goroutines of a process, in a few lines: where most of them stand.
fn goroutines(go: &GoProcess) -> String {
    let mut sites: Vec<_> = go.sites().filter(|history| !history.site.is_system).collect();
    sites.sort_by_key(|history| std::cmp::Reverse(history.count));
    let mut out = format!("  {} goroutines, read in {}\n", go.latest.total(), duration(go.latest.took_ns));
    for history in sites.iter().take(GO_SITES) {
        let site = &history.site;
        let started = site.created_by.as_ref().map(|place| format!(", started by {}", place.describe()));
        let what = match site.reason.as_str() {
            "" if site.class == GoClass::Syscall => "system call",
            "" => "runnable or running",
            reason => reason,
        };
        let line = format!("{} in {what} at {}{}", history.count, site.place.describe(), started.unwrap_or_default());
        let _ = writeln!(out, "    {}", clean(&line));
    }
    if let Some(more @ 1..) = sites.len().checked_sub(GO_SITES) {
        let _ = writeln!(out, "    + {more} more places (`observer goroutines PID` shows them)");
    }
    out
}

/// A whole report.
pub fn report(
    setting: &Setting,
    (host, graph): (&Host, &Graph),
    views: &[ProcessView<'_>],
    findings: &[&Life],
    account: &Account,
    with_stacks: Stacks,
    paint: Paint,
) -> String {
    let mut out = String::new();
    let involved: BTreeSet<u32> = findings.iter().flat_map(|life| life.finding.threads.iter().copied()).collect();
    for life in findings {
        out.push_str(&finding(host, life, paint));
        out.push('\n');
    }
    if findings.is_empty() {
        let what = match views {
            [] => format!("{} threads", account.threads_seen),
            [one] => format!("pid {}", one.id.pid),
            more => format!("{} processes", more.len()),
        };
        let _ = writeln!(out, "{} nothing found in {what}\n", paint.bold("OK"));
    }
    for view in views {
        out.push_str(&process(host, graph, view, &involved, with_stacks, paint));
    }
    out.push_str(&paint.dim(&footer(setting, account)));
    out
}

/// The account in one line: how it was seen, and what was not.
pub fn footer(setting: &Setting, account: &Account) -> String {
    // A wait that began before the probes came is no loss: the census has it.
    let dropped = account.events_dropped.iter().filter(|(reason, _)| *reason != "unpaired").map(|(_, count)| count);
    let lost: u64 = account.threads_lost.values().chain(dropped).sum();
    let mut out = format!(
        "{} threads seen by {} in {}, {} censuses",
        account.threads_seen,
        setting.census,
        duration(account.census_ns),
        account.censuses
    );
    if let Some(probes) = setting.probes.as_object() {
        let rungs: Vec<String> =
            probes.iter().map(|(name, rung)| format!("{name} {}", rung.as_str().unwrap_or("?"))).collect();
        if !rungs.is_empty() {
            let _ = write!(out, "; probes: {}", rungs.join(", "));
        }
    }
    for (family, state) in account.spending.iter().flat_map(|spending| spending.reduced()) {
        let (name, time, now) = (family.name(), duration(whole_ns(state.reduced)), state.watch);
        let _ = write!(out, "; {name} probes did not see every call for {time} (--cpu-budget; now {now})");
    }
    if lost > 0 {
        let _ = write!(out, "; {lost} lost (see account in --output json)");
    }
    out.push('\n');
    out
}
