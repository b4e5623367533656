//! The binary under test, run with a deadline.

use crate::compile::target_dir;
use crate::guard::Guard;
use crate::report::Report;
use crate::victim::Victim;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `--threshold` of every scenario that does not say otherwise.
pub const THRESHOLD: Duration = Duration::from_secs(1);

/// How old a hang (or an idle wait) is before observer may look: over the threshold, with room for clocks.
pub const OLD_ENOUGH: Duration = Duration::from_millis(1300);

/// A run that takes longer is itself hung. Detaching waits for RCU grace periods, one a probe, and on two CPUs saturated by
/// busy victims each takes seconds.
const LIMIT: Duration = Duration::from_secs(150);

/// The binary: `OBSERVER_BIN`, else the newest of `target/{debug,release}/observer`.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("OBSERVER_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "OBSERVER_BIN={} is not a file", path.display());
        return Ok(path);
    }
    let target = target_dir()?;
    ["debug", "release"]
        .iter()
        .map(|profile| target.join(profile).join("observer"))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .with_context(|| {
            let target = target.display();
            format!("no observer in {target}/{{debug,release}}: run `cargo build -p observer`, or set OBSERVER_BIN")
        })
}

/// What a run left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub what: String,
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Output {
    /// Fails, showing everything, unless it exited with this code.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        ensure!(self.code == Some(code), "expected exit code {code}: {self:#?}");
        Ok(self)
    }

    /// Exit code 2, nothing on stdout, one line on stderr; returns that line.
    pub fn expect_refusal(self) -> Result<String> {
        let this = self.expect_code(2)?;
        ensure!(this.stdout.is_empty(), "a refusal prints nothing to stdout: {this:#?}");
        let lines: Vec<&str> = this.stderr.lines().filter(|l| !l.trim().is_empty()).collect();
        match lines.as_slice() {
            [line] => Ok((*line).to_owned()),
            _ => bail!("a refusal is one line on stderr: {this:#?}"),
        }
    }

    /// The one JSON document on stdout, with the exit code that came with it.
    pub fn report(&self) -> Result<Report> {
        let json = serde_json::from_str(&self.stdout).with_context(|| format!("not one JSON document: {self:#?}"))?;
        Report::new(json, self.code)
    }
}

/// A run of observer being put together.
#[derive(Debug)]
pub struct Observer {
    command: Command,
}

impl Observer {
    /// `observer ARGS…`
    pub fn new(args: &[&str]) -> Result<Self> {
        let mut command = Command::new(binary()?);
        command.args(args).env_remove("NO_COLOR").env_remove("RUST_LOG");
        Ok(Self { command })
    }

    /// `observer attach PIDS… --threshold 1s EXTRA…` in the PID namespace of a victim of
    /// [`Unready::start_inside`](crate::victim::Unready::start_inside), where it sees nothing but that victim and itself.
    pub fn attach_inside(victim: &mut Victim, pids: &[i32], extra: &[&str]) -> Result<Self> {
        let mut this = Self::inside(victim, &["attach"])?;
        this.command.args(pids.iter().map(i32::to_string)).args(["--threshold", "1s"]).args(extra);
        Ok(this)
    }

    /// `observer ARGS…` in the PID namespace of such a victim.
    pub fn inside(victim: &mut Victim, args: &[&str]) -> Result<Self> {
        let mut command = victim.enter()?;
        command.arg(binary()?).args(args).env_remove("NO_COLOR").env_remove("RUST_LOG");
        Ok(Self { command })
    }

    /// Any program that runs observer for us (`unshare … observer …`).
    pub fn through(command: Command) -> Self {
        Self { command }
    }

    /// `observer attach PIDS… --threshold 1s EXTRA…`
    pub fn attach(pids: &[i32], extra: &[&str]) -> Result<Self> {
        let mut this = Self::new(&["attach"])?;
        this.command.args(pids.iter().map(i32::to_string));
        this.command.args(["--threshold", "1s"]).args(extra);
        Ok(this)
    }

    /// More arguments.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    /// With this variable set.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// As this user and group, without supplementary groups or capabilities.
    pub fn user(mut self, id: u32) -> Self {
        self.command.uid(id).gid(id);
        self
    }

    /// Starts it and leaves it running.
    pub fn start(self) -> Result<Live> {
        let stderr = tempfile::tempfile()?;
        let what = format!("{:?}", self.command);
        let guard = Guard::start(self.command, Stdio::from(stderr.try_clone()?))?;
        Ok(Live { guard, stderr, what, began: Instant::now() })
    }

    /// Runs it to its end.
    pub fn run(self) -> Result<Output> {
        self.start()?.finish(LIMIT)
    }
}

/// A running observer. Dropping it kills it.
#[derive(Debug)]
pub struct Live {
    /// The process.
    pub guard: Guard,
    stderr: File,
    what: String,
    /// When it was started.
    pub began: Instant,
}

impl Live {
    /// What it wrote to stderr so far.
    pub fn stderr(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        self.stderr.rewind()?;
        self.stderr.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits for its end.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        match self.guard.finish(limit) {
            Ok((stdout, status)) => Ok(Output {
                what: self.what.clone(),
                code: status.code(),
                stdout: String::from_utf8(stdout)?,
                stderr: self.stderr()?,
                took: self.began.elapsed(),
            }),
            Err(e) => {
                let stderr = self.stderr()?;
                Err(e.context(format!("{}: stderr: {stderr}", self.what)))
            }
        }
    }

    /// The next line of ndjson for which `wanted` holds, until `limit` after now.
    pub fn finding(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<serde_json::Value> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(line) = self.guard.line(left).with_context(|| self.what.clone())? else {
                let stderr = self.stderr()?;
                bail!("{} ended without the finding; stderr: {stderr}", self.what);
            };
            let value = serde_json::from_str(&line).with_context(|| format!("not ndjson: {line}"))?;
            if wanted(&value) {
                return Ok(value);
            }
        }
    }
}

/// Looks once at all processes of these victims, when the youngest state is old enough.
pub fn look_at(victims: &[&Victim]) -> Result<Report> {
    let mut pids = Vec::new();
    for victim in victims {
        victim.older_than(OLD_ENOUGH)?;
        pids.extend(victim.truth.pids());
    }
    Observer::attach(&pids, &["--once", "--output", "json"])?.run()?.report()
}
