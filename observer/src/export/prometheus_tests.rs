//! Pages as they must be, to the letter.

use super::*;
use crate::census::ProcessId;
use crate::detect::Moment;
use crate::export::Point;
use crate::export::signals as of;
use crate::proc::{Container, Pod};
use std::collections::BTreeSet;
use std::sync::Arc;

fn point(metric: &'static Metric, values: &[&str], value: Value) -> Point {
    let attributes = metric.attributes.iter().copied().zip(values.iter().map(|value| (*value).to_owned())).collect();
    Point { metric, attributes, entity: None, value }
}

fn process(pid: u32, exe: Option<&str>, container: Option<&str>) -> Option<Arc<Entity>> {
    Some(Arc::new(Entity {
        process: ProcessId { pid, start_ns: 1 },
        started: Moment(1),
        comm: "main".to_owned(),
        exe: exe.map(str::to_owned),
        cmdline: Vec::new(),
        runtime: None,
        cgroup: None,
        container: container.map(|id| Container { id: id.to_owned(), runtime: "docker".to_owned() }),
        pod: container.map(|id| Pod { uid: format!("pod-of-{id}"), ..Pod::default() }),
    }))
}

fn sample() -> Sample {
    let by_process =
        |entity, count| Point { entity, ..point(&of::PROCESS_THREADS_BLOCKED, &["lock"], Value::Count(count)) };
    let histogram = Value::Histogram { bounds: vec![0.000_001_024, 1.0], counts: vec![2, 0, 1], sum: 3.5 };
    let points = vec![
        point(&of::THREADS_BLOCKED, &["lock"], Value::Count(2)),
        by_process(process(7, Some("/usr/bin/java"), Some("abc")), 2),
        by_process(process(8, Some("/usr/bin/java"), Some("abc")), 3),
        by_process(process(9, None, None), 1),
        by_process(None, 4),
        point(&of::WAIT_DURATION, &["poll"], histogram),
        point(&of::SELF_CPU, &[], Value::Count(1_500_000_000)),
        point(&of::LOST, &["facts", "it said \"no\"\\\n\u{1b}"], Value::Count(1)),
    ];
    Sample { since: Moment(1), at: Moment(2), points }
}

const TEXT: &str = r#"# HELP observer_build_info Which observer this is
# TYPE observer_build_info gauge
observer_build_info{version="1.2.3"} 1
# HELP observer_threads_blocked Threads off the CPU, by what they wait for
# TYPE observer_threads_blocked gauge
observer_threads_blocked{class="lock"} 2
# HELP observer_process_threads_blocked Threads of one process that wait for a lock, a file lock, a device, a connection, or are stopped; the processes with most of them, the others summed
# TYPE observer_process_threads_blocked gauge
observer_process_threads_blocked{executable="(others)",class="lock"} 4
observer_process_threads_blocked{executable="(unknown)",class="lock"} 1
observer_process_threads_blocked{executable="java",container_id="abc",pod_uid="pod-of-abc",class="lock"} 5
# HELP observer_wait_duration_seconds Waits that ended, by how long they took, of the probed calls (poll, futex, connect)
# TYPE observer_wait_duration_seconds histogram
observer_wait_duration_seconds_bucket{family="poll",le="0.000001024"} 2
observer_wait_duration_seconds_bucket{family="poll",le="1.0"} 2
observer_wait_duration_seconds_bucket{family="poll",le="+Inf"} 3
observer_wait_duration_seconds_sum{family="poll"} 3.5
observer_wait_duration_seconds_count{family="poll"} 3
# HELP observer_self_cpu_time_seconds_total CPU time of observer itself
# TYPE observer_self_cpu_time_seconds_total counter
observer_self_cpu_time_seconds_total 1.5
# HELP observer_lost_total What could not be seen, read, unwound or kept, by the stage that lost it
# TYPE observer_lost_total counter
observer_lost_total{stage="facts",reason="it said \"no\"\\\n�"} 1
"#;

#[test]
fn the_text_page() {
    assert_eq!(page(&sample(), "1.2.3", Format::Text), TEXT);
}

#[test]
fn the_open_metrics_page_names_families_and_units_and_ends() {
    let page = page(&sample(), "1.2.3", Format::OpenMetrics);
    let expected = TEXT
        .replace("HELP observer_self_cpu_time_seconds_total", "HELP observer_self_cpu_time_seconds")
        .replace(
            "TYPE observer_self_cpu_time_seconds_total counter",
            "TYPE observer_self_cpu_time_seconds counter\n# UNIT observer_self_cpu_time_seconds seconds",
        )
        .replace("HELP observer_lost_total", "HELP observer_lost")
        .replace("TYPE observer_lost_total", "TYPE observer_lost")
        .replace("_seconds histogram", "_seconds histogram\n# UNIT observer_wait_duration_seconds seconds");
    assert_eq!(page, expected + "# EOF\n");
}

#[test]
fn every_metric_has_a_name_of_its_own_that_prometheus_takes() {
    let names: BTreeSet<String> = METRICS.iter().map(|metric| name(metric)).collect();
    assert_eq!(names.len(), METRICS.len());
    for name in &names {
        assert!(name.starts_with("observer_"), "{name}");
        assert!(name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_'), "{name}");
        assert!(!name.ends_with("_count") && !name.contains("_count_"), "{name} reads like a part of a histogram");
    }
    for (metric, expected) in [
        (&of::FINDINGS_OPENED, "observer_findings_opened_total"),
        (&of::CENSUSES, "observer_census_total"),
        (&of::CENSUS_DURATION, "observer_census_duration_seconds"),
        (&of::SELF_MEMORY, "observer_self_memory_usage_bytes"),
    ] {
        assert_eq!(name(metric), expected);
    }
}

#[test]
fn no_process_has_its_id_in_a_label() {
    let labels: BTreeSet<&str> =
        METRICS.iter().flat_map(|metric| metric.attributes).copied().chain(PROCESS_LABELS).collect();
    assert!(labels.iter().all(|label| !label.contains("pid") && !label.contains("tid")), "{labels:?}");
}

#[test]
fn series_are_bounded_and_none_is_lost() {
    let reasons: Vec<String> = (0..3 * MOST_SERIES).map(|number| format!("reason {number}")).collect();
    let points = reasons.iter().map(|reason| point(&of::LOST, &["facts", reason], Value::Count(1))).collect();
    let page = page(&Sample { points, ..Sample::default() }, "1", Format::Text);
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("observer_lost_total{")).collect();
    assert_eq!(lines.len(), MOST_SERIES + 1);
    assert!(lines.contains(&"observer_lost_total{stage=\"(others)\",reason=\"(others)\"} 800"), "{lines:#?}");
}

#[test]
fn long_values_are_cut() {
    let long = "ü".repeat(10_000);
    let points = vec![point(&of::LOST, &["facts", &long], Value::Count(1))];
    assert!(page(&Sample { points, ..Sample::default() }, "1", Format::Text).len() < 1000);
}

#[test]
fn the_reader_says_which_format() {
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                      text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (accept, expected) in [
        (None, Format::Text),
        (Some(""), Format::Text),
        (Some("*/*"), Format::Text),
        (Some(prometheus), Format::OpenMetrics),
        (Some("text/plain;version=0.0.4;q=1,*/*;q=0.1"), Format::Text),
        (Some("application/openmetrics-text"), Format::OpenMetrics),
        (Some("Application/OpenMetrics-Text; version=\"1.0.0\"; charset=utf-8"), Format::OpenMetrics),
        (Some("application/openmetrics-text;q=0"), Format::Text),
        (Some("application/openmetrics-text;q=0.3, text/plain;q=0.9"), Format::Text),
        (Some("application/openmetrics-text;version=0.0.1"), Format::Text),
        (Some("application/openmetrics-text;q=nonsense"), Format::Text),
    ] {
        assert_eq!(Format::accepted(accept), expected, "{accept:?}");
    }
}

/// Names of series that may stand on a page, with their labels.
fn known() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut known = BTreeMap::from([("observer_build_info".to_owned(), BTreeSet::from(["version"]))]);
    for metric in METRICS {
        let mut labels: BTreeSet<&str> = metric.attributes.iter().copied().collect();
        if metric.is_by_process() {
            labels.extend(PROCESS_LABELS);
        }
        let name = name(metric);
        if metric.kind == Kind::Histogram {
            known.insert(format!("{name}_sum"), labels.clone());
            known.insert(format!("{name}_count"), labels.clone());
            labels.insert("le");
            known.insert(format!("{name}_bucket"), labels);
        } else {
            known.insert(name, labels);
        }
    }
    known
}

/// What a query names: each series with the labels it is selected by.
fn named(query: &str) -> Vec<(String, Vec<String>)> {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut named = Vec::new();
    for (at, _) in query.match_indices("observer_") {
        if query[..at].ends_with(is_word) {
            continue;
        }
        let (name, rest) =
            query[at..].split_at(query[at..].find(|letter| !is_word(letter)).unwrap_or(query.len() - at));
        let selector = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
        let labels = selector.split(',').filter_map(|part| part.split_once(['=', '!']));
        named.push((name.to_owned(), labels.map(|(label, _)| label.trim().to_owned()).collect()));
    }
    named
}

fn check(what: &str, query: &str) -> BTreeSet<String> {
    let known = known();
    let named = named(query);
    for (name, labels) in &named {
        let allowed = known.get(name);
        assert!(allowed.is_some(), "{what}: {name} does not exist");
        for label in labels {
            let is_of_target = ["job", "instance"].contains(&label.as_str());
            let is_known = allowed.is_some_and(|allowed| allowed.contains(label.as_str()));
            assert!(is_of_target || is_known, "{what}: {name} has no label {label}");
        }
    }
    named.into_iter().map(|(name, _)| name).collect()
}

fn deployed(file: &str) -> String {
    let path = format!("{}/../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_dashboard_shows_every_metric_and_none_that_does_not_exist() {
    let dashboard: serde_json::Value = serde_json::from_str(&deployed("grafana/observer.json")).expect("JSON");
    let mut shown = BTreeSet::new();
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query");
            let names = check(&panel["title"].to_string(), query);
            assert!(!names.is_empty(), "{query}");
            shown.extend(names);
            queries += 1;
        }
    }
    assert!(queries > 20, "{queries}");
    let missing: Vec<String> = known().into_keys().filter(|name| !shown.contains(name)).collect();
    assert!(missing.is_empty(), "not on the dashboard: {missing:?}");
    for variable in dashboard["templating"]["list"].as_array().into_iter().flatten() {
        check("a variable", variable["query"]["query"].as_str().unwrap_or_default());
    }
}

#[test]
fn alerts_and_their_tests_name_only_metrics_that_exist() {
    for file in ["prometheus/alerts.yaml", "prometheus/alerts_test.yaml"] {
        let text = deployed(file);
        // Prose speaks of metrics, too: it must be right as well.
        assert!(check(file, &text).len() >= 7, "{file}");
    }
}

#[test]
fn the_check_of_queries_sees_what_is_wrong() {
    assert_eq!(
        named(
            "sum by (kind) (rate(observer_lost_total{stage=\"a\", instance=~\"b\"}[5m])) - observer_x != my_observer_y"
        ),
        [
            ("observer_lost_total".to_owned(), vec!["stage".to_owned(), "instance".to_owned()]),
            ("observer_x".to_owned(), Vec::new()),
        ]
    );
    assert!(std::panic::catch_unwind(|| check("a", "observer_lost_total{pid=\"1\"}")).is_err());
    assert!(std::panic::catch_unwind(|| check("a", "observer_lost")).is_err());
}
