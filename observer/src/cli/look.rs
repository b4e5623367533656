//! What `attach` and `watch` share: options, the start of a session, and the loop.

use super::output::{Format, Output};
use super::signals::Signals;
use super::{FOUND, NOTHING};
use crate::census::budget::Watch;
use crate::census::{self, Family, Filter, GovernedProbes, ProbePlane, ProbeSettings, ProbeStatus, Rung, Spending};
use crate::detect::Life;
use crate::host;
use crate::model::Scope;
use crate::recording::{Header, Recorder, SCHEMA};
use crate::report::Setting;
use crate::session::{FIRST_GAP, Session};
use crate::settings::CpuBudget;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Facts that are wanted again at once get that much time to become others.
const SOONEST: Duration = Duration::from_millis(100);
/// What the stacks of a report may take, all threads of the processes looked at together.
const FOR_STACKS: Duration = Duration::from_secs(5);
/// The same after Ctrl-C.
const HURRIED: Duration = Duration::from_millis(500);
/// So many turns of one look may be for the sake of stacks that have just come.
const FRESH_TURNS: u64 = 4;
/// And so many for locks of a runtime, that are read several times, for arguments that are in memory, for answers that did not come in
/// time, for goroutines and for tasks: a reading may come late, behind stacks, and the first one of a large program looks up all names.
const LOCK_TURNS: u64 = 10;
/// How often the stack of a thread is tried that runs in between.
const TRIES: usize = 3;
/// `--once` waits at most so much longer than the threshold.
const ONCE_SLACK: Duration = Duration::from_secs(3);

/// And so much longer for goroutines: their waits count up to the reading that saw them, so that one more is needed.
const FOR_LAST_READING: Duration = Duration::from_secs(10);

/// No look takes longer, and no threshold is longer: 365 days.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// Options of every look.
#[derive(Debug, Args)]
pub(super) struct LookArgs {
    /// How long a wait must last before a rule that needs duration may speak
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub threshold: Duration,
    /// Time between two censuses
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// In text, the stack of every blocked thread of the processes shown, not only of those that matter
    #[arg(long)]
    pub stacks: bool,
    /// Form of the results
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// End after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Write every observation to FILE, for `observer replay` (mode 0600: it holds command lines and memory of the targets)
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Where the list of threads comes from
    #[arg(long, value_enum, default_value_t = CensusChoice::Auto)]
    pub census: CensusChoice,
    /// Which probes to try; `none` takes the census alone
    #[arg(long, value_enum, default_value_t = ProbeChoice::Auto)]
    pub probes: ProbeChoice,
    /// What the probes may cost on average, as a share of one CPU, or `off`: beyond it they look at fewer calls, or are taken
    /// off for a while, and the report says so
    #[arg(long, value_name = "SHARE", default_value_t)]
    pub cpu_budget: CpuBudget,
}

impl LookArgs {
    /// The usual options.
    pub(super) fn plain(threshold: Duration, interval: Duration) -> Self {
        Self {
            threshold,
            interval,
            stacks: false,
            output: Format::Text,
            duration: None,
            record: None,
            census: CensusChoice::Auto,
            probes: ProbeChoice::Auto,
            cpu_budget: CpuBudget::default(),
        }
    }
}

/// A duration that clocks can count to.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if duration > LONGEST {
        return Err("at most 365days".to_owned());
    }
    Ok(duration)
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if interval < Duration::from_millis(50) {
        return Err("at least 50ms".to_owned());
    }
    Ok(interval)
}

/// Where rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum CensusChoice {
    /// The BPF task iterator, or /proc where it does not load
    Auto,
    /// The BPF task iterator or nothing
    Iter,
    /// /proc
    Proc,
}

/// Which rungs of the attach ladder are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ProbeChoice {
    /// Best first
    Auto,
    /// None
    None,
    /// fentry and fexit only
    Fentry,
    /// kprobe and kretprobe only
    Kprobe,
    /// Typed raw tracepoints only
    #[value(name = "tp_btf")]
    TpBtf,
    /// System call tracepoints only
    Tracepoint,
}

impl ProbeChoice {
    pub(super) fn rungs(self) -> Vec<Rung> {
        match self {
            Self::Auto => Rung::ALL.to_vec(),
            Self::None => Vec::new(),
            Self::Fentry => vec![Rung::Fentry],
            Self::Kprobe => vec![Rung::Kprobe],
            Self::TpBtf => vec![Rung::TpBtf],
            Self::Tracepoint => vec![Rung::Tracepoint],
        }
    }
}

/// When a look ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// When every answer that needs time has it.
    Once,
    /// After the time given, or at Ctrl-C.
    Live,
}

/// What makes one look differ from another.
pub(super) struct Look<'a> {
    pub args: &'a LookArgs,
    pub scope: Scope,
    pub filter: Filter,
    pub end: End,
    /// The descendants of the processes asked for belong to it.
    pub children: bool,
}

/// Opens the source of rows that was asked for.
pub(super) fn source(choice: CensusChoice) -> anyhow::Result<Box<dyn census::Source>> {
    match choice {
        CensusChoice::Proc => Ok(Box::new(census::ProcSource::new())),
        CensusChoice::Iter => Ok(Box::new(census::IterSource::load()?)),
        CensusChoice::Auto => match census::IterSource::load() {
            Ok(source) => Ok(Box::new(source)),
            Err(error) => {
                log::warn!("{error}; falling back to /proc: durations count from now on (see `observer doctor`)");
                Ok(Box::new(census::ProcSource::new()))
            }
        },
    }
}

/// Attaches the probes. Without them the census alone still finds hangs, so this never fails: the
/// status says why there are none.
pub(super) fn probes(args: &LookArgs, filter: Filter) -> (Option<GovernedProbes>, serde_json::Value) {
    let settings = ProbeSettings {
        rungs: args.probes.rungs(),
        long_wait: args.threshold,
        slow_connect: args.threshold,
        filter,
        log_level: log::max_level(),
        // Who wakes whom is a hint for lock waits: of the processes that are looked at.
        wakes: true,
        ..ProbeSettings::default()
    };
    attach(&settings, args.cpu_budget)
}

/// Attaches probes with these settings, and says where they stand.
pub(super) fn attach(settings: &ProbeSettings, budget: CpuBudget) -> (Option<GovernedProbes>, serde_json::Value) {
    if settings.rungs.is_empty() {
        return (None, families(|_| "none: not wanted (--probes none)".to_owned()));
    }
    match ProbePlane::attach(settings) {
        Ok(plane) => {
            let status = status_json(plane.status());
            log::info!("probes attached: {status}");
            (Some(GovernedProbes::new(plane, budget)), status)
        }
        Err(error) => {
            log::warn!("no probes: {error}");
            (None, families(|_| format!("none: {error}")))
        }
    }
}

fn families(text: impl Fn(&str) -> String) -> serde_json::Value {
    let named = |name: &str| (name.to_owned(), serde_json::Value::from(text(name)));
    serde_json::Value::Object(["poll", "futex", "connect", "tcp_state"].map(named).into_iter().collect())
}

/// The rung of each family, by name.
pub(super) fn status_json(status: &ProbeStatus) -> serde_json::Value {
    // `socket` is tried only where sites are told apart.
    let ProbeStatus { poll, futex, connect, tcp_state, socket: _ } = status;
    families(|name| match name {
        "poll" => poll.to_string(),
        "futex" => futex.to_string(),
        "connect" => connect.to_string(),
        _ => tcp_state.to_string(),
    })
}

/// The rung of each family as it is now, and which are off because of what they cost.
pub(super) fn governed_json(probes: &GovernedProbes) -> serde_json::Value {
    let mut families = status_json(&probes.status());
    let Spending { budget, families: spent, .. } = probes.spending();
    for (family, state) in spent.iter().filter(|(_, state)| state.watch == Watch::Off) {
        let why = format!("none: off for now, it cost more than --cpu-budget {budget}");
        families[family.name()] = why.clone().into();
        if *family == Family::Connect {
            families["tcp_state"] = why.into();
        }
        log::debug!("{}: {state:?}", family.name());
    }
    families
}

/// Facts about this machine for the report.
pub(super) fn setting(census: &str, probes: serde_json::Value) -> Setting {
    Setting {
        host_name: host::name(),
        kernel: host::kernel_release(),
        boot_id: host::boot_id(),
        census: census.to_owned(),
        probes,
        descriptors: None,
    }
}

/// Looks until the end, prints, and answers with the exit status.
pub(super) fn run(look: Look<'_>) -> anyhow::Result<u8> {
    let signals = Signals::take_over()?;
    let args = look.args;
    let source = source(args.census)?;
    let (probes, status) = probes(args, look.filter);
    let mut session = Session::new(source, probes, look.scope);
    let mut setting = setting(session.source_name(), status);
    setting.descriptors = Some(session.descriptors_from().to_owned());
    if let Some(path) = &args.record {
        let header = Header {
            schema: SCHEMA.to_owned(),
            host_name: setting.host_name.clone(),
            kernel: setting.kernel.clone(),
            boot_id: setting.boot_id.clone(),
            processes: session.judge.scope.processes.clone(),
            filter: session.judge.scope.filter.clone(),
            threshold_ns: session.judge.scope.threshold_ns,
            census: setting.census.clone(),
            probes: setting.probes.clone(),
        };
        session.record(Recorder::create(path, &header)?);
    }
    if look.children {
        session.follow_children();
    }
    let mut output = Output::new(args.output, look.end == End::Live, args.stacks);
    let interrupted = go_round(&mut session, &mut output, args, look.end, &signals)?;
    let targets: Vec<u32> = session.judge.scope.processes.iter().flatten().copied().collect();
    if args.output != Format::Ndjson && any_alive(&session, &targets) {
        explain_all(&mut session, &mut output, interrupted, &signals)?;
    }
    if let Some(now) = session.probes().map(governed_json) {
        setting.probes = now;
    }
    let judge = &session.judge;
    let findings = judge.ledger.open();
    if look.end == End::Once {
        output.settle(&findings);
    }
    let pids = shown(judge, &findings);
    output.report(&setting, judge, &pids, &findings, &session.account)?;
    // Last, with the report already out: the kernel waits for its readers before it lets a probe go, which on a
    // saturated machine takes seconds.
    drop(session);
    Ok(if output.found() { FOUND } else { NOTHING })
}

/// The processes a report shows: those asked for, or those with findings.
pub(super) fn shown(judge: &crate::detect::Judge, findings: &[&Life]) -> Vec<u32> {
    match &judge.scope.processes {
        Some(pids) => pids.iter().copied().collect(),
        None => findings.iter().map(|life| life.finding.process.pid).collect(),
    }
}

/// Turns until the end; true if somebody has seen enough.
fn go_round(
    session: &mut Session,
    output: &mut Output,
    args: &LookArgs,
    end: End,
    signals: &Signals,
) -> anyhow::Result<bool> {
    let start = Instant::now();
    let last = match (end, args.duration) {
        (_, Some(duration)) => Some(start + duration),
        (End::Once, None) => Some(start + args.threshold + ONCE_SLACK),
        (End::Live, None) => None,
    };
    let mut next = start;
    let mut fresh_turns = 0;
    for number in 1_u64.. {
        let turn = session.turn()?;
        output.changes(&session.judge.host, &turn.changes)?;
        let targets: Vec<u32> = session.judge.scope.processes.iter().flatten().copied().collect();
        if number == 2 {
            output.overview(&session.judge, &targets)?;
        }
        if number == 1 {
            refuse_gone(session)?;
        }
        if session.judge.scope.processes.is_some() && !any_alive(session, &targets) {
            for pid in session.asked() {
                eprintln!("observer: process {pid} exited while it was looked at");
            }
            break;
        }
        next += if number == 1 { FIRST_GAP.min(args.interval) } else { args.interval };
        // A census that took longer than the interval must not be followed by a rush of others.
        next = next.max(Instant::now());
        if end == End::Once && number >= 2 {
            // A process that never rests has new stacks at every turn: that ends the look, too. But what is still being
            // worked on is waited for: on a busy machine that takes long.
            fresh_turns += u64::from(session.awaits_stacks() && !session.is_explaining());
            let fresh = session.is_explaining()
                || fresh_turns <= FRESH_TURNS && session.awaits_stacks()
                || number <= LOCK_TURNS
                    && (session.awaits_locks()
                        || session.awaits_tasks()
                        || session.awaits_goroutines()
                        || session.awaits_arguments()
                        || session.awaits_answers());
            let now = session.judge.host.now_ns();
            let Some(ripe) = turn.ripe_at_ns.or(fresh.then_some(now)) else { break };
            // Confirmation takes one more census after it is ripe; come back as soon as it is.
            let left = Duration::from_nanos(ripe.saturating_sub(session.judge.host.now_ns()));
            next = next.min(Instant::now() + left.max(SOONEST) + Duration::from_millis(20));
        }
        let is_ripe = turn.ripe_at_ns.is_some_and(|at| at <= session.judge.host.now_ns());
        let goes_on = end == End::Once && args.duration.is_none() && is_ripe && session.has_go_programs();
        let last = last.map(|last| if goes_on { last + FOR_LAST_READING } else { last });
        if last.is_some_and(|last| next >= last) {
            if let Some(last) = last
                && Instant::now() < last
            {
                if signals.wait_until(last)?.is_some() {
                    return Ok(true);
                }
                let turn = session.turn()?;
                output.changes(&session.judge.host, &turn.changes)?;
            }
            break;
        }
        if signals.wait_until(next)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The stacks of the processes looked at, for the report: read, then confirmed by a census. Threads that sleep in short
/// turns may need more than one try; whoever has pressed Ctrl-C does not wait for it.
fn explain_all(session: &mut Session, output: &mut Output, hurried: bool, signals: &Signals) -> anyhow::Result<()> {
    let (tries, each) = if hurried { (1, HURRIED) } else { (TRIES, FOR_STACKS) };
    for _ in 0..tries {
        if session.explain_all(each) == 0 {
            break;
        }
        let turn = session.turn()?;
        output.changes(&session.judge.host, &turn.changes)?;
        if signals.wait_until(Instant::now())?.is_some() {
            break;
        }
    }
    Ok(())
}

/// Says which of the processes asked for ended before the first census; an error if all of them did.
fn refuse_gone(session: &Session) -> anyhow::Result<()> {
    let is_gone = |pid: &&u32| session.judge.host.threads_of(**pid).next().is_none();
    let gone: Vec<u32> = session.asked().iter().filter(is_gone).copied().collect();
    let why = |pid: &u32| {
        format!("process {pid} is gone: it exited before it could be looked at; look for its successor with `pgrep`")
    };
    match gone.first() {
        Some(first) if gone.len() == session.asked().len() => anyhow::bail!("{}", why(first)),
        _ => gone.iter().for_each(|pid| eprintln!("observer: {}", why(pid))),
    }
    Ok(())
}

fn any_alive(session: &Session, targets: &[u32]) -> bool {
    targets.iter().any(|pid| session.judge.host.threads_of(*pid).any(|row| !row.is_exiting()))
}
