//! `observer daemon`

use super::NOTHING;
use super::look::{CensusChoice, LookArgs, probes, source};
use super::signals::Signals;
use crate::census::Filter;
use crate::daemon::{self, Daemon};
use crate::detect::Moment;
use crate::export::{Http, Pulse, Sink, Stdout};
use crate::session::Session;
use crate::settings::Settings;
use anyhow::Context;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The service: findings and metrics of this host, until it is told to end
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How long a wait must last before a rule that needs duration may speak
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    threshold: Option<Duration>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let signals = Signals::take_over()?;
    let mut settings = Settings::default();
    settings.threshold = args.threshold.unwrap_or(settings.threshold);
    if let Ok(listen) = std::env::var("OBSERVER_LISTEN") {
        settings.listen = parse_listen(&listen)?;
    }
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    // First: an address that cannot be had is known at once, and whoever asks is told that the daemon is starting.
    let pulse = Arc::new(Pulse::new(settings.interval, Instant::now()));
    if let Some(address) = settings.listen {
        let http = Http::start(address, pulse.clone())?;
        log::info!("serving http://{}/metrics", http.address());
        sinks.push(Box::new(http));
    }
    let look = LookArgs::plain(settings.threshold, settings.interval);
    let source = source(CensusChoice::Auto)?;
    let (probes, status) = probes(&look, Filter::Namespace);
    pulse.set_probes(status);
    let session = Session::new(source, probes, daemon::scope(&settings));
    if settings.stdout {
        sinks.push(Box::new(Stdout::start()?));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = Moment(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    let mut daemon = Daemon::new(settings, session, sinks, since);
    daemon.show_pulse(pulse);
    loop {
        let next = daemon.turn()?;
        if signals.wait_until(next)? {
            break;
        }
    }
    daemon.close();
    Ok(NOTHING)
}

/// An address, or `off`.
fn parse_listen(text: &str) -> anyhow::Result<Option<SocketAddr>> {
    match text {
        "" | "off" => Ok(None),
        address => Ok(Some(address.parse().with_context(|| {
            format!("OBSERVER_LISTEN={address} is no address: give one like 127.0.0.1:9465, or `off`")
        })?)),
    }
}
