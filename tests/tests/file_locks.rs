//! File locks of all three families: who waits, behind whom, and circles through them.

use anyhow::{Context, Result, ensure};
use observer_tests::observer::{OLD_ENOUGH, Observer, look_at};
use observer_tests::victim::Victim;
use std::path::Path;
use std::time::Duration;

/// A victim in one mode; its files lie in `dir`.
fn start(mode: &str, dir: &Path) -> Result<Victim> {
    Victim::start("file_locks", &[mode, dir.to_str().context("a path")?])
}

#[test]
fn a_wait_behind_a_lock_of_each_family_names_file_and_holder() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (mode, confidence) in [("flock", "certain"), ("posix", "certain"), ("ofd", "likely")] {
        let victim = start(mode, dir.path())?;
        let report = look_at(&[&victim])?;
        let truth = &victim.truth;
        let (waiter, holder) = (truth.thread("waiter")?, truth.thread("holder")?);
        let finding = report
            .only("lock_wait", truth)
            .context(mode)?
            .expect("confidence", confidence)?
            .expect("severity", "warning")?
            .expect_threads([waiter.tid, holder.tid])?;
        finding.expect_edge(waiter)?;
        let path = truth.text("path")?;
        let title = finding.0["title"].as_str().context("title")?;
        ensure!(title.contains(&path) && title.contains("holder") && title.contains("read()"), "{mode}: {title}");
        ensure!(finding.0["evidence"]["lock"] == path.as_str(), "{mode}: {:#}", finding.0);
        let wait = &report.thread(waiter.pid, waiter.tid)?["wait"];
        ensure!(wait["class"] == "file_lock" && wait["resource"]["kind"] == "file", "{mode}: {wait:#}");
        ensure!(wait["resource"]["detail"] == path.as_str(), "{mode}: {wait:#}");
        ensure!(wait["holder"]["tid"] == holder.tid && wait["holder"]["confidence"] == confidence, "{mode}: {wait:#}");
    }
    Ok(())
}

#[test]
fn the_holder_is_named_where_only_the_waiter_is_looked_at() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (mode, is_known) in [("flock", true), ("posix", true), ("ofd", false), ("inherited", false)] {
        let victim = start(mode, dir.path())?;
        victim.older_than(OLD_ENOUGH)?;
        let (waiter, holder) = (victim.truth.threads[1].tid, victim.truth.threads[0].tid);
        let report = Observer::attach(&[waiter], &["--once", "--output", "json"])?.run()?.report()?;
        let finding = report.only("lock_wait", &victim.truth).context(mode)?;
        ensure!(finding.names(holder) == is_known, "{mode}: {:#}", finding.0);
        if !is_known {
            finding.expect("confidence", "possible")?.expect_threads([waiter])?;
        }
    }
    Ok(())
}

#[test]
fn two_processes_and_two_files_are_a_deadlock() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let victim = start("cycle", dir.path())?;
    look_at(&[&victim])?.only("deadlock", &victim.truth)?.expect_cycle(&victim.truth)?;
    Ok(())
}

#[test]
fn a_file_and_a_mutex_are_a_deadlock() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let victim = start("mutex", dir.path())?;
    look_at(&[&victim])?.only("deadlock", &victim.truth)?.expect_cycle(&victim.truth)?;
    Ok(())
}

#[test]
fn a_parent_that_waits_for_the_child_it_locks_out() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let victim = start("child", dir.path())?;
    let report = look_at(&[&victim])?;
    let finding = report.only("deadlock", &victim.truth)?.expect("confidence", "likely")?;
    for thread in &victim.truth.threads {
        finding.expect_edge(thread)?;
    }
    Ok(())
}

#[test]
fn a_lock_that_a_child_inherited_is_found_in_its_descriptors() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let victim = start("inherited", dir.path())?;
    let report = look_at(&[&victim])?;
    let finding = report.only("lock_wait", &victim.truth)?.expect("confidence", "likely")?;
    finding.expect_edge(victim.truth.thread("waiter")?)?;
    Ok(())
}

#[test]
fn turns_and_locks_that_nobody_wants_are_no_findings() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for mode in ["turns", "idle"] {
        let victim = start(mode, dir.path())?;
        victim.older_than(OLD_ENOUGH)?;
        let pids = victim.truth.pids();
        for look in [&["--once", "--output", "json"][..], &["--for", "3s", "--output", "json"]] {
            Observer::attach(&pids, look)?.run()?.report()?.expect_silence(mode)?;
        }
    }
    Ok(())
}

#[test]
fn a_wait_below_the_threshold_is_no_finding() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let victim = start("flock", dir.path())?;
    victim.older_than(Duration::from_millis(100))?;
    let mut command = Observer::new(&["attach", "--for", "1s", "--output", "json", "--threshold", "1h"])?;
    for pid in victim.truth.pids() {
        command = command.args(&[&pid.to_string()]);
    }
    command.run()?.report()?.expect_silence("a threshold of an hour")
}
