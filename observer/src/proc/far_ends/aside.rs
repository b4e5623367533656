//! Looks that may make the looker wait, on threads that may be left behind.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

/// Threads left behind at a time; after that nobody looks.
const MOST: u32 = 4;

/// How many threads look at one kind of thing: whoever holds up those of one kind holds up no other.
#[derive(Debug)]
pub(super) struct Lookers(AtomicU32);

impl Lookers {
    pub(super) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }
}

struct Looking(&'static Lookers);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What `look` finds; `None` if that takes longer than `until`.
pub(super) fn aside<T: Send + 'static>(
    lookers: &'static Lookers,
    until: Instant,
    look: impl FnOnce() -> Option<T> + Send + 'static,
) -> Option<T> {
    let looking = (lookers.0.fetch_add(1, Ordering::Relaxed), Looking(lookers));
    if looking.0 >= MOST {
        return None;
    }
    let (sender, answer) = sync_channel(1);
    let work = move || {
        let _looking = looking;
        if let Some(found) = look() {
            // Nobody listens any more: it took too long.
            let _ = sender.send(found);
        }
    };
    std::thread::Builder::new().name("observer-aside".into()).stack_size(128 * 1024).spawn(work).ok()?;
    answer.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
}
