//! `cargo xtask signals`: the page of signals, made by observer from its own tables.

use anyhow::{Context, Result};

use crate::{invoke, workspace};

const PAGE: &str = "docs/signals.md";

/// Writes the page anew.
pub(crate) fn run() -> Result<()> {
    let page = invoke::capture(&mut workspace::cargo(&["run", "--quiet", "--package", "observer", "--", "signals"]))?;
    std::fs::write(workspace::root().join(PAGE), page).with_context(|| format!("cannot write {PAGE}"))?;
    println!("{PAGE}: written");
    Ok(())
}
