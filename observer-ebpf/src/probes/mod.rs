//! One hook family per file; what they share is in [`syscall`] and [`timeout`].

mod census;
mod connect;
mod event;
mod futex;
mod poll;
mod socket_limits;
mod stacks;
mod syscall;
mod thread_exit;
mod timeout;

pub(crate) use connect::Attempt;
pub(crate) use syscall::InFlight;
