//! Names of functions, as compilers write them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::explain::names::demangle;

fuzz_target!(|raw: &str| {
    assert!(demangle(raw).len() <= 4096);
});
