//! An ELF file: the tables of Go's runtime.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::explain::go::PcLineTable;
use observer::explain::image::Image;
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::from_bytes(bytes.to_vec()) else { return };
    let image = Arc::new(image);
    let Ok(Some(table)) = PcLineTable::find(&image) else { return };
    for load in image.loads().iter().filter(|load| load.executable).take(4) {
        for distance in [0, 1, 0x10, 0x21, 0x40, 0x7f, load.memory_size.wrapping_sub(1)] {
            let svma = load.svma.wrapping_add(distance);
            let _ = (table.function(svma), table.frame_size(svma));
            assert!(table.frames(svma).len() <= 4096);
        }
    }
});
