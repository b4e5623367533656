//! The body that every rung of the attach ladder shares.

use super::event::{Ends, What, Who, count, count_all, send};
use super::timeout::Timeout;
use super::{connect, futex, habit, poll, site, socket, wakeup};
use crate::kernel::{add, current_in_view, setting};
use crate::maps::{CALL, ENABLED, FILTER, IN_FLIGHT, PROCESSES, SAMPLE, ZERO, ZERO_THREAD};
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_log_ebpf::debug;
use observer_ebpf::{
    ACCOUNT_ENTERED, ACCOUNT_FILTERED, ACCOUNT_IN_FLIGHT_FULL, ACCOUNT_INTERRUPTED, ACCOUNT_MEASURED,
    ACCOUNT_NOT_TIMED, ACCOUNT_PROCESSES_FULL, ACCOUNT_REPEATED, ACCOUNT_RETURN_MISSED, ACCOUNT_SAMPLED_OUT,
    ACCOUNT_UNPAIRED, ARGS, Call, Decoded, EVENT_BAD_TIMEOUT, EVENT_HABIT, EVENT_LONG_WAIT, FAMILY_CONNECT,
    FAMILY_FUTEX, FAMILY_POLL, FAMILY_SOCKET, FILTER_LISTED, FILTER_NAMESPACE, History, PENDING, ProcessKey,
    ProcessWaits, SAMPLE_MASK, THREAD_EXIT, TIMEOUT_INFINITE, TIMEOUT_INVALID, TIMEOUT_KINDS, TIMEOUT_NEGATIVE,
    TIMEOUT_ZERO, ThreadState, WAIT_BUCKETS,
};

/// The family of a system call, `u32::MAX` if none.
#[inline(always)]
pub(crate) fn family_of(nr: u32) -> u32 {
    if futex::has(nr) {
        FAMILY_FUTEX
    } else if poll::has(nr) {
        FAMILY_POLL
    } else if connect::has(nr) {
        FAMILY_CONNECT
    } else if setting!(sites) != 0 && socket::has(nr) {
        FAMILY_SOCKET
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

/// The aggregate of one process and family, made on first use; without room the loss of so many calls is counted.
#[inline(always)]
fn process(tgid: u32, family: u32, calls: u64) -> Option<*mut ProcessWaits> {
    let key = ProcessKey { tgid, family };
    if let Some(waits) = PROCESSES.get_ptr_mut(key) {
        return Some(waits);
    }
    let zero = ZERO.get(0)?;
    // Another CPU may have inserted it in between: BPF_NOEXIST keeps that one.
    let _ = PROCESSES.insert(key, zero, 1);
    let waits = PROCESSES.get_ptr_mut(key);
    if waits.is_none() {
        count_all(ACCOUNT_PROCESSES_FULL, calls);
        debug!((), "process map full: process {} is not aggregated", tgid);
    }
    waits
}

/// The state of the calling thread, made on first use.
#[inline(always)]
fn thread(id: u64) -> Option<*mut ThreadState> {
    if let Some(thread) = IN_FLIGHT.get_ptr_mut(id) {
        return Some(thread);
    }
    let zero = ZERO_THREAD.get(0)?;
    let _ = IN_FLIGHT.insert(id, zero, 0);
    IN_FLIGHT.get_ptr_mut(id)
}

/// Adds calls to the aggregate of their process.
#[inline(always)]
fn aggregate(waits: *mut ProcessWaits, kind: u32, calls: u64) {
    if (kind as usize) < TIMEOUT_KINDS {
        // SAFETY: in bounds of a live map value.
        unsafe { add((&raw mut (*waits).calls).cast::<u64>().add(kind as usize), calls) };
    }
}

/// Adds polls of zero milliseconds to their process.
#[inline(always)]
pub(crate) fn add_zeros(tgid: u32, calls: u64) {
    if let Some(waits) = process(tgid, FAMILY_POLL, calls) {
        aggregate(waits, TIMEOUT_ZERO, calls);
    }
}

/// How many bits of chance decide that a call of this family is looked at.
#[inline(always)]
fn sampling(family: u32) -> u32 {
    match SAMPLE.get(family) {
        Some(shift) => *shift & SAMPLE_MASK,
        None => 0,
    }
}

/// Whether this call is one of those that sampling passes over. By chance: a turn count would follow the rhythm of a
/// program that makes two calls in turn.
#[inline(always)]
fn sampled_out(family: u32) -> bool {
    let shift = sampling(family);
    // SAFETY: the helper has no preconditions.
    shift != 0 && unsafe { bpf_get_prandom_u32() } as u32 & ((1 << shift) - 1) != 0
}

/// A call is entered. `regs`: address of the user's registers, 0 if the rung is not given it.
#[inline(never)]
pub(crate) fn enter(nr: u32, args: &[u64; ARGS], regs: u64) {
    let family = family_of(nr);
    if family == u32::MAX || family == FAMILY_FUTEX && !futex::waits(nr, args[1]) {
        return;
    }
    count(ACCOUNT_ENTERED + family);
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
    let bad = timeout.kind == TIMEOUT_NEGATIVE || timeout.kind == TIMEOUT_INVALID;
    // What a rule may need is seen in every call; a futex wait without limit is the usual one.
    if !bad && !(family == FAMILY_POLL && timeout.kind == TIMEOUT_INFINITE) && sampled_out(family) {
        count(ACCOUNT_SAMPLED_OUT);
        return;
    }
    let Some(thread) = thread(id) else {
        count(ACCOUNT_IN_FLIGHT_FULL);
        debug!((), "in-flight map full: a call of process {} is not measured", tgid);
        if family != FAMILY_SOCKET
            && let Some(waits) = process(tgid, family, 1)
        {
            aggregate(waits, timeout.kind, 1);
        }
        if bad {
            let Some(call) = CALL.get_ptr_mut(0) else {
                return;
            };
            // SAFETY: this CPU's slot; the helper has no preconditions. A probe on top of this one could replace the call, and
            // then the event is of that one.
            let call = unsafe {
                *call = Call {
                    start_ns: bpf_ktime_get_ns(),
                    timeout_ns: timeout.ns,
                    timeout_raw: timeout.raw,
                    args: *args,
                    site: 0,
                    nr,
                    kind: timeout.kind,
                    family,
                    reserved: 0,
                };
                &*call
            };
            let what = What { kind: EVENT_BAD_TIMEOUT, family, wait_ns: 0, ret: 0, history: History::NONE, site: 0 };
            send(&what, &Who::current(), call, &Ends::UNKNOWN);
        }
        return;
    };
    let zero = family == FAMILY_POLL && poll::is_zero(nr, args[2], args[3]);
    let (timeout_ns, timeout_raw, kind) = (timeout.ns, timeout.raw, timeout.kind);
    let decoded =
        Decoded { timeout_ns, timeout_raw, nr, kind, family, zero: u32::from(zero), bad: u32::from(bad), slot: 0 };
    // SAFETY: a map value that only this thread writes.
    let decoded = unsafe {
        (&raw mut (*thread).decoded).write_volatile(decoded);
        (&raw const (*thread).decoded).read_volatile()
    };
    let Decoded { timeout_ns, timeout_raw, nr, kind, family, .. } = decoded;
    let (zero, bad) = (decoded.zero != 0, decoded.bad != 0);
    let timeout = Timeout { kind, raw: timeout_raw, ns: timeout_ns };
    // In place, and in flight once it has its start: a copy would take the stack that older kernels do not give.
    // SAFETY: a map value that only this thread writes.
    let call = unsafe { &mut (*thread).call };
    if call.start_ns != 0 {
        count(ACCOUNT_RETURN_MISSED);
    }
    *call = Call { start_ns: 0, timeout_ns, timeout_raw, args: *args, site: 0, nr, kind, family, reserved: 0 };
    if setting!(sites) != 0 {
        call.site = site::site(regs);
        if family == FAMILY_FUTEX || family == FAMILY_POLL {
            if site::entered(call) != 0 && site::stack(regs, call.site) != 0 {
                site::has_stack(call);
            }
        }
    }
    let mut history = History::NONE;
    let mut send_kind = 0;
    let mut spins = false;
    if family == FAMILY_FUTEX || family == FAMILY_POLL {
        let slot = habit::slot(thread, nr, family);
        if bad || timeout.kind == TIMEOUT_INFINITE {
            // SAFETY: a map value that only this thread writes.
            history = unsafe { habit::history(slot) };
        }
        let place = habit::place(args);
        let formed;
        // SAFETY: as above.
        spins = unsafe {
            formed = habit::is_formed(slot, place);
            habit::learn(slot, &timeout, place);
            zero && (*slot).zero > PENDING
        };
        if bad {
            // SAFETY: as above; the helper has no preconditions.
            if unsafe { habit::may_send(slot, bpf_ktime_get_ns()) } {
                send_kind = EVENT_BAD_TIMEOUT;
            } else {
                count(ACCOUNT_REPEATED);
            }
        } else if timeout.kind == TIMEOUT_INFINITE
            && history.infinite == 0
            && formed
            // SAFETY: as above.
            && unsafe { habit::is_whole(slot) }
        {
            send_kind = EVENT_HABIT;
        }
    }
    // SAFETY: a map value that only this thread writes and removes.
    let pending = unsafe { (*thread).pending_zero };
    if spins && pending + 1 < PENDING {
        // The hottest of all: an event loop that spins. It cannot wait, so there is nothing to time, and the
        // process hears of it later.
        // SAFETY: as above.
        unsafe { (*thread).pending_zero = pending + 1 };
        count(ACCOUNT_NOT_TIMED);
        return;
    }
    if family != FAMILY_SOCKET
        && let Some(waits) = process(tgid, family, 1)
    {
        aggregate(waits, timeout.kind, 1);
        if pending != 0 && family == FAMILY_POLL {
            aggregate(waits, TIMEOUT_ZERO, u64::from(pending));
            // SAFETY: as above.
            unsafe { (*thread).pending_zero = 0 };
        }
    }
    if zero {
        count(ACCOUNT_NOT_TIMED);
        return;
    }
    if send_kind != 0 && call.site == 0 {
        call.site = site::site(regs);
    }
    // SAFETY: the helper has no preconditions.
    call.start_ns = unsafe { bpf_ktime_get_ns() };
    if send_kind != 0 {
        let what = What { kind: send_kind, family, wait_ns: 0, ret: 0, history, site: call.site };
        send(&what, &Who::current(), call, &Ends::UNKNOWN);
        site::stack(regs, call.site);
    }
}

/// A call returns. `nr`: its number, `u32::MAX` where the rung does not tell. Where `regs` is not 0 it is certainly
/// one of ours (not, say, a futex wake-up).
#[inline(never)]
pub(crate) fn exit(ret: i64, nr: u32, regs: u64) {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    let thread = match IN_FLIGHT.get_ptr_mut(id) {
        // SAFETY: a map value that only this thread writes and removes.
        Some(thread) if unsafe { (*thread).call.start_ns } != 0 => thread,
        _ => {
            if regs != 0 && observed(tgid) && sampling(family_of(nr) & 3) == 0 {
                count(ACCOUNT_UNPAIRED);
            }
            return;
        }
    };
    // SAFETY: as above.
    let call = unsafe { (*thread).call };
    // SAFETY: as above.
    unsafe { (*thread).call.start_ns = 0 };
    if enabled() & THREAD_EXIT == 0 {
        // Nobody would remove it when the thread ends.
        let _ = IN_FLIGHT.remove(id);
    }
    if nr != u32::MAX && call.nr != nr {
        // The return of the call before was not seen, nor the entry of this one.
        count(ACCOUNT_RETURN_MISSED);
        return;
    }
    count(ACCOUNT_MEASURED);
    if matches!(-ret, 4 | 512..=516) {
        count(ACCOUNT_INTERRUPTED);
    }
    // SAFETY: the helper has no preconditions.
    let wait_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(call.start_ns);
    let family = call.family;
    if setting!(sites) != 0 && call.site != 0 {
        if site::is_kept(&call, wait_ns, ret) {
            // Of these only what waited is kept, so they are not counted at entry.
            let late = family == FAMILY_SOCKET || family == FAMILY_CONNECT;
            let wanted = late && site::entered(&call) != 0;
            site::returned(&call, wait_ns);
            if wanted && site::stack(regs, call.site) != 0 {
                site::has_stack(&call);
            }
        }
    }
    if family == FAMILY_SOCKET {
        return;
    }
    if setting!(wakes) != 0 && family == FAMILY_FUTEX && ret >= 0 {
        wakeup::was_woken(&call);
    }
    // Where there was no room for it at its entry, that was counted then.
    if let Some(waits) = PROCESSES.get_ptr_mut(ProcessKey { tgid, family }) {
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
        let what = What { kind: EVENT_LONG_WAIT, family, wait_ns, ret, history: History::NONE, site: call.site };
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

/// A call that wakes returns, having woken somebody.
#[inline(always)]
pub(crate) fn woke(nr: u32, first: u64) {
    if !observed((bpf_get_current_pid_tgid() >> 32) as u32) {
        return;
    }
    if sampled_out(FAMILY_FUTEX) {
        count(ACCOUNT_SAMPLED_OUT);
        return;
    }
    wakeup::woke(nr, first);
}

/// The mask in `ENABLED`.
#[inline(always)]
pub(crate) fn enabled() -> u32 {
    match ENABLED.get(0) {
        Some(mask) => *mask,
        None => 0,
    }
}
