//! Parts of this room by themselves, for its tests and for the fuzz targets of `tests/fuzz`; not part of observer itself.

use super::address_space::AddressSpace;
pub use super::go::goroutines::made_up::MadeUp;
use super::image::Image;
use super::library::Loaded;
use super::tasks::Tables;
pub use super::tasks::made_up::MadeUpTasks;
use super::unwind::stack_memory::StackMemory;
use super::unwind::{call, walk};
use crate::census::Registers;
use crate::proc::{FoundBy, StackEnd};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The thread whose memory is read where a test provided none: there is none of this number.
const NOBODY: u32 = u32::MAX;

/// Never reached: a walk that takes so long is a mistake.
const LONGEST: Duration = Duration::from_secs(60);

/// Executable memory of a process that does not exist.
#[derive(Debug)]
pub struct Region {
    at: Range<u64>,
    module: Option<(Arc<Loaded>, u64)>,
}

impl Region {
    /// A file mapped with this bias (avma = svma + bias): one region per executable segment.
    pub fn of_image(image: Image, bias: u64) -> Vec<Self> {
        let loads: Vec<_> = image.loads().iter().filter(|load| load.executable).copied().collect();
        let loaded = Loaded::new(image, "/fuzzed", PathBuf::from("/nonexistent"));
        let regions = loads.iter().map(|load| {
            let start = load.svma.wrapping_add(bias);
            Self { at: start..start.saturating_add(load.memory_size), module: Some((Arc::clone(&loaded), bias)) }
        });
        regions.collect()
    }

    /// Code made at run time.
    pub fn generated(at: Range<u64>) -> Self {
        Self { at, module: None }
    }
}

/// A frame as it was found: (address, whether it is a return address, how).
pub type Found = (u64, bool, FoundBy);

/// Walks a stack of which these bytes are there, from this address on.
pub fn walk_stack(
    mut regions: Vec<Region>,
    (start, bytes): (u64, Vec<u8>),
    registers: Registers,
) -> (Vec<Found>, StackEnd) {
    regions.sort_by_key(|region| region.at.start);
    let space = AddressSpace::of(regions.into_iter().map(|region| (region.at, region.module)));
    let mut memory = StackMemory::new(NOBODY, Some((start, bytes)));
    let walked = walk(&space, &mut memory, registers, Instant::now() + LONGEST);
    // Searching its frames must end as well, whatever the walk made of them.
    walked.mentions(&mut memory, &[0, registers.sp]);
    let (end, frames) = (walked.end(), walked.frames);
    (frames.iter().map(|frame| (frame.address, frame.is_return, frame.found_by)).collect(), end)
}

/// Whether a call ends before this address; where it leads, if it says so.
pub fn call_before(address: u64, before: &[u8]) -> Option<Option<u64>> {
    call::call_before(address, before).map(|found| match found {
        call::Call::Direct(target) => Some(target),
        call::Call::Indirect => None,
    })
}

/// How many types of tasks of tokio a file has.
pub fn task_types(image: &Image) -> usize {
    Tables::find(image).vtables.len()
}
