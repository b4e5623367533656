//! Timeouts: the wrong ones are findings, the right ones are decoded and left alone.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::{Abi, can_build};
use observer_tests::deadline::wait_until;
use observer_tests::observer::{OLD_ENOUGH, Observer, look_at};
use observer_tests::victim::{Unready, Victim};
use std::time::Duration;

/// Mode, and whether the finding is certain.
const WRONG: &[(&str, bool)] = &[
    ("poll-neg5", true),
    ("epoll-neg7", true),
    ("poll-30h", false),
    ("ppoll-year", false),
    ("select-year", false),
    ("epoll-pwait2-year", false),
    ("futex-year", false),
    ("futex-century", false),
];

const RIGHT: &[&str] = &[
    "poll-infinite",
    "poll-zero",
    "poll-50ms",
    "poll-intmax",
    "ppoll-null",
    "ppoll-finite",
    "select-null",
    "select-finite",
    "pselect-null",
    "pselect-finite",
    "epoll-infinite",
    "epoll-50ms",
    "epoll-pwait2-null",
    "epoll-pwait2-finite",
    "futex-past",
];

/// Whether the kernel has the call of that mode; one that it lacks is said to be skipped.
fn is_there(mode: &str) -> bool {
    let lacks = mode.starts_with("epoll-pwait2") && !observer_tests::procfs::kernel_is_at_least(5, 11);
    if lacks {
        observer_tests::skip::announce(&format!("{mode} alone: epoll_pwait2 came with 5.11"));
    }
    !lacks
}

fn start(modes: impl IntoIterator<Item = &'static str>) -> Result<Vec<Victim>> {
    modes.into_iter().map(|mode| Victim::start("timeouts", &[mode])).collect()
}

#[test]
fn negative_and_absurd_timeouts_are_findings_even_when_they_began_before_us() -> Result<()> {
    let wrong: Vec<_> = WRONG.iter().filter(|(mode, _)| is_there(mode)).collect();
    let victims = start(wrong.iter().map(|(mode, _)| *mode))?;
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    for (victim, (mode, certain)) in victims.iter().zip(wrong) {
        let waiter = victim.truth.thread("waiter")?;
        let finding = report.only("bad_timeout", &victim.truth).context(*mode)?.expect_threads([waiter.tid])?;
        if *certain {
            finding.expect("confidence", "certain").context(*mode)?;
        }
        let wait = &report.thread(waiter.pid, waiter.tid)?["wait"];
        let truth = &victim.truth.all["timeout"];
        ensure!(wait["syscall"] == victim.truth.all["call"], "{mode}: {wait:#}");
        ensure!(wait["timeout"]["kind"] == truth["kind"], "{mode}: {wait:#}");
        if *certain {
            ensure!(wait["timeout"]["raw"] == truth["raw"], "{mode}: {wait:#}");
            let text = finding.0.to_string();
            ensure!(text.contains(truth["raw"].as_str().context("raw")?), "{mode}: shows the value: {text}");
        } else {
            let asked = wait["timeout"]["requested_ns"].as_u64().context("requested_ns")?;
            let expected = match *mode {
                "poll-30h" => 30 * 3600,
                "futex-century" => 100 * 365 * 86400,
                _ => 365 * 86400,
            } * 1_000_000_000_u64;
            // A deadline is turned back into a length with the time its wait began.
            let slack = if *mode == "futex-century" { 1_000_000_000 } else { 0 };
            ensure!(asked.abs_diff(expected) <= slack, "{mode}: {wait:#}");
            let left = wait["timeout"]["remaining_ns"].as_u64().context("remaining_ns")?;
            ensure!(left < expected && left + 120_000_000_000 > expected, "{mode}: {wait:#}");
        }
    }
    Ok(())
}

#[test]
fn a_time_of_day_on_the_monotonic_clock_is_a_warning() -> Result<()> {
    let victim = Victim::start("timeouts", &["futex-time-of-day"])?;
    let report = look_at(&[&victim])?;
    let waiter = victim.truth.thread("waiter")?;
    let finding = report.only("bad_timeout", &victim.truth)?.expect_threads([waiter.tid])?;
    let finding = finding.expect("severity", "warning")?.expect("confidence", "likely")?.0;
    let meant = finding["evidence"]["meant_ns"].as_u64().context("meant_ns")?;
    ensure!((1_000_000_000..=2_000_000_000).contains(&meant), "{finding:#}");
    ensure!(report.thread(waiter.pid, waiter.tid)?["wait"]["timeout"]["kind"] == "absurd", "{finding:#}");
    Ok(())
}

#[test]
fn timeouts_that_are_right_are_decoded_and_left_alone() -> Result<()> {
    let victims = start(RIGHT.iter().copied().filter(|mode| is_there(mode)))?;
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    report.expect_silence("a thread that waits with a sane timeout")?;
    for victim in victims.iter().filter(|v| v.truth.all["loops"] == false) {
        let waiter = victim.truth.thread("waiter")?;
        let wait = &report.thread(waiter.pid, waiter.tid)?["wait"];
        let kind = &victim.truth.all["timeout"]["kind"];
        ensure!(wait["syscall"] == victim.truth.all["call"], "{}: {wait:#}", victim.what);
        // 24.8 days are the idiom for "for ever": whatever it is called, it is no finding.
        if victim.truth.shape != "poll-intmax" {
            ensure!(wait["timeout"]["kind"] == *kind, "{}: {wait:#}", victim.what);
        }
        if kind == "finite" {
            ensure!(wait["timeout"]["requested_ns"] == 3_600_000_000_000_u64, "{}: {wait:#}", victim.what);
        }
    }
    Ok(())
}

#[test]
fn timeouts_that_the_kernel_refuses_are_seen_by_the_probe() -> Result<()> {
    let victims = start(["ppoll-invalid", "ppoll-neg", "epoll-pwait2-neg"].into_iter().filter(|mode| is_there(mode)))?;
    let pids: Vec<i32> = victims.iter().flat_map(|victim| victim.truth.pids()).collect();
    // The victims spin: with a budget the probes would be taken off.
    let run = Observer::attach(&pids, &["--for", "4s", "--cpu-budget", "off", "--output", "json"])?.run()?;
    let report = run.report()?;
    if report.json["capability"]["probes"]["poll"].as_str().is_none_or(|p| p.starts_with("none")) {
        // The call never sleeps: without a probe nobody can see it.
        observer_tests::skip!("no probe on the poll family: {}", report.json["capability"]["probes"]["poll"]);
    }
    for victim in &victims {
        let waiter = victim.truth.thread("waiter")?;
        let finding = report.only("bad_timeout", &victim.truth).context(victim.what.clone())?;
        finding.expect("confidence", "certain")?.expect_threads([waiter.tid])?;
    }
    Ok(())
}

#[test]
fn a_negative_timeout_is_reported_when_it_is_passed() -> Result<()> {
    let mut unready = Unready::start("timeouts", &["poll-neg5", "after-line"])?;
    let mut live = Observer::attach(&[unready.pid()], &["--output", "ndjson", "--for", "12s"])?.start()?;
    unready.tell("now")?;
    let victim = unready.ready()?;
    let line = live.finding(Duration::from_secs(6), |f| f["kind"] == "bad_timeout")?;
    observer_tests::contract::check_finding(&line)?;
    let waiter = victim.truth.thread("waiter")?;
    observer_tests::report::Finding(&line).expect("confidence", "certain")?.expect_threads([waiter.tid])?;
    Ok(())
}

/// 3600.5 s.
const HOUR_AND_A_HALF_SECOND: u64 = 3_600_500_000_000;

/// Modes of the 32-bit victim: the call it sleeps in, and the kind of the limit.
const THIRTY_TWO_BITS: &[(&str, &str, &str)] = &[
    ("poll", "poll", "finite"),
    ("ppoll", "ppoll", "finite"),
    ("ppoll64", "ppoll_time64", "finite"),
    ("select", "_newselect", "finite"),
    ("select-old", "select", "unknown"),
    ("pselect", "pselect6", "finite"),
    ("pselect64", "pselect6_time64", "finite"),
    ("epoll", "epoll_wait", "finite"),
    ("epoll2", "epoll_pwait2", "finite"),
    ("futex", "futex", "finite"),
    ("futex64", "futex_time64", "finite"),
    ("recv", "recvfrom", "unknown"),
    ("recv-old", "recv", "unknown"),
    ("connect-old", "connect", "unknown"),
    ("connect-tcp-old", "connect", "unknown"),
    ("poll-neg5", "poll", "negative"),
    ("ppoll-year", "ppoll", "absurd"),
];

/// The 32-bit victim in each of these modes that this kernel has, asleep for long enough; `None` where it cannot be run.
fn of_32_bits(modes: &[&str]) -> Result<Option<Vec<Victim>>> {
    if let Err(why) = can_build(Abi::I386Bare) {
        observer_tests::skip::announce(&format!(
            "no 32-bit program can be run: {}",
            why.lines().next().unwrap_or_default()
        ));
        return Ok(None);
    }
    let start = |mode: &&str| Victim::start_as(Abi::I386Bare, "timeouts32", &[*mode]);
    let victims = modes.iter().map(start).collect::<Result<Vec<Victim>>>()?;
    for victim in &victims {
        victim.older_than(OLD_ENOUGH)?;
    }
    Ok(Some(victims))
}

#[test]
fn limits_of_32_bit_programs_are_as_wide_as_each_call_has_them() -> Result<()> {
    let has_epoll_pwait2 = observer_tests::procfs::kernel_is_at_least(5, 11);
    if !has_epoll_pwait2 {
        observer_tests::skip::announce("epoll2 alone: epoll_pwait2 came with 5.11");
    }
    let cases: Vec<_> = THIRTY_TWO_BITS.iter().filter(|(mode, ..)| *mode != "epoll2" || has_epoll_pwait2).collect();
    let modes: Vec<&str> = cases.iter().map(|(mode, ..)| *mode).collect();
    let Some(victims) = of_32_bits(&modes)? else { return Ok(()) };
    let pids: Vec<i32> = victims.iter().map(|victim| victim.truth.pid).collect();
    for census in ["auto", "proc"] {
        let run = Observer::attach(&pids, &["--once", "--census", census, "--output", "json"])?.run()?;
        let report = run.report()?;
        for (victim, (mode, call, kind)) in victims.iter().zip(&cases) {
            let pid = victim.truth.pid;
            let wait = &report.thread(pid, pid)?["wait"];
            ensure!(wait["abi"] == "i386" && wait["syscall"] == *call, "{census}: {mode}: {wait:#}");
            ensure!(wait["timeout"]["kind"] == *kind, "{census}: {mode}: {wait:#}");
            let finite = (*kind == "finite").then_some(HOUR_AND_A_HALF_SECOND);
            ensure!(
                wait["timeout"]["requested_ns"].as_u64().filter(|_| *kind != "absurd") == finite,
                "{mode}: {wait:#}"
            );
            let about = report.about(&victim.truth);
            let kinds: Vec<&str> = about.iter().map(|finding| finding.kind()).collect();
            let expected: &[&str] = match *mode {
                "poll-neg5" | "ppoll-year" => &["bad_timeout"],
                // Nobody accepts there.
                "connect-old" | "connect-tcp-old" => &["not_accepting", "stuck_connect"],
                _ => &[],
            };
            ensure!(kinds == expected, "{census}: {mode}: {about:#?}");
            if let Some(stuck) = about.iter().find(|finding| finding.kind() == "stuck_connect") {
                let remote = wait["resource"]["remote"].as_str().unwrap_or_default();
                // A name that the kernel has chosen, or a port.
                let start = if *mode == "connect-old" { "@" } else { "127.0.0.1:" };
                ensure!(remote.len() > start.len() && remote.starts_with(start), "{census}: {mode}: {wait:#}");
                ensure!(stuck.0["evidence"]["remote"] == remote, "{census}: {mode}: {:#}", stuck.0);
            }
        }
    }
    Ok(())
}

/// Before it sleeps the victim calls `pipe` (42, `connect` in the other table), `epoll_ctl` (255) and others; 441 is `epoll_pwait2` in both.
#[test]
fn numbers_of_32_bit_calls_are_not_taken_for_others_by_the_probes() -> Result<()> {
    if of_32_bits(&[])?.is_none() {
        return Ok(());
    }
    let modes: &[&str] =
        if observer_tests::procfs::kernel_is_at_least(5, 11) { &["poll-neg5", "epoll2"] } else { &["poll-neg5"] };
    // Functions of the kernel have names of their own for either table: the others see numbers. Which of them there are here is told by
    // other tests.
    let mut held = Vec::new();
    for rung in ["tracepoint", "tp_btf"] {
        let start = |mode: &&str| Unready::start_as(Abi::I386Bare, "timeouts32", &[*mode, "after-line"]);
        let mut waiting = modes.iter().map(start).collect::<Result<Vec<Unready>>>()?;
        let pids: Vec<i32> = waiting.iter().map(Unready::pid).collect();
        let directory = tempfile::tempdir()?;
        let recording = directory.path().join("recording");
        let record = recording.to_str().context("a path")?;
        let options = ["--probes", rung, "--for", "6s", "--record", record, "--output", "json"];
        let live = Observer::attach(&pids, &options)?.start()?;
        // The first turn tells the probes whom to listen to, and is written down at its end, behind a header.
        let lines = || Ok(std::fs::read_to_string(&recording).unwrap_or_default().lines().nth(2).map(str::len));
        wait_until("the probes listen", Duration::from_secs(20), lines)?;
        for victim in &mut waiting {
            victim.tell("now")?;
        }
        let victims = waiting.into_iter().map(Unready::ready).collect::<Result<Vec<Victim>>>()?;
        let report = live.finish(Duration::from_secs(60))?.report()?;
        let none = |family: &str| {
            report.json["capability"]["probes"][family].as_str().is_none_or(|probe| probe.starts_with("none"))
        };
        if ["poll", "futex", "connect"].into_iter().all(none) {
            continue;
        }
        held.push(rung);
        for victim in &victims {
            let pid = victim.truth.pid;
            let waits = &report.process(pid)?["waits"];
            ensure!(waits.as_array().is_none_or(Vec::is_empty), "{rung}: {}: {waits:#}", victim.what);
            ensure!(report.thread(pid, pid)?["wait"]["abi"] == "i386", "{rung}: {}", victim.what);
        }
        report.only("bad_timeout", &victims.first().context("a victim")?.truth).context(rung)?;
    }
    if held.is_empty() {
        observer_tests::skip!("no probes on any rung");
    }
    Ok(())
}
