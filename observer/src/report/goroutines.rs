//! Goroutines of one process as text, JSON (`observer.goroutines/v1`) and folded stacks, and how they changed between two
//! censuses.

use super::stacks;
use super::text::{Paint, clean};
use crate::model::duration;
use crate::proc::{Frame, GoState, GoWait, GoroutineGroup, Goroutines, Stack, StackEnd};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Frames of one stack that text shows.
const SHOWN: usize = 8;
/// Numbers of goroutines, and things waited for, that JSON lists of one group.
const LISTED: usize = 16;

/// Groups that are remembered beyond the last census.
const MAX_GROUPS: usize = 1 << 16;

/// What one census adds to those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trend {
    /// The longest that one of the group has been seen waiting at the same place, nanoseconds: a lower bound.
    pub longest_wait_ns: u64,
    /// Goroutines a minute since the first census; `None` before the second.
    pub growth_per_minute: Option<f64>,
    /// How many wait where they did in the census before, and have run in between; `None` where that is not known of any.
    pub ran_again: Option<usize>,
}

/// A goroutine in one wait: number, `g`, program counter, stack pointer.
type Wait = (u64, u64, u64, u64);

/// The censuses of one process so far. What it keeps is about as large as one census.
#[derive(Debug, Default)]
pub struct Trends {
    /// When each was first seen where it is, `CLOCK_MONOTONIC`, and its count of runs.
    waits: HashMap<Wait, (u64, Option<u8>)>,
    /// When each group was first seen, and how many it was then; the first census for groups that came later.
    groups: HashMap<u64, (u64, usize)>,
    first_ns: Option<u64>,
}

impl Trends {
    /// Takes a census, and answers with the trend of each of its groups.
    pub fn learn(&mut self, census: &Goroutines) -> Vec<Trend> {
        let now = census.taken_ns;
        let first = *self.first_ns.get_or_insert(now);
        let mut waits = HashMap::with_capacity(census.total());
        let mut groups = HashMap::with_capacity(census.groups.len());
        let mut trends = Vec::with_capacity(census.groups.len());
        for group in &census.groups {
            let mut since = now;
            let mut ran_again = None;
            for member in &group.members {
                let wait = (member.goid, member.g, member.pc, member.sp);
                let (mut seen, before) = self.waits.get(&wait).copied().unwrap_or((now, None));
                if let Some((before, now_ran)) = before.zip(member.ran) {
                    let has_run = before != now_ran;
                    *ran_again.get_or_insert(0) += usize::from(has_run);
                    seen = if has_run { now } else { seen };
                }
                since = since.min(seen);
                waits.insert(wait, (seen, member.ran));
            }
            let key = key(group);
            let (began, count) =
                self.groups.get(&key).copied().unwrap_or((first, if first == now { group.members.len() } else { 0 }));
            groups.insert(key, (began, count));
            let minutes = now.saturating_sub(began) as f64 / 60e9;
            let growth = (minutes > 0.0).then(|| (group.members.len() as f64 - count as f64) / minutes);
            let is_parked = matches!(group.state, GoState::Waiting | GoState::Syscall | GoState::Leaked);
            let longest_wait_ns = if is_parked { now.saturating_sub(since) } else { 0 };
            trends.push(Trend { longest_wait_ns, growth_per_minute: growth, ran_again });
        }
        // A group that has gone for a moment has not begun anew.
        if self.groups.len() > MAX_GROUPS {
            self.groups.clear();
        }
        self.groups.extend(groups);
        self.waits = waits;
        trends
    }
}

/// The same group in every census.
fn key(group: &GoroutineGroup) -> u64 {
    let mut hasher = DefaultHasher::new();
    (group.state, &group.reason, &group.function, &group.created_by).hash(&mut hasher);
    group.stack.frames.iter().for_each(|frame| frame.address.hash(&mut hasher));
    hasher.finish()
}

/// What the goroutines of a group do, in the words of Go's own stack traces.
pub fn doing(group: &GoroutineGroup) -> &str {
    match group.state {
        GoState::Runnable => "runnable",
        GoState::Running => "running",
        GoState::Syscall => "syscall",
        GoState::Waiting if group.reason.is_empty() => "waiting",
        GoState::Waiting => &group.reason,
        GoState::Preempted => "preempted",
        GoState::Copystack => "copystack",
        GoState::Leaked => "leaked",
    }
}

/// One group, as in `observer attach --output json` and `observer goroutines --output json`.
pub fn group_to_json(group: &GoroutineGroup, trend: Trend) -> Value {
    let mut waits: BTreeMap<GoWait, u64> = BTreeMap::new();
    for wait in group.members.iter().filter_map(|member| member.wait) {
        *waits.entry(wait).or_default() += 1;
    }
    let mut waits: Vec<(GoWait, u64)> = waits.into_iter().collect();
    waits.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let wait = |(wait, count): &(GoWait, u64)| match wait {
        GoWait::Channel { address, len, capacity, closed } => json!({
            "kind": "channel", "address": format!("{address:#x}"), "len": len, "capacity": capacity, "closed": closed, "waiters": count,
        }),
        GoWait::Semaphore { address } => {
            json!({ "kind": "semaphore", "address": format!("{address:#x}"), "waiters": count })
        }
    };
    let tids: Vec<u32> = group.members.iter().map(|member| member.tid).filter(|tid| *tid != 0).take(LISTED).collect();
    let created_by = group
        .created_by
        .as_ref()
        .map(|(function, file, line)| json!({ "function": function, "file": file, "line": line }));
    json!({
        "count": group.members.len(),
        "state": group.state,
        "wait_reason": if group.reason.is_empty() { Value::Null } else { json!(group.reason) },
        "longest_wait_ns": trend.longest_wait_ns,
        "growth_per_minute": trend.growth_per_minute,
        "ran_again": trend.ran_again,
        "function": group.function,
        "created_by": created_by,
        "is_system": group.is_system,
        "stack_bytes": group.members.iter().map(|member| member.stack_bytes).sum::<u64>(),
        "goroutines": group.members.iter().map(|member| member.goid).take(LISTED).collect::<Vec<_>>(),
        "threads": tids,
        "waits_for": waits.iter().take(LISTED).map(wait).collect::<Vec<_>>(),
        "stack": stacks::frames(&group.stack),
        "stack_end": stacks::end(&group.stack),
    })
}

/// The whole census. `taken_at`: RFC 3339.
pub fn to_json(census: &Goroutines, trends: &[Trend], comm: &str, taken_at: &str) -> Value {
    let groups = census.groups.iter().zip(trends).map(|(group, trend)| group_to_json(group, *trend));
    json!({
        "schema": "observer.goroutines/v1",
        "taken_at": taken_at,
        "pid": census.process.pid,
        "comm": comm,
        "version": census.version,
        "took_ns": census.took_ns,
        "slots": census.slots,
        "total": census.total(),
        "system": system(census),
        "heap_bytes": census.heap_bytes,
        "rss_bytes": census.rss_bytes,
        "groups": groups.collect::<Vec<_>>(),
        "lost": census.lost,
    })
}

fn system(census: &Goroutines) -> usize {
    census.groups.iter().filter(|group| group.is_system).map(|group| group.members.len()).sum()
}

/// The groups for people, at most `limit`, those of the runtime itself only when `with_system`.
pub fn to_text(
    census: &Goroutines,
    trends: &[Trend],
    comm: &str,
    limit: usize,
    with_system: bool,
    paint: Paint,
) -> String {
    let mut out = String::new();
    let groups: Vec<(&GoroutineGroup, &Trend)> =
        census.groups.iter().zip(trends).filter(|(group, _)| with_system || !group.is_system).collect();
    let system = system(census);
    let _ = writeln!(
        out,
        "process {} ({}), {}: {} goroutines in {} groups{}; read in {}{}",
        census.process.pid,
        clean(comm),
        census.version,
        census.total() - if with_system { 0 } else { system },
        groups.len(),
        if with_system || system == 0 { String::new() } else { format!(", and {system} of the runtime (--system)") },
        duration(census.took_ns),
        memory(census),
    );
    for (group, trend) in groups.iter().take(limit) {
        let _ = writeln!(out, "\n{}", paint.bold(&clean(&head(group, **trend))));
        out.push_str(&stack_text(&group.stack));
        if let Some((function, file, line)) = &group.created_by {
            let _ = writeln!(out, "    created by {} ({}:{line})", clean(function), clean(file));
        }
    }
    if groups.len() > limit {
        let rest: usize = groups.iter().skip(limit).map(|(group, _)| group.members.len()).sum();
        let _ = writeln!(
            out,
            "\n… {} more groups with {rest} goroutines (--limit {}, --output json lists all)",
            groups.len() - limit,
            groups.len()
        );
    }
    let lost: Vec<String> = census.lost.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    if !lost.is_empty() {
        let _ = writeln!(out, "\nwithout a stack, or left out: {}", lost.join(", "));
    }
    out
}

fn memory(census: &Goroutines) -> String {
    match (census.heap_bytes, census.rss_bytes) {
        (Some(heap), Some(rss)) => format!("; {} MiB live on its heap, {} MiB resident", heap >> 20, rss >> 20),
        (None, Some(rss)) => format!("; {} MiB resident", rss >> 20),
        (_, None) => String::new(),
    }
}

fn head(group: &GoroutineGroup, trend: Trend) -> String {
    let mut line = format!("{:>6}  {}", group.members.len(), doing(group));
    if trend.longest_wait_ns > 0 {
        let _ = write!(line, ", ≥{}", duration(trend.longest_wait_ns));
    }
    if let Some(growth) = trend.growth_per_minute.filter(|growth| growth.abs() >= 0.5) {
        let _ = write!(line, ", {growth:+.0}/min");
    }
    if let Some(count) = trend.ran_again.filter(|count| *count > 0) {
        let _ = write!(line, ", {count} ran again");
    }
    let mut things: Vec<GoWait> = group.members.iter().filter_map(|member| member.wait).collect();
    things.sort_unstable();
    things.dedup_by_key(|wait| match wait {
        GoWait::Channel { address, .. } | GoWait::Semaphore { address } => *address,
    });
    match things.as_slice() {
        [] => {}
        [GoWait::Channel { address, len, capacity, closed }] => {
            let closed = if *closed { ", closed" } else { "" };
            let _ = write!(line, ", all at channel {address:#x} ({len} of {capacity}{closed})");
        }
        [GoWait::Semaphore { address }] => {
            let _ = write!(line, ", all at {address:#x}");
        }
        many => {
            let _ = write!(line, ", at {} different", many.len());
        }
    }
    let threads: Vec<String> =
        group.members.iter().filter(|member| member.tid != 0).take(4).map(|member| member.tid.to_string()).collect();
    if !threads.is_empty() {
        let _ = write!(line, ", on thread {}", threads.join(" "));
    }
    line
}

fn stack_text(stack: &Stack) -> String {
    let mut out = String::new();
    // How the runtime parks a goroutine says less than why.
    let is_parking = |frame: &&Frame| frame.function.as_deref().is_some_and(|name| name.starts_with("runtime."));
    let parking = stack.frames.iter().take_while(is_parking).count();
    let shown = if parking == stack.frames.len() { 0 } else { parking };
    let frames = stack.frames.get(shown..).unwrap_or_default();
    for frame in frames.iter().take(SHOWN) {
        let function = frame.function.as_deref().unwrap_or("?");
        let _ = match (&frame.file, frame.line) {
            (Some(file), Some(line)) => writeln!(out, "    {} ({}:{line})", clean(function), clean(file)),
            _ => writeln!(out, "    {}", clean(function)),
        };
    }
    if frames.len() > SHOWN {
        let _ = writeln!(out, "    … {} more", frames.len() - SHOWN);
    }
    if let StackEnd::Stopped(why) = &stack.end {
        let _ = writeln!(out, "    … no further: {why}");
    }
    out
}

/// Folded stacks, outermost first, as flame graphs are made of; the innermost entry is what they do, in brackets.
pub fn to_folded(census: &Goroutines, with_system: bool) -> String {
    let mut folded: BTreeMap<String, usize> = BTreeMap::new();
    for group in census.groups.iter().filter(|group| with_system || !group.is_system) {
        let mut names: Vec<String> = Vec::new();
        for frame in group.stack.frames.iter().rev() {
            // A semicolon would end the name, a line end the stack.
            names.push(clean(frame.function.as_deref().unwrap_or("?")).replace(';', ":"));
        }
        if names.is_empty() {
            names.extend(group.function.clone());
        }
        names.push(format!("[{}]", doing(group)));
        *folded.entry(names.join(";")).or_default() += group.members.len();
    }
    folded.iter().map(|(stack, count)| format!("{stack} {count}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::census::ProcessId;
    use crate::proc::Goroutine;
    use std::sync::Arc;

    fn census(taken_ns: u64, goids: impl IntoIterator<Item = u64>) -> Goroutines {
        let function = |name: &str| Frame { function: Some(name.to_owned()), ..Frame::default() };
        let frames = vec![function("runtime.gopark"), function("main.send;er"), function("main.\u{1b}run")];
        let members = goids.into_iter().map(|goid| Goroutine { goid, g: goid, ..Goroutine::default() }).collect();
        let group = GoroutineGroup {
            state: GoState::Waiting,
            reason: "chan send".to_owned(),
            stack: Arc::new(Stack { frames, end: StackEnd::Root }),
            created_by: Some(("main.start".to_owned(), "/src/main.go".to_owned(), 7)),
            function: Some("main.run".to_owned()),
            is_system: false,
            members,
        };
        let mut census = Goroutines::missing(ProcessId { pid: 7, start_ns: 1 }, "");
        (census.taken_ns, census.missing, census.groups) = (taken_ns, None, vec![group]);
        census
    }

    #[test]
    fn growth_and_waits_are_those_since_the_first_census() {
        let mut trends = Trends::default();
        let second = 1_000_000_000;
        assert_eq!(trends.learn(&census(10 * second, 1..=10)), [Trend::default()]);
        // Half a minute later five more, and the first has gone.
        let trend = trends.learn(&census(40 * second, 2..=16))[0];
        let expected = Trend { longest_wait_ns: 30 * second, growth_per_minute: Some(10.0), ran_again: None };
        assert_eq!(trend, expected);
        // All of them are new: nobody has been seen waiting before.
        let trend = trends.learn(&census(70 * second, 20..=29))[0];
        assert_eq!(trend, Trend { longest_wait_ns: 0, growth_per_minute: Some(0.0), ran_again: None });
    }

    #[test]
    fn one_that_has_run_waits_anew() {
        let mut trends = Trends::default();
        let second = 1_000_000_000;
        let mut counted = |at: u64, counts: [u8; 3]| {
            let mut census = census(at * second, 1..=3);
            for (member, ran) in census.groups[0].members.iter_mut().zip(counts) {
                member.ran = Some(ran);
            }
            trends.learn(&census)[0]
        };
        assert_eq!(counted(10, [7, 7, 255]).ran_again, None);
        let trend = counted(12, [7, 8, 0]);
        assert_eq!((trend.ran_again, trend.longest_wait_ns), (Some(2), 2 * second));
        let trend = counted(15, [8, 8, 0]);
        assert_eq!((trend.ran_again, trend.longest_wait_ns), (Some(1), 3 * second));
    }

    #[test]
    fn names_neither_break_lines_nor_reach_the_terminal() {
        let census = census(1, 1..=3);
        assert_eq!(to_folded(&census, false), "main.\u{fffd}run;main.send:er;runtime.gopark;[chan send] 3\n");
        let text = to_text(&census, &[Trend::default()], "x\u{1b}", 20, false, Paint::default());
        assert!(!text.contains('\u{1b}') && text.contains("created by main.start (/src/main.go:7)"), "{text}");
    }
}
