//! Unix stream sockets as shapes for others: which of them were accepted, and who waits at a listener.

use super::{LISTEN, Socket, state_name};
use crate::proc::{Connection, Listener, StreamKind, Unaccepted};
use std::collections::{HashMap, HashSet};

/// Names of the unix sockets of a namespace.
pub(super) struct UnixNames<'a> {
    by_inode: HashMap<u64, &'a Socket>,
    listening: HashSet<&'a str>,
}

impl<'a> UnixNames<'a> {
    pub(super) fn new(sockets: &'a [Socket]) -> Self {
        let listening =
            sockets.iter().filter(|socket| socket.state == LISTEN).filter_map(|socket| socket.name.as_deref());
        let listening = listening.collect();
        Self { by_inode: sockets.iter().map(|socket| (socket.inode, socket)).collect(), listening }
    }

    /// An accepted socket has the name of its listener; whoever connects seldom has one. The listener may be gone.
    pub(super) fn connection(&self, socket: &Socket, fd: i32) -> Connection {
        let peer = self.by_inode.get(&socket.peer).filter(|_| socket.peer != 0);
        let remote = peer.and_then(|peer| peer.name.clone());
        Connection {
            inode: socket.inode,
            fd,
            kind: StreamKind::Unix,
            state: state_name(socket.state).to_owned(),
            local: socket.name.clone(),
            inbound: socket.name.as_deref().is_some_and(|name| self.listening.contains(name) || remote.is_none()),
            remote,
            unread: socket.unread,
            unsent: socket.unsent,
            peer: (socket.peer != 0).then_some(socket.peer),
            ..Connection::default()
        }
    }
}

pub(super) fn unix_listener(socket: &Socket, fd: i32) -> Listener {
    Listener {
        inode: socket.inode,
        fd,
        kind: StreamKind::Unix,
        local: socket.name.clone(),
        backlog: socket.unread,
        limit: socket.unsent,
        waiting: socket
            .connecting
            .iter()
            .map(|inode| Unaccepted { remote: format!("socket:[{inode}]"), unread: 0 })
            .collect(),
    }
}
