//! Sleepers whose wake-up got lost, and the many whose futex word changes without anything being wrong.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use observer_tests::compile::{Recipe, installed, sources};
use observer_tests::deadline::{wait_for_age, wait_until};
use observer_tests::guard::Guard;
use observer_tests::observer::{OLD_ENOUGH, Observer, look_at};
use observer_tests::skip;
use observer_tests::victim::{Unready, Victim};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long the healthy ones are watched.
const WATCHED: &str = "20s";

const RUST: [Recipe; 2] = [
    Recipe { program: "lost_wakeup_rust", source: "lost_wakeup_rust.rs", command: &["rustc", "--edition", "2024"] },
    Recipe {
        program: "lost_wakeup_rust_o",
        source: "lost_wakeup_rust.rs",
        command: &["rustc", "--edition", "2024", "-O"],
    },
];
const HEALTHY: [Recipe; 2] = [
    Recipe {
        program: "healthy_wakeups_rust",
        source: "healthy_wakeups.rs",
        command: &["rustc", "--edition", "2024", "-O"],
    },
    Recipe {
        program: "healthy_wakeups_stripped",
        source: "healthy_wakeups.rs",
        command: &["rustc", "--edition", "2024", "-O", "-Cstrip=symbols"],
    },
];

#[test]
fn a_wakeup_that_got_lost() -> Result<()> {
    let modes = [("raw", "possible"), ("mutex", "likely"), ("semaphore", "likely"), ("join", "likely")];
    let start = |mode| Victim::start("lost_wakeup", &[mode]);
    let victims: Vec<Victim> = modes.iter().map(|(mode, _)| start(*mode)).collect::<Result<_>>()?;
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    for (victim, (mode, confidence)) in victims.iter().zip(modes) {
        let waiter = victim.truth.thread("waiter")?;
        let finding = report
            .only("lost_wakeup", &victim.truth)
            .context(mode)?
            .expect("confidence", confidence)?
            .expect("severity", if confidence == "possible" { "info" } else { "warning" })?
            .expect_threads([waiter.tid])?;
        let (_, _, args) = waiter.syscall.as_ref().context("its call")?;
        let evidence = &finding.0["evidence"];
        ensure!(evidence["address"] == format!("{:#x}", args[0]), "{mode}: {evidence:#}");
        ensure!(
            evidence["awaited"] == args[2] as u32 && evidence["found"] != evidence["awaited"],
            "{mode}: {evidence:#}"
        );
        ensure!(evidence["readings"].as_u64() >= Some(3), "{mode}: {evidence:#}");
        ensure!(finding.0["chain"][0]["held_by"].is_null(), "{mode}: nobody holds it: {:#}", finding.0);
    }
    Ok(())
}

#[test]
fn a_wakeup_that_got_lost_in_rust() -> Result<()> {
    for (build, mode) in RUST.iter().flat_map(|build| ["park", "mutex"].map(|mode| (build, mode))) {
        let victim = Unready::start_program(&build.build()?, &[mode])?.ready()?;
        let report = look_at(&[&victim])?;
        let waiter = victim.truth.thread("waiter")?;
        report
            .only("lost_wakeup", &victim.truth)
            .with_context(|| format!("{} {mode}", build.program))?
            .expect("confidence", "likely")?
            .expect_threads([waiter.tid])?;
    }
    Ok(())
}

#[test]
fn a_whole_host_is_looked_at_too() -> Result<()> {
    let victim = Victim::start("lost_wakeup", &["semaphore"])?;
    victim.older_than(OLD_ENOUGH)?;
    let pid = victim.truth.pid.to_string();
    let watch = Observer::new(&["watch", "--pid", &pid, "--threshold", "1s", "--for", "6s", "--output", "json"])?;
    let report = watch.run()?.report()?;
    report.only("lost_wakeup", &victim.truth)?.expect("confidence", "likely")?;
    Ok(())
}

/// Watches for a while: nothing at all may be found.
fn expect_silence(what: &str, pids: &[i32]) -> Result<()> {
    let report = Observer::attach(pids, &["--for", WATCHED, "--output", "json"])?.run()?.report()?;
    for &pid in pids {
        let threads = report.process(pid)?["threads"].as_array().map_or(0, Vec::len);
        ensure!(threads > 0, "{what}: {pid} was not looked at");
    }
    report.expect_silence(what)
}

#[test]
fn words_of_c_that_change_by_right() -> Result<()> {
    let modes = ["condvar", "leftover", "barrier", "semaphore"];
    let mut victims: Vec<Victim> =
        modes.iter().map(|mode| Victim::start("healthy_wakeups", &[mode])).collect::<Result<_>>()?;
    for mode in ["latch", "events"] {
        victims.push(Victim::start("lost_wakeup", &[mode])?);
    }
    let pids: Vec<i32> = victims.iter().flat_map(|victim| victim.truth.pids()).collect();
    expect_silence("condition variables, barriers, semaphores, a latch, an event count", &pids)
}

#[test]
fn locks_of_c_that_are_never_at_rest() -> Result<()> {
    let start = |mode: &&str| Victim::start("healthy_contended", &[mode]);
    let victims: Vec<Victim> = ["mutex", "timed"].iter().map(start).collect::<Result<_>>()?;
    let pids: Vec<i32> = victims.iter().flat_map(|victim| victim.truth.pids()).collect();
    expect_silence("contended mutexes", &pids)
}

fn rust(build: &Recipe, mode: &str) -> Result<Guard> {
    let mut command = Command::new(build.build()?);
    command.arg(mode);
    let mut guard = Guard::start(command, Stdio::null())?;
    let line = guard.line(Duration::from_secs(20))?;
    ensure!(line.as_deref() == Some("ready"), "{mode} said {line:?}");
    Ok(guard)
}

#[test]
fn words_of_rust_that_change_by_right() -> Result<()> {
    let modes = ["rwlock", "condvar", "leftover", "barrier", "park"];
    let all = HEALTHY.iter().flat_map(|build| modes.map(|mode| (build, mode)));
    let guards: Vec<Guard> = all.map(|(build, mode)| rust(build, mode)).collect::<Result<_>>()?;
    wait_for_age(Instant::now(), OLD_ENOUGH)?;
    expect_silence("rwlock, condvar, barrier, park", &guards.iter().map(Guard::pid).collect::<Vec<_>>())
}

#[test]
fn a_lock_of_rust_that_is_never_at_rest() -> Result<()> {
    let guard = rust(&HEALTHY[0], "mutex")?;
    expect_silence("a contended Rust mutex", &[guard.pid()])
}

#[test]
fn a_process_that_is_stopped_in_the_middle_of_it() -> Result<()> {
    let (contended, rust) = (Victim::start("healthy_contended", &["mutex"])?, rust(&HEALTHY[0], "mutex")?);
    let pids = [contended.truth.pid, rust.pid()];
    for pid in pids {
        kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
    }
    let stopped =
        |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "));
    wait_until("all stopped", Duration::from_secs(5), || Ok(pids.iter().all(|pid| stopped(*pid)).then_some(())))?;
    let silence = expect_silence("stopped in the middle of futex traffic", &pids);
    for pid in pids {
        kill(Pid::from_raw(pid), Signal::SIGCONT)?;
    }
    silence
}

#[test]
fn runtimes_at_work() -> Result<()> {
    const NODE: &str = "const { Worker } = require('worker_threads'); \
        for (let i = 0; i < 3; i++) new Worker('const fs = require(\"fs\"); setInterval(() => { for (let k = 0; k < 4; k++) fs.stat(\"/\", () => {}); }, 5)', { eval: true }); \
        setTimeout(() => console.log('ready'), 300); process.stdin.resume()";
    let mut programs: Vec<(&str, Command)> = Vec::new();
    if installed("node") {
        let mut node = Command::new("node");
        node.args(["-e", NODE]);
        programs.push(("node", node));
    }
    if installed("java") {
        let mut java = Command::new("java");
        java.arg(sources().join("BusyLocks.java"));
        programs.push(("java", java));
    }
    let dir = tempfile::tempdir()?;
    if installed("go") {
        let out = dir.path().join("busy");
        let mut build = Command::new("go");
        build.arg("build").arg("-o").arg(&out).arg(sources().join("busy_locks.go")).current_dir(dir.path());
        ensure!(build.status()?.success(), "go build");
        programs.push(("go", Command::new(out)));
    }
    if programs.is_empty() {
        skip!("neither node, java nor go is installed");
    }
    let mut guards = Vec::new();
    for (name, command) in programs {
        let mut guard = Guard::start(command, Stdio::null())?;
        let line = guard.line(Duration::from_secs(60))?;
        ensure!(line.as_deref() == Some("ready"), "{name} said {line:?}");
        guards.push(guard);
    }
    expect_silence("node, java, go at work", &guards.iter().map(Guard::pid).collect::<Vec<_>>())
}
