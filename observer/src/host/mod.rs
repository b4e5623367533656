//! Facts about this machine: capability, BTF, kernel symbols, clocks.
//!
//! x86-64 only: system call numbers and register names are that architecture's.

pub mod btf;
pub mod capability;
pub mod clock;
pub mod kallsyms;
pub mod offsets;
pub mod types;

pub use capability::{Capability, Fact};
pub use kallsyms::Kallsyms;
pub use types::{KernelTypes, TypesError};
