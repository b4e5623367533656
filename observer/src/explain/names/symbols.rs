//! Symbol tables, as an index that points into the file.

use crate::explain::image::{Elf, Image};
use object::elf::{self, SHF_EXECINSTR, SHT_NOBITS};
use object::read::elf::{Rela as _, SectionHeader as _, Sym as _};
use object::{LittleEndian, Object, ObjectSection, SymbolIndex};
use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

/// Symbols beyond these are not looked at. The largest programs known (Chromium) have a million functions.
const MAX_SYMBOLS: usize = 8 << 20;
/// Sections of code beyond these are not looked at.
const MAX_SECTIONS: usize = 4096;
/// Names are cut here, bytes.
const MAX_NAME: usize = 64 << 10;
/// So many symbols before an address are asked whether they reach it: functions do not nest, but tables lie.
const MAX_BACK: usize = 64;
/// Relocations beyond these are not searched for the name of a stub.
const MAX_RELOCATIONS: usize = 1 << 18;

/// Which of the two tables of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `.symtab`: all functions.
    Full,
    /// `.dynsym`: exported ones. What lies between them is unknown, so a symbol reaches only as far as its size says.
    Exported,
}

/// So much of a name decides between symbols of one address, bytes.
const MAX_COMPARED: usize = 1 << 10;

/// A function. Its size is 0 where the table does not say one.
#[derive(Clone, Copy)]
struct Entry {
    svma: u64,
    size: u32,
    name: u32,
}

/// The functions of one symbol table.
pub(super) struct Symbols {
    image: Arc<Image>,
    /// Where the names are in the file.
    strings: Range<usize>,
    /// Sorted by address; one per address.
    entries: Vec<Entry>,
    /// svma ranges of sections with code, sorted.
    code: Vec<Range<u64>>,
}

/// A function that was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// As the table has it, without its version.
    pub(super) name: String,
    /// Where the function is.
    pub(super) range: Range<u64>,
}

impl Symbols {
    /// Reads a table; `None` if it is missing or names no function.
    pub(super) fn new(image: &Arc<Image>, kind: Kind) -> Option<Self> {
        let (strings, entries, code) = read(&image.elf().ok()?, kind)?;
        Some(Self { image: Arc::clone(image), strings, entries, code })
    }

    /// The function at this address.
    pub(super) fn lookup(&self, svma: u64) -> Option<Symbol> {
        let before = self.entries.partition_point(|entry| entry.svma <= svma);
        let reaching = self.entries[..before].iter().rev().take(MAX_BACK);
        let found = reaching.clone().find(|entry| svma - entry.svma < u64::from(entry.size));
        let (entry, range) = if let Some(entry) = found {
            (entry, entry.svma..entry.svma.saturating_add(u64::from(entry.size)))
        } else {
            // Hand-written code says no sizes: it reaches to the next symbol of its section.
            let entry = reaching.clone().next().filter(|entry| entry.size == 0)?;
            let section = self.section(entry.svma).filter(|section| section.contains(&svma))?;
            let next = self.entries.get(before).map_or(u64::MAX, |next| next.svma);
            (entry, entry.svma..section.end.min(next))
        };
        Some(Symbol { name: self.name(entry)?, range })
    }

    fn section(&self, svma: u64) -> Option<&Range<u64>> {
        self.code[..self.code.partition_point(|section| section.start <= svma)]
            .last()
            .filter(|section| section.contains(&svma))
    }

    fn name(&self, entry: &Entry) -> Option<String> {
        let name = string(self.image.bytes().get(self.strings.clone())?, entry.name)?;
        Some(without_version(&String::from_utf8_lossy(name)).to_owned())
    }

    /// Bytes of memory held, about.
    pub(super) fn approximate_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.code.capacity() * size_of::<Range<u64>>()
    }
}

/// `memcpy@@GLIBC_2.14` is `memcpy`.
fn without_version(name: &str) -> &str {
    match name.find('@') {
        Some(at) if at > 0 => &name[..at],
        _ => name,
    }
}

fn string(strings: &[u8], at: u32) -> Option<&[u8]> {
    let rest = strings.get(at as usize..)?;
    let rest = &rest[..rest.len().min(MAX_NAME)];
    let name = &rest[..rest.iter().position(|&b| b == 0).unwrap_or(rest.len())];
    (!name.is_empty()).then_some(name)
}

type Read = (Range<usize>, Vec<Entry>, Vec<Range<u64>>);

fn read(elf: &Elf<'_>, kind: Kind) -> Option<Read> {
    let endian = LittleEndian;
    let table = if kind == Kind::Full { elf.elf_symbol_table() } else { elf.elf_dynamic_symbol_table() };
    let sections = elf.elf_section_table();
    let (start, len) = sections.section(table.string_section()).ok()?.file_range(endian)?;
    let strings = usize::try_from(start).ok()?..usize::try_from(start.checked_add(len)?).ok()?;
    let bytes = elf.data().get(strings.clone())?;

    // By index, as symbols refer to them; debug files keep them without their bytes.
    let code_of: Vec<Option<Range<u64>>> = sections
        .iter()
        .take(MAX_SECTIONS)
        .map(|section| {
            let range = section.sh_addr(endian)..section.sh_addr(endian).saturating_add(section.sh_size(endian));
            section.sh_flags(endian).contains(SHF_EXECINSTR).then_some(range)
        })
        .collect();

    // The last field is what is kept, the one before decides between names of the same address.
    let mut found: Vec<(Entry, u8)> = Vec::new();
    for symbol in table.iter().take(MAX_SYMBOLS) {
        let kind_of = symbol.st_type();
        let function = kind_of == elf::STT_FUNC || kind_of == elf::STT_GNU_IFUNC;
        if !function && kind_of != elf::STT_NOTYPE {
            continue;
        }
        let svma = symbol.st_value(endian);
        let section = code_of.get(usize::from(symbol.st_shndx(endian).0)).and_then(Option::as_ref);
        // The end of a section is where `_end` and the like point to.
        if !section.is_some_and(|section| section.contains(&svma)) {
            continue;
        }
        let size = u32::try_from(symbol.st_size(endian)).unwrap_or(u32::MAX);
        if size == 0 && kind == Kind::Exported {
            continue;
        }
        let local = symbol.st_bind() == elf::STB_LOCAL;
        let weak = symbol.st_bind() == elf::STB_WEAK;
        let rank = u8::from(size == 0) << 3 | u8::from(!function) << 2 | u8::from(local) << 1 | u8::from(weak);
        let name = symbol.st_name(endian);
        // Zero-length names and mapping symbols (`$x`) name nothing.
        match bytes.get(name as usize) {
            None | Some(0 | b'$') => continue,
            Some(_) => found.push((Entry { svma, size, name }, rank)),
        }
    }
    let preference = |entry: &Entry, rank: u8| {
        // Of a long name the beginning: many symbols may share it.
        let rest = bytes.get(entry.name as usize..).unwrap_or_default();
        let name = string(&rest[..rest.len().min(MAX_COMPARED)], 0).unwrap_or_default();
        let underscores = name.iter().take_while(|&&b| b == b'_').count();
        // `read` rather than `__read`, whichever is the weak one; then `C1` before `C2`.
        (rank >> 1, underscores, rank & 1, name.len(), Reverse(entry.size), name)
    };
    found.sort_unstable_by_key(|(entry, rank)| (entry.svma, *rank, entry.name, entry.size));
    let groups = found.chunk_by(|(a, _), (b, _)| a.svma == b.svma);
    // Names are looked at only where they decide, and once: sorting by them would do it again and again.
    let best = |group: &[(Entry, u8)]| match group {
        [(only, _)] => Some(*only),
        _ => group.iter().min_by_key(|(entry, rank)| preference(entry, *rank)).map(|(entry, _)| *entry),
    };
    let entries: Vec<Entry> = groups.filter_map(best).collect();
    let mut code: Vec<Range<u64>> = code_of.into_iter().flatten().collect();
    code.sort_unstable_by_key(|range| (range.start, range.end));
    (!entries.is_empty()).then_some((strings, entries, code))
}

/// The name of a stub through which a function of another module is called: `write@plt`.
pub(super) fn plt(image: &Image, svma: u64) -> Option<Symbol> {
    let endian = LittleEndian;
    let elf = image.elf().ok()?;
    let sections = elf.sections().take(MAX_SECTIONS);
    let stubs = sections
        .filter(|section| section.name().is_ok_and(|name| name.starts_with(".plt")))
        .find(|section| svma.checked_sub(section.address()).is_some_and(|distance| distance < section.size()))?;
    // 16 bytes each; in `.plt.got` they may be 8.
    let code = stubs.data().ok()?;
    let offset = svma - stubs.address();
    for size in [16, 8] {
        let start = offset / size * size;
        let at = usize::try_from(start).ok()?;
        let stub = code.get(at..code.len().min(at + size as usize))?;
        // `jmp *disp(%rip)`, behind an `endbr64` or a `bnd`.
        let Some(jump) = stub.windows(2).position(|bytes| bytes == [0xff, 0x25]) else { continue };
        let Some(displacement) = stub.get(jump + 2..jump + 6).and_then(|bytes| bytes.try_into().ok()) else { continue };
        let after = (stubs.address() + start).wrapping_add(jump as u64 + 6);
        let slot = after.wrapping_add_signed(i64::from(i32::from_le_bytes(displacement)));
        if let Some(name) = relocated(&elf, slot) {
            let range = stubs.address() + start..stubs.address() + start + size;
            return Some(Symbol { name: format!("{name}@plt"), range });
        }
    }
    let _ = endian;
    None
}

/// The symbol whose address the dynamic linker puts into this slot.
fn relocated(elf: &Elf<'_>, slot: u64) -> Option<String> {
    let endian = LittleEndian;
    let symbols = elf.elf_dynamic_symbol_table();
    for section in elf.elf_section_table().iter().take(MAX_SECTIONS) {
        if section.sh_type(endian) == SHT_NOBITS {
            continue;
        }
        let Ok(Some((relocations, _))) = section.rela(endian, elf.data()) else { continue };
        let Some(found) = relocations.iter().take(MAX_RELOCATIONS).find(|rela| rela.r_offset(endian) == slot) else {
            continue;
        };
        let index = found.r_sym(endian, false);
        let symbol = symbols.symbol(SymbolIndex(index as usize)).ok().filter(|_| index != 0)?;
        let name = symbols.symbol_name(endian, symbol).ok().filter(|name| !name.is_empty())?;
        return Some(String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]).into_owned());
    }
    None
}
