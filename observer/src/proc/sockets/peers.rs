//! The other ends of connections that await an answer, where they are on this host: whose they are, and those in other
//! network namespaces, where addresses other than loopback may lead.

use super::listed::End;
use super::namespaces::through;
use super::streams::{Streams, by_namespace};
use super::survey::REMEMBERED;
use crate::census::ProcessId;
use crate::host::clock::thread_cpu_ns;
use crate::proc::{Connection, ProcessStreams, StreamKind};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

fn awaits(connection: &Connection) -> bool {
    !connection.inbound && (connection.last_sent_ns > connection.last_received_ns || connection.unsent > 0)
}

fn inode(connection: &Connection) -> Option<u32> {
    u32::try_from(connection.inode).ok()
}

/// Local and remote end, where the latter may be in another namespace.
fn ends(connection: &Connection) -> Option<(End, End)> {
    let end = |text: &Option<String>| text.as_ref()?.parse::<SocketAddr>().ok();
    let (local, remote) = (end(&connection.local)?, end(&connection.remote)?);
    (!remote.ip().is_loopback()).then(|| (End::of(local), End::of(remote)))
}

impl Streams {
    /// Fills in the other ends of connections that await an answer, and whose they are among these processes.
    pub(super) fn find_peers(
        &mut self,
        all: &mut [ProcessStreams],
        among: &[ProcessId],
        until: Instant,
        lost: &mut BTreeMap<String, u64>,
    ) {
        self.find_far_peers(all, among, until, lost);
        self.name_peers(all, among, until, lost);
    }

    fn find_far_peers(
        &mut self,
        all: &mut [ProcessStreams],
        among: &[ProcessId],
        until: Instant,
        lost: &mut BTreeMap<String, u64>,
    ) {
        self.owners.far.retain(|_, (_, asked)| asked.elapsed() < REMEMBERED);
        let is_lone = |c: &&mut Connection| c.kind == StreamKind::Tcp && c.peer.is_none() && awaits(c);
        let mut unknown: HashMap<(End, End), u32> = HashMap::new();
        for connection in all.iter_mut().flat_map(|streams| &mut streams.connections).filter(is_lone) {
            let Some(inode) = inode(connection) else { continue };
            match self.owners.far.get(&inode) {
                Some((peer, _)) => connection.peer = peer.map(u64::from),
                None => unknown.extend(ends(connection).map(|(local, remote)| ((remote, local), inode))),
            }
        }
        let (start, cpu_ns) = (Instant::now(), thread_cpu_ns());
        if unknown.is_empty() || self.owners.no_walk_until.is_some_and(|until| start < until) {
            return;
        }
        let mut found: HashMap<u32, BTreeSet<u32>> = unknown.values().map(|inode| (*inode, BTreeSet::new())).collect();
        for (namespace, processes) in by_namespace(among, until, lost).0 {
            let Some(listing) = self.list(through(&processes, namespace), namespace, until, lost) else {
                // It may be in the one that was not listed: asked again.
                found.clear();
                break;
            };
            for socket in listing.tcp.iter().filter(|socket| socket.inode != 0) {
                if let Some(inode) = unknown.get(&(socket.local, socket.remote)) {
                    found.entry(*inode).or_default().insert(socket.inode);
                }
            }
        }
        for (inode, mut peers) in found {
            // The same private addresses may be in use twice.
            let peer = peers.pop_first().filter(|_| peers.is_empty());
            self.owners.far.insert(inode, (peer, start));
        }
        for connection in all.iter_mut().flat_map(|streams| &mut streams.connections).filter(is_lone) {
            let peer = inode(connection).and_then(|inode| self.owners.far.get(&inode)?.0);
            connection.peer = peer.map(u64::from);
        }
        // The walk through descriptors that follows is part of the same look: paced by what it costs.
        let spent = Duration::from_nanos(thread_cpu_ns().saturating_sub(cpu_ns));
        self.owners.listing_spent += spent;
    }

    /// Says whose the other ends on this host are of connections that await an answer.
    fn name_peers(
        &mut self,
        all: &mut [ProcessStreams],
        among: &[ProcessId],
        until: Instant,
        lost: &mut BTreeMap<String, u64>,
    ) {
        let awaited = all.iter().flat_map(|streams| &streams.connections);
        let awaited = awaited.filter(|connection| connection.peer_process.is_none() && awaits(connection));
        let wanted: HashSet<u32> = awaited.filter_map(|connection| u32::try_from(connection.peer?).ok()).collect();
        let took = self.find_owners(&wanted, false, among, until, lost);
        let listing = std::mem::take(&mut self.owners.listing_spent);
        self.pace_walks(took + listing);
        self.owners.by_inode.retain(|_, (_, asked)| asked.elapsed() < 2 * REMEMBERED);
        for connection in all.iter_mut().flat_map(|streams| &mut streams.connections) {
            if let Some(peer) = connection.peer.and_then(|peer| u32::try_from(peer).ok())
                && connection.peer_process.is_none()
                && let Some((held, _)) = self.owners.by_inode.get(&peer)
            {
                connection.peer_process = held.first().copied();
            }
        }
    }
}
