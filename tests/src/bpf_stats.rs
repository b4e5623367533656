//! The kernel's own figures of BPF programs, read without observer.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// `BPF_ENABLE_STATS` of `bpf(2)`.
const ENABLE_STATS: nix::libc::c_int = 32;

/// The kernel measures BPF programs until this is dropped.
pub fn measure() -> Result<OwnedFd> {
    // `union bpf_attr` of this command: the kind of statistics, 0 is the run time.
    let attributes = [0_u32; 16];
    // SAFETY: the attributes outlive the call, and their size is passed.
    let fd =
        unsafe { nix::libc::syscall(nix::libc::SYS_bpf, ENABLE_STATS, attributes.as_ptr(), size_of_val(&attributes)) };
    let fd = RawFd::try_from(fd)?;
    ensure!(fd >= 0, "BPF_ENABLE_STATS: {}", std::io::Error::last_os_error());
    // SAFETY: a descriptor that the kernel just gave to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// CPU time of the programs of one process since the first look, while [`measure`] lasts.
#[derive(Debug)]
pub struct Spent {
    pid: i32,
    last: BTreeMap<u64, u64>,
    sum_ns: u64,
}

impl Spent {
    /// Begins to count.
    pub fn of(pid: i32) -> Result<Self> {
        let last = programs(pid)?;
        ensure!(!last.is_empty(), "process {pid} has no BPF programs");
        Ok(Self { pid, last, sum_ns: 0 })
    }

    /// The time so far. To be asked often: of a program that was unloaded only what was seen before counts.
    pub fn so_far(&mut self) -> Result<Duration> {
        let now = programs(self.pid)?;
        for (id, ns) in &now {
            self.sum_ns += ns.saturating_sub(self.last.get(id).copied().unwrap_or(0));
        }
        self.last = now;
        Ok(Duration::from_nanos(self.sum_ns))
    }
}

/// Run time in nanoseconds of every program that a process holds, by id.
fn programs(pid: i32) -> Result<BTreeMap<u64, u64>> {
    let directory = format!("/proc/{pid}/fdinfo");
    let mut programs = BTreeMap::new();
    for entry in std::fs::read_dir(&directory).with_context(|| directory.clone())? {
        // A descriptor that was closed meanwhile.
        let Ok(text) = std::fs::read_to_string(entry?.path()) else { continue };
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(id), Some(ns)) = (value("prog_id:"), value("run_time_ns:")) {
            programs.insert(id, ns);
        }
    }
    Ok(programs)
}
