//! Memory of a target in small pieces, for those who follow pointers through it.

use crate::proc::MemoryRange;

/// Pieces read at once.
pub(super) const TOGETHER: usize = 1024;

/// Reads pieces of memory, one answer per piece in the order asked for: as much of it as there is.
pub(super) type ReadPieces<'a> = dyn FnMut(&[MemoryRange]) -> Vec<Vec<u8>> + 'a;

/// The memory of a runtime; in tests, what they made up.
pub(super) struct Memory<'a> {
    pub(super) read: &'a mut ReadPieces<'a>,
}

impl Memory<'_> {
    pub(super) fn pieces(&mut self, ranges: &[MemoryRange]) -> Vec<Vec<u8>> {
        let mut pieces = Vec::with_capacity(ranges.len());
        for (number, together) in ranges.chunks(TOGETHER).enumerate() {
            pieces.extend((self.read)(together));
            pieces.resize_with(number * TOGETHER + together.len(), Vec::new);
        }
        pieces
    }

    /// Pieces of the same length, one per address.
    pub(super) fn each(&mut self, addresses: impl Iterator<Item = u64>, len: u32) -> Vec<Vec<u8>> {
        let ranges: Vec<MemoryRange> = addresses.map(|addr| MemoryRange { addr, len }).collect();
        self.pieces(&ranges)
    }

    /// The word at each address.
    pub(super) fn words(&mut self, addresses: impl Iterator<Item = u64>) -> Vec<Option<u64>> {
        self.each(addresses, 8).iter().map(|bytes| word(bytes, 0)).collect()
    }

    /// The word at an address.
    pub(super) fn word(&mut self, address: u64) -> Option<u64> {
        self.words(std::iter::once(address)).first().copied().flatten()
    }

    /// As many of `len` bytes from here on as there are.
    pub(super) fn bytes(&mut self, address: u64, len: u64) -> Vec<u8> {
        let step = u64::from(MemoryRange::MAX_LEN);
        let ranges = (0..len.div_ceil(step)).map(|number| MemoryRange {
            addr: address.wrapping_add(number * step),
            len: (len - number * step).min(step) as u32,
        });
        let ranges: Vec<MemoryRange> = ranges.collect();
        let mut bytes = Vec::new();
        for (range, piece) in ranges.iter().zip(self.pieces(&ranges)) {
            bytes.extend_from_slice(&piece);
            if piece.len() < range.len as usize {
                break;
            }
        }
        bytes
    }
}

/// The word at this place of a piece.
pub(super) fn word(bytes: &[u8], at: u64) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(usize::try_from(at).ok()?..)?.first_chunk()?))
}

/// The 32-bit number at this place of a piece.
pub(super) fn number(bytes: &[u8], at: u64) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(usize::try_from(at).ok()?..)?.first_chunk()?))
}
