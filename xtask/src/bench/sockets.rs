//! What a listing of stream sockets costs, joined to their processes, against `ss -tip` and a read of `/proc/net/tcp`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::namespace::Namespace;
use super::table::{markdown, median, provenance};
use crate::{invoke, workspace};

const PER_PROCESS: u32 = 2_000;

/// What one look cost.
#[derive(Clone, Copy, Deserialize)]
struct Cost {
    wall_ns: u64,
    cpu_ns: u64,
    #[serde(default)]
    peak_kib: u64,
}

/// What `observer bench-sockets` prints.
#[derive(Deserialize)]
struct Report {
    rounds: Vec<Round>,
    rss_bytes: u64,
    lost: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Copy, Deserialize)]
struct Round {
    first: Cost,
    attach: Cost,
    watch: Cost,
    suspects: u64,
    connections: u64,
    answered: u64,
    joined: u64,
}

/// All that was measured with so many sockets.
#[derive(Default)]
struct Measured {
    first: Vec<Cost>,
    attach: Vec<Cost>,
    watch: Vec<Cost>,
    rss_bytes: u64,
    ss: Vec<Cost>,
    proc: Vec<Cost>,
}

/// Measures 1,000, 20,000 and 100,000 sockets, and returns the table.
pub(crate) fn measure(observer: &Path, quick: bool) -> Result<String> {
    let (counts, turns, rounds): (&[u32], u32, u32) =
        if quick { (&[1_000, 20_000], 1, 5) } else { (&[1_000, 20_000, 100_000], 5, 5) };
    let program = workspace::compile_c("xtask/bench/sockets.c", "bench")?;
    let mut rows = Vec::new();
    for &count in counts {
        eprintln!("xtask: {count} sockets");
        let mut host = start(&program, count)?;
        let pids = processes(&host, count.div_ceil(PER_PROCESS))?;
        let mut measured = Measured::default();
        for _ in 0..turns {
            let mut ours = host.inside(observer);
            ours.args(["bench-sockets", "--rounds", &rounds.to_string()]).args(&pids);
            let report: Report = serde_json::from_str(&invoke::capture(&mut ours)?)?;
            check(&report, rounds, u64::from(count))?;
            measured.rss_bytes = measured.rss_bytes.max(report.rss_bytes);
            measured.first.extend(report.rounds.iter().map(|round| round.first));
            measured.attach.extend(report.rounds.iter().map(|round| round.attach));
            measured.watch.extend(report.rounds.iter().map(|round| round.watch));
            for _ in 0..rounds {
                measured.ss.push(cost_of(&host, &program, &["ss", "-tip"])?);
                measured.proc.push(cost_of(&host, &program, &["cat", "/proc/net/tcp", "/proc/net/tcp6"])?);
            }
        }
        host.first.still_runs()?;
        drop(host);
        rows.push(row(count, &measured)?);
    }
    let header = [
        "sockets",
        "`attach`, first look",
        "CPU",
        "later looks",
        "CPU",
        "`watch`, nothing owed",
        "CPU",
        "memory",
        "`ss -tip`",
        "CPU",
        "memory",
        "`ss` costs (CPU), to a first look",
        "`cat /proc/net/tcp{,6}`",
        "CPU",
    ];
    let command = if quick { "cargo xtask bench sockets --quick" } else { "cargo xtask bench sockets" };
    let note = format!(
        "Medians of {} listings, in turns of {rounds}. Connections over loopback, both ends counted, {PER_PROCESS} sockets a process, a byte gone each way. *`attach`*: one netlink listing of \
         the namespace and the descriptors of all these processes (by the kernel's file iterator, where it has one), each connection with its process, direction, times, sums and peer; later looks read the descriptors again only every three seconds, or when there is a new socket. *`watch`*: the listing, and every socket asked whether it looks like a debt. \
         The others are whole commands, their output thrown away; `/proc/net/tcp` has neither processes nor times.",
        turns * rounds
    );
    Ok(format!("{}\n\n{}\n{note}", provenance(command)?, markdown(&header, &rows)))
}

fn start(program: &Path, count: u32) -> Result<Namespace> {
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--net", "--fork", "--mount-proc", "--kill-child", "--"]).arg(program);
    let mut host = Namespace::of(unshare.args([count.to_string(), PER_PROCESS.to_string()]))?;
    host.first.wait_until_ready(Duration::from_secs(120)).with_context(|| format!("cannot make {count} sockets"))?;
    Ok(host)
}

/// The processes that have the sockets, by their ids inside: the first is 1 and has none.
fn processes(host: &Namespace, expected: u32) -> Result<Vec<String>> {
    let mut list = host.inside(Path::new("pgrep"));
    let printed = invoke::capture(list.args(["--parent", "1"]))?;
    let pids: Vec<String> = printed.split_whitespace().map(str::to_owned).collect();
    ensure!(pids.len() == expected as usize, "{expected} processes were to be there, not {}", pids.len());
    Ok(pids)
}

fn cost_of(host: &Namespace, program: &Path, command: &[&str]) -> Result<Cost> {
    let mut measure = host.inside(program);
    serde_json::from_str(&invoke::capture(measure.arg("measure").args(command))?).context("what it cost")
}

/// Refuses a report of something else than was asked for.
fn check(report: &Report, rounds: u32, sockets: u64) -> Result<()> {
    let Report { rounds: taken, rss_bytes, lost } = report;
    ensure!(taken.len() == rounds as usize && *rss_bytes > 0, "asked for {rounds} rounds, got {}", taken.len());
    ensure!(lost.is_empty(), "lost: {lost:?}");
    for Round { first, attach, watch, suspects, connections, answered, joined } in taken {
        ensure!(*connections == sockets, "{connections} connections listed, {sockets} are there");
        ensure!(*joined == sockets, "the other end of {joined} of {sockets} was found");
        ensure!(*answered == sockets / 2, "{answered} accepted and answered, not {}", sockets / 2);
        ensure!(*suspects == 0, "nothing is owed, {suspects} look like it");
        ensure!(first.wall_ns > 0 && attach.wall_ns > 0 && watch.wall_ns > 0, "no time passed");
    }
    Ok(())
}

fn row(count: u32, measured: &Measured) -> Result<Vec<String>> {
    let Measured { first, attach, watch, rss_bytes, ss, proc } = measured;
    let median = |costs: &[Cost], what: fn(&Cost) -> u64| {
        let values: Vec<f64> = costs.iter().map(|cost| what(cost) as f64).collect();
        median(&values).context("nothing was measured")
    };
    let ms = |costs: &[Cost], what: fn(&Cost) -> u64| median(costs, what).map(|ns| format!("{:.1} ms", ns / 1e6));
    let wall = |cost: &Cost| cost.wall_ns;
    let cpu = |cost: &Cost| cost.cpu_ns;
    let times = median(ss, cpu)? / median(first, cpu)?;
    Ok(vec![
        count.to_string(),
        ms(first, wall)?,
        ms(first, cpu)?,
        ms(attach, wall)?,
        ms(attach, cpu)?,
        ms(watch, wall)?,
        ms(watch, cpu)?,
        format!("{:.0} MiB", *rss_bytes as f64 / f64::from(1 << 20)),
        ms(ss, wall)?,
        ms(ss, cpu)?,
        format!("{:.0} MiB", median(ss, |cost| cost.peak_kib)? / 1024.0),
        format!("{times:.1}×"),
        ms(proc, wall)?,
        ms(proc, cpu)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(connections: u64, suspects: u64) -> Report {
        let cost = Cost { wall_ns: 5, cpu_ns: 5, peak_kib: 0 };
        let (answered, joined) = (connections / 2, connections);
        let round = Round { first: cost, attach: cost, watch: cost, suspects, connections, answered, joined };
        Report { rounds: vec![round], rss_bytes: 1, lost: serde_json::Map::new() }
    }

    #[test]
    fn a_report_of_something_else_is_refused() {
        assert!(check(&report(1000, 0), 1, 1000).is_ok());
        assert!(check(&report(999, 0), 1, 1000).is_err(), "one is missing");
        assert!(check(&report(1000, 1), 1, 1000).is_err(), "a false suspicion");
        assert!(check(&report(1000, 0), 2, 1000).is_err(), "a round is missing");
        let mut losing = report(1000, 0);
        losing.lost.insert("streams: deadline".to_owned(), 1.into());
        assert!(check(&losing, 1, 1000).is_err());
    }
}
