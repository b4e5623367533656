//! `observer daemon`

mod keys;
mod load;
mod notify;
mod reference;
mod values;

use super::NOTHING;
use super::look::{CensusChoice, LookArgs, ProbeChoice, probes, source};
use super::signals::{Heard, Signals};
use crate::census::Filter;
use crate::daemon::{self, Daemon};
use crate::detect::Moment;
use crate::export::otlp::env;
use crate::export::{Http, Otlp, Pulse, Sink, Stdout};
use crate::host::clock::real_ns;
use crate::kube::{self, Names};
use crate::session::Session;
use keys::Keys;
use load::Sources;
use notify::Manager;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Censuses after which the first findings are possible: the service is up.
const UP: u64 = 2;
/// Censuses in a row that may fail before the service ends.
const PATIENCE: u32 = 5;

/// The service: findings and metrics of this host, until it is told to end
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every key is also a line of the file (key = value) and a variable (OBSERVER_KEY): a flag beats the \
    environment, the environment beats the file. SIGHUP loads the file again; SIGTERM and SIGINT end the service."
)]
pub(super) struct Args {
    /// Settings, TOML (OBSERVER_CONFIG); docs/configuration.md lists the keys
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say whether the settings are right, print them all (without secrets) and exit
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    keys: Keys,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    // Before any thread: all of them inherit the mask.
    let signals = Signals::take_over()?;
    let sources = sources(args)?;
    let settings = sources.load()?;
    if args.check {
        std::io::stdout().write_all(load::show(&settings).as_bytes())?;
        return Ok(NOTHING);
    }
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    // First: an address that cannot be had is known at once, and whoever asks is told that the daemon is starting.
    let pulse = Arc::new(Pulse::new(settings.interval, Instant::now()));
    if let Some(address) = settings.listen {
        let http = Http::start(address, pulse.clone())?;
        log::info!("serving http://{}/metrics", http.address());
        sinks.push(Box::new(http));
    }
    let mut look = LookArgs::plain(settings.threshold, settings.interval);
    look.cpu_budget = settings.cpu_budget;
    if !settings.probes {
        look.probes = ProbeChoice::None;
    }
    let source = source(CensusChoice::Auto)?;
    let (probes, status) = probes(&look, Filter::Namespace);
    pulse.set_probes(status);
    let mut session = Session::new(source, probes, daemon::scope(&settings));
    if let Some(node) = settings.node_name.clone() {
        session.name_pods(Names::start(kube::Settings::new(node, settings.kubeconfig.clone()))?);
    }
    if settings.stdout {
        sinks.push(Box::new(Stdout::start()?));
    }
    if let Some(otlp) = Otlp::start(&settings)? {
        sinks.push(Box::new(otlp));
    }
    let mut daemon = Daemon::new(settings, session, sinks, Moment(real_ns()));
    daemon.show_pulse(pulse);
    live(daemon, &sources, &signals)?;
    Ok(NOTHING)
}

fn sources(args: &Args) -> anyhow::Result<Sources> {
    let text = |part: std::ffi::OsString| part.to_string_lossy().into_owned();
    let mut variables: BTreeMap<String, String> =
        std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
    for (name, near) in load::misspelt(&variables) {
        log::warn!("{name} is no setting; did you mean {near}?");
    }
    let named = variables.get("OBSERVER_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    // Observer's own settings go before those of OpenTelemetry.
    let standard = env::otlp(&variables)?;
    if let Some(interval) = env::metrics_interval(&variables)? {
        let own = load::variable("metrics-interval");
        variables.entry(own).or_insert_with(|| humantime::format_duration(interval).to_string());
    }
    Ok(Sources { file: args.config.clone().or(named), variables, flags: args.keys.clone(), standard })
}

/// Turns until it is told to end.
fn live(mut daemon: Daemon, sources: &Sources, signals: &Signals) -> anyhow::Result<()> {
    let mut manager = Manager::new();
    let mut told = String::new();
    let mut failed = 0;
    loop {
        let next = match daemon.turn() {
            Ok(next) => {
                failed = 0;
                manager.turned();
                next
            }
            // The kernel may be short of memory or of descriptors for a moment: to begin anew would forget since when.
            Err(error) if daemon.turns() > 0 && failed < PATIENCE => {
                failed += 1;
                log::warn!("{error}; the next census tries again");
                daemon.failed()
            }
            Err(error) => {
                daemon.close();
                return Err(error.into());
            }
        };
        let status = daemon.status();
        if daemon.turns() == UP {
            manager.ready(&status);
        } else if daemon.turns() > UP && status != told {
            manager.status(&status);
        }
        told = status;
        loop {
            let until = manager.next_sign().map_or(next, |sign| sign.min(next));
            match signals.wait_until(until)? {
                Some(Heard::End) => {
                    manager.stopping();
                    daemon.close();
                    return Ok(());
                }
                Some(Heard::HangUp) => {
                    manager.reloading();
                    reload(&mut daemon, sources);
                    manager.ready(&told);
                    break;
                }
                None if until == next => break,
                // Between two turns that are far apart: the last one has ended well.
                None => manager.turned(),
            }
        }
    }
}

/// Takes the settings of the file as it is now, or keeps those it has.
fn reload(daemon: &mut Daemon, sources: &Sources) {
    match sources.load() {
        Ok(new) => {
            let (settings, later) = load::without_restart(daemon.settings(), new);
            daemon.reload(settings);
            log::info!("settings loaded again");
            if !later.is_empty() {
                log::warn!("changed, but only with the next start: {}", later.join(", "));
            }
        }
        Err(error) => {
            daemon.refuse_reload();
            log::warn!("the old settings stay: {error}");
        }
    }
}

/// Prints the documentation of the keys, for `cargo xtask configuration`.
#[derive(Debug, clap::Args)]
pub(super) struct ReferenceArgs {
    /// The example file instead of the page
    #[arg(long)]
    example: bool,
}

pub(super) fn print_reference(args: &ReferenceArgs) -> anyhow::Result<u8> {
    let text = if args.example { reference::example_file() } else { reference::markdown() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(NOTHING)
}
