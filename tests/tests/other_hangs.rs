//! Hangs that are not locks: connects, stops, D state, namespaces, unreadable memory, 32-bit programs.

use anyhow::{Context, Result, bail, ensure};
use observer_tests::compile::{Abi, can_build};
use observer_tests::observer::{OLD_ENOUGH, Observer, look_at};
use observer_tests::report::Finding;
use observer_tests::skip;
use observer_tests::victim::Victim;
use std::time::Duration;

#[test]
fn a_connect_nobody_answers() -> Result<()> {
    let modes = ["blocking", "nonblocking"];
    let victims: Vec<Victim> = modes.iter().map(|mode| Victim::start("connects", &[mode])).collect::<Result<_>>()?;
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    for (victim, mode) in victims.iter().zip(modes) {
        let dialer = victim.truth.thread("dialer")?;
        let remote = victim.truth.text("remote")?;
        // The listener is its own, and accepts nobody.
        let about = report.about(&victim.truth);
        let (attempts, rest): (Vec<_>, Vec<_>) = about.into_iter().partition(|one| one.kind() == "stuck_connect");
        let is_listener =
            |one: &Finding<'_>| one.kind() == "not_accepting" && one.0["evidence"]["local"] == remote.as_str();
        ensure!(rest.iter().all(is_listener), "{mode}: {rest:#?}");
        let [finding] = attempts.as_slice() else { bail!("{mode}: {attempts:#?} about {remote}") };
        let finding = finding.expect("confidence", "certain")?;
        ensure!(finding.0.to_string().contains(&remote), "{mode}: says where to ({remote}): {:#}", finding.0);
        let since = observer_tests::contract::time_ns("since", &finding.0["since"])?;
        // The socket's own age may be rounded to the retransmission timer's; a second is near enough.
        ensure!((since - dialer.since_ns).abs() < 1_000_000_000, "{mode}: since {since}, truth {dialer:?}");
        if mode == "blocking" {
            finding.expect_threads([dialer.tid])?;
            let wait = &report.thread(dialer.pid, dialer.tid)?["wait"];
            ensure!(wait["syscall"] == "connect" && wait["class"] == "connect", "{wait:#}");
            ensure!(wait["resource"]["remote"] == remote.as_str(), "{wait:#}");
            ensure!(wait["resource"]["fd"] == victim.truth.number("fd")?, "{wait:#}");
        }
    }
    Ok(())
}

#[test]
fn a_stopped_process_somebody_waits_for() -> Result<()> {
    for mode in ["wait4", "lock"] {
        let victim = Victim::start("stopped", &[mode])?;
        let report = look_at(&[&victim])?;
        let stopped = victim.truth.number("stopped")?;
        let about = report.about(&victim.truth);
        let finding = about
            .iter()
            .find(|f| f.kind() == "stopped")
            .with_context(|| format!("{mode}: no `stopped` in {about:#?}"))?
            .expect("confidence", "certain")?;
        ensure!(finding.names(stopped), "{mode}: names the stopped process {stopped}: {:#}", finding.0);
        let waiter = victim.truth.threads.iter().find(|t| t.resource.is_some()).context("waiter")?;
        ensure!(finding.names(waiter.tid), "{mode}: names who waits: {:#}", finding.0);
        ensure!(report.thread(stopped, stopped)?["state"] == "T", "{mode}");
    }
    Ok(())
}

#[test]
fn a_vfork_parent_is_uninterruptible() -> Result<()> {
    let victim = Victim::start("dstate", &[])?;
    let report = look_at(&[&victim])?;
    let vforker = victim.truth.threads.first().context("threads")?;
    let finding = report.only("uninterruptible", &victim.truth)?.expect("confidence", "certain")?;
    ensure!(finding.threads().contains(&vforker.tid.into()), "{:#}", finding.0);
    let since = observer_tests::contract::time_ns("since", &finding.0["since"])?;
    ensure!((since - vforker.since_ns).abs() < 600_000_000, "since {since}: {vforker:?}");
    let thread = report.thread(vforker.pid, vforker.tid)?;
    ensure!(thread["state"] == "D" && thread["wait"]["syscall"] == "vfork", "{thread:#}");
    let text = format!("{}{}", finding.0, thread["kernel_stack"]);
    ensure!(text.contains("wait_for_vfork_done") || text.contains("kernel_clone"), "shows the kernel stack: {text}");
    Ok(())
}

/// Whether the running kernel keeps what a thread in D state is blocked on.
fn keeps_blockers() -> Result<bool> {
    let types = std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
    Ok(["\0blocker\0", "\0last_holder\0"].iter().all(|name| types.windows(name.len()).any(|at| at == name.as_bytes())))
}

#[test]
fn who_has_the_lock_that_a_thread_in_d_state_waits_for() -> Result<()> {
    if !std::path::Path::new("/dev/fuse").exists() {
        skip!("no /dev/fuse");
    }
    let victim = Victim::start("dstate", &["fuse"])?;
    let report = look_at(&[&victim])?;
    let (holder, waiter) = (victim.truth.thread("holder")?, victim.truth.thread("waiter")?);
    let finding =
        report.only("uninterruptible", &victim.truth)?.expect("confidence", "certain")?.expect_threads([waiter.tid])?;
    let thread = report.thread(waiter.pid, waiter.tid)?;
    ensure!(thread["state"] == "D" && thread["wait"]["syscall"] == "mkdir", "{thread:#}");
    if !keeps_blockers()? {
        skip!("this kernel does not keep blockers (6.16, CONFIG_DETECT_HUNG_TASK_BLOCKER)");
    }
    ensure!(finding.0["evidence"]["blocker_kind"] == "rwsem", "{:#}", finding.0);
    let link = &finding.0["chain"][0];
    ensure!(link["from"]["tid"] == waiter.tid && link["held_by"]["tid"] == holder.tid, "{link:#}");
    ensure!(link["confidence"] == "certain", "{link:#}");
    let text = finding.0["explanation"].as_str().context("explanation")?;
    ensure!(text.contains("holder") && text.contains("mkdir()"), "says who, and what it does: {text}");
    Ok(())
}

#[test]
fn owners_are_translated_from_the_victims_pid_namespace() -> Result<()> {
    let victim = Victim::start("namespaces", &[])?;
    let report = look_at(&[&victim])?;
    report.only("deadlock", &victim.truth)?.expect_cycle(&victim.truth)?;
    Ok(())
}

#[test]
fn a_process_that_blocks_its_reader_is_itself_a_finding() -> Result<()> {
    let victim = Victim::start("unreadable", &[])?;
    victim.older_than(OLD_ENOUGH)?;
    let run = Observer::attach(&victim.truth.pids(), &["--once", "--output", "json"])?.run()?;
    ensure!(run.took < Duration::from_secs(8), "observer itself hung: {:?}", run.took);
    let report = run.report()?;
    let about = report.about(&victim.truth);
    ensure!(about.iter().any(|f| f.kind() == "unreadable"), "no `unreadable` in {about:#?}");
    // The owner could not be read: nothing may be certain about it.
    ensure!(!about.iter().any(|f| f.kind() == "deadlock"), "a guess: {about:#?}");
    Ok(())
}

#[test]
fn a_32_bit_process_is_said_to_be_one() -> Result<()> {
    if let Err(why) = can_build(Abi::I386Bare) {
        skip!("no 32-bit program can be run: {}", why.lines().next().unwrap_or_default());
    }
    let victim = Victim::start_as(Abi::I386Bare, "tiny32", &[])?;
    let report = look_at(&[&victim])?;
    report.expect_silence("a 32-bit program idle in poll(-1)")?;
    let process = report.process(victim.truth.pid)?;
    let text = process.to_string();
    let wait = &report.thread(victim.truth.pid, victim.truth.pid)?["wait"];
    ensure!(wait["abi"] == "i386" && wait["syscall"] == "poll", "{wait:#}");
    let shown = Observer::attach(&[victim.truth.pid], &["--once"])?.run()?.expect_code(0)?;
    ensure!(shown.stdout.contains("32-bit"), "says so: {}", shown.stdout);
    ensure!(!text.contains("swapoff"), "168 is poll in the i386 table: {process:#}");
    Ok(())
}
