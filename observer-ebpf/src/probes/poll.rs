//! `poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2`.

use super::rungs::hooks;
use super::timeout::{From, Timeout};
use observer_ebpf::ARGS;

const POLL: u32 = 7;
const SELECT: u32 = 23;
const EPOLL_WAIT: u32 = 232;
const PSELECT6: u32 = 270;
const PPOLL: u32 = 271;
const EPOLL_PWAIT: u32 = 281;
const EPOLL_PWAIT2: u32 = 441;

/// Whether `nr` belongs to this family.
#[inline(always)]
pub(crate) fn has(nr: u32) -> bool {
    matches!(nr, POLL | SELECT | EPOLL_WAIT | PSELECT6 | PPOLL | EPOLL_PWAIT | EPOLL_PWAIT2)
}

/// Whether the call polls for zero milliseconds, given its third and fourth argument. Zero in a `timespec`
/// does not count: the return does not see it any more.
#[inline(always)]
pub(crate) fn is_zero(nr: u32, third: u64, fourth: u64) -> bool {
    match nr {
        POLL => third as u32 == 0,
        EPOLL_WAIT | EPOLL_PWAIT => fourth as u32 == 0,
        _ => false,
    }
}

/// The timeout of a call of this family.
#[inline(always)]
pub(crate) fn timeout(nr: u32, args: &[u64; ARGS]) -> Timeout {
    match nr {
        POLL => Timeout::milliseconds(args[2]),
        EPOLL_WAIT | EPOLL_PWAIT => Timeout::milliseconds(args[3]),
        SELECT => Timeout::timeval(args[4]),
        PPOLL => Timeout::timespec(args[2], From::Now),
        PSELECT6 => Timeout::timespec(args[4], From::Now),
        _ => Timeout::timespec(args[3], From::Now),
    }
}

hooks!(fentry_poll, fexit_poll, POLL);
hooks!(fentry_select, fexit_select, SELECT);
hooks!(fentry_epoll_wait, fexit_epoll_wait, EPOLL_WAIT);
hooks!(fentry_pselect6, fexit_pselect6, PSELECT6);
hooks!(fentry_ppoll, fexit_ppoll, PPOLL);
hooks!(fentry_epoll_pwait, fexit_epoll_pwait, EPOLL_PWAIT);
hooks!(fentry_epoll_pwait2, fexit_epoll_pwait2, EPOLL_PWAIT2);
