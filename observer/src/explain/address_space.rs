//! What is mapped where in a process: from an address in it to an image and the address there.

use super::library::{Library, Loaded};
use crate::census::Pid;
use crate::proc::maps::Mapping;
use std::collections::HashMap;
use std::sync::Arc;

/// An executable mapping.
#[derive(Debug)]
pub(super) struct Region {
    start: u64,
    end: u64,
    /// The image, and its bias: avma = svma + bias (wrapping). `None` for code made at run time.
    module: Option<(Arc<Loaded>, u64)>,
}

/// Where an address belongs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// In a mapped file, at this svma; the region's index names the module.
    Module(&'a Arc<Loaded>, u64),
    /// In executable memory without a file: compiled at run time.
    Generated,
    /// Not executable.
    Nowhere,
}

/// The executable part of an address space, and why files in it could not be used.
#[derive(Debug, Default)]
pub(super) struct AddressSpace {
    regions: Vec<Region>,
    /// Reason per file.
    pub(super) unusable: Vec<(String, String)>,
}

impl AddressSpace {
    /// Maps every file that holds code of this process.
    ///
    /// May block on the file system: call it on a reader of the pool.
    pub(super) fn new(pid: Pid, mappings: &[Mapping], library: &Library) -> Self {
        let mut space = Self::default();
        let mut files: HashMap<(&str, u64), Option<Arc<Loaded>>> = HashMap::new();
        for mapping in mappings.iter().filter(|m| m.executable) {
            let module = if mapping.name == "[vdso]" {
                library.vdso(pid, mapping).map(|loaded| (loaded, mapping.start))
            } else if mapping.is_file() {
                let loaded = files.entry((&mapping.device, mapping.inode)).or_insert_with(|| {
                    library.open(pid, mapping).map_err(|why| space.unusable.push((mapping.name.clone(), why))).ok()
                });
                loaded.as_ref().and_then(|loaded| {
                    let svma = loaded.image.svma_of_offset(mapping.offset, true)?;
                    Some((Arc::clone(loaded), mapping.start.wrapping_sub(svma)))
                })
            } else {
                None
            };
            space.regions.push(Region { start: mapping.start, end: mapping.end, module });
        }
        space
    }

    /// Made by hand: what begins where, with its bias, in the order of addresses.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of(regions: impl IntoIterator<Item = (std::ops::Range<u64>, Option<(Arc<Loaded>, u64)>)>) -> Self {
        let regions = regions.into_iter().map(|(at, module)| Region { start: at.start, end: at.end, module });
        Self { regions: regions.collect(), unusable: Vec::new() }
    }

    /// The files that are mapped here, each with its bias, each once.
    pub(super) fn modules(&self) -> Vec<(&Arc<Loaded>, u64)> {
        let mut modules: Vec<(&Arc<Loaded>, u64)> = Vec::new();
        for (loaded, bias) in self.regions.iter().filter_map(|region| region.module.as_ref()) {
            if !modules.iter().any(|(known, at)| Arc::ptr_eq(known, loaded) && at == bias) {
                modules.push((loaded, *bias));
            }
        }
        modules
    }

    /// Where this address belongs.
    pub(super) fn at(&self, avma: u64) -> Place<'_> {
        let behind = self.regions.partition_point(|region| region.start <= avma);
        let region = behind.checked_sub(1).and_then(|at| self.regions.get(at)).filter(|region| avma < region.end);
        match region {
            None => Place::Nowhere,
            Some(Region { module: None, .. }) => Place::Generated,
            Some(Region { module: Some((loaded, bias)), .. }) => Place::Module(loaded, avma.wrapping_sub(*bias)),
        }
    }

    /// Whether code may be there.
    pub(super) fn is_code(&self, avma: u64) -> bool {
        !matches!(self.at(avma), Place::Nowhere)
    }
}
