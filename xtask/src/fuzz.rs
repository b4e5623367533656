//! `cargo xtask fuzz`: every parser of what a target provides, fed by libFuzzer with a fixed number of runs.
//!
//! Stable Rust counts coverage through LLVM's own pass; sanitizers would need a nightly, and observer's parsers are safe
//! Rust with overflow checks.

use std::fmt::Write;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::{invoke, setup, workspace};

const CRATE: &str = "tests/fuzz";
/// Given explicitly, so that build scripts and macros are built without counters.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What `cargo fuzz -s none` passes; all of it stable.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";

/// How long a target runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    runs: u64,
    /// Seconds; 0: no limit.
    seconds: u64,
}

/// A few seconds for all targets together.
const IN_TESTS: Limits = Limits { runs: 3_000, seconds: 0 };

/// `cargo xtask fuzz [TARGET…] [--runs N] [--seconds S]`; says whether nothing crashed.
pub(crate) fn run(arguments: &[&str]) -> Result<bool> {
    setup::prepare(setup::Purpose::Tests)?;
    let (targets, limits) = parse(arguments)?;
    let all = targets_of_crate()?;
    if let Some(unknown) = targets.iter().find(|target| !all.iter().any(|known| known == *target)) {
        bail!("there is no fuzz target `{unknown}`; there are: {}", all.join(", "));
    }
    let targets = if targets.is_empty() { all } else { targets };
    build(&targets)?;
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let work = || {
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = one(target, limits);
            if let Ok((_, report)) = &outcome {
                print!("{report}");
            }
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome.map(|(survived, _)| survived));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.into_iter().try_fold(true, |clean, survived| Ok(survived? && clean))
}

fn parse(arguments: &[&str]) -> Result<(Vec<String>, Limits)> {
    let mut targets = Vec::new();
    let (mut runs, mut seconds) = (None, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut number = || {
            let text = rest.next().with_context(|| format!("{argument} needs a number"))?;
            text.parse::<u64>().with_context(|| format!("{argument} needs a number, not `{text}`"))
        };
        match *argument {
            "--runs" => runs = Some(number()?),
            "--seconds" => seconds = Some(number()?),
            flag if flag.starts_with('-') => bail!("fuzz takes --runs and --seconds, not {flag}"),
            target => targets.push(target.to_owned()),
        }
    }
    let limits = match (runs, seconds) {
        (None, None) => IN_TESTS,
        // libFuzzer runs for ever when it is given no number.
        (runs, seconds) => Limits { runs: runs.unwrap_or(u64::from(u32::MAX)), seconds: seconds.unwrap_or(0) },
    };
    Ok((targets, limits))
}

fn targets_of_crate() -> Result<Vec<String>> {
    let directory = workspace::root().join(CRATE).join("fuzz_targets");
    let entries = std::fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let mut targets: Vec<String> = entries.filter_map(|entry| stem(entry.ok()?.path())).collect();
    targets.sort_unstable();
    Ok(targets)
}

/// A directory of its own: other flags would build everything anew there and back.
fn built() -> PathBuf {
    workspace::target().join("fuzz")
}

fn build(targets: &[String]) -> Result<()> {
    let began = Instant::now();
    let manifest = format!("{CRATE}/Cargo.toml");
    let mut cargo = workspace::cargo(&["build", "--quiet", "--locked", "--release", "--target", TRIPLE]);
    cargo.args(["--manifest-path", &manifest]).env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", built());
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    for target in targets {
        cargo.args(["--bin", target]);
    }
    // What it prints matters only when it fails: warnings are clippy's business.
    invoke::capture(&mut cargo)?;
    println!("fuzz: built in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Runs one target over its corpus; whether it survived, and a line about it.
fn one(target: &str, limits: Limits) -> Result<(bool, String)> {
    let crashes = built().join("crashes").join(target);
    let found = built().join(if limits == IN_TESTS { "scratch" } else { "corpus" }).join(target);
    for directory in [&crashes, &found] {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let seeds = workspace::root().join(CRATE).join("corpus").join(target);
    ensure!(seeds.is_dir(), "{} is missing: every target has seeds there", seeds.display());
    let program = built().join(TRIPLE).join("release").join(target);
    // A crash that is still there is found again: it is named after its content.
    files(&crashes).iter().try_for_each(std::fs::remove_file)?;
    let mut command = Command::new(&program);
    command.args([
        &format!("-runs={}", limits.runs),
        &format!("-max_total_time={}", limits.seconds),
        &format!("-max_len={}", longest(&seeds).max(256)),
        "-seed=1",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]);
    command.arg(format!("-artifact_prefix={}/", crashes.display()));
    // libFuzzer writes what it finds into the first directory. Runs of the tests begin anew, so that they are alike.
    if limits == IN_TESTS {
        files(&found).iter().try_for_each(std::fs::remove_file)?;
    }
    command.arg(&found);
    command.arg(&seeds);
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let summary = Summary::of(&log);
    let new = files(&crashes);
    let survived = output.status.success() && new.is_empty();
    let Summary { runs, coverage } = summary;
    let crashed = usize::from(!survived).max(new.len());
    let mut report = format!("fuzz {target:10} {runs:9} runs, {crashed} crashes, {coverage:5} edges covered\n");
    if !survived {
        let log_file = crashes.join("log.txt");
        std::fs::write(&log_file, log.as_bytes()).with_context(|| format!("cannot write {}", log_file.display()))?;
        for line in log.lines().filter(|line| line.contains("panicked at") || line.starts_with("SUMMARY")) {
            writeln!(report, "  {line}")?;
        }
        writeln!(report, "  all it said: {}", log_file.display())?;
        for input in &new {
            writeln!(report, "  again: {} {}", program.display(), input.display())?;
        }
        writeln!(report, "  once it is mended: copy the input to {CRATE}/corpus/{target}/found-WHAT")?;
    }
    Ok((survived, report))
}

/// What libFuzzer says at its end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    runs: u64,
    coverage: u64,
}

impl Summary {
    fn of(log: &str) -> Self {
        let behind = |line: &str, key: &str| line.split_once(key)?.1.split_whitespace().next()?.parse().ok();
        let last = |key: &str| log.lines().rev().find_map(|line| behind(line, key)).unwrap_or(0);
        Self { runs: last("stat::number_of_executed_units:"), coverage: last(" cov:") }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.file_name().is_some_and(|name| name != "log.txt")).collect()
}

fn longest(seeds: &Path) -> u64 {
    files(seeds).iter().filter_map(|path| Some(path.metadata().ok()?.len())).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;

    #[test]
    fn arguments() {
        assert_eq!(parse(&[]).unwrap(), (Vec::new(), IN_TESTS));
        let (targets, limits) = parse(&["maps", "--runs", "7", "call"]).unwrap();
        assert_eq!((targets, limits), (vec!["maps".to_owned(), "call".to_owned()], Limits { runs: 7, seconds: 0 }));
        assert_eq!(parse(&["--seconds", "60"]).unwrap().1.seconds, 60);
        for bad in [&["--runs"][..], &["--runs", "x"], &["--jobs", "2"]] {
            assert!(parse(bad).is_err());
        }
    }

    #[test]
    fn every_target_has_seeds_and_is_built() {
        let manifest = std::fs::read_to_string(workspace::root().join(CRATE).join("Cargo.toml")).unwrap();
        let targets = targets_of_crate().unwrap();
        assert!(targets.len() >= 10);
        for target in targets {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is in no [[bin]]");
            let seeds = files(&workspace::root().join(CRATE).join("corpus").join(&target));
            assert!(!seeds.is_empty(), "{target} has no seeds");
        }
    }

    #[test]
    fn the_end_of_a_log() {
        let log = "#2\tINITED cov: 12 ft: 13\n#9\tDONE   cov: 40 ft: 60 corp: 5\nstat::number_of_executed_units: 9\n";
        assert_eq!(Summary::of(log), Summary { runs: 9, coverage: 40 });
        assert_eq!(Summary::of(""), Summary::default());
    }
}
