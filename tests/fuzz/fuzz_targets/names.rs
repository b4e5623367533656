//! An ELF file: its symbols, debug information and stubs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::explain::image::Image;
use observer::explain::names::Names;
use std::path::Path;
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::from_bytes(bytes.to_vec()) else { return };
    let image = Arc::new(image);
    let names = Names::load(Arc::clone(&image), Path::new("/nonexistent"), "/nonexistent/program");
    for load in image.loads().iter().filter(|load| load.executable).take(4) {
        for distance in [0, 1, 8, 0x17, 0x40, load.memory_size.wrapping_sub(1)] {
            for is_return_address in [false, true] {
                let found = names.lookup(load.svma.wrapping_add(distance), is_return_address);
                assert!(found.frames.len() <= 65);
                assert!(found.frames.last().is_none_or(|frame| !frame.inlined));
            }
        }
    }
    assert!(names.approximate_bytes() < 1 << 30);
});
