//! `/tmp/perf-PID.map`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::explain::names::PerfMap;

fuzz_target!(|bytes: &[u8]| {
    let map = PerfMap::parse(bytes);
    for address in [0, 1, 0x10, 0x1000, 0x1008, 0x7fff_0000_0000, u64::MAX - 1, u64::MAX] {
        if let Some(name) = map.lookup(address) {
            assert!(!name.is_empty());
        }
    }
    assert!(map.approximate_bytes() <= 256 * bytes.len().max(64));
});
