//! `goroutine_leak`: goroutines that come to one place and do not leave it.
//!
//! Numbers alone cannot tell a leak from load: what counts is that nearly nobody leaves, over a time that no start and no
//! filling pool lasts, and that it goes on.

use super::goroutines::{THRESHOLDS, ago, bytes, creator, frames, goroutines, place, rate};
use super::{Context, Finding, Kind, Rule, Severity, Verdict};
use crate::census::ProcessId;
use crate::model::goroutines::{Demand, GoClass, GoProcess, Growth, SiteHistory};
use crate::model::{Confidence, duration};
use serde_json::{Value, json};

/// So many more are the least that is told from chance.
const LEAST: u64 = 8;
/// A rise that is too short to say what it is counts if this part of what the rate explains was there before.
const BACKING: f64 = 0.6;
/// Waits that end when a peer or a clock wants it, and goroutines that run again and again: sessions grow with their users.
const PATIENCE: u64 = 10;
/// What the runtime keeps of a goroutine beside its stack, bytes (`sizeof(runtime.g)` of Go 1.24).
const G_BYTES: u64 = 440;
/// From here on it is critical.
const MANY: u64 = 10_000;

/// The rule.
#[derive(Debug)]
pub struct GoroutineLeak;

/// A place that fills, and how.
struct Leak<'a> {
    site: &'a SiteHistory,
    growth: Growth,
    /// By itself it says too little.
    is_weak: bool,
}

impl Rule for GoroutineLeak {
    fn check(&self, context: &Context<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for (process, go) in context.go_processes() {
            let leaks = leaks(context, process, go, &mut verdict);
            for (leak, beside) in joined(leaks) {
                verdict.findings.push(finding(context, process, go, &leak, &beside));
            }
        }
        verdict
    }
}

/// The places of one process that fill.
fn leaks<'a>(context: &Context<'_>, process: ProcessId, go: &'a GoProcess, verdict: &mut Verdict) -> Vec<Leak<'a>> {
    let threshold = context.scope.threshold_ns;
    let asked_for = context.scope.processes.is_some();
    let started_up = context.started_up(process);
    // Two readings show whether anything rises at all.
    if asked_for && go.censuses < 3 {
        verdict.later(context.host.now_ns());
    }
    let mut leaks = Vec::new();
    for site in go.sites().filter(|site| is_judged(site)) {
        let patience = if matches!(site.site.class, GoClass::Io | GoClass::Sleep) { PATIENCE } else { 1 };
        let long = Demand {
            window_ns: threshold.saturating_mul(THRESHOLDS * patience),
            more: LEAST,
            not_before_ns: started_up,
        };
        let short = Demand { window_ns: threshold, ..long };
        let backed = |growth: &Growth| is_backed(context, process, growth);
        // Pools and sessions rise with the load, and those in them run again and again.
        let lively = Demand { window_ns: threshold.saturating_mul(THRESHOLDS * PATIENCE), ..long };
        let growth = site
            .samples
            .growth(long)
            .filter(|growth| !growth.is_lively())
            .or_else(|| site.samples.growth(lively))
            .or_else(|| (asked_for && patience == 1).then(|| site.samples.growth(short).filter(backed)).flatten());
        // Beside another place that fills it is part of the same.
        let beside = || site.samples.growth(Demand { window_ns: long.window_ns / PATIENCE, ..long });
        let weak = || (patience > 1).then(|| beside().or_else(|| site.samples.growth(short))).flatten();
        match growth {
            Some(growth) => leaks.push(Leak { site, growth, is_weak: false }),
            None if let Some(growth) = weak() => leaks.push(Leak { site, growth, is_weak: true }),
            None => {
                let demand = if asked_for { short } else { long };
                // Until the readings themselves span that time, and often enough to see that it is steady.
                if let Some(at) = site.samples.ripens(demand) {
                    let now = context.host.now_ns();
                    verdict.later(at.clamp(now, now + demand.window_ns / 8));
                }
            }
        }
    }
    leaks
}

/// Those of the runtime, at work, held up by the collector or behind a lock are judged elsewhere, or not at all.
fn is_judged(site: &SiteHistory) -> bool {
    !site.site.is_system
        && !matches!(site.site.class, GoClass::Active | GoClass::Forever | GoClass::Lock | GoClass::Gc | GoClass::Other)
}

/// Whether a short rise has gone on for long, by what was there when the look began: as much as comes in the time that a long
/// rise takes, or since the start of the process. A pool that has just begun to fill has less.
fn is_backed(context: &Context<'_>, process: ProcessId, growth: &Growth) -> bool {
    let age = growth.first.at_ns.saturating_sub(context.started(process));
    let long = context.scope.threshold_ns.saturating_mul(THRESHOLDS);
    // The start of a process explains no sessions.
    let span = if growth.is_lively() { long.saturating_mul(PATIENCE) } else { age.min(long) };
    let explained = growth.per_minute() / 60e9 * span as f64;
    growth.first.count as f64 >= explained * BACKING
}

/// One mistake may fill several places: those of libraries are told with that of the program, and so is what its goroutines
/// started themselves.
fn joined(mut leaks: Vec<Leak<'_>>) -> Vec<(Leak<'_>, Vec<Leak<'_>>)> {
    leaks.sort_by_key(|leak| (leak.is_weak, !leak.site.site.is_own(), std::cmp::Reverse(leak.growth.more())));
    let mut joined: Vec<(Leak<'_>, Vec<Leak<'_>>)> = Vec::new();
    for leak in leaks {
        let belongs = |(first, _): &&mut (Leak<'_>, Vec<Leak<'_>>)| {
            let creator = leak.site.site.created_by.as_ref().map(|place| place.function.as_str());
            let frames = &first.site.stack.frames;
            let started = || frames.iter().any(|frame| creator.is_some() && frame.function.as_deref() == creator);
            !leak.site.site.is_own() || started()
        };
        match joined.iter_mut().find(belongs) {
            Some((_, beside)) => beside.push(leak),
            None if leak.is_weak => {}
            None => joined.push((leak, Vec::new())),
        }
    }
    joined
}

fn finding(context: &Context<'_>, process: ProcessId, go: &GoProcess, leak: &Leak<'_>, beside: &[Leak<'_>]) -> Finding {
    let (site, growth) = (&leak.site.site, &leak.growth);
    let all = || std::iter::once(leak).chain(beside);
    let count: u64 = all().map(|leak| leak.site.count).sum();
    let memory: u64 = all().map(|leak| leak.site.stack_bytes + leak.site.count * G_BYTES).sum();
    let per_minute = growth.per_minute();
    let mut finding = Finding::new(Kind::GoroutineLeak, context.host, process, &site.key())
        .since_first_look(growth.first.at_ns, context.host)
        .fact("wait_reason", site.reason.as_str())
        .fact("place", place(&site.place))
        .fact("created_by", site.created_by.as_ref().map(place))
        .fact("count", leak.site.count)
        .fact("count_before", growth.first.count)
        .fact("arrived", growth.arrived())
        .fact("left", growth.left())
        .fact("window_ns", growth.window_ns())
        .fact("run_again", growth.is_lively())
        .fact("growth_per_minute", (per_minute * 10.0).round() / 10.0)
        .fact("memory_bytes", memory)
        .fact("heap_bytes", go.latest.heap_bytes)
        .fact("rss_bytes", go.latest.rss_bytes)
        .fact("oldest_wait_ns", go.latest.taken_ns.saturating_sub(leak.site.oldest_ns))
        .fact("goids", json!([leak.site.goids.0, leak.site.goids.1]))
        .fact("beside", beside.iter().map(beside_fact).collect::<Vec<_>>())
        .fact("stack", frames(&leak.site.stack))
        .read_by(go);
    finding.confidence = match site.class {
        GoClass::Io | GoClass::Sleep | GoClass::Syscall => Confidence::Possible,
        _ if growth.is_lively() => Confidence::Possible,
        _ => Confidence::Likely,
    };
    finding.severity = if count >= MANY { Severity::Critical } else { Severity::Warning };
    let (who, where_to) = (goroutines(leak.site.count), site.place.describe());
    let started = creator(site.created_by.as_ref());
    finding.title =
        format!("goroutines pile up in {where_to}: {who} in {}, {} more a minute", words(site), rate(per_minute));
    let others = match beside {
        [] => String::new(),
        several => format!(" With them grow {}.", several.iter().map(in_words).collect::<Vec<_>>().join(" and ")),
    };
    let lively = if growth.is_lively() { LIVELY } else { "" };
    let http = if is_http(leak) || beside.iter().any(is_http) { HTTP } else { "" };
    finding.explanation = format!(
        "{who} wait in {} at {where_to}, {started}. In {} {} came and {} left; the oldest has waited for {} or longer.{others} They hold at least {} of stacks, and whatever they refer to.{http}{lively} Times count from observer's first look.",
        words(site),
        duration(growth.window_ns()),
        growth.arrived(),
        growth.left(),
        ago(go, leak.site.oldest_ns),
        bytes(memory),
    );
    finding.remedy = remedy(site.class, !http.is_empty()).to_owned();
    finding
}

const LIVELY: &str =
    " They run again and again, so they may be sessions or workers: but none has ended in all this time.";

const HTTP: &str =
    " They belong to HTTP requests that were sent and not answered: a client with a time limit would have given up.";

fn is_http(leak: &Leak<'_>) -> bool {
    let is_of = |name: &str| name.starts_with("net/http.(*persistConn)") || name.starts_with("net/http.(*Transport)");
    leak.site.stack.frames.iter().any(|frame| frame.function.as_deref().is_some_and(is_of))
}

/// What they wait in.
fn words(site: &crate::model::goroutines::Site) -> String {
    match (site.class, site.reason.as_str()) {
        (GoClass::Syscall, _) => "a system call".to_owned(),
        (_, "") => "no call".to_owned(),
        (_, reason) => format!("`{reason}`"),
    }
}

fn in_words(leak: &Leak<'_>) -> String {
    let site = &leak.site.site;
    format!("{} at {} ({})", goroutines(leak.site.count), site.place.describe(), creator(site.created_by.as_ref()))
}

fn beside_fact(leak: &Leak<'_>) -> Value {
    let site = &leak.site.site;
    json!({
        "wait_reason": site.reason,
        "place": place(&site.place),
        "created_by": site.created_by.as_ref().map(place),
        "count": leak.site.count,
        "growth_per_minute": (leak.growth.per_minute() * 10.0).round() / 10.0,
    })
}

fn remedy(class: GoClass, is_http: bool) -> &'static str {
    match class {
        _ if is_http => {
            "Give the client a limit (http.Client.Timeout, or a request made with a context that has a deadline), and read and close every response body."
        }
        GoClass::Send => {
            "Nobody receives what they send: look at who was to read this channel and returned early or never began. Give it room for the one value, or let the sender select on ctx.Done() as well."
        }
        GoClass::Receive => {
            "Nobody sends to, or closes, what they receive from: look at the paths on which the sender ends without doing either; let the receiver select on ctx.Done() as well."
        }
        GoClass::Select => {
            "None of the cases of this select comes about: see that the context or the channel that is to end it is cancelled or closed on every path."
        }
        GoClass::WaitGroup => {
            "Some Done() is left out, or what it waits for hangs itself: look at the other goroutines of the same creator."
        }
        GoClass::Io => {
            "Their peers say nothing and nothing limits the wait: set deadlines on these connections, and end the goroutine when its connection is of no more use."
        }
        GoClass::Syscall => {
            "Each holds a thread of its own: look at the call they are in, and bound how many may be in it at once."
        }
        _ => "See what is to end this wait, and on which path that is left out.",
    }
}
