//! Idle is not hung: programs of every family, idle and busy, have no finding at all.
//!
//! A file of its own, so that the contended programs (they use whole CPUs) disturb nobody else's clocks.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::{installed, sources, target_dir};
use observer_tests::deadline::wait_for_age;
use observer_tests::guard::Guard;
use observer_tests::observer::{OLD_ENOUGH, Observer};
use observer_tests::skip;
use observer_tests::victim::{BUSY, CONTENDED, IDLE, Victim};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Both ways of looking must be silent.
fn expect_silence(what: &str, pids: &[i32]) -> Result<()> {
    for look in [&["--once", "--output", "json"][..], &["--for", "4s", "--output", "json"]] {
        let report = Observer::attach(pids, look)?.run()?.report()?;
        report.expect_silence(&format!("{what} ({pids:?})"))?;
        for &pid in pids {
            let threads = report.process(pid)?["threads"].as_array().map_or(0, Vec::len);
            ensure!(threads > 0, "{what}: {pid} was not looked at");
        }
    }
    Ok(())
}

fn expect_victims_silent(list: &[(&str, &str)]) -> Result<()> {
    let victims: Vec<Victim> = list.iter().map(|(name, mode)| Victim::start(name, &[mode])).collect::<Result<_>>()?;
    let mut pids = Vec::new();
    for victim in &victims {
        victim.older_than(OLD_ENOUGH)?;
        pids.extend(victim.truth.pids());
    }
    let names: Vec<String> = victims.iter().map(|v| format!("{} = {:?}", v.what, v.truth.pids())).collect();
    expect_silence(&names.join(", "), &pids)
}

/// Starts an ordinary program; with `says`, waits until it has printed that line.
fn program(command: &[&str], says: Option<&str>) -> Result<Guard> {
    let (name, args) = command.split_first().context("a command")?;
    let mut start = Command::new(name);
    start.args(args);
    let mut guard = Guard::start(start, Stdio::null())?;
    if let Some(says) = says {
        let line = guard.line(Duration::from_secs(30))?;
        ensure!(line.as_deref() == Some(says), "{command:?} said {line:?}");
    }
    Ok(guard)
}

fn family(guard: &Guard) -> Vec<i32> {
    let mut pids = vec![guard.pid()];
    pids.extend(observer_tests::procfs::descendants(guard.pid()).into_iter().map(|(pid, _)| pid));
    pids
}

#[test]
fn idle_programs() -> Result<()> {
    expect_victims_silent(IDLE)
}

#[test]
fn busy_programs() -> Result<()> {
    expect_victims_silent(BUSY)
}

#[test]
fn contended_programs() -> Result<()> {
    expect_victims_silent(CONTENDED)
}

#[test]
fn everyday_programs() -> Result<()> {
    let log = tempfile::NamedTempFile::new()?;
    let log = log.path().to_str().context("a path")?;
    let begin = Instant::now();
    let programs = [
        program(&["sleep", "1000"], None)?,
        program(&["sh", "-c", "sleep 1000; true"], None)?,
        program(&["tail", "-f", log], None)?,
        program(&["cat"], None)?,
        program(&["sh", "-c", "read line"], None)?,
    ];
    wait_for_age(begin, OLD_ENOUGH)?;
    let pids: Vec<i32> = programs.iter().flat_map(family).collect();
    expect_silence("sleep, sh, tail -f, cat, read", &pids)
}

fn runtime(what: &str, command: &[&str]) -> Result<()> {
    if !installed(command[0]) {
        skip!("{} is not installed", command[0]);
    }
    let guard = program(command, Some("ready"))?;
    wait_for_age(Instant::now(), OLD_ENOUGH)?;
    expect_silence(what, &family(&guard))
}

#[test]
fn an_idle_python_pool() -> Result<()> {
    const POOL: &str = "
import concurrent.futures, queue, sys, threading
pool = concurrent.futures.ThreadPoolExecutor(4)
list(pool.map(abs, range(8)))
threading.Thread(target=queue.Queue().get, daemon=True).start()
threading.Thread(target=threading.Event().wait, daemon=True).start()
print('ready', flush=True)
sys.stdin.read()
";
    runtime("python", &["python3", "-c", POOL])
}

#[test]
fn an_idle_java_program() -> Result<()> {
    let source = sources().join("Idle.java");
    runtime("java", &["java", source.to_str().context("a path")?])
}

#[test]
fn an_idle_node_server() -> Result<()> {
    const SERVER: &str =
        "require('net').createServer().listen(0, '127.0.0.1', () => console.log('ready')); process.stdin.resume()";
    runtime("node", &["node", "-e", SERVER])
}

#[test]
fn an_idle_rust_program() -> Result<()> {
    let out = target_dir()?.join("victims/healthy_rust");
    std::fs::create_dir_all(out.parent().context("a directory")?)?;
    let compiled = Command::new("rustc")
        .args(["--edition", "2024", "-O", "-o"])
        .arg(&out)
        .arg(sources().join("healthy_rust.rs"))
        .status()?;
    ensure!(compiled.success(), "rustc: {compiled}");
    runtime("rust", &[out.to_str().context("a path")?])
}

#[test]
fn an_idle_tokio_program() -> Result<()> {
    runtime("tokio", &[env!("CARGO_BIN_EXE_healthy_tokio")])
}

#[test]
fn an_idle_go_program() -> Result<()> {
    if !installed("go") {
        skip!("go is not installed");
    }
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("main.go");
    std::fs::write(
        &source,
        "package main\n\nimport (\n\t\"bufio\"\n\t\"fmt\"\n\t\"net\"\n\t\"os\"\n)\n\nfunc main() {\n\tl, err := net.Listen(\"tcp\", \"127.0.0.1:0\")\n\tif err != nil {\n\t\tpanic(err)\n\t}\n\tgo l.Accept()\n\tfor i := 0; i < 8; i++ {\n\t\tgo func() { <-make(chan int) }()\n\t}\n\tfmt.Println(\"ready\")\n\tbufio.NewReader(os.Stdin).ReadString('\\n')\n}\n",
    )?;
    let out = dir.path().join("idle");
    let built = Command::new("go").arg("build").arg("-o").arg(&out).arg(&source).current_dir(dir.path()).status()?;
    ensure!(built.success(), "go build: {built}");
    runtime("go", &[out.to_str().context("a path")?])
}
