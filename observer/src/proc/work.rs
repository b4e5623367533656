//! The readers' side of [`Gatherer`](super::Gatherer): the work for one process, and what comes back.

use super::identity::{Program, complete};
use super::memory::{self, unread};
use super::polled::{self, Members};
use super::pool::{Clock, Steps};
use super::sockets::Sockets;
use super::stat::{Identity, identity};
use super::{FdFact, MemoryFact, MemoryRange, PolledSet, ProcessFacts, ThreadFacts, ThreadWant, fds};
use crate::census::{Pid, ProcessId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;

/// What a reader sends back, as soon as it has it: a later step may block.
pub(super) enum Part {
    Process { program: Program, facts: Box<ProcessFacts>, complete: bool },
    Memory { call: u64, wants: Vec<(usize, Vec<MemoryFact>)>, taken_ns: u64 },
    Fd { call: u64, want: usize, fd: Box<Result<FdFact, String>> },
    Set { call: u64, want: usize, set: Option<Members> },
    Done { call: u64, process: ProcessId },
}

/// What a reader is to do for one process.
#[derive(Default)]
pub(super) struct Task {
    pub(super) call: u64,
    pub(super) memory: Vec<(usize, Vec<MemoryRange>)>,
    pub(super) fds: Vec<(usize, Pid, i32)>,
    pub(super) sets: Vec<(usize, Pid, PolledSet)>,
    pub(super) threads: Vec<Pid>,
    pub(super) identity: Option<(Program, ProcessFacts)>,
}

/// On a reader: the work for one process, in the order in which it matters.
pub(super) fn work(process: ProcessId, task: Task, steps: &Steps, sender: Sender<Part>, clock: Clock) {
    /// Says that the work has ended, also when it panics.
    struct Done<'a>(&'a Steps, Sender<Part>, u64, ProcessId);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.finish();
            // Nobody listens any more: observer ends.
            let _ = self.1.send(Part::Done { call: self.2, process: self.3 });
        }
    }
    let done = Done(steps, sender, task.call, process);
    let send = |part| {
        let _ = done.1.send(part);
    };
    if !task.memory.is_empty() {
        steps.begin("memory");
        let ranges: Vec<MemoryRange> = task.memory.iter().flat_map(|(_, ranges)| ranges).copied().collect();
        let taken_ns = clock();
        let mut read = memory::read(process, &task.threads, &ranges).into_iter();
        let wants =
            task.memory.iter().map(|(want, ranges)| (*want, read.by_ref().take(ranges.len()).collect())).collect();
        send(Part::Memory { call: task.call, wants, taken_ns });
    }
    if !task.fds.is_empty() {
        steps.begin("fdinfo");
        let read: Vec<_> = task.fds.iter().map(|&(want, tid, fd)| (want, fds::fd_fact(process.pid, tid, fd))).collect();
        // Afterwards, as for memory.
        let ours = identity(process) == Identity::Same;
        for (want, fd) in read {
            let fd = if ours { fd } else { Err("ESRCH".into()) };
            send(Part::Fd { call: task.call, want, fd: Box::new(fd) });
        }
    }
    if !task.sets.is_empty() {
        steps.begin("polled set");
        // Many threads wait at the same epoll instance.
        let mut read: Vec<(usize, PolledSet, Option<Members>)> = Vec::new();
        for &(want, tid, set) in &task.sets {
            let known = read.iter().find(|(_, other, found)| *other == set && found.is_some());
            let found = known.map_or_else(|| polled::read(process, tid, set), |(.., found)| found.clone());
            read.push((want, set, found));
        }
        let ours = identity(process) == Identity::Same;
        for (want, _, set) in read {
            send(Part::Set { call: task.call, want, set: set.filter(|_| ours) });
        }
    }
    if let Some((program, facts)) = task.identity
        && let Some(facts) = complete(&program, facts, steps)
    {
        send(Part::Process { program, facts: Box::new(facts), complete: true });
    }
}

/// The facts of a want before anything is read.
pub(super) fn not_read(want: &ThreadWant, now_ns: u64) -> ThreadFacts {
    ThreadFacts {
        tid: want.tid,
        process: want.process,
        switches: want.switches,
        taken_ns: now_ns,
        memory: want.memory.iter().map(|r| unread(r.addr, "deadline")).collect(),
        fd: None,
        far_end: None,
        members: Vec::new(),
        members_cut: 0,
        kernel_stack: Vec::new(),
    }
}

/// Marks these wants as not to be had.
pub(super) fn fail(threads: &mut [ThreadFacts], indices: &[usize], reason: &str) {
    for &index in indices {
        for memory in &mut threads[index].memory {
            memory.error = Some(reason.to_owned());
        }
    }
}

/// The sockets behind the descriptors.
pub(super) fn add_sockets(wants: &[ThreadWant], threads: &mut [ThreadFacts], sockets: &mut Sockets) {
    let mut inodes: BTreeMap<Pid, BTreeSet<u64>> = BTreeMap::new();
    let inode = |fd: &FdFact| fds::socket_inode(&fd.target);
    for (want, thread) in wants.iter().zip(threads.iter()) {
        let watched = thread.fd.iter().flat_map(|fd| &fd.watched).map(|socket| socket.inode);
        let members = thread.members.iter().map(|member| &member.fd);
        for inode in thread.fd.iter().chain(members).filter_map(inode).chain(watched) {
            inodes.entry(want.process.pid).or_default().insert(inode);
        }
    }
    for (pid, inodes) in inodes {
        let found = sockets.by_inode(pid, &inodes);
        for thread in threads.iter_mut().filter(|t| t.process.pid == pid) {
            for fd in thread.fd.iter_mut().chain(thread.members.iter_mut().map(|member| &mut member.fd)) {
                let wanted = inode(fd);
                fd.socket = found.iter().find(|s| Some(s.inode) == wanted).cloned();
                for socket in &mut fd.watched {
                    if let Some(known) = found.iter().find(|s| s.inode == socket.inode) {
                        socket.clone_from(known);
                    }
                }
            }
        }
    }
}
