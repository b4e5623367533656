//! A TCP socket as the kernel lists it, in few bytes: hosts have a hundred thousand of them.

use super::diag::{INET_DIAG_INFO, attributes, in_vain, u32_at};
use super::{Socket, state_name};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One end of a connection; addresses of IPv4 are mapped into those of IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct End {
    pub(super) ip: [u8; 16],
    pub(super) port: u16,
}

const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl End {
    pub(super) fn of(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { ip: ip.octets(), port: address.port() }
    }

    fn read(family: u8, port: &[u8], ip: &[u8]) -> Option<Self> {
        let mut end = Self { ip: *ip.first_chunk()?, port: u16::from_be_bytes(*port.first_chunk()?) };
        if i32::from(family) == libc::AF_INET {
            let four: [u8; 4] = *ip.first_chunk()?;
            end.ip = Ipv4Addr::from(four).to_ipv6_mapped().octets();
        }
        Some(end)
    }

    /// As [`fmt::Display`] has it; that of IPv4, which most are, is made by hand.
    pub(super) fn text(&self) -> String {
        if !self.is_v4() {
            return self.to_string();
        }
        let mut text = String::with_capacity("255.255.255.255:65535".len());
        for (n, byte) in self.ip[V4_MAPPED.len()..].iter().enumerate() {
            if n > 0 {
                text.push('.');
            }
            push_number(&mut text, u16::from(*byte));
        }
        text.push(':');
        push_number(&mut text, self.port);
        text
    }

    fn is_v4(&self) -> bool {
        self.ip.starts_with(&V4_MAPPED)
    }

    fn is_unspecified(&self) -> bool {
        self.ip == [0; 16] || self.is_v4() && self.ip.ends_with(&[0; 4])
    }

    /// Whether a listener here gets what arrives at `local`.
    pub(super) fn takes(&self, local: &Self) -> bool {
        // One at `[::]` takes IPv4 as well unless it is told not to.
        let any = self.is_unspecified() && (!self.is_v4() || local.is_v4());
        self.port == local.port && (any || self.ip == local.ip)
    }

    /// Whether it names one address.
    pub(super) fn is_specific(&self) -> bool {
        !self.is_unspecified()
    }
}

fn push_number(text: &mut String, number: u16) {
    let mut power = 10_000;
    while power > 1 && number < power {
        power /= 10;
    }
    while power > 0 {
        text.push(char::from(b'0' + (number / power % 10) as u8));
        power /= 10;
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(Ipv6Addr::from(self.ip).to_canonical(), self.port).fmt(f)
    }
}

/// A TCP socket. Of one that listens, `unread` is how many connections wait to be accepted, `unsent` how many may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ListedTcp {
    pub(super) local: End,
    pub(super) remote: End,
    /// 0 before it is accepted and after it was closed.
    pub(super) inode: u32,
    pub(super) unread: u32,
    pub(super) unsent: u32,
    pub(super) state: u8,
    pub(super) retransmits: u8,
    /// Where the kernel told times and sums.
    pub(super) info: Option<Info>,
    /// When it was listed.
    pub(super) at_ns: u64,
}

/// What `struct tcp_info` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    /// Bytes that came in; the end of the stream counts as one.
    pub(super) received: u64,
    /// Bytes acknowledged; SYN and end of the stream count as one each.
    pub(super) acknowledged: u64,
    /// When data came in, or the connection was made (`icsk_ack.lrcvtime`).
    pub(super) last_received_ns: u64,
    /// When data were sent, or sent again, or the connection was made (`lsndtime`).
    pub(super) last_sent_ns: u64,
    pub(super) has_received: bool,
    pub(super) has_sent: bool,
}

impl ListedTcp {
    /// `struct inet_diag_msg`, filled at `at_ns`.
    pub(super) fn parse(body: &[u8], at_ns: u64) -> Option<Self> {
        let [family, state, timer, repeated] = *body.first_chunk()?;
        let info = attributes(body.get(72..)?).find(|(kind, _)| *kind == INET_DIAG_INFO).map(|(_, info)| info);
        Some(Self {
            local: End::read(family, body.get(4..6)?, body.get(8..24)?)?,
            remote: End::read(family, body.get(6..8)?, body.get(24..40)?)?,
            inode: u32_at(body, 68)?,
            unread: u32_at(body, 56)?,
            unsent: u32_at(body, 60)?,
            state,
            retransmits: in_vain(timer, repeated),
            info: info.and_then(|info| Info::parse(info, at_ns)),
            at_ns,
        })
    }

    /// One of `/proc/net/tcp`, without times.
    pub(super) fn plain(socket: &Socket, at_ns: u64) -> Option<Self> {
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Some(Self {
            local: End::of(socket.local?),
            remote: socket.remote.map(End::of).unwrap_or_default(),
            inode: u32::try_from(socket.inode).ok()?,
            unread: small(socket.unread),
            unsent: small(socket.unsent),
            state: socket.state,
            retransmits: u8::try_from(socket.retransmits).unwrap_or(u8::MAX),
            info: None,
            at_ns,
        })
    }

    pub(super) fn state_name(&self) -> &'static str {
        state_name(self.state)
    }
}

impl Info {
    /// Kernels differ in how much there is: `tcpi_bytes_received` since 4.1, `tcpi_data_segs_out` since 4.6.
    fn parse(info: &[u8], at_ns: u64) -> Option<Self> {
        let u64_at = |at: usize| info.get(at..at + 8)?.first_chunk().copied().map(u64::from_ne_bytes);
        let ago = |at: usize| u32_at(info, at).map(|ms| at_ns.saturating_sub(u64::from(ms) * 1_000_000));
        let (acknowledged, received) = (u64_at(120)?, u64_at(128)?);
        Some(Self {
            received,
            acknowledged,
            last_received_ns: ago(52)?,
            last_sent_ns: ago(44)?,
            // A probe of a keep-alive may come with a byte that was there before.
            has_received: received > 0 && u32_at(info, 152).is_none_or(|segments| segments > 0),
            has_sent: u32_at(info, 156).map_or(acknowledged > 1, |segments| segments > 0),
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;

    fn end(text: &str) -> End {
        End::of(text.parse().unwrap())
    }

    #[test]
    fn who_listens_where() {
        for (listener, local, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("0.0.0.0:80", "10.0.0.1:80", true),
            ("0.0.0.0:80", "[2001:db8::1]:80", false),
            ("[::]:80", "10.0.0.1:80", true),
            ("[::]:80", "[2001:db8::1]:80", true),
            ("[::1]:80", "127.0.0.1:80", false),
        ] {
            assert_eq!(end(listener).takes(&end(local)), expected, "{listener} {local}");
        }
        assert!(end("0.0.0.0:1").is_unspecified() && end("[::]:1").is_unspecified());
        assert_eq!(end("[::ffff:10.0.0.1]:80").to_string(), "10.0.0.1:80");
        assert_eq!(end("[2001:db8::1]:80").to_string(), "[2001:db8::1]:80");
        for text in
            ["0.0.0.0:0", "127.0.0.1:80", "10.200.30.255:65535", "1.2.3.4:10000", "9.10.99.100:9", "[::]:1", "[::1]:80"]
        {
            assert_eq!((end(text).text(), end(text).to_string()), (text.to_owned(), text.to_owned()));
        }
    }

    #[test]
    fn only_what_the_kernel_has_is_used() {
        let mut info = vec![0_u8; 280];
        info[44..48].copy_from_slice(&7_u32.to_ne_bytes());
        info[52..56].copy_from_slice(&9_u32.to_ne_bytes());
        info[120..128].copy_from_slice(&1_u64.to_ne_bytes());
        info[128..136].copy_from_slice(&5_u64.to_ne_bytes());
        info[152..156].copy_from_slice(&1_u32.to_ne_bytes());
        let expected = Info {
            received: 5,
            acknowledged: 1,
            last_received_ns: 1_000_000,
            last_sent_ns: 3_000_000,
            has_received: true,
            has_sent: false,
        };
        assert_eq!(Info::parse(&info, 10_000_000), Some(expected));
        // Without counts of segments, bytes tell.
        assert_eq!(Info::parse(&info[..140], 10_000_000), Some(expected));
        assert_eq!(Info::parse(&info[..104], 10_000_000), None);
        // Since boot, and before: no time of ours.
        assert_eq!(Info::parse(&[0xff; 280], 5).map(|info| info.last_sent_ns), Some(0));
        for len in 0..400 {
            let _ = (ListedTcp::parse(&vec![0xff; len], 1), ListedTcp::parse(&vec![0; len], 1));
        }
    }
}
