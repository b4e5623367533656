//! What named stacks of a whole process cost: observer, gdb, eu-stack, on the same process in the same run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::table::{markdown, median, provenance};
use crate::started::Started;
use crate::{invoke, workspace};

/// How often the state of the target is looked at.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// What `observer bench-stacks` prints.
#[derive(Deserialize)]
struct Report {
    rounds: Vec<Round>,
}

#[derive(Deserialize)]
struct Round {
    threads: u64,
    stacks: u64,
    complete: u64,
    frames: u64,
    named: u64,
    walk_ns: u64,
    total_ns: u64,
}

/// All that was measured of one target, in milliseconds.
#[derive(Default)]
struct Measured {
    threads: u64,
    frames: u64,
    named: u64,
    cold: Vec<f64>,
    warm: Vec<f64>,
    /// Microseconds a thread.
    walk: Vec<f64>,
    command: Vec<f64>,
    gdb: Vec<f64>,
    eu_stack: Vec<f64>,
    /// For how long the target was stopped, by tool.
    stopped: [Vec<f64>; 3],
}

/// Measures a process of many threads and one with a large program, and returns the table.
pub(crate) fn measure(observer: &Path, quick: bool) -> Result<String> {
    let turns = if quick { 1 } else { 7 };
    let rounds = if quick { 5 } else { 20 };
    let deep = workspace::compile_c("xtask/bench/deep_threads.c", "bench")?;
    let mut rows = Vec::new();
    for (name, mut command) in [("500 threads, 18 frames each", with_threads(&deep)), ("node, idle", node())] {
        eprintln!("xtask: {name}");
        let mut target = Started::start(&mut command)?;
        target.wait_until_ready(Duration::from_secs(60))?;
        let mut measured = Measured::default();
        for _ in 0..turns {
            take_turn(observer, target.pid(), rounds, &mut measured)?;
        }
        rows.push(row(name, &measured)?);
    }
    let header = [
        "process",
        "threads",
        "observer, cold",
        "observer, warm",
        "walking alone, warm",
        "the whole command",
        "gdb",
        "eu-stack",
        "gdb costs (cold / warm)",
        "target stopped: observer / gdb / eu-stack",
    ];
    let command = if quick { "cargo xtask bench stacks --quick" } else { "cargo xtask bench stacks" };
    let note = format!(
        "Medians of {turns} turns; warm: of {} rounds. Files are in the page cache for all three. *Cold*: the first look of a new observer, from \
         the registers to names, files and lines of every frame. *The whole command*: that observer from start to end, loading of its eBPF object included; \
         it is what `gdb -p PID -batch -ex 'thread apply all bt'` and `eu-stack -p PID` are measured by.",
        turns * rounds
    );
    Ok(format!("{}\n\n{}\n{note}", provenance(command)?, markdown(&header, &rows)))
}

fn with_threads(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("500");
    command
}

fn node() -> Command {
    let mut command = Command::new("node");
    command.args(["-e", r#"console.log('{"ready":true}'); setInterval(() => {}, 1 << 30)"#]);
    command
}

fn take_turn(observer: &Path, pid: u32, rounds: u32, measured: &mut Measured) -> Result<()> {
    let pid_text = pid.to_string();
    let mut once = Command::new(observer);
    once.args(["bench-stacks", &pid_text, "--rounds", "0"]);
    let (whole, stopped, _) = timed(pid, &mut once)?;
    measured.command.push(whole);
    measured.stopped[0].push(stopped);

    let mut many = Command::new(observer);
    many.args(["bench-stacks", &pid_text, "--rounds", &rounds.to_string()]);
    let printed = invoke::capture(&mut many)?;
    let report: Report = serde_json::from_str(&printed).context("observer bench-stacks did not print its report")?;
    ensure!(report.rounds.len() == rounds as usize + 1, "asked for {rounds} rounds, got {}", report.rounds.len());
    for (number, round) in report.rounds.iter().enumerate() {
        let Round { threads, stacks, complete, frames, named, walk_ns, total_ns } = *round;
        ensure!(stacks == threads && complete == threads, "{complete} of {threads} stacks are complete");
        (measured.threads, measured.frames, measured.named) = (threads, frames, named);
        let total = total_ns as f64 / 1e6;
        if number == 0 {
            measured.cold.push(total);
        } else {
            measured.warm.push(total);
            measured.walk.push(walk_ns as f64 / 1e3 / threads as f64);
        }
    }

    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-p", &pid_text, "-batch", "-ex", "thread apply all bt"]);
    let (took, stopped, printed) = timed(pid, &mut gdb)?;
    let threads = printed.lines().filter(|line| line.starts_with("Thread ")).count() as u64;
    ensure!(threads + 1 >= measured.threads, "gdb listed {threads} threads of {}", measured.threads);
    measured.gdb.push(took);
    measured.stopped[1].push(stopped);

    let mut eu_stack = Command::new("eu-stack");
    eu_stack.args(["-p", &pid_text]);
    let (took, stopped, printed) = timed(pid, &mut eu_stack)?;
    let threads = printed.lines().filter(|line| line.starts_with("TID ")).count() as u64;
    ensure!(threads >= measured.threads, "eu-stack listed {threads} threads of {}", measured.threads);
    measured.eu_stack.push(took);
    measured.stopped[2].push(stopped);
    Ok(())
}

/// Runs a tool on the target: milliseconds it took, milliseconds the target was held by a tracer, and its output.
fn timed(pid: u32, command: &mut Command) -> Result<(f64, f64, String)> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| held_for(pid, &ended));
        let began = Instant::now();
        let output = command.stdin(Stdio::null()).output();
        let took = began.elapsed();
        ended.store(true, Ordering::Relaxed);
        let held = watcher.join().unwrap_or_default();
        let output = output.with_context(|| format!("cannot run `{}`", invoke::shown(command)))?;
        ensure!(
            output.status.success(),
            "`{}` failed: {}",
            invoke::shown(command),
            String::from_utf8_lossy(&output.stderr)
        );
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((took.as_secs_f64() * 1e3, held.as_secs_f64() * 1e3, printed))
    })
}

/// How long the main thread of `pid` was in tracing stop until `ended`.
fn held_for(pid: u32, ended: &AtomicBool) -> Duration {
    let mut held = Duration::ZERO;
    let mut last = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_EVERY);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        let now = Instant::now();
        if state == Some('t') {
            held += now - last;
        }
        last = now;
    }
    held
}

fn row(name: &str, measured: &Measured) -> Result<Vec<String>> {
    let middle = |values: &[f64]| median(values).context("nothing was measured");
    let (cold, warm, gdb) = (middle(&measured.cold)?, middle(&measured.warm)?, middle(&measured.gdb)?);
    let [ours, gdbs, eus] = &measured.stopped;
    Ok(vec![
        format!("{name} ({} of {} frames named)", measured.named, measured.frames),
        measured.threads.to_string(),
        format!("{cold:.1} ms"),
        format!("{warm:.2} ms"),
        format!("{:.1} µs a thread", middle(&measured.walk)?),
        format!("{:.0} ms", middle(&measured.command)?),
        format!("{gdb:.0} ms"),
        format!("{:.0} ms", middle(&measured.eu_stack)?),
        format!("{:.0}× / {:.0}×", gdb / cold, gdb / warm),
        format!("{:.0} / {:.0} / {:.0} ms", middle(ours)?, middle(gdbs)?, middle(eus)?),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians_of_the_same_run() -> Result<()> {
        let measured = Measured {
            threads: 500,
            frames: 9_000,
            named: 8_999,
            cold: vec![20.0],
            warm: vec![4.0],
            walk: vec![7.0],
            command: vec![300.0],
            gdb: vec![1_000.0],
            eu_stack: vec![2_000.0],
            stopped: [vec![0.0], vec![900.0], vec![1_900.0]],
        };
        let row = row("x", &measured)?;
        assert_eq!((row[8].as_str(), row[9].as_str()), ("50× / 250×", "0 / 900 / 1900 ms"));
        Ok(())
    }
}
