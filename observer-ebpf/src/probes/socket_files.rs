//! Which descriptors are sockets: an `iter/task_file` program that writes a few bytes for each, where `/proc/PID/fd` makes a
//! link for every descriptor that has to be looked up and read by itself.

use super::census::{IterMeta, prefix, write};
use crate::kernel::{Btf, off};
use aya_ebpf::bindings::{file, task_struct};
use observer_ebpf::{RECORD_SOCKET_FILE, SocketFileRecord};

/// `struct bpf_iter__task_file`.
#[repr(C)]
pub(super) struct IterTaskFile {
    pub(super) meta: *const IterMeta,
    pub(super) task: *mut task_struct,
    pub(super) fd: u32,
    pad: u32,
    pub(super) file: *mut file,
}

/// `SOCKFS_MAGIC` (`include/uapi/linux/magic.h`): the file system that the links `socket:[123]` lead to.
const SOCKFS: u64 = 0x534f_434b;

/// The sockets of the process that the iterator was restricted to (kernel >= 6.1).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn socket_files(ctx: *mut IterTaskFile) -> i32 {
    // SAFETY: the kernel passes a valid context, and `meta` is never null.
    let meta = unsafe { (*ctx).meta };
    // SAFETY: as above.
    let seq = unsafe { (*meta).seq };
    // SAFETY: as above.
    let file = unsafe { (*ctx).file };
    // At the end there is none.
    let Some(file) = Btf::new(file) else {
        return 0;
    };
    let Some(inode) = file.follow(off!(file_inode)) else {
        return 0;
    };
    let Some(system) = inode.follow(off!(inode_sb)) else {
        return 0;
    };
    if system.u64(off!(sb_magic)) != SOCKFS {
        return 0;
    }
    let number = inode.u64(off!(inode_ino));
    // Socket diagnostics have 32 bits of it: more could be joined to nothing.
    if number >> 32 != 0 {
        return 0;
    }
    let record = SocketFileRecord {
        prefix: prefix::<SocketFileRecord>(RECORD_SOCKET_FILE),
        // SAFETY: as above.
        fd: unsafe { (*ctx).fd },
        inode: number as u32,
    };
    write(seq, &record);
    0
}
