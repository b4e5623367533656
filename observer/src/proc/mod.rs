//! Identity and memory of suspect processes, read from outside with deadlines.
//!
//! [`Gatherer::gather`] is called once per census with what the model asks for. Invariants:
//! - It returns within its deadline, whatever a target does: everything that can block (memory, command line, maps,
//!   program file, `fdinfo`) runs on readers that may be lost ([`pool`]). Not so [`file_locks`] and [`FarEnds`], calls of
//!   their own that read links, and `fdinfo` of plain files only, which does not wait for anybody.
//! - Nothing is reported of a process whose PID belongs to another one by now.
//! - Nothing is sent to a target, stopped in it or left open in it; network namespaces are not kept alive.

pub mod cgroup;
mod elf;
mod error;
pub mod facts;
mod far_ends;
mod fds;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gather;
pub mod goroutines;
mod identity;
mod in_root;
mod locks;
pub mod maps;
pub mod memory;
pub mod pieces;
mod polled;
pub mod pool;
mod runtime;
pub mod runtime_locks;
mod sockets;
pub mod stack;
mod stat;
mod stops;
pub mod streams;
pub mod tasks;
mod tree;
mod work;

#[cfg(test)]
mod tests;

pub use error::ProcError;
pub use facts::*;
pub use far_ends::FarEnds;
pub use fds::fd_fact;
pub use gather::{GatherSettings, Gatherer};
pub use goroutines::{GoState, GoWait, Goroutine, GoroutineGroup, Goroutines};
pub(crate) use in_root::open_in_root;
pub use locks::{BlockedLock, FileLockFact, FileLockKind, LockRange, LockWaiter, file_locks};
pub(crate) use runtime::base_name;
pub use runtime_locks::{RuntimeLock, RuntimeLockKind, RuntimeLocks, RuntimeWant};
pub use sockets::{FileTables, Sockets, Streams, Survey};
pub use stack::{FoundBy, Frame, Mention, SiteFact, SiteWant, Stack, StackEnd, StackFact, StackWant};
pub use stat::{ProcessState, exists};
pub use stops::{StopFact, stop_fact};
pub use streams::{Connection, Listener, ProcessStreams, StreamKind, Unaccepted};
pub use tasks::{ProcessTasks, Task, TaskGroup, TaskState};
pub use tree::children_of;
