//! Goroutines over many readings: what is a leak, what cannot end, and what is load, a pool or rest.

use super::*;
use crate::model::testkit::{census, go_group, goroutines, row};
use crate::proc::{GoState, GoWait, GoroutineGroup};

/// Readings of process 10, one a second from second 200 on: long after its start. What is found at the end.
fn watch(readings: impl IntoIterator<Item = Vec<GoroutineGroup>>) -> Vec<Finding> {
    watch_from(200, judge(), readings)
}

fn watch_from(from: u64, mut judge: Judge, readings: impl IntoIterator<Item = Vec<GoroutineGroup>>) -> Vec<Finding> {
    let mut at = from;
    for groups in readings {
        judge.advance(census(at, vec![row(10, 10)]), ProbeReading::default());
        let learnt = Facts { goroutines: vec![goroutines(10, at, groups)], ..Facts::default() };
        judge.learn(learnt);
        at += 1;
    }
    judge.advance(census(at, vec![row(10, 10)]), ProbeReading::default());
    judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect()
}

fn kinds_of(found: &[Finding]) -> Vec<(Kind, Confidence)> {
    found.iter().map(|finding| (finding.kind, finding.confidence)).collect()
}

fn senders(goids: std::ops::Range<u64>) -> GoroutineGroup {
    go_group("chan send", &["runtime.gopark", "runtime.chansend", "main.leak", "main.serve.func1"], goids)
}

fn receivers(goids: std::ops::Range<u64>) -> GoroutineGroup {
    go_group("chan receive", &["runtime.gopark", "runtime.chanrecv", "main.worker"], goids)
}

#[test]
fn a_leak_is_found_with_its_site_and_creator() {
    let found = watch((0..70).map(|n| vec![senders(100..120 + n), receivers(10..14)]));
    assert_eq!(kinds_of(&found), [(Kind::GoroutineLeak, Confidence::Likely)], "{found:#?}");
    let finding = &found[0];
    assert!(finding.title.contains("main.leak (main.go:12)"), "{}", finding.title);
    assert!(finding.explanation.contains("main.serve (main.go:99)"), "{}", finding.explanation);
    assert_eq!(finding.evidence["growth_per_minute"], 60.0);
    assert_eq!((&finding.evidence["count"], &finding.evidence["left"]), (&89.into(), &0.into()));
    assert_eq!(finding.evidence["memory_bytes"], 89 * (2048 + 440));
}

#[test]
fn rises_that_are_no_leak() {
    let silent = |what: &str, readings: Vec<Vec<GoroutineGroup>>| {
        let found = watch(readings);
        assert!(found.is_empty(), "{what}: {found:#?}");
    };
    silent("a pool that is full", (0..70_u64).map(|n| vec![receivers(10..11 + n.min(40))]).collect());
    silent("requests that come and go", (0..70).map(|n| vec![senders(100 + 9 * n..140 + 10 * n)]).collect());
    let peak = |n: u64| if n < 30 { 100 + n * 5 } else { 250 - (n - 30).min(30) * 5 };
    silent("a peak", (0..70).map(|n| vec![senders(100..peak(n))]).collect());
    silent("few", (0..70).map(|n| vec![senders(100..100 + n / 10)]).collect());
    let sessions =
        |n: u64| go_group("IO wait", &["runtime.gopark", "internal/poll.(*FD).Read", "main.session"], 100..120 + n);
    silent("sessions", (0..200).map(|n| vec![sessions(n)]).collect());
    // While it starts: process 10 began at 0.1 s, and its start counts for ten thresholds.
    let found = watch_from(2, judge(), (0..45).map(|n| vec![senders(100..120 + n)]));
    assert!(found.is_empty(), "a start: {found:#?}");
}

/// The same, and how often each has run by then.
fn with_runs(mut group: GoroutineGroup, runs: u64) -> GoroutineGroup {
    for member in &mut group.members {
        member.ran = Some(runs as u8);
    }
    group
}

#[test]
fn who_runs_again_is_at_work_and_may_become_more_for_longer() {
    let rise = |seconds: u64, runs: fn(u64) -> u64| {
        watch((0..seconds).map(|n| vec![with_runs(receivers(10..14 + n), runs(n))]))
    };
    assert_eq!(kinds_of(&rise(70, |_| 3)), [(Kind::GoroutineLeak, Confidence::Likely)], "nobody runs");
    let found = rise(200, |n| n);
    assert!(found.is_empty(), "a pool at work: {found:#?}");
    let found = rise(200, |n| n / 8);
    assert!(found.is_empty(), "each now and then: {found:#?}");
    let found = rise(70, |n| n / 30);
    assert_eq!(kinds_of(&found), [(Kind::GoroutineLeak, Confidence::Likely)], "hardly ever: {found:#?}");
    // Ten minutes long: a ticker that nobody stops.
    let found = rise(670, |n| n);
    assert_eq!(kinds_of(&found), [(Kind::GoroutineLeak, Confidence::Possible)], "{found:#?}");
    assert_eq!(found[0].evidence["run_again"], true);
}

#[test]
fn a_pool_that_begins_to_fill_is_not_told_from_a_leak_in_a_moment() {
    // In a process that has run for 200 s with four of them, ten more a second.
    let found = watch((0..8).map(|n| vec![receivers(10..14 + 10 * n)]));
    assert!(found.is_empty(), "{found:#?}");
    // Where as many were there as the rate explains, it has gone on all the time.
    let found = watch((0..8).map(|n| vec![receivers(10..1000 + 5 * n)]));
    assert_eq!(kinds_of(&found), [(Kind::GoroutineLeak, Confidence::Likely)], "{found:#?}");
}

#[test]
fn what_fills_together_is_one_finding() {
    let of_client = |name: &str, reason: &str, from: u64, n: u64| {
        let mut group = go_group(reason, &["runtime.gopark", name], from..from + 120 + n);
        group.created_by = Some(("net/http.(*Transport).dialConn".to_owned(), "/go/transport.go".to_owned(), 1751));
        group
    };
    let found = watch((0..70).map(|n| {
        vec![
            go_group("select", &["runtime.gopark", "net/http.(*persistConn).roundTrip", "main.check"], 1..121 + n),
            of_client("net/http.(*persistConn).writeLoop", "select", 1000, n),
            of_client("net/http.(*persistConn).readLoop", "IO wait", 3000, n),
        ]
    }));
    assert_eq!(kinds_of(&found), [(Kind::GoroutineLeak, Confidence::Likely)], "{found:#?}");
    assert_eq!(found[0].evidence["place"]["function"], "main.check");
    assert_eq!(found[0].evidence["beside"].as_array().map(Vec::len), Some(2));
    assert!(found[0].remedy.contains("http.Client.Timeout"));
}

#[test]
fn waits_that_never_end_by_the_language() {
    let nil = |goids| go_group("chan receive (nil chan)", &["runtime.gopark", "main.wait"], goids);
    let empty = |goids| go_group("select (no cases)", &["runtime.gopark", "runtime.block", "main.wait"], goids);
    let found = watch((0..10).map(|_| vec![nil(7..8)]));
    assert_eq!(kinds_of(&found), [(Kind::GoroutineBlocked, Confidence::Certain)]);
    assert_eq!(found[0].severity, Severity::Warning);
    assert!(watch((0..10).map(|_| vec![empty(1..2)])).is_empty(), "main waits for its end");
    let found = watch((0..10).map(|_| vec![empty(7..8)]));
    assert_eq!(found[0].severity, Severity::Info, "one may be on purpose");
    assert!(watch((0..3).map(|_| vec![nil(7..8)])).is_empty(), "not for the threshold");
}

fn at_lock(address: u64, stack: &[&str], goids: std::ops::Range<u64>) -> GoroutineGroup {
    let lock = ["runtime.gopark", "sync.(*Mutex).lockSlow", "sync.(*Mutex).Lock"];
    let frames: Vec<&str> = lock.iter().chain(stack).copied().collect();
    let mut group = go_group("sync.Mutex.Lock", &frames, goids);
    for member in &mut group.members {
        member.wait = Some(GoWait::Semaphore { address });
    }
    group
}

#[test]
fn a_lock_that_is_not_let_go() {
    let mut inside = go_group("", &["syscall.Syscall", "main.(*Engine).collect", "main.(*Engine).Call"], 5..6);
    inside.state = GoState::Syscall;
    let timer = go_group("sleep", &["runtime.gopark", "time.Sleep", "main.main"], 1..2);
    let stack = ["main.(*Engine).Call", "main.handle"];
    let grows = |n: u64| vec![at_lock(0x1000, &stack, 100..110 + n), inside.clone(), timer.clone()];
    let found = watch((0..10).map(grows));
    assert_eq!(kinds_of(&found), [(Kind::GoroutineBlocked, Confidence::Likely)], "{found:#?}");
    let chain = &found[0].chain;
    assert_eq!(chain[0].held_by.unwrap().goid, Some(5));
    assert_eq!((chain[1].from.goid, chain.len()), (Some(5), 2));
    // A convoy: somebody gets it all the time.
    let convoy = |n: u64| vec![at_lock(0x1000, &stack, 100 + 2 * n..110 + 3 * n), inside.clone(), timer.clone()];
    assert!(watch((0..10).map(convoy)).is_empty());
    // Leader and followers: one has it and waits for work, the same others wait for their turn.
    let leader = go_group("IO wait", &["runtime.gopark", "internal/poll.(*FD).Accept", "main.(*Engine).Call"], 5..6);
    let followers = |_| vec![at_lock(0x1000, &stack, 100..104), leader.clone(), timer.clone()];
    assert!(watch((0..70).map(followers)).is_empty());
}

#[test]
fn a_circle_of_locks() {
    let timer = go_group("sleep", &["runtime.gopark", "time.Sleep", "main.main"], 1..2);
    let transfer = ["main.(*Account).Transfer", "main.run"];
    let circle = |_| vec![at_lock(0x1000, &transfer, 5..6), at_lock(0x2000, &transfer, 6..7), timer.clone()];
    let found = watch((0..10).map(circle));
    assert_eq!(kinds_of(&found), [(Kind::Deadlock, Confidence::Likely)], "{found:#?}");
    let steps: Vec<_> = found[0].chain.iter().map(|link| (link.from.goid, link.held_by.unwrap().goid)).collect();
    assert_eq!(steps, [(Some(5), Some(6)), (Some(6), Some(5))], "{:#?}", found[0].chain);
    assert!(watch((0..3).map(circle)).is_empty(), "not for the threshold");
}

#[test]
fn all_asleep() {
    let on_channel = |mut group: GoroutineGroup, capacity| {
        for member in &mut group.members {
            member.wait = Some(GoWait::Channel { address: 0x5000, len: 0, capacity, closed: false });
        }
        group
    };
    let main = || go_group("sync.WaitGroup.Wait", &["runtime.gopark", "sync.(*WaitGroup).Wait", "main.main"], 1..2);
    let found = watch((0..10).map(|_| vec![main(), on_channel(receivers(10..14), 0)]));
    // A context with a deadline closes its channel by itself.
    assert_eq!(kinds_of(&found), [(Kind::GoroutineBlocked, Confidence::Possible)], "{found:#?}");
    assert_eq!(found[0].severity, Severity::Warning);
    assert!(found[0].title.contains("all 5 goroutines"), "{}", found[0].title);
    let join = || go_group("sync.WaitGroup.Wait", &["runtime.gopark", "sync.(*WaitGroup).Wait", "main.join"], 5..7);
    let found = watch((0..10).map(|_| vec![main(), join()]));
    assert_eq!(kinds_of(&found), [(Kind::GoroutineBlocked, Confidence::Likely)], "{found:#?}");
    assert_eq!(found[0].severity, Severity::Critical);
    // A channel with room may be that of a timer, a goroutine that sleeps goes on by itself.
    assert!(watch((0..10).map(|_| vec![main(), on_channel(receivers(10..14), 1)])).is_empty());
    let sleeper = || go_group("sleep", &["runtime.gopark", "time.Sleep", "main.tick"], 30..31);
    assert!(watch((0..10).map(|_| vec![main(), on_channel(receivers(10..14), 0), sleeper()])).is_empty());
}

#[test]
fn what_was_seen_in_one_moment_does_not_age_until_the_next_reading() {
    let timer = || go_group("sleep", &["runtime.gopark", "time.Sleep", "main.tick"], 30..31);
    let transfer = ["main.(*Account).Transfer", "main.run"];
    let circle = vec![at_lock(0x1000, &transfer, 5..6), at_lock(0x2000, &transfer, 6..7), timer()];
    let mut inside = go_group("", &["syscall.Syscall", "main.(*Engine).collect", "main.(*Engine).Call"], 5..6);
    inside.state = GoState::Syscall;
    let lock = vec![at_lock(0x1000, &["main.(*Engine).Call", "main.handle"], 100..110), inside, timer()];
    let nil = vec![go_group("chan receive (nil chan)", &["runtime.gopark", "main.wait"], 7..8), timer()];
    let join =
        |name: &str, goids| go_group("sync.WaitGroup.Wait", &["runtime.gopark", "sync.(*WaitGroup).Wait", name], goids);
    let asleep = vec![join("main.main", 1..2), join("main.join", 5..7)];
    let cases = [
        ("circle", circle, Kind::Deadlock),
        ("lock", lock, Kind::GoroutineBlocked),
        ("nil channel", nil, Kind::GoroutineBlocked),
        ("all asleep", asleep, Kind::GoroutineBlocked),
    ];
    for (what, groups, kind) in cases {
        let mut judge = judge();
        for at in 200..240 {
            let turn = judge.advance(census(at, vec![row(10, 10)]), ProbeReading::default());
            let open: Vec<Kind> = judge.ledger.open().into_iter().map(|life| life.finding.kind).collect();
            if at <= 220 {
                assert!(open.is_empty(), "{what}, at {at}: {open:?}, with nothing read since 202");
            } else {
                assert_eq!(open, [kind], "{what}, at {at}: it stays, whether it was read again or not");
            }
            if (205..=220).contains(&at) {
                assert_eq!(turn.ripe_at_ns, Some(at * S), "{what}: the next reading is waited for");
            }
            if [200, 201, 202, 220].contains(&at) {
                judge.learn(Facts { goroutines: vec![goroutines(10, at, groups.clone())], ..Facts::default() });
            }
        }
    }
}

#[test]
fn the_collector() {
    let work = |reason: &str, goids| go_group(reason, &["runtime.gopark", "runtime.mallocgc", "main.handle"], goids);
    let held = |n: u64| vec![work("GC assist wait", 100..100 + (n % 3) * 10), receivers(10..14)];
    assert_eq!(kinds_of(&watch((0..10).map(held))), [(Kind::GcStall, Confidence::Likely)]);
    let brief = |n: u64| vec![work("GC assist wait", 100..100 + u64::from(n.is_multiple_of(10))), receivers(10..14)];
    assert!(watch((0..30).map(brief)).is_empty());
    // Readings as rare as those of a host: 6 s apart, the last eight of them count.
    let rare = |judge: Judge, held: fn(u64) -> u64| {
        let mut judge = judge;
        for n in 0..9 {
            let at = 200 + n * 6;
            judge.advance(census(at, vec![row(10, 10)]), ProbeReading::default());
            let groups = vec![work("GC assist wait", 100..100 + held(n)), receivers(10..14)];
            judge.learn(Facts { goroutines: vec![goroutines(10, at, groups)], ..Facts::default() });
        }
        judge.advance(census(255, vec![row(10, 10)]), ProbeReading::default());
        judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect::<Vec<_>>()
    };
    let found = rare(judge(), |n| (n % 3) * 10);
    assert_eq!(kinds_of(&found), [(Kind::GcStall, Confidence::Likely)], "{found:#?}");
    // The place is that of all readings: in the last nobody waits.
    assert_eq!(found[0].evidence["place"]["function"], "main.handle");
    let found = rare(judge(), |n| u64::from(n == 5) * 10);
    assert!(found.is_empty(), "once: {found:#?}");
}

#[test]
fn what_could_not_be_read_says_nothing() {
    let mut judge = judge();
    for at in 200..270 {
        judge.advance(census(at, vec![row(10, 10)]), ProbeReading::default());
        let mut all = goroutines(10, at, vec![senders(100..100 + at)]);
        all.missing = Some("packed".to_owned());
        judge.learn(Facts { goroutines: vec![all], ..Facts::default() });
    }
    assert!(judge.ledger.open().is_empty() && judge.host.go_processes().next().is_none());
}
