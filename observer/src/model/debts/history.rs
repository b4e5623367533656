//! How long the answers of a service take.

/// Sizes that are told apart: powers of two of a nanosecond, the last one open.
const SIZES: usize = 44;

/// The answers of one service, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Answers seen, at least: several between two listings count as one for each connection.
    pub answers: u64,
    /// The slowest, nanoseconds; of a long answer it is the end that counts.
    pub longest_ns: u64,
    /// When the last one was sent.
    pub last_ns: u64,
    sizes: [u64; SIZES],
}

impl Default for History {
    fn default() -> Self {
        Self { answers: 0, longest_ns: 0, last_ns: 0, sizes: [0; SIZES] }
    }
}

impl History {
    pub(super) fn note(&mut self, asked_ns: u64, sent_ns: u64) {
        let took = sent_ns.saturating_sub(asked_ns);
        self.answers += 1;
        self.longest_ns = self.longest_ns.max(took);
        self.last_ns = self.last_ns.max(sent_ns);
        let size = took.checked_ilog2().map_or(0, |size| size as usize).min(SIZES - 1);
        if let Some(count) = self.sizes.get_mut(size) {
            *count += 1;
        }
    }

    /// Half of the answers took no longer than this: nanoseconds, rounded up to a power of two.
    pub fn median_ns(&self) -> Option<u64> {
        let mut seen = 0;
        let at = self.sizes.iter().position(|count| {
            seen += count;
            seen * 2 >= self.answers && seen > 0
        })?;
        Some(2_u64 << at)
    }
}
