//! What the tests of the kernel half share: a program that obeys lines on its input, and skips that are counted.

use std::io::{BufRead, BufReader, Error, Result, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Killed when dropped.
pub(crate) struct Victim(Child, BufReader<ChildStdout>);

impl Victim {
    /// Starts it, and waits until it says that it is up.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().map(BufReader::new).ok_or_else(|| Error::other("it has no stdout"))?;
        let mut victim = Self(child, out);
        let mut line = String::new();
        victim.1.read_line(&mut line)?;
        if line == "up\n" { Ok(victim) } else { Err(Error::other(format!("{command:?} said {line:?}"))) }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Gives an order.
    pub(crate) fn send(&mut self, order: &str) {
        let stdin = self.0.stdin.as_mut().unwrap();
        writeln!(stdin, "{order}").unwrap();
    }

    /// Waits until an order is done.
    pub(crate) fn done(&mut self) {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
    }

    /// Gives an order and waits until it is done.
    pub(crate) fn tell(&mut self, order: &str) {
        self.send(order);
        self.done();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Gone already: nothing to kill, nothing to wait for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says past libtest's capture why this test cannot run here; `cargo xtask test` counts it.
pub(crate) fn skipped(why: &dyn std::fmt::Display) {
    let thread = std::thread::current();
    // A closed stderr must not turn a skip into a failure.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {}: {why}", thread.name().unwrap_or("?"));
}
