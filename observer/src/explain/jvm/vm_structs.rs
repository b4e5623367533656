//! `gHotSpotVMStructs`: HotSpot's own table of where its fields are (`src/hotspot/share/runtime/vmStructs.hpp`).

use super::super::image::Image;
use crate::explain::pieces::{Memory, number, word};
use object::LittleEndian;
use object::read::elf::Sym;
use std::collections::{BTreeSet, HashMap};

/// JDK 17 has 788 entries, 25 has 585.
const MAX_ENTRIES: u64 = 20_000;
/// An entry has 48 bytes.
const MAX_STRIDE: u64 = 256;
/// JDK 17 and 25 export some 480.
const MAX_SYMBOLS: usize = 1 << 20;
/// A name that is longer is none of those we look for.
const NAME_LEN: u32 = 64;
/// Fields of objects of at most this size are believed.
const MAX_OFFSET: u64 = 64 << 10;

/// Types whose fields are of interest.
const TYPES: [&[u8]; 7] =
    [b"ThreadsSMRSupport", b"ThreadsList", b"JavaThread", b"Thread", b"OSThread", b"ObjectMonitor", b"LockStack"];

const PREFIX: &[u8] = b"gHotSpotVMStruct";
/// What follows it in the names of the symbols, in the order of [`Symbols`].
const SUFFIXES: [&[u8]; 8] = [
    b"s",
    b"EntryTypeNameOffset",
    b"EntryFieldNameOffset",
    b"EntryTypeStringOffset",
    b"EntryIsStaticOffset",
    b"EntryOffsetOffset",
    b"EntryAddressOffset",
    b"EntryArrayStride",
];

/// Where the table's address and its shape are noted, svma; [`SUFFIXES`] says which is which.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbols(pub(super) [u64; SUFFIXES.len()]);

impl Symbols {
    /// Looks for them among what a library exports; `None` unless all are there.
    pub(super) fn find(image: &Image) -> Option<Self> {
        let elf = image.elf().ok()?;
        let names = image.section(".dynstr")?.bytes;
        let mut found = [None; SUFFIXES.len()];
        for symbol in elf.elf_dynamic_symbol_table().symbols().iter().take(MAX_SYMBOLS) {
            // Not by `Sym::name`: it looks for the end of each name, which may be far away.
            let name = names.get(symbol.st_name(LittleEndian) as usize..).unwrap_or_default();
            let Some(suffix) = name.strip_prefix(PREFIX) else { continue };
            let is_this = |known: &&[u8]| suffix.strip_prefix(*known).is_some_and(|rest| rest.first() == Some(&0));
            if let Some(slot) = SUFFIXES.iter().position(is_this) {
                found[slot] = Some(symbol.st_value(LittleEndian));
            }
        }
        let mut svmas = [0; SUFFIXES.len()];
        for (svma, found) in svmas.iter_mut().zip(found) {
            *svma = found?;
        }
        Some(Self(svmas))
    }
}

/// One field.
#[derive(Debug)]
struct Field {
    /// In its object, or the address of a static one.
    at: u64,
    is_static: bool,
    /// Its C++ type; `None` where the table does not say it.
    type_string: Option<Vec<u8>>,
}

/// The fields of interest.
#[derive(Debug)]
pub(super) struct VmStructs {
    fields: HashMap<(&'static [u8], Vec<u8>), Field>,
}

/// An entry as it is in memory.
struct Entry {
    type_name: u64,
    field_name: u64,
    type_string: u64,
    is_static: bool,
    offset: u64,
    address: u64,
}

impl VmStructs {
    /// Reads the table of a JVM whose libjvm has this bias.
    pub(super) fn read(symbols: &Symbols, bias: u64, memory: &mut Memory<'_>) -> Result<Self, String> {
        let values = memory.words(symbols.0.iter().map(|svma| svma.wrapping_add(bias)));
        let values: Option<Vec<u64>> = values.into_iter().collect();
        let Some([table, type_name, field_name, type_string, is_static, offset, address, stride]) = values.as_deref()
        else {
            return Err("the address of gHotSpotVMStructs cannot be read".to_owned());
        };
        let (table, stride) = (*table, *stride);
        let columns = [type_name, field_name, type_string, is_static, offset, address];
        if !(8..=MAX_STRIDE).contains(&stride) || columns.iter().any(|column| **column > stride - 8) {
            return Err("gHotSpotVMStructs has a shape that no JDK has".to_owned());
        }
        let mut entries = Vec::new();
        // Some 800 entries fit into the first piece.
        let mut piece = Vec::new();
        for index in 0.. {
            let per_piece = 1024;
            if index % per_piece == 0 {
                piece = memory.bytes(table.wrapping_add(index * stride), per_piece * stride);
            }
            let at = index % per_piece * stride;
            let entry = || {
                Some(Entry {
                    type_name: word(&piece, at + type_name)?,
                    field_name: word(&piece, at + field_name)?,
                    type_string: word(&piece, at + type_string)?,
                    is_static: number(&piece, at + is_static)? != 0,
                    offset: word(&piece, at + offset)?,
                    address: word(&piece, at + address)?,
                })
            };
            let entry = entry().ok_or("gHotSpotVMStructs ends in memory that cannot be read")?;
            if entry.type_name == 0 {
                break;
            }
            if index >= MAX_ENTRIES {
                return Err("gHotSpotVMStructs has no end".to_owned());
            }
            entries.push(entry);
        }
        Ok(Self::of(entries, memory))
    }

    fn of(mut entries: Vec<Entry>, memory: &mut Memory<'_>) -> Self {
        let types = strings(entries.iter().map(|entry| entry.type_name), memory);
        let known = |entry: &Entry| {
            let name = types.get(&entry.type_name)?;
            TYPES.iter().find(|known| *known == name).copied()
        };
        entries.retain(|entry| known(entry).is_some());
        let names = strings(entries.iter().flat_map(|entry| [entry.field_name, entry.type_string]), memory);
        let fields = entries.iter().filter_map(|entry| {
            let key = (known(entry)?, names.get(&entry.field_name)?.clone());
            let at = if entry.is_static { entry.address } else { entry.offset };
            let type_string = names.get(&entry.type_string).cloned();
            Some((key, Field { at, is_static: entry.is_static, type_string }))
        });
        Self { fields: fields.collect() }
    }

    fn field(&self, types: &[&str], name: &str, is_static: bool) -> Option<&Field> {
        types.iter().find_map(|wanted| {
            let wanted = TYPES.iter().find(|known| **known == wanted.as_bytes())?;
            self.fields.get(&(*wanted, name.as_bytes().to_vec())).filter(|field| field.is_static == is_static)
        })
    }

    /// The address of a static field.
    pub(super) fn address(&self, of: &str, name: &str) -> Result<u64, String> {
        self.field(&[of], name, true).map(|field| field.at).ok_or_else(|| missing(of, name))
    }

    /// The place of a field in its object, if the first of these types that has it says so.
    pub(super) fn optional_offset(&self, types: &[&str], name: &str) -> Option<u64> {
        self.field(types, name, false).map(|field| field.at).filter(|at| *at <= MAX_OFFSET)
    }

    /// The place of a field in its object; it has moved between a class and its base in some releases.
    pub(super) fn offset(&self, types: &[&str], name: &str) -> Result<u64, String> {
        let of = types.first().copied().unwrap_or_default();
        self.optional_offset(types, name).ok_or_else(|| missing(of, name))
    }

    /// The C++ type of a field as the table spells it; `None` where it does not.
    pub(super) fn type_string(&self, of: &str, name: &str) -> Option<&[u8]> {
        self.field(&[of], name, false)?.type_string.as_deref()
    }
}

fn missing(of: &str, name: &str) -> String {
    format!("this JVM does not publish {of}::{name}")
}

/// The short strings at these addresses; what is longer or cannot be read is left out.
fn strings(addresses: impl Iterator<Item = u64>, memory: &mut Memory<'_>) -> HashMap<u64, Vec<u8>> {
    let addresses: BTreeSet<u64> = addresses.filter(|address| *address != 0).collect();
    let pieces = memory.each(addresses.iter().copied(), NAME_LEN);
    let named = addresses.into_iter().zip(pieces).filter_map(|(address, mut bytes)| {
        bytes.truncate(bytes.iter().position(|byte| *byte == 0)?);
        Some((address, bytes))
    });
    named.collect()
}
