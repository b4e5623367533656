//! What the service manager is told (`Type=notify`). Without one, nothing.

use sd_notify::NotifyState;
use std::time::{Duration, Instant};

/// The service manager's ear.
pub(super) struct Manager {
    /// It wants a sign of life this often.
    watchdog: Option<Duration>,
    last_sign: Instant,
}

impl Manager {
    pub(super) fn new() -> Self {
        // Twice as often as asked for, as sd_watchdog_enabled(3) advises.
        let watchdog = sd_notify::watchdog_enabled().map(|every| every / 2);
        Self { watchdog, last_sign: Instant::now() }
    }

    /// The service is up.
    pub(super) fn ready(&self, status: &str) {
        tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// What it does, in one line.
    pub(super) fn status(&self, status: &str) {
        tell(&[NotifyState::Status(status)]);
    }

    /// The settings are being loaded again; `ready` ends it.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => log::debug!("no monotonic clock: {error}"),
        }
    }

    /// The service ends.
    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping, NotifyState::Status("sending what is left")]);
    }

    /// The census turns: called after each. The sign is due by itself only where censuses are far apart.
    pub(super) fn turned(&mut self) {
        if self.watchdog.is_some_and(|every| self.last_sign.elapsed() >= every) {
            self.sign();
        }
    }

    fn sign(&mut self) {
        tell(&[NotifyState::Watchdog]);
        self.last_sign = Instant::now();
    }

    /// When the next sign of life is due, if anyone waits for it.
    pub(super) fn next_sign(&self) -> Option<Instant> {
        Some(self.last_sign + self.watchdog?)
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log::debug!("the service manager does not listen: {error}");
    }
}
