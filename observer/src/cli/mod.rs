//! The command line: one file per subcommand.

mod attach;
mod bench_census;
mod bench_programs;
mod bench_sockets;
mod bench_stacks;
mod daemon;
mod doctor;
mod generate;
mod goroutines;
mod look;
mod output;
mod replay;
mod signals;
mod timeouts;
mod watch;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Nothing found.
pub const NOTHING: u8 = 0;
/// At least one finding of severity warning or above.
pub const FOUND: u8 = 1;
/// Could not look.
pub const FAILED: u8 = 2;

/// Says which process is hung, since when, on what, and who holds what it waits for: from outside,
/// without stopping or instrumenting it.
#[derive(Debug, Parser)]
#[command(name = "observer", version, propagate_version = true, after_help = EXIT_HELP)]
pub struct Cli {
    /// More of observer's own log on stderr (-v: info, -vv: debug, -vvv: trace)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    #[command(subcommand)]
    command: Command,
}

const EXIT_HELP: &str = "Exit status: 0 nothing found, 1 at least one finding (warning or above), 2 could not look.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Look at one or more processes
    Attach(attach::Args),
    /// Look at the whole host: findings as they open, change, resolve
    Watch(watch::Args),
    /// The service: findings and metrics of this host, until it is told to end
    Daemon(Box<daemon::Args>),
    /// Audit timeouts: every call site of a process that waits, with its limits, the riskiest first
    Timeouts(timeouts::Args),
    /// The goroutines of a Go program, from outside: where they wait, who started them, which groups grow
    Goroutines(goroutines::Args),
    /// Judge a recording again (made with --record)
    Replay(replay::Args),
    /// Can it run here: kernel, BTF, capabilities, the rung of each probe, and what is lost without what
    Doctor(doctor::Args),
    /// Print completions for a shell
    Completions(generate::CompletionsArgs),
    /// Print the manual page (roff)
    Man,
    /// Print `docs/signals.md`: for `cargo xtask signals`
    #[command(hide = true)]
    Signals,
    /// Print the documentation of the daemon's settings: for `cargo xtask configuration`
    #[command(hide = true)]
    Configuration(daemon::ReferenceArgs),
    /// Measure censuses: for `cargo xtask bench census`
    #[command(hide = true)]
    BenchCensus(bench_census::Args),
    /// Measure listings of sockets: for `cargo xtask bench sockets`
    #[command(hide = true)]
    BenchSockets(bench_sockets::Args),
    /// Load each kernel program by itself: for `cargo xtask vm`
    #[command(hide = true)]
    BenchPrograms,
    /// Measure stacks: for `cargo xtask bench stacks`
    #[command(hide = true)]
    BenchStacks(bench_stacks::Args),
}

/// Parses the arguments, runs the command, and answers with the exit status.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(FAILED);
        }
        Err(error) if error.use_stderr() => {
            let asked = std::env::args_os().nth(1).and_then(|name| name.into_string().ok());
            let asked = asked.filter(|name| Cli::command().find_subcommand(name).is_some());
            eprintln!("observer: {}", in_one_line(&error.to_string(), asked.as_deref()));
            return ExitCode::from(FAILED);
        }
        // Help and version are asked for: a reader that has had enough of them is no failure.
        Err(asked) => {
            let _ = asked.print();
            return ExitCode::from(NOTHING);
        }
    };
    set_up_logging(cli.verbose);
    let result = match cli.command {
        Command::Attach(args) => attach::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Daemon(args) => daemon::run(&args),
        Command::Timeouts(args) => timeouts::run(&args),
        Command::Goroutines(args) => goroutines::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man => generate::man(),
        Command::Signals => generate::signals(),
        Command::Configuration(args) => daemon::print_reference(&args),
        Command::BenchCensus(args) => bench_census::run(&args),
        Command::BenchSockets(args) => bench_sockets::run(&args),
        Command::BenchPrograms => bench_programs::run(),
        Command::BenchStacks(args) => bench_stacks::run(&args),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        // Whoever read our output has had enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(NOTHING),
        Err(error) => {
            eprintln!("observer: {}", message(&error));
            ExitCode::from(FAILED)
        }
    }
}

/// What is wrong with the arguments and where to read on, without the usage that clap adds.
fn in_one_line(text: &str, subcommand: Option<&str>) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let what: Vec<&str> =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more")).collect();
    let what = what.join(" ").replace(" tip: ", "; ");
    let page = subcommand.map_or_else(String::new, |name| format!(" {name}"));
    format!("{} (see `observer help{page}`)", what.strip_prefix("error: ").unwrap_or(&what))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

/// An error and its causes, each said once: many messages hold their cause already.
fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    if error.chain().nth(1).is_none() && error.downcast_ref::<std::io::Error>().is_some() {
        // Everything else says what it was doing.
        text.insert_str(0, "cannot write the results: ");
    }
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Logs go to stderr, results to stdout. `OBSERVER_LOG` takes env_logger's filters.
fn set_up_logging(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    // What libraries warn of, observer says in its own words, or counts.
    let filter = if verbose > 2 { level.to_owned() } else { format!("error,observer={level}") };
    let filter = env_logger::Env::new().filter_or("OBSERVER_LOG", filter);
    env_logger::Builder::from_env(filter).target(env_logger::Target::Stderr).init();
}

#[cfg(test)]
mod tests {
    use super::message;
    use crate::recording::RecordingError;

    #[test]
    fn a_cause_is_said_once() {
        let full = || std::io::Error::other("no room");
        let twice = RecordingError::Write { path: "/x".into(), source: full() };
        assert_eq!(message(&twice.into()).matches("no room").count(), 1);
        let outer = anyhow::Error::from(full()).context("cannot block signals");
        assert_eq!(message(&outer), "cannot block signals: no room");
        assert_eq!(message(&full().into()), "cannot write the results: no room");
    }
}
