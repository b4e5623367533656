//! What a watched program pays per system call.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::companion::{Mode, rungs};
use super::namespace::Namespace;
use super::table::{markdown, median, provenance, spread};
use crate::workspace;

/// In the table's order; the names `xtask/bench/tax.c` prints.
const WORKLOADS: [&str; 7] =
    ["futex ping-pong", "futex wake", "futex wait, at once", "poll, ready", "poll(0)", "connect, refused", "getppid"];

/// Nanoseconds per call of every round, by mode and workload.
type Samples = BTreeMap<(Mode, &'static str), Vec<f64>>;

/// Measures every workload beside every watcher, in turns, and returns the table.
pub(crate) fn measure(observer: &Path, quick: bool) -> Result<String> {
    let (rounds, milliseconds) = if quick { (3, 100) } else { (9, 250) };
    let program = workspace::compile_c("xtask/bench/tax.c", "bench")?;
    let last_cpu = std::thread::available_parallelism()?.get() - 1;
    let mut workload = Namespace::start(&program, &["--cpu".to_owned(), last_cpu.to_string()])?;
    workload.first.wait_until_ready(Duration::from_secs(10))?;
    let (rungs, modes) = (rungs(observer, &workload)?, Mode::here(observer, &workload)?);

    let mut samples = Samples::new();
    for round in 1..=rounds {
        eprintln!("xtask: round {round} of {rounds}");
        for turn in 0..modes.len() {
            // Each round begins with another mode, so that no mode always follows the same one.
            let Some(mode) = modes.get((turn + round) % modes.len()).copied() else { continue };
            let companion = mode.start(observer, &workload)?;
            let taken = take_sample(&mut workload, milliseconds)
                .with_context(|| format!("the workload, beside `{}`", mode.heading()))?;
            for (name, ns) in taken {
                samples.entry((mode, name)).or_default().push(ns);
            }
            if let Some(companion) = companion {
                companion.stop().with_context(|| format!("cannot end `{}`", mode.heading()))?;
            }
        }
    }
    let command = if quick { "cargo xtask bench tax --quick" } else { "cargo xtask bench tax" };
    Ok(format!(
        "{}\n\n{}\nMedians of {rounds} rounds of {milliseconds} ms, each the median of many batches of 64 calls; in brackets the ratio to nobody watching in the \
         same run, ± half the distance between the quartiles. A ping-pong is one round trip: two futex waits, two \
         wakes, two switches. Probes are without a budget here (`--cpu-budget off`). Probes at their best: {rungs}.\n\nNanoseconds added to each call, and the share of what bpftrace adds:\n\n{}",
        provenance(command)?,
        times(&samples, &modes)?,
        added(&samples, &modes)?
    ))
}

fn take_sample(workload: &mut Namespace, milliseconds: u32) -> Result<Vec<(&'static str, f64)>> {
    workload.first.tell(&milliseconds.to_string())?;
    let line = workload.first.next_line(Duration::from_secs(60))?.context("it ended")?;
    let values: BTreeMap<String, f64> = serde_json::from_str(&line).with_context(|| format!("it printed {line:?}"))?;
    let value = |name: &'static str| {
        let ns = values.get(name).with_context(|| format!("{line:?} lacks {name:?}"))?;
        Ok((name, *ns))
    };
    WORKLOADS.into_iter().map(value).collect()
}

fn times(samples: &Samples, modes: &[Mode]) -> Result<String> {
    let mut header = vec!["ns per call"];
    header.extend(modes.iter().map(|mode| mode.heading()));
    let mut rows = Vec::new();
    for name in WORKLOADS {
        let off = middle(samples, Mode::Off, name)?;
        let mut row = vec![name.to_owned()];
        for mode in modes.iter().copied() {
            let ns = middle(samples, mode, name)?;
            let wide = samples.get(&(mode, name)).and_then(|values| spread(values)).unwrap_or(0.0);
            row.push(format!("{ns:.0} ({:.2}× ±{:.0} %)", ns / off, wide * 100.0));
        }
        rows.push(row);
    }
    Ok(markdown(&header, &rows))
}

fn added(samples: &Samples, modes: &[Mode]) -> Result<String> {
    let modes: Vec<Mode> = modes.iter().copied().filter(|mode| *mode != Mode::Off).collect();
    let mut header = vec!["ns added"];
    header.extend(modes.iter().map(|mode| mode.heading()));
    let mut rows = Vec::new();
    for name in WORKLOADS {
        let off = middle(samples, Mode::Off, name)?;
        let bpftrace = middle(samples, Mode::Bpftrace, name)? - off;
        let mut row = vec![name.to_owned()];
        for mode in modes.iter().copied() {
            let added = middle(samples, mode, name)? - off;
            let rival = matches!(mode, Mode::Bpftrace | Mode::PerfTrace | Mode::Strace);
            row.push(added_cell(added, (!rival).then_some(bpftrace), off));
        }
        rows.push(row);
    }
    Ok(markdown(&header, &rows))
}

/// `+480 (46 %)`; no share where bpftrace itself adds nothing that stands out.
fn added_cell(added: f64, bpftrace: Option<f64>, off: f64) -> String {
    match bpftrace.filter(|bpftrace| *bpftrace > off * 0.1) {
        Some(bpftrace) => format!("{added:+.0} ({:.0} %)", added / bpftrace * 100.0),
        None => format!("{added:+.0}"),
    }
}

fn middle(samples: &Samples, mode: Mode, name: &'static str) -> Result<f64> {
    let values = samples.get(&(mode, name)).map(Vec::as_slice).unwrap_or_default();
    median(values).with_context(|| format!("no sample of {name} beside `{}`", mode.heading()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_given_only_where_bpftrace_costs_something() {
        assert_eq!(added_cell(450.0, Some(1_000.0), 300.0), "+450 (45 %)");
        assert_eq!(added_cell(-3.0, Some(5.0), 245.0), "-3");
        assert_eq!(added_cell(1_000.0, None, 300.0), "+1000");
    }

    #[test]
    fn a_missing_sample_is_an_error_not_a_zero() {
        let samples = Samples::from([((Mode::Off, "getppid"), vec![245.0])]);
        assert!(times(&samples, &[Mode::Off]).is_err());
    }
}
