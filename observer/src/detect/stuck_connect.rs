//! `stuck_connect`: a connection attempt unanswered beyond the threshold, by a blocking thread or a socket
//! in SYN-SENT that nobody need be waiting for.

use super::finding::thread_ref;
use super::{Context, Finding, Kind, Link, Rule, Severity, Verdict};
use crate::census::ProcessId;
use crate::model::graph::Nature;
use crate::model::{Class, Confidence, Host, Resource, ResourceKind, duration};
use std::collections::BTreeMap;

/// The rule.
#[derive(Debug)]
pub struct StuckConnect;

/// One attempt.
struct Attempt {
    since_ns: u64,
    /// When it was seen to last.
    seen_ns: u64,
    thread: Option<u32>,
    resource: Resource,
    retransmits: Option<u32>,
}

impl Attempt {
    /// How long it was seen to last, nanoseconds.
    fn age(&self) -> u64 {
        self.seen_ns.saturating_sub(self.since_ns)
    }
}

impl Rule for StuckConnect {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let host = context.host;
        // By descriptor: the blocking thread and its socket are one attempt.
        let mut attempts: BTreeMap<(ProcessId, i32), Attempt> = BTreeMap::new();
        for (row, wait) in context.confirmed().filter(|(_, wait)| wait.class == Class::Connect) {
            let resource = wait.resource.clone().unwrap_or(Resource::of(ResourceKind::Socket));
            let fd = resource.fd.unwrap_or(-1);
            let (since_ns, seen_ns) = (host.since(row).ns, host.now_ns());
            let attempt = Attempt { since_ns, seen_ns, thread: Some(row.tid), resource, retransmits: None };
            attempts.insert((row.process, fd), attempt);
        }
        for socket in host.connecting() {
            let in_scope =
                host.threads_of(socket.process.pid).next().is_some_and(|row| context.scope.contains(row, host));
            let Some(since_ns) = socket.since_ns.filter(|_| in_scope) else {
                continue;
            };
            // The list may be from before this census: a socket that nobody blocks on may have had its answer since.
            let seen_ns = if socket.taken_ns == 0 { host.now_ns() } else { socket.taken_ns.min(host.now_ns()) };
            let attempt = attempts.entry((socket.process, socket.fd)).or_insert_with(|| Attempt {
                since_ns,
                seen_ns,
                thread: None,
                resource: Resource { fd: Some(socket.fd), ..Resource::of(ResourceKind::Tcp) },
                retransmits: None,
            });
            attempt.retransmits = Some(socket.retransmits);
            attempt.resource.kind = ResourceKind::Tcp;
            attempt.resource.local = Some(socket.local.to_string());
            attempt.resource.remote = Some(socket.remote.to_string());
            attempt.since_ns = attempt.since_ns.min(since_ns);
        }
        let mut verdict = Verdict::default();
        for ((process, fd), attempt) in attempts {
            if verdict.has_lasted(attempt.since_ns, attempt.seen_ns, context) {
                verdict.findings.push(finding(host, process, fd, attempt));
            }
        }
        verdict
    }
}

fn finding(host: &Host, process: ProcessId, fd: i32, attempt: Attempt) -> Finding {
    let age = attempt.age();
    let remote = attempt.resource.remote.clone().unwrap_or_else(|| attempt.resource.describe());
    let mut finding = Finding::new(Kind::StuckConnect, host, process, &format!("{fd}/{remote}"))
        .since_mono(attempt.since_ns, host)
        .with_threads(attempt.thread)
        .fact("remote", remote.as_str())
        .fact("fd", fd)
        .fact("blocking", attempt.thread.is_some())
        .fact("waited_ns", age);
    if let Some(retransmits) = attempt.retransmits {
        finding = finding.fact("syn_retransmits", retransmits);
    }
    finding.severity = Severity::Warning;
    finding.confidence = Confidence::Certain;
    let long = duration(age);
    let who = attempt.thread.map_or_else(|| format!("{} (pid {})", finding.comm, process.pid), |tid| host.name(tid));
    finding.title = format!("{who} has been connecting to {remote} for {long}, unanswered");
    let again = match attempt.retransmits {
        Some(n) if n > 0 => format!(" The SYN was sent again {n} time(s)."),
        _ => String::new(),
    };
    let is_unix = attempt.resource.kind == ResourceKind::Unix;
    let how = match attempt.thread {
        Some(_) if is_unix => {
            "A blocking connect() on a unix socket waits until the listener accepts; it has no limit of its own."
        }
        Some(_) => "A blocking connect() gives up only after the kernel's own limit (about two minutes for TCP).",
        None => "The socket is non-blocking; whether anybody limits this attempt is up to the program.",
    };
    let why = if is_unix {
        "Its backlog is full: the listener does not accept."
    } else {
        "The peer drops the packets (firewall, dead host) or its backlog is full."
    };
    finding.explanation = format!("No answer has come from {remote} for {long}.{again} {how} {why}");
    finding.remedy = if is_unix {
        format!(
            "Look at the process that listens on {remote} and does not accept (ss -lxp: Recv-Q against Send-Q); give the connect a time limit."
        )
    } else {
        format!(
            "Check that {remote} listens and accepts (ss -lnt there: Recv-Q against Send-Q), and the path to it; give the connect a time limit."
        )
    };

    if let Some(tid) = attempt.thread {
        finding.chain = vec![Link {
            from: thread_ref(tid, host),
            waits_for: attempt.resource,
            held_by: None,
            nature: Nature::FarEnd,
            confidence: Confidence::Certain,
            how: "connect() has not returned".to_owned(),
        }];
    }
    finding
}
