//! Locks held too long, chains to their root, and locks whose owner is gone.

use anyhow::{Context, Result, ensure};
use observer_tests::observer::look_at;
use observer_tests::victim::Victim;

/// What the explanation (or any text of the finding) must mention about the holder: what it is doing instead.
const HELD: &[(&str, &str)] = &[("read", "read"), ("nanosleep", "nanosleep"), ("poll", "poll"), ("rwlock", "read")];

#[test]
fn a_lock_held_too_long_names_holder_and_waiters() -> Result<()> {
    let victims: Vec<Victim> = HELD.iter().map(|(mode, _)| Victim::start("held", &[mode])).collect::<Result<_>>()?;
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    for (victim, (mode, doing)) in victims.iter().zip(HELD) {
        let truth = &victim.truth;
        let finding = report
            .only("lock_wait", truth)
            .context(*mode)?
            .expect("confidence", "certain")?
            .expect("state", "open")?
            .expect_since(truth)?;
        for waiter in truth.threads.iter().filter(|t| t.owner.is_some()) {
            ensure!(finding.threads().contains(&waiter.tid.into()), "{mode}: waiter {} is listed", waiter.tid);
        }
        // The chain is one path: from one of the waiters to the root; the others are listed.
        let mut waiters = truth.threads.iter().filter(|t| t.owner.is_some());
        ensure!(waiters.any(|waiter| finding.expect_edge(waiter).is_ok()), "{mode}: no edge as it is: {:#}", finding.0);
        ensure!(finding.names(truth.number("root")?), "{mode}: the holder is named: {:#}", finding.0);
        ensure!(finding.0.to_string().contains(doing), "{mode}: says that the holder is in {doing}: {:#}", finding.0);
    }
    ensure!(report.findings().count() == victims.len(), "one finding per victim: {:#}", report.json["findings"]);
    Ok(())
}

#[test]
fn a_chain_is_followed_to_its_root() -> Result<()> {
    let victim = Victim::start("held", &["chain"])?;
    let report = look_at(&[&victim])?;
    let truth = &victim.truth;
    let finding = report.only("lock_wait", truth)?.expect("confidence", "certain")?.expect_since(truth)?;
    for waiter in truth.threads.iter().filter(|t| t.owner.is_some()) {
        finding.expect_edge(waiter)?;
    }
    let root = truth.number("root")?;
    ensure!(finding.names(root), "the root is named: {:#}", finding.0);
    let wait = &report.thread(truth.pid, root)?["wait"];
    ensure!(wait["syscall"] == "read" && wait["class"] == "read" && wait["resource"]["kind"] == "pipe", "{wait:#}");
    Ok(())
}

#[test]
fn a_lock_whose_owner_is_gone_is_abandoned() -> Result<()> {
    let modes = ["thread-exit", "owner-exit"];
    let victims: Vec<Victim> = modes.iter().map(|mode| Victim::start("processes", &[mode])).collect::<Result<_>>()?;
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    for (victim, mode) in victims.iter().zip(modes) {
        let finding = report
            .only("abandoned_lock", &victim.truth)
            .context(mode)?
            .expect("confidence", "certain")?
            .expect_threads(victim.truth.threads.iter().map(|t| t.tid))?
            .expect_since(&victim.truth)?;
        let edges = victim.truth.threads.iter().map(|waiter| finding.expect_edge(waiter));
        let edge = edges.flatten().next().with_context(|| format!("no edge as it is: {:#}", finding.0))?;
        let gone = victim.truth.threads[0].owner.context("owner")?;
        ensure!(edge["held_by"].is_null() || edge["held_by"]["tid"] == gone, "{edge:#}");
        let owner = victim.truth.threads[0].owner.context("owner")?.to_string();
        ensure!(finding.0.to_string().contains(&owner), "{mode}: says who it was ({owner}): {:#}", finding.0);
    }
    Ok(())
}

#[test]
fn an_owner_that_stayed_behind_in_the_parent_of_a_fork() -> Result<()> {
    let victim = Victim::start("processes", &["fork-held"])?;
    let report = look_at(&[&victim])?;
    let forked = victim.truth.thread("forked")?;
    report
        .only("abandoned_lock", &victim.truth)?
        .expect("confidence", "certain")?
        .expect_threads([forked.tid])?
        .expect_since(&victim.truth)?;
    Ok(())
}

/// Locks that record no owner, in processes all of whose threads wait: nobody is left to release them.
#[test]
fn a_lock_that_nobody_is_left_to_release() -> Result<()> {
    let modes = [("fork-reader", "forked"), ("handler", "in_signal_handler"), ("again", "nobody_left")];
    let victims: Vec<Victim> =
        modes.iter().map(|(mode, _)| Victim::start("processes", &[mode])).collect::<Result<_>>()?;
    let report = look_at(&victims.iter().collect::<Vec<_>>())?;
    for (victim, (mode, fact)) in victims.iter().zip(modes) {
        let truth = &victim.truth;
        let stuck: Vec<_> = truth.threads.iter().filter(|thread| thread.resource.is_some()).collect();
        let finding = report
            .only("deadlock", truth)
            .context(mode)?
            .expect("confidence", "likely")?
            .expect("severity", "critical")?
            .expect_threads(stuck.iter().map(|thread| thread.tid))?;
        ensure!(finding.0["evidence"]["nobody_left"] == true, "{mode}: {:#}", finding.0);
        ensure!(finding.0["evidence"][fact] == true, "{mode}, {fact}: {:#}", finding.0);
        let links = finding.0["chain"].as_array().context("chain")?;
        ensure!(links.iter().all(|link| link["held_by"].is_null()), "nobody is known to hold it: {links:#?}");
    }
    Ok(())
}

#[test]
fn a_thread_at_rest_may_hold_a_lock_that_records_no_owner() -> Result<()> {
    let victim = Victim::start("processes", &["again-idle"])?;
    let report = look_at(&[&victim])?;
    let about = report.about(&victim.truth);
    ensure!(about.iter().all(|finding| finding.kind() != "deadlock"), "{about:#?}");
    Ok(())
}
