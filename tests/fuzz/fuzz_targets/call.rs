//! Whether the bytes before an address are a call.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::explain::fuzzing::call_before;

fuzz_target!(|bytes: &[u8]| {
    let Some((address, before)) = bytes.split_first_chunk() else { return };
    let found = call_before(u64::from_le_bytes(*address), before);
    // What stands before the longest instruction does not matter.
    let nearest = &before[before.len().saturating_sub(8)..];
    assert_eq!(found, call_before(u64::from_le_bytes(*address), nearest));
});
