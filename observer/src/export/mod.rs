//! What observer tells other systems: findings as events, numbers as metrics.
//!
//! [`signals`] lists every event, metric and attribute; the documentation is made from it. [`Sample`] and [`FindingEvent`] are the values
//! of one turn, taken on the loop's thread; everything behind them (encoding, sockets, retries) happens on the sink's own threads, behind a bounded [`Queue`]
//! that loses the oldest first and counts what it loses: a dead receiver never slows the census.

mod debts;
pub mod document;
mod event;
mod http;
pub mod otlp;
mod profile;
pub mod prometheus;
mod pulse;
mod queue;
mod sample;
pub mod signals;
mod stdout;

pub use event::{Entity, FindingEvent, Life};
pub use http::{Http, ListenError};
pub use otlp::Otlp;
pub use profile::{BlockedStack, MOST_STACKS, Profile, Profiler};
pub use pulse::Pulse;
pub use queue::{Queue, QueueStats};
pub use sample::{Point, Sample, Sampler, Value};
pub use stdout::Stdout;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a sink is given.
#[derive(Clone, Debug)]
pub enum Item {
    /// A finding opened, changed or is over.
    Finding(Arc<FindingEvent>),
    /// The metrics of one interval.
    Metrics(Arc<Sample>),
    /// The blocked stacks of one interval.
    Profile(Arc<Profile>),
}

/// How a sink fares, for the self-metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkStats {
    /// Its name (`otlp`, `stdout`, …).
    pub name: &'static str,
    /// Items in its queue.
    pub queue: QueueStats,
    /// Records that its receiver took.
    pub sent: u64,
    /// Records lost after the queue, by reason.
    pub lost: BTreeMap<String, u64>,
}

/// Somebody who takes items. `offer` never waits.
pub trait Sink: Send {
    /// Takes an item, or loses the oldest one it has.
    fn offer(&self, item: Item);
    /// Whether it wants the metrics of every turn, not only those of every interval: it is asked at any time.
    fn wants_every_turn(&self) -> bool {
        false
    }
    /// Whether it wants blocked stacks now.
    fn wants_profiles(&self) -> bool {
        false
    }
    /// How it fares.
    fn stats(&self) -> SinkStats;
    /// Sends what it has, at most until then, and ends.
    fn close(self: Box<Self>, until: Instant);
}

/// What was lost behind a queue, by reason.
#[derive(Debug, Default)]
struct Losses(Mutex<BTreeMap<String, u64>>);

impl Losses {
    fn add(&self, reason: &str, records: usize) {
        if records > 0 {
            // Nothing under this lock panics.
            *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(reason.to_owned()).or_default() +=
                records as u64;
        }
    }

    fn so_far(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Waits for a sink's thread to end, at most until then: one that hangs is left behind.
fn await_end(thread: &JoinHandle<()>, until: Instant) {
    while !thread.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}
