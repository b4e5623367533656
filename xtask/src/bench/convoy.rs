//! How soon a convoy is explained: many threads behind one mutex whose holder sleeps in `read()`.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::table::{markdown, median, provenance};
use crate::started::Started;
use crate::{invoke, workspace};

/// Threads that wait.
const COUNTS: [u32; 2] = [500, 5_000];

/// What observer waits between its first two censuses: a finding needs both.
const BETWEEN_CENSUSES: f64 = 300.0;

/// How old the convoy is before it is looked at; the threshold is half of that.
const AGE: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Report {
    findings: Vec<Finding>,
    account: Account,
}

#[derive(Deserialize)]
struct Finding {
    kind: String,
    threads: Vec<u32>,
    title: String,
    chain: Vec<Value>,
}

#[derive(Deserialize)]
struct Account {
    censuses: u64,
    judge_ns: u64,
    explain_ns: u64,
}

/// All turns at one number of threads, in milliseconds.
#[derive(Default)]
struct Measured {
    printed: Vec<f64>,
    judged: Vec<f64>,
    explained: Vec<f64>,
    links: usize,
}

/// Measures convoys and returns the table.
pub(crate) fn measure(observer: &Path, quick: bool) -> Result<String> {
    let (counts, turns) = if quick { (&COUNTS[..1], 2) } else { (&COUNTS[..], 9) };
    let program = workspace::compile_c("xtask/bench/convoy.c", "bench")?;
    let mut rows = Vec::new();
    for &count in counts {
        eprintln!("xtask: a convoy of {count}");
        let mut convoy = Started::start(Command::new(&program).arg(count.to_string()))?;
        convoy.wait_until_ready(Duration::from_secs(60))?;
        std::thread::sleep(AGE);
        let mut measured = Measured::default();
        for _ in 0..turns {
            take_turn(observer, convoy.pid(), count, &mut measured)?;
        }
        rows.push(row(count, &measured)?);
    }
    let header = [
        "waiters",
        "start to finding",
        "without the wait between two censuses",
        "judging, a census",
        "stacks, all",
        "edges listed",
    ];
    let command = if quick { "cargo xtask bench convoy --quick" } else { "cargo xtask bench convoy" };
    let note = format!(
        "Medians of {turns} turns. *Start to finding*: from the start of `observer attach PID --once --output ndjson`, loading of its eBPF objects \
         included, to the line of the finding. *Stacks, all*: reading, unwinding and naming the stacks of every thread, once."
    );
    Ok(format!("{}\n\n{}\n{note}", provenance(command)?, markdown(&header, &rows)))
}

fn attach(observer: &Path, pid: u32, output: &str) -> Command {
    let mut command = Command::new(observer);
    command.args(["attach", &pid.to_string(), "--once", "--threshold", "1s", "--output", output]);
    command
}

fn take_turn(observer: &Path, pid: u32, count: u32, measured: &mut Measured) -> Result<()> {
    let began = Instant::now();
    let mut live = Started::start(&mut attach(observer, pid, "ndjson"))?;
    loop {
        let line = live.next_line(Duration::from_secs(60))?.context("observer said nothing of the convoy")?;
        if line.contains("\"kind\":\"lock_wait\"") {
            break;
        }
    }
    measured.printed.push(began.elapsed().as_secs_f64() * 1e3);
    drop(live);

    let (_, printed) = invoke::capture_any(&mut attach(observer, pid, "json"))?;
    let report: Report = serde_json::from_str(&printed).context("observer attach did not print its report")?;
    measured.links = check(&report, count)?;
    let Account { censuses, judge_ns, explain_ns } = report.account;
    measured.judged.push(judge_ns as f64 / 1e6 / censuses as f64);
    measured.explained.push(explain_ns as f64 / 1e6);
    Ok(())
}

/// One finding, of every thread, that names the root; answers with the edges it lists.
fn check(report: &Report, count: u32) -> Result<usize> {
    let [Finding { kind, threads, title, chain }] = report.findings.as_slice() else {
        anyhow::bail!("{} findings of one convoy", report.findings.len());
    };
    ensure!(kind == "lock_wait", "the finding is {kind}");
    ensure!(threads.len() == count as usize + 1, "{} threads of {count} and their holder", threads.len());
    ensure!(title.contains("read"), "the title does not say what the holder does: {title}");
    ensure!(report.account.censuses >= 2, "a finding of {} censuses", report.account.censuses);
    Ok(chain.len())
}

fn row(count: u32, measured: &Measured) -> Result<Vec<String>> {
    let middle = |values: &[f64]| median(values).context("nothing was measured");
    let printed = middle(&measured.printed)?;
    Ok(vec![
        count.to_string(),
        format!("{printed:.0} ms"),
        format!("{:.0} ms", printed - BETWEEN_CENSUSES),
        format!("{:.2} ms", middle(&measured.judged)?),
        format!("{:.1} ms", middle(&measured.explained)?),
        measured.links.to_string(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(threads: u32, title: &str) -> Report {
        let finding = Finding {
            kind: "lock_wait".to_owned(),
            threads: (0..threads).collect(),
            title: title.to_owned(),
            chain: vec![Value::Null; 3],
        };
        Report { findings: vec![finding], account: Account { censuses: 2, judge_ns: 1, explain_ns: 1 } }
    }

    #[test]
    fn a_report_of_something_else_is_refused() {
        assert_eq!(check(&report(11, "t1 holds it, in read()"), 10).ok(), Some(3));
        assert!(check(&report(10, "t1 holds it, in read()"), 10).is_err(), "a waiter is missing");
        assert!(check(&report(11, "somebody holds it"), 10).is_err(), "not the root");
        assert!(check(&Report { findings: Vec::new(), ..report(1, "") }, 10).is_err(), "nothing found");
    }
}
