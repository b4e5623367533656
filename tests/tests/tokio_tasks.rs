//! The tasks of tokio programs from outside, against what the same program says of them.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::{Abi, victim};
use observer_tests::debts::{attach, look};
use observer_tests::guard::Guard;
use observer_tests::report::Report;
use observer_tests::tokio_program::Build;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// The version that observer's own lock file has.
const NEW: &str = "1.54.1";
const OLD: &str = "1.40.0";
/// Tasks of `churn` that are started together, and end before the next ones are.
const BRIEF: u64 = 20;

/// A running victim.
struct Program {
    guard: Guard,
    /// What it said when it was ready.
    own: Value,
}

impl Program {
    fn start(program: &Path, runtime: &str, mode: &str) -> Result<Self> {
        let mut command = Command::new(program);
        command.args([runtime, mode]);
        let mut guard = Guard::start(command, Stdio::inherit())?;
        let line = guard.line(LIMIT)?.context("it ended")?;
        Ok(Self { guard, own: serde_json::from_str(&line)? })
    }

    /// What it says now.
    fn count(&mut self) -> Result<Value> {
        self.guard.tell("count")?;
        Ok(serde_json::from_str(&self.guard.line(LIMIT)?.context("it ended")?)?)
    }

    fn look(&self) -> Result<Report> {
        look(&[self.guard.pid()])
    }
}

fn tasks(report: &Report, pid: i32) -> Result<&Value> {
    let tasks = &report.process(pid)?["tasks"];
    ensure!(tasks.is_object(), "no tasks; lost: {:#}", report.json["account"]);
    Ok(tasks)
}

fn number(value: &Value, key: &str) -> Result<u64> {
    value[key].as_u64().with_context(|| format!("no number {key}: {value:#}"))
}

/// Each task is there once, and is one.
fn expect_sound(tasks: &Value) -> Result<()> {
    let mut ids = BTreeSet::new();
    for group in tasks["groups"].as_array().context("groups")? {
        let states = ["idle", "notified", "running"].iter().map(|state| number(group, state)).sum::<Result<u64>>()?;
        ensure!(number(group, "count")? == states, "{group:#}");
        for task in group["tasks"].as_array().context("tasks")? {
            ensure!(ids.insert(number(task, "id")?), "one id twice: {tasks:#}");
        }
    }
    ensure!(tasks["cut_bytes"] == 0, "{tasks:#}");
    Ok(())
}

/// The group whose future's name ends in this.
fn group<'a>(tasks: &'a Value, name: &str) -> Result<&'a Value> {
    let groups = tasks["groups"].as_array().context("groups")?;
    let is_it = |group: &&Value| group["future"].as_str().is_some_and(|future| future.contains(&format!("::{name}")));
    groups.iter().find(is_it).with_context(|| format!("no group {name}: {tasks:#}"))
}

/// Compares one look at a program that is still with what it says, for both kinds of runtimes.
fn compare(build: Build, is_named: bool) -> Result<()> {
    let program = build.program()?;
    for runtime in ["multi", "current"] {
        let mut running = Program::start(&program, runtime, "still")?;
        let report = running.look().with_context(|| format!("{build:?} {runtime}"))?;
        let own = running.count()?;
        let tasks = tasks(&report, running.guard.pid())?;
        expect_sound(tasks)?;
        ensure!(tasks["total"] == own["alive"], "{build:?} {runtime}: {own} {tasks:#}");
        ensure!(tasks["idle"] == own["alive"] && tasks["complete"] == own["complete"], "{own} {tasks:#}");
        ensure!(tasks["version"] == build.tokio && tasks["lost"] == serde_json::json!({}), "{tasks:#}");
        report.expect_silence("a program with idle tasks")?;
        let mut counts: Vec<u64> = Vec::new();
        for group in tasks["groups"].as_array().context("groups")? {
            counts.push(number(group, "count")?);
        }
        counts.retain(|count| *count > 0);
        ensure!(counts == [23, 9, 1, 1], "{counts:?} of {tasks:#}");
        if is_named {
            for name in ["receive", "sleep_long", "wait_for", "Aligned"] {
                ensure!(number(group(tasks, name)?, "count")? == number(&own, name)?, "{name}: {own} {tasks:#}");
            }
        }
    }
    Ok(())
}

#[test]
fn census_is_the_programs_own_stripped_and_old() -> Result<()> {
    compare(Build::release(OLD).stripped(), false)
}

#[test]
fn census_is_the_programs_own_stripped() -> Result<()> {
    compare(Build::release(NEW).stripped(), false)
}

#[test]
fn census_is_the_programs_own_and_types_have_their_symbols_names() -> Result<()> {
    compare(Build::release(NEW).with("-C symbol-mangling-version=v0"), true)
}

#[test]
fn census_is_the_programs_own_and_types_have_the_names_of_debug_information() -> Result<()> {
    compare(Build::debug(NEW), true)?;
    compare(Build::debug(OLD), true)
}

#[test]
fn census_is_the_programs_own_of_programs_that_are_linked_otherwise() -> Result<()> {
    let fixed = "-C relocation-model=static -C symbol-mangling-version=v0";
    compare(Build::release(NEW).with(fixed), true)?;
    let alone = "-C target-feature=+crt-static -C symbol-mangling-version=v0";
    compare(Build::release(NEW).with(alone), true)
}

#[test]
fn while_tasks_come_and_go_none_is_invented() -> Result<()> {
    let program = Build::release(NEW).with("-C symbol-mangling-version=v0").program()?;
    for runtime in ["multi", "current"] {
        let running = Program::start(&program, runtime, "churn")?;
        let pid = running.guard.pid();
        let lasting: u64 = ["receive", "sleep_long", "wait_for", "Aligned"]
            .iter()
            .map(|name| number(&running.own, name))
            .sum::<Result<u64>>()?;
        for _ in 0..3 {
            let report = running.look()?;
            let tasks = tasks(&report, pid)?;
            expect_sound(tasks)?;
            for name in ["receive", "sleep_long", "wait_for", "Aligned"] {
                ensure!(number(group(tasks, name)?, "count")? == number(&running.own, name)?, "{name}: {tasks:#}");
            }
            let total = number(tasks, "total")?;
            ensure!((lasting..=lasting + BRIEF).contains(&total), "{total} tasks of {lasting}: {tasks:#}");
            report.expect_silence("a busy program")?;
        }
    }
    Ok(())
}

#[test]
fn workers_that_block_leave_tasks_ready_to_run() -> Result<()> {
    let program = Build::debug(NEW).program()?;
    for runtime in ["multi", "current"] {
        let running = Program::start(&program, runtime, "blocked")?;
        let report = running.look()?;
        let tasks = tasks(&report, running.guard.pid())?;
        ensure!(tasks["total"] == running.own["alive"], "{} {tasks:#}", running.own);
        ensure!(tasks["running"] == running.own["block_worker"], "{} {tasks:#}", running.own);
        ensure!(tasks["notified"] == running.own["ready"], "{} {tasks:#}", running.own);
        ensure!(number(group(tasks, "ready")?, "longest_notified_ns")? > 0, "{tasks:#}");
        // The lock that they wait for is told, as ever.
        ensure!(report.json["findings"].as_array().is_some_and(|all| all.iter().any(|one| one["kind"] == "lock_wait")));
    }
    Ok(())
}

#[test]
fn the_screen_tells_them_in_a_few_lines() -> Result<()> {
    let program = Build::debug(NEW).program()?;
    let running = Program::start(&program, "multi", "still")?;
    let screen = attach(&[running.guard.pid()], &["--once"])?.expect_code(0)?.stdout;
    let told = format!("{} tasks of tokio {NEW}, read in ", running.own["alive"]);
    ensure!(screen.contains(&told), "not {told}: {screen}");
    ensure!(screen.contains("    23 idle") && screen.contains("::receive"), "{screen}");
    Ok(())
}

#[test]
fn what_has_no_tasks_is_left_alone() -> Result<()> {
    let without = Path::new(env!("CARGO_BIN_EXE_native_locks"));
    let c = victim("healthy_waits", Abi::Native)?;
    for (program, arguments) in [(without, ["busy"].as_slice()), (&c, &["nanosleep"])] {
        let mut command = Command::new(program);
        command.args(arguments);
        let mut guard = Guard::start(command, Stdio::inherit())?;
        guard.line(LIMIT)?.context("it ended")?;
        let report = look(&[guard.pid()])?;
        ensure!(report.process(guard.pid())?["tasks"].is_null(), "{}", program.display());
        let account = report.json["account"].to_string();
        ensure!(!account.contains("task"), "{account}");
    }
    Ok(())
}
