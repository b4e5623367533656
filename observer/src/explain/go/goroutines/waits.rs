//! What goroutines wait for: a channel, or a semaphore of `sync`.

use super::layout::{Head, Layout};
use super::reasons::Reasons;
use super::{Read, layout};
use crate::explain::pieces::{number, word};
use crate::proc::pieces::Pieces;
use crate::proc::{GoWait, MemoryRange};
use std::collections::{HashMap, HashSet};
use std::time::Instant;

/// Elements for which a channel has room at most, as far as we believe it.
const MAX_CAPACITY: u64 = 1 << 40;
/// Bytes of an `hchan`: `qcount`, `dataqsiz`, and `closed` at 28, in all versions.
const CHANNEL: u32 = 32;
/// `runtime.semTabSize`, and bytes of an entry.
const SEMAPHORE_ROOTS: u64 = 251;
const SEMAPHORE_ROOT: u64 = 64;

/// What was read of the waits of some goroutines.
#[derive(Default)]
pub(super) struct Waits {
    sudogs: Pieces,
    channels: Pieces,
}

impl Waits {
    /// Reads what these say they wait for.
    pub(super) fn read(
        &mut self,
        living: &[(u64, Head)],
        layout: &Layout,
        target: &mut Read<'_>,
    ) -> Result<(), String> {
        let len = |head: &Head| match head.status {
            layout::WAITING | layout::LEAKED if head.waiting != 0 => (layout.sudog_c + 8) as u32,
            _ => 0,
        };
        let sudogs: Vec<MemoryRange> =
            living.iter().map(|(_, head)| MemoryRange { addr: head.waiting, len: len(head) }).collect();
        target(&sudogs, &mut self.sudogs)?;
        let channel = |index| {
            let addr = word(self.sudogs.get(index), layout.sudog_c).unwrap_or(0);
            MemoryRange { addr, len: if addr == 0 { 0 } else { CHANNEL } }
        };
        let channels: Vec<MemoryRange> = (0..living.len()).map(channel).collect();
        target(&channels, &mut self.channels)
    }

    /// What the goroutine at this place of those read waits for.
    pub(super) fn of(&self, index: usize, g: u64, head: &Head, reasons: &Reasons, layout: &Layout) -> Option<GoWait> {
        let sudog = self.sudogs.get(index);
        if word(sudog, 0)? != g {
            return None;
        }
        if layout.semaphores_in_g && reasons.is_semaphore(head.reason) {
            let address = word(sudog, layout.sudog_elem).filter(|&address| address != 0)?;
            return Some(GoWait::Semaphore { address });
        }
        // A `select` has one for each case.
        let is_one = word(sudog, layout.sudog_waitlink)? == 0;
        if !is_one || !reasons.is_channel(head.reason) {
            return None;
        }
        let address = word(sudog, layout.sudog_c)?;
        let channel = self.channels.get(index);
        let (len, capacity, closed) = (word(channel, 0)?, word(channel, 8)?, number(channel, 28)?);
        let sound = len <= capacity && capacity <= MAX_CAPACITY && closed <= 1;
        sound.then_some(GoWait::Channel { address, len, capacity, closed: closed == 1 })
    }
}

/// Before Go 1.26: the semaphore of each of `waiters` (addresses of their `g`), from the runtime's table of them. Of the
/// places that may be that table the first is taken that leads to one of them.
pub(super) fn semaphores(
    waiters: &HashSet<u64>,
    layout: &Layout,
    tables: &[u64],
    target: &mut Read<'_>,
    until: Instant,
) -> Result<HashMap<u64, u64>, String> {
    for table in tables {
        let found = semaphores_in(*table, waiters, layout, target, until)?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(HashMap::new())
}

/// Each entry is a tree of `sudog`s, one per semaphore, with the other waiters of that in a list behind it.
fn semaphores_in(
    table: u64,
    waiters: &HashSet<u64>,
    layout: &Layout,
    target: &mut Read<'_>,
    until: Instant,
) -> Result<HashMap<u64, u64>, String> {
    const LEFT: u64 = 16;
    const RIGHT: u64 = 8;
    let roots = super::read_all(table, SEMAPHORE_ROOTS * SEMAPHORE_ROOT, target)?;
    let mut next: Vec<u64> = roots
        .chunks_exact(SEMAPHORE_ROOT as usize)
        .filter_map(|root| word(root, 8))
        .filter(|&node| node != 0)
        .collect();
    let (mut seen, mut found) = (HashSet::new(), HashMap::new());
    let mut pieces = Pieces::default();
    // Each waiter is in it once; what is not one of them is not followed far.
    let most = waiters.len() * 2 + SEMAPHORE_ROOTS as usize;
    while !next.is_empty() && seen.len() < most && Instant::now() < until {
        next.retain(|node| seen.insert(*node));
        next.truncate(most);
        let ranges: Vec<MemoryRange> =
            next.iter().map(|node| MemoryRange { addr: *node, len: (layout.sudog_c + 8) as u32 }).collect();
        target(&ranges, &mut pieces)?;
        next.clear();
        for index in 0..ranges.len() {
            let sudog = pieces.get(index);
            let (Some(g), Some(address)) = (word(sudog, 0), word(sudog, layout.sudog_elem)) else { continue };
            if waiters.contains(&g) && address != 0 {
                found.insert(g, address);
            }
            let links = [LEFT, RIGHT, layout.sudog_waitlink].map(|link| word(sudog, link).unwrap_or(0));
            next.extend(links.into_iter().filter(|&link| link != 0));
        }
    }
    Ok(found)
}
