//! What a reading changes in a wait that was decoded from its system call.

use super::{Reading, Rest};
use crate::model::wait::{Class, Resource, ResourceKind, Wait};

/// Makes a wait as sharp as its stack allows. What was proven from memory stays: an owner, a class that the system call
/// itself decides.
pub fn sharpen(wait: &mut Wait, reading: Reading) {
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
        // Where the lock lies is not known of all kinds: its waiters sleep on words of their own.
        let resource = match word.zip(lock.offset).and_then(|(word, offset)| word.checked_add_signed(offset)) {
            Some(address) => Resource::at(lock.kind, address),
            None => Resource::of(lock.kind),
        };
        wait.resource = Some(resource.detailed(format!("({})", lock.named)));
    }
    wait.reading = Some(reading);
}

/// Whether bytes were taken for a glibc rwlock held by readers, which names no owner that could be looked up, while the
/// thread stands in something else: the mutex behind Rust's `stdout` has a thread id where that keeps its readers.
fn is_misread(wait: &Wait, reading: &Reading) -> bool {
    let is_guess = wait.class == Class::Lock
        && wait.owner.is_none()
        && !wait.by_frames
        && wait.resource.as_ref().is_some_and(|resource| resource.kind == ResourceKind::Rwlock);
    // Where a rwlock of glibc begins cannot be told from the word.
    let is_other = reading.lock.is_some_and(|lock| lock.kind != ResourceKind::Rwlock || lock.offset.is_some());
    is_guess && (is_other || reading.rest == Rest::Idle)
}
