//! Pools: the connections of one process to one address, and whether they are all in hand while requests wait.

use super::{Debts, Line, TICK_NS};
use crate::proc::StreamKind;
use std::collections::BTreeMap;

/// A request uses its connection soon after it came. What was used longer after an open request may as well have served another one.
const SOON_NS: u64 = 2_000_000_000;

/// Connections of one process to one address.
#[derive(Debug)]
pub struct Pool<'a> {
    /// The address.
    pub remote: &'a str,
    /// All of them.
    pub lines: Vec<&'a Line>,
}

impl Pool<'_> {
    /// How many have nothing outstanding.
    pub fn in_hand(&self) -> usize {
        self.lines.iter().filter(|line| line.is_in_hand()).count()
    }

    /// When the last of them was used, if all have been, are open and have nothing outstanding.
    pub fn idle_since(&self) -> Option<u64> {
        let all: Option<Vec<u64>> =
            self.lines.iter().map(|line| line.active_ns().filter(|_| line.is_in_hand())).collect();
        all?.into_iter().max()
    }
}

/// What shows that a pool is used up by requests that wait for one more connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// Requests each of which came shortly before the last use of a connection of its own: as many as there are connections.
    pub holders: usize,
    /// Requests that came after the last use of any of them, and used none.
    pub starved: usize,
    /// When the last connection was used.
    pub idle_since_ns: u64,
    /// Requests that came after that and were answered: without one of these connections.
    pub answered_since: usize,
}

impl Debts {
    /// The pools: TCP and unix connections that it has made, by address.
    pub fn pools(&self) -> Vec<Pool<'_>> {
        let mut pools: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
        for line in self.lines().filter(|line| !line.at.inbound) {
            if let Some(remote) = line.at.remote.as_deref() {
                pools.entry(remote).or_default().push(line);
            }
        }
        pools.into_iter().map(|(remote, lines)| Pool { remote, lines }).collect()
    }

    /// Whether the requests that are not answered have used this pool up.
    ///
    /// A server that lets its clients wait on purpose (long-poll) has idle connections, too. But whatever it asks its database for such a
    /// client, it asks when the request comes, and gives the connection back. A pool that is used up from within shows three things
    /// together: each connection was used last right after some request came that is still not answered, a different one for each; newer
    /// requests came and touched none; and no request whose answer may have been due to the last use was answered.
    pub fn exhausted(&self, pool: &Pool<'_>) -> Option<Exhausted> {
        let idle_since_ns = self.matched(pool)?;
        let starved = self.unanswered().filter(|(_, since)| *since > idle_since_ns.saturating_add(TICK_NS)).count();
        // Somebody was answered who had come before the last use, after it: then that use was his, and the connection is back.
        let is_explained = |(sent, asked): (u64, u64)| {
            asked <= idle_since_ns.saturating_add(TICK_NS) && sent.saturating_add(TICK_NS) >= idle_since_ns
        };
        if starved == 0 || self.answers().any(is_explained) {
            return None;
        }
        let answered_since = self.answers().filter(|(_, asked)| *asked > idle_since_ns).count();
        Some(Exhausted { holders: pool.lines.len(), starved, idle_since_ns, answered_since })
    }

    /// Whether a pool would be used up if none of its connections were given back: more requests than connections came at once, each
    /// connection was used last right after one of them, and no request has come since that would tell.
    pub(super) fn may_exhaust(&self, pool: &Pool<'_>) -> bool {
        pool.lines.len() > 1 && self.unanswered().count() > pool.lines.len() && self.matched(pool).is_some()
    }

    /// When a pool was used last, if all of it is in hand and each connection was used last right after a request of its own came that is
    /// still not answered.
    fn matched(&self, pool: &Pool<'_>) -> Option<u64> {
        let idle_since_ns = pool.idle_since()?;
        if pool.lines.iter().any(|line| line.at.kind != StreamKind::Tcp) {
            return None;
        }
        let mut asked: Vec<u64> = self.lines().filter_map(Line::asked_since).collect();
        asked.sort_unstable();
        let mut used: Vec<u64> = pool.lines.iter().filter_map(|line| line.active_ns()).collect();
        used.sort_unstable();
        // Both in order: windows of the same length are matched best by taking the first that fits.
        let mut open = asked.iter().copied().peekable();
        for used in used {
            while open.next_if(|asked| asked.saturating_add(SOON_NS) < used).is_some() {}
            open.next_if(|asked| *asked <= used.saturating_add(TICK_NS))?;
        }
        Some(idle_since_ns)
    }
}
