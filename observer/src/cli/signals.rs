//! Ctrl-C and its kin as something to wait for: the look ends in order, the report is printed, and the
//! kernel lets go of every probe with the last descriptor.

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// SIGINT or SIGTERM.
    End,
    /// SIGHUP: the terminal is gone, or settings are to be loaded again.
    HangUp,
}

/// SIGINT, SIGTERM and SIGHUP, blocked and queued on a descriptor. Make it before any thread starts, so
/// that all inherit the mask.
pub(super) struct Signals(SignalFd);

impl Signals {
    pub(super) fn take_over() -> anyhow::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGHUP);
        set.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("cannot make a signal descriptor")?;
        Ok(Self(fd))
    }

    /// Waits until `until` or a signal.
    pub(super) fn wait_until(&self, until: Instant) -> anyhow::Result<Option<Heard>> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // A millisecond more, so that `until` has passed when this returns.
            let left = if left.is_zero() { left } else { left + Duration::from_millis(1) };
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if Instant::now() >= until => return Ok(None),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => {
                    let signal = self.0.read_signal().context("cannot read a signal")?;
                    let hang_up = Signal::SIGHUP as u32;
                    let heard = |number| if number == hang_up { Heard::HangUp } else { Heard::End };
                    return Ok(signal.map(|signal| heard(signal.ssi_signo)));
                }
                Err(errno) => return Err(errno).context("cannot wait for signals"),
            }
        }
    }
}
