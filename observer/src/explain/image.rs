//! A mapped ELF file, and where its parts are.
//!
//! Two kinds of address, kept apart by name: *avma*, an address in the memory of a process, and *svma*, the address the
//! file states for the same byte (ELF virtual address). They differ by the bias of the mapping.

use super::bus_errors;
use object::elf::FileHeader64;
use object::read::elf::{ElfFile, FileHeader, ProgramHeader, SectionHeader};
use object::{LittleEndian, Object, ObjectSection, ObjectSegment, SegmentFlags};
use std::borrow::Cow;
use std::fs::File;

/// The parsed headers of an [`Image`].
pub type Elf<'a> = ElfFile<'a, FileHeader64<LittleEndian>, &'a [u8]>;

/// A compressed section may be so large when unpacked.
const MAX_UNPACKED: u64 = 1 << 30;
/// Segments beyond this number are not looked at.
const MAX_SEGMENTS: usize = 256;
/// A program has some forty sections, one of many languages and with debug information a few more.
const MAX_SECTIONS: usize = 4096;
/// Their names. A name is searched for its end, so many sections that share a long one would take for ever.
const MAX_SECTION_NAMES: u64 = 256 << 10;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ImageError {
    #[error("cannot be mapped: {0}")]
    Map(std::io::Error),
    #[error("is not a 64-bit little-endian ELF file: {0}")]
    NotElf(object::read::Error),
    #[error("has more sections or longer names of them than any program")]
    TooManySections,
}

/// A loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// First svma.
    pub svma: u64,
    /// Its offset in the file, bytes.
    pub offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Bytes in memory.
    pub memory_size: u64,
    /// Whether it holds code.
    pub executable: bool,
}

/// A section that is in memory, or in the file, as it is (not compressed).
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// First svma.
    pub svma: u64,
    /// Its bytes; empty for `.bss`.
    pub bytes: &'a [u8],
}

enum Data {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

/// An ELF file whose headers were found to be sound enough.
pub struct Image {
    data: Data,
    build_id: Option<String>,
    loads: Vec<Load>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("build_id", &self.build_id).field("bytes", &self.bytes().len()).finish()
    }
}

impl Image {
    /// Maps a file. Its pages are read when they are needed.
    ///
    /// May block for as long as the file system behind it likes: call it on a reader of the pool.
    pub fn map(file: &File) -> Result<Self, ImageError> {
        bus_errors::install();
        // SAFETY: the mapping is private and read-only, and a page that vanishes from it becomes one of zeros. The file
        // may still change under us: the parsers check every offset against the slice's length, which does not change,
        // and nothing relies on two reads of a byte being equal.
        let map = unsafe { memmap2::Mmap::map(file) }.map_err(ImageError::Map)?;
        Self::new(Data::Mapped(map))
    }

    /// Takes bytes that were read elsewhere: the vdso, an unpacked `.gnu_debugdata`.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ImageError> {
        Self::new(Data::Owned(bytes))
    }

    fn new(data: Data) -> Result<Self, ImageError> {
        let mut image = Self { data, build_id: None, loads: Vec::new() };
        let elf = Elf::parse(image.bytes()).map_err(ImageError::NotElf)?;
        if has_too_many_sections(&elf) {
            return Err(ImageError::TooManySections);
        }
        let build_id = elf.build_id().ok().flatten().filter(|id| (1..=64).contains(&id.len()));
        let build_id = build_id.map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect());
        let loads = elf.segments().take(MAX_SEGMENTS).map(|segment| {
            let (offset, file_size) = segment.file_range();
            let executable =
                matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags.contains(object::elf::PF_X));
            Load { svma: segment.address(), offset, file_size, memory_size: segment.size(), executable }
        });
        let loads = loads.collect();
        image.build_id = build_id;
        image.loads = loads;
        Ok(image)
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Mapped(map) => map,
            Data::Owned(bytes) => bytes,
        }
    }

    /// The headers, parsed anew: cheap, it touches the headers only.
    pub fn elf(&self) -> Result<Elf<'_>, ImageError> {
        Elf::parse(self.bytes()).map_err(ImageError::NotElf)
    }

    /// Hexadecimal, as `file` prints it.
    pub fn build_id(&self) -> Option<&str> {
        self.build_id.as_deref()
    }

    /// The loadable segments.
    pub fn loads(&self) -> &[Load] {
        &self.loads
    }

    /// A section by name, as it lies in the file; `None` if it is compressed.
    pub fn section(&self, name: &str) -> Option<Section<'_>> {
        let elf = self.elf().ok()?;
        let section = elf.section_by_name(name)?;
        let compressed = section.compressed_file_range().ok()?.format != object::CompressionFormat::None;
        let bytes = if compressed { return None } else { section.data().ok()? };
        Some(Section { svma: section.address(), bytes })
    }

    /// The content of a section, unpacked where it is compressed (`.debug_*`).
    pub fn unpacked(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let elf = self.elf().ok()?;
        let section = elf.section_by_name(name)?;
        let data = section.compressed_data().ok()?;
        if data.uncompressed_size > MAX_UNPACKED {
            return None;
        }
        data.decompress().ok()
    }

    /// Address (svma) and size of the first program header of this type.
    pub fn program_header(&self, kind: object::elf::ProgramType) -> Option<(u64, u64)> {
        let elf = self.elf().ok()?;
        let mut headers = elf.elf_program_headers().iter().take(MAX_SEGMENTS);
        let header = headers.find(|header| header.p_type(LittleEndian) == kind)?;
        Some((header.p_vaddr(LittleEndian), header.p_memsz(LittleEndian)))
    }

    /// Bytes in memory from this svma to the end of what its segment has in the file.
    pub fn at(&self, svma: u64) -> Option<&[u8]> {
        let load = self.loads.iter().find(|load| svma.checked_sub(load.svma).is_some_and(|d| d < load.file_size))?;
        let start = usize::try_from(load.offset.checked_add(svma - load.svma)?).ok()?;
        let end = usize::try_from(load.offset.checked_add(load.file_size)?).ok()?;
        let bytes = self.bytes();
        bytes.get(start..end.min(bytes.len()))
    }

    /// The svma of the byte at this offset of the file, by the segment that maps it there.
    ///
    /// `page_offset` of a mapping is rounded down to a page, so a segment's mapping may begin before it.
    pub fn svma_of_offset(&self, offset: u64, executable: bool) -> Option<u64> {
        let fits = |load: &&Load| {
            let start = load.offset & !0xfff;
            load.executable == executable && (start..load.offset.saturating_add(load.file_size)).contains(&offset)
        };
        let load = self.loads.iter().find(fits)?;
        Some(load.svma.wrapping_sub(load.offset).wrapping_add(offset))
    }
}

fn has_too_many_sections(elf: &Elf<'_>) -> bool {
    let header = elf.elf_header();
    let names = header
        .shstrndx(LittleEndian, elf.data())
        .and_then(|index| elf.elf_section_table().section(object::SectionIndex(index as usize)))
        .map_or(0, |section| section.sh_size(LittleEndian));
    elf.elf_section_table().len() > MAX_SECTIONS || names > MAX_SECTION_NAMES
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;

    #[test]
    fn the_tests_own_program() {
        let image = Image::map(&File::open("/proc/self/exe").unwrap()).unwrap();
        let text = image.section(".text").unwrap();
        assert_eq!(image.at(text.svma).unwrap()[..16], text.bytes[..16]);
        let code = image.loads().iter().find(|load| load.executable).unwrap();
        assert_eq!(image.svma_of_offset(code.offset, true).unwrap(), code.svma);
        assert!(image.build_id().is_none_or(|id| id.len() >= 16));
        assert!(image.at(u64::MAX).is_none());
    }

    #[test]
    fn sections_beyond_reason_are_refused() {
        let mut bytes = std::fs::read("/proc/self/exe").unwrap();
        assert!(Image::from_bytes(bytes.clone()).is_ok());
        // As many sections as a header can say, all within the file.
        bytes[60..62].copy_from_slice(&0xfe00_u16.to_le_bytes());
        let behind = bytes.len();
        bytes[40..48].copy_from_slice(&(behind as u64).to_le_bytes());
        bytes.resize(behind + 64 * 0xfe00, 0);
        assert!(Image::from_bytes(bytes).is_err());
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        for bytes in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &[0; 4096]] {
            assert!(Image::from_bytes(bytes.to_vec()).is_err());
        }
    }
}
