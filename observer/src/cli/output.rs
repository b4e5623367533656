//! Where results go and in which form.

use crate::detect::{Change, Judge, Life, Severity};
use crate::model::Host;
use crate::report::{Account, Setting, json, lately, processes, text};
use clap::ValueEnum;
use std::io::{IsTerminal, Write};

/// Form of the results on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Text,
    /// One document (observer.report/v1) at the end
    Json,
    /// One finding (observer.finding/v1) a line, each time one opens, worsens or resolves
    Ndjson,
}

/// Writes results, and remembers whether there was something to report.
pub(super) struct Output {
    format: Format,
    paint: text::Paint,
    live: bool,
    stacks: text::Stacks,
    found: bool,
}

impl Output {
    /// `live`: text findings are printed as they come, not with the report. `all_stacks`: of every thread shown.
    pub(super) fn new(format: Format, live: bool, all_stacks: bool) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = std::io::stdout().is_terminal() && !no_colour && !dumb;
        let stacks = if all_stacks { text::Stacks::All } else { text::Stacks::Listed };
        Self { format, paint: text::Paint { colour }, live, stacks, found: false }
    }

    /// Whether findings of severity warning or above have been seen.
    pub(super) fn found(&self) -> bool {
        self.found
    }

    /// Forgets what was found and is over: one look answers for what it shows.
    pub(super) fn settle(&mut self, findings: &[&Life]) {
        self.found = findings.iter().any(|life| life.finding.severity >= Severity::Warning);
    }

    /// What a census changed.
    pub(super) fn changes(&mut self, host: &Host, changes: &[(Change, Life)]) -> anyhow::Result<()> {
        self.found |= changes.iter().any(|(_, life)| life.finding.severity >= Severity::Warning);
        let mut out = std::io::stdout().lock();
        for (change, life) in changes {
            match self.format {
                Format::Ndjson => writeln!(out, "{}", json::finding(host, life))?,
                Format::Text if self.live => writeln!(out, "{}", text::change(host, *change, life, self.paint))?,
                Format::Text | Format::Json => {}
            }
        }
        out.flush()?;
        Ok(())
    }

    /// The processes as they are now, at the start of a live look.
    pub(super) fn overview(&self, judge: &Judge, pids: &[u32]) -> anyhow::Result<()> {
        if self.format == Format::Text && self.live {
            let mut out = std::io::stdout().lock();
            let (host, graph) = (&judge.host, &judge.graph);
            for view in processes(judge, pids.iter().copied()) {
                write!(
                    out,
                    "{}",
                    text::process(host, graph, &view, &Default::default(), text::Stacks::None, self.paint)
                )?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    /// The report at the end.
    pub(super) fn report(
        &self,
        setting: &Setting,
        judge: &Judge,
        pids: &[u32],
        findings: &[&Life],
        account: &Account,
    ) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let host = &judge.host;
        let views = processes(judge, pids.iter().copied());
        match self.format {
            Format::Ndjson => {}
            Format::Json => {
                serde_json::to_writer_pretty(
                    &mut out,
                    &json::report(setting, (host, &judge.graph), &views, findings, account),
                )
                .map_err(std::io::Error::from)?;
                writeln!(out)?;
            }
            Format::Text if self.live => {
                for view in &views {
                    write!(out, "{}", lately::to_text(host, view.id.pid))?;
                }
                write!(out, "{}", text::footer(setting, account))?;
            }
            Format::Text => write!(
                out,
                "{}",
                text::report(setting, (host, &judge.graph), &views, findings, account, self.stacks, self.paint)
            )?,
        }
        out.flush()?;
        Ok(())
    }
}
