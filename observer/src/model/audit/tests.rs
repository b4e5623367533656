//! Sites from hand-made hosts: the same place is one row, and the riskiest comes first.

use super::*;
use crate::census::{ProbeReading, SiteStats};
use crate::model::testkit::*;
use crate::proc::{SiteFact, SocketFact};

fn stack(functions: &[&str], end: StackEnd) -> Arc<Stack> {
    let frame = |name: &&str| Frame { function: Some((*name).to_owned()), line: Some(1), ..Frame::default() };
    Arc::new(Stack { frames: functions.iter().map(frame).collect(), end })
}

fn stats(site: u64, syscall: u32, kind: usize, args: [u64; 6]) -> SiteStats {
    let mut calls = vec![0; KINDS];
    calls[kind] = 10;
    SiteStats {
        pid: 10,
        site,
        syscall,
        calls,
        ended: 2,
        total_ns: 6 * S,
        longest_ns: 4 * S,
        timeouts_ns: (0, 0),
        raw: -1,
        tid: 10,
        last_ns: 99 * S,
        args,
    }
}

fn socket(fd: i32, remote: &str) -> FdFact {
    let (local, remote) = (Some("10.0.0.2:4000".to_owned()), Some(remote.to_owned()));
    let socket = SocketFact { protocol: "tcp".to_owned(), local, remote, ..SocketFact::default() };
    FdFact { fd, target: "socket:[7]".to_owned(), socket: Some(socket), ..FdFact::default() }
}

fn audit(sites: Vec<SiteStats>, stacks: &[(u64, Arc<Stack>)], known: &Descriptors) -> Vec<Site> {
    let mut host = Host::default();
    host.advance(census(100, vec![row(10, 10)]), ProbeReading { sites, ..ProbeReading::default() });
    let fact = |(site, stack): &(u64, Arc<Stack>)| SiteFact { process: process(10), site: *site, stack: stack.clone() };
    host.learn_sites(&stacks.iter().map(fact).collect::<Vec<_>>());
    Audit::new(process(10), 0).sites(&host, known)
}

fn known(fact: FdFact, limits: Option<SocketLimits>) -> Descriptors {
    let limits = limits.map(|limits| (fact.fd, limits)).into_iter().collect();
    Descriptors { facts: BTreeMap::from([(fact.fd, fact)]), limits }
}

const CONNECT: u32 = 42;
const POLL: u32 = 7;
const NONE: usize = 1;
const FINITE: usize = 3;
const INFINITE: usize = 4;
const NEGATIVE: usize = 5;

#[test]
fn a_connect_has_the_limit_of_its_socket() {
    let no_limit = SocketLimits { receive: SocketLimit::None, send: SocketLimit::None };
    let limit = SocketLimits { receive: SocketLimit::None, send: SocketLimit::After(3 * S) };
    let risk = |fact: FdFact, limits| {
        let sites = audit(vec![stats(1, CONNECT, NONE, [5, 0, 0, 0, 0, 0])], &[], &known(fact, limits));
        assert_eq!(sites.len(), 1);
        (sites[0].risk, sites[0].timeouts_ns)
    };
    assert_eq!(risk(socket(5, "10.0.0.1:80"), Some(no_limit)), (Risk::RemoteUnlimited, None));
    assert_eq!(risk(socket(5, "127.0.0.1:80"), Some(no_limit)), (Risk::LocalUnlimited, None));
    assert_eq!(risk(socket(5, "10.0.0.2:80"), Some(no_limit)), (Risk::LocalUnlimited, None), "itself");
    assert_eq!(risk(socket(5, "10.0.0.1:80"), Some(limit)), (Risk::Limited, Some((3 * S, 3 * S))));
    assert_eq!(risk(socket(5, "10.0.0.1:80"), None), (Risk::Unknown, None), "never a guess");
    assert_eq!(risk(socket(6, "10.0.0.1:80"), Some(no_limit)), (Risk::Unknown, None), "closed by now");
    let nonblocking = FdFact { flags: libc::O_NONBLOCK as u32, ..socket(5, "10.0.0.1:80") };
    assert_eq!(risk(nonblocking, Some(no_limit)), (Risk::NeverWaits, None));
}

#[test]
fn sites_at_the_same_place_are_one_row() {
    let whole = stack(&["poll", "wait", "loop", "main"], StackEnd::Root);
    let cut = stack(&["poll", "wait", "loop"], StackEnd::Stopped("cut".to_owned()));
    let other = stack(&["poll", "wait", "start"], StackEnd::Root);
    let poll = |site, kind| stats(site, POLL, kind, [0, 1, 0, 0, 0, 0]);
    let stacks = [(1, whole.clone()), (2, cut), (3, other)];
    let sites = audit(vec![poll(1, FINITE), poll(2, INFINITE), poll(3, FINITE)], &stacks, &Descriptors::default());
    assert_eq!(sites.len(), 2);
    let joined = &sites[0];
    assert_eq!((joined.probed, joined.calls[FINITE], joined.calls[INFINITE]), (20, 10, 10));
    assert_eq!((joined.ended, joined.typical_ns(), joined.longest_ns), (4, Some(3 * S), 4 * S));
    assert_eq!(joined.stack.as_deref(), Some(&*whole), "the one that was followed farther");
}

#[test]
fn the_riskiest_comes_first() {
    let sites = vec![
        stats(1, 232, INFINITE, [9, 0, 0, 0, 0, 0]),
        stats(2, POLL, FINITE, [0, 1, 0, 0, 0, 0]),
        stats(3, 271, NEGATIVE, [0, 1, 0, 0, 0, 0]),
        stats(4, CONNECT, NONE, [5, 0, 0, 0, 0, 0]),
    ];
    let limits = SocketLimits { receive: SocketLimit::None, send: SocketLimit::None };
    let sites = audit(sites, &[], &known(socket(5, "10.0.0.1:80"), Some(limits)));
    let order: Vec<_> = sites.iter().map(|site| (site.syscall, site.risk)).collect();
    assert_eq!(
        order,
        [
            ("connect", Risk::RemoteUnlimited),
            ("ppoll", Risk::Wrong),
            ("epoll_wait", Risk::RestUnlimited),
            ("poll", Risk::Limited)
        ]
    );
}

#[test]
fn a_wait_that_began_before_is_a_row_with_its_length() {
    let asleep = with_syscall(row(10, 11), 45, [5, 0, 0, 0, 0, 0]);
    let mut host = Host::default();
    let mut audit = Audit::new(process(10), 95 * S);
    for at in [100, 101, 102] {
        host.advance(census(at, vec![row(10, 10), asleep.clone()]), ProbeReading::default());
        audit.note(&host);
    }
    assert_eq!(audit.descriptors(&host), BTreeSet::from([5]));
    let limits = SocketLimits { receive: SocketLimit::None, send: SocketLimit::None };
    let sites = audit.sites(&host, &known(socket(5, "10.0.0.1:80"), Some(limits)));
    assert_eq!(sites.len(), 1);
    let site = &sites[0];
    assert_eq!((site.syscall, site.probed, site.calls[INFINITE]), ("recvfrom", 0, 1), "one sleep, seen three times");
    assert_eq!((site.longest_ns, site.waiting.get(&11)), (12 * S, Some(&(90 * S))));
    // It ended: still a row, nobody waits.
    host.advance(census(103, vec![row(10, 10)]), ProbeReading::default());
    audit.note(&host);
    assert!(audit.sites(&host, &Descriptors::default())[0].waiting.is_empty());
}

#[test]
fn a_turn_of_a_loop_that_began_before_the_probes_is_no_site_of_its_own() {
    // A poll since second 90, seen by a census without its stack.
    let sites = |millis: i32, goes_on: bool| {
        let asleep = with_syscall(row(10, 11), POLL, [0x1000, 1, u64::from(millis as u32), 0, 0, 0]);
        let mut host = Host::default();
        let mut audit = Audit::new(process(10), 95 * S);
        let reading =
            || ProbeReading { sites: vec![stats(1, POLL, FINITE, [0, 1, 0, 0, 0, 0])], ..ProbeReading::default() };
        host.advance(census(100, vec![row(10, 10), asleep.clone()]), reading());
        audit.note(&host);
        let rows = if goes_on { vec![row(10, 10), asleep] } else { vec![row(10, 10)] };
        host.advance(census(101, rows), reading());
        audit.note(&host);
        let sites = audit.sites(&host, &Descriptors::default());
        (sites.len(), sites.iter().map(|site| site.calls.iter().sum::<u64>()).sum::<u64>(), audit.without_stack)
    };
    assert_eq!(sites(200, false), (1, 10, 1), "the loop has its site");
    assert_eq!(sites(-1, false).1, 11, "one without a limit is told");
    assert_eq!(sites(200, true).1, 11, "and one that lasts");
}
