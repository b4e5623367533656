//! `observer timeouts`: clients without limits are named with their call site and their peer; those with limits are not.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::{Abi, can_build, installed, java_classes, sources};
use observer_tests::contract::check_finding;
use observer_tests::deadline::wait_until;
use observer_tests::golang::bad_poll;
use observer_tests::observer::{OLD_ENOUGH, Observer, Output, look_at};
use observer_tests::report::Report;
use observer_tests::skip;
use observer_tests::victim::{Unready, Victim};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PYTHON: &str = "/usr/bin/python3";

fn veth() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--net", "ip", "link", "add", "far1", "type", "veth", "peer", "name", "near1"]);
    probe.status().is_ok_and(|status| status.success())
}

fn audit(pid: i32, extra: &[&str]) -> Result<Output> {
    Observer::new(&["timeouts", &pid.to_string(), "--for", "3s"])?.args(extra).run()
}

fn audit_json(pid: i32) -> Result<(Value, Option<i32>)> {
    let run = audit(pid, &["--output", "json"])?;
    let json: Value = serde_json::from_str(&run.stdout).with_context(|| format!("{run:#?}"))?;
    ensure!(json["schema"] == "observer.timeouts/v1", "{json:#}");
    for key in ["taken_at", "host", "capability", "pid", "comm", "audited_ns", "sites", "findings", "lost", "account"] {
        ensure!(!json[key].is_null(), "no {key}: {json:#}");
    }
    for finding in json["findings"].as_array().context("findings")? {
        check_finding(finding)?;
    }
    Ok((json, run.code))
}

fn sites<'a>(json: &'a Value, syscall: &str) -> Vec<&'a Value> {
    json["sites"].as_array().into_iter().flatten().filter(|site| site["syscall"] == syscall).collect()
}

/// The only site of a call.
fn site<'a>(json: &'a Value, syscall: &str) -> Result<&'a Value> {
    match sites(json, syscall).as_slice() {
        [one] => Ok(one),
        other => anyhow::bail!("expected one site of {syscall}, found {other:#?} in {json:#}"),
    }
}

#[test]
fn a_client_without_limits_is_named_with_its_peer() -> Result<()> {
    if !veth() {
        skip!("no veth pair can be made with ip(8)");
    }
    let victim = Victim::start("http_client", &["c"])?;
    let (peer, checker) = (victim.truth.text("peer")?, victim.truth.thread("checker")?);
    let (json, code) = audit_json(victim.truth.pid)?;
    ensure!(code == Some(1), "a wait for a remote peer without a limit is a warning: {json:#}");
    let recv = site(&json, "recvfrom")?;
    ensure!(recv["risk"] == "remote_unlimited" && recv["remote_peer"] == true, "{recv:#}");
    ensure!(recv["resource"]["remote"] == peer, "{recv:#}");
    ensure!(recv["waiting"][0]["tid"] == checker.tid, "{recv:#}");
    ensure!(recv["waiting"][0]["waited_ns"].as_u64().is_some_and(|ns| ns > 2_000_000_000), "{recv:#}");
    ensure!(recv["limit_from"] == "socket" && recv["calls"]["infinite"] == 1, "{recv:#}");
    let frames: Vec<&str> =
        recv["stack"].as_array().context("stack")?.iter().filter_map(|frame| frame["function"].as_str()).collect();
    let order = ["read_answer", "fetch", "checker"].map(|name| frames.iter().position(|frame| *frame == name));
    ensure!(order.iter().all(Option::is_some) && order.is_sorted(), "{frames:?}");

    let text = audit(victim.truth.pid, &[])?.expect_code(1)?.stdout;
    ensure!(text.lines().count() <= 40, "one screen: {text}");
    let first = text.lines().nth(1).context("a first site")?;
    ensure!(first.starts_with("WARNING"), "the riskiest first: {text}");
    for what in ["recvfrom()", &peer, "(remote)", "read_answer", "without SO_RCVTIMEO"] {
        ensure!(text.contains(what), "no {what}: {text}");
    }
    Ok(())
}

#[test]
fn a_client_with_limits_is_left_alone() -> Result<()> {
    if !veth() {
        skip!("no veth pair can be made with ip(8)");
    }
    let victim = Victim::start("http_client", &["limited"])?;
    let (json, code) = audit_json(victim.truth.pid)?;
    let recv = site(&json, "recvfrom")?;
    if recv["risk"] == "unknown" {
        skip!("this kernel does not say the limits of sockets");
    }
    ensure!(code == Some(0), "every wait has a limit: {json:#}");
    ensure!(recv["risk"] == "limited" && recv["timeout_max_ns"] == 30_000_000_000_u64, "{recv:#}");
    Ok(())
}

#[test]
fn a_client_in_python_is_named_with_its_peer() -> Result<()> {
    if !veth() || !Path::new(PYTHON).exists() {
        skip!("no veth pair can be made with ip(8), or {PYTHON} is not installed");
    }
    let script = sources().join("http_client.py");
    let victim = Victim::start("http_client", &["python", script.to_str().context("a path")?])?;
    let (json, code) = audit_json(victim.truth.pid)?;
    ensure!(code == Some(1), "{json:#}");
    let recv = site(&json, "recvfrom")?;
    ensure!(recv["risk"] == "remote_unlimited" && recv["resource"]["remote"] == victim.truth.text("peer")?, "{recv:#}");
    Ok(())
}

#[test]
fn idle_programs_have_nothing_to_look_at() -> Result<()> {
    for (name, mode) in [("healthy_server", "idle"), ("healthy_pool", "timed"), ("healthy_waits", "eventfd")] {
        let victim = Victim::start(name, &[mode])?;
        let (json, code) = audit_json(victim.truth.pid)?;
        ensure!(code == Some(0), "{name} {mode}: {json:#}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_audited_is_said_in_one_line() -> Result<()> {
    let mut child = Command::new("true").spawn()?;
    child.wait()?;
    let gone = audit(child.id().try_into()?, &[])?.expect_refusal()?;
    ensure!(gone.contains(&child.id().to_string()), "{gone}");
    Observer::new(&["timeouts", "0"])?.run()?.expect_refusal()?;
    Observer::new(&["timeouts", "1", "--for", "soon"])?.run()?.expect_refusal()?;
    Ok(())
}

#[test]
fn a_process_that_ends_during_its_audit() -> Result<()> {
    let mut victim = Victim::start("healthy_waits", &["eventfd"])?;
    let pid = victim.truth.pid.to_string();
    let live = Observer::new(&["timeouts", &pid, "--for", "60s"])?.start()?;
    victim.guard().close_stdin();
    let run = live.finish(Duration::from_secs(30))?;
    ensure!(run.code == Some(0) || run.code == Some(2), "{run:#?}");
    ensure!(run.stderr.contains(&pid), "says so: {run:#?}");
    Ok(())
}

#[test]
fn limits_of_32_bit_programs_are_audited() -> Result<()> {
    if let Err(why) = can_build(Abi::I386Bare) {
        skip!("no 32-bit program can be run: {}", why.lines().next().unwrap_or_default());
    }
    for (mode, call, risk, limit) in [
        ("ppoll", "ppoll", "limited", Some(3_600_500_000_000_u64)),
        ("ppoll64", "ppoll_time64", "limited", Some(3_600_500_000_000)),
        ("futex", "futex", "limited", Some(3_600_500_000_000)),
        ("recv-old", "recv", "local_unlimited", None),
    ] {
        if mode == "recv-old" && !observer_tests::procfs::kernel_is_at_least(5, 11) {
            skip::announce("recv-old alone: what reads the limits of sockets came with 5.11");
            continue;
        }
        let victim = Victim::start_as(Abi::I386Bare, "timeouts32", &[mode])?;
        let (json, code) = audit_json(victim.truth.pid)?;
        ensure!(code == Some(0), "{mode}: {json:#}");
        let site = site(&json, call)?;
        ensure!(site["risk"] == risk && site["timeout_max_ns"].as_u64() == limit, "{mode}: {site:#}");
        ensure!(site["waiting"][0]["tid"] == victim.truth.pid, "{mode}: {site:#}");
    }
    Ok(())
}

#[test]
fn incident_1_from_a_cold_attach() -> Result<()> {
    if !installed("go") {
        skip!("go is not installed");
    }
    let victim = Unready::start_program(&bad_poll()?, &[])?.ready()?;
    let report = look_at(&[&victim])?;
    let collector = victim.truth.thread("collector")?;
    let finding = report.only("bad_timeout", &victim.truth)?.expect("confidence", "certain")?;
    finding.expect_threads([collector.tid])?;
    ensure!(finding.0["evidence"]["timeout_raw"] == "-5", "{:#}", finding.0);
    let stack = finding.0["stacks"].to_string();
    for function in ["main.waitForEvents", "main.collectGarbage"] {
        ensure!(stack.contains(function), "no {function}: {stack}");
    }
    Ok(())
}

/// A live look in JSON, at a victim that begins once it is on; the report, if these probes keep histories.
fn look_on(mut unready: Unready, age: Duration) -> Result<Option<(Victim, Report)>> {
    let directory = tempfile::tempdir()?;
    let recording = directory.path().join("recording");
    let recording_path = recording.to_str().context("a path")?;
    // What others do is paid for as well: with a budget the calls are sampled, and histories are not exact.
    let options = ["--output", "json", "--for", "8s", "--cpu-budget", "off", "--record", recording_path];
    let live = Observer::attach(&[unready.pid()], &options)?.start()?;
    // The first turn tells the probes whom to listen to, and is written down at its end, behind a header.
    let lines = || Ok(std::fs::read_to_string(&recording).unwrap_or_default().lines().nth(2).map(str::len));
    wait_until("the probes listen", Duration::from_secs(60), lines)?;
    unready.tell("now")?;
    let victim = unready.ready()?;
    victim.older_than(age)?;
    let report = live.finish(Duration::from_secs(60))?.report()?;
    let keeps = !report.json["account"]["probes"]["habits_replaced"].is_null();
    Ok(keeps.then_some((victim, report)))
}

#[test]
fn incident_1_while_we_look_on() -> Result<()> {
    if !installed("go") {
        skip!("go is not installed");
    }
    let unready = Unready::start_program(&bad_poll()?, &["after-line"])?;
    let Some((victim, report)) = look_on(unready, OLD_ENOUGH)? else { skip!("these probes keep no histories") };
    let collector = victim.truth.thread("collector")?;
    let finding = report.only("bad_timeout", &victim.truth)?.expect("confidence", "certain")?;
    finding.expect_threads([collector.tid])?;
    let finding = finding.0;
    ensure!(finding["evidence"]["history"]["zero"] == victim.truth.number("calls")?, "{finding:#}");
    let explanation = finding["explanation"].as_str().context("explanation")?;
    ensure!(explanation.contains("0 in 5,000 calls, then -5"), "{explanation}");
    let call = finding["call_site"].to_string();
    for function in ["main.waitForEvents", "main.collectGarbage"] {
        ensure!(call.contains(function), "no {function}: {call}");
    }
    Ok(())
}

#[test]
fn a_habit_that_changes_at_a_silent_peer_is_found() -> Result<()> {
    let unready = Unready::start("habits", &["peer"])?;
    let Some((victim, report)) = look_on(unready, OLD_ENOUGH)? else { skip!("these probes keep no histories") };
    let waiter = victim.truth.thread("waiter")?;
    let finding = report.only("bad_timeout", &victim.truth)?.expect("confidence", "likely")?;
    finding.expect("severity", "warning")?.expect_threads([waiter.tid])?;
    ensure!(finding.0["evidence"]["history"]["finite"] == victim.truth.number("calls")?, "{:#}", finding.0);
    ensure!(finding.0["call_site"].to_string().contains("wait_once"), "{:#}", finding.0);
    Ok(())
}

/// The loop of one mode, several of them at a time.
fn loops_are_left_alone(modes: &[&str]) -> Result<()> {
    let alone = |mode: &str| {
        let Some((_, report)) = look_on(Unready::start("habits", &[mode])?, OLD_ENOUGH)? else { return Ok(false) };
        report.expect_silence(mode)?;
        anyhow::Ok(true)
    };
    let outcomes: Vec<Result<bool>> = std::thread::scope(|scope| {
        let looks: Vec<_> = modes.iter().map(|mode| scope.spawn(move || alone(mode))).collect();
        let panicked = |_| Err(anyhow::anyhow!("the look panicked"));
        looks.into_iter().map(|look| look.join().unwrap_or_else(panicked)).collect()
    });
    if outcomes.into_iter().collect::<Result<Vec<_>>>()?.contains(&false) {
        skip!("these probes keep no histories");
    }
    Ok(())
}

#[test]
fn loops_whose_timers_come_and_go_are_left_alone() -> Result<()> {
    loops_are_left_alone(&["several", "eventfd", "self-pipe", "epoll"])
}

#[test]
fn other_loops_whose_timers_come_and_go_are_left_alone() -> Result<()> {
    loops_are_left_alone(&["select", "condition", "listener", "resolver"])
}

fn python(mode: &str) -> Result<Unready> {
    let mut command = Command::new(PYTHON);
    command.arg(sources().join("selects.py")).arg(mode);
    Unready::start_command(command, format!("selects.py {mode}"))
}

#[test]
fn python_select_poll() -> Result<()> {
    if !Path::new(PYTHON).exists() {
        skip!("{PYTHON} is not installed");
    }
    let Some((victim, report)) = look_on(python("peer")?, OLD_ENOUGH)? else { skip!("these probes keep no histories") };
    let finding = report.only("bad_timeout", &victim.truth)?;
    finding.expect("confidence", "likely")?.expect_threads([victim.truth.thread("waiter")?.tid])?;
    let Some((_, report)) = look_on(python("loop")?, OLD_ENOUGH)? else { skip!("these probes keep no histories") };
    report.expect_silence("a main loop in Python")
}

#[test]
fn java_selectors_with_and_without_timers() -> Result<()> {
    if !installed("javac") {
        skip!("javac is not installed");
    }
    let mut command = Command::new("java");
    command.arg("-cp").arg(java_classes("Selects")?).arg("Selects");
    let unready = Unready::start_command(command, "Selects".to_owned())?;
    let Some((_, report)) = look_on(unready, OLD_ENOUGH)? else { skip!("these probes keep no histories") };
    report.expect_silence("a selector in Java")
}
