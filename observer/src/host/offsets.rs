//! Which kernel fields observer reads, and where the running kernel keeps them.

use super::btf::{Btf, BtfError};
use observer_ebpf::{ABSENT, Offsets};

/// Finds every field. A field that all supported kernels have is an error when it is missing; an
/// optional one becomes [`ABSENT`].
pub fn resolve(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let task = |path, size| btf.offset("task_struct", path, size);
    let regs = |new, old| btf.offset("pt_regs", new, 8).or_else(|_| btf.offset("pt_regs", old, 8));
    let sock = |path, size| optional(btf.offset("sock", path, size));
    if btf.structure_size("upid")? != 16 || btf.offset("upid", "nr", 4)? != 0 || btf.offset("upid", "ns", 8)? != 8 {
        // The programs copy `struct upid` whole.
        return Err(BtfError::Size {
            structure: "upid".to_owned(),
            member: "nr, ns".to_owned(),
            found: btf.structure_size("upid")?,
            expected: 16,
        });
    }
    Ok(Offsets {
        // `state` became `__state` in 5.14 (2f064a59a11f).
        task_state: task("__state", 4).or_else(|_| task("state", 8))?,
        task_exit_state: task("exit_state", 4)?,
        task_flags: task("flags", 4)?,
        task_pid: task("pid", 4)?,
        task_tgid: task("tgid", 4)?,
        task_comm: task("comm", 16)?,
        task_real_parent: task("real_parent", 8)?,
        task_parent: task("parent", 8)?,
        task_ptrace: task("ptrace", 4)?,
        task_group_leader: task("group_leader", 8)?,
        // `real_start_time` became `start_boottime` in 5.5 (cf25e24db61c).
        task_start_boottime: task("start_boottime", 8).or_else(|_| task("real_start_time", 8))?,
        task_nvcsw: task("nvcsw", 8)?,
        task_nivcsw: task("nivcsw", 8)?,
        // CONFIG_SCHED_INFO.
        task_last_arrival: optional(task("sched_info.last_arrival", 8)),
        task_last_queued: optional(task("sched_info.last_queued", 8)),
        task_sum_exec_runtime: task("se.sum_exec_runtime", 8)?,
        task_prev_sum_exec_runtime: optional(task("se.prev_sum_exec_runtime", 8)),
        task_policy: task("policy", 4)?,
        task_on_cpu: optional(task("on_cpu", 4)),
        task_jobctl: optional(task("jobctl", 8)),
        // 32 bits wide; x86 with CONFIG_THREAD_INFO_IN_TASK.
        task_thread_info_status: optional(task("thread_info.status", 4)),
        task_thread_pid: task("thread_pid", 8)?,
        task_cgroups: optional(task("cgroups", 8)),
        // CONFIG_DETECT_HUNG_TASK_BLOCKER, 6.16; `blocker_mutex` of 6.15 has no type bits.
        task_blocker: optional(task("blocker", 8)),
        // Atomic words (`atomic_long_t`), or the fields of a structure that PREEMPT_RT has in their place.
        mutex_owner: optional(btf.offset("mutex", "owner", 8)),
        // CONFIG_DETECT_HUNG_TASK_BLOCKER, 6.16.
        semaphore_last_holder: optional(btf.offset("semaphore", "last_holder", 8)),
        rwsem_owner: optional(btf.offset("rw_semaphore", "owner", 8)),
        task_stack: optional(task("stack", 8)),
        css_set_dfl_cgrp: optional(btf.offset("css_set", "dfl_cgrp", 8)),
        cgroup_kn: optional(btf.offset("cgroup", "kn", 8)),
        kernfs_node_id: optional(btf.offset("kernfs_node", "id", 8)),
        pid_level: btf.offset("pid", "level", 4)?,
        // A flexible array: its size says nothing.
        pid_numbers: btf.member("pid", "numbers")?.offset,
        upid_nr: btf.offset("upid", "nr", 4)?,
        upid_ns: btf.offset("upid", "ns", 8)?,
        upid_size: btf.structure_size("upid")?,
        pidns_inum: btf.offset("pid_namespace", "ns.inum", 4)?,
        regs_orig_ax: btf.offset("pt_regs", "orig_ax", 8).or_else(|_| btf.offset("pt_regs", "orig_rax", 8))?,
        regs_ip: regs("ip", "rip")?,
        regs_sp: regs("sp", "rsp")?,
        regs_bp: regs("bp", "rbp")?,
        regs_bx: regs("bx", "rbx")?,
        regs_cx: regs("cx", "rcx")?,
        regs_dx: regs("dx", "rdx")?,
        regs_si: regs("si", "rsi")?,
        regs_di: regs("di", "rdi")?,
        regs_r8: btf.offset("pt_regs", "r8", 8)?,
        regs_r9: btf.offset("pt_regs", "r9", 8)?,
        regs_r10: btf.offset("pt_regs", "r10", 8)?,
        // 64 bits; since 6.9 a union of 16 bits and what FRED adds.
        regs_cs: btf.member("pt_regs", "cs")?.offset,
        regs_size: btf.structure_size("pt_regs")?,
        sock_family: sock("__sk_common.skc_family", 2),
        sock_num: sock("__sk_common.skc_num", 2),
        sock_dport: sock("__sk_common.skc_dport", 2),
        sock_rcv_saddr: sock("__sk_common.skc_rcv_saddr", 4),
        sock_daddr: sock("__sk_common.skc_daddr", 4),
        sock_v6_rcv_saddr: sock("__sk_common.skc_v6_rcv_saddr", 16),
        sock_v6_daddr: sock("__sk_common.skc_v6_daddr", 16),
        // A bit field before 5.6.
        sock_protocol: sock("sk_protocol", 2),
        sock_err: sock("sk_err", 4),
        sock_rcvtimeo: sock("sk_rcvtimeo", 8),
        sock_sndtimeo: sock("sk_sndtimeo", 8),
        socket_sk: optional(btf.offset("socket", "sk", 8)),
        file_inode: optional(btf.offset("file", "f_inode", 8)),
        inode_ino: optional(btf.offset("inode", "i_ino", 8)),
        inode_sb: optional(btf.offset("inode", "i_sb", 8)),
        sb_magic: optional(btf.offset("super_block", "s_magic", 8)),
    })
}

fn optional(found: Result<u32, BtfError>) -> u32 {
    found.unwrap_or(ABSENT)
}

/// Names of the optional fields this kernel lacks, with what is lost without each.
pub fn missing(offsets: &Offsets) -> Vec<(&'static str, &'static str)> {
    [
        (offsets.task_last_arrival, "sched_info", "since when threads are off the CPU (CONFIG_SCHED_INFO)"),
        (offsets.task_prev_sum_exec_runtime, "se.prev_sum_exec_runtime", "some precision of off-CPU times"),
        (offsets.task_thread_info_status, "thread_info.status", "telling 32-bit system calls apart"),
        (offsets.task_cgroups, "cgroups", "container attribution by cgroup id"),
        (offsets.task_blocker, "blocker", "which lock a D state thread waits for (kernel 6.16)"),
        (offsets.task_jobctl, "jobctl", "recognising frozen cgroups"),
        (offsets.sock_rcvtimeo, "sk_rcvtimeo", "the time limits of sockets in `observer timeouts`"),
        (offsets.sock_protocol, "sk_protocol", "the TCP state probe with types"),
    ]
    .into_iter()
    .filter(|(offset, _, _)| *offset == ABSENT)
    .map(|(_, field, lost)| (field, lost))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_resolves() {
        let Ok(data) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("SKIPPED: this kernel has no BTF");
            return;
        };
        let offsets = Btf::parse(&data).and_then(|btf| resolve(&btf));
        assert!(offsets.is_ok(), "{offsets:?}");
    }
}
