//! Which processes a look follows: those asked for, as long as they are themselves, and their descendants as they come.

use crate::census::{Census, Pid};
use crate::proc::children_of;
use std::collections::{BTreeMap, BTreeSet};

/// The processes that were asked for, or taken in since, and when each of them began.
#[derive(Debug, Default)]
pub(super) struct Followed {
    asked: BTreeSet<Pid>,
    children_too: bool,
    /// When the process of a number began, `CLOCK_BOOTTIME` nanoseconds: a number is given again.
    began: BTreeMap<Pid, u64>,
}

impl Followed {
    /// Those asked for.
    pub(super) fn of(asked: BTreeSet<Pid>) -> Self {
        Self { asked, ..Self::default() }
    }

    /// Their descendants, too.
    pub(super) fn with_children(&mut self) {
        self.children_too = true;
    }

    /// What was asked for.
    pub(super) fn asked(&self) -> &BTreeSet<Pid> {
        &self.asked
    }

    /// The processes to look at from this census on. A child that has ended is forgotten, what it left behind is not: an orphan
    /// and its children stay.
    pub(super) fn among(&mut self, census: &Census) -> BTreeSet<Pid> {
        let start = |pid: Pid| {
            let at = census.rows.binary_search_by_key(&pid, |row| row.tid).ok()?;
            census.rows.get(at).filter(|row| row.process.pid == pid).map(|row| row.process.start_ns)
        };
        let asked = &self.asked;
        self.began.retain(|pid, began| asked.contains(pid) || start(*pid) == Some(*began));
        // One asked for keeps its number for the report, unless another process has it.
        let is_itself = |pid: &Pid| match (self.began.get(pid), start(*pid)) {
            (Some(began), Some(now)) => *began == now,
            _ => true,
        };
        let mut pids: BTreeSet<Pid> = self.asked.iter().chain(self.began.keys()).copied().filter(is_itself).collect();
        if self.children_too {
            let parents: Vec<Pid> = pids.iter().copied().collect();
            pids.extend(children_of(&parents, &census.rows));
        }
        for pid in &pids {
            if let Some(now) = start(*pid) {
                self.began.entry(*pid).or_insert(now);
            }
        }
        pids
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::census::{Clocks, ProcessId};
    use crate::model::testkit::row;

    fn census(processes: &[(Pid, Pid, u64)]) -> Census {
        let rows = processes.iter().map(|(pid, ppid, start_ns)| {
            let mut row = row(*pid, *pid);
            row.ppid = *ppid;
            row.process = ProcessId { pid: *pid, start_ns: *start_ns };
            row
        });
        let clocks = Clocks { mono_ns: 1, boot_ns: 1, real_ns: 1 };
        Census { clocks, took_ns: 0, kernel_ns: 0, rows: rows.collect(), lost: BTreeMap::new() }
    }

    #[test]
    fn a_number_that_another_process_has_by_now_is_not_followed() {
        let mut followed = Followed::of(BTreeSet::from([10, 20]));
        assert_eq!(followed.among(&census(&[(10, 1, 5), (20, 1, 5)])), BTreeSet::from([10, 20]));
        assert_eq!(followed.among(&census(&[(20, 1, 5)])), BTreeSet::from([10, 20]), "the report names it");
        assert_eq!(followed.among(&census(&[(10, 1, 9), (20, 1, 5)])), BTreeSet::from([20]));
        assert_eq!(followed.among(&census(&[(10, 1, 9), (20, 1, 5)])), BTreeSet::from([20]));
    }

    #[test]
    fn orphans_stay_and_ended_children_are_forgotten() {
        let mut followed = Followed::of(BTreeSet::from([10]));
        followed.with_children();
        let all = census(&[(10, 1, 1), (11, 10, 2), (12, 11, 3), (99, 1, 1)]);
        assert_eq!(followed.among(&all), BTreeSet::from([10, 11, 12]));
        // 11 has ended, 12 is an orphan with a child of its own.
        let orphaned = census(&[(10, 1, 1), (12, 1, 3), (13, 12, 4), (99, 1, 1)]);
        assert_eq!(followed.among(&orphaned), BTreeSet::from([10, 12, 13]));
        // The number 11 comes back with a stranger; the first one has ended, too.
        let later = census(&[(11, 1, 7), (12, 1, 3), (13, 12, 4)]);
        assert_eq!(followed.among(&later), BTreeSet::from([10, 12, 13]));
    }
}
