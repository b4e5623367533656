//! Findings and samples as OTLP requests. Pure.

use super::resource::{Attributes, Own, attribute, resource, text};
use crate::detect::Severity;
use crate::export::signals::{Kind, Metric as Described};
use crate::export::{FindingEvent, Life, Sample, Value as Measured};
use crate::report::json;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric::Data, number_data_point::Value as Number,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of one attribute at most: a record must fit into a request, whatever the target's names and stacks are.
const LONGEST: usize = 128 * 1024;
/// Threads listed at most.
const MOST_THREADS: usize = 4096;

/// Encodes for one receiver.
#[derive(Clone, Debug, Default)]
pub(super) struct Encoder {
    /// Who we are.
    pub(super) own: Own,
    /// Whether command lines are told.
    pub(super) command_line: bool,
}

impl Encoder {
    /// Findings, one resource per process or container they are about.
    pub(super) fn logs(&self, events: &[Arc<FindingEvent>]) -> ExportLogsServiceRequest {
        let mut by_resource: BTreeMap<Attributes, Vec<LogRecord>> = BTreeMap::new();
        for event in events {
            by_resource.entry(self.own.of(&event.entity)).or_default().push(self.record(event));
        }
        let of_resource = |(attributes, log_records): (Attributes, Vec<LogRecord>)| ResourceLogs {
            resource: Some(resource(&attributes)),
            scope_logs: vec![ScopeLogs { scope: Some(scope()), log_records, ..ScopeLogs::default() }],
            ..ResourceLogs::default()
        };
        ExportLogsServiceRequest { resource_logs: by_resource.into_iter().map(of_resource).collect() }
    }

    fn record(&self, event: &FindingEvent) -> LogRecord {
        let severity = event.found.finding.severity;
        LogRecord {
            time_unix_nano: event.at.0,
            observed_time_unix_nano: event.at.0,
            severity_number: severity_number(event.life, severity).into(),
            severity_text: severity.name().to_owned(),
            body: Some(AnyValue { value: Some(Value::StringValue(cut(&event.found.finding.explanation))) }),
            attributes: self.attributes(event),
            event_name: event.life.event_name().to_owned(),
            ..LogRecord::default()
        }
    }

    fn attributes(&self, event: &FindingEvent) -> Vec<KeyValue> {
        let finding = &event.found.finding;
        let state = if event.found.resolved { "resolved" } else { "open" };
        let evidence =
            if finding.evidence.is_empty() { String::new() } else { serde_json::json!(finding.evidence).to_string() };
        let mut attributes = vec![attribute("process.pid", Value::IntValue(event.entity.process.pid.into()))];
        let texts = [
            ("event.name", event.life.event_name()),
            ("process.creation.time", &json::timestamp(event.entity.started)),
            ("process.command_line", &if self.command_line { event.entity.cmdline.join(" ") } else { String::new() }),
            ("observer.finding.id", &finding.id),
            ("observer.finding.kind", finding.kind.name()),
            ("observer.finding.severity", finding.severity.name()),
            ("observer.finding.confidence", json::confidence(finding.confidence)),
            ("observer.finding.state", state),
            ("observer.finding.since", &json::timestamp(finding.since)),
            ("observer.finding.title", &finding.title),
            ("observer.finding.remedy", &finding.remedy),
            ("observer.finding.chain", &event.chain),
            ("observer.finding.evidence", &evidence),
            ("code.stacktrace", &event.stacks),
        ];
        attributes.extend(
            texts.into_iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| text(key, &cut(value))),
        );
        let thread = |tid: &u32| AnyValue { value: Some(Value::IntValue((*tid).into())) };
        let values: Vec<AnyValue> = finding.threads.iter().take(MOST_THREADS).map(thread).collect();
        if !values.is_empty() {
            attributes.push(attribute("observer.thread.tids", Value::ArrayValue(ArrayValue { values })));
        }
        attributes
    }

    /// The points of a sample, those that outsiders cannot tell apart added up.
    pub(super) fn series(&self, sample: &Sample) -> Vec<Series> {
        let mut merged: Vec<Series> = Vec::new();
        let mut places: BTreeMap<Outside<'_>, usize> = BTreeMap::new();
        for point in &sample.points {
            let about = point.entity.as_ref().map_or_else(|| self.own.observer(), |entity| self.own.of(entity));
            let attributes: Vec<(&str, &str)> =
                point.attributes.iter().map(|(key, value)| (*key, value.as_str())).collect();
            let key = (about, point.metric.name, attributes);
            let same = places.get(&key).and_then(|place| merged.get_mut(*place));
            if let Some(same) = same {
                add(&mut same.value, &point.value);
                continue;
            }
            merged.push(Series {
                about: key.0.clone(),
                metric: point.metric,
                attributes: point.attributes.clone(),
                value: point.value.clone(),
            });
            places.insert(key, merged.len() - 1);
        }
        merged
    }

    /// These points of a sample.
    pub(super) fn metrics(&self, sample: &Sample, series: &[Series]) -> ExportMetricsServiceRequest {
        let mut by_resource: BTreeMap<&Attributes, BTreeMap<&str, (&Described, Vec<&Series>)>> = BTreeMap::new();
        for one in series {
            let metrics = by_resource.entry(&one.about).or_default();
            metrics.entry(one.metric.name).or_insert_with(|| (one.metric, Vec::new())).1.push(one);
        }
        let resource_metrics = by_resource
            .into_iter()
            .map(|(attributes, metrics)| {
                let metrics =
                    metrics.into_values().map(|(metric, series)| described(sample, metric, &series)).collect();
                ResourceMetrics {
                    resource: Some(resource(attributes)),
                    scope_metrics: vec![ScopeMetrics { scope: Some(scope()), metrics, ..ScopeMetrics::default() }],
                    ..ResourceMetrics::default()
                }
            })
            .collect();
        ExportMetricsServiceRequest { resource_metrics }
    }
}

/// What tells a series from others: resource, metric, attributes.
type Outside<'a> = (Attributes, &'a str, Vec<(&'a str, &'a str)>);

/// One point under the names outsiders see.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    about: Attributes,
    metric: &'static Described,
    attributes: Vec<(&'static str, String)>,
    value: Measured,
}

pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "observer".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// The end of a critical finding is good news.
fn severity_number(life: Life, severity: Severity) -> SeverityNumber {
    match (life, severity) {
        (Life::Resolved, _) | (_, Severity::Info) => SeverityNumber::Info,
        (_, Severity::Warning) => SeverityNumber::Warn,
        (_, Severity::Critical) => SeverityNumber::Error,
    }
}

/// At most [`LONGEST`] bytes, and says so where something is missing.
fn cut(value: &str) -> String {
    if value.len() <= LONGEST {
        return value.to_owned();
    }
    let end = value.floor_char_boundary(LONGEST);
    format!("{}\n[{} bytes more]", value.get(..end).unwrap_or_default(), value.len() - end)
}

fn add(sum: &mut Measured, other: &Measured) {
    match (sum, other) {
        (Measured::Count(sum), Measured::Count(other)) => *sum = sum.saturating_add(*other),
        (
            Measured::Histogram { bounds, counts, sum },
            Measured::Histogram { bounds: other_bounds, counts: other_counts, sum: other_sum },
        ) if bounds == other_bounds => {
            for (count, other) in counts.iter_mut().zip(other_counts) {
                *count += other;
            }
            *sum += other_sum;
        }
        // A metric has one form, and a histogram one set of bounds.
        _ => {}
    }
}

fn described(sample: &Sample, metric: &Described, series: &[&Series]) -> Metric {
    let cumulative = AggregationTemporality::Cumulative.into();
    let data = match metric.kind {
        Kind::Gauge => Data::Gauge(Gauge { data_points: numbers(sample, metric, series) }),
        Kind::Counter => Data::Sum(Sum {
            data_points: numbers(sample, metric, series),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        Kind::Histogram => Data::Histogram(Histogram {
            data_points: series.iter().filter_map(|one| histogram(sample, one)).collect(),
            aggregation_temporality: cumulative,
        }),
    };
    Metric {
        name: metric.name.to_owned(),
        description: metric.about.to_owned(),
        unit: metric.unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn numbers(sample: &Sample, metric: &Described, series: &[&Series]) -> Vec<NumberDataPoint> {
    let number = |one: &&Series| {
        let Measured::Count(count) = one.value else { return None };
        let value = if metric.unit == "s" {
            // What is counted is nanoseconds.
            Number::AsDouble(count as f64 / 1e9)
        } else {
            Number::AsInt(i64::try_from(count).unwrap_or(i64::MAX))
        };
        Some(NumberDataPoint {
            attributes: attributes(one),
            start_time_unix_nano: if metric.kind == Kind::Gauge { 0 } else { sample.since.0 },
            time_unix_nano: sample.at.0,
            value: Some(value),
            ..NumberDataPoint::default()
        })
    };
    series.iter().filter_map(number).collect()
}

fn histogram(sample: &Sample, one: &Series) -> Option<HistogramDataPoint> {
    let Measured::Histogram { bounds, counts, sum } = &one.value else { return None };
    Some(HistogramDataPoint {
        attributes: attributes(one),
        start_time_unix_nano: sample.since.0,
        time_unix_nano: sample.at.0,
        count: counts.iter().sum(),
        sum: Some(*sum),
        bucket_counts: counts.clone(),
        explicit_bounds: bounds.clone(),
        ..HistogramDataPoint::default()
    })
}

fn attributes(one: &Series) -> Vec<KeyValue> {
    one.attributes.iter().map(|(key, value)| text(key, &cut(value))).collect()
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
