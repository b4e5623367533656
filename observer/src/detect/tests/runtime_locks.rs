//! Locks of runtimes: read several times, since their waiters sleep in short turns, or their owners move.

use super::*;
use crate::proc::{RuntimeLock, RuntimeLockKind, RuntimeLocks};

fn at(waiter: u32, monitor: u64, owner: Option<u32>) -> RuntimeLock {
    RuntimeLock { waiter, address: monitor, kind: RuntimeLockKind::Monitor, owner, entering: true, turns: 0 }
}

/// Turns a second apart, from second 100 on; every thread has slept anew before each.
fn turns(tids: &[u32], readings: &[Vec<RuntimeLock>]) -> Judge {
    let mut judge = judge();
    for (turn, monitors) in (0_u64..).zip(readings) {
        judge.advance(census(100 + turn, slept_anew(tids, turn)), ProbeReading::default());
        judge.learn(locks(monitors));
    }
    judge
}

/// Threads that have all slept anew before this turn.
fn slept_anew(tids: &[u32], turn: u64) -> Vec<ThreadRow> {
    let row = |tid: &u32| {
        let mut row = with_syscall(row(10, *tid), 202, [0x7000 + u64::from(*tid), 0x89, 0, 0x100, 0, 0]);
        row.nvcsw += turn;
        row.off_cpu_since_ns = Some((100 + turn) * S - S / 2);
        row
    };
    tids.iter().map(row).collect()
}

/// What was read of the locks of process 10.
fn locks(waits: &[RuntimeLock]) -> Facts {
    let runtime_locks = vec![RuntimeLocks { process: process(10), waits: waits.to_vec(), missing: None }];
    Facts { runtime_locks, ..Facts::default() }
}

/// Python's, with the number of switches.
fn python(kind: RuntimeLockKind, waiter: u32, address: u64, owner: u32, turns: u64) -> RuntimeLock {
    RuntimeLock { waiter, address, kind, owner: Some(owner), entering: true, turns }
}

fn found(judge: &Judge) -> Vec<Finding> {
    judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect()
}

#[test]
fn a_circle_of_three_that_stays_is_a_deadlock() {
    let circle = || vec![at(11, 0xa0, Some(12)), at(12, 0xb0, Some(13)), at(13, 0xc0, Some(11))];
    let found = found(&turns(&[11, 12, 13], &vec![circle(); 4]));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind, found[0].confidence), (Kind::Deadlock, Confidence::Likely));
    assert_eq!(found[0].threads, [11, 12, 13]);
    assert!(found[0].explanation.contains("Java monitor"), "{}", found[0].explanation);
    assert!(found[0].explanation.contains("None of these waits has a time limit"), "{}", found[0].explanation);
    assert_eq!(found[0].evidence["since_exact"], false);
    assert!(turns(&[11, 12, 13], &vec![circle(); 3]).ledger.open().is_empty(), "two readings before the last census");
}

#[test]
fn monitors_that_change_hands_are_no_hang() {
    let readings: Vec<_> = (0..40)
        .map(|turn| if turn % 2 == 0 { vec![at(11, 0xa0, Some(12))] } else { vec![at(12, 0xa0, Some(11))] })
        .collect();
    assert!(turns(&[11, 12], &readings).ledger.open().is_empty());
    // Torn: each half of the circle is seen, never both for long.
    let readings: Vec<_> = (0..40)
        .map(|turn| match turn % 3 {
            0 => vec![at(11, 0xa0, Some(12)), at(12, 0xb0, Some(11))],
            1 => vec![at(11, 0xa0, Some(12))],
            _ => vec![],
        })
        .collect();
    assert!(turns(&[11, 12], &readings).ledger.open().is_empty());
}

#[test]
fn an_owner_that_sleeps_with_the_monitor_holds_it() {
    let behind = || vec![at(11, 0xa0, Some(12)), at(13, 0xa0, Some(12))];
    let found = found(&turns(&[11, 12, 13], &vec![behind(); 9]));
    assert_eq!(found.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::LockWait]);
    assert_eq!((&found[0].evidence["holder_tid"], &found[0].evidence["waiters"]), (&12.into(), &2.into()));
    assert!(turns(&[11, 12, 13], &vec![behind(); 4]).ledger.open().is_empty(), "below the threshold");
}

#[test]
fn time_in_which_nobody_looked_does_not_count() {
    let behind = [at(11, 0xa0, Some(12)), at(13, 0xa0, Some(12))];
    let tids = [11, 12, 13];
    let kinds = |judge: &Judge| found(judge).iter().map(|f| f.kind).collect::<Vec<_>>();
    // Read at 100 to 103, and again from 120 on.
    let mut judge = turns(&tids, &vec![behind.to_vec(); 4]);
    for turn in 4..=20 {
        judge.advance(census(100 + turn, slept_anew(&tids, turn)), ProbeReading::default());
        assert!(kinds(&judge).is_empty(), "at turn {turn} it has been seen for four seconds");
    }
    judge.learn(locks(&behind));
    judge.advance(census(121, slept_anew(&tids, 21)), ProbeReading::default());
    assert_eq!(kinds(&judge), [Kind::LockWait], "five seconds of it were seen");
    // What is open stays so.
    for turn in 22..40 {
        judge.advance(census(100 + turn, slept_anew(&tids, turn)), ProbeReading::default());
        assert_eq!(kinds(&judge), [Kind::LockWait], "turn {turn}");
    }
}

#[test]
fn an_owner_that_sleeps_all_the_while_need_not_be_looked_at() {
    let at_gil = vec![python(RuntimeLockKind::Gil, 11, 0xa0, 12, 7)];
    let advance = |judge: &mut Judge, turn: u64, owner: u64| {
        let rows = [slept_anew(&[11], turn), slept_anew(&[12], owner)].concat();
        judge.advance(census(100 + turn, rows), ProbeReading::default());
    };
    let after_gap = |owner: fn(u64) -> u64| {
        let mut judge = judge();
        for turn in 0..20 {
            advance(&mut judge, turn, owner(turn));
            if turn < 4 {
                judge.learn(locks(&at_gil));
            }
        }
        found(&judge).iter().map(|f| f.kind).collect::<Vec<_>>()
    };
    assert_eq!(after_gap(|_| 0), [Kind::LockWait]);
    assert!(after_gap(|turn| turn).is_empty(), "it has run, and may have passed it on");
}

#[test]
fn what_could_not_be_read_changes_nothing() {
    let mut judge = turns(&[11, 12], &vec![vec![at(11, 0xa0, Some(12)), at(12, 0xb0, Some(11))]; 4]);
    let process = process(10);
    let missing = Some("no table".to_owned());
    judge.learn(Facts { runtime_locks: vec![RuntimeLocks { process, waits: vec![], missing }], ..Facts::default() });
    assert_eq!(judge.host.confirmed_wait(11).unwrap().1.resource.as_ref().unwrap().address, Some(0xa0));
    judge.learn(Facts {
        runtime_locks: vec![RuntimeLocks { process, waits: vec![], missing: None }],
        ..Facts::default()
    });
    assert!(judge.host.confirmed_wait(11).is_none());
}

#[test]
fn a_gil_that_is_switched_is_no_hang() {
    let at_gil = |turns| vec![python(RuntimeLockKind::Gil, 11, 0xa0, 12, turns)];
    let busy: Vec<_> = (0..60).map(at_gil).collect();
    assert!(turns(&[11, 12], &busy).ledger.open().is_empty());
    let kept: Vec<_> = (0..9).map(|_| at_gil(7)).collect();
    let found = found(&turns(&[11, 12], &kept));
    assert_eq!(
        found.iter().map(|f| (f.kind, f.confidence)).collect::<Vec<_>>(),
        [(Kind::LockWait, Confidence::Likely)]
    );
    assert!(found[0].explanation.contains("Python GIL"), "{}", found[0].explanation);
    assert_eq!(found[0].evidence["holder_tid"], 12);
}

#[test]
fn waiters_for_a_lock_of_python_sleep_once() {
    let circle = |kind| vec![python(kind, 11, 0xa0, 12, 1), python(kind, 12, 0xb0, 11, 2)];
    for kind in [RuntimeLockKind::PyLock, RuntimeLockKind::PyRLock] {
        // Each of these threads has slept anew before each census: whoever had the lock let it go.
        assert!(turns(&[11, 12], &vec![circle(kind); 20]).ledger.open().is_empty());
        let mut judge = judge();
        for turn in 0..4 {
            let row = |tid: u32| with_syscall(row(10, tid), 202, [0x7000 + u64::from(tid), 0x189, 0, 0, 0, 0]);
            judge.advance(census(100 + turn, vec![row(11), row(12)]), ProbeReading::default());
            let runtime_locks = vec![RuntimeLocks { process: process(10), waits: circle(kind), missing: None }];
            judge.learn(Facts { runtime_locks, ..Facts::default() });
        }
        let found = found(&judge);
        assert_eq!(
            found.iter().map(|f| (f.kind, f.confidence)).collect::<Vec<_>>(),
            [(Kind::Deadlock, Confidence::Likely)]
        );
    }
}
