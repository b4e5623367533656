//! Waits for file locks: which lock, and who holds it. The kernel lists processes, not threads, and in observer's own
//! PID namespace, unlike the words in locks of the C library.

use super::decode::Memory;
use super::wait::{Class, Confidence, Wait};
use crate::census::{Pid, ThreadRow};
use crate::proc::{FdFact, FileLockFact, FileLockKind, LockRange};

/// Length of a `struct flock`.
pub const REQUEST_LEN: u32 = 32;

/// The file lock that a thread waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLock {
    /// Device of its file system, major and minor.
    pub device: (u32, u32),
    /// Inode number of its file.
    pub inode: u64,
    /// The process that holds it, in observer's PID namespace.
    pub holder: Option<Holder>,
    /// The next release of the lock wakes this thread: whoever has it now has had it for as long as this wait lasts.
    pub is_first: bool,
    /// There was no time to look for the holder in all of the processes.
    pub is_cut: bool,
}

/// The process that holds a file lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id, in observer's PID namespace.
    pub pid: Pid,
    /// How sure it is that this process holds it.
    pub confidence: Confidence,
    /// How it was learnt.
    pub how: &'static str,
}

/// The family of locks that a wait is for; `None` if it is not for a file lock.
pub fn kind(wait: &Wait) -> Option<FileLockKind> {
    // Only the low half of the command counts.
    match (wait.class, wait.syscall, wait.args[1] as i32) {
        (Class::FileLock, "flock", _) => Some(FileLockKind::Flock),
        // F_SETLKW; F_SETLKW64 of 32-bit programs.
        (Class::FileLock, "fcntl", 7) | (Class::FileLock, "fcntl64", 7 | 14) => Some(FileLockKind::Posix),
        // F_OFD_SETLKW.
        (Class::FileLock, "fcntl" | "fcntl64", 38) => Some(FileLockKind::Ofd),
        _ => None,
    }
}

/// Finds the lock that a thread waits for. `None` where the list does not have it, or has several it could be.
pub(super) fn awaited(
    wait: &Wait,
    waiter: &ThreadRow,
    fd: Option<&FdFact>,
    memory: Memory<'_>,
    locks: &[FileLockFact],
    rows: &[ThreadRow],
) -> Option<FileLock> {
    let kind = kind(wait)?;
    let inode = fd.and_then(|fd| fd.inode);
    // POSIX and OFD locks conflict with each other; the request tells its own kind only by its process.
    let is_family = |lock: &FileLockFact| (lock.kind == FileLockKind::Flock) == (kind == FileLockKind::Flock);
    let on_file = || locks.iter().filter(|lock| is_family(lock) && inode.is_none_or(|inode| inode == lock.inode));
    let asking = (kind != FileLockKind::Ofd).then_some(waiter.process.pid);
    let asked = (kind != FileLockKind::Flock).then(|| requested(wait, memory)).flatten();
    let mut behind: Vec<(&FileLockFact, bool)> = on_file()
        .filter_map(|lock| {
            let is_own = |range: LockRange| asked.is_none_or(|asked| asked == range);
            let mut own = lock.blocked.iter().filter(|b| b.pid == asking && is_own(b.range)).peekable();
            own.peek()?;
            Some((lock, own.all(|request| request.is_first)))
        })
        .collect();
    if behind.is_empty() && inode.is_some() {
        // Before kernel 5.11, and for locks of processes that are gone, the list does not tell who waits. Bytes that
        // nobody asks for keep nobody waiting.
        let is_in_the_way = |lock: &&FileLockFact| asked.is_none_or(|asked| asked.overlaps(lock.range));
        behind.extend(on_file().filter(is_in_the_way).map(|lock| (lock, false)));
    }
    let found = |(lock, is_first): &(&FileLockFact, bool)| {
        let holder = holder(lock, waiter, rows);
        FileLock { device: lock.device, inode: lock.inode, holder, is_first: *is_first, is_cut: lock.is_cut }
    };
    let (first, others) = behind.split_first()?;
    let first = found(first);
    // A process may have several locks on a file; the list, when it changes while it is read, may have one twice.
    others.iter().all(|other| found(other) == first).then_some(first)
}

fn holder(lock: &FileLockFact, waiter: &ThreadRow, rows: &[ThreadRow]) -> Option<Holder> {
    if let Some(pid) = lock.pid {
        // A POSIX lock ends with its process; that a flock is still where it was taken was seen in its descriptors.
        let is_proven = lock.kind == FileLockKind::Posix || lock.holders.contains(&pid);
        let confidence = if is_proven { Confidence::Certain } else { Confidence::Likely };
        return Some(Holder { pid, confidence, how: "holder in /proc/locks" });
    }
    // Of several that share the description the one that passed it on, and rather another than the waiter itself.
    let parent = |pid: Pid| rows.iter().find(|row| row.tid == pid).map(|row| row.ppid);
    let is_heir = |pid: Pid| parent(pid).is_some_and(|parent| lock.holders.contains(&parent));
    let pid = *lock.holders.iter().min_by_key(|pid| (**pid == waiter.process.pid, is_heir(**pid), **pid))?;
    // All who share it must close it; but any of them may unlock it.
    let confidence = if lock.holders.len() == 1 { Confidence::Likely } else { Confidence::Possible };
    Some(Holder { pid, confidence, how: "has the locked file open (fdinfo)" })
}

/// The bytes that a thread asks for, where that does not depend on the file.
fn requested(wait: &Wait, memory: Memory<'_>) -> Option<LockRange> {
    let at = wait.args[2];
    // l_whence: SEEK_SET.
    if u16::from_ne_bytes(memory.bytes(at.checked_add(2)?)?) != 0 {
        return None;
    }
    let (start, len) = (memory.i64(at.checked_add(8)?)?, memory.i64(at.checked_add(16)?)?);
    let start = u64::try_from(start).ok()?;
    Some(match len {
        0 => LockRange { start, end: None },
        1.. => LockRange { start, end: Some(start.checked_add(len.unsigned_abs())? - 1) },
        _ => LockRange { start: start.checked_sub(len.unsigned_abs())?, end: Some(start.checked_sub(1)?) },
    })
}
