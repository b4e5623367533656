//! What was seen, lost and spent.

use crate::census::{Census, ProgramCost, Spending};
use crate::host::clock::whole_ns;
use crate::proc::pool::PoolStats;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The account of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Threads in the last census.
    pub threads_seen: u64,
    /// Threads the last census could not read, by reason.
    pub threads_lost: BTreeMap<String, u64>,
    /// The same of all censuses, since the start.
    pub threads_lost_ever: BTreeMap<String, u64>,
    /// Kernel-side account of the probes, since attach.
    pub probes: BTreeMap<String, u64>,
    /// Events and aggregates lost, by reason.
    pub events_dropped: BTreeMap<String, u64>,
    /// Calls and events that the probes left out on purpose, by reason: nothing known of them was lost, but counts, histories and
    /// waits are those of the others.
    pub events_limited: BTreeMap<String, u64>,
    /// Facts that could not be had, by reason, since the start.
    pub facts_lost: BTreeMap<String, u64>,
    /// Stacks that did not reach their root, and what kept them from it, by reason, since the start.
    pub unwind_failed: BTreeMap<String, u64>,
    /// Readers that a target kept, and that were replaced, since the start.
    pub workers_replaced: u64,
    /// Readers that a target keeps now.
    pub workers_stuck: u64,
    /// Readers' jobs that panicked, a defect of observer, since the start.
    pub jobs_panicked: u64,
    /// What the probes cost and what was given up for it; `None` without probes.
    pub spending: Option<Spending>,
    /// CPU time of observer itself, nanoseconds.
    pub self_cpu_ns: u64,
    /// Resident memory of observer itself, bytes.
    pub self_rss_bytes: u64,
    /// How long the last census took, nanoseconds.
    pub census_ns: u64,
    /// Censuses taken.
    pub censuses: u64,
    /// Time spent on working out who waits for whom and whether that is a finding, nanoseconds, since the start.
    pub judge_ns: u64,
    /// Time spent on stacks, their names, and what they say, nanoseconds, since the start.
    pub explain_ns: u64,
}

impl Account {
    /// Takes what a census says of itself.
    pub fn note_census(&mut self, census: &Census) {
        self.threads_seen = census.rows.len() as u64;
        self.threads_lost.clone_from(&census.lost);
        for (reason, count) in &census.lost {
            *self.threads_lost_ever.entry(reason.clone()).or_default() += count;
        }
        self.census_ns = census.took_ns;
        self.censuses += 1;
    }

    /// Takes how the readers fare, all pools together.
    pub fn note_readers(&mut self, readers: PoolStats) {
        let PoolStats { workers: _, stuck, replaced, panicked } = readers;
        self.workers_stuck = stuck as u64;
        self.workers_replaced = replaced;
        self.jobs_panicked = panicked;
    }

    /// Adds to the facts that were lost.
    pub fn lose_facts(&mut self, lost: &BTreeMap<String, u64>) {
        for (reason, count) in lost {
            *self.facts_lost.entry(reason.clone()).or_default() += count;
        }
    }

    /// Adds to the stacks that are incomplete.
    pub fn fail_unwinds(&mut self, failed: &BTreeMap<String, u64>) {
        for (reason, count) in failed {
            *self.unwind_failed.entry(reason.clone()).or_default() += count;
        }
    }

    /// Counts something that was lost on the way.
    pub fn lose(&mut self, reason: &str, count: u64) {
        *self.facts_lost.entry(reason.to_owned()).or_default() += count;
    }

    /// Takes the probes' account: what of it is a loss, and what was left out on purpose.
    pub fn note_probes(&mut self, account: &BTreeMap<String, u64>, forgotten: u64) {
        self.probes.clone_from(account);
        // What was counted, found too short to matter, or ended another way than by a return.
        const NO_LOSS: [&str; 16] = [
            "seen",
            "entered_poll",
            "entered_futex",
            "entered_connect",
            "entered_socket",
            "filtered",
            "measured",
            "not_timed",
            "sent",
            "interrupted",
            "ended_in_wait",
            "too_short",
            "sites_new",
            "wakes",
            "words_new",
            "woken_new",
        ];
        // To stay within the budget; or because the same thread's same mistake was told of a moment before.
        const LIMITS: [&str; 3] = ["sampled_out", "cut_in_flight", "repeated"];
        let counted = account.iter().filter(|(name, count)| !NO_LOSS.contains(&name.as_str()) && **count > 0);
        (self.events_limited, self.events_dropped) =
            counted.map(|(name, count)| (name.clone(), *count)).partition(|(name, _)| LIMITS.contains(&name.as_str()));
        if forgotten > 0 {
            self.events_dropped.insert("forgotten".to_owned(), forgotten);
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let counts = |map: &BTreeMap<String, u64>| -> Map<String, Value> {
            map.iter().map(|(name, count)| (name.clone(), Value::from(*count))).collect()
        };
        json!({
            "threads_seen": self.threads_seen,
            "threads_lost": counts(&self.threads_lost),
            "events_seen": self.probes.get("seen").copied().unwrap_or(0),
            "events_dropped": counts(&self.events_dropped),
            "events_limited": counts(&self.events_limited),
            "probes": counts(&self.probes),
            "facts_lost": counts(&self.facts_lost),
            "unwind_failed": counts(&self.unwind_failed),
            "workers_replaced": self.workers_replaced,
            "workers_stuck": self.workers_stuck,
            "jobs_panicked": self.jobs_panicked,
            "probe_budget": self.spending.as_ref().map(spending),
            "self_cpu_ns": self.self_cpu_ns,
            "self_rss_bytes": self.self_rss_bytes,
            "census_ns": self.census_ns,
            "censuses": self.censuses,
            "judge_ns": self.judge_ns,
            "explain_ns": self.explain_ns,
        })
    }
}

fn spending(spending: &Spending) -> Value {
    let Spending { budget, unmeasured, share, measured, families, programs } = spending;
    let family = |state: &crate::census::budget::FamilyState| {
        json!({
            "watch": state.watch.to_string(),
            "one_in": state.watch.one_in(),
            "cpu_share": state.cost,
            "cpu_ns": whole_ns(state.spent),
            "reduced_ns": whole_ns(state.reduced),
            "shed": state.shed,
            "restored": state.restored,
        })
    };
    let program = |cost: &ProgramCost| {
        let ProgramCost { run_ns, runs, recursion_misses } = cost;
        let each = run_ns.checked_div(*runs);
        json!({ "runs": runs, "run_ns": run_ns, "ns_per_run": each, "recursion_misses": recursion_misses })
    };
    let families: Map<String, Value> = families.iter().map(|(f, state)| (f.name().to_owned(), family(state))).collect();
    let programs: Map<String, Value> = programs.iter().map(|(name, cost)| (name.clone(), program(cost))).collect();
    json!({
        "limit": budget.to_string(),
        "unmeasured": unmeasured,
        "cpu_share": share,
        "measured_ns": whole_ns(*measured),
        "families": families,
        "programs": programs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_on_purpose_is_no_loss_and_is_not_kept_quiet() {
        let mut account = Account::default();
        let counters =
            [("seen", 9), ("sampled_out", 5), ("repeated", 2), ("ring_full", 1), ("sites_full", 0), ("new", 4)];
        let full = [("processes_full", 6), ("sockets_full", 7), ("in_flight_full", 8), ("entered_poll", 3)];
        let counters = counters.into_iter().chain(full).map(|(name, count)| (name.to_owned(), count)).collect();
        account.note_probes(&counters, 3);
        let names = |map: &BTreeMap<String, u64>| map.keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(names(&account.events_limited), "repeated sampled_out");
        // A counter that this page does not know is a loss.
        assert_eq!(
            names(&account.events_dropped),
            "forgotten in_flight_full new processes_full ring_full sockets_full"
        );
        assert_eq!(account.to_json()["events_limited"]["sampled_out"], 5);
    }
}
