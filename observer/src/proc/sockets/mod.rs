//! Sockets of a process, from the diagnostics of its network namespace.
//!
//! The kernel lists sockets per network namespace and knows no owner; a process is joined to its sockets by the
//! inode numbers in `/proc/PID/fd`. Each namespace is listed at most once per [`Sockets`] and kind, and descriptors
//! are scanned only when the list has anything that could match.

mod descriptors;
mod diag;
mod inodes;
mod known;
mod listed;
mod namespaces;
mod peers;
mod procnet;
mod streams;
mod survey;
#[cfg(test)]
mod tests;
mod unix;

use self::namespaces::{TRIED, namespace, open_in, through};
use super::pool::Clock;
use super::{ConnectingSocket, SocketFact};
use crate::census::{Pid, ProcessId};
use crate::host::clock::whole_ns;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

pub use descriptors::FileTables;
pub use streams::Streams;
pub use survey::Survey;

/// A kind of socket that can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Table {
    Tcp,
    Udp,
    Unix,
}

impl Table {
    fn protocol(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
            Self::Unix => 0,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Unix => "unix",
        }
    }
}

/// `TCP_SYN_SENT` (`include/net/tcp_states.h`).
const SYN_SENT: u8 = 2;
const LISTEN: u8 = 10;

/// Bits for states, as diagnostics want them.
mod state_bit {
    pub(super) const SYN_SENT: u32 = 1 << super::SYN_SENT;
    pub(super) const ALL: u32 = u32::MAX;
}

/// As `ss` prints them.
fn state_name(state: u8) -> &'static str {
    const NAMES: [&str; 13] = [
        "UNKNOWN",
        "ESTAB",
        "SYN-SENT",
        "SYN-RECV",
        "FIN-WAIT-1",
        "FIN-WAIT-2",
        "TIME-WAIT",
        "UNCONN",
        "CLOSE-WAIT",
        "LAST-ACK",
        "LISTEN",
        "CLOSING",
        "NEW-SYN-RECV",
    ];
    NAMES.get(usize::from(state)).copied().unwrap_or("UNKNOWN")
}

/// A socket as the kernel lists it.
#[derive(Clone, Debug)]
struct Socket {
    table: Table,
    inode: u64,
    state: u8,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    unread: u64,
    unsent: u64,
    retransmits: u32,
    connecting_for: Option<Duration>,
    /// Of a unix socket.
    name: Option<String>,
    /// Inode of a unix socket's peer, 0 if none.
    peer: u64,
    /// Of a listening unix socket: those that wait to be accepted, by the inode of whoever connects.
    connecting: Vec<u32>,
}

impl Socket {
    fn fact(&self, all: &[Self]) -> SocketFact {
        let address = |a: &SocketAddr| a.to_string();
        let remote = match self.table {
            Table::Unix if self.peer != 0 => all.iter().find(|s| s.inode == self.peer).and_then(|s| s.name.clone()),
            _ => self.remote.as_ref().map(address),
        };
        SocketFact {
            inode: self.inode,
            protocol: self.table.name().to_owned(),
            state: state_name(self.state).to_owned(),
            local: self.name.clone().or_else(|| self.local.as_ref().map(address)),
            remote,
            unread: self.unread,
            unsent: self.unsent,
            peer: (self.peer != 0).then_some(self.peer),
        }
    }
}

/// Looks at sockets, at one moment: what was listed once is not listed again.
pub struct Sockets {
    clock: Clock,
    until: Instant,
    own: Option<u64>,
    /// By inode of the namespace, kind and states. `None`: that failed, and is not tried again for every process of the namespace.
    listed: HashMap<(u64, Table, u32), Option<Listing>>,
    channels: HashMap<u64, Option<Rc<OwnedFd>>>,
    /// A few processes of each network namespace.
    representatives: Option<Rc<BTreeMap<u64, Vec<ProcessId>>>>,
    tables: FileTables,
    lost: BTreeMap<String, u64>,
}

#[derive(Clone)]
struct Listing {
    sockets: Rc<Vec<Socket>>,
    taken_ns: u64,
}

impl Sockets {
    /// Looks until `until`; what is not done by then is counted as lost.
    pub fn new(clock: Clock, until: Instant) -> Self {
        Self {
            clock,
            until,
            own: namespace("self").ok(),
            listed: HashMap::new(),
            channels: HashMap::new(),
            representatives: None,
            tables: FileTables::default(),
            lost: BTreeMap::new(),
        }
    }

    /// Whose a socket is, is read from these.
    pub fn with(self, tables: FileTables) -> Self {
        Self { tables, ..self }
    }

    /// What could not be looked at, by reason.
    pub fn into_lost(mut self) -> BTreeMap<String, u64> {
        for (reason, count) in self.tables.take_fallen() {
            *self.lost.entry(format!("sockets: {reason}")).or_default() += count;
        }
        self.lost
    }

    /// The sockets of these processes that wait for the answer to their SYN, blocking or not; and the processes that could not be
    /// looked at.
    pub fn connecting(&mut self, processes: &[ProcessId]) -> (Vec<ConnectingSocket>, BTreeSet<ProcessId>) {
        let (mut found, mut missed) = (Vec::new(), BTreeSet::new());
        for &process in processes {
            let Some(listing) = self.list(process.pid, Table::Tcp, state_bit::SYN_SENT) else {
                missed.insert(process);
                continue;
            };
            if listing.sockets.is_empty() {
                continue;
            }
            let inodes = listing.sockets.iter().map(|s| s.inode).collect();
            let Some(descriptors) = self.descriptors(process, Some(&inodes)) else {
                missed.insert(process);
                continue;
            };
            for (fd, inode) in descriptors {
                let socket = listing.sockets.iter().find(|s| s.inode == inode);
                if let Some(socket) = socket
                    && let (Some(local), Some(remote)) = (socket.local, socket.remote)
                {
                    let since = socket.connecting_for.map(whole_ns);
                    found.push(ConnectingSocket {
                        process,
                        fd,
                        inode,
                        local,
                        remote,
                        since_ns: since.map(|d| listing.taken_ns.saturating_sub(d)),
                        retransmits: socket.retransmits,
                        taken_ns: listing.taken_ns,
                    });
                }
            }
        }
        (found, missed)
    }

    /// The TCP and unix sockets of a process that hold bytes it has not read, or connections it has not accepted; `None` if it could
    /// not be looked at.
    pub fn unread(&mut self, process: ProcessId) -> Option<Vec<SocketFact>> {
        let inodes: BTreeSet<u64> = self.descriptors(process, None)?.into_iter().map(|(_, inode)| inode).collect();
        let mut found = Vec::new();
        if inodes.is_empty() {
            return Some(found);
        }
        let holds = |s: &Socket| s.unread > 0 && (s.state == LISTEN || s.table == Table::Tcp || s.state == 1);
        for table in [Table::Tcp, Table::Unix] {
            match self.facts(process.pid, &inodes, table, holds) {
                Some(more) => found.extend(more),
                None if Instant::now() > self.until => return None,
                // A kernel may not have it, and then never has.
                None => {}
            }
        }
        Some(found)
    }

    /// The sockets with these inodes in the network namespace of `pid`: TCP, UDP and unix.
    pub fn by_inode(&mut self, pid: Pid, inodes: &BTreeSet<u64>) -> Vec<SocketFact> {
        let mut found = Vec::new();
        // Most are TCP: the other kinds are listed only when something is still missing.
        for table in [Table::Tcp, Table::Unix, Table::Udp] {
            if found.len() < inodes.len() {
                found.extend(self.facts(pid, inodes, table, |_| true).unwrap_or_default());
            }
        }
        found
    }

    /// Inode of the socket at the other end of a TCP connection of `pid`, if that is on this host: in the same network
    /// namespace, or else in one of those of `among`, where addresses other than loopback may lead. `None` as well where two
    /// namespaces have such a connection: the same private addresses may be in use twice.
    pub(super) fn tcp_peer(
        &mut self,
        pid: Pid,
        local: SocketAddr,
        remote: SocketAddr,
        among: &[ProcessId],
    ) -> Option<u64> {
        let find = |listing: Listing| reversed(&listing.sockets, local, remote);
        if let Some(inode) = self.list(pid, Table::Tcp, state_bit::ALL).and_then(find) {
            return Some(inode);
        }
        if remote.ip().is_loopback() {
            return None;
        }
        let mut found = BTreeSet::new();
        for (namespace, processes) in self.some_of_each_namespace(among)?.iter() {
            let pid = through(processes, *namespace);
            match self.list_in(*namespace, pid, Table::Tcp, state_bit::ALL) {
                Some(listing) => found.extend(find(listing)),
                // The same pair of addresses there as well would be rare; one large namespace must not hide all others.
                None => self.lose("peer: a namespace was not listed"),
            }
        }
        found.pop_first().filter(|_| found.is_empty())
    }

    /// A few processes of every network namespace among these, by its inode; `None` if there was no time to look at all.
    fn some_of_each_namespace(&mut self, among: &[ProcessId]) -> Option<Rc<BTreeMap<u64, Vec<ProcessId>>>> {
        if let Some(known) = &self.representatives {
            return Some(Rc::clone(known));
        }
        let mut some_of_each: BTreeMap<u64, Vec<ProcessId>> = BTreeMap::new();
        for process in among {
            if Instant::now() > self.until {
                self.lose("deadline");
                return None;
            }
            // One that is gone, or may not be looked at, has no namespace that could be listed.
            if let Ok(inode) = namespace(&process.pid.to_string()) {
                let some = some_of_each.entry(inode).or_default();
                if some.len() < TRIED {
                    some.push(*process);
                }
            }
        }
        let some_of_each = Rc::new(some_of_each);
        self.representatives = Some(Rc::clone(&some_of_each));
        Some(some_of_each)
    }

    /// Of those with these inodes the ones that are wanted; `None` if they could not be listed.
    fn facts(
        &mut self,
        pid: Pid,
        inodes: &BTreeSet<u64>,
        table: Table,
        want: impl Fn(&Socket) -> bool,
    ) -> Option<Vec<SocketFact>> {
        let listing = self.list(pid, table, state_bit::ALL)?;
        let all = &listing.sockets;
        Some(all.iter().filter(|s| inodes.contains(&s.inode) && want(s)).map(|s| s.fact(all)).collect())
    }

    /// Descriptors of the process that are sockets, none if it has ended or is another one by now; `None` if they could not be read.
    fn descriptors(&mut self, process: ProcessId, wanted: Option<&BTreeSet<u64>>) -> Option<Vec<(i32, u64)>> {
        let found = match self.tables.sockets_of(process, self.until) {
            Ok(found) => found,
            Err(reason) => {
                self.lose(&reason);
                return (reason == "ESRCH").then(Vec::new);
            }
        };
        let found = found.into_iter().map(|(fd, inode)| (fd, u64::from(inode)));
        Some(found.filter(|(_, inode)| wanted.is_none_or(|wanted| wanted.contains(inode))).collect())
    }

    fn lose(&mut self, reason: &str) {
        *self.lost.entry(format!("sockets: {reason}")).or_default() += 1;
    }

    /// One kind of socket of the namespace of `pid`.
    fn list(&mut self, pid: Pid, table: Table, states: u32) -> Option<Listing> {
        let namespace = match namespace(&pid.to_string()) {
            Ok(inode) => inode,
            Err(reason) => {
                self.lose(&reason);
                return None;
            }
        };
        self.list_in(namespace, pid, table, states)
    }

    /// One kind of socket of a namespace, through a process that is in it.
    fn list_in(&mut self, namespace: u64, pid: Pid, table: Table, states: u32) -> Option<Listing> {
        if let Some(listing) = self.listed.get(&(namespace, table, states)) {
            return listing.clone();
        }
        if Instant::now() > self.until {
            self.lose("deadline");
            return None;
        }
        let other = (self.own != Some(namespace)).then_some(namespace);
        let channel = self.channels.entry(namespace).or_insert_with(|| open_in(pid, other).map(Rc::new)).clone();
        let taken_ns = (self.clock)();
        let listed = channel
            .ok_or_else(|| "no netlink".to_owned())
            .and_then(|fd| diag::dump(&fd, table, states, self.until))
            .or_else(|refused| {
                // The second way; when it fails, too, the first reason says more.
                procnet::read(pid, table, states, self.until).map_err(|_| refused)
            });
        match listed {
            Ok(sockets) => {
                let listing = Listing { sockets: Rc::new(sockets), taken_ns };
                self.listed.insert((namespace, table, states), Some(listing.clone()));
                Some(listing)
            }
            Err(reason) => {
                self.lose(&format!("{}: {reason}", table.name()));
                // The rest of the answer may still come: not another request on this socket.
                self.channels.insert(namespace, None);
                self.listed.insert((namespace, table, states), None);
                None
            }
        }
    }
}

/// The other end of the connection from `local` to `remote`. One without an inode belongs to no descriptor: it has not been
/// accepted yet, or was closed.
fn reversed(sockets: &[Socket], local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let is_peer = |s: &&Socket| s.local == Some(remote) && s.remote == Some(local) && s.inode != 0;
    sockets.iter().find(is_peer).map(|s| s.inode)
}
