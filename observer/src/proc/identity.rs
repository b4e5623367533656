//! Who a process is: name, program, command line, container, runtime.

use super::elf::Elf;
use super::pool::Steps;
use super::stat::{Stat, errno_name, read_bounded};
use super::{Libc, ProcessFacts, cgroup, runtime};
use crate::census::{Pid, ProcessId};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The longest command line that is kept.
const MAX_CMDLINE: u64 = 128 * 1024;

/// What changes when a process becomes another program. An exec keeps PID and start time, but lays out
/// the arguments anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    exe: Result<String, String>,
    arguments: (u64, u64),
}

impl Program {
    /// Two reads that cannot block.
    pub(crate) fn of(pid: Pid, stat: &Stat) -> Self {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"))
            .map(|path| path.to_string_lossy().into_owned())
            .map_err(|e| errno_name(&e));
        Self { exe, arguments: stat.arguments }
    }
}

/// What can be had without touching the target's memory or files.
pub(crate) fn outline(process: ProcessId, stat: &Stat, program: &Program) -> ProcessFacts {
    let mut missing = Vec::new();
    let exe = match &program.exe {
        Ok(exe) => Some(exe.clone()),
        Err(errno) => {
            missing.push(format!("exe: {errno}"));
            None
        }
    };
    let groups = match read_bounded(Path::new(&format!("/proc/{}/cgroup", process.pid)), cgroup::MAX_TEXT) {
        Ok(text) => cgroup::parse(&String::from_utf8_lossy(&text)),
        Err(e) => {
            missing.push(format!("cgroup: {}", errno_name(&e)));
            cgroup::Cgroup::default()
        }
    };
    ProcessFacts {
        process,
        comm: stat.comm.clone(),
        exe,
        cmdline: Vec::new(),
        cgroup: groups.path,
        container: groups.container,
        pod: groups.pod,
        runtime: "unknown".to_owned(),
        libc: Libc::Unknown,
        missing,
    }
}

/// The rest, on a reader of the pool; `None` if the process is another one, or runs another program, by now.
pub(crate) fn complete(program: &Program, mut facts: ProcessFacts, steps: &Steps) -> Option<ProcessFacts> {
    let pid = facts.process.pid;
    steps.begin("cmdline");
    match read_bounded(Path::new(&format!("/proc/{pid}/cmdline")), MAX_CMDLINE) {
        Ok(bytes) => {
            if bytes.len() as u64 == MAX_CMDLINE {
                facts.missing.push(format!("cmdline: cut at {MAX_CMDLINE} bytes"));
            }
            facts.cmdline = arguments(&bytes);
        }
        Err(e) => facts.missing.push(format!("cmdline: {}", errno_name(&e))),
    }
    steps.begin("maps");
    let maps = runtime::mapped_files(pid).unwrap_or_else(|e| {
        facts.missing.push(format!("maps: {}", errno_name(&e)));
        Default::default()
    });
    steps.begin("exe");
    // Its file may be on a file system that does not answer. Not an ELF file of ours (32 bits): no fault.
    let elf = match File::open(format!("/proc/{pid}/exe")) {
        Ok(file) => Elf::open(file).ok(),
        Err(e) => {
            if facts.exe.is_some() {
                facts.missing.push(format!("program file: {}", errno_name(&e)));
            }
            None
        }
    };
    if facts.container.is_none() && facts.cgroup.as_deref() == Some("/") {
        steps.begin("cgroup root");
        facts.missing.extend(container_unknown(pid));
    }
    let recognised = runtime::recognise(pid, facts.exe.as_deref(), &maps, elf.as_ref());
    facts.runtime = recognised.runtime;
    facts.libc = recognised.libc;
    // An exec in between would leave a mixture.
    let stat = Stat::read(pid).ok()?;
    (stat.is(facts.process) && Program::of(pid, &stat) == *program).then_some(facts)
}

/// Why it cannot be said that a process in the topmost cgroup we see is in no container: whoever mounts other
/// cgroups than we do has its own view of them, which the path does not show.
fn container_unknown(pid: Pid) -> Option<String> {
    const MOUNT: &str = "/sys/fs/cgroup";
    // Where cgroups are not mounted there is nothing to compare.
    let ours = std::fs::metadata(MOUNT).ok()?;
    match std::fs::metadata(format!("/proc/{pid}/root{MOUNT}")) {
        Ok(theirs) if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) => None,
        Ok(_) => Some("container: its cgroup path is / and its cgroups are mounted otherwise than ours".to_owned()),
        Err(e) => Some(format!("container: its cgroup path is / and {MOUNT} of its own: {}", errno_name(&e))),
    }
}

/// Arguments end in NUL. A program that wrote its title over them (setproctitle) leaves a row of NULs.
fn arguments(bytes: &[u8]) -> Vec<String> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    let mut arguments: Vec<String> =
        bytes.split(|&b| b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    if arguments.len() > 3 && arguments.iter().skip(1).all(String::is_empty) {
        arguments.truncate(1);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::arguments;

    #[test]
    fn command_lines() {
        let check = |bytes: &[u8], expected: &[&str]| assert_eq!(arguments(bytes), expected);
        check(b"", &[]);
        check(b"\0", &[""]);
        check(b"a\0", &["a"]);
        check(b"a\0b c\0\0", &["a", "b c", ""]);
        check(b"a\0\0\0d\0", &["a", "", "", "d"]);
        check(b"nginx: worker process\0\0\0\0\0\0", &["nginx: worker process"]);
        check(b"no end", &["no end"]);
        check(b"\xff\xfe\n\0", &["\u{fffd}\u{fffd}\n"]);
    }
}
