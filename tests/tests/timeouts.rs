//! Timeouts: the wrong ones are findings, the right ones are decoded and left alone.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::Abi;
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
    ("poll-neg5", "poll", "negative"),
    ("ppoll-year", "ppoll", "absurd"),
];

#[test]
fn limits_of_32_bit_programs_are_as_wide_as_each_call_has_them() -> Result<()> {
    let start = |(mode, ..): &(&str, &str, &str)| Victim::start_as(Abi::I386Bare, "timeouts32", &[*mode]);
    let victims: Vec<Victim> = THIRTY_TWO_BITS.iter().map(start).collect::<Result<_>>()?;
    let pids: Vec<i32> = victims.iter().map(|victim| victim.truth.pid).collect();
    for victim in &victims {
        victim.older_than(OLD_ENOUGH)?;
    }
    for census in ["auto", "proc"] {
        let run = Observer::attach(&pids, &["--once", "--census", census, "--output", "json"])?.run()?;
        let report = run.report()?;
        for (victim, (mode, call, kind)) in victims.iter().zip(THIRTY_TWO_BITS) {
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
                "connect-old" => &["not_accepting", "stuck_connect"],
                _ => &[],
            };
            ensure!(kinds == expected, "{census}: {mode}: {about:#?}");
        }
    }
    Ok(())
}
