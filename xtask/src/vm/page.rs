//! `docs/kernel-support.md`, and the same tables on the terminal.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::plan::{FAMILIES, RUNGS};
use super::record::{KernelRecord, Record};
use crate::workspace;

const FILE: &str = "docs/kernel-support.md";

const HEAD: &str = "\
<!-- Written by `cargo xtask vm --kernel all --write` from docs/kernel-support.toml; a test fails when the two differ. -->
# Kernel support

What was found on Debian's kernels, each booted in QEMU with observer's static binary, programs that hang in a known way,
healthy programs, and the end-to-end tests that make sense there (`cargo xtask vm`). Kernels between two of these have what
both have. `observer doctor` says the same of the machine it runs on.

";

const PROBES: &str = "
## Probes

*Taken*: the rung that observer takes by itself. Then each rung asked for alone: **ok** means attached *and* counting the calls
of a program that makes them (for poll, also that a negative timeout is found). tcp_state has two rungs only. **blind**, where it appears: it
attaches and misses calls. On 5.10 a kretprobe has as many instances as the machine has CPUs (one, in the guest), each held by a thread asleep in
the call, so that whether it sees another one differs from run to run.

";

const TESTS: &str = "
## End-to-end tests

The same tests as on the host, in the guest.

";

const VERIFIER: &str = "
## What the verifier pays

Instructions walked through over all paths / states kept, each program loaded by itself with its features on. The kernel gives
up beyond 1,000,000 instructions. `cargo xtask vm` says which program grew by more than a fifth.

";

fn path() -> PathBuf {
    workspace::root().join(FILE)
}

pub(super) fn write(record: &Record) -> Result<()> {
    std::fs::write(path(), page(record)).with_context(|| format!("cannot write {FILE}"))?;
    println!("{FILE}: written");
    Ok(())
}

/// The whole page.
fn page(record: &Record) -> String {
    let kernels: Vec<&KernelRecord> = record.kernel.iter().collect();
    HEAD.to_owned() + &tables(&kernels)
}

/// All tables, a column for each kernel.
pub(super) fn tables(kernels: &[&KernelRecord]) -> String {
    let mut out = Notes::default();
    table(
        &mut out.text,
        "",
        kernels,
        &mut vec![
            row("kernel", kernels, |kernel| kernel.release.clone()),
            row("census", kernels, |kernel| kernel.census.clone()),
            row("argument registers", kernels, registers),
        ],
    );
    out.text.push_str(PROBES);
    let mut rows: Vec<Vec<String>> = FAMILIES
        .iter()
        .map(|family| row(&format!("{family}: taken"), kernels, |kernel| said(kernel.ladder.get(*family))))
        .collect();
    for rung in RUNGS {
        for family in FAMILIES {
            let outcome =
                |kernel: &KernelRecord| kernel.rungs.get(rung).and_then(|families| families.get(family)).cloned();
            if kernels.iter().any(|kernel| outcome(kernel).is_some()) {
                let mut cells = vec![format!("{family} by {rung}")];
                cells.extend(kernels.iter().map(|kernel| out.outcome(outcome(kernel).as_ref())));
                rows.push(cells);
            }
        }
    }
    table(&mut out.text, "", kernels, &mut rows);
    out.text.push_str(TESTS);
    let tests: BTreeSet<&String> = kernels.iter().flat_map(|kernel| kernel.tests.keys()).collect();
    let mut rows = Vec::new();
    for test in tests {
        let mut cells = vec![test.clone()];
        cells.extend(kernels.iter().map(|kernel| out.outcome(kernel.tests.get(test))));
        rows.push(cells);
    }
    table(&mut out.text, "", kernels, &mut rows);
    let programs: BTreeSet<&String> = kernels.iter().flat_map(|kernel| kernel.programs.keys()).collect();
    if !programs.is_empty() {
        out.text.push_str(VERIFIER);
        let mut rows = Vec::new();
        for name in programs {
            let mut cells = vec![name.clone()];
            cells.extend(kernels.iter().map(|kernel| match kernel.programs.get(name) {
                None => "–".to_owned(),
                Some(program) if program.absent.is_some() => "not there".to_owned(),
                Some(program) if program.is_refused() => out.outcome(program.refused.as_ref()),
                Some(program) => {
                    let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |n| n.to_string());
                    format!("{} / {}", number(program.instructions), number(program.states))
                }
            }));
            rows.push(cells);
        }
        table(&mut out.text, "", kernels, &mut rows);
    }
    out.finish()
}

/// How the census of that kernel comes to argument registers.
fn registers(kernel: &KernelRecord) -> String {
    let loads =
        |name: &str| kernel.programs.get(name).is_some_and(|program| !program.is_refused() && program.absent.is_none());
    match (loads("census"), loads("census_by_stack")) {
        (true, _) => "bpf_task_pt_regs",
        (false, true) => "from the kernel stack",
        (false, false) => "–",
    }
    .to_owned()
}

/// Text, and what does not fit in its cells.
#[derive(Default)]
struct Notes {
    text: String,
    notes: Vec<String>,
}

impl Notes {
    /// `ok`, or a word and the number of a note below the tables.
    fn outcome(&mut self, outcome: Option<&String>) -> String {
        let Some(outcome) = outcome else { return "–".to_owned() };
        let (word, note) = match outcome.split_once(": ") {
            None => return outcome.clone(),
            Some((word @ ("skipped" | "blind"), why)) => (word, why),
            Some(_) => ("refused", outcome.as_str()),
        };
        let at = self.notes.iter().position(|known| known == note).unwrap_or_else(|| {
            self.notes.push(note.to_owned());
            self.notes.len() - 1
        });
        format!("{word} ({})", at + 1)
    }

    fn finish(self) -> String {
        let Self { mut text, notes } = self;
        if !notes.is_empty() {
            text.push_str("\n## Why\n\n");
        }
        for (at, note) in notes.iter().enumerate() {
            let _ = writeln!(text, "{}. {}", at + 1, note.replace('|', "¦").replace('<', "&lt;"));
        }
        text
    }
}

fn said(value: Option<&String>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.split(':').next().unwrap_or_default().to_owned())
}

fn row(name: &str, kernels: &[&KernelRecord], cell: impl Fn(&KernelRecord) -> String) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(kernels.iter().map(|kernel| cell(kernel))).collect()
}

/// A table of Markdown whose columns are aligned, so that it can be read on a terminal, too.
fn table(out: &mut String, corner: &str, kernels: &[&KernelRecord], rows: &mut Vec<Vec<String>>) {
    rows.insert(0, row(corner, kernels, |kernel| kernel.version.clone()));
    let columns = kernels.len() + 1;
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for (at, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(out, "| {cell:width$} ");
        }
        out.push_str("|\n");
        if at == 0 {
            widths.iter().for_each(|width| {
                let _ = write!(out, "|{}", "-".repeat(width + 2));
            });
            out.push_str("|\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_fits_the_record() -> Result<()> {
        let committed = std::fs::read_to_string(path())?;
        assert_eq!(committed, page(&Record::read()?), "{FILE} is stale: cargo xtask vm --page");
        Ok(())
    }

    #[test]
    fn reasons_become_notes_told_once() {
        let mut notes = Notes::default();
        let why = "fentry: not supported".to_owned();
        assert_eq!(notes.outcome(Some(&why)), "refused (1)");
        assert_eq!(notes.outcome(Some(&"skipped: no gdb".to_owned())), "skipped (2)");
        assert_eq!(notes.outcome(Some(&why)), "refused (1)");
        assert_eq!((notes.outcome(Some(&"ok".to_owned())), notes.outcome(None)), ("ok".to_owned(), "–".to_owned()));
        assert_eq!(notes.finish(), "\n## Why\n\n1. fentry: not supported\n2. no gdb\n");
    }
}
