//! Futex waits: which primitive, and who owns it. Layouts measured on glibc 2.36 and 2.41 (x86-64).
//!
//! The operation alone never decides: glibc's timed mutex lock and its condition variables share one.
//! An owner counts only if the structure around the futex word fits that lock; everything else stays
//! a condition with owner unknown. What musl makes of the same words is in [`musl`].

use super::{Call, Known, Memory, musl};
use crate::model::wait::{Class, OwnerScope, OwnerWord, Resource, ResourceKind, Wait};
use crate::proc::{Libc, MemoryRange};

pub(in crate::model) const FUTEX_WAIT: u64 = 0;
const FUTEX_LOCK_PI: u64 = 6;
pub(in crate::model) const FUTEX_WAIT_BITSET: u64 = 9;
const FUTEX_WAIT_REQUEUE_PI: u64 = 11;
const FUTEX_LOCK_PI2: u64 = 13;
pub(in crate::model) const FUTEX_PRIVATE: u64 = 0x80;
pub(in crate::model) const CMD_MASK: u64 = 0x7f;

pub(super) const FUTEX_WAITERS: u32 = 0x8000_0000;
pub(super) const FUTEX_OWNER_DIED: u32 = 0x4000_0000;
pub(super) const FUTEX_TID_MASK: u32 = 0x3fff_ffff;

/// `PTHREAD_MUTEX_ROBUST_NORMAL_NP`, process-shared, and the two elision bits (glibc `nptl/pthreadP.h`).
const KIND_ROBUST: u32 = 0x10;
const KIND_SHARED: u32 = 0x80;
const KIND_ELISION: u32 = 0x300;

/// Bytes around a futex word that the known layouts need: behind it, before it, and farther before it (musl's
/// threads, those of `parking_lot`). Ranges of their own, so that a word at the start of a mapping is still read.
const BEHIND: u32 = 40;
const BEFORE: u64 = 16;
const FAR_BEFORE: u64 = 64;

/// The memory around a futex word.
pub(super) fn needs(uaddr: u64) -> [MemoryRange; 3] {
    [
        MemoryRange { addr: uaddr, len: BEHIND },
        MemoryRange { addr: uaddr.saturating_sub(BEFORE), len: BEFORE as u32 },
        MemoryRange { addr: uaddr.saturating_sub(FAR_BEFORE), len: (FAR_BEFORE - BEFORE) as u32 },
    ]
}

/// Whether a wait can be on a lock with an owner, by the arguments alone: the cheap question asked
/// of every thread on the host. Idle workers (condition variables, parked threads, Go) answer no.
pub fn may_be_lock(args: &[u64; 6]) -> bool {
    let value = args[2] as u32;
    match args[1] & CMD_MASK {
        FUTEX_LOCK_PI | FUTEX_LOCK_PI2 | FUTEX_WAIT_REQUEUE_PI => true,
        FUTEX_WAIT => value == 2 || value & FUTEX_WAITERS != 0 && value != u32::MAX,
        FUTEX_WAIT_BITSET => value == 2 || value == 3 || args[1] & FUTEX_PRIVATE == 0,
        _ => false,
    }
}

/// Fills in class, resource and owner of a futex wait.
pub(super) fn decode(wait: &mut Wait, call: &Call, known: &Known<'_>) {
    let uaddr = wait.args[0];
    wait.class = Class::Condition;
    wait.resource = Some(Resource::at(ResourceKind::Futex, uaddr));
    if call.name != "futex" {
        return;
    }
    let word =
        Word { uaddr, private: wait.args[1] & FUTEX_PRIVATE != 0, value: wait.args[2] as u32, memory: known.memory };
    let is_musl = known.libc == Libc::Musl;
    let found = match wait.args[1] & CMD_MASK {
        FUTEX_LOCK_PI | FUTEX_LOCK_PI2 => word.pi_mutex(if is_musl { musl::MUTEX } else { 0 }),
        FUTEX_WAIT if is_musl => musl::wait(&word),
        // In musl the same bytes mean something else.
        _ if is_musl => None,
        FUTEX_WAIT => word.robust_mutex().or_else(|| word.mutex()),
        FUTEX_WAIT_BITSET => {
            // Only glibc's timed lock waits this way; the locks of Rust's library do so without a timeout.
            let timed_mutex = || (wait.args[3] != 0).then(|| word.mutex()).flatten();
            word.join().or_else(|| word.robust_mutex()).or_else(timed_mutex).or_else(|| word.rwlock())
        }
        _ => None,
    };
    wait.parked = word.parked(wait.args[1]);
    let is_pi = matches!(wait.args[1] & CMD_MASK, FUTEX_LOCK_PI | FUTEX_LOCK_PI2);
    if let Some((class, resource, owner)) = found {
        wait.class = class;
        wait.resource = Some(resource);
        // A static binary may hide its library: then the layout is likely, not proven. The PI word is the kernel's own.
        wait.by_frames = is_musl && owner.is_none() && !is_pi;
        wait.owner = owner.map(|o| OwnerWord { proven: o.proven && (is_pi || known.libc != Libc::Unknown), ..o });
    }
}

pub(super) type Found = (Class, Resource, Option<OwnerWord>);

/// A futex word and what is around it.
pub(super) struct Word<'a> {
    pub(super) uaddr: u64,
    pub(super) private: bool,
    /// What the waiter expects in it.
    pub(super) value: u32,
    memory: Memory<'a>,
}

impl Word<'_> {
    pub(super) fn u64_at(&self, offset: i64) -> Option<u64> {
        self.memory.bytes(self.uaddr.checked_add_signed(offset)?).map(u64::from_ne_bytes)
    }

    pub(super) fn at(&self, offset: i64) -> Option<u32> {
        self.memory.u32(self.uaddr.checked_add_signed(offset)?)
    }

    fn scope(&self, shared: bool) -> OwnerScope {
        if shared || !self.private { OwnerScope::Namespace } else { OwnerScope::Process }
    }

    /// Beside a word of the waiter's own: `ThreadData` of `parking_lot_core` 0.9 as rustc lays it out, `key` at -32,
    /// `next_in_queue` at -24. Only its frames can tell that it is one.
    fn parked(&self, op: u64) -> Option<u64> {
        if op & CMD_MASK != FUTEX_WAIT || !self.private || self.value != 1 {
            return None;
        }
        let is_place = |address: u64| (0x1000..1 << 47).contains(&address);
        let next = self.u64_at(-24)?;
        let key = self.u64_at(-32).filter(|key| is_place(*key))?;
        (next == 0 || is_place(next) && next % 8 == 0).then_some(key)
    }

    /// `FUTEX_LOCK_PI`: the kernel keeps the owner's TID in the word.
    fn pi_mutex(&self, begin: i64) -> Option<Found> {
        let lock = self.uaddr.checked_add_signed(begin)?;
        let resource = Resource::at(ResourceKind::Mutex, lock).detailed("(priority inheritance)");
        let Some(word) = self.at(0) else {
            return Some((Class::Lock, resource, None));
        };
        let tid = word & FUTEX_TID_MASK;
        let owner = (tid != 0).then_some(OwnerWord {
            own_tid: tid,
            scope: self.scope(false),
            how: "owner TID in the PI futex word",
            proven: true,
        });
        Some((Class::Lock, resource, owner))
    }

    /// glibc robust mutex: waits for `TID | FUTEX_WAITERS`, on a shared futex always.
    fn robust_mutex(&self) -> Option<Found> {
        let kind = self.at(16)?;
        let known_bits = 0x3 | KIND_ROBUST | KIND_SHARED | KIND_ELISION;
        let plausible = kind & KIND_ROBUST != 0 && kind & !known_bits == 0;
        if self.private || !plausible || self.value & FUTEX_WAITERS == 0 {
            return None;
        }
        let word = self.at(0)?;
        let tid = word & FUTEX_TID_MASK;
        let owner = (tid != 0 && word & FUTEX_OWNER_DIED == 0).then_some(OwnerWord {
            own_tid: tid,
            scope: if kind & KIND_SHARED != 0 { OwnerScope::Namespace } else { OwnerScope::Process },
            how: "owner TID in the robust futex word",
            proven: true,
        });
        let resource = Resource::at(ResourceKind::Mutex, self.uaddr).detailed(mutex_kind(kind));
        Some((Class::Lock, resource, owner))
    }

    /// glibc mutex: word 2, `__owner` at +8, `__nusers` at +12, `__kind` at +16.
    fn mutex(&self) -> Option<Found> {
        let (owner, users, kind) = (self.at(8)?, self.at(12)?, self.at(16)?);
        let plausible_kind = kind & !(0x3 | KIND_SHARED | KIND_ELISION) == 0;
        if self.value != 2 || !plausible_kind || (kind & KIND_SHARED != 0) == self.private {
            return None;
        }
        let word = self.at(0)?;
        // On its way from one owner to the next it has none: no claim is made then.
        let held = word == 2 && (1..=FUTEX_TID_MASK).contains(&owner) && (1..1 << 20).contains(&users);
        // `__count` belongs to recursive mutexes, `__list` to robust ones. Other locks of the 0/1/2 kind
        // have their user's data here.
        let counts = (self.at(4)? != 0) == (kind & 0x3 == 1);
        let unlisted = [24, 28, 32, 36].into_iter().all(|offset| self.at(offset) == Some(0));
        if !held || !counts || !unlisted {
            return None;
        }
        let resource = Resource::at(ResourceKind::Mutex, self.uaddr).detailed(mutex_kind(kind));
        let owner = OwnerWord {
            own_tid: owner,
            scope: self.scope(kind & KIND_SHARED != 0),
            how: "glibc mutex owner",
            proven: true,
        };
        Some((Class::Lock, resource, Some(owner)))
    }

    /// `pthread_join`: a shared futex on the thread's own TID field.
    fn join(&self) -> Option<Found> {
        if self.private || self.value == 0 || self.value > FUTEX_TID_MASK || self.at(0)? != self.value {
            return None;
        }
        let resource = Resource::at(ResourceKind::Thread, self.uaddr).detailed(self.value.to_string());
        let owner = OwnerWord {
            own_tid: self.value,
            scope: OwnerScope::Process,
            how: "thread awaited by pthread_join",
            proven: true,
        };
        // Waiting for a worker to finish is a condition like others; only in a cycle it is a hang.
        Some((Class::Condition, resource, Some(owner)))
    }

    /// glibc rwlock: readers wait for the phase at +8, writers for a writer at +12 or for the phase;
    /// `__cur_writer` at +24, `__readers` at +0 with two flag bits (write phase 1, write-locked 2).
    fn rwlock(&self) -> Option<Found> {
        let try_base = |offset: i64| {
            let readers = self.at(-offset)?;
            let writer = self.at(24 - offset)?;
            let shared = self.at(28 - offset)?;
            let base = self.uaddr.checked_add_signed(-offset)?;
            let fits = base % 8 == 0 && readers & 2 != 0 && shared <= 1 && (shared == 1) != self.private;
            fits.then_some((base, readers, writer))
        };
        let found = |offset: i64| {
            let (base, readers, writer) = try_base(offset)?;
            let resource = |text: String| Resource::at(ResourceKind::Rwlock, base).detailed(text);
            if self.value == 3 && writer != 0 && writer <= FUTEX_TID_MASK {
                let owner =
                    OwnerWord { own_tid: writer, scope: self.scope(false), how: "glibc rwlock writer", proven: true };
                return Some((Class::Lock, resource("(write-locked)".to_owned()), Some(owner)));
            }
            let count = readers >> 3;
            if offset == 8 && self.value == 2 && readers & 1 == 0 && (1..1 << 20).contains(&count) {
                return Some((
                    Class::Lock,
                    resource(format!("(held by {count} reader{})", if count == 1 { "" } else { "s" })),
                    None,
                ));
            }
            None
        };
        found(8).or_else(|| found(12))
    }
}

fn mutex_kind(kind: u32) -> String {
    let base = match kind & 0x3 {
        1 => "recursive",
        2 => "error-checking",
        3 => "adaptive",
        _ => "normal",
    };
    let robust = if kind & KIND_ROBUST != 0 { ", robust" } else { "" };
    // glibc sets the shared bit in every robust mutex (`__pthread_mutex_init`): it says nothing there.
    let shared = if kind & (KIND_SHARED | KIND_ROBUST) == KIND_SHARED { ", process-shared" } else { "" };
    format!("({base}{robust}{shared})")
}
