//! `/proc/PID/stat`: the one file that tells whether a PID is still the process we mean.

use super::ProcError;
use crate::census::row::task_flags;
use crate::census::{Pid, ProcessId};
use nix::errno::Errno;
use std::io::{self, Read};
use std::path::Path;

/// `USER_HZ`: what `/proc` counts time in on x86-64 (`include/asm-generic/param.h`), in nanoseconds.
pub(crate) const TICK_NS: u64 = 10_000_000;

/// The fields of `/proc/PID/stat` this room uses; numbers are those of proc(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// 2.
    pub(crate) comm: String,
    /// 3.
    pub(crate) state: char,
    /// 4.
    pub(crate) ppid: Pid,
    /// 9: bits of [`task_flags`].
    pub(crate) flags: u32,
    /// 20.
    pub(crate) threads: u32,
    /// 22: clock ticks since boot.
    pub(crate) start_ticks: u64,
    /// 48 and 49: where the arguments are, elsewhere after every exec; 0 without permission, and the second also
    /// in the middle of an exec.
    pub(crate) arguments: (u64, u64),
}

impl Stat {
    /// Parses one line. The name may hold anything, also `)` and line ends.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let open = text.find('(')?;
        let close = text.rfind(')')?;
        let comm = text.get(open + 1..close)?.to_owned();
        let fields: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
        // The first of these is field 3.
        let number = |field: usize| fields.get(field - 3).and_then(|f| f.parse::<u64>().ok());
        Some(Self {
            comm,
            state: fields.first()?.chars().next()?,
            ppid: u32::try_from(number(4)?).ok()?,
            flags: u32::try_from(number(9)?).ok()?,
            threads: u32::try_from(number(20)?).unwrap_or(u32::MAX),
            start_ticks: number(22)?,
            arguments: (number(48).unwrap_or(0), number(49).unwrap_or(0)),
        })
    }

    /// Reads `/proc/PID/stat`. A thread's number works, too: `/proc` finds it though it does not list it.
    pub(crate) fn read(pid: Pid) -> io::Result<Self> {
        let bytes = read_bounded(Path::new(&format!("/proc/{pid}/stat")), 4096)?;
        Self::parse(&String::from_utf8_lossy(&bytes))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not the format of proc(5)"))
    }

    /// Whether this is the process that `id` names.
    pub(crate) fn is(&self, id: ProcessId) -> bool {
        self.start_ticks == id.start_ns / TICK_NS
    }
}

/// Whether the PID still (or again) belongs to the process. Asked *after* a read, a yes proves that the
/// whole read was of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// It does.
    Same,
    /// Another process has the number now.
    Reused,
    /// No process has it.
    Gone,
}

/// Checks the start time of `id`.
pub(crate) fn identity(id: ProcessId) -> Identity {
    match Stat::read(id.pid) {
        Ok(stat) if stat.is(id) => Identity::Same,
        Ok(_) => Identity::Reused,
        Err(_) => Identity::Gone,
    }
}

/// A process that can be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessState {
    /// Its identity; the start time in steps of 10 ms.
    pub id: ProcessId,
    /// Its name.
    pub comm: String,
    /// The letter `ps` shows.
    pub state: char,
}

/// Looks whether `pid` is a process that can be observed.
///
/// # Errors
/// Says which of the usual mistakes it is: no such process, a zombie, a kernel thread, a thread's number, or
/// no permission.
pub fn exists(pid: Pid) -> Result<ProcessState, ProcError> {
    let stat = match Stat::read(pid) {
        Ok(stat) => stat,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) || e.raw_os_error() == Some(libc::ESRCH) => {
            // With hidepid=2 a process of another user has no directory, but a signal would find it.
            let hidden = i32::try_from(pid).is_ok_and(|p| {
                p > 0 && nix::sys::signal::kill(nix::unistd::Pid::from_raw(p), None) == Err(Errno::EPERM)
            });
            return Err(if hidden {
                ProcError::NotPermitted { pid, errno: "EPERM".into() }
            } else {
                ProcError::NoSuchProcess { pid }
            });
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(ProcError::NotPermitted { pid, errno: errno_name(&e) });
        }
        Err(e) => {
            return Err(ProcError::Unreadable { pid, file: "stat", reason: errno_name(&e) });
        }
    };
    if stat.flags & task_flags::KTHREAD != 0 {
        return Err(ProcError::KernelThread { pid, comm: stat.comm });
    }
    let leader = thread_group(pid)?;
    if leader != pid {
        return Err(ProcError::NotALeader { tid: pid, comm: stat.comm, pid: leader });
    }
    // A leader that left through pthread_exit is a zombie while its threads live on.
    if matches!(stat.state, 'Z' | 'X' | 'x') && stat.threads <= 1 {
        return Err(ProcError::Zombie { pid, comm: stat.comm, ppid: stat.ppid });
    }
    match std::fs::read_link(format!("/proc/{pid}/exe")) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(ProcError::NotPermitted { pid, errno: errno_name(&e) });
        }
        _ => {}
    }
    Ok(ProcessState {
        id: ProcessId { pid, start_ns: stat.start_ticks.saturating_mul(TICK_NS) },
        comm: stat.comm,
        state: stat.state,
    })
}

/// `Tgid` of `/proc/PID/status`.
fn thread_group(pid: Pid) -> Result<Pid, ProcError> {
    let bytes = read_bounded(Path::new(&format!("/proc/{pid}/status")), 16 * 1024).map_err(|e| {
        if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) {
            ProcError::NoSuchProcess { pid }
        } else {
            ProcError::Unreadable { pid, file: "status", reason: errno_name(&e) }
        }
    })?;
    String::from_utf8_lossy(&bytes)
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
        .ok_or(ProcError::Unreadable { pid, file: "status", reason: "no Tgid".into() })
}

/// Reads at most `cap` bytes of a file of `/proc`.
pub(crate) fn read_bounded(path: &Path, cap: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(1024);
    std::fs::File::open(path)?.take(cap).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `EACCES` and its like; the message where there is no error number.
pub(crate) fn errno_name(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(n) => format!("{:?}", Errno::from_raw(n)),
        None => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;

    #[test]
    fn hostile_names_do_not_shift_the_fields() {
        let tail = "1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 3 0 777 0 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 99 24 25 26";
        let stat = Stat::parse(&format!("7 (a) R 1 (\n)) S {tail}")).unwrap();
        assert_eq!((stat.comm.as_str(), stat.state, stat.ppid), ("a) R 1 (\n)", 'S', 1));
        assert_eq!((stat.threads, stat.start_ticks), (3, 777));
        for broken in ["", "1", "1 (", "1 )(", "1 (a)", "1 (a) S 1", ")", "1 (a) S x y z"] {
            assert_eq!(Stat::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn the_start_time_is_that_of_our_own_process() {
        let own = exists(std::process::id()).unwrap();
        assert_eq!(identity(own.id), Identity::Same);
        let other = ProcessId { start_ns: own.id.start_ns + TICK_NS, ..own.id };
        assert_eq!(identity(other), Identity::Reused);
    }
}
