//! `stopped`: a process that is stopped, traced or frozen while others wait for it.

use super::finding::thread_ref;
use super::{Context, Finding, Kind, Link, Rule, Severity, Verdict};
use crate::census::{Pid, ProcessId, ThreadRow};
use crate::model::graph::{self, End, Nature};
use crate::model::{Confidence, Host, Resource, ResourceKind, duration, stopped_how};
use std::collections::{BTreeMap, BTreeSet};

/// The rule.
#[derive(Debug)]
pub struct Stopped;

/// Somebody, or something, that waits.
struct Waiter {
    since_ns: u64,
    link: Option<Link>,
    words: String,
}

impl Rule for Stopped {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let host = context.host;
        let mut stopped: BTreeMap<ProcessId, &ThreadRow> = BTreeMap::new();
        for row in host.rows().iter().filter(|row| row.is_stopped() && !row.is_kernel_thread()) {
            stopped.entry(row.process).or_insert(row);
        }
        let mut verdict = Verdict::default();
        for (process, row) in stopped {
            let waiters = waiters(context, process, row);
            let threads: BTreeSet<Pid> = waiters.iter().filter_map(|w| Some(w.link.as_ref()?.from.tid)).collect();
            if waiters.is_empty() || !context.in_scope(threads.iter().chain([&row.tid])) {
                continue;
            }
            // Both must have lasted: the stop, and somebody's wait.
            let waiting = waiters.iter().map(|w| w.since_ns).min().unwrap_or(u64::MAX);
            let since = host.since(row).ns.max(waiting);
            if verdict.is_ripe(since, context) {
                verdict.findings.push(finding(host, row, &waiters, since));
            }
        }
        verdict
    }
}

fn waiters(context: &Context<'_>, process: ProcessId, stopped: &ThreadRow) -> Vec<Waiter> {
    let host = context.host;
    let mut waiters = Vec::new();
    for row in host.rows().iter().filter(|row| row.process.pid == stopped.ppid && row.is_blocked() && !row.is_stopped())
    {
        let Some(wait) = host.wait(row.tid) else {
            continue;
        };
        if graph::awaited_child(host, row, &wait) == Some(process.pid) {
            let link = Link {
                from: thread_ref(row.tid, host),
                waits_for: wait.resource.clone().unwrap_or(Resource::of(ResourceKind::Child)),
                held_by: Some(thread_ref(stopped.tid, host)),
                nature: Nature::Child,
                confidence: Confidence::Certain,
                how: "parent waits for its child".to_owned(),
            };
            let words = format!("its parent {} waits for it in {}()", host.name(row.tid), wait.syscall);
            waiters.push(Waiter { since_ns: host.since(row).ns, link: Some(link), words });
        }
    }
    for chain in &context.chains {
        let End::Root(root) = chain.end else { continue };
        let Some((first, last)) = chain.hops.first().zip(chain.hops.last()) else {
            continue;
        };
        let ends_here = host.row(root).is_some_and(|row| row.process == process && row.is_stopped());
        if !ends_here || first.resource.kind == ResourceKind::Child || first.resource.kind == ResourceKind::Thread {
            continue;
        }
        let Some(row) = host.row(first.waiter).filter(|row| !row.is_stopped()) else {
            continue;
        };
        let words = format!("{} waits for {}, which it holds", host.name(first.waiter), last.resource.describe());
        let link = super::finding::links(std::slice::from_ref(first), host).pop();
        waiters.push(Waiter { since_ns: host.since(row).ns, link, words });
    }
    for (_, socket) in host.unread().iter().filter(|(owner, _)| *owner == process) {
        let local = socket.local.clone().unwrap_or_else(|| format!("socket {}", socket.inode));
        let words = if socket.state == "LISTEN" {
            format!("{} connection(s) to {local} are not accepted", socket.unread)
        } else {
            format!("{} byte(s) on {local} are not read", socket.unread)
        };
        waiters.push(Waiter { since_ns: host.since(stopped).ns, link: None, words });
    }
    waiters
}

fn finding(host: &Host, stopped: &ThreadRow, waiters: &[Waiter], since: u64) -> Finding {
    let how = stopped_how(stopped);
    let mut finding = Finding::new(Kind::Stopped, host, stopped.process, "stopped")
        .since_mono(since, host)
        .with_threads(waiters.iter().filter_map(|w| Some(w.link.as_ref()?.from.tid)))
        .with_threads(host.threads_of(stopped.process.pid).filter(|row| row.is_stopped()).map(|row| row.tid))
        .fact("how", how)
        .fact("stopped_ns", host.blocked_ns(stopped))
        .fact("tracer_pid", stopped.tracer)
        .fact("waiters", waiters.len());
    finding.severity = Severity::Warning;
    finding.confidence = Confidence::Certain;
    let long = duration(host.blocked_ns(stopped));
    let name = format!("{} (pid {})", finding.comm, stopped.process.pid);
    let words: Vec<&str> = waiters.iter().take(3).map(|w| w.words.as_str()).collect();
    let more =
        if waiters.len() > words.len() { format!(", and {} more", waiters.len() - words.len()) } else { String::new() };
    let by = stopper(host, stopped);
    let tracer = if stopped.tracer == 0 { String::new() } else { format!(", {},", host.name(stopped.tracer)) };
    finding.title = format!("{name} has been {how}{tracer} for {long} while others wait for it");
    finding.explanation =
        format!("{name} is {how}{tracer} and does not run, and {}{more}. {}", words.join("; "), by.words);
    if let Some(cgroup) = &by.cgroup {
        finding = finding.fact("frozen_cgroup", cgroup.as_str());
        finding.title = format!("{name} has been frozen by cgroup {cgroup} for {long} while others wait for it");
    }
    if let Some(shell) = by.shell {
        finding = finding.fact("shell", shell);
    }
    finding.remedy = match stopped.state_letter() {
        't' => format!("Let the tracer (pid {}) continue or detach.", stopped.tracer),
        'T' => format!("Find out who sent SIGSTOP or SIGTSTP; kill -CONT {} lets it go on.", stopped.process.pid),
        _ => match by.cgroup {
            Some(cgroup) => {
                format!("Thaw cgroup {cgroup} (cgroup.freeze, freezer.state), or find who paused the container.")
            }
            None => "Thaw its cgroup (cgroup.freeze, freezer.state), or find who paused the container.".to_owned(),
        },
    };
    finding.chain = waiters.iter().filter_map(|w| w.link.clone()).chain(by.link).collect();
    finding
}

/// Who, or what, stopped a process.
#[derive(Default)]
struct Stopper {
    words: String,
    link: Option<Link>,
    cgroup: Option<String>,
    shell: Option<Pid>,
}

/// A tracer and a frozen cgroup are known; the kernel does not keep who sent a signal.
fn stopper(host: &Host, stopped: &ThreadRow) -> Stopper {
    let fact = host.stop(stopped.process);
    if stopped.is_frozen() {
        let cgroup = fact.and_then(|fact| fact.frozen.clone());
        let words = match &cgroup {
            Some(cgroup) => format!("Cgroup {cgroup} is frozen, with everything in it."),
            None => "Which cgroup is frozen could not be read.".to_owned(),
        };
        return Stopper { words, cgroup, ..Stopper::default() };
    }
    if stopped.tracer != 0 && stopped.state_letter() == 't' {
        let tracer = host.row(stopped.tracer).map(|row| row.tid);
        let words = match tracer {
            Some(tracer) => format!("Its tracer {} {}.", host.name(tracer), host.doing(tracer)),
            None => format!("Its tracer (pid {}) is not to be seen from here.", stopped.tracer),
        };
        let link = tracer.map(|tracer| Link {
            from: thread_ref(stopped.tid, host),
            waits_for: Resource::of(ResourceKind::Other).detailed("to be continued by its tracer"),
            held_by: Some(thread_ref(tracer, host)),
            nature: Nature::Tracer,
            confidence: Confidence::Certain,
            how: "the kernel keeps who traces a thread".to_owned(),
        });
        return Stopper { words, link, ..Stopper::default() };
    }
    let shell = fact.and_then(|fact| fact.shell).filter(|shell| host.row(*shell).is_some());
    let words = match shell {
        Some(shell) => format!(
            "It is a job of {} that is not in the foreground of its terminal; who sent the signal is not kept.",
            host.name(shell)
        ),
        None => "Who sent the signal is not kept by the kernel.".to_owned(),
    };
    Stopper { words, shell, ..Stopper::default() }
}
