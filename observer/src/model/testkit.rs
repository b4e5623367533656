//! Rows and facts made by hand, for the tests of `model` and `detect`.

use crate::census::{Census, Clocks, Pid, ProcessId, SyscallInProgress, ThreadRow, row::state};
use crate::proc::{
    Facts, Frame, GoState, Goroutine, GoroutineGroup, Goroutines, Libc, MemoryFact, ProcessFacts, ProcessTasks, Stack,
    StackEnd, Task, TaskGroup, TaskState, ThreadFacts,
};
use std::sync::Arc;

/// One second, nanoseconds.
pub(crate) const S: u64 = 1_000_000_000;

/// A process.
pub(crate) fn process(pid: Pid) -> ProcessId {
    ProcessId { pid, start_ns: 10_000_000 * u64::from(pid) }
}

/// A thread asleep since second 90, in no system call.
pub(crate) fn row(pid: Pid, tid: Pid) -> ThreadRow {
    ThreadRow {
        tid,
        process: process(pid),
        initial: (tid, pid),
        own: (tid, pid),
        pidns: 1,
        ppid: 1,
        tracer: 0,
        comm: format!("t{tid}"),
        state: state::INTERRUPTIBLE,
        exit_state: 0,
        flags: 0,
        jobctl: 0,
        compat: false,
        on_cpu: false,
        start_ns: 10_000_000 * u64::from(tid),
        nvcsw: 5,
        nivcsw: 1,
        cpu_ns: 1000,
        off_cpu_since_ns: Some(90 * S),
        queued_since_ns: None,
        syscall: None,
        registers: None,
        cgroup_id: 0,
        blocker: 0,
        blocker_tid: 0,
        blocker_flags: 0,
    }
}

/// The same thread in a system call.
pub(crate) fn with_syscall(mut row: ThreadRow, number: u32, args: [u64; 6]) -> ThreadRow {
    row.syscall = Some(SyscallInProgress { number, args });
    row
}

/// A thread in `pthread_mutex_lock` of the mutex at `addr`.
pub(crate) fn in_mutex(pid: Pid, tid: Pid, addr: u64) -> ThreadRow {
    with_syscall(row(pid, tid), 202, [addr, 0x80, 2, 0, 0, 0])
}

/// A `pthread_mutex_t` of glibc.
pub(crate) fn mutex_bytes(word: u32, count: u32, owner: u32, users: u32, kind: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = [word, count, owner, users, kind].into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.resize(40, 0);
    bytes
}

/// A census at a second, on a clock that is 1,790,000,000 s behind the time of day.
pub(crate) fn census(at_s: u64, mut rows: Vec<ThreadRow>) -> Census {
    rows.sort_by_key(|row| row.tid);
    let clocks = Clocks { mono_ns: at_s * S, boot_ns: at_s * S, real_ns: (1_790_000_000 + at_s) * S };
    Census { clocks, took_ns: 1, kernel_ns: 1, rows, lost: Default::default() }
}

/// The bytes around a thread's futex word, read right after the census of its row.
pub(crate) fn thread_facts(row: &ThreadRow, bytes: Vec<u8>) -> ThreadFacts {
    ThreadFacts {
        tid: row.tid,
        process: row.process,
        switches: crate::model::switches(row),
        taken_ns: 0,
        memory: vec![MemoryFact { addr: row.syscall.map_or(0, |s| s.args[0]), bytes, error: None }],
        fd: None,
        far_end: None,
        members: Vec::new(),
        members_cut: 0,
        kernel_stack: Vec::new(),
    }
}

/// Facts about threads of glibc processes.
pub(crate) fn facts(threads: Vec<ThreadFacts>) -> Facts {
    let processes = threads
        .iter()
        .map(|thread| ProcessFacts {
            process: thread.process,
            comm: String::new(),
            exe: None,
            cmdline: Vec::new(),
            cgroup: None,
            container: None,
            pod: None,
            runtime: "native".to_owned(),
            libc: Libc::Glibc,
            missing: Vec::new(),
        })
        .collect();
    Facts { threads, processes, ..Facts::default() }
}

/// Parked goroutines with these numbers and frames, innermost first, started by `main.serve`.
pub(crate) fn go_group(reason: &str, functions: &[&str], goids: std::ops::Range<u64>) -> GoroutineGroup {
    let frame = |(line, function): (u32, &&str)| Frame {
        function: Some((*function).to_owned()),
        file: Some("/src/main.go".to_owned()),
        line: Some(line),
        ..Frame::default()
    };
    let frames = (10..).zip(functions).map(frame).collect();
    let member =
        |goid| Goroutine { goid, g: 0xc000 + goid, pc: 0x4000, sp: 0x9000, stack_bytes: 2048, ..Goroutine::default() };
    GoroutineGroup {
        state: GoState::Waiting,
        reason: reason.to_owned(),
        stack: Arc::new(Stack { frames, end: StackEnd::Root }),
        created_by: Some(("main.serve".to_owned(), "/src/main.go".to_owned(), 99)),
        function: functions.last().map(|name| (*name).to_owned()),
        is_system: false,
        members: goids.map(member).collect(),
    }
}

/// A reading of the goroutines of a process at a second.
pub(crate) fn goroutines(pid: Pid, at_s: u64, groups: Vec<GoroutineGroup>) -> Goroutines {
    let mut all = Goroutines::missing(process(pid), "");
    (all.missing, all.version, all.taken_ns, all.groups) = (None, "go1.24.3".to_owned(), at_s * S, groups);
    all
}

/// A type of tasks with the ids and states of its tasks.
pub(crate) type OfType<'a> = (&'a str, &'a [(u64, TaskState)]);

/// A reading of the tasks of a process at a second: types with the ids and states of their tasks.
pub(crate) fn tasks(pid: Pid, at_s: u64, groups: &[OfType<'_>]) -> ProcessTasks {
    let group = |(number, (future, members)): (u64, &OfType<'_>)| TaskGroup {
        future: Some((*future).to_owned()),
        shared: false,
        vtable: 0x5000 + number * 0x100,
        module: "/opt/server".to_owned(),
        poll: 0x1000 + number * 0x100,
        function: None,
        bytes: 0x180,
        members: members
            .iter()
            .map(|(id, state)| Task {
                id: *id,
                address: 0x7f00_0000_0000 + id * 0x200,
                state: *state,
                cancelled: false,
            })
            .collect(),
    };
    let groups = (0..).zip(groups).map(group).collect();
    ProcessTasks { taken_ns: at_s * S, types: 2, groups, ..ProcessTasks::new(process(pid)) }
}
