//! Python frames: which code, where in it, and what of the value stack is in use there.

use super::offsets::Offsets;
use super::threads::Thread;
use crate::explain::pieces::{Memory, number, word};
use std::collections::{BTreeSet, HashMap};

/// Frames of one thread; Python's own limit of recursion is 1,000.
const MAX_DEPTH: usize = 1_000;
/// Frames of all threads.
const MAX_FRAMES: usize = 30_000;
/// `FRAME_OWNED_BY_CSTACK`: of the interpreter itself, without code.
const OF_C: u8 = 3;
/// An exception table that is longer is not read, its frames hold nothing.
const MAX_TABLE: u64 = 64 << 10;
/// All the longer tables of one reading.
const MAX_TABLES: u64 = 16 << 20;
/// Most tables are shorter.
const FIRST_OF_TABLE: u32 = 256;
/// Local variables and values of one frame.
const MAX_SLOTS: u64 = 1_000;

/// A frame of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Which of the threads.
    pub(super) thread: usize,
    code: u64,
    instruction: u64,
    locals: u64,
}

/// A part of a code object.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub(super) qualname: Vec<u8>,
    exceptions: Vec<u8>,
    locals: u64,
    stack_size: u64,
}

/// The frames of all threads, each thread's innermost first, and their code.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pub(super) frames: Vec<Frame>,
    pub(super) codes: HashMap<u64, Code>,
    instructions: u64,
}

impl Frames {
    pub(super) fn read(offsets: &Offsets, threads: &[Thread], memory: &mut Memory<'_>) -> Self {
        let mut frames = walk(offsets, threads, memory);
        frames.sort_by_key(|(level, frame)| (frame.thread, *level));
        let frames: Vec<Frame> = frames.into_iter().map(|(_, frame)| frame).collect();
        let codes: BTreeSet<u64> = frames.iter().map(|frame| frame.code).collect();
        let codes = read_codes(offsets, codes.into_iter().collect(), memory);
        Self { frames, codes, instructions: offsets.code.instructions }
    }

    /// The code of a frame.
    pub(super) fn code(&self, frame: &Frame) -> Option<&Code> {
        self.codes.get(&frame.code)
    }

    /// The part of its value stack that is in use, as (address, words): what an exception raised now would leave. Values
    /// above may be left over from earlier and are not believed.
    pub(super) fn in_use(&self, frame: &Frame) -> Option<(u64, u64)> {
        let code = self.code(frame)?;
        let start = frame.code.checked_add(self.instructions)?;
        let depth = depth_at(&code.exceptions, frame.instruction.checked_sub(start)? / 2)?;
        let address = frame.locals.checked_add(code.locals * 8)?;
        (1..=code.stack_size).contains(&depth).then_some((address, depth))
    }

    /// Everything a frame may refer to, in use or not.
    pub(super) fn all(&self, frame: &Frame) -> Option<(u64, u64)> {
        let code = self.code(frame)?;
        Some((frame.locals, code.locals + code.stack_size))
    }
}

/// All threads at once, frame by frame outwards.
fn walk(offsets: &Offsets, threads: &[Thread], memory: &mut Memory<'_>) -> Vec<(usize, Frame)> {
    let at = &offsets.frame;
    let last = [at.previous, at.code, at.instruction, at.owner].into_iter().max().unwrap_or_default();
    let mut found = Vec::new();
    let mut here: Vec<(usize, u64)> = threads.iter().map(|thread| thread.frame).enumerate().collect();
    for level in 0..MAX_DEPTH {
        here.retain(|(_, frame)| *frame != 0);
        if here.is_empty() || found.len() + here.len() > MAX_FRAMES {
            break;
        }
        let pieces = memory.each(here.iter().map(|(_, frame)| *frame), last as u32 + 8);
        let outwards = here.iter().zip(pieces).filter_map(|((thread, frame), bytes)| {
            let is_python = *bytes.get(at.owner as usize)? != OF_C;
            let (code, instruction) = (word(&bytes, at.code)?, word(&bytes, at.instruction)?);
            if is_python {
                let locals = frame.wrapping_add(at.locals);
                found.push((level, Frame { thread: *thread, code, instruction, locals }));
            }
            Some((*thread, word(&bytes, at.previous)?))
        });
        here = outwards.collect();
    }
    found
}

fn read_codes(offsets: &Offsets, addresses: Vec<u64>, memory: &mut Memory<'_>) -> HashMap<u64, Code> {
    let at = &offsets.code;
    let len = at.qualname.max(at.locals).max(at.exceptions).max(at.stack_size) + 8;
    let heads = memory.each(addresses.iter().copied(), len as u32);
    let heads: Vec<(u64, Vec<u8>)> = addresses.into_iter().zip(heads).collect();
    let pointers =
        |field: u64| -> Vec<u64> { heads.iter().map(|(_, head)| word(head, field).unwrap_or_default()).collect() };
    let (names, tables) = (pointers(at.qualname), pointers(at.exceptions));
    let texts = memory.each(names.into_iter(), offsets.text_value as u32 + 64);
    let starts = memory.each(tables.iter().copied(), offsets.bytes_value as u32 + FIRST_OF_TABLE);
    let mut codes = HashMap::new();
    let mut left = MAX_TABLES;
    for (((address, head), text), (table, start)) in heads.iter().zip(texts).zip(tables.into_iter().zip(starts)) {
        let exceptions = exceptions(offsets, table, start, &mut left, memory);
        let code = exceptions.and_then(|exceptions| {
            let (locals, stack_size) = (number(head, at.locals)?, number(head, at.stack_size)?);
            let (locals, stack_size) = (u64::from(locals), u64::from(stack_size));
            let qualname = name(offsets, &text).unwrap_or_default();
            (locals + stack_size <= MAX_SLOTS).then_some(Code { qualname, exceptions, locals, stack_size })
        });
        codes.extend(code.map(|code| (*address, code)));
    }
    codes
}

/// A short name in ASCII.
fn name(offsets: &Offsets, text: &[u8]) -> Option<Vec<u8>> {
    let len = usize::try_from(word(text, offsets.text_length)?).ok()?;
    Some(text.get(offsets.text_value as usize..)?.get(..len)?.to_vec())
}

fn exceptions(
    offsets: &Offsets,
    table: u64,
    start: Vec<u8>,
    left: &mut u64,
    memory: &mut Memory<'_>,
) -> Option<Vec<u8>> {
    let size = word(&start, offsets.bytes_size).filter(|size| *size <= MAX_TABLE)?;
    let value = offsets.bytes_value;
    let bytes = match start.get(value as usize..)?.get(..size as usize) {
        Some(bytes) => bytes.to_vec(),
        None => {
            *left = left.checked_sub(size)?;
            memory.bytes(table.checked_add(value)?, size)
        }
    };
    (bytes.len() as u64 == size).then_some(bytes)
}

/// How deep the value stack is kept if the instruction at this place (counted in units of two bytes) raises: from the
/// exception table (`Objects/exception_handling_notes.txt`). `None` if nothing handles it.
fn depth_at(table: &[u8], unit: u64) -> Option<u64> {
    let mut rest = table;
    loop {
        // Entries are sorted by their start, and the first byte of each has its highest bit set.
        let (start, length) = (varint(&mut rest)?, varint(&mut rest)?);
        let (_target, depth) = (varint(&mut rest)?, varint(&mut rest)?);
        if unit < start {
            return None;
        }
        if unit - start < length {
            return Some(depth >> 1);
        }
    }
}

/// Six bits at a time, the highest first; bit 6 says that more follow.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for _ in 0..6 {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        value = value << 6 | u64::from(byte & 0x3f);
        if byte & 0x40 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exception_tables() {
        // 3.13: `dis._parse_exception_table` of a function with two nested `with`.
        let table = [0x80 | 4, 3, 20, 1 << 1 | 1, 0x80 | 7, 0x40 | 1, 2, 30, 2 << 1 | 1];
        let depths = [3, 4, 6, 7, 72, 73].map(|unit| depth_at(&table, unit));
        assert_eq!(depths, [None, Some(1), Some(1), Some(2), Some(2), None]);
        for cut in 0..table.len() {
            assert!(depth_at(&table[..cut], 72).is_none());
        }
        assert_eq!(depth_at(&[0xff; 64], 0), None);
        assert_eq!(depth_at(&[], 0), None);
    }
}
