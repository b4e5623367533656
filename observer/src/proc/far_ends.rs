//! Who has the other end of a pipe or a socket open, or who else has an eventfd.
//!
//! No file lists that: the links of every descriptor of every process are read once, and whatever is asked about then is
//! looked up among them. Which way a descriptor works is in the permissions of its link. Links make nobody wait; `fdinfo`,
//! which only the ids of eventfds are taken from, is read on a thread that may be lost. What no descriptor shows is not found: an end on its way through
//! a unix socket, one that io_uring or the kernel itself holds, and tables of their own that threads of a process have.

mod aside;
mod pipe;

use self::aside::{Lookers, aside};
use super::fds::{self, EVENTFD, file_name, socket_inode};
use super::pool::Clock;
use super::sockets::Sockets;
use super::stat::{Identity, errno_name, identity};
use super::{EndHolder, FarEnd, FdFact, SocketFact, ThreadFacts, ThreadWant, Way};
use crate::census::{Pid, ProcessId};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{read_dir, read_link, symlink_metadata};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Descriptors looked at in one process.
const MAX_FDS: usize = 1 << 16;
/// Descriptors remembered of all processes.
const MAX_LINKS: usize = 1 << 20;
/// Descriptors named of one process for one object; it is a holder by the first.
const NAMED: usize = 16;
/// Descriptors named of all processes for one object.
const MAX_HOLDERS: usize = 1024;
/// Threads tried for the table of a process whose first thread has ended.
const THREADS: usize = 4;

/// How long the size of what lies in a pipe may take.
const FOR_PIPE: Duration = Duration::from_millis(20);

/// What a link of `/proc/PID/fd` leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Object {
    Pipe(u64),
    Socket(u64),
    /// One of them; `fdinfo` says which.
    Eventfd,
    /// A file with a name that has this hash: perhaps a FIFO.
    Named(u64),
}

impl Object {
    fn of(link: &[u8]) -> Option<Self> {
        if let Some(name) = file_name(link) {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            return Some(Self::Named(hasher.finish()));
        }
        let link = std::str::from_utf8(link).ok()?;
        if link == EVENTFD {
            return Some(Self::Eventfd);
        }
        socket_inode(link).map(Self::Socket).or_else(|| pipe_inode(link).map(Self::Pipe))
    }
}

/// The inode in `pipe:[123]`.
fn pipe_inode(link: &str) -> Option<u64> {
    link.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
}

/// Descriptors of eventfds, by id.
type ById = HashMap<u64, Vec<EndHolder>>;

/// Every descriptor that was found, by what it leads to.
#[derive(Default)]
struct Index {
    by_object: HashMap<Object, Vec<EndHolder>>,
    links: usize,
    unsearched: u32,
}

/// What was asked about: many threads poll the same descriptors.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    target: String,
    fifo: Option<(u64, u64)>,
    eventfd: Option<u64>,
    way: Way,
}

/// A search at one moment: each process and each network namespace is looked through once, when first needed.
pub struct FarEnds {
    among: Vec<ProcessId>,
    taken_ns: u64,
    clock: Clock,
    limit: Duration,
    until: Option<Instant>,
    index: Option<Index>,
    sockets: Option<Sockets>,
    /// By id; or whose could not be read.
    eventfds: Option<Result<ById, BTreeSet<ProcessId>>>,
    found: HashMap<Key, Option<FarEnd>>,
    took: Duration,
    lost: BTreeMap<String, u64>,
}

impl FarEnds {
    /// A search among these processes, which a census saw at `taken_ns`; those that were forked later are children of a
    /// process that ran since. It ends `limit` after the first question.
    pub fn new(among: Vec<ProcessId>, taken_ns: u64, clock: Clock, limit: Duration) -> Self {
        Self {
            among,
            taken_ns,
            clock,
            limit,
            until: None,
            index: None,
            sockets: None,
            eventfds: None,
            found: HashMap::new(),
            took: Duration::ZERO,
            lost: BTreeMap::new(),
        }
    }

    /// Finds the other ends of what was asked, where `threads` tells what is there.
    pub fn add(&mut self, wants: &[ThreadWant], threads: &mut [ThreadFacts]) {
        let start = Instant::now();
        for (want, thread) in wants.iter().zip(threads) {
            let Some(way) = want.far_end else { continue };
            if let Some(fd) = &thread.fd {
                thread.far_end = self.find(want.process, fd, way);
            }
            for member in &mut thread.members {
                member.far_end = self.find(want.process, &member.fd, way_of_events(member.events));
            }
        }
        self.took += start.elapsed();
    }

    /// What it has cost so far.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// What could not be looked at since the last call, by reason.
    pub fn take_lost(&mut self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.lost)
    }

    /// Who can end a wait at this descriptor of a process; `None` where that cannot be said of this kind of descriptor, or
    /// its other end is on another host.
    fn find(&mut self, process: ProcessId, fact: &FdFact, way: Way) -> Option<FarEnd> {
        let is_pipe = fact.fifo.is_some() || pipe_inode(&fact.target).is_some();
        let way = if is_pipe && way == Way::default() { way_of_access(fact.flags) } else { way };
        let key = Key { target: fact.target.clone(), fifo: fact.fifo, eventfd: fact.eventfd, way };
        if let Some(found) = self.found.get(&key) {
            return found.clone();
        }
        let found = self.search(process, fact, way);
        self.found.insert(key, found.clone());
        found
    }

    fn search(&mut self, process: ProcessId, fact: &FdFact, way: Way) -> Option<FarEnd> {
        let target = fact.target.as_str();
        let (object, found) = if let Some(inode) = pipe_inode(target) {
            (target.to_owned(), self.pipe_ends(Object::Pipe(inode), None, way))
        } else if let Some(fifo) = fact.fifo {
            (target.to_owned(), self.pipe_ends(Object::of(target.as_bytes())?, Some(fifo), way))
        } else if target == EVENTFD {
            let id = fact.eventfd?;
            (format!("eventfd-id {id}"), self.eventfds(id))
        } else {
            let inode = self.peer(process.pid, fact.socket.as_ref()?)?;
            (format!("socket:[{inode}]"), self.candidates(Object::Socket(inode)))
        };
        let (holders, unreadable) = self.verified(found);
        let unsearched = self.index().unsearched.saturating_add(unreadable);
        let pipe = pipe_inode(target).or(fact.fifo.map(|(_, inode)| inode));
        let unread = pipe.zip(holders.first()).and_then(|(inode, holder)| {
            let until = self.until().min(Instant::now() + FOR_PIPE);
            let unread = pipe::unread(*holder, inode, until);
            if unread.is_none() {
                self.lose("pipe: what lies in it");
            }
            unread
        });
        Some(FarEnd { object, holders, unsearched, unread, taken_ns: self.taken_ns })
    }

    /// Inode of the socket that a socket is connected with.
    fn peer(&mut self, pid: Pid, socket: &SocketFact) -> Option<u64> {
        if socket.protocol == "unix" {
            return socket.peer.filter(|peer| *peer != 0);
        }
        if socket.protocol != "tcp" {
            return None;
        }
        let (local, remote) = (socket.local.as_ref()?.parse().ok()?, socket.remote.as_ref()?.parse().ok()?);
        let until = self.until();
        let sockets = self.sockets.get_or_insert_with(|| Sockets::new(self.clock, until));
        sockets.tcp_peer(pid, local, remote, &self.among)
    }

    /// The descriptors of a pipe that work the other way; with a device and inode, of the FIFO that has these.
    fn pipe_ends(&mut self, object: Object, fifo: Option<(u64, u64)>, way: Way) -> Found {
        let mut found = Found::default();
        let mut named: BTreeMap<ProcessId, usize> = BTreeMap::new();
        for end in self.candidates(object).holders {
            let of_process = named.entry(end.process).or_default();
            if *of_process >= NAMED {
                continue;
            }
            if self.is_late() {
                found.unread.insert(end.process);
                continue;
            }
            let link = format!("/proc/{}/fd/{}", end.process.pid, end.fd);
            if fifo.is_some() && fds::fifo(&link) != fifo {
                continue;
            }
            match symlink_metadata(&link) {
                Ok(metadata) if ends(metadata.mode(), way) => {
                    *of_process += 1;
                    found.holders.push(end);
                }
                Ok(_) => {}
                Err(error) => found.miss(end.process, &errno_name(&error)),
            }
        }
        found
    }

    /// Every descriptor of the eventfd with this id.
    fn eventfds(&mut self, id: u64) -> Found {
        if self.eventfds.is_none() {
            let all = self.candidates(Object::Eventfd).holders;
            let read = ids_of(all.clone(), self.until());
            if read.is_none() {
                self.lose("eventfds: deadline");
            }
            self.eventfds = Some(read.ok_or_else(|| all.iter().map(|end| end.process).collect()));
        }
        match &self.eventfds {
            Some(Ok(by_id)) => Found { holders: by_id.get(&id).cloned().unwrap_or_default(), ..Found::default() },
            Some(Err(unread)) => Found { holders: Vec::new(), unread: unread.clone() },
            None => Found::default(),
        }
    }

    fn candidates(&mut self, object: Object) -> Found {
        let holders = self.index().by_object.get(&object).cloned().unwrap_or_default();
        Found { holders, ..Found::default() }
    }

    /// Leaves out what has another owner by now; sorted, with the number of processes that may have it, too.
    fn verified(&mut self, found: Found) -> (Vec<EndHolder>, u32) {
        let Found { mut holders, mut unread } = found;
        holders.sort_unstable();
        if holders.len() > MAX_HOLDERS {
            self.lose("too many holders");
            unread.extend(holders.drain(MAX_HOLDERS..).map(|end| end.process));
        }
        let processes: BTreeSet<ProcessId> = holders.iter().map(|end| end.process).collect();
        let living: BTreeSet<ProcessId> = processes.into_iter().filter(|p| identity(*p) == Identity::Same).collect();
        holders.retain(|end| living.contains(&end.process));
        let unread = unread.into_iter().filter(|process| !living.contains(process)).count();
        (holders, u32::try_from(unread).unwrap_or(u32::MAX))
    }

    fn until(&mut self) -> Instant {
        *self.until.get_or_insert_with(|| Instant::now() + self.limit)
    }

    fn is_late(&mut self) -> bool {
        Instant::now() > self.until()
    }

    fn lose(&mut self, reason: &str) {
        *self.lost.entry(format!("far_ends: {reason}")).or_default() += 1;
    }

    /// The links of all descriptors, read when first asked for.
    fn index(&mut self) -> &Index {
        if self.index.is_none() {
            let until = self.until();
            let among = std::mem::take(&mut self.among);
            let mut index = Index::default();
            for (n, process) in among.iter().enumerate() {
                if Instant::now() > until || index.links >= MAX_LINKS {
                    let left = u32::try_from(among.len() - n).unwrap_or(u32::MAX);
                    index.unsearched = index.unsearched.saturating_add(left);
                    self.lose(if index.links >= MAX_LINKS { "too many descriptors" } else { "deadline" });
                    break;
                }
                match read_links(*process, until, &mut index) {
                    Ok(()) => {}
                    // It has ended.
                    Err(reason) if reason == "ENOENT" || reason == "ESRCH" => {}
                    Err(reason) => {
                        index.unsearched = index.unsearched.saturating_add(1);
                        self.lose(&reason);
                    }
                }
            }
            self.among = among;
            self.index = Some(index);
        }
        self.index.get_or_insert_default()
    }
}

/// Descriptors of one object, and the processes of which some could not be read.
#[derive(Default)]
struct Found {
    holders: Vec<EndHolder>,
    unread: BTreeSet<ProcessId>,
}

impl Found {
    fn miss(&mut self, process: ProcessId, reason: &str) {
        // Closed meanwhile, or the process has ended.
        if reason != "ENOENT" && reason != "ESRCH" {
            self.unread.insert(process);
        }
    }
}

/// Notes where the descriptors of a process lead.
fn read_links(process: ProcessId, until: Instant, index: &mut Index) -> Result<(), String> {
    let pid = process.pid;
    if read_table(&format!("/proc/{pid}/fd"), process, until, index)? > 0 {
        return Ok(());
    }
    // The table of a first thread that has ended is empty, though its process lives.
    let threads = read_dir(format!("/proc/{pid}/task")).map_err(|e| errno_name(&e))?;
    let others = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<Pid>().ok());
    for tid in others.filter(|tid| *tid != pid).take(THREADS) {
        match read_table(&format!("/proc/{pid}/task/{tid}/fd"), process, until, index) {
            Ok(0) => {}
            Ok(_) => return Ok(()),
            Err(reason) if reason == "ENOENT" || reason == "ESRCH" => {}
            Err(reason) => return Err(reason),
        }
    }
    Ok(())
}

/// Reads one table of descriptors; says how many there are.
fn read_table(path: &str, process: ProcessId, until: Instant, index: &mut Index) -> Result<usize, String> {
    let mut seen = 0;
    for entry in read_dir(path).map_err(|e| errno_name(&e))? {
        seen += 1;
        if seen > MAX_FDS || index.links >= MAX_LINKS {
            return Err("too many descriptors".into());
        }
        if seen % 64 == 0 && Instant::now() > until {
            return Err("deadline".into());
        }
        // One that is closed meanwhile is no error.
        let Ok(entry) = entry else { continue };
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let target = match read_link(entry.path()) {
            Ok(target) => target,
            Err(e) if e.raw_os_error() == Some(libc::EACCES) || e.raw_os_error() == Some(libc::EPERM) => {
                return Err(errno_name(&e));
            }
            Err(_) => continue,
        };
        if let Some(object) = Object::of(target.as_os_str().as_bytes()) {
            index.by_object.entry(object).or_default().push(EndHolder { process, fd });
            index.links += 1;
        }
    }
    Ok(seen)
}

/// The descriptors of each eventfd, by its id; `None` if that takes too long: `fdinfo` of what was an eventfd a moment ago
/// may make its reader wait, and a thread that waits there is left behind.
fn ids_of(candidates: Vec<EndHolder>, until: Instant) -> Option<ById> {
    if candidates.is_empty() {
        return Some(ById::new());
    }
    static LOOKERS: Lookers = Lookers::new();
    aside(&LOOKERS, until, move || {
        let mut by_id = ById::new();
        for end in candidates {
            if Instant::now() > until {
                return None;
            }
            // One that is closed meanwhile is no loss.
            if let Some(id) = fds::eventfd_id(end.process.pid, end.fd) {
                by_id.entry(id).or_default().push(end);
            }
        }
        Some(by_id)
    })
}

/// Whether a descriptor whose link has these permissions can end a wait: they are how it was opened (`tid_fd_update_inode`,
/// `fs/proc/fd.c`), and one that only names a file (`O_PATH`) has none.
fn ends(mode: u32, way: Way) -> bool {
    let (can_read, can_write) = (mode & libc::S_IRUSR != 0, mode & libc::S_IWUSR != 0);
    way.reads && can_write || way.writes && can_read
}

/// What a descriptor with these open flags can be polled for: its hang-up, if nothing else.
fn way_of_access(flags: u32) -> Way {
    let access = flags & libc::O_ACCMODE.cast_unsigned();
    Way { reads: access != libc::O_WRONLY.cast_unsigned(), writes: access != libc::O_RDONLY.cast_unsigned() }
}

/// By the bits of poll(2).
fn way_of_events(events: u32) -> Way {
    let has = |bits: &[i16]| bits.iter().any(|bit| events & u32::from(bit.cast_unsigned()) != 0);
    Way {
        reads: has(&[libc::POLLIN, libc::POLLPRI, libc::POLLRDNORM, libc::POLLRDBAND, libc::POLLRDHUP]),
        writes: has(&[libc::POLLOUT, libc::POLLWRNORM, libc::POLLWRBAND]),
    }
}

#[cfg(test)]
mod tests;
