//! What each program of the probes costs, from the kernel's own statistics (`BPF_ENABLE_STATS`, kernel 5.8).
//!
//! The kernel takes the time of every run of every BPF program of the host while the statistics are on, which itself costs; so they
//! are on for short windows only. The figures are those of `/proc/self/fdinfo` of the programs.

use super::event::Family;
use super::ladder;
use aya::Ebpf;
use aya::programs::ProgramFd;
use aya::sys::{Stats, enable_stats};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// What one program did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramCost {
    /// CPU time of the runs that were measured, nanoseconds.
    pub run_ns: u64,
    /// Runs that were measured.
    pub runs: u64,
    /// Runs that the kernel left out because the program was running on that CPU already (kernel 5.12).
    pub recursion_misses: u64,
}

impl ProgramCost {
    /// Adds what another window showed.
    pub(super) fn add(&mut self, more: &Self) {
        self.run_ns += more.run_ns;
        self.runs += more.runs;
        self.recursion_misses += more.recursion_misses;
    }

    fn since(self, before: Self) -> Self {
        Self {
            run_ns: self.run_ns.saturating_sub(before.run_ns),
            runs: self.runs.saturating_sub(before.runs),
            recursion_misses: self.recursion_misses.saturating_sub(before.recursion_misses),
        }
    }
}

/// The programs of one window that ran.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Costs {
    pub(super) window: Duration,
    pub(super) programs: BTreeMap<String, ProgramCost>,
}

impl Costs {
    /// CPU time by family, nanoseconds; programs that several share are divided by these weights.
    pub(super) fn by_family(&self, weights: &BTreeMap<Family, f64>) -> BTreeMap<Family, u64> {
        let mut families: BTreeMap<Family, u64> = BTreeMap::new();
        for (name, cost) in &self.programs {
            match ladder::payer(name) {
                Payer::Family(family) => *families.entry(family).or_default() += cost.run_ns,
                Payer::Shared => {
                    let sharers = ladder::sharers(name);
                    let on: Vec<_> = weights.iter().filter(|(family, _)| sharers.contains(family)).collect();
                    let all: f64 = on.iter().map(|(_, weight)| **weight).sum();
                    for (family, weight) in on.into_iter().filter(|_| all > 0.0) {
                        *families.entry(*family).or_default() += (cost.run_ns as f64 * weight / all) as u64;
                    }
                }
                Payer::Nobody => {}
            }
        }
        families
    }

    /// Calls a second that were entered through each program which several families share, and these families; the pair of all
    /// system calls does not tell.
    pub(super) fn entered(&self) -> Vec<(Vec<Family>, f64)> {
        let is_entry =
            |name: &str| ladder::payer(name) == Payer::Shared && name.contains("_enter") && !name.starts_with("btf_");
        let programs = self.programs.iter().filter(|(name, _)| is_entry(name));
        let second = self.window.as_secs_f64().max(1e-9);
        programs.map(|(name, cost)| (ladder::sharers(name), cost.runs as f64 / second)).collect()
    }

    /// CPU time that is no family's, nanoseconds.
    pub(super) fn rest_ns(&self) -> u64 {
        let programs = self.programs.iter().filter(|(name, _)| ladder::payer(name) == Payer::Nobody);
        programs.map(|(_, cost)| cost.run_ns).sum()
    }
}

/// Whose cost a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payer {
    /// One family's.
    Family(Family),
    /// That of all that stand on its rung.
    Shared,
    /// No family's: it serves all.
    Nobody,
}

/// Whether the kernel measures BPF programs for us.
///
/// # Errors
/// It does not: why, in words.
pub fn can_measure() -> Result<(), String> {
    statistics().map(drop)
}

/// The statistics are on until this is dropped.
fn statistics() -> Result<OwnedFd, String> {
    enable_stats(Stats::RunTime).map_err(|error| {
        format!("the kernel does not measure BPF programs: {}; it takes kernel 5.8 and CAP_SYS_ADMIN", error.io_error)
    })
}

/// The loaded programs of an object.
pub(super) struct Meter {
    programs: Vec<(String, ProgramFd)>,
}

impl Meter {
    pub(super) fn of(object: &Ebpf) -> Self {
        let loaded = object.programs().filter_map(|(name, program)| {
            // Those of the other rungs are not loaded.
            let fd = program.fd().ok()?.try_clone().inspect_err(|error| log::warn!("{name}: {error}")).ok()?;
            Some((name.to_owned(), fd))
        });
        Self { programs: loaded.collect() }
    }

    /// Has the kernel measure while `wait` waits.
    ///
    /// # Errors
    /// The statistics cannot be switched on, or read, in words.
    pub(super) fn window(&self, wait: impl FnOnce() -> bool) -> Result<Costs, String> {
        let on = statistics()?;
        let before = self.figures()?;
        let began = Instant::now();
        wait();
        let window = began.elapsed();
        let after = self.figures()?;
        drop(on);
        let programs = self.programs.iter().zip(after.into_iter().zip(before));
        let programs = programs.map(|((name, _), (after, before))| (name.clone(), after.since(before)));
        Ok(Costs { window, programs: programs.filter(|(_, cost)| *cost != ProgramCost::default()).collect() })
    }

    fn figures(&self) -> Result<Vec<ProgramCost>, String> {
        let one = |(_, fd): &(String, ProgramFd)| {
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
            parse(&text).ok_or_else(|| format!("{path} has no run_time_ns: the kernel does not measure BPF programs"))
        };
        self.programs.iter().map(one).collect()
    }
}

/// The figures of a program's fdinfo (`bpf_prog_show_fdinfo` of kernel/bpf/syscall.c).
fn parse(text: &str) -> Option<ProgramCost> {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().parse::<u64>().ok()
    };
    Some(ProgramCost {
        run_ns: value("run_time_ns")?,
        runs: value("run_cnt")?,
        recursion_misses: value("recursion_misses").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_program() {
        let text = "pos:\t0\nprog_type:\t26\nprog_id:\t77\nrun_time_ns:\t1234\nrun_cnt:\t56\nrecursion_misses:\t7\n";
        assert_eq!(parse(text), Some(ProgramCost { run_ns: 1234, runs: 56, recursion_misses: 7 }));
        // Kernel 5.10 has no misses; before 5.1 there is nothing.
        assert_eq!(
            parse("run_time_ns:\t1\nrun_cnt:\t2\n"),
            Some(ProgramCost { run_ns: 1, runs: 2, recursion_misses: 0 })
        );
        assert_eq!(parse("prog_type:\t26\n"), None);
    }

    #[test]
    fn a_shared_program_is_divided() {
        let cost = |run_ns| ProgramCost { run_ns, runs: 1, recursion_misses: 0 };
        let programs = [("btf_enter", 900), ("fentry_poll", 50), ("fexit_poll", 50), ("thread_exit_btf", 5)];
        let programs = programs.into_iter().map(|(name, ns)| (name.to_owned(), cost(ns))).collect();
        let costs = Costs { window: Duration::from_millis(50), programs };
        let weights = BTreeMap::from([(Family::Poll, 1.0), (Family::Futex, 8.0)]);
        assert_eq!(costs.by_family(&weights), BTreeMap::from([(Family::Poll, 200), (Family::Futex, 800)]));
        assert_eq!(costs.rest_ns(), 5);
    }

    #[test]
    fn a_tracepoint_is_shared_by_those_with_as_many_arguments() {
        let cost = ProgramCost { run_ns: 900, runs: 50, recursion_misses: 0 };
        let names = ["tracepoint_enter_3", "tracepoint_enter_6", "tracepoint_exit", "btf_enter"];
        let programs = names.into_iter().map(|name| (name.to_owned(), cost)).collect();
        let costs = Costs { window: Duration::from_millis(50), programs };
        let all = vec![Family::Poll, Family::Futex, Family::Connect, Family::Socket];
        let (three, six) =
            (vec![Family::Poll, Family::Connect, Family::Socket], vec![Family::Poll, Family::Futex, Family::Socket]);
        assert_eq!(costs.entered(), [(three, 1000.0), (six, 1000.0)]);
        assert_eq!(ladder::sharers("kprobe_enter"), all);
        // Nothing of the three is the futexes'; of the others they have their part.
        let weights = BTreeMap::from([(Family::Poll, 1.0), (Family::Futex, 2.0)]);
        let expected = BTreeMap::from([(Family::Poll, 900 + 3 * 300), (Family::Futex, 3 * 600)]);
        assert_eq!(costs.by_family(&weights), expected);
    }
}
