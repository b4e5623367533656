//! Debug information: functions with what was inlined into them, files and lines.
//!
//! The index over a file's units is built at the first lookup. Sections are used where the file is mapped; packed ones
//! are unpacked into memory, within a limit. All parsing is metered ([`super::reader`]).

use super::Named;
use super::demangle::demangle;
use super::reader::{Cost, Metered, within};
use crate::explain::image::Image;
use addr2line::Context;
use gimli::{AbbreviationsCacheStrategy, SectionId};
use object::{CompressionFormat, Object, ObjectSection};
use std::ops::Range;
use std::sync::Arc;

/// Larger `.debug_info` is not used, bytes.
const MAX_INFO: u64 = 2 << 30;
/// Packed sections of a file become at most so large together, bytes.
const MAX_UNPACKED: u64 = 512 << 20;
/// Frames of one address beyond these are dropped.
const MAX_FRAMES: usize = 64;
/// File names are cut here, bytes.
const MAX_FILE: usize = 4 << 10;
/// Budgets in reads ([`Metered`]), some nanoseconds each: for the index,
const INDEX_BUDGET: u64 = 64 << 20;
/// for an address,
const LOOKUP_BUDGET: u64 = 32 << 20;
/// and for all addresses together, which limits the memory, too: then everything kept is forgotten and begun anew,
const TOTAL_BUDGET: u64 = 128 << 20;
/// but not more often than this.
const MAX_RESTARTS: u32 = 32;

const SECTIONS: [SectionId; 10] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugAranges,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

enum Bytes {
    Mapped(Range<usize>),
    Unpacked(Vec<u8>),
}

/// The sections of one file.
struct File {
    image: Arc<Image>,
    sections: Vec<(SectionId, Bytes)>,
}

impl File {
    fn new(image: Arc<Image>, room: &mut u64) -> Result<Self, String> {
        let mut sections = Vec::new();
        for id in SECTIONS {
            if let Some(bytes) = section(&image, id, room).map_err(|why| format!("{}: {why}", id.name()))? {
                sections.push((id, bytes));
            }
        }
        Ok(Self { image, sections })
    }

    fn reader(&self, id: SectionId) -> Metered<'_> {
        let bytes = match self.sections.iter().find(|(found, _)| *found == id) {
            Some((_, Bytes::Mapped(range))) => self.image.bytes().get(range.clone()).unwrap_or_default(),
            Some((_, Bytes::Unpacked(bytes))) => bytes,
            None => &[],
        };
        let cost = match id {
            SectionId::DebugLine => Cost::Lines,
            SectionId::DebugAbbrev | SectionId::DebugAranges | SectionId::DebugRanges | SectionId::DebugRngLists => {
                Cost::Kept
            }
            _ => Cost::Plain,
        };
        Metered::new(bytes, cost)
    }

    fn unpacked_bytes(&self) -> usize {
        self.sections.iter().map(|(_, bytes)| if let Bytes::Unpacked(bytes) = bytes { bytes.len() } else { 0 }).sum()
    }
}

fn section(image: &Image, id: SectionId, room: &mut u64) -> Result<Option<Bytes>, &'static str> {
    let elf = image.elf().map_err(|_| "cannot be read")?;
    let Some(section) = elf.section_by_name(id.name()) else { return Ok(None) };
    let range = section.compressed_file_range().map_err(|_| "cannot be read")?;
    if id == SectionId::DebugInfo && range.uncompressed_size > MAX_INFO {
        return Err("too large");
    }
    if range.format == CompressionFormat::None {
        let end = range.offset.checked_add(range.compressed_size).ok_or("outside of the file")?;
        let range = usize::try_from(range.offset).ok().zip(usize::try_from(end).ok()).map(|(start, end)| start..end);
        let range = range.filter(|range| image.bytes().get(range.clone()).is_some()).ok_or("outside of the file")?;
        return Ok(Some(Bytes::Mapped(range)));
    }
    *room = room.checked_sub(range.uncompressed_size).ok_or("too large when unpacked")?;
    let bytes = image.unpacked(id.name()).ok_or("cannot be unpacked")?;
    Ok(Some(Bytes::Unpacked(bytes.into_owned())))
}

/// The file with the debug information, and what `dwz` took out of it.
struct Files {
    main: File,
    shared: Option<File>,
}

type Index<'a> = Context<Metered<'a>>;

#[expect(clippy::mem_forget, reason = "within the macro, where drop guards are disarmed")]
mod indexed {
    use super::{Files, Index};

    self_cell::self_cell! {
        pub(super) struct Indexed {
            owner: Files,
            #[not_covariant]
            dependent: Index,
        }
    }
}
use indexed::Indexed;

enum State {
    NotYet,
    Ready(Indexed),
    Unusable,
}

/// The debug information of a module.
pub(super) struct Dwarf {
    image: Arc<Image>,
    shared: Option<Arc<Image>>,
    state: State,
    restarts: u32,
    spent: u64,
    unpacked: usize,
}

/// Whether there is any.
pub(super) fn has_dwarf(image: &Image) -> bool {
    image
        .elf()
        .is_ok_and(|elf| elf.section_by_name(".debug_info").is_some_and(|section| section.file_range().is_some()))
}

impl Dwarf {
    pub(super) fn new(image: Arc<Image>, shared: Option<Arc<Image>>) -> Self {
        Self { image, shared, state: State::NotYet, restarts: 0, spent: 0, unpacked: 0 }
    }

    /// The frames at this address, innermost first; empty if nothing is known.
    pub(super) fn lookup(&mut self, svma: u64) -> Vec<Named> {
        self.ask(|index| frames(index, svma)).unwrap_or_default()
    }

    /// The name of the function that begins at this address, as it was declared: not the symbol.
    pub(super) fn declared(&mut self, svma: u64) -> Option<String> {
        self.ask(|index| declared(index, svma)).flatten()
    }

    /// What an index answers; `None` if there is none, or if it cannot tell.
    fn ask<T>(&mut self, question: impl FnOnce(&Index<'_>) -> Result<T, gimli::Error>) -> Option<T> {
        if self.spent > TOTAL_BUDGET {
            self.restarts += 1;
            self.spent = 0;
            self.state = if self.restarts > MAX_RESTARTS { State::Unusable } else { State::NotYet };
        }
        if let State::NotYet = self.state {
            self.open();
        }
        let State::Ready(indexed) = &self.state else { return None };
        let (answer, spent) = within(LOOKUP_BUDGET, || indexed.with_dependent(|_, index| question(index)).ok());
        self.spent += spent;
        answer
    }

    fn open(&mut self) {
        self.state = State::Unusable;
        match Self::index(Arc::clone(&self.image), self.shared.clone()) {
            Ok((indexed, spent)) => {
                let files = indexed.borrow_owner();
                self.unpacked = files.main.unpacked_bytes() + files.shared.as_ref().map_or(0, File::unpacked_bytes);
                self.spent = spent;
                self.state = State::Ready(indexed);
            }
            Err(why) => log::debug!("debug information not used: {why}"),
        }
    }

    fn index(image: Arc<Image>, shared: Option<Arc<Image>>) -> Result<(Indexed, u64), String> {
        let mut room = MAX_UNPACKED;
        let main = File::new(image, &mut room)?;
        let shared = shared.map(|image| File::new(image, &mut room)).transpose()?;
        let (indexed, spent) = within(INDEX_BUDGET, || {
            Indexed::try_new(Files { main, shared }, |files| {
                let mut dwarf = gimli::Dwarf::load(|id| Ok::<_, gimli::Error>(files.main.reader(id)))?;
                if let Some(shared) = &files.shared {
                    dwarf.load_sup(|id| Ok::<_, gimli::Error>(shared.reader(id)))?;
                }
                dwarf.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
                Context::from_dwarf(dwarf)
            })
        });
        Ok((indexed.map_err(|error| error.to_string())?, spent))
    }

    /// Bytes of memory held, about: what is kept of the sections grows with what was read of them.
    pub(super) fn approximate_bytes(&self) -> usize {
        self.unpacked + usize::try_from(self.spent * 2).unwrap_or(usize::MAX)
    }
}

fn frames(index: &Index<'_>, svma: u64) -> Result<Vec<Named>, gimli::Error> {
    let mut iter = index.find_frames(svma).skip_all_loads()?;
    let mut frames: Vec<Named> = Vec::new();
    while let Some(frame) = iter.next()? {
        let function = frame.function.and_then(|name| Some(demangle(&name.raw_name().ok()?)));
        let (file, line) = frame.location.map_or((None, None), |location| (location.file, location.line));
        let file = file.map(|file| file[..file.floor_char_boundary(MAX_FILE)].to_owned());
        if frames.len() == MAX_FRAMES {
            break;
        }
        // All but the last are inlined.
        if let Some(last) = frames.last_mut() {
            last.inlined = true;
        }
        frames.push(Named { function, file, line, inlined: false });
    }
    Ok(frames)
}

/// Entries that refer to each other for a name are followed so far.
const MAX_ORIGINS: usize = 8;

fn declared(index: &Index<'_>, svma: u64) -> Result<Option<String>, gimli::Error> {
    let Some(unit) = index.find_dwarf_and_unit(svma).skip_all_loads() else { return Ok(None) };
    let mut entries = unit.entries();
    while let Some(entry) = entries.next_dfs()? {
        if entry.tag() != gimli::DW_TAG_subprogram {
            continue;
        }
        let begin = entry.attr_value(gimli::DW_AT_low_pc).map(|value| unit.attr_address(value)).transpose()?.flatten();
        if begin != Some(svma) {
            continue;
        }
        let mut entry = entry.clone();
        for _ in 0..MAX_ORIGINS {
            if let Some(name) = entry.attr_value(gimli::DW_AT_name) {
                let name = unit.attr_string(name)?;
                return Ok(Some(gimli::Reader::to_string_lossy(&name)?.into_owned()));
            }
            let origin = [gimli::DW_AT_abstract_origin, gimli::DW_AT_specification];
            let origin = origin.into_iter().find_map(|kind| entry.attr_value(kind));
            let Some(gimli::AttributeValue::UnitRef(at)) = origin else { return Ok(None) };
            entry = unit.entry(at)?;
        }
        return Ok(None);
    }
    Ok(None)
}
