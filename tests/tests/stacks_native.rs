//! Stacks of C, C++ and Rust programs: the functions they are blocked in, to the root, as gdb shows them.

use anyhow::{Context, Result, bail, ensure};
use observer_tests::blocked::{
    C, CPP, Case, DEEP, INLINED, LIBRARY, PLAIN, RUST, RUST_STRIPPED, STRIPPED, WITH_LIBRARY, WITHOUT_CFI,
};
use observer_tests::deadline::wait_until;
use observer_tests::observer::{OLD_ENOUGH, Observer, look_at};
use observer_tests::report::Report;
use observer_tests::stack::Stack;
use observer_tests::victim::{Truth, Unready, Victim};
use observer_tests::{compile, gdb, procfs, skip};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Every failure counts, not the first alone: a run says what all the programs look like.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn check(&mut self, what: &str, result: Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{what}: {error:#}"));
        }
    }

    fn conclude(self) -> Result<()> {
        ensure!(self.0.is_empty(), "{} failures:\n{}", self.0.len(), self.0.join("\n"));
        Ok(())
    }
}

fn start(case: &Case) -> Result<Victim> {
    Unready::start_program(&case.recipe.build()?, case.args)?.ready()
}

/// The main thread of `blocked.c` waits for its stdin.
fn check_main(case: &Case, truth: &Truth, report: &Report) -> Result<()> {
    if case.recipe.source != "blocked.c" {
        return Ok(());
    }
    let stack = report.stack(truth.pid, truth.pid)?;
    stack.expect_chain(&["attend", "main"])?;
    if case.root { stack.expect_root() } else { Ok(()) }
}

fn check_chains(case: &Case, truth: &Truth, report: &Report, failures: &mut Failures) {
    let program = case.recipe.program;
    for (thread, chain) in case.chains {
        let checked = || -> Result<()> {
            let stack = report.stack(truth.pid, truth.thread(thread)?.tid)?;
            stack.expect_chain(chain)?;
            if case.root { stack.expect_root() } else { Ok(()) }
        };
        failures.check(&format!("{program} {thread}"), checked());
    }
    failures.check(&format!("{program} main"), check_main(case, truth, report));
}

/// gdb comes last: it stops the process.
fn check_gdb(case: &Case, truth: &Truth, report: &Report, failures: &mut Failures) -> Result<()> {
    let program = case.recipe.program;
    let threads = gdb::backtraces(truth.pid).context(program)?;
    for (tid, frames) in &threads {
        let same = report.stack(truth.pid, *tid).and_then(|stack| gdb::expect_same(&stack, frames));
        failures.check(&format!("{program} {tid} against gdb"), same);
    }
    Ok(())
}

fn check(cases: &[Case]) -> Result<()> {
    if let Some(tool) = cases.iter().find_map(|case| case.recipe.missing()) {
        skip!("{tool} is not installed");
    }
    let victims: Vec<Victim> = cases.iter().map(start).collect::<Result<_>>()?;
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    let mut failures = Failures::default();
    for (case, victim) in cases.iter().zip(&victims) {
        check_chains(case, &victim.truth, &report, &mut failures);
    }
    failures.conclude()
}

fn check_against_gdb(cases: &[Case]) -> Result<()> {
    let tools = cases.iter().find_map(|case| case.recipe.missing());
    if let Some(tool) = tools.or_else(|| (!compile::installed("gdb")).then_some("gdb")) {
        skip!("{tool} is not installed");
    }
    let cases: Vec<&Case> = cases.iter().filter(|case| case.gdb).collect();
    let victims: Vec<Victim> = cases.iter().map(|case| start(case)).collect::<Result<_>>()?;
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    let mut failures = Failures::default();
    for (case, victim) in cases.iter().zip(&victims) {
        check_gdb(case, &victim.truth, &report, &mut failures)?;
    }
    failures.conclude()
}

/// The victims themselves, without observer: gdb finds every function that the tests expect of observer.
fn gdb_finds_the_chains(cases: &[Case]) -> Result<()> {
    let tools = cases.iter().find_map(|case| case.recipe.missing());
    if let Some(tool) = tools.or_else(|| (!compile::installed("gdb")).then_some("gdb")) {
        skip!("{tool} is not installed");
    }
    let mut failures = Failures::default();
    for case in cases.iter().filter(|case| case.gdb) {
        let victim = start(case)?;
        let threads = gdb::backtraces(victim.truth.pid)?;
        for (thread, chain) in case.chains {
            let frames = threads.get(&victim.truth.thread(thread)?.tid).context("gdb shows the thread")?;
            let stack = Stack { frames: frames.clone(), end: "gdb".to_owned() };
            failures.check(&format!("{} {thread}", case.recipe.program), stack.expect_chain(chain).map(drop));
        }
    }
    failures.conclude()
}

#[test]
fn gdb_finds_the_chains_of_c() -> Result<()> {
    gdb_finds_the_chains(C)?;
    gdb_finds_the_chains(&[INLINED])
}

#[test]
fn gdb_finds_the_chains_of_cpp() -> Result<()> {
    gdb_finds_the_chains(CPP)
}

#[test]
fn gdb_finds_the_chains_of_rust() -> Result<()> {
    gdb_finds_the_chains(&RUST[..1])
}

#[test]
fn c_stacks() -> Result<()> {
    check(C)
}

#[test]
fn c_stacks_are_those_of_gdb() -> Result<()> {
    check_against_gdb(C)
}

#[test]
fn cpp_stacks() -> Result<()> {
    check(CPP)
}

#[test]
fn cpp_stacks_are_those_of_gdb() -> Result<()> {
    check_against_gdb(CPP)
}

#[test]
fn rust_stacks() -> Result<()> {
    check(RUST)
}

#[test]
fn rust_stacks_are_those_of_gdb() -> Result<()> {
    check_against_gdb(RUST)
}

#[test]
fn without_unwinding_information_the_functions_are_found_on_the_stack() -> Result<()> {
    check(WITHOUT_CFI)?;
    let case = WITHOUT_CFI[0];
    let victim = start(&case)?;
    let report = look_at(&[&victim])?;
    let stack = report.stack(victim.truth.pid, victim.truth.thread("reader")?.tid)?;
    // Not a fact but a guess, and it says so.
    let guessed = stack.expect_chain(&["middle"])?[0].found_by.clone();
    ensure!(guessed.as_deref() == Some("scan"), "found by {guessed:?}: {stack:?}");
    Ok(())
}

#[test]
fn inlined_functions_have_file_and_line() -> Result<()> {
    check(&[INLINED])?;
    check_against_gdb(&[INLINED])?;
    let victim = start(&INLINED)?;
    let truth = &victim.truth;
    let stack = look_at(&[&victim])?.stack(truth.pid, truth.thread("inlined")?.tid)?;
    let frames = stack.expect_chain(&["inlined_inner", "inlined_outer", "not_inlined"])?;
    let expected = [("line_of_inner", true), ("line_of_outer", true), ("line_of_call", false)];
    for (frame, (line, inlined)) in frames.iter().zip(expected) {
        let said = truth.number(line)?;
        ensure!(frame.line == Some(u64::try_from(said)?), "{line} is {said}: {frame:?}: {stack:?}");
        ensure!(frame.file.as_deref().is_some_and(|file| file.ends_with("blocked.c")), "{frame:?}");
        ensure!(frame.inlined == inlined, "{line}: {frame:?}: {stack:?}");
    }
    Ok(())
}

#[test]
fn a_very_deep_stack_is_cut_and_says_so() -> Result<()> {
    check(&[DEEP])?;
    let victim = start(&DEEP)?;
    let stack = look_at(&[&victim])?.stack(victim.truth.pid, victim.truth.thread("deep")?.tid)?;
    ensure!(!stack.ends_at_root() && stack.frames.len() < 10_000, "not cut: {stack:?}");
    ensure!(stack.frames.len() >= 64 && !stack.end.is_empty(), "{stack:?}");
    Ok(())
}

/// Functions of an unstripped program with their addresses, by address.
fn symbols(program: &Path) -> Result<Vec<(u64, String)>> {
    let nm = Command::new("nm").args(["-n", "--defined-only"]).arg(program).output().context("nm")?;
    let text = String::from_utf8(nm.stdout)?;
    let read = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let at = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((at, words.nth(1)?.to_owned()))
    };
    Ok(text.lines().filter_map(read).collect())
}

fn build_id(program: &Path) -> Result<String> {
    let readelf = Command::new("readelf").arg("-n").arg(program).output().context("readelf")?;
    let text = String::from_utf8(readelf.stdout)?;
    let id = text.lines().find_map(|line| line.trim().strip_prefix("Build ID: "));
    Ok(id.with_context(|| format!("{} has no build-id", program.display()))?.to_owned())
}

#[test]
fn without_symbols_there_are_offset_and_build_id() -> Result<()> {
    let victim = start(&STRIPPED)?;
    let program = STRIPPED.recipe.build()?;
    let truth = &victim.truth;
    let stack = look_at(&[&victim])?.stack(truth.pid, truth.thread("reader")?.tid)?;
    stack.expect_root()?;
    let id = build_id(&program)?;
    let inside = |module: &Option<String>| module.as_deref().is_some_and(|module| module.ends_with("/c_stripped"));
    let own: Vec<_> = stack.frames.iter().filter(|frame| inside(&frame.module)).collect();
    ensure!(own.len() == 4, "four frames of its own: {stack:?}");
    // The linker gives the first segments of a program addresses equal to their places in the file.
    let twin = symbols(&PLAIN.recipe.build()?)?;
    for (frame, function) in own.iter().zip(["blocked_here", "middle", "outer", "reader"]) {
        ensure!(frame.function.is_none(), "it has no symbols: {frame:?}");
        ensure!(frame.build_id.as_deref() == Some(id.as_str()), "build-id {id}: {frame:?}");
        let offset = frame.offset.context("offset")?;
        let before = twin.iter().rev().find(|(at, _)| *at < offset).map(|(_, name)| name.as_str());
        ensure!(before == Some(function), "{offset:#x} is in {before:?}, not {function}: {stack:?}");
    }
    Ok(())
}

#[test]
fn a_stripped_rust_program() -> Result<()> {
    let victim = start(&RUST_STRIPPED)?;
    let truth = &victim.truth;
    let report = look_at(&[&victim])?;
    let id = build_id(&RUST_STRIPPED.recipe.build()?)?;
    for thread in &truth.threads {
        let stack = report.stack(truth.pid, thread.tid)?;
        stack.expect_root()?;
        stack.expect_chain(&["syscall"])?;
        let own = stack.frames.iter().filter(|frame| frame.build_id.as_deref() == Some(id.as_str()));
        ensure!(own.clone().count() >= 3, "frames of its own, with build-id {id}: {stack:?}");
        ensure!(own.clone().all(|frame| frame.function.is_none() && frame.offset.is_some()), "{stack:?}");
    }
    Ok(())
}

/// Puts other bytes in the place of a running program: a new file of the same name.
fn replace(path: &Path) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::copy("/bin/true", &new)?;
    Ok(std::fs::rename(&new, path)?)
}

#[test]
fn a_program_that_was_replaced_while_it_runs() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = dir.path().join("replaced");
    std::fs::copy(PLAIN.recipe.build()?, &program)?;
    let victim = Unready::start_program(&program, PLAIN.args)?.ready()?;
    replace(&program)?;
    let mut failures = Failures::default();
    check_chains(&PLAIN, &victim.truth, &look_at(&[&victim])?, &mut failures);
    failures.conclude()
}

#[test]
fn a_library_with_and_without_its_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let library = dir.path().join("libblocked.so");
    std::fs::copy(LIBRARY.build()?, &library)?;
    let path = library.to_str().context("a path")?;
    let start = || Unready::start_program(&WITH_LIBRARY.recipe.build()?, &["library", path])?.ready();
    let (first, second) = (start()?, start()?);
    let mut failures = Failures::default();
    check_chains(&WITH_LIBRARY, &first.truth, &look_at(&[&first])?, &mut failures);
    std::fs::remove_file(&library)?;
    check_chains(&WITH_LIBRARY, &second.truth, &look_at(&[&second])?, &mut failures);
    failures.conclude()
}

/// The host's id of the thread that is `inside` in its own PID namespace.
fn outside(pid: i32, inside: i32) -> Result<i32> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let tid = entry?.file_name().to_string_lossy().parse()?;
        if procfs::status_numbers(pid, tid, "NSpid")?.last() == Some(&inside.into()) {
            return Ok(tid);
        }
    }
    bail!("no thread {inside} in the namespace of {pid}")
}

#[test]
fn a_chroot_with_its_own_mount_and_pid_namespace() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path();
    let libraries = ["lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6"];
    for file in libraries {
        let to = root.join(file);
        std::fs::create_dir_all(to.parent().context("a directory")?)?;
        std::fs::copy(Path::new("/").join(file), to)?;
    }
    std::fs::create_dir(root.join("proc"))?;
    std::fs::copy(PLAIN.recipe.build()?, root.join("jailed"))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--root"]).arg(root);
    command.args(["--mount-proc=/proc", "/jailed", "calls"]);
    let victim = Unready::start_command(command, "jailed calls".to_owned())?;
    let unshare = victim.pid();
    let victim = victim.ready()?;
    let begin = Instant::now();
    let pid = wait_until("its child", Duration::from_secs(5), || {
        Ok(procfs::descendants(unshare).first().map(|(pid, _)| *pid))
    })?;
    observer_tests::deadline::wait_for_age(begin, OLD_ENOUGH)?;
    let report = Observer::attach(&[pid], &["--once", "--output", "json"])?.run()?.report()?;
    let mut failures = Failures::default();
    for (thread, chain) in PLAIN.chains {
        let stack = report.stack(pid, outside(pid, victim.truth.thread(thread)?.tid)?)?;
        failures.check(thread, stack.expect_chain(chain).and_then(|_| stack.expect_root()));
    }
    failures.conclude()
}
