//! `.gnu_debugdata`: a symbol table of the functions that are not exported, packed with xz. Fedora's programs have it.
//!
//! The container is read here, and only the LZMA2 chunks are given to the unpacker: they state their sizes, so what
//! would become too large is refused before any of it is unpacked.

use crate::explain::image::Image;
use std::io::{self, BufRead, Read};

/// More is not unpacked, bytes.
const MAX_UNPACKED: u64 = 64 << 20;
/// A larger section is not looked at, bytes.
const MAX_PACKED: usize = 32 << 20;
/// Blocks beyond these are not looked at: `xz` makes one, its threads some more.
const MAX_BLOCKS: usize = 1024;

/// The ELF file in `.gnu_debugdata`; `None` if the module has none.
pub(super) fn unpack(module: &Image) -> Option<Result<Image, String>> {
    let packed = module.section(".gnu_debugdata")?.bytes;
    let unpacked = unxz(packed).map_err(str::to_owned);
    Some(unpacked.and_then(|bytes| Image::from_bytes(bytes).map_err(|error| error.to_string())))
}

/// Unpacks an xz file of LZMA2 blocks. Sizes and checksums it states beside the data are not checked: what comes out is
/// looked at with the same suspicion as what went in.
pub(super) fn unxz(packed: &[u8]) -> Result<Vec<u8>, &'static str> {
    if packed.len() > MAX_PACKED {
        return Err("xz data too large");
    }
    if !packed.starts_with(b"\xfd7zXZ\0") {
        return Err("not xz data");
    }
    let check = match packed.get(7).ok_or("xz data cut short")? & 0xf {
        0 => 0,
        kind => 4 << ((usize::from(kind) - 1) / 3),
    };
    let mut at = 12;
    let mut unpacked = Vec::new();
    for _ in 0..MAX_BLOCKS {
        let header = usize::from(*packed.get(at).ok_or("xz data cut short")?) * 4 + 4;
        if header == 4 {
            // The index begins with a zero where a block has its size.
            return Ok(unpacked);
        }
        check_filters(packed.get(at..at + header).ok_or("xz data cut short")?)?;
        at += header;
        let chunks = Chunks::walk(packed.get(at..).ok_or("xz data cut short")?, unpacked.len() as u64)?;
        at += chunks.bytes.len();
        let mut block = Guarded { chunks, at: 0 };
        lzma_rs::lzma2_decompress(&mut block, &mut unpacked).map_err(|_| "xz data is damaged")?;
        // Blocks are padded to four bytes, then comes the check.
        at = at.next_multiple_of(4) + check;
    }
    Err("xz data of too many blocks")
}

/// Whether the only filter is LZMA2.
fn check_filters(header: &[u8]) -> Result<(), &'static str> {
    let flags = *header.get(1).ok_or("xz data cut short")?;
    let sizes = usize::from(flags & 0x40 != 0) + usize::from(flags & 0x80 != 0);
    let mut rest = header.get(2..).unwrap_or_default();
    for _ in 0..sizes {
        let end = rest.iter().position(|byte| byte & 0x80 == 0).ok_or("xz data cut short")?;
        rest = &rest[end + 1..];
    }
    // Number of filters less one in the lowest bits; 0x21 is LZMA2.
    if flags & 0x3 == 0 && rest.first() == Some(&0x21) {
        Ok(())
    } else {
        Err("xz data with a filter that is not known")
    }
}

/// The chunks of one block, and where in them sizes are stated.
struct Chunks<'a> {
    bytes: &'a [u8],
    /// Sorted.
    sizes: Vec<usize>,
}

impl<'a> Chunks<'a> {
    /// Steps over the chunks, adding up what they become; `before` is what came out of earlier blocks.
    fn walk(bytes: &'a [u8], before: u64) -> Result<Self, &'static str> {
        const CUT: &str = "xz data cut short";
        let mut at = 0;
        let mut total = before;
        let mut sizes = Vec::new();
        loop {
            let status = *bytes.get(at).ok_or(CUT)?;
            if status == 0 {
                return Ok(Self { bytes: &bytes[..=at], sizes });
            }
            let word = |at: usize| {
                let bytes = bytes.get(at..at + 2)?;
                Some(usize::from(bytes[0]) << 8 | usize::from(bytes[1]))
            };
            let low = word(at + 1).ok_or(CUT)? + 1;
            sizes.push(at + 1);
            let (becomes, len) = match status {
                1 | 2 => (low, 3 + low),
                0x80.. => {
                    sizes.push(at + 3);
                    let properties = usize::from(status >= 0xc0);
                    (low + (usize::from(status & 0x1f) << 16), 5 + properties + word(at + 3).ok_or(CUT)? + 1)
                }
                _ => return Err("xz data is damaged"),
            };
            total += becomes as u64;
            if total > MAX_UNPACKED {
                return Err("xz data becomes too large");
            }
            at += len;
        }
    }
}

/// What the unpacker reads. It reads on where a chunk's data end, not where the chunk ends, so in a damaged one it could
/// take other bytes for sizes than were added up before. Nothing but sizes is read two bytes at a time: such a read at
/// another place is refused.
struct Guarded<'a> {
    chunks: Chunks<'a>,
    at: usize,
}

impl Read for Guarded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.len() == 2 && self.chunks.sizes.binary_search(&self.at).is_err() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let rest = &self.chunks.bytes[self.at..];
        let len = buffer.len().min(rest.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.at += len;
        Ok(len)
    }
}

impl BufRead for Guarded<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.chunks.bytes[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at = self.chunks.bytes.len().min(self.at + amount);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;
    use crate::explain::names::tests::Random;

    /// `xz` of 1 MiB that packs badly in parts.
    fn sample() -> (Vec<u8>, Vec<u8>) {
        let mut random = Random(5);
        let mut plain: Vec<u8> = (0..200_000).map(|_| random.below(256) as u8).collect();
        plain.extend((0..800_000_u32).map(|i| (i / 7 % 251) as u8));
        let packed = crate::explain::names::tests::xz(&plain);
        (plain, packed)
    }

    #[test]
    fn unpacks_what_xz_packs() {
        let (plain, packed) = sample();
        assert!(unxz(&packed).unwrap() == plain);
        assert!(unxz(&packed[..packed.len() / 2]).is_err());
        assert!(unxz(b"").is_err());
    }

    #[test]
    fn a_bomb_is_refused_before_it_grows() {
        let bomb = crate::explain::names::tests::xz(&vec![0; (MAX_UNPACKED + 1) as usize]);
        assert!(bomb.len() < 100_000);
        assert_eq!(unxz(&bomb), Err("xz data becomes too large"));
    }

    #[test]
    fn chunks_that_end_early_do_not_hide_others() {
        // Two chunks as `xz` made them; the first one is stated to be longer, so that the second lies within it.
        let (_, packed) = sample();
        let header = usize::from(packed[12]) * 4 + 4;
        let mut chunks = packed[12 + header..].to_vec();
        let first = Chunks::walk(&chunks, 0).unwrap().sizes[0] - 1;
        assert_eq!(first, 0);
        // A chunk of one byte of output in 64 KiB of input: the unpacker stops at once and would read on within it.
        chunks[0] = 0xe0;
        (chunks[1], chunks[2]) = (0, 0);
        let walked = Chunks::walk(&chunks, 0);
        if let Ok(chunks) = walked {
            let mut out = Vec::new();
            assert!(lzma_rs::lzma2_decompress(&mut Guarded { chunks, at: 0 }, &mut out).is_err());
        }
        // One made by hand: 1 byte out of 32 bytes in, within which a size is stated that was not added up.
        let mut hidden = vec![0xe0, 0, 0, 0, 31, 93];
        hidden.extend([0; 5]);
        hidden.extend([1, 0xff, 0xff]);
        hidden.extend([0; 32 - 8]);
        hidden.push(0);
        let chunks = Chunks::walk(&hidden, 0).unwrap();
        assert_eq!(chunks.sizes, [1, 3]);
        let mut out = Vec::new();
        assert!(lzma_rs::lzma2_decompress(&mut Guarded { chunks, at: 0 }, &mut out).is_err());
    }

    #[test]
    fn damaged_data_end_in_an_error_or_in_other_bytes() {
        let (plain, packed) = sample();
        let mut random = Random(11);
        for _ in 0..60 {
            let mut bytes = packed.clone();
            for _ in 0..3 {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << random.below(8);
            }
            if let Ok(out) = unxz(&bytes) {
                assert!(out.len() <= plain.len() + (4 << 20));
            }
        }
    }
}
