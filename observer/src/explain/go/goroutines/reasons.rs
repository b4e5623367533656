//! Why goroutines wait: the runtime's own strings, found in its data. No table by version is needed.

use super::{Read, read_all};
use crate::explain::pieces::word;
use crate::proc::MemoryRange;
use crate::proc::pieces::Pieces;
use std::ops::Range;

/// Data of a program that is searched for the table, bytes.
const MAX_DATA: u64 = 64 << 20;
/// Go 1.27 has 47.
const MAX_REASONS: usize = 128;
/// The longest has 33 bytes.
const MAX_REASON: u64 = 64;
/// Places that look like the table.
const MAX_CANDIDATES: usize = 64;
/// The second entry, in all versions; the first is empty, the third is `IO wait`.
const SECOND: &[u8] = b"GC assist marking";

/// `runtime.waitReasonStrings`.
#[derive(Debug)]
pub(super) struct Reasons(Vec<String>);

impl Reasons {
    /// Finds them in the data (avma) of the runtime.
    pub(super) fn read(data: Range<u64>, target: &mut Read<'_>) -> Result<Self, String> {
        let len = data.end.saturating_sub(data.start).min(MAX_DATA);
        let bytes = read_all(data.start, len, target)?;
        let words: Vec<u64> = bytes.chunks_exact(8).filter_map(|bytes| word(bytes, 0)).collect();
        let looks = |w: &[u64]| w[1] == 0 && w[3] == SECOND.len() as u64 && w[5] == 7;
        let begins = words.windows(6).enumerate().filter(|(_, w)| looks(w)).map(|(at, _)| at).take(MAX_CANDIDATES);
        for begin in begins {
            let strings = words.get(begin..).unwrap_or_default().chunks_exact(2);
            let ranges: Vec<MemoryRange> = strings
                .take(MAX_REASONS)
                .take_while(|string| string[1] <= MAX_REASON)
                .map(|string| MemoryRange { addr: string[0], len: string[1] as u32 })
                .collect();
            let mut pieces = Pieces::default();
            target(&ranges, &mut pieces)?;
            if pieces.get(1) != SECOND {
                continue;
            }
            let text = |(index, range): (usize, &MemoryRange)| {
                let bytes = pieces.get(index);
                let sound = bytes.len() == range.len as usize && bytes.iter().all(|b| (0x20..0x7f).contains(b));
                sound.then(|| String::from_utf8_lossy(bytes).into_owned())
            };
            return Ok(Self(ranges.iter().enumerate().map_while(text).collect()));
        }
        Err("the reasons of waits (runtime.waitReasonStrings) were not found in its data".to_owned())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn name(&self, reason: u8) -> &str {
        self.0.get(usize::from(reason)).map_or("", String::as_str)
    }

    /// Whether it is a wait for a semaphore of `sync`.
    pub(super) fn is_semaphore(&self, reason: u8) -> bool {
        let name = self.name(reason);
        name.starts_with("sync.") || name.starts_with("semacquire")
    }

    /// Whether it is a wait for a channel.
    pub(super) fn is_channel(&self, reason: u8) -> bool {
        let name = self.name(reason);
        name.starts_with("chan ") || name.starts_with("select")
    }
}
