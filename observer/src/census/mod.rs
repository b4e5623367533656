//! Every thread on the host, about once a second, and the rare events between.

pub mod event;
pub mod row;

pub use event::{EventKind, Family, ProbeEvent, ProbeReading, TimeoutKind, WaitStats};
pub use row::{Census, Clocks, Pid, ProcessId, Registers, SyscallInProgress, ThreadRow};
