//! A started process that cannot outlive the test that started it.

use crate::{deadline::wait_until, procfs};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A running process in a process group of its own. Dropping it kills it and everything it started, each by its
/// process id, and reaps it.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    unread: Vec<u8>,
}

impl Guard {
    /// Starts `command` with piped stdin and stdout; stderr too if `stderr` says so.
    pub fn start(mut command: Command, stderr: Stdio) -> Result<Self> {
        let child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self { child, unread: Vec::new() })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        // Linux process ids are below 2^22.
        self.child.id().cast_signed()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("signal {}", self.pid()))
    }

    /// Writes a line to its stdin.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("its stdin is closed")?;
        writeln!(stdin, "{line}")?;
        Ok(())
    }

    /// Makes the pipe behind its stdout as small as the kernel lets it be: one page.
    pub fn shrink_stdout(&self) -> Result<()> {
        let stdout = self.child.stdout.as_ref().context("its stdout is closed")?;
        nix::fcntl::fcntl(stdout, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1)).context("shrink a pipe")?;
        Ok(())
    }

    /// Closes its stdin: a victim then ends by itself.
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Closes its stdout: what `| head` does.
    pub fn close_stdout(&mut self) {
        drop(self.child.stdout.take());
    }

    /// The next line of its stdout without the newline; `None` at its end.
    pub fn line(&mut self, limit: Duration) -> Result<Option<String>> {
        let until = Instant::now() + limit;
        loop {
            if let Some(end) = self.unread.iter().position(|&b| b == b'\n') {
                let rest = self.unread.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.unread, rest);
                line.pop();
                return Ok(Some(String::from_utf8(line)?));
            }
            let stdout = self.child.stdout.as_mut().context("its stdout is closed")?;
            if !readable(stdout.as_fd(), until)? {
                bail!("process {} printed no line within {limit:?}", self.child.id());
            }
            if !read_some(stdout, &mut self.unread)? {
                return Ok(None);
            }
        }
    }

    /// Everything it still prints to stdout, and how it ended.
    pub fn finish(&mut self, limit: Duration) -> Result<(Vec<u8>, ExitStatus)> {
        let until = Instant::now() + limit;
        let mut all = std::mem::take(&mut self.unread);
        if let Some(mut stdout) = self.child.stdout.take() {
            loop {
                if !readable(stdout.as_fd(), until)? {
                    bail!("process {} did not end within {limit:?}", self.child.id());
                }
                if !read_some(&mut stdout, &mut all)? {
                    break;
                }
            }
        }
        Ok((all, self.ended(until.saturating_duration_since(Instant::now()))?))
    }

    /// How it ended.
    pub fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait_until("the process to end", limit, || Ok(self.child.try_wait()?))
    }

    /// Kills it and its descendants now.
    pub fn kill(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let family = procfs::descendants(self.pid());
        // Errors mean that it is gone, which is what is wanted.
        let _ = self.child.kill();
        for (pid, started) in family {
            if procfs::start_ticks(pid) == Some(started) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let _ = self.child.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.kill();
    }
}

fn readable(fd: BorrowedFd<'_>, until: Instant) -> Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis() + 1)?;
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(n) => return Ok(n > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Reads what is there; false at the end.
fn read_some(from: &mut ChildStdout, into: &mut Vec<u8>) -> Result<bool> {
    let mut buffer = [0; 16 * 1024];
    match from.read(&mut buffer) {
        Ok(0) => Ok(false),
        Ok(n) => {
            into.extend_from_slice(&buffer[..n]);
            Ok(true)
        }
        Err(e) if e.kind() == ErrorKind::Interrupted => Ok(true),
        Err(e) => Err(e.into()),
    }
}
