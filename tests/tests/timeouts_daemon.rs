//! Incident 1, and a change of habit, found by a daemon that was there before they began: with what was passed before.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use observer_tests::compile::{Abi, installed, victim};
use observer_tests::contract::check_finding;
use observer_tests::deadline::wait_until;
use observer_tests::golang::bad_poll;
use observer_tests::observer::{Live, Observer, binary};
use observer_tests::report::Finding;
use observer_tests::victim::{Unready, Victim};
use observer_tests::{procfs, skip};
use serde_json::Value;
use std::time::Duration;

/// Loading and attaching takes seconds on a busy machine.
const START: Duration = Duration::from_secs(60);
/// From the bad call to the finding: the threshold, and some censuses.
const SOON: Duration = Duration::from_secs(20);

/// A daemon in the namespace of a victim that has not begun, once its probes listen; `None` if there are none on the poll family.
fn daemon_beside(victim: &Unready) -> Result<Option<Live>> {
    let mut command = victim.enter()?;
    // Without a budget: histories are whole whatever else this machine does.
    let options = ["-v", "daemon", "--listen=none", "--threshold=1s", "--interval=200ms", "--cpu-budget=off"];
    command.arg(binary()?).args(options).env_remove("OBSERVER_LOG").env_remove("RUST_LOG");
    let mut live = Observer::through(command).start()?;
    let said = wait_until("the probes to be attached", START, || {
        Ok(live
            .stderr()?
            .lines()
            .find_map(|line| line.split_once("probes attached: "))
            .map(|(_, rungs)| rungs.to_owned()))
    })?;
    let rungs: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    Ok((!rungs["poll"].as_str().context("poll")?.starts_with("none")).then_some(live))
}

/// All that it says until it is told to end.
fn end(live: Live) -> Result<Vec<Value>> {
    let (daemon, _) = *procfs::descendants(live.guard.pid()).first().context("no daemon runs")?;
    kill(Pid::from_raw(daemon), Signal::SIGTERM)?;
    let output = live.finish(SOON)?.expect_code(0)?;
    output.stdout.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// The finding of a victim that begins now.
fn found(mut unready: Unready, live: &mut Live) -> Result<(Victim, Value)> {
    unready.tell("now")?;
    let victim = unready.ready()?;
    let finding = live.finding(SOON, |finding| finding["kind"] == "bad_timeout")?;
    check_finding(&finding)?;
    ensure!(finding["state"] == "open" && finding["pid"] == victim.truth.pid, "{finding:#}");
    Ok((victim, finding))
}

#[test]
fn incident_1_with_its_history() -> Result<()> {
    if !installed("go") {
        skip!("go is not installed");
    }
    let unready = Unready::start_program_inside(&bad_poll()?, &["after-line"])?;
    let Some(mut live) = daemon_beside(&unready)? else { skip!("no probe on the poll family") };
    let (victim, finding) = found(unready, &mut live)?;
    let collector = victim.truth.thread("collector")?;
    Finding(&finding).expect("confidence", "certain")?.expect_threads([collector.tid])?;
    ensure!(finding["evidence"]["timeout_raw"] == "-5", "{finding:#}");
    ensure!(finding["evidence"]["history"]["zero"] == victim.truth.number("calls")?, "{finding:#}");
    let explanation = finding["explanation"].as_str().context("explanation")?;
    ensure!(explanation.contains("0 in 5,000 calls, then -5"), "{explanation}");
    let call = finding["call_site"].to_string();
    for function in ["main.waitForEvents", "main.collectGarbage"] {
        ensure!(call.contains(function), "no {function}: {finding:#}");
    }
    end(live)?;
    Ok(())
}

#[test]
fn a_change_of_habit_and_nothing_of_those_that_may_change() -> Result<()> {
    let unready = Unready::start_inside("habits", &["peer"])?;
    let beside = |mode: &str| -> Result<Unready> {
        let mut command = unready.enter()?;
        command.arg(victim("habits", Abi::Native)?).arg(mode);
        Unready::start_command(command, format!("nsenter … habits {mode}"))
    };
    let healthy = ["several", "self-pipe", "epoll", "condition"].map(beside);
    let Some(mut live) = daemon_beside(&unready)? else { skip!("no probe on the poll family") };
    let mut others = Vec::new();
    for victim in healthy {
        let mut victim = victim?;
        victim.tell("now")?;
        others.push(victim.ready()?);
    }
    let (victim, finding) = found(unready, &mut live)?;
    let waiter = victim.truth.thread("waiter")?;
    let told = Finding(&finding).expect("confidence", "likely")?.expect("severity", "warning")?;
    told.expect_threads([waiter.tid])?;
    ensure!(finding["evidence"]["history"]["finite"] == victim.truth.number("calls")?, "{finding:#}");
    ensure!(finding["call_site"].to_string().contains("wait_once"), "{finding:#}");
    // The others changed before.
    let rest = end(live)?;
    let wrong: Vec<&Value> = rest.iter().filter(|finding| finding["pid"] != victim.truth.pid).collect();
    ensure!(wrong.is_empty(), "{wrong:#?}");
    drop(others);
    Ok(())
}
