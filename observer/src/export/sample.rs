//! The numbers of one moment.

use super::SinkStats;
use super::debts;
use super::event::Entity;
use super::signals::{self as of, METRICS, Metric};
use crate::census::{Family, Pid, ProcessId, WaitStats};
use crate::detect::{Change, Judge, Moment, Turn};
use crate::host::clock::whole_ns;
use crate::model::Class;
use crate::report::Account;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number: of things, or nanoseconds where the metric's unit is seconds.
    Count(u64),
    /// A histogram.
    Histogram {
        /// Upper bounds, seconds, ascending.
        bounds: Vec<f64>,
        /// One more than bounds: the last is beyond them.
        counts: Vec<u64>,
        /// Sum, seconds.
        sum: f64,
    },
}

/// One point of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Of which metric.
    pub metric: &'static Metric,
    /// Its attributes, in the metric's order.
    pub attributes: Vec<(&'static str, String)>,
    /// The process it is about; `None` is the host.
    pub entity: Option<Arc<Entity>>,
    /// The value.
    pub value: Value,
}

/// All points of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// When counting began.
    pub since: Moment,
    /// Now.
    pub at: Moment,
    /// The points, those of a metric together, in the order of [`METRICS`].
    pub points: Vec<Point>,
}

/// Bounds of wait times, as powers of two of a nanosecond: about a microsecond to about a quarter of an hour.
const LOWEST: usize = 10;
const HIGHEST: usize = 40;

/// Kinds of timeouts in the order of the kernel side's counters.
const TIMEOUTS: [&str; 8] = ["unknown", "none", "zero", "finite", "infinite", "negative", "absurd", "invalid"];

/// Classes that are no rest.
const WAITS: [Class; 5] = [Class::Lock, Class::FileLock, Class::Io, Class::Connect, Class::Stopped];

/// What one process did with one family of calls: deltas are added up, so that sums never go down when processes end.
#[derive(Clone, Debug, Default)]
struct Sums {
    calls: Vec<u64>,
    waits: Vec<u64>,
    total_ns: u64,
    failed: u64,
}

/// Makes samples, and keeps the sums.
#[derive(Debug, Default)]
pub struct Sampler {
    since: Moment,
    opened: BTreeMap<(&'static str, &'static str), u64>,
    resolved: BTreeMap<&'static str, u64>,
    silenced: BTreeMap<&'static str, u64>,
    reloads: BTreeMap<&'static str, u64>,
    last: BTreeMap<(Pid, Family), WaitStats>,
    sums: BTreeMap<Family, Sums>,
    /// Processes that get points of their own.
    top: usize,
    /// Classes of waits that were ever seen.
    classes: BTreeSet<&'static str>,
}

impl Sampler {
    /// A sampler that began now and gives the `top` processes points of their own.
    pub fn new(since: Moment, top: usize) -> Self {
        Self { since, top, ..Self::default() }
    }

    /// Counts what a turn changed.
    pub fn note(&mut self, turn: &Turn) {
        for (change, life) in &turn.changes {
            let (kind, severity) = (life.finding.kind.name(), life.finding.severity.name());
            match change {
                Change::Opened => *self.opened.entry((kind, severity)).or_default() += 1,
                Change::Resolved => *self.resolved.entry(kind).or_default() += 1,
                // It may be open under a severity that none opened with.
                Change::Worsened => drop(self.opened.entry((kind, severity)).or_default()),
            }
        }
    }

    /// Counts changes that the settings keep quiet.
    pub fn note_silenced(&mut self, kind: &'static str, count: u64) {
        *self.silenced.entry(kind).or_default() += count;
    }

    /// Counts that settings were loaded again, or refused.
    pub fn note_reload(&mut self, taken: bool) {
        *self.reloads.entry(if taken { "taken" } else { "refused" }).or_default() += 1;
    }

    /// That many processes get points of their own from now on.
    pub fn set_top(&mut self, top: usize) {
        self.top = top;
    }

    /// The numbers now.
    pub fn sample(&mut self, judge: &Judge, account: &Account, sinks: &[SinkStats]) -> Sample {
        let host = &judge.host;
        let mut points = Points::default();
        self.threads(judge, &mut points);
        debts::add(judge, self.top, &mut points);
        let mut open: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for life in judge.ledger.open() {
            *open.entry((life.finding.kind.name(), life.finding.severity.name())).or_default() += 1;
        }
        // What was open and is no longer is zero: a point that only stops keeps its last value in many back-ends.
        for key in self.opened.keys() {
            open.entry(*key).or_default();
        }
        for ((kind, severity), count) in open {
            points.add(&of::FINDINGS_OPEN, &[kind, severity], count);
        }
        for ((kind, severity), count) in &self.opened {
            points.add(&of::FINDINGS_OPENED, &[kind, severity], *count);
        }
        for (kind, count) in &self.resolved {
            points.add(&of::FINDINGS_RESOLVED, &[kind], *count);
        }
        for (kind, count) in &self.silenced {
            points.add(&of::FINDINGS_SILENCED, &[kind], *count);
        }
        self.add_up(host.probes().stats());
        self.waits(&mut points);
        for (outcome, count) in &self.reloads {
            points.add(&of::CONFIG_RELOADS, &[outcome], *count);
        }
        own(account, sinks, &mut points);
        let at = host.clocks().map(|clocks| Moment(clocks.real_ns)).unwrap_or_default();
        let mut points = points.0;
        let place = |point: &Point| METRICS.iter().position(|metric| *metric == point.metric);
        points.sort_by_key(place);
        Sample { since: self.since, at, points }
    }

    fn threads(&mut self, judge: &Judge, points: &mut Points) {
        let host = &judge.host;
        let mut by_class: BTreeMap<&'static str, u64> = self.classes.iter().map(|class| (*class, 0)).collect();
        let mut waiting: BTreeMap<ProcessId, BTreeMap<&str, u64>> = BTreeMap::new();
        for row in host.rows().iter().filter(|row| row.is_blocked() && judge.scope.contains(row, host)) {
            let class = host.class(row).unwrap_or(Class::Other);
            *by_class.entry(class.name()).or_default() += 1;
            if WAITS.contains(&class) {
                *waiting.entry(row.process).or_default().entry(class.name()).or_default() += 1;
            }
        }
        for (class, count) in by_class {
            self.classes.insert(class);
            points.add(&of::THREADS_BLOCKED, &[class], count);
        }
        let mut order: Vec<(u64, ProcessId)> =
            waiting.iter().map(|(process, classes)| (classes.values().sum(), *process)).collect();
        order.sort_by_key(|(count, process)| (std::cmp::Reverse(*count), *process));
        let mut rest: BTreeMap<&str, u64> = BTreeMap::new();
        for (place, (_, process)) in order.iter().enumerate() {
            let entity = (place < self.top).then(|| Arc::new(Entity::of(host, *process)));
            for (class, count) in waiting.get(process).into_iter().flatten() {
                match &entity {
                    Some(entity) => points.about(entity, &of::PROCESS_THREADS_BLOCKED, &[class], *count),
                    None => *rest.entry(class).or_default() += count,
                }
            }
        }
        for (class, count) in rest {
            points.add(&of::PROCESS_THREADS_BLOCKED, &[class], count);
        }
    }

    /// Adds what has come since the last time.
    fn add_up(&mut self, stats: &[WaitStats]) {
        let mut last = BTreeMap::new();
        for now in stats {
            let before = self.last.remove(&(now.pid, now.family)).filter(|before| before.total_ns <= now.total_ns);
            let sums = self.sums.entry(now.family).or_default();
            let add = |sums: &mut Vec<u64>, now: &[u64], before: Option<&Vec<u64>>| {
                sums.resize(sums.len().max(now.len()), 0);
                for (at, sum) in sums.iter_mut().enumerate() {
                    let value = |list: &[u64]| list.get(at).copied().unwrap_or(0);
                    *sum += value(now).saturating_sub(before.map_or(0, |before| value(before)));
                }
            };
            add(&mut sums.calls, &now.calls, before.as_ref().map(|before| &before.calls));
            add(&mut sums.waits, &now.waits, before.as_ref().map(|before| &before.waits));
            sums.total_ns += now.total_ns.saturating_sub(before.as_ref().map_or(0, |before| before.total_ns));
            sums.failed += now.failed.saturating_sub(before.as_ref().map_or(0, |before| before.failed));
            last.insert((now.pid, now.family), now.clone());
        }
        self.last = last;
    }

    fn waits(&self, points: &mut Points) {
        for (family, sums) in &self.sums {
            let family = family.name();
            let count = |range: std::ops::Range<usize>| {
                sums.waits
                    .get(range.start.min(sums.waits.len())..range.end.min(sums.waits.len()))
                    .map_or(0, |part| part.iter().sum())
            };
            let mut counts = vec![count(0..LOWEST)];
            counts.extend((LOWEST..HIGHEST).map(|at| count(at..at + 1)));
            counts.push(count(HIGHEST..usize::MAX));
            let bounds = (LOWEST..=HIGHEST).map(|power| (1_u64 << power) as f64 / 1e9).collect();
            let value = Value::Histogram { bounds, counts, sum: sums.total_ns as f64 / 1e9 };
            points.0.push(Point {
                metric: &of::WAIT_DURATION,
                attributes: vec![("family", family.to_owned())],
                entity: None,
                value,
            });
            points.add(&of::WAIT_FAILURES, &[family], sums.failed);
            for (kind, count) in TIMEOUTS.iter().zip(&sums.calls).filter(|(_, count)| **count > 0) {
                points.add(&of::TIMEOUTS, &[family, kind], *count);
            }
        }
    }
}

/// Numbers about observer itself.
fn own(account: &Account, sinks: &[SinkStats], points: &mut Points) {
    points.add(&of::THREADS_SEEN, &[], account.threads_seen);
    points.add(&of::SELF_CPU, &[], account.self_cpu_ns);
    points.add(&of::SELF_MEMORY, &[], account.self_rss_bytes);
    for (family, state) in account.spending.iter().flat_map(|spending| &spending.families) {
        points.add(&of::PROBES_CPU, &[family.name()], whole_ns(state.spent));
        points.add(&of::PROBES_SAMPLING, &[family.name()], state.watch.one_in());
        points.add(&of::PROBES_REDUCED, &[family.name()], whole_ns(state.reduced));
    }
    points.add(&of::CENSUS_DURATION, &[], account.census_ns);
    points.add(&of::CENSUSES, &[], account.censuses);
    points.add(&of::WORKERS_STUCK, &[], account.workers_stuck);
    points.add(&of::WORKERS_REPLACED, &[], account.workers_replaced);
    if account.jobs_panicked > 0 {
        points.add(&of::LOST, &["facts", "reader panicked"], account.jobs_panicked);
    }
    let stages = [
        ("census", &account.threads_lost_ever),
        ("probes", &account.events_dropped),
        ("facts", &account.facts_lost),
        ("stacks", &account.unwind_failed),
    ];
    for (stage, lost) in stages {
        for (reason, count) in lost {
            points.add(&of::LOST, &[stage, reason], *count);
        }
    }
    for sink in sinks {
        points.add(&of::EXPORT_QUEUE, &[sink.name], sink.queue.length as u64);
        points.add(&of::EXPORT_SENT, &[sink.name], sink.sent);
        points.add(&of::EXPORT_LOST, &[sink.name, "queue_full"], sink.queue.dropped);
        for (reason, count) in &sink.lost {
            points.add(&of::EXPORT_LOST, &[sink.name, reason], *count);
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Points(Vec<Point>);

impl Points {
    pub(super) fn add(&mut self, metric: &'static Metric, values: &[&str], count: u64) {
        self.push(None, metric, values, count);
    }

    pub(super) fn about(&mut self, entity: &Arc<Entity>, metric: &'static Metric, values: &[&str], count: u64) {
        self.push(Some(entity.clone()), metric, values, count);
    }

    fn push(&mut self, entity: Option<Arc<Entity>>, metric: &'static Metric, values: &[&str], count: u64) {
        let attributes =
            metric.attributes.iter().copied().zip(values.iter().map(|value| (*value).to_owned())).collect();
        self.0.push(Point { metric, attributes, entity, value: Value::Count(count) });
    }
}
