//! A finding and a sample as the loop makes them.

use crate::census::ProcessId;
use crate::detect::{Finding, Kind, Life as Found, Moment, Severity};
use crate::export::signals::Metric;
use crate::export::{Entity, FindingEvent, Life, Point, Sample, Value};
use crate::model::Confidence;
use crate::proc::{Container, Pod};
use std::sync::Arc;

/// 2026-01-01T00:00:00Z.
pub(super) const NOW: u64 = 1_767_225_600_000_000_000;

pub(super) fn entity(pid: u32) -> Entity {
    Entity {
        process: ProcessId { pid, start_ns: 7 },
        started: Moment(NOW - 60_000_000_000),
        comm: "worker".to_owned(),
        exe: Some("/usr/bin/shop".to_owned()),
        cmdline: vec!["shop".to_owned(), "--password=hunter2".to_owned()],
        runtime: Some("go1.24.3".to_owned()),
        cgroup: None,
        container: Some(Container { id: "c".repeat(64), runtime: "containerd".to_owned() }),
        pod: Some(Pod { uid: "u-1".to_owned(), name: Some("shop-1".to_owned()), namespace: None, container: None }),
    }
}

pub(super) fn event(id: usize, life: Life, entity: Entity, stacks: &str) -> Arc<FindingEvent> {
    let finding = Finding {
        kind: Kind::Deadlock,
        severity: Severity::Critical,
        confidence: Confidence::Certain,
        since: Moment(NOW - 30_000_000_000),
        process: entity.process,
        comm: entity.comm.clone(),
        threads: vec![11, 12],
        title: "two threads".to_owned(),
        explanation: "They wait for each other.".to_owned(),
        remedy: "One order.".to_owned(),
        chain: Vec::new(),
        call: None,
        evidence: [("cycle".to_owned(), 2.into())].into_iter().collect(),
        id: format!("id-{id}"),
    };
    let resolved = life == Life::Resolved;
    let found = Found { finding, first_seen: Moment(NOW), last_seen: Moment(NOW), resolved };
    let json = serde_json::json!({ "schema": "observer.finding/v1" });
    let (stacks, chain) = (stacks.to_owned(), "a → mutex → held by b".to_owned());
    Arc::new(FindingEvent { life, at: Moment(NOW), found, entity, json, stacks, chain })
}

pub(super) fn point(metric: &'static Metric, entity: Option<&Arc<Entity>>, values: &[&str], value: Value) -> Point {
    let attributes = metric.attributes.iter().copied().zip(values.iter().map(|text| (*text).to_owned())).collect();
    Point { metric, attributes, entity: entity.cloned(), value }
}

pub(super) fn sample(points: Vec<Point>) -> Sample {
    Sample { since: Moment(NOW - 90_000_000_000), at: Moment(NOW), points }
}
