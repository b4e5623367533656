//! What a census of goroutines costs, observer and the program it looks at, against the profile that the program makes of itself
//! and the list that a debugger makes of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::table::{markdown, median, provenance};
use crate::started::Started;
use crate::{invoke, workspace};

const PATIENCE: Duration = Duration::from_secs(60);
/// With more goroutines a debugger takes minutes, in which the program stands still.
const MOST_LISTED: u32 = 10_000;

/// All that was measured with so many goroutines; times in milliseconds.
#[derive(Default)]
struct Measured {
    first: Vec<f64>,
    later: Vec<f64>,
    cpu: Vec<f64>,
    /// MiB.
    memory: f64,
    /// Work of the target with a census a second, as a share of what it does without.
    throughput: Vec<f64>,
    /// Per kind of profile: how long it took, and how much work of the target it cost.
    profiles: [(Vec<f64>, Vec<f64>); 2],
    /// The same of the list of a debugger.
    listed: (Vec<f64>, Vec<f64>),
}

/// Measures a program of 10,000 and one of 100,000 goroutines, and returns the table.
pub(crate) fn measure(observer: &Path, quick: bool) -> Result<String> {
    let (turns, span) = if quick { (2, Duration::from_secs(1)) } else { (9, Duration::from_secs(4)) };
    let program = build("goroutines", &["-ldflags=-s -w"])?;
    // A debugger needs what the linker leaves out there.
    let with_symbols = build("goroutines-with-symbols", &[])?;
    let mut rows = Vec::new();
    for count in [10_000_u32, 100_000] {
        eprintln!("xtask: {count} goroutines");
        let mut command = Command::new(&program);
        command.args(["many", &count.to_string()]);
        let mut target = Started::start(&mut command)?;
        let ready = target.wait_for("a line of truth", PATIENCE, |line| serde_json::from_str::<Value>(line).ok())?;
        let address = ready["address"].as_str().context("an address")?.to_owned();
        let mut measured = Measured::default();
        for _ in 0..turns {
            take_turn(observer, &mut target, &address, count, span, &mut measured)?;
        }
        drop(target);
        if count <= MOST_LISTED {
            list(&with_symbols, count, if quick { 1 } else { 3 }, span, &mut measured)?;
        }
        rows.push(row(count, &measured)?);
    }
    let header = [
        "goroutines",
        "first census",
        "later ones",
        "CPU of the command, one census",
        "memory at most",
        "the program's work, a census a second",
        "`/debug/pprof/goroutine`: took, work lost",
        "`?debug=2`: took, work lost",
        "`dlv attach`, `goroutines -t`: took, work lost",
    ];
    let command = if quick { "cargo xtask bench goroutines --quick" } else { "cargo xtask bench goroutines" };
    let note = format!(
        "Medians of {turns} turns. A census is all goroutines with their stacks, named. *First*: of a new observer, so that files are mapped and all names looked up. *The program's work*: what one \
         goroutine does that never rests, in pairs of {span:?} with and without observer. *Work lost*: the time in which it would have done what it did not do while the profile was made. Delve is asked three times at most, and needs symbols; the program stands still from its first word to its last."
    );
    Ok(format!("{}\n\n{}\n{note}", provenance(command)?, markdown(&header, &rows)))
}

/// The program of the tests.
fn build(name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let directory = workspace::target().join("bench");
    std::fs::create_dir_all(&directory)?;
    let program = directory.join(name);
    let mut go = Command::new("go");
    go.env("GO111MODULE", "off").env("GOTOOLCHAIN", "local").env("GOFLAGS", "").env("CGO_ENABLED", "0");
    go.arg("build").args(arguments).arg("-o").arg(&program).arg(workspace::root().join("tests/victims/goroutines.go"));
    invoke::run(&mut go)?;
    Ok(program)
}

fn take_turn(
    observer: &Path,
    target: &mut Started,
    address: &str,
    count: u32,
    span: Duration,
    measured: &mut Measured,
) -> Result<()> {
    let pid = target.pid().to_string();
    let mut once = Command::new(observer);
    once.args(["goroutines", &pid, "--interval", "0s", "--output", "json"]);
    let before = cpu_of_children()?;
    let census: Value = serde_json::from_str(&invoke::capture(&mut once)?)?;
    measured.cpu.push(cpu_of_children()? - before);
    measured.first.push(took(&census, count)?);

    // A pair, with and without.
    let (_, alone) = work_in(target, || {
        std::thread::sleep(span);
        Ok(())
    })?;
    let mut watch = Command::new(observer);
    watch.args(["goroutines", &pid, "--watch", "--interval", "1s", "--output", "json"]);
    let mut watch = Started::start(&mut watch)?;
    let wait =
        |watch: &mut Started| watch.wait_for("a census", PATIENCE, |line| serde_json::from_str::<Value>(line).ok());
    wait(&mut watch)?;
    let until = Instant::now() + span;
    let mut later = Vec::new();
    let (_, watched) = work_in(target, || {
        while Instant::now() < until {
            later.push(wait(&mut watch)?);
        }
        Ok(())
    })?;
    for census in later {
        measured.later.push(took(&census, count)?);
    }
    measured.memory = measured.memory.max(peak_memory(watch.pid())?);
    drop(watch);
    measured.throughput.push(watched / alone);

    for (index, query) in ["", "?debug=2"].into_iter().enumerate() {
        let mut bytes = 0;
        let (took, rate) = work_in(target, || {
            bytes = get(address, &format!("/debug/pprof/goroutine{query}"))?;
            Ok(())
        })?;
        ensure!(bytes > 1000, "the profile has {bytes} bytes");
        let (times, lost) = &mut measured.profiles[index];
        times.push(took * 1e3);
        lost.push((1.0 - rate / alone).max(0.0) * took * 1e3);
    }
    Ok(())
}

/// Lets Delve list all goroutines with their stacks: the program is stopped from its first word to its last.
fn list(program: &Path, count: u32, turns: u32, span: Duration, measured: &mut Measured) -> Result<()> {
    let mut command = Command::new(program);
    command.args(["many", &count.to_string()]);
    let mut target = Started::start(&mut command)?;
    target.wait_for("a line of truth", PATIENCE, |line| serde_json::from_str::<Value>(line).ok())?;
    let (_, alone) = work_in(&mut target, || {
        std::thread::sleep(span);
        Ok(())
    })?;
    let script = program.with_extension("dlv");
    // The last word is its question whether to kill the program.
    std::fs::write(&script, "goroutines -t 64\nexit\nn\n")?;
    for _ in 0..turns {
        let mut listed = 0;
        let pid = target.pid().to_string();
        let (took, rate) = work_in(&mut target, || {
            let mut delve = Command::new("dlv");
            delve.args(["attach", &pid, "--allow-non-terminal-interactive=true"]);
            delve.stdin(std::fs::File::open(&script)?);
            let output = delve.output().context("start dlv")?;
            let text = String::from_utf8_lossy(&output.stdout);
            listed = text.matches("Goroutine ").count();
            Ok(())
        })?;
        ensure!(listed >= count as usize, "Delve listed {listed} goroutines of {count}");
        measured.listed.0.push(took * 1e3);
        measured.listed.1.push((1.0 - rate / alone).max(0.0) * took * 1e3);
    }
    Ok(())
}

fn took(census: &Value, count: u32) -> Result<f64> {
    let total = census["total"].as_u64().context("total")?;
    ensure!(total >= u64::from(count), "{total} goroutines of {count}");
    let with_stack = census["groups"].as_array().context("groups")?.iter().filter(|group| group["stack_end"] == "root");
    let with_stack: u64 = with_stack.filter_map(|group| group["count"].as_u64()).sum();
    ensure!(with_stack >= u64::from(count), "{with_stack} stacks of {count}");
    Ok(census["took_ns"].as_f64().context("took_ns")? / 1e6)
}

/// How long something took, in seconds, and the work of the target a second meanwhile.
fn work_in(target: &mut Started, what: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let mut work = || {
        target.tell("work")?;
        target.wait_for("its work", PATIENCE, |line| serde_json::from_str::<Value>(line).ok()?["work"].as_f64())
    };
    let (began, before) = (Instant::now(), work()?);
    what()?;
    let (after, took) = (work()?, began.elapsed().as_secs_f64());
    Ok((took, (after - before) / took))
}

/// Milliseconds of CPU of all children that have ended.
fn cpu_of_children() -> Result<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    Ok(ms(usage.user_time()) + ms(usage.system_time()))
}

/// MiB that a process had in memory at most.
fn peak_memory(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.split_whitespace().next().context("a number")?.parse::<f64>()? / 1024.0)
}

fn get(address: &str, path: &str) -> Result<usize> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&answer[..answer.len().min(80)]));
    Ok(answer.len())
}

fn row(count: u32, measured: &Measured) -> Result<Vec<String>> {
    let ms = |values: &[f64]| median(values).map(|value| format!("{value:.1} ms")).context("nothing was measured");
    let throughput = median(&measured.throughput).context("no throughput")?;
    let mut row = vec![
        count.to_string(),
        ms(&measured.first)?,
        ms(&measured.later)?,
        ms(&measured.cpu)?,
        format!("{:.0} MiB", measured.memory),
        format!("{:.1} %", throughput * 100.0),
    ];
    for (took, lost) in &measured.profiles {
        row.push(format!("{}, {}", ms(took)?, ms(lost)?));
    }
    let (took, lost) = &measured.listed;
    row.push(if took.is_empty() { "not tried".to_owned() } else { format!("{}, {}", ms(took)?, ms(lost)?) });
    Ok(row)
}
