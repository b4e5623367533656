//! Deadlocks of every length and lock kind are certain, complete and dated; one finding each.

use anyhow::{Context, Result, ensure};
use observer_tests::observer::{OLD_ENOUGH, Observer, look_at};
use observer_tests::victim::{Unready, Victim};
use std::time::Duration;

/// One report over all of them; each must be one certain deadlock.
fn expect_deadlocks(victims: &[Victim]) -> Result<()> {
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    for victim in victims {
        let finding = report.only("deadlock", &victim.truth).with_context(|| victim.what.clone())?;
        finding.expect_cycle(&victim.truth).with_context(|| victim.what.clone())?;
    }
    ensure!(report.findings().count() == victims.len(), "one finding per victim: {:#}", report.json["findings"]);
    Ok(())
}

fn start_all(name: &str, modes: &[&[&str]]) -> Result<Vec<Victim>> {
    modes.iter().map(|args| Victim::start(name, args)).collect()
}

#[test]
fn two_threads_two_mutexes() -> Result<()> {
    let victim = Victim::start("deadlock", &[])?;
    let report = look_at(&[&victim])?;
    let finding = report.only("deadlock", &victim.truth)?.expect_cycle(&victim.truth)?;
    ensure!(finding.0["pid"] == victim.truth.pid && finding.0["comm"] == "deadlock", "{:#}", finding.0);
    ensure!(report.code == Some(1), "a finding is exit code 1");
    for thread in &victim.truth.threads {
        let said = report.thread(thread.pid, thread.tid)?;
        ensure!(said["comm"] == thread.name.as_str(), "{said:#}");
        ensure!(said["state"] == "S", "{said:#}");
        let wait = &said["wait"];
        ensure!(wait["syscall"] == "futex" && wait["class"] == "lock", "{wait:#}");
        ensure!(wait["timeout"]["kind"] == "none" || wait["timeout"]["kind"] == "infinite", "{wait:#}");
        ensure!(wait["resource"]["kind"] == "mutex", "{wait:#}");
        ensure!(wait["holder"]["tid"] == thread.owner.context("owner")?, "{wait:#}");
        ensure!(wait["holder"]["pid"] == thread.pid, "{wait:#}");
        let off_cpu = said["off_cpu_ns"].as_u64().context("off_cpu_ns")?;
        let least = OLD_ENOUGH - Duration::from_millis(100);
        ensure!(off_cpu >= least.as_nanos().try_into()?, "asleep for longer: {said:#}");
    }
    Ok(())
}

#[test]
fn longer_cycles_and_a_cycle_of_one() -> Result<()> {
    expect_deadlocks(&start_all("deadlock", &[&["--threads", "3"], &["--threads", "5"], &["--self"]])?)
}

#[test]
fn every_kind_of_mutex_that_keeps_its_owner() -> Result<()> {
    let kinds = ["errorcheck", "recursive", "adaptive", "timed", "clock", "robust"];
    let victims: Vec<Victim> =
        kinds.iter().map(|kind| Victim::start("deadlock", &["--kind", kind])).collect::<Result<_>>()?;
    expect_deadlocks(&victims)
}

#[test]
fn a_timed_lock_shows_its_limit() -> Result<()> {
    for kind in ["timed", "clock"] {
        let victim = Victim::start("deadlock", &["--kind", kind])?;
        let report = look_at(&[&victim])?;
        let first = victim.truth.threads.first().context("threads")?;
        let timeout = &report.thread(first.pid, first.tid)?["wait"]["timeout"];
        ensure!(timeout["kind"] == "finite", "{kind}: {timeout:#}");
        let left = timeout["remaining_ns"].as_u64().context("remaining_ns")?;
        let hour = 3_600_000_000_000_u64;
        ensure!((hour - 60_000_000_000..hour).contains(&left), "{kind}: an hour, less a little: {timeout:#}");
    }
    Ok(())
}

/// The kernel refuses the last waiter of a PI cycle and glibc parks it on a word of its own stack: the edge that
/// would close the cycle is nowhere in memory. What is certain: the others wait for a lock that this thread holds.
#[test]
fn a_pi_cycle_names_the_thread_the_kernel_refused() -> Result<()> {
    for threads in ["2", "3"] {
        let victim = Victim::start("deadlock", &["--kind", "pi", "--threads", threads])?;
        let report = look_at(&[&victim])?;
        let about = report.about(&victim.truth);
        let [finding] = about.as_slice() else {
            anyhow::bail!("one finding, not {about:#?}");
        };
        ensure!(["deadlock", "lock_wait"].contains(&finding.kind()), "{:#}", finding.0);
        // Named a deadlock, the closing edge is an inference and must say so.
        let confidence = if finding.kind() == "lock_wait" { "certain" } else { "likely" };
        finding.expect("confidence", confidence)?;
        for thread in victim.truth.threads.iter().filter(|t| t.owner.is_some()) {
            let edge = finding.expect_edge(thread)?;
            ensure!(edge["confidence"] == "certain", "the word holds the owner: {edge:#}");
        }
    }
    Ok(())
}

#[test]
fn rwlocks_joins_and_mixtures() -> Result<()> {
    expect_deadlocks(&start_all("cycles", &[&["wr-wr"], &["rd-wr"], &["mixed"], &["join"], &["join-mutex"]])?)
}

#[test]
fn readers_have_no_names_so_nobody_is_certain() -> Result<()> {
    let victim = Victim::start("cycles", &["readers"])?;
    let report = look_at(&[&victim])?;
    let wait = &report.thread(victim.truth.pid, victim.truth.thread("first")?.tid)?["wait"];
    ensure!(wait["resource"]["kind"] == "rwlock", "{wait:#}");
    ensure!(wait["holder"].is_null() || wait["holder"]["confidence"] != "certain", "{wait:#}");
    for finding in report.about(&victim.truth) {
        ensure!(
            finding.kind() != "deadlock" || finding.0["confidence"] != "certain",
            "a guess as a fact: {:#}",
            finding.0
        );
    }
    let second = victim.truth.thread("second")?;
    ensure!(report.about(&victim.truth).iter().any(|f| f.names(second.tid)), "the mutex's owner is known: a finding");
    Ok(())
}

#[test]
fn across_two_processes() -> Result<()> {
    let victim = Victim::start("processes", &["cycle"])?;
    let report = look_at(&[&victim])?;
    report.only("deadlock", &victim.truth)?.expect_cycle(&victim.truth)?;
    Ok(())
}

#[test]
fn thirty_two_bit_threads_are_said_to_be_so() -> Result<()> {
    use observer_tests::compile::{Abi, can_build};
    if let Err(why) = can_build(Abi::I386) {
        observer_tests::skip!("gcc -m32 does not work here: {}", why.lines().next().unwrap_or_default());
    }
    let victim = Victim::start_as(Abi::I386, "deadlock", &[])?;
    let report = look_at(&[&victim])?;
    let process = report.process(victim.truth.pid)?.to_string();
    ensure!(process.contains("32-bit"), "{process}");
    for thread in &victim.truth.threads {
        let wait = &report.thread(thread.pid, thread.tid)?["wait"];
        let call = wait["syscall"].as_str().unwrap_or_default();
        // 240 and 422 of the x86-64 table are mq_open and a hole.
        ensure!(call.starts_with("futex") || call.contains("32-bit"), "{wait:#}");
    }
    // The layout of an i386 mutex differs: an owner read from the wrong offset would be a guess.
    for finding in report.about(&victim.truth).iter().filter(|f| f.0["confidence"] == "certain") {
        finding.expect_cycle(&victim.truth)?;
    }
    Ok(())
}

#[test]
fn a_hang_that_forms_while_observer_watches() -> Result<()> {
    let mut unready = Unready::start("deadlock", &["--on-stdin"])?;
    let mut live = Observer::attach(&[unready.pid()], &["--output", "ndjson", "--for", "12s"])?.start()?;
    // When probes are attached it holds BPF descriptors; a kernel without them is watched all the same.
    let _ = observer_tests::deadline::wait_until("BPF descriptors", Duration::from_secs(3), || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", live.guard.pid()))?;
        let bpf = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        Ok(bpf.filter(|link| link.to_string_lossy().contains("bpf")).count().gt(&0).then_some(()))
    });
    unready.tell("now")?;
    let victim = unready.ready()?;
    let line = live.finding(Duration::from_secs(6), |f| f["kind"] == "deadlock")?;
    observer_tests::contract::check_finding(&line)?;
    observer_tests::report::Finding(&line).expect_cycle(&victim.truth)?;
    Ok(())
}
