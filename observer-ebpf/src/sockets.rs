//! What is written of sockets: their time limits, and which descriptors they are.

use crate::RecordPrefix;

/// The time limits of one socket.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SocketRecord {
    /// Kind and length.
    pub prefix: RecordPrefix,
    /// Process id in observer's PID namespace.
    pub view_tgid: u32,
    /// Its descriptor there.
    pub fd: u32,
    /// `sk->sk_rcvtimeo` (`SO_RCVTIMEO`), ticks; `i64::MAX` is no limit.
    pub receive: u64,
    /// `sk->sk_sndtimeo` (`SO_SNDTIMEO`), ticks.
    pub send: u64,
    /// Ticks now; they began 300 s below 2^32 when the kernel started.
    pub jiffies: u64,
    /// `CLOCK_MONOTONIC` now, nanoseconds: with `jiffies` it tells how long a tick is.
    pub mono_ns: u64,
}

/// A descriptor that is a socket, of the process that was asked about.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SocketFileRecord {
    /// Kind and length.
    pub prefix: RecordPrefix,
    /// The descriptor.
    pub fd: u32,
    /// Inode number of the socket, as in `socket:[123]` and in socket diagnostics.
    pub inode: u32,
}

const _: () = {
    assert!(size_of::<SocketRecord>() == 48);
    assert!(size_of::<SocketFileRecord>() == 16);
};
