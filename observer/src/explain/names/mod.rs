//! From an address of a module to the names of its functions, with files and lines where they are known.
//!
//! Sources, from the best: debug information (DWARF) of the module or of its debug file; the module's `.symtab`; its
//! debug file's; `.gnu_debugdata`; `.dynsym`; the stubs of the procedure linkage table. Nothing is copied out of a
//! mapped file but an index of the functions' addresses; debug information is indexed when an address is first asked for.
//!
//! [`Names`] can be made of bytes alone ([`Image::from_bytes`]), with a root that does not exist: for fuzzing.

mod debug_files;
mod demangle;
mod dwarf;
mod minidebug;
mod perf_map;
mod reader;
mod symbols;

#[cfg(test)]
mod tests;

pub use demangle::demangle;
pub use perf_map::PerfMap;

use super::image::Image;
use debug_files::{Found, Notes, debug_file, shared_file};
use dwarf::{Dwarf, has_dwarf};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use symbols::{Kind, Symbol, Symbols};

/// Answers kept; when there are more, all are forgotten.
const MAX_KEPT: usize = 4096;

/// One name of an address. A function inlined into another is in front of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Demangled.
    pub function: Option<String>,
    /// Source file, as the debug information names it.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// Inlined into the next one.
    pub inlined: bool,
}

/// What is known of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// Innermost first; empty: no name.
    pub frames: Vec<Named>,
    /// svma range of the function, where a symbol table has it.
    pub symbol: Option<Range<u64>>,
}

/// Everything that names addresses of one module.
pub struct Names {
    image: Arc<Image>,
    /// In the order in which they are asked.
    tables: Vec<Symbols>,
    dwarf: Option<Mutex<Dwarf>>,
    kept: Mutex<HashMap<u64, Lookup>>,
    notes: Vec<String>,
    /// Of a table unpacked from the module.
    unpacked: usize,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("image", &self.image).field("tables", &self.tables.len()).finish()
    }
}

impl Names {
    /// Finds everything that names addresses of this image. What could not be used is in [`Self::notes`].
    ///
    /// `root` is where the target sees its files (`/proc/PID/root`), `path` the module's path as the target sees it:
    /// debug files are looked for beside it. May block on the file system.
    pub fn load(image: Arc<Image>, root: &Path, path: &str) -> Self {
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let mut notes = Notes::default();
        let mut unpacked = 0;
        let mut tables: Vec<Symbols> = Symbols::new(&image, Kind::Full).into_iter().collect();
        let own_dwarf = has_dwarf(&image);
        let debug = if tables.is_empty() || !own_dwarf { debug_file(&image, root, path, &mut notes) } else { None };
        if tables.is_empty() {
            tables.extend(debug.as_ref().and_then(|debug| Symbols::new(&debug.image, Kind::Full)));
        }
        if tables.is_empty() {
            match minidebug::unpack(&image) {
                Some(Ok(inner)) => {
                    unpacked = inner.bytes().len();
                    tables.extend(Symbols::new(&Arc::new(inner), Kind::Full));
                }
                Some(Err(why)) => notes.add(Path::new(path), format_args!(".gnu_debugdata: {why}")),
                None => {}
            }
            tables.extend(Symbols::new(&image, Kind::Exported));
        }
        let with_dwarf = if own_dwarf {
            Some(Found::module(&image, root, path))
        } else {
            debug.filter(|debug| has_dwarf(&debug.image))
        };
        let dwarf = with_dwarf.map(|found| {
            let shared = shared_file(&found, &mut notes);
            Mutex::new(Dwarf::new(found.image, shared))
        });
        Self { image, tables, dwarf, kept: Mutex::default(), notes: notes.0, unpacked }
    }

    /// The names of an address.
    ///
    /// A return address may be the first of the next function or line, so the call before it is looked up. The first
    /// lookup in debug information indexes it (it may block on the file system), the first in each of its units reads
    /// that.
    pub fn lookup(&self, svma: u64, is_return_address: bool) -> Lookup {
        // The last address of all is no code, and a trap for whoever adds one to it.
        let Some(svma) = svma.checked_sub(u64::from(is_return_address)).filter(|&svma| svma != u64::MAX) else {
            return Lookup::default();
        };
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept().get(&svma) {
            return known.clone();
        }
        let found = self.find(svma);
        let mut kept = kept();
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(svma, found.clone());
        found
    }

    fn find(&self, svma: u64) -> Lookup {
        let symbol =
            self.tables.iter().find_map(|table| table.lookup(svma)).or_else(|| symbols::plt(&self.image, svma));
        let mut frames = Vec::new();
        if let Some(dwarf) = &self.dwarf {
            frames = dwarf.lock().unwrap_or_else(PoisonError::into_inner).lookup(svma);
        }
        let Some(Symbol { name: raw, range }) = symbol else { return Lookup { frames, symbol: None } };
        let name = demangle(&raw);
        // A mangled symbol holds the whole path and the arguments; debug information often only the last part.
        let is_fuller = name != raw;
        match frames.last_mut() {
            Some(outermost) if is_fuller || outermost.function.is_none() => outermost.function = Some(name),
            Some(_) => {}
            None => frames.push(Named { function: Some(name), ..Named::default() }),
        }
        let range = Some(range);
        Lookup { frames, symbol: range }
    }

    /// The name that debug information gives the function which begins at this address, with the types it was made for
    /// (`poll<server::handle, …>`); symbols of the old mangling of Rust do not have them.
    pub fn declared(&self, svma: u64) -> Option<String> {
        self.dwarf.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner).declared(svma)
    }

    /// What could not be used, and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Bytes of memory held, about; mapped files are not counted.
    pub fn approximate_bytes(&self) -> usize {
        let tables: usize = self.tables.iter().map(Symbols::approximate_bytes).sum();
        let dwarf = self
            .dwarf
            .as_ref()
            .map_or(0, |dwarf| dwarf.lock().unwrap_or_else(PoisonError::into_inner).approximate_bytes());
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = |lookup: &Lookup| {
            let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
            let frames = lookup.frames.iter().map(|f| size_of::<Named>() + text(&f.function) + text(&f.file));
            size_of::<Lookup>() + frames.sum::<usize>()
        };
        self.unpacked + tables + dwarf + kept.values().map(answer).sum::<usize>()
    }
}
