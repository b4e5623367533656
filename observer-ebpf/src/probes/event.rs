//! What leaves the probes: counts and rare events.

use crate::kernel::current_view;
use crate::maps::{ACCOUNT, EVENTS};
use aya_ebpf::helpers::bpf_get_current_comm;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_log_ebpf::debug;
use observer_ebpf::{ACCOUNT_RING_FULL, ACCOUNT_SENT, Call, Event, History};

/// Adds one to an entry of the account.
#[inline(always)]
pub(crate) fn count(entry: u32) {
    count_all(entry, 1);
}

/// Adds to an entry of the account.
#[inline(always)]
pub(crate) fn count_all(entry: u32, n: u64) {
    if let Some(slot) = ACCOUNT.get_ptr_mut(entry) {
        // SAFETY: this CPU's slot; a nested probe on the same CPU could lose one count, no more.
        unsafe { *slot += n };
    }
}

/// Where a socket's ends are.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    /// `AF_*`, 0 if unknown.
    pub(crate) family: u32,
    /// Local port in the low half, remote port in the high half.
    pub(crate) ports: u32,
    /// Local address.
    pub(crate) local: [u8; 16],
    /// Remote address.
    pub(crate) remote: [u8; 16],
}

impl Ends {
    /// Nothing known.
    pub(crate) const UNKNOWN: Self = Self { family: 0, ports: 0, local: [0; 16], remote: [0; 16] };
}

/// Who an event is about.
#[derive(Clone, Copy)]
pub(crate) struct Who {
    /// Initial thread id.
    pub(crate) tid: u32,
    /// Initial process id.
    pub(crate) tgid: u32,
    /// Thread id in observer's namespace.
    pub(crate) view_tid: u32,
    /// Process id in observer's namespace.
    pub(crate) view_tgid: u32,
    /// Thread name.
    pub(crate) comm: [u8; 16],
}

impl Who {
    /// The calling thread.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        let id = bpf_get_current_pid_tgid();
        let (view_tid, view_tgid) = current_view();
        Self {
            tid: id as u32,
            tgid: (id >> 32) as u32,
            view_tid,
            view_tgid,
            comm: bpf_get_current_comm().unwrap_or([0; 16]),
        }
    }
}

/// What happened, beside who and where.
pub(crate) struct What {
    /// `EVENT_*`.
    pub(crate) kind: u32,
    /// `FAMILY_*`.
    pub(crate) family: u32,
    /// Nanoseconds waited.
    pub(crate) wait_ns: u64,
    /// Return value.
    pub(crate) ret: i64,
    /// What the thread passed before.
    pub(crate) history: History,
    /// The call site.
    pub(crate) site: u64,
}

/// Sends one event, or counts its loss.
#[inline(always)]
pub(crate) fn send(what: &What, who: &Who, call: &Call, ends: &Ends) {
    let Some(mut slot) = EVENTS.reserve::<Event>(0) else {
        count(ACCOUNT_RING_FULL);
        debug!((), "ring buffer full: an event of process {} is lost", who.tgid);
        return;
    };
    slot.write(Event {
        kind: what.kind,
        family: what.family,
        tid: who.tid,
        tgid: who.tgid,
        view_tid: who.view_tid,
        view_tgid: who.view_tgid,
        syscall: call.nr,
        timeout_kind: call.kind,
        start_ns: call.start_ns,
        wait_ns: what.wait_ns,
        ret: what.ret,
        timeout_raw: call.timeout_raw,
        timeout_ns: call.timeout_ns,
        args: call.args,
        address_family: ends.family,
        ports: ends.ports,
        local: ends.local,
        remote: ends.remote,
        comm: who.comm,
        history: what.history,
        site: what.site,
    });
    slot.submit(0);
    count(ACCOUNT_SENT);
}
