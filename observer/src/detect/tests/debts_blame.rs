//! Debts: whom to blame, and for how much.

use super::debts::*;
use super::file_locks::{flock, on_file, with_locks};
use super::*;
use crate::model::debts::State;
use crate::proc::Connection;

#[test]
fn streams_in_one_direction_are_no_requests() {
    // Six that send a sample every ten seconds, in turns, beside a service that is known and rests.
    let samples = |at: u64| -> Vec<Connection> {
        let one = |i: u64| {
            let sample = line(1 + i, Some((at - (at + i) % 10) * 1000), Some(60_000));
            Connection { sent: Some(300), ..sample }
        };
        known().into_iter().chain((0..6).map(one)).collect()
    };
    let at = [100, 105, 110, 116, 121, 126, 131, 137];
    assert!(found(&server(), &at, samples).is_empty());
    // Clients that were answered before, for long: they ask again and again, and nobody answers.
    let asked = |at| -> Vec<Connection> {
        let more = |one: Connection| Connection { sent: one.sent.map(|bytes| bytes * 100), ..one };
        samples(at).into_iter().map(more).collect()
    };
    assert_eq!(only(&found(&server(), &at, asked)).kind, Kind::UnansweredRequests);
}

#[test]
fn requests_that_wait_for_another_service_do_not_hold_the_pool() {
    let waits = |others: u64| {
        move |_| {
            let asked = (0..others).map(|i| to("10.0.0.3:443", 200 + i, Some(80_000), Some(90_005 + 20 * i)));
            nested(12, 5).into_iter().chain(asked).collect::<Vec<_>>()
        }
    };
    assert!(found(&server(), &[91, 96, 97], waits(12)).is_empty());
    assert_eq!(only(&found(&server(), &[91, 96, 97], waits(8))).confidence, Confidence::Possible);
    assert_eq!(only(&found(&server(), &[91, 96, 97], waits(2))).confidence, Confidence::Likely);
}

#[test]
fn who_waits_for_an_advisory_lock_does_so_on_purpose() {
    let rows = server();
    let asked = [line(1, Some(90_000), Some(80_000))];
    let elected = ["epoll_wait", "WaitEventSetWait", "WaitLatch", "ProcSleep", "LockAcquireExtended"];
    let stack = |last: &'static str| stack_of(&rows[0], &[&elected[..], &[last, "PostgresMain"]].concat());
    assert!(with_stack(&rows, &stack("pg_advisory_lock_int8"), &asked).is_empty());
    assert_eq!(only(&with_stack(&rows, &stack("heap_update"), &asked)).kind, Kind::UnansweredRequests);
}

#[test]
fn programs_that_only_inherited_a_listener_are_not_blamed() {
    // A server in system(): the shell and the program it runs have the socket, too.
    let mut rows = vec![row(10, 10), row(20, 20), row(30, 30)];
    for (row, (parent, comm)) in rows.iter_mut().zip([(1, "server"), (10, "sh"), (20, "sleep")]) {
        (row.ppid, row.comm) = (parent, comm.to_owned());
    }
    let scope = Scope { processes: Some(BTreeSet::from([10, 20, 30])), threshold_ns: 5 * S, ..Scope::default() };
    let waiting = || vec![listener(1, 8, &["10.0.0.9:1"])];
    let all = |at| [10, 20, 30].map(|pid| listed(pid, at, Vec::new(), waiting())).to_vec();
    let findings = watch(&mut Judge::new(scope.clone()), &rows, &[91, 96], all);
    assert_eq!(only(&findings).process.pid, 10);
    // Workers of the same program: the last one. One that is new does not make the wait a short one.
    rows.iter_mut().for_each(|row| row.comm = "server".to_owned());
    let late = |at| {
        let pids: &[u32] = if at < 96 { &[10, 20] } else { &[10, 20, 30] };
        pids.iter().map(|pid| listed(*pid, at, Vec::new(), waiting())).collect()
    };
    let findings = watch(&mut Judge::new(scope), &rows, &[91, 96], late);
    assert_eq!((only(&findings).process.pid, &only(&findings).evidence["waited_ns"]), (30, &(5 * S).into()));
}

#[test]
fn a_request_that_nobody_touched_is_unread_whatever_was_answered_before() {
    // At rest once; fifty exchanges later the loop spins, with one whole request unread.
    let busy = |at: u64| {
        let rest = Connection { received: Some(700), sent: Some(300), ..line(1, Some(80_000), Some(80_005)) };
        let later = |sent_ms: u64| Connection {
            unread: 100,
            received: Some(700 + 51 * 100),
            sent: Some(300 + 50 * 60),
            last_received_ns: Some(91_500 * MS),
            last_sent_ns: Some(sent_ms * MS),
            ..rest.clone()
        };
        vec![if at < 92 { rest } else { later(91_400) }]
    };
    assert_eq!(only(&found(&server(), &[91, 92, 97, 98], busy)).kind, Kind::NotReading);
}

#[test]
fn one_connection_that_is_stuck_is_not_the_whole_server() {
    let serves = |at: u64| vec![unread(100, 100, true), line(2, Some(at * 1000 - 20), Some(at * 1000 - 10))];
    let mut judge = judge();
    let findings = watch(&mut judge, &server(), &[91, 93, 97], |at| vec![listed(10, at, serves(at), Vec::new())]);
    assert_eq!(only(&findings).kind, Kind::NotReading);
    assert_eq!(judge.verdict(process(10)).unwrap().state, State::Busy);
}

#[test]
fn what_ended_threads_did_is_not_subtracted_from_the_others() {
    let mut rows = vec![row(10, 10), row(10, 11), row(10, 12)];
    rows.iter_mut().for_each(|row| (row.nvcsw, row.cpu_ns) = (1000, 10 * S));
    let mut judge = judge();
    let one = |at| vec![listed(10, at, vec![line(1, Some(80_000), Some(80_001))], Vec::new())];
    watch(&mut judge, &rows, &[91], one);
    rows.remove(1);
    rows[1].nvcsw = 1400;
    rows[1].cpu_ns += 3 * S;
    rows.push(ThreadRow { nvcsw: 7, nivcsw: 0, cpu_ns: S / 2, ..row(10, 13) });
    watch(&mut judge, &rows, &[96], one);
    let debts = judge.host.services().of(process(10)).unwrap();
    assert_eq!((debts.progress.switches, debts.progress.cpu_ns), (400 + 7 + 1, 3 * S + S / 2));
}

#[test]
fn a_peer_is_silent_for_a_lock_only_if_that_stops_it() {
    // The peer's main thread waits for a lock of a file that 30 has; or another thread of it does.
    let waits = with_syscall(row(20, 21), 73, [3, 2, 0, 0, 0, 0]);
    let main = with_syscall(row(20, 20), 232, [3, 0x1000, 16, u64::MAX, 0, 0]);
    let peer = |_: u64| Connection { peer_process: Some(process(20)), ..to(DB, 100, Some(80_000), Some(90_000)) };
    let silent = |rows: Vec<ThreadRow>| {
        let scope = Scope { processes: Some(BTreeSet::from([10, 20])), threshold_ns: 5 * S, ..Scope::default() };
        let waiter = rows.iter().find(|row| row.syscall.is_some_and(|call| call.number == 73)).unwrap().clone();
        let mut judge = Judge::new(scope);
        for second in [91, 96, 97] {
            judge.advance(census(second, rows.clone()), ProbeReading::default());
            let locks = with_locks(vec![on_file(&waiter, 7)], vec![flock(7, 30, &[20])]);
            judge.learn(Facts { streams: vec![listed(10, second, vec![peer(second)], Vec::new())], ..locks });
        }
        judge.advance(census(98, rows), ProbeReading::default());
        let open = judge.ledger.open();
        assert!(open.iter().any(|life| life.finding.kind == Kind::LockWait), "{open:?}");
        open.iter().any(|life| life.finding.kind == Kind::AwaitingReply)
    };
    let holder = row(30, 30);
    assert!(!silent(vec![server().remove(0), main.clone(), waits.clone(), holder.clone()]));
    let stuck = with_syscall(row(20, 20), 73, [3, 2, 0, 0, 0, 0]);
    assert!(silent(vec![server().remove(0), stuck, holder]));
}
