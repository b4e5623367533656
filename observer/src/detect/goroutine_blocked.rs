//! `goroutine_blocked`: goroutines that wait in a way that cannot end well: for a nil channel, for a lock that is not let go,
//! or for each other while nobody is left to go on.

use super::finding::links;
use super::goroutines::{THRESHOLDS, ago, creator, frames, goroutine_ref, goroutines, place};
use super::{Context, Finding, Kind, Link, Rule, Severity, Verdict, goroutine_deadlock};
use crate::census::{Pid, ProcessId, TimeoutKind};
use crate::model::goroutines::{Demand, GoClass, GoHolder, GoProcess, LockQueue, Place, Site, waits_for_signals};
use crate::model::graph::Nature;
use crate::model::{Confidence, Host, Resource, ResourceKind, duration};
use crate::proc::{GoWait, Goroutine, GoroutineGroup};
use std::collections::{BTreeMap, BTreeSet};

/// Readings that must agree.
const READINGS: u64 = 3;
/// So many senders, each with a channel that nobody else waits at, are no coincidence.
const LONELY: usize = 100;
/// Steps of a chain from lock to lock.
const STEPS: usize = 16;

/// The rule.
#[derive(Debug)]
pub struct GoroutineBlocked;

impl Rule for GoroutineBlocked {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for (process, go) in context.go_processes() {
            forever(context, process, go, &mut verdict);
            lonely(context, process, go, &mut verdict);
            let circles = goroutine_deadlock::circles(go);
            if circles.is_empty() && all_asleep(context, process, go, &mut verdict) {
                continue;
            }
            let told: BTreeSet<u64> = circles.iter().flat_map(|circle| circle.waiters()).collect();
            for queue in go.lock_queues() {
                if !queue.waiters.iter().any(|waiter| told.contains(&waiter.goid)) {
                    lock(context, process, go, &queue, &mut verdict);
                }
            }
        }
        verdict
    }
}

/// Nil channels, and `select {}` outside of the main goroutine, where it is how a program waits for its end.
fn forever(context: &Context<'_>, process: ProcessId, go: &GoProcess, verdict: &mut Verdict) {
    let mut sites: BTreeMap<Site, (&GoroutineGroup, Vec<&Goroutine>)> = BTreeMap::new();
    for group in go.groups().filter(|group| GoProcess::class(group) == GoClass::Forever) {
        let Some(site) = Site::of(group) else { continue };
        let others = group.members.iter().filter(|member| member.goid != 1);
        sites.entry(site).or_insert_with(|| (group, Vec::new())).1.extend(others);
    }
    for (site, (group, members)) in sites {
        let Some(since) = members.iter().map(|member| go.waiting_since(member)).min() else { continue };
        if !verdict.has_lasted(since, go.latest.taken_ns, context) {
            continue;
        }
        let count = members.len() as u64;
        let what = if site.reason.contains("nil chan") { "a nil channel" } else { "a select without cases" };
        let key = site.key();
        let mut finding = about(context, process, go, (&site.place, site.created_by.as_ref()), &key, since)
            .fact("wait_reason", site.reason.as_str())
            .fact("count", count)
            .fact("stack", frames(&group.stack));
        finding.confidence = Confidence::Certain;
        // Written on purpose now and then, to keep a goroutine's own state alive.
        let is_one = count == 1 && !site.reason.contains("nil chan");
        finding.severity = if is_one { Severity::Info } else { Severity::Warning };
        let (who, at, started) = (goroutines(count), site.place.describe(), creator(site.created_by.as_ref()));
        finding.title = format!("{who} wait for ever in {what} at {at}");
        finding.explanation = format!(
            "{who}, {started}, wait in `{}` at {at}; the longest for {} or longer. By the language itself this wait never ends: they keep their stacks and whatever they refer to as long as the process lives.",
            site.reason,
            ago(go, since)
        );
        finding.remedy = "See that the channel is made before this line runs (a field that is set later, a map without the key), or let the goroutine end instead of waiting.".to_owned();
        verdict.findings.push(finding);
    }
}

/// Senders by the hundred, each on a channel of its own: whoever was to receive has gone.
fn lonely(context: &Context<'_>, process: ProcessId, go: &GoProcess, verdict: &mut Verdict) {
    for history in go.sites().filter(|history| history.site.class == GoClass::Send && !history.site.is_system) {
        if (history.count as usize) < LONELY {
            continue;
        }
        let threshold_ns = context.scope.threshold_ns;
        let demand = Demand { window_ns: threshold_ns, more: 8, not_before_ns: 0 };
        let here = || go.groups().filter(|group| Site::of(group).as_ref() == Some(&history.site));
        let is_old = |one: &&Goroutine| go.waiting_since(one).saturating_add(threshold_ns) <= go.latest.taken_ns;
        let old: Vec<&Goroutine> = here().flat_map(|group| &group.members).filter(is_old).collect();
        if old.len() < LONELY {
            verdict.later(history.oldest_ns.saturating_add(threshold_ns).max(context.host.now_ns()));
            continue;
        }
        let channel = |one: &&Goroutine| match one.wait {
            Some(GoWait::Channel { address, capacity: 0, .. }) => Some(address),
            _ => None,
        };
        let channels: BTreeSet<u64> = old.iter().filter_map(channel).collect();
        // One that grows is told as a leak.
        if channels.len() < LONELY || channels.len() * 10 < old.len() * 9 || history.samples.growth(demand).is_some() {
            continue;
        }
        let site = &history.site;
        let key = site.key();
        let mut finding = about(context, process, go, (&site.place, site.created_by.as_ref()), &key, history.oldest_ns)
            .fact("wait_reason", site.reason.as_str())
            .fact("count", history.count)
            .fact("channels", channels.len())
            .fact("goids", serde_json::json!([history.goids.0, history.goids.1]))
            .fact("stack", frames(&history.stack));
        finding.confidence = Confidence::Likely;
        let (who, at, started) = (goroutines(history.count), site.place.describe(), creator(site.created_by.as_ref()));
        finding.title = format!("{who} wait in `chan send` at {at}, each on a channel that nobody receives from");
        finding.explanation = format!(
            "{who}, {started}, wait in `chan send` at {at} on {} different channels without a buffer; {} of them have not moved for {} or longer. A send like this ends when somebody receives, and nobody waits to: whoever was to read these channels has returned. They grow too slowly to be seen in this look, or not any more. Their numbers go from {} to {}.",
            channels.len(),
            old.len(),
            ago(go, history.oldest_ns),
            history.goids.0,
            history.goids.1
        );
        finding.remedy = "Give the channel room for the one value (make(chan T, 1)), or let the sender select on ctx.Done() as well.".to_owned();
        verdict.findings.push(finding);
    }
}

/// Every goroutine of the program waits for another one: nobody is left who could go on. Timers, signals and the network
/// can end many waits, so only those count that another goroutine must end, and no other kind may be there.
fn all_asleep(context: &Context<'_>, process: ProcessId, go: &GoProcess, verdict: &mut Verdict) -> bool {
    if !go.latest.lost.is_empty() {
        return false;
    }
    let mut owed: Option<&GoroutineGroup> = None;
    let mut since = 0;
    let mut count = 0;
    // A channel may be closed by a timer of the runtime: that of a context with a deadline is.
    let mut may_be_timed = false;
    for group in go.groups() {
        let (class, members) = (GoProcess::class(group), group.members.iter());
        let is_unbuffered =
            |one: &Goroutine| matches!(one.wait, Some(GoWait::Channel { capacity: 0, closed: false, .. }));
        let is_debt = match class {
            GoClass::Lock | GoClass::WaitGroup => true,
            GoClass::Send => members.clone().all(is_unbuffered),
            GoClass::Receive if waits_for_signals(&group.stack) => return false,
            GoClass::Receive if members.clone().all(is_unbuffered) => false,
            GoClass::Forever | GoClass::Cond => false,
            _ => return false,
        };
        if is_debt && owed.is_none_or(|most| most.members.len() < group.members.len()) {
            owed = Some(group);
        }
        may_be_timed |= class == GoClass::Receive;
        count += group.members.len();
        since = members.map(|one| go.waiting_since(one)).max().unwrap_or(0).max(since);
    }
    let Some((group, site)) = owed.and_then(|group| Some((group, Site::of(group)?))).filter(|_| count > 1) else {
        return false;
    };
    if !verdict.has_lasted(since, go.latest.taken_ns, context) || go.censuses < READINGS {
        return false;
    }
    let key = format!("all/{}", site.key());
    let mut finding = about(context, process, go, (&site.place, site.created_by.as_ref()), &key, since)
        .fact("wait_reason", group.reason.as_str())
        .fact("count", count)
        .fact("stack", frames(&group.stack));
    (finding.confidence, finding.severity) = match may_be_timed {
        true => (Confidence::Possible, Severity::Warning),
        false => (Confidence::Likely, Severity::Critical),
    };
    finding.title = format!("all {count} goroutines of {} wait for each other", finding.comm);
    finding.explanation = format!(
        "Each of the {count} goroutines of the program waits for a lock, a wait group or a channel without a buffer that only another goroutine can end, and none has moved for {} or longer; none sleeps, waits for the network or is in a call. {} at {}, {}.",
        ago(go, since),
        goroutines(group.members.len() as u64),
        site.place.describe(),
        creator(site.created_by.as_ref())
    );
    finding.remedy = "Compare their stacks (`observer goroutines PID`): somebody returned without Unlock, Done, a send or a close. The process must be restarted; save its stacks first.".to_owned();
    verdict.findings.push(finding);
    true
}

/// A lock that nobody lets go.
fn lock(context: &Context<'_>, process: ProcessId, go: &GoProcess, queue: &LockQueue<'_>, verdict: &mut Verdict) {
    let host = context.host;
    let Some(history) = go.site(queue.group) else { return };
    let (site, waiters) = (&history.site, queue.waiters.len() as u64);
    let Some(growth) = history.samples.since(queue.since_ns) else { return };
    // Whoever has waited for a millisecond gets the lock at its next release (`sync.Mutex`, starvation mode): if the first
    // has waited for long and nobody has got through, it was not released.
    if growth.left() > 0 {
        return;
    }
    if !verdict.has_lasted(queue.since_ns, go.latest.taken_ns, context) {
        return;
    }
    if go.censuses < READINGS {
        verdict.later(host.now_ns());
        return;
    }
    let holder = go.holder(queue);
    let rests = holder.as_ref().is_some_and(|holder| {
        matches!(
            GoProcess::class(holder.group),
            GoClass::Io | GoClass::Receive | GoClass::Select | GoClass::Cond | GoClass::Forever | GoClass::Semaphore
        )
    });
    let grows = growth.arrived() >= 2;
    let waited = go.latest.taken_ns.saturating_sub(queue.since_ns);
    let is_long = waited >= context.scope.threshold_ns.saturating_mul(THRESHOLDS);
    // One that rests with the lock, and one or a few behind it who take turns: leader and followers.
    if !grows && (rests || holder.is_none() && !is_long) {
        return;
    }
    let key = match queue.address {
        Some(address) => format!("lock {address:#x}"),
        None => format!("lock at {}", queue.taker.describe()),
    };
    let mut finding = about(context, process, go, (&site.place, site.created_by.as_ref()), &key, queue.since_ns)
        .fact("wait_reason", queue.group.reason.as_str())
        .fact("lock", queue.address.map(|address| format!("{address:#x}")))
        .fact("count", waiters)
        .fact("arrived", growth.arrived())
        .fact("left", 0)
        .fact("growth_per_minute", (growth.per_minute() * 10.0).round() / 10.0)
        .fact("stack", frames(&queue.group.stack));
    let (chain, doing) = match &holder {
        Some(holder) => chain(context, process, go, queue, holder),
        None => (vec![step(context, process, queue, None)], String::new()),
    };
    finding.confidence = match (&holder, grows) {
        (Some(holder), _) if holder.confidence >= Confidence::Likely => Confidence::Likely,
        (_, true) => Confidence::Likely,
        _ => Confidence::Possible,
    };
    finding.severity = if is_long { Severity::Critical } else { Severity::Warning };
    let what = if queue.is_rw { "a read-write lock" } else { "a mutex" };
    let (who, at) = (goroutines(waiters), queue.taker.describe());
    let verb = if waiters == 1 { "waits" } else { "wait" };
    let behind =
        holder.as_ref().map(|holder| format!(", behind goroutine {}", holder.goroutine.goid)).unwrap_or_default();
    finding.title = format!("{who} {verb} for {what} that is not let go, at {at}{behind}");
    let came = match growth.arrived() {
        0 => "none has come since".to_owned(),
        n => format!(
            "{n} of them came in the last {} ({:.0} a minute)",
            duration(growth.window_ns()),
            growth.per_minute()
        ),
    };
    let by = holder.as_ref().map_or_else(
        || " Nobody stands where a holder would: it may have returned without Unlock.".to_owned(),
        |holder| holder_words(host, process, holder, &doing),
    );
    finding.explanation = format!(
        "{who}, {}, {verb} for {what} at {at}; the first has waited for {} or longer, {came}, and nobody has got it.{by} Times count from observer's first look.",
        creator(site.created_by.as_ref()),
        ago(go, queue.since_ns)
    );
    finding.remedy = match &holder {
        Some(_) => "Look at what the holder does with the lock in hand: move calls, sends and anything that can wait out of it, and give that call a time limit.".to_owned(),
        None => "Look for a path that returns or panics between Lock and Unlock (defer the Unlock), or that takes the same lock twice.".to_owned(),
    };
    if let Some(holder) = &holder {
        finding = finding
            .fact("holder_goid", holder.goroutine.goid)
            .fact("holder_stack", frames(&holder.group.stack))
            .fact("holder_how", holder.how)
            .with_threads(host.thread_of(process, holder.goroutine));
    }
    finding.chain = chain;
    verdict.findings.push(finding);
}

/// A finding of this kind about goroutines at one place.
fn about(
    context: &Context<'_>,
    process: ProcessId,
    go: &GoProcess,
    (at, created_by): (&Place, Option<&Place>),
    key: &str,
    since_ns: u64,
) -> Finding {
    Finding::new(Kind::GoroutineBlocked, context.host, process, key)
        .since_first_look(since_ns, context.host)
        .fact("place", place(at))
        .fact("created_by", created_by.map(place))
        .fact("oldest_wait_ns", go.latest.taken_ns.saturating_sub(since_ns))
        .read_by(go)
}

fn holder_words(host: &Host, process: ProcessId, holder: &GoHolder<'_>, doing: &str) -> String {
    let goid = holder.goroutine.goid;
    let at = Site::of(holder.group).map(|site| format!(" at {}", site.place.describe())).unwrap_or_default();
    let thread =
        host.thread_of(process, holder.goroutine).map(|tid| format!(" on {}", host.name(tid))).unwrap_or_default();
    let others = match holder.others {
        0 => String::new(),
        n => format!(" ({n} more stand there, too)"),
    };
    format!(" Goroutine {goid}{thread}{at} seems to have it, since it {}{others}; it {doing}.", holder.how)
}

/// One step: from a waiter to whoever seems to have the lock.
pub(super) fn step(
    context: &Context<'_>,
    process: ProcessId,
    queue: &LockQueue<'_>,
    holder: Option<(&GoHolder<'_>, Option<Pid>)>,
) -> Link {
    let kind = if queue.is_rw { ResourceKind::Rwlock } else { ResourceKind::Mutex };
    let waits_for = match queue.address {
        Some(address) => Resource::at(kind, address),
        None => Resource::of(kind).detailed(format!("of {}", queue.taker.function)),
    };
    let first = queue.waiters.first().map_or(0, |waiter| waiter.goid);
    Link {
        from: goroutine_ref(context.host, process, first, None),
        waits_for,
        held_by: holder.map(|(one, tid)| goroutine_ref(context.host, process, one.goroutine.goid, tid)),
        nature: Nature::Lock,
        confidence: holder.map_or(Confidence::Possible, |(one, _)| one.confidence),
        how: holder.map_or("Go's locks do not say who holds them", |(one, _)| one.how).to_owned(),
    }
}

/// From a lock to whoever seems to have it, and on: to the next lock, or to the call its thread is in and what that waits
/// for. Also what the first holder does, in words.
fn chain(
    context: &Context<'_>,
    process: ProcessId,
    go: &GoProcess,
    queue: &LockQueue<'_>,
    holder: &GoHolder<'_>,
) -> (Vec<Link>, String) {
    let host = context.host;
    let tid = host.thread_of(process, holder.goroutine);
    let mut chain = vec![step(context, process, queue, Some((holder, tid)))];
    let (last, doing) = call(context, process, go, holder);
    let queues = go.lock_queues();
    let mut at = *holder;
    while chain.len() < STEPS
        && let Some(next) = queues.iter().find(|next| next.waiters.iter().any(|one| one.goid == at.goroutine.goid))
    {
        let beyond = go.holder(next);
        let tid = beyond.as_ref().and_then(|beyond| host.thread_of(process, beyond.goroutine));
        let mut link = step(context, process, next, beyond.as_ref().map(|beyond| (beyond, tid)));
        link.from = goroutine_ref(host, process, at.goroutine.goid, None);
        chain.push(link);
        match beyond {
            Some(beyond) => at = beyond,
            None => return (chain, doing),
        }
    }
    if at.goroutine.goid == holder.goroutine.goid {
        chain.extend(last);
    } else {
        chain.extend(call(context, process, go, &at).0);
    }
    // A guess about who has the other end of something polled explains nothing here.
    let behind = host.thread_of(process, at.goroutine).and_then(|tid| context.graph.chain(host, tid));
    if let Some(behind) =
        behind.filter(|behind| behind.hops.first().is_some_and(|hop| hop.confidence >= Confidence::Likely))
    {
        chain.extend(links(&behind.hops, host));
    }
    (chain, doing)
}

/// What a goroutine is in: the call of its thread, or the wait that the runtime records.
fn call(context: &Context<'_>, process: ProcessId, go: &GoProcess, one: &GoHolder<'_>) -> (Option<Link>, String) {
    let host = context.host;
    let tid = host.thread_of(process, one.goroutine);
    let asleep = tid
        .and_then(|tid| host.row(tid))
        .filter(|row| row.is_blocked() && GoProcess::class(one.group) == GoClass::Syscall);
    let wait = asleep.and_then(|row| host.wait(row.tid));
    let (words, how) = match &wait {
        Some(wait) => {
            let bad = matches!(wait.timeout.kind, TimeoutKind::Negative | TimeoutKind::Invalid);
            let raw = wait.timeout.raw.as_deref().filter(|_| bad);
            let limit = raw.map(|raw| format!(" with the bad timeout {raw}")).unwrap_or_default();
            let on = wait.resource.as_ref().map(|thing| format!(" on {}", thing.describe())).unwrap_or_default();
            (format!("{}(){on}{limit}", wait.syscall), "the system call of its thread")
        }
        None => match GoProcess::class(one.group) {
            GoClass::Active => return (None, "runs or is about to".to_owned()),
            GoClass::Syscall => ("a system call or C code".to_owned(), "state of the goroutine"),
            _ => (format!("`{}`", one.group.reason), "wait reason of the goroutine"),
        },
    };
    let link = Link {
        from: goroutine_ref(host, process, one.goroutine.goid, tid),
        waits_for: Resource::of(ResourceKind::Other).detailed(words.clone()),
        held_by: None,
        nature: Nature::Call,
        confidence: Confidence::Certain,
        how: how.to_owned(),
    };
    // The kernel knows since when its thread sleeps.
    let age = match asleep.filter(|_| wait.is_some()) {
        Some(row) => duration(host.blocked_ns(row)),
        None => format!("{} or longer", ago(go, go.waiting_since(one.goroutine))),
    };
    (Some(link), format!("has been in {words} for {age}"))
}
