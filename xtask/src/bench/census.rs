//! What one look at every thread costs: through the kernel's task iterator, and through /proc.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::limits::Raised;
use super::namespace::Namespace;
use super::table::{markdown, median, provenance};
use crate::{invoke, workspace};

/// PIDs and threads a machine needs beside those of the bench.
const HEADROOM: u64 = 8_192;

const THREADS_PER_PROCESS: u32 = 1_000;

/// What `observer bench-census --output json` prints.
#[derive(Deserialize)]
struct Report {
    rounds: Vec<Round>,
    rss_bytes: u64,
}

#[derive(Deserialize)]
struct Round {
    threads: u64,
    kernel_ns: u64,
    ingest_ns: u64,
    detect_ns: u64,
    total_ns: u64,
}

/// All rounds of one source at one number of threads.
#[derive(Default)]
struct Measured {
    rounds: Vec<Round>,
    rss_bytes: u64,
}

impl Measured {
    fn milliseconds(&self, field: impl Fn(&Round) -> u64) -> Result<f64> {
        let values: Vec<f64> = self.rounds.iter().map(|round| field(round) as f64 / 1e6).collect();
        median(&values).context("observer bench-census reported no rounds")
    }
}

/// Measures 1,000, 10,000 and 30,000 threads and returns the table.
pub(crate) fn measure(observer: &Path, quick: bool) -> Result<String> {
    let (counts, turns, rounds): (&[u32], u32, u32) =
        if quick { (&[1_000, 10_000], 1, 5) } else { (&[1_000, 10_000, 30_000], 4, 10) };
    let victim = workspace::compile_c("xtask/bench/threads.c", "bench")?;
    let most = u64::from(counts.iter().copied().max().unwrap_or(0)) + HEADROOM;
    let _pids = Raised::to_at_least("kernel/pid_max", most)?;
    let _threads = Raised::to_at_least("kernel/threads-max", most)?;

    let mut rows = Vec::new();
    for &count in counts {
        eprintln!("xtask: {count} threads");
        let mut iter = Measured::default();
        let mut proc = Measured::default();
        let host = start_threads(&victim, count)?;
        for _ in 0..turns {
            take_turn(&host, observer, "iter", rounds, count, &mut iter)?;
            // Dear and steady: fewer rounds do.
            take_turn(&host, observer, "proc", rounds.div_ceil(3), count, &mut proc)?;
        }
        drop(host);
        rows.push(row(count, &iter, &proc)?);
    }
    let header = [
        "threads",
        "kernel pass",
        "ingest",
        "model and detect",
        "census, all told",
        "peak memory",
        "the same through /proc",
        "/proc costs",
    ];
    let command = if quick { "cargo xtask bench census --quick" } else { "cargo xtask bench census" };
    let note = format!(
        "Medians of {} censuses ({} through /proc), taken in turns of {rounds}; \
         {THREADS_PER_PROCESS} threads a process, all blocked in futex.",
        turns * rounds,
        turns * rounds.div_ceil(3)
    );
    Ok(format!("{}\n\n{}\n{note}", provenance(command)?, markdown(&header, &rows)))
}

fn start_threads(victim: &Path, count: u32) -> Result<Namespace> {
    let arguments = [count.to_string(), THREADS_PER_PROCESS.to_string()];
    let mut host = Namespace::start(victim, &arguments)?;
    host.first.wait_until_ready(Duration::from_secs(120)).with_context(|| {
        format!("cannot make {count} threads (see kernel.threads-max, kernel.pid_max and the cgroup's pids.max)")
    })?;
    Ok(host)
}

fn take_turn(
    host: &Namespace,
    observer: &Path,
    source: &str,
    rounds: u32,
    expected: u32,
    measured: &mut Measured,
) -> Result<()> {
    let mut command = host.inside(observer);
    command.args(["bench-census", "--rounds", &rounds.to_string(), "--source", source]);
    let printed = invoke::capture(command.args(["--output", "json"]))?;
    let report: Report = serde_json::from_str(&printed)
        .with_context(|| format!("`{}` did not print its report", invoke::shown(&command)))?;
    check(&report, source, rounds, expected)?;
    measured.rss_bytes = measured.rss_bytes.max(report.rss_bytes);
    measured.rounds.extend(report.rounds);
    Ok(())
}

/// Refuses a report that measured something else than was asked for.
fn check(report: &Report, source: &str, rounds: u32, expected: u32) -> Result<()> {
    let Report { rounds: taken, rss_bytes } = report;
    ensure!(taken.len() == rounds as usize, "asked for {rounds} rounds from {source}, observer took {}", taken.len());
    ensure!(*rss_bytes > 0, "observer reports no memory use");
    for Round { threads, kernel_ns, ingest_ns, detect_ns, total_ns } in taken {
        ensure!(
            (u64::from(expected)..u64::from(expected) + 200).contains(threads),
            "{source} saw {threads} threads; {expected} and a few of its own were to be seen"
        );
        let parts = kernel_ns + ingest_ns + detect_ns;
        if *total_ns == 0 || parts > total_ns + total_ns / 20 {
            bail!("{source}: the parts of a census ({parts} ns) exceed its whole ({total_ns} ns)");
        }
    }
    Ok(())
}

fn row(count: u32, iter: &Measured, proc: &Measured) -> Result<Vec<String>> {
    let total = iter.milliseconds(|round| round.total_ns)?;
    let through_proc = proc.milliseconds(|round| round.total_ns)?;
    Ok(vec![
        grouped(count),
        format!("{:.2} ms", iter.milliseconds(|round| round.kernel_ns)?),
        format!("{:.2} ms", iter.milliseconds(|round| round.ingest_ns)?),
        format!("{:.2} ms", iter.milliseconds(|round| round.detect_ns)?),
        format!("{total:.2} ms"),
        format!("{:.1} MiB", iter.rss_bytes as f64 / f64::from(1 << 20)),
        format!("{through_proc:.1} ms"),
        format!("{:.0}×", through_proc / total),
    ])
}

/// 30000 as 30,000.
fn grouped(number: u32) -> String {
    if number < 1_000 { number.to_string() } else { format!("{},{:03}", number / 1_000, number % 1_000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(threads: u64, total_ns: u64) -> Report {
        let round = Round { threads, kernel_ns: 50, ingest_ns: 30, detect_ns: 20, total_ns };
        Report { rounds: vec![round], rss_bytes: 1 }
    }

    #[test]
    fn a_report_of_what_was_asked_is_accepted() {
        assert!(check(&report(1_001, 100), "iter", 1, 1_000).is_ok());
    }

    #[test]
    fn a_report_of_something_else_is_refused() {
        assert!(check(&report(999, 100), "iter", 1, 1_000).is_err(), "threads missing");
        assert!(check(&report(9_000, 100), "iter", 1, 1_000).is_err(), "saw the whole host");
        assert!(check(&report(1_001, 100), "iter", 2, 1_000).is_err(), "a round missing");
        assert!(check(&report(1_001, 60), "iter", 1, 1_000).is_err(), "parts exceed the whole");
    }

    #[test]
    fn the_ratio_is_of_totals_in_the_same_run() -> Result<()> {
        let iter = Measured { rounds: report(1_000, 2_000_000).rounds, rss_bytes: 1 << 20 };
        let proc = Measured { rounds: report(1_000, 90_000_000).rounds, rss_bytes: 0 };
        let row = row(30_000, &iter, &proc)?;
        assert_eq!((row[0].as_str(), row[4].as_str(), row[7].as_str()), ("30,000", "2.00 ms", "45×"));
        Ok(())
    }
}
