//! `/proc/PID/maps`: names in it are the target's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::proc::maps;

fuzz_target!(|bytes: &[u8]| {
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if let Some(mapping) = maps::parse(line) {
            assert!(mapping.start < mapping.end);
            assert!(mapping.name.starts_with(mapping.path()));
            let _ = (mapping.is_file(), mapping.is_deleted());
        }
    }
});
