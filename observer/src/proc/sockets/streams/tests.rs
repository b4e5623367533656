//! Real sockets of this process, and listings made by hand where there have to be many.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use super::*;
use crate::host::clock::monotonic_ns;
use crate::proc::sockets::known::Steady;
use crate::proc::sockets::listed::Info;
use crate::proc::tests::victim::wait_for;
use crate::proc::{exists, fd_fact, fds};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);
/// The kernel's clock has steps of up to 10 ms; the machine may be busy.
const CLOSE_NS: u64 = 50_000_000;

fn me() -> ProcessId {
    exists(std::process::id()).unwrap().id
}

fn inode(socket: &impl AsRawFd) -> u64 {
    let fact = fd_fact(me().pid, me().pid, socket.as_raw_fd()).unwrap();
    fds::socket_inode(&fact.target).unwrap()
}

struct Look {
    streams: Streams,
}

impl Look {
    fn new() -> Self {
        Self { streams: Streams::new(monotonic_ns, FileTables::default()) }
    }

    fn all(&mut self) -> ProcessStreams {
        let mut lost = BTreeMap::new();
        let mut found = self.streams.of(&[me()], &[me()], Instant::now() + LIMIT, &mut lost);
        assert_eq!((found.len(), &lost), (1, &BTreeMap::new()));
        found.remove(0)
    }

    fn connection(&mut self, socket: &impl AsRawFd) -> Connection {
        let inode = inode(socket);
        self.all().connections.into_iter().find(|connection| connection.inode == inode).unwrap()
    }

    fn listener(&mut self, socket: &impl AsRawFd) -> Listener {
        let inode = inode(socket);
        self.all().listeners.into_iter().find(|listener| listener.inode == inode).unwrap()
    }
}

fn pair() -> (TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (listener, client, server)
}

fn is_close(told: Option<u64>, truth: u64) {
    let off = told.unwrap().abs_diff(truth);
    assert!(off <= CLOSE_NS, "off by {} ms", off / 1_000_000);
}

#[test]
fn a_request_from_sent_to_answered() {
    let (listener, mut client, mut server) = pair();
    let mut look = Look::new();
    let fresh = look.connection(&server);
    assert!(fresh.inbound && fresh.state == "ESTAB");
    assert_eq!(
        (fresh.received, fresh.sent, fresh.last_received_ns, fresh.last_sent_ns),
        (Some(0), Some(0), None, None)
    );

    let asked = monotonic_ns();
    client.write_all(b"hello").unwrap();
    let sent = wait_for("the request", LIMIT, || Some(look.connection(&server)).filter(|c| c.unread == 5));
    assert_eq!((sent.received, sent.fd, sent.peer), (Some(5), server.as_raw_fd(), Some(inode(&client))));
    assert_eq!(sent.local, Some(listener.local_addr().unwrap().to_string()));
    assert_eq!(sent.remote, Some(client.local_addr().unwrap().to_string()));
    assert_eq!(sent.peer_process, Some(me()));
    is_close(sent.last_received_ns, asked);
    let asks = look.connection(&client);
    assert_eq!((asks.inbound, asks.sent, asks.received, asks.unsent), (false, Some(5), Some(0), 0));
    assert_eq!(asks.last_received_ns, None);
    is_close(asks.last_sent_ns, asked);

    // Read and not answered: owed since it came.
    server.read_exact(&mut [0; 5]).unwrap();
    let owes = look.connection(&server);
    assert_eq!((owes.unread, owes.last_received_ns, owes.last_sent_ns), (0, sent.last_received_ns, None));

    // Time passes, and the two moments can be told apart.
    wait_for("a step of the kernel's clock", LIMIT, || (monotonic_ns() > asked + 4 * CLOSE_NS).then_some(()));
    let answered = monotonic_ns();
    server.write_all(b"well").unwrap();
    let done = wait_for("the answer", LIMIT, || Some(look.connection(&server)).filter(|c| c.sent == Some(4)));
    assert_eq!((done.unsent, done.last_received_ns), (0, sent.last_received_ns), "the time of the request stays");
    is_close(done.last_sent_ns, answered);
    assert!(done.last_sent_ns > done.last_received_ns);
    let has = look.connection(&client);
    assert_eq!((has.unread, has.received), (4, Some(4)));
    assert!(has.last_received_ns > has.last_sent_ns);

    // Nothing flaps while nothing happens.
    for _ in 0..20 {
        let again = look.connection(&server);
        assert_eq!(again, done);
    }
}

#[test]
fn an_answer_within_one_step_of_the_clock_is_an_answer() {
    let (_listener, mut client, mut server) = pair();
    let mut look = Look::new();
    for round in 0..200 {
        client.write_all(b"a").unwrap();
        server.read_exact(&mut [0]).unwrap();
        if round % 3 == 0 {
            // Between the two.
            look.connection(&server);
        }
        server.write_all(b"b").unwrap();
        client.read_exact(&mut [0]).unwrap();
        let (near, far) = (look.connection(&server), look.connection(&client));
        assert!(near.last_sent_ns >= near.last_received_ns, "round {round}: {near:?}");
        assert!(far.last_received_ns >= far.last_sent_ns, "round {round}: {far:?}");
    }
}

#[test]
fn times_keep_the_order_that_the_kernel_tells() {
    let at = |written, received, sent_ns, received_ns| Steady { written, received, sent_ns, received_ns };
    let times = |steady: Steady| (steady.sent_ns, steady.received_ns);
    // A listing between request and answer, its clock 4 ms late: the answer is not before the request.
    let next = at(5, 5, None, Some(104)).followed_by(at(9, 5, Some(100), Some(100)));
    assert_eq!(times(next), (Some(104), Some(104)));
    // The next request came after that answer.
    let next = next.followed_by(at(9, 8, Some(100), Some(103)));
    assert_eq!(times(next), (Some(104), Some(105)));
    // Sent again, as nobody acknowledges: the time of the first attempt stays.
    let next = at(9, 5, Some(100), Some(90)).followed_by(at(9, 5, Some(700), Some(94)));
    assert_eq!(times(next), (Some(100), Some(90)));
}

#[test]
fn connections_that_nobody_accepts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut look = Look::new();
    assert_eq!((look.listener(&listener).backlog, look.listener(&listener).waiting), (0, Vec::new()));
    let mut first = TcpStream::connect(address).unwrap();
    first.write_all(b"abc").unwrap();
    let _second = TcpStream::connect(address).unwrap();
    let full = wait_for("both", LIMIT, || {
        Some(look.listener(&listener)).filter(|l| l.waiting.len() == 2 && l.waiting.iter().any(|w| w.unread == 3))
    });
    assert_eq!((full.backlog, full.fd, full.kind), (2, listener.as_raw_fd(), StreamKind::Tcp));
    assert_eq!(full.local, Some(address.to_string()));
    assert!(full.limit >= 128, "{full:?}");
    let expected = Unaccepted { remote: first.local_addr().unwrap().to_string(), unread: 3 };
    assert!(full.waiting.contains(&expected), "{full:?}");
    let asks = look.connection(&first);
    assert_eq!((asks.inbound, asks.peer), (false, None), "nobody has the other end");
    listener.accept().unwrap();
    assert_eq!(look.listener(&listener).backlog, 1);
}

#[test]
fn a_connection_outlives_its_listener() {
    let (listener, client, server) = pair();
    let mut look = Look::new();
    assert!(look.connection(&server).inbound);
    drop(listener);
    assert!(look.connection(&server).inbound);
    assert!(!look.connection(&client).inbound);
    assert!(!Look::new().connection(&server).inbound, "who comes later cannot know");
}

#[test]
fn unix_streams() {
    let directory = std::env::temp_dir().join(format!("observer-streams-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("socket");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    let (server, _) = listener.accept().unwrap();
    let waits = UnixStream::connect(&path).unwrap();
    client.write_all(b"hello").unwrap();
    let mut look = Look::new();
    let near = look.connection(&server);
    let name = Some(path.to_string_lossy().into_owned());
    assert_eq!((near.inbound, near.kind, near.state.as_str(), near.unread), (true, StreamKind::Unix, "ESTAB", 5));
    assert_eq!((&near.local, &near.remote, near.peer), (&name, &None, Some(inode(&client))));
    assert_eq!((near.received, near.last_received_ns, near.peer_process), (None, None, Some(me())));
    let far = look.connection(&client);
    assert_eq!((far.inbound, &far.local, &far.remote, far.peer), (false, &None, &name, Some(inode(&server))));
    assert!(far.unsent > 0, "{far:?}");
    let full = look.listener(&listener);
    assert_eq!((full.backlog, full.kind, &full.local), (1, StreamKind::Unix, &name));
    // Whoever connects is told by its own socket.
    let named = Unaccepted { remote: format!("socket:[{}]", inode(&waits)), unread: 0 };
    assert!(full.limit >= 128 && full.waiting == [named], "{full:?}");
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn without_netlink_there_are_no_times() {
    let (listener, mut client, server) = pair();
    client.write_all(b"hello").unwrap();
    let until = Instant::now() + LIMIT;
    let list = || {
        let plain = procnet::read(me().pid, Table::Tcp, TCP_STATES, until).unwrap();
        let tcp = plain.iter().filter_map(|socket| ListedTcp::plain(socket, 7)).collect();
        let mut streams = Streams::new(monotonic_ns, FileTables::default());
        let listing = Listing::new(1, tcp, Vec::new(), 7);
        streams.known.entry(1).or_default().learn(&listing);
        let mut found = streams.join(&listing, &[me()], until, &mut BTreeMap::new()).remove(0).connections;
        found.retain(|c| c.inode == inode(&server) && c.unread == 5);
        found.pop()
    };
    let near = wait_for("the request", LIMIT, list);
    assert!(near.inbound);
    assert_eq!((near.received, near.last_received_ns, near.peer), (None, None, Some(inode(&client))));
    assert_eq!(near.local, Some(listener.local_addr().unwrap().to_string()));
}

fn by_hand(inode: u32, local: &str, unread: u32, info: Info) -> ListedTcp {
    let mut socket =
        ListedTcp { inode, state: ESTABLISHED, unread, info: Some(info), at_ns: 1000, ..Default::default() };
    (socket.local.port, socket.remote.port) = (local.parse().unwrap(), 9);
    socket
}

#[test]
fn what_matters_is_kept() {
    let many = u32::try_from(MOST_CONNECTIONS).unwrap();
    let idle = Info { has_received: true, has_sent: true, last_received_ns: 10, last_sent_ns: 20, ..Info::default() };
    let owing = Info { last_sent_ns: 5, ..idle };
    let mut tcp: Vec<ListedTcp> = (1..=many).map(|n| by_hand(n, "80", 0, idle)).collect();
    tcp.push(by_hand(many + 1, "80", 0, owing));
    tcp.push(by_hand(many + 2, "5000", 0, idle));
    tcp.push(by_hand(many + 3, "80", 8, idle));
    tcp.push(ListedTcp {
        state: LISTEN,
        inode: many + 4,
        local: End { port: 80, ..End::default() },
        ..Default::default()
    });
    let listing = Listing::new(1, tcp, Vec::new(), 1000);
    let mut streams = Streams::new(|| 0, FileTables::default());
    streams.known.entry(1).or_default().learn(&listing);
    let connections = (0..many + 3).map(|n| (n as i32, Place::Tcp(n as usize))).collect();
    let mut mine = Mine { process: me(), connections, listeners: Vec::new() };
    assert_eq!(cut(&streams.known[&1], &listing, &mut mine), 3);
    assert_eq!(mine.connections.len(), MOST_CONNECTIONS);
    let last: Vec<i32> = mine.connections.iter().rev().take(3).map(|(fd, _)| *fd).collect();
    assert_eq!(last, [many + 2, many + 1, many].map(|n| n as i32));
}

#[test]
fn each_of_several_listeners_at_one_address_gets_what_its_backlog_has() {
    let listen = |inode, unread| ListedTcp {
        inode,
        unread,
        state: LISTEN,
        local: End { port: 80, ..End::default() },
        ..Default::default()
    };
    let mut tcp = vec![listen(1, 0), listen(2, 2), listen(3, 1)];
    tcp.extend((0..4).map(|n| by_hand(0, "80", n, Info { last_sent_ns: 100 - u64::from(n), ..Info::default() })));
    let listing = Listing::new(1, tcp, Vec::new(), 1000);
    let waiting = listing.waiting();
    let at = |inode: u32| waiting.get(&inode).into_iter().flatten().map(|socket| socket.unread).collect::<Vec<_>>();
    assert_eq!((at(1), at(2), at(3)), (vec![], vec![1, 0], vec![2]));
}

#[test]
fn who_could_not_be_listed_again_is_told() {
    let (_listener, _client, _server) = pair();
    let survey = |streams: &mut Streams, until: Instant| {
        let found = streams.survey(&[me()], &[me()], LIMIT, until, &mut BTreeMap::new());
        (found.streams.len(), found.unlisted)
    };
    let past = Instant::now().checked_sub(Duration::from_millis(1)).unwrap();
    let mut streams = Streams::new(monotonic_ns, FileTables::default());
    assert_eq!(survey(&mut streams, Instant::now() + LIMIT), (1, Vec::new()));
    assert_eq!(survey(&mut streams, past), (0, vec![me()]));
    // Of this one nothing is known.
    let mut fresh = Streams::new(monotonic_ns, FileTables::default());
    assert_eq!(survey(&mut fresh, past), (0, Vec::new()));
}

#[test]
fn suspects_are_old_debts_only() {
    let (_listener, mut client, mut server) = pair();
    let (_other, mut asker, unread) = pair();
    let after = Duration::from_millis(100);
    let mut streams = Streams::new(monotonic_ns, FileTables::default());
    let namespace = namespace("self").unwrap();
    let suspects = |streams: &mut Streams| {
        let listing = streams.list(me().pid, namespace, Instant::now() + LIMIT, &mut BTreeMap::new()).unwrap();
        streams.suspects_for_test(&listing, after)
    };
    let is = |found: &[u32], socket: &TcpStream| found.iter().any(|found| u64::from(*found) == inode(socket));
    assert!(!is(&suspects(&mut streams), &server), "nothing was asked");
    client.write_all(b"a").unwrap();
    asker.write_all(b"abc").unwrap();
    let began = monotonic_ns();
    let found = wait_for("a debt", LIMIT, || {
        let found = suspects(&mut streams);
        (is(&found, &server) && is(&found, &client) && is(&found, &unread)).then_some(found)
    });
    assert!(monotonic_ns() - began > 80_000_000, "too early: {found:?}");
    server.read_exact(&mut [0]).unwrap();
    assert!(is(&suspects(&mut streams), &server), "read and not answered");
    server.write_all(b"b").unwrap();
    client.read_exact(&mut [0]).unwrap();
    let found = suspects(&mut streams);
    assert!(!is(&found, &server) && !is(&found, &client) && is(&found, &unread), "{found:?}");
}
