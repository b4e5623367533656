//! The debts of processes as numbers.

use super::event::Entity;
use super::sample::Points;
use super::signals::{self as of, Metric};
use crate::census::ProcessId;
use crate::detect::Judge;
use std::cmp::Reverse;
use std::sync::Arc;

/// One process: unanswered, age of the oldest, unread, backlog, awaiting.
type Numbers = [u64; 5];

/// In their order.
const METRICS: [&Metric; 5] =
    [&of::DEBTS_UNANSWERED, &of::DEBTS_OLDEST_UNANSWERED, &of::DEBTS_UNREAD, &of::DEBTS_BACKLOG, &of::DEBTS_AWAITING];

/// Adds those of the `top` processes with most debts, and the others as one.
pub(super) fn add(judge: &Judge, top: usize, points: &mut Points) {
    let host = &judge.host;
    let in_scope = |process: &ProcessId| host.row(process.pid).is_some_and(|row| judge.scope.contains(row, host));
    let mut all: Vec<(ProcessId, Numbers)> = Vec::new();
    for (process, debts) in host.services().iter().filter(|(process, debts)| debts.owes() && in_scope(process)) {
        let oldest = debts.unanswered().map(|(_, since)| since).min().map_or(0, |since| debts.age(since));
        let (unanswered, awaiting) = (debts.unanswered().count() as u64, debts.awaiting().count() as u64);
        all.push((process, [unanswered, oldest, debts.unread_bytes(), debts.backlog(), awaiting]));
    }
    all.sort_by_key(|(process, [unanswered, _, unread, backlog, awaiting])| {
        (Reverse((*unanswered, *backlog, *unread, *awaiting)), *process)
    });
    let mut rest: Option<Numbers> = None;
    for (place, (process, numbers)) in all.iter().enumerate() {
        if place < top {
            let entity = Arc::new(Entity::of(host, *process));
            for (metric, number) in METRICS.iter().zip(numbers) {
                points.about(&entity, metric, &[], *number);
            }
            continue;
        }
        let sums = rest.get_or_insert_default();
        for ((metric, sum), number) in METRICS.iter().zip(sums).zip(numbers) {
            *sum = if **metric == of::DEBTS_OLDEST_UNANSWERED { (*sum).max(*number) } else { *sum + number };
        }
    }
    for (metric, sum) in METRICS.iter().zip(rest.iter().flatten()) {
        points.add(metric, &[], *sum);
    }
}
