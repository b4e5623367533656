//! Rules on pipes and sockets: who has the other end, and who could end the wait.

use super::*;
use crate::census::Pid;
use crate::proc::{Connection, EndHolder, FarEnd, ProcessStreams, ThreadFacts};

const READ: u32 = 0;
const WRITE: u32 = 1;

/// A thread in `read` or `write` on descriptor 3.
fn on_pipe(pid: Pid, tid: Pid, call: u32) -> ThreadRow {
    with_syscall(row(pid, tid), call, [3, 0x1000, 1, 0, 0, 0])
}

/// What is read of it: its descriptor is this, and these processes have the other end. Looked up at second 91.
fn end_of(row: &ThreadRow, target: &str, holders: &[Pid]) -> ThreadFacts {
    let fd = FdFact { fd: 3, target: target.to_owned(), ..FdFact::default() };
    let holders = holders.iter().map(|pid| EndHolder { process: process(*pid), fd: 4 }).collect();
    let far_end = FarEnd { object: target.to_owned(), holders, unsearched: 0, unread: None, taken_ns: 91 * S };
    ThreadFacts { memory: Vec::new(), fd: Some(fd), far_end: Some(far_end), ..thread_facts(row, Vec::new()) }
}

/// An idle worker: `pthread_cond_wait`.
fn at_rest(pid: Pid, tid: Pid) -> ThreadRow {
    with_syscall(row(pid, tid), 202, [0x9000, 0x189, 0, 0, 0, u64::from(u32::MAX)])
}

fn running(pid: Pid, tid: Pid) -> ThreadRow {
    ThreadRow { state: 0, on_cpu: true, off_cpu_since_ns: None, ..row(pid, tid) }
}

/// The processes 10 and 20, each in this call on a pipe whose other end only the other one has, with what else there is.
fn pair(calls: [u32; 2], others: Vec<ThreadRow>) -> (Vec<ThreadRow>, Facts) {
    let mut rows = vec![on_pipe(10, 10, calls[0]), on_pipe(20, 20, calls[1])];
    let learnt = vec![end_of(&rows[0], "pipe:[1]", &[20]), end_of(&rows[1], "pipe:[2]", &[10])];
    rows.extend(others);
    (rows, facts(learnt))
}

#[test]
fn two_full_pipes_are_a_deadlock_beyond_the_threshold() {
    for calls in [[WRITE, WRITE], [READ, READ], [WRITE, READ]] {
        let (rows, learnt) = pair(calls, Vec::new());
        assert!(look(rows.clone(), learnt.clone(), 92).is_empty(), "an inference needs time");
        let found = look(rows, learnt, 99);
        assert_eq!(found.len(), 1, "{calls:?}: {found:?}");
        let finding = &found[0];
        assert_eq!((finding.kind, finding.confidence), (Kind::Deadlock, Confidence::Likely));
        assert_eq!(finding.threads, [10, 20]);
        let chain: Vec<(Pid, Pid)> =
            finding.chain.iter().map(|link| (link.from.tid, link.held_by.unwrap().tid)).collect();
        assert_eq!(chain, [(10, 20), (20, 10)]);
        assert_eq!(finding.evidence["processes"], serde_json::json!([10, 20]));
        assert_eq!(finding.remedy.contains("neither reads"), calls != [READ, READ], "{}", finding.remedy);
    }
}

#[test]
fn threads_at_rest_do_not_read_a_full_pipe_but_may_speak_later() {
    let (rows, learnt) = pair([WRITE, WRITE], vec![at_rest(10, 11), at_rest(20, 21)]);
    let found = look(rows, learnt, 99);
    assert_eq!(found.len(), 1, "nobody has read for so long: {found:?}");
    assert_eq!(found[0].threads, [10, 20]);
    assert_eq!((found[0].confidence, found[0].severity), (Confidence::Possible, Severity::Warning));
    assert!(found[0].explanation.contains("at rest"), "{}", found[0].explanation);
    // Two processes that only listen: their idle threads may be woken to write.
    let (rows, learnt) = pair([READ, READ], vec![at_rest(10, 11)]);
    assert!(look(rows, learnt, 300).is_empty());
    // Somebody who runs may do anything, on either pipe.
    for calls in [[WRITE, WRITE], [READ, READ]] {
        let (rows, learnt) = pair(calls, vec![running(20, 21)]);
        assert!(look(rows, learnt, 300).is_empty());
    }
}

#[test]
fn an_end_that_somebody_else_has_too_opens_the_circle() {
    let (mut rows, mut learnt) = pair([READ, READ], Vec::new());
    rows.push(with_syscall(row(30, 30), 230, [0, 0, 0x1000, 0, 0, 0]));
    learnt.threads[0] = end_of(&rows[0], "pipe:[1]", &[20, 30]);
    assert!(look(rows.clone(), learnt.clone(), 300).is_empty(), "30 sleeps, and may write then");
    // If 30 waits for 10 as well, all three are stuck, and 30 is named.
    rows[2] = on_pipe(30, 30, READ);
    learnt.threads.push(end_of(&rows[2], "pipe:[3]", &[10]));
    let found = look(rows, learnt, 300);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].threads, [10, 20, 30]);
    assert_eq!(found[0].evidence["members"], serde_json::json!([10, 20, 30]));
    assert_eq!(found[0].chain.len(), 3);
}

#[test]
fn processes_that_could_not_be_searched_leave_it_open() {
    let (rows, mut learnt) = pair([WRITE, WRITE], Vec::new());
    learnt.threads[0].far_end.as_mut().unwrap().unsearched = 1;
    assert!(look(rows, learnt, 300).is_empty());
}

#[test]
fn ends_looked_up_before_somebody_slept_prove_nothing() {
    let (mut rows, learnt) = pair([WRITE, WRITE], Vec::new());
    rows[1].off_cpu_since_ns = Some(92 * S);
    assert!(look(rows, learnt, 300).is_empty());
}

#[test]
fn anybody_may_open_a_fifo_for_writing() {
    let rows = vec![on_pipe(10, 10, READ), on_pipe(20, 20, READ)];
    let learnt = vec![end_of(&rows[0], "/run/a.fifo", &[20]), end_of(&rows[1], "pipe:[2]", &[10])];
    assert!(look(rows, facts(learnt), 300).is_empty());
    let rows = vec![on_pipe(10, 10, WRITE), on_pipe(20, 20, WRITE)];
    let learnt = vec![end_of(&rows[0], "/run/a.fifo", &[20]), end_of(&rows[1], "/run/b.fifo", &[10])];
    assert_eq!(look(rows, facts(learnt), 300).len(), 1, "both full");
}

#[test]
fn a_parent_in_wait4_and_a_child_that_waits_for_its_end_of_file() {
    let mut parent = with_syscall(row(10, 10), 61, [u64::MAX, 0, 0, 0, 0, 0]);
    let mut child = on_pipe(20, 20, READ);
    (parent.ppid, child.ppid) = (1, 10);
    let learnt = facts(vec![
        ThreadFacts { memory: Vec::new(), ..thread_facts(&parent, Vec::new()) },
        end_of(&child, "pipe:[1]", &[10]),
    ]);
    let found = look(vec![parent.clone(), child.clone()], learnt.clone(), 99);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].threads, [10, 20]);
    assert!(found[0].remedy.contains("close the unused ends"), "{}", found[0].remedy);
    // A second child may end, too.
    let second = ThreadRow { ppid: 10, ..with_syscall(row(30, 30), 230, [0, 0, 0x1000, 0, 0, 0]) };
    assert!(look(vec![parent, child, second], learnt, 300).is_empty());
}

#[test]
fn a_lock_in_between_makes_one_circle_of_mixed_kinds() {
    // 10 waits for the mutex of 11, which writes to 20, which writes to a pipe that only process 10 reads.
    let rows = vec![in_mutex(10, 10, 0x1000), on_pipe(10, 11, WRITE), on_pipe(20, 20, WRITE)];
    let mut learnt = facts(vec![
        thread_facts(&rows[0], mutex_bytes(2, 0, 11, 1, 0)),
        end_of(&rows[1], "pipe:[1]", &[20]),
        end_of(&rows[2], "pipe:[2]", &[10]),
    ]);
    let found = look(rows.clone(), learnt.clone(), 99);
    let kinds: Vec<Kind> = found.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [Kind::Deadlock], "{found:?}");
    assert_eq!(found[0].threads, [10, 11, 20]);
    // Without the way back it is a lock held too long, and the chain goes on behind its holder.
    learnt.threads.pop();
    let found = look(rows, learnt, 99);
    assert_eq!(found.len(), 1, "{found:?}");
    let finding = &found[0];
    assert_eq!((finding.kind, finding.confidence), (Kind::LockWait, Confidence::Certain));
    assert_eq!(finding.threads, [10, 11]);
    assert!(finding.title.contains("held by t11 (tid 11), which has been in write()"), "{}", finding.title);
    assert_eq!(finding.chain.last().unwrap().held_by.unwrap().tid, 20);
    assert!(finding.explanation.contains("t20 (tid 20)"), "{}", finding.explanation);
}

#[test]
fn readers_alone_are_rest() {
    let rows = vec![on_pipe(10, 10, READ), with_syscall(row(20, 20), 230, [0, 0, 0x1000, 0, 0, 0])];
    let learnt = facts(vec![end_of(&rows[0], "pipe:[1]", &[20])]);
    assert!(look(rows, learnt, 3000).is_empty());
    // A process that reads from itself: a signal handler may write.
    let rows = vec![on_pipe(10, 10, READ)];
    let learnt = facts(vec![end_of(&rows[0], "pipe:[1]", &[10])]);
    assert!(look(rows, learnt, 3000).is_empty());
}

/// A server that waits to write its log into a pipe, with a request that it has not read. Process 20 has the other end.
fn log_writer(reader: ThreadRow, more: Vec<ThreadFacts>) -> Vec<Finding> {
    let rows = vec![on_pipe(10, 10, WRITE), reader];
    let request = Connection {
        inode: 7,
        fd: 7,
        state: "ESTAB".to_owned(),
        local: Some("10.0.0.1:8080".to_owned()),
        remote: Some("10.0.0.9:40000".to_owned()),
        inbound: true,
        unread: 100,
        received: Some(100),
        sent: Some(0),
        last_received_ns: Some(90 * S),
        ..Connection::default()
    };
    let mut judge = judge();
    for at in [92, 97, 98] {
        judge.advance(census(at, rows.clone()), ProbeReading::default());
        let all = [vec![end_of(&rows[0], "pipe:[1]", &[20])], more.clone()].concat();
        let connections = vec![request.clone()];
        let listed =
            ProcessStreams { process: process(10), taken_ns: at * S, connections, listeners: Vec::new(), cut: 0 };
        judge.learn(Facts { streams: vec![listed], ..facts(all) });
    }
    judge.advance(census(99, rows), ProbeReading::default());
    judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect()
}

#[test]
fn a_full_pipe_that_nobody_empties_stops_a_server() {
    let found = log_writer(at_rest(20, 20), Vec::new());
    assert_eq!(found.iter().map(|finding| finding.kind).collect::<Vec<_>>(), [Kind::NotReading]);
    assert_eq!(found[0].chain[0].held_by.unwrap().tid, 20);
    assert!(found[0].explanation.contains("full") && found[0].explanation.contains("t20"), "{}", found[0].explanation);
    // Whoever is stopped has the finding; a pager waits for its reader.
    let found = log_writer(ThreadRow { state: state::STOPPED, ..row(20, 20) }, Vec::new());
    assert_eq!(found.iter().map(|finding| finding.kind).collect::<Vec<_>>(), [Kind::Stopped]);
    let pager = on_pipe(20, 20, READ);
    let terminal = FdFact { fd: 3, target: "/dev/pts/1".to_owned(), ..FdFact::default() };
    let terminal = ThreadFacts { fd: Some(terminal), far_end: None, ..end_of(&pager, "", &[]) };
    assert!(log_writer(pager, vec![terminal]).is_empty());
}
