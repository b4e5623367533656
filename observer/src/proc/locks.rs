//! File locks, as `/proc/locks` and the `lock:` lines of `fdinfo` list them (`lock_get_status`, `fs/locks.c`).
//!
//! `/proc/locks` names the process that *took* a lock. A lock of flock(2) or F_OFD_SETLKW belongs to the open file
//! description, which children inherit: that process may have closed it, or be gone. `fdinfo` of a descriptor lists the
//! locks held through its description, so it tells who can still release them.

use super::base_name;
use super::stat::{Identity, errno_name, identity, read_bounded};
use crate::census::{Pid, ProcessId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::Instant;

/// Most of `/proc/locks` that is read: some fifty thousand locks.
const MAX_LIST: u64 = 4 << 20;
/// As much as the kernel may give at once (`seq_read_iter`, `fs/seq_file.c`: a page, more for a longer record).
const PIECE: usize = 64 << 10;
/// A list shorter than the kernel's page is of one moment.
const ONE_MOMENT: usize = 4096;
/// How often the list is read until it has every request that is known to wait.
const LISTINGS: usize = 3;
/// Most of one `fdinfo` that is read.
const MAX_INFO: u64 = 64 << 10;
/// Locks kept of one look.
const MAX_LOCKS: usize = 4096;
/// Descriptors looked at in one process.
const MAX_FDS: usize = 1 << 16;

/// Which of the three families of file locks; locks of different families never conflict, but POSIX and OFD do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileLockKind {
    /// flock(2): of an open file description.
    Flock,
    /// `F_SETLK`, lockf(3): of a process.
    Posix,
    /// `F_OFD_SETLK`: of an open file description, in ranges.
    Ofd,
}

/// Bytes of a file, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRange {
    /// The first byte.
    pub start: u64,
    /// The last byte; `None` for the end of the file, wherever that will be.
    pub end: Option<u64>,
}

impl LockRange {
    /// Whether a byte is in both.
    pub fn overlaps(self, other: Self) -> bool {
        let begins_in = |a: Self, b: Self| b.end.is_none_or(|end| a.start <= end);
        begins_in(self, other) && begins_in(other, self)
    }
}

/// A request that waits behind a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedLock {
    /// The process that asks; `None` for open-file-description locks, whose requests carry no process.
    pub pid: Option<Pid>,
    /// What it asks for.
    pub range: LockRange,
    /// It waits for the lock itself, not behind another request: the release of the lock wakes it.
    pub is_first: bool,
}

/// A file lock that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLockFact {
    /// Its family.
    pub kind: FileLockKind,
    /// Held alone (`WRITE`), or shared (`READ`).
    pub exclusive: bool,
    /// The process that took it, in observer's PID namespace; `None` where the list does not say, or where that process
    /// is known not to hold it any more.
    pub pid: Option<Pid>,
    /// Device of the file system, major and minor.
    pub device: (u32, u32),
    /// Inode number of the file.
    pub inode: u64,
    /// The bytes.
    pub range: LockRange,
    /// Who waits behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocked: Vec<BlockedLock>,
    /// Processes that have the open file description which holds it; only those that were looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<Pid>,
    /// There was no time to look for its holders in all of the processes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_cut: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A thread that waits for a file lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockWaiter {
    /// Its process.
    pub pid: Pid,
    /// Inode of the file, from `fdinfo`.
    pub inode: Option<u64>,
    /// Link of its descriptor.
    pub path: Option<String>,
}

/// One line, with or without `lock:` before it: how deep in the queue it stands (0: held), and the lock.
fn parse_line(line: &str) -> Option<(usize, FileLockFact)> {
    let (number, rest) = line.split_once(':')?;
    number.trim().parse::<u64>().ok()?;
    // `1: -> ` waits for the lock, `1:  -> ` behind that request, and so on.
    let (depth, rest) = match rest.split_once("->") {
        Some((indent, rest)) if indent.bytes().all(|b| b == b' ') => (indent.len().max(1), rest),
        Some(_) => return None,
        None => (0, rest),
    };
    let mut words = rest.split_ascii_whitespace();
    let kind = match words.next()? {
        "FLOCK" => FileLockKind::Flock,
        "POSIX" => FileLockKind::Posix,
        "OFDLCK" => FileLockKind::Ofd,
        // Leases and delegations are no locks.
        _ => return None,
    };
    words.next()?;
    let exclusive = match words.next()? {
        "WRITE" => true,
        "READ" => false,
        _ => return None,
    };
    // -1 for open-file-description locks, other negative numbers for locks of other machines, 0 for processes of
    // other PID namespaces.
    let pid = words.next()?.parse::<i64>().ok()?;
    let pid = Pid::try_from(pid).ok().filter(|pid| *pid != 0);
    let mut file = words.next()?.split(':');
    let device = (u32::from_str_radix(file.next()?, 16).ok()?, u32::from_str_radix(file.next()?, 16).ok()?);
    let inode = file.next()?.parse().ok()?;
    let start = words.next()?.parse().ok()?;
    let end = match words.next()? {
        "EOF" => None,
        end => Some(end.parse().ok()?),
    };
    let range = LockRange { start, end };
    let lock = FileLockFact {
        kind,
        exclusive,
        pid,
        device,
        inode,
        range,
        blocked: Vec::new(),
        holders: Vec::new(),
        is_cut: false,
    };
    Some((depth, lock))
}

/// The locks of `/proc/locks`. Lines that make no sense are left out, and with a lock those who wait for it.
pub(super) fn parse(text: &str) -> Vec<FileLockFact> {
    let mut locks: Vec<FileLockFact> = Vec::new();
    let mut holder: Option<(&str, FileLockFact)> = None;
    for line in text.lines() {
        let number = line.split(':').next().unwrap_or_default();
        match (parse_line(line), &mut holder) {
            (Some((0, lock)), holder) => locks.extend(holder.replace((number, lock)).map(|(_, lock)| lock)),
            (Some((depth, request)), Some((of, lock))) if *of == number && request.inode == lock.inode => {
                let (pid, range) = (request.pid, request.range);
                lock.blocked.push(BlockedLock { pid, range, is_first: depth == 1 });
            }
            (Some(_), _) => {}
            (None, holder) if !line.contains("->") => locks.extend(holder.take().map(|(_, lock)| lock)),
            (None, _) => {}
        }
    }
    locks.extend(holder.map(|(_, lock)| lock));
    locks
}

/// The locks that these wait for. Who holds a lock that belongs to an open file description is looked for in the process
/// that took it, then in `among`.
pub fn file_locks(
    waiters: &[LockWaiter],
    among: &[ProcessId],
    until: Instant,
    lost: &mut BTreeMap<String, u64>,
) -> Vec<FileLockFact> {
    let mut count = |reason: &str| *lost.entry(format!("file_lock: {reason}")).or_default() += 1;
    let is_wanted = |lock: &FileLockFact| {
        let asks = |pid: Pid| lock.blocked.iter().any(|request| request.pid == Some(pid));
        waiters.iter().any(|waiter| waiter.inode.map_or_else(|| asks(waiter.pid), |inode| inode == lock.inode))
    };
    let mut locks = Vec::new();
    let mut queued = 0;
    for number in 0..LISTINGS {
        let (mut listed, is_one_moment) = match read_list() {
            Ok((text, is_whole)) => {
                if number == 0 && !is_whole {
                    count("list too long");
                }
                (parse(&text), text.len() < ONE_MOMENT)
            }
            Err(error) => {
                count(&errno_name(&error));
                break;
            }
        };
        listed.retain(is_wanted);
        keep_first(&mut listed);
        let found = waiting(&listed, waiters);
        // Requests at network file systems, and those of other PID namespaces, are in no list.
        let is_all = is_one_moment || number > 0 && found <= queued;
        if number == 0 || found > queued {
            (locks, queued) = (listed, found);
        }
        if is_all || queued >= waiters.len() || Instant::now() > until {
            break;
        }
    }
    locks.sort_by_key(|lock| lock.blocked.is_empty());
    locks.truncate(MAX_LOCKS);

    let names: BTreeSet<&str> = waiters.iter().filter_map(|waiter| file_name(waiter.path.as_deref()?)).collect();
    let mut seen: BTreeMap<Pid, Result<Vec<FileLockFact>, String>> = BTreeMap::new();
    for lock in locks.iter_mut().filter(|lock| lock.kind == FileLockKind::Flock) {
        let Some(pid) = lock.pid else { continue };
        match seen.entry(pid).or_insert_with(|| held_by(pid, &names, until)) {
            Ok(held) if held.iter().any(|other| is_same(lock, other)) => lock.holders.push(pid),
            // Who took it has no such lock any more: one that inherited it does.
            Ok(_) => lock.pid = None,
            Err(reason) if reason == "ENOENT" || reason == "ESRCH" => lock.pid = None,
            Err(reason) => count(reason),
        }
    }
    let is_open = |lock: &FileLockFact| lock.kind != FileLockKind::Posix && lock.pid.is_none();
    let is_listed = |waiter: &LockWaiter| locks.iter().any(|lock| waiter.inode == Some(lock.inode));
    if !locks.iter().any(is_open) && waiters.iter().all(is_listed) {
        return locks;
    }
    for process in among {
        if Instant::now() > until {
            count("deadline");
            locks.iter_mut().filter(|lock| is_open(lock)).for_each(|lock| lock.is_cut = true);
            break;
        }
        let held = seen.remove(&process.pid).unwrap_or_else(|| held_by(process.pid, &names, until));
        let Ok(held) = held.inspect_err(|reason| count(reason)) else { continue };
        if held.is_empty() || identity(*process) != Identity::Same {
            continue;
        }
        for found in held.into_iter().filter(|lock| lock.kind != FileLockKind::Posix && is_wanted(lock)) {
            match locks.iter_mut().find(|lock| is_same(lock, &found)) {
                Some(lock) if lock.pid.is_none() && !lock.holders.contains(&process.pid) => {
                    lock.holders.push(process.pid);
                }
                Some(_) => {}
                // A lock whose taker is gone is not listed outside of the initial PID namespace.
                None => locks.push(FileLockFact { pid: None, holders: vec![process.pid], ..found }),
            }
        }
    }
    locks
}

/// How many of these the list has as waiting. A request for an open file description's lock names no process: there are as many of
/// them as threads that wait for one.
fn waiting(locks: &[FileLockFact], waiters: &[LockWaiter]) -> usize {
    let mut named: BTreeSet<(Option<u64>, Pid)> = BTreeSet::new();
    let mut nameless: BTreeMap<u64, usize> = BTreeMap::new();
    for lock in locks {
        for request in &lock.blocked {
            match request.pid {
                Some(pid) => named.extend([(Some(lock.inode), pid), (None, pid)]),
                None => *nameless.entry(lock.inode).or_default() += 1,
            }
        }
    }
    let found = waiters.iter().filter(|waiter| named.contains(&(waiter.inode, waiter.pid))).count();
    let files: BTreeSet<u64> = waiters.iter().filter_map(|waiter| waiter.inode).collect();
    found + files.iter().filter_map(|inode| nameless.get(inode)).sum::<usize>()
}

/// `/proc/locks`, and whether that is all of it. What the kernel puts into one page of its own it lists at one moment; between
/// two such pieces locks that come and go shift the others, which are then left out or listed twice. So all of the page is
/// asked for at once.
fn read_list() -> std::io::Result<(String, bool)> {
    let mut list = std::fs::File::open("/proc/locks")?.take(MAX_LIST);
    let mut bytes = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        match list.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let is_whole = (bytes.len() as u64) < MAX_LIST;
    Ok((String::from_utf8_lossy(&bytes).into_owned(), is_whole))
}

/// Leaves out what the list has twice: a lock that came in between two pieces moves one that was listed before it to behind it.
fn keep_first(locks: &mut Vec<FileLockFact>) {
    let mut kept: Vec<FileLockFact> = Vec::new();
    let mut places: BTreeMap<_, usize> = BTreeMap::new();
    for lock in locks.drain(..) {
        let LockRange { start, end } = lock.range;
        let key = (lock.kind, lock.exclusive, lock.pid, lock.device, lock.inode, start, end);
        let place = *places.entry(key).or_insert(kept.len());
        match kept.get_mut(place) {
            Some(known) if known.blocked.is_empty() => known.blocked = lock.blocked,
            Some(_) => {}
            None => kept.push(lock),
        }
    }
    *locks = kept;
}

fn is_same(a: &FileLockFact, b: &FileLockFact) -> bool {
    (a.kind, a.device, a.inode, a.range, a.exclusive) == (b.kind, b.device, b.inode, b.range, b.exclusive)
}

/// The last part of a path; what is mounted where may differ between processes.
fn file_name(path: &str) -> Option<&str> {
    let is_device = path.starts_with("/dev/") && !path.starts_with("/dev/shm/");
    (path.starts_with('/') && !is_device).then(|| base_name(path))
}

/// The locks that a process holds through descriptors of files with these names.
fn held_by(pid: Pid, names: &BTreeSet<&str>, until: Instant) -> Result<Vec<FileLockFact>, String> {
    let mut held = Vec::new();
    let mut any = false;
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(|e| errno_name(&e))?;
    for (n, entry) in entries.take(MAX_FDS).enumerate() {
        if n % 256 == 255 && Instant::now() > until {
            return Err("deadline".into());
        }
        any = true;
        let Ok(entry) = entry else { continue };
        // Plain files only: `fdinfo` of an epoll instance, or of a driver, may block.
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if !target.to_str().and_then(file_name).is_some_and(|name| names.contains(name)) {
            continue;
        }
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(info) = read_bounded(Path::new(&format!("/proc/{pid}/fdinfo/{fd}")), MAX_INFO) else { continue };
        let info = String::from_utf8_lossy(&info);
        held.extend(info.lines().filter_map(|line| Some(parse_line(line.strip_prefix("lock:")?)?.1)));
    }
    // The table of a main thread that has ended is empty, though its process lives.
    if any { Ok(held) } else { Err("no descriptors".into()) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;

    #[test]
    fn locks_and_those_who_wait() {
        let text = "1: FLOCK  ADVISORY  WRITE 708 00:13:1170 0 EOF\n\
            1: -> FLOCK  ADVISORY  WRITE 709 00:13:1170 0 EOF\n\
            1:  -> FLOCK  ADVISORY  READ  710 00:13:1170 0 EOF\n\
            2: POSIX  ADVISORY  READ  42 fd:01:18446744073709551615 128 135\n\
            3: LEASE  ACTIVE    READ  42 fd:01:9 0 EOF\n\
            3: -> LEASE  ACTIVE    READ  43 fd:01:9 0 EOF\n\
            4: OFDLCK ADVISORY  WRITE -1 fd:01:9 0 99\n\
            4: -> OFDLCK ADVISORY  WRITE -1 fd:01:9 10 19\n\
            5: FLOCK  ADVISORY  WRITE 0 00:13:8 0 EOF\n";
        let locks = parse(text);
        let brief: Vec<_> = locks.iter().map(|l| (l.kind, l.exclusive, l.pid, l.inode)).collect();
        use FileLockKind::{Flock, Ofd, Posix};
        assert_eq!(
            brief,
            [
                (Flock, true, Some(708), 1170),
                (Posix, false, Some(42), u64::MAX),
                (Ofd, true, None, 9),
                (Flock, true, None, 8)
            ]
        );
        let queue: Vec<_> = locks[0].blocked.iter().map(|b| (b.pid, b.is_first)).collect();
        assert_eq!(queue, [(Some(709), true), (Some(710), false)]);
        assert_eq!((locks[1].device, locks[1].range), ((0xfd, 1), LockRange { start: 128, end: Some(135) }));
        assert_eq!(locks[2].blocked[0].range, LockRange { start: 10, end: Some(19) });
        assert_eq!((locks[2].blocked[0].pid, locks[2].blocked.len()), (None, 1));
    }

    #[test]
    fn a_lock_that_is_listed_twice_is_one() {
        let text = "1: OFDLCK ADVISORY  WRITE -1 fd:01:9 0 99\n\
            2: OFDLCK ADVISORY  WRITE -1 fd:01:9 100 199\n\
            3: OFDLCK ADVISORY  WRITE -1 fd:01:9 100 199\n\
            3: -> OFDLCK ADVISORY  WRITE -1 fd:01:9 150 159\n\
            4: FLOCK  ADVISORY  READ 7 fd:01:9 0 EOF\n\
            5: FLOCK  ADVISORY  READ 8 fd:01:9 0 EOF\n";
        let mut locks = parse(text);
        keep_first(&mut locks);
        let brief: Vec<_> = locks.iter().map(|l| (l.range.start, l.pid, l.blocked.len())).collect();
        assert_eq!(brief, [(0, None, 0), (100, None, 1), (0, Some(7), 0), (0, Some(8), 0)]);
    }

    #[test]
    fn hostile_lines_are_left_out() {
        let good = "7: FLOCK  ADVISORY  WRITE 708 00:13:1170 0 EOF";
        for cut in 0..good.len() - 3 {
            assert!(parse(&good[..cut]).is_empty(), "{}", &good[..cut]);
        }
        for broken in [
            "",
            ":",
            "->",
            "1: ->",
            "1: x -> FLOCK ADVISORY WRITE 1 0:0:1 0 EOF",
            "x: FLOCK ADVISORY WRITE 1 0:0:1 0 EOF",
            "1: -> FLOCK ADVISORY WRITE 1 0:0:1 0 EOF",
            "1: FLOCK ADVISORY WRITE 99999999999999999999 0:0:1 0 EOF",
            "1: FLOCK ADVISORY WRITE 1 0:0:99999999999999999999 0 EOF",
            "1: FLOCK ADVISORY WRITE 1 zz:0:1 0 EOF",
            "1: FLOCK ADVISORY WRITE 1 0:0 0 EOF",
            "1: FLOCK ADVISORY WRITE 1 <none>:0 0 EOF",
            "1: FLOCK ADVISORY WRITE 1 0:0:1 -5 EOF",
            "1: FLOCK ADVISORY UNLCK 1 0:0:1 0 EOF",
            "1: POSIX *NOINODE* ADVISORY WRITE 1 0:0:1 0 EOF",
            "\u{0}\u{7f}: é -> é",
        ] {
            assert!(parse(broken).is_empty(), "{broken}");
        }
        // A request under a line that was not understood belongs to nobody.
        let text =
            format!("{good}\n8: NEW ADVISORY WRITE 1 0:0:1 0 EOF\n8: -> FLOCK ADVISORY WRITE 5 00:13:1170 0 EOF\n");
        assert_eq!(parse(&text).first().unwrap().blocked, []);
    }
}
