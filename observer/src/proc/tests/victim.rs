//! Processes to look at. They end when the guard is dropped.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use crate::census::ProcessId;
use crate::proc::exists;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A process of the test.
pub(crate) struct Victim {
    child: Child,
    /// Open as long as it lives: it must not die of writing a line.
    output: BufReader<ChildStdout>,
    /// The number in the line it printed when it was ready.
    pub(crate) value: u64,
    /// What it is told.
    pub(crate) input: ChildStdin,
    pub(crate) id: ProcessId,
}

impl Victim {
    /// Starts `victim ARGS` and waits until it is ready.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::named("victim", args)
    }

    /// The same with another `argv[0]`.
    pub(crate) fn named(arg0: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.arg0(arg0).args(args);
        Self::spawn(command, true)
    }

    /// Starts any program; `ready`: it prints a number when it is.
    pub(crate) fn spawn(mut command: Command, ready: bool) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let id = exists(child.id()).unwrap().id;
        let mut victim = Self { child, output, value: 0, input, id };
        if ready {
            // It ends by itself after two minutes, and then this does, too.
            let mut line = String::new();
            victim.output.read_line(&mut line).unwrap();
            victim.value = line.trim().parse().unwrap();
        }
        victim
    }

    /// Kills it and waits for its end.
    pub(crate) fn kill(mut self) -> ProcessId {
        self.end();
        self.id
    }

    /// Kills it and leaves it a zombie for as long as the guard lives.
    pub(crate) fn kill_only(&mut self) {
        self.child.kill().unwrap();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.end();
    }
}

/// Calls `check` until it gives something.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Compiles the victim once per run, beside the test program.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let dir = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let (source, built, program) = (
            dir.join(format!("proc-victim-{}.c", std::process::id())),
            dir.join(format!("proc-victim-{}", std::process::id())),
            dir.join("proc-victim"),
        );
        std::fs::write(&source, include_str!("victim.c")).unwrap();
        let status = Command::new("cc").args(["-O1", "-pthread", "-o"]).arg(&built).arg(&source).status();
        assert!(status.as_ref().is_ok_and(|s| s.success()), "cc: {status:?}; these tests need a C compiler");
        std::fs::remove_file(source).unwrap();
        std::fs::rename(built, &program).unwrap();
        program
    })
}
