//! Whose goroutines are read in a turn: those of processes that were asked for as often as their cost allows, of a host's
//! Go processes each now and then.

use super::Session;
use super::pace::Look;
use crate::census::{ProcessId, ThreadRow};
use crate::detect::Turn;
use crate::proc::{Facts, Goroutines};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What one turn waits for goroutines: of processes that were asked for, and in a look at the whole host.
const FOR_GOROUTINES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(250));
/// What reading those of one process may take; one that takes longer than a turn waits is learnt in a later turn. A hundred thousand
/// take some hundred milliseconds, on a busy machine several times as long.
const LONGEST_CENSUS: Duration = Duration::from_secs(2);
/// Processes that may be Go are looked at by name in every so many censuses, at most so many at once.
const IDENTIFY: (u64, usize) = (5, 8);
/// `futex` and `epoll_pwait` of x86-64: what the threads of an idle Go program are in.
const GO_CALLS: [u32; 2] = [202, 281];

impl Session {
    /// Reads goroutines, where they are due, and lets the judge learn them.
    pub(super) fn read_goroutines(&mut self, turn: &Turn, facts: &mut Facts) {
        let is_host = self.judge.scope.processes.is_none();
        let threshold = Duration::from_nanos(self.judge.scope.threshold_ns);
        let usual = if is_host { Look::Host } else { Look::Asked };
        if turn.ripe_at_ns.is_some_and(|at| at <= self.judge.host.now_ns()) {
            self.go_pace.hasten();
        }
        let wanted = self.go_pace.pick(&self.go_programs(), is_host, Instant::now());
        if wanted.is_empty() && !self.go_pace.is_awaiting() {
            return;
        }
        self.go_pace.ask(&wanted, FOR_GOROUTINES.0 / 10, usual, threshold);
        let mut all = self.explainer.goroutines(&wanted, LONGEST_CENSUS, self.of_look(FOR_GOROUTINES));
        let took: Duration = all.iter().map(|one| Duration::from_nanos(one.cpu_ns)).sum();
        self.go_pace.spend(took, Instant::now());
        all.retain(|one| self.go_pace.hear(one.process, one.missing.as_deref()));
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

    /// Whether the next turn may know more of goroutines.
    pub fn awaits_goroutines(&self) -> bool {
        self.go_pace.is_awaiting()
    }

    /// Whether any of the programs that are looked at is known to be one of Go.
    pub fn has_go_programs(&self) -> bool {
        !self.go_programs().is_empty()
    }

    /// The Go programs that are looked at, as far as they are known.
    fn go_programs(&self) -> BTreeSet<ProcessId> {
        let (host, scope) = (&self.judge.host, &self.judge.scope);
        let is_alive = |row: &&ThreadRow| !row.is_exiting() && !row.is_kernel_thread();
        let is_go = |row: &&ThreadRow| host.is_go(row.process) && scope.contains(row, host);
        let runs = |row: &&ThreadRow| !host.is_process_stopped(row.process.pid);
        host.leaders().filter(is_alive).filter(is_go).filter(runs).map(|row| row.process).collect()
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
