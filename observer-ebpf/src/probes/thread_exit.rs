//! The end of a thread, and of its id: its entry in `IN_FLIGHT` goes with it.

use super::event::count;
use super::syscall::add_zeros;
use crate::kernel::setting;
use crate::maps::{IN_FLIGHT, WOKEN};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use core::ffi::c_void;
use observer_ebpf::ACCOUNT_ENDED_IN_WAIT;

/// Forgets a thread.
#[inline(always)]
fn forget(id: u64) {
    // Most threads never had one.
    let Some(thread) = IN_FLIGHT.get_ptr_mut(id) else {
        return;
    };
    // SAFETY: fields of a live map value; its thread does not run any more, or runs this.
    let (pending, waits) = unsafe { ((*thread).pending_zero, (*thread).call.start_ns != 0) };
    if pending != 0 {
        add_zeros((id >> 32) as u32, u64::from(pending));
    }
    if waits {
        count(ACCOUNT_ENDED_IN_WAIT);
    }
    let _ = IN_FLIGHT.remove(id);
    if setting!(wakes) != 0 {
        let _ = WOKEN.remove(id);
    }
}

/// `sched_process_exit`, which runs in the thread that ends.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/sched_process_exit")]
extern "C" fn thread_exit_btf(_ctx: *const c_void) -> i32 {
    forget(bpf_get_current_pid_tgid());
    0
}

/// The same, by the tracepoint's record.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tracepoint")]
extern "C" fn thread_exit_tracepoint(_ctx: *const c_void) -> i32 {
    forget(bpf_get_current_pid_tgid());
    0
}

/// A thread that was not the leader has called `exec`: it lives on under the leader's id, and the old id never ends. What
/// either did was another program's habit.
#[inline(always)]
fn renamed(old_tid: u32) {
    let id = bpf_get_current_pid_tgid();
    forget(id >> 32 << 32 | u64::from(old_tid));
    forget(id);
}

/// `sched_process_exec`: task, old thread id, program.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/sched_process_exec")]
extern "C" fn thread_exec_btf(ctx: *const u64) -> i32 {
    // SAFETY: the second of three arguments.
    renamed(unsafe { *ctx.add(1) } as u32);
    0
}

/// The same, by the tracepoint's record: its third word after the header is the old thread id.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tracepoint")]
extern "C" fn thread_exec_tracepoint(ctx: *const u32) -> i32 {
    // SAFETY: file name (4 bytes at 8), process id, old id.
    renamed(unsafe { core::ptr::read_volatile(ctx.add(4)) });
    0
}
