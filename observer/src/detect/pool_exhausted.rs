//! `pool_exhausted`: requests that nobody answers while every connection of an outbound pool is open and idle in hand.
//!
//! Told from a server that lets its clients wait on purpose by the order of events ([`Debts::exhausted`]), or by a thread that stands in the
//! pool's own function and waits for a connection.

use super::debts::{Owed, progress_json, progress_words};
use super::finding::thread_ref;
use super::tasks::Tasks;
use super::{Context, Finding, Kind, Link, Rule, Severity, Verdict};
use crate::census::{Pid, ProcessId};
use crate::model::debts::{Debts, Exhausted, Line, Pool, TICK_NS};
use crate::model::graph::Nature;
use crate::model::{Class, Confidence, Resource, ResourceKind, duration};
use crate::proc::Stack;

/// Functions that wait for a connection of a pool: what their names hold, all of it, and whose pool it is.
const ACQUIRE: [(&[&str], &str); 12] = [
    (&["HikariPool", "getConnection"], "HikariCP"),
    (&["GenericObjectPool", "borrowObject"], "Apache Commons Pool"),
    (&["ConnectionPool.getconn"], "psycopg_pool"),
    (&["ConnectionPool._getconn"], "psycopg_pool"),
    (&["QueuePool._do_get"], "SQLAlchemy"),
    (&["BlockingConnectionPool.get_connection"], "redis-py"),
    (&["r2d2::Pool", "get"], "r2d2"),
    (&["bb8::", "get"], "bb8"),
    (&["sqlx_core::pool", "acquire"], "sqlx"),
    (&["deadpool::managed::Pool", "get"], "deadpool"),
    (&["database/sql.(*DB).conn"], "database/sql"),
    (&["pgxpool.(*Pool).Acquire"], "pgxpool"),
];

/// The rule.
#[derive(Debug)]
pub struct PoolExhausted;

/// Threads or goroutines that wait for a connection of a pool.
struct Acquiring {
    threads: Vec<Pid>,
    goroutines: u64,
    library: &'static str,
}

impl Acquiring {
    fn words(&self) -> String {
        match (self.threads.len(), self.goroutines) {
            (0, goroutines) => format!("{goroutines} goroutine(s) wait for a connection of it in {}", self.library),
            (threads, _) => format!("{threads} thread(s) wait for a connection of it in {}", self.library),
        }
    }
}

impl Rule for PoolExhausted {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for (process, debts) in context.indebted() {
            let Some(owed) = Owed::of(debts) else { continue };
            if context.has_found(process, &[Kind::Stopped]).is_some() {
                continue;
            }
            let acquiring = acquiring(context, process);
            // It may work on what it owes; who stands in the pool's own function does not.
            if debts.progress.is_hot() && acquiring.is_none() {
                continue;
            }
            let mut pools = debts.pools();
            pools.sort_by_key(|pool| std::cmp::Reverse(pool.lines.len()));
            for pool in &pools {
                let Some(idle_since) = pool.idle_since() else { continue };
                let threshold = context.scope.threshold_ns;
                let judged = judge(debts, &owed, (pool, &pools), acquiring.as_ref(), threshold);
                let Some((confidence, shape)) = judged else { continue };
                if verdict.is_due(owed.oldest_ns.max(idle_since), threshold, debts, context) {
                    // The order of events in one listing may be chance; nor is it known then who is answered.
                    let watched_ns = debts.age(debts.first_ns);
                    if acquiring.is_none() && (debts.listings < 2 || watched_ns < threshold) {
                        verdict.later(debts.first_ns.saturating_add(threshold).max(context.host.now_ns()));
                        continue;
                    }
                    let told = Told { process, debts, owed: &owed, pools: &pools, idle_since, shape };
                    verdict.findings.push(told.finding(context, pool, confidence, acquiring.as_ref()));
                    break;
                }
            }
        }
        verdict
    }
}

/// How sure it is that this pool is used up; `None`: nothing says so.
fn judge(
    debts: &Debts,
    owed: &Owed<'_>,
    (pool, pools): (&Pool<'_>, &[Pool<'_>]),
    acquiring: Option<&Acquiring>,
    threshold_ns: u64,
) -> Option<(Confidence, Option<Exhausted>)> {
    let is_single = pool.lines.len() < 2;
    if is_single && acquiring.is_none() && !owed.is_unlike_before(debts, threshold_ns) {
        return None;
    }
    let shape = debts.exhausted(pool);
    if acquiring.is_some() {
        let mut others = pools.iter().filter(|other| other.remote != pool.remote && other.lines.len() > 1);
        // Another one is used up because its service is slow: that is what they wait for.
        if shape.is_none() && others.any(|other| other.in_hand() < other.lines.len()) {
            return None;
        }
        // It waits for what nobody gives back: the connections are not in the pool.
        return Some((if is_single { Confidence::Possible } else { Confidence::Likely }, shape));
    }
    let shape = shape?;
    // A service that was seen to take as long may well take as long again.
    if owed.learnt(debts).0 >= debts.age(owed.oldest_ns) {
        return None;
    }
    // Requests that wait for somebody else (a slow service behind this one) hold nothing that they would have to give back.
    let asked_elsewhere = |(line, sent): &(&Line, u64)| {
        // Where logs and metrics are sent to nothing comes back.
        let answers = line.at.received.is_some_and(|bytes| bytes > 0);
        answers && line.at.remote.as_deref() != Some(pool.remote) && sent.saturating_add(TICK_NS) >= owed.oldest_ns
    };
    let elsewhere = debts.awaiting().filter(asked_elsewhere).count();
    if elsewhere >= owed.requests.len() {
        return None;
    }
    match shape {
        Exhausted { starved, .. } if elsewhere >= starved => Some((Confidence::Possible, Some(shape))),
        // One connection that many requests share is used right after almost any request.
        _ if is_single => Some((Confidence::Possible, Some(shape))),
        Exhausted { answered_since: 0, .. } => Some((Confidence::Likely, Some(shape))),
        Exhausted { starved: 2.., .. } => Some((Confidence::Possible, Some(shape))),
        _ => None,
    }
}

/// Who waits in the acquire function of a pool.
fn acquiring(context: &Context<'_>, process: ProcessId) -> Option<Acquiring> {
    let host = context.host;
    let library = |stack: &Stack| {
        let names = || stack.frames.iter().filter_map(|frame| frame.function.as_deref());
        let stands_in = |parts: &[&str]| names().any(|name| parts.iter().all(|part| name.contains(part)));
        ACQUIRE.iter().find(|(parts, _)| stands_in(parts)).map(|(_, library)| *library)
    };
    let waits = |tid: Pid| {
        let class = host.row(tid).and_then(|row| host.class(row));
        context.has_lasted(tid) && matches!(class, Some(Class::Condition | Class::Lock))
    };
    let mut found = Acquiring { threads: Vec::new(), goroutines: 0, library: "" };
    for row in host.threads_of(process.pid).filter(|row| waits(row.tid)) {
        if let Some(library) = host.stack(row.tid).and_then(library) {
            found.library = library;
            found.threads.push(row.tid);
        }
    }
    let go = host.goroutines(process).filter(|_| found.threads.is_empty());
    for (go, group) in go.into_iter().flat_map(|go| go.groups().map(move |group| (go, group))) {
        let long = go.latest.taken_ns.saturating_sub(go.oldest(group)) >= context.scope.threshold_ns;
        if let Some(library) = library(&group.stack).filter(|_| long && group.reason == "select") {
            found.library = library;
            found.goroutines += group.members.len() as u64;
        }
    }
    (!found.library.is_empty()).then_some(found)
}

struct Told<'a> {
    process: ProcessId,
    debts: &'a Debts,
    owed: &'a Owed<'a>,
    pools: &'a [Pool<'a>],
    idle_since: u64,
    shape: Option<Exhausted>,
}

impl Told<'_> {
    fn finding(
        &self,
        context: &Context<'_>,
        pool: &Pool<'_>,
        confidence: Confidence,
        acquiring: Option<&Acquiring>,
    ) -> Finding {
        let Self { process, debts, owed, .. } = *self;
        let host = context.host;
        let (idle_ns, oldest_ns) = (debts.age(self.idle_since), debts.age(owed.oldest_ns));
        let size = pool.lines.len();
        let others: Vec<serde_json::Value> =
            self.pools.iter().filter(|other| other.remote != pool.remote && other.lines.len() > 1).map(facts).collect();
        let mut evidence = facts(pool);
        evidence["idle_ns"] = idle_ns.into();
        let tasks = context.tasks(process);
        let threads: Vec<Pid> = acquiring.map(|found| found.threads.clone()).unwrap_or_default();
        let mut finding = Finding::new(Kind::PoolExhausted, host, process, pool.remote)
            .since_mono(owed.oldest_ns, host)
            .with_threads(threads)
            .fact("pool", evidence)
            .fact("unanswered", owed.to_json(debts))
            .fact("holders", self.shape.map(|shape| shape.holders))
            .fact("starved", self.shape.map(|shape| shape.starved))
            .fact("answered_without", self.shape.map(|shape| shape.answered_since))
            .fact("acquiring", acquiring.map(|found| found.library))
            .fact("backlog", debts.backlog())
            .fact("other_pools", others)
            .fact("connections_not_listed", debts.cut)
            .fact("tasks", tasks.as_ref().map(Tasks::to_json))
            .fact("progress", progress_json(debts));
        finding.severity = if confidence == Confidence::Possible { Severity::Warning } else { Severity::Critical };
        finding.confidence = confidence;
        let (count, long) = (owed.count(), duration(oldest_ns));
        let all = if size == 1 {
            format!("the only connection to {} is", pool.remote)
        } else {
            format!("all {size} connections to {} are", pool.remote)
        };
        finding.title =
            format!("{} answers nobody: {count} unanswered for {long} while {all} idle in hand", finding.comm);
        let order = match self.shape {
            Some(shape) => format!(
                " Each of its connections was used last right after the arrival of a request that is still not answered, a different one for each; {} more came after the last use, {} ago, and touched none of them.",
                shape.starved,
                duration(idle_ns)
            ),
            None => format!(" Nothing has passed over any of them for {}.", duration(idle_ns)),
        };
        let who = acquiring.map(|found| format!(" {}.", capital(&found.words()))).unwrap_or_default();
        let busy = host.threads_of(process.pid).filter(|row| !row.is_blocked() && !row.is_exiting()).count();
        let threads = host.threads_of(process.pid).count();
        let blocked = match context.standing(process).chain.is_empty() {
            true if busy == 0 => format!(" None of its {threads} thread(s) runs, and none waits for a lock."),
            _ if busy == 0 => format!(" None of its {threads} thread(s) runs."),
            _ => String::new(),
        };
        let doing = tasks.as_ref().map(Tasks::words).unwrap_or_default();
        finding.explanation = format!(
            "{} came to port {} and got no answer, the oldest {long} ago, and the database or service at {} owes nothing.{order}{who}{blocked}{doing}{} Most likely the requests that hold the connections wait for something only the others could give back: the pool is exhausted from within.",
            capital(&count),
            owed.services.join(", "),
            pool.remote,
            progress_words(debts)
        );
        finding.remedy = "Look for a request that takes a second connection of the pool while it holds one (a nested acquire, a transaction that calls code with a connection of its own), or one that keeps its connection across a long wait. Pass the connection on instead, and give the pool a wait timeout; more connections only move the point.".to_owned();
        finding.chain = vec![Link {
            from: thread_ref(acquiring.and_then(|found| found.threads.first().copied()).unwrap_or(process.pid), host),
            waits_for: Resource { remote: Some(pool.remote.to_owned()), ..Resource::of(ResourceKind::Tcp) }
                .detailed(format!("one of the pool of {size}")),
            held_by: Some(thread_ref(process.pid, host)),
            nature: Nature::Lock,
            confidence,
            how: "unanswered requests of the process itself have all connections".to_owned(),
        }];
        finding
    }
}

fn facts(pool: &Pool<'_>) -> serde_json::Value {
    serde_json::json!({ "remote": pool.remote, "size": pool.lines.len(), "idle": pool.in_hand() })
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
