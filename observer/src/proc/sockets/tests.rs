//! Sockets of this process and of one in a network namespace of its own.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use super::namespaces::through;
use super::{Listing, Socket, Sockets, Table, procnet, reversed, state_bit};
use crate::census::ProcessId;
use crate::host::clock::monotonic_ns;
use crate::proc::tests::victim::{Victim, wait_for};
use crate::proc::{ConnectingSocket, GatherSettings, Gatherer, ThreadWant, exists, fd_fact};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, connect, getsockname, listen, socket,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(10);

fn sockets() -> Sockets {
    Sockets::new(monotonic_ns, Instant::now() + LIMIT)
}

fn me() -> ProcessId {
    exists(std::process::id()).unwrap().id
}

/// Non-blocking connects to a listener whose backlog is full, and when they began.
fn connect_to_full() -> (SocketAddr, u64, Vec<OwnedFd>) {
    let open = |flag| socket(AddressFamily::Inet, SockType::Stream, flag, None).unwrap();
    let listener = open(SockFlag::SOCK_CLOEXEC);
    bind(listener.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let address: SockaddrIn = getsockname(listener.as_raw_fd()).unwrap();
    let since = monotonic_ns();
    let mut held = vec![listener];
    for _ in 0..4 {
        let fd = open(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
        assert_eq!(connect(fd.as_raw_fd(), &address), Err(Errno::EINPROGRESS));
        held.push(fd);
    }
    (SocketAddr::from(SocketAddrV4::from(address)), since, held)
}

fn check(found: &[ConnectingSocket], since: u64) {
    for socket in found {
        let off = socket.since_ns.unwrap().abs_diff(since);
        assert!(off < 200_000_000, "off by {} ms: {socket:?}", off / 1_000_000);
    }
}

#[test]
fn a_connection_attempt_and_when_it_began() {
    let (remote, since, held) = connect_to_full();
    let find = |repeated: u32| {
        let (mut found, missed) = sockets().connecting(&[me()]);
        assert_eq!(missed, BTreeSet::new());
        found.retain(|s| s.remote == remote && s.retransmits >= repeated);
        (!found.is_empty()).then_some(found)
    };
    let found = wait_for("a socket in SYN-SENT", LIMIT, || find(0));
    check(&found, since);
    let fds: Vec<i32> = held.iter().map(AsRawFd::as_raw_fd).collect();
    assert!(found.iter().all(|s| fds.contains(&s.fd) && s.local.ip() == remote.ip()));
    // After repetitions another source tells.
    check(&wait_for("a repeated SYN", LIMIT, || find(1)), since);

    // Where netlink is refused.
    let listed = procnet::read(std::process::id(), Table::Tcp, state_bit::SYN_SENT, Instant::now() + LIMIT).unwrap();
    let now = monotonic_ns();
    let slow: Vec<_> = listed.iter().filter(|s| s.remote == Some(remote)).collect();
    assert_eq!(slow.len(), found.len());
    for socket in slow {
        let began = now - u64::try_from(socket.connecting_for.unwrap().as_nanos()).unwrap();
        assert!(began.abs_diff(since) < 200_000_000, "off by {} ms", began.abs_diff(since) / 1_000_000);
    }
}

#[test]
fn a_connection_attempt_in_another_network_namespace() {
    let victim = Victim::start(&["connect-in-netns"]);
    let find = || {
        let mut sockets = sockets();
        let (found, missed) = sockets.connecting(&[victim.id, me()]);
        assert_eq!(missed, BTreeSet::new());
        assert_eq!(sockets.into_lost(), Default::default());
        let found: Vec<_> = found.into_iter().filter(|s| s.process == victim.id).collect();
        (!found.is_empty()).then_some(found)
    };
    let found = wait_for("a socket in SYN-SENT", LIMIT, find);
    check(&found, victim.value);
    assert!(found[0].remote.ip().is_loopback());
    let listed = procnet::read(victim.id.pid, Table::Tcp, state_bit::SYN_SENT, Instant::now() + LIMIT).unwrap();
    assert_eq!(listed.len(), found.len());
    // We have not moved.
    assert_eq!(super::namespace("thread-self"), super::namespace("self"));
    assert_ne!(super::namespace("self"), super::namespace(&victim.id.pid.to_string()));
}

#[test]
fn what_was_received_and_not_read() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = listener.local_addr().unwrap().to_string();
    let mut client = TcpStream::connect(&local).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.write_all(b"hello").unwrap();
    let _waits = TcpStream::connect(&local).unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    near.write_all(b"abc").unwrap();

    let found = wait_for("all three", LIMIT, || {
        let found = sockets().unread(me()).unwrap();
        let on = |protocol: &str, state: &str, unread: u64| {
            found.iter().any(|s| {
                s.protocol == protocol
                    && s.state == state
                    && s.unread == unread
                    && (protocol == "unix" || s.local.as_ref() == Some(&local))
            })
        };
        (on("tcp", "ESTAB", 5) && on("tcp", "LISTEN", 1) && on("unix", "ESTAB", 3)).then_some(found)
    });
    let client_address = client.local_addr().unwrap().to_string();
    assert!(found.iter().any(|s| s.remote.as_ref() == Some(&client_address)));
    drop((server, far));
}

#[test]
fn the_socket_behind_a_descriptor() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (near, _far) = UnixStream::pair().unwrap();
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let fds = [listener.as_raw_fd(), udp.as_raw_fd(), near.as_raw_fd(), file.as_raw_fd(), 99_999];
    let wants: Vec<ThreadWant> = fds
        .iter()
        .map(|&fd| ThreadWant {
            process: me(),
            tid: std::process::id(),
            switches: 0,
            memory: Vec::new(),
            fd: Some(fd),
            kernel_stack: true,
            file_lock: false,
            set: None,
            far_end: None,
        })
        .collect();
    let settings = GatherSettings { deadline: LIMIT, ..GatherSettings::default() };
    let facts = Gatherer::new(settings).gather(&wants, &[], &[], &[]);
    let socket = |at: usize| {
        let fd = facts.threads[at].fd.as_ref().unwrap();
        assert_eq!(fd.fd, fds[at]);
        fd.socket.as_ref().map(|s| (s.protocol.as_str(), s.state.as_str(), s.local.clone()))
    };
    assert_eq!(socket(0), Some(("tcp", "LISTEN", Some(listener.local_addr().unwrap().to_string()))));
    assert_eq!(socket(1), Some(("udp", "UNCONN", Some(udp.local_addr().unwrap().to_string()))));
    assert_eq!(socket(2), Some(("unix", "ESTAB", None)));
    assert_eq!(socket(3), None);
    assert_eq!(facts.threads[3].fd.as_ref().unwrap().flags & 3, 0);
    assert_eq!(facts.threads[4].fd, None);
    assert_eq!(facts.lost.get("fd: ENOENT"), Some(&1));
}

#[test]
fn who_could_not_be_looked_at_is_told() {
    let all = BTreeSet::from([me()]);
    let own = super::namespace("self").unwrap();
    let mut late = Sockets::new(monotonic_ns, Instant::now().checked_sub(Duration::from_millis(1)).unwrap());
    assert_eq!(late.connecting(&[me()]), (Vec::new(), all.clone()));
    assert_eq!(late.unread(me()), None);
    // The list is there, and no time for the descriptors.
    let listing = Listing { sockets: Rc::new(vec![by_hand(7, "10.0.0.1:5000", "10.0.0.2:80")]), taken_ns: 1 };
    late.listed.insert((own, Table::Tcp, state_bit::SYN_SENT), Some(listing));
    assert_eq!(late.connecting(&[me()]), (Vec::new(), all.clone()));
    // A list that has failed is not an empty one, for whoever asks next.
    let mut failed = sockets();
    failed.listed.insert((own, Table::Tcp, state_bit::SYN_SENT), None);
    assert_eq!(failed.connecting(&[me()]), (Vec::new(), all));
    // Nobody has missed the sockets of one that has ended.
    let ended = ProcessId { start_ns: 1, ..me() };
    assert_eq!(sockets().unread(ended), Some(Vec::new()));
}

#[test]
fn the_other_end_in_another_network_namespace() {
    let own = super::namespace("self").unwrap();
    let (local, remote) = ("10.0.0.1:5000", "10.0.0.2:80");
    let find = |lists: [Option<Vec<Socket>>; 2]| {
        let mut sockets = sockets();
        let mut add = |namespace: u64, list: Option<Vec<Socket>>| {
            let listing = list.map(|list| Listing { sockets: Rc::new(list), taken_ns: 1 });
            sockets.listed.insert((namespace, Table::Tcp, state_bit::ALL), listing);
        };
        add(own, Some(Vec::new()));
        for (namespace, list) in (1..).zip(lists) {
            add(namespace, list);
        }
        sockets.representatives = Some(Rc::new(BTreeMap::from([(1, vec![me()]), (2, vec![me()])])));
        sockets.tcp_peer(me().pid, local.parse().unwrap(), remote.parse().unwrap(), &[])
    };
    let has = |inode| Some(vec![by_hand(inode, remote, local)]);
    assert_eq!(find([has(4), Some(Vec::new())]), Some(4));
    assert_eq!(find([has(4), has(5)]), None, "the same addresses twice");
    assert_eq!(find([has(4), None]), Some(4), "one that cannot be listed does not hide all others");
    let mut late = Sockets::new(monotonic_ns, Instant::now().checked_sub(Duration::from_millis(1)).unwrap());
    let listing = Listing { sockets: Rc::default(), taken_ns: 1 };
    late.listed.insert((own, Table::Tcp, state_bit::ALL), Some(listing));
    assert_eq!(late.tcp_peer(me().pid, local.parse().unwrap(), remote.parse().unwrap(), &[me()]), None);
    assert!(late.representatives.is_none(), "those of which there was no time to ask are asked the next time");
}

#[test]
fn a_namespace_is_listed_through_one_that_is_still_in_it() {
    let own = super::namespace("self").unwrap();
    let ended = ProcessId { pid: 0, start_ns: 0 };
    assert_eq!(through(&[ended, ended, me()], own), me().pid);
    assert_eq!(through(&[me()], own + 1), me().pid, "for want of another");
}

fn by_hand(inode: u64, local: &str, remote: &str) -> Socket {
    Socket {
        table: Table::Tcp,
        inode,
        state: 1,
        local: local.parse().ok(),
        remote: remote.parse().ok(),
        unread: 0,
        unsent: 0,
        retransmits: 0,
        connecting_for: None,
        name: None,
        peer: 0,
        connecting: Vec::new(),
    }
}

#[test]
fn the_other_end_of_a_connection() {
    let socket = by_hand;
    let all = [
        socket(1, "10.0.0.1:5000", "10.0.0.2:80"),
        socket(2, "10.0.0.2:80", "10.0.0.1:5001"),
        socket(0, "10.0.0.2:80", "10.0.0.1:5002"),
        socket(3, "10.0.0.2:80", "nobody"),
        socket(4, "10.0.0.2:80", "10.0.0.1:5000"),
    ];
    let find = |local: &str, remote: &str| reversed(&all, local.parse().unwrap(), remote.parse().unwrap());
    assert_eq!(find("10.0.0.1:5000", "10.0.0.2:80"), Some(4));
    assert_eq!(find("10.0.0.1:5001", "10.0.0.2:80"), Some(2));
    assert_eq!(find("10.0.0.1:5002", "10.0.0.2:80"), None, "not accepted yet");
    assert_eq!(find("10.0.0.1:5003", "10.0.0.2:80"), None);
}

#[test]
fn both_ends_of_a_mapped_address() {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let client = TcpStream::connect(("127.0.0.1", listener.local_addr().unwrap().port())).unwrap();
    let (server, _) = listener.accept().unwrap();
    let inode = |fd| fd_fact(me().pid, me().pid, fd).ok().and_then(|f| crate::proc::fds::socket_inode(&f.target));
    let mut sockets = Sockets::new(|| 0, Instant::now() + Duration::from_secs(5));
    let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let found = sockets.tcp_peer(me().pid, local, remote, &[]);
    assert_eq!(found, inode(server.as_raw_fd()));
    assert_eq!(sockets.tcp_peer(me().pid, remote, local, &[]), inode(client.as_raw_fd()));
}
