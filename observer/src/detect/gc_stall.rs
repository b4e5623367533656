//! `gc_stall`: the garbage collector holds up the program: goroutines made to help it, or to wait for it, in reading after
//! reading; runnable ones that do not get to run while it works.

use super::goroutines::{THRESHOLDS, bytes, creator, frames, goroutines, place};
use super::{Context, Finding, Kind, Rule, Severity, Verdict};
use crate::census::ProcessId;
use crate::model::goroutines::{GcSample, GoClass, GoProcess, Site};
use crate::model::{Confidence, duration};
use crate::proc::{GoState, GoroutineGroup, Stack};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Readings of two thresholds that are needed at least, and of those that show it.
const READINGS: usize = 4;
const STALLED: usize = 2;
/// Where two thresholds have fewer than these (a look at the whole host reads more rarely, and a busy machine, too), so many count
/// as long as they are of [`THRESHOLDS`]: enough that two do not show it by chance, and that it does not come and go.
const SPARSE: usize = 8;
/// The part of the goroutines with work to do that the collector holds up, over all readings, from which on it matters.
const SHARE: f64 = 0.1;

/// The rule.
#[derive(Debug)]
pub struct GcStall;

impl Rule for GcStall {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for (process, go) in context.go_processes() {
            let threshold = context.scope.threshold_ns;
            let now = go.latest.taken_ns;
            let since = since(go, threshold);
            let recent = || go.gc().iter().filter(|sample| sample.at_ns >= since);
            let readings = recent().count();
            let stalled: Vec<&GcSample> = recent().filter(|sample| sample.is_stalled()).collect();
            let at_work = recent().filter(|sample| sample.workers > 0).count();
            let starved = starved(go, threshold);
            let is_often = |count: usize| count > 0 && count * 3 >= readings;
            let (held, busy) = recent().fold((0, 0), |(held, busy), one| (held + one.held_up, busy + one.busy()));
            let share = held as f64 / busy.max(1) as f64;
            let spans = recent().next().is_some_and(|first| now.saturating_sub(first.at_ns) >= threshold);
            let begins = !stalled.is_empty() || recent().any(|sample| sample.held_up > 0 || sample.workers > 0);
            if (readings < READINGS || !spans) && begins {
                verdict.later(context.host.now_ns());
            }
            if readings < READINGS || !spans {
                continue;
            }
            // On average one at least: the time of one request, lost all the time.
            let is_stalled = stalled.len() >= STALLED && share >= SHARE && held >= readings as u64;
            if is_stalled || starved > 0 && is_often(at_work) {
                let numbers = Numbers { readings, at_work, starved, share };
                verdict.findings.push(finding(context, process, go, &stalled, &numbers));
            }
        }
        verdict
    }
}

/// When the readings begin that count.
fn since(go: &GoProcess, threshold: u64) -> u64 {
    let now = go.latest.taken_ns;
    let dense = now.saturating_sub(2 * threshold);
    let eighth = go.gc().len().checked_sub(SPARSE).and_then(|at| go.gc().get(at)).map(|sample| sample.at_ns);
    let recent = |at: &u64| *at >= now.saturating_sub(THRESHOLDS * threshold);
    eighth.filter(recent).map_or(dense, |eighth| eighth.min(dense))
}

/// Runnable goroutines that have not moved for the threshold.
fn starved(go: &GoProcess, threshold: u64) -> usize {
    let runnable = go.groups().filter(|group| group.state == GoState::Runnable);
    let is_old = |since: u64| since.saturating_add(threshold) <= go.latest.taken_ns;
    runnable.flat_map(|group| &group.members).filter(|one| is_old(go.waiting_since(one))).count()
}

struct Numbers {
    readings: usize,
    at_work: usize,
    starved: usize,
    share: f64,
}

fn finding(
    context: &Context<'_>,
    process: ProcessId,
    go: &GoProcess,
    stalled: &[&GcSample],
    numbers: &Numbers,
) -> Finding {
    let most = stalled.iter().map(|sample| sample.held_up).max().unwrap_or(0);
    let first = match stalled.first() {
        Some(first) => go.held_since().map_or(first.at_ns, |since| since.min(first.at_ns)),
        None => go.latest.taken_ns,
    };
    let Numbers { readings, at_work, starved, share } = *numbers;
    let (site, stack) = guilty(stalled).or_else(|| largest(go)).unzip();
    let memory: Vec<&GcSample> = go.gc().iter().filter(|sample| sample.rss_bytes > 0).collect();
    let heap: Vec<u64> = go.gc().iter().map(|sample| sample.heap_bytes).filter(|bytes| *bytes > 0).collect();
    let mut finding = Finding::new(Kind::GcStall, context.host, process, "gc")
        .since_first_look(first, context.host)
        .fact("readings", readings)
        .fact("readings_stalled", stalled.len())
        .fact("readings_gc_at_work", at_work)
        .fact("held_up_most", most)
        .fact("held_up_share", (share * 1000.0).round() / 1000.0)
        .fact("runnable_starved", starved)
        .fact("runnable", go.gc().last().map(|sample| sample.runnable))
        .fact("heap_bytes", go.latest.heap_bytes)
        .fact("heap_bytes_before", heap.first().copied())
        .fact("rss_bytes", go.latest.rss_bytes)
        .fact("rss_bytes_before", memory.first().map(|sample| sample.rss_bytes))
        .fact("place", site.as_ref().map(|site| place(&site.place)))
        .fact("created_by", site.as_ref().and_then(|site| site.created_by.as_ref()).map(place))
        .fact("stack", stack.as_deref().map(frames).unwrap_or_default())
        .read_by(go);
    finding.confidence = if stalled.len() * 3 >= readings { Confidence::Likely } else { Confidence::Possible };
    finding.severity = Severity::Warning;
    finding.title = match stalled.len() {
        0 => format!("{starved} runnable goroutines of {} do not get to run while its collector works", finding.comm),
        n => format!(
            "the garbage collector of {} holds up its goroutines: up to {most} in {n} of {readings} readings",
            finding.comm
        ),
    };
    let at = site.as_ref().map_or_else(String::new, |site| {
        format!(" Most stand at {}, {}.", site.place.describe(), creator(site.created_by.as_ref()))
    });
    let grown = match (memory.first(), memory.last()) {
        (Some(before), Some(now)) if now.rss_bytes > before.rss_bytes => format!(
            " Its resident memory has grown from {} to {} in {}.",
            bytes(before.rss_bytes),
            bytes(now.rss_bytes),
            duration(now.at_ns.saturating_sub(before.at_ns))
        ),
        (_, Some(now)) => format!(" Its resident memory is {}.", bytes(now.rss_bytes)),
        _ => String::new(),
    };
    let on_heap = match go.latest.heap_bytes {
        Some(live) => format!(" {} of its heap are live or new.", bytes(live)),
        None => String::new(),
    };
    let starving = match starved {
        0 => String::new(),
        n => format!(" {} have been runnable for the threshold or longer and did not run.", goroutines(n as u64)),
    };
    finding.explanation = format!(
        "In {} of {readings} readings goroutines of the program waited for the collector (`GC assist wait` and the like), up to {most} at once, {:.0} % of those with work to do on average.{at}{starving}{grown}{on_heap} A goroutine that allocates faster than the collector can mark must help it first, and its request waits meanwhile.",
        stalled.len(),
        share * 100.0
    );
    finding.remedy = "Take a heap profile: what grows (a cache without a bound, a map that is never emptied) makes every collection longer. Then allocate less where these goroutines stand, or give the collector room (GOGC, GOMEMLIMIT) and CPUs.".to_owned();
    finding
}

/// Where most were held up, all readings together.
fn guilty(stalled: &[&GcSample]) -> Option<(Site, Arc<Stack>)> {
    let mut places: BTreeMap<&Site, (u64, &Arc<Stack>)> = BTreeMap::new();
    for held in stalled.iter().filter_map(|sample| sample.held.as_ref()) {
        places.entry(&held.site).or_insert((0, &held.stack)).0 += held.count;
    }
    let (site, (_, stack)) = places.into_iter().max_by_key(|(_, (count, _))| *count)?;
    Some((site.clone(), Arc::clone(stack)))
}

/// The largest group that is held up now, else the largest that wants to run.
fn largest(go: &GoProcess) -> Option<(Site, Arc<Stack>)> {
    let held = go.groups().filter(|group| GoProcess::class(group) == GoClass::Gc);
    let runnable = go.groups().filter(|group| group.state == GoState::Runnable);
    let most = |group: &&GoroutineGroup| group.members.len();
    let group = held.max_by_key(most).or_else(|| runnable.max_by_key(most))?;
    Some((Site::of(group)?, Arc::clone(&group.stack)))
}
