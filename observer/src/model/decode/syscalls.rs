//! The system calls that can block: names, classes, where the descriptor and the timeout are.

use crate::model::wait::Class;
use std::sync::LazyLock;

/// Numbers whose calls are looked up once.
const TABLED: u32 = 512;

/// Where and how a call takes its timeout. Numbers are argument positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutAt {
    /// It takes none.
    No,
    /// Milliseconds as an `int`.
    Millis(usize),
    /// A relative `timespec`; null is for ever.
    Timespec(usize),
    /// A relative `timeval`; null is for ever.
    Timeval(usize),
    /// By the futex operation.
    Futex,
    /// An absolute `timespec` (argument) on a clock (argument); null is for ever.
    Absolute(usize, usize),
    /// An absolute `timespec` on `CLOCK_REALTIME`; null is for ever.
    AbsoluteRealtime(usize),
    /// `clock_nanosleep`: clock 0, flags 1, request 2.
    ClockNanosleep,
    /// On the socket (`SO_RCVTIMEO`, `SO_SNDTIMEO`): not visible in the arguments.
    Socket,
}

/// A system call, as far as waiting goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name, `unknown` if the number is in no table.
    pub name: &'static str,
    /// What it waits for.
    pub class: Class,
    /// Position of the descriptor argument.
    pub fd_arg: Option<usize>,
    /// The timeout.
    pub timeout: TimeoutAt,
}

impl Call {
    /// Looks a number up in the x86-64 or (compat) the i386 table.
    pub fn lookup(number: u32, compat: bool) -> Self {
        // Asked of every thread at every census.
        static X86_64: LazyLock<Vec<Call>> = LazyLock::new(|| (0..TABLED).map(|n| Call::of(n, false)).collect());
        match X86_64.get(number as usize).filter(|_| !compat) {
            Some(known) => *known,
            None => Self::of(number, compat),
        }
    }

    fn of(number: u32, compat: bool) -> Self {
        let number = number as usize;
        let name = if compat {
            syscalls::x86::Sysno::new(number).map(|s| s.name())
        } else {
            syscalls::x86_64::Sysno::new(number).map(|s| s.name())
        };
        Self::named(name.unwrap_or("unknown"))
    }

    /// The call of this name.
    pub fn named(name: &'static str) -> Self {
        use Class as C;
        use TimeoutAt as T;
        let (class, fd_arg, timeout) = match name {
            "poll" => (C::Event, None, T::Millis(2)),
            "ppoll" | "ppoll_time64" => (C::Event, None, T::Timespec(2)),
            "select" | "_newselect" => (C::Event, None, T::Timeval(4)),
            "pselect6" | "pselect6_time64" => (C::Event, None, T::Timespec(4)),
            "epoll_wait" | "epoll_pwait" => (C::Event, Some(0), T::Millis(3)),
            "epoll_pwait2" => (C::Event, Some(0), T::Timespec(3)),
            "io_uring_enter" => (C::Event, Some(0), T::No),
            "io_getevents" => (C::Event, None, T::Timespec(4)),
            "io_pgetevents" | "io_pgetevents_time64" => (C::Event, None, T::Timespec(4)),
            "rt_sigtimedwait" | "rt_sigtimedwait_time64" => (C::Event, None, T::Timespec(2)),
            "rt_sigsuspend" | "sigsuspend" | "pause" => (C::Event, None, T::No),
            "futex" | "futex_time64" => (C::Condition, None, T::Futex),
            "futex_wait" => (C::Condition, None, T::Absolute(4, 5)),
            "futex_waitv" => (C::Condition, None, T::Absolute(3, 4)),
            "read" | "readv" | "pread64" | "preadv" | "preadv2" => (C::Read, Some(0), T::No),
            "recvfrom" | "recvmsg" | "recv" => (C::Read, Some(0), T::Socket),
            "recvmmsg" | "recvmmsg_time64" => (C::Read, Some(0), T::Timespec(4)),
            "mq_timedreceive" | "mq_timedreceive_time64" => (C::Read, Some(0), T::AbsoluteRealtime(4)),
            "msgrcv" => (C::Read, None, T::No),
            "getdents" | "getdents64" | "readahead" => (C::Read, Some(0), T::No),
            "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" => (C::Write, Some(0), T::No),
            "sendto" | "sendmsg" | "sendmmsg" | "send" => (C::Write, Some(0), T::Socket),
            "mq_timedsend" | "mq_timedsend_time64" => (C::Write, Some(0), T::AbsoluteRealtime(4)),
            "msgsnd" => (C::Write, None, T::No),
            "sendfile" | "sendfile64" | "splice" | "tee" | "copy_file_range" | "vmsplice" => (C::Write, Some(0), T::No),
            "connect" => (C::Connect, Some(0), T::Socket),
            "accept" | "accept4" => (C::Accept, Some(0), T::Socket),
            "wait4" | "waitpid" | "waitid" | "vfork" => (C::Child, None, T::No),
            "clone" | "clone3" => (C::Child, None, T::No),
            "flock" => (C::FileLock, Some(0), T::No),
            "fcntl" | "fcntl64" => (C::FileLock, Some(0), T::No),
            "semop" => (C::Condition, None, T::No),
            "semtimedop" | "semtimedop_time64" => (C::Condition, None, T::Timespec(3)),
            "nanosleep" => (C::Sleep, None, T::Timespec(0)),
            "clock_nanosleep" | "clock_nanosleep_time64" => (C::Sleep, None, T::ClockNanosleep),
            "fsync" | "fdatasync" | "sync_file_range" | "syncfs" | "fallocate" | "ftruncate" => (C::Io, Some(0), T::No),
            "sync" | "msync" | "open" | "openat" | "openat2" | "creat" | "stat" | "lstat" | "newfstatat" | "statx"
            | "access" | "faccessat" | "faccessat2" | "rename" | "renameat" | "renameat2" | "unlink" | "unlinkat"
            | "mkdir" | "mkdirat" | "rmdir" | "mount" | "umount2" | "truncate" | "readlink" | "readlinkat"
            | "statfs" | "execve" | "execveat" | "delete_module" | "init_module" | "finit_module" => {
                (C::Io, None, T::No)
            }
            "close" | "fstat" | "fstatfs" | "fchdir" => (C::Io, Some(0), T::No),
            _ => (C::Other, None, T::No),
        };
        Self { name, class, fd_arg, timeout }
    }

    /// Any of the futex waits.
    pub fn is_futex(&self) -> bool {
        matches!(self.name, "futex" | "futex_time64" | "futex_wait" | "futex_waitv")
    }

    /// The poll family: its timeouts are audited.
    pub fn is_poll(&self) -> bool {
        self.class == Class::Event
            && matches!(self.timeout, TimeoutAt::Millis(_) | TimeoutAt::Timespec(_) | TimeoutAt::Timeval(_))
            && !self.name.starts_with("rt_sig")
    }

    /// How many arguments there are up to the timeout, at least: those behind may be what a register happened to hold.
    pub fn arguments(&self) -> usize {
        match self.timeout {
            TimeoutAt::Millis(at) | TimeoutAt::Timespec(at) | TimeoutAt::Timeval(at) => at + 1,
            _ => 0,
        }
    }

    /// The descriptor this call works on.
    pub fn fd(&self, args: &[u64; 6]) -> Option<i32> {
        // P_PIDFD
        let by_pidfd = self.name == "waitid" && args[0] as i32 == 3;
        let at = if by_pidfd { 1 } else { self.fd_arg? };
        let fd = *args.get(at)? as i32;
        (fd >= 0).then_some(fd)
    }
}
