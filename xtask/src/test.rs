//! `cargo xtask test`: everything a change must pass, in one command.

use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::setup::{self, Purpose};
use crate::test_output::{Tally, not_allowed};
use crate::{ebpf, fuzz, invoke, licences, tidy, tools, vm, workspace};

const ALLOWED_SKIPS: &str = "tests/allowed-skips.txt";

/// The end-to-end tests: they load eBPF programs and need root.
const KERNEL_TESTS: &str = "observer-tests";

/// How long output may stay open after cargo ended before we say who holds it.
const OUTPUT_GRACE: Duration = Duration::from_secs(3);

/// Runs the checks and all tests; with `filters` only the tests whose name contains one of them.
pub(crate) fn run(filters: &[&str]) -> Result<ExitCode> {
    setup::prepare(Purpose::Tests)?;
    setup::cargo_components()?;
    tools::unpack();
    setup::mount_tracefs();
    ebpf::renew_if_stale()?;

    let mut tally = Tally::default();
    if filters.is_empty() {
        checks(&mut tally)?;
    } else {
        println!(
            "== only tests named like {filters:?}; formatting, clippy, tidy, licences and other kernels are not checked"
        );
    }

    if filters.is_empty() {
        heading("other kernels");
        if let Err(error) = vm::check(&mut tally) {
            println!("other kernels could not be tried: {error:#}");
            tally.check(false);
        }
    }
    if invoke::is_root() {
        all_tests(&mut tally, filters)?;
    } else {
        tests_without_root(&mut tally, filters)?;
    }
    Ok(conclude(&mut tally, filters))
}

fn checks(tally: &mut Tally) -> Result<()> {
    let mut step = |name: &str, passed: bool| {
        println!("{name}: {}", if passed { "ok" } else { "FAILED" });
        tally.check(passed);
    };
    heading("formatting");
    let mut formatted = workspace::cargo(&["fmt", "--all", "--check", "--", "--files-with-diff"]).status()?.success();
    let fuzz_crate = ["fmt", "--manifest-path", "tests/fuzz/Cargo.toml", "--check", "--", "--files-with-diff"];
    formatted &= workspace::cargo(&fuzz_crate).status()?.success();
    step("fmt", formatted);
    if !formatted {
        eprintln!("  fix: cargo fmt --all; the same with --manifest-path tests/fuzz/Cargo.toml");
    }
    heading("clippy");
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    step("clippy", workspace::cargo(&clippy).status()?.success());
    heading("tidy");
    step("tidy", tidy::run()?);
    heading("licences");
    step("licences", licences::run()?);
    heading("fuzzing");
    step("fuzz", fuzz::run(&[])?);
    Ok(())
}

/// Unit tests, recordings, documentation and the end-to-end tests.
///
/// Every cargo command here selects the same packages with their tests, so that dependencies are resolved
/// to the same features and built once.
fn all_tests(tally: &mut Tally, filters: &[&str]) -> Result<()> {
    heading("build");
    let built = workspace::cargo(&["build", "--workspace", "--all-targets"]).status()?;
    if !built.success() {
        println!("it does not build, so nothing was tested");
        tally.check(false);
        return Ok(());
    }
    let observer = match workspace::given_observer()? {
        Some(given) => given,
        None => workspace::target().join("debug/observer"),
    };
    heading("tests");
    // A few at a time: each end-to-end test holds a victim and an observer, and some are about time.
    let mut test = workspace::cargo(&["test", "--workspace", "--no-fail-fast", "--"]);
    test.args(["--show-output", "--test-threads", "3"]).args(filters);
    test.env("OBSERVER_BIN", observer);
    // Tests look only at what they have started.
    test.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", workspace::root().join("tests/in-a-namespace"));
    follow(tally, &mut test)
}

/// What can be tested without root; the end-to-end tests count as skipped, by the names cargo lists.
fn tests_without_root(tally: &mut Tally, filters: &[&str]) -> Result<()> {
    heading("tests that need no root");
    let mut test = workspace::cargo(&["test", "--workspace", "--exclude", KERNEL_TESTS]);
    test.args(["--no-fail-fast", "--", "--show-output"]).args(filters);
    follow(tally, &mut test)?;

    let mut list = workspace::cargo(&["test", "--quiet", "--package", KERNEL_TESTS, "--"]);
    let listed = invoke::capture(list.args(["--list", "--format", "terse"]).args(filters))?;
    for test in listed.lines().filter_map(|line| line.strip_suffix(": test")) {
        tally.skip(test, "needs root: sudo -E cargo xtask test");
    }
    Ok(())
}

/// Runs a cargo test, shows its output as it comes and counts what it says.
fn follow(tally: &mut Tally, test: &mut Command) -> Result<()> {
    let failed_before = tally.failed();
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let copy = writer.try_clone().context("cannot copy a pipe")?;
    let name = invoke::shown(test);
    let mut child = test.stdout(writer).stderr(copy).spawn().context("cannot start cargo")?;
    // Closes our ends of the pipe, so that its end can be seen.
    test.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());

    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        use std::io::BufRead;
        for line in std::io::BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut ended: Option<(std::process::ExitStatus, Instant)> = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                if tally.take(&line) {
                    println!("{line}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => match ended {
                None => ended = child.try_wait()?.map(|status| (status, Instant::now())),
                Some((_, at)) if at.elapsed() > OUTPUT_GRACE => {
                    println!("a program that a test started still runs and holds its output open");
                    tally.check(false);
                    break;
                }
                Some(_) => {}
            },
        }
    }
    let status = match ended {
        Some((status, _)) => status,
        None => child.wait().context("cannot wait for cargo")?,
    };
    if !status.success() && tally.failed() == failed_before {
        println!("`{name}` ended with {status} without saying which test failed");
        tally.check(false);
    }
    Ok(())
}

/// Prints skips with their reasons and the closing line.
fn conclude(tally: &mut Tally, filters: &[&str]) -> ExitCode {
    if !tally.skips().is_empty() {
        heading(&format!("{} skipped", tally.skips().len()));
        for (test, why) in tally.skips() {
            println!("skipped {test}: {why}");
        }
    }
    if std::env::var("CI").is_ok_and(|ci| ci == "true") {
        let allowed = std::fs::read_to_string(workspace::root().join(ALLOWED_SKIPS)).unwrap_or_default();
        let refused: Vec<String> =
            not_allowed(tally.skips(), &allowed).iter().map(|(test, why)| format!("{test}: {why}")).collect();
        for skip in &refused {
            println!("not allowed to skip in CI: {skip} (run it, or list it in {ALLOWED_SKIPS})");
            tally.check(false);
        }
    }
    if tally.is_empty() {
        println!("no test is named like {filters:?}");
        tally.check(false);
    }
    let (passed, failed, skipped) = (tally.passed(), tally.failed(), tally.skips().len());
    println!("\nobserver: {passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What begins now, and how long after the first of these lines.
fn heading(what: &str) {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    println!("\n== {what} (at {:.0} s)", BEGAN.get_or_init(Instant::now).elapsed().as_secs_f64());
}
