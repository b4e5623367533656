//! `observer daemon`

use super::NOTHING;
use super::look::{CensusChoice, LookArgs, probes, source};
use super::signals::Signals;
use crate::census::Filter;
use crate::daemon::{self, Daemon};
use crate::detect::Moment;
use crate::export::otlp::env;
use crate::export::{Otlp, Sink, Stdout};
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
    let variables = standard_variables();
    settings.otlp = env::otlp(&variables)?;
    settings.metrics_interval = env::metrics_interval(&variables)?.unwrap_or(settings.metrics_interval);
    // Before anything is loaded into the kernel: settings that cannot work are told at once.
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if settings.stdout {
        sinks.push(Box::new(Stdout::start()?));
    }
    if let Some(otlp) = Otlp::start(&settings)? {
        sinks.push(Box::new(otlp));
    }
    let look = LookArgs::plain(settings.threshold, settings.interval);
    let source = source(CensusChoice::Auto)?;
    let (probes, _status) = probes(&look, Filter::Namespace);
    let session = Session::new(source, probes, daemon::scope(&settings));
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

/// The variables of OpenTelemetry; one that is not UTF-8 counts as not set.
fn standard_variables() -> env::Variables {
    let pairs =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    pairs.filter(|(name, _)| name.starts_with("OTEL_")).collect()
}
