//! What is kept of a network namespace from one listing to the next: which way a connection was made, as the listener may go; and
//! when data last went over it. The kernel says the latter as milliseconds ago, in steps of its clock, and counts repetitions as
//! sent data: while not a byte more has gone over the connection, the time that was learnt first stays.

use super::LISTEN;
use super::inodes::InodeMap;
use super::listed::{Info, ListedTcp};
use super::streams::Listing;
use std::time::Instant;

/// What is kept of a namespace.
#[derive(Default)]
pub(super) struct Known {
    connections: InodeMap<Kept>,
    /// Counts listings.
    turn: u64,
    /// Listeners and unix sockets, in order.
    others: Vec<u32>,
    pub(super) listed: Option<Instant>,
    /// When a socket was listed last that had not been there before.
    pub(super) changed: Option<Instant>,
}

/// What is kept of a connection.
struct Kept {
    /// It was accepted.
    inbound: bool,
    /// Of those that were joined to a process.
    times: Option<Steady>,
    /// The listing that had it last.
    turn: u64,
}

impl Known {
    /// Takes note of what a listing has, and forgets what it has not.
    pub(super) fn learn(&mut self, listing: &Listing) {
        self.turn += 1;
        let mut has_new = false;
        for socket in listing.tcp.iter().filter(|socket| socket.inode != 0 && socket.state != LISTEN) {
            let kept = self.connections.entry(socket.inode).or_insert_with(|| {
                has_new = true;
                Kept { inbound: listing.listeners_of(&socket.local).next().is_some(), times: None, turn: 0 }
            });
            kept.turn = self.turn;
        }
        self.connections.retain(|_, kept| kept.turn == self.turn);
        let listening = listing.tcp.iter().filter(|socket| socket.state == LISTEN).map(|socket| socket.inode);
        let unix = listing.unix.iter().filter_map(|socket| u32::try_from(socket.inode).ok());
        let mut others: Vec<u32> = listening.chain(unix).collect();
        others.sort_unstable();
        has_new |= others.iter().any(|inode| self.others.binary_search(inode).is_err());
        self.others = others;
        self.listed = Some(Instant::now());
        if has_new {
            self.changed = self.listed;
        }
    }

    /// Whether a connection was accepted.
    pub(super) fn is_inbound(&self, inode: u32) -> bool {
        self.connections.get(&inode).is_some_and(|kept| kept.inbound)
    }

    /// Whether a connection was accepted, and when data last went over it, as far as that is known: what is sent again does not
    /// count.
    pub(super) fn of(&self, socket: &ListedTcp) -> (bool, Option<Steady>) {
        let now = socket.info.map(|info| Steady::of(socket, &info));
        self.connections.get(&socket.inode).map_or((false, now), |kept| (kept.inbound, kept.followed_by(now)))
    }

    /// The same, and keeps the times.
    pub(super) fn keep(&mut self, socket: &ListedTcp) -> (bool, Option<Steady>) {
        let now = socket.info.map(|info| Steady::of(socket, &info));
        let Some(kept) = self.connections.get_mut(&socket.inode) else { return (false, now) };
        let times = kept.followed_by(now);
        kept.times = times.or(kept.times);
        (kept.inbound, times)
    }
}

impl Kept {
    fn followed_by(&self, now: Option<Steady>) -> Option<Steady> {
        now.map(|now| self.times.map_or(now, |before| before.followed_by(now)))
    }
}

/// When data last went over a connection, and how many had by then.
#[derive(Clone, Copy)]
pub(super) struct Steady {
    pub(super) written: u64,
    pub(super) received: u64,
    pub(super) sent_ns: Option<u64>,
    pub(super) received_ns: Option<u64>,
}

impl Steady {
    fn of(socket: &ListedTcp, info: &Info) -> Self {
        Self {
            written: info.acknowledged + u64::from(socket.unsent),
            received: info.received,
            sent_ns: info.has_sent.then_some(info.last_sent_ns),
            received_ns: info.has_received.then_some(info.last_received_ns),
        }
    }

    /// Times of before stay where nothing has come since; the order of the two is that of the newer listing.
    pub(super) fn followed_by(self, now: Self) -> Self {
        let is_old = |before: Option<u64>, same: bool| before.filter(|_| same);
        let old_sent = is_old(self.sent_ns, self.written == now.written);
        let old_received = is_old(self.received_ns, self.received == now.received);
        let (mut sent_ns, mut received_ns) = (old_sent.or(now.sent_ns), old_received.or(now.received_ns));
        if let (Some(sent), Some(received)) = (now.sent_ns, now.received_ns) {
            if old_sent.is_none() && sent >= received {
                sent_ns = sent_ns.max(received_ns);
            }
            if old_received.is_none() && received >= sent {
                // In one step of the clock: neither is later.
                let later = u64::from(received > sent);
                received_ns = received_ns.max(sent_ns.map(|sent| sent + later));
            }
        }
        Self { sent_ns, received_ns, ..now }
    }
}

/// Which way the last data went over a connection, and when. An answer may leave in the same step of the kernel's clock as
/// what it answers came in: then nothing is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Received(u64),
    Sent(u64),
    Neither,
}

impl Last {
    /// From when data came, and went, last.
    pub(super) fn of(received: Option<u64>, sent: Option<u64>) -> Self {
        match (received, sent) {
            (Some(received), sent) if sent.is_none_or(|sent| received > sent) => Self::Received(received),
            (received, Some(sent)) if received.is_none_or(|received| sent > received) => Self::Sent(sent),
            _ => Self::Neither,
        }
    }
}

impl Info {
    pub(super) fn last(&self) -> Last {
        Last::of(self.has_received.then_some(self.last_received_ns), self.has_sent.then_some(self.last_sent_ns))
    }
}
