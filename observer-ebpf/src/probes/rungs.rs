//! The rungs of the attach ladder: how a call's registers and return value come to [`super::syscall`].
//!
//! System call numbers and registers are those of x86-64. Calls of 32-bit programs are not decoded:
//! `__x64_sys_*` is never theirs, the kernel's syscall tracepoints pass them over, and the
//! `sys_enter` pair tests `TS_COMPAT`.

use super::syscall::{enabled, enter, exit, family_of};
use super::{futex, poll};
use crate::kernel::{Btf, Raw, current_registers, off, setting};
use aya_ebpf::bindings::pt_regs;
use observer_ebpf::{ARGS, FAMILY_FUTEX, FAMILY_POLL};

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
        enter(nr, &args, regs.raw().address());
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
        exit(ret, nr, regs.raw().address());
    } else {
        woke(nr, regs, ret);
    }
    0
}

/// A call that does not wait returns: if it woke somebody, that is kept.
#[inline(always)]
fn woke(nr: u32, regs: Btf, ret: i64) {
    if setting!(wakes) != 0 && futex::woke(nr, regs.u64(off!(regs_si)), ret) {
        super::syscall::woke(nr, regs.u64(off!(regs_di)));
    }
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
            $crate::probes::rungs::fentry(ctx, $nr)
        }

        #[unsafe(no_mangle)]
        #[unsafe(link_section = "fexit")]
        extern "C" fn $exit(ctx: *const u64) -> i32 {
            $crate::probes::rungs::fexit(ctx, $nr)
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
        enter(nr as u32, &args, regs.address());
    }
    0
}

/// Rung `kprobe`: return of any `__x64_sys_*`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "kretprobe")]
extern "C" fn kprobe_exit(ctx: *const pt_regs) -> i32 {
    // SAFETY: the context of a kretprobe is the registers at return; `rax` is the value.
    untold(unsafe { (*ctx).rax } as i64, u32::MAX);
    0
}

/// The return of a call of which only the value is told, and maybe the number. Its arguments matter for
/// wake-ups alone; they are still on the kernel stack.
#[inline(always)]
fn untold(ret: i64, nr: u32) {
    if setting!(wakes) != 0
        && ret >= 0
        && (nr == u32::MAX || family_of(nr) == FAMILY_FUTEX)
        && let Some(regs) = current_registers()
    {
        let nr = regs.get::<u64>(off!(regs_orig_ax)) as u32;
        if futex::woke(nr, regs.get(off!(regs_si)), ret) {
            super::syscall::woke(nr, regs.get(off!(regs_di)));
            return;
        }
    }
    exit(ret, nr, 0);
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
        enter(nr as u32, &args, regs.raw().address());
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
    if family == u32::MAX {
        return 0;
    }
    // SAFETY: as above.
    let ret = unsafe { *ctx.add(1) } as i64;
    if is_timed(family, nr as u32, regs) {
        exit(ret, nr as u32, regs.raw().address());
    } else {
        woke(nr as u32, regs, ret);
    }
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
    enter(unsafe { core::ptr::read_volatile(ctx.add(1).cast::<u32>()) }, &args, 0);
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
    let (nr, ret) =
        unsafe { (core::ptr::read_volatile(ctx.add(1).cast::<u32>()), core::ptr::read_volatile(ctx.add(2)) as i64) };
    untold(ret, nr);
    0
}
