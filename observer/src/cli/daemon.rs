//! `observer daemon`

use super::NOTHING;
use super::look::{CensusChoice, LookArgs, probes, source};
use super::signals::Signals;
use crate::census::Filter;
use crate::daemon::{self, Daemon};
use crate::detect::Moment;
use crate::export::{Sink, Stdout};
use crate::session::Session;
use crate::settings::Settings;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    let look = LookArgs::plain(settings.threshold, settings.interval);
    let source = source(CensusChoice::Auto)?;
    let (probes, _status) = probes(&look, Filter::Namespace);
    let session = Session::new(source, probes, daemon::scope(&settings));
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if settings.stdout {
        sinks.push(Box::new(Stdout::start()?));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = Moment(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    let mut daemon = Daemon::new(settings, session, sinks, since);
    loop {
        let next = daemon.turn()?;
        if signals.wait_until(next)? {
            break;
        }
    }
    daemon.close();
    Ok(NOTHING)
}
