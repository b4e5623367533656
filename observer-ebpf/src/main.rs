//! What runs in the kernel.
fn main() {}
