//! Where Go's tables lie in a file: `pclntab`, `moduledata`, the version.
//!
//! Sources: `runtime/symtab.go` (`moduledata`), `cmd/link/internal/ld/{data,symtab}.go` and `debug/buildinfo` of Go 1.19
//! to 1.27; the sections as built by those versions:
//!
//! | linked | `pclntab` | `moduledata` |
//! |---|---|---|
//! | executable | `.gopclntab` | `.go.module` since 1.26, before in `.noptrdata` |
//! | PIE, up to 1.25 | `.data.rel.ro.gopclntab`; with cgo somewhere in `.data.rel.ro` | in `.noptrdata` |
//! | PIE, since 1.26 | `.gopclntab` | `.go.module` |
//!
//! Go's own linker writes the addends of relocations in place as well; GNU ld (cgo) leaves zeros there.

use super::GoTableError;
use super::table::{Header, LineTable, u64_at, varint};
use crate::explain::image::Image;
use object::LittleEndian;
use object::elf;
use object::read::elf::ProgramHeader;
use std::ops::Range;

/// Bytes of a file that are searched for a table that no section names.
const MAX_SEARCH: usize = 1 << 30;
/// Places that may be a table and are looked at more closely.
const MAX_TABLES: usize = 8;
/// Pointers to a table, in place and by relocation, that are looked at as the begin of `moduledata`.
const MAX_POINTERS: usize = 4;
/// Program headers that are looked at.
const MAX_SEGMENTS: usize = 256;
/// Relocations of a file that are looked at: some 200 MB of them.
const MAX_RELOCATIONS: usize = 1 << 23;
/// Bytes of `moduledata` that are read.
const MODULE_DATA: usize = 352;
/// Bytes of the writable data searched for the build information, as in `debug/buildinfo`.
const MAX_BUILD_INFO: usize = 1 << 20;
/// A longer version is cut.
const MAX_VERSION: usize = 64;

/// What `runtime.moduledata` says, as svma. Those that are the same in all of Go 1.19 to 1.27, and what is derived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModuleData {
    /// Where it lies itself.
    pub svma: u64,
    /// Begin of the code, the base of all entries.
    pub text: u64,
    /// End of the code.
    pub etext: u64,
    /// Begin of the data without pointers.
    pub noptrdata: u64,
    /// End of the data without pointers.
    pub enoptrdata: u64,
    /// Begin of the data with pointers.
    pub data: u64,
    /// End of the data with pointers.
    pub edata: u64,
    /// Begin of the zeroed data with pointers.
    pub bss: u64,
    /// End of the zeroed data with pointers.
    pub ebss: u64,
    /// Begin of the zeroed data without pointers.
    pub noptrbss: u64,
    /// End of the zeroed data without pointers.
    pub enoptrbss: u64,
    /// Base of the `funcdata` offsets (`go:func.*`); since Go 1.18.
    pub gofunc: Option<u64>,
}

/// A table that was found.
#[derive(Debug)]
pub(super) struct Found {
    /// Its bytes in the file, up to the end of its section or segment.
    pub(super) range: Range<usize>,
    pub(super) header: Header,
    pub(super) text: u64,
    pub(super) module: Option<ModuleData>,
}

/// Finds the table of a file.
pub(super) fn table(image: &Image) -> Result<Option<Found>, GoTableError> {
    for name in [".gopclntab", ".data.rel.ro.gopclntab"] {
        if let Some(section) = image.section(name) {
            let range = file_range(image, section.svma).unwrap_or_default();
            let range = range.start..range.end.min(range.start.saturating_add(section.bytes.len()));
            return settle(image, section.svma, range).map(Some);
        }
    }
    let named = [".go.buildinfo", ".note.go.buildid", ".go.module"].iter().any(|name| image.section(name).is_some());
    let has_sections = image.section(".text").is_some() || image.section(".dynstr").is_some();
    if has_sections && !named {
        return Ok(None);
    }
    search(image)
}

/// Looks for the begin of a table in all segments.
fn search(image: &Image) -> Result<Option<Found>, GoTableError> {
    let mut failed = Ok(None);
    let mut budget = (MAX_SEARCH, MAX_TABLES);
    for executable in [false, true] {
        for load in image.loads().iter().filter(|load| load.executable == executable) {
            let Some(range) = file_range(image, load.svma) else { continue };
            let bytes = &image.bytes()[range.start..range.end.min(range.start.saturating_add(budget.0))];
            budget.0 -= bytes.len();
            let begins =
                |word: &[u8]| word[1..] == [0xff, 0xff, 0xff, 0, 0, 1, 8] && matches!(word[0], 0xf0 | 0xf1 | 0xfa);
            for (index, _) in bytes.chunks_exact(8).enumerate().filter(|(_, word)| begins(word)) {
                let svma = load.svma.saturating_add(index as u64 * 8);
                match settle(image, svma, range.start + index * 8..range.end) {
                    Ok(found) => return Ok(Some(found)),
                    Err(error) => failed = Err(error),
                }
                budget.1 -= 1;
                if budget.1 == 0 {
                    return failed;
                }
            }
        }
    }
    failed
}

/// Finds the text base of the table at this place, and checks that its functions are in code.
fn settle(image: &Image, svma: u64, range: Range<usize>) -> Result<Found, GoTableError> {
    let bytes = image.bytes().get(range.clone()).unwrap_or_default();
    let header = Header::parse(bytes)?;
    let fits = |text: u64| {
        let bounds = LineTable::with_header(bytes, header, text, &[]).bounds();
        bounds.is_some_and(|(start, end)| start < end && in_code(image, start) && in_code(image, end - 1))
    };
    let module = module_data(image, svma, header);
    if let Some(module) = module.filter(|module| fits(module.text)) {
        return Ok(Found { range, header, text: module.text, module: Some(module) });
    }
    // `textStart`, which may be unrelocated; then what it is where Go's own linker was used.
    let assumed = Relocations::of(image).addend(svma.wrapping_add(24)).unwrap_or(header.text_start);
    let section = image.section(".text").map(|section| section.svma);
    let mut bases = [Some(assumed).filter(|&base| base != 0), section].into_iter().flatten();
    let text = bases.find(|&base| fits(base)).ok_or(GoTableError::TextBase)?;
    Ok(Found { range, header, text, module: None })
}

/// Finds `moduledata`: what begins with a pointer to the table, and then has the right pointers into it.
fn module_data(image: &Image, table: u64, header: Header) -> Option<ModuleData> {
    let relocations = Relocations::of(image);
    let read = |svma| read_module_data(image, &relocations, table, header, svma);
    if let Some(section) = image.section(".go.module")
        && let Some(module) = read(section.svma)
    {
        return Some(module);
    }
    let in_place = writable(image).flat_map(|(start, bytes)| {
        let words = bytes.chunks_exact(8).enumerate().filter(move |(_, word)| u64_at(word, 0) == Some(table));
        words.map(move |(index, _)| start.saturating_add(index as u64 * 8))
    });
    let relocated = relocations.iter().filter(|&(_, addend)| addend == table).map(|(place, _)| place);
    in_place.take(MAX_POINTERS).chain(relocated.take(MAX_POINTERS)).find_map(read)
}

fn read_module_data(
    image: &Image,
    relocations: &Relocations<'_>,
    table: u64,
    header: Header,
    svma: u64,
) -> Option<ModuleData> {
    let mut words = [0_u64; MODULE_DATA / 8];
    let bytes = image.at(svma)?;
    for (index, word) in words.iter_mut().enumerate() {
        *word = u64_at(bytes, index * 8)?;
    }
    for (place, addend) in relocations.iter() {
        let index = place.wrapping_sub(svma);
        if index % 8 == 0
            && let Some(word) = usize::try_from(index / 8).ok().and_then(|index| words.get_mut(index))
        {
            *word = addend;
        }
    }
    let at = |offset: usize| words[offset / 8];
    let (names, functions) = header.names_and_functions();
    let (text, etext) = (at(176), at(184));
    let sound = at(0) == table
        && at(8) == table.wrapping_add(names)
        && at(128) == table.wrapping_add(functions)
        && at(136) == header.functions as u64 + 1
        && text < etext
        && in_code(image, text);
    // Between `types` and `rodata` Go 1.27 has three sizes more, the first of them in the place of `etypes`. Coverage
    // counters came with 1.20.
    let gofunc = match header.format {
        super::Format::Go116 => None,
        super::Format::Go118 => Some(at(304)),
        super::Format::Go120 if at(304) >= at(296) => Some(at(320)),
        super::Format::Go120 => Some(at(344)),
    };
    sound.then_some(ModuleData {
        svma,
        text,
        etext,
        noptrdata: at(192),
        enoptrdata: at(200),
        data: at(208),
        edata: at(216),
        bss: at(224),
        ebss: at(232),
        noptrbss: at(240),
        enoptrbss: at(248),
        gofunc: gofunc.filter(|&gofunc| image.at(gofunc).is_some()),
    })
}

/// The version that built the program, from its build information; only the form since Go 1.18.
pub(super) fn version(image: &Image) -> Option<String> {
    let section = image.section(".go.buildinfo").and_then(|section| version_in(section.bytes));
    section.or_else(|| {
        let searched = writable(image).map(|(_, bytes)| bytes.get(..MAX_BUILD_INFO).unwrap_or(bytes));
        let mut blobs = searched.flat_map(|bytes| (0..bytes.len()).step_by(16).map(move |at| &bytes[at..]));
        blobs.find_map(version_in)
    })
}

/// `\xff Go buildinf:`, pointer size, flags (2: strings are inline), at 32 a varint and the version.
fn version_in(bytes: &[u8]) -> Option<String> {
    let head = bytes.strip_prefix(b"\xff Go buildinf:")?;
    let inline = head.get(1)? & 2 != 0;
    let mut rest = bytes.get(32..).filter(|_| inline)?;
    let length = usize::try_from(varint(&mut rest)?).ok()?;
    let text = std::str::from_utf8(rest.get(..length)?.get(..length.min(MAX_VERSION))?).ok()?;
    let sound = text.starts_with("go") || text.starts_with("devel");
    (sound && !text.contains(char::is_control)).then(|| text.to_owned())
}

/// `R_X86_64_RELATIVE` relocations of the dynamic section.
struct Relocations<'a> {
    bytes: &'a [u8],
}

impl<'a> Relocations<'a> {
    fn of(image: &'a Image) -> Self {
        Self { bytes: Self::find(image).unwrap_or_default() }
    }

    fn find(image: &'a Image) -> Option<&'a [u8]> {
        let elf = image.elf().ok()?;
        let dynamic = elf.elf_program_headers().iter().find(|header| header.p_type(LittleEndian) == elf::PT_DYNAMIC)?;
        let entries = image.at(dynamic.p_vaddr(LittleEndian))?;
        let tags = || entries.chunks_exact(16).take(256).map(|entry| (u64_at(entry, 0), u64_at(entry, 8)));
        let value = |wanted: u64| tags().find(|&(tag, _)| tag == Some(wanted)).and_then(|(_, value)| value);
        const DT_RELA: u64 = 7;
        const DT_RELASZ: u64 = 8;
        let bytes = image.at(value(DT_RELA)?)?;
        let size = usize::try_from(value(DT_RELASZ)?).unwrap_or(usize::MAX);
        Some(bytes.get(..size).unwrap_or(bytes))
    }

    /// Place and addend of each.
    fn iter(&self) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        const R_X86_64_RELATIVE: u64 = 8;
        let entries = self.bytes.chunks_exact(24).take(MAX_RELOCATIONS);
        entries
            .filter(|entry| u64_at(entry, 8) == Some(R_X86_64_RELATIVE))
            .filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 16)?)))
    }

    fn addend(&self, place: u64) -> Option<u64> {
        self.iter().find(|&(at, _)| at == place).map(|(_, addend)| addend)
    }
}

/// The writable segments: first svma and bytes in the file.
fn writable(image: &Image) -> impl Iterator<Item = (u64, &[u8])> {
    let elf = image.elf().ok();
    let headers = elf.map(|elf| elf.elf_program_headers()).unwrap_or_default().iter().take(MAX_SEGMENTS);
    let writable = headers.filter(|header| {
        header.p_type(LittleEndian) == elf::PT_LOAD && header.p_flags(LittleEndian).contains(elf::PF_W)
    });
    writable.filter_map(|header| {
        let svma = header.p_vaddr(LittleEndian);
        Some((svma, image.at(svma)?))
    })
}

/// Offsets in the file from this svma to the end of its segment.
pub(super) fn file_range(image: &Image, svma: u64) -> Option<Range<usize>> {
    let load = image.loads().iter().find(|load| svma.checked_sub(load.svma).is_some_and(|d| d < load.file_size))?;
    let start = usize::try_from(load.offset.checked_add(svma - load.svma)?).ok()?;
    let end = usize::try_from(load.offset.checked_add(load.file_size)?).ok()?.min(image.bytes().len());
    (start <= end).then_some(start..end)
}

fn in_code(image: &Image, svma: u64) -> bool {
    let mut code = image.loads().iter().filter(|load| load.executable);
    code.any(|load| svma.checked_sub(load.svma).is_some_and(|d| d < load.memory_size))
}
