//! Whose goroutines are read in a turn: those of processes that were asked for as often as their cost allows, of a host's
//! Go processes each now and then.

use super::Session;
use crate::census::{ProcessId, ThreadRow};
use crate::proc::{Facts, Goroutines};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What one turn waits for goroutines: of processes that were asked for, and in a look at the whole host.
const FOR_GOROUTINES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(250));
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
/// Processes that may be Go are looked at by name in every so many censuses, at most so many at once.
const IDENTIFY: (u64, usize) = (5, 8);
/// `futex` and `epoll_pwait` of x86-64: what the threads of an idle Go program are in.
const GO_CALLS: [u32; 2] = [202, 281];

/// When each process is due.
#[derive(Debug, Default)]
pub(super) struct GoPace {
    due: BTreeMap<ProcessId, Due>,
    /// In a look at the whole host: what the readings took beyond their part of the time up to then.
    owed: (Option<Instant>, Duration),
}

/// Why a process is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
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
    took: Duration,
}

impl GoPace {
    /// Those of these that are due now, the longest overdue first.
    fn pick(&mut self, among: &BTreeSet<ProcessId>, is_host: bool, now: Instant) -> Vec<ProcessId> {
        self.due.retain(|process, _| among.contains(process));
        if is_host && self.owed_at(now) > HOST_AT_ONCE {
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

    fn owed_at(&self, now: Instant) -> Duration {
        let (at, owed) = self.owed;
        at.map_or(Duration::ZERO, |at| owed.saturating_sub(now.saturating_duration_since(at) / HOST_PART))
    }

    /// Takes note of what the readings of a turn took.
    fn spend(&mut self, took: Duration, now: Instant) {
        self.owed = (Some(now), self.owed_at(now) + took);
    }

    /// Takes note of a reading, or that there was none.
    fn note(&mut self, process: ProcessId, took: Duration, look: Look, threshold: Duration) {
        let rest = match look {
            Look::First => (2 * threshold).clamp(HOST_EVERY.0, HOST_EVERY.1),
            Look::Host => (took * EVERY.1).max((2 * threshold).clamp(HOST_EVERY.0, HOST_EVERY.1)),
            Look::Suspect => (took * SUSPECT_EVERY.1).max(threshold / SUSPECT_EVERY.0),
            Look::Asked => (took * EVERY.0).min((threshold / IN_THRESHOLD).max(took * AT_MOST)),
        };
        self.due.insert(process, Due { at: Instant::now() + rest, took });
    }
}

impl Session {
    /// Reads goroutines, where they are due, and lets the judge learn them.
    pub(super) fn read_goroutines(&mut self, facts: &mut Facts) {
        let is_host = self.judge.scope.processes.is_none();
        let threshold = Duration::from_nanos(self.judge.scope.threshold_ns);
        let usual = if is_host { Look::Host } else { Look::Asked };
        let wanted = self.go_pace.pick(&self.go_programs(), is_host, Instant::now());
        if wanted.is_empty() && !self.awaits_goroutines {
            return;
        }
        for process in &wanted {
            // One that does not answer is not asked in every turn.
            self.go_pace.note(*process, FOR_GOROUTINES.0 / 10, usual, threshold);
        }
        let all = self.explainer.goroutines(&wanted, self.of_look(FOR_GOROUTINES));
        let took: Duration = all.iter().map(|one| Duration::from_nanos(one.cpu_ns)).sum();
        self.go_pace.spend(took, Instant::now());
        self.awaits_goroutines = wanted.iter().any(|process| all.iter().all(|one| one.process != *process));
        let took_each: Vec<(ProcessId, u64)> = all.iter().map(|one| (one.process, one.cpu_ns)).collect();
        let (read, missing): (Vec<Goroutines>, Vec<Goroutines>) =
            all.into_iter().partition(|one| one.missing.is_none());
        for why in missing.into_iter().filter_map(|one| one.missing) {
            *facts.lost.entry(format!("goroutines: {why}")).or_default() += 1;
        }
        for (reason, count) in read.iter().flat_map(|one| &one.lost) {
            *facts.lost.entry(format!("goroutine: {reason}")).or_default() += count;
        }
        self.judge.learn_goroutines(&read);
        for (process, cpu_ns) in took_each {
            let known = self.judge.host.goroutines(process);
            let look = match known {
                Some(known) if is_host && known.is_gc_suspect() => Look::Suspect,
                Some(known) if is_host && known.censuses == 1 => Look::First,
                _ => usual,
            };
            self.go_pace.note(process, Duration::from_nanos(cpu_ns), look, threshold);
        }
        facts.goroutines = read;
    }

    /// The Go programs that are looked at, as far as they are known.
    fn go_programs(&self) -> BTreeSet<ProcessId> {
        let (host, scope) = (&self.judge.host, &self.judge.scope);
        let leads = |row: &&ThreadRow| row.tid == row.process.pid && !row.is_exiting() && !row.is_kernel_thread();
        let is_go = |row: &&ThreadRow| host.is_go(row.process) && scope.contains(row, host);
        let stops = |row: &ThreadRow| host.is_process_stopped(row.process.pid);
        let rows = host.rows().iter().filter(leads).filter(is_go);
        rows.filter(|row| !(row.is_stopped() && stops(row))).map(|row| row.process).collect()
    }

    /// Processes that may be Go programs and are not known by name yet.
    pub(super) fn maybe_go(&self) -> Vec<ProcessId> {
        let (host, scope) = (&self.judge.host, &self.judge.scope);
        if scope.processes.is_some() || !(self.account.censuses + 3).is_multiple_of(IDENTIFY.0) {
            return Vec::new();
        }
        let is_of_go = |row: &&ThreadRow| {
            row.tid != row.process.pid && row.syscall.is_some_and(|call| GO_CALLS.contains(&call.number)) && !row.compat
        };
        let mut found = BTreeSet::new();
        for row in host.rows().iter().filter(is_of_go) {
            if !found.contains(&row.process) && host.process(row.process).is_none() && scope.contains(row, host) {
                found.insert(row.process);
                if found.len() == IDENTIFY.1 {
                    break;
                }
            }
        }
        found.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_go_programs_of_a_host_share_a_hundredth_of_the_time() {
        let programs: BTreeSet<ProcessId> = (1..50).map(|pid| ProcessId { pid, start_ns: 1 }).collect();
        let (mut pace, start) = (GoPace::default(), Instant::now());
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
                pace.spend(all, now);
            }
            seen.extend(picked);
            now += Duration::from_secs(1);
        }
        assert_eq!(seen, programs, "each has its turn");
        assert!(spent < Duration::from_secs(9), "{spent:?} of ten minutes");
    }
}
