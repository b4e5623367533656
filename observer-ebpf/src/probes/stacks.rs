//! Kernel stacks on demand: an `iter/task` program that answers for the threads in `WANTED`.

use super::census::{IterTask, VIEW_LEVEL, ids, prefix, write};
use crate::kernel::{Btf, Raw, off};
use crate::maps::WANTED;
use aya_ebpf::helpers::generated::bpf_get_task_stack;
use observer_ebpf::{RECORD_STACK, STACK_FRAMES, StackRecord};

/// Kernel stacks of the threads in `WANTED`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn stacks(ctx: *mut IterTask) -> i32 {
    // SAFETY: the kernel passes a valid context, and `meta` is never null.
    let meta = unsafe { (*ctx).meta };
    // SAFETY: as above.
    let seq = unsafe { (*meta).seq };
    // SAFETY: as above.
    let seq_num = unsafe { (*meta).seq_num };
    // SAFETY: as above.
    let Some(task) = Btf::new(unsafe { (*ctx).task }) else {
        return 0;
    };
    if seq_num == 0 {
        let level: u32 = match Raw::current_task().follow(off!(task_thread_pid)) {
            Some(pid) => pid.get(off!(pid_level)),
            None => 0,
        };
        VIEW_LEVEL.set(u64::from(level));
    }
    let tid = task.u32(off!(task_pid));
    let view = ids(task.follow(off!(task_thread_pid)), tid, VIEW_LEVEL.get() as u32, false).view;
    if WANTED.get_ptr(view).is_none() {
        return 0;
    }
    let mut record = StackRecord {
        prefix: prefix::<StackRecord>(RECORD_STACK),
        tid,
        view_tid: view,
        frames: 0,
        ips: [0; STACK_FRAMES],
    };
    // SAFETY: the buffer is `8 * STACK_FRAMES` bytes.
    let bytes =
        unsafe { bpf_get_task_stack(task.as_ptr(), (&raw mut record.ips).cast(), (8 * STACK_FRAMES) as u32, 0) };
    record.frames = if bytes < 0 { bytes } else { bytes / 8 };
    write(seq, &record);
    0
}
