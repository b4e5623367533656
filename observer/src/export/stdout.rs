//! Findings on stdout, one a line: for journals and pipes.

use super::{Item, Losses, Queue, Sink, SinkStats, await_end};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines that wait at most.
const QUEUE: usize = 4096;
/// Lines written at once.
const TOGETHER: usize = 64;

struct Shared {
    queue: Queue<Item>,
    sent: AtomicU64,
    lost: Losses,
}

/// Writes findings to stdout from a thread of its own: a pipe that nobody reads must not stop the census.
pub struct Stdout {
    shared: Arc<Shared>,
    writer: JoinHandle<()>,
}

impl Stdout {
    /// Starts the writer.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared { queue: Queue::new(QUEUE), sent: AtomicU64::new(0), lost: Losses::default() });
        let writer = std::thread::Builder::new().name("observer-stdout".into()).spawn({
            let shared = shared.clone();
            move || write_all(&shared)
        })?;
        Ok(Self { shared, writer })
    }
}

fn write_all(shared: &Shared) {
    while !shared.queue.is_done() {
        for item in shared.queue.take(TOGETHER, Instant::now() + Duration::from_secs(60)) {
            let Item::Finding(event) = item else { continue };
            let mut line = event.json.to_string();
            line.push('\n');
            let mut out = std::io::stdout().lock();
            match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
                Ok(()) => {
                    shared.sent.fetch_add(1, Relaxed);
                }
                Err(error) => shared.lost.add(&error.kind().to_string(), 1),
            }
        }
    }
}

impl Sink for Stdout {
    fn offer(&self, item: Item) {
        if matches!(item, Item::Finding(_)) {
            self.shared.queue.offer(item);
        }
    }

    fn stats(&self) -> SinkStats {
        let Shared { queue, sent, lost } = &*self.shared;
        SinkStats { name: "stdout", queue: queue.stats(), sent: sent.load(Relaxed), lost: lost.so_far() }
    }

    fn close(self: Box<Self>, until: Instant) {
        self.shared.queue.close();
        await_end(&self.writer, until);
    }
}
