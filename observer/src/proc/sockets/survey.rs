//! A look at the sockets of a whole host: cost follows suspicion. Each namespace is listed; whose a socket is, which takes a
//! walk through the descriptors of every process, is asked only for those that look like a debt, and now and then for what listens.

use super::LISTEN;
use super::known::{Known, Last};
use super::listed::ListedTcp;
use super::namespaces::through;
use super::streams::{Listing, Streams, by_namespace, lose};
use crate::census::ProcessId;
use crate::host::clock::{thread_cpu_ns, whole_ns};
use crate::proc::ProcessStreams;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

/// What is known of owners and namespaces is good for so long; and so often all services are listed, that their answer
/// times are learnt before they are needed.
pub(super) const REMEMBERED: Duration = Duration::from_secs(60);
/// Processes listed in one survey.
const MOST_PROCESSES: usize = 256;
/// Processes known as holders of one socket.
const MOST_HOLDERS: usize = 16;
/// The next walk through descriptors waits for so many times the CPU time of the last one.
const WALK_EVERY: u32 = 50;

/// What is known from one survey to the next.
#[derive(Default)]
pub(super) struct Owners {
    /// Who holds a socket, and when that was asked. Nobody: it was not found.
    pub(super) by_inode: HashMap<u32, (Vec<ProcessId>, Instant)>,
    /// The other end of a connection in another namespace, by inode, and when that was asked.
    pub(super) far: HashMap<u32, (Option<u32>, Instant)>,
    /// Bytes or connections that wait, by inode.
    staying: HashMap<u32, Staying>,
    /// Namespaces listed so far, where the time was too short for all: the next survey begins behind them.
    begin: usize,
    pub(super) no_walk_until: Option<Instant>,
    /// CPU time of listings on behalf of other ends, not yet paced.
    pub(super) listing_spent: Duration,
    /// Sockets that looked like a debt at the last survey, by inode.
    suspected: HashSet<u32>,
    /// Who held them.
    followed: BTreeSet<ProcessId>,
    services_due: Option<Instant>,
    /// When a process was listed last.
    listed: HashMap<ProcessId, Instant>,
}

#[derive(Clone, Copy)]
struct Staying {
    namespace: u64,
    since_ns: u64,
    /// Bytes read so far, where that is known.
    read: Option<u64>,
}

/// What a survey found.
#[derive(Debug, Default)]
pub struct Survey {
    /// Processes that seem to owe or to await something, and services whose turn it is.
    pub streams: Vec<ProcessStreams>,
    /// Processes that were listed before, and could not be now.
    pub unlisted: Vec<ProcessId>,
    /// Sockets that look like a debt.
    pub suspects: usize,
    /// One of them did not at the survey before.
    pub has_new: bool,
}

/// Since when a connection owes an answer, or awaits one.
fn owed_since(known: &Known, socket: &ListedTcp) -> Option<u64> {
    let (inbound, times) = known.of(socket);
    let times = times?;
    match (inbound, Last::of(times.received_ns, times.sent_ns)) {
        (true, Last::Received(since)) | (false, Last::Sent(since)) => Some(since),
        _ => None,
    }
}

impl Streams {
    /// Looks through the sockets of all these processes for debts older than `after`; whose the other ends are is looked for
    /// among `everyone`.
    pub fn survey(
        &mut self,
        among: &[ProcessId],
        everyone: &[ProcessId],
        after: Duration,
        until: Instant,
        lost: &mut BTreeMap<String, u64>,
    ) -> Survey {
        let start = Instant::now();
        let mut survey = Survey::default();
        let wants_services = self.owners.services_due.is_none_or(|due| start >= due);
        let mut walked = Duration::ZERO;
        let (mut suspected, mut followed) = (HashSet::new(), BTreeSet::<ProcessId>::new());
        let mut staying = HashMap::new();
        let mut unlisted = HashSet::new();
        let (namespaces, unknown) = by_namespace(among, until, lost);
        survey.unlisted = unknown;
        let mut namespaces: Vec<(u64, Vec<ProcessId>)> = namespaces.into_iter().collect();
        let count = namespaces.len().max(1);
        namespaces.rotate_left(self.owners.begin % count);
        for (namespace, processes) in namespaces {
            let Some(listing) = self.list(through(&processes, namespace), namespace, until, lost) else {
                survey.unlisted.extend(&processes);
                unlisted.insert(namespace);
                continue;
            };
            let suspects = self.suspects(&listing, after, &mut staying);
            survey.suspects += suspects.len();
            suspected.extend(&suspects);
            let listening = listing.tcp.iter().filter(|socket| wants_services && socket.state == LISTEN);
            let mut wanted: HashSet<u32> = listening.map(|socket| socket.inode).collect();
            let unix = listing.unix.iter().filter(|socket| wants_services && socket.state == LISTEN);
            wanted.extend(unix.filter_map(|socket| u32::try_from(socket.inode).ok()));
            let services: Vec<u32> = wanted.iter().copied().collect();
            wanted.extend(&suspects);
            walked += self.find_owners(&wanted, wants_services, &processes, until, lost);
            let is_nobodys = |inode: &&u32| self.owners.by_inode.get(inode).is_some_and(|(held, _)| held.is_empty());
            let nobodys = suspects.iter().filter(is_nobodys).count();
            if nobodys > 0 {
                *lost.entry("streams: owner not found".to_owned()).or_default() += nobodys as u64;
            }
            let mut chosen = self.holders(&suspects);
            followed.extend(&chosen);
            // Who seemed to owe something the last time is looked at once more: that it is paid is to be known as soon.
            let paid = processes.iter().filter(|process| self.owners.followed.contains(process));
            let paid: Vec<ProcessId> = paid.filter(|process| !chosen.contains(process)).copied().collect();
            chosen.extend(paid);
            let mut others = self.holders(&services);
            others.retain(|process| !chosen.contains(process));
            others.sort_by_key(|process| self.owners.listed.get(process).copied());
            chosen.extend(others);
            let left_out = chosen.len().saturating_sub(MOST_PROCESSES);
            if left_out > 0 {
                *lost.entry("streams: too many processes".to_owned()).or_default() += left_out as u64;
                let left_out = chosen.drain(MOST_PROCESSES..);
                survey.unlisted.extend(left_out.filter(|process| followed.contains(process)));
            }
            let found = self.join(&listing, &chosen, until, lost);
            let had: BTreeSet<ProcessId> = found.iter().map(|streams| streams.process).collect();
            survey.unlisted.extend(chosen.iter().filter(|process| !had.contains(process)));
            self.owners.listed.extend(found.iter().map(|streams| (streams.process, start)));
            survey.streams.extend(found);
        }
        self.owners.begin = match unlisted.len() {
            0 => 0,
            missed => (self.owners.begin + count.saturating_sub(missed).max(1)) % count,
        };
        // What waits in a namespace that was not listed now still may.
        self.owners.staying.retain(|_, stay| unlisted.contains(&stay.namespace));
        self.owners.staying.extend(staying);
        survey.has_new = suspected.iter().any(|inode| !self.owners.suspected.contains(inode));
        if !unlisted.is_empty() {
            // Of a namespace that was not listed now what was known of it holds.
            suspected.extend(&self.owners.suspected);
            followed.extend(&self.owners.followed);
            followed.retain(|process| among.contains(process));
        }
        self.owners.suspected = suspected;
        self.owners.followed = followed;
        // Of the others nothing was known.
        survey.unlisted.retain(|process| self.owners.listed.contains_key(process));
        self.pace_walks(walked);
        self.find_peers(&mut survey.streams, everyone, until, lost);
        if wants_services {
            self.owners.services_due = Some(start + REMEMBERED);
            let lives: BTreeSet<ProcessId> = among.iter().copied().collect();
            self.owners.listed.retain(|process, _| lives.contains(process));
        }
        self.owners.by_inode.retain(|_, (_, asked)| asked.elapsed() < 2 * REMEMBERED);
        self.forget(lost);
        survey
    }

    /// The sockets that look like a debt, the oldest first.
    fn suspects(&self, listing: &Listing, after: Duration, staying: &mut HashMap<u32, Staying>) -> Vec<u32> {
        let after_ns = whole_ns(after);
        let mut found: Vec<(u64, u32)> = Vec::new();
        let known = self.known.get(&listing.namespace);
        let mut stays = |inode: u32, at_ns: u64, read: Option<u64>| {
            let before = self.owners.staying.get(&inode).filter(|before| before.read == read);
            let stay = before.copied().unwrap_or(Staying { namespace: listing.namespace, since_ns: at_ns, read });
            staying.insert(inode, stay);
            (at_ns.saturating_sub(stay.since_ns) >= after_ns).then_some(stay.since_ns)
        };
        for socket in listing.tcp.iter().filter(|socket| socket.inode != 0) {
            let since = if socket.unread > 0 {
                let read = socket.info.map(|info| info.received.saturating_sub(u64::from(socket.unread)));
                stays(socket.inode, socket.at_ns, read.filter(|_| socket.state != LISTEN))
            } else {
                None
            };
            // What is sent again and again comes to be known before its times are muddled.
            let is_unheard = socket.unsent > 0 && socket.retransmits > 0;
            let owed = known.and_then(|known| owed_since(known, socket));
            let owed = owed.filter(|since| is_unheard || socket.at_ns.saturating_sub(*since) >= after_ns);
            found.extend(since.into_iter().chain(owed).min().map(|since| (since, socket.inode)));
        }
        for socket in listing.unix.iter().filter(|socket| socket.unread > 0) {
            if let Some(inode) = u32::try_from(socket.inode).ok().filter(|inode| *inode != 0) {
                found.extend(stays(inode, listing.taken_ns, None).map(|since| (since, inode)));
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, inode)| inode).collect()
    }

    /// Who holds these, without repetition, in their order.
    fn holders(&self, inodes: &[u32]) -> Vec<ProcessId> {
        let mut seen = BTreeSet::new();
        let known = inodes.iter().filter_map(|inode| self.owners.by_inode.get(inode));
        known.flat_map(|(held, _)| held.iter().copied()).filter(|process| seen.insert(*process)).collect()
    }

    /// Looks through the descriptors of `among` for those of `wanted` that are not known, if it is time for that or it is to
    /// be done `now`; answers what CPU time it took.
    pub(super) fn find_owners(
        &mut self,
        wanted: &HashSet<u32>,
        now: bool,
        among: &[ProcessId],
        until: Instant,
        lost: &mut BTreeMap<String, u64>,
    ) -> Duration {
        let (start, cpu_ns) = (Instant::now(), thread_cpu_ns());
        let known = &self.owners.by_inode;
        // What is known of old is used until somebody has asked again.
        let is_old = |(_, asked): &(Vec<ProcessId>, Instant)| asked.elapsed() >= REMEMBERED;
        let unknown = wanted.iter().copied().filter(|inode| known.get(inode).is_none_or(is_old));
        let unknown: HashSet<u32> = unknown.collect();
        if unknown.is_empty() || !now && self.owners.no_walk_until.is_some_and(|until| start < until) {
            return Duration::ZERO;
        }
        let mut found: HashMap<u32, Vec<ProcessId>> = unknown.iter().map(|inode| (*inode, Vec::new())).collect();
        for &process in among {
            let sockets = match self.tables.sockets_of(process, until) {
                Ok(sockets) => sockets,
                // One that has ended holds nothing.
                Err(reason) if reason == "ESRCH" => continue,
                Err(reason) => {
                    lose(lost, &reason);
                    if reason == "deadline" {
                        // Nobody may be called unknown whose turn did not come.
                        found.retain(|_, held| !held.is_empty());
                        break;
                    }
                    continue;
                }
            };
            for (_, inode) in sockets {
                if let Some(held) = found.get_mut(&inode).filter(|held| held.len() < MOST_HOLDERS)
                    && held.last() != Some(&process)
                {
                    held.push(process);
                }
            }
        }
        self.owners.by_inode.extend(found.into_iter().map(|(inode, held)| (inode, (held, start))));
        Duration::from_nanos(thread_cpu_ns().saturating_sub(cpu_ns))
    }

    pub(super) fn pace_walks(&mut self, took: Duration) {
        if !took.is_zero() {
            self.owners.no_walk_until = Some(Instant::now() + took * WALK_EVERY);
        }
    }

    /// One round of a survey without its owners.
    #[cfg(test)]
    pub(super) fn suspects_for_test(&mut self, listing: &Listing, after: Duration) -> Vec<u32> {
        let mut staying = HashMap::new();
        let found = self.suspects(listing, after, &mut staying);
        self.owners.staying = staying;
        found
    }
}
