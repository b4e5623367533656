//! When stream sockets are listed: of processes that were asked for at every turn, of the whole host as seldom as will do.

use super::Session;
use crate::census::ProcessId;
use crate::host::clock::{monotonic_ns, thread_cpu_ns};
use crate::proc::{Facts, FileTables, Streams};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What one listing may take: of processes that were asked for, and of the whole host.
const FOR_STREAMS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(500));
/// The next listing waits for so many times the CPU time of the last one: a fifth of a CPU, or a quarter of a percent of it.
const STREAMS_EVERY: (u64, u64) = (5, 400);
/// The same of a host for so many thresholds after something began to look like a debt: a percent.
const WITH_NEWS: (u32, u64) = (4, 100);
/// But no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The sockets, and when they are listed next.
pub(super) struct StreamPace {
    streams: Streams,
    due: Option<Instant>,
    news_until: Option<Instant>,
}

impl StreamPace {
    pub(super) fn new(tables: FileTables) -> Self {
        Self { streams: Streams::new(monotonic_ns, tables), due: None, news_until: None }
    }
}

impl Session {
    /// Lists the stream sockets of the processes in scope, where it is time for that.
    pub(super) fn list_streams(&mut self, in_scope: &[ProcessId], facts: &mut Facts) {
        let (start, cpu_ns) = (Instant::now(), thread_cpu_ns());
        if self.stream_pace.due.is_some_and(|due| start < due) {
            return;
        }
        // Ours are waited at by our own threads.
        let others = |process: &ProcessId| process.pid != std::process::id();
        let until = start + self.of_look(FOR_STREAMS);
        let half = Duration::from_nanos(self.judge.scope.threshold_ns / 2);
        let attached = self.judge.scope.processes.is_some();
        let in_scope: Vec<ProcessId> = in_scope.iter().copied().filter(others).collect();
        let living = self.judge.host.rows().iter().filter(|row| !row.is_kernel_thread() && !row.is_exiting());
        let everyone: BTreeSet<ProcessId> = living.map(|row| row.process).filter(others).collect();
        let everyone: Vec<ProcessId> = everyone.into_iter().collect();
        let mut times = self.of_look(STREAMS_EVERY);
        let streams = &mut self.stream_pace.streams;
        let rest = if attached {
            facts.streams = streams.of(&in_scope, &everyone, until, &mut facts.lost);
            let listed: BTreeSet<ProcessId> = facts.streams.iter().map(|streams| streams.process).collect();
            facts.unlisted = in_scope.into_iter().filter(|process| !listed.contains(process)).collect();
            Duration::ZERO
        } else {
            let survey = streams.survey(&in_scope, &everyone, half, until, &mut facts.lost);
            (facts.streams, facts.unlisted) = (survey.streams, survey.unlisted);
            if survey.has_new {
                self.stream_pace.news_until = Some(start + 2 * half * WITH_NEWS.0);
            }
            if self.stream_pace.news_until.is_some_and(|until| start < until) {
                times = WITH_NEWS.1;
            }
            // While something seems to be owed every turn looks.
            if survey.suspects > 0 { Duration::ZERO } else { half }
        };
        let spent_ns = thread_cpu_ns().saturating_sub(cpu_ns);
        let pause = Duration::from_nanos(spent_ns.saturating_mul(times));
        self.stream_pace.due = Some(start + pause.min(LONGEST_PAUSE).max(rest));
    }
}
