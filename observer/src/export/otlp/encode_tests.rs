//! What receivers are given, by the types of the protocol.

use super::super::fixtures::{NOW, entity, event, point, sample};
use super::*;
use crate::export::signals::{
    ATTRIBUTES, CENSUSES, EVENTS, FINDINGS_OPEN, METRICS, PROCESS_THREADS_BLOCKED, SELF_CPU, WAIT_DURATION,
};
use std::collections::BTreeSet;

fn encoder() -> Encoder {
    let configured =
        [("service.name", "eyes"), ("k8s.pod.name", "observer-x"), ("k8s.cluster.name", "c1"), ("team", "t")];
    let own = Own {
        host_name: "pod-name".to_owned(),
        host_id: Some("ab".repeat(16)),
        node_name: Some("node-1".to_owned()),
        configured: configured.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
    };
    Encoder { own, command_line: false }
}

fn told(attributes: &[KeyValue]) -> BTreeMap<&str, String> {
    let value = |value: &AnyValue| match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::ArrayValue(list)) => format!("{} values", list.values.len()),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|one| (one.key.as_str(), one.value.as_ref().map(value).unwrap_or_default())).collect()
}

fn records(request: &ExportLogsServiceRequest) -> Vec<(BTreeMap<&str, String>, &LogRecord)> {
    let of = |logs: &'_ ResourceLogs| logs.resource.as_ref().map(|resource| resource.attributes.clone());
    assert!(request.resource_logs.iter().all(|logs| of(logs).is_some()));
    let mut list = Vec::new();
    for logs in &request.resource_logs {
        for scope in &logs.scope_logs {
            assert_eq!(scope.scope.as_ref().map(|scope| scope.name.as_str()), Some("observer"));
            let about = logs.resource.as_ref().map(|resource| told(&resource.attributes)).unwrap_or_default();
            list.extend(scope.log_records.iter().map(|record| (about.clone(), record)));
        }
    }
    list
}

#[test]
fn a_finding_is_an_event_with_flat_attributes() {
    let request = encoder().logs(&[event(1, Life::Opened, entity(42), "main:\n  #0 wait")]);
    let list = records(&request);
    let [(about, record)] = list.as_slice() else { panic!("{list:?}") };
    let expected = [
        ("container.id", "c".repeat(64)),
        ("host.id", "ab".repeat(16)),
        ("host.name", "node-1".to_owned()),
        ("k8s.cluster.name", "c1".to_owned()),
        ("k8s.node.name", "node-1".to_owned()),
        ("k8s.pod.name", "shop-1".to_owned()),
        ("k8s.pod.uid", "u-1".to_owned()),
        ("os.type", "linux".to_owned()),
        ("process.executable.name", "shop".to_owned()),
        ("process.executable.path", "/usr/bin/shop".to_owned()),
        ("process.runtime.name", "go".to_owned()),
        ("process.runtime.version", "1.24.3".to_owned()),
        ("team", "t".to_owned()),
    ];
    assert_eq!(about, &BTreeMap::from(expected), "neither a process id nor observer's own service, pod");
    assert_eq!(record.event_name, "observer.finding.opened");
    assert_eq!((record.time_unix_nano, record.severity_number), (NOW, 17));
    assert_eq!(record.severity_text, "critical");
    let body = AnyValue { value: Some(Value::StringValue("They wait for each other.".to_owned())) };
    assert_eq!(record.body, Some(body));
    let expected = [
        ("code.stacktrace", "main:\n  #0 wait"),
        ("event.name", "observer.finding.opened"),
        ("observer.finding.chain", "a → mutex → held by b"),
        ("observer.finding.confidence", "certain"),
        ("observer.finding.evidence", r#"{"cycle":2}"#),
        ("observer.finding.id", "id-1"),
        ("observer.finding.kind", "deadlock"),
        ("observer.finding.remedy", "One order."),
        ("observer.finding.severity", "critical"),
        ("observer.finding.since", "2025-12-31T23:59:30.000Z"),
        ("observer.finding.state", "open"),
        ("observer.finding.title", "two threads"),
        ("observer.thread.tids", "2 values"),
        ("process.creation.time", "2025-12-31T23:59:00.000Z"),
        ("process.pid", "42"),
    ];
    assert_eq!(told(&record.attributes), expected.map(|(key, value)| (key, value.to_owned())).into());
}

#[test]
fn every_name_is_in_the_tables() {
    let encoder = Encoder { command_line: true, ..encoder() };
    let request = encoder.logs(&[event(1, Life::Changed, entity(42), "x")]);
    let on = |place: &str| -> BTreeSet<&str> {
        ATTRIBUTES.iter().filter(|one| one.on == place).map(|one| one.name).collect()
    };
    for (about, record) in records(&request) {
        let names: BTreeSet<&str> = told(&record.attributes).into_keys().collect();
        assert_eq!(names, on("event"));
        assert!(told(&record.attributes)["process.command_line"].contains("hunter2"), "it was asked for");
        let allowed = on("resource");
        assert!(
            about.keys().all(|key| allowed.contains(key) || ["team", "k8s.cluster.name"].contains(key)),
            "{about:?}"
        );
    }
    let own = encoder.own.observer();
    assert!(
        own.keys()
            .all(|key| on("resource").contains(key.as_str()) || ["team", "k8s.cluster.name"].contains(&key.as_str()))
    );
    assert_eq!(own.get("service.name").map(String::as_str), Some("eyes"));
    let lives = [Life::Opened, Life::Changed, Life::Resolved].map(Life::event_name);
    assert_eq!(EVENTS.iter().map(|(name, _)| *name).collect::<Vec<_>>(), lives);
}

#[test]
fn what_is_over_is_no_alarm_and_secrets_stay() {
    let request = encoder().logs(&[event(1, Life::Resolved, entity(42), "")]);
    for (_, record) in records(&request) {
        assert_eq!((record.severity_number, record.severity_text.as_str()), (9, "critical"));
        assert_eq!(told(&record.attributes)["observer.finding.state"], "resolved");
    }
    assert!(!format!("{request:?}").contains("hunter2"));
}

#[test]
fn one_resource_per_entity_and_nothing_without_a_bound() {
    let other = crate::export::Entity { container: None, pod: None, ..entity(44) };
    let huge = "é".repeat(LONGEST);
    let request = encoder().logs(&[
        event(1, Life::Opened, entity(42), &huge),
        event(2, Life::Opened, other, ""),
        event(3, Life::Opened, entity(43), ""),
    ]);
    assert_eq!(request.resource_logs.len(), 2, "two processes of one container are one resource");
    assert_eq!(records(&request).len(), 3);
    let longest = records(&request)
        .iter()
        .filter_map(|(_, record)| told(&record.attributes).get("code.stacktrace").map(String::len))
        .max();
    assert!(longest.is_some_and(|length| length < LONGEST + 64), "{longest:?}");
}

#[test]
fn points_are_what_their_metric_says() {
    let (a, b) = (Arc::new(entity(42)), Arc::new(entity(43)));
    let histogram = Measured::Histogram { bounds: vec![0.5, 1.0], counts: vec![1, 2, 3], sum: 7.5 };
    let sample = sample(vec![
        point(&PROCESS_THREADS_BLOCKED, Some(&a), &["lock"], Measured::Count(2)),
        point(&PROCESS_THREADS_BLOCKED, Some(&b), &["lock"], Measured::Count(3)),
        point(&PROCESS_THREADS_BLOCKED, None, &["lock"], Measured::Count(5)),
        point(&FINDINGS_OPEN, None, &["deadlock", "critical"], Measured::Count(1)),
        point(&WAIT_DURATION, None, &["poll"], histogram),
        point(&SELF_CPU, None, &[], Measured::Count(1_500_000_000)),
        point(&CENSUSES, None, &[], Measured::Count(9)),
    ]);
    let encoder = encoder();
    let request = encoder.metrics(&sample, &encoder.series(&sample));
    let mut all: BTreeMap<(bool, String), Metric> = BTreeMap::new();
    for metrics in &request.resource_metrics {
        let about = metrics.resource.as_ref().map(|resource| told(&resource.attributes)).unwrap_or_default();
        assert!(!about.contains_key("process.pid"), "{about:?}");
        let is_own = about.get("service.name").is_some_and(|name| name == "eyes");
        for metric in metrics.scope_metrics.iter().flat_map(|scope| &scope.metrics) {
            let twice = all.insert((is_own, metric.name.clone()), metric.clone());
            assert_eq!(twice, None, "one metric per resource");
        }
    }
    let data = |is_own, name: &str| all.get(&(is_own, name.to_owned())).and_then(|metric| metric.data.clone());
    let gauge = |is_own, name: &str| match data(is_own, name) {
        Some(Data::Gauge(gauge)) => gauge.data_points.iter().map(|point| point.value).collect(),
        _ => Vec::new(),
    };
    let blocked = PROCESS_THREADS_BLOCKED.name;
    assert_eq!(
        gauge(false, blocked),
        [Some(Number::AsInt(5))],
        "two processes that look the same outside are added up"
    );
    assert_eq!(gauge(true, blocked), [Some(Number::AsInt(5))]);
    assert_eq!(gauge(true, FINDINGS_OPEN.name), [Some(Number::AsInt(1))]);
    let Some(Data::Sum(cpu)) = data(true, SELF_CPU.name) else { panic!("a sum") };
    assert_eq!((cpu.is_monotonic, cpu.aggregation_temporality), (true, 2));
    let [point] = cpu.data_points.as_slice() else { panic!("{cpu:?}") };
    assert_eq!(point.value, Some(Number::AsDouble(1.5)), "nanoseconds become seconds");
    assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (NOW - 90_000_000_000, NOW));
    let Some(Data::Histogram(waits)) = data(true, WAIT_DURATION.name) else { panic!("a histogram") };
    let [point] = waits.data_points.as_slice() else { panic!("{waits:?}") };
    assert_eq!((point.count, point.sum, waits.aggregation_temporality), (6, Some(7.5), 2));
    assert_eq!((&point.bucket_counts, &point.explicit_bounds), (&vec![1, 2, 3], &vec![0.5, 1.0]));
    assert_eq!(told(&point.attributes)["family"], "poll");
    for (_, metric) in all {
        let described = METRICS.iter().find(|one| one.name == metric.name);
        assert_eq!(
            described.map(|one| (one.unit, one.about)),
            Some((metric.unit.as_str(), metric.description.as_str()))
        );
    }
}
