//! What cannot be looked at is refused in one line; what goes away meanwhile is a counted partial answer.

use anyhow::{Context, Result, ensure};
use observer_tests::deadline::wait_until;
use observer_tests::guard::Guard;
use observer_tests::observer::{OLD_ENOUGH, Observer, binary, look_at};
use observer_tests::victim::Victim;
use observer_tests::{procfs, skip};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

const NOBODY: u32 = 65534;

/// The refusal of `attach PID --once` names the pid and says more than that.
fn refused(pid: i32, says: &str) -> Result<()> {
    let line = Observer::attach(&[pid], &["--once"])?.run()?.expect_refusal()?;
    ensure!(line.contains(&pid.to_string()), "names the pid {pid}: {line}");
    ensure!(line.to_lowercase().contains(says), "says `{says}`: {line}");
    Ok(())
}

/// A process id that was in use a moment ago and is not now.
fn dead_pid() -> Result<i32> {
    let mut child = Command::new("true").spawn()?;
    let pid = child.id().cast_signed();
    child.wait()?;
    ensure!(procfs::state(pid, pid).is_none(), "{pid} lives");
    Ok(pid)
}

#[test]
fn no_such_process() -> Result<()> {
    for pid in [dead_pid()?, i32::MAX] {
        refused(pid, "no such process").or_else(|_| refused(pid, "no process"))?;
    }
    Ok(())
}

#[test]
fn a_zombie() -> Result<()> {
    let mut child = Command::new("true").spawn()?;
    let pid = child.id().cast_signed();
    wait_until("the zombie", Duration::from_secs(5), || Ok((procfs::state(pid, pid) == Some('Z')).then_some(())))?;
    let checked = refused(pid, "zombie");
    child.wait()?;
    checked
}

#[test]
fn a_thread_id_instead_of_a_process_id() -> Result<()> {
    let victim = Victim::start("held", &["read"])?;
    let thread = victim.truth.threads.first().context("threads")?;
    // In whatever words: the process it belongs to is in the line.
    refused(thread.tid, &thread.pid.to_string())
}

#[test]
fn one_of_several_does_not_exist() -> Result<()> {
    let victim = Victim::start("deadlock", &[])?;
    let dead = dead_pid()?;
    let run = Observer::attach(&[victim.truth.pid, dead], &["--once", "--output", "json"])?.run()?;
    // Either all is refused, or the rest is looked at and the missing one is named.
    ensure!(run.stderr.contains(&dead.to_string()), "names {dead}: {run:#?}");
    ensure!(matches!(run.code, Some(1 | 2)), "not silently ignored: {run:#?}");
    Ok(())
}

#[test]
fn a_process_that_exits_while_we_look() -> Result<()> {
    let mut victim = Victim::start("healthy_waits", &["pipe"])?;
    let other = Victim::start("healthy_waits", &["nanosleep"])?;
    let pids = [victim.truth.pid, other.truth.pid];
    let live = Observer::attach(&pids, &["--for", "3s", "--output", "json"])?.start()?;
    let began = live.began;
    wait_until("observer to be at it", Duration::from_secs(5), || {
        Ok((began.elapsed() > Duration::from_secs(1)).then_some(()))
    })?;
    victim.guard().kill();
    let run = live.finish(Duration::from_secs(20))?;
    ensure!(!run.stderr.contains("panicked"), "{run:#?}");
    let report = run.report()?;
    report.expect_silence("a process that ended by itself")?;
    report.process(other.truth.pid)?;
    Ok(())
}

#[test]
fn the_only_process_exits_while_we_look() -> Result<()> {
    let mut victim = Victim::start("healthy_waits", &["pipe"])?;
    let live = Observer::attach(&[victim.truth.pid], &["--for", "30s"])?.start()?;
    let began = live.began;
    wait_until("observer to be at it", Duration::from_secs(5), || {
        Ok((began.elapsed() > Duration::from_secs(1)).then_some(()))
    })?;
    let observer = live.guard.pid();
    ensure!(!matches!(procfs::state(observer, observer), None | Some('Z')), "it ended before the process did");
    victim.guard().kill();
    let run = live.finish(Duration::from_secs(10)).context("nothing is left to look at: it must end")?;
    // On a busy machine it may not have come to look yet.
    let said = match run.code {
        Some(0) => "exited while it was looked at",
        _ => "is gone: it exited before it could be looked at",
    };
    ensure!(matches!(run.code, Some(0 | 2)) && run.stderr.contains(said), "{run:#?}");
    Ok(())
}

#[test]
fn without_privilege() -> Result<()> {
    let victim = Victim::start("deadlock", &[])?;
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    let copy = dir.path().join("observer");
    std::fs::copy(binary()?, &copy)?;
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new(&copy);
    command.args(["attach", &victim.truth.pid.to_string(), "--once"]);
    let line = Observer::through(command).user(NOBODY).run()?.expect_refusal()?;
    let lower = line.to_lowercase();
    ensure!(
        ["privilege", "root", "sudo", "cap_"].iter().any(|word| lower.contains(word)),
        "says what it lacks or what to do: {line}"
    );
    Ok(())
}

#[test]
fn flags_that_make_no_sense() -> Result<()> {
    for args in [
        &["attach"][..],
        &["attach", "zero"],
        &["attach", "-1"],
        &["attach", "0"],
        &["attach", "1", "--threshold", "soon"],
        &["attach", "1", "--output", "xml"],
        &["attach", "1", "--once", "--for", "3s"],
        &["attach", "1", "--no-such-flag"],
        &["no-such-command"],
        &["completions", "tcsh-of-1975"],
        &[],
    ] {
        let run = Observer::new(args)?.run()?.expect_code(2)?;
        ensure!(run.stdout.is_empty(), "stdout is for data: {run:#?}");
        ensure!(!run.stderr.is_empty(), "says why: {run:#?}");
    }
    Ok(())
}

#[test]
fn recordings_that_cannot_be_read() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let missing = dir.path().join("missing");
    let garbage = dir.path().join("garbage");
    std::fs::write(&garbage, b"\x7fELF\0\xff\xfe not a recording\n")?;
    let empty = dir.path().join("empty");
    std::fs::write(&empty, b"")?;
    for path in [missing.as_path(), &garbage, &empty, dir.path()] {
        let path = path.to_str().context("a path")?;
        let line = Observer::new(&["replay", path])?.run()?.expect_refusal()?;
        ensure!(line.contains(path), "names the file: {line}");
    }
    Ok(())
}

#[test]
fn a_truncated_recording_is_no_panic() -> Result<()> {
    let victim = Victim::start("deadlock", &[])?;
    let dir = tempfile::tempdir()?;
    let whole = dir.path().join("whole");
    let path = whole.to_str().context("a path")?;
    victim.older_than(OLD_ENOUGH)?;
    Observer::attach(&[victim.truth.pid], &["--once", "--record", path])?.run()?.expect_code(1)?;
    let bytes = std::fs::read(&whole)?;
    for part in [1, 2, 3] {
        let cut = dir.path().join(format!("cut-{part}"));
        std::fs::write(&cut, &bytes[..bytes.len() * part / 4])?;
        let run = Observer::new(&["replay", cut.to_str().context("a path")?])?.run()?;
        ensure!(!run.stderr.contains("panicked"), "{run:#?}");
        // What was whole may be replayed, with a word about the rest; else it is refused.
        ensure!(matches!(run.code, Some(0..=2)) && !run.stderr.is_empty(), "says that it is cut: {run:#?}");
    }
    Ok(())
}

#[test]
fn a_closed_pipe_is_success() -> Result<()> {
    let victim = Victim::start("deadlock", &[])?;
    victim.older_than(OLD_ENOUGH)?;
    let pid = victim.truth.pid.to_string();
    let args = ["attach", &pid, "--once", "--threshold", "1s", "--output", "json"];
    // There is something to print: the finding.
    Observer::new(&args)?.run()?.expect_code(1)?;
    let mut live = Observer::new(&args)?.start()?;
    live.guard.close_stdout();
    let status = live.guard.ended(Duration::from_secs(20))?;
    let stderr = live.stderr()?;
    ensure!(matches!(status.code(), Some(0 | 1)), "neither a signal nor an error: {status} {stderr}");
    ensure!(!stderr.contains("panicked"), "{stderr}");
    Ok(())
}

#[test]
fn hostile_names_stay_one_json_document() -> Result<()> {
    let mut command = Command::new("python3");
    command.args([
        "-c",
        "import ctypes, sys\nctypes.CDLL(None).prctl(15, b'\\xff\"\\n\\x1b[31m')\nprint('ready', flush=True)\nsys.stdin.read()",
        "\u{1b}[2J\"}\n",
    ]);
    let mut guard = match Guard::start(command, Stdio::null()) {
        Ok(guard) => guard,
        Err(e) => skip!("python3 is not installed: {e:#}"),
    };
    ensure!(guard.line(Duration::from_secs(20))?.as_deref() == Some("ready"), "python is ready");
    let json = Observer::attach(&[guard.pid()], &["--once", "--output", "json"])?.run()?;
    json.report()?.process(guard.pid())?;
    let text = Observer::attach(&[guard.pid()], &["--once"])?.run()?;
    ensure!(!text.stdout.contains('\u{1b}'), "a target cannot write to the operator's terminal: {:?}", text.stdout);
    Ok(())
}

#[test]
fn the_target_is_not_disturbed() -> Result<()> {
    let victim = Victim::start("held", &["nanosleep"])?;
    let switches = |tid| -> Result<(Vec<i64>, Vec<i64>)> {
        let pid = victim.truth.pid;
        Ok((
            procfs::status_numbers(pid, tid, "voluntary_ctxt_switches")?,
            procfs::status_numbers(pid, tid, "nonvoluntary_ctxt_switches")?,
        ))
    };
    let tids: Vec<i32> = victim.truth.threads.iter().map(|t| t.tid).collect();
    let before = tids.iter().map(|&tid| switches(tid)).collect::<Result<Vec<_>>>()?;
    look_at(&[&victim])?;
    let after = tids.iter().map(|&tid| switches(tid)).collect::<Result<Vec<_>>>()?;
    ensure!(before == after, "a thread ran because it was looked at: {before:?} {after:?}");
    Ok(())
}
