//! `observer.report/v1` and `observer.finding/v1`. Fields may be added here, never renamed or dropped.

use super::goroutines::{Trend, group_to_json};
use super::{Account, ProcessView, Setting, debts, lately, stacks, wakes};
use crate::census::{ThreadRow, TimeoutKind};
use crate::detect::{CallSite, Life, Link, Moment, ThreadRef};
use crate::model::frames::Reading;
use crate::model::goroutines::GoProcess;
use crate::model::graph::{Graph, Hop};
use crate::model::wait::Member;
use crate::model::{Confidence, Host, Owner, Resource, Timeout, Wait};
use crate::proc::FarEnd;
use serde_json::{Value, json};

/// RFC 3339 with milliseconds, UTC.
pub fn timestamp(moment: Moment) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(moment.0)).map_or_else(|_| "unknown".to_owned(), |t| format!("{t:.3}"))
}

fn hex(value: u64) -> String {
    format!("{value:#x}")
}

/// The public name of a timeout kind; a malformed one is not in the schema and reads `unknown`.
pub fn timeout_kind(kind: TimeoutKind) -> &'static str {
    match kind {
        TimeoutKind::None => "none",
        TimeoutKind::Zero => "zero",
        TimeoutKind::Finite => "finite",
        TimeoutKind::Infinite => "infinite",
        TimeoutKind::Negative => "negative",
        TimeoutKind::Absurd => "absurd",
        TimeoutKind::Invalid | TimeoutKind::Unknown => "unknown",
    }
}

fn timeout(timeout: &Timeout) -> Value {
    json!({
        "kind": timeout_kind(timeout.kind),
        "requested_ns": timeout.requested_ns,
        "remaining_ns": timeout.remaining_ns,
        "raw": timeout.raw,
    })
}

/// The public name of a confidence.
pub fn confidence(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Certain => "certain",
        Confidence::Likely => "likely",
        Confidence::Possible => "possible",
    }
}

pub(super) fn resource(resource: &Resource) -> Value {
    json!({
        "kind": resource.kind.name(),
        "address": resource.address.map(hex),
        "fd": resource.fd,
        "local": resource.local,
        "remote": resource.remote,
        "detail": resource.detail,
    })
}

fn holder(host: &Host, graph: &Graph, row: &ThreadRow, wait: &Wait) -> Option<Value> {
    let by_graph = || match graph.edge(row.tid)? {
        hop @ Hop { owner: Some(Owner::Thread(tid)), confidence, how, .. } if hop.is_lock() => {
            Some((*tid, *confidence, *how))
        }
        _ => None,
    };
    let (tid, sure, how) = host.holder_of(wait, row).or_else(by_graph)?;
    let pid = host.row(tid)?.process.pid;
    Some(json!({ "pid": pid, "tid": tid, "confidence": confidence(sure), "how": how }))
}

fn wait(host: &Host, graph: &Graph, row: &ThreadRow, wait: &Wait) -> Value {
    json!({
        "syscall": wait.syscall,
        "abi": if row.compat { "i386" } else { "x86_64" },
        "args": wait.args.map(hex),
        "class": wait.class.name(),
        "timeout": timeout(&wait.timeout),
        "resource": wait.resource.as_ref().map(resource),
        "holder": holder(host, graph, row, wait),
        "reading": wait.reading.as_ref().map(reading),
        "far_end": wait.far_end.as_ref().map(far_end),
        "members": wait.members.iter().map(member).collect::<Vec<_>>(),
        "members_cut": wait.members_cut,
        "woken_by": wakes::to_json(host, row.tid),
    })
}

/// Who has the other end.
fn far_end(end: &FarEnd) -> Value {
    let holders = end.holders.iter().map(|holder| json!({ "pid": holder.process.pid, "fd": holder.fd }));
    json!({ "object": end.object, "holders": holders.collect::<Vec<_>>(), "unsearched": end.unsearched, "unread_bytes": end.unread })
}

/// One descriptor of a polled set.
fn member(member: &Member) -> Value {
    let resource = &member.resource;
    json!({
        "fd": resource.fd,
        "kind": resource.kind.name(),
        "detail": resource.detail,
        "local": resource.local,
        "remote": resource.remote,
        "events": member.events(),
        "far_end": member.far_end.as_ref().map(far_end),
    })
}

/// What the frames of its stack say of a wait.
fn reading(reading: &Reading) -> Value {
    json!({ "rest": reading.rest.name(), "runtime": reading.runtime, "by": reading.frames() })
}

/// One thread.
fn thread(host: &Host, graph: &Graph, row: &ThreadRow) -> Value {
    let since = host.since(row);
    let decoded = host.wait(row.tid);
    let stack = host.stack(row.tid);
    json!({
        "tid": row.tid,
        "comm": row.comm,
        "state": row.state_letter().to_string(),
        "off_cpu_ns": host.blocked_ns(row),
        "off_cpu_exact": row.is_blocked().then_some(since.exact),
        "cpu_ns": row.cpu_ns,
        "context_switches": { "voluntary": row.nvcsw, "involuntary": row.nivcsw },
        "wait": decoded.map(|decoded| wait(host, graph, row, &decoded)),
        "chain": super::chains::to_json(host, graph, row.tid),
        "stack": stack.map_or_else(Vec::new, stacks::frames),
        "stack_end": stack.map(stacks::end),
        "kernel_stack": host.kernel_stack(row.tid),
    })
}

/// One process with its threads.
pub fn process(host: &Host, graph: &Graph, view: &ProcessView<'_>) -> Value {
    let facts = host.process(view.id);
    let main = host.row(view.id.pid);
    let start = host.clocks().map(|clocks| Moment::from_boot(view.id.start_ns, clocks));
    json!({
        "pid": view.id.pid,
        "start_time": start.map(timestamp),
        "comm": main.map(|row| row.comm.as_str()),
        "abi": main.map(|row| if row.compat { "i386 (32-bit)" } else { "x86_64" }),
        "exe": facts.and_then(|f| f.exe.as_deref()),
        "cmdline": facts.map(|f| f.cmdline.as_slice()).unwrap_or_default(),
        "cgroup": facts.and_then(|f| f.cgroup.as_deref()),
        "container": facts.and_then(|f| f.container.as_ref()),
        "pod": facts.and_then(|f| f.pod.as_ref()),
        "runtime": facts.map_or("unknown", |f| f.runtime.as_str()),
        "missing": facts.map(|f| f.missing.as_slice()).unwrap_or_default(),
        "threads": view.threads.iter().map(|row| thread(host, graph, row)).collect::<Vec<_>>(),
        "waits": host.probes().stats().iter().filter(|s| s.pid == view.id.pid).collect::<Vec<_>>(),
        "lately": lately::to_json(host, view.id.pid),
        "goroutines": host.goroutines(view.id).map(goroutines),
        "tasks": host.tasks(view.id).map(super::tasks::to_json),
        "debts": debts::to_json(host, graph, view),
    })
}

pub(super) fn link(host: &Host, link: &Link) -> Value {
    json!({
        "from": thread_ref(link.from),
        "waits_for": resource(&link.waits_for),
        "held_by": link.held_by.map(thread_ref),
        "relation": link.nature.name(),
        "confidence": confidence(link.confidence),
        "how": link.how,
        // A hint where nobody is known to hold it.
        "woken_by": if link.held_by.is_none() { wakes::to_json(host, link.from.tid) } else { Value::Null },
    })
}

/// Groups of goroutines that a report lists, the largest first.
const GO_GROUPS: usize = 500;

/// The goroutines of a process, as read last.
fn goroutines(go: &GoProcess) -> Value {
    let now = go.latest.taken_ns;
    let groups = go.latest.groups.iter().take(GO_GROUPS).map(|group| {
        let growth = go.site(group).and_then(|site| site.samples.since(0));
        let growth_per_minute = growth.filter(|growth| growth.window_ns() > 0).map(|growth| growth.per_minute());
        let longest_wait_ns = now.saturating_sub(go.oldest(group));
        group_to_json(group, Trend { longest_wait_ns, growth_per_minute, ran_again: None })
    });
    json!({
        "total": go.latest.total(),
        "version": go.latest.version,
        "taken_ns": now,
        "took_ns": go.latest.took_ns,
        "watched_ns": go.watched_ns(),
        "lost": go.latest.lost,
        "groups": groups.collect::<Vec<_>>(),
        "groups_cut": go.latest.groups.len().saturating_sub(GO_GROUPS),
    })
}

/// A thread, or a goroutine with the thread it is on, if any.
fn thread_ref(one: ThreadRef) -> Value {
    match one.goid {
        None => json!({ "pid": one.pid, "tid": one.tid }),
        Some(goid) => json!({ "pid": one.pid, "tid": (one.tid != 0).then_some(one.tid), "goid": goid }),
    }
}

fn stack_group(group: &stacks::Group<'_>) -> Value {
    json!({ "threads": group.tids, "frames": stacks::frames(group.stack), "end": stacks::end(group.stack) })
}

/// The call a finding is about, as its stack was then.
fn call_site(call: &CallSite) -> Value {
    json!({ "tid": call.tid, "frames": stacks::frames(&call.stack), "end": stacks::end(&call.stack) })
}

/// One finding.
pub fn finding(host: &Host, life: &Life) -> Value {
    let finding = &life.finding;
    let facts = host.process(finding.process);
    json!({
        "schema": "observer.finding/v1",
        "id": finding.id,
        "kind": finding.kind.name(),
        "severity": finding.severity.name(),
        "confidence": confidence(finding.confidence),
        "state": if life.resolved { "resolved" } else { "open" },
        "since": timestamp(finding.since),
        "first_seen": timestamp(life.first_seen),
        "last_seen": timestamp(life.last_seen),
        "pid": finding.process.pid,
        "comm": finding.comm,
        "container": facts.and_then(|f| f.container.as_ref()),
        "pod": facts.and_then(|f| f.pod.as_ref()),
        "threads": finding.threads,
        "title": finding.title,
        "explanation": finding.explanation,
        "remedy": finding.remedy,
        "chain": finding.chain.iter().map(|one| link(host, one)).collect::<Vec<_>>(),
        "evidence": finding.evidence,
        "call_site": finding.call.as_ref().map(call_site),
        "stacks": stacks::groups(host, finding.threads.iter().copied()).iter().map(stack_group).collect::<Vec<_>>(),
    })
}

/// The whole report.
pub fn report(
    setting: &Setting,
    (host, graph): (&Host, &Graph),
    views: &[ProcessView<'_>],
    findings: &[&Life],
    account: &Account,
) -> Value {
    let taken = host.clocks().map(|clocks| timestamp(Moment(clocks.real_ns)));
    json!({
        "schema": "observer.report/v1",
        "taken_at": taken,
        "host": { "name": setting.host_name, "kernel": setting.kernel, "boot_id": setting.boot_id },
        "capability": { "census": setting.census, "probes": setting.probes, "descriptors": setting.descriptors },
        "processes": views.iter().map(|view| process(host, graph, view)).collect::<Vec<_>>(),
        "findings": findings.iter().map(|life| finding(host, life)).collect::<Vec<_>>(),
        "account": account.to_json(),
    })
}
