//! Rules on file locks, as `/proc/locks` would list them.

use super::*;
use crate::proc::{BlockedLock, FileLockFact, FileLockKind, LockRange, MemoryFact};

const ALL: LockRange = LockRange { start: 0, end: None };

/// A process of one thread in `flock(3, LOCK_EX)`.
fn in_flock(pid: u32) -> ThreadRow {
    with_syscall(row(pid, pid), 73, [3, 2, 0, 0, 0, 0])
}

/// What is read of a thread that waits for the file with this inode.
pub(super) fn on_file(row: &ThreadRow, inode: u64) -> crate::proc::ThreadFacts {
    let target = format!("/run/{inode}.lock");
    let fd = FdFact { fd: 3, target, inode: Some(inode), ..FdFact::default() };
    crate::proc::ThreadFacts { memory: Vec::new(), fd: Some(fd), ..thread_facts(row, Vec::new()) }
}

/// A flock taken and still held by `pid`; behind it processes, the first of them first in the queue.
pub(super) fn flock(inode: u64, pid: u32, blocked: &[u32]) -> FileLockFact {
    let request = |(n, pid): (usize, &u32)| BlockedLock { pid: Some(*pid), range: ALL, is_first: n == 0 };
    FileLockFact {
        kind: FileLockKind::Flock,
        exclusive: true,
        pid: Some(pid),
        device: (0, 19),
        inode,
        range: ALL,
        blocked: blocked.iter().enumerate().map(request).collect(),
        holders: vec![pid],
        is_cut: false,
    }
}

/// A thread that reads a pipe.
fn reader(pid: u32, tid: u32) -> ThreadRow {
    with_syscall(row(pid, tid), 0, [9, 0, 1, 0, 0, 0])
}

pub(super) fn with_locks(threads: Vec<crate::proc::ThreadFacts>, file_locks: Vec<FileLockFact>) -> Facts {
    Facts { file_locks, ..facts(threads) }
}

#[test]
fn a_queue_behind_one_lock_is_one_finding_beyond_the_threshold() {
    let rows = vec![in_flock(10), in_flock(11), reader(20, 20)];
    let learnt = with_locks(vec![on_file(&rows[0], 7), on_file(&rows[1], 7)], vec![flock(7, 20, &[10, 11])]);
    assert!(look(rows.clone(), learnt.clone(), 92).is_empty(), "not before the threshold");
    let found = look(rows, learnt, 99);
    assert_eq!(found.len(), 1, "{found:?}");
    let finding = &found[0];
    assert_eq!((finding.kind, finding.confidence), (Kind::LockWait, Confidence::Certain));
    assert_eq!(finding.threads, [10, 11, 20]);
    let title = "2 threads wait for the lock on /run/7.lock held by t20 (tid 20), which has been in read()";
    assert!(finding.title.starts_with(title), "{}", finding.title);
}

#[test]
fn two_processes_and_two_files() {
    let rows = vec![in_flock(10), in_flock(11)];
    let threads = || vec![on_file(&rows[0], 7), on_file(&rows[1], 8)];
    let found = look(rows.clone(), with_locks(threads(), vec![flock(7, 11, &[10]), flock(8, 10, &[11])]), 91);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].kind, found[0].confidence), (Kind::Deadlock, Confidence::Certain));
    assert_eq!(found[0].threads, [10, 11]);
    assert!(found[0].explanation.contains("/run/7.lock"), "{}", found[0].explanation);

    // One that moved in between may have let go.
    let mut judge = judge();
    judge.advance(census(99, rows.clone()), ProbeReading::default());
    judge.learn(with_locks(threads(), vec![flock(7, 11, &[10]), flock(8, 10, &[11])]));
    let mut moved = rows.clone();
    moved[1].nvcsw += 1;
    judge.advance(census(100, moved), ProbeReading::default());
    assert!(judge.ledger.open().iter().all(|life| life.finding.kind != Kind::Deadlock));
}

#[test]
fn a_circle_through_a_process_of_several_threads_must_last() {
    // 11's second thread may be the one that holds the file.
    let mut rows = vec![in_flock(10), in_flock(11), reader(11, 12)];
    let learnt =
        with_locks(vec![on_file(&rows[0], 7), on_file(&rows[1], 8)], vec![flock(7, 11, &[10]), flock(8, 10, &[11])]);
    assert!(look(rows.clone(), learnt.clone(), 91).is_empty());
    let found = look(rows.clone(), learnt.clone(), 99);
    assert_eq!((found[0].kind, found[0].confidence), (Kind::Deadlock, Confidence::Likely));
    (rows[2].state, rows[2].on_cpu) = (0, true);
    assert!(look(rows, learnt, 99).iter().all(|finding| finding.kind != Kind::Deadlock), "it works on");
}

#[test]
fn a_file_and_a_mutex_of_two_processes() {
    let mut waiter = in_mutex(11, 11, 0x1000);
    // Shared between processes: no FUTEX_PRIVATE_FLAG.
    waiter.syscall.as_mut().unwrap().args[1] = 0;
    let rows = vec![in_flock(10), waiter];
    let mutex = thread_facts(&rows[1], mutex_bytes(2, 0, 10, 1, 128));
    let found = look(rows.clone(), with_locks(vec![on_file(&rows[0], 7), mutex], vec![flock(7, 11, &[10])]), 91);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].kind, found[0].confidence), (Kind::Deadlock, Confidence::Certain));
}

#[test]
fn a_holder_that_waits_for_its_child_leads_to_the_child() {
    // As flock(1) does: it takes the lock, and waits for its command.
    let mut command = with_syscall(row(21, 21), 230, [0, 0, 0, 0, 0, 0]);
    command.ppid = 20;
    let mut rows = vec![in_flock(10), with_syscall(row(20, 20), 61, [21, 0, 0, 0, 0, 0]), command];
    let threads = vec![on_file(&rows[0], 7), thread_facts(&rows[1], Vec::new())];
    let learnt = with_locks(threads, vec![flock(7, 20, &[10])]);
    let found = look(rows.clone(), learnt.clone(), 99);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].kind, found[0].confidence), (Kind::LockWait, Confidence::Likely));
    assert!(found[0].title.contains("held by t20 (tid 20), behind t21 (tid 21)"), "{}", found[0].title);
    assert!(found[0].title.starts_with("1 thread waits"), "{}", found[0].title);
    assert_eq!(found[0].evidence["lock"], "/run/7.lock");
    // The holder has waited for its child since second 90; that is nobody's wait for a lock.
    rows[0].off_cpu_since_ns = Some(98 * S);
    assert!(look(rows, learnt, 99).is_empty());
}

#[test]
fn heirs_and_strangers() {
    let rows = vec![in_flock(10), reader(20, 20), reader(21, 21)];
    let inherited = |holders: &[u32]| FileLockFact { pid: None, holders: holders.to_vec(), ..flock(7, 1, &[10]) };
    for (holders, confidence, names) in [
        (&[20][..], Confidence::Likely, true),
        (&[20, 21], Confidence::Possible, true),
        (&[], Confidence::Possible, false),
    ] {
        let learnt = with_locks(vec![on_file(&rows[0], 7)], vec![inherited(holders)]);
        let found = look(rows.clone(), learnt, 99);
        assert_eq!((found.len(), found[0].kind, found[0].confidence), (1, Kind::LockWait, confidence), "{holders:?}");
        assert_eq!(found[0].threads.contains(&20), names, "{holders:?}");
    }
    // Behind another request, a lock without a known holder may have changed hands.
    let mut behind = inherited(&[]);
    behind.blocked[0].is_first = false;
    assert!(look(rows.clone(), with_locks(vec![on_file(&rows[0], 7)], vec![behind]), 99).is_empty());
}

#[test]
fn ranges_tell_whose_lock_it_is() {
    let waiter = with_syscall(row(10, 10), 72, [3, 7, 0x5000, 0, 0, 0]);
    let rows = vec![waiter, reader(20, 20), reader(21, 21)];
    let range = |start, end| LockRange { start, end: Some(end) };
    let lock = |pid, held, asked| FileLockFact {
        kind: FileLockKind::Posix,
        range: held,
        blocked: vec![BlockedLock { pid: Some(10), range: asked, is_first: true }],
        ..flock(7, pid, &[])
    };
    // Another thread of 10 waits for the first hundred bytes.
    let locks = vec![lock(20, range(0, 99), range(5, 5)), lock(21, range(100, 199), range(150, 159))];
    let mut request = vec![1, 0, 0, 0, 0, 0, 0, 0];
    request.extend([150_i64, 10, 0].into_iter().flat_map(i64::to_ne_bytes));
    let mut thread = on_file(&rows[0], 7);
    assert!(!look(rows.clone(), with_locks(vec![thread.clone()], locks.clone()), 99)[0].threads.contains(&21));
    thread.memory = vec![MemoryFact { addr: 0x5000, bytes: request, error: None }];
    // Where the list does not say who waits, the bytes do: both locks are there, one of them is in the way.
    let unqueued = locks.iter().map(|lock| FileLockFact { blocked: Vec::new(), ..lock.clone() }).collect();
    for locks in [locks, unqueued] {
        let found = look(rows.clone(), with_locks(vec![thread.clone()], locks), 99);
        assert_eq!((found.len(), found[0].confidence), (1, Confidence::Certain));
        assert_eq!(found[0].threads, [10, 21]);
    }
}

#[test]
fn nobody_waits_nobody_is_blamed() {
    let rows = vec![reader(10, 10)];
    let learnt = with_locks(vec![thread_facts(&rows[0], Vec::new())], vec![flock(7, 10, &[])]);
    assert!(look(rows, learnt, 500).is_empty());
    // fcntl for something else than a lock.
    let rows = vec![with_syscall(row(10, 10), 72, [3, 1031, 0, 0, 0, 0])];
    let learnt = with_locks(vec![on_file(&rows[0], 7)], Vec::new());
    assert!(look(rows, learnt, 500).is_empty());
}

#[test]
fn leaders_and_followers_pass_a_file_lock_around() {
    // Apache's `Mutex fcntl`: whoever has the lock is in accept().
    let rows = vec![in_flock(10), with_syscall(row(20, 20), 288, [4, 0, 0, 0, 0, 0])];
    let learnt = with_locks(vec![on_file(&rows[0], 7)], vec![flock(7, 20, &[10])]);
    assert!(look(rows, learnt, 500).is_empty());
}
