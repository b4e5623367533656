//! The headers of an ELF file, what is asked of them, and the types of tasks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::explain::fuzzing::task_types;
use observer::explain::image::Image;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::from_bytes(bytes.to_vec()) else { return };
    for name in [".text", ".eh_frame", ".debug_frame", ".gopclntab"] {
        let _ = (image.section(name), image.unpacked(name));
    }
    let _ = task_types(&image);
    for load in image.loads() {
        for svma in [load.svma, load.svma.wrapping_add(load.file_size), load.svma.wrapping_sub(1)] {
            let _ = image.at(svma);
        }
        for offset in [load.offset, load.offset.saturating_add(load.file_size)] {
            let _ = image.svma_of_offset(offset, load.executable);
        }
    }
});
