//! The stream sockets of processes: one listing of a network namespace, joined to the descriptors of those that are asked about.

use super::descriptors::FileTables;
use super::inodes::{InodeMap, InodeSet, Secret};
use super::known::{Known, Last};
use super::listed::{End, ListedTcp};
use super::namespaces::{namespace, open_in, through};
use super::unix::{UnixNames, unix_listener};
use super::{LISTEN, Socket, Table, diag, procnet};
use crate::census::{Pid, ProcessId};
use crate::proc::pool::Clock;
use crate::proc::streams::MOST_WAITING;
use crate::proc::{Connection, Listener, ProcessStreams, StreamKind, Unaccepted};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Connections kept of one process.
const MOST_CONNECTIONS: usize = 4096;
/// Listeners kept of one process.
const MOST_LISTENERS: usize = 256;

const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;
/// Those that can have an inode: `ESTAB`, `FIN-WAIT-1`, `FIN-WAIT-2`, `CLOSE-WAIT`, `LAST-ACK`, `LISTEN`, `CLOSING`.
const TCP_STATES: u32 = 1 << ESTABLISHED | 1 << 4 | 1 << 5 | 1 << CLOSE_WAIT | 1 << 9 | 1 << LISTEN | 1 << 11;
const UNIX_STATES: u32 = 1 << ESTABLISHED | 1 << LISTEN;

/// Lists the stream sockets of processes, again and again.
pub struct Streams {
    clock: Clock,
    /// observer's own network namespace.
    own: Option<u64>,
    pub(super) known: HashMap<u64, Known>,
    scans: HashMap<ProcessId, Scan>,
    pub(super) tables: FileTables,
    pub(super) owners: super::survey::Owners,
}

/// The descriptors of a process that are sockets. Most of the price of a look at thousands of connections is to read their
/// links, so that those of a process with many are read again only if there is a new socket in its namespace, or after a while:
/// it may have closed one that another process still has.
struct Scan {
    sockets: Vec<(i32, u32)>,
    at: Instant,
}

/// Descriptors from which on a scan is kept, and for how long.
const WORTH_KEEPING: usize = 256;
const KEPT_FOR: Duration = Duration::from_secs(3);

/// The stream sockets of one namespace.
pub(super) struct Listing {
    pub(super) namespace: u64,
    pub(super) tcp: Vec<ListedTcp>,
    pub(super) unix: Vec<Socket>,
    pub(super) taken_ns: u64,
    /// Places in `tcp` of those that listen, by port.
    listeners: HashMap<u16, Vec<usize>>,
}

impl Listing {
    fn new(namespace: u64, tcp: Vec<ListedTcp>, unix: Vec<Socket>, taken_ns: u64) -> Self {
        let mut listeners: HashMap<u16, Vec<usize>> = HashMap::new();
        for (place, socket) in tcp.iter().enumerate().filter(|(_, socket)| socket.state == LISTEN) {
            listeners.entry(socket.local.port).or_default().push(place);
        }
        Self { namespace, tcp, unix, taken_ns, listeners }
    }

    /// Where each socket is; nobody has it yet.
    fn places(&self) -> InodeMap<Held> {
        let tcp = self.tcp.iter().enumerate().map(|(n, socket)| (socket.inode, socket.state, Place::Tcp(n)));
        let unix = self.unix.iter().enumerate();
        let unix =
            unix.filter_map(|(n, socket)| Some((u32::try_from(socket.inode).ok()?, socket.state, Place::Unix(n))));
        let mut places = InodeMap::with_capacity_and_hasher(self.tcp.len() + self.unix.len(), Secret::default());
        for (inode, state, place) in tcp.chain(unix).filter(|(inode, ..)| *inode != 0) {
            places.insert(inode, Held { place, listens: state == LISTEN, first: None, last: None });
        }
        places
    }

    /// The listeners that get what arrives at `local`.
    pub(super) fn listeners_of(&self, local: &End) -> impl Iterator<Item = &ListedTcp> {
        let (places, local) = (self.listeners.get(&local.port), *local);
        places.into_iter().flatten().map(|place| &self.tcp[*place]).filter(move |socket| socket.local.takes(&local))
    }

    /// Connections that nobody has accepted, by the inode of their listener, the oldest first. Where several listen at one
    /// address, which of them one waits at is not told: each gets as many as its backlog has.
    fn waiting(&self) -> HashMap<u32, Vec<&ListedTcp>> {
        let mut waiting: HashMap<u32, Vec<&ListedTcp>> = HashMap::new();
        for socket in &self.tcp {
            if socket.inode != 0 || socket.state != ESTABLISHED && socket.state != CLOSE_WAIT {
                continue;
            }
            let mut listeners: Vec<&ListedTcp> = self.listeners_of(&socket.local).collect();
            if listeners.iter().any(|listener| listener.local.is_specific()) {
                listeners.retain(|listener| listener.local.is_specific());
            }
            let has_room =
                |listener: &&&ListedTcp| waiting.get(&listener.inode).map_or(0, Vec::len) < listener.unread as usize;
            if let Some(listener) = listeners.iter().find(has_room) {
                waiting.entry(listener.inode).or_default().push(socket);
            }
        }
        for sockets in waiting.values_mut() {
            // Nothing was sent over them, so that is when they were made.
            sockets.sort_by_key(|socket| socket.info.map_or(socket.at_ns, |info| info.last_sent_ns));
        }
        waiting
    }
}

/// A socket of a process, by its place in the listing.
#[derive(Clone, Copy)]
enum Place {
    Tcp(usize),
    Unix(usize),
}

/// Where a socket is in a listing, and which of the processes that are asked about have it, by their places in that list.
struct Held {
    place: Place,
    listens: bool,
    first: Option<usize>,
    last: Option<usize>,
}

/// The sockets of one process in a listing.
struct Mine {
    process: ProcessId,
    connections: Vec<(i32, Place)>,
    listeners: Vec<(i32, Place)>,
}

/// Connections, by process and place in its list, each to be found by what is listed of its other end.
struct OtherEnds {
    /// The last connection that was added, by its remote and its local end.
    last: HashMap<(End, End), usize, Secret>,
    /// Each connection, and the one before it with the same ends: several processes may have it.
    all: Vec<((usize, usize), Option<usize>)>,
}

impl OtherEnds {
    fn with_capacity(len: usize) -> Self {
        Self { last: HashMap::with_capacity_and_hasher(len, Secret::default()), all: Vec::with_capacity(len) }
    }

    fn add(&mut self, socket: &ListedTcp, connection: (usize, usize)) {
        let before = self.last.insert((socket.remote, socket.local), self.all.len());
        self.all.push((connection, before));
    }

    /// The connections that this is the other end of.
    fn of(&self, socket: &ListedTcp) -> impl Iterator<Item = (usize, usize)> {
        let mut next = self.last.get(&(socket.local, socket.remote)).copied();
        std::iter::from_fn(move || {
            let (connection, before) = self.all[next?];
            next = before;
            Some(connection)
        })
    }
}

impl Streams {
    /// Nothing is known yet; whose a socket is, is read from `tables`.
    pub fn new(clock: Clock, tables: FileTables) -> Self {
        Self {
            clock,
            own: namespace("self").ok(),
            known: HashMap::new(),
            scans: HashMap::new(),
            tables,
            owners: super::survey::Owners::default(),
        }
    }

    /// The stream sockets of these processes; a process that could not be looked at is left out, and counted in `lost`.
    /// Whose the other ends of connections are is looked for among `everyone`, where an answer is awaited of them.
    pub fn of(
        &mut self,
        processes: &[ProcessId],
        everyone: &[ProcessId],
        until: Instant,
        lost: &mut BTreeMap<String, u64>,
    ) -> Vec<ProcessStreams> {
        let mut found = Vec::new();
        for (namespace, processes) in by_namespace(processes, until, lost).0 {
            let Some(listing) = self.list(through(&processes, namespace), namespace, until, lost) else { continue };
            found.extend(self.join(&listing, &processes, until, lost));
        }
        self.find_peers(&mut found, everyone, until, lost);
        self.forget(lost);
        found
    }

    /// One listing of a namespace, through one of its processes.
    pub(super) fn list(
        &mut self,
        pid: Pid,
        namespace: u64,
        until: Instant,
        lost: &mut BTreeMap<String, u64>,
    ) -> Option<Listing> {
        let taken_ns = (self.clock)();
        if Instant::now() > until {
            lose(lost, "deadline");
            return None;
        }
        let other = (self.own != Some(namespace)).then_some(namespace);
        let open = || open_in(pid, other).ok_or_else(|| "no netlink".to_owned());
        let channel = open();
        let unix = channel.as_ref().map_err(String::clone);
        let unix = unix.and_then(|channel| diag::dump_unix_streams(channel, UNIX_STATES, until));
        let tcp = match (&unix, channel) {
            (Err(reason), _) if reason == "deadline" => Err(reason.clone()),
            (Ok(_), Ok(channel)) => diag::dump_tcp(&channel, TCP_STATES, self.clock, until),
            // The rest of an answer that ended early may still come: on another one.
            _ => open().and_then(|channel| diag::dump_tcp(&channel, TCP_STATES, self.clock, until)),
        };
        let tcp = tcp.or_else(|refused| {
            // Half an answer now and then would look as if connections came and went.
            if refused == "deadline" {
                return Err(refused);
            }
            // Without times, what is owed cannot be told; what waits to be read or accepted can.
            let plain = procnet::read(pid, Table::Tcp, TCP_STATES, until).map_err(|_| refused.clone())?;
            lose(lost, &format!("no times: {refused}"));
            Ok::<_, String>(plain.iter().filter_map(|socket| ListedTcp::plain(socket, taken_ns)).collect())
        });
        let tcp: Vec<ListedTcp> = match tcp {
            Ok(tcp) => tcp,
            Err(reason) => {
                lose(lost, &format!("tcp: {reason}"));
                return None;
            }
        };
        let unix = match unix {
            Ok(unix) => unix,
            Err(reason) => {
                lose(lost, &format!("unix: {reason}"));
                // A kernel may not have it, and then never has. Half an answer now and then would look as if sockets came and went.
                if reason == "deadline" {
                    return None;
                }
                Vec::new()
            }
        };
        // Diagnostics have 32 bits of an inode number.
        let unix = distinct(unix, |unix| u32::try_from(unix.inode).unwrap_or(0));
        let listing = Listing::new(namespace, distinct(tcp, |tcp| tcp.inode), unix, taken_ns);
        self.known.entry(namespace).or_default().learn(&listing);
        Some(listing)
    }

    /// Joins a listing to the descriptors of processes.
    pub(super) fn join(
        &mut self,
        listing: &Listing,
        processes: &[ProcessId],
        until: Instant,
        lost: &mut BTreeMap<String, u64>,
    ) -> Vec<ProcessStreams> {
        let (all, held) = self.find_mine(listing, processes, until, lost);
        let known = self.known.entry(listing.namespace).or_default();
        let waiting = listing.waiting();
        let unix = UnixNames::new(&listing.unix);
        let mut found = Vec::new();
        let mut ends = OtherEnds::with_capacity(all.iter().map(|mine| mine.connections.len()).sum());
        for mut mine in all {
            let cut = cut(known, listing, &mut mine);
            let mut connections = Vec::with_capacity(mine.connections.len());
            for (fd, place) in mine.connections {
                match place {
                    Place::Tcp(place) => {
                        let socket = &listing.tcp[place];
                        ends.add(socket, (found.len(), connections.len()));
                        connections.push(tcp_connection(known, socket, fd));
                    }
                    Place::Unix(place) => connections.push(unix.connection(&listing.unix[place], fd)),
                }
            }
            let listeners = mine.listeners.iter().map(|(fd, place)| match place {
                Place::Tcp(place) => tcp_listener(&listing.tcp[*place], *fd, &waiting),
                Place::Unix(place) => unix_listener(&listing.unix[*place], *fd),
            });
            let listeners = listeners.collect();
            let taken_ns = listing.taken_ns;
            found.push(ProcessStreams { process: mine.process, taken_ns, connections, listeners, cut });
        }
        for socket in listing.tcp.iter().filter(|socket| socket.inode != 0) {
            for (process, connection) in ends.of(socket) {
                found[process].connections[connection].peer = Some(u64::from(socket.inode));
            }
        }
        let found_in: Vec<ProcessId> = found.iter().map(|streams| streams.process).collect();
        for connection in found.iter_mut().flat_map(|streams| &mut streams.connections) {
            let peer = connection.peer.and_then(|peer| u32::try_from(peer).ok());
            connection.peer_process = peer.and_then(|peer| Some(found_in[held.get(&peer)?.first?]));
        }
        found
    }

    /// The sockets of these processes in a listing, and who holds which inode.
    fn find_mine(
        &mut self,
        listing: &Listing,
        processes: &[ProcessId],
        until: Instant,
        lost: &mut BTreeMap<String, u64>,
    ) -> (Vec<Mine>, InodeMap<Held>) {
        let mut held = listing.places();
        let mut all: Vec<Mine> = Vec::new();
        for &process in processes {
            let mut mine = Mine { process, connections: Vec::new(), listeners: Vec::new() };
            if !held.is_empty() {
                let sockets = match self.scan(listing.namespace, process, until) {
                    Ok(sockets) => sockets,
                    Err(reason) => {
                        lose(lost, &reason);
                        continue;
                    }
                };
                let owner = all.len();
                for &(fd, inode) in sockets.iter() {
                    // Its lowest descriptor stands for it.
                    let Some(held) = held.get_mut(&inode).filter(|held| held.last != Some(owner)) else { continue };
                    held.first.get_or_insert(owner);
                    held.last = Some(owner);
                    let list = if held.listens { &mut mine.listeners } else { &mut mine.connections };
                    list.push((fd, held.place));
                }
            }
            all.push(mine);
        }
        (all, held)
    }

    fn scan(&mut self, namespace: u64, process: ProcessId, until: Instant) -> Result<Cow<'_, [(i32, u32)]>, String> {
        let changed = self.known.get(&namespace).and_then(|known| known.changed);
        let is_good = |scan: &Scan| scan.at.elapsed() < KEPT_FOR && changed.is_some_and(|changed| scan.at > changed);
        if !self.scans.get(&process).is_some_and(is_good) {
            // Before the reading: what comes meanwhile may be missed by it.
            let at = Instant::now();
            let sockets = self.tables.sockets_of(process, until)?;
            if sockets.len() < WORTH_KEEPING {
                return Ok(Cow::Owned(sockets));
            }
            self.scans.insert(process, Scan { sockets, at });
        }
        Ok(Cow::Borrowed(self.scans.get(&process).map_or(&[], |scan| &scan.sockets)))
    }

    /// Drops what is known of namespaces that are no longer listed, and says what was read the longer way.
    pub(super) fn forget(&mut self, lost: &mut BTreeMap<String, u64>) {
        for (reason, count) in self.tables.take_fallen() {
            *lost.entry(format!("streams: {reason}")).or_default() += count;
        }
        self.scans.retain(|_, scan| scan.at.elapsed() < KEPT_FOR);
        self.known.retain(|_, known| known.listed.is_some_and(|at| at.elapsed() < super::survey::REMEMBERED));
    }
}

/// Leaves out what is too much: the quiet connections first, and the youngest of those that owe.
fn cut(known: &Known, listing: &Listing, mine: &mut Mine) -> u32 {
    let all = mine.connections.len() + mine.listeners.len();
    mine.listeners.sort_unstable_by_key(|(fd, _)| *fd);
    mine.listeners.truncate(MOST_LISTENERS);
    if mine.connections.len() > MOST_CONNECTIONS {
        mine.connections.sort_by_cached_key(|(_, place)| match place {
            Place::Tcp(place) => rank(known, &listing.tcp[*place]),
            Place::Unix(place) => (if listing.unix[*place].unread > 0 { 0 } else { 2 }, u64::MAX),
        });
        mine.connections.truncate(MOST_CONNECTIONS);
    }
    mine.connections.sort_unstable_by_key(|(fd, _)| *fd);
    u32::try_from(all - mine.connections.len() - mine.listeners.len()).unwrap_or(u32::MAX)
}

/// Small for what matters: owes, awaits, was connected, was accepted; then by when its last data went.
fn rank(known: &Known, socket: &ListedTcp) -> (u8, u64) {
    let inbound = known.is_inbound(socket.inode);
    let info = socket.info.unwrap_or_default();
    let rank = match (inbound, info.last()) {
        _ if socket.unread > 0 => 0,
        (true, Last::Received(_)) => 0,
        (false, Last::Sent(_)) => 1,
        (false, _) => 2,
        (true, _) => 3,
    };
    (rank, info.last_received_ns.max(info.last_sent_ns))
}

fn tcp_connection(known: &mut Known, socket: &ListedTcp, fd: i32) -> Connection {
    let (inbound, steady) = known.keep(socket);
    Connection {
        inode: u64::from(socket.inode),
        fd,
        kind: StreamKind::Tcp,
        state: socket.state_name().to_owned(),
        local: Some(socket.local.text()),
        remote: Some(socket.remote.text()),
        inbound,
        unread: u64::from(socket.unread),
        unsent: u64::from(socket.unsent),
        received: socket.info.map(|info| info.received),
        // The SYN of whoever connects counts as a byte.
        sent: socket.info.map(|info| info.acknowledged.saturating_sub(u64::from(!inbound))),
        last_received_ns: steady.and_then(|steady| steady.received_ns),
        last_sent_ns: steady.and_then(|steady| steady.sent_ns),
        retransmits: u32::from(socket.retransmits),
        peer: None,
        peer_process: None,
    }
}

fn tcp_listener(socket: &ListedTcp, fd: i32, waiting: &HashMap<u32, Vec<&ListedTcp>>) -> Listener {
    let waiting = waiting.get(&socket.inode).into_iter().flatten().take(MOST_WAITING);
    Listener {
        inode: u64::from(socket.inode),
        fd,
        kind: StreamKind::Tcp,
        local: Some(socket.local.to_string()),
        backlog: u64::from(socket.unread),
        limit: u64::from(socket.unsent),
        waiting: waiting
            .map(|socket| Unaccepted { remote: socket.remote.to_string(), unread: u64::from(socket.unread) })
            .collect(),
    }
}

/// Each socket once: one that comes to the head of its chain while the kernel goes through it makes it list another one again, and
/// all parts of a multipath connection have one inode.
fn distinct<S>(mut sockets: Vec<S>, inode: impl Fn(&S) -> u32) -> Vec<S> {
    let mut seen = InodeSet::with_capacity_and_hasher(sockets.len(), Secret::default());
    sockets.retain(|socket| inode(socket) == 0 || seen.insert(inode(socket)));
    sockets
}

/// These processes by the inode of their network namespace, and those of which that could not be read; those that are gone are left
/// out.
pub(super) fn by_namespace(
    processes: &[ProcessId],
    until: Instant,
    lost: &mut BTreeMap<String, u64>,
) -> (BTreeMap<u64, Vec<ProcessId>>, Vec<ProcessId>) {
    let mut found: BTreeMap<u64, Vec<ProcessId>> = BTreeMap::new();
    let mut unknown = Vec::new();
    for (n, &process) in processes.iter().enumerate() {
        if n % 64 == 63 && Instant::now() > until {
            *lost.entry("streams: deadline".to_owned()).or_default() += (processes.len() - n) as u64;
            unknown.extend(processes.iter().skip(n));
            break;
        }
        match namespace(&process.pid.to_string()) {
            Ok(namespace) => found.entry(namespace).or_default().push(process),
            // It has ended.
            Err(reason) if reason == "ENOENT" || reason == "ESRCH" => {}
            Err(reason) => {
                lose(lost, &reason);
                unknown.push(process);
            }
        }
    }
    (found, unknown)
}

pub(super) fn lose(lost: &mut BTreeMap<String, u64>, reason: &str) {
    *lost.entry(format!("streams: {reason}")).or_default() += 1;
}

#[cfg(test)]
mod tests;
