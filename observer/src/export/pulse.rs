//! Whether the daemon lives: written by the loop, read by whoever asks.

use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A census may take so long, however short the interval.
const SHORTEST: Duration = Duration::from_secs(10);
/// Otherwise it may be late by so many intervals.
const INTERVALS: u32 = 5;
/// Before the first census programs are loaded and probes attached, which is slow on a machine under load: who ends a
/// daemon that is still loading gets one that never has loaded.
const LOADING: Duration = Duration::from_secs(120);
/// A finding needs two censuses.
const READY: u64 = 2;

/// The pulse of the loop.
#[derive(Debug)]
pub struct Pulse(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    interval: Duration,
    born: Instant,
    last: Option<Instant>,
    turns: u64,
    probes: Option<Value>,
}

impl Pulse {
    /// Of a loop that is about to begin, with a census every `interval`.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self(Mutex::new(Inner { interval, born: now, last: None, turns: 0, probes: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under this lock panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A census is done.
    pub fn beat(&self, now: Instant) {
        let mut inner = self.lock();
        inner.last = Some(now);
        inner.turns += 1;
    }

    /// Censuses come in another rhythm from now on.
    pub fn set_interval(&self, interval: Duration) {
        self.lock().interval = interval;
    }

    /// The probes are attached, or given up: the rung of each family, or why there is none.
    pub fn set_probes(&self, probes: Value) {
        self.lock().probes = Some(probes);
    }

    /// Whether the census turns, in words.
    ///
    /// # Errors
    /// It does not: since when, and what was allowed.
    pub fn health(&self, now: Instant) -> Result<String, String> {
        let inner = self.lock();
        let since = |then: Instant| now.saturating_duration_since(then).as_secs_f64();
        let Some(last) = inner.last else {
            let age = since(inner.born);
            return if age <= LOADING.as_secs_f64() {
                Ok(format!("ok: starting, for {age:.1} s"))
            } else {
                Err(format!("no census since the start, {age:.1} s ago ({} s are allowed)", LOADING.as_secs()))
            };
        };
        let (age, allowed) = (since(last), SHORTEST.max(inner.interval.saturating_mul(INTERVALS)));
        if age <= allowed.as_secs_f64() {
            Ok(format!("ok: {} censuses, the last {age:.1} s ago", inner.turns))
        } else {
            Err(format!("the last census was {age:.1} s ago ({:.0} s are allowed)", allowed.as_secs_f64()))
        }
    }

    /// Whether it finds what there is to find, and with which probes.
    pub fn readiness(&self) -> (bool, Value) {
        let inner = self.lock();
        let ready = inner.turns >= READY && inner.probes.is_some();
        (ready, json!({"ready": ready, "censuses": inner.turns, "probes": inner.probes}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ill_when_the_census_is_late_and_well_again_with_the_next() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let pulse = Pulse::new(Duration::from_secs(1), begin);
        assert_eq!(pulse.health(at(119)), Ok("ok: starting, for 119.0 s".to_owned()));
        assert!(pulse.health(at(121)).is_err());
        pulse.beat(at(122));
        assert_eq!(pulse.health(at(132)), Ok("ok: 1 censuses, the last 10.0 s ago".to_owned()));
        assert_eq!(pulse.health(at(133)), Err("the last census was 11.0 s ago (10 s are allowed)".to_owned()));
        pulse.set_interval(Duration::from_secs(60));
        assert!(pulse.health(at(133)).is_ok(), "five intervals of a minute");
        assert!(pulse.health(at(423)).is_err());
        pulse.beat(at(424));
        assert!(pulse.health(at(425)).is_ok());
    }

    #[test]
    fn it_is_ready_after_two_censuses_and_a_word_on_the_probes() {
        let now = Instant::now();
        let pulse = Pulse::new(Duration::from_secs(1), now);
        pulse.beat(now);
        pulse.beat(now);
        assert_eq!(pulse.readiness(), (false, json!({"ready": false, "censuses": 2, "probes": null})));
        pulse.set_probes(json!({"poll": "none: refused"}));
        let ready = json!({"ready": true, "censuses": 2, "probes": {"poll": "none: refused"}});
        assert_eq!(pulse.readiness(), (true, ready));
    }
}
