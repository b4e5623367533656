//! `observer replay FILE`

use super::output::{Format, Output};
use super::{FOUND, NOTHING};
use crate::detect::Judge;
use crate::host::clock::whole_ns;
use crate::recording::{Recording, RecordingError};
use crate::report::{Account, Setting};
use std::path::PathBuf;
use std::time::Duration;

/// Judge a recording again, without root and without the processes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The recording
    file: PathBuf,
    /// Another threshold than the one in force when it was made
    #[arg(long, value_name = "DURATION", value_parser = super::look::duration)]
    threshold: Option<Duration>,
    /// In text, the stack of every thread of the processes shown, not only of those that matter
    #[arg(long)]
    stacks: bool,
    /// Form of the results
    #[arg(long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

pub(super) fn run(args: &Args) -> anyhow::Result<u8> {
    let mut recording = Recording::open(&args.file)?;
    let mut scope = recording.header.scope();
    if let Some(threshold) = args.threshold {
        scope.threshold_ns = whole_ns(threshold);
    }
    let mut judge = Judge::new(scope);
    let mut account = Account::default();
    let mut output = Output::new(args.output, false, args.stacks);
    loop {
        let observation = match recording.next_observation() {
            Ok(Some(observation)) => observation,
            Ok(None) => break,
            // What came before the damage still counts, and the damage is said.
            Err(error @ RecordingError::Damaged { .. }) if account.censuses > 0 => {
                eprintln!("observer: {error}; judged the {} observations before it", account.censuses);
                *account.facts_lost.entry("damaged_lines".to_owned()).or_default() += 1;
                break;
            }
            Err(error) => return Err(error.into()),
        };
        account.note_census(&observation.census);
        account.lose_facts(&observation.facts.lost);
        let turn = judge.advance(observation.census, observation.probes);
        account.note_probes(judge.host.probes().account(), judge.host.probes().forgotten());
        // The stacks of a finding come with the facts behind the census that opened it.
        judge.learn(observation.facts);
        output.changes(&judge.host, &turn.changes)?;
    }
    anyhow::ensure!(account.censuses > 0, "{} holds no observation: nothing to judge", args.file.display());
    let header = &recording.header;
    let setting = Setting {
        host_name: header.host_name.clone(),
        kernel: header.kernel.clone(),
        boot_id: header.boot_id.clone(),
        census: format!("recording of {}", header.census),
        probes: header.probes.clone(),
        descriptors: None,
    };
    let findings = judge.ledger.open();
    let pids = super::look::shown(&judge, &findings);
    output.report(&setting, &judge, &pids, &findings, &account)?;
    Ok(if output.found() { FOUND } else { NOTHING })
}

#[cfg(test)]
mod tests;
