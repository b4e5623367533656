//! `observer bench-stacks PID`: what the stacks of one process cost, cold and warm, for `cargo xtask bench stacks`.

use super::NOTHING;
use super::look::{CensusChoice, source};
use crate::census::{Pid, ThreadRow};
use crate::explain::{ExplainSettings, Explainer};
use crate::host;
use crate::model;
use crate::proc::{StackFact, StackWant};
use serde_json::json;
use std::io::Write;
use std::time::{Duration, Instant};

/// Longest time one round may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Measure the stacks of one process.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Whose
    pid: Pid,
    /// How many rounds after the first (cold) one
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Where the rows come from
    #[arg(long, value_enum, default_value_t = CensusChoice::Auto)]
    source: CensusChoice,
    /// Print the stacks of the last round as well
    #[arg(long)]
    show: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let mut source = source(args.source)?;
    let mut explainer = Explainer::new(ExplainSettings::default());
    let mut rounds = Vec::new();
    let mut last = Vec::new();
    for _ in 0..=args.rounds {
        let census = source.take()?;
        let wants: Vec<StackWant> =
            census.rows.iter().filter(|row| row.process.pid == args.pid && row.is_blocked()).filter_map(want).collect();
        anyhow::ensure!(!wants.is_empty(), "process {} has no blocked thread", args.pid);
        let began = Instant::now();
        let explained = explainer.stacks(&wants, LIMIT);
        let total_ns = began.elapsed().as_nanos() as u64;
        let complete = explained.stacks.iter().filter(|fact| fact.stack.is_complete()).count();
        rounds.push(json!({
            "threads": wants.len(),
            "stacks": explained.stacks.len(),
            "complete": complete,
            "frames": explained.stacks.iter().map(|fact| fact.stack.frames.len()).sum::<usize>(),
            "named": explained.stacks.iter().flat_map(|f| &f.stack.frames).filter(|f| f.function.is_some()).count(),
            "walk_ns": explained.walk_ns,
            "total_ns": total_ns,
            "lost": explained.lost,
        }));
        last = explained.stacks;
    }
    let (_, rss) = host::own_usage();
    let mut out = std::io::stdout().lock();
    if args.show {
        last.iter().try_for_each(|fact| show(&mut out, fact))?;
    }
    writeln!(out, "{}", json!({ "rounds": rounds, "rss_bytes": rss }))?;
    Ok(NOTHING)
}

fn want(row: &ThreadRow) -> Option<StackWant> {
    let registers = row.registers?;
    Some(StackWant {
        process: row.process,
        tid: row.tid,
        switches: model::switches(row),
        registers,
        sought: Vec::new(),
    })
}

fn show(out: &mut impl Write, fact: &StackFact) -> std::io::Result<()> {
    writeln!(out, "thread {}: {:?}", fact.tid, fact.stack.end)?;
    fact.stack.frames.iter().try_for_each(|frame| writeln!(out, "  {:?}", frame))
}
