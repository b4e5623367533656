//! Looks that may make the looker wait, on threads that may be left behind.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

/// Threads left behind at a time; after that nobody looks.
const MOST: u32 = 4;

static LOOKING: AtomicU32 = AtomicU32::new(0);

struct Looking;

impl Drop for Looking {
    fn drop(&mut self) {
        LOOKING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What `look` finds; `None` if that takes longer than `until`.
pub(super) fn aside<T: Send + 'static>(until: Instant, look: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
    let looking = (LOOKING.fetch_add(1, Ordering::Relaxed), Looking);
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
