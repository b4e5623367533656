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
