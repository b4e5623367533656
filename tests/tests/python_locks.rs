//! Locks of CPython, read from outside: the GIL, `Lock`, `RLock`.

use anyhow::{Context, Result, ensure};
use observer_tests::guard::Guard;
use observer_tests::observer::Observer;
use observer_tests::report::Report;
use observer_tests::skip;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/victims/locks.py");

/// An interpreter of this version, by its own name or of pyenv.
fn python(version: &str) -> Option<PathBuf> {
    let name = format!("python{version}");
    let versions = PathBuf::from(std::env::var_os("HOME")?).join(".pyenv/versions");
    let of_pyenv = std::fs::read_dir(versions).into_iter().flatten().flatten();
    let of_pyenv = of_pyenv.map(|entry| entry.path().join("bin").join(&name));
    let others = ["/usr/bin", "/usr/local/bin"].map(|directory| PathBuf::from(directory).join(&name));
    of_pyenv.chain(others).find(|path| path.exists())
}

struct Victim {
    guard: Guard,
    tids: BTreeMap<String, i32>,
}

impl Victim {
    fn start(python: &PathBuf, mode: &str, threads: usize) -> Result<Self> {
        let mut command = Command::new(python);
        command.args([SCRIPT, mode, &threads.to_string()]);
        let mut guard = Guard::start(command, Stdio::null())?;
        let line = guard.line(Duration::from_secs(20))?.with_context(|| format!("{mode}: no line"))?;
        let named = line.split_whitespace().filter_map(|word| word.split_once('='));
        let tids = named.map(|(name, tid)| Ok((name.to_owned(), tid.parse()?))).collect::<Result<_>>()?;
        Ok(Self { guard, tids })
    }

    fn look(&self, options: &[&str]) -> Result<Report> {
        let options = [&["--output", "json"], options].concat();
        Observer::attach(&[self.guard.pid()], &options)?.run()?.report()
    }

    fn tid(&self, name: &str) -> Result<i32> {
        self.tids.get(name).copied().with_context(|| name.to_owned())
    }
}

#[test]
fn two_threads_with_two_locks_in_opposite_order() -> Result<()> {
    let Some(python) = python("3.13") else { skip!("no CPython 3.13 is installed") };
    for (mode, detail) in [("lock", "(Python lock)"), ("rlock", "(Python RLock)")] {
        let victim = Victim::start(&python, mode, 2)?;
        let report = victim.look(&["--once"])?;
        let all: Vec<_> = report.findings().collect();
        let [finding] = all.as_slice() else { anyhow::bail!("{mode}: {all:#?}") };
        finding.expect("kind", "deadlock")?.expect("confidence", "likely")?;
        let (left, right) = (victim.tid("left")?, victim.tid("right")?);
        finding.expect_threads([left, right])?;
        let chain = finding.0["chain"].as_array().context("chain")?;
        ensure!(chain.len() == 2, "{mode}: {chain:#?}");
        for link in chain {
            ensure!(link["waits_for"]["detail"] == detail, "{mode}: {link:#}");
            ensure!(link["from"]["tid"] != link["held_by"]["tid"], "{mode}: {link:#}");
        }
        // Each sleeps once: since when is a fact, and there is no time limit.
        ensure!(finding.0["evidence"]["since_exact"] != false, "{:#}", finding.0);
        let explanation = finding.0["explanation"].as_str().context("explanation")?;
        ensure!(explanation.contains("None of these waits has a time limit"), "{explanation}");
    }
    Ok(())
}

#[test]
fn one_thread_with_a_lock_that_it_holds_itself() -> Result<()> {
    let Some(python) = python("3.13") else { skip!("no CPython 3.13 is installed") };
    let victim = Victim::start(&python, "itself", 1)?;
    let report = victim.look(&["--once"])?;
    let all: Vec<_> = report.findings().collect();
    let [finding] = all.as_slice() else { anyhow::bail!("{all:#?}") };
    finding.expect("kind", "deadlock")?.expect_threads([victim.tid("itself")?])?;
    Ok(())
}

#[test]
fn a_holder_that_sleeps_with_a_lock() -> Result<()> {
    let Some(python) = python("3.13") else { skip!("no CPython 3.13 is installed") };
    for mode in ["held-lock", "held-rlock"] {
        let victim = Victim::start(&python, mode, 3)?;
        let report = victim.look(&["--once"])?;
        expect_held(&report, &victim, mode, "holder", "clock_nanosleep")?;
    }
    Ok(())
}

#[test]
fn a_c_function_that_keeps_the_gil() -> Result<()> {
    let Some(python) = python("3.13") else { skip!("no CPython 3.13 is installed") };
    let victim = Victim::start(&python, "gil", 3)?;
    let report = victim.look(&["--once"])?;
    expect_held(&report, &victim, "gil", "main", "clock_nanosleep")?;
    let behind = report.thread(victim.guard.pid(), victim.tid("behind-0")?)?;
    ensure!(behind["wait"]["resource"]["detail"] == "(Python GIL)", "{behind:#}");
    Ok(())
}

/// Exactly one finding: three threads behind this one.
fn expect_held(report: &Report, victim: &Victim, mode: &str, holder: &str, doing: &str) -> Result<()> {
    let all: Vec<_> = report.findings().collect();
    let [finding] = all.as_slice() else { anyhow::bail!("{mode}: {all:#?}") };
    finding.expect("kind", "lock_wait")?.expect("confidence", "likely")?;
    finding.expect_threads(victim.tids.values().copied())?;
    let evidence = &finding.0["evidence"];
    ensure!(evidence["holder_tid"] == victim.tid(holder)? && evidence["waiters"] == 3, "{mode}: {evidence:#}");
    ensure!(evidence["holder_doing"].as_str().is_some_and(|what| what.contains(doing)), "{mode}: {evidence:#}");
    Ok(())
}

#[test]
fn a_circle_of_the_gil_and_a_mutex() -> Result<()> {
    let Some(python) = python("3.13") else { skip!("no CPython 3.13 is installed") };
    let victim = Victim::start(&python, "gil-and-mutex", 1)?;
    let report = victim.look(&["--once"])?;
    let all: Vec<_> = report.findings().collect();
    let [finding] = all.as_slice() else { anyhow::bail!("{all:#?}") };
    finding.expect("kind", "deadlock")?.expect("confidence", "likely")?;
    finding.expect_threads([victim.tid("main")?, victim.tid("owner")?])?;
    Ok(())
}

#[test]
fn no_owner_is_named_that_is_not_known() -> Result<()> {
    let Some(python) = python("3.13") else { skip!("no CPython 3.13 is installed") };
    // Taken without `with`; and beside others that were inside of it before, or have let it go in `Condition.wait`.
    for mode in ["held-bare", "stale"] {
        let victim = Victim::start(&python, mode, 2)?;
        let report = victim.look(&["--once"])?;
        report.expect_silence(mode)?;
        for thread in report.process(victim.guard.pid())?["threads"].as_array().context("threads")? {
            ensure!(thread["wait"]["holder"].is_null(), "{mode}: {thread:#}");
        }
    }
    Ok(())
}

#[test]
fn programs_at_work_and_at_rest() -> Result<()> {
    are_left_alone(&[("busy", 4), ("busy", 1), ("pool", 4)])
}

#[test]
fn programs_whose_threads_take_turns() -> Result<()> {
    are_left_alone(&[("contended", 4), ("contended-rlock", 4)])
}

fn are_left_alone(programs: &[(&str, usize)]) -> Result<()> {
    let Some(python) = python("3.13") else { skip!("no CPython 3.13 is installed") };
    for &(mode, threads) in programs {
        let victim = Victim::start(&python, mode, threads)?;
        victim.look(&["--for", "8s"])?.expect_silence(mode)?;
    }
    Ok(())
}

#[test]
fn older_interpreters_are_refused_with_a_reason() -> Result<()> {
    let found: Vec<PathBuf> = ["3.11", "3.12"].into_iter().filter_map(python).collect();
    if found.is_empty() {
        skip!("no CPython 3.11 or 3.12 is installed");
    }
    for python in found {
        let victim = Victim::start(&python, "lock", 2)?;
        let report = victim.look(&["--once"])?;
        report.expect_silence("two locks")?;
        let lost = report.json["account"]["facts_lost"].as_object().context("facts_lost")?;
        ensure!(lost.keys().any(|why| why.contains("older than 3.13")), "{lost:#?}");
        let left = report.thread(victim.guard.pid(), victim.tid("left")?)?;
        ensure!(left["wait"]["holder"].is_null(), "{left:#}");
    }
    Ok(())
}
