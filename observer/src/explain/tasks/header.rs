//! The header of a task, and where one may be.
//!
//! `tokio/src/runtime/task/{core,state}.rs` (1.40 to 1.54): the state word (`RUNNING` 1, `COMPLETE` 2, `NOTIFIED` 4,
//! `JOIN_INTEREST` 8, `JOIN_WAKER` 16, `CANCELLED` 32, references above), the next one in a queue, the table of functions, the number of
//! the list that owns it. On x86-64 a task begins at a multiple of 128.
//!
//! Memory that held a task once still looks like one. What gives it away is its count of references: a task is freed when
//! that is zero, and nothing counts it up again. Where the allocator writes its own pointers over the first words,
//! these are no plausible state. A copy on a stack, from which a task was moved to the heap, has no owner yet.

use super::vtables::Vtable;
use crate::explain::pieces::word;
use crate::proc::TaskState;

/// Tasks begin at multiples of this, bytes.
pub(super) const ALIGNMENT: u64 = 128;
/// Where its table is named, bytes from its begin.
pub(super) const VTABLE: u64 = 16;
/// More handles, wakers and queues do not refer to a task.
const MAX_REFERENCES: u64 = 1 << 24;
/// Lists are numbered from 1, one per runtime and `LocalSet`.
const MAX_OWNER: u64 = u32::MAX as u64;
/// Tasks are numbered from 1.
const MAX_ID: u64 = 1 << 48;
/// The end of what a process can address.
const MAX_ADDRESS: u64 = 1 << 47;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u64,
    pub(super) state: TaskState,
    pub(super) cancelled: bool,
}

impl Header {
    /// Bytes of a task that are read.
    pub(super) fn len(vtable: &Vtable) -> u64 {
        vtable.id + 8
    }

    /// Reads the first bytes of what may be a task of this type, whose table is at `avma`; `None` if it is none, or not any
    /// more.
    pub(super) fn of(bytes: &[u8], vtable: &Vtable, avma: u64) -> Option<Self> {
        let at = |offset| word(bytes, offset);
        let (state, next, owner, id) = (at(0)?, at(8)?, at(24)?, at(vtable.id)?);
        let is_pointer = |word: u64, alignment: u64| word.is_multiple_of(alignment) && word < MAX_ADDRESS;
        // An `Arc` of the scheduler, unless that takes no room.
        let scheduler = at(vtable.scheduler)?;
        let has_scheduler = vtable.id == vtable.scheduler || scheduler != 0 && is_pointer(scheduler, 8);
        let [running, complete, notified, cancelled] = [1, 2, 4, 32].map(|bit| state & bit != 0);
        let is_sound = at(VTABLE)? == avma
            && (1..MAX_REFERENCES).contains(&(state >> 6))
            && !(running && complete)
            && is_pointer(next, ALIGNMENT)
            && (1..=MAX_OWNER).contains(&owner)
            && (1..MAX_ID).contains(&id)
            && has_scheduler;
        let state = match (running, complete, notified) {
            (_, true, _) => TaskState::Complete,
            (true, ..) => TaskState::Running,
            (_, _, true) => TaskState::Notified,
            _ => TaskState::Idle,
        };
        is_sound.then_some(Self { id, state, cancelled })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x5555_0000_1000;
    const TYPE: Vtable = Vtable { svma: 0x1000, poll: 0x100, dealloc: 0, trailer: 0x180, scheduler: 32, id: 40 };

    fn of(words: [u64; 6]) -> Option<Header> {
        Header::of(&words.map(u64::to_le_bytes).concat(), &TYPE, AT)
    }

    #[test]
    fn states() {
        for (bits, state) in [
            (0, TaskState::Idle),
            (8 | 16, TaskState::Idle),
            (4, TaskState::Notified),
            (1, TaskState::Running),
            (1 | 4, TaskState::Running),
            (2 | 8, TaskState::Complete),
            (2 | 4, TaskState::Complete),
        ] {
            let header = of([bits | 3 << 6, 0, AT, 1, 0x7f00_0000_0010, 7]);
            assert_eq!(header, Some(Header { id: 7, state, cancelled: false }), "{bits}");
        }
        let cancelled = of([4 | 32 | 1 << 6, 0x7f00_0000_0080, AT, 1, 0x7f00_0000_0010, 7]);
        assert_eq!(cancelled, Some(Header { id: 7, state: TaskState::Notified, cancelled: true }));
    }

    #[test]
    fn what_was_a_task_or_never_was() {
        let good = [3 << 6, 0, AT, 1, 0x7f00_0000_0010, 7];
        assert!(of(good).is_some());
        for (at, wrong) in [
            // Freed; freed, and the allocator's list begins there; both at once.
            (0, 2 | 8),
            (0, 0x7f12_3456_7890),
            (0, 3 | 1 << 6),
            (1, 0x7f12_3456_7890),
            (1, 1 << 63),
            (2, AT + 8),
            // Not handed over yet: a copy on a stack.
            (3, 0),
            (3, 0x7f12_3456_7890),
            (4, 0),
            (4, 0x7f00_0000_0011),
            (5, 0),
            (5, u64::MAX),
        ] {
            let mut words = good;
            words[at] = wrong;
            assert_eq!(of(words), None, "{at} {wrong:#x}");
        }
        let bytes = good.map(u64::to_le_bytes).concat();
        for len in 0..bytes.len() {
            assert_eq!(Header::of(&bytes[..len], &TYPE, AT), None);
        }
    }
}
