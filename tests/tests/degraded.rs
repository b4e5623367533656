//! What the machine lacks is said, and the rest still works: no BTF, no tracefs, no probes, `/proc` only.

use anyhow::{Result, ensure};
use observer_tests::observer::{OLD_ENOUGH, Observer, binary};
use observer_tests::report::Report;
use observer_tests::victim::Victim;
use std::process::Command;

/// Looks at a deadlock from a mount namespace of its own, prepared by a shell command.
fn look_without(what: &str, extra: &str) -> Result<(Victim, Report)> {
    let victim = Victim::start("deadlock", &[])?;
    victim.older_than(OLD_ENOUGH)?;
    let script = format!(
        "{what} && exec '{}' attach {} --once --threshold 1s --output json {extra}",
        binary()?.display(),
        victim.truth.pid
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    let report = Observer::through(command).run()?.report()?;
    // `since` counts from first sight where the source cannot tell: threads and confidence must hold all the same.
    let finding = &report.only("deadlock", &victim.truth)?.0;
    let tids: Vec<i32> = victim.truth.threads.iter().map(|thread| thread.tid).collect();
    ensure!(finding["threads"] == serde_json::json!(tids) && finding["confidence"] == "certain", "{finding:#}");
    Ok((victim, report))
}

fn probe(report: &Report, family: &str) -> String {
    report.json["capability"]["probes"][family].as_str().unwrap_or_default().to_owned()
}

#[test]
fn without_btf_the_census_falls_back_to_proc() -> Result<()> {
    let (victim, report) = look_without("mount --bind /dev/null /sys/kernel/btf/vmlinux", "")?;
    ensure!(report.json["capability"]["census"] == "proc", "{:#}", report.json["capability"]);
    let thread = &victim.truth.threads[0];
    let said = report.thread(thread.pid, thread.tid)?;
    ensure!(said["off_cpu_exact"] == false, "durations count from first sight, and that is said: {said:#}");
    Ok(())
}

#[test]
fn without_tracefs_the_better_rungs_still_hold() -> Result<()> {
    // A rung below needs it: that one falls, with the reason, and the census does not care.
    let (_victim, report) = look_without(
        "mount -t tmpfs none /sys/kernel/tracing && mount -t tmpfs none /sys/kernel/debug",
        "--probes tracepoint",
    )?;
    ensure!(report.json["capability"]["census"] == "iter_task", "{:#}", report.json["capability"]);
    for family in ["poll", "futex", "connect"] {
        let rung = probe(&report, family);
        ensure!(rung.starts_with("none: tracepoint: "), "{family}: {rung}");
    }
    Ok(())
}

#[test]
fn without_probes_the_census_alone_finds_it() -> Result<()> {
    let (_victim, report) = look_without("true", "--probes none")?;
    for family in ["poll", "futex", "connect", "tcp_state"] {
        let rung = probe(&report, family);
        ensure!(rung.starts_with("none: "), "{family}: {rung}");
    }
    Ok(())
}

#[test]
fn the_source_can_be_chosen() -> Result<()> {
    let (_victim, report) = look_without("true", "--census proc")?;
    ensure!(report.json["capability"]["census"] == "proc", "{:#}", report.json["capability"]);
    // Without BTF there is no iterator: asking for it alone is refused, with the way out.
    let script = format!(
        "mount --bind /dev/null /sys/kernel/btf/vmlinux && exec '{}' attach $$ --once --census iter",
        binary()?.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    let line = Observer::through(command).run()?.expect_refusal()?;
    ensure!(line.contains("--census proc"), "says what to do: {line}");
    Ok(())
}

#[test]
fn doctor_says_what_is_lost_without_btf() -> Result<()> {
    let script = format!("mount --bind /dev/null /sys/kernel/btf/vmlinux && exec '{}' doctor", binary()?.display());
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    let run = Observer::through(command).run()?.expect_code(0)?;
    for words in ["census   proc", "MISSING BTF", "lost without it", "to get it"] {
        ensure!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
    Ok(())
}
