//! Identity and memory of suspect processes, read from outside with deadlines.

pub mod facts;

pub use facts::*;
