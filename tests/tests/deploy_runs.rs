//! What is deployed really runs where it is deployed to, with no more than it is given there, and finds another user's hang.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::installed;
use observer_tests::deployed::{container, dist, foreign_deadlock, image, in_the_units_sandbox, no_systemd};
use observer_tests::helm::Helm;
use observer_tests::observer::{OLD_ENOUGH, Observer, binary};
use observer_tests::report::Report;
use observer_tests::skip;
use observer_tests::victim::Victim;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The deadlock is found, and the functions of a program that only its owner may read have names.
fn expect_deadlock(report: &Report, victim: &Victim) -> Result<()> {
    report.only("deadlock", &victim.truth)?.expect("confidence", "certain")?.expect_cycle(&victim.truth)?;
    for thread in &victim.truth.threads {
        if thread.owner.is_some() {
            let stack = report.stack(victim.truth.pid, thread.tid)?;
            ensure!(stack.names().contains(&"transfer"), "{:?}", stack.names());
        }
    }
    Ok(())
}

/// The facts of `doctor --output json` that are missing, less those it calls optional.
fn missing(doctor: &str) -> Result<Vec<String>> {
    let doctor: Value = serde_json::from_str(doctor).with_context(|| doctor.to_owned())?;
    ensure!(doctor["census"]["source"] == "iter_task", "{}", doctor["census"]);
    ensure!(doctor["probes"]["rungs"]["poll"].as_str().is_some_and(|rung| !rung.starts_with("none")), "{doctor:#}");
    let facts = doctor["capability"]["facts"].as_array().context("facts")?;
    // The tests themselves may run in a PID namespace of their own.
    let inside = fs::read_link("/proc/self/ns/pid")? != Path::new("pid:[4026531836]");
    let is_ours = |fact: &&Value| inside && fact["name"] == "initial PID namespace";
    let lacking = facts.iter().filter(|fact| fact["present"] == false && fact["optional"] != true && !is_ours(fact));
    Ok(lacking.filter_map(|fact| Some(fact["name"].as_str()?.to_owned())).collect())
}

#[test]
fn the_static_binary_finds_a_hang_from_an_empty_root() -> Result<()> {
    let dist = match dist() {
        Ok(dist) => dist,
        Err(why) => skip!("no static binary can be built here: {why:#}"),
    };
    let sums = Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&dist).output()?;
    ensure!(sums.status.success(), "{}", String::from_utf8_lossy(&sums.stdout));

    let root = tempfile::tempdir()?;
    fs::copy(dist.join("observer"), root.path().join("observer"))?;
    for name in ["proc", "sys"] {
        fs::create_dir(root.path().join(name))?;
    }
    let inside = |arguments: &str| {
        let mut command = Command::new("unshare");
        let root = root.path().display();
        let script = format!(
            "mount -t proc proc {root}/proc && mount --rbind /sys {root}/sys && exec chroot {root} /observer {arguments}"
        );
        command.args(["--mount", "--", "sh", "-c", &script]);
        Observer::through(command).run()
    };
    let doctor = inside("doctor --output json")?.expect_code(0)?;
    ensure!(missing(&doctor.stdout)?.is_empty(), "{}", doctor.stdout);
    let place = tempfile::tempdir()?;
    let victim = foreign_deadlock(place.path())?;
    victim.older_than(OLD_ENOUGH)?;
    let run = inside(&format!("attach {} --once --threshold 1s --stacks --output json", victim.truth.pid))?;
    expect_deadlock(&run.report()?, &victim)
}

#[test]
fn the_daemon_sets_container_finds_a_hang_of_another_user() -> Result<()> {
    if !installed("runc") {
        skip!("runc is not installed: apt-get install runc");
    }
    let helm = match Helm::get() {
        Ok(helm) => helm,
        Err(why) => skip!("Helm cannot be set up here: {why:#}"),
    };
    let dist = match dist() {
        Ok(dist) => dist,
        Err(why) => skip!("no static binary can be built here: {why:#}"),
    };
    let installed = helm.install("1.37.0", &["tests/deploy-values/endpoint.yaml"])?.map_err(anyhow::Error::msg)?;
    let bundle = tempfile::tempdir()?;
    image(&dist, &bundle.path().join("rootfs"))?;
    let contained = |name: &str, arguments: &[&str]| {
        let settings = container(installed.only("DaemonSet")?, arguments)?;
        fs::write(bundle.path().join("config.json"), serde_json::to_vec(&settings)?)?;
        let mut command = Command::new("runc");
        command.arg("--root").arg(bundle.path().join("state")).args(["run", "--bundle"]).arg(bundle.path());
        command.arg(format!("observer-{name}-{}", std::process::id()));
        Observer::through(command).run()
    };
    let doctor = contained("doctor", &["doctor", "--output", "json"])?.expect_code(0)?;
    // No directory of the host is mounted: tracefs, for the last rung of the probes, is one.
    ensure!(missing(&doctor.stdout)?.iter().all(|name| name == "tracefs"), "{}", doctor.stdout);
    let place = tempfile::tempdir()?;
    let victim = foreign_deadlock(place.path())?;
    victim.older_than(OLD_ENOUGH)?;
    let pid = victim.truth.pid.to_string();
    let run = contained("attach", &["attach", &pid, "--once", "--threshold", "1s", "--stacks", "--output", "json"])?;
    expect_deadlock(&run.report()?, &victim)
}

#[test]
fn the_units_sandbox_leaves_observer_all_it_needs() -> Result<()> {
    if let Some(why) = no_systemd() {
        skip!("{why}");
    }
    let place = tempfile::tempdir()?;
    let script = "/run/observer doctor --output json; echo; echo ----; \
        /run/observer attach $VICTIM --once --threshold 1s --stacks --output json; echo code $?";
    let said = in_the_units_sandbox(place.path(), &binary()?, script, "")?;
    let (doctor, attach) = said.split_once("----").with_context(|| said.clone())?;
    // systemd runs in a PID namespace of its own here.
    let lacking: Vec<String> =
        missing(doctor)?.into_iter().filter(|name| name != "initial PID namespace" && name != "tracefs").collect();
    ensure!(lacking.is_empty(), "{lacking:?}: {doctor}");
    let doctor: Value = serde_json::from_str(doctor)?;
    let mut facts = doctor["capability"]["facts"].as_array().context("facts")?.iter();
    let is_refused = |fact: &Value| fact["name"] == "CAP_SYS_ADMIN" && fact["present"] == false;
    ensure!(facts.any(is_refused), "the sandbox is none: {doctor:#}");
    let (report, code) = attach.rsplit_once("code ").with_context(|| attach.to_owned())?;
    ensure!(code.trim() == "1", "{attach}");
    let report: Value = serde_json::from_str(report).with_context(|| report.to_owned())?;
    let finding = &report["findings"][0];
    ensure!(finding["kind"] == "deadlock" && finding["confidence"] == "certain", "{finding:#}");
    ensure!(
        report.to_string().contains("\"transfer\""),
        "functions of a program that only its owner may read: {report:#}"
    );
    Ok(())
}

#[test]
fn what_the_unit_leaves_out_would_break_it() -> Result<()> {
    if let Some(why) = no_systemd() {
        skip!("{why}");
    }
    let symbols = "grep -c -v ^0000000000000000 /proc/kallsyms 2>&1; true";
    let lines = |more: &str| -> Result<bool> {
        let place = tempfile::tempdir()?;
        let said = in_the_units_sandbox(place.path(), &binary()?, symbols, more)?;
        Ok(said.trim().parse::<u64>().is_ok_and(|lines| lines > 0))
    };
    ensure!(lines("")?, "kernel symbols are readable in the unit as it is");
    for breaking in ["ProtectKernelTunables=yes", "ProtectKernelLogs=yes", "ProcSubset=pid", "PrivateUsers=yes"] {
        ensure!(!lines(breaking)?, "{breaking} no longer breaks kernel symbols: the unit can have it");
    }
    Ok(())
}

#[test]
fn systemd_understands_every_line_of_the_unit() -> Result<()> {
    if !installed("systemd-analyze") {
        skip!("systemd-analyze is not installed: apt-get install systemd");
    }
    let place = tempfile::tempdir()?;
    let unit = observer_tests::helm::text("deploy/systemd/observer.service")?;
    // It wants the program to exist.
    let unit = unit.replace("/usr/local/bin/observer", &binary()?.display().to_string());
    let file = place.path().join("observer.service");
    fs::write(&file, unit)?;
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output()?;
    let complaints = String::from_utf8_lossy(&verify.stderr);
    ensure!(verify.status.success() && !complaints.contains("observer.service"), "{complaints}");
    Ok(())
}
