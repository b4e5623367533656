//! Stacks and names, on demand: where in the code a blocked thread stands.
//!
//! Nothing here runs over everything: a thread is walked when the model asks (its wait is ambiguous) or when it is about
//! to be reported. The target is not stopped: the walk starts from the registers the kernel saved when the thread
//! blocked, and the next census tells whether it slept all the while.
//!
//! Everything a target provides (ELF, DWARF, Go's tables, perf maps, its stack) is hostile input: bounded, checked,
//! never a panic. Files are mapped, not read ([`image`]); what is learnt of one is kept by build-id.

mod address_space;
mod bus_errors;
mod cpython;
mod explainer;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod go;
pub mod image;
mod job;
mod jvm;
mod library;
pub mod names;
mod pieces;
mod tasks;
mod unwind;

pub use explainer::{BUSY, ExplainSettings, Explained, Explainer};
pub use go::goroutines::NOT_STARTED;
