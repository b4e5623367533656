//! The census: `iter/task` programs that write one record per thread.
//!
//! The whole pass runs in the context of the thread that reads the iterator; nothing is attached to
//! any path of the observed processes.

use crate::kernel::{Btf, Raw, STACK_SIZE, USER_CS, USER32_CS, Upid, Word, off};
use crate::maps::{GENERATION, SETTLED};
use aya_ebpf::bindings::{seq_file, task_struct};
use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_ktime_get_ns, bpf_seq_write, bpf_task_pt_regs};
use observer_ebpf::{
    BLOCKER_MUTEX, BLOCKER_SEMAPHORE, CensusHead, CensusTail, RECORD_HEAD, RECORD_SETTLED, RECORD_TAIL, RECORD_TASK,
    RecordPrefix, SETTLED_PASSES, SETTLED_SLOTS, Settled, SettledRecord, TASK_COMPAT, TASK_REGS, TASK_STINT,
    TaskRecord,
};

/// `PF_KTHREAD | PF_USER_WORKER | PF_IO_WORKER`: threads without user registers.
const NO_USER_REGISTERS: u32 = 0x20_0000 | 0x4000 | 0x10;
/// `TASK_INTERRUPTIBLE`.
const INTERRUPTIBLE: u32 = 1;
/// `TASK_UNINTERRUPTIBLE`.
const UNINTERRUPTIBLE: u32 = 2;
/// `TASK_NOLOAD`: an idle kernel thread.
const NOLOAD: u32 = 0x400;
/// `TS_COMPAT` of `thread_info.status`.
const TS_COMPAT: u32 = 2;

/// `struct bpf_iter_meta`.
#[repr(C)]
pub(super) struct IterMeta {
    pub(super) seq: *mut seq_file,
    session_id: u64,
    pub(super) seq_num: u64,
}

/// `struct bpf_iter__task`.
#[repr(C)]
pub(super) struct IterTask {
    pub(super) meta: *const IterMeta,
    pub(super) task: *mut task_struct,
}

// One thread reads an iterator at a time, so these need no read-modify-write.

/// Depth of the reader's PID namespace, set by the head of each pass.
pub(super) static VIEW_LEVEL: Word = Word::new();
/// Inode number of the initial PID namespace.
static INITIAL_INUM: Word = Word::new();
static WRITTEN: Word = Word::new();
/// Passes since load.
static PASSES: Word = Word::new();
static FAULTS: Word = Word::new();

/// One pass with argument registers (`bpf_task_pt_regs`, kernel >= 5.15).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn census(ctx: *mut IterTask) -> i32 {
    pass::<true>(ctx)
}

/// One pass that finds the argument registers on the threads' kernel stacks (kernel 5.8 to 5.14).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn census_by_stack(ctx: *mut IterTask) -> i32 {
    pass::<false>(ctx)
}

#[inline(always)]
fn pass<const HELPER: bool>(ctx: *mut IterTask) -> i32 {
    // SAFETY: the kernel passes a valid context, and `meta` is never null.
    let meta = unsafe { (*ctx).meta };
    // SAFETY: as above.
    let seq = unsafe { (*meta).seq };
    // SAFETY: as above.
    let seq_num = unsafe { (*meta).seq_num };
    // SAFETY: as above.
    let task = unsafe { (*ctx).task };
    let Some(task) = Btf::new(task) else {
        tail(seq, seq_num);
        return 0;
    };
    if seq_num == 0 {
        head(seq);
    }
    one::<HELPER>(seq, task);
    0
}

/// Writes one record; false when the buffer is full (the kernel then drains it and calls again).
#[inline(always)]
pub(super) fn write<T>(seq: *mut seq_file, record: &T) -> bool {
    // SAFETY: `record` is `size_of::<T>()` initialised bytes without padding.
    unsafe { bpf_seq_write(seq, core::ptr::from_ref(record).cast(), size_of::<T>() as u32) == 0 }
}

#[inline(always)]
pub(super) const fn prefix<T>(kind: u32) -> RecordPrefix {
    RecordPrefix { kind, len: size_of::<T>() as u32 }
}

#[inline(always)]
fn head(seq: *mut seq_file) {
    let reader = Raw::current_task();
    let mut level = 0u32;
    if let Some(pid) = reader.follow(off!(task_thread_pid)) {
        level = pid.get(off!(pid_level));
        if let Some(upid) = Upid::at(pid, 0) {
            INITIAL_INUM.set(u64::from(upid.inum()));
        }
    }
    VIEW_LEVEL.set(u64::from(level));
    WRITTEN.set(0);
    PASSES.set(PASSES.get() + 1);
    FAULTS.set(0);
    let head = CensusHead {
        prefix: prefix::<CensusHead>(RECORD_HEAD),
        // SAFETY: the helper has no preconditions.
        mono_ns: unsafe { bpf_ktime_get_ns() },
        // SAFETY: the helper has no preconditions.
        boot_ns: unsafe { bpf_ktime_get_boot_ns() },
        reader_last_arrival: reader.get(off!(task_last_arrival)),
        reader_tid: reader.get(off!(task_pid)),
        view_level: level,
    };
    write(seq, &head);
}

#[inline(always)]
fn tail(seq: *mut seq_file, visited: u64) {
    let tail =
        CensusTail { prefix: prefix::<CensusTail>(RECORD_TAIL), visited, written: WRITTEN.get(), faults: FAULTS.get() };
    write(seq, &tail);
}

/// A thread's ids as seen from three places.
pub(super) struct Ids {
    pub(super) view: u32,
    own: u32,
    inum: u32,
}

/// The ids of `struct pid`, most of them without a copy: a thread of the initial namespace has but one.
#[inline(always)]
pub(super) fn ids(pid: Option<Btf>, initial: u32, view_level: u32, want_inum: bool) -> Ids {
    let initial_inum = INITIAL_INUM.get() as u32;
    let outside = if view_level == 0 { initial } else { 0 };
    let Some(pid) = pid else {
        return Ids { view: outside, own: initial, inum: 0 };
    };
    let level = pid.u32(off!(pid_level));
    if level == 0 {
        return Ids { view: outside, own: initial, inum: initial_inum };
    }
    let Some(own) = Upid::at(pid.raw(), level) else {
        FAULTS.set(FAULTS.get() + 1);
        return Ids { view: outside, own: initial, inum: 0 };
    };
    let view = if view_level == 0 {
        initial
    } else if view_level == level {
        own.nr
    } else if view_level < level {
        match Upid::at(pid.raw(), view_level) {
            Some(upid) => upid.nr,
            None => 0,
        }
    } else {
        0
    };
    Ids { view, own: own.nr, inum: if want_inum { own.inum() } else { 0 } }
}

/// The id of another process in the reader's namespace, 0 outside it.
#[inline(always)]
fn view_of(leader: Btf, view_level: u32) -> u32 {
    let initial = leader.u32(off!(task_tgid));
    if view_level == 0 {
        return initial;
    }
    let Some(pid) = leader.follow(off!(task_thread_pid)) else {
        return 0;
    };
    if view_level > pid.u32(off!(pid_level)) {
        return 0;
    }
    match Upid::at(pid.raw(), view_level) {
        Some(upid) => upid.nr,
        None => 0,
    }
}

#[inline(always)]
fn cgroup_id(task: Btf) -> u64 {
    let Some(set) = task.follow(off!(task_cgroups)) else {
        return 0;
    };
    let Some(cgroup) = set.follow(off!(css_set_dfl_cgrp)) else {
        return 0;
    };
    let Some(node) = cgroup.follow(off!(cgroup_kn)) else {
        return 0;
    };
    node.u64(off!(kernfs_node_id))
}

/// What a lock's owner word holds beside the address of a task, which is aligned to more than that.
const OWNER_FLAGS: u64 = 7;

/// Who has the lock that a sleeper is blocked on, as the lock says, and the flags of that word. The task may be gone:
/// every read is a guarded copy.
#[inline(always)]
fn holder(blocker: u64) -> (u32, u32) {
    let lock = Raw::new((blocker & !3) as *const u8);
    let word: u64 = match blocker & 3 {
        BLOCKER_MUTEX => lock.get(off!(mutex_owner)),
        BLOCKER_SEMAPHORE => lock.get(off!(semaphore_last_holder)),
        _ => lock.get(off!(rwsem_owner)),
    };
    if word & !OWNER_FLAGS == 0 {
        return (0, 0);
    }
    let owner = Raw::new((word & !OWNER_FLAGS) as *const u8);
    (owner.get(off!(task_pid)), (word & OWNER_FLAGS) as u32)
}

/// `SCHED_NORMAL`, `SCHED_BATCH`, `SCHED_IDLE`: the fair class, which keeps `prev_sum_exec_runtime`.
#[inline(always)]
fn is_fair(policy: u32) -> bool {
    policy == 0 || policy == 3 || policy == 5
}

#[inline(always)]
fn one<const HELPER: bool>(seq: *mut seq_file, task: Btf) {
    let tid = task.u32(off!(task_pid));
    if is_settled(task, tid) {
        if write(seq, &settled(tid)) {
            WRITTEN.set(WRITTEN.get() + 1);
        }
        return;
    }
    let view_level = VIEW_LEVEL.get() as u32;
    let tgid = task.u32(off!(task_tgid));
    let flags = task.u32(off!(task_flags));
    let policy = task.u32(off!(task_policy));
    let state = task.u32(off!(task_state));
    let leader = task.follow(off!(task_group_leader));

    let thread = ids(task.follow(off!(task_thread_pid)), tid, view_level, true);
    let (view_tgid, own_tgid) = if tid == tgid {
        (thread.view, thread.own)
    } else {
        let leader_pid = match leader {
            Some(leader) => leader.follow(off!(task_thread_pid)),
            None => None,
        };
        let process = ids(leader_pid, tgid, view_level, false);
        (process.view, process.own)
    };

    let mut view_ppid = 0;
    if let Some(parent) = task.follow(off!(task_real_parent)) {
        if view_level == 0 {
            view_ppid = parent.u32(off!(task_tgid));
        } else if let Some(leader) = parent.follow(off!(task_group_leader)) {
            view_ppid = view_of(leader, view_level);
        }
    }
    let mut view_tracer = 0;
    if task.u32(off!(task_ptrace)) != 0
        && let Some(parent) = task.follow(off!(task_parent))
        && let Some(leader) = parent.follow(off!(task_group_leader))
    {
        view_tracer = view_of(leader, view_level);
    }

    let mut bits = 0;
    let cpu_ns = task.u64(off!(task_sum_exec_runtime));
    let mut stint_ns = 0;
    if is_fair(policy) && off!(task_prev_sum_exec_runtime) != observer_ebpf::ABSENT {
        let before = task.u64(off!(task_prev_sum_exec_runtime));
        if cpu_ns >= before {
            stint_ns = cpu_ns - before;
            bits |= TASK_STINT;
        }
    }

    // A cache line of its own, and only an uninterruptible sleeper has one.
    let blocker = if state & UNINTERRUPTIBLE != 0 { task.u64(off!(task_blocker)) } else { 0 };
    let (blocker_tid, blocker_flags) = if blocker != 0 { holder(blocker) } else { (0, 0) };

    let comm = off!(task_comm);
    let comm = [task.u64(comm), task.u64(comm.wrapping_add(8))];
    let mut record = TaskRecord {
        prefix: prefix::<TaskRecord>(RECORD_TASK),
        tid,
        tgid,
        view_tid: thread.view,
        view_tgid,
        own_tid: thread.own,
        own_tgid,
        pidns: thread.inum,
        view_ppid,
        view_tracer,
        state,
        exit_state: task.u32(off!(task_exit_state)),
        flags,
        bits,
        policy,
        jobctl: task.u32(off!(task_jobctl)),
        on_cpu: task.u32(off!(task_on_cpu)),
        start_boot_ns: task.u64(off!(task_start_boottime)),
        process_start_boot_ns: match leader {
            Some(leader) => leader.u64(off!(task_start_boottime)),
            None => 0,
        },
        nvcsw: task.u64(off!(task_nvcsw)),
        nivcsw: task.u64(off!(task_nivcsw)),
        last_arrival: task.u64(off!(task_last_arrival)),
        last_queued: task.u64(off!(task_last_queued)),
        cpu_ns,
        stint_ns,
        syscall: -1,
        args: [0; 6],
        ip: 0,
        sp: 0,
        bp: 0,
        cgroup_id: cgroup_id(task),
        blocker,
        blocker_tid,
        blocker_flags,
        // SAFETY: sixteen bytes either way.
        comm: unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(comm) },
    };
    if flags & NO_USER_REGISTERS == 0 {
        if HELPER {
            // SAFETY: the helper wants a task pointer that the verifier trusts, which this is.
            if let Some(regs) = Btf::new(unsafe { bpf_task_pt_regs(task.as_ptr()) } as *const u8) {
                registers(task, &mut record, |offset| regs.u64(offset));
            }
        } else if let Some(regs) = top_of_stack(task) {
            registers(task, &mut record, |offset| regs.get(offset));
        }
    }
    if write(seq, &record) {
        WRITTEN.set(WRITTEN.get() + 1);
    } else if let Some(slot) = SETTLED.get_ptr_mut(tid & (SETTLED_SLOTS - 1)) {
        // The buffer is full, the kernel drains it and comes again: only what has been written is known.
        // SAFETY: a live map value; one thread reads an iterator at a time.
        unsafe { (*slot).tid = 0 };
    }
}

/// Whether an earlier pass has written a thread as it is now; if not, it is remembered as it is now. Only of sleepers that
/// nobody else touches: such a thread changes nothing until it is switched in. One that runs, is runnable, stopped, in D
/// state or about to end is written whole.
#[inline(always)]
fn is_settled(task: Btf, tid: u32) -> bool {
    let generation = match GENERATION.get(0) {
        Some(generation) => *generation,
        None => 0,
    };
    let state = task.u32(off!(task_state));
    let sleeps = state & INTERRUPTIBLE != 0 || state & NOLOAD != 0;
    // With the state of a sleeper and still on a CPU: on its way to sleep, after something new.
    if generation == 0 || !sleeps || task.u32(off!(task_on_cpu)) != 0 {
        return false;
    }
    let Some(slot) = SETTLED.get_ptr_mut(tid & (SETTLED_SLOTS - 1)) else {
        return false;
    };
    let start_boot_ns = task.u64(off!(task_start_boottime));
    let switches = task.u64(off!(task_nvcsw)).wrapping_add(task.u64(off!(task_nivcsw)));
    let is_turn = (u64::from(tid) ^ PASSES.get()) & u64::from(SETTLED_PASSES - 1) == 0;
    // SAFETY: a live map value; one thread reads an iterator at a time.
    let known = unsafe { &mut *slot };
    if !is_turn
        && known.tid == tid
        && known.state == state
        && known.start_boot_ns == start_boot_ns
        && known.switches == switches
        && known.generation == generation
    {
        return true;
    }
    *known = Settled { tid, state, start_boot_ns, switches, generation, reserved: 0 };
    false
}

#[inline(always)]
fn settled(tid: u32) -> SettledRecord {
    SettledRecord { prefix: prefix::<SettledRecord>(RECORD_SETTLED), tid, reserved: 0 }
}

/// What `task_pt_regs` computes: the user registers are the last thing on the kernel stack. The code
/// segment proves that they are; under Xen PV or KASAN it is another, and there are none.
#[inline(always)]
fn top_of_stack(task: Btf) -> Option<Raw> {
    let stack = task.u64(off!(task_stack));
    if stack == 0 {
        return None;
    }
    let regs = Raw::new((stack + STACK_SIZE - u64::from(off!(regs_size))) as *const u8);
    let cs = regs.get::<u64>(off!(regs_cs)) & 0xffff;
    if cs == USER_CS || cs == USER32_CS { Some(regs) } else { None }
}

#[inline(always)]
fn registers(task: Btf, record: &mut TaskRecord, read: impl Fn(u32) -> u64) {
    record.bits |= TASK_REGS;
    record.syscall = read(off!(regs_orig_ax)) as i64;
    record.ip = read(off!(regs_ip));
    record.sp = read(off!(regs_sp));
    record.bp = read(off!(regs_bp));
    if task.u32(off!(task_thread_info_status)) & TS_COMPAT != 0 {
        record.bits |= TASK_COMPAT;
        record.syscall = i64::from(record.syscall as i32);
        record.args = [
            read(off!(regs_bx)),
            read(off!(regs_cx)),
            read(off!(regs_dx)),
            read(off!(regs_si)),
            read(off!(regs_di)),
            read(off!(regs_bp)),
        ];
    } else {
        record.args = [
            read(off!(regs_di)),
            read(off!(regs_si)),
            read(off!(regs_dx)),
            read(off!(regs_r10)),
            read(off!(regs_r8)),
            read(off!(regs_r9)),
        ];
    }
}
