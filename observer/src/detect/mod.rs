//! Findings from the model; pure: no I/O, no clock.
//!
//! A rule looks at the whole host and answers with findings, and with the time at which an answer that
//! is not ripe yet would be. Waits count only once they are confirmed (see [`crate::model::graph`]).

pub mod abandoned_lock;
pub mod awaiting_reply;
pub mod bad_timeout;
pub mod deadlock;
mod debts;
pub mod finding;
pub mod gc_stall;
pub mod goroutine_blocked;
pub mod goroutine_deadlock;
pub mod goroutine_leak;
mod goroutines;
pub mod habit;
pub mod judge;
pub mod ledger;
pub mod lock_wait;
pub mod lost_wakeup;
pub mod not_accepting;
pub mod not_reading;
pub mod pool_exhausted;
pub mod stopped;
pub mod stuck_connect;
mod tasks;
pub mod unanswered_requests;
pub mod uninterruptible;
pub mod unreadable;

pub use finding::{CallSite, Finding, Kind, Link, Moment, Severity, ThreadRef};
pub use judge::{Judge, Turn};
pub use ledger::{Change, Ledger, Life};

use crate::census::ThreadRow;
use crate::model::graph::{Chain, Graph};
use crate::model::{Host, Scope, Wait};

/// What a rule works with.
#[derive(Debug)]
pub struct Context<'a> {
    /// The host.
    pub host: &'a Host,
    /// What is looked at, and the threshold.
    pub scope: &'a Scope,
    /// Who waits for whom.
    pub graph: Graph,
    /// Every confirmed waiter followed to its end.
    pub chains: Vec<Chain>,
    /// What the rules before this one have found.
    pub found: Vec<Finding>,
    /// Threads that were proven to sleep through the last interval, and belong to what is looked at.
    confirmed: Vec<(&'a ThreadRow, &'a Wait)>,
}

/// What a rule answers.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What is wrong now.
    pub findings: Vec<Finding>,
    /// `CLOCK_MONOTONIC` nanoseconds at which something not ripe yet would be a finding.
    pub ripe_at_ns: Option<u64>,
}

impl Verdict {
    fn later(&mut self, at_ns: u64) {
        self.ripe_at_ns = Some(self.ripe_at_ns.map_or(at_ns, |earlier| earlier.min(at_ns)));
    }

    /// Whether a wait since `since_ns` is long enough; if not, notes when it will be.
    fn is_ripe(&mut self, since_ns: u64, context: &Context<'_>) -> bool {
        self.has_lasted(since_ns, context.host.now_ns(), context)
    }

    /// Whether what began at `since_ns` had lasted for the threshold when it was seen last, at `seen_ns`: of later nothing is known. If
    /// not, notes when the next look may show it.
    fn has_lasted(&mut self, since_ns: u64, seen_ns: u64, context: &Context<'_>) -> bool {
        let at = since_ns.saturating_add(context.scope.threshold_ns);
        let has_lasted = seen_ns >= at;
        if !has_lasted {
            self.later(at.max(context.host.now_ns()));
        }
        has_lasted
    }
}

impl<'a> Context<'a> {
    /// Whether any of these threads belongs to what is looked at.
    fn in_scope<'t>(&self, mut tids: impl Iterator<Item = &'t u32>) -> bool {
        tids.any(|tid| self.host.row(*tid).is_some_and(|row| self.scope.contains(row, self.host)))
    }

    /// Threads that were proven to sleep through the last interval, and belong to what is looked at.
    fn confirmed(&self) -> impl Iterator<Item = (&'a ThreadRow, &'a Wait)> {
        self.confirmed.iter().copied()
    }
}

/// A rule: one kind of finding.
pub trait Rule {
    /// Judges the host as it is now.
    fn check(&self, context: &Context<'_>) -> Verdict;
}

/// Every rule, in the order in which a report names their findings.
pub fn rules() -> Vec<Box<dyn Rule + Send>> {
    vec![
        Box::new(deadlock::Deadlock),
        Box::new(abandoned_lock::AbandonedLock),
        Box::new(lock_wait::LockWait),
        Box::new(lost_wakeup::LostWakeup),
        Box::new(stuck_connect::StuckConnect),
        Box::new(uninterruptible::Uninterruptible),
        Box::new(stopped::Stopped),
        Box::new(unreadable::Unreadable),
        Box::new(bad_timeout::BadTimeout),
        Box::new(habit::ChangeOfHabit),
        Box::new(goroutine_deadlock::GoroutineDeadlock),
        Box::new(goroutine_blocked::GoroutineBlocked),
        Box::new(goroutine_leak::GoroutineLeak),
        Box::new(gc_stall::GcStall),
        // These see what the others have found: one cause is one finding.
        Box::new(pool_exhausted::PoolExhausted),
        Box::new(not_accepting::NotAccepting),
        Box::new(not_reading::NotReading),
        Box::new(unanswered_requests::UnansweredRequests),
        Box::new(awaiting_reply::AwaitingReply),
    ]
}

/// Runs every rule; answers with the graph they worked on, too.
pub fn run(rules: &[Box<dyn Rule + Send>], host: &Host, scope: &Scope) -> (Verdict, Graph) {
    let graph = Graph::of(host);
    let confirmed = host.confirmed().filter(|(row, _)| scope.contains(row, host)).collect();
    let chains = graph.chains(host);
    let mut context = Context { host, scope, chains, graph, confirmed, found: Vec::new() };
    let mut verdict = Verdict::default();
    for rule in rules {
        let more = rule.check(&context);
        context.found.extend(more.findings);
        if let Some(at) = more.ripe_at_ns {
            verdict.later(at);
        }
    }
    for finding in &mut context.found {
        finding.note_first_sight(host);
    }
    verdict.findings = context.found;
    (verdict, context.graph)
}

#[cfg(test)]
mod tests;
