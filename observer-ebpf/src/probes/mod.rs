//! One hook family per file; what they share is in [`syscall`] and [`timeout`].

mod census;
mod connect;
mod event;
mod futex;
mod habit;
mod poll;
mod rungs;
mod site;
mod socket;
mod socket_files;
mod socket_limits;
mod stacks;
mod syscall;
mod thread_exit;
mod timeout;
mod wakeup;
