//! The body that every rung of the attach ladder shares, and the rungs.
//!
//! System call numbers and registers are those of x86-64. Calls of 32-bit programs are not decoded:
//! `__x64_sys_*` is never theirs, the kernel's syscall tracepoints pass them over, and the
//! `sys_enter` pair tests `TS_COMPAT`.

use super::event::{Ends, What, Who, count, send};
use super::timeout::Timeout;
use super::{connect, futex, poll};
use crate::kernel::{Btf, Raw, add, current_in_view, off, setting};
use crate::maps::{ENABLED, FILTER, IN_FLIGHT, PROCESSES, ZERO};
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_log_ebpf::debug;
use observer_ebpf::{
    ACCOUNT_FILTERED, ACCOUNT_IN_FLIGHT_FULL, ACCOUNT_MEASURED, ACCOUNT_NOT_TIMED, ACCOUNT_PROCESSES_FULL,
    ACCOUNT_SEEN, ACCOUNT_UNPAIRED, ARGS, EVENT_BAD_TIMEOUT, EVENT_LONG_WAIT, FAMILY_CONNECT, FAMILY_FUTEX,
    FAMILY_POLL, FILTER_LISTED, FILTER_NAMESPACE, ProcessKey, ProcessWaits, THREAD_EXIT, TIMEOUT_INVALID,
    TIMEOUT_KINDS, TIMEOUT_NEGATIVE, WAIT_BUCKETS,
};

/// A call that has been entered and not left (`start_ns` is not zero), or this thread's last one.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct InFlight {
    /// `CLOCK_MONOTONIC` at entry.
    pub(crate) start_ns: u64,
    /// Relative timeout.
    pub(crate) timeout_ns: i64,
    /// Timeout as passed.
    pub(crate) timeout_raw: i64,
    /// Argument registers.
    pub(crate) args: [u64; ARGS],
    /// System call number; `u32::MAX` for a socket.
    pub(crate) nr: u32,
    /// `TIMEOUT_*`.
    pub(crate) kind: u32,
}

/// The family of a system call, `u32::MAX` if none.
#[inline(always)]
fn family_of(nr: u32) -> u32 {
    if futex::has(nr) {
        FAMILY_FUTEX
    } else if poll::has(nr) {
        FAMILY_POLL
    } else if connect::has(nr) {
        FAMILY_CONNECT
    } else {
        u32::MAX
    }
}

/// Whether the process is observed.
#[inline(always)]
pub(crate) fn observed(tgid: u32) -> bool {
    let filter = setting!(filter);
    if filter == FILTER_LISTED {
        FILTER.get_ptr(tgid).is_some()
    } else if filter == FILTER_NAMESPACE {
        current_in_view()
    } else {
        true
    }
}

/// The aggregate of one process and family, made on first use.
#[inline(always)]
fn process(tgid: u32, family: u32) -> Option<*mut ProcessWaits> {
    let key = ProcessKey { tgid, family };
    if let Some(waits) = PROCESSES.get_ptr_mut(key) {
        return Some(waits);
    }
    let zero = ZERO.get(0)?;
    // Another CPU may have inserted it in between: BPF_NOEXIST keeps that one.
    let _ = PROCESSES.insert(key, zero, 1);
    let waits = PROCESSES.get_ptr_mut(key);
    if waits.is_none() {
        count(ACCOUNT_PROCESSES_FULL);
        debug!((), "process map full: process {} is not aggregated", tgid);
    }
    waits
}

/// A call is entered.
#[inline(never)]
fn enter(nr: u32, args: &[u64; ARGS]) {
    let family = family_of(nr);
    if family == u32::MAX || family == FAMILY_FUTEX && !futex::waits(nr, args[1]) {
        return;
    }
    count(ACCOUNT_SEEN);
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    if !observed(tgid) {
        count(ACCOUNT_FILTERED);
        return;
    }
    let timeout = if family == FAMILY_FUTEX {
        futex::timeout(nr, args)
    } else if family == FAMILY_POLL {
        poll::timeout(nr, args)
    } else {
        Timeout::NONE
    };
    if let Some(waits) = process(tgid, family)
        && (timeout.kind as usize) < TIMEOUT_KINDS
    {
        // SAFETY: in bounds of a live map value.
        unsafe { add((&raw mut (*waits).calls).cast::<u64>().add(timeout.kind as usize), 1) };
    }
    if family == FAMILY_POLL && poll::is_zero(nr, args[2], args[3]) {
        // The hottest of all: an event loop that spins. It cannot wait, so there is nothing to time.
        count(ACCOUNT_NOT_TIMED);
        return;
    }
    let call = InFlight {
        // SAFETY: the helper has no preconditions.
        start_ns: unsafe { bpf_ktime_get_ns() },
        timeout_ns: timeout.ns,
        timeout_raw: timeout.raw,
        args: *args,
        nr,
        kind: timeout.kind,
    };
    if let Some(slot) = IN_FLIGHT.get_ptr_mut(id) {
        // This thread's entry from an earlier call: writing it costs a third of an insertion.
        // SAFETY: a map value that only this thread writes and removes.
        unsafe { *slot = call };
    } else if IN_FLIGHT.insert(id, call, 0).is_err() {
        count(ACCOUNT_IN_FLIGHT_FULL);
        debug!((), "in-flight map full: a call of process {} is not measured", tgid);
    }
    if timeout.kind == TIMEOUT_NEGATIVE || timeout.kind == TIMEOUT_INVALID {
        let what = What { kind: EVENT_BAD_TIMEOUT, family, wait_ns: 0, ret: 0 };
        send(&what, &Who::current(), &call, &Ends::UNKNOWN);
    }
}

/// A call returns. `known_wait`: it is certainly one of ours (not, say, a futex wake-up).
#[inline(never)]
fn exit(ret: i64, known_wait: u64) {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    let slot = match IN_FLIGHT.get_ptr_mut(id) {
        // SAFETY: a map value that only this thread writes and removes.
        Some(slot) if unsafe { (*slot).start_ns } != 0 => slot,
        _ => {
            if known_wait != 0 && observed(tgid) {
                count(ACCOUNT_UNPAIRED);
            }
            return;
        }
    };
    // SAFETY: as above.
    let call = unsafe { *slot };
    if enabled() & THREAD_EXIT != 0 {
        // SAFETY: as above.
        unsafe { (*slot).start_ns = 0 };
    } else if IN_FLIGHT.remove(id).is_err() {
        return;
    }
    count(ACCOUNT_MEASURED);
    // SAFETY: the helper has no preconditions.
    let wait_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(call.start_ns);
    let family = family_of(call.nr);
    if let Some(waits) = process(tgid, family) {
        let mut bucket = 63 - (wait_ns | 1).leading_zeros() as usize;
        if bucket >= WAIT_BUCKETS {
            bucket = WAIT_BUCKETS - 1;
        }
        // SAFETY: in bounds of a live map value.
        unsafe { add((&raw mut (*waits).waits).cast::<u64>().add(bucket), 1) };
        // SAFETY: a field of a live map value.
        unsafe { add(&raw mut (*waits).total_ns, wait_ns) };
        // SAFETY: a field of a live map value. Two threads may race here; the later one may store
        // the shorter of two record waits, which the histogram still shows.
        unsafe {
            if wait_ns > (*waits).longest_ns {
                (*waits).longest_ns = wait_ns;
            }
        }
        if is_failure(family, ret) {
            // SAFETY: a field of a live map value.
            unsafe { add(&raw mut (*waits).failed, 1) };
        }
    }
    if family == FAMILY_CONNECT {
        connect::returned(&call, wait_ns, ret);
    } else if wait_ns >= setting!(long_wait_ns) {
        let what = What { kind: EVENT_LONG_WAIT, family, wait_ns, ret };
        send(&what, &Who::current(), &call, &Ends::UNKNOWN);
    }
}

/// An error other than a timeout or an interruption.
#[inline(always)]
fn is_failure(family: u32, ret: i64) -> bool {
    if family == FAMILY_CONNECT {
        connect::failed(ret)
    } else {
        // EINTR, EAGAIN (the futex word had changed), ETIMEDOUT, ERESTART*
        ret < 0 && !matches!(-ret, 4 | 11 | 110 | 512..=516)
    }
}

/// The argument registers of a 64-bit system call.
#[inline(always)]
fn args_of(regs: Btf) -> [u64; ARGS] {
    [
        regs.u64(off!(regs_di)),
        regs.u64(off!(regs_si)),
        regs.u64(off!(regs_dx)),
        regs.u64(off!(regs_r10)),
        regs.u64(off!(regs_r8)),
        regs.u64(off!(regs_r9)),
    ]
}

/// Rung `fentry`: entry of `__x64_sys_*`, whose one argument is `struct pt_regs *`.
#[inline(always)]
pub(crate) fn fentry(ctx: *const u64, nr: u32) -> i32 {
    // SAFETY: the traced function has one argument.
    if let Some(regs) = Btf::new(unsafe { *ctx } as *const u8) {
        let args = args_of(regs);
        enter(nr, &args);
    }
    0
}

/// Rung `fentry`: return of `__x64_sys_*`.
#[inline(always)]
pub(crate) fn fexit(ctx: *const u64, nr: u32) -> i32 {
    // SAFETY: the traced function has one argument.
    let Some(regs) = Btf::new(unsafe { *ctx } as *const u8) else {
        return 0;
    };
    // SAFETY: the return value follows the one argument.
    let ret = unsafe { *ctx.add(1) } as i64;
    if is_timed(family_of(nr), nr, regs) {
        exit(ret, 1);
    }
    0
}

/// Whether the entry of this call was put in flight, as far as its registers tell: wake-ups are not, nor
/// are polls of zero milliseconds.
#[inline(always)]
fn is_timed(family: u32, nr: u32, regs: Btf) -> bool {
    if family == FAMILY_FUTEX {
        futex::waits(nr, regs.u64(off!(regs_si)))
    } else if family == FAMILY_POLL {
        !poll::is_zero(nr, regs.u64(off!(regs_dx)), regs.u64(off!(regs_r10)))
    } else {
        true
    }
}

/// The `fentry`/`fexit` pair of one system call.
macro_rules! hooks {
    ($entry:ident, $exit:ident, $nr:expr) => {
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "fentry")]
        extern "C" fn $entry(ctx: *const u64) -> i32 {
            $crate::probes::syscall::fentry(ctx, $nr)
        }

        #[unsafe(no_mangle)]
        #[unsafe(link_section = "fexit")]
        extern "C" fn $exit(ctx: *const u64) -> i32 {
            $crate::probes::syscall::fexit(ctx, $nr)
        }
    };
}
pub(crate) use hooks;

/// Rung `kprobe`: entry of any `__x64_sys_*`; the number is in the registers it was called with.
#[unsafe(no_mangle)]
#[unsafe(link_section = "kprobe")]
extern "C" fn kprobe_enter(ctx: *const pt_regs) -> i32 {
    // SAFETY: the context of a kprobe is the interrupted registers; `rdi` is the first argument.
    let regs = Raw::new(unsafe { (*ctx).rdi } as *const u8);
    let args = [
        regs.get(off!(regs_di)),
        regs.get(off!(regs_si)),
        regs.get(off!(regs_dx)),
        regs.get(off!(regs_r10)),
        regs.get(off!(regs_r8)),
        regs.get(off!(regs_r9)),
    ];
    if let Some(nr) = regs.read::<u64>(off!(regs_orig_ax)) {
        enter(nr as u32, &args);
    }
    0
}

/// Rung `kprobe`: return of any `__x64_sys_*`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "kretprobe")]
extern "C" fn kprobe_exit(ctx: *const pt_regs) -> i32 {
    // SAFETY: the context of a kretprobe is the registers at return; `rax` is the value.
    exit(unsafe { (*ctx).rax } as i64, 0);
    0
}

/// The mask in `ENABLED`.
#[inline(always)]
fn enabled() -> u32 {
    match ENABLED.get(0) {
        Some(mask) => *mask,
        None => 0,
    }
}

/// The enabled family of a 64-bit system call, `u32::MAX` if there is none.
#[inline(always)]
fn enabled_family(nr: u64) -> u32 {
    let family = if nr > u64::from(u32::MAX) { u32::MAX } else { family_of(nr as u32) };
    if family == u32::MAX {
        return u32::MAX;
    }
    if enabled() >> (family & 31) & 1 == 0 {
        return u32::MAX;
    }
    // TS_COMPAT: a 32-bit call, whose numbers mean something else. Read by copy: the typed pointer
    // (bpf_get_current_task_btf) came with 5.11.
    let status: u32 = Raw::current_task().get(off!(task_thread_info_status));
    if status & 2 == 0 { family } else { u32::MAX }
}

/// Rung `tp_btf`: `sys_enter`, one program for all families that fell this far.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/sys_enter")]
extern "C" fn btf_enter(ctx: *const u64) -> i32 {
    // SAFETY: the tracepoint has two arguments: registers and number.
    let nr = unsafe { *ctx.add(1) };
    if enabled_family(nr) == u32::MAX {
        return 0;
    }
    // SAFETY: as above.
    if let Some(regs) = Btf::new(unsafe { *ctx } as *const u8) {
        let args = args_of(regs);
        enter(nr as u32, &args);
    }
    0
}

/// Rung `tp_btf`: `sys_exit`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/sys_exit")]
extern "C" fn btf_exit(ctx: *const u64) -> i32 {
    // SAFETY: the tracepoint has two arguments: registers and return value.
    let Some(regs) = Btf::new(unsafe { *ctx } as *const u8) else {
        return 0;
    };
    let nr = regs.u64(off!(regs_orig_ax));
    let family = enabled_family(nr);
    if family == u32::MAX || !is_timed(family, nr as u32, regs) {
        return 0;
    }
    // SAFETY: as above.
    exit(unsafe { *ctx.add(1) } as i64, 1);
    0
}

/// Rung `tracepoint`: `syscalls:sys_enter_*` of calls with `N` arguments. The kernel refuses to attach a
/// program that reads beyond the record, hence one program per number of arguments.
#[inline(always)]
fn tracepoint_enter<const N: usize>(ctx: *const u64) -> i32 {
    let mut args = [0; ARGS];
    let mut at = 0;
    while at < N {
        // SAFETY: the record holds a common header, the number, then `N` arguments, 8 bytes each.
        args[at] = unsafe { core::ptr::read_volatile(ctx.add(2 + at)) };
        at += 1;
    }
    // SAFETY: as above; the number is an `int`.
    enter(unsafe { core::ptr::read_volatile(ctx.add(1).cast::<u32>()) }, &args);
    0
}

macro_rules! tracepoint_entries {
    ($($name:ident: $args:literal),*) => {$(
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "tracepoint")]
        extern "C" fn $name(ctx: *const u64) -> i32 {
            tracepoint_enter::<$args>(ctx)
        }
    )*};
}
tracepoint_entries!(tracepoint_enter_3: 3, tracepoint_enter_4: 4, tracepoint_enter_5: 5, tracepoint_enter_6: 6);

/// Rung `tracepoint`: any `syscalls:sys_exit_*`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tracepoint")]
extern "C" fn tracepoint_exit(ctx: *const u64) -> i32 {
    // SAFETY: the record holds a common header, the number and the return value, 8 bytes each.
    exit(unsafe { core::ptr::read_volatile(ctx.add(2)) } as i64, 0);
    0
}
