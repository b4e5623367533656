//! The census through `/proc`: for kernels without the task iterator.
//!
//! Degraded. Missing: since when a thread is off the CPU (the model counts from first sight), the frame
//! pointer, the cgroup id, `blocker`, `jobctl`, initial ids of another namespace. Dear: four small files
//! per thread, some thirty times the iterator's cost. 32-bit programs are told by their addresses and their auxiliary vector.

use super::row::{Census, Pid, ProcessId, Registers, SyscallInProgress, ThreadRow, state};
use super::source::{CensusError, Source};
use crate::host::clock;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

const FOUR_GIB: u64 = 1 << 32;

/// Census source over `/proc/*/task/*`.
#[derive(Debug)]
pub struct ProcSource {
    root: PathBuf,
    tick_ns: u64,
}

impl ProcSource {
    /// Reads `/proc`.
    pub fn new() -> Self {
        Self::at(Path::new("/proc"))
    }

    /// Reads a `/proc` mounted elsewhere.
    pub fn at(root: &Path) -> Self {
        let ticks = match nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK) {
            Ok(Some(ticks)) if ticks > 0 => ticks as u64,
            _ => 100,
        };
        Self { root: root.to_owned(), tick_ns: 1_000_000_000 / ticks }
    }

    /// One thread; `Err` if it vanished or shows nonsense.
    fn thread(&self, pid: Pid, tid: Pid, process: Option<ProcessId>, pidns: u32) -> io::Result<ThreadRow> {
        let dir = self.root.join(pid.to_string()).join("task").join(tid.to_string());
        let stat_bytes = fs::read(dir.join("stat"))?;
        let stat = Stat::parse(&stat_bytes).ok_or(io::ErrorKind::InvalidData)?;
        let status = fs::read(dir.join("status")).unwrap_or_default();
        let status = Status::parse(&status);
        // Without privilege over the target this is EPERM: the row is there without it.
        let call = fs::read(dir.join("syscall")).unwrap_or_default();
        let call = Call::parse(&call);
        let compat = is_compat(&dir, &call);
        let start_ns = stat.start_ticks.saturating_mul(self.tick_ns);
        let (state, exit_state) = state_bits(stat.state);
        Ok(ThreadRow {
            tid,
            process: process.unwrap_or(ProcessId { pid, start_ns }),
            initial: (tid, pid),
            own: (status.own_tid.unwrap_or(tid), status.own_tgid.unwrap_or(pid)),
            pidns,
            ppid: stat.ppid,
            tracer: status.tracer,
            comm: stat.comm,
            state,
            exit_state,
            flags: stat.flags,
            jobctl: 0,
            compat: compat.unwrap_or(false),
            on_cpu: stat.state == b'R' && matches!(call, Call::Running),
            start_ns,
            nvcsw: status.nvcsw,
            nivcsw: status.nivcsw,
            cpu_ns: stat.cpu_ticks.saturating_mul(self.tick_ns),
            off_cpu_since_ns: None,
            queued_since_ns: None,
            // Its number means one call or another.
            syscall: match call {
                Call::In { number, args, .. } if compat.is_some() => Some(SyscallInProgress { number, args }),
                _ => None,
            },
            registers: match call {
                Call::In { sp, ip, .. } | Call::Outside { sp, ip } => Some(Registers { ip, sp, bp: None }),
                _ => None,
            },
            cgroup_id: 0,
            blocker: 0,
            blocker_tid: 0,
            blocker_flags: 0,
        })
    }
}

/// Whether the thread with this directory is in a system call of 32-bit programs, which `/proc` does not say; `None` if it cannot
/// be told. Only those run below 4 GiB with their stack as well, and their auxiliary vector has words of four bytes.
fn is_compat(dir: &Path, call: &Call) -> Option<bool> {
    match call {
        Call::In { sp, ip, .. } | Call::Outside { sp, ip } if (1..FOUR_GIB).contains(sp) && *ip < FOUR_GIB => {}
        _ => return Some(false),
    }
    let mut first = [0; 8];
    fs::File::open(dir.join("auxv")).and_then(|mut vector| vector.read_exact(&mut first)).ok()?;
    // Keys are small numbers. Where they are four bytes wide a value follows.
    Some(u64::from_ne_bytes(first) > u64::from(u32::MAX))
}

impl Default for ProcSource {
    fn default() -> Self {
        Self::new()
    }
}

/// Numeric entries of a directory, ascending.
fn ids(dir: &Path) -> io::Result<Vec<Pid>> {
    let mut found: Vec<Pid> =
        fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    Ok(found)
}

impl Source for ProcSource {
    fn take(&mut self) -> Result<Census, CensusError> {
        let began = Instant::now();
        let clocks = clock::now();
        let mut rows = Vec::new();
        let mut vanished = 0u64;
        let pids =
            ids(&self.root).map_err(|error| CensusError::Read { what: self.root.display().to_string(), error })?;
        for pid in pids {
            let dir = self.root.join(pid.to_string());
            let Ok(tids) = ids(&dir.join("task")) else {
                vanished += 1;
                continue;
            };
            // The inode of `/proc/PID/ns/pid` is the namespace's number; EPERM leaves it unknown.
            let pidns = fs::metadata(dir.join("ns/pid")).map_or(0, |meta| meta.ino() as u32);
            let mut process = fs::read(dir.join("stat")).ok().and_then(|bytes| {
                let stat = Stat::parse(&bytes)?;
                Some(ProcessId { pid, start_ns: stat.start_ticks.saturating_mul(self.tick_ns) })
            });
            for tid in tids {
                match self.thread(pid, tid, process, pidns) {
                    Ok(row) => {
                        process = process.or(Some(row.process));
                        rows.push(row);
                    }
                    Err(_) => vanished += 1,
                }
            }
        }
        rows.sort_unstable_by_key(|row| row.tid);
        let mut lost = BTreeMap::new();
        if vanished > 0 {
            lost.insert("vanished".to_owned(), vanished);
        }
        let took_ns = began.elapsed().as_nanos() as u64;
        Ok(Census { clocks, took_ns, kernel_ns: took_ns, rows, lost })
    }

    fn name(&self) -> &'static str {
        "proc"
    }
}

/// The state letter as bits of `task->__state` and `task->exit_state`.
fn state_bits(letter: u8) -> (u32, u32) {
    match letter {
        b'S' => (state::INTERRUPTIBLE, 0),
        b'D' => (state::UNINTERRUPTIBLE, 0),
        b'T' => (state::STOPPED, 0),
        b't' => (state::TRACED, 0),
        b'I' => (state::UNINTERRUPTIBLE | state::NOLOAD, 0),
        b'P' => (state::PARKED, 0),
        b'Z' => (state::DEAD, state::EXIT_ZOMBIE),
        b'X' | b'x' => (state::DEAD, state::EXIT_DEAD),
        _ => (0, 0),
    }
}

/// `/proc/PID/task/TID/stat` (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    comm: String,
    state: u8,
    ppid: Pid,
    flags: u32,
    cpu_ticks: u64,
    start_ticks: u64,
}

impl Stat {
    /// The name stands in parentheses and may contain anything, parentheses and newlines included: it
    /// ends at the last one.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let open = bytes.iter().position(|&byte| byte == b'(')?;
        let close = bytes.iter().rposition(|&byte| byte == b')')?;
        let comm = String::from_utf8_lossy(bytes.get(open + 1..close)?).into_owned();
        let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first of these is field 3 of the manual page.
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |at: usize| field(at)?.parse::<u64>().ok();
        Some(Self {
            comm,
            state: *field(3)?.as_bytes().first()?,
            ppid: field(4)?.parse().ok()?,
            flags: number(9)? as u32,
            cpu_ticks: number(14)?.saturating_add(number(15)?),
            start_ticks: number(22)?,
        })
    }
}

/// The lines of `status` that are wanted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    own_tid: Option<Pid>,
    own_tgid: Option<Pid>,
    tracer: Pid,
    nvcsw: u64,
    nivcsw: u64,
}

impl Status {
    fn parse(bytes: &[u8]) -> Self {
        let mut status = Self::default();
        for line in bytes.split(|&byte| byte == b'\n') {
            // The name's newlines are escaped here, so no name can forge a line.
            let Ok(line) = std::str::from_utf8(line) else {
                continue;
            };
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let last = value.split_ascii_whitespace().next_back();
            let pid = || last.and_then(|word| word.parse::<Pid>().ok());
            let number = || last.and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            match key {
                // Outermost first: the last is the task's own.
                "NSpid" => status.own_tid = pid(),
                "NStgid" => status.own_tgid = pid(),
                "TracerPid" => status.tracer = pid().unwrap_or(0),
                "voluntary_ctxt_switches" => status.nvcsw = number(),
                "nonvoluntary_ctxt_switches" => status.nivcsw = number(),
                _ => {}
            }
        }
        status
    }
}

/// `/proc/PID/task/TID/syscall`.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    Unknown,
    Running,
    Outside { sp: u64, ip: u64 },
    In { number: u32, args: [u64; 6], sp: u64, ip: u64 },
}

impl Call {
    fn parse(bytes: &[u8]) -> Self {
        Self::try_parse(bytes).unwrap_or(Self::Unknown)
    }

    fn try_parse(bytes: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(bytes).ok()?.split_ascii_whitespace();
        let first = words.next()?;
        if first == "running" {
            return Some(Self::Running);
        }
        let number: i64 = first.parse().ok()?;
        let mut hex = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        if number < 0 {
            return Some(Self::Outside { sp: hex()?, ip: hex()? });
        }
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = hex()?;
        }
        Some(Self::In { number: u32::try_from(number).ok()?, args, sp: hex()?, ip: hex()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_shift_the_fields() {
        let bytes = b"42 (a) R 1 (x\n\xff) S 7 42 42 0 -1 4194304 1 0 0 0 3 4 0 0 20 0 1 0 555 1 2";
        let stat = Stat::parse(bytes);
        assert_eq!(
            stat,
            Some(Stat {
                comm: "a) R 1 (x\n\u{fffd}".to_owned(),
                state: b'S',
                ppid: 7,
                flags: 4_194_304,
                cpu_ticks: 7,
                start_ticks: 555
            })
        );
        for len in 0..bytes.len() - 7 {
            assert_eq!(Stat::parse(&bytes[..len]), None, "{len}");
        }
    }

    #[test]
    fn a_system_call_is_read_in_its_three_forms() {
        assert_eq!(Call::parse(b"running\n"), Call::Running);
        assert_eq!(Call::parse(b"-1 0x10 0x20\n"), Call::Outside { sp: 16, ip: 32 });
        assert_eq!(
            Call::parse(b"202 0x1 0x2 0x3 0x4 0x5 0x6 0x10 0x20\n"),
            Call::In { number: 202, args: [1, 2, 3, 4, 5, 6], sp: 16, ip: 32 }
        );
        assert_eq!(Call::parse(b"202 0x1 0x2"), Call::Unknown);
        assert_eq!(Call::parse(b""), Call::Unknown);
    }

    #[test]
    fn own_ids_are_the_innermost() {
        let status = Status::parse(
            b"Name:\tx\\nNSpid: 9\nTracerPid:\t5\nNStgid:\t100\t7\nNSpid:\t101\t8\nvoluntary_ctxt_switches:\t3\n",
        );
        assert_eq!(status, Status { own_tid: Some(8), own_tgid: Some(7), tracer: 5, nvcsw: 3, nivcsw: 0 });
    }
}
