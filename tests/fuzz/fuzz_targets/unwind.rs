//! A stack, and an ELF file with the call frame information to walk it by.
//!
//! Input: bytes of stack (2), sp (2, from the start of the stack), bp (2, likewise; 0xffff: unknown), ip (4), then the stack
//! and the file. Addresses on the stack are those of the file: it is mapped without a bias.
#![no_main]

use libfuzzer_sys::fuzz_target;
use observer::census::Registers;
use observer::explain::fuzzing::{Region, walk_stack};
use observer::explain::image::Image;

/// Where the stack begins.
const STACK: u64 = 0x7ffe_0000_0000;
/// Where code made at run time is.
const GENERATED: std::ops::Range<u64> = 0x7000_0000_0000..0x7000_0001_0000;

fuzz_target!(|bytes: &[u8]| {
    let Some(([a, b, c, d, e, f, ip @ ..], rest)) = bytes.split_first_chunk::<10>() else { return };
    let number = |low: &u8, high: &u8| u64::from(u16::from_le_bytes([*low, *high]));
    let (len, sp, bp) = (number(a, b), number(c, d), number(e, f));
    let ip = u64::from(u32::from_le_bytes(*ip));
    let Some((stack, file)) = rest.split_at_checked(len as usize) else { return };
    let Ok(image) = Image::from_bytes(file.to_vec()) else { return };
    let mut regions = Region::of_image(image, 0);
    regions.push(Region::generated(GENERATED));
    let registers = Registers { ip, sp: STACK + sp, bp: (bp != 0xffff).then_some(STACK + bp) };
    let (frames, _) = walk_stack(regions, (STACK, stack.to_vec()), registers);
    assert!((1..=1024).contains(&frames.len()));
});
