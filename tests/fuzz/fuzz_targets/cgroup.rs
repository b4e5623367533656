//! `/proc/PID/cgroup`: names in it may be the target's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::proc::cgroup;

fuzz_target!(|text: &str| {
    let found = cgroup::parse(text);
    assert!(found.container.is_none() || found.path.is_some());
});
