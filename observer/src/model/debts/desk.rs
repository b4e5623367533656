//! One listening socket from listing to listing.

use crate::proc::{Listener, StreamKind};
use std::collections::BTreeMap;

/// Where a process accepts.
#[derive(Debug)]
pub struct Desk {
    /// As listed last.
    pub at: Listener,
    /// Connections that wait to be accepted, and when each was listed first.
    waiting: BTreeMap<String, u64>,
    /// Since when, at least, there has been a backlog and nothing of it was seen to be accepted.
    standing_ns: Option<u64>,
}

impl Desk {
    pub(super) fn learn(before: Option<Self>, now: &Listener, taken_ns: u64, has_accepted: bool) -> Self {
        let known = |remote: &str| before.as_ref().and_then(|desk| desk.waiting.get(remote).copied());
        let waiting: BTreeMap<String, u64> =
            now.waiting.iter().map(|one| (one.remote.clone(), known(&one.remote).unwrap_or(taken_ns))).collect();
        let stood = before.as_ref().filter(|desk| !has_accepted && desk.at.backlog <= now.backlog);
        let standing = stood.and_then(|desk| desk.standing_ns).unwrap_or(taken_ns);
        Self { at: now.clone(), waiting, standing_ns: (now.backlog > 0).then_some(standing) }
    }

    /// Since when, at least, the oldest connection that could be followed waits: the same one all the while (TCP), or a backlog that has
    /// not shrunk while nothing was accepted.
    pub fn waits_since(&self) -> Option<u64> {
        let oldest = self.waiting.values().copied().min();
        match self.at.kind {
            // Accepted while the kernel listed them: another one comes, and is not the same.
            StreamKind::Tcp => oldest,
            StreamKind::Unix if self.at.waiting.is_empty() => self.standing_ns,
            StreamKind::Unix => oldest,
        }
    }

    /// One of those that have waited longest here waits at `other`, too.
    pub fn waits_with(&self, other: &Self) -> bool {
        let oldest = self.waiting.values().min();
        self.waiting.iter().any(|(remote, since)| Some(since) == oldest && other.waiting.contains_key(remote))
    }

    /// The same connections were seen all the while.
    pub fn is_followed(&self) -> bool {
        !self.at.waiting.is_empty()
    }

    /// No further connection gets in.
    pub fn is_full(&self) -> bool {
        self.at.backlog > self.at.limit || self.at.backlog == self.at.limit && self.at.limit > 0
    }
}
