//! `docs/kernel-support.toml`: what was found on each kernel, and what the verifier paid.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::workspace;

const FILE: &str = "docs/kernel-support.toml";

const HEAD: &str = "# Written by `cargo xtask vm --kernel all --write`; docs/kernel-support.md is made from it.\n\n";

/// Growth of a program's cost that is worth a line, percent.
const WORTH_A_LINE: u64 = 20;

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Oldest first.
    #[serde(default)]
    pub(super) kernel: Vec<KernelRecord>,
}

/// One kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KernelRecord {
    /// Major and minor version.
    pub(super) version: String,
    /// What `uname -r` says.
    pub(super) release: String,
    /// The source of the census.
    pub(super) census: String,
    /// For each family of probes: the rung that observer takes by itself.
    pub(super) ladder: BTreeMap<String, String>,
    /// For each rung, asked for alone, and each family: `ok`, or what is wrong.
    pub(super) rungs: BTreeMap<String, BTreeMap<String, String>>,
    /// For each end-to-end test: `ok`, `skipped: why`, `failed`.
    pub(super) tests: BTreeMap<String, String>,
    /// Each program of the kernel object.
    pub(super) programs: BTreeMap<String, Program>,
}

/// One program, loaded by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Program {
    /// Instructions the verifier walked through, all paths together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) instructions: Option<u64>,
    /// States it kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) states: Option<u64>,
    /// What the kernel has not that the program hooks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) absent: Option<String>,
    /// Why the kernel does not take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refused: Option<String>,
}

impl Program {
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }
}

impl Record {
    fn path() -> PathBuf {
        workspace::root().join(FILE)
    }

    /// What is committed; empty where there is no file yet.
    pub(super) fn read() -> Result<Self> {
        match std::fs::read_to_string(Self::path()) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("{FILE}: write it anew with --write")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {FILE}")),
        }
    }

    pub(super) fn write(&self) -> Result<()> {
        let text = toml::to_string(self).context("cannot write the record as TOML")?;
        std::fs::write(Self::path(), HEAD.to_owned() + &text).with_context(|| format!("cannot write {FILE}"))?;
        println!("{FILE}: written");
        Ok(())
    }

    pub(super) fn of(&self, version: &str) -> Option<&KernelRecord> {
        self.kernel.iter().find(|kernel| kernel.version == version)
    }

    /// In place of what was known of that kernel.
    pub(super) fn put(&mut self, new: KernelRecord) {
        self.kernel.retain(|kernel| kernel.version != new.version);
        self.kernel.push(new);
        let numbers = |version: &str| version.split('.').filter_map(|n| n.parse().ok()).collect::<Vec<u32>>();
        self.kernel.sort_by_key(|kernel| numbers(&kernel.version));
    }
}

impl KernelRecord {
    /// Programs that cost the verifier over a fifth more than recorded, one line each.
    pub(super) fn dearer(&self, recorded: &Record) -> Vec<String> {
        let Some(before) = recorded.of(&self.version) else { return Vec::new() };
        let grown = |name: &str, what: &str, now: Option<u64>, then: Option<u64>| {
            let (now, then) = (now?, then?);
            (now * 100 > then * (100 + WORTH_A_LINE)).then(|| {
                format!("{name} on {}: {then} {what} became {now} (+{} %)", self.version, now * 100 / then.max(1) - 100)
            })
        };
        let programs = self.programs.iter().filter_map(|(name, now)| Some((name, now, before.programs.get(name)?)));
        programs
            .flat_map(|(name, now, then)| {
                [
                    grown(name, "instructions", now.instructions, then.instructions),
                    grown(name, "states", now.states, then.states),
                ]
            })
            .flatten()
            .collect()
    }

    /// Tests that did not run there, with their reasons.
    pub(super) fn skipped(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tests.iter().filter_map(|(test, outcome)| Some((test.as_str(), outcome.strip_prefix("skipped: ")?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(version: &str, instructions: u64) -> KernelRecord {
        let program = Program { instructions: Some(instructions), states: Some(10), ..Program::default() };
        KernelRecord {
            version: version.to_owned(),
            programs: BTreeMap::from([("census".to_owned(), program)]),
            ..KernelRecord::default()
        }
    }

    #[test]
    fn a_fifth_more_is_said_and_less_is_not() {
        let mut recorded = Record::default();
        recorded.put(kernel("6.12", 1000));
        recorded.put(kernel("6.1", 1000));
        assert_eq!(recorded.kernel[0].version, "6.1");
        assert_eq!(kernel("6.1", 1200).dearer(&recorded), Vec::<String>::new());
        assert_eq!(kernel("6.1", 1500).dearer(&recorded), ["census on 6.1: 1000 instructions became 1500 (+50 %)"]);
        assert_eq!(kernel("5.10", 1500).dearer(&recorded), Vec::<String>::new());
    }

    #[test]
    fn what_is_written_is_read_again() -> Result<()> {
        let mut record = Record::default();
        record.put(kernel("6.1", 7));
        assert_eq!(toml::from_str::<Record>(&toml::to_string(&record)?)?, record);
        Ok(())
    }
}
