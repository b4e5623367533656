//! Stacks of programs with a runtime of their own: Go, Java, Python, Node, tokio.

use anyhow::{Context, Result, ensure};
use observer_tests::blocked::GO;
use observer_tests::compile::{installed, java_classes, sources, target_dir};
use observer_tests::guard::Guard;
use observer_tests::observer::{Observer, look_at};
use observer_tests::report::Report;
use observer_tests::stack::Stack;
use observer_tests::victim::{Unready, Victim};
use observer_tests::{procfs, skip};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Debian's own: another Python first in PATH may be built in any way.
const PYTHON: &str = "/usr/bin/python3";

const FUTEX: u32 = 202;

fn start(command: &[&str]) -> Result<Victim> {
    let (program, args) = command.split_first().context("a command")?;
    let mut start = Command::new(program);
    // Node leaves logs where it was started.
    start.args(args).current_dir(target_dir()?);
    Unready::start_command(start, command.join(" "))?.ready()
}

/// The stack of a thread that shows this chain, whichever thread it is.
fn showing(report: &Report, pid: i32, chain: &[&str]) -> Result<Stack> {
    let all = report.stacks(pid)?;
    let found = all.iter().find(|(_, _, stack)| stack.expect_chain(chain).is_ok());
    let (_, _, stack) = found.with_context(|| format!("no thread shows {chain:?}: {all:#?}"))?;
    Ok(stack.clone())
}

/// Every thread that sleeps has a stack, to its root.
fn expect_roots(report: &Report, pid: i32) -> Result<()> {
    for (tid, comm, stack) in report.stacks(pid)? {
        ensure!(!stack.frames.is_empty(), "{comm} {tid} has no stack: {}", stack.end);
        stack.expect_root().with_context(|| format!("{comm} {tid}"))?;
    }
    Ok(())
}

#[test]
fn go_with_and_without_symbols() -> Result<()> {
    if !installed("go") {
        skip!("go is not installed");
    }
    for case in GO {
        let victim = Unready::start_program(&case.recipe.build()?, case.args)?.ready()?;
        let report = look_at(&[&victim])?;
        let pid = victim.truth.pid;
        for (thread, chain) in case.chains {
            let stack = report.stack(pid, victim.truth.thread(thread)?.tid)?;
            stack.expect_chain(chain).and_then(|_| stack.expect_root()).context(case.recipe.program)?;
        }
        let parked = |tid| procfs::syscall(pid, tid).is_some_and(|(number, _)| number == FUTEX);
        let mut threads = 0;
        for (tid, _, stack) in report.stacks(pid)? {
            if parked(i32::try_from(tid)?) {
                threads += 1;
                stack.expect_chain(&["runtime.futex", "runtime.futexsleep"]).context(case.recipe.program)?;
                stack.expect_root()?;
            }
        }
        ensure!(threads >= 2, "{threads} parked threads");
    }
    Ok(())
}

fn java(options: &[&str], hot: bool) -> Result<Victim> {
    let classes = java_classes("Blocked")?;
    let classes = classes.to_str().context("a path")?;
    let mut command = vec!["java", "-Xshare:auto"];
    command.extend(options);
    command.extend(["-cp", classes, "Blocked"]);
    if hot {
        command.push("hot");
    }
    start(&command)
}

/// Native frames that a blocked Java thread shows whatever its Java frames look like.
const JAVA: &[(&str, &[&str])] = &[
    ("in-park", &["pthread_cond_wait", "Parker::park", "Unsafe_Park"]),
    ("in-wait", &["pthread_cond_wait", "ObjectMonitor::wait", "JVM_MonitorWait"]),
    ("in-enter", &["ObjectMonitor::enter"]),
];

#[test]
fn java_interpreted() -> Result<()> {
    if !installed("javac") {
        skip!("javac is not installed");
    }
    let victim = java(&["-Xint"], false)?;
    let report = look_at(&[&victim])?;
    for (comm, chain) in JAVA {
        let stack = report.stack_of(victim.truth.pid, comm)?;
        stack.expect_chain(chain).context(*comm)?;
        stack
            .expect_chain(&["JavaThread::thread_main_inner", "Thread::call_run", "thread_native_entry", "start_thread"])
            .context(*comm)?;
        stack.expect_root().context(*comm)?;
    }
    expect_roots(&report, victim.truth.pid)
}

#[test]
fn java_monitors_have_owners() -> Result<()> {
    if !installed("javac") {
        skip!("javac is not installed");
    }
    let classes = java_classes("Monitors")?;
    let mut start = Command::new("java");
    start.arg("-cp").arg(classes).arg("Monitors");
    let mut guard = Guard::start(start, Stdio::null())?;
    guard.line(Duration::from_secs(30))?.context("a line when all threads wait")?;
    let report = Observer::attach(&[guard.pid()], &["--once", "--output", "json"])?.run()?.report()?;
    let by_kind = |kind: &str| report.findings().find(|finding| finding.kind() == kind).context(kind.to_owned());
    let name = |tid: &serde_json::Value| {
        let threads = report.process(guard.pid())?["threads"].as_array().context("threads")?;
        let thread = threads.iter().find(|thread| thread["tid"] == *tid).context("a thread of the report")?;
        thread["comm"].as_str().map(str::to_owned).context("comm")
    };
    let deadlock = by_kind("deadlock")?.0;
    ensure!(deadlock["evidence"]["cycle"] == 2 && deadlock["confidence"] == "likely", "{deadlock:#}");
    for link in deadlock["chain"].as_array().context("chain")? {
        let (from, to) = (name(&link["from"]["tid"])?, name(&link["held_by"]["tid"])?);
        ensure!(from != to && from.starts_with("dead-") && to.starts_with("dead-"), "{from} behind {to}");
    }
    let held = by_kind("lock_wait")?.0;
    ensure!(name(&held["evidence"]["holder_tid"])? == "sleeper", "{held:#}");
    // The sleeper sleeps for 34 years, which is said as well.
    let others = report.findings().filter(|finding| finding.kind() != "bad_timeout");
    ensure!(others.count() == 2, "{:#}", report.json["findings"]);
    Ok(())
}

/// Keeps the methods apart and compiled before they block.
const COMPILED: &[&str] = &["-Xbatch", "-XX:CompileCommand=quiet", "-XX:CompileCommand=dontinline,Blocked::*"];

#[test]
fn java_compiled_with_frame_pointers_and_a_perf_map() -> Result<()> {
    if !installed("javac") || !installed("jcmd") {
        skip!("javac or jcmd is not installed");
    }
    let victim = java(&[COMPILED, &["-XX:+PreserveFramePointer"]].concat(), true)?;
    let pid = victim.truth.pid;
    let said = Command::new("jcmd").args([&pid.to_string(), "Compiler.perfmap"]).output()?;
    let map = tempfile::TempPath::try_from_path(format!("/tmp/perf-{pid}.map"))?;
    ensure!(said.status.success() && map.is_file(), "no perf map: {said:?}");
    let report = look_at(&[&victim])?;
    for (comm, native) in JAVA {
        let stack = report.stack_of(pid, comm)?;
        stack.expect_chain(native).context(*comm)?;
        stack.expect_root().context(*comm)?;
        // `int Blocked.middle(int, boolean)`: the JVM's spelling.
        let names = stack.names();
        let mut rest = names.iter();
        // The method that blocks runs once: it is interpreted.
        for wanted in ["Blocked.middle", "Blocked.outer"] {
            ensure!(rest.any(|name| name.replace("::", ".").contains(wanted)), "{comm}: no {wanted}: {stack:?}");
        }
    }
    Ok(())
}

#[test]
fn java_compiled_without_frame_pointers() -> Result<()> {
    if !installed("javac") {
        skip!("javac is not installed");
    }
    let victim = java(COMPILED, true)?;
    let report = look_at(&[&victim])?;
    for (comm, chain) in JAVA {
        let stack = report.stack_of(victim.truth.pid, comm)?;
        stack.expect_chain(chain).context(*comm)?;
        // Compiled methods keep other things in the frame pointer: the walk may stop, if it says why.
        ensure!(stack.ends_at_root() || stack.end.len() > 4, "{comm}: {stack:?}");
    }
    Ok(())
}

#[test]
fn python_threads() -> Result<()> {
    if !Path::new(PYTHON).exists() {
        skip!("{PYTHON} is not installed");
    }
    let script = sources().join("blocked.py");
    let victim = start(&[PYTHON, script.to_str().context("a path")?])?;
    let report = look_at(&[&victim])?;
    let truth = &victim.truth;
    for (thread, chain) in [
        ("lock", &["PyThread_acquire_lock_timed", "PyEval_EvalFrameDefault", "start_thread"][..]),
        ("sleep", &["clock_nanosleep", "PyEval_EvalFrameDefault", "start_thread"]),
        ("accept", &["accept4", "PyEval_EvalFrameDefault", "start_thread"]),
    ] {
        let stack = report.stack(truth.pid, truth.thread(thread)?.tid)?;
        stack.expect_chain(chain).context(thread)?;
    }
    expect_roots(&report, truth.pid)
}

fn node(options: &[&str]) -> Result<Victim> {
    let script = sources().join("blocked.js");
    start(&[&["node"], options, &[script.to_str().context("a path")?]].concat())
}

const NODE_WORKER: &[&str] = &["pthread_cond_wait", "FutexEmulation::WaitSync", "start_thread"];
const NODE_MAIN: &[&str] = &["epoll_pwait", "uv_run", "node::Start", "start_call_main"];

#[test]
fn node_threads() -> Result<()> {
    if !installed("node") {
        skip!("node is not installed");
    }
    let victim = node(&[])?;
    let report = look_at(&[&victim])?;
    let pid = victim.truth.pid;
    showing(&report, pid, NODE_WORKER)?;
    report.stack(pid, pid)?.expect_chain(NODE_MAIN)?;
    expect_roots(&report, pid)
}

#[test]
fn node_with_a_perf_map() -> Result<()> {
    if !installed("node") {
        skip!("node is not installed");
    }
    let victim = node(&["--perf-basic-prof", "--interpreted-frames-native-stack"])?;
    let pid = victim.truth.pid;
    let map = tempfile::TempPath::try_from_path(format!("/tmp/perf-{pid}.map"))?;
    ensure!(map.is_file(), "node wrote no perf map");
    let report = look_at(&[&victim])?;
    let stack = showing(&report, pid, NODE_WORKER)?;
    let names = stack.names();
    let mut rest = names.iter();
    for wanted in ["blockedHere", "middle", "outer"] {
        ensure!(rest.any(|name| name.contains(wanted)), "no {wanted}: {stack:?}");
    }
    stack.expect_root()
}

#[test]
fn tokio_workers_and_the_blocking_pool() -> Result<()> {
    let victim = Unready::start_program(Path::new(env!("CARGO_BIN_EXE_blocked_tokio")), &[])?.ready()?;
    victim.older_than(Duration::from_secs(2))?;
    let json = ["--once", "--output", "json"];
    let report = Observer::attach(&victim.truth.pids(), &json)?.run()?.report()?;
    let truth = &victim.truth;
    let worker = ["worker::Context::run_task", "worker::Context::run", "worker::run", "start_thread"];
    for (thread, blocked) in [
        ("std", &["futex::Mutex::lock_contended", "lock_std", "handle_std::{closure}"][..]),
        ("parking_lot", &["RawMutex::lock_slow", "lock_parking_lot", "handle_parking_lot::{closure}"]),
    ] {
        let stack = report.stack(truth.pid, truth.thread(thread)?.tid)?;
        stack.expect_chain(&[blocked, &worker].concat()).context(thread)?;
        stack.expect_root().context(thread)?;
    }
    let pool = report.stack(truth.pid, truth.thread("pool")?.tid)?;
    pool.expect_chain(&["wait_in_pool", "blocking::pool::Inner::run", "start_thread"])?;
    pool.expect_root()?;
    // That is a hang, and only the frames can tell: by its arguments each is a futex wait like any other.
    for (thread, lock) in [("std", "std Mutex"), ("parking_lot", "parking_lot Mutex")] {
        let tid = truth.thread(thread)?.tid;
        let finding = report.findings().find(|finding| finding.0["threads"] == serde_json::json!([tid]));
        let finding = finding.with_context(|| format!("{thread}: nothing found of {tid}"))?.0;
        ensure!(finding["kind"] == "lock_wait" && finding["confidence"] == "likely", "{finding}");
        ensure!(finding["chain"][0]["waits_for"]["detail"] == format!("({lock})"), "{finding}");
        ensure!(finding["evidence"]["runtime"] == "tokio", "{finding}");
        let frames = finding["stacks"][0]["frames"].as_array().context("a stack in the finding")?;
        ensure!(frames.len() > 10, "{finding}");
    }
    ensure!(report.findings().count() == 2, "{:#}", report.json["findings"]);
    // Four workers: two blocked, two parked with nothing to do.
    let idle = report.stacks(truth.pid)?;
    let idle = idle.iter().filter(|(_, _, stack)| stack.expect_chain(&["worker::Context::park"]).is_ok());
    ensure!(idle.count() == 2, "two idle workers");
    Ok(())
}
