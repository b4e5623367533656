//! When a census of a process' own tables (goroutines, tasks) is due: of processes that were asked for as often as its cost allows, of a
//! host's each now and then.

use crate::census::ProcessId;
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
/// All of a host's readings together: after so long a turn nothing is read for so many times that, 1 % of the time.
const HOST_REST: u32 = 100;

/// When each process is due.
#[derive(Debug, Default)]
pub(super) struct Pace {
    due: BTreeMap<ProcessId, Due>,
    /// In a look at the whole host nothing is read before.
    rest_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    at: Instant,
    took: Duration,
}

impl Pace {
    /// Those of these that are due now, the longest overdue first.
    pub(super) fn pick(&mut self, among: &BTreeSet<ProcessId>, is_host: bool, now: Instant) -> Vec<ProcessId> {
        self.due.retain(|process, _| among.contains(process));
        if is_host && self.rest_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        let soonest = Due { at: now, took: Duration::ZERO };
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

    /// Takes note of a reading, or that there was none.
    pub(super) fn note(&mut self, process: ProcessId, took: Duration, is_host: bool, threshold: Duration) {
        let rest = match is_host {
            true => (took * EVERY.1).max((2 * threshold).clamp(HOST_EVERY.0, HOST_EVERY.1)),
            false => (took * EVERY.0).min((threshold / IN_THRESHOLD).max(took * AT_MOST)),
        };
        self.due.insert(process, Due { at: Instant::now() + rest, took });
    }

    /// It was not read after all: it is due at once.
    pub(super) fn forget(&mut self, process: ProcessId) {
        self.due.remove(&process);
    }

    /// Takes note of what a turn's readings took together.
    pub(super) fn rest(&mut self, took: Duration) {
        self.rest_until = Some(Instant::now() + took * HOST_REST);
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
                pace.due.insert(*process, Due { at, took });
            }
            if !picked.is_empty() {
                let all = took * picked.len() as u32;
                spent += all;
                pace.rest_until = Some(now + all * HOST_REST);
            }
            seen.extend(picked);
            now += Duration::from_secs(1);
        }
        assert_eq!(seen, programs, "each has its turn");
        assert!(spent < Duration::from_secs(8), "{spent:?} of ten minutes");
    }
}
