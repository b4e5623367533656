//! Just enough of a program's file to tell what it is: bounded reads, no mapping.
//!
//! The file belongs to the target: it may be huge, cut short while we read, or made to hurt. A mapping of it could
//! raise SIGBUS; reads return errors. Every size is capped before memory is taken for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Headers beyond this number are not looked at.
const MAX_HEADERS: usize = 4096;
/// The longest table of section names.
const MAX_NAMES: u64 = 1 << 20;
/// The piece a search reads at once.
const PIECE: usize = 256 * 1024;

/// A section, as its header says; nothing is checked against the file's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// A segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// `PT_LOAD`.
pub(crate) const PT_LOAD: u32 = 1;
/// `PT_INTERP`.
const PT_INTERP: u32 = 3;
/// `PF_W`.
pub(crate) const PF_W: u32 = 2;

/// A 64-bit little-endian ELF file.
#[derive(Debug)]
pub(crate) struct Elf {
    file: File,
    pub(crate) sections: Vec<Section>,
    pub(crate) segments: Vec<Segment>,
}

impl Elf {
    /// Reads the headers. A file without section headers (stripped of them) has no sections.
    pub(crate) fn open(file: File) -> io::Result<Self> {
        let head = bytes_at(&file, 0, 64)?;
        if head.get(..6) != Some(b"\x7fELF\x02\x01".as_slice()) || head.len() < 64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a 64-bit little-endian ELF file"));
        }
        let (phoff, shoff) = (u64_at(&head, 32), u64_at(&head, 40));
        let (phentsize, phnum) = (usize::from(u16_at(&head, 54)), usize::from(u16_at(&head, 56)));
        let (shentsize, shnum, names) =
            (usize::from(u16_at(&head, 58)), usize::from(u16_at(&head, 60)), usize::from(u16_at(&head, 62)));
        let mut elf = Self { file, sections: Vec::new(), segments: Vec::new() };
        if phentsize == 56 {
            let table = elf.read(phoff, 56 * phnum.min(MAX_HEADERS) as u64)?;
            elf.segments = table
                .chunks_exact(56)
                .map(|h| Segment { kind: u32_at(h, 0), flags: u32_at(h, 4), offset: u64_at(h, 8), size: u64_at(h, 32) })
                .collect();
        }
        if shentsize == 64 {
            let table = elf.read(shoff, 64 * shnum.min(MAX_HEADERS) as u64).unwrap_or_default();
            let headers: Vec<&[u8]> = table.chunks_exact(64).collect();
            let strings = match headers.get(names) {
                Some(h) => elf.read(u64_at(h, 24), u64_at(h, 32).min(MAX_NAMES)).unwrap_or_default(),
                None => Vec::new(),
            };
            elf.sections = headers
                .iter()
                .map(|h| Section {
                    name: name_at(&strings, u32_at(h, 0) as usize),
                    offset: u64_at(h, 24),
                    size: u64_at(h, 32),
                })
                .collect();
        }
        Ok(elf)
    }

    /// Up to `len` bytes at `offset`, fewer where the file ends. The caller caps `len`.
    pub(crate) fn read(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        bytes_at(&self.file, offset, usize::try_from(len).unwrap_or(usize::MAX).min(4 << 20))
    }

    /// The section of that name.
    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }

    /// The dynamic loader; `None` for a static program.
    pub(crate) fn interpreter(&self) -> Option<String> {
        let segment = self.segments.iter().find(|s| s.kind == PT_INTERP)?;
        let bytes = self.read(segment.offset, segment.size.min(4096)).ok()?;
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    /// Looks for `needle` in the first `cap` bytes of a section; gives it and the `behind` bytes behind it.
    pub(crate) fn find(&self, section: &Section, needle: &[u8], behind: usize, cap: u64) -> Option<Vec<u8>> {
        let mut piece = vec![0_u8; PIECE];
        let end = section.offset.checked_add(section.size.min(cap))?;
        let overlap = (needle.len() + behind) as u64;
        let mut at = section.offset;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let got = read_fully(&self.file, &mut piece[..want], at).ok()?;
            let bytes = &piece[..got];
            if let Some(start) = position(bytes, needle) {
                let found = &bytes[start..];
                // Cut off by the end of the piece: the next one begins before it.
                if found.len() as u64 >= overlap || at + got as u64 >= end {
                    return Some(found[..found.len().min(needle.len() + behind)].to_vec());
                }
            }
            if (got as u64) <= overlap {
                return None;
            }
            at += got as u64 - overlap;
            if at + overlap >= end {
                return None;
            }
        }
        None
    }
}

/// First place of `needle`; skips quickly from one first byte to the next.
fn position(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let (&first, rest) = needle.split_first()?;
    let mut from = 0;
    while let Some(at) = bytes.get(from..)?.iter().position(|&b| b == first) {
        let start = from + at;
        if bytes[start + 1..].starts_with(rest) {
            return Some(start);
        }
        from = start + 1;
    }
    None
}

fn bytes_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    // Not more than is there, so that a lie in a header costs nothing.
    let there = file.metadata()?.len().saturating_sub(offset);
    let mut bytes = vec![0_u8; len.min(usize::try_from(there).unwrap_or(usize::MAX))];
    let got = read_fully(file, &mut bytes, offset)?;
    bytes.truncate(got);
    Ok(bytes)
}

fn read_fully(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < bytes.len() {
        match file.read_at(&mut bytes[got..], offset.saturating_add(got as u64)) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

fn name_at(strings: &[u8], at: usize) -> String {
    let bytes = strings.get(at..).unwrap_or_default();
    let end = bytes.iter().take(256).position(|&b| b == 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
