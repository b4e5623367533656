//! A PID namespace with one of our programs as its first process, which others can be started in.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::started::{Started, only_child};

const FORKED_WITHIN: Duration = Duration::from_secs(5);

/// How long many thousands of threads may take to die.
const DEAD_WITHIN: Duration = Duration::from_secs(60);

/// The first process of a PID namespace of its own, with its own /proc. All in it die when dropped.
pub(crate) struct Namespace {
    /// `unshare`, whose output is that of the first process.
    pub(crate) first: Started,
    /// The first process's PID as seen from outside.
    pub(crate) pid: u32,
}

impl Namespace {
    /// Starts `program` as the first process of a new namespace.
    pub(crate) fn start(program: &Path, arguments: &[String]) -> Result<Self> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]).arg(program);
        Self::of(unshare.args(arguments))
    }

    /// What this `unshare --fork …` makes.
    pub(crate) fn of(unshare: &mut Command) -> Result<Self> {
        let mut first = Started::start(unshare)?;
        let pid = only_child(first.pid(), FORKED_WITHIN).or_else(|error| {
            first.still_runs()?;
            Err(error)
        });
        let pid = pid.context("cannot make a PID namespace")?;
        Ok(Self { first, pid })
    }

    /// A command that will run `program` inside: it sees only this namespace's processes and itself.
    pub(crate) fn inside(&self, program: &Path) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.pid.to_string(), "--pid", "--mount", "--net", "--"]).arg(program);
        nsenter
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The first process takes all others of its namespace along; then `unshare` reaps it and ends.
        // Should that fail, dropping `first` kills `unshare`, and the kernel the rest.
        let pid = i32::try_from(self.pid).map(Pid::from_raw);
        if pid.is_ok_and(|pid| kill(pid, Signal::SIGKILL).is_ok()) {
            self.first.ends(DEAD_WITHIN);
        }
    }
}
