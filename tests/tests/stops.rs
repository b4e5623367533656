//! Who stopped a process that others wait for: its tracer, the cgroup that is frozen, nobody who can be named.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::installed;
use observer_tests::deadline::wait_until;
use observer_tests::guard::Guard;
use observer_tests::observer::look_at;
use observer_tests::skip;
use observer_tests::victim::Victim;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, io};

fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn a_process_that_gdb_holds() -> Result<()> {
    if !installed("gdb") {
        skip!("gdb is not installed");
    }
    let victim = Victim::start("stopped", &["held"])?;
    let holder = victim.truth.number("stopped")?;
    let mut command = Command::new("gdb");
    command.args(["-nx", "-q", "-p", &holder.to_string()]);
    let gdb = Guard::start(command, Stdio::null())?;
    wait_until("gdb to hold it", Duration::from_secs(30), || Ok((state(holder) == Some('t')).then_some(())))?;
    let report = look_at(&[&victim])?;
    // Everything is as old as the threshold by now, or look_at has waited for it.
    let about = report.about(&victim.truth);
    let finding = about.iter().find(|f| f.kind() == "stopped").with_context(|| format!("{about:#?}"))?;
    ensure!(finding.0["evidence"]["tracer_pid"] == gdb.pid(), "{:#}", finding.0);
    ensure!(finding.names(gdb.pid()), "names gdb: {:#}", finding.0);
    let last = finding.0["chain"].as_array().and_then(|chain| chain.last()).context("chain")?;
    ensure!(last["from"]["pid"] == holder && last["held_by"]["pid"] == gdb.pid(), "the chain goes on to gdb: {last:#}");
    let text = finding.0["explanation"].as_str().context("explanation")?;
    ensure!(text.contains("gdb") && text.contains("()"), "says what gdb does: {text}");
    Ok(())
}

#[test]
fn who_sent_a_signal_is_not_made_up() -> Result<()> {
    let victim = Victim::start("stopped", &["lock"])?;
    let report = look_at(&[&victim])?;
    let about = report.about(&victim.truth);
    let finding = about.iter().find(|f| f.kind() == "stopped").with_context(|| format!("{about:#?}"))?;
    let text = finding.0["explanation"].as_str().context("explanation")?;
    ensure!(text.contains("sent the signal is not kept"), "{text}");
    ensure!(finding.0["evidence"].get("frozen_cgroup").is_none(), "{:#}", finding.0);
    Ok(())
}

/// Two cgroups, one in the other, with a process in the inner one. Thawed, emptied and removed when dropped.
struct Frozen {
    outer: PathBuf,
    pid: i32,
    switch: (&'static str, &'static str),
}

impl Frozen {
    fn new(mount: &Path, switch: (&'static str, &'static str, &'static str), pid: i32) -> Result<Option<Self>> {
        let outer = mount.join(format!("observer-test-{pid}"));
        match fs::create_dir(&outer) {
            Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                return Ok(None);
            }
            made => made?,
        }
        let (file, on, off) = switch;
        let this = Self { outer, pid, switch: (file, off) };
        let inner = this.outer.join("inner");
        fs::create_dir(&inner)?;
        fs::write(inner.join("cgroup.procs"), pid.to_string())?;
        fs::write(this.outer.join(file), on)?;
        Ok(Some(this))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let (file, off) = self.switch;
        let _ = fs::write(self.outer.join(file), off);
        if let Some(mount) = self.outer.parent() {
            let _ = fs::write(mount.join("cgroup.procs"), self.pid.to_string());
        }
        let _ = fs::remove_dir(self.outer.join("inner"));
        let _ = fs::remove_dir(&self.outer);
    }
}

/// Where a hierarchy is mounted, from the lines of mountinfo that contain these words.
fn mounted(words: &[&str]) -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| words.iter().all(|word| line.contains(word)));
    Ok(line.and_then(|line| line.split(' ').nth(4)).map(PathBuf::from))
}

fn a_frozen_process_names_its_cgroup(mount: &Path, switch: (&'static str, &'static str, &'static str)) -> Result<()> {
    let victim = Victim::start("stopped", &["held"])?;
    let holder = victim.truth.number("stopped")?;
    let Some(frozen) = Frozen::new(mount, switch, holder)? else {
        skip!("{} is not writable", mount.display());
    };
    let report = look_at(&[&victim])?;
    let about = report.about(&victim.truth);
    let finding = about.iter().find(|f| f.kind() == "stopped").with_context(|| format!("{about:#?}"))?;
    let outer = format!("/{}", frozen.outer.file_name().context("a name")?.to_string_lossy());
    // The upper one of the two: that is where somebody has to go.
    let named = finding.0["evidence"]["frozen_cgroup"].as_str().unwrap_or_default();
    ensure!(named.ends_with(&outer), "{outer}: {:#}", finding.0);
    for field in ["title", "explanation", "remedy"] {
        ensure!(finding.0[field].as_str().is_some_and(|text| text.contains(named)), "{field}: {:#}", finding.0);
    }
    Ok(())
}

#[test]
fn a_frozen_cgroup_of_version_2() -> Result<()> {
    let Some(mount) = mounted(&[" - cgroup2 "])? else { skip!("no cgroup2 is mounted") };
    a_frozen_process_names_its_cgroup(&mount, ("cgroup.freeze", "1", "0"))
}

#[test]
fn a_frozen_cgroup_of_version_1() -> Result<()> {
    let Some(mount) = mounted(&[" - cgroup ", "freezer"])? else { skip!("no freezer of version 1 is mounted") };
    a_frozen_process_names_its_cgroup(&mount, ("freezer.state", "FROZEN", "THAWED"))
}
