//! `uninterruptible`: a thread in D state beyond the threshold, with its kernel stack.

use super::finding::thread_ref;
use super::{Context, Finding, Kind, Link, Rule, Severity, Verdict};
use crate::census::ThreadRow;
use crate::model::blocker::blocker;
use crate::model::{Confidence, Host, Resource, ResourceKind, Wait, duration, graph};

/// Beyond this, the kernel's own hung-task watchdog would speak too.
const CRITICAL_NS: u64 = 120_000_000_000;

/// The rule.
#[derive(Debug)]
pub struct Uninterruptible;

impl Rule for Uninterruptible {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for (row, wait) in context.confirmed() {
            // A frozen task is somebody's doing: `stopped` speaks of it.
            if row.state_letter() != 'D' || row.is_frozen() {
                continue;
            }
            let since = context.host.since(row).ns;
            if verdict.is_ripe(since, context) {
                verdict.findings.push(finding(context.host, row, wait, since));
            }
        }
        verdict
    }
}

fn finding(host: &Host, row: &ThreadRow, wait: &Wait, since: u64) -> Finding {
    let age = host.now_ns().saturating_sub(since);
    let stack = host.kernel_stack(row.tid);
    let mut finding = Finding::new(Kind::Uninterruptible, host, row.process, &format!("{}/{}", row.tid, wait.syscall))
        .since_mono(since, host)
        .with_threads([row.tid])
        .fact("syscall", wait.syscall)
        .fact("kernel_stack", stack.to_vec())
        .fact("blocked_ns", age);
    let blocker = blocker(host, row);
    if let Some(blocker) = &blocker {
        finding = finding.fact("blocker", format!("{:#x}", blocker.address)).fact("blocker_kind", blocker.kind);
    }
    finding.severity = if age >= CRITICAL_NS { Severity::Critical } else { Severity::Warning };
    finding.confidence = Confidence::Certain;
    let name = host.name(row.tid);
    let long = duration(age);
    if let Some(child) = graph::awaited_child(host, row, wait) {
        let child_name = host.name(child);
        let doing = host.doing(child);
        finding.title =
            format!("{name} is in D state in vfork() for {long}: its child {child_name} has not called exec");
        finding.explanation = format!(
            "{name} called vfork() (or posix_spawn) and sleeps until the child calls exec or exits; no signal but SIGKILL reaches it. The child {child_name} {doing}."
        );
        finding.remedy =
            format!("Look at what process {child} does between vfork and exec; it should call exec at once.");
        finding.chain = vec![Link {
            from: thread_ref(row.tid, host),
            waits_for: Resource::of(ResourceKind::Child).detailed("the child of its vfork"),
            held_by: Some(thread_ref(child, host)),
            nature: graph::Nature::Child,
            confidence: Confidence::Certain,
            how: "vfork suspends the parent until the child executes or exits".to_owned(),
        }];
        return finding;
    }
    let place = stack.iter().find(|frame| !is_scheduler(frame)).cloned();
    let at = place.as_ref().map(|frame| format!(" at {frame}")).unwrap_or_default();
    finding.title = format!("{name} is in D state in {}() for {long}{at}", wait.syscall);
    let on = wait.resource.as_ref().map(|r| format!(" on {}", r.describe())).unwrap_or_default();
    finding.explanation = format!(
        "{name} is in uninterruptible sleep in {}(){on}{at}: the kernel waits for a device, a file system or a kernel lock, and signals cannot end it.",
        wait.syscall
    );
    if let Some(blocker) = blocker
        && let Some((holder, confidence, how)) = blocker.holder
    {
        let (kind, holder_name, doing) = (blocker.kind, host.name(holder), host.doing(holder));
        let a = if kind == "rwsem" { "an" } else { "a" };
        let has = if confidence == Confidence::Certain { "has" } else { "may have" };
        finding = finding.fact("holder_tid", holder);
        finding.title = format!(
            "{name} is in D state in {}() for {long}: {holder_name} {has} the {kind} of the kernel it waits for",
            wait.syscall
        );
        finding.explanation = format!(
            "{name} is in uninterruptible sleep in {}(){on}{at}: it waits for {a} {kind} of the kernel, and signals cannot end that. {holder_name} {has} it ({how}) and {doing}.",
            wait.syscall
        );
        finding.remedy = format!(
            "Look at {holder_name}: the wait ends when it lets go. Its kernel stack names the subsystem that holds it up."
        );
        finding.chain = vec![Link {
            from: thread_ref(row.tid, host),
            waits_for: Resource::of(ResourceKind::Other)
                .detailed(format!("{kind} of the kernel at {:#x}", blocker.address)),
            held_by: Some(thread_ref(holder, host)),
            nature: graph::Nature::Lock,
            confidence,
            how: how.to_owned(),
        }];
        return finding;
    }
    finding.remedy = "Look at the storage or the network file system behind it (dmesg, mount, iostat); the kernel stack names the subsystem.".to_owned();
    finding
}

/// Frames that every sleeper has.
fn is_scheduler(frame: &str) -> bool {
    ["schedule", "__schedule", "io_schedule", "__switch_to", "schedule_timeout", "context_switch"]
        .iter()
        .any(|name| frame.split('+').next() == Some(name))
}
