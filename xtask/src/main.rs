//! Builds, runs, tests and measures observer: `cargo xtask help`.
fn main() {}
