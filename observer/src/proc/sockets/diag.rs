//! Socket diagnostics over netlink (`sock_diag(7)`, `include/uapi/linux/{inet,unix}_diag.h`): bytes in, sockets out.

use super::listed::ListedTcp;
use super::{Socket, Table, state_bit};
use crate::proc::pool::Clock;
use crate::proc::streams::MOST_WAITING;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Sockets taken from one dump; a host with more gets an incomplete, counted answer.
const MAX_SOCKETS: usize = 1_000_000;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `idiag_timer`: the same data are sent again, and `idiag_retrans` says how often.
const TIMER_RETRANSMIT: u8 = 1;
/// The peer has no room, and is asked whether it has some by now. It begins to count anew with each answer (`tcp_ack`), so some
/// probes in a row are as good as retransmissions; fewer mean a peer that is there and takes nothing.
const TIMER_PROBE: u8 = 4;
const PROBES: u8 = 3;
/// `NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH`.
const DUMP: u16 = 0x301;
pub(super) const INET_DIAG_INFO: u16 = 2;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_ICONS: u16 = 3;
const UNIX_DIAG_RQLEN: u16 = 4;
/// `UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN`.
const UNIX_SHOW: u32 = 0x1d;

/// A netlink socket in the network namespace of the calling thread; it stays in that namespace.
pub(super) fn open() -> Result<OwnedFd, Errno> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    // The kernel answers at once; this is for the case that it does not.
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100))?;
    Ok(fd)
}

/// Every socket of a table that is in one of `states` (bits).
pub(super) fn dump(fd: &OwnedFd, table: Table, states: u32, until: Instant) -> Result<Vec<Socket>, String> {
    let mut found = Vec::new();
    match table {
        Table::Tcp | Table::Udp => {
            for family in [libc::AF_INET, libc::AF_INET6] {
                let with_info = table == Table::Tcp && states & state_bit::SYN_SENT != 0;
                let request = inet_request(family, table.protocol(), with_info, states);
                transact(fd, &request, until, &mut |body| found.extend(inet(table, body)), &mut || {})?;
            }
        }
        Table::Unix => {
            transact(fd, &unix_request(states), until, &mut |body| found.extend(unix(body)), &mut || {})?;
        }
    }
    Ok(found)
}

/// The TCP sockets in one of `states` (bits), in few bytes each, with the times and sums of `struct tcp_info`.
pub(super) fn dump_tcp(fd: &OwnedFd, states: u32, clock: Clock, until: Instant) -> Result<Vec<ListedTcp>, String> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        // The kernel fills the next part of its answer while it hands over one: when that was is the last moment before.
        let filled = Cell::new(clock());
        let mut each = |body: &[u8]| found.extend(ListedTcp::parse(body, filled.get()));
        // Taken when a part has arrived, in force for the next one.
        let next = Cell::new(clock());
        let request = inet_request(family, libc::IPPROTO_TCP as u8, true, states);
        transact(fd, &request, until, &mut each, &mut || filled.set(next.replace(clock())))?;
    }
    Ok(found)
}

/// The unix sockets of kind `SOCK_STREAM` and `SOCK_SEQPACKET` in one of `states` (bits).
pub(super) fn dump_unix_streams(fd: &OwnedFd, states: u32, until: Instant) -> Result<Vec<Socket>, String> {
    let mut found = Vec::new();
    let mut each = |body: &[u8]| {
        let kind = body.get(1).map_or(0, |kind| i32::from(*kind));
        if kind == libc::SOCK_STREAM || kind == libc::SOCK_SEQPACKET {
            found.extend(unix(body));
        }
    };
    transact(fd, &unix_request(states), until, &mut each, &mut || {})?;
    Ok(found)
}

/// `struct inet_diag_req_v2`; no address is asked for.
fn inet_request(family: i32, protocol: u8, with_info: bool, states: u32) -> Vec<u8> {
    let mut request = vec![family as u8, protocol, u8::from(with_info) << (INET_DIAG_INFO - 1), 0];
    request.extend_from_slice(&states.to_ne_bytes());
    request.resize(56, 0);
    request
}

/// `struct unix_diag_req`.
fn unix_request(states: u32) -> Vec<u8> {
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
    request.extend_from_slice(&states.to_ne_bytes());
    request.extend_from_slice(&0_u32.to_ne_bytes());
    request.extend_from_slice(&UNIX_SHOW.to_ne_bytes());
    request.resize(24, 0);
    request
}

/// Sends one dump request and hands every record of the answer to `each`; says when a part of it has `arrived`.
fn transact(
    fd: &OwnedFd,
    body: &[u8],
    until: Instant,
    each: &mut dyn FnMut(&[u8]),
    arrived: &mut dyn FnMut(),
) -> Result<(), String> {
    let name = |e: Errno| format!("{e:?}");
    let mut message = u32::try_from(16 + body.len()).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    message.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend_from_slice(&DUMP.to_ne_bytes());
    // Sequence and sender: one request at a time on this socket.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    sendto(fd.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map_err(name)?;

    let mut buffer = vec![0_u8; 64 * 1024];
    let mut records = 0;
    loop {
        let got = match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(got) => got,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => return Err("deadline".into()),
            Err(e) => return Err(name(e)),
        };
        arrived();
        let mut left = &buffer[..got];
        while let Some((kind, body, rest)) = message_of(left) {
            left = rest;
            match kind {
                // A table that the kernel cannot list ends like this, too.
                NLMSG_DONE => match u32_at(body, 0).map_or(0, |errno| errno as i32) {
                    errno if errno < 0 => return Err(name(Errno::from_raw(errno.wrapping_neg()))),
                    _ => return Ok(()),
                },
                NLMSG_ERROR => {
                    let errno = u32_at(body, 0).map_or(0, |e| (e as i32).wrapping_neg());
                    return Err(name(Errno::from_raw(errno)));
                }
                SOCK_DIAG_BY_FAMILY => each(body),
                _ => {}
            }
            records += 1;
            if records > MAX_SOCKETS {
                return Err("too many sockets".into());
            }
        }
        if Instant::now() > until {
            return Err("deadline".into());
        }
    }
}

/// Kind, body and what follows of the first message.
fn message_of(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32_at(bytes, 0)? as usize;
    let body = bytes.get(16..len)?;
    Some((u16_at(bytes, 4)?, body, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// The attributes behind a record: (`struct nlattr`, payload) each padded to 4 bytes.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let found = (u16_at(bytes, 2)?, bytes.get(4..len)?);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

/// How often the peer was asked in vain, from `idiag_timer` and `idiag_retrans`.
pub(super) fn in_vain(timer: u8, count: u8) -> u8 {
    match timer {
        TIMER_RETRANSMIT => count,
        TIMER_PROBE if count >= PROBES => count,
        // Keep-alives: of a connection at rest.
        _ => 0,
    }
}

/// `struct inet_diag_msg`.
fn inet(table: Table, body: &[u8]) -> Option<Socket> {
    let [family, state, timer, retransmits] = *body.first_chunk()?;
    let address = |port: usize, ip: usize| {
        let port = u16::from_be_bytes(body.get(port..port + 2)?.try_into().ok()?);
        let ip: IpAddr = if i32::from(family) == libc::AF_INET {
            Ipv4Addr::from(<[u8; 4]>::try_from(body.get(ip..ip + 4)?).ok()?).into()
        } else {
            Ipv6Addr::from(<[u8; 16]>::try_from(body.get(ip..ip + 16)?).ok()?).to_canonical()
        };
        Some(SocketAddr::new(ip, port))
    };
    let expires_ms = u32_at(body, 52)?;
    let info = attributes(body.get(72..)?).find(|(kind, _)| *kind == INET_DIAG_INFO).map(|(_, info)| info);
    Some(Socket {
        table,
        inode: u64::from(u32_at(body, 68)?),
        state,
        local: address(4, 8),
        remote: address(6, 24).filter(|a| a.port() != 0),
        unread: u64::from(u32_at(body, 56)?),
        unsent: u64::from(u32_at(body, 60)?),
        retransmits: u32::from(in_vain(timer, retransmits)),
        connecting_for: (state == super::SYN_SENT)
            .then(|| connecting_for(timer, retransmits, expires_ms, info))
            .flatten(),
        name: None,
        peer: 0,
        connecting: Vec::new(),
    })
}

/// `struct unix_diag_msg`.
fn unix(body: &[u8]) -> Option<Socket> {
    let mut socket = Socket {
        table: Table::Unix,
        inode: u64::from(u32_at(body, 4)?),
        state: *body.get(2)?,
        local: None,
        remote: None,
        unread: 0,
        unsent: 0,
        retransmits: 0,
        connecting_for: None,
        name: None,
        peer: 0,
        connecting: Vec::new(),
    };
    for (kind, payload) in attributes(body.get(16..)?) {
        match kind {
            UNIX_DIAG_NAME => {
                // `@` for the NUL of an abstract name, as `ss` prints it.
                let name = match payload.split_first() {
                    Some((0, rest)) => format!("@{}", String::from_utf8_lossy(rest)),
                    _ => String::from_utf8_lossy(payload).trim_end_matches('\0').to_owned(),
                };
                socket.name = (!name.is_empty()).then_some(name);
            }
            UNIX_DIAG_PEER => socket.peer = u64::from(u32_at(payload, 0).unwrap_or(0)),
            UNIX_DIAG_ICONS => {
                let inodes = payload.chunks_exact(4).filter_map(|bytes| u32_at(bytes, 0));
                socket.connecting = inodes.filter(|inode| *inode != 0).take(MOST_WAITING).collect();
            }
            UNIX_DIAG_RQLEN => {
                socket.unread = u64::from(u32_at(payload, 0).unwrap_or(0));
                socket.unsent = u64::from(u32_at(payload, 4).unwrap_or(0));
            }
            _ => {}
        }
    }
    Some(socket)
}

/// `TCP_RTO_MAX`.
const RTO_MAX_MS: u64 = 120_000;

/// How long a socket has been in SYN-SENT.
///
/// No field says so: `tcpi_last_data_sent` counts from boot until data are sent (measured on 6.18: the uptime).
/// - Before the first repetition: the first time-out less what is left of it.
/// - Later, kernel ≥ 6.7: the first time-out plus `tcpi_total_rto_time`, which counts from the first repetition
///   (`tcp_update_rto_stats`); within 20 ms here.
/// - Older: the sum of the time-outs so far. Those that did not double the next one are `retransmits - backoff`
///   (`tcp_syn_linear_timeouts`, 6.5); late timers add up to 2 % more.
fn connecting_for(timer: u8, retransmits: u8, expires_ms: u32, info: Option<&[u8]>) -> Option<Duration> {
    let info = info?;
    let rto = u64::from(u32_at(info, 8)?) / 1000;
    let backoff = u32::from(*info.get(4)?).min(16);
    let first = if rto >= RTO_MAX_MS { 1000 } else { (rto >> backoff).max(1) };
    let waiting = rto.checked_sub(u64::from(expires_ms)).filter(|_| timer == TIMER_RETRANSMIT);
    let elapsed = if retransmits == 0 {
        waiting?
    } else if let (Some(total), Some(since)) = (u16_at(info, 240), u32_at(info, 244))
        && total > 0
    {
        first + u64::from(since)
    } else {
        elapsed_by_count(first, u64::from(retransmits), backoff) + waiting?
    };
    Some(Duration::from_millis(elapsed))
}

/// The time-outs before the running one, milliseconds: `retransmits - backoff` of the first length, then doubling.
pub(super) fn elapsed_by_count(first: u64, retransmits: u64, backoff: u32) -> u64 {
    let doubled: u64 = (0..backoff).map(|n| (first << n.min(16)).min(RTO_MAX_MS)).sum();
    first * retransmits.saturating_sub(u64::from(backoff)) + doubled
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measured on 6.18 (`tcp_syn_linear_timeouts` 4): milliseconds since connect, then what the kernel said.
    #[test]
    fn probes_count_once_nobody_answers_them() {
        assert_eq!((in_vain(1, 1), in_vain(1, 7)), (1, 7));
        // A peer that takes nothing answers each of them; keep-alives say nothing of data.
        assert_eq!((in_vain(4, 2), in_vain(4, 3)), (0, 3));
        assert_eq!((in_vain(2, 9), in_vain(0, 9)), (0, 0));
    }

    #[test]
    fn time_since_the_first_syn() {
        for (truth, retransmits, expires, backoff, rto_us, total_rto, rto_time) in [
            (4, 0, 1000, 0, 1_000_000, 0_u16, 0_u32),
            (706, 0, 296, 0, 1_000_000, 0, 0),
            (1407, 1, 612, 0, 1_000_000, 1, 390),
            (4915, 4, 176, 0, 1_000_000, 4, 3898),
            (5616, 5, 1500, 1, 2_000_000, 5, 4599),
            (7722, 6, 3408, 2, 4_000_000, 6, 6705),
        ] {
            let mut info = vec![0_u8; 280];
            info[4] = backoff;
            info[8..12].copy_from_slice(&u32::to_ne_bytes(rto_us));
            info[240..242].copy_from_slice(&total_rto.to_ne_bytes());
            info[244..248].copy_from_slice(&rto_time.to_ne_bytes());
            for (len, slack) in [(280, 25), (232, 200)] {
                let got = connecting_for(1, retransmits, expires, Some(&info[..len])).map_or(0, |d| d.as_millis());
                assert!(got.abs_diff(truth) <= slack, "{got} instead of {truth} with {len} bytes");
            }
        }
        assert_eq!(connecting_for(1, 0, 5, None), None);
        assert_eq!(connecting_for(1, 3, u32::MAX, Some(&[0xff; 20])), None);
        assert!(connecting_for(255, 255, u32::MAX, Some(&[0xff; 280])).is_some());
        // Before 6.5 every time-out doubles.
        assert_eq!(elapsed_by_count(1000, 3, 3), 7000);
    }

    #[test]
    fn broken_answers_end_quietly() {
        for len in 0..120_usize {
            let bytes = vec![0xff; len];
            assert_eq!(message_of(&bytes), None);
            assert_eq!(attributes(&bytes).count(), 0);
            let _ = (inet(Table::Tcp, &bytes), unix(&bytes));
            let zeros = vec![0; len];
            assert!(attributes(&zeros).count() <= len);
            assert_eq!(message_of(&zeros), None);
            let _ = (inet(Table::Tcp, &zeros), unix(&zeros));
        }
    }
}
