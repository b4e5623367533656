//! What processes owe over their sockets: what must be found, and who waits on purpose.

use super::*;
use crate::model::debts::State;
use crate::proc::{
    Connection, Frame, Listener, ProcessStreams, Stack, StackEnd, StackFact, StreamKind, TaskState, Unaccepted,
};
use std::sync::Arc;

pub(super) const MS: u64 = 1_000_000;

/// A TCP connection: data came and were sent last at these milliseconds.
pub(super) fn line(inode: u64, received: Option<u64>, sent: Option<u64>) -> Connection {
    Connection {
        inode,
        fd: inode as i32,
        state: "ESTAB".to_owned(),
        local: Some("10.0.0.1:8080".to_owned()),
        remote: Some(format!("10.0.0.9:{}", 40_000 + inode)),
        inbound: true,
        received: Some(received.map_or(0, |at| at)),
        sent: Some(sent.map_or(0, |at| at)),
        last_received_ns: received.map(|at| at * MS),
        last_sent_ns: sent.map(|at| at * MS),
        ..Connection::default()
    }
}

/// The same to a database.
pub(super) fn to(remote: &str, inode: u64, received: Option<u64>, sent: Option<u64>) -> Connection {
    Connection {
        local: Some(format!("10.0.0.1:{}", 50_000 + inode)),
        remote: Some(remote.to_owned()),
        inbound: false,
        ..line(inode, received, sent)
    }
}

pub(super) const DB: &str = "10.0.0.2:5432";

pub(super) fn listed(pid: u32, at_s: u64, connections: Vec<Connection>, listeners: Vec<Listener>) -> ProcessStreams {
    ProcessStreams { process: process(pid), taken_ns: at_s * S, connections, listeners, cut: 0 }
}

/// A server with one thread in epoll_wait.
pub(super) fn server() -> Vec<ThreadRow> {
    vec![with_syscall(row(10, 10), 232, [3, 0x1000, 16, u64::MAX, 0, 0])]
}

fn streams(all: Vec<ProcessStreams>) -> Facts {
    Facts { streams: all, ..Facts::default() }
}

/// Listings at these seconds, what is found after the last.
pub(super) fn watch(
    judge: &mut Judge,
    rows: &[ThreadRow],
    at: &[u64],
    what: impl Fn(u64) -> Vec<ProcessStreams>,
) -> Vec<Finding> {
    for second in at {
        judge.advance(census(*second, rows.to_vec()), ProbeReading::default());
        judge.learn(streams(what(*second)));
    }
    judge.advance(census(at.last().unwrap() + 1, rows.to_vec()), ProbeReading::default());
    judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect()
}

pub(super) fn found(rows: &[ThreadRow], at: &[u64], what: impl Fn(u64) -> Vec<Connection>) -> Vec<Finding> {
    watch(&mut judge(), rows, at, |at_s| vec![listed(10, at_s, what(at_s), Vec::new())])
}

pub(super) fn only(findings: &[Finding]) -> &Finding {
    assert_eq!(findings.len(), 1, "{findings:?}");
    &findings[0]
}

/// Requests 1 to `requests` came 10 ms apart from second 90 on; connection i was used 3 ms after request i.
pub(super) fn nested(requests: u64, connections: u64) -> Vec<Connection> {
    let asked = (0..requests).map(|i| line(1 + i, Some(90_000 + 20 * i), None));
    let used = (0..connections).map(|i| to(DB, 100 + i, Some(90_003 + 20 * i), Some(90_002 + 20 * i)));
    asked.chain(used).collect()
}

#[test]
fn a_pool_that_is_used_up_from_within() {
    let findings = found(&server(), &[91, 96, 97], |_| nested(12, 5));
    let finding = only(&findings);
    assert_eq!(finding.kind, Kind::PoolExhausted);
    assert_eq!((finding.severity, finding.confidence), (Severity::Critical, Confidence::Likely));
    assert_eq!(
        finding.title,
        "t10 answers nobody: 12 requests unanswered for 7.0 s while all 5 connections to 10.0.0.2:5432 are idle in hand"
    );
    assert_eq!(finding.evidence["pool"]["size"], 5);
    assert_eq!(finding.evidence["pool"]["idle"], 5);
    assert_eq!(finding.evidence["unanswered"]["count"], 12);
    assert_eq!(finding.evidence["unanswered"]["port"], 8080);
    assert_eq!(finding.evidence["starved"], 7);
    assert_eq!(finding.since.0, (1_790_000_000 + 90) * S);
    // Not before the threshold.
    assert!(found(&server(), &[91, 93, 94], |_| nested(12, 5)).is_empty());
    let mut early = judge();
    early.advance(census(91, server()), ProbeReading::default());
    early.learn(streams(vec![listed(10, 91, nested(12, 5), Vec::new())]));
    let turn = early.advance(census(92, server()), ProbeReading::default());
    assert_eq!(turn.ripe_at_ns, Some(95 * S), "when the oldest request has waited long enough");
}

#[test]
fn the_verdict_says_what_the_finding_says() {
    let mut judge = judge();
    watch(&mut judge, &server(), &[91, 96, 97], |at| vec![listed(10, at, nested(12, 5), Vec::new())]);
    let verdict = judge.verdict(process(10)).unwrap();
    assert_eq!(verdict.state, State::Hung);
    assert!(verdict.why.contains("all 5 connections"), "{}", verdict.why);
}

#[test]
fn requests_that_all_come_at_once_are_told_and_not_judged() {
    // More requests than connections, all within the tick before the last use: a crowd of long polls looks the same.
    let crowd = |_: u64| -> Vec<Connection> {
        let asked = (0..12).map(|i| line(1 + i, Some(90_000), None));
        asked.chain((0..5).map(|i| to(DB, 100 + i, Some(90_020), Some(90_019)))).collect()
    };
    assert!(found(&server(), &[91, 96, 97], crowd).is_empty());
    let mut judge = judge();
    watch(&mut judge, &server(), &[91, 96, 97], |at| vec![listed(10, at, crowd(at), Vec::new())]);
    let verdict = judge.verdict(process(10)).unwrap();
    assert_eq!(verdict.state, State::Idle);
    assert!(verdict.why.contains("all 5 connections to 10.0.0.2:5432 are idle"), "{}", verdict.why);
}

#[test]
fn servers_with_idle_pools_that_let_clients_wait_on_purpose() {
    // Long-poll without a database: the pool was used long before these requests, or never.
    let idle = |used: Option<u64>| {
        move |_| {
            let mut all: Vec<Connection> = (0..20).map(|i| line(1 + i, Some(90_000 + 20 * i), None)).collect();
            all.extend((0..5).map(|i| to(DB, 100 + i, used, used.map(|at| at - 1))));
            all
        }
    };
    assert!(found(&server(), &[91, 100, 120], idle(Some(50_000))).is_empty());
    assert!(found(&server(), &[91, 100, 120], idle(None)).is_empty());
    // Each asks the database when it comes, then waits: the last use is behind the last request.
    assert!(found(&server(), &[91, 100, 120], |_| nested(5, 5)).is_empty());
    // One of them is still at work: then the database is what is waited for.
    let one_awaits = |_| {
        let mut all = nested(12, 5);
        all.push(to(DB, 200, Some(90_000), Some(90_100)));
        all
    };
    assert!(found(&server(), &[91, 100, 120], one_awaits).is_empty());
    // The one who used it last was answered.
    let answered = |_| {
        let mut all = nested(12, 5);
        all.push(line(50, Some(90_080), Some(90_084)));
        all
    };
    assert!(found(&server(), &[91, 100, 120], answered).is_empty());
    // The service is known to take its time.
    let slow = |_| {
        let mut all = nested(12, 5);
        all.push(line(50, Some(20_000), Some(55_000)));
        all
    };
    assert!(found(&server(), &[91, 100, 120], slow).is_empty());
}

#[test]
fn a_server_that_computes_is_busy() {
    let mut judge = judge();
    for second in [91, 96, 97] {
        let rows = vec![ThreadRow { cpu_ns: second * S, ..server().remove(0) }];
        judge.advance(census(second, rows), ProbeReading::default());
        judge.learn(streams(vec![listed(10, second, nested(12, 5), Vec::new())]));
    }
    judge.advance(census(98, server()), ProbeReading::default());
    assert!(judge.ledger.open().is_empty());
    assert_eq!(judge.verdict(process(10)).unwrap().state, State::Busy);
}

#[test]
fn answers_that_need_no_connection_leave_it_possible() {
    let with_probe = |at: u64| {
        let mut all = nested(12, 5);
        all.push(line(50, Some(at * 1000 - 500), Some(at * 1000 - 499)));
        all
    };
    let findings = found(&server(), &[91, 96, 97], with_probe);
    let finding = only(&findings);
    assert_eq!((finding.kind, finding.confidence), (Kind::PoolExhausted, Confidence::Possible));
}

#[test]
fn clients_that_wait_and_owe_nothing_are_at_rest() {
    // BLPOP 0 at the client, and at the server; LISTEN; keep-alive; a stream to the client, and from it.
    let rows = vec![with_syscall(row(10, 10), 0, [100, 0x1000, 512, 0, 0, 0])];
    assert!(found(&rows, &[91, 200, 4000], |_| vec![to("10.0.0.3:6379", 100, Some(89_000), Some(90_000))]).is_empty());
    for (received, sent) in [(90_000, 80_000), (80_000, 90_000), (80_000, 80_001)] {
        let what = |_| vec![line(1, Some(received), Some(sent)), line(2, Some(received), None)];
        assert!(found(&server(), &[91, 200, 4000], what).is_empty());
    }
    let streaming = |at: u64| vec![line(1, Some(90_000), Some(at * 1000)), line(2, Some(at * 1000), None)];
    assert!(found(&server(), &[91, 92, 93, 99, 120], streaming).is_empty());
}

/// Twenty-five answers that took 20 ms each, on as many connections.
pub(super) fn known() -> Vec<Connection> {
    (0..25).map(|i| line(500 + i, Some(80_000 + i), Some(80_020 + i))).collect()
}

#[test]
fn a_service_that_has_never_taken_nearly_as_long() {
    let since = |asked: &[u64]| -> Vec<Connection> {
        known().into_iter().chain(asked.iter().map(|at| line(at / 1000, Some(*at), None))).collect()
    };
    let at = [97, 102, 103];
    let asked = [90_000, 92_000, 94_000, 95_500];
    let findings = found(&server(), &at, |_| since(&asked));
    let finding = only(&findings);
    assert_eq!((finding.kind, finding.confidence), (Kind::UnansweredRequests, Confidence::Likely));
    assert_eq!(finding.evidence["because"], "history");
    assert!(finding.explanation.contains("none of which took longer than 20 ms"), "{}", finding.explanation);
    // Too few have come since, or all at once: clients who have turned to wait on purpose.
    assert!(found(&server(), &at, |_| since(&[90_000, 95_500])).is_empty());
    assert!(found(&server(), &at, |_| since(&[90_000, 91_000, 92_000, 93_000])).is_empty());
    // Its past has slow answers. Somebody was answered since.
    let slow = |_| [since(&asked), vec![line(700, Some(70_000), Some(71_500))]].concat();
    assert!(found(&server(), &at, slow).is_empty());
    let answered = |_| [since(&asked), vec![line(700, Some(93_000), Some(93_005))]].concat();
    assert!(found(&server(), &at, answered).is_empty());
    // Too few to know.
    assert!(found(&server(), &at, |_| since(&asked).into_iter().skip(10).collect()).is_empty());
}

/// A stack in these functions.
pub(super) fn stack_of(row: &ThreadRow, functions: &[&str]) -> StackFact {
    let frame = |function: &&str| Frame { function: Some((*function).to_owned()), ..Frame::default() };
    let frames = functions.iter().map(frame).collect();
    StackFact {
        process: row.process,
        tid: row.tid,
        switches: crate::model::switches(row),
        stack: Arc::new(Stack { frames, end: StackEnd::Root }),
        sought: Vec::new(),
        mentions: Vec::new(),
    }
}

pub(super) fn with_stack(rows: &[ThreadRow], stack: &StackFact, connections: &[Connection]) -> Vec<Finding> {
    let mut judge = judge();
    for second in [96, 97] {
        judge.advance(census(second, rows.to_vec()), ProbeReading::default());
        let all = streams(vec![listed(10, second, connections.to_vec(), Vec::new())]);
        judge.learn(Facts { stacks: vec![stack.clone()], ..all });
    }
    judge.advance(census(98, rows.to_vec()), ProbeReading::default());
    judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect()
}

#[test]
fn a_session_behind_a_lock_of_its_database() {
    let rows = server();
    let asked = [line(1, Some(90_000), Some(80_000))];
    let waits = stack_of(
        &rows[0],
        &["epoll_wait", "WaitEventSetWait", "WaitLatch", "ProcSleep", "LockAcquireExtended", "PostgresMain"],
    );
    let findings = with_stack(&rows, &waits, &asked);
    let finding = only(&findings);
    assert_eq!(finding.kind, Kind::UnansweredRequests);
    assert_eq!(finding.evidence["because"], "database_lock");
    assert_eq!(finding.threads, [10]);
    // One that waits for its client's next request, or sleeps because it was told to.
    let reads = stack_of(&rows[0], &["epoll_wait", "WaitEventSetWait", "secure_read", "PostgresMain"]);
    assert!(with_stack(&rows, &reads, &asked).is_empty());
    let sleeps = stack_of(&rows[0], &["epoll_wait", "WaitEventSetWait", "WaitLatch", "pg_sleep", "PostgresMain"]);
    assert!(with_stack(&rows, &sleeps, &asked).is_empty());
}

#[test]
fn threads_in_a_pools_own_function_are_proof_enough() {
    let rows = vec![with_syscall(row(10, 10), 202, [0x5000, 0x189, 0, 0, 0, u64::from(u32::MAX)])];
    let stack = stack_of(&rows[0], &["futex_wait", "pthread_cond_wait", "r2d2::Pool<M>::get_timeout", "app::handle"]);
    let connections = nested(2, 2);
    let findings = with_stack(&rows, &stack, &connections);
    let finding = only(&findings);
    assert_eq!((finding.kind, finding.confidence), (Kind::PoolExhausted, Confidence::Likely));
    assert_eq!(finding.evidence["acquiring"], "r2d2");
    assert!(
        with_stack(&rows, &stack_of(&rows[0], &["futex_wait", "pthread_cond_wait", "app::handle"]), &connections)
            .is_empty()
    );
}

pub(super) fn listener(backlog: u64, limit: u64, waiting: &[&str]) -> Listener {
    Listener {
        inode: 7,
        fd: 3,
        kind: if waiting.is_empty() { StreamKind::Unix } else { StreamKind::Tcp },
        local: Some(if waiting.is_empty() { "/run/app.sock" } else { "0.0.0.0:8080" }.to_owned()),
        backlog,
        limit,
        waiting: waiting.iter().map(|remote| Unaccepted { remote: (*remote).to_owned(), unread: 1 }).collect(),
    }
}

#[test]
fn connections_that_nobody_accepts() {
    let tcp = |at| vec![listed(10, at, Vec::new(), vec![listener(2, 128, &["10.0.0.9:1", "10.0.0.9:2"])])];
    let findings = watch(&mut judge(), &server(), &[91, 96], tcp);
    let finding = only(&findings);
    assert_eq!((finding.kind, finding.severity), (Kind::NotAccepting, Severity::Warning));
    assert_eq!(finding.confidence, Confidence::Certain);
    assert_eq!((&finding.evidence["backlog"], &finding.evidence["limit"]), (&2.into(), &128.into()));
    let full = |at| vec![listed(10, at, Vec::new(), vec![listener(6, 5, &[])])];
    let findings = watch(&mut judge(), &server(), &[91, 96], full);
    assert_eq!((only(&findings).kind, only(&findings).severity), (Kind::NotAccepting, Severity::Critical));
    assert!(findings[0].title.contains("/run/app.sock"), "{}", findings[0].title);
}

#[test]
fn a_backlog_that_moves_is_accepted_from() {
    let tcp = |at: u64| vec![listed(10, at, Vec::new(), vec![listener(1, 128, &[&format!("10.0.0.9:{at}")])])];
    assert!(watch(&mut judge(), &server(), &[91, 96, 101, 106], tcp).is_empty(), "another one each time");
    let unix = |at: u64| {
        let accepted =
            Connection { kind: StreamKind::Unix, local: Some("/run/app.sock".to_owned()), ..line(at, None, None) };
        vec![listed(10, at, vec![accepted], vec![listener(3, 128, &[])])]
    };
    assert!(watch(&mut judge(), &server(), &[91, 96, 101, 106], unix).is_empty());
    let shrinks = |at: u64| vec![listed(10, at, Vec::new(), vec![listener(200 - at, 128, &[])])];
    assert!(watch(&mut judge(), &server(), &[91, 96, 101, 106], shrinks).is_empty());
}

#[test]
fn workers_that_share_a_listener_are_one_finding() {
    let mut rows = server();
    rows.push(with_syscall(row(20, 20), 232, [3, 0x1000, 16, u64::MAX, 0, 0]));
    let scope = Scope { processes: Some(BTreeSet::from([10, 20])), threshold_ns: 5 * S, ..Scope::default() };
    let both = |at| [10, 20].map(|pid| listed(pid, at, Vec::new(), vec![listener(1, 8, &["10.0.0.9:1"])])).to_vec();
    let findings = watch(&mut Judge::new(scope), &rows, &[91, 96], both);
    assert_eq!(only(&findings).evidence["processes"], serde_json::json!([10, 20]));
}

pub(super) fn unread(bytes: u64, received: u64, inbound: bool) -> Connection {
    let one = if inbound { line(1, Some(90_000), None) } else { to(DB, 1, Some(90_000), Some(80_000)) };
    Connection { unread: bytes, received: Some(received), ..one }
}

#[test]
fn bytes_that_nobody_reads() {
    let findings = found(&server(), &[91, 96], |_| vec![unread(100, 100, true)]);
    let finding = only(&findings);
    assert_eq!((finding.kind, finding.confidence), (Kind::NotReading, Confidence::Certain));
    assert_eq!(finding.evidence["unread_bytes"], 100);
    // Something is read of it each time; a notice in an idle connection; what a peer left who is gone.
    assert!(found(&server(), &[91, 96, 101], |at| vec![unread(100, at * 1000, true)]).is_empty());
    assert!(found(&server(), &[91, 96, 101], |_| vec![unread(100, 100, false)]).is_empty());
    let left = |_| vec![Connection { state: "CLOSE-WAIT".to_owned(), ..unread(100, 100, true) }];
    assert!(found(&server(), &[91, 96, 101], left).is_empty());
    // A lot of it is a defect there, too.
    let findings = found(&server(), &[91, 96], |_| vec![unread(100_000, 100_000, false)]);
    assert_eq!(only(&findings).evidence["service"], DB);
    assert_eq!(only(&findings).severity, Severity::Info, "nobody waits for it");
}

#[test]
fn what_is_left_of_a_request_at_work_is_not_unread() {
    // PHP reads the last, empty record of a request when its script is done; a view may leave the body of its request.
    assert!(found(&server(), &[91, 96, 101], |_| vec![unread(8, 700, true)]).is_empty());
    assert!(found(&server(), &[91, 96, 101], |_| vec![unread(20_000, 20_200, true)]).is_empty());
    let unix = Connection { kind: StreamKind::Unix, received: None, sent: None, ..unread(8, 0, true) };
    let unix = Connection { last_received_ns: None, ..unix };
    assert!(found(&server(), &[91, 96, 101], |_| vec![unix.clone()]).is_empty());
    // The next request over the same connection: seen at rest, then partly read, or not at all.
    let next = |bytes: u64| {
        let rest = || Connection { received: Some(700), sent: Some(300), ..line(1, Some(80_000), Some(80_005)) };
        let asked = Connection { unread: bytes, received: Some(1400), last_received_ns: Some(91_500 * MS), ..rest() };
        found(&server(), &[91, 92, 97], |at| vec![if at < 92 { rest() } else { asked.clone() }])
    };
    assert!(next(8).is_empty());
    assert_eq!(only(&next(700)).kind, Kind::NotReading);
    // A stream that is left: more of it comes.
    let stream = |at: u64| {
        let more = (at - 91) * 10;
        Connection { last_received_ns: Some((at * 1000 - 500) * MS), ..unread(100 + more, 5000 + more, true) }
    };
    assert_eq!(only(&found(&server(), &[91, 96, 101], |at| vec![stream(at)])).kind, Kind::NotReading);
}

#[test]
fn who_cannot_pass_it_on_is_not_to_blame() {
    let held = |_| {
        let reader = Connection { unsent: 200_000, ..line(2, Some(80_000), Some(90_000)) };
        vec![unread(100, 100, true), reader]
    };
    assert!(found(&server(), &[91, 96, 101], held).is_empty());
}

#[test]
fn a_peer_that_is_cut_off_or_stopped() {
    let cut = |_| vec![Connection { unsent: 60, retransmits: 5, ..to(DB, 100, Some(80_000), Some(90_000)) }];
    let findings = found(&server(), &[91, 96], cut);
    let finding = only(&findings);
    assert_eq!((finding.kind, finding.confidence), (Kind::AwaitingReply, Confidence::Likely));
    assert!(finding.explanation.contains("5 retransmissions"), "{}", finding.explanation);
    let mut rows = server();
    rows.push(ThreadRow { state: state::STOPPED, ..row(20, 20) });
    let peer = |_| vec![Connection { peer_process: Some(process(20)), ..to(DB, 100, Some(80_000), Some(90_000)) }];
    let findings = found(&rows, &[91, 96], peer);
    let finding = only(&findings);
    assert_eq!((finding.kind, finding.confidence), (Kind::AwaitingReply, Confidence::Certain));
    assert_eq!(finding.chain[0].held_by.unwrap().pid, 20);
    rows[1].state = state::INTERRUPTIBLE;
    assert!(found(&rows, &[91, 96], peer).is_empty());
}

#[test]
fn a_wait_without_limit_counts_where_somebody_waits_for_the_waiter() {
    let rows = vec![with_syscall(row(10, 10), 0, [100, 0x1000, 512, 0, 0, 0])];
    let awaited = || to(DB, 100, Some(80_000), Some(90_002));
    let findings = found(&rows, &[91, 96], |_| vec![awaited(), line(1, Some(90_000), None)]);
    let finding = only(&findings);
    assert_eq!((finding.kind, finding.confidence), (Kind::AwaitingReply, Confidence::Possible));
    assert_eq!(finding.threads, [10]);
    assert!(finding.explanation.contains("owes answers itself: 1 request"), "{}", finding.explanation);
    // It asked before the request came; the peer is a process in which nothing is wrong; it waits for other things as well.
    // A process that was not asked about may be stuck: it is named.
    assert!(found(&rows, &[91, 96], |_| vec![awaited(), line(1, Some(90_900), None)]).is_empty());
    let local = |_| vec![Connection { peer_process: Some(process(20)), ..awaited() }, line(1, Some(90_000), None)];
    let both = [rows.clone(), vec![row(20, 20)]].concat();
    let findings = found(&both, &[91, 96], local);
    assert!(only(&findings).explanation.contains("attach to process 20"), "{findings:?}");
    let scope = Scope { processes: Some(BTreeSet::from([10, 20])), threshold_ns: 5 * S, ..Scope::default() };
    let known = watch(&mut Judge::new(scope), &both, &[91, 96], |at| vec![listed(10, at, local(at), Vec::new())]);
    assert!(known.is_empty(), "{known:?}");
    assert!(found(&server(), &[91, 96], |_| vec![awaited(), line(1, Some(90_000), None)]).is_empty());
}

#[test]
fn an_inode_number_that_is_used_again_is_another_connection() {
    let mut judge = judge();
    let old = |_| vec![listed(10, 91, vec![unread(100, 5000, true)], Vec::new())];
    watch(&mut judge, &server(), &[91], old);
    let new = |at| vec![listed(10, at, vec![unread(100, 100, true)], Vec::new())];
    assert!(watch(&mut judge, &server(), &[96], new).is_empty(), "not since second 91");
    assert_eq!(watch(&mut judge, &server(), &[98, 102], new).len(), 1);
}

#[test]
fn what_is_not_listed_any_more_is_over() {
    let mut judge = judge();
    let rows = [server(), vec![row(20, 20)]].concat();
    let hung = |at: u64| vec![listed(10, at, nested(12, 5), Vec::new())];
    assert_eq!(watch(&mut judge, &rows, &[91, 96, 97], hung).len(), 1);
    // Others are listed, it is not: it owes nothing that is worth a listing.
    let others = |at: u64| vec![listed(20, at, Vec::new(), Vec::new())];
    assert!(watch(&mut judge, &rows, &[99], others).is_empty());
    assert!(judge.host.services().of(process(10)).is_none());
    // Nothing is listed for long.
    assert_eq!(watch(&mut judge, &rows, &[100, 106], hung).len(), 1);
    assert!(watch(&mut judge, &rows, &[140], |_| Vec::new()).is_empty());
}

#[test]
fn what_nobody_watched_in_between_says_nothing_of_a_queue() {
    // A busy server at a unix socket, looked at once a minute: there is always something in its queues.
    let unix = Connection { kind: StreamKind::Unix, sent: None, last_received_ns: None, ..unread(40, 0, true) };
    let unix = Connection { received: None, ..unix };
    assert!(found(&server(), &[91, 151, 211], |_| vec![unix.clone()]).is_empty());
    let backlog = |at| vec![listed(10, at, Vec::new(), vec![listener(3, 128, &[])])];
    assert!(watch(&mut judge(), &server(), &[91, 151, 211], backlog).is_empty());
    // Watched all the while it counts.
    assert_eq!(only(&found(&server(), &[91, 96, 101], |_| vec![unix.clone()])).kind, Kind::NotReading);
}

#[test]
fn one_cold_listing_proves_no_exhausted_pool() {
    assert!(found(&server(), &[97], |_| nested(12, 5)).is_empty());
    assert!(found(&server(), &[97, 98], |_| nested(12, 5)).is_empty());
    assert_eq!(only(&found(&server(), &[97, 98, 102], |_| nested(12, 5))).kind, Kind::PoolExhausted);
}

#[test]
fn clients_with_little_patience_do_not_hide_that_nobody_is_served() {
    // One a second comes, and gives up after three.
    let what = |at: u64| -> Vec<Connection> {
        let came = (0..12).map(|i| 91_000 + 1000 * i).filter(|came| *came <= at * 1000);
        let clients = came.map(|came| {
            let state = if at * 1000 - came >= 3000 { "CLOSE-WAIT" } else { "ESTAB" };
            Connection { state: state.to_owned(), ..line(came / 1000, Some(came), None) }
        });
        known().into_iter().chain(clients).collect()
    };
    let findings = found(&server(), &[90, 92, 94, 96, 98, 100, 102], what);
    let finding = only(&findings);
    assert_eq!((finding.kind, &finding.evidence["because"]), (Kind::UnansweredRequests, &"history".into()));
    // What was left unclosed before we came is no debt.
    let leaked = |_: u64| -> Vec<Connection> {
        let left = (0..9).map(|i| Connection { state: "CLOSE-WAIT".to_owned(), ..line(i, Some(81_000 + i), None) });
        known().into_iter().chain(left).collect()
    };
    assert!(found(&server(), &[90, 96, 102], leaked).is_empty());
}

#[test]
fn threads_that_wait_for_a_busy_pool_do_not_blame_an_idle_one() {
    let rows = vec![with_syscall(row(10, 10), 202, [0x5000, 0x189, 0, 0, 0, u64::from(u32::MAX)])];
    let stack = stack_of(&rows[0], &["futex_wait", "pthread_cond_wait", "r2d2::Pool<M>::get_timeout", "app::handle"]);
    let busy = (0..2).map(|i| to(DB, 100 + i, Some(80_000), Some(90_005)));
    let idle = (0..3).map(|i| to("10.0.0.3:6379", 200 + i, Some(70_000), Some(69_999)));
    let all: Vec<Connection> = busy.chain(idle).chain([line(1, Some(90_000), None)]).collect();
    let findings = with_stack(&rows, &stack, &all);
    assert!(findings.iter().all(|finding| finding.kind != Kind::PoolExhausted), "{findings:?}");
}

#[test]
fn what_a_program_owes_itself_is_its_own_affair() {
    let both = |_| {
        let asked = Connection { peer_process: Some(process(10)), ..to("10.0.0.1:8080", 2, None, Some(90_000)) };
        vec![Connection { peer_process: Some(process(10)), ..unread(100, 100, true) }, asked]
    };
    assert!(found(&server(), &[91, 96, 101], both).is_empty());
}

#[test]
fn who_sends_to_it_serves_it() {
    let feed = |at: u64| vec![Connection { sent: Some(at * 1000), ..unread(100, 100, true) }];
    assert!(found(&server(), &[91, 96, 101], feed).is_empty());
}

#[test]
fn tasks_that_wait_are_told_beside_the_pool_and_are_no_finding_themselves() {
    let idle = |ids: std::ops::Range<u64>| -> Vec<(u64, TaskState)> { ids.map(|id| (id, TaskState::Idle)).collect() };
    let (handlers, drivers) = (idle(1..13), idle(20..25));
    let all = |at: u64| tasks(10, at, &[("server::handle", &handlers), ("postgres::drive", &drivers)]);
    let look = |lines: &dyn Fn() -> Vec<Connection>| -> Vec<Finding> {
        let mut judge = judge();
        for at in [91, 96, 97] {
            judge.advance(census(at, server()), ProbeReading::default());
            let streams = vec![listed(10, at, lines(), Vec::new())];
            judge.learn(Facts { streams, tasks: vec![all(at)], ..Facts::default() });
        }
        judge.advance(census(98, server()), ProbeReading::default());
        judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect()
    };
    // Idle tasks are what a healthy server is made of.
    assert!(look(&|| vec![line(1, None, None)]).is_empty());
    let findings = look(&|| nested(12, 5));
    let finding = only(&findings);
    let told =
        " Of its 17 tasks of tokio none runs; 12 of server::handle and 5 others have been idle for 7.0 s, at least.";
    assert!(finding.explanation.contains(told), "{}", finding.explanation);
    let evidence = &finding.evidence["tasks"];
    assert_eq!((&evidence["total"], &evidence["idle"], &evidence["is_whole"]), (&17.into(), &17.into(), &true.into()));
    assert_eq!(evidence["groups"][0]["future"], "server::handle");
    assert_eq!(evidence["groups"][0]["idle_long"], 12);
}

#[test]
fn of_tasks_that_may_have_run_in_between_the_shortest_time_is_told() {
    let idle = |ids: std::ops::Range<u64>| -> Vec<(u64, TaskState)> { ids.map(|id| (id, TaskState::Idle)).collect() };
    let (handlers, drivers) = (idle(1..13), idle(20..25));
    // How long its threads have slept is not known exactly.
    let rows =
        || -> Vec<ThreadRow> { server().into_iter().map(|row| ThreadRow { off_cpu_since_ns: None, ..row }).collect() };
    let mut judge = judge();
    for at in [85, 91, 97] {
        judge.advance(census(at, rows()), ProbeReading::default());
        let handlers = if at == 85 { &[][..] } else { &handlers };
        let ready = [(30, TaskState::Notified)];
        let all = tasks(10, at, &[("server::handle", handlers), ("postgres::drive", &drivers), ("timer", &ready)]);
        let streams = vec![listed(10, at, nested(12, 5), Vec::new())];
        judge.learn(Facts { streams, tasks: vec![all], ..Facts::default() });
    }
    judge.advance(census(98, rows()), ProbeReading::default());
    let findings: Vec<Finding> = judge.ledger.open().into_iter().map(|life| life.finding.clone()).collect();
    let told = &only(&findings).explanation;
    let idle = "12 of server::handle and 5 others have been idle for 6.0 s or longer, whenever looked at.";
    assert!(told.contains(idle), "{told}");
    assert!(told.contains(" 1 task(s) were ready to run whenever looked at, for up to 12.0 s."), "{told}");
}
