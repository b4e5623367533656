//! `observer bench-census`: what one census costs, part by part, for `cargo xtask bench census`.

use super::NOTHING;
use super::look::{CensusChoice, source};
use crate::census::ProbeReading;
use crate::detect::Judge;
use crate::host;
use crate::model::Scope;
use serde_json::json;
use std::io::Write;
use std::time::Instant;

/// Measure censuses of the whole host.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Where the rows come from
    #[arg(long, value_enum, default_value_t = CensusChoice::Auto)]
    source: CensusChoice,
    /// Form of the results
    #[arg(long, default_value = "json")]
    output: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    anyhow::ensure!(args.output == "json", "bench-census prints json only");
    let mut source = source(args.source)?;
    let scope = Scope { threshold_ns: 5_000_000_000, ..Scope::default() };
    let mut judge = Judge::new(scope);
    let mut rounds = Vec::new();
    // The first census grows the buffers and is not counted.
    for round in 0..=args.rounds {
        let began = Instant::now();
        let census = source.take()?;
        let taken = Instant::now();
        let (threads, took, kernel) = (census.rows.len(), census.took_ns, census.kernel_ns);
        judge.advance(census, ProbeReading::default());
        let wants = judge.host.wants(&judge.scope);
        let stacks = judge.host.stack_wants(&judge.scope);
        log::debug!("the stacks of {} threads would be wanted", stacks.len());
        log::debug!("{} threads would be looked at more closely", wants.len());
        let detect = taken.elapsed().as_nanos() as u64;
        if round > 0 {
            rounds.push(json!({
                "threads": threads,
                "kernel_ns": kernel,
                "ingest_ns": took.saturating_sub(kernel),
                "detect_ns": detect,
                "total_ns": began.elapsed().as_nanos() as u64,
            }));
        }
    }
    let (_, rss) = host::own_usage();
    writeln!(std::io::stdout().lock(), "{}", json!({ "rounds": rounds, "rss_bytes": rss }))?;
    Ok(NOTHING)
}
