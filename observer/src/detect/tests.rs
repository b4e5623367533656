//! Rules on hosts made by hand: what must be found, and what must not.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up must fail")]

use super::*;
use crate::census::{EventKind, Family, ProbeEvent, ProbeReading, TimeoutKind, row::state};
use crate::model::Confidence;
use crate::model::testkit::*;
use crate::proc::{BlockedRead, ConnectingSocket, Facts, FdFact, SocketFact};
use std::collections::BTreeSet;

/// A judge over process 10, threshold 5 s.
fn judge() -> Judge {
    let processes = Some(BTreeSet::from([10]));
    Judge::new(Scope { processes, threshold_ns: 5 * S, ..Scope::default() })
}

/// Census, facts, census: what is found then. All rows sleep since second 90.
fn look(rows: Vec<ThreadRow>, learnt: Facts, now_s: u64) -> Vec<Finding> {
    let mut judge = judge();
    judge.advance(census(now_s, rows.clone()), ProbeReading::default());
    judge.learn(learnt);
    judge.advance(census(now_s + 1, rows), ProbeReading::default());
    judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect()
}

/// Threads 10+i, each in the mutex at 0x1000*(i+1), owned by `owners[i]`.
fn mutexes(owners: &[u32]) -> (Vec<ThreadRow>, Facts) {
    let rows: Vec<ThreadRow> =
        (0..owners.len() as u32).map(|i| in_mutex(10, 10 + i, 0x1000 * u64::from(i + 1))).collect();
    let threads =
        rows.iter().zip(owners).map(|(row, owner)| thread_facts(row, mutex_bytes(2, 0, *owner, 1, 0))).collect();
    (rows, facts(threads))
}

#[test]
fn cycles_of_any_length() {
    for n in [1_u32, 2, 3, 5, 40] {
        let owners: Vec<u32> = (0..n).map(|i| 10 + (i + 1) % n).collect();
        let (rows, facts) = mutexes(&owners);
        let found = look(rows, facts, 91);
        assert_eq!(found.len(), 1, "cycle of {n}");
        let finding = &found[0];
        assert_eq!((finding.kind, finding.confidence), (Kind::Deadlock, Confidence::Certain));
        assert_eq!(finding.threads.len(), n as usize);
        assert_eq!(finding.chain.len(), n as usize);
        assert!(finding.explanation.len() < 800, "{}", finding.explanation);
        assert_eq!(finding.since.0, (1_790_000_000 + 90) * S, "before the threshold, since it closed");
    }
}

#[test]
fn a_reading_that_did_not_come_says_nothing_against_the_one_before() {
    let (rows, learnt) = mutexes(&[11, 10]);
    let mut unread = learnt.clone();
    for piece in unread.threads.iter_mut().flat_map(|thread| &mut thread.memory) {
        (piece.bytes, piece.error) = (Vec::new(), Some("deadline".to_owned()));
    }
    let mut judge = judge();
    let is_open = |judge: &Judge| !judge.ledger.open().is_empty();
    judge.advance(census(91, rows.clone()), ProbeReading::default());
    judge.learn(learnt.clone());
    judge.advance(census(92, rows.clone()), ProbeReading::default());
    assert!(is_open(&judge));
    judge.learn(unread.clone());
    judge.advance(census(93, rows.clone()), ProbeReading::default());
    assert!(is_open(&judge), "nothing is known to have changed");

    // Whom it named has run since: it may have let go.
    judge.learn(learnt);
    let mut moved = rows;
    moved[0].nvcsw += 1;
    moved[0].off_cpu_since_ns = Some(94 * S);
    judge.advance(census(95, moved.clone()), ProbeReading::default());
    judge.learn(unread);
    judge.advance(census(96, moved), ProbeReading::default());
    assert!(!is_open(&judge));
}

#[test]
fn a_first_sight_is_not_called_the_beginning() {
    let (mut rows, facts) = mutexes(&[11, 10]);
    assert!(look(rows.clone(), facts.clone(), 100)[0].evidence.get("since_exact").is_none());
    for row in &mut rows {
        row.off_cpu_since_ns = None;
    }
    let found = look(rows, facts, 100);
    assert_eq!(found[0].evidence["since_exact"], false);
    assert!(found[0].explanation.contains("first look"), "{}", found[0].explanation);
}

#[test]
fn one_look_proves_nothing() {
    let (rows, facts) = mutexes(&[11, 10]);
    let mut judge = judge();
    judge.advance(census(99, rows.clone()), ProbeReading::default());
    judge.learn(facts);
    assert!(judge.ledger.open().is_empty());
    // A thread that ran in between may have let go.
    let mut moved = rows;
    moved[1].nvcsw += 1;
    moved[1].off_cpu_since_ns = Some(99 * S);
    judge.advance(census(100, moved), ProbeReading::default());
    assert!(judge.ledger.open().is_empty(), "the other one does wait, but the lock may be passed around");
}

/// A reading of what each waiter's lock names as its owner, then the next census.
fn read_and_advance(judge: &mut Judge, at_s: u64, rows: &[ThreadRow], owners: &[(usize, u32)]) -> Turn {
    let read = |(index, owner): &(usize, u32)| thread_facts(&rows[*index], mutex_bytes(2, 0, *owner, 1, 0));
    judge.learn(facts(owners.iter().map(read).collect()));
    judge.advance(census(at_s, rows.to_vec()), ProbeReading::default())
}

fn kinds(judge: &Judge) -> Vec<Kind> {
    judge.ledger.open().iter().map(|life| life.finding.kind).collect()
}

#[test]
fn a_lock_that_could_not_be_read_is_not_said_to_have_no_owner() {
    // FUTEX_LOCK_PI, the word not read.
    let waiter = with_syscall(row(10, 10), 202, [0x1000, 0x86, 0, 0, 0, 0]);
    let learnt = facts(vec![thread_facts(&waiter, Vec::new())]);
    assert!(look(vec![waiter], learnt, 200).is_empty());
}

/// 10 and 11 wait for one lock, 12 and 13 are awake.
fn a_queue() -> Vec<ThreadRow> {
    let mut rows = vec![in_mutex(10, 10, 0x1000), in_mutex(10, 11, 0x1000), row(10, 12), row(10, 13)];
    rows[1].off_cpu_since_ns = Some(91 * S);
    for awake in &mut rows[2..] {
        (awake.state, awake.on_cpu) = (0, true);
    }
    rows
}

#[test]
fn a_lock_that_is_passed_around_is_not_held() {
    let rows = a_queue();
    let mut judge = judge();
    judge.advance(census(100, rows.clone()), ProbeReading::default());
    // The waiters sleep all along, but somebody else has the lock each time.
    for at in 101..130 {
        let owner = 12 + at as u32 % 2;
        let turn = read_and_advance(&mut judge, at, &rows, &[(0, owner), (1, owner)]);
        assert!(kinds(&judge).is_empty(), "second {at}");
        assert!(turn.ripe_at_ns.is_some());
    }
}

#[test]
fn a_queue_that_moves_is_not_a_hold() {
    let mut rows = a_queue();
    let mut judge = judge();
    judge.advance(census(100, rows.clone()), ProbeReading::default());
    // By chance the same thread has it at each look; but whoever is first in the queue gets it in between.
    for at in 101..130 {
        read_and_advance(&mut judge, at, &rows, &[(0, 12), (1, 12)]);
        assert!(kinds(&judge).is_empty(), "second {at}");
        let first = usize::from(rows[0].off_cpu_since_ns > rows[1].off_cpu_since_ns);
        rows[first].nvcsw += 1;
        rows[first].off_cpu_since_ns = Some(at * S - S / 2);
    }
}

#[test]
fn a_busy_holder_is_named_once_the_queue_stood_still() {
    let rows = a_queue();
    let mut judge = judge();
    judge.advance(census(100, rows.clone()), ProbeReading::default());
    for at in 101..105 {
        let turn = read_and_advance(&mut judge, at, &rows, &[(0, 12), (1, 12)]);
        assert!(kinds(&judge).is_empty(), "second {at}");
        assert_eq!(turn.ripe_at_ns, Some(105 * S));
    }
    read_and_advance(&mut judge, 105, &rows, &[(0, 12), (1, 12)]);
    assert_eq!(kinds(&judge), [Kind::LockWait]);
    assert!(judge.ledger.open()[0].finding.title.contains("is running"));
}

#[test]
fn owners_that_end_after_passing_the_lock_on_abandon_nothing() {
    let rows = a_queue();
    let mut judge = judge();
    judge.advance(census(100, rows.clone()), ProbeReading::default());
    // Each look names a thread that has ended by the next census.
    for at in 101..130 {
        let owner = 1000 + at as u32;
        read_and_advance(&mut judge, at, &rows, &[(0, owner), (1, owner)]);
        assert!(kinds(&judge).is_empty(), "second {at}");
    }
}

#[test]
fn a_pid_that_was_used_again_is_another_process() {
    let (rows, facts) = mutexes(&[11, 10]);
    let mut judge = judge();
    judge.advance(census(99, rows.clone()), ProbeReading::default());
    judge.learn(facts);
    let reused = rows.into_iter().map(|mut row| {
        row.process.start_ns += 10_000_000;
        row
    });
    judge.advance(census(100, reused.collect()), ProbeReading::default());
    assert!(judge.ledger.open().is_empty());
}

#[test]
fn a_convoy_is_one_finding_with_its_root() {
    // 11, 12 and 13 wait for 10's lock, 14 waits for 13's; 10 reads from a pipe.
    let (mut rows, mut facts) = mutexes(&[10, 10, 10, 10, 13]);
    rows[0] = with_syscall(row(10, 10), 0, [3, 0, 1, 0, 0, 0]);
    for (row, facts) in rows.iter_mut().zip(&mut facts.threads).take(4).skip(1) {
        row.syscall.as_mut().unwrap().args[0] = 0x2000;
        facts.memory[0].addr = 0x2000;
    }
    let found = look(rows.clone(), facts.clone(), 99);
    assert_eq!(found.len(), 1, "{found:?}");
    let finding = &found[0];
    assert_eq!(
        (finding.kind, finding.confidence, finding.severity),
        (Kind::LockWait, Confidence::Certain, Severity::Warning)
    );
    assert_eq!(finding.threads, [10, 11, 12, 13, 14]);
    assert_eq!(finding.chain.len(), 4, "the longest way to the root, then the others");
    assert_eq!((finding.chain[0].from.tid, finding.chain[1].from.tid), (14, 13));
    assert!(finding.title.contains("read()"), "{}", finding.title);
    assert!(look(rows, facts, 92).is_empty(), "not before the threshold");
}

#[test]
fn a_leader_in_accept_is_rest() {
    let (mut rows, facts) = mutexes(&[10, 10]);
    rows[0] = with_syscall(row(10, 10), 288, [3, 0, 0, 0, 0, 0]);
    assert!(look(rows.clone(), facts.clone(), 200).is_empty());
    // With several listeners it waits in epoll_wait.
    let socket = |state: &str| SocketFact {
        inode: 7,
        protocol: "tcp".to_owned(),
        state: state.to_owned(),
        ..SocketFact::default()
    };
    rows[0] = with_syscall(row(10, 10), 232, [3, 0, 1, u64::MAX, 0, 0]);
    let with = |states: &[&str]| {
        let watched = states.iter().map(|state| socket(state)).collect();
        let mut facts = facts.clone();
        let target = "anon_inode:[eventpoll]".to_owned();
        facts.threads[0].fd = Some(FdFact { fd: 3, target, watched, ..FdFact::default() });
        look(rows.clone(), facts, 200).len()
    };
    assert_eq!((with(&["LISTEN", "LISTEN"]), with(&["LISTEN", "ESTAB"]), with(&[])), (0, 1, 1));
    assert_eq!((with(&["LISTEN", "UNKNOWN"]), with(&["UNKNOWN", "ESTAB"])), (0, 1), "not known yet, and clear");
    // Its descriptor could not be read in time.
    assert!(look(rows, facts, 200).is_empty());
}

#[test]
fn a_socket_that_stays_unknown_keeps_no_hang_back() {
    let (mut rows, mut facts) = mutexes(&[10, 10]);
    rows[0] = with_syscall(row(10, 10), 232, [3, 0, 1, u64::MAX, 0, 0]);
    let unknown =
        SocketFact { inode: 7, protocol: "unknown".to_owned(), state: "UNKNOWN".to_owned(), ..SocketFact::default() };
    let target = "anon_inode:[eventpoll]".to_owned();
    facts.threads[0].fd = Some(FdFact { fd: 3, target, watched: vec![unknown], ..FdFact::default() });
    let mut judge = judge();
    let found: Vec<usize> = (200..206)
        .map(|at| {
            judge.advance(census(at, rows.clone()), ProbeReading::default());
            judge.learn(facts.clone());
            judge.ledger.open().len()
        })
        .collect();
    assert_eq!(found, [0, 0, 0, 1, 1, 1], "asked three times, then taken as it is");
}

#[test]
fn waiting_for_a_worker_is_rest_but_closes_a_circle() {
    // 10 joins 11; 11 sleeps.
    let mut rows =
        vec![with_syscall(row(10, 10), 202, [0x9000, 0x109, 11, 0, 0, 0]), with_syscall(row(10, 11), 230, [0; 6])];
    let joined = thread_facts(&rows[0], [11_u32.to_ne_bytes().to_vec(), vec![0; 36]].concat());
    assert!(look(rows.clone(), facts(vec![joined.clone()]), 200).is_empty());
    // 11 waits for a mutex of 10.
    rows[1] = in_mutex(10, 11, 0x1000);
    let held = thread_facts(&rows[1], mutex_bytes(2, 0, 10, 1, 0));
    let found = look(rows, facts(vec![joined, held]), 200);
    assert_eq!(found.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::Deadlock]);
}

#[test]
fn an_owner_that_is_gone_or_left_behind() {
    let (rows, facts) = mutexes(&[4242]);
    let look = |rows: Vec<ThreadRow>, learnt: Facts| {
        let mut judge = judge();
        for at in 91..93 {
            assert!(judge.advance(census(at, rows.clone()), ProbeReading::default()).changes.is_empty());
            judge.learn(learnt.clone());
        }
        judge.advance(census(93, rows), ProbeReading::default());
        judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect::<Vec<_>>()
    };
    let found = look(rows.clone(), facts.clone());
    assert_eq!((found[0].kind, found[0].confidence), (Kind::AbandonedLock, Confidence::Certain));
    assert!(found[0].explanation.contains("no such thread lives"));
    // The id lives on in another process.
    let mut with_parent = rows.clone();
    with_parent.push(row(4000, 4242));
    let found = look(with_parent, facts.clone());
    assert!(found[0].title.contains("forked"), "{}", found[0].title);
    // Without proof of the layout nothing is said.
    let mut unproven = facts;
    unproven.processes[0].libc = crate::proc::Libc::Unknown;
    assert!(look(rows, unproven).iter().all(|f| f.kind != Kind::AbandonedLock));
}

#[test]
fn d_state_and_not_idle_kernel_threads() {
    let mut stuck = with_syscall(row(10, 10), 0, [3, 0, 1, 0, 0, 0]);
    stuck.state = state::UNINTERRUPTIBLE;
    let mut worker = row(10, 11);
    worker.state = state::UNINTERRUPTIBLE | state::NOLOAD;
    let learnt = facts(vec![thread_facts(&stuck, Vec::new()), thread_facts(&worker, Vec::new())]);
    let found = look(vec![stuck.clone(), worker.clone()], learnt.clone(), 99);
    assert_eq!(
        found.iter().map(|f| (f.kind, f.threads.clone())).collect::<Vec<_>>(),
        [(Kind::Uninterruptible, vec![10])]
    );
    assert!(look(vec![stuck, worker], learnt, 92).is_empty());
}

/// A socket that connects since second 90, in a list of this second.
fn connecting(listed_s: u64) -> Facts {
    let socket = ConnectingSocket {
        process: process(10),
        fd: 3,
        inode: 9,
        local: "10.0.0.1:9".parse().unwrap(),
        remote: "10.0.0.2:80".parse().unwrap(),
        since_ns: Some(90 * S),
        retransmits: 2,
        taken_ns: listed_s * S,
    };
    Facts { connecting: vec![socket], ..Facts::default() }
}

#[test]
fn a_connection_attempt_lasted_until_it_was_listed() {
    let rows = vec![row(10, 10)];
    // The census comes at second 101; the answer may have come at 94.
    assert!(look(rows.clone(), connecting(93), 100).is_empty());
    let found = look(rows.clone(), connecting(96), 100);
    assert_eq!(found.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::StuckConnect]);
    assert_eq!(found[0].evidence["waited_ns"], 6 * S);
    // Recordings of old do not say when it was listed.
    assert_eq!(look(rows.clone(), connecting(0), 94)[0].evidence["waited_ns"], 5 * S);
    assert!(look(rows.clone(), connecting(0), 93).is_empty());

    let mut judge = judge();
    judge.advance(census(93, rows.clone()), ProbeReading::default());
    judge.learn(connecting(93));
    assert_eq!(judge.advance(census(94, rows.clone()), ProbeReading::default()).ripe_at_ns, Some(95 * S));
    let late = judge.advance(census(97, rows), ProbeReading::default());
    assert_eq!(late.ripe_at_ns, Some(97 * S), "as soon as it is listed again");
}

#[test]
fn a_thread_in_connect_needs_no_new_list() {
    let rows = vec![with_syscall(row(10, 10), 42, [3, 0x2000, 16, 0, 0, 0])];
    let mut thread = thread_facts(&rows[0], [2_u16.to_ne_bytes().to_vec(), vec![0, 80, 10, 0, 0, 2]].concat());
    thread.memory[0].addr = 0x2000;
    let learnt = Facts { connecting: connecting(91).connecting, ..facts(vec![thread]) };
    let found = look(rows, learnt, 95);
    assert_eq!(found.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::StuckConnect], "{found:#?}");
    assert_eq!(found[0].evidence["waited_ns"], 6 * S);
    assert_eq!(found[0].evidence["blocking"], true);
}

#[test]
fn stopped_counts_only_while_somebody_waits() {
    let mut stopped = row(10, 10);
    stopped.state = state::STOPPED;
    stopped.ppid = 5;
    assert!(look(vec![stopped.clone()], Facts::default(), 200).is_empty(), "nobody waits");
    let parent = with_syscall(row(5, 5), 61, [10, 0, 0, 0, 0, 0]);
    let found = look(vec![stopped.clone(), parent], Facts::default(), 200);
    assert_eq!(found.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::Stopped]);
    assert_eq!(found[0].threads, [5, 10]);
    // A parent that waits for another child does not wait for this one.
    let other = with_syscall(row(5, 5), 61, [77, 0, 0, 0, 0, 0]);
    assert!(look(vec![stopped, other], Facts::default(), 200).is_empty());
}

#[test]
fn a_stopped_holder_is_one_finding() {
    let (mut rows, facts) = mutexes(&[10, 10]);
    rows[0] = row(10, 10);
    rows[0].state = state::STOPPED;
    let found = look(rows, facts, 200);
    assert_eq!(found.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::Stopped], "{found:#?}");
    assert_eq!((found[0].threads.as_slice(), found[0].chain.len()), (&[10, 11][..], 1));
}

/// A negative timeout that thread 10 passed to this system call a second ago.
fn bad_timeout(syscall: u32, raw: i64) -> ProbeEvent {
    ProbeEvent {
        kind: EventKind::BadTimeout,
        family: Family::Poll,
        tid: 10,
        pid: 10,
        comm: "t10".to_owned(),
        syscall: Some(syscall),
        start_ns: 99 * S,
        wait_ns: 0,
        ret: 0,
        timeout: TimeoutKind::Negative,
        timeout_raw: raw,
        timeout_ns: 0,
        args: [0; 6],
        local: None,
        remote: None,
        history: None,
        site: 0,
    }
}

#[test]
fn bad_timeouts_by_wait_and_by_event() {
    let poll = |ms: i32| with_syscall(row(10, 10), 7, [0, 0, u64::from(ms as u32), 0, 0, 0]);
    let kinds = |ms| {
        let row = poll(ms);
        let learnt = facts(vec![thread_facts(&row, Vec::new())]);
        look(vec![row], learnt, 200).iter().map(|f| (f.kind, f.confidence)).collect::<Vec<_>>()
    };
    assert_eq!(kinds(-5), [(Kind::BadTimeout, Confidence::Certain)]);
    assert_eq!(kinds(30 * 3600 * 1000), [(Kind::BadTimeout, Confidence::Likely)]);
    assert_eq!(kinds(7 * 24 * 3600 * 1000), [(Kind::BadTimeout, Confidence::Possible)], "a week, as a setting has it");
    for healthy in [-1, 0, 50, i32::MAX] {
        assert_eq!(kinds(healthy), [], "poll({healthy})");
    }
    let event = bad_timeout(7, -5);
    let mut judge = judge();
    let reading = ProbeReading { events: vec![event.clone(), event], ..ProbeReading::default() };
    judge.advance(census(100, vec![row(10, 10)]), reading);
    let open = judge.ledger.open();
    assert_eq!(open.len(), 1);
    assert_eq!((open[0].finding.kind, open[0].finding.evidence["calls"].as_u64()), (Kind::BadTimeout, Some(2)));
    // It lingers for a minute, then it is over.
    let turn = judge.advance(census(130, vec![row(10, 10)]), ProbeReading::default());
    assert!(turn.changes.is_empty());
    let turn = judge.advance(census(300, vec![row(10, 10)]), ProbeReading::default());
    assert_eq!(turn.changes.iter().map(|(change, _)| *change).collect::<Vec<_>>(), [Change::Resolved]);
}

#[test]
fn a_far_timer_of_an_event_loop_is_no_warning() {
    let far = |number| with_syscall(row(10, 10), number, [3, 0, 1 << 30, 1 << 30, 0, 0]);
    let severity = |number| {
        let row = far(number);
        let found = look(vec![row.clone()], facts(vec![thread_facts(&row, Vec::new())]), 100);
        found.iter().map(|f| (f.kind, f.severity)).collect::<Vec<_>>()
    };
    assert_eq!(severity(232), [(Kind::BadTimeout, Severity::Info)], "epoll_wait");
    assert_eq!(severity(7), [(Kind::BadTimeout, Severity::Warning)], "poll");
}

#[test]
fn unreadable_after_the_threshold() {
    let read = |since_s| BlockedRead { process: process(10), what: "memory".to_owned(), since_ns: since_s * S };
    let with = |since_s| Facts { blocked_reads: vec![read(since_s)], ..Facts::default() };
    assert!(look(vec![row(10, 10)], with(98), 100).is_empty());
    let found = look(vec![row(10, 10)], with(90), 100);
    assert_eq!(
        found.iter().map(|f| (f.kind, f.confidence)).collect::<Vec<_>>(),
        [(Kind::Unreadable, Confidence::Certain)]
    );
}

#[test]
fn life_of_a_finding() {
    let (rows, facts) = mutexes(&[11, 10]);
    let mut judge = judge();
    let mut step = |at, rows: &[ThreadRow], learnt: &Facts| {
        let turn = judge.advance(census(at, rows.to_vec()), ProbeReading::default());
        judge.learn(learnt.clone());
        turn.changes.into_iter().map(|(change, life)| (change, life.finding.id)).collect::<Vec<_>>()
    };
    assert!(step(100, &rows, &facts).is_empty());
    let opened = step(101, &rows, &facts);
    assert_eq!(opened.len(), 1);
    assert_eq!(opened[0].0, Change::Opened);
    assert!(step(102, &rows, &facts).is_empty(), "no repeats");
    // One more thread gets stuck behind the circle.
    let mut more = rows.clone();
    more.push(in_mutex(10, 12, 0x1000));
    let mut learnt = facts.clone();
    learnt.threads.push(thread_facts(&more[2], mutex_bytes(2, 0, 10, 1, 0)));
    assert!(step(103, &more, &learnt).is_empty(), "not confirmed yet");
    let worse = step(104, &more, &learnt);
    assert_eq!(worse, [(Change::Worsened, opened[0].1.clone())], "the id is stable");
    let gone = step(105, &[row(10, 10)], &Facts::default());
    assert_eq!(gone, [(Change::Resolved, opened[0].1.clone())]);
}

mod bad_timeout;
mod debts;
mod debts_blame;
mod far_ends;
mod file_locks;
mod frames;
mod goroutines;
mod habit;
mod lost_wakeup;
mod runtime_locks;
mod unlisted;
