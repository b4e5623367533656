//! Maps whose keys are numbers and addresses of sockets: one look asks them some ten times for each of twenty thousand sockets.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

/// By inode number.
pub(super) type InodeMap<V> = HashMap<u32, V, Secret>;
/// Inode numbers.
pub(super) type InodeSet = HashSet<u32, Secret>;

/// Multiplies by an odd number that is drawn once per process: whoever makes the sockets cannot choose numbers that meet in one
/// place, and for keys as short as these that takes a tenth of what the usual hash function does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Secret(u64);

impl Default for Secret {
    fn default() -> Self {
        static FACTOR: OnceLock<u64> = OnceLock::new();
        Self(*FACTOR.get_or_init(|| RandomState::new().hash_one(0) | 1))
    }
}

impl BuildHasher for Secret {
    type Hasher = Product;

    fn build_hasher(&self) -> Product {
        Product { factor: self.0, sum: 0 }
    }
}

/// The hash of one key.
pub(super) struct Product {
    factor: u64,
    sum: u64,
}

impl Hasher for Product {
    fn finish(&self) -> u64 {
        // Tables use both ends: each bit of the product reaches all others (the last steps of MurmurHash3), or else an unlucky factor
        // would bring numbers at equal distances together.
        let mixed = (self.sum ^ (self.sum >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ (mixed >> 33)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        // The upper half of the sum so far goes into the lower one, or else it would leave no trace in what follows.
        self.sum = (self.sum.rotate_left(32) ^ word).wrapping_mul(self.factor);
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u16(&mut self, word: u16) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_in_a_row_and_far_apart_are_spread() {
        let secret = Secret::default();
        for step in [1_u32, 2, 64, 4096, 1 << 16, 1 << 20] {
            let places: BTreeSet<u64> = (0..4096_u32).map(|n| secret.hash_one(n.wrapping_mul(step)) & 4095).collect();
            // Thrown by chance, 4,096 of them hit 63 % of the places.
            assert!(places.len() > 2400, "step {step}: {} places", places.len());
        }
        let ends: BTreeSet<u64> =
            (0..4096_u32).map(|n| secret.hash_one(([127_u8, 0, 0, 1], n.to_be_bytes(), 80_u16)) & 4095).collect();
        assert!(ends.len() > 2400, "{} places", ends.len());
    }
}
