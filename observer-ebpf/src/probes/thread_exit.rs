//! The end of a thread: its entry in `IN_FLIGHT` goes with it.

use crate::maps::IN_FLIGHT;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use core::ffi::c_void;

/// `sched_process_exit`, which runs in the thread that ends.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/sched_process_exit")]
extern "C" fn thread_exit_btf(_ctx: *const c_void) -> i32 {
    // Most threads never had one.
    let _ = IN_FLIGHT.remove(bpf_get_current_pid_tgid());
    0
}

/// The same, by the tracepoint's record.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tracepoint")]
extern "C" fn thread_exit_tracepoint(_ctx: *const c_void) -> i32 {
    // Most threads never had one.
    let _ = IN_FLIGHT.remove(bpf_get_current_pid_tgid());
    0
}
