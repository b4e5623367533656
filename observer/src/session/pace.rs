//! When a census of a process' own tables (goroutines, tasks) is due: of processes that were asked for as often as its cost allows, of a
//! host's each now and then.

use crate::census::ProcessId;
use crate::explain::BUSY;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The next reading of a process waits for so many times what the last one took: a twentieth of the time for processes
/// that were asked for, half a percent in a look at the whole host.
const EVERY: (u32, u32) = (20, 200);
/// But growth within one threshold takes some readings: of processes that were asked for there are eight in it, as long as
/// that is not more than a fifth of the time.
const IN_THRESHOLD: u32 = 8;
const AT_MOST: u32 = 4;
/// In a look at the whole host a process is read not sooner again than after two thresholds within these bounds.
const HOST_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// What the readings of one turn may take there, by what they took before; one is always allowed.
const HOST_TURN: Duration = Duration::from_millis(50);
/// But one whose collector may hold it up as often as this within a threshold, at most two percent of the time: two readings in
/// ten seconds show nothing of what lasts milliseconds.
const SUSPECT_EVERY: (u32, u32) = (4, 50);
/// All of a host's readings together: one part of so many of the time, 1 %, and so much more at once. The first reading of a
/// program, which looks up all names, takes ten times as long as the next.
const HOST_PART: u32 = 100;
const HOST_AT_ONCE: Duration = Duration::from_secs(2);

/// When each process is due.
#[derive(Debug, Default)]
pub(super) struct Pace {
    due: BTreeMap<ProcessId, Due>,
    /// In a look at the whole host: what the readings took beyond their part of the time up to then.
    owed: (Option<Instant>, Duration),
    /// Readings that are under way.
    awaited: BTreeSet<ProcessId>,
}

/// Why a process is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It was asked for.
    Asked,
    /// It is one of the host's, and is read for the first time.
    First,
    /// It is one of the host's.
    Host,
    /// It is one of the host's whose collector may hold it up.
    Suspect,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    at: Instant,
    /// If a finding waits for it.
    soonest: Instant,
    took: Duration,
}

impl Pace {
    /// Those of these that are due now, the longest overdue first.
    pub(super) fn pick(&mut self, among: &BTreeSet<ProcessId>, is_host: bool, now: Instant) -> Vec<ProcessId> {
        self.due.retain(|process, _| among.contains(process));
        self.awaited.retain(|process| among.contains(process));
        if is_host && self.owed_at(now) > HOST_AT_ONCE {
            return Vec::new();
        }
        let soonest = Due { at: now, soonest: now, took: Duration::ZERO };
        let mut due: Vec<(Due, ProcessId)> =
            among.iter().map(|process| (self.due.get(process).copied().unwrap_or(soonest), *process)).collect();
        due.retain(|(due, _)| due.at <= now);
        due.sort_by_key(|(due, process)| (due.at, *process));
        let mut took = Duration::ZERO;
        let mut picked = Vec::new();
        for (due, process) in due {
            took += due.took;
            if is_host && took > HOST_TURN && !picked.is_empty() {
                break;
            }
            picked.push(process);
        }
        picked
    }

    fn owed_at(&self, now: Instant) -> Duration {
        let (at, owed) = self.owed;
        at.map_or(Duration::ZERO, |at| owed.saturating_sub(now.saturating_duration_since(at) / HOST_PART))
    }

    /// Takes note of what the readings of a turn took.
    pub(super) fn spend(&mut self, took: Duration, now: Instant) {
        self.owed = (Some(now), self.owed_at(now) + took);
    }

    /// Takes note of a reading, or that there was none.
    pub(super) fn note(&mut self, process: ProcessId, took: Duration, look: Look, threshold: Duration) {
        let rest = match look {
            Look::First => (2 * threshold).clamp(HOST_EVERY.0, HOST_EVERY.1),
            Look::Host => (took * EVERY.1).max((2 * threshold).clamp(HOST_EVERY.0, HOST_EVERY.1)),
            Look::Suspect => (took * SUSPECT_EVERY.1).max(threshold / SUSPECT_EVERY.0),
            Look::Asked => (took * EVERY.0).min((threshold / IN_THRESHOLD).max(took * AT_MOST)),
        };
        let least = match look {
            Look::First => took * EVERY.1,
            Look::Asked => took * AT_MOST,
            // As often as a suspect, but only while a finding waits for it.
            Look::Host => took * SUSPECT_EVERY.1,
            Look::Suspect => rest,
        };
        let now = Instant::now();
        self.due.insert(process, Due { at: now + rest, soonest: now + least.min(rest), took });
    }

    /// A finding waits for nothing but the next reading: that is made as soon as its cost allows.
    pub(super) fn hasten(&mut self) {
        for due in self.due.values_mut() {
            due.at = due.at.min(due.soonest);
        }
    }

    /// Takes note that these are being read, which may take `within` before anything is heard of it: one that does not answer is
    /// not asked in every turn.
    pub(super) fn ask(&mut self, wanted: &[ProcessId], within: Duration, look: Look, threshold: Duration) {
        for process in wanted {
            self.note(*process, within, look, threshold);
        }
        self.awaited.extend(wanted);
    }

    /// Takes note of an answer, which may say why nothing was read; false if nobody came to look: nothing is lost then, and the
    /// next turn asks again.
    pub(super) fn hear(&mut self, process: ProcessId, missing: Option<&str>) -> bool {
        if missing.is_some_and(|why| BUSY.contains(&why)) {
            self.due.remove(&process);
            return false;
        }
        self.awaited.remove(&process);
        true
    }

    /// Whether readings are under way.
    pub(super) fn is_awaiting(&self) -> bool {
        !self.awaited.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_programs_of_a_host_share_a_hundredth_of_the_time() {
        let programs: BTreeSet<ProcessId> = (1..50).map(|pid| ProcessId { pid, start_ns: 1 }).collect();
        let (mut pace, start) = (Pace::default(), Instant::now());
        let took = Duration::from_millis(20);
        let (mut now, mut spent, mut seen) = (start, Duration::ZERO, BTreeSet::new());
        while now < start + Duration::from_secs(600) {
            let picked = pace.pick(&programs, true, now);
            for process in &picked {
                let at = now + Duration::from_secs(10);
                pace.due.insert(*process, Due { at, soonest: at, took });
            }
            if !picked.is_empty() {
                let all = took * picked.len() as u32;
                spent += all;
                pace.spend(all, now);
            }
            seen.extend(picked);
            now += Duration::from_secs(1);
        }
        assert_eq!(seen, programs, "each has its turn");
        assert!(spent < Duration::from_secs(9), "{spent:?} of ten minutes");
    }

    #[test]
    fn what_a_finding_waits_for_is_read_sooner() {
        let among = BTreeSet::from([ProcessId { pid: 1, start_ns: 1 }]);
        let is_due = |look: Look, took_ms: u64, after_s: u64| {
            let picked = [false, true].map(|is_awaited| {
                let mut pace = Pace::default();
                for process in &among {
                    pace.note(*process, Duration::from_millis(took_ms), look, Duration::from_secs(600));
                }
                if is_awaited {
                    pace.hasten();
                }
                !pace.pick(&among, look != Look::Asked, Instant::now() + Duration::from_secs(after_s)).is_empty()
            });
            (picked[0], picked[1])
        };
        assert_eq!(is_due(Look::Asked, 10_000, 50), (false, true));
        assert_eq!(is_due(Look::Asked, 10_000, 30), (false, false), "at most a fifth of the time");
        assert_eq!(is_due(Look::First, 10, 5), (false, true));
        assert_eq!(is_due(Look::First, 100, 5), (false, false), "at most half a percent of the time");
        assert_eq!(is_due(Look::Host, 10, 5), (false, true));
        assert_eq!(is_due(Look::Host, 1000, 5), (false, false), "at most two percent of the time");
    }
}
