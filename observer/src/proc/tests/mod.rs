//! Tests on real processes: each starts its own, and they die with the test.

mod identity;
mod memory;
mod pool;
pub(super) mod victim;
