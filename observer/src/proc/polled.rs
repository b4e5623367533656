//! Sets of polled descriptors, as the target's memory and `fdinfo` have them: bytes in, descriptors and events out.

use super::fds::{fd_fact, socket_inode};
use super::stat::read_bounded;
use super::{MemberFact, MemoryFact, MemoryRange, PolledSet, memory};
use crate::census::{Pid, ProcessId};
use std::collections::BTreeMap;
use std::path::Path;

/// Members of one set that are listed.
pub(super) const LISTED: usize = 64;
/// Bytes of a `struct pollfd`.
const POLLFD: u64 = 8;
/// Most that is read of one `fd_set`: 65,536 descriptors.
const FD_SET: u64 = 8192;
/// Most of an epoll instance's `fdinfo` that is read.
const MAX_INFO: u64 = 64 << 10;

/// A descriptor of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Polled {
    pub(super) fd: i32,
    /// As poll(2) has them.
    pub(super) events: u32,
    /// Inode of what was added to an epoll instance: the number may mean something else by now.
    pub(super) inode: Option<u64>,
}

/// What the descriptors of a set refer to, and how many are known to be missing.
#[derive(Clone, Debug)]
pub(super) struct Members {
    pub(super) listed: Vec<MemberFact>,
    pub(super) cut: u32,
}

/// A set, and how many of its members are known to be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) members: Vec<Polled>,
    pub(super) cut: u32,
}

/// Reads a set. `None` if its memory cannot be read.
///
/// May block, as whatever reads the target's memory or `fdinfo`: call it on a reader of the [`pool`](super::pool).
pub(super) fn read(process: ProcessId, tid: Pid, set: PolledSet) -> Option<Members> {
    let mut set = match set {
        PolledSet::Epoll { fd } => {
            let path = format!("/proc/{}/task/{tid}/fdinfo/{fd}", process.pid);
            let info = read_bounded(Path::new(&path), MAX_INFO).ok()?;
            epoll(&String::from_utf8_lossy(&info), info.len() as u64 == MAX_INFO)
        }
        PolledSet::Poll { addr, count } => {
            let len = count.saturating_mul(POLLFD).min(u64::from(MemoryRange::MAX_LEN));
            let read = memory::read(process, &[tid], &[MemoryRange { addr, len: u32::try_from(len).ok()? }]);
            poll(count, &read.first().filter(|fact| whole(fact, len))?.bytes)
        }
        PolledSet::Select { count, sets } => {
            // Whole words, as the kernel reads them.
            let len = count.div_ceil(64).saturating_mul(8).min(FD_SET);
            let len = u32::try_from(len).ok()?;
            let wanted: Vec<MemoryRange> =
                sets.iter().filter(|addr| **addr != 0).map(|&addr| MemoryRange { addr, len }).collect();
            let read = memory::read(process, &[tid], &wanted);
            if !read.iter().all(|fact| whole(fact, len.into())) {
                return None;
            }
            let bytes = |addr: u64| read.iter().find(|fact| addr != 0 && fact.addr == addr).map(|f| f.bytes.as_slice());
            select(count, sets.map(bytes))
        }
    };
    if set.members.len() > LISTED {
        set.cut = set.cut.saturating_add(u32::try_from(set.members.len() - LISTED).unwrap_or(u32::MAX));
        set.members.truncate(LISTED);
    }
    let mut members = Vec::new();
    for polled in set.members {
        match fd_fact(process.pid, tid, polled.fd) {
            Ok(fd) if is_same(&fd.target, polled.inode) => {
                members.push(MemberFact { fd, events: polled.events, far_end: None });
            }
            // Closed since, though what it led to is still polled.
            _ => set.cut = set.cut.saturating_add(1),
        }
    }
    Some(Members { listed: members, cut: set.cut })
}

fn whole(fact: &MemoryFact, len: u64) -> bool {
    fact.bytes.len() as u64 == len
}

/// Whether a link leads to the inode that was added to an epoll instance, as far as the link says.
fn is_same(target: &str, inode: Option<u64>) -> bool {
    let pipe = |link: &str| link.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok();
    let of_link: Option<u64> = socket_inode(target).or_else(|| pipe(target));
    of_link.zip(inode).is_none_or(|(a, b)| a == b)
}

/// An array of `struct pollfd`; negative descriptors are ignored, as poll(2) does.
pub(super) fn poll(count: u64, bytes: &[u8]) -> Set {
    let (entries, _) = bytes.as_chunks::<8>();
    let unread = count.saturating_sub(entries.len() as u64);
    let polled = |entry: &[u8; 8]| {
        let [a, b, c, d, e, f, ..] = *entry;
        let (fd, events) = (i32::from_ne_bytes([a, b, c, d]), u32::from(u16::from_ne_bytes([e, f])));
        (fd >= 0).then_some(Polled { fd, events, inode: None })
    };
    Set { members: entries.iter().filter_map(polled).collect(), cut: u32::try_from(unread).unwrap_or(u32::MAX) }
}

/// Three `fd_set`, to read, to write, exceptions: bit N of each is descriptor N.
pub(super) fn select(count: u64, sets: [Option<&[u8]>; 3]) -> Set {
    let mut events: BTreeMap<i32, u32> = BTreeMap::new();
    let mut read = 0;
    for (set, event) in sets.into_iter().zip([libc::POLLIN, libc::POLLOUT, libc::POLLPRI]) {
        let bytes = set.unwrap_or_default();
        read = read.max(bytes.len() as u64 * 8);
        for (n, byte) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte & 1 << bit != 0) {
                let fd = n * 8 + bit;
                if (fd as u64) < count
                    && let Ok(fd) = i32::try_from(fd)
                {
                    *events.entry(fd).or_default() |= u32::from(event.cast_unsigned());
                }
            }
        }
    }
    let any = sets.iter().any(Option::is_some);
    let unread = if any { count.saturating_sub(read) } else { 0 };
    let members = events.into_iter().map(|(fd, events)| Polled { fd, events, inode: None }).collect();
    Set { members, cut: u32::try_from(unread).unwrap_or(u32::MAX) }
}

/// The `tfd:` lines that `fdinfo` has for an epoll instance (`ep_show_fdinfo`, `fs/eventpoll.c`); the last of a text that
/// was cut off is not counted on.
pub(super) fn epoll(info: &str, is_cut: bool) -> Set {
    let mut set = Set { members: Vec::new(), cut: u32::from(is_cut) };
    let whole = if is_cut { info.rsplit_once('\n').map_or("", |(whole, _)| whole) } else { info };
    for line in whole.lines().filter_map(|line| line.strip_prefix("tfd:")) {
        let mut words = line.split_whitespace();
        let fd = words.next().and_then(|word| word.parse().ok());
        let events = words.nth(1).and_then(|word| u32::from_str_radix(word, 16).ok());
        let inode = line.split("ino:").nth(1).and_then(|rest| rest.split_whitespace().next());
        match fd.zip(events) {
            // Above are the flags of epoll_ctl(2): edge-triggered, one shot, …
            Some((fd, events)) => set.members.push(Polled {
                fd,
                events: events & 0xffff,
                inode: inode.and_then(|word| u64::from_str_radix(word, 16).ok()),
            }),
            None => set.cut = set.cut.saturating_add(1),
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(set: &Set) -> (Vec<(i32, u32)>, u32) {
        (set.members.iter().map(|m| (m.fd, m.events)).collect(), set.cut)
    }

    #[test]
    fn arrays_of_poll() {
        let entry = |fd: i32, events: u16| [&fd.to_ne_bytes()[..], &events.to_ne_bytes(), &[0xff; 2]].concat();
        let bytes = [entry(3, 1), entry(-1, 1), entry(5, 5), entry(i32::MIN, 4)].concat();
        assert_eq!(brief(&poll(4, &bytes)), (vec![(3, 1), (5, 5)], 0));
        // An array that is longer than what is read of it, and one that ends in the middle.
        assert_eq!(brief(&poll(1000, &bytes)), (vec![(3, 1), (5, 5)], 996));
        assert_eq!(brief(&poll(2, &bytes[..11])), (vec![(3, 1)], 1));
        assert_eq!(brief(&poll(u64::MAX, &[])), (vec![], u32::MAX));
        assert_eq!(brief(&poll(0, &[])), (vec![], 0));
    }

    #[test]
    fn sets_of_select() {
        let (reads, writes) = ([0b1000_1001_u8, 0, 0, 0, 0, 0, 0, 0x80], [0b1000_u8, 0, 0, 0, 0, 0, 0, 0]);
        let set = select(64, [Some(&reads), Some(&writes), None]);
        assert_eq!(brief(&set), (vec![(0, 1), (3, 5), (7, 1), (63, 1)], 0));
        // Bits above the count are not looked at by the kernel either.
        assert_eq!(brief(&select(4, [Some(&reads), None, Some(&writes)])), (vec![(0, 1), (3, 3)], 0));
        assert_eq!(brief(&select(u64::MAX, [Some(&[0xff]), None, None])).1, u32::MAX);
        assert_eq!(brief(&select(1024, [None; 3])), (vec![], 0));
        let garbage = select(65_536, [Some(&[0xff; 8192]); 3]);
        assert_eq!((garbage.members.len(), garbage.cut), (65_536, 0));
    }

    #[test]
    fn lines_of_epoll() {
        let info = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\n\
            tfd:        4 events:       19 data:     7f3f03276268  pos:0 ino:60f38 sdev:9\n\
            tfd:        5 events: c0002014 data: ffffffffffffffff  pos:0 ino:60f36 sdev:9\n\
            tfd:        6 events: nonsense\ntfd:\ntfd: 99999999999 events: 1\n";
        let set = epoll(info, false);
        assert_eq!(brief(&set), (vec![(4, 0x19), (5, 0x2014)], 3));
        assert_eq!(set.members[0].inode, Some(0x60f38));
        let cut = epoll(&info[..info.len() - 60], true);
        assert_eq!(brief(&cut).0, [(4, 0x19), (5, 0x2014)]);
        assert!(cut.cut >= 1);
        for end in 0..info.len() {
            let set = epoll(&info[..end], true);
            assert!(set.members.len() <= 2 && set.cut >= 1, "{end}");
        }
        assert!(
            is_same("socket:[7]", Some(7)) && is_same("anon_inode:[eventfd]", Some(7)) && is_same("pipe:[7]", None)
        );
        assert!(!is_same("socket:[8]", Some(7)) && !is_same("pipe:[8]", Some(7)));
    }
}
