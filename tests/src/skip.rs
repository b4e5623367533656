//! A test that cannot run here says why, aloud, and is counted.

use std::io::Write;

/// Prints `SKIPPED: <test>: <why>` past libtest's capture, on stderr, where `cargo xtask test` counts it.
pub fn announce(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("?");
    // A closed stderr must not turn a skip into a failure.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

/// Announces why this test cannot run here and returns from it.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        $crate::skip::announce(&format!($($why)*));
        return Ok(());
    }};
}
