//! `cargo xtask corpus locks`: random lock programs that log their own truth, and what observer makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::setup::{self, Purpose};
use crate::started::Started;
use crate::{bench, invoke, workspace};

const READY_WITHIN: Duration = Duration::from_secs(30);
/// Programs that run at the same time: they mostly sleep.
const TOGETHER: usize = 4;

/// A kind of lock: its library, what the program calls it, and how the program is built.
struct Kind {
    library: &'static str,
    name: &'static str,
    build: Build,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Build {
    Cargo,
    Gcc,
    Gxx,
    Musl,
}

const fn kind(library: &'static str, name: &'static str, build: Build) -> Kind {
    Kind { library, name, build }
}

const KINDS: [Kind; 15] = [
    kind("rust", "mutex", Build::Cargo),
    kind("rust", "rwlock", Build::Cargo),
    kind("rust", "once", Build::Cargo),
    kind("parking_lot", "parking-mutex", Build::Cargo),
    kind("parking_lot", "parking-rwlock", Build::Cargo),
    kind("glibc", "normal", Build::Gcc),
    kind("glibc", "recursive", Build::Gcc),
    kind("glibc", "errorcheck", Build::Gcc),
    kind("glibc", "robust", Build::Gcc),
    kind("glibc", "rwlock", Build::Gcc),
    kind("c++", "std-mutex", Build::Gxx),
    kind("c++", "shared-mutex", Build::Gxx),
    kind("musl", "recursive", Build::Musl),
    kind("musl", "errorcheck", Build::Musl),
    kind("musl", "normal", Build::Musl),
];

/// What to run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) count: u64,
    /// Of this library only.
    pub(crate) library: Option<String>,
    /// Programs in which no circle can form.
    pub(crate) healthy: bool,
}

impl Plan {
    /// From the words behind `corpus locks`.
    pub(crate) fn parse(mut words: &[&str]) -> Result<Self> {
        let mut plan = Self { seed: 1, count: 40, library: None, healthy: false };
        let number = |text: &str| text.parse::<u64>().with_context(|| format!("{text} is no number"));
        loop {
            words = match words {
                [] => return Ok(plan),
                ["--seed", seed, rest @ ..] => {
                    plan.seed = number(seed)?;
                    rest
                }
                ["--count", count, rest @ ..] => {
                    plan.count = number(count)?;
                    rest
                }
                ["--library", name, rest @ ..] => {
                    let known: BTreeSet<&str> = KINDS.iter().map(|kind| kind.library).collect();
                    ensure!(known.contains(name), "no such library: {name}; there are {known:?}");
                    plan.library = Some((*name).to_owned());
                    rest
                }
                ["--healthy", rest @ ..] => {
                    plan.healthy = true;
                    rest
                }
                _ => bail!("corpus locks takes --seed N, --count N, --library NAME, --healthy; not {words:?}"),
            };
        }
    }

    fn command(&self) -> String {
        let library = self.library.as_ref().map_or_else(String::new, |name| format!(" --library {name}"));
        let healthy = if self.healthy { " --healthy" } else { "" };
        format!("cargo xtask corpus locks --seed {} --count {}{library}{healthy}", self.seed, self.count)
    }
}

/// What was right and wrong, of one kind of lock.
#[derive(Debug, Default)]
struct Score {
    programs: u32,
    circles: u32,
    /// Found circles by confidence: (right, wrong).
    found: BTreeMap<String, (u32, u32)>,
    /// Holders in them by the confidence of their edge: (right, wrong).
    holders: BTreeMap<String, (u32, u32)>,
    missed: u32,
}

impl Score {
    fn row(&self, name: &str) -> String {
        let three = |scores: &BTreeMap<String, (u32, u32)>, right: bool| {
            let of = |confidence: &str| scores.get(confidence).map_or(0, |score| if right { score.0 } else { score.1 });
            format!("{} / {} / {}", of("certain"), of("likely"), of("possible"))
        };
        format!(
            "| {name} | {} | {} | {} | {} | {} | {} | {} |\n",
            self.programs,
            self.circles,
            three(&self.found, true),
            three(&self.found, false),
            self.missed,
            three(&self.holders, true),
            three(&self.holders, false),
        )
    }
}

/// Runs the programs of each kind of lock, and prints a table. The answer is whether all went as it must: no `deadlock` of a
/// healthy program, none that is certain and wrong.
pub(crate) fn locks(plan: &Plan) -> Result<bool> {
    if !invoke::is_root() {
        bail!("corpus locks loads eBPF programs: run it as root (sudo -E cargo xtask corpus locks)");
    }
    setup::prepare(Purpose::Demonstration)?;
    let observer = bench::observer()?;
    let mut table = String::from(
        "In each cell: certain / likely / possible.\n\n| lock | programs | circles | found, right | found, wrong | missed | holders right | holders wrong |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let mut programs: BTreeMap<Build, PathBuf> = BTreeMap::new();
    let mut is_sound = true;
    for kind in KINDS.iter().filter(|kind| plan.library.as_ref().is_none_or(|library| library == kind.library)) {
        if kind.build == Build::Musl && !invoke::is_installed("musl-gcc") {
            println!("musl {}: left out, musl-gcc is not installed", kind.name);
            continue;
        }
        let program = match programs.get(&kind.build) {
            Some(program) => program.clone(),
            None => programs.entry(kind.build).or_insert(build(kind.build)?).clone(),
        };
        let score = all_of(&observer, &program, kind, plan)?;
        let wrong = |confidence: &str| score.found.get(confidence).map_or(0, |score| score.1);
        is_sound &= wrong("certain") == 0 && (!plan.healthy || score.found.is_empty());
        let row = score.row(&format!("{} {}", kind.library, kind.name));
        print!("{row}");
        table.push_str(&row);
    }
    println!("\n{table}\n`{}`", plan.command());
    Ok(is_sound)
}

/// The program of the corpus that has these locks.
fn build(build: Build) -> Result<PathBuf> {
    if build == Build::Cargo {
        let arguments = ["build", "--release", "-p", "observer-tests", "--features", "corpus", "--bin", "corpus_locks"];
        invoke::run(&mut workspace::cargo(&arguments))?;
        return Ok(workspace::target().join("release/corpus_locks"));
    }
    let (compiler, name) = match build {
        Build::Musl => (&["musl-gcc"][..], "locks_musl"),
        Build::Gxx => (&["g++", "-x", "c++"][..], "locks_cpp"),
        Build::Gcc | Build::Cargo => (&["gcc"][..], "locks_c"),
    };
    let directory = workspace::target().join("corpus");
    std::fs::create_dir_all(&directory)?;
    let program = directory.join(name);
    let source = workspace::root().join("xtask/corpus/locks.c");
    let mut command = Command::new(compiler[0]);
    invoke::run(command.args(&compiler[1..]).args(["-O2", "-g", "-pthread", "-o"]).arg(&program).arg(source))?;
    Ok(program)
}

/// All programs of one kind, some at a time.
fn all_of(observer: &Path, program: &Path, kind: &Kind, plan: &Plan) -> Result<Score> {
    let score = Mutex::new(Score::default());
    let next = AtomicU64::new(plan.seed);
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= plan.seed + plan.count {
                    return Ok(());
                }
                one(observer, program, kind, seed, plan.healthy, &score)
                    .with_context(|| format!("locks {seed} {} ({})", kind.name, kind.library))?;
            }
        };
        let workers: Vec<_> = (0..TOGETHER).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
    })?;
    score.into_inner().context("a worker panicked")
}

fn one(observer: &Path, program: &Path, kind: &Kind, seed: u64, healthy: bool, score: &Mutex<Score>) -> Result<()> {
    let mut command = Command::new(program);
    command.args([&seed.to_string(), kind.name]).args(healthy.then_some("healthy"));
    let mut victim = Started::start(&mut command)?;
    let truth = Truth::read(&victim.wait_until_ready(READY_WITHIN)?)?;
    let mut attach = Command::new(observer);
    attach.args(["attach", &victim.pid().to_string(), "--once", "--threshold", "1s", "--output", "json"]);
    let (_, printed) = invoke::capture_any(&mut attach)?;
    let report: Value = serde_json::from_str(&printed).context("observer printed no report")?;
    let mut missed = truth.circles();
    let Ok(mut score) = score.lock() else { bail!("a worker panicked") };
    score.programs += 1;
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
            if !is_right {
                let (how, confidence) = (&link["how"], &link["confidence"]);
                println!("{} {seed}: {waiter} does not wait for {holder} ({confidence}: {how})", kind.name);
            }
        }
        let is_right = missed.remove(&members);
        count(&mut score.found, finding, is_right);
        if !is_right {
            println!("{} {seed}: no such circle: {members:?} ({})", kind.name, finding["confidence"]);
        }
    }
    for members in &missed {
        println!("{} {seed}: missed {members:?}", kind.name);
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
