//! `observer goroutines PID`

use super::NOTHING;
use super::signals::Signals;
use crate::census::ProcessId;
use crate::explain::{ExplainSettings, Explainer, NOT_STARTED};
use crate::proc::{self, Goroutines};
use crate::report::goroutines::{Trend, Trends, to_folded, to_json, to_text};
use crate::report::{pprof, text};
use anyhow::{bail, ensure};
use clap::ValueEnum;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// A census takes so long at most; a hundred thousand goroutines take some hundred milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);
/// Of a process that starts, the table may not be there yet.
const STARTING: u32 = 3;

/// Form of the results on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One document (observer.goroutines/v1); with --watch one a line
    Json,
    /// A line per stack and its count: for flame graphs
    Folded,
    /// A profile for `go tool pprof`
    Pprof,
}

/// The goroutines of a Go program: groups by stack, state and creator.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    observer goroutines 4242                              where they wait, and who started them\n  \
    observer goroutines 4242 --watch                      which groups grow\n  \
    observer goroutines 4242 --output pprof > go.pb.gz    then: go tool pprof -top go.pb.gz\n  \
    observer goroutines 4242 --output folded | flamegraph.pl > go.svg\n\n\
    The program is not stopped and needs no symbols. Supported: Go 1.18 to 1.27 on x86-64.")]
pub(super) struct Args {
    /// Process id
    #[arg(value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: u32,
    /// Form of the results
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Again and again, with how each group grows, until Ctrl-C or the end of the process
    #[arg(long)]
    watch: bool,
    /// Time between two censuses; without --watch, text and json take two of them, to tell growth and waits
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = super::look::duration)]
    interval: Duration,
    /// Groups that text shows, the largest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// Goroutines of the runtime itself, too (garbage collector, finalizers, timers); json always has them
    #[arg(long)]
    system: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let is_profile = matches!(args.output, Format::Folded | Format::Pprof);
    ensure!(!(args.watch && is_profile), "--watch shows text or json; a profile is of one moment: leave --watch away");
    ensure!(
        args.output != Format::Pprof || !std::io::stdout().is_terminal(),
        "a profile is no text: write it to a file, as in `observer goroutines {} --output pprof > goroutines.pb.gz`",
        args.pid
    );
    let process = proc::exists(args.pid)?;
    let signals = Signals::take_over()?;
    let mut explainer = Explainer::new(ExplainSettings::default());
    let mut trends = Trends::default();
    let mut next = Instant::now();
    for number in 1_u64.. {
        let census = match census(&mut explainer, process.id, &signals) {
            Ok(Some(census)) => census,
            Ok(None) => break,
            Err(_) if number > 1 && proc::exists(args.pid).is_err() => {
                eprintln!("observer: process {} exited while it was looked at", args.pid);
                break;
            }
            Err(error) => return Err(error),
        };
        let trend = trends.learn(&census);
        // One census knows no growth.
        if number > 1 || args.watch || is_profile || args.interval.is_zero() {
            print(args, &census, &trend, &process.comm)?;
            if !args.watch {
                break;
            }
        }
        next = (next + args.interval).max(Instant::now() + Duration::from_millis(20));
        if signals.wait_until(next)?.is_some() {
            break;
        }
    }
    Ok(NOTHING)
}

/// One census. Of a program that only starts there is no table yet: that is waited for.
fn census(explainer: &mut Explainer, process: ProcessId, signals: &Signals) -> anyhow::Result<Option<Goroutines>> {
    let mut attempt = 1;
    loop {
        let census =
            explainer.goroutines(&[process], DEADLINE, DEADLINE).into_iter().find(|census| census.process == process);
        let why = match census {
            Some(Goroutines { missing: Some(why), .. }) => why,
            Some(census) => return Ok(Some(census)),
            None => {
                format!("not finished within {DEADLINE:?}: the process, or the file system of its program, is stuck")
            }
        };
        if attempt == STARTING || !why.contains(NOT_STARTED) {
            bail!("the goroutines of process {} cannot be read: {why}", process.pid);
        }
        attempt += 1;
        if signals.wait_until(Instant::now() + Duration::from_millis(100))?.is_some() {
            return Ok(None);
        }
    }
}

fn print(args: &Args, census: &Goroutines, trends: &[Trend], comm: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match args.output {
        Format::Text => {
            let is_terminal = std::io::stdout().is_terminal();
            let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
            let paint = text::Paint { colour: is_terminal && !no_colour };
            if args.watch && is_terminal {
                write!(out, "\x1b[H\x1b[2J")?;
            }
            write!(out, "{}", to_text(census, trends, comm, args.limit, args.system, paint))?;
            if args.watch && !is_terminal {
                writeln!(out)?;
            }
        }
        Format::Json => {
            let document = to_json(census, trends, comm, &format!("{:.3}", jiff::Timestamp::now()));
            match args.watch {
                true => writeln!(out, "{document}")?,
                false => writeln!(out, "{document:#}")?,
            }
        }
        Format::Folded => write!(out, "{}", to_folded(census, args.system))?,
        Format::Pprof => {
            let now = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0);
            out.write_all(&pprof::of_goroutines(census, args.system, now)?)?;
        }
    }
    out.flush()?;
    Ok(())
}
