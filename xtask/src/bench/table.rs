//! Medians, Markdown tables, and their place in docs/overhead.md.

use std::fmt::Write;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{invoke, workspace};

const DOCUMENT: &str = "docs/overhead.md";

/// The middle value, or the mean of the two middle ones; `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Half the distance between the quartiles, as a share of the median: how much rounds differed.
pub(crate) fn spread(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = median(&sorted).filter(|middle| *middle > 0.0)?;
    let last = sorted.len() - 1;
    Some((sorted[last * 3 / 4] - sorted[last / 4]) / 2.0 / middle)
}

/// A Markdown table: first column left, the others right.
pub(crate) fn markdown(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = format!("| {} |\n|---|{}\n", header.join(" | "), "---:|".repeat(header.len() - 1));
    for row in rows {
        let _ = writeln!(table, "| {} |", row.join(" | "));
    }
    table
}

/// When, where and how a table was made.
pub(crate) fn provenance(command: &str) -> Result<String> {
    let date = invoke::capture(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let fields = |name: &str| {
        let name = name.to_owned();
        cpuinfo.lines().filter_map(move |line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let cpus = fields("processor").count();
    let model = fields("model name").next().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    Ok(format!("{}, Linux {}, {cpus} CPUs ({model}): `{command}`", date.trim(), kernel.trim()))
}

/// Puts `table` between the markers of `bench` in docs/overhead.md.
pub(crate) fn write(bench: &str, table: &str) -> Result<()> {
    let path = workspace::root().join(DOCUMENT);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {DOCUMENT}"))?;
    std::fs::write(&path, replaced(&text, bench, table)?).with_context(|| format!("cannot write {DOCUMENT}"))?;
    println!("written to {DOCUMENT}");
    Ok(())
}

fn replaced(text: &str, bench: &str, table: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- bench {bench} begin -->"), format!("<!-- bench {bench} end -->"));
    let from = text.find(&begin).map(|at| at + begin.len());
    let to = text.find(&end);
    let (Some(from), Some(to)) = (from, to) else {
        anyhow::bail!("{DOCUMENT} lacks the lines {begin} and {end}: restore them");
    };
    ensure!(from <= to, "{DOCUMENT} has {end} before {begin}");
    Ok(format!("{}\n{}\n{}", &text[..from], table.trim_end(), &text[to..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 100.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
    }

    #[test]
    fn spread_ignores_outliers() {
        assert_eq!(spread(&[10.0, 10.0, 10.0, 10.0, 500.0]), Some(0.0));
        assert_eq!(spread(&[8.0, 9.0, 10.0, 11.0, 12.0]), Some(0.1));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn a_table_replaces_the_one_between_its_markers_only() -> Result<()> {
        let text = "a\n<!-- bench tax begin -->\nold\n<!-- bench tax end -->\nb\n";
        let expected = "a\n<!-- bench tax begin -->\nnew\n<!-- bench tax end -->\nb\n";
        assert_eq!(replaced(text, "tax", "new\n")?, expected);
        assert_eq!(replaced(expected, "tax", "new\n")?, expected);
        assert!(replaced(text, "census", "new").is_err());
        Ok(())
    }
}
