//! `/proc/PID/net/{tcp,tcp6,udp,udp6}`: the same sockets where netlink is refused (proc_net_tcp in the kernel's
//! documentation). Slower, and without time-outs: when a connection attempt began follows from its count of repetitions.

use super::diag::elapsed_by_count;
use super::{SYN_SENT, Socket, Table};
use crate::census::Pid;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// The longest file that is read.
const MAX_BYTES: u64 = 64 << 20;
/// `TCP_TIMEOUT_INIT`.
const FIRST_TIMEOUT_MS: u64 = 1000;

/// The sockets of the network namespace of `pid` in one of `states` (bits).
pub(super) fn read(pid: Pid, table: Table, states: u32, until: Instant) -> Result<Vec<Socket>, String> {
    let names: &[&str] = match table {
        Table::Tcp => &["tcp", "tcp6"],
        Table::Udp => &["udp", "udp6"],
        // It has no queue lengths: not worth reading.
        Table::Unix => return Err("unix: netlink only".into()),
    };
    let linear = linear_timeouts();
    let mut found = Vec::new();
    for name in names {
        let file = match File::open(format!("/proc/{pid}/net/{name}")) {
            Ok(file) => file,
            // No IPv6 there.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && name.ends_with('6') => continue,
            Err(e) => return Err(crate::proc::stat::errno_name(&e)),
        };
        for (n, line) in BufReader::new(file.take(MAX_BYTES)).lines().skip(1).enumerate() {
            if n % 1024 == 1023 && Instant::now() > until {
                return Err("deadline".into());
            }
            let line = line.map_err(|e| crate::proc::stat::errno_name(&e))?;
            found.extend(parse(table, &line, linear).filter(|s| states & (1_u32 << (s.state & 31)) != 0));
        }
    }
    Ok(found)
}

/// `net.ipv4.tcp_syn_linear_timeouts` of our own namespace, as that of the target cannot be asked; 0 before 6.5.
fn linear_timeouts() -> u64 {
    std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syn_linear_timeouts")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

fn parse(table: Table, line: &str, linear: u64) -> Option<Socket> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let pair = |field: usize| {
        let (a, b) = fields.get(field)?.split_once(':')?;
        Some((hex(a)?, hex(b)?))
    };
    let state = u8::from_str_radix(fields.get(3)?, 16).ok()?;
    let (unsent, unread) = pair(4)?;
    let (timer, when) = pair(5)?;
    let retransmits = hex(fields.get(6)?)?;
    let backoff = u32::try_from(u64::from(retransmits).saturating_sub(linear)).unwrap_or(0).min(7);
    let connecting_for = (state == SYN_SENT && timer == 1).then(|| {
        let running = (FIRST_TIMEOUT_MS << backoff).saturating_sub(u64::from(when) * 10);
        Duration::from_millis(elapsed_by_count(FIRST_TIMEOUT_MS, u64::from(retransmits), backoff) + running)
    });
    Some(Socket {
        table,
        inode: fields.get(9)?.parse().ok()?,
        state,
        local: address(fields.get(1)?),
        remote: address(fields.get(2)?).filter(|a| a.port() != 0),
        unread: u64::from(unread),
        unsent: u64::from(unsent),
        retransmits,
        connecting_for,
        name: None,
        peer: 0,
        connecting: Vec::new(),
    })
}

/// `0100007F:1F90`: words of the address as the CPU sees them, the port as we write it.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        bytes.extend_from_slice(&u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip: IpAddr = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => Ipv4Addr::from(four).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;

    #[test]
    fn lines() {
        let line =
            "  12: 0100007F:D431 0100007F:1F90 02 00000001:00000000 01:00000096 00000005     0        0 4711 2 0 0 0 0";
        let socket = parse(Table::Tcp, line, 4).unwrap();
        assert_eq!(socket.local.unwrap().to_string(), "127.0.0.1:54321");
        assert_eq!(socket.remote.unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!((socket.state, socket.inode, socket.retransmits), (SYN_SENT, 4711, 5));
        // Five of one second, then half a second of two.
        assert_eq!(socket.connecting_for, Some(Duration::from_millis(5500)));
        let six =
            "0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 9 1";
        assert_eq!(parse(Table::Tcp, six, 0).unwrap().local.unwrap().to_string(), "[::1]:22");
        for broken in ["", "a b c d e f g h i j", "1: 0:0 0:0 0A 1:1", "1: é0000000:00 x 0A 1:1 1:1 0 0 0 9"] {
            let _ = parse(Table::Tcp, broken, 4);
        }
    }
}
