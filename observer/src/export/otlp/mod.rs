//! The OTLP sink: findings as log records that are events, samples as metrics.
//!
//! One thread with a small runtime. Findings, samples and profiles have a lane each, so that a receiver that refuses one of them does not hold up the other. A
//! lane sends the oldest first, one request at a time; what could not be sent goes back to its queue, where it is the first to be lost when there is
//! no room. Nothing here knows how long the receiver may be away: memory is bounded by the queues.

mod encode;
pub mod env;
#[cfg(test)]
mod fixtures;
mod profile;
mod resource;
mod retry;
mod tls;
mod transport;

pub use transport::SetupError;

use super::{BlockedStack, FindingEvent, Item, Losses, Profile, Queue, QueueStats, Sample, Sink, SinkStats, await_end};
use crate::settings::Settings;
use encode::{Encoder, Series};
use resource::Own;
use retry::{Backoff, Outcome};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use transport::{Request, Signal, Transport};

/// Findings in one request at most.
const TOGETHER: usize = 512;
/// How long the first of a request waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes of one request at most: receivers take 4 MiB by default.
const LARGEST: usize = 4 * 1024 * 1024 - 64 * 1024;
/// What waiting findings may weigh.
const MOST_BYTES: usize = 32 * 1024 * 1024;
/// Samples that wait at most. Sums are since the start: a newer sample says what an older one said.
const SAMPLES: usize = 64;
/// Profiles that wait at most: each is of its own interval, and holds stacks.
const PROFILES: usize = 16;
/// How long a receiver that knows no profiles is not asked again.
const PROFILES_OFF: Duration = Duration::from_secs(3600);
/// How often the same trouble is told.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Sends findings and samples to an OTLP receiver.
pub struct Otlp {
    shared: Arc<Shared>,
    worker: JoinHandle<()>,
}

struct Shared {
    events: Lane<Arc<FindingEvent>>,
    metrics: Lane<Arc<Sample>>,
    profiles: Lane<Arc<Profile>>,
    /// Whether findings, samples and profiles are wanted.
    wanted: (bool, bool, bool),
    /// Until then the receiver knows no profiles.
    profiles_off: Mutex<Option<Instant>>,
    sent: AtomicU64,
    lost: Losses,
    /// When all is over, once that is known.
    end: Mutex<Option<Instant>>,
}

/// A queue whose reader waits without a thread of its own.
struct Lane<T> {
    queue: Queue<T>,
    changed: Notify,
}

impl Otlp {
    /// Starts the worker; `None` where the settings name no receiver. The receiver need not be there.
    ///
    /// # Errors
    /// The settings cannot work, or no thread can be started.
    pub fn start(settings: &Settings) -> Result<Option<Self>, SetupError> {
        let Some(otlp) = &settings.otlp else { return Ok(None) };
        let own = Own {
            host_name: crate::host::name(),
            host_id: machine_id(),
            node_name: settings.node_name.clone(),
            configured: otlp.resource.clone(),
        };
        let encoder = Encoder { own, command_line: settings.export_command_line };
        let shared = Arc::new(Shared {
            events: Lane { queue: Queue::weighed(otlp.queue, MOST_BYTES, weight), changed: Notify::new() },
            metrics: Lane { queue: Queue::new(otlp.queue.min(SAMPLES)), changed: Notify::new() },
            profiles: Lane { queue: Queue::new(otlp.queue.min(PROFILES)), changed: Notify::new() },
            wanted: (otlp.events, otlp.metrics, otlp.profiles),
            profiles_off: Mutex::default(),
            sent: AtomicU64::new(0),
            lost: Losses::default(),
            end: Mutex::default(),
        });
        let courier = |signal| -> Result<Courier, SetupError> {
            let transport = Transport::new(otlp, signal)?;
            Ok(Courier { shared: shared.clone(), transport, backoff: Backoff::default(), told: None, is_away: false })
        };
        // One that is not wanted may have no endpoint.
        let events = otlp.events.then(|| courier(Signal::Events)).transpose()?;
        let metrics = otlp.metrics.then(|| courier(Signal::Metrics)).transpose()?;
        let profiles = otlp.profiles.then(|| courier(Signal::Profiles)).transpose()?;
        // Name resolution is the only thing that blocks.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
        let worker = std::thread::Builder::new().name("observer-otlp".into()).spawn(move || {
            let events = events.map(|courier| runtime.spawn(send_events(courier, encoder.clone())));
            let metrics = metrics.map(|courier| runtime.spawn(send_metrics(courier, encoder.clone())));
            let profiles = profiles.map(|courier| runtime.spawn(send_profiles(courier, encoder)));
            for lane in [events, metrics, profiles].into_iter().flatten() {
                if let Err(error) = runtime.block_on(lane) {
                    log::error!("OTLP: a lane broke down: {error}");
                }
            }
            // A name server that does not answer must not keep us.
            runtime.shutdown_background();
        })?;
        Ok(Some(Self { shared, worker }))
    }
}

/// About how many bytes a finding has here: its JSON repeats the stacks, field by field.
fn weight(event: &Arc<FindingEvent>) -> usize {
    let finding = &event.found.finding;
    let cmdline: usize = event.entity.cmdline.iter().map(String::len).sum();
    4096 + 6 * event.stacks.len()
        + 2 * event.chain.len()
        + 512 * finding.chain.len()
        + 64 * finding.threads.len()
        + cmdline
}

fn machine_id() -> Option<String> {
    let text = std::fs::read_to_string("/etc/machine-id").ok()?;
    let id = text.trim();
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

impl Sink for Otlp {
    fn offer(&self, item: Item) {
        match item {
            Item::Finding(event) if self.shared.wanted.0 => self.shared.events.offer(event),
            Item::Metrics(sample) if self.shared.wanted.1 => self.shared.metrics.offer(sample),
            Item::Profile(profile) if self.wants_profiles() => {
                self.shared.lost.add("too_many_stacks", usize::try_from(profile.left_out).unwrap_or(usize::MAX));
                self.shared.profiles.offer(profile);
            }
            Item::Finding(_) | Item::Metrics(_) | Item::Profile(_) => {}
        }
    }

    fn wants_profiles(&self) -> bool {
        self.shared.wanted.2 && !self.shared.are_profiles_off()
    }

    fn stats(&self) -> SinkStats {
        let shared = &self.shared;
        let lanes = [shared.events.queue.stats(), shared.metrics.queue.stats(), shared.profiles.queue.stats()];
        let queue = QueueStats {
            length: lanes.iter().map(|lane| lane.length).sum(),
            // A lane that is not wanted has no room to be seen.
            capacity: lanes
                .iter()
                .zip([true, true, shared.wanted.2])
                .map(|(lane, is)| usize::from(is) * lane.capacity)
                .sum(),
            dropped: lanes.iter().map(|lane| lane.dropped).sum(),
            offered: lanes.iter().map(|lane| lane.offered).sum(),
        };
        SinkStats { name: "otlp", queue, sent: self.shared.sent.load(Relaxed), lost: shared.lost.so_far() }
    }

    fn close(self: Box<Self>, until: Instant) {
        *self.shared.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        self.shared.events.close();
        self.shared.metrics.close();
        self.shared.profiles.close();
        await_end(&self.worker, until);
        let stats = self.stats();
        if stats.queue.dropped > 0 || !stats.lost.is_empty() {
            log::warn!("OTLP: lost {} items in the queue, records after it: {:?}", stats.queue.dropped, stats.lost);
        }
    }
}

impl Shared {
    fn are_profiles_off(&self) -> bool {
        let until = *self.profiles_off.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn end(&self) -> Option<Instant> {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Lane<T> {
    fn offer(&self, item: T) {
        self.queue.offer(item);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.queue.close();
        self.changed.notify_one();
    }

    /// Waits for something to happen, at most until then.
    async fn change(&self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        // Late is as good as changed: the caller looks anyway.
        let _ = tokio::time::timeout(left, self.changed.notified()).await;
    }

    /// Waits for items, and a little for more of them. `None`: all is over.
    async fn batch(&self, shared: &Shared, most: usize, linger: Duration) -> Option<Vec<T>> {
        let mut full = None;
        loop {
            let now = Instant::now();
            let end = shared.end();
            if self.queue.is_done() || end.is_some_and(|end| now >= end) {
                return None;
            }
            let length = self.queue.stats().length;
            let until = match (length, full) {
                (0, _) => now + Duration::from_secs(3600),
                (_, Some(full)) => full,
                (_, None) => *full.insert(now + linger),
            };
            if length >= most || (length > 0 && (end.is_some() || now >= until)) {
                return Some(self.queue.take(most, now));
            }
            self.change(until).await;
        }
    }

    /// Waits before the next try; less when the end comes earlier.
    async fn pause(&self, shared: &Shared, pause: Duration) {
        let until = Instant::now() + pause;
        let was_ending = shared.end().is_some();
        while Instant::now() < until {
            match shared.end() {
                // One last try, now or never.
                Some(end) if !was_ending && until >= end => return,
                Some(end) if Instant::now() >= end => return,
                Some(end) => self.change(until.min(end)).await,
                None => self.change(until).await,
            }
        }
    }
}

/// Carries requests of one lane, and counts.
struct Courier {
    shared: Arc<Shared>,
    transport: Transport,
    backoff: Backoff,
    /// When trouble was told last.
    told: Option<Instant>,
    is_away: bool,
}

impl Courier {
    /// Sends a request of so many records. A pause: nobody took it, try again after that.
    async fn deliver(&mut self, request: &Request, records: usize) -> Option<Duration> {
        let left = self.shared.end().map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(self.transport.timeout, |left| left.min(self.transport.timeout));
        let outcome = self.transport.send(request, timeout).await;
        if !matches!(outcome, Outcome::Again { .. }) {
            self.backoff.reset();
            if std::mem::take(&mut self.is_away) {
                log::info!("OTLP: the receiver is back");
            }
        }
        match outcome {
            Outcome::Taken { rejected, message } => {
                let rejected = usize::try_from(rejected).map_or(records, |rejected| rejected.min(records));
                self.shared.sent.fetch_add((records - rejected) as u64, Relaxed);
                self.shared.lost.add("partial_success", rejected);
                if !message.is_empty() {
                    self.tell(&format!("the receiver rejected {rejected} of {records} records: {message}"));
                }
                None
            }
            Outcome::Refused { reason, message } => {
                self.shared.lost.add(&reason, records);
                if matches!(request, Request::Profiles(_)) && retry::is_unknown_signal(&reason) {
                    let until = Instant::now() + PROFILES_OFF;
                    *self.shared.profiles_off.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
                    log::warn!("OTLP: the receiver takes no profiles ({reason} {message}): none for an hour");
                    return None;
                }
                self.tell(&format!("{records} records lost: {reason} {message}"));
                None
            }
            Outcome::Again { after, why } => {
                self.is_away = true;
                self.tell(&format!("not taken, to be sent again: {why}"));
                Some(self.backoff.next(after, fastrand::f64()))
            }
        }
    }

    fn tell(&mut self, trouble: &str) {
        if self.told.is_none_or(|told| told.elapsed() >= TELL_AGAIN) {
            self.told = Some(Instant::now());
            log::warn!("OTLP: {trouble}");
        }
    }
}

async fn send_events(mut courier: Courier, encoder: Encoder) {
    let shared = courier.shared.clone();
    let lane = &shared.events;
    let mut linger = LINGER;
    while let Some(mut rest) = lane.batch(&shared, TOGETHER, linger).await {
        linger = LINGER;
        while !rest.is_empty() {
            let (request, count) = first_request(&encoder, &rest);
            if request.len() > LARGEST {
                shared.lost.add("too_large", count);
            } else if let Some(pause) = courier.deliver(&request, count).await {
                // Where they are the first to be lost.
                lane.queue.put_back(std::mem::take(&mut rest));
                lane.pause(&shared, pause).await;
                // They have waited long enough.
                linger = Duration::ZERO;
            }
            rest.drain(..count.min(rest.len()));
        }
    }
    shared.lost.add("closing", lane.queue.take(usize::MAX, Instant::now()).len());
}

/// A request of as many of the first findings as it may hold, and how many these are.
fn first_request(encoder: &Encoder, events: &[Arc<FindingEvent>]) -> (Request, usize) {
    let mut count = events.len();
    loop {
        let first = events.get(..count).unwrap_or(events);
        let request = Request::Logs(encoder.logs(first));
        if count <= 1 || request.len() <= LARGEST {
            return (request, count);
        }
        count /= 2;
    }
}

async fn send_metrics(mut courier: Courier, encoder: Encoder) {
    let shared = courier.shared.clone();
    let lane = &shared.metrics;
    while let Some(samples) = lane.batch(&shared, 1, Duration::ZERO).await {
        for sample in samples {
            let pause = send_sample(&mut courier, &encoder, &sample).await;
            if let Some(pause) = pause {
                lane.queue.put_back(vec![sample]);
                lane.pause(&shared, pause).await;
            }
        }
    }
    let left = lane.queue.take(usize::MAX, Instant::now());
    shared.lost.add("closing", left.iter().map(|sample| sample.points.len()).sum());
}

/// One sample, in as many requests as it needs. One that failed in the middle is sent again as a whole: the same points at the same time.
async fn send_sample(courier: &mut Courier, encoder: &Encoder, sample: &Sample) -> Option<Duration> {
    let series = encoder.series(sample);
    let mut parts: Vec<&[Series]> = vec![&series];
    while let Some(part) = parts.pop() {
        let request = Request::Metrics(encoder.metrics(sample, part));
        if request.len() <= LARGEST {
            if let Some(pause) = courier.deliver(&request, part.len()).await {
                return Some(pause);
            }
        } else if part.len() <= 1 {
            courier.shared.lost.add("too_large", part.len());
        } else {
            let (first, second) = part.split_at(part.len() / 2);
            parts.extend([second, first]);
        }
    }
    None
}

async fn send_profiles(mut courier: Courier, encoder: Encoder) {
    let shared = courier.shared.clone();
    let lane = &shared.profiles;
    while let Some(profiles) = lane.batch(&shared, 1, Duration::ZERO).await {
        for profile in profiles {
            if let Some((pause, rest)) = send_profile(&mut courier, &encoder, &profile).await {
                lane.queue.put_back(vec![Arc::new(Profile { stacks: rest, ..*profile })]);
                lane.pause(&shared, pause).await;
            }
        }
    }
    shared.lost.add("closing", lane.queue.take(usize::MAX, Instant::now()).len());
}

/// One profile, in as many requests as it needs. A pause, and the stacks that were not taken: those that were would count twice.
async fn send_profile(
    courier: &mut Courier,
    encoder: &Encoder,
    profile: &Profile,
) -> Option<(Duration, Vec<BlockedStack>)> {
    let mut parts: Vec<&[BlockedStack]> = vec![&profile.stacks];
    while let Some(part) = parts.pop() {
        let message = encoder.profiles(profile, part);
        // What a receiver counts: a profile for every resource.
        let count = message.resource_profiles.len();
        let request = Request::Profiles(message);
        if courier.shared.are_profiles_off() {
            courier.shared.lost.add("no_profiles", count);
        } else if request.len() <= LARGEST {
            if let Some(pause) = courier.deliver(&request, count).await {
                parts.push(part);
                return Some((pause, parts.into_iter().rev().flatten().cloned().collect()));
            }
        } else if part.len() <= 1 {
            courier.shared.lost.add("too_large", count);
        } else {
            let (first, second) = part.split_at(part.len() / 2);
            parts.extend([second, first]);
        }
    }
    None
}

#[cfg(test)]
mod tests;
