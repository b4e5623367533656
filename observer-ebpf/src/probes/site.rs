//! Call sites: told apart, counted, and their user stacks taken.

use super::event::count;
use super::socket::SHORTEST_NS;
use crate::kernel::{Raw, current_registers, current_view, off, user};
use crate::maps::{SITES, STACK_LIMIT, STACKS, ZERO_SITE};
use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user};
use observer_ebpf::{
    ACCOUNT_SITES_FULL, ACCOUNT_SITES_NEW, ACCOUNT_STACKS_FULL, ACCOUNT_STACKS_LIMITED, ACCOUNT_STACKS_UNREADABLE,
    ACCOUNT_TOO_SHORT, Call, FAMILY_CONNECT, FAMILY_SOCKET, STACK_BYTES, SiteKey, SiteRecord, TIMEOUT_FINITE,
    TIMEOUT_INVALID, TIMEOUT_KINDS, TIMEOUT_NEGATIVE, UserStack,
};

/// Callers that make a site.
const CALLERS: usize = 4;
/// A frame is no further up than this from the stack pointer.
const MOST_STACK: u64 = 1 << 20;
/// Stacks taken by one CPU in a second (2^30 ns), at most.
const STACKS_A_SECOND: u64 = 16;
/// A stack is copied in steps of this many bytes: the copy of a step fails as a whole.
const STEP: usize = 1024;
const PAGE: u64 = 4096;
/// `EINPROGRESS`: a `connect` that does not block.
const IN_PROGRESS: i64 = -115;

/// The user registers of this call: those that the probe was given, else those on the kernel stack.
#[inline(always)]
fn registers(given: u64) -> Option<Raw> {
    if given == 0 { current_registers() } else { Some(Raw::new(given as *const u8)) }
}

/// One word into a hash.
#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 29
}

/// The site of this call; 0 if the registers are not known.
#[inline(never)]
pub(crate) fn site(given: u64) -> u64 {
    let Some(regs) = registers(given) else {
        return 0;
    };
    let sp: u64 = regs.get(off!(regs_sp));
    let mut bp: u64 = regs.get(off!(regs_bp));
    // SAFETY: the helper has no preconditions.
    let mut hash = mix(unsafe { bpf_get_current_pid_tgid() } >> 32, regs.get(off!(regs_ip)));
    let mut at = 0;
    let mut floor = sp;
    while at < CALLERS {
        if bp < floor || bp & 7 != 0 || bp - sp > MOST_STACK {
            break;
        }
        let Some([next, caller]) = user::<[u64; 2]>(bp) else {
            break;
        };
        hash = mix(hash, caller);
        floor = bp + 16;
        bp = next;
        at += 1;
    }
    if at == 0 {
        hash = mix(hash, sp);
    }
    hash | 1
}

/// The record of a site, made on first use.
#[inline(always)]
fn record(key: &SiteKey) -> Option<*mut SiteRecord> {
    if let Some(site) = SITES.get_ptr_mut(key) {
        return Some(site);
    }
    let zero = ZERO_SITE.get(0)?;
    // Another CPU may have inserted it in between: BPF_NOEXIST keeps that one.
    if SITES.insert(key, zero, 1).is_ok() {
        count(ACCOUNT_SITES_NEW);
    }
    let site = SITES.get_ptr_mut(key);
    if site.is_none() {
        count(ACCOUNT_SITES_FULL);
    }
    site
}

/// A call is entered at its site; 1 if the stack of the site is still wanted. Other threads may be at the same one: counts are
/// close, not exact.
///
/// Who calls it takes the stack, too: one function inside of another is more than older kernels have stack for.
#[inline(never)]
pub(crate) fn entered(call: &Call) -> u64 {
    // SAFETY: the helper has no preconditions.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let key = SiteKey { tgid: (id >> 32) as u32, syscall: call.nr, site: call.site };
    let Some(site) = record(&key) else {
        return 0;
    };
    let kind = call.kind as usize;
    // SAFETY: fields of a live map value; the index is checked.
    unsafe {
        if kind < TIMEOUT_KINDS {
            *(&raw mut (*site).calls).cast::<u64>().add(kind) += 1;
        }
        if call.kind == TIMEOUT_FINITE {
            let ns = call.timeout_ns as u64;
            if (*site).shortest_timeout_ns == 0 || ns < (*site).shortest_timeout_ns {
                (*site).shortest_timeout_ns = ns;
            }
            if ns > (*site).longest_timeout_ns {
                (*site).longest_timeout_ns = ns;
            }
        }
        let bad = call.kind == TIMEOUT_NEGATIVE || call.kind == TIMEOUT_INVALID;
        if bad || (*site).has_bad == 0 {
            (*site).raw = call.timeout_raw;
            (*site).has_bad = bad as u32;
        }
        (*site).last_ns = if call.start_ns != 0 { call.start_ns } else { bpf_ktime_get_ns() };
        (*site).args = call.args;
        if (*site).tid != id as u32 {
            (*site).tid = id as u32;
            (*site).view_tid = current_view().0;
        }
        u64::from((*site).has_stack == 0)
    }
}

/// The stack of a site was sent.
#[inline(never)]
pub(crate) fn has_stack(call: &Call) {
    // SAFETY: the helper has no preconditions.
    let tgid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    if let Some(site) = SITES.get_ptr_mut(SiteKey { tgid, syscall: call.nr, site: call.site }) {
        // SAFETY: a field of a live map value.
        unsafe { (*site).has_stack = 1 };
    }
}

/// Whether a call that returned makes a site: of sockets only those that waited.
#[inline(always)]
pub(crate) fn is_kept(call: &Call, wait_ns: u64, ret: i64) -> bool {
    let too_short =
        call.family == FAMILY_SOCKET && wait_ns < SHORTEST_NS || call.family == FAMILY_CONNECT && ret == IN_PROGRESS;
    if too_short {
        count(ACCOUNT_TOO_SHORT);
    }
    !too_short
}

/// A call returns from its site.
#[inline(never)]
pub(crate) fn returned(call: &Call, wait_ns: u64) {
    // SAFETY: the helper has no preconditions.
    let tgid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    let Some(site) = SITES.get_ptr_mut(SiteKey { tgid, syscall: call.nr, site: call.site }) else {
        return;
    };
    // SAFETY: fields of a live map value.
    unsafe {
        (*site).ended += 1;
        (*site).total_ns += wait_ns;
        if wait_ns > (*site).longest_ns {
            (*site).longest_ns = wait_ns;
        }
    }
}

/// Whether this CPU has taken fewer stacks this second than it may.
#[inline(always)]
fn may_take() -> bool {
    let Some(limit) = STACK_LIMIT.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the helper has no preconditions.
    let second = unsafe { bpf_ktime_get_ns() } >> 30;
    // SAFETY: this CPU's slot; a nested probe could take one stack more, no worse.
    unsafe {
        if (*limit)[0] != second {
            *limit = [second, 0];
        }
        if (*limit)[1] >= STACKS_A_SECOND {
            return false;
        }
        (*limit)[1] += 1;
    }
    true
}

/// Sends the user stack of this call; 0 if it is not sent, which is counted.
#[inline(never)]
pub(crate) fn stack(given: u64, site: u64) -> u64 {
    let Some(regs) = registers(given) else {
        count(ACCOUNT_STACKS_UNREADABLE);
        return 0;
    };
    let sp: u64 = regs.get(off!(regs_sp));
    let ip: u64 = regs.get(off!(regs_ip));
    let bp: u64 = regs.get(off!(regs_bp));
    if sp == 0 {
        count(ACCOUNT_STACKS_UNREADABLE);
        return 0;
    }
    if !may_take() {
        count(ACCOUNT_STACKS_LIMITED);
        return 0;
    }
    let (view_tid, view_tgid) = current_view();
    // SAFETY: the helper has no preconditions.
    let id = unsafe { bpf_get_current_pid_tgid() };
    let Some(mut slot) = STACKS.reserve::<UserStack>(0) else {
        count(ACCOUNT_STACKS_FULL);
        return 0;
    };
    let out = slot.as_mut_ptr();
    // SAFETY: fields of the reserved record.
    unsafe {
        (*out).site = site;
        (*out).ip = ip;
        (*out).sp = sp;
        (*out).bp = bp;
        (*out).tid = id as u32;
        (*out).tgid = (id >> 32) as u32;
        (*out).view_tid = view_tid;
        (*out).view_tgid = view_tgid;
        (*out).reserved = 0;
    }
    let mut at = 0;
    while at < STACK_BYTES {
        // SAFETY: `at` is a multiple of STEP below STACK_BYTES, so the step is within the record; the helper
        // checks the source.
        let failed = unsafe {
            let bytes = (&raw mut (*out).bytes).cast::<u8>().add(at);
            bpf_probe_read_user(bytes.cast(), STEP as u32, (sp + at as u64) as *const _)
        };
        if failed != 0 {
            break;
        }
        at += STEP;
    }
    let mut len = at as u32;
    if at < STACK_BYTES {
        // The step crossed into a page that is not there: what lies before it.
        let rest = PAGE - ((sp + at as u64) & (PAGE - 1));
        if rest < STEP as u64 {
            // SAFETY: as above; `rest` is less than a step.
            let failed = unsafe {
                let bytes = (&raw mut (*out).bytes).cast::<u8>().add(at);
                bpf_probe_read_user(bytes.cast(), rest as u32 & (STEP as u32 - 1), (sp + at as u64) as *const _)
            };
            if failed == 0 {
                len += rest as u32;
            }
        }
    }
    // SAFETY: a field of the reserved record.
    unsafe { (*out).len = len };
    slot.submit(0);
    1
}
