//! `read recvfrom recvmsg accept accept4`: for the audit of call sites only.

use super::rungs::hooks;

const READ: u32 = 0;
const ACCEPT: u32 = 43;
const RECVFROM: u32 = 45;
const RECVMSG: u32 = 47;
const ACCEPT4: u32 = 288;

/// A shorter wait is no site: 1 ms.
pub(crate) const SHORTEST_NS: u64 = 1_000_000;

/// Whether `nr` belongs to this family.
#[inline(always)]
pub(crate) fn has(nr: u32) -> bool {
    matches!(nr, READ | ACCEPT | RECVFROM | RECVMSG | ACCEPT4)
}

hooks!(fentry_read, fexit_read, READ);
hooks!(fentry_accept, fexit_accept, ACCEPT);
hooks!(fentry_recvfrom, fexit_recvfrom, RECVFROM);
hooks!(fentry_recvmsg, fexit_recvmsg, RECVMSG);
hooks!(fentry_accept4, fexit_accept4, ACCEPT4);
