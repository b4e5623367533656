//! A small reader of BTF, the kernel's type information: structure and member names to byte offsets.
//!
//! Bytes in, offsets out; no I/O. The input may be anything (a truncated file, a hostile one): every
//! read is bounded, and a malformed record is an error, never a panic. Format:
//! `Documentation/bpf/btf.rst`, `include/uapi/linux/btf.h`.
//!
//! Not for writing BTF, nor for split BTF of modules.

use std::collections::HashMap;
use thiserror::Error;

/// Why BTF could not be read, or does not answer a question.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BtfError {
    /// Not BTF of this machine's byte order.
    #[error("not BTF (magic {0:#06x}); the kernel must be built with CONFIG_DEBUG_INFO_BTF=y")]
    Magic(u16),
    /// The data ends or points outside itself.
    #[error("BTF is cut off or corrupt at byte {at}; read /sys/kernel/btf/vmlinux again")]
    Corrupt {
        /// Position in the data.
        at: usize,
    },
    /// A type record of a kind this reader does not know.
    #[error("BTF kind {kind} is unknown; this kernel is newer than observer, please report it")]
    Kind {
        /// `BTF_KIND_*`.
        kind: u32,
    },
    /// No such structure.
    #[error("this kernel has no `struct {0}`")]
    NoStruct(String),
    /// No such member.
    #[error("this kernel's `struct {structure}` has no member `{member}`")]
    NoMember {
        /// The structure.
        structure: String,
        /// The member.
        member: String,
    },
    /// The member is there with another size.
    #[error("`{structure}.{member}` has {found} bytes, expected {expected}; please report this kernel")]
    Size {
        /// The structure.
        structure: String,
        /// The member path.
        member: String,
        /// Size in this kernel.
        found: u32,
        /// Size observer reads.
        expected: u32,
    },
    /// The member does not start at a byte.
    #[error("`{structure}.{member}` is a bit field; please report this kernel")]
    BitField {
        /// The structure.
        structure: String,
        /// The member path.
        member: String,
    },
}

/// Depth of typedefs, qualifiers and anonymous members that is followed; kernels use under ten.
const MAX_DEPTH: u32 = 32;

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Parsed type information over borrowed bytes.
#[derive(Debug)]
pub struct Btf<'a> {
    data: &'a [u8],
    strings: &'a [u8],
    /// Position of each type record; type 0 is `void` and has none.
    records: Vec<usize>,
    /// Structures and unions by name, first definition wins.
    structures: HashMap<&'a [u8], u32>,
}

/// Where a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the start of the structure.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    type_id: u32,
}

struct Record {
    name: u32,
    kind: u32,
    vlen: u32,
    bit_field: bool,
    size_or_type: u32,
    /// Position of what follows the common part.
    body: usize,
}

fn u32_at(data: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = at.checked_add(4).and_then(|end| data.get(at..end)).ok_or(BtfError::Corrupt { at })?;
    let mut word = [0; 4];
    word.copy_from_slice(bytes);
    Ok(u32::from_ne_bytes(word))
}

impl<'a> Btf<'a> {
    /// Reads the header and finds every type.
    pub fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        let magic = u32_at(data, 0)? as u16;
        if magic != 0xeb9f {
            return Err(BtfError::Magic(magic));
        }
        let header = u32_at(data, 4)? as usize;
        let section = |offset_at: usize| -> Result<&'a [u8], BtfError> {
            let start = header.checked_add(u32_at(data, offset_at)? as usize);
            let len = u32_at(data, offset_at + 4)? as usize;
            start
                .and_then(|start| Some(start..start.checked_add(len)?))
                .and_then(|range| data.get(range))
                .ok_or(BtfError::Corrupt { at: offset_at })
        };
        let types = section(8)?;
        let strings = section(16)?;
        let mut btf = Self { data: types, strings, records: vec![usize::MAX], structures: HashMap::new() };
        let mut at = 0;
        while at < types.len() {
            let record = btf.record_at(at)?;
            let id = btf.records.len() as u32;
            btf.records.push(at);
            if matches!(record.kind, kind::STRUCT | kind::UNION) {
                let name = btf.string(record.name)?;
                if !name.is_empty() {
                    btf.structures.entry(name).or_insert(id);
                }
            }
            at = record.body.checked_add(Self::body_len(&record)?).ok_or(BtfError::Corrupt { at })?;
        }
        Ok(btf)
    }

    fn body_len(record: &Record) -> Result<usize, BtfError> {
        let vlen = record.vlen as usize;
        Ok(match record.kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * vlen,
            kind::ENUM | kind::FUNC_PROTO => 8 * vlen,
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            kind => return Err(BtfError::Kind { kind }),
        })
    }

    fn record_at(&self, at: usize) -> Result<Record, BtfError> {
        let name = u32_at(self.data, at)?;
        let info = u32_at(self.data, at + 4)?;
        let size_or_type = u32_at(self.data, at + 8)?;
        Ok(Record {
            name,
            kind: info >> 24 & 0x1f,
            vlen: info & 0xffff,
            bit_field: info >> 31 != 0,
            size_or_type,
            body: at + 12,
        })
    }

    fn record(&self, id: u32) -> Result<Record, BtfError> {
        match self.records.get(id as usize) {
            Some(&at) if id != 0 => self.record_at(at),
            _ => Err(BtfError::Corrupt { at: id as usize }),
        }
    }

    fn string(&self, offset: u32) -> Result<&'a [u8], BtfError> {
        let at = offset as usize;
        let tail = self.strings.get(at..).ok_or(BtfError::Corrupt { at })?;
        let len = tail.iter().position(|&b| b == 0).ok_or(BtfError::Corrupt { at })?;
        Ok(&tail[..len])
    }

    /// Follows typedefs and qualifiers to the type beneath.
    fn resolve(&self, mut id: u32) -> Result<u32, BtfError> {
        for _ in 0..MAX_DEPTH {
            let record = self.record(id)?;
            match record.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = record.size_or_type;
                }
                _ => return Ok(id),
            }
        }
        Err(BtfError::Corrupt { at: id as usize })
    }

    fn size_of(&self, id: u32, depth: u32) -> Result<u32, BtfError> {
        let id = self.resolve(id)?;
        let record = self.record(id)?;
        match record.kind {
            kind::PTR => Ok(8),
            kind::ARRAY if depth < MAX_DEPTH => {
                let element = self.size_of(u32_at(self.data, record.body)?, depth + 1)?;
                let count = u32_at(self.data, record.body + 8)?;
                element.checked_mul(count).ok_or(BtfError::Corrupt { at: record.body })
            }
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => Ok(record.size_or_type),
            _ => Err(BtfError::Corrupt { at: record.body }),
        }
    }

    /// Size of a structure in bytes.
    pub fn structure_size(&self, structure: &str) -> Result<u32, BtfError> {
        let id = self.structure(structure)?;
        Ok(self.record(id)?.size_or_type)
    }

    fn structure(&self, name: &str) -> Result<u32, BtfError> {
        self.structures.get(name.as_bytes()).copied().ok_or_else(|| BtfError::NoStruct(name.to_owned()))
    }

    /// Finds a member by its path (`se.sum_exec_runtime`), looking through anonymous members and into
    /// embedded structures, not through pointers.
    pub fn member(&self, structure: &str, path: &str) -> Result<Member, BtfError> {
        let mut id = self.structure(structure)?;
        let mut offset: u32 = 0;
        let mut found = None;
        for part in path.split('.') {
            let (bits, type_id) = self
                .find(id, part.as_bytes(), 0)?
                .ok_or_else(|| BtfError::NoMember { structure: structure.to_owned(), member: path.to_owned() })?;
            if bits % 8 != 0 {
                return Err(BtfError::BitField { structure: structure.to_owned(), member: path.to_owned() });
            }
            offset = offset.checked_add(bits / 8).ok_or(BtfError::Corrupt { at: 0 })?;
            id = self.resolve(type_id)?;
            found = Some(Member { offset, size: self.size_of(type_id, 0).unwrap_or(0), type_id: id });
        }
        found.ok_or_else(|| BtfError::NoMember { structure: structure.to_owned(), member: path.to_owned() })
    }

    /// Like [`Btf::member`], and insists on a size.
    pub fn offset(&self, structure: &str, path: &str, expected: u32) -> Result<u32, BtfError> {
        let member = self.member(structure, path)?;
        if member.size != expected {
            return Err(BtfError::Size {
                structure: structure.to_owned(),
                member: path.to_owned(),
                found: member.size,
                expected,
            });
        }
        Ok(member.offset)
    }

    /// Bit offset and type of a direct or anonymously embedded member.
    fn find(&self, id: u32, name: &[u8], depth: u32) -> Result<Option<(u32, u32)>, BtfError> {
        let record = self.record(id)?;
        if !matches!(record.kind, kind::STRUCT | kind::UNION) || depth > MAX_DEPTH {
            return Ok(None);
        }
        for index in 0..record.vlen as usize {
            let at = record.body + 12 * index;
            let member_name = self.string(u32_at(self.data, at)?)?;
            let type_id = u32_at(self.data, at + 4)?;
            let raw = u32_at(self.data, at + 8)?;
            // With the flag set, the upper byte is the width of a bit field.
            let (bits, width) = if record.bit_field { (raw & 0x00ff_ffff, raw >> 24) } else { (raw, 0) };
            if member_name == name {
                // A bit field is reported as one: an odd bit offset is refused by the caller.
                return Ok(Some((if width == 0 { bits } else { bits | 1 }, type_id)));
            }
            if member_name.is_empty() {
                let inner = self.resolve(type_id)?;
                if let Some((more, found)) = self.find(inner, name, depth + 1)? {
                    let bits = bits.checked_add(more).ok_or(BtfError::Corrupt { at })?;
                    return Ok(Some((bits, found)));
                }
            }
        }
        Ok(None)
    }
}

impl Member {
    /// The (resolved) type, for comparing two members.
    pub fn type_id(self) -> u32 {
        self.type_id
    }
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
