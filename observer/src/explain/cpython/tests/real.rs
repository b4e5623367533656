//! Interpreters that the test starts: every CPython 3.13 that is found here.

use super::super::read;
use crate::census::Pid;
use crate::explain::library::Library;
use crate::proc::{RuntimeLock, RuntimeLockKind, RuntimeLocks, RuntimeWant, exists, maps};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/victims/locks.py");

/// Killed and reaped on drop.
struct Python {
    child: Child,
    tids: BTreeMap<String, Pid>,
    library: Library,
}

fn installed() -> Vec<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".pyenv/versions");
    let versions = std::fs::read_dir(home).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_pyenv = versions.map(|version| version.join("bin/python3.13"));
    let others = ["/usr/bin/python3.13", "/usr/local/bin/python3.13"].map(PathBuf::from);
    let found: Vec<PathBuf> = of_pyenv.chain(others).filter(|path| path.exists()).collect();
    if found.is_empty() {
        // Past libtest's capture, where `cargo xtask test` counts it.
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: no CPython 3.13 here");
    }
    found
}

impl Python {
    fn start(python: &PathBuf, mode: &str, threads: usize) -> Self {
        let mut command = Command::new(python);
        command.args([SOURCE, mode, &threads.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut python = Self { child, tids: BTreeMap::new(), library: Library::default() };
        let line = lines.next().unwrap().unwrap();
        let tids = line.split_whitespace().filter_map(|word| word.split_once('='));
        python.tids = tids.map(|(name, tid)| (name.to_owned(), tid.parse().unwrap())).collect();
        python
    }

    /// Threads at a futex, as a census would tell.
    fn sleepers(&self) -> Vec<(Pid, u64)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let sleepers = tasks.filter_map(|task| {
            let path = task.unwrap().path();
            let call = std::fs::read_to_string(path.join("syscall")).ok()?;
            let futex = call.strip_prefix("202 0x")?.split(' ').next()?;
            Some((path.file_name()?.to_str()?.parse().ok()?, u64::from_str_radix(futex, 16).ok()?))
        });
        sleepers.collect()
    }

    fn read(&self) -> RuntimeLocks {
        let pid = self.child.id();
        let want = RuntimeWant { process: exists(pid).unwrap().id, sleepers: self.sleepers() };
        read(&want, pid, &maps::read(pid).unwrap(), &self.library)
    }

    fn read_until(&self, enough: impl Fn(&[RuntimeLock]) -> bool) -> Vec<RuntimeLock> {
        let until = Instant::now() + DEADLINE;
        loop {
            let found = self.read();
            assert_eq!(found.missing, None);
            if enough(&found.waits) {
                return found.waits;
            }
            assert!(Instant::now() < until, "{found:?}");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_gil_of_a_busy_program_changes_hands_and_is_counted() {
    for path in installed() {
        let python = Python::start(&path, "busy", 4);
        let is_gil = |waits: &[RuntimeLock]| waits.iter().any(|wait| wait.kind == RuntimeLockKind::Gil);
        let mut turns = vec![python.read_until(is_gil)[0].turns];
        // On a busy machine it may be a while until one of its threads gets the next turn.
        let until = Instant::now() + Duration::from_secs(20);
        while turns.len() < 5 || turns.first() == turns.last() && Instant::now() < until {
            turns.push(python.read_until(is_gil)[0].turns);
        }
        assert!(turns.is_sorted() && turns.first() < turns.last(), "{turns:?}");
        // It counts switches: some hundred in a second, each 5 ms.
        assert!(turns[turns.len() - 1] - turns[0] < 100_000, "{turns:?}");
    }
}

#[test]
fn a_gil_that_is_kept_stays_at_one_count() {
    for path in installed() {
        let python = Python::start(&path, "gil", 3);
        let holder = python.tids["main"];
        let all = |waits: &[RuntimeLock]| waits.iter().filter(|wait| wait.owner == Some(holder)).count() == 3;
        let turns = python.read_until(all)[0].turns;
        for _ in 0..20 {
            assert!(python.read_until(all).iter().all(|wait| wait.turns == turns));
        }
    }
}

#[test]
fn owners_of_locks() {
    for path in installed() {
        for (mode, kind) in [("lock", RuntimeLockKind::PyLock), ("rlock", RuntimeLockKind::PyRLock)] {
            let python = Python::start(&path, mode, 2);
            let (left, right) = (python.tids["left"], python.tids["right"]);
            let found = python.read_until(|waits| waits.len() == 2);
            for wait in found {
                let other = if wait.waiter == left { right } else { left };
                assert_eq!((wait.kind, wait.owner), (kind, Some(other)));
            }
        }
        let stale = Python::start(&path, "stale", 2).read();
        assert!(stale.missing.is_none() && stale.waits.iter().all(|wait| wait.owner.is_none()), "{stale:?}");
    }
}

#[test]
fn no_python_and_one_that_is_gone() {
    let own = exists(std::process::id()).unwrap().id;
    let want = RuntimeWant { process: own, sleepers: vec![(own.pid, 8)] };
    let found = read(&want, own.pid, &maps::read(own.pid).unwrap(), &Library::default());
    assert!(found.waits.is_empty() && found.missing.unwrap().contains("neither a python program"));
    for path in installed() {
        let mut python = Python::start(&path, "held-lock", 1);
        let pid = python.child.id();
        let want = RuntimeWant { process: exists(pid).unwrap().id, sleepers: python.sleepers() };
        let mappings = maps::read(pid).unwrap();
        python.child.kill().unwrap();
        python.child.wait().unwrap();
        let found = read(&want, pid, &mappings, &python.library);
        assert!(found.waits.is_empty() && found.missing.is_some(), "{found:?}");
    }
}

/// Prints what a read costs: `cargo test -p observer --lib --release cpython -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost() {
    for path in installed() {
        for threads in [16, 500] {
            let python = Python::start(&path, "held-lock", threads);
            python.read_until(|waits| waits.iter().filter(|wait| wait.owner.is_some()).count() == threads);
            let pid = python.child.id();
            let want = RuntimeWant { process: exists(pid).unwrap().id, sleepers: python.sleepers() };
            let mappings = maps::read(pid).unwrap();
            let mut times: Vec<Duration> = (0..50)
                .map(|_| {
                    let began = Instant::now();
                    let found = read(&want, pid, &mappings, &python.library);
                    assert_eq!(found.waits.len(), threads);
                    began.elapsed()
                })
                .collect();
            times.sort_unstable();
            eprintln!("{path:?}, {threads} threads that wait: {:?}, worst {:?}", times[25], times[49]);
        }
    }
}
