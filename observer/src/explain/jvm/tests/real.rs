//! JVMs that the test starts: every JDK under `/usr/lib/jvm`.

use super::super::read;
use crate::census::{Pid, ProcessId};
use crate::explain::library::Library;
use crate::proc::maps;
use crate::proc::{RuntimeLock, RuntimeLocks, exists};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/victims/Monitors.java");

/// Interpreted and compiled code lock in ways of their own; newer JDKs choose how by an option that older ones do not know.
const OPTIONS: [&[&str]; 4] = [
    &["-Xint"],
    &["-Xcomp", "-XX:TieredStopAtLevel=1"],
    &["-XX:+IgnoreUnrecognizedVMOptions", "-XX:LockingMode=1"],
    &["-XX:+IgnoreUnrecognizedVMOptions", "-XX:LockingMode=2"],
];

/// Killed and reaped on drop.
struct Jvm {
    child: Child,
    process: ProcessId,
    library: Library,
}

impl Jvm {
    fn start(java: &Path, classes: &Path, options: &[&str], more: usize) -> Self {
        Self::start_with(Command::new(java), classes, options, more)
    }

    fn start_with(mut command: Command, classes: &Path, options: &[&str], more: usize) -> Self {
        command.args(options).arg("-cp").arg(classes).arg("Monitors").arg(more.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let pid = child.id();
        let jvm = Self { child, process: exists(pid).unwrap().id, library: Library::default() };
        // An older Java than that of the compiler says so instead; a JVM may print warnings first.
        let mut lines = lines.map_while(Result::ok);
        assert!(lines.any(|line| line.contains("\"ready\"")), "{command:?}");
        jvm
    }

    fn read(&self) -> RuntimeLocks {
        let pid = self.process.pid;
        read(self.process, pid, &maps::read(pid).unwrap(), &self.library)
    }

    /// The thread of this name, as its own PID namespace numbers it.
    fn tid(&self, name: &str) -> Pid {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.pid)).unwrap();
        let status = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
        let mut named = status.filter(|status| status.lines().next() == Some(&format!("Name:\t{name}")));
        let status = named.next().unwrap();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
        numbers.split_whitespace().last().unwrap().parse().unwrap()
    }

    /// Until the last thread has got as far as to note down what it waits for.
    fn read_until(&self, enough: impl Fn(&[RuntimeLock]) -> bool) -> RuntimeLocks {
        let until = Instant::now() + DEADLINE;
        loop {
            let found = self.read();
            if enough(&found.waits) {
                return found;
            }
            assert!(Instant::now() < until, "{found:?}");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for Jvm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Past libtest's capture, for `cargo xtask test` counts it.
fn skipped(why: &str) {
    let test = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {}: {why}", test.name().unwrap_or("?"));
}

/// The programs `java`, and the classes; `None` where there is no JDK.
fn jdks() -> Option<(Vec<PathBuf>, tempfile::TempDir)> {
    let classes = tempfile::tempdir().unwrap();
    let compiled = Command::new("javac").arg("-d").arg(classes.path()).arg(SOURCE).status();
    if !compiled.is_ok_and(|status| status.success()) {
        skipped("no javac here");
        return None;
    }
    let homes = std::fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten();
    let javas = homes.map(|home| home.path()).filter(|home| home.join("lib/server/libjvm.so").exists());
    // The same by another name: Debian has links for each.
    let javas: BTreeSet<PathBuf> = javas.filter_map(|home| home.join("bin/java").canonicalize().ok()).collect();
    let javas = if javas.is_empty() { vec![PathBuf::from("java")] } else { javas.into_iter().collect() };
    Some((javas, classes))
}

/// `hidden`: owners may be missing, but none is wrong.
fn expect_owners(jvm: &Jvm, hidden: bool) {
    let found = jvm.read_until(|rows| {
        let entering = rows.iter().filter(|row| row.entering && (hidden || row.owner.is_some())).count();
        entering == 3 && rows.iter().any(|row| row.waiter == jvm.tid("in-wait"))
    });
    assert_eq!(found.missing, None);
    let rows: BTreeMap<Pid, RuntimeLock> = found.waits.iter().map(|row| (row.waiter, *row)).collect();
    for (waiter, owner) in [("dead-left", "dead-right"), ("dead-right", "dead-left"), ("behind-0", "sleeper")] {
        let row = rows[&jvm.tid(waiter)];
        assert!(row.entering, "{waiter}: {found:?}");
        assert!(row.owner == Some(jvm.tid(owner)) || hidden && row.owner.is_none(), "{waiter}: {found:?}");
    }
    let waits = rows[&jvm.tid("in-wait")];
    assert_eq!((waits.owner, waits.entering), (None, false));
    assert!(!rows.contains_key(&jvm.tid("sleeper")));
}

#[test]
fn owners_of_every_jdk_here() {
    let Some((javas, classes)) = jdks() else { return };
    for java in javas {
        for options in OPTIONS {
            expect_owners(&Jvm::start(&java, classes.path(), options, 0), false);
        }
        // Its references carry colours that no field tells: what is found by comparing them is not found.
        expect_owners(&Jvm::start(&java, classes.path(), &["-XX:+UseZGC"], 0), true);
    }
}

#[test]
fn owners_in_another_pid_namespace() {
    let Some((javas, classes)) = jdks() else { return };
    let unshare = ["--user", "--map-root-user", "--pid", "--fork", "--kill-child"];
    if !Command::new("unshare").args(unshare).arg("true").status().is_ok_and(|status| status.success()) {
        skipped("no PID namespaces here");
        return;
    }
    let mut command = Command::new("unshare");
    command.args(unshare).arg(&javas[0]);
    let mut jvm = Jvm::start_with(command, classes.path(), &[], 0);
    let of_unshare = jvm.process.pid;
    let children = std::fs::read_to_string(format!("/proc/{of_unshare}/task/{of_unshare}/children")).unwrap();
    jvm.process = exists(children.trim().parse().unwrap()).unwrap().id;
    assert!(jvm.tid("sleeper") < 100, "not a namespace of its own");
    expect_owners(&jvm, false);
}

#[test]
fn no_jvm_and_one_that_is_gone() {
    let own = exists(std::process::id()).unwrap().id;
    let found = read(own, own.pid, &maps::read(own.pid).unwrap(), &Library::default());
    assert_eq!((found.waits.len(), found.missing.as_deref()), (0, Some("no libjvm.so is mapped")));
    let Some((javas, classes)) = jdks() else { return };
    let jvm = Jvm::start(&javas[0], classes.path(), &[], 0);
    let maps = maps::read(jvm.process.pid).unwrap();
    let other = ProcessId { start_ns: 0, ..jvm.process };
    let found = read(other, other.pid, &maps, &jvm.library);
    assert!(found.waits.is_empty() && found.missing.is_some(), "{found:?}");
}

/// Prints what a read costs: `cargo test -p observer --lib --release jvm -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost() {
    let Some((javas, classes)) = jdks() else { return };
    for java in javas {
        for threads in [50, 500] {
            let jvm = Jvm::start(&java, classes.path(), &[], threads - 3);
            jvm.read_until(|rows| rows.iter().filter(|row| row.entering && row.owner.is_some()).count() == threads);
            let maps = maps::read(jvm.process.pid).unwrap();
            let mut times: Vec<Duration> = (0..50)
                .map(|_| {
                    let began = Instant::now();
                    let found = read(jvm.process, jvm.process.pid, &maps, &jvm.library);
                    assert!(found.waits.len() >= threads);
                    began.elapsed()
                })
                .collect();
            times.sort_unstable();
            eprintln!("{java:?}, {threads} threads that wait: {:?}, worst {:?}", times[25], times[49]);
        }
    }
}
