//! Memory of a Go program that never ran: the file of a real one, and goroutines made up around it, sound until somebody
//! damages them. For the tests of this room and for the fuzz target `goroutines`.

use super::layout::{self, Layout};
use super::take;
use crate::census::ProcessId;
use crate::explain::address_space::AddressSpace;
use crate::explain::go::PcLineTable;
use crate::explain::image::Image;
use crate::explain::library::Loaded;
use crate::proc::pieces::Pieces;
use crate::proc::{Goroutines, MemoryRange};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the made-up memory begins.
const BASE: u64 = 0x7000_0000_0000;
/// Bytes for a goroutine: its `g`, its thread or what it waits for, and its stack.
const ROOM: u64 = 4096;
/// Goroutines, of which every fourth is in a system call.
const COUNT: u64 = 16;
/// Never reached: a census of this that takes so long is a mistake.
const LONGEST: Duration = Duration::from_secs(60);

/// A program and what is in its memory.
#[derive(Debug)]
pub struct MadeUp {
    loaded: Arc<Loaded>,
    space: AddressSpace,
    lengths: [u64; 2],
    memory: Vec<u8>,
}

impl MadeUp {
    /// Around the file of a program without `pie`; `None` if that has no runtime.
    pub fn new(image: Image) -> Option<Self> {
        let loads: Vec<_> = image.loads().iter().filter(|load| load.executable).copied().collect();
        let loaded = Loaded::new(image, "/made-up", PathBuf::from("/nonexistent"));
        let regions = loads
            .iter()
            .map(|load| (load.svma..load.svma.saturating_add(load.memory_size), Some((Arc::clone(&loaded), 0))));
        let space = AddressSpace::of(regions);
        let table = loaded.go()?;
        let anchors = table.anchors().ok()?;
        let lengths = [anchors.allglen, anchors.allgptr];
        let layout = Layout::known(layout::minor(table.version())?)?;
        let memory = sound(table, &layout)?;
        Some(Self { loaded, space, lengths, memory })
    }

    /// The memory besides the file, to be damaged: 16 bytes that are the length of the table and the pointer to it, the
    /// table, and the goroutines.
    pub fn memory(&mut self) -> &mut Vec<u8> {
        &mut self.memory
    }

    /// A census of it.
    pub fn census(&self) -> Goroutines {
        let mut target = |ranges: &[MemoryRange], into: &mut Pieces| {
            into.reset(ranges);
            for (index, range) in ranges.iter().enumerate() {
                let bytes = self.at(range.addr);
                into.put(index, bytes.get(..range.len as usize).unwrap_or(bytes));
            }
            Ok(())
        };
        let process = ProcessId { pid: 1, start_ns: 1 };
        take(process, &mut target, &self.space, Instant::now() + LONGEST, &mut || Ok(()))
    }

    fn at(&self, address: u64) -> &[u8] {
        let of_memory =
            |offset: u64| usize::try_from(offset).ok().and_then(|at| self.memory.get(at..)).unwrap_or_default();
        match self.lengths.iter().position(|at| *at == address) {
            Some(index) => of_memory(index as u64 * 8),
            None if address >= BASE => of_memory(address - BASE),
            None => self.loaded.image.at(address).unwrap_or_default(),
        }
    }
}

/// Goroutines that are as they should be.
fn sound(table: &PcLineTable, layout: &Layout) -> Option<Vec<u8>> {
    let names = ["runtime.gopark", "main.main", "runtime.goexit", "runtime.entersyscall"];
    let [park, main, exit, _] = table.table().entries_of(names);
    let (park, main, exit) = (park?, main?, exit?);
    // A place behind the prologue, where the frame is as large as it gets.
    let inside = |entry: u64| {
        let function = table.function(entry)?;
        (function.entry + 1..function.end)
            .max_by_key(|pc| (table.frame_size(*pc - 1).unwrap_or(0), std::cmp::Reverse(*pc)))
    };
    let (park_pc, main_pc) = (inside(park)?, inside(main)?);
    let (park_size, main_size) = (table.frame_size(park_pc - 1)?, table.frame_size(main_pc - 1)?);
    let slots = BASE + 16;
    let mut memory = vec![0; usize::try_from(16 + COUNT * 8 + COUNT * ROOM).ok()?];
    let mut put = |address: u64, value: u64| {
        let at = address.checked_sub(BASE).and_then(|at| usize::try_from(at).ok());
        if let Some(bytes) = at.and_then(|at| memory.get_mut(at..at + 8)) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    };
    put(BASE, COUNT);
    put(BASE + 8, slots);
    for number in 0..COUNT {
        let g = slots + COUNT * 8 + number * ROOM;
        let (other, lo, hi) = (g + 512, g + 1024, g + ROOM);
        let is_call = number % 4 == 3;
        // From the bottom: what main returns to, then what gopark returns to.
        let main_slot = hi - 16;
        let park_slot = main_slot - main_size - 8;
        let sp = park_slot - park_size;
        put(slots + number * 8, g);
        put(g, lo);
        put(g + 8, hi);
        put(g + layout::M, if is_call { other } else { 0 });
        let (at_sp, at_pc, at_bp) = match is_call {
            true => (layout.syscall_sp, layout.syscall_pc, layout.syscall_bp),
            false => (layout::SCHED_SP, layout::SCHED_PC, Some(layout.sched_bp)),
        };
        put(g + at_sp, sp);
        put(g + at_pc, park_pc);
        if let Some(at_bp) = at_bp {
            put(g + at_bp, park_slot - 8);
        }
        put(g + layout.status, u64::from(if is_call { layout::SYSCALL } else { layout::WAITING }));
        put(g + layout.goid, number + 1);
        put(g + layout.reason, 2);
        put(g + layout.gopc, main_pc);
        put(g + layout.startpc, main);
        put(park_slot, main_pc);
        put(park_slot - 8, main_slot - 8);
        put(main_slot, exit + 1);
        if is_call {
            put(other + layout.m_procid, 100 + number);
            put(other + layout.m_curg, g);
        }
    }
    Some(memory)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]
    use super::*;
    use crate::explain::go::tests::{Damage, build};
    use std::fs::File;

    fn made_up() -> MadeUp {
        let directory = tempfile::tempdir().unwrap();
        let program = build(directory.path(), "made-up", &["-ldflags=-s -w"]);
        MadeUp::new(Image::map(&File::open(program).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn sound_goroutines_are_read() {
        let census = made_up().census();
        assert_eq!((census.missing.as_deref(), census.slots, census.total()), (None, COUNT, COUNT as usize));
        assert!(census.lost.is_empty(), "{:?}", census.lost);
        let [parked, calling, first] = census.groups.as_slice() else { panic!("{census:#?}") };
        // Nobody started the first.
        assert_eq!((parked.members.len(), calling.members.len(), first.members.len()), (11, 4, 1));
        assert!(first.created_by.is_none() && parked.created_by.is_some());
        assert_eq!((parked.reason.as_str(), calling.reason.as_str()), ("IO wait", ""));
        let names: Vec<_> =
            parked.stack.frames.iter().filter(|frame| !frame.inlined).map(|f| f.function.as_deref().unwrap()).collect();
        assert_eq!(names, ["runtime.gopark", "main.main"]);
        assert!(parked.stack.is_complete() && calling.stack.is_complete());
        assert_eq!(calling.members.iter().map(|one| one.tid).collect::<Vec<_>>(), [103, 107, 111, 115]);
    }

    #[test]
    fn damaged_memory_is_read_without_a_panic_and_in_time() {
        let mut made_up = made_up();
        let good = made_up.memory().clone();
        let mut damage = Damage(20_261_121);
        let (mut refused, mut partial, mut began) = (0, 0, Instant::now());
        for round in 0..600 {
            let memory = made_up.memory();
            memory.clone_from(&good);
            for _ in 0..[1, 8, 64, 512][round % 4] {
                let at = damage.below(memory.len());
                memory[at] = [0, 0xff, memory[at] ^ 1 << damage.below(8)][damage.below(3)];
            }
            match round % 7 {
                0 => memory.truncate(damage.below(good.len())),
                // The length of the table, and where it lies.
                1 => memory[damage.below(16)] = damage.below(256) as u8,
                _ => {}
            }
            let census = made_up.census();
            match &census.missing {
                Some(why) => refused += u64::from(!why.is_empty() && census.groups.is_empty()),
                None => {
                    // Each slot is one goroutine, or counted, or dead.
                    assert!(census.total() as u64 <= census.slots, "{census:?}");
                    partial += u64::from(!census.lost.is_empty());
                }
            }
        }
        assert!(refused > 50 && partial > 50, "{refused} refused, {partial} partial");
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
        // A table that claims to have no end.
        let memory = made_up.memory();
        memory.clone_from(&good);
        memory[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        began = Instant::now();
        assert!(made_up.census().missing.unwrap().contains("not sound"));
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn an_unknown_layout_is_found_or_refused() {
        let mut made_up = made_up();
        let layout = Layout::known(layout::minor(made_up.loaded.go().unwrap().version()).unwrap()).unwrap();
        let (slots, good) = (16 + COUNT as usize * 8, made_up.memory().clone());
        // As if a field of eight bytes had come before the number and everything behind it.
        for number in 0..COUNT as usize {
            let g = slots + number * ROOM as usize;
            let at = g + layout.status as usize;
            made_up.memory()[at..g + 512].copy_within(..504 - layout.status as usize, 8);
        }
        let census = made_up.census();
        assert_eq!((census.missing.as_deref(), census.total()), (None, COUNT as usize));
        // And where nothing is as it should be.
        let memory = made_up.memory();
        memory.clone_from(&good);
        for number in 0..COUNT as usize {
            let g = slots + number * ROOM as usize;
            memory[g + 128..g + 400].fill(0x55);
        }
        let why = made_up.census().missing.unwrap();
        assert!(why.starts_with("go1.") && why.contains("not as in the versions known"), "{why}");
    }
}
