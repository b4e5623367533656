//! `observer doctor`: what works here, what does not, and how to get it.

use super::look::status_json;
use super::{FAILED, NOTHING};
use crate::census::{
    FamilyStatus, Filter, IterSource, ProbePlane, ProbeSettings, ProbeStatus, ProcSource, Source, can_measure,
};
use crate::export::{prometheus, signals};
use crate::host::Capability;
use crate::settings::CpuBudget;
use clap::ValueEnum;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Far more than our own few descriptors take.
const FOR_FILES: Duration = Duration::from_secs(5);

/// Can it run here.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Everything is really tried: the census is taken, each probe is loaded and attached (to no process) \
    and detached again.\nExit status: 0 it can look, 2 it cannot."
)]
pub(super) struct Args {
    /// Form of the results
    #[arg(long, value_enum, default_value_t = Form::Text)]
    output: Form,
}

/// Forms of this command's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Text,
    /// One document
    Json,
}

/// Metrics of a daemon, as Prometheus has them, that tell which probes look at fewer calls now, and for how long they did.
fn given_up() -> [String; 2] {
    [&signals::PROBES_SAMPLING, &signals::PROBES_REDUCED].map(prometheus::name)
}

/// Name of the source of censuses in use, and why it is not the better one; or why there is none.
type Census = Result<(String, Option<String>), String>;

/// What was tried and what came of it.
struct Checkup {
    capability: Capability,
    census: Census,
    /// Why the sockets of a process are not told by the kernel's file iterator, if they are not.
    descriptors: Result<(), String>,
    probes: Result<ProbeStatus, String>,
    /// Why what the probes cost cannot be measured, if it cannot.
    budget: Result<(), String>,
}

impl Checkup {
    fn take() -> Self {
        let settings = ProbeSettings { filter: Filter::Listed(Vec::new()), ..ProbeSettings::default() };
        let (census, descriptors) = census();
        Self {
            capability: Capability::probe(),
            census,
            descriptors,
            budget: can_measure(),
            probes: ProbePlane::attach(&settings)
                .map(|plane| plane.status().clone())
                .map_err(|error| error.to_string()),
        }
    }

    fn to_json(&self) -> Value {
        let probes = match &self.probes {
            Ok(status) => json!({ "rungs": status_json(status), "ladder": status }),
            Err(error) => json!({ "rungs": null, "error": error }),
        };
        json!({
            "schema": "observer.doctor/v1",
            "can_look": self.census.is_ok(),
            "census": match &self.census {
                Ok((name, fallen)) => json!({ "source": name, "not_better_because": fallen }),
                Err(error) => json!({ "source": null, "error": error }),
            },
            "descriptors": {
                "source": if self.descriptors.is_ok() { "iter_task_file" } else { "proc" },
                "not_better_because": self.descriptors.as_ref().err(),
            },
            "probes": probes,
            "cpu_budget": {
                "default": CpuBudget::default().to_string(),
                "kept": self.budget.is_ok(),
                "not_because": self.budget.as_ref().err(),
                "cost_from": if self.budget.is_ok() { "measurement" } else { "estimate" },
                "given_up_metrics": given_up(),
            },
            "capability": self.capability,
        })
    }

    fn to_text(&self) -> String {
        let mut out = String::new();
        let c = &self.capability;
        let _ = writeln!(out, "kernel   {} ({}), lockdown {}", c.kernel, c.machine, c.lockdown);
        match &self.census {
            Ok((name, None)) => _ = writeln!(out, "census   {name}"),
            Ok((name, Some(why))) => {
                let worse = if name == "proc" {
                    "dearer, and durations count from first sight"
                } else {
                    "what threads wait for is not known; --census proc knows"
                };
                _ = writeln!(out, "census   {name}: {worse}\n         because {why}");
            }
            Err(why) => _ = writeln!(out, "census   none: {why}"),
        }
        match &self.descriptors {
            Ok(()) => _ = writeln!(out, "sockets  whose they are: iter_task_file"),
            Err(why) => _ = writeln!(out, "sockets  whose they are: proc, dearer\n         because {why}"),
        }
        match &self.probes {
            Ok(status) => {
                out.push_str("probes\n");
                // `socket` is tried only where sites are told apart.
                let ProbeStatus { poll, futex, connect, tcp_state, socket: _ } = status;
                for (name, family) in [("poll", poll), ("futex", futex), ("connect", connect), ("tcp_state", tcp_state)]
                {
                    rung(&mut out, name, family);
                }
            }
            Err(why) => _ = writeln!(out, "probes   none: {why}"),
        }
        let budget = CpuBudget::default();
        _ = writeln!(
            out,
            "budget   {budget} of one CPU for all probes (--cpu-budget): beyond it the dearest family looks at fewer calls, then is \
                taken off"
        );
        _ = match &self.budget {
            Ok(()) => writeln!(out, "         what they cost: measured by the kernel, for some moments of each second"),
            Err(why) => writeln!(out, "         what they cost: estimated from the calls they count, because {why}"),
        };
        // Another process' state is its own to tell.
        let [sampling, reduced] = given_up();
        _ = writeln!(
            out,
            "         what a running observer has given up: `account.probe_budget` of its report; {sampling} (0: off) and \
                {reduced} of the daemon's /metrics"
        );
        out.push_str("needs\n");
        for fact in &c.facts {
            let mark = match (fact.present, fact.optional) {
                (true, _) => "ok",
                (false, true) => "without",
                (false, false) => "MISSING",
            };
            let _ = writeln!(out, "  {mark:7} {}: {}", fact.name, fact.detail);
            if !fact.present {
                let _ = writeln!(out, "          lost without it: {}\n          to get it: {}", fact.lost, fact.remedy);
            }
        }
        out
    }
}

fn rung(out: &mut String, name: &str, family: &FamilyStatus) {
    let rung = family.rung.map_or_else(|| "none".to_owned(), |rung| rung.to_string());
    let _ = writeln!(out, "  {name:9} {rung}");
    for fall in &family.falls {
        let _ = writeln!(out, "            not {}: {}", fall.rung, fall.reason.lines().next().unwrap_or_default());
    }
}

/// Takes a census by the iterator, else through `/proc`; and tries the iterator of files.
fn census() -> (Census, Result<(), String>) {
    let by_iterator = IterSource::load().and_then(|mut source| {
        source.take()?;
        let files = source.socket_files().and_then(|files| {
            let listed = files.of(std::process::id(), Instant::now() + FOR_FILES);
            listed.map(|_| ()).map_err(|error| error.to_string())
        });
        Ok(((source.name().to_owned(), source.degraded().map(str::to_owned)), files))
    });
    match by_iterator {
        Ok((census, files)) => (Ok(census), files),
        Err(why) => {
            let mut source = ProcSource::new();
            let taken = source.take().map_err(|error| format!("{why}; {error}"));
            (taken.map(|_| (source.name().to_owned(), Some(why.to_string()))), Err(why.to_string()))
        }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let checkup = Checkup::take();
    let text = match args.output {
        Form::Text => checkup.to_text(),
        Form::Json => format!("{:#}\n", checkup.to_json()),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(if checkup.census.is_ok() { NOTHING } else { FAILED })
}
