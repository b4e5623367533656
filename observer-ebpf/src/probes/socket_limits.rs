//! The time limits of the sockets of one process: an `iter/task_file` program. No option of a socket can be asked for from
//! outside without holding on to the socket, so they are read where the kernel keeps them.

use super::census::{VIEW_LEVEL, ids, prefix, write};
use super::socket_files::IterTaskFile;
use crate::kernel::{Btf, Raw, off};
use crate::maps::WANTED;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns, bpf_sock_from_file};
use observer_ebpf::{RECORD_SOCKET, SocketRecord};

/// The sockets of the processes in `WANTED` (kernel >= 5.11).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn socket_limits(ctx: *mut IterTaskFile) -> i32 {
    // SAFETY: the kernel passes a valid context, and `meta` is never null.
    let meta = unsafe { (*ctx).meta };
    // SAFETY: as above.
    let seq = unsafe { (*meta).seq };
    // SAFETY: as above.
    let seq_num = unsafe { (*meta).seq_num };
    // SAFETY: as above.
    let task = unsafe { (*ctx).task };
    // SAFETY: as above.
    let file = unsafe { (*ctx).file };
    let Some(task) = Btf::new(task) else {
        return 0;
    };
    if file.is_null() {
        return 0;
    }
    if seq_num == 0 {
        let level: u32 = match Raw::current_task().follow(off!(task_thread_pid)) {
            Some(pid) => pid.get(off!(pid_level)),
            None => 0,
        };
        VIEW_LEVEL.set(u64::from(level));
    }
    let Some(leader) = task.follow(off!(task_group_leader)) else {
        return 0;
    };
    let tgid = leader.u32(off!(task_pid));
    let view = ids(leader.follow(off!(task_thread_pid)), tgid, VIEW_LEVEL.get() as u32, false).view;
    if WANTED.get_ptr(view).is_none() {
        return 0;
    }
    // SAFETY: the verifier knows the file, which is not null.
    let socket = unsafe { bpf_sock_from_file(file) };
    if socket.is_null() {
        return 0;
    }
    let Some(sock) = Raw::new(socket).follow(off!(socket_sk)) else {
        return 0;
    };
    let record = SocketRecord {
        prefix: prefix::<SocketRecord>(RECORD_SOCKET),
        view_tgid: view,
        // SAFETY: as above.
        fd: unsafe { (*ctx).fd },
        receive: sock.get(off!(sock_rcvtimeo)),
        send: sock.get(off!(sock_sndtimeo)),
        // SAFETY: the helper has no preconditions.
        jiffies: unsafe { bpf_jiffies64() },
        // SAFETY: as above.
        mono_ns: unsafe { bpf_ktime_get_ns() },
    };
    write(seq, &record);
    0
}
