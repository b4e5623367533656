//! A program we started and whose output we follow; killed when dropped.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::invoke;

/// How many of its last lines an error about a program shows.
const LINES_SHOWN: usize = 8;

/// A running program. Its output (and errors, in order) arrive as lines.
pub(crate) struct Started {
    child: Child,
    name: String,
    lines: Receiver<String>,
    last_lines: Vec<String>,
}

impl Started {
    /// Starts `command` with its input piped and its output and errors read here.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        let copy = writer.try_clone().context("cannot copy a pipe")?;
        let name = invoke::shown(command);
        let child = command
            .stdin(Stdio::piped())
            .stdout(writer)
            .stderr(copy)
            .spawn()
            .with_context(|| format!("cannot start `{name}`: is it installed?"))?;
        // The command keeps its ends of the pipe; without this the reader would never see the end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, name, lines, last_lines: Vec::new() })
    }

    /// The PID of the program started (of `unshare` or `nsenter`, when it runs beneath one).
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line, or `None` at the end of the output.
    pub(crate) fn next_line(&mut self, within: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(within) {
            Ok(line) => {
                if self.last_lines.len() == LINES_SHOWN {
                    self.last_lines.remove(0);
                }
                self.last_lines.push(line.clone());
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("`{}` printed nothing for {within:?}{}", self.name, self.last_words())
            }
        }
    }

    /// Reads lines until `wanted` takes one; other lines are passed over.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next_line(left).with_context(|| format!("waited for {what}"))? {
                Some(line) => {
                    if let Some(found) = wanted(&line) {
                        return Ok(found);
                    }
                }
                None => bail!("`{}` ended before {what}{}", self.name, self.last_words()),
            }
        }
    }

    /// Waits for the JSON line with `"ready":true` that our victims and workloads print.
    pub(crate) fn wait_until_ready(&mut self, within: Duration) -> Result<serde_json::Value> {
        self.wait_for("its line {\"ready\":true}", within, |line| {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            (value.get("ready") == Some(&serde_json::Value::Bool(true))).then_some(value)
        })
    }

    /// Writes one line to the program's input.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its input is closed")?;
        writeln!(input, "{line}").with_context(|| format!("`{}` no longer reads", self.name))
    }

    /// Fails if the program has ended.
    pub(crate) fn still_runs(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            while let Ok(Some(_)) = self.next_line(Duration::from_millis(200)) {}
            bail!("`{}` ended early with {status}{}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Interrupts the process `pid` (this program, or its child beneath `nsenter`) as Ctrl-C would, and
    /// waits until this program is gone.
    pub(crate) fn interrupt(mut self, pid: u32, within: Duration) -> Result<ExitStatus> {
        self.still_runs()?;
        let pid = i32::try_from(pid).context("a PID beyond i32")?;
        kill(Pid::from_raw(pid), Signal::SIGINT).context("cannot interrupt it")?;
        self.ends(within)
            .with_context(|| format!("`{}` did not end within {within:?} of SIGINT{}", self.name, self.last_words()))
    }

    /// Waits for its end, reading on so that it is not held up by its own output; `None` when it still
    /// runs after `within`.
    pub(crate) fn ends(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            if let Ok(None) = self.next_line(left.min(Duration::from_millis(20))) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn last_words(&self) -> String {
        if self.last_lines.is_empty() {
            return " (it printed nothing)".to_owned();
        }
        format!("; it last printed:\n  {}", self.last_lines.join("\n  "))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The only child of process `pid`: what `unshare --fork` or `nsenter --pid` runs.
pub(crate) fn only_child(pid: u32, within: Duration) -> Result<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let deadline = Instant::now() + within;
    loop {
        let children = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        if let Some(first) = children.split_whitespace().next() {
            return first.parse().with_context(|| format!("{path} holds {children:?}"));
        }
        if Instant::now() >= deadline {
            bail!("process {pid} started nothing within {within:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
