//! `unreadable`: the target blocks whoever reads its memory or its command line.

use super::{Context, Finding, Kind, Rule, Severity, Verdict};
use crate::model::{Confidence, duration};
use std::collections::BTreeMap;

/// The rule.
#[derive(Debug)]
pub struct Unreadable;

impl Rule for Unreadable {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let host = context.host;
        let mut verdict = Verdict::default();
        let mut by_process = BTreeMap::new();
        for read in host.blocked_reads() {
            let since = by_process.entry(read.process).or_insert((read.since_ns, read.what.clone()));
            if read.since_ns < since.0 {
                *since = (read.since_ns, read.what.clone());
            }
        }
        for (process, (since, what)) in by_process {
            let in_scope = host.threads_of(process.pid).next().is_some_and(|row| context.scope.contains(row, host));
            if !in_scope || !verdict.is_ripe(since, context) {
                continue;
            }
            let age = duration(host.now_ns().saturating_sub(since));
            let mut finding = Finding::new(Kind::Unreadable, host, process, "read")
                .since_mono(since, host)
                .with_threads(host.row(process.pid).map(|row| row.tid))
                .fact("what", what.clone())
                .fact("blocked_ns", host.now_ns().saturating_sub(since));
            finding.severity = Severity::Warning;
            finding.confidence = Confidence::Certain;
            finding.title =
                format!("reading the {what} of {} (pid {}) has been stuck for {age}", finding.comm, process.pid);
            finding.explanation = format!(
                "A read of this process' {what} has not come back for {age}. Either a thread of it holds the memory-map lock and sleeps, or the pages are backed by something that does not answer (userfaultfd, FUSE, a network file system). ps, top and every monitoring agent that reads the same will hang as well."
            );
            finding.remedy = "Look for a thread in D state, in a page fault, or for the handler behind userfaultfd or FUSE; do not run ps -f or read /proc/PID/cmdline of it.".to_owned();
            verdict.findings.push(finding);
        }
        verdict
    }
}
