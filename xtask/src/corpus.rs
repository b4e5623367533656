//! `cargo xtask corpus locks`: random lock programs that log their own truth, and what observer makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::setup::{self, Purpose};
use crate::started::Started;
use crate::{bench, invoke, workspace};

const READY_WITHIN: Duration = Duration::from_secs(30);
const KINDS: [&str; 2] = ["mutex", "rwlock"];

/// What was right and wrong, of one kind of lock.
#[derive(Debug, Default)]
struct Score {
    programs: u32,
    circles: u32,
    /// Found circles by confidence: (right, wrong).
    found: BTreeMap<String, (u32, u32)>,
    /// Inferred holders by the confidence of their edge: (right, wrong).
    holders: BTreeMap<String, (u32, u32)>,
    missed: u32,
}

/// Runs `count` programs of each kind of lock from `seed` on, and prints a table.
pub(crate) fn locks(seed: u64, count: u64) -> Result<()> {
    if !invoke::is_root() {
        bail!("corpus locks loads eBPF programs: run it as root (sudo -E cargo xtask corpus locks)");
    }
    setup::prepare(Purpose::Demonstration)?;
    let observer = bench::observer()?;
    let program = build()?;
    let mut table = String::from(
        "| lock | programs | circles | found, right (likely / possible) | found, wrong (likely / possible) | missed | holders right (likely / possible) | holders wrong (likely / possible) |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for kind in KINDS {
        let mut score = Score::default();
        for seed in seed..seed + count {
            one(&observer, &program, kind, seed, &mut score).with_context(|| format!("locks {seed} {kind}"))?;
        }
        let pair = |scores: &BTreeMap<String, (u32, u32)>, right: bool| {
            let of = |confidence: &str| scores.get(confidence).map_or(0, |score| if right { score.0 } else { score.1 });
            format!("{} / {}", of("likely"), of("possible"))
        };
        table.push_str(&format!(
            "| Rust std {kind} | {} | {} | {} | {} | {} | {} | {} |\n",
            score.programs,
            score.circles,
            pair(&score.found, true),
            pair(&score.found, false),
            score.missed,
            pair(&score.holders, true),
            pair(&score.holders, false),
        ));
    }
    println!("\n{table}\n`cargo xtask corpus locks --seed {seed} --count {count}`");
    Ok(())
}

fn build() -> Result<PathBuf> {
    let directory = workspace::target().join("corpus");
    std::fs::create_dir_all(&directory)?;
    let program = directory.join("locks");
    let source = workspace::root().join("xtask/corpus/locks.rs");
    invoke::run(Command::new("rustc").args(["--edition", "2024", "-O", "-o"]).arg(&program).arg(source))?;
    Ok(program)
}

fn one(observer: &Path, program: &Path, kind: &str, seed: u64, score: &mut Score) -> Result<()> {
    let mut command = Command::new(program);
    command.args([&seed.to_string(), kind]);
    let mut victim = Started::start(&mut command)?;
    let truth = Truth::read(&victim.wait_until_ready(READY_WITHIN)?)?;
    let mut attach = Command::new(observer);
    attach.args(["attach", &victim.pid().to_string(), "--once", "--threshold", "1s", "--output", "json"]);
    let (_, printed) = invoke::capture_any(&mut attach)?;
    let report: Value = serde_json::from_str(&printed).context("observer printed no report")?;
    score.programs += 1;
    let mut missed = truth.circles();
    score.circles += missed.len() as u32;
    let findings = report["findings"].as_array().context("findings")?;
    for finding in findings.iter().filter(|finding| finding["kind"] == "deadlock") {
        let chain = finding["chain"].as_array().context("chain")?;
        let cycle = finding["evidence"]["cycle"].as_u64().context("cycle")? as usize;
        let mut members = BTreeSet::new();
        for link in chain.iter().take(cycle) {
            let waiter = link["from"]["tid"].as_u64().context("from")?;
            let holder = link["held_by"]["tid"].as_u64().context("held_by")?;
            members.insert(waiter);
            let is_right = truth.holder_for(waiter) == Some(holder);
            count(&mut score.holders, link, is_right);
        }
        let is_right = missed.remove(&members);
        count(&mut score.found, finding, is_right);
        if !is_right {
            println!("{kind} {seed}: no such circle: {members:?} ({})", finding["confidence"]);
        }
    }
    for members in &missed {
        println!("{kind} {seed}: missed {members:?}");
    }
    score.missed += missed.len() as u32;
    Ok(())
}

fn count(scores: &mut BTreeMap<String, (u32, u32)>, of: &Value, is_right: bool) {
    let entry = scores.entry(of["confidence"].as_str().unwrap_or("?").to_owned()).or_default();
    if is_right {
        entry.0 += 1;
    } else {
        entry.1 += 1;
    }
}

/// Who holds and who waits, as the program says.
#[derive(Debug, Default)]
struct Truth {
    waits: BTreeMap<u64, u64>,
    holder_of: BTreeMap<u64, u64>,
}

impl Truth {
    fn read(line: &Value) -> Result<Self> {
        let mut truth = Self::default();
        for seat in line["seats"].as_array().context("seats")? {
            let tid = seat["tid"].as_u64().context("tid")?;
            if let Some(lock) = seat["waits"].as_u64().filter(|lock| *lock != 0) {
                truth.waits.insert(tid, lock);
            }
            for lock in seat["holds"].as_array().context("holds")? {
                let lock = lock.as_u64().context("a lock")?;
                ensure!(truth.holder_of.insert(lock, tid).is_none(), "two threads hold {lock:#x}");
            }
        }
        Ok(truth)
    }

    /// The thread that has the lock which this one waits for.
    fn holder_for(&self, waiter: u64) -> Option<u64> {
        self.holder_of.get(self.waits.get(&waiter)?).copied()
    }

    fn circles(&self) -> BTreeSet<BTreeSet<u64>> {
        let mut circles = BTreeSet::new();
        for start in self.waits.keys() {
            let mut members = BTreeSet::from([*start]);
            let mut at = *start;
            while let Some(next) = self.holder_for(at) {
                if next == *start {
                    circles.insert(members);
                    break;
                }
                if !members.insert(next) {
                    break;
                }
                at = next;
            }
        }
        circles
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn circles_are_those_of_the_truth() -> Result<()> {
        let seat = |tid: u64, waits: u64, holds: &[u64]| json!({ "tid": tid, "waits": waits, "holds": holds });
        // 1 and 2 in a circle, 3 behind them, 4 behind a sleeper.
        let seats = [seat(1, 20, &[10]), seat(2, 10, &[20]), seat(3, 10, &[]), seat(4, 30, &[]), seat(5, 0, &[30])];
        let truth = Truth::read(&json!({ "seats": seats }))?;
        assert_eq!(truth.circles(), BTreeSet::from([BTreeSet::from([1, 2])]));
        assert_eq!((truth.holder_for(3), truth.holder_for(4), truth.holder_for(5)), (Some(1), Some(5), None));
        let twice = json!({ "seats": [seat(1, 0, &[10]), seat(2, 0, &[10])] });
        assert!(Truth::read(&twice).is_err());
        Ok(())
    }
}
