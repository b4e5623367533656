//! What stacks change in the judgement.

use super::*;
use crate::census::{Registers, SyscallInProgress, ThreadRow};
use crate::model::{Class, ResourceKind, switches};
use crate::proc::{Frame, Mention, Stack, StackEnd, StackFact};
use std::sync::Arc;

/// The stack of a thread, innermost function first.
pub(super) fn stack(row: &ThreadRow, names: &[&str]) -> StackFact {
    let frames = names.iter().map(|name| Frame { function: Some((*name).to_owned()), ..Frame::default() }).collect();
    let stack = Arc::new(Stack { frames, end: StackEnd::Root });
    StackFact { tid: row.tid, process: row.process, switches: switches(row), stack, sought: vec![], mentions: vec![] }
}

/// A thread in a lock of Rust's library: the futex word says nothing of an owner.
fn in_rust_mutex(tid: u32) -> ThreadRow {
    with_syscall(row(10, tid), 202, [0x5000, 0x89, 2, 0, 0, 0xffff_ffff])
}

const LOCK: [&str; 2] = ["syscall", "<std::sys::sync::mutex::futex::Mutex>::lock_contended"];
const TASK: [&str; 4] = [
    "app::handle::{closure#0}",
    "tokio::runtime::scheduler::multi_thread::worker::Context::run_task",
    "tokio::runtime::scheduler::multi_thread::worker::run",
    "start_thread",
];

fn with_stacks(stacks: Vec<StackFact>) -> Facts {
    Facts { stacks, ..Facts::default() }
}

#[test]
fn a_lock_inside_of_an_asynchronous_task_is_a_hang() {
    let (row, idle) = (in_rust_mutex(11), row(10, 12));
    let facts = with_stacks(vec![stack(&row, &[&LOCK[..], &TASK].concat())]);
    let found = look(vec![row.clone(), idle.clone()], facts.clone(), 100);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind, found[0].confidence), (Kind::LockWait, Confidence::Likely));
    assert!(found[0].title.contains("tokio") && found[0].title.contains("lock_contended"), "{}", found[0].title);
    assert_eq!(found[0].evidence["lock"], "0x5000");
    assert_eq!(found[0].chain[0].held_by, None);
    assert!(look(vec![row, idle], facts, 92).is_empty(), "below the threshold");
}

#[test]
fn nobody_is_left_to_release_a_lock_when_every_thread_waits() {
    let (alone, other) = (in_rust_mutex(10), in_rust_mutex(11));
    let both = || with_stacks(vec![stack(&alone, &LOCK), stack(&other, &LOCK)]);
    let one = || with_stacks(vec![stack(&alone, &LOCK)]);
    let found = look(vec![alone.clone()], one(), 100);
    assert_eq!(
        found.iter().map(|f| (f.kind, f.confidence)).collect::<Vec<_>>(),
        [(Kind::Deadlock, Confidence::Likely)]
    );
    assert_eq!((&found[0].evidence["nobody_left"], &found[0].evidence["forked"]), (&true.into(), &false.into()));
    assert_eq!((found[0].threads.as_slice(), found[0].chain[0].held_by), (&[10][..], None));
    assert!(look(vec![alone.clone()], one(), 92).is_empty(), "below the threshold");
    assert_eq!(look(vec![alone.clone(), other.clone()], both(), 100)[0].threads, [10, 11]);

    // Anybody else may have it: one who rests, runs, is stopped; not one that has ended.
    for state in [state::INTERRUPTIBLE, 0, state::STOPPED] {
        let third = ThreadRow { state, ..row(10, 12) };
        assert!(look(vec![alone.clone(), other.clone(), third], both(), 1000).is_empty(), "state {state:#x}");
    }
    let ended = ThreadRow { exit_state: state::EXIT_ZOMBIE, ..row(10, 12) };
    assert_eq!(look(vec![alone.clone(), ended], one(), 100).len(), 1);

    // So may another process, if the lock is shared with others; and what gives up is no deadlock.
    let mut shared = alone.clone();
    shared.syscall = shared.syscall.map(|call| SyscallInProgress { args: [0x5000, 0x9, 2, 0, 0, 0xffff_ffff], ..call });
    assert!(look(vec![shared.clone()], with_stacks(vec![stack(&shared, &LOCK)]), 1000).is_empty());
    let mut timed = alone.clone();
    timed.syscall =
        timed.syscall.map(|call| SyscallInProgress { args: [0x5000, 0x89, 2, 0x7000, 0, 0xffff_ffff], ..call });
    assert!(look(vec![timed.clone()], with_stacks(vec![stack(&timed, &LOCK)]), 1000).is_empty());
    // A semaphore or a condition is posted by signal handlers, too.
    let waits = ["syscall", "__new_sem_wait_slow64", "main"];
    assert!(look(vec![alone.clone()], with_stacks(vec![stack(&alone, &waits)]), 1000).is_empty());
}

#[test]
fn why_nobody_is_left() {
    let forked = ThreadRow { flags: 0x40, start_ns: 89 * S, ..in_rust_mutex(10) };
    let found = look(vec![forked.clone()], with_stacks(vec![stack(&forked, &LOCK)]), 100);
    assert_eq!(found[0].evidence["forked"], true);
    assert!(found[0].explanation.contains("forked") && found[0].remedy.contains("fork()"), "{}", found[0].explanation);
    let old = ThreadRow { start_ns: 10 * S, ..forked.clone() };
    assert_eq!(
        look(vec![old.clone()], with_stacks(vec![stack(&old, &LOCK)]), 100)[0].evidence["forked"],
        false,
        "a worker"
    );
    let handler = [&LOCK[..], &["on_alarm", "__restore_rt", "malloc", "main"]].concat();
    let found = look(vec![forked.clone()], with_stacks(vec![stack(&forked, &handler)]), 100);
    assert_eq!(found[0].evidence["in_signal_handler"], true);
    assert!(found[0].remedy.contains("async-signal-safe"), "{}", found[0].remedy);
}

#[test]
fn without_its_stack_the_same_wait_is_no_lock() {
    assert!(look(vec![in_rust_mutex(11)], Facts::default(), 100).is_empty());
}

#[test]
fn workers_that_take_turns_at_a_queue_are_at_rest() {
    // The pool of the Rust book: one waits for a job with the lock of the queue, the others wait for the lock.
    let (holder, others) = (row(10, 11), [in_rust_mutex(12), in_rust_mutex(13)]);
    let holder = with_syscall(holder, 202, [0x6000, 0x89, u64::from(u32::MAX), 0, 0, 0xffff_ffff]);
    let receives = ["syscall", "std::sync::mpmc::list::Channel<T>::recv", "book::Worker::new::{{closure}}"];
    let waits = [&LOCK[..], &["book::Worker::new::{{closure}}", "start_thread"]].concat();
    // Also where the loops run in a pool of somebody else.
    let in_pool = [&LOCK[..], &["app::serve", "tokio::runtime::blocking::pool::Inner::run", "start_thread"]].concat();
    let stacks = vec![stack(&holder, &receives), stack(&others[0], &waits), stack(&others[1], &in_pool)];
    let rows = [vec![holder], others.to_vec()].concat();
    assert!(look(rows, with_stacks(stacks), 1000).is_empty());
}

#[test]
fn an_idle_worker_and_a_go_thread_are_at_rest() {
    let rows = [11, 12].map(|tid| with_syscall(row(10, tid), 202, [0x6000, 0x80, 0, 0, 0, 0]));
    let idle =
        ["syscall", "parking_lot::condvar::Condvar::wait_until_internal", "tokio::runtime::blocking::pool::Inner::run"];
    let go = ["runtime.futex", "runtime.futexsleep", "runtime.notesleep", "runtime.stopm", "runtime.findRunnable"];
    let stacks = vec![stack(&rows[0], &idle), stack(&rows[1], &go)];
    assert!(look(rows.to_vec(), with_stacks(stacks), 10_000).is_empty());
}

#[test]
fn a_lock_passed_around_in_a_loop_made_for_it_is_rest() {
    let leader = with_syscall(row(10, 11), 7, [0x100, 1, u64::from(u32::MAX), 0, 0, 0]);
    let follower = in_mutex(10, 12, 0x1000);
    let learnt = |names: &[&str]| {
        let mut learnt = facts(vec![thread_facts(&follower, mutex_bytes(2, 0, 11, 1, 0))]);
        learnt.stacks = vec![stack(&leader, names)];
        learnt
    };
    let rows = || vec![leader.clone(), follower.clone()];
    assert!(look(rows(), learnt(&["__poll", "apr_pollset_poll", "child_main"]), 100).is_empty());
    let found = look(rows(), learnt(&["__poll", "ask_the_database", "apr_pollset_poll", "child_main"]), 100);
    assert_eq!(found.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::LockWait], "held during a request");
    let found = look(rows(), learnt(&["__poll", "ask_the_database", "main"]), 100);
    assert_eq!(found.len(), 1);
    // While the holder's stack is still to come nothing is said; if it never comes, that is no reason to be silent for ever.
    let registers = Some(Registers { ip: 0x4000, sp: 0x7000, bp: None });
    let rows = vec![ThreadRow { registers, ..leader }, follower.clone()];
    let mut judge = judge();
    let mut spoke_after = None;
    for at in 100..130 {
        judge.advance(census(at, rows.clone()), ProbeReading::default());
        if spoke_after.is_none() && !judge.ledger.open().is_empty() {
            spoke_after = Some(at - 100);
        }
        judge.learn(facts(vec![thread_facts(&follower, mutex_bytes(2, 0, 11, 1, 0))]));
    }
    assert_eq!(spoke_after, Some(13));
}

#[test]
fn frames_name_the_lock_but_never_overrule_an_owner() {
    let (rust, owned) = (in_rust_mutex(11), in_mutex(10, 12, 0x1000));
    let mut learnt = facts(vec![thread_facts(&owned, mutex_bytes(2, 0, 10, 1, 0))]);
    let lies = ["syscall", "parking_lot::raw_mutex::RawMutex::lock_slow"];
    learnt.stacks = vec![stack(&rust, &LOCK), stack(&owned, &lies)];
    let mut judge = judge();
    judge.advance(census(100, vec![row(10, 10), rust, owned]), ProbeReading::default());
    judge.learn(learnt);
    let wait = judge.host.wait(11).unwrap();
    assert_eq!((wait.class, wait.by_frames), (Class::Lock, true));
    assert_eq!(wait.resource.unwrap().describe(), "mutex 0x5000 (std Mutex)");
    let wait = judge.host.wait(12).unwrap();
    assert_eq!((wait.by_frames, wait.resource.unwrap().kind), (false, ResourceKind::Mutex));
    assert_eq!(wait.owner.unwrap().own_tid, 10);
}

#[test]
fn a_holder_at_a_lock_without_owner_is_still_named() {
    let (holder, waiter) = (in_rust_mutex(11), in_mutex(10, 12, 0x1000));
    let mut learnt = facts(vec![thread_facts(&waiter, mutex_bytes(2, 0, 11, 1, 0))]);
    learnt.stacks = vec![stack(&holder, &LOCK)];
    let found = look(vec![holder, waiter, row(10, 13)], learnt, 100);
    assert_eq!(found.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::LockWait]);
    assert_eq!(found[0].evidence["holder_tid"], 11);
    assert!(found[0].title.contains("std Mutex"), "{}", found[0].title);
}

/// Threads 11 and 12, each in a lock of Rust's library, at `locks`; thread 13 sleeps. Who mentions what: (thread, lock, depth).
fn with_references(locks: [u64; 2], mentions: &[(u32, u64, u32)]) -> (Vec<ThreadRow>, Facts) {
    let at = |tid: u32, lock: u64| with_syscall(row(10, tid), 202, [lock, 0x89, 2, 0, 0, 0xffff_ffff]);
    let rows = vec![at(11, locks[0]), at(12, locks[1]), with_syscall(row(10, 13), 230, [0, 0, 0x100, 0, 0, 0])];
    let of = |row: &ThreadRow| {
        let names: &[&str] = if row.tid == 13 { &["clock_nanosleep", "main"] } else { &LOCK };
        let found = mentions.iter().filter(|(tid, ..)| *tid == row.tid);
        let mentions =
            found.map(|(_, address, depth)| Mention { address: *address, frame: 2, depth: *depth }).collect();
        StackFact { sought: locks.to_vec(), mentions, ..stack(row, names) }
    };
    let stacks = rows.iter().map(of).collect();
    (rows, with_stacks(stacks))
}

#[test]
fn a_circle_of_references_is_a_deadlock() {
    // Each holder mentions its lock, and each waiter the one it waits for.
    let mentions = [(11, 0x5000, 8), (11, 0x6000, 40), (12, 0x6000, 8), (12, 0x5000, 40)];
    let (rows, learnt) = with_references([0x5000, 0x6000], &mentions);
    let found = look(rows.clone(), learnt.clone(), 100);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind, found[0].confidence), (Kind::Deadlock, Confidence::Likely));
    assert_eq!(found[0].threads, [11, 12]);
    assert!(found[0].chain.iter().all(|link| link.how == crate::model::graph::BY_REFERENCE));
    assert!(found[0].explanation.contains("do not record their holder"), "{}", found[0].explanation);
    assert!(look(rows, learnt, 92).is_empty(), "an inference needs time on its side");

    // Main has made both locks: it has as many references. With more than its own, the members stand out again.
    let main_too = [&mentions[..], &[(13, 0x5000, 344), (13, 0x6000, 352)]].concat();
    let (rows, learnt) = with_references([0x5000, 0x6000], &main_too);
    let found = look(rows.clone(), learnt.clone(), 100);
    assert_eq!((found[0].kind, found[0].confidence), (Kind::Deadlock, Confidence::Possible));
    assert_eq!(found[0].severity, Severity::Warning);
    assert!(found[0].explanation.contains("t13"), "{}", found[0].explanation);
    let guards = [&main_too[..], &[(11, 0x6000, 120), (12, 0x5000, 120)]].concat();
    let (guarded, more) = with_references([0x5000, 0x6000], &guards);
    assert_eq!(look(guarded, more, 100)[0].confidence, Confidence::Likely);

    // A thread that runs has no stack: it may have any lock.
    let (mut busy, learnt) = with_references([0x5000, 0x6000], &mentions);
    busy[2].state = 0;
    let found = look(busy, learnt, 100);
    assert_eq!((found[0].kind, found[0].confidence), (Kind::Deadlock, Confidence::Possible));
}

#[test]
fn references_that_close_no_circle_are_nothing() {
    let all_wait = [(11, 0x5000, 8), (12, 0x5000, 8), (13, 0x5000, 40)];
    let (rows, learnt) = with_references([0x5000, 0x5000], &all_wait);
    assert!(look(rows, learnt, 1000).is_empty(), "both wait for one lock that a sleeper may have");
    let (rows, learnt) = with_references([0x5000, 0x6000], &[(12, 0x5000, 40), (13, 0x6000, 40)]);
    assert!(look(rows, learnt, 1000).is_empty(), "the last one only sleeps");
    let (rows, learnt) = with_references([0x5000, 0x6000], &[(11, 0x5000, 8), (12, 0x6000, 8)]);
    assert!(look(rows, learnt, 1000).is_empty(), "only what it waits for itself");
}

#[test]
fn a_thread_that_moved_on_has_no_stack() {
    let row = in_rust_mutex(11);
    let mut judge = judge();
    judge.advance(census(100, vec![row.clone()]), ProbeReading::default());
    judge.learn(with_stacks(vec![stack(&row, &LOCK)]));
    assert!(judge.host.stack(11).is_some());
    let mut moved = row.clone();
    moved.nvcsw += 1;
    judge.advance(census(101, vec![moved]), ProbeReading::default());
    assert!(judge.host.stack(11).is_none());
    // Late: walked for the sleep before this one.
    judge.learn(with_stacks(vec![stack(&row, &LOCK)]));
    assert!(judge.host.stack(11).is_none());
}

#[test]
fn bytes_that_look_like_a_rwlock_do_not_overrule_the_stack() {
    // The mutex of Rust's `stdout`, as seen: the id of the thread that holds it, 62, lies 8 bytes in front.
    let waiter = with_syscall(row(10, 11), 202, [0x5028, 0x89, 2, 0, 0, 0xffff_ffff]);
    let learnt = |names: &[&str]| {
        let mut read = thread_facts(&waiter, [vec![2], vec![0; 39]].concat());
        let before = [0, 0, 62, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        read.memory.push(crate::proc::MemoryFact { addr: 0x5018, bytes: before, error: None });
        let mut learnt = facts(vec![read]);
        learnt.stacks = vec![stack(&waiter, names)];
        learnt
    };
    let kinds = |names: &[&str]| {
        let rows = vec![waiter.clone(), row(10, 12)];
        look(rows, learnt(names), 100).iter().map(|found| found.kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&["__futex_abstimed_wait_common", "pthread_rwlock_wrlock", "app"]), [Kind::LockWait]);
    assert_eq!(kinds(&[&LOCK[..], &["std::io::stdio::_print", "app"]].concat()), []);
    assert_eq!(kinds(&[&LOCK[..], &TASK].concat()), [Kind::LockWait], "inside of a task it is one, by its frames");
}

#[test]
fn a_lock_inside_of_a_task_is_waited_for_until_it_is_ripe() {
    let row = in_rust_mutex(11);
    let mut judge = judge();
    judge.advance(census(91, vec![row.clone()]), ProbeReading::default());
    judge.learn(with_stacks(vec![stack(&row, &[&LOCK[..], &TASK].concat())]));
    let turn = judge.advance(census(92, vec![row]), ProbeReading::default());
    assert_eq!(turn.ripe_at_ns, Some(95 * S));
}
