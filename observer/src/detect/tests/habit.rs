//! A thread that always gave a limit and then gives none.

use super::*;
use crate::census::{TimeoutHistory, WordWakes};
use crate::proc::{EndHolder, FarEnd, MemberFact, SiteFact, Stack, StackEnd};
use std::sync::Arc;

const POLL: u32 = 7;

fn event(kind: EventKind, history: TimeoutHistory) -> ProbeEvent {
    ProbeEvent {
        kind,
        family: Family::Poll,
        tid: 11,
        pid: 10,
        comm: "t11".to_owned(),
        syscall: Some(POLL),
        start_ns: 90 * S - 1000,
        wait_ns: 0,
        ret: 0,
        timeout: if kind == EventKind::Habit { TimeoutKind::Infinite } else { TimeoutKind::Negative },
        timeout_raw: if kind == EventKind::Habit { -1 } else { -5 },
        timeout_ns: 0,
        args: [0x1000, 1, u64::from(u32::MAX), 0, 0, 0],
        local: None,
        remote: None,
        history: Some(history),
        site: 77,
    }
}

fn always(finite: u64) -> TimeoutHistory {
    TimeoutHistory { finite, longest_timeout_ns: 2 * S, ..TimeoutHistory::default() }
}

fn connection(remote: &str) -> MemberFact {
    let remote = Some(remote.to_owned());
    let socket = SocketFact { protocol: "tcp".to_owned(), remote, ..SocketFact::default() };
    let fd = FdFact { fd: 4, target: "socket:[9]".to_owned(), socket: Some(socket), ..FdFact::default() };
    MemberFact { fd, events: 1, far_end: None }
}

fn pipe(holder: u32) -> MemberFact {
    let holders = vec![EndHolder { process: process(holder), fd: 5 }];
    let far_end =
        Some(FarEnd { object: "pipe:[12]".to_owned(), holders, unsearched: 0, unread: None, taken_ns: 91 * S });
    MemberFact { fd: FdFact { fd: 4, target: "pipe:[12]".to_owned(), ..FdFact::default() }, events: 1, far_end }
}

/// The thread waits in that poll since second 90; what is found at second `now_s`.
fn found(history: TimeoutHistory, members: Vec<MemberFact>, now_s: u64) -> Vec<Finding> {
    // poll() has three arguments; the registers behind hold anything.
    let [fds, count, timeout, ..] = event(EventKind::Habit, history).args;
    let rows = vec![row(10, 10), with_syscall(row(10, 11), POLL, [fds, count, timeout, 0x5555, 7, 9])];
    let mut judge = judge();
    let events = vec![event(EventKind::Habit, history)];
    judge.advance(census(91, rows.clone()), ProbeReading { events, ..ProbeReading::default() });
    let mut thread = thread_facts(&rows[1], Vec::new());
    thread.members = members;
    let stack = Arc::new(Stack { frames: Vec::new(), end: StackEnd::Root });
    let sites = vec![SiteFact { process: process(10), site: 77, stack }];
    judge.learn(Facts { sites, ..facts(vec![thread]) });
    judge.advance(census(now_s, rows), ProbeReading::default());
    judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect()
}

#[test]
fn a_wait_for_a_peer_that_lasts_is_found_with_its_history() {
    let all = found(always(40), vec![connection("10.0.0.1:80")], 100);
    let [finding] = all.as_slice() else { panic!("{all:#?}") };
    assert_eq!((finding.kind, finding.severity), (Kind::BadTimeout, Severity::Warning));
    assert_eq!((finding.confidence, finding.threads.as_slice()), (Confidence::Likely, &[11][..]));
    assert_eq!(finding.evidence["history"]["finite"], 40);
    assert!(finding.explanation.contains("up to 2.0 s in 40 calls, then without a limit"), "{}", finding.explanation);
    assert_eq!(finding.call.as_ref().map(|call| call.tid), Some(11));
}

#[test]
fn what_may_be_meant_is_left_alone() {
    let peer = || vec![connection("10.0.0.1:80")];
    assert!(found(always(40), peer(), 93).is_empty(), "shorter than the threshold");
    assert!(found(always(3), peer(), 100).is_empty(), "no habit yet");
    assert!(found(TimeoutHistory { infinite: 1, ..always(40) }, peer(), 100).is_empty(), "it did so before");
    assert!(found(always(40), vec![connection("10.0.0.1:80"), pipe(20)], 100).is_empty(), "a loop");
    assert!(found(always(40), vec![connection("0.0.0.0:0")], 100).is_empty(), "a listener");
    assert!(found(always(40), vec![pipe(10)], 100).is_empty(), "a pipe of its own");
    assert!(found(always(40), Vec::new(), 100).is_empty(), "nothing is known of the set");
    let helper = found(always(40), vec![pipe(20)], 100);
    assert_eq!(
        helper.iter().map(|f| (f.severity, f.confidence)).collect::<Vec<_>>(),
        [(Severity::Info, Confidence::Possible)]
    );
}

#[test]
fn a_look_at_the_whole_host_asks_what_such_a_thread_polls() {
    let args = event(EventKind::Habit, always(40)).args;
    let rows = vec![row(10, 10), with_syscall(row(10, 11), POLL, args), with_syscall(row(10, 12), POLL, args)];
    let mut judge = judge();
    judge.scope.processes = None;
    let events = vec![event(EventKind::Habit, always(40))];
    judge.advance(census(91, rows.clone()), ProbeReading { events, ..ProbeReading::default() });
    let asked = |judge: &mut Judge| {
        let wants = judge.host.wants(&judge.scope).into_iter();
        wants.filter(|want| want.set.is_some() && want.far_end.is_some()).map(|want| want.tid).collect::<Vec<_>>()
    };
    assert!(asked(&mut judge).is_empty(), "shorter than the threshold");
    judge.advance(census(100, rows), ProbeReading::default());
    assert_eq!(asked(&mut judge), [11], "and nobody asks about a poll that was always like that");
}

#[test]
fn a_later_call_is_not_the_one() {
    let rows = vec![row(10, 10), with_syscall(row(10, 11), POLL, event(EventKind::Habit, always(40)).args)];
    let mut judge = judge();
    let early = ProbeEvent { start_ns: 60 * S, ..event(EventKind::Habit, always(40)) };
    judge.advance(census(91, rows.clone()), ProbeReading { events: vec![early], ..ProbeReading::default() });
    let mut thread = thread_facts(&rows[1], Vec::new());
    thread.members = vec![connection("10.0.0.1:80")];
    judge.learn(facts(vec![thread]));
    judge.advance(census(100, rows), ProbeReading::default());
    assert!(judge.ledger.open().is_empty());
}

#[test]
fn a_negative_timeout_tells_what_was_passed_before() {
    let history = TimeoutHistory { zero: 12_345, ..TimeoutHistory::default() };
    let mut judge = judge();
    let events = vec![event(EventKind::BadTimeout, history)];
    judge.advance(census(91, vec![row(10, 10), row(10, 11)]), ProbeReading { events, ..ProbeReading::default() });
    let open = judge.ledger.open();
    let finding = &open[0].finding;
    assert!(
        finding.explanation.contains("Its timeouts before: 0 in 12,345 calls, then -5."),
        "{}",
        finding.explanation
    );
    assert_eq!(finding.evidence["history"]["zero"], 12_345);
}

#[test]
fn wake_history_is_a_hint_and_closes_no_circle() {
    // Each of two threads waits for a lock that records no owner, and is usually woken by the other.
    let rows: Vec<ThreadRow> = (0..2).map(|i| in_mutex(10, 10 + i, 0x1000 * u64::from(i + 1))).collect();
    let wakes = |address, by| WordWakes { pid: 10, address, wakes: 12, last: by, last_ns: 80 * S, usual: by, lead: 12 };
    let reading = || ProbeReading { word_wakes: vec![wakes(0x1000, 11), wakes(0x2000, 10)], ..ProbeReading::default() };
    let mut judge = judge();
    for at in [91, 100, 110] {
        judge.advance(census(at, rows.clone()), reading());
    }
    let waker = judge.host.waker(&rows[0]);
    assert_eq!(waker.map(|waker| (waker.usual, waker.is_steady())), Some((11, true)));
    assert!(judge.ledger.open().is_empty(), "{:#?}", judge.ledger.open());
    assert!(judge.graph.knots().is_empty());
}
