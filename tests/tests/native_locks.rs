//! Locks of musl, `parking_lot` and C++, and what is initialised once: who holds them, and how sure that is.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::Recipe;
use observer_tests::deadline::wait_for_age;
use observer_tests::guard::Guard;
use observer_tests::observer::{Observer, look_at};
use observer_tests::report::Report;
use observer_tests::skip;
use observer_tests::victim::{Unready, Victim};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MUSL: [Recipe; 2] = [
    recipe("musl_lock", "deadlock.c", &["musl-gcc", "-O2", "-g", "-pthread"]),
    recipe("musl_static", "deadlock.c", &["musl-gcc", "-O2", "-g", "-pthread", "-static"]),
];
const MUSL_CONTENDED: Recipe = recipe("musl_busy", "healthy_contended.c", &["musl-gcc", "-O2", "-pthread"]);
const CPP: Recipe = recipe("locks_cpp", "locks_cpp.cpp", &["g++", "-O2", "-g", "-pthread"]);

const fn recipe(program: &'static str, source: &'static str, command: &'static [&'static str]) -> Recipe {
    Recipe { program, source, command }
}

fn start(recipe: &Recipe, args: &[&str]) -> Result<Victim> {
    let mut command = Command::new(recipe.build()?);
    command.args(args);
    Unready::start_command(command, format!("{} {}", recipe.program, args.join(" ")))?.ready()
}

/// A program that prints `ready` and the addresses of its locks.
struct Program {
    guard: Guard,
    what: String,
    locks: Vec<String>,
    started: Instant,
}

impl Program {
    fn start(mut command: Command, mode: &str) -> Result<Self> {
        command.arg(mode);
        let mut guard = Guard::start(command, Stdio::null())?;
        let line = guard.line(Duration::from_secs(20))?.with_context(|| mode.to_owned())?;
        let locks = line.split_whitespace().skip(1).map(str::to_owned).collect();
        Ok(Self { guard, what: mode.to_owned(), locks, started: Instant::now() })
    }

    fn rust(mode: &str) -> Result<Self> {
        Self::start(Command::new(env!("CARGO_BIN_EXE_native_locks")), mode)
    }

    fn cpp(mode: &str) -> Result<Self> {
        Self::start(Command::new(CPP.build()?), mode)
    }

    fn look(&self) -> Result<Report> {
        wait_for_age(self.started, Duration::from_secs(2))?;
        Observer::attach(&[self.guard.pid()], &["--once", "--output", "json"])?.run()?.report()
    }

    /// One deadlock: these threads, each waiting for the next, by the locks that the program printed.
    fn expect_circle(&self, names: &[&str], confidences: &[&str], how: &str) -> Result<()> {
        // On a busy machine a look ends before all stacks are known that an inference needs.
        let (what, mut report) = (&self.what, self.look()?);
        for _ in 1..LOOKS {
            if report.findings().next().is_none() {
                report = self.look()?;
            }
        }
        let all: Vec<_> = report.findings().collect();
        let [finding] = all.as_slice() else { anyhow::bail!("{what}: {all:#?}") };
        let json = finding.0;
        ensure!(finding.kind() == "deadlock" && json["evidence"]["cycle"] == names.len(), "{what}: {json:#}");
        ensure!(confidences.iter().any(|one| json["confidence"] == *one), "{what}: {json:#}");
        let threads = report.process(self.guard.pid())?["threads"].as_array().context("threads")?;
        let tids: BTreeMap<&str, i64> =
            threads.iter().filter_map(|thread| Some((thread["comm"].as_str()?, thread["tid"].as_i64()?))).collect();
        let chain = json["chain"].as_array().context("chain")?;
        for (at, name) in names.iter().enumerate() {
            let (from, to) = (tids[name], tids[names[(at + 1) % names.len()]]);
            let link = chain.iter().find(|link| link["from"]["tid"] == from).with_context(|| what.clone())?;
            ensure!(
                link["held_by"]["tid"] == to && link["how"].as_str().is_some_and(|said| said.contains(how)),
                "{what}: {link:#}"
            );
            // The first thread holds the first lock and waits for the second.
            if let Some(lock) = self.locks.get((at + 1) % names.len()) {
                ensure!(link["waits_for"]["address"] == lock.as_str(), "{what}: {:?}, not {link:#}", self.locks);
            }
        }
        Ok(())
    }
}

const LOOKS: usize = 4;
const INFERRED: [&str; 2] = ["likely", "possible"];

#[test]
fn mutexes_of_musl_that_keep_their_owner() -> Result<()> {
    if let Some(tool) = MUSL[0].missing() {
        skip!("{tool} is not installed");
    }
    let cases = MUSL.iter().flat_map(|build| ["recursive", "errorcheck", "robust"].map(|kind| (build, kind)));
    let victims: Vec<Victim> = cases.map(|(build, kind)| start(build, &["--kind", kind])).collect::<Result<_>>()?;
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    for victim in &victims {
        let finding = report.only("deadlock", &victim.truth).with_context(|| victim.what.clone())?;
        finding.expect_cycle(&victim.truth).with_context(|| victim.what.clone())?;
    }
    ensure!(report.findings().count() == victims.len(), "{:#}", report.json["findings"]);
    Ok(())
}

#[test]
fn the_normal_mutex_of_musl_names_nobody() -> Result<()> {
    if let Some(tool) = MUSL[0].missing() {
        skip!("{tool} is not installed");
    }
    let victims: Vec<Victim> = MUSL.iter().map(|build| start(build, &[])).collect::<Result<_>>()?;
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    report.expect_silence("a lock without owner")?;
    for victim in &victims {
        for thread in &victim.truth.threads {
            let wait = &report.thread(thread.pid, thread.tid)?["wait"];
            let lock = format!("{:#x}", thread.waits_for.context("waits_for")?);
            ensure!(wait["class"] == "lock" && wait["resource"]["address"] == lock.as_str(), "{wait:#}");
            ensure!(wait["holder"].is_null(), "{wait:#}");
        }
    }
    Ok(())
}

#[test]
fn locks_of_parking_lot_in_opposite_order() -> Result<()> {
    for mode in ["mutex", "rwlock", "reader"] {
        Program::rust(mode)?.expect_circle(&["payments", "ledger"], &INFERRED, "references")?;
    }
    Ok(())
}

#[test]
fn initialisers_that_need_each_other() -> Result<()> {
    Program::rust("lazy")?.expect_circle(&["prices", "rates"], &["likely"], "runs the initialiser")?;
    Program::rust("once-cell")?.expect_circle(&["zero", "one"], &["likely"], "runs the initialiser")
}

#[test]
fn an_initialiser_that_needs_itself() -> Result<()> {
    Program::rust("lazy-self")?.expect_circle(&["itself"], &["likely"], "runs the initialiser")
}

#[test]
fn locks_of_cpp() -> Result<()> {
    if let Some(tool) = CPP.missing() {
        skip!("{tool} is not installed");
    }
    for mode in ["mutex", "recursive", "timed", "shared"] {
        Program::cpp(mode)?.expect_circle(&["payments", "ledger"], &["certain"], "glibc")?;
    }
    Ok(())
}

/// The reader is nobody: its writer waits for an unknown one, and nothing is a deadlock.
#[test]
fn a_reader_of_cpp_has_no_name() -> Result<()> {
    if let Some(tool) = CPP.missing() {
        skip!("{tool} is not installed");
    }
    let report = Program::cpp("shared-reader")?.look()?;
    let kinds: Vec<_> =
        report.findings().map(|finding| (finding.kind().to_owned(), finding.0["confidence"].clone())).collect();
    ensure!(
        matches!(kinds.as_slice(), [(kind, confidence)] if kind == "lock_wait" && confidence == "possible"),
        "{kinds:?}"
    );
    Ok(())
}

/// Where the C library has debug information the function that waits is named; without, the wait stays a condition.
#[test]
fn call_once_that_needs_each_other() -> Result<()> {
    if let Some(tool) = CPP.missing() {
        skip!("{tool} is not installed");
    }
    let program = Program::cpp("call-once")?;
    let report = program.look()?;
    let threads = report.process(program.guard.pid())?["threads"].as_array().context("threads")?;
    let is_named = threads.iter().any(|thread| thread["wait"]["class"] == "lock");
    if is_named {
        return program.expect_circle(&["first", "second"], &["likely"], "runs the initialiser");
    }
    report.expect_silence("a wait that nothing names")
}

#[test]
fn healthy_programs_with_these_locks() -> Result<()> {
    let mut programs = vec![Program::rust("busy")?, Program::rust("slow")?];
    if CPP.missing().is_none() {
        programs.push(Program::cpp("slow")?);
    }
    if MUSL_CONTENDED.missing().is_none() {
        for mode in ["mutex", "timed", "rwlock"] {
            programs.push(Program::start(Command::new(MUSL_CONTENDED.build()?), mode)?);
        }
    }
    // Twice: while the slow initialisers run, and when they are done.
    for _ in 0..2 {
        let pids: Vec<i32> = programs.iter().map(|program| program.guard.pid()).collect();
        let look = ["--for", "3s", "--output", "json"];
        Observer::attach(&pids, &look)?.run()?.report()?.expect_silence("a healthy program")?;
    }
    Ok(())
}
