//! A [`Sample`] in the words of Prometheus: text format 0.0.4, or OpenMetrics 1.0 for those who ask for it.
//!
//! Written by hand: `prometheus-client` writes OpenMetrics only, and keeps the numbers itself. No process ids: a series per
//! process would never end. What is told apart by process carries its executable, container and pod, and adds up where these
//! are the same.

use super::event::Entity;
use super::sample::{Sample, Value};
use super::signals::{Kind, METRICS, Metric};
use crate::proc::base_name;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Series of one metric at most; what is beyond is added up in one.
const MOST_SERIES: usize = 400;
/// Characters of a label's value at most.
const MOST_CHARACTERS: usize = 128;
/// The value of labels that stand for several, which no executable, container or reason has.
const OTHERS: &str = "(others)";
/// Stands for the executable of a process where it could not be read.
const UNKNOWN: &str = "(unknown)";
/// Labels of metrics that are told apart by process.
pub const PROCESS_LABELS: [&str; 3] = ["executable", "container_id", "pod_uid"];

/// A way to write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What is preferred by this `Accept` header; without one, text.
    pub fn accepted(accept: Option<&str>) -> Self {
        let mut text = 0.0;
        let mut open_metrics = 0.0;
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut quality: f64 = 1.0;
            let mut version = None;
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            match kind.as_str() {
                "application/openmetrics-text" if version.is_none_or(|version| version == "1.0.0") => {
                    open_metrics = quality.max(open_metrics);
                }
                "text/plain" | "text/*" => text = quality.max(text),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// Its name in the `Content-Type` header.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The unit in Prometheus' words; `None` for plain numbers of things.
fn unit(metric: &Metric) -> Option<&'static str> {
    match metric.unit {
        "s" => Some("seconds"),
        "By" => Some("bytes"),
        _ => None,
    }
}

/// The name of a metric's family: that of its series without `_total`, `_bucket`, …
fn family(metric: &Metric) -> String {
    let name = match metric.kind {
        Kind::Counter => metric.name.strip_suffix(".count").unwrap_or(metric.name),
        Kind::Gauge | Kind::Histogram => metric.name,
    };
    let mut name = name.replace('.', "_");
    if let Some(unit) = unit(metric) {
        name.push('_');
        name.push_str(unit);
    }
    name
}

/// The name of a metric: its family, and `_total` for counters. A histogram's series have `_bucket`, `_sum` and `_count` behind it.
pub fn name(metric: &Metric) -> String {
    let mut name = family(metric);
    if metric.kind == Kind::Counter {
        name.push_str("_total");
    }
    name
}

/// Labels and their values, in order.
type Labels = Vec<(&'static str, String)>;

/// The whole page.
pub fn page(sample: &Sample, version: &str, format: Format) -> String {
    let mut page = Page { out: String::new(), format };
    page.head("observer_build_info", "observer_build_info", "gauge", None, "Which observer this is");
    page.line("observer_build_info", &[("version", version.to_owned())], None, "1");
    for metric in METRICS {
        let points = sample.points.iter().filter(|point| point.metric == *metric);
        let mut series: BTreeMap<Labels, Value> = BTreeMap::new();
        for point in points {
            let mut labels: Labels = Vec::new();
            if metric.is_by_process() {
                labels.extend(PROCESS_LABELS.into_iter().zip(process_values(point.entity.as_deref())));
            }
            labels.extend(point.attributes.iter().cloned());
            if series.len() >= MOST_SERIES && !series.contains_key(&labels) {
                labels.iter_mut().for_each(|(_, value)| OTHERS.clone_into(value));
            }
            match series.get_mut(&labels) {
                Some(value) => add(value, &point.value),
                None => {
                    series.insert(labels, point.value.clone());
                }
            }
        }
        if !series.is_empty() {
            page.metric(metric, &series);
        }
    }
    if format == Format::OpenMetrics {
        page.out.push_str("# EOF\n");
    }
    page.out
}

fn process_values(entity: Option<&Entity>) -> [String; 3] {
    let Some(entity) = entity else { return [OTHERS, "", ""].map(str::to_owned) };
    let file = entity.exe.as_deref().map(base_name).filter(|file| !file.is_empty());
    [
        file.unwrap_or(UNKNOWN).to_owned(),
        entity.container.as_ref().map(|container| container.id.clone()).unwrap_or_default(),
        entity.pod.as_ref().map(|pod| pod.uid.clone()).unwrap_or_default(),
    ]
}

/// Adds what has the same labels.
fn add(sum: &mut Value, more: &Value) {
    match (sum, more) {
        (Value::Count(sum), Value::Count(more)) => *sum = sum.saturating_add(*more),
        (Value::Histogram { bounds, counts, sum }, Value::Histogram { bounds: same, counts: more, sum: other })
            if bounds == same =>
        {
            counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
            *sum += other;
        }
        _ => {}
    }
}

struct Page {
    out: String,
    format: Format,
}

impl Page {
    fn head(&mut self, family: &str, name: &str, kind: &str, unit: Option<&str>, about: &str) {
        // OpenMetrics names the family, the older format the series.
        let name = if self.format == Format::OpenMetrics { family } else { name };
        let quoted = if self.format == Format::OpenMetrics { about.replace('"', "\\\"") } else { about.to_owned() };
        let _ = writeln!(self.out, "# HELP {name} {quoted}");
        let _ = writeln!(self.out, "# TYPE {name} {kind}");
        if let Some(unit) = unit.filter(|_| self.format == Format::OpenMetrics) {
            let _ = writeln!(self.out, "# UNIT {name} {unit}");
        }
    }

    fn metric(&mut self, metric: &Metric, series: &BTreeMap<Labels, Value>) {
        let name = name(metric);
        let kind = match metric.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
        };
        self.head(&family(metric), &name, kind, unit(metric), metric.about);
        for (labels, value) in series {
            match value {
                Value::Count(count) if metric.unit == "s" => {
                    self.line(&name, labels, None, &(*count as f64 / 1e9).to_string());
                }
                Value::Count(count) => self.line(&name, labels, None, &count.to_string()),
                Value::Histogram { bounds, counts, sum } => self.histogram(&name, labels, bounds, counts, *sum),
            }
        }
    }

    fn histogram(&mut self, name: &str, labels: &Labels, bounds: &[f64], counts: &[u64], sum: f64) {
        let bucket = format!("{name}_bucket");
        let mut below = 0_u64;
        for (at, count) in counts.iter().enumerate() {
            below = below.saturating_add(*count);
            let bound = bounds.get(at).map_or_else(|| "+Inf".to_owned(), |bound| float(*bound));
            self.line(&bucket, labels, Some(("le", &bound)), &below.to_string());
        }
        self.line(&format!("{name}_sum"), labels, None, &sum.to_string());
        self.line(&format!("{name}_count"), labels, None, &below.to_string());
    }

    fn line(&mut self, name: &str, labels: &[(&'static str, String)], last: Option<(&str, &str)>, value: &str) {
        self.out.push_str(name);
        let named = labels.iter().map(|(name, value)| (*name, value.as_str())).chain(last);
        // A label without a value is the same as none.
        let mut before = '{';
        for (name, value) in named.filter(|(_, value)| !value.is_empty()) {
            let _ = write!(self.out, "{before}{name}=\"");
            escape(value, &mut self.out);
            self.out.push('"');
            before = ',';
        }
        if before == ',' {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

/// OpenMetrics wants bounds to look like floating point numbers.
fn float(value: f64) -> String {
    let mut text = value.to_string();
    if !text.contains('.') {
        text.push_str(".0");
    }
    text
}

/// What a program calls itself may hold anything; it must not end a label, and readers trip over control characters.
fn escape(value: &str, out: &mut String) {
    for character in value.chars().take(MOST_CHARACTERS) {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            control if control.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
#[path = "prometheus_tests.rs"]
mod tests;
