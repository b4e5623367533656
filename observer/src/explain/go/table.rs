//! The format of `pclntab`, Go's table of functions, files, lines and frame sizes, as pure functions on bytes.
//!
//! Sources: `runtime/symtab.go`, `runtime/symtabinl.go`, `runtime/runtime2.go` (`_func`), `cmd/link/internal/ld/pcln.go`
//! and `debug/gosym/pclntab.go` of Go 1.19 to 1.27. Little-endian, 8-byte pointers, x86-64 (instruction quantum 1).
//!
//! Every number in the table is hostile: offsets are checked against the bytes, and loops have a limit of their own.

use super::GoTableError;

/// A name or a path is cut after so many bytes.
const MAX_NAME: usize = 4096;
/// Steps through one table of values; the largest functions of large programs need some ten thousands.
const MAX_STEPS: u64 = 1 << 17;
/// Calls inlined into each other.
const MAX_INLINED: usize = 32;
/// Bytes of the header: 8 and eight words.
pub(super) const HEADER_SIZE: usize = 8 + 8 * 8;
/// `abi.PCDATA_InlTreeIndex`.
const INLINE_TREE_INDEX: u32 = 2;
/// `abi.FUNCDATA_InlTree`.
const INLINE_TREE: u32 = 3;

/// The layouts, by the magic that marks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// Go 1.16 and 1.17, magic `0xfffffffa`: entries are absolute, inlined calls are not read.
    Go116,
    /// Go 1.18 and 1.19, magic `0xfffffff0`: entries are relative to the text base.
    Go118,
    /// Since Go 1.20, magic `0xfffffff1`: functions know their first line; still so in 1.27.
    Go120,
}

/// The header, its offsets checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Layout of what follows.
    pub format: Format,
    /// Functions in the table.
    pub functions: usize,
    /// `textStart`: since Go 1.26 it is 0, before it is what the linker assumed. 0 for [`Format::Go116`].
    pub text_start: u64,
    names: usize,
    units: usize,
    files: usize,
    values: usize,
    funcs: usize,
}

impl Header {
    /// Reads and checks the header at the begin of a table.
    pub fn parse(bytes: &[u8]) -> Result<Self, GoTableError> {
        let head = bytes.get(..HEADER_SIZE).ok_or(GoTableError::Truncated { bytes: bytes.len() })?;
        let magic = u32_at(head, 0).unwrap_or_default();
        let format = match (magic, head[4..8] == [0, 0, 1, 8]) {
            (0xffff_fffa, true) => Format::Go116,
            (0xffff_fff0, true) => Format::Go118,
            (0xffff_fff1, true) => Format::Go120,
            _ => return Err(GoTableError::Format { magic }),
        };
        let word = |index: usize| u64_at(head, 8 + index * 8).unwrap_or_default();
        let first = if format == Format::Go116 { 2 } else { 3 };
        let offset = |index: usize| usize::try_from(word(first + index)).unwrap_or(usize::MAX);
        let [names, units, files, values, funcs] = [0, 1, 2, 3, 4].map(offset);
        // The linker writes the parts in this order, so each ends where the next begins.
        let ordered = [HEADER_SIZE - 8, names, units, files, values, funcs, bytes.len()].is_sorted();
        let functions = usize::try_from(word(0)).unwrap_or(usize::MAX);
        let text_start = if format == Format::Go116 { 0 } else { word(2) };
        let header = Self { format, functions, text_start, names, units, files, values, funcs };
        let size = functions.checked_mul(2).and_then(|n| n.checked_add(1)).and_then(|n| n.checked_mul(header.field()));
        let fits = size.and_then(|size| size.checked_add(funcs)).is_some_and(|end| end <= bytes.len());
        if functions == 0 || !ordered || !fits {
            return Err(GoTableError::Header { functions: word(0), bytes: bytes.len() });
        }
        Ok(header)
    }

    /// Offset of the names, of the table of functions: what `moduledata` must point to as well.
    pub(super) fn names_and_functions(&self) -> (u64, u64) {
        (self.names as u64, self.funcs as u64)
    }

    /// Bytes of a field in the table of functions.
    fn field(&self) -> usize {
        if self.format == Format::Go116 { 8 } else { 4 }
    }
}

/// A function of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// First svma.
    pub entry: u64,
    /// Svma of the next function's entry: padding between them belongs to this one.
    pub end: u64,
    /// Name with its package: `main.(*account).deposit`. Type arguments may be written as `[...]`.
    pub name: String,
    /// Line of `func`; `None` before Go 1.20.
    pub start_line: Option<u32>,
    /// A stack ends here (`abi.FuncFlagTopFrame`): `runtime.goexit`, `runtime.mstart`, `runtime.rt0_go`.
    pub top_frame: bool,
    /// Writes the stack pointer in a way the frame sizes do not describe (`abi.FuncFlagSPWrite`): a walk cannot be
    /// trusted past it, unless this is the innermost frame of a goroutine that switched away here.
    pub writes_sp: bool,
    /// Written in assembly (`abi.FuncFlagAsm`).
    pub assembly: bool,
}

/// A function at a pc: the one that holds the pc, or one that was inlined there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoFrame {
    /// Name with its package.
    pub function: String,
    /// Source file.
    pub file: Option<String>,
    /// Line in it: of the pc in the innermost, of the call in the others.
    pub line: Option<u32>,
    /// Inlined into the next frame.
    pub inlined: bool,
}

/// A table whose bytes and bases are known. It borrows everything and costs nothing to make.
#[derive(Clone, Copy, Debug)]
pub struct LineTable<'a> {
    bytes: &'a [u8],
    header: Header,
    text: u64,
    inline_trees: &'a [u8],
}

/// A `_func` record: its offset, and the bounds of the function.
#[derive(Clone, Copy, Debug)]
struct Record {
    at: usize,
    entry: u64,
    end: u64,
}

impl<'a> LineTable<'a> {
    /// `text` is the svma that entries are relative to (`moduledata.text`); `inline_trees` are the bytes from
    /// `moduledata.gofunc` on, empty if unknown.
    pub fn new(bytes: &'a [u8], text: u64, inline_trees: &'a [u8]) -> Result<Self, GoTableError> {
        Ok(Self::with_header(bytes, Header::parse(bytes)?, text, inline_trees))
    }

    /// With a header that [`Header::parse`] returned for these bytes.
    pub(super) fn with_header(bytes: &'a [u8], header: Header, text: u64, inline_trees: &'a [u8]) -> Self {
        Self { bytes, header, text, inline_trees }
    }

    /// Svma of the first function and the end of the last.
    pub fn bounds(&self) -> Option<(u64, u64)> {
        Some((self.entry(0)?, self.entry(self.header.functions)?))
    }

    /// The function that holds this svma.
    pub fn function(&self, svma: u64) -> Option<Function> {
        let record = self.record(svma)?;
        let name = self.name(self.field(record, Field::Name)?)?;
        let last = self.last_word(record)?;
        let flags = last[1];
        let start_line = if self.header.format < Format::Go120 { None } else { self.field(record, Field::StartLine) };
        Some(Function {
            entry: record.entry,
            end: record.end,
            name,
            start_line,
            top_frame: flags & 1 != 0,
            writes_sp: flags & 2 != 0,
            assembly: flags & 4 != 0,
        })
    }

    /// The entries of the functions with these names, in one pass over all.
    pub(super) fn entries_of<const N: usize>(&self, names: [&str; N]) -> [Option<u64>; N] {
        let mut found = [None; N];
        let all = self.bytes.get(self.header.names..self.header.units).unwrap_or_default();
        let mut left = N;
        for index in 0..self.header.functions {
            if left == 0 {
                break;
            }
            let name = self
                .record_at(index)
                .and_then(|record| all.get(usize::try_from(self.field(record, Field::Name)?).ok()?..));
            let Some(name) = name else { continue };
            let is = |wanted: &str| name.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0));
            if let Some(at) = names.iter().position(|wanted| is(wanted)).filter(|&at| found[at].is_none()) {
                found[at] = self.entry(index);
                left -= 1;
            }
        }
        found
    }

    /// Whether this svma is in a function.
    pub(super) fn holds(&self, svma: u64) -> bool {
        self.record(svma).is_some()
    }

    /// The entry of the function that holds this svma.
    pub(super) fn entry_of(&self, svma: u64) -> Option<u64> {
        self.record(svma).map(|record| record.entry)
    }

    /// File and line of a pc.
    pub fn line(&self, svma: u64) -> Option<(String, u32)> {
        self.line_in(self.record(svma)?, svma)
    }

    /// Bytes between the stack pointer and the return address at this pc.
    pub fn frame_size(&self, svma: u64) -> Option<u64> {
        let record = self.record(svma)?;
        let size = self.value(record, self.field(record, Field::FrameSizes)?, svma)?;
        // The runtime throws at one that is not a multiple of the pointer size.
        u64::try_from(size).ok().filter(|size| size % 8 == 0)
    }

    /// The functions at a pc, innermost first; empty if it is in none.
    pub fn frames(&self, svma: u64) -> Vec<GoFrame> {
        let Some(record) = self.record(svma) else { return Vec::new() };
        let mut frames = Vec::new();
        let mut pc = svma;
        let frame = |function, pc, inlined| {
            let (file, line) = self.line_in(record, pc).unzip();
            GoFrame { function, file, line, inlined }
        };
        while frames.len() < MAX_INLINED {
            let Some((name, call)) = self.inlined_at(record, pc) else { break };
            frames.push(frame(name, pc, true));
            pc = call;
        }
        match self.field(record, Field::Name).and_then(|name| self.name(name)) {
            Some(name) => frames.push(frame(name, pc, false)),
            None => frames.clear(),
        }
        frames
    }

    /// What is inlined at this pc of a function, and the pc of its call.
    fn inlined_at(&self, record: Record, pc: u64) -> Option<(String, u64)> {
        if self.header.format < Format::Go118 {
            return None;
        }
        let (pcdata, funcdata) = (self.field(record, Field::ValueTables)?, u32::from(self.last_word(record)?[3]));
        if pcdata <= INLINE_TREE_INDEX || funcdata <= INLINE_TREE {
            return None;
        }
        let after = record.at.checked_add(self.record_size())?;
        let word = |index: u32| self.u32(after.checked_add(usize::try_from(index).ok()?.checked_mul(4)?)?);
        let index = self.value(record, word(INLINE_TREE_INDEX)?, pc)?;
        let tree = word(pcdata.checked_add(INLINE_TREE)?).filter(|&offset| offset != u32::MAX)?;
        // `runtime.inlinedCall`: 20 bytes up to 1.19, with the name at 12; 16 bytes since, with the name at 4.
        let (size, name, call) = if self.header.format == Format::Go118 { (20, 12, 16) } else { (16, 4, 8) };
        let at = usize::try_from(index).ok()?.checked_mul(size)?.checked_add(usize::try_from(tree).ok()?)?;
        let entry = self.inline_trees.get(at..)?.get(..size)?;
        let call = record.entry.checked_add(u64::from(u32_at(entry, call)?))?;
        let call = Some(call).filter(|&call| call < record.end)?;
        Some((self.name(u32_at(entry, name)?)?, call))
    }

    fn line_in(&self, record: Record, pc: u64) -> Option<(String, u32)> {
        let file = u32::try_from(self.value(record, self.field(record, Field::Files)?, pc)?).ok()?;
        let line = u32::try_from(self.value(record, self.field(record, Field::Lines)?, pc)?).ok()?;
        // The number of a file is its place among those of the compilation unit.
        let place = usize::try_from(self.field(record, Field::Unit)?.checked_add(file)?).ok()?;
        let units = self.bytes.get(self.header.units..self.header.files)?;
        let offset = u32_at(units, place.checked_mul(4)?).filter(|&offset| offset != u32::MAX)?;
        let files = self.bytes.get(self.header.files..self.header.values)?;
        Some((string_at(files, offset)?, line))
    }

    /// The value at a pc in the table that begins at `offset`: deltas of value (zigzag) and pc, both varints, a value
    /// delta of 0 being the end except at the begin. As `runtime.pcvalue`. `None` where the runtime returns -1.
    fn value(&self, record: Record, offset: u32, pc: u64) -> Option<i32> {
        if offset == 0 {
            return None;
        }
        let values = self.bytes.get(self.header.values..self.header.funcs)?;
        let mut bytes = values.get(usize::try_from(offset).ok()?..)?;
        let (mut value, mut at) = (-1_i32, record.entry);
        // Each step covers at least one byte of the function.
        for step in 0..(record.end - record.entry).min(MAX_STEPS) {
            let delta = varint(&mut bytes)?;
            if delta == 0 && step != 0 {
                return None;
            }
            value = value.wrapping_add((delta >> 1).cast_signed() ^ -(delta & 1).cast_signed());
            at = at.checked_add(u64::from(varint(&mut bytes)?))?;
            if pc < at {
                return Some(value).filter(|&value| value >= 0);
            }
        }
        None
    }

    /// Finds the function of a pc by halving.
    fn record(&self, svma: u64) -> Option<Record> {
        let (mut low, mut high) = (0, self.header.functions);
        if svma < self.entry(0)? || svma >= self.entry(high)? {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.entry(middle)? <= svma { low = middle } else { high = middle }
        }
        self.record_at(low).filter(|record| record.entry <= svma && svma < record.end)
    }

    /// The function at this place of the table.
    fn record_at(&self, index: usize) -> Option<Record> {
        let (entry, end) = (self.entry(index)?, self.entry(index + 1)?);
        let field = self.header.field();
        let place = self.header.funcs.checked_add((index * 2 + 1) * field)?;
        let offset = if field == 8 { u64_at(self.bytes, place)? } else { u64::from(self.u32(place)?) };
        let at = self.header.funcs.checked_add(usize::try_from(offset).ok()?)?;
        Some(Record { at, entry, end })
    }

    /// Svma of the entry of a function; the one after the last is the end of the last.
    fn entry(&self, index: usize) -> Option<u64> {
        let place = self.header.funcs.checked_add(index.checked_mul(2)?.checked_mul(self.header.field())?)?;
        match self.header.format {
            Format::Go116 => u64_at(self.bytes, place),
            Format::Go118 | Format::Go120 => self.text.checked_add(u64::from(self.u32(place)?)),
        }
    }

    fn field(&self, record: Record, field: Field) -> Option<u32> {
        // `entry` was a pointer up to 1.17, and is an offset of 4 bytes since.
        let entry = self.header.field();
        self.u32(record.at.checked_add(entry)?.checked_add(field as usize)?)
    }

    /// Size of `_func` without the offsets behind it.
    fn record_size(&self) -> usize {
        self.header.field() + if self.header.format < Format::Go120 { 36 } else { 40 }
    }

    /// The last word of a record: function id, flags, padding, number of `funcdata`.
    fn last_word(&self, record: Record) -> Option<[u8; 4]> {
        let at = record.at.checked_add(self.record_size())?.checked_sub(4)?;
        self.u32(at).map(u32::to_le_bytes)
    }

    fn name(&self, offset: u32) -> Option<String> {
        string_at(self.bytes.get(self.header.names..self.header.units)?, offset)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        u32_at(self.bytes, at)
    }
}

/// Offsets behind `entry` in a `_func`.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
enum Field {
    Name = 0,
    FrameSizes = 12,
    Files = 16,
    Lines = 20,
    ValueTables = 24,
    Unit = 28,
    /// Since 1.20; before, it is the last word.
    StartLine = 32,
}

/// A string that ends with a zero byte; `None` if it is empty.
fn string_at(bytes: &[u8], offset: u32) -> Option<String> {
    let bytes = bytes.get(usize::try_from(offset).ok()?..)?;
    let bytes = bytes.get(..MAX_NAME).unwrap_or(bytes);
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    (end != 0).then(|| String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// Takes a varint of at most five bytes.
pub(super) fn varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0_u32;
    for shift in [0, 7, 14, 21, 28] {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
