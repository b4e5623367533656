//! `observer timeouts PID`

use super::look::{self, CensusChoice, ProbeChoice};
use super::signals::Signals;
use super::{FOUND, NOTHING};
use crate::census::{Filter, ProbeSettings};
use crate::detect::Severity;
use crate::host::clock::monotonic_ns;
use crate::model::Scope;
use crate::model::audit::Audit;
use crate::proc;
use crate::report::Setting;
use crate::report::timeouts::{Audited, to_json, to_text};
use crate::session::Session;
use crate::settings::CpuBudget;
use clap::ValueEnum;
use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

/// Time between two looks at what sleeps.
const INTERVAL: Duration = Duration::from_millis(250);
/// What the stacks of one look may take.
const FOR_STACKS: Duration = Duration::from_millis(250);
/// The same after the last one, when nothing else waits for it.
const FOR_LAST_STACKS: Duration = Duration::from_secs(5);
/// Waits longer than that are told of when they end.
const LONG: Duration = Duration::from_secs(5);

/// Audit the timeouts of a process.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    observer timeouts 4242                      its call sites that wait, the riskiest first\n  \
    observer timeouts 4242 --for 1m             a minute of them\n  \
    observer timeouts 4242 --output json        with whole stacks\n\n\
    Exit status: 1 if a site waits for a remote peer without a limit, or passes a wrong timeout.")]
pub(super) struct Args {
    /// Process id
    #[arg(value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: u32,
    /// How long to look
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = look::duration)]
    duration: Duration,
    /// Form of the results
    #[arg(long, value_enum, default_value_t = Form::Text)]
    output: Form,
    /// Where the list of threads comes from
    #[arg(long, value_enum, default_value_t = CensusChoice::Auto)]
    census: CensusChoice,
    /// Which probes to try; with `none` only what sleeps is seen, and not counted
    #[arg(long, value_enum, default_value_t = ProbeChoice::Auto)]
    probes: ProbeChoice,
    /// What the probes may cost on average, as a share of one CPU, or `off`: beyond it they look at fewer calls
    #[arg(long, value_name = "SHARE", default_value_t)]
    cpu_budget: CpuBudget,
}

/// Forms of this command's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Text,
    /// One document (observer.timeouts/v1)
    Json,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    proc::exists(args.pid)?;
    let signals = Signals::take_over()?;
    let source = look::source(args.census)?;
    let settings = ProbeSettings {
        rungs: args.probes.rungs(),
        long_wait: LONG,
        slow_connect: LONG,
        filter: Filter::Listed(Vec::new()),
        log_level: log::max_level(),
        sites: true,
        ..ProbeSettings::default()
    };
    let (probes, status) = look::attach(&settings, args.cpu_budget);
    let threshold_ns = crate::host::clock::whole_ns(LONG);
    let scope = Scope { processes: Some(BTreeSet::from([args.pid])), threshold_ns, ..Scope::default() };
    let mut session = Session::new(source, probes, scope);
    let setting = look::setting(session.source_name(), status);
    // The first turn tells the probes whom to listen to: they count from then on.
    session.turn()?;
    let Some(process) = session.judge.host.row(args.pid).map(|row| row.process) else {
        anyhow::bail!(
            "process {} is gone: it exited before it could be looked at; look for its successor with `pgrep`",
            args.pid
        );
    };
    let mut audit = Audit::new(process, monotonic_ns());
    let took = watch(&mut session, &mut audit, args, &signals)?;
    let known = audit.descriptors(&session.judge.host);
    let known = session.descriptors(process, &known);
    let host = &session.judge.host;
    let sites = audit.sites(host, &known);
    let findings = session.judge.ledger.open();
    let audited = Audited { process, sites: &sites, findings: &findings, audit: &audit, took };
    print(args.output, &setting, &session, &audited)?;
    let found = sites.iter().any(|site| site.risk.is_warning())
        || findings.iter().any(|life| life.finding.severity >= Severity::Warning);
    drop(session);
    Ok(if found { FOUND } else { NOTHING })
}

/// Takes censuses until the time is over, the process is, or somebody has seen enough; answers with how long that was.
fn watch(session: &mut Session, audit: &mut Audit, args: &Args, signals: &Signals) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let last = start + args.duration;
    audit.note(&session.judge.host);
    loop {
        let now = Instant::now();
        if now >= last {
            break;
        }
        if signals.wait_until((now + INTERVAL).min(last))?.is_some() {
            break;
        }
        session.explain_all(FOR_STACKS);
        session.turn()?;
        if !session.judge.host.threads_of(args.pid).any(|row| !row.is_exiting()) {
            eprintln!("observer: process {} exited while it was looked at", args.pid);
            return Ok(start.elapsed());
        }
        audit.note(&session.judge.host);
    }
    let took = start.elapsed();
    // Whose stacks are still missing: read, then confirmed by one more census.
    if session.explain_all(FOR_LAST_STACKS) > 0 || session.is_explaining() {
        session.turn()?;
        audit.note(&session.judge.host);
    }
    Ok(took)
}

fn print(form: Form, setting: &Setting, session: &Session, audited: &Audited<'_>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let host = &session.judge.host;
    match form {
        Form::Text => write!(out, "{}", to_text(setting, host, audited, &session.account))?,
        Form::Json => {
            serde_json::to_writer_pretty(&mut out, &to_json(setting, host, audited, &session.account))
                .map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
    }
    out.flush()?;
    Ok(())
}
