//! What `/proc` says about a process a test started.

use anyhow::{Context, Result};
use std::fs;

/// A thread's state letter and the fields of `stat` that follow it; `None` when it does not exist.
fn stat(pid: i32, tid: i32) -> Option<(char, Vec<String>)> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().map(str::to_owned);
    let state = fields.next()?.chars().next()?;
    Some((state, fields.collect()))
}

/// The letter `ps` shows; `None` when there is no such thread.
pub fn state(pid: i32, tid: i32) -> Option<char> {
    stat(pid, tid).map(|(letter, _)| letter)
}

/// Parent of a process.
pub fn parent(pid: i32) -> Option<i32> {
    stat(pid, pid)?.1.first()?.parse().ok()
}

/// Start time in clock ticks since boot: with the pid, the identity of a process.
pub fn start_ticks(pid: i32) -> Option<u64> {
    stat(pid, pid)?.1.get(18)?.parse().ok()
}

/// System call a blocked thread is in, with its arguments; `None` when it runs or is gone.
pub fn syscall(pid: i32, tid: i32) -> Option<(u32, [u64; 6])> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    let mut words = text.split_ascii_whitespace();
    let number = words.next()?.parse().ok()?;
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    Some((number, args))
}

/// Name of a thread.
pub fn comm(pid: i32, tid: i32) -> Result<String> {
    let name =
        fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).with_context(|| format!("thread {tid} of {pid}"))?;
    Ok(name.trim_end().to_owned())
}

/// All numbers of a `NAME:` line of a thread's `status`.
pub fn status_numbers(pid: i32, tid: i32, name: &str) -> Result<Vec<i64>> {
    let path = format!("/proc/{pid}/task/{tid}/status");
    let text = fs::read_to_string(&path).context(path)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| format!("no {name} in the status of {tid}"))?;
    Ok(line.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect())
}

/// Children, grandchildren and so on, nearest first, each with its start time.
pub fn descendants(root: i32) -> Vec<(i32, u64)> {
    let all: Vec<(i32, i32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut found: Vec<i32> = vec![root];
    let mut next = 0;
    while let Some(&of) = found.get(next) {
        found.extend(all.iter().filter(|&&(_, parent)| parent == of).map(|&(pid, _)| pid));
        next += 1;
    }
    found.into_iter().skip(1).filter_map(|pid| Some((pid, start_ticks(pid)?))).collect()
}

/// Reads the target's memory with `process_vm_readv`.
///
/// On a page whose faults userfaultfd never serves this blocks; a read of `/proc/PID/mem` does not, it fails with
/// `EIO` (`get_user_pages_remote` without a lock to give back cannot retry: kernel 6.18, `mm/gup.c`).
pub fn memory(pid: i32, address: u64, len: usize) -> Result<Vec<u8>> {
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    let mut bytes = vec![0; len];
    let from = [RemoteIoVec { base: usize::try_from(address)?, len }];
    let into = &mut [std::io::IoSliceMut::new(&mut bytes)];
    let read = process_vm_readv(nix::unistd::Pid::from_raw(pid), into, &from)?;
    anyhow::ensure!(read == len, "{read} of {len} bytes at {address:#x} of {pid}");
    Ok(bytes)
}

/// Whether the running kernel's release is at least this; false if it cannot be read.
pub fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|running| running >= (major, minor))
}
