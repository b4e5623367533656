//! `connect`, and the TCP state changes that show a non-blocking one.
//!
//! A slow blocking connect over TCP is seen twice: as a call that returned and as a socket that
//! changed state. The two events carry the same thread id; user space may join them.

use super::event::{Ends, What, Who, count, send};
use super::rungs::hooks;
use super::syscall::observed;
use crate::kernel::{Btf, Raw, off, setting, user};
use crate::maps::SOCKETS;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_log_ebpf::debug;
use observer_ebpf::{
    ACCOUNT_FILTERED, ACCOUNT_SEEN, ACCOUNT_SOCKETS_FULL, Attempt, Call, EVENT_CONNECT, FAMILY_CONNECT, History,
    TIMEOUT_NONE,
};

const CONNECT: u32 = 42;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;
/// `TCP_ESTABLISHED`, `TCP_SYN_SENT`, `TCP_CLOSE` of `include/net/tcp_states.h`.
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const CLOSE: u32 = 7;

/// Whether `nr` belongs to this family.
#[inline(always)]
pub(crate) fn has(nr: u32) -> bool {
    nr == CONNECT
}

/// Whether a return value of `connect` is neither success nor "in progress" nor an interruption.
#[inline(always)]
pub(crate) fn failed(ret: i64) -> bool {
    // EINPROGRESS, EALREADY, EISCONN, EINTR, ERESTARTSYS..ERESTART_RESTARTBLOCK
    ret < 0 && !matches!(-ret, 115 | 114 | 106 | 4 | 512..=516)
}

/// A call to `connect` returned.
#[inline(always)]
pub(crate) fn returned(call: &Call, wait_ns: u64, ret: i64) {
    if failed(ret) || wait_ns >= setting!(slow_connect_ns) {
        let ends = destination(call.args[1], call.args[2]);
        send(
            &What {
                kind: EVENT_CONNECT,
                family: FAMILY_CONNECT,
                wait_ns,
                ret,
                history: History::NONE,
                site: call.site,
            },
            &Who::current(),
            call,
            &ends,
        );
    }
}

/// Decodes the `sockaddr` the caller passed.
#[inline(always)]
fn destination(address: u64, len: u64) -> Ends {
    let mut ends = Ends::UNKNOWN;
    if len < 16 {
        return ends;
    }
    let Some(head) = user::<[u16; 8]>(address) else {
        return ends;
    };
    let port = u32::from(u16::from_be(head[1])) << 16;
    ends.family = u32::from(head[0]);
    if ends.family == AF_INET {
        ends.ports = port;
        let [a, b] = head[2].to_ne_bytes();
        let [c, d] = head[3].to_ne_bytes();
        ends.remote[0] = a;
        ends.remote[1] = b;
        ends.remote[2] = c;
        ends.remote[3] = d;
    } else if ends.family == AF_INET6 && len >= 24 {
        ends.ports = port;
        if let Some(remote) = user::<[u8; 16]>(address + 8) {
            ends.remote = remote;
        }
    }
    ends
}

/// TCP state change, with types.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/inet_sock_set_state")]
extern "C" fn tcp_state_btf(ctx: *const u64) -> i32 {
    // SAFETY: the tracepoint has three arguments: socket, old state, new state.
    let Some(sock) = Btf::new(unsafe { *ctx } as *const u8) else {
        return 0;
    };
    // SAFETY: as above.
    let old = unsafe { *ctx.add(1) } as u32;
    // SAFETY: as above.
    let new = unsafe { *ctx.add(2) } as u32;
    if u32::from(sock.u16(off!(sock_protocol))) != IPPROTO_TCP {
        return 0;
    }
    state_change(sock.raw(), old, new, |sock| {
        let mut ends = Ends::UNKNOWN;
        ends.family = u32::from(sock.get::<u16>(off!(sock_family)));
        ends.ports = u32::from(sock.get::<u16>(off!(sock_num)))
            | u32::from(u16::from_be(sock.get::<u16>(off!(sock_dport)))) << 16;
        if ends.family == AF_INET6 {
            ends.local = sock.get(off!(sock_v6_rcv_saddr));
            ends.remote = sock.get(off!(sock_v6_daddr));
        } else {
            let local: [u8; 4] = sock.get(off!(sock_rcv_saddr));
            let remote: [u8; 4] = sock.get(off!(sock_daddr));
            (ends.local[0], ends.local[1], ends.local[2], ends.local[3]) = (local[0], local[1], local[2], local[3]);
            (ends.remote[0], ends.remote[1], ends.remote[2], ends.remote[3]) =
                (remote[0], remote[1], remote[2], remote[3]);
        }
        ends
    });
    0
}

/// One word of the tracepoint's record. Volatile, so that each is read at a constant offset: the
/// verifier refuses arithmetic on a context.
#[inline(always)]
fn word(ctx: *const u32, at: usize) -> u32 {
    // SAFETY: the caller's `at` is within the record.
    unsafe { core::ptr::read_volatile(ctx.add(at)) }
}

/// TCP state change, without types. The record of `sock:inet_sock_set_state` (kernel >= 5.6), in words:
/// 2 socket, 4 old state, 5 new state, 6 local port and remote port, 7 family and protocol, 8 local and
/// 9 remote IPv4 address, 10 to 13 local and 14 to 17 remote IPv6 address.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tracepoint")]
extern "C" fn tcp_state_tracepoint(ctx: *const u32) -> i32 {
    let family_protocol = word(ctx, 7);
    if family_protocol >> 16 != IPPROTO_TCP {
        return 0;
    }
    let family = family_protocol & 0xffff;
    let zeros = [0; 4];
    let (local, remote) = if family == AF_INET6 {
        (
            [word(ctx, 10), word(ctx, 11), word(ctx, 12), word(ctx, 13)],
            [word(ctx, 14), word(ctx, 15), word(ctx, 16), word(ctx, 17)],
        )
    } else if family == AF_INET {
        ([word(ctx, 8), 0, 0, 0], [word(ctx, 9), 0, 0, 0])
    } else {
        (zeros, zeros)
    };
    let ends = Ends {
        family,
        ports: word(ctx, 6),
        // SAFETY: sixteen bytes either way.
        local: unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(local) },
        // SAFETY: sixteen bytes either way.
        remote: unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(remote) },
    };
    // SAFETY: the socket's address is a 64-bit word at offset 8.
    let sock = unsafe { core::ptr::read_volatile(ctx.cast::<u64>().add(1)) };
    state_change(Raw::new(sock as *const u8), word(ctx, 4), word(ctx, 5), |_| ends);
    0
}

#[inline(always)]
fn state_change(sock: Raw, old: u32, new: u32, ends: impl FnOnce(Raw) -> Ends) {
    let key = sock.address();
    if new == SYN_SENT {
        count(ACCOUNT_SEEN);
        // The caller of connect() is the current thread.
        if !observed((bpf_get_current_pid_tgid() >> 32) as u32) {
            count(ACCOUNT_FILTERED);
            // What an attempt left here whose end was not seen must not be taken for one of this socket.
            let _ = SOCKETS.remove(key);
            return;
        }
        let who = Who::current();
        let attempt = Attempt {
            // SAFETY: the helper has no preconditions.
            start_ns: unsafe { bpf_ktime_get_ns() },
            tid: who.tid,
            tgid: who.tgid,
            view_tid: who.view_tid,
            view_tgid: who.view_tgid,
            comm: who.comm,
        };
        if SOCKETS.insert(key, attempt, 0).is_err() {
            count(ACCOUNT_SOCKETS_FULL);
            debug!((), "socket map full: a connection of process {} is not followed", who.tgid);
        }
        return;
    }
    if old != SYN_SENT {
        return;
    }
    let Some(attempt) = SOCKETS.get_ptr(key) else {
        return;
    };
    // SAFETY: a map value; the socket is locked, so nobody else changes or removes this entry.
    let attempt = unsafe { *attempt };
    if SOCKETS.remove(key).is_err() {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let wait_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(attempt.start_ns);
    let error = if new == CLOSE { sock.get::<i32>(off!(sock_err)) } else { 0 };
    let slow = wait_ns >= setting!(slow_connect_ns);
    if !(slow || new == CLOSE && error != 0) || !(new == CLOSE || new == ESTABLISHED) {
        return;
    }
    let call = Call {
        start_ns: attempt.start_ns,
        timeout_ns: 0,
        timeout_raw: 0,
        args: [0; 6],
        site: 0,
        nr: u32::MAX,
        kind: TIMEOUT_NONE,
        family: FAMILY_CONNECT,
        reserved: 0,
    };
    let who = Who {
        tid: attempt.tid,
        tgid: attempt.tgid,
        view_tid: attempt.view_tid,
        view_tgid: attempt.view_tgid,
        comm: attempt.comm,
    };
    let ret = -i64::from(error);
    let what = What { kind: EVENT_CONNECT, family: FAMILY_CONNECT, wait_ns, ret, history: History::NONE, site: 0 };
    send(&what, &who, &call, &ends(sock));
}

hooks!(fentry_connect, fexit_connect, CONNECT);
