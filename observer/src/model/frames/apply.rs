//! What a reading changes in a wait that was decoded from its system call.

use super::{Place, Reading, Rest};
use crate::model::wait::{Class, Resource, ResourceKind, Wait};
use crate::proc::Mention;

/// Bit 31 of a futex word: somebody waits. In private mutexes it is musl's; glibc's count 0, 1, 2.
const WAITERS: u32 = 0x8000_0000;

/// Makes a wait as sharp as its stack allows. What was proven from memory stays: an owner, a class that the system call
/// itself decides. `mentions` are the addresses found in the live frames.
pub fn sharpen(wait: &mut Wait, reading: Reading, mentions: &[Mention]) {
    if is_misread(wait, &reading) {
        wait.class = Class::Condition;
        wait.resource = Some(Resource::at(ResourceKind::Futex, wait.args[0]));
    }
    let is_futex = wait.resource.as_ref().is_some_and(|resource| resource.kind == ResourceKind::Futex);
    let is_open = is_futex && wait.owner.is_none() && wait.class == Class::Condition;
    if let Some(lock) = reading.lock.filter(|_| is_open && reading.rest == Rest::Lock) {
        wait.class = Class::Lock;
        wait.by_frames = true;
        let word = wait.resource.as_ref().and_then(|resource| resource.address);
        let resource = match (word, lock.place) {
            (Some(word), Place::Word(offset)) => {
                let is_musl = lock.named == "pthread mutex" && wait.args[2] as u32 & WAITERS != 0;
                word.checked_add_signed(if is_musl { -4 } else { offset }).map(|at| Resource::at(lock.kind, at))
            }
            _ => None,
        };
        wait.resource = Some(resource.unwrap_or(Resource::of(lock.kind)).detailed(format!("({})", lock.named)));
    }
    // What lies beside the waiter's own word is its lock only if its frames know that address, too: the order of the
    // fields there is the compiler's choice.
    let parked = parked_at(wait, &reading).filter(|lock| mentions.iter().any(|mention| mention.address == *lock));
    if let (Some(lock), Some(resource)) = (parked, wait.resource.as_mut()) {
        resource.address = Some(lock);
    }
    wait.reading = Some(reading);
}

/// The lock that a thread seems to wait for on a word of its own, by what lies beside that.
pub fn parked_at(wait: &Wait, reading: &Reading) -> Option<u64> {
    let lock = reading.lock.filter(|lock| lock.place == Place::Parked && wait.by_frames)?;
    let key = wait.parked?;
    // Whoever waits for the readers of a `RawRwLock` to leave is parked one byte behind its beginning.
    Some(if lock.kind == ResourceKind::Rwlock { key & !1 } else { key })
}

/// Whether bytes were taken for a glibc rwlock held by readers, which names no owner that could be looked up, while the
/// thread stands in something else: the mutex behind Rust's `stdout` has a thread id where that keeps its readers.
fn is_misread(wait: &Wait, reading: &Reading) -> bool {
    let is_guess = wait.class == Class::Lock
        && wait.owner.is_none()
        && !wait.by_frames
        && wait.resource.as_ref().is_some_and(|resource| resource.kind == ResourceKind::Rwlock);
    // Where a rwlock of glibc begins cannot be told from the word.
    let is_other = reading.lock.is_some_and(|lock| lock.kind != ResourceKind::Rwlock || lock.place != Place::Unknown);
    is_guess && (is_other || reading.rest == Rest::Idle)
}
