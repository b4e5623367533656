//! From a parked goroutine to its return addresses: by the frame sizes of Go's tables, and the frame pointers must agree.

use crate::explain::address_space::{AddressSpace, Place};
use crate::explain::pieces::word;
use crate::explain::unwind::RawFrame;
use crate::proc::FoundBy;
use foldhash::{HashMap, HashMapExt};

/// Frames of one stack.
pub(super) const MAX_FRAMES: usize = 256;
/// Addresses in code that are remembered.
const MAX_KNOWN: usize = 1 << 18;

/// How a function is left, at one place in it.
#[derive(Clone, Copy, Debug)]
struct Leave {
    /// From the stack pointer to the return address, bytes.
    size: u64,
    is_top: bool,
    writes_sp: bool,
    is_assembly: bool,
    /// It was not called: the address below it is where it was interrupted.
    interrupted: bool,
}

/// The code of a process, with what is known of places in it.
pub(super) struct Code<'a> {
    pub(super) space: &'a AddressSpace,
    known: HashMap<u64, Option<Leave>>,
    /// Whether functions begin there: of places where goroutines go on, which are few.
    entries: HashMap<u64, bool>,
}

/// Why a walk ended before the root.
pub(super) const DISAGREE: &str = "frame sizes and frame pointers disagree";
pub(super) const NO_FUNCTION: &str = "an address that is in no function of Go";
pub(super) const TOO_SHORT: &str = "longer than what is read of a stack";
pub(super) const TOO_MANY: &str = "cut after 256 frames";
const WRITES_SP: &str = "a function that sets the stack pointer itself";

impl<'a> Code<'a> {
    pub(super) fn new(space: &'a AddressSpace) -> Self {
        Self { space, known: HashMap::new(), entries: HashMap::new() }
    }

    pub(super) fn is_code(&self, address: u64) -> bool {
        match self.space.at(address) {
            Place::Module(loaded, svma) => loaded.go().is_some_and(|go| go.table().holds(svma)),
            Place::Generated | Place::Nowhere => false,
        }
    }

    pub(super) fn is_entry(&self, address: u64) -> bool {
        match self.space.at(address) {
            Place::Module(loaded, svma) => loaded.go().is_some_and(|go| go.table().entry_of(svma) == Some(svma)),
            Place::Generated | Place::Nowhere => false,
        }
    }

    fn leave(&mut self, lookup: u64) -> Option<Leave> {
        if let Some(known) = self.known.get(&lookup) {
            return *known;
        }
        let found = match self.space.at(lookup) {
            Place::Module(loaded, svma) => loaded.go().and_then(|go| {
                let function = go.function(svma)?;
                let size = go.frame_size(svma);
                let interrupted = matches!(
                    function.name.as_str(),
                    "runtime.sigpanic" | "runtime.asyncPreempt" | "runtime.debugCallV2"
                );
                Some(Leave {
                    size: size.or(function.top_frame.then_some(0))?,
                    is_top: function.top_frame,
                    writes_sp: function.writes_sp,
                    is_assembly: function.assembly,
                    interrupted,
                })
            }),
            Place::Generated | Place::Nowhere => None,
        };
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(lookup, found);
        found
    }

    /// Walks a stack whose bytes from `sp` on are these. The frames, innermost first, come into `frames`, without
    /// `runtime.goexit` below all; the answer is why it ended before that.
    pub(super) fn walk(
        &mut self,
        pc: u64,
        sp: u64,
        bp: u64,
        stack: &[u8],
        frames: &mut Vec<RawFrame>,
    ) -> Option<&'static str> {
        frames.clear();
        let mut here = (pc, sp);
        let mut bp = Some(bp).filter(|&bp| bp != 0);
        // One that has never run is at the entry of its function, each other one behind a call.
        let is_entry = self.entries.get(&pc).copied().unwrap_or_else(|| self.is_entry(pc));
        if self.entries.len() < MAX_KNOWN {
            self.entries.insert(pc, is_entry);
        }
        let mut is_return = !is_entry;
        loop {
            let (pc, at) = here;
            let found_by = if frames.is_empty() { FoundBy::Registers } else { FoundBy::Unwinding };
            let frame = RawFrame { address: pc, is_return, found_by };
            let Some(leave) = self.leave(frame.lookup()) else { return Some(NO_FUNCTION) };
            if leave.is_top && !frames.is_empty() {
                return None;
            }
            if frames.len() >= MAX_FRAMES {
                return Some(TOO_MANY);
            }
            if leave.writes_sp && !frames.is_empty() {
                return Some(WRITES_SP);
            }
            frames.push(frame);
            if leave.is_top {
                return None;
            }
            let Some(slot) = at.checked_add(leave.size) else { return Some(TOO_SHORT) };
            let read = |address: u64| word(stack, address.wrapping_sub(sp));
            let Some(caller) = read(slot) else { return Some(TOO_SHORT) };
            if leave.size >= 8 {
                let saved = slot - 8;
                // Assembly may do without, and where a function was interrupted it may not be set up yet.
                let is_sure = is_return && !leave.is_assembly;
                if is_sure && bp.is_some_and(|bp| bp != saved) {
                    return Some(DISAGREE);
                }
                bp = if is_sure { read(saved) } else { None };
            }
            is_return = !leave.interrupted;
            here = (caller, slot + 8);
        }
    }
}
