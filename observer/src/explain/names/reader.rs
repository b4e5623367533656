//! Reads DWARF under a limit of work and of stack.
//!
//! The parsers of DWARF recurse as deep as the entries nest, and read as long as there is something to read. The file
//! is the target's, so both are limited here, below the parsers: every read is paid for, and one that cannot pay or
//! stands too deep in the stack fails. What the parsers keep may be many times what they read, so memory is looked at,
//! too, now and then. Outside [`within`] all reads fail.

use gimli::{Error, LittleEndian, Reader, ReaderOffsetId, Result};
use std::borrow::Cow;
use std::cell::Cell;

/// Bytes of stack the parsers may use.
const MAX_STACK: usize = 512 << 10;
/// Strings are cut here when they are copied, bytes.
const MAX_STRING: usize = 8 << 10;
/// A string that goes on for longer is an error, bytes.
const MAX_STRING_SCAN: usize = 1 << 20;
/// Room is made for as many files as a line table's header could hold: a longer header is an error, bytes.
const MAX_LINE_HEADER: usize = 2 << 20;

/// Reads fail when the memory of this process has grown by so much, bytes.
const MAX_GROWTH: u64 = 256 << 20;
/// It is looked at after so many reads, as a power of two.
const MEMORY_INTERVAL: u32 = 20;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(0) };
    static FLOOR: Cell<usize> = const { Cell::new(usize::MAX) };
    static MEMORY: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What a section's reads cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cost {
    /// What is read is mostly passed over.
    Plain,
    /// What is read is kept, at many times its size.
    Kept,
    /// As [`Cost::Kept`], and lengths of headers are checked.
    Lines,
}

/// Runs `work` with this budget; returns what it returns, and how much was spent.
pub(super) fn within<T>(budget: u64, work: impl FnOnce() -> T) -> (T, u64) {
    LEFT.set(budget);
    FLOOR.set(stack_pointer().saturating_sub(MAX_STACK));
    MEMORY.set(None);
    let result = work();
    let spent = budget - LEFT.replace(0);
    FLOOR.set(usize::MAX);
    (result, spent)
}

/// The address of a variable of this call: near enough.
#[inline]
fn stack_pointer() -> usize {
    let here = 0_u8;
    std::hint::black_box(&raw const here).addr()
}

/// Whether this process grew too large since this was first asked within [`within`]. Other threads' memory is counted,
/// too: by design, as they share the limit of the process.
#[cold]
fn outgrown() -> bool {
    // Pages, as `proc_pid_statm(5)` has them: the second field is what is resident, the third what of it is files.
    let now = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| {
        let mut fields = text.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
        Some(fields.next()?.ok()?.saturating_sub(fields.next()?.ok()?) * 4096)
    });
    match (now, MEMORY.get()) {
        (Some(now), Some(before)) => now.saturating_sub(before) > MAX_GROWTH,
        (now, _) => {
            MEMORY.set(now);
            false
        }
    }
}

/// Bytes of a DWARF section.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metered<'a> {
    bytes: &'a [u8],
    cost: Cost,
}

impl<'a> Metered<'a> {
    pub(super) fn new(bytes: &'a [u8], cost: Cost) -> Self {
        Self { bytes, cost }
    }

    #[inline]
    fn pay(&self, units: usize) -> Result<()> {
        let price = if self.cost == Cost::Plain { units as u64 } else { 4 * units as u64 };
        let before = LEFT.get();
        match before.checked_sub(price) {
            Some(left) if stack_pointer() >= FLOOR.get() => {
                let look = before >> MEMORY_INTERVAL != left >> MEMORY_INTERVAL;
                let outgrown = look && outgrown();
                LEFT.set(if outgrown { 0 } else { left });
                if outgrown { Err(self.end()) } else { Ok(()) }
            }
            Some(_) => Err(self.end()),
            None => {
                // Nothing cheaper gets through after it: what follows would be an arbitrary part of the answer.
                LEFT.set(0);
                Err(self.end())
            }
        }
    }

    fn end(&self) -> Error {
        Error::UnexpectedEof(self.offset_id())
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(len).ok_or_else(|| self.end())?;
        self.bytes = rest;
        Ok(head)
    }
}

impl Reader for Metered<'_> {
    type Endian = LittleEndian;
    type Offset = usize;

    fn endian(&self) -> LittleEndian {
        LittleEndian
    }

    #[inline]
    fn len(&self) -> usize {
        self.bytes.len()
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn empty(&mut self) {
        self.bytes = &[];
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        if self.cost == Cost::Lines {
            if len > MAX_LINE_HEADER {
                return Err(self.end());
            }
            self.pay(len / 4)?;
        }
        self.bytes = self.bytes.get(..len).ok_or_else(|| self.end())?;
        Ok(())
    }

    fn offset_from(&self, base: &Self) -> usize {
        (self.bytes.as_ptr().addr()).saturating_sub(base.bytes.as_ptr().addr())
    }

    fn offset_id(&self) -> ReaderOffsetId {
        ReaderOffsetId(self.bytes.as_ptr().addr() as u64)
    }

    fn lookup_offset_id(&self, id: ReaderOffsetId) -> Option<usize> {
        let offset = usize::try_from(id.0.checked_sub(self.offset_id().0)?).ok()?;
        (offset <= self.bytes.len()).then_some(offset)
    }

    fn find(&self, byte: u8) -> Result<usize> {
        let scanned = &self.bytes[..self.bytes.len().min(MAX_STRING_SCAN)];
        let found = scanned.iter().position(|&b| b == byte);
        self.pay(1 + found.unwrap_or(scanned.len()) / 32)?;
        found.ok_or_else(|| self.end())
    }

    #[inline]
    fn skip(&mut self, len: usize) -> Result<()> {
        self.take(len).map(|_| ())
    }

    fn split(&mut self, len: usize) -> Result<Self> {
        self.pay(1)?;
        Ok(Self { bytes: self.take(len)?, cost: self.cost })
    }

    fn to_slice(&self) -> Result<Cow<'_, [u8]>> {
        Ok(self.bytes.into())
    }

    fn to_string(&self) -> Result<Cow<'_, str>> {
        self.pay(1 + self.bytes.len() / 32)?;
        std::str::from_utf8(self.bytes).map(Cow::from).map_err(|_| Error::BadUtf8)
    }

    fn to_string_lossy(&self) -> Result<Cow<'_, str>> {
        let kept = &self.bytes[..self.bytes.len().min(MAX_STRING)];
        self.pay(1 + kept.len() / 4)?;
        Ok(String::from_utf8_lossy(kept))
    }

    #[inline]
    fn read_slice(&mut self, buf: &mut [u8]) -> Result<()> {
        self.pay(1)?;
        buf.copy_from_slice(self.take(buf.len())?);
        Ok(())
    }

    #[inline]
    fn read_u8(&mut self) -> Result<u8> {
        self.pay(1)?;
        let (&byte, rest) = self.bytes.split_first().ok_or_else(|| self.end())?;
        self.bytes = rest;
        Ok(byte)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;

    #[test]
    fn reads_are_paid_for() {
        let mut reader = Metered::new(&[1, 2, 3, 4, 5, 6, 7, 8, 0], Cost::Plain);
        assert!(reader.read_u8().is_err(), "outside");
        let (read, spent) = within(3, || (reader.read_u8(), reader.read_u16(), reader.find(0), reader.read_u8()));
        assert_eq!((read.0.unwrap(), read.1.unwrap(), read.2.unwrap()), (1, 0x302, 5));
        assert!(read.3.is_err());
        assert_eq!(spent, 3);
        let long = vec![0; MAX_LINE_HEADER + 1];
        assert!(within(u64::MAX, || Metered::new(&long, Cost::Plain).truncate(long.len())).0.is_ok());
        assert!(within(u64::MAX, || Metered::new(&long, Cost::Lines).truncate(long.len())).0.is_err());
        let mut kept = Metered::new(&[0; 9], Cost::Kept);
        assert!(within(3, || kept.read_u8()).0.is_err());
    }

    #[test]
    fn memory_is_limited() {
        let mut kept = Vec::new();
        let reader = Metered::new(&[0], Cost::Plain);
        let (reads, _) = within(u64::MAX, || {
            (0..1_u64 << 26)
                .take_while(|read| {
                    if read % (1 << 14) == 0 {
                        kept.push(vec![1_u8; 1 << 20]);
                    }
                    reader.clone().read_u8().is_ok()
                })
                .count()
        });
        // 64 MiB between two looks.
        assert!((256..=512).contains(&kept.len()), "{} after {reads} reads", kept.len());
    }

    #[test]
    fn the_stack_is_limited() {
        fn dive(reader: &mut Metered<'_>, depth: u32) -> u32 {
            let frame = std::hint::black_box([0_u8; 1024]);
            if reader.clone().read_u8().is_err() { depth } else { dive(reader, depth + 1 + u32::from(frame[0])) }
        }
        let (depth, _) = within(u64::MAX, || dive(&mut Metered::new(&[0], Cost::Plain), 0));
        assert!((10..1024).contains(&depth), "{depth}");
    }
}
