//! What the kernel says of a server's sockets, by way of `ss`: the truth that observer is compared with.

use anyhow::{Context, Result, ensure};
use std::process::Command;

/// One line of `ss`: the two queues, and what follows them.
fn lines(arguments: &[&str]) -> Result<Vec<(u64, u64, String)>> {
    let output = Command::new("ss").args(arguments).output().context("ss")?;
    ensure!(output.status.success(), "ss {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let line = |line: &str| -> Result<(u64, u64, String)> {
        // Without the columns that depend on the arguments: the queues are the first two numbers.
        let words: Vec<&str> = line.split_whitespace().collect();
        let first = words.iter().position(|word| word.parse::<u64>().is_ok()).with_context(|| line.to_owned())?;
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).with_context(|| line.to_owned());
        Ok((number(first)?, number(first + 1)?, words[first + 2..].join(" ")))
    };
    text.lines().map(line).collect()
}

/// Backlog of who listens at this port, and its limit.
pub fn backlog(port: u16) -> Result<(u64, u64)> {
    let all = lines(&["-Hltn", &format!("sport = :{port}")])?;
    all.first().map(|(backlog, limit, _)| (*backlog, *limit)).with_context(|| format!("nobody listens at {port}"))
}

/// The same of a unix socket.
pub fn unix_backlog(path: &str) -> Result<(u64, u64)> {
    let all = lines(&["-Hlx", "src", path])?;
    all.first().map(|(backlog, limit, _)| (*backlog, *limit)).with_context(|| format!("nobody listens at {path}"))
}

/// Unread bytes of each connection that came to this port.
pub fn unread(port: u16) -> Result<Vec<u64>> {
    let all = lines(&["-Htn", "state", "established", &format!("sport = :{port}")])?;
    Ok(all.into_iter().map(|(unread, _, _)| unread).collect())
}
