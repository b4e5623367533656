//! The commands keep their contract: output forms, exit codes, latency, recording, and leaving nothing behind.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use observer_tests::contract::check_finding;
use observer_tests::deadline::wait_until;
use observer_tests::observer::{OLD_ENOUGH, Observer, binary, look_at};
use observer_tests::victim::Victim;
use observer_tests::{compile, procfs, skip};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

fn old(name: &str, args: &[&str]) -> Result<Victim> {
    let victim = Victim::start(name, args)?;
    victim.older_than(OLD_ENOUGH)?;
    Ok(victim)
}

fn ids(findings: &Value) -> BTreeSet<String> {
    let all = findings.as_array().into_iter().flatten();
    all.map(|f| format!("{} {}", f["kind"], f["id"])).collect()
}

#[test]
fn an_old_hang_is_reported_within_two_seconds() -> Result<()> {
    let victim = old("deadlock", &[])?;
    // The best of three: the machine is shared with other tests.
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let mut live = Observer::attach(&[victim.truth.pid], &["--for", "20s", "--output", "ndjson"])?.start()?;
        live.finding(Duration::from_secs(20), |f| f["kind"] == "deadlock")?;
        best = best.min(live.began.elapsed());
        let once = Observer::attach(&[victim.truth.pid], &["--once", "--output", "json"])?.run()?;
        once.report()?.only("deadlock", &victim.truth)?;
        ensure!(once.took < Duration::from_secs(8), "--once is threshold + 3 s at most: {:?}", once.took);
        if best < Duration::from_secs(2) {
            return Ok(());
        }
    }
    anyhow::bail!("the hang was older than the threshold and took {best:?} to report");
}

#[test]
fn a_hang_younger_than_the_threshold_is_not_a_lock_wait_yet() -> Result<()> {
    let victim = Victim::start("held", &["read"])?;
    let pid = victim.truth.pid.to_string();
    let run = Observer::new(&["attach", &pid, "--threshold", "10m", "--for", "2s", "--output", "json"])?.run()?;
    run.report()?.expect_silence("a lock held for less than the threshold")
}

#[test]
fn text_begins_with_the_finding_and_says_what_to_do() -> Result<()> {
    let victim = old("deadlock", &[])?;
    let run = Observer::attach(&[victim.truth.pid], &["--once"])?.run()?.expect_code(1)?;
    let first: String = run.stdout.lines().take(4).collect::<Vec<_>>().join("\n");
    ensure!(first.to_lowercase().contains("deadlock"), "the finding comes first: {}", run.stdout);
    for thread in &victim.truth.threads {
        ensure!(run.stdout.contains(&thread.name), "names {}: {}", thread.name, run.stdout);
        ensure!(run.stdout.contains(&thread.tid.to_string()), "numbers {}: {}", thread.tid, run.stdout);
        let lock = format!("{:x}", thread.waits_for.context("lock")?);
        ensure!(run.stdout.contains(&lock), "the lock {lock}: {}", run.stdout);
    }
    ensure!(!run.stdout.contains('\u{1b}'), "colour only on a terminal: {:?}", run.stdout);
    Ok(())
}

#[test]
fn no_color_holds_on_a_terminal_too() -> Result<()> {
    let victim = old("deadlock", &[])?;
    if !std::path::Path::new("/usr/bin/script").exists() {
        skip!("script(1) is not installed");
    }
    let line = format!("{} attach {} --once --threshold 1s", binary()?.display(), victim.truth.pid);
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("NO_COLOR", "1").env("TERM", "xterm-256color");
    let run = Observer::through(command).run()?;
    ensure!(run.stdout.to_lowercase().contains("deadlock"), "{run:#?}");
    ensure!(!run.stdout.contains("\u{1b}["), "{:?}", run.stdout);
    Ok(())
}

#[test]
fn several_processes_and_their_children() -> Result<()> {
    let (one, two) = (Victim::start("deadlock", &[])?, Victim::start("held", &["read"])?);
    let report = look_at(&[&one, &two])?;
    report.only("deadlock", &one.truth)?;
    report.only("lock_wait", &two.truth)?;

    let mut family = old("processes", &["cycle"])?;
    let parent = family.guard().pid();
    let alone = Observer::attach(&[parent], &["--once", "--output", "json"])?.run()?.report()?;
    ensure!(alone.process(family.truth.pid).is_err(), "children only when asked for");
    let all = Observer::attach(&[parent], &["--children", "--once", "--output", "json"])?.run()?.report()?;
    all.only("deadlock", &family.truth)?.expect_cycle(&family.truth)?;
    Ok(())
}

#[test]
fn for_ends_when_it_says() -> Result<()> {
    let victim = Victim::start("healthy_waits", &["pipe"])?;
    let run = Observer::attach(&[victim.truth.pid], &["--for", "2s"])?.run()?.expect_code(0)?;
    ensure!(run.took >= Duration::from_secs(2) && run.took < Duration::from_secs(6), "{:?}", run.took);
    Ok(())
}

#[test]
fn ndjson_is_one_finding_a_line_and_a_stable_one_is_said_once() -> Result<()> {
    let victim = old("deadlock", &[])?;
    let run = Observer::attach(&[victim.truth.pid], &["--for", "4s", "--output", "ndjson"])?.run()?.expect_code(1)?;
    let lines: Vec<Value> = run.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    for line in &lines {
        check_finding(line)?;
    }
    let opened = lines.iter().filter(|f| f["kind"] == "deadlock" && f["state"] == "open").count();
    ensure!(opened == 1, "opens once: {lines:#?}");
    Ok(())
}

#[test]
fn a_finding_keeps_its_id_between_runs() -> Result<()> {
    let victim = Victim::start("deadlock", &[])?;
    let (first, second) = (look_at(&[&victim])?, look_at(&[&victim])?);
    let (first, second) = (ids(&first.json["findings"]), ids(&second.json["findings"]));
    ensure!(first == second && first.len() == 1, "{first:?} {second:?}");
    Ok(())
}

#[test]
fn record_then_replay_says_the_same() -> Result<()> {
    let victims = [old("deadlock", &[])?, old("held", &["chain"])?];
    let pids: Vec<i32> = victims.iter().map(|v| v.truth.pid).collect();
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("recording");
    let file = file.to_str().context("a path")?;
    let live = Observer::attach(&pids, &["--once", "--output", "json", "--record", file])?.run()?.report()?;
    drop(victims);
    let replay = Observer::new(&["replay", file, "--threshold", "1s", "--output", "json"])?.run()?.report()?;
    ensure!(ids(&live.json["findings"]).len() == 2, "{:#}", live.json["findings"]);
    for field in ["kind", "id", "since", "confidence", "severity", "threads", "chain", "title"] {
        let all = |r: &Value| -> BTreeSet<String> {
            let findings = r["findings"].as_array().into_iter().flatten();
            findings.map(|f| f[field].to_string()).collect()
        };
        ensure!(all(&live.json) == all(&replay.json), "{field}: {:?} {:?}", all(&live.json), all(&replay.json));
    }
    Ok(())
}

#[test]
fn doctor_says_what_works_here() -> Result<()> {
    let text = Observer::new(&["doctor"])?.run()?;
    for word in ["kernel", "poll", "futex", "connect", "what they cost: ", "observer_probes_sampling"] {
        ensure!(text.stdout.to_lowercase().contains(word), "{word}: {text:#?}");
    }
    let json = Observer::new(&["doctor", "--output", "json"])?.run()?;
    let _: Value = serde_json::from_str(&json.stdout).with_context(|| format!("{json:#?}"))?;
    ensure!(text.code == json.code && matches!(text.code, Some(0 | 2)), "{text:#?}");
    Ok(())
}

#[test]
fn completions_and_manual() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let run = Observer::new(&["completions", shell])?.run()?.expect_code(0)?;
        for word in ["attach", "threshold"] {
            ensure!(run.stdout.contains(word), "{shell} completes {word}");
        }
    }
    let bash = Observer::new(&["completions", "bash"])?.run()?;
    let parsed = Command::new("bash").args(["-n", "-c", &bash.stdout]).status()?;
    ensure!(parsed.success(), "bash reads its completions");
    let man = Observer::new(&["man"])?.run()?.expect_code(0)?;
    ensure!(man.stdout.contains(".TH") && man.stdout.contains("attach"), "a manual page");
    for args in [&["--help"][..], &["--version"], &["attach", "--help"]] {
        let run = Observer::new(args)?.run()?.expect_code(0)?;
        ensure!(!run.stdout.is_empty(), "{run:#?}");
    }
    Ok(())
}

/// Ids of BPF programs, links and maps a process holds, as `fdinfo` shows them.
fn bpf_ids(pid: i32) -> BTreeSet<(String, u64)> {
    let infos = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    infos
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
        .flat_map(|text| {
            let id = |line: &str| {
                let (name, id) = line.split_once(':')?;
                let kind = ["prog_id", "link_id", "map_id"].iter().find(|k| **k == name)?;
                Some(((*kind).to_owned(), id.trim().parse().ok()?))
            };
            text.lines().filter_map(id).collect::<Vec<_>>()
        })
        .collect()
}

/// What the kernel still knows, by `bpftool`.
fn kernel_ids() -> Result<BTreeSet<(String, u64)>> {
    let mut all = BTreeSet::new();
    for (object, kind) in [("prog", "prog_id"), ("link", "link_id"), ("map", "map_id")] {
        let out = Command::new("bpftool").args(["-j", object, "show"]).output()?;
        ensure!(out.status.success(), "bpftool: {}", String::from_utf8_lossy(&out.stderr));
        let list: Value = serde_json::from_slice(&out.stdout)?;
        let ids = list.as_array().into_iter().flatten().filter_map(|o| o["id"].as_u64());
        all.extend(ids.map(|id| (kind.to_owned(), id)));
    }
    Ok(all)
}

#[test]
fn ctrl_c_is_quick_and_detaches_everything() -> Result<()> {
    let victim = Victim::start("healthy_waits", &["pipe"])?;
    if let Err(e) = kernel_ids() {
        skip!("bpftool does not work here: {e:#}");
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let live = Observer::attach(&[victim.truth.pid], &["--output", "ndjson"])?.start()?;
        let pid = live.guard.pid();
        let held = wait_until("observer to be attached", Duration::from_secs(15), || {
            let held = bpf_ids(pid);
            Ok(held.iter().any(|(kind, _)| kind == "prog_id").then_some(held))
        })?;
        live.guard.signal(signal)?;
        let run = live.finish(Duration::from_secs(3)).context("Ctrl-C must end it at once")?;
        ensure!(run.code == Some(0), "nothing was found: {run:#?}");
        // The kernel frees what nobody holds after a grace period.
        wait_until("the kernel to forget programs, links and maps", Duration::from_secs(10), || {
            Ok(kernel_ids()?.is_disjoint(&held).then_some(()))
        })
        .with_context(|| format!("{signal}: left behind of {held:?}"))?;
    }
    Ok(())
}

/// A victim and a `watch` with these filters, alone in a PID namespace of their own.
fn watch(filters: &str) -> Result<observer_tests::observer::Live> {
    let victim = compile::victim("deadlock", compile::Abi::Native)?;
    let script = format!(
        "'{}' >/dev/null & exec '{}' watch --threshold 1s --output ndjson {filters}",
        victim.display(),
        binary()?.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script]);
    Observer::through(command).start()
}

#[test]
fn watch_opens_and_resolves() -> Result<()> {
    let mut live = watch("--for 40s")?;
    let opened = live.finding(Duration::from_secs(15), |f| f["kind"] == "deadlock")?;
    check_finding(&opened)?;
    ensure!(opened["state"] == "open" && opened["comm"] == "deadlock", "{opened:#}");
    let comm_is = |pid: &i32| procfs::comm(*pid, *pid).is_ok_and(|name| name == "deadlock");
    let family = procfs::descendants(live.guard.pid());
    let victim = family.into_iter().map(|(pid, _)| pid).find(comm_is).context("the victim")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim), Signal::SIGKILL)?;
    let resolved = live.finding(Duration::from_secs(15), |f| f["state"] == "resolved")?;
    check_finding(&resolved)?;
    ensure!(resolved["id"] == opened["id"], "the same finding: {opened:#} {resolved:#}");
    Ok(())
}

#[test]
fn watch_filters_by_name() -> Result<()> {
    filters(&[("--comm deadlock", true), ("--comm nobody", false), ("--exclude deadlock", false)])
}

#[test]
fn watch_filters_by_process() -> Result<()> {
    filters(&[("--pid $!", true), ("--pid 1", false)])
}

fn filters(all: &[(&str, bool)]) -> Result<()> {
    for &(filter, seen) in all {
        let run = watch(&format!("--for 4s {filter}"))?.finish(Duration::from_secs(20))?;
        let found = run.stdout.lines().any(|line| line.contains("\"deadlock\""));
        ensure!(found == seen, "{filter}: {run:#?}");
        ensure!(run.code == Some(i32::from(seen)), "{filter}: {run:#?}");
    }
    Ok(())
}
