//! Futex words that no longer hold what their sleeper awaits: when that is a finding, and when it is not.

use super::frames::stack;
use super::*;
use crate::census::ThreadRow;
use crate::proc::{Libc, MemoryFact, ThreadFacts};

const PRIVATE_BITSET: u64 = 0x89;
const PRIVATE: u64 = 0x80;
const ALL_BITS: u64 = 0xffff_ffff;
const ZERO: &[u32] = &[0];
const ONE: &[u32] = &[1];
const ZEROS: &[u32] = &[0; 10];
const OWN: [&str; 2] = ["syscall", "app::wait_for_flag"];

/// A thread that sleeps until the word at 0x1000 is no longer `value`.
fn sleeper(tid: u32, op: u64, value: u32) -> ThreadRow {
    with_syscall(row(10, tid), 202, [0x1000, op, u64::from(value), 0, 0, ALL_BITS])
}

/// What a reading of the words from 0x1000 on tells.
fn words(row: &ThreadRow, words: &[u32]) -> ThreadFacts {
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    ThreadFacts { memory: vec![MemoryFact { addr: 0x1000, bytes, error: None }], ..thread_facts(row, Vec::new()) }
}

/// One reading at each second from 100 on, with a census after each. What is found at the end.
fn watch(rows: &[ThreadRow], names: &[&str], readings: &[&[u32]], libc: Libc) -> Vec<Finding> {
    let mut judge = judge();
    judge.advance(census(100, rows.to_vec()), ProbeReading::default());
    judge.learn_stacks(&rows.iter().map(|row| stack(row, names)).collect::<Vec<_>>());
    for (at, reading) in (101..).zip(readings) {
        let mut learnt = facts(rows.iter().map(|row| words(row, reading)).collect());
        for process in &mut learnt.processes {
            process.libc = libc;
        }
        judge.learn(learnt);
        judge.advance(census(at, rows.to_vec()), ProbeReading::default());
    }
    judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect()
}

fn found(rows: &[ThreadRow], names: &[&str], word: &[u32]) -> Vec<(Kind, Confidence)> {
    let found = watch(rows, names, &[word; 7], Libc::Glibc);
    found.iter().map(|finding| (finding.kind, finding.confidence)).collect()
}

const LIKELY: [(Kind, Confidence); 1] = [(Kind::LostWakeup, Confidence::Likely)];
const POSSIBLE: [(Kind, Confidence); 1] = [(Kind::LostWakeup, Confidence::Possible)];

#[test]
fn words_whose_meaning_is_known() {
    let rust_mutex = ["syscall", "std::sys::sync::mutex::futex::Mutex::lock_contended", "app::work"];
    let parked = ["syscall", "std::thread::functions::park", "app::work"];
    let parking_lot = ["syscall", "parking_lot::raw_mutex::RawMutex::lock_slow", "app::work"];
    let semaphore = ["__futex_abstimed_wait_common", "__new_sem_wait_slow64.constprop.0", "app::work"];
    let glibc = ["__lll_lock_wait", "pthread_mutex_lock", "app::work"];
    assert_eq!(found(&[sleeper(11, PRIVATE_BITSET, 2)], &rust_mutex, &[0]), LIKELY);
    assert_eq!(found(&[sleeper(11, PRIVATE_BITSET, u32::MAX)], &parked, &[1]), LIKELY);
    assert_eq!(found(&[sleeper(11, PRIVATE, 1)], &parking_lot, &[0]), LIKELY);
    assert_eq!(found(&[sleeper(11, 0x189, 0)], &semaphore, &[3, 1, 0, 0]), LIKELY);
    assert_eq!(found(&[sleeper(11, PRIVATE, 2)], &glibc, &[0; 10]), LIKELY);
    let join = ["__futex_abstimed_wait_common", "__pthread_clockjoin_ex", "app::work"];
    assert_eq!(found(&[sleeper(11, 0x109, 4711)], &join, &[0]), LIKELY);
    assert_eq!(found(&[sleeper(11, PRIVATE, 0)], &OWN, &[1]), POSSIBLE, "a flag of the program's own");
}

#[test]
fn words_that_change_by_right() {
    let silent = |op, value, names: &[&str], word: &[u32]| {
        let found = found(&[sleeper(11, op, value)], names, word);
        assert!(found.is_empty(), "{names:?} {value} {word:?}: {found:?}");
    };
    let condvar = ["syscall", "std::sys::sync::condvar::futex::Condvar::wait", "app::work"];
    silent(PRIVATE_BITSET, 0, &condvar, &[1]);
    let rwlock = ["syscall", "std::sys::sync::rwlock::futex::RwLock::write_contended", "app::work"];
    silent(PRIVATE_BITSET, 0, &rwlock, &[1]);
    silent(0x189, 0, &["__futex_abstimed_wait_common", "pthread_cond_wait", "app::work"], &[1, 1, 0, 0]);
    silent(PRIVATE, 0, &["pthread_barrier_wait", "app::work"], &[1]);
    // Counters: a latch, an event count.
    silent(PRIVATE, 3, &OWN, &[2]);
    silent(PRIVATE, 7, &OWN, &[8]);
    // A mutex that somebody has taken meanwhile is his to release.
    silent(PRIVATE, 2, &["__lll_lock_wait", "pthread_mutex_lock"], &[1; 10]);
    // Another process may be the one that was woken.
    silent(0, 0, &OWN, &[1]);
    // Woken for other bits.
    let mut bits = sleeper(11, PRIVATE_BITSET, 0);
    bits.syscall.as_mut().unwrap().args[5] = 1;
    assert!(found(&[bits], &OWN, &[1]).is_empty());
    // A wait with a deadline ends by itself.
    let mut timed = sleeper(11, PRIVATE, 0);
    timed.syscall.as_mut().unwrap().args[3] = 0x7000;
    assert!(found(&[timed], &OWN, &[1]).is_empty());
    // Without names it could be any condition variable.
    silent(PRIVATE, 0, &["syscall"], &[1]);
}

#[test]
fn musl_moves_its_waiters_from_word_to_word() {
    let glibc = ["__lll_lock_wait", "pthread_mutex_lock", "app::work"];
    assert!(watch(&[sleeper(11, PRIVATE, 2)], &glibc, &[ZEROS; 7], Libc::Musl).is_empty());
    assert!(watch(&[sleeper(11, PRIVATE, 0)], &OWN, &[ONE; 7], Libc::Musl).is_empty());
}

#[test]
fn it_takes_three_readings_that_agree_for_the_threshold() {
    let rows = [sleeper(11, PRIVATE, 0)];
    let after = |readings: &[&[u32]]| watch(&rows, &OWN, readings, Libc::Glibc).len();
    assert_eq!(after(&[ONE; 4]), 0, "4 s");
    assert_eq!(after(&[ONE; 5]), 1, "5 s");
    assert_eq!(after(&[ONE, ONE, ONE, ZERO, ONE, ONE, ONE]), 0, "it went back in between");
    let flag = |readings: &[&[u32]]| {
        watch(
            &[sleeper(11, PRIVATE_BITSET, 2)],
            &["syscall", "std::sys::sync::mutex::futex::Mutex::lock_contended"],
            readings,
            Libc::Glibc,
        )
        .len()
    };
    assert_eq!(flag(&[ZERO, ZERO, ZERO, ONE, ZERO, ZERO, ZERO]), 0, "somebody had the lock in between");
}

#[test]
fn only_the_first_in_the_queue_counts() {
    let names = ["syscall", "std::sys::sync::mutex::futex::Mutex::lock_contended"];
    let mut rows = [sleeper(11, PRIVATE_BITSET, 2), sleeper(12, PRIVATE_BITSET, 2)];
    rows[1].off_cpu_since_ns = Some(80 * S);
    let found = watch(&rows, &names, &[ZERO; 7], Libc::Glibc);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].threads, [12]);
    assert_eq!(found[0].evidence["sleepers"], 2);
    // A flag with two sleepers may be an event that wakes one.
    let rows = [sleeper(11, PRIVATE, 0), sleeper(12, PRIVATE, 0)];
    assert!(watch(&rows, &OWN, &[ONE; 7], Libc::Glibc).is_empty());
}

#[test]
fn a_process_that_cannot_run_is_not_judged() {
    let waiter = sleeper(11, PRIVATE, 0);
    let mut stopped = row(10, 12);
    stopped.state = state::STOPPED;
    let mut traced = row(10, 12);
    traced.tracer = 99;
    let mut starved = row(10, 12);
    (starved.state, starved.queued_since_ns) = (0, Some(95 * S));
    for other in [stopped, traced, starved] {
        let found = watch(&[waiter.clone(), other.clone()], &OWN, &[ONE; 7], Libc::Glibc);
        assert!(found.is_empty(), "{other:?}: {found:?}");
    }
}

#[test]
fn an_idle_host_is_looked_at_in_slices() {
    let idle: Vec<ThreadRow> = (1000..11_000)
        .map(|tid| with_syscall(row(tid / 1000, tid), 202, [0x1000 * u64::from(tid), PRIVATE, 0, 0, 0, 0]))
        .collect();
    let scope = Scope { threshold_ns: 5 * S, ..Scope::default() };
    let mut host = Host::default();
    let mut seen = BTreeSet::new();
    for at in 100..260 {
        host.advance(census(at, idle.clone()), ProbeReading::default());
        let wants = host.wants(&scope);
        assert!(wants.len() <= 64, "{}", wants.len());
        assert!(wants.iter().all(|want| host.is_glance(want.tid)));
        let read = |want: &crate::proc::ThreadWant| {
            let row = idle.iter().find(|row| row.tid == want.tid).unwrap();
            ThreadFacts {
                memory: vec![MemoryFact { addr: 0x1000 * u64::from(want.tid), bytes: vec![0; 40], error: None }],
                ..thread_facts(row, Vec::new())
            }
        };
        seen.extend(wants.iter().map(|want| want.tid));
        host.learn(facts(wants.iter().map(read).collect()));
    }
    assert_eq!(seen.len(), 10_000, "every one of them had its turn");
    host.advance(census(260, idle), ProbeReading::default());
    assert_eq!(host.confirmed().count(), 0, "nothing is kept of words that are as they should be");
}
