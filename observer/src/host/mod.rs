//! Facts about this machine: capability, BTF, kernel symbols, clocks.
//!
//! x86-64 only: system call numbers and register names are that architecture's.

pub mod btf;
pub mod capability;
pub mod clock;
pub mod kallsyms;
pub mod kernel_types;
pub mod machine;
pub mod offsets;

pub use capability::{Capability, Fact};
pub use kallsyms::Kallsyms;
pub use kernel_types::{KernelTypes, TypesError};
pub use machine::{boot_id, kernel_release, name, own_usage};
