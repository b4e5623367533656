//! Every thread on the host, about once a second, and the rare events between.
//!
//! [`IterSource`] and [`ProcSource`] give the same rows from the kernel's task iterator and from `/proc`;
//! [`ProbePlane`] sees what sampling cannot. Nothing here decides what is hung.

pub mod budget;
mod decode;
pub mod event;
mod governed;
mod iter;
mod ladder;
mod meter;
mod object;
mod probes;
mod procfs;
mod programs;
pub mod row;
mod sites;
mod socket_files;
mod source;
mod translate;

pub use event::{
    EventKind, Family, ProbeEvent, ProbeReading, SiteStack, SiteStats, ThreadWakes, TimeoutHistory, TimeoutKind,
    WaitStats, WordWakes,
};
pub use governed::{GovernedProbes, Spending};
pub use iter::IterSource;
pub use ladder::{Fall, FamilyStatus, Rung};
pub use meter::{ProgramCost, can_measure};
pub use object::OBJECT_SHA256;
pub use probes::{Filter, ProbeError, ProbePlane, ProbeSettings, ProbeStatus};
pub use procfs::ProcSource;
pub use programs::{LoadOutcome, ProgramLoad, load_each};
pub use row::{Census, Clocks, Pid, ProcessId, Registers, SocketLimit, SocketLimits, SyscallInProgress, ThreadRow};
pub use socket_files::{SocketFiles, SocketFilesError};
pub use source::{CensusError, Source};
