//! Who this machine is, and what observer itself costs it.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};
use std::fs;

/// Name of the host.
pub fn name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Kernel release (`uname -r`).
pub fn kernel_release() -> String {
    first_line("/proc/sys/kernel/osrelease")
}

/// Identity of this boot: PIDs and monotonic times mean nothing across two of them.
pub fn boot_id() -> String {
    first_line("/proc/sys/kernel/random/boot_id")
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// CPU time (nanoseconds) and resident memory (bytes) of observer itself.
pub fn own_usage() -> (u64, u64) {
    let cpu = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| {
        let ns = usage.user_time().num_nanoseconds() + usage.system_time().num_nanoseconds();
        u64::try_from(ns).unwrap_or(0)
    });
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok()).unwrap_or(4096);
    // statm: size, resident, … in pages.
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    (cpu, pages * page)
}
