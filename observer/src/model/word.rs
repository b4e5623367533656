//! Futex words that no longer hold what their sleeper awaits, followed through the readings of one sleep.
//!
//! A word that changed proves nothing by itself: readers leave, counters go on, a woken thread is on its way. So it counts
//! only for the thread that has slept longest on the word, which a wake-up would have reached first, and only while nothing
//! in its process could hold up a thread that was woken. What the word means is for `detect` to say.

use super::decode::{CMD_MASK, FUTEX_PRIVATE, FUTEX_WAIT, FUTEX_WAIT_BITSET, Memory};
use super::host::Host;
use crate::census::{Pid, ThreadRow};
use std::collections::{BTreeSet, HashMap};

/// `futex` in the table of x86-64.
const SYS_FUTEX: u32 = 202;
/// A thread that waits for a CPU this long may be the one that was woken.
const STARVED_NS: u64 = 500_000_000;
/// Words read again after one census because they have changed: a hostile process has no more of our time.
pub(super) const MOST_CHANGED: usize = 1024;
/// Words looked at after one census, of the processes asked for and of a whole host; the others come later in turn.
const ATTACHED: usize = 1024;
const OF_A_HOST: usize = 64;

/// An untimed futex wait, from the registers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plain {
    address: u64,
    awaited: u32,
    private: bool,
}

impl Plain {
    /// The wait of a thread that only a wake-up on one word of its own process can end.
    pub(super) fn of(row: &ThreadRow) -> Option<Self> {
        let call = row.syscall.filter(|call| call.number == SYS_FUTEX && !row.compat)?;
        let [address, op, value, timeout, _, bits] = call.args;
        let waits = match op & CMD_MASK {
            FUTEX_WAIT => true,
            // A wake-up for other bits may pass this one by.
            FUTEX_WAIT_BITSET => bits as u32 == u32::MAX,
            _ => false,
        };
        let asleep = row.state_letter() == 'S' && !row.is_stopped();
        (waits && timeout == 0 && address != 0 && asleep).then_some(Self {
            address,
            awaited: value as u32,
            private: op & FUTEX_PRIVATE != 0,
        })
    }
}

/// What the bytes around a word fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A `pthread_mutex_t` of glibc that nobody holds.
    FreeMutex,
    /// A `sem_t` of glibc with as many waiters as sleep on it.
    Semaphore,
    /// Nothing known.
    Other,
}

/// A word that differed from the awaited value, the same way, in every reading since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its address.
    pub address: u64,
    /// What the thread awaits the end of.
    pub awaited: u32,
    /// What the word holds.
    pub found: u32,
    /// Only this process can wake it.
    pub private: bool,
    /// How often it was read so.
    pub readings: u32,
    /// The census before the first of these readings, `CLOCK_MONOTONIC` nanoseconds.
    pub since_ns: u64,
    /// Threads of the process that sleep on the word, this one included.
    pub sleepers: usize,
    /// What the bytes around it fit.
    pub layout: Layout,
}

/// Who sleeps on which word, and whose process is not to be judged now.
#[derive(Debug)]
pub(super) struct Sleepers {
    /// Per process and word: the one that sleeps longest, and how many.
    words: HashMap<(Pid, u64), (u64, Pid, usize)>,
    /// Processes with a thread that is stopped, traced, or does not get a CPU.
    unsettled: BTreeSet<Pid>,
}

impl Sleepers {
    /// From the rows of the last census.
    pub(super) fn of(host: &Host) -> Self {
        let mut words: HashMap<(Pid, u64), (u64, Pid, usize)> = HashMap::new();
        let mut unsettled = BTreeSet::new();
        let now = host.now_ns();
        for row in host.rows() {
            let starved =
                !row.is_blocked() && row.queued_since_ns.is_some_and(|at| now.saturating_sub(at) > STARVED_NS);
            if row.is_stopped() || row.tracer != 0 || starved && !row.is_exiting() {
                unsettled.insert(row.process.pid);
            }
            // Timed waits queue on the word like others.
            let Some(call) = row.syscall.filter(|call| call.number == SYS_FUTEX && row.is_blocked()) else { continue };
            let (since, tid) = (host.since(row).ns, row.tid);
            words
                .entry((row.process.pid, call.args[0]))
                .and_modify(|(first, head, count)| {
                    (*first, *head) = (*first, *head).min((since, tid));
                    *count += 1;
                })
                .or_insert((since, tid, 1));
        }
        Self { words, unsettled }
    }
}

/// Whether a word was read and is not what its sleeper awaits: the cheap question.
pub(super) fn differs(row: &ThreadRow, memory: Memory<'_>) -> bool {
    Plain::of(row).is_some_and(|plain| memory.u32(plain.address).is_some_and(|found| found != plain.awaited))
}

/// Another reading of a word. `before` is what the earlier readings of the same sleep say; `None` starts afresh.
pub(super) fn again(
    before: Option<&Changed>,
    row: &ThreadRow,
    memory: Memory<'_>,
    sleepers: &Sleepers,
    now_ns: u64,
) -> Option<Changed> {
    let Plain { address, awaited, private } = Plain::of(row)?;
    let found = memory.u32(address).filter(|found| *found != awaited)?;
    let (_, head, count) = *sleepers.words.get(&(row.process.pid, address))?;
    if head != row.tid || sleepers.unsettled.contains(&row.process.pid) {
        return None;
    }
    let before = before.filter(|before| before.found == found);
    Some(Changed {
        address,
        awaited,
        found,
        private,
        readings: before.map_or(0, |before| before.readings).saturating_add(1),
        since_ns: before.map_or(now_ns, |before| before.since_ns),
        sleepers: count,
        layout: layout(address, memory, count),
    })
}

fn layout(address: u64, memory: Memory<'_>, sleepers: usize) -> Layout {
    let at = |offset: u64| memory.u32(address.checked_add(offset)?);
    let zero = |offsets: &[u64]| offsets.iter().all(|offset| at(*offset) == Some(0));
    // Owner gone, no recursion count, a private kind, in no list (glibc `struct __pthread_mutex_s`).
    let mutex = zero(&[0, 4, 8, 24, 28, 32, 36])
        && at(12).is_some_and(|users| users < 1 << 20)
        && at(16).is_some_and(|kind| kind & !0x303 == 0);
    // `struct new_sem`: value, waiters, private.
    let semaphore = zero(&[8]) && at(4).is_some_and(|waiters| waiters as usize == sleepers && waiters > 0);
    match (mutex, semaphore) {
        (true, _) => Layout::FreeMutex,
        (_, true) => Layout::Semaphore,
        _ => Layout::Other,
    }
}

/// The next words to look at: those after `cursor`, around and around. Only waits that nothing else asks about.
pub(super) fn next_words<'a>(
    candidates: impl Iterator<Item = &'a ThreadRow>,
    cursor: &mut Pid,
    attached: bool,
) -> Vec<&'a ThreadRow> {
    let most = if attached { ATTACHED } else { OF_A_HOST };
    let mut rows: Vec<&ThreadRow> = candidates.collect();
    let start = rows.partition_point(|row| row.tid <= *cursor);
    rows.rotate_left(start);
    rows.truncate(most);
    if let Some(last) = rows.last() {
        *cursor = last.tid;
    }
    rows
}
