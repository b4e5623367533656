//! What observer can do here, what it cannot, and how to get it.

use super::kernel_types::KernelTypes;
use super::offsets;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// One thing observer would like to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// Whether it is here.
    pub present: bool,
    /// What was found.
    pub detail: String,
    /// What is lost without it; empty if present.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lost: String,
    /// How to get it; empty if present.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// Whether little is lost without it: what is under `deploy/` does not ask for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// This machine, as observer sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// Kernel release (`uname -r`).
    pub kernel: String,
    /// Machine architecture.
    pub machine: String,
    /// Lockdown mode: `none`, `integrity`, `confidentiality`, or `unknown`.
    pub lockdown: String,
    /// Effective capabilities of this process, as a mask.
    pub effective: u64,
    /// Where tracefs is mounted.
    pub tracefs: Option<PathBuf>,
    /// Everything that was looked at.
    pub facts: Vec<Fact>,
}

/// Capabilities observer uses: bit, name, what is lost without it.
const CAPABILITIES: [(u32, &str, &str); 7] = [
    (39, "CAP_BPF", "kernel census and probes (needs CAP_SYS_ADMIN before 5.8)"),
    (38, "CAP_PERFMON", "kernel census and probes (needs CAP_SYS_ADMIN before 5.8)"),
    (19, "CAP_SYS_PTRACE", "memory of other users' processes: futex owners, timeouts, stacks"),
    (2, "CAP_DAC_READ_SEARCH", "files of other users' processes"),
    (34, "CAP_SYSLOG", "names in kernel stacks"),
    (40, "CAP_CHECKPOINT_RESTORE", "names and lines from programs and libraries that were replaced or deleted since"),
    (
        21,
        "CAP_SYS_ADMIN",
        "requests without an answer, exhausted pools and silent peers in other network namespaces (containers); measuring what the probes cost",
    ),
];
const CAP_SYS_ADMIN: u32 = 21;

impl Capability {
    /// Looks at this machine. Reads a dozen small files and the kernel's BTF; changes nothing.
    pub fn probe() -> Self {
        let (kernel, machine) = match nix::sys::utsname::uname() {
            Ok(name) => (name.release().to_string_lossy().into_owned(), name.machine().to_string_lossy().into_owned()),
            Err(error) => (format!("unknown: {error}"), String::new()),
        };
        let lockdown = fs::read_to_string("/sys/kernel/security/lockdown")
            .ok()
            .and_then(|text| selected(&text).map(str::to_owned))
            .unwrap_or_else(|| "unknown".to_owned());
        let effective = fs::read_to_string("/proc/self/status").map_or(0, |text| effective(&text));
        let tracefs = tracefs();
        let mut facts = vec![architecture(&machine), types(), lockdown_fact(&lockdown), trace_fact(&tracefs)];
        facts.push(pid_namespace());
        for (bit, name, lost) in CAPABILITIES {
            let covered = bit >= 38 && effective >> CAP_SYS_ADMIN & 1 == 1;
            let present = effective >> bit & 1 == 1 || covered;
            let remedy =
                "run as root, or grant it: `setcap`, `AmbientCapabilities=`, `securityContext.capabilities.add`";
            let detail = if present { "effective" } else { "not effective" };
            facts.push(Fact { optional: bit == CAP_SYS_ADMIN, ..fact(name, present, detail, lost, remedy) });
        }
        if let Ok(types) = KernelTypes::get() {
            for (field, lost) in offsets::missing(&types.offsets) {
                facts.push(fact(field, false, "not in this kernel's BTF", lost, "a kernel that has the field"));
            }
        }
        Self { kernel, machine, lockdown, effective, tracefs, facts }
    }
}

fn fact(name: &str, present: bool, detail: &str, lost: &str, remedy: &str) -> Fact {
    let unless = |text: &str| {
        if present { String::new() } else { text.to_owned() }
    };
    let (name, detail) = (name.to_owned(), detail.to_owned());
    Fact { name, present, detail, lost: unless(lost), remedy: unless(remedy), optional: false }
}

fn architecture(machine: &str) -> Fact {
    let lost = "system call numbers and registers are not decoded";
    fact("architecture", machine == "x86_64", machine, lost, "an x86-64 machine")
}

fn types() -> Fact {
    let lost = "the task iterator, fentry and tp_btf; the census falls back to /proc";
    match KernelTypes::get() {
        Ok(_) => fact("BTF", true, "every required field found", "", ""),
        Err(error) => fact("BTF", false, &error.to_string(), lost, "a kernel with CONFIG_DEBUG_INFO_BTF=y"),
    }
}

fn lockdown_fact(mode: &str) -> Fact {
    fact(
        "lockdown",
        mode != "confidentiality",
        mode,
        "all reading of kernel memory by programs",
        "boot without lockdown=confidentiality",
    )
}

fn trace_fact(mounted: &Option<PathBuf>) -> Fact {
    let detail = match mounted {
        Some(path) => path.display().to_string(),
        None => "not mounted, or not readable".to_owned(),
    };
    let lost = "tracepoints of single system calls: without fentry the probes cost every system call of the host";
    let remedy = "mount -t tracefs tracefs /sys/kernel/tracing; in a pod: tracefs.enabled=true of the chart";
    Fact { optional: true, ..fact("tracefs", mounted.is_some(), &detail, lost, remedy) }
}

fn pid_namespace() -> Fact {
    // The initial PID namespace has a fixed inode number (PROC_PID_INIT_INO).
    let inum = view_pidns();
    fact(
        "initial PID namespace",
        inum == 0xEFFF_FFFC,
        &format!("pid:[{inum}]"),
        "threads outside this container's PID namespace",
        "run on the host, or with hostPID: true",
    )
}

/// Inode number of the PID namespace this process is in; 0 if `/proc` does not say.
pub fn view_pidns() -> u32 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino() as u32)
}

/// The word in brackets of `none [integrity] confidentiality`.
fn selected(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

/// `CapEff` of `/proc/self/status`.
fn effective(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// Where tracefs is mounted and readable.
fn tracefs() -> Option<PathBuf> {
    ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .into_iter()
        .map(Path::new)
        .find(|path| path.join("events/syscalls").exists() || path.join("events/header_page").exists())
        .map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockdown_and_capabilities_are_read_as_the_kernel_writes_them() {
        assert_eq!(selected("none [integrity] confidentiality\n"), Some("integrity"));
        assert_eq!(selected("nothing"), None);
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), 0x1ff_ffff_ffff);
        assert_eq!(effective("CapEff:\tzz\n"), 0);
    }

    #[test]
    fn what_is_missing_says_what_is_lost_and_how_to_get_it() {
        for fact in Capability::probe().facts {
            assert_eq!(fact.present, fact.lost.is_empty(), "{fact:?}");
            assert_eq!(fact.present, fact.remedy.is_empty(), "{fact:?}");
        }
    }
}
