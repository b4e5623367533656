//! From the registers of a blocked thread to its return addresses, without stopping it.
//!
//! A frame is left by the surest way there is: call frame information, Go's own tables, the chain of frame pointers (only
//! where code was made at run time), and at last a search for a word that a call instruction stands before. What was
//! guessed says so.

pub(super) mod call;
pub(super) mod cfi;
mod scan;
pub(super) mod stack_memory;
#[cfg(test)]
mod tests;

use super::address_space::{AddressSpace, Place};
use super::library::Loaded;
use crate::census::Registers;
use crate::proc::{FoundBy, Frame, Mention, StackEnd};
use cfi::{Cfa, Known, Rule};
use stack_memory::StackMemory;
use std::sync::Arc;
use std::time::Instant;

/// Frames of one stack.
pub(super) const MAX_FRAMES: usize = 1024;
/// Bytes of one frame that are searched for addresses.
const LARGEST_FRAME: u64 = 64 << 10;
/// Places of one stack that are told.
const MAX_MENTIONS: usize = 64;
/// Signal handlers interrupted by signal handlers.
const MAX_SIGNALS: usize = 16;
/// A frame of code made at run time is not larger.
const MAX_GENERATED_FRAME: u64 = 1 << 20;

/// An address on the stack, not named yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RawFrame {
    pub(super) address: u64,
    /// A return address: the call is before it.
    pub(super) is_return: bool,
    pub(super) found_by: FoundBy,
}

impl RawFrame {
    /// The address to look up: within the call, not behind it, where another function may begin.
    pub(super) fn lookup(&self) -> u64 {
        self.address.wrapping_sub(u64::from(self.is_return))
    }

    /// The frame without a name.
    pub(super) fn bare(&self) -> Frame {
        Frame { address: self.address, offset: self.address, found_by: self.found_by, ..Frame::default() }
    }
}

/// The registers in one frame.
#[derive(Clone, Copy, Debug)]
struct Here {
    frame: RawFrame,
    sp: u64,
    bp: Option<u64>,
    /// The frame pointer register is what the function found in it; not so behind a guess.
    bp_sure: bool,
}

/// What leaving a frame led to.
enum Step {
    To(Here),
    Root,
}

/// What a walk says that was not finished in time.
pub(super) const OUT_OF_TIME: &str = "out of time for this process";

/// A stack that was walked.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) frames: Vec<RawFrame>,
    /// The stack pointer in each frame.
    pub(super) pointers: Vec<u64>,
    /// Why it ended; `None` is the root.
    pub(super) stopped: Option<String>,
}

impl Walked {
    /// Where it ended.
    pub(super) fn end(&self) -> StackEnd {
        self.stopped.clone().map_or(StackEnd::Root, StackEnd::Stopped)
    }

    /// The words of live frames that hold one of these addresses.
    pub(super) fn mentions(&self, memory: &mut StackMemory, sought: &[u64]) -> Vec<Mention> {
        let mut mentions = Vec::new();
        let Some(first) = self.pointers.first().copied().filter(|_| !sought.is_empty()) else { return mentions };
        for (frame, bounds) in (0_u32..).zip(self.pointers.windows(2)) {
            let (start, end) = (bounds[0].next_multiple_of(8), bounds[1].min(bounds[0].saturating_add(LARGEST_FRAME)));
            for slot in (start..end).step_by(8) {
                let Some(word) = memory.word(slot) else { break };
                if sought.contains(&word) && mentions.len() < MAX_MENTIONS {
                    let depth = u32::try_from(slot.wrapping_sub(first)).unwrap_or(u32::MAX);
                    mentions.push(Mention { address: word, frame, depth });
                }
            }
        }
        mentions
    }
}

/// Walks a stack from its innermost frame, not beyond this time.
pub(super) fn walk(space: &AddressSpace, memory: &mut StackMemory, registers: Registers, until: Instant) -> Walked {
    let mut walked = Walked::default();
    walked.stopped = onward(space, memory, registers, until, &mut walked).err();
    walked
}

fn onward(
    space: &AddressSpace,
    memory: &mut StackMemory,
    registers: Registers,
    until: Instant,
    walked: &mut Walked,
) -> Result<(), String> {
    let Registers { ip, sp, bp } = registers;
    let frame = RawFrame { address: ip, is_return: false, found_by: FoundBy::Registers };
    let mut here = Here { frame, sp, bp, bp_sure: true };
    let mut signals = 0;
    loop {
        walked.frames.push(here.frame);
        walked.pointers.push(here.sp);
        if Instant::now() > until {
            return Err(OUT_OF_TIME.to_owned());
        }
        let Step::To(next) = leave(space, memory, &here)? else { return Ok(()) };
        if next.sp <= here.sp {
            signals += 1;
            // Only a signal handler may have a stack of its own.
            if next.frame.is_return || signals > MAX_SIGNALS {
                return Err("the stack leads back to itself".to_owned());
            }
        }
        if walked.frames.len() >= MAX_FRAMES {
            return Err(format!("cut after {MAX_FRAMES} frames"));
        }
        here = next;
    }
}

/// From a frame to its caller.
fn leave(space: &AddressSpace, memory: &mut StackMemory, here: &Here) -> Result<Step, String> {
    let mut saved_bp = None;
    let why = match space.at(here.frame.lookup()) {
        Place::Module(loaded, svma) => {
            if let Some(step) = by_go_tables(space, memory, here, loaded, svma) {
                return step;
            }
            match loaded.cfi.rule(svma) {
                Some(Rule::Outermost) => return Ok(Step::Root),
                Some(Rule::Unsupported(why)) => format!("{}: {why}", loaded.path),
                None => format!("{} has no call frame information there", loaded.path),
                Some(Rule::Caller { cfa, ra, bp, signal }) => {
                    if let (cfi::Place::AtCfa(ra), Some(cfi::Place::AtCfa(bp))) = (&ra, &bp) {
                        saved_bp = Some(bp.wrapping_sub(*ra));
                    }
                    match by_rule(space, memory, here, (&cfa, &ra, bp.as_ref()), signal) {
                        Ok(step) if is_trusted(space, memory, here, &cfa, &step) => return Ok(step),
                        Ok(_) => format!("the frame pointer is lost in {}", loaded.path),
                        Err(why) => format!("{}: {why}", loaded.path),
                    }
                }
            }
        }
        Place::Generated => match by_frame_pointer(space, memory, here) {
            Some(next) => return Ok(Step::To(next)),
            None => "code made at run time keeps no frame pointer there".to_owned(),
        },
        Place::Nowhere => format!("{:#x} is not code", here.frame.address),
    };
    match scan::next(space, memory, here, saved_bp) {
        Some(next) => Ok(Step::To(next)),
        None => Err(why),
    }
}

/// Behind a guess the frame pointer register may be another function's: what follows from it must at least be a call.
fn is_trusted(space: &AddressSpace, memory: &mut StackMemory, here: &Here, cfa: &Cfa, step: &Step) -> bool {
    let Step::To(next) = step else { return true };
    here.bp_sure || !matches!(cfa, Cfa::Bp(_)) || scan::call_at(space, memory, next.frame.address).is_some()
}

fn by_rule(
    space: &AddressSpace,
    memory: &mut StackMemory,
    here: &Here,
    (cfa, ra, bp): (&Cfa, &cfi::Place, Option<&cfi::Place>),
    signal: bool,
) -> Result<Step, String> {
    let known = Known { ip: here.frame.address, sp: here.sp, bp: here.bp };
    let cfa = match cfa {
        Cfa::Sp(offset) => Some(here.sp.wrapping_add_signed(*offset)),
        Cfa::Bp(offset) => match here.bp {
            Some(bp) => Some(bp.wrapping_add_signed(*offset)),
            None => return Err("the frame pointer register is not known (the census comes from /proc)".to_owned()),
        },
        Cfa::Expression(bytes) => cfi::evaluate(bytes, None, known, &mut |address| memory.word(address)),
    };
    let cfa = cfa.ok_or("its frame cannot be computed")?;
    let mut value = |place: &cfi::Place| match place {
        cfi::Place::AtCfa(offset) => memory.word(cfa.wrapping_add_signed(*offset)),
        cfi::Place::Cfa(offset) => Some(cfa.wrapping_add_signed(*offset)),
        cfi::Place::AtExpression(bytes) => {
            let address = cfi::evaluate(bytes, Some(cfa), known, &mut |address| memory.word(address))?;
            memory.word(address)
        }
        cfi::Place::Expression(bytes) => cfi::evaluate(bytes, Some(cfa), known, &mut |address| memory.word(address)),
    };
    let address = value(ra).ok_or("its stack cannot be read")?;
    if address == 0 {
        return Ok(Step::Root);
    }
    let frame = RawFrame { address, is_return: !signal, found_by: FoundBy::Unwinding };
    if !space.is_code(frame.lookup()) {
        return Err(format!("its return address {address:#x} is not code"));
    }
    if cfa <= here.sp && !signal {
        return Err("its frame leads back to itself".to_owned());
    }
    let bp = match bp {
        None => here.bp,
        Some(place) => value(place),
    };
    Ok(Step::To(Here { frame, sp: cfa, bp, bp_sure: here.bp_sure }))
}

/// Where Go's stacks begin: goroutines at `goexit`, threads at the others. `systemstack` and `asmcgocall` are entered
/// from another stack.
const GO_ROOTS: [&str; 6] =
    ["runtime.goexit", "runtime.mstart", "runtime.mcall", "runtime.rt0_go", "runtime.sigtramp", "runtime.gogo"];
const GO_SWITCHES: [&str; 3] = ["runtime.systemstack", "runtime.asmcgocall", "runtime.morestack"];

fn by_go_tables(
    space: &AddressSpace,
    memory: &mut StackMemory,
    here: &Here,
    loaded: &Arc<Loaded>,
    svma: u64,
) -> Option<Result<Step, String>> {
    let go = loaded.go()?;
    let size = go.frame_size(svma)?;
    let function = go.function(svma)?;
    let name = function.name.strip_suffix(".abi0").unwrap_or(&function.name);
    if function.top_frame || GO_ROOTS.contains(&name) {
        return Some(Ok(Step::Root));
    }
    if GO_SWITCHES.contains(&name) {
        return Some(Err(format!("{name}: the caller is on another stack")));
    }
    let slot = here.sp.checked_add(size)?;
    let Some(address) = memory.word(slot) else { return Some(Err("its stack cannot be read".to_owned())) };
    let frame = RawFrame { address, is_return: true, found_by: FoundBy::Unwinding };
    if address == 0 {
        return Some(Ok(Step::Root));
    }
    if !space.is_code(frame.lookup()) {
        return Some(Err(format!("the return address {address:#x} of {name} is not code")));
    }
    // Go saves the frame pointer right below the return address.
    let bp = if size >= 8 { memory.word(slot - 8) } else { here.bp };
    Some(Ok(Step::To(Here { frame, sp: slot + 8, bp, bp_sure: here.bp_sure })))
}

/// Interpreters and compilers that work at run time keep `rbp` as a frame pointer, or do not (then the caller is guessed).
fn by_frame_pointer(space: &AddressSpace, memory: &mut StackMemory, here: &Here) -> Option<Here> {
    let bp = here.bp.filter(|bp| (here.sp..here.sp.saturating_add(MAX_GENERATED_FRAME)).contains(bp))?;
    let address = memory.word(bp.checked_add(8)?)?;
    let frame = RawFrame { address, is_return: true, found_by: FoundBy::FramePointer };
    space.is_code(frame.lookup()).then_some(())?;
    Some(Here { frame, sp: bp + 16, bp: memory.word(bp), bp_sure: true })
}
