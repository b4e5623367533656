//! The last resort: a word on the stack that a call instruction stands before.
//!
//! musl, hand-written assembly and programs built without unwind tables leave nothing else. A stale return address looks
//! the same as a live one, so a call that cannot have led here is passed over where that can be known.

use super::call::{Call, LONGEST, call_before};
use super::stack_memory::StackMemory;
use super::{Here, RawFrame};
use crate::explain::address_space::{AddressSpace, Place};
use crate::explain::library::Loaded;
use crate::proc::FoundBy;
use std::sync::Arc;

/// How far up the stack the search goes, bytes.
const REACH: u64 = 16 << 10;
/// How much farther, once a call was found that may have led here by a tail call only.
const FARTHER: u64 = 512;
/// Functions that jump to the next one instead of calling it, in a row.
const TAIL_CALLS: u32 = 2;
/// Without a symbol, so much of a function is searched for a jump.
const LONGEST_STUB: u64 = 64;
/// Without symbols: a function is not larger than this.
const LARGEST: u64 = 64 << 10;

/// Code that is searched for jumps on behalf of one frame, bytes.
const SEARCHED: usize = 1 << 20;

/// Whether a call can have led to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Led {
    /// It calls this function, or one that is not known before run time.
    Here,
    /// It calls another function, which may have jumped here.
    Elsewhere,
}

/// The nearest caller that fits. `saved_bp`: where the function keeps its caller's frame pointer register, from the
/// return address on (call frame information may know that even if the register it starts from is lost).
pub(super) fn next(space: &AddressSpace, memory: &mut StackMemory, here: &Here, saved_bp: Option<i64>) -> Option<Here> {
    let start = here.sp.checked_add(7)? & !7;
    let mut end = start.saturating_add(REACH);
    let mut doubtful = None;
    let mut left = SEARCHED;
    let mut slot = start;
    while slot < end {
        let Some(address) = memory.word(slot) else { break };
        if let Some((call, module)) = call_at(space, memory, address) {
            match led(space, here, call, module, &mut left) {
                Led::Here => return Some(arrive(memory, here, slot, address, saved_bp)),
                Led::Elsewhere if doubtful.is_none() => {
                    doubtful = Some((slot, address));
                    end = end.min(slot + FARTHER);
                }
                Led::Elsewhere => {}
            }
        }
        slot += 8;
    }
    doubtful.map(|(slot, address)| arrive(memory, here, slot, address, saved_bp))
}

fn arrive(memory: &mut StackMemory, here: &Here, slot: u64, address: u64, saved_bp: Option<i64>) -> Here {
    // The frame pointer register points right below the return address: two signs that agree.
    let by_pointer = here.bp.is_some_and(|bp| bp.checked_add(8) == Some(slot));
    let found_by = if by_pointer { FoundBy::FramePointer } else { FoundBy::Scan };
    let saved = if by_pointer { Some(-8) } else { saved_bp };
    let bp = match saved {
        Some(offset) => memory.word(slot.wrapping_add_signed(offset)),
        None => here.bp,
    };
    Here { frame: RawFrame { address, is_return: true, found_by }, sp: slot + 8, bp, bp_sure: saved.is_some() }
}

/// The call before an address, its target as svma of the module the call is in; no module: code made at run time.
pub(super) fn call_at<'a>(
    space: &'a AddressSpace,
    memory: &mut StackMemory,
    address: u64,
) -> Option<(Call, Option<&'a Arc<Loaded>>)> {
    match space.at(address.checked_sub(1)?) {
        Place::Nowhere => None,
        Place::Module(loaded, last) => {
            let svma = last + 1;
            let reach = LONGEST as u64;
            let before = (1..=reach).rev().find_map(|n| loaded.image.at(svma.checked_sub(n)?)?.get(..n as usize))?;
            call_before(svma, before).map(|call| (call, Some(loaded)))
        }
        Place::Generated => {
            let bytes = memory.word(address.checked_sub(LONGEST as u64)?)?.to_le_bytes();
            call_before(address, &bytes).map(|call| (call, None))
        }
    }
}

fn led(space: &AddressSpace, here: &Here, call: Call, caller: Option<&Arc<Loaded>>, left: &mut usize) -> Led {
    let (Call::Direct(target), Some(caller)) = (call, caller) else { return Led::Here };
    let Place::Module(loaded, svma) = space.at(here.frame.lookup()) else { return Led::Here };
    // From another file it goes through a stub.
    if !Arc::ptr_eq(loaded, caller) {
        return Led::Here;
    }
    match loaded.names().lookup(svma, false).symbol {
        Some(function) if leads_to(loaded, target, function.start, TAIL_CALLS, left) => Led::Here,
        Some(_) => Led::Elsewhere,
        None if target <= svma && svma - target < LARGEST => Led::Here,
        None => Led::Elsewhere,
    }
}

/// Whether the function at `from` is the one at `to`, or ends in a jump there; `left`: what may still be searched.
fn leads_to(loaded: &Arc<Loaded>, from: u64, to: u64, jumps: u32, left: &mut usize) -> bool {
    if from == to {
        return true;
    }
    let Some(code) = loaded.image.at(from).filter(|_| jumps > 0) else { return false };
    let function = loaded.names().lookup(from, false).symbol;
    let length = function.map_or(LONGEST_STUB, |function| function.end - from).min(LARGEST);
    let code = code.get(..(length as usize).min(code.len()).min(*left)).unwrap_or_default();
    *left -= code.len();
    // Every byte that may begin a jump is tried: a wrong reading of one hardly ever hits the very start of a function.
    let targets = (0..code.len()).filter_map(|at| {
        let behind = |length: u64| from.wrapping_add(at as u64 + length);
        match *code.get(at..)? {
            [0xe9, a, b, c, d, ..] => Some(behind(5).wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d])))),
            [0xeb, distance, ..] => Some(behind(2).wrapping_add_signed(i64::from(distance as i8))),
            _ => None,
        }
    });
    // Most jumps stay within their function.
    let mut leaving = targets.filter(|target| target.wrapping_sub(from) >= length);
    leaving.any(|target| target == to || jumps > 1 && leads_to(loaded, target, to, jumps - 1, left))
}
