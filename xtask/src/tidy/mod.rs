//! The rules of this code base that neither rustc nor clippy checks.
//!
//! One file per kind of rule; every rule is a pure function from text to [`Violation`]s, tested with an
//! input it must refuse and one it must accept. This file only walks the checkout.

mod names;
mod rooms;
mod shape;
mod tests_wait;
mod tokens;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{invoke, workspace};

/// One broken rule: where, what, and how to mend it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    path: PathBuf,
    line: usize,
    what: String,
    fix: String,
}

impl Violation {
    fn new(path: &Path, line: usize, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into(), fix: fix.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, what, fix } = self;
        write!(out, "{}:{line}: {what}\n  fix: {fix}", path.display())
    }
}

/// Checks the checkout and prints what is wrong; says whether nothing is.
pub(crate) fn run() -> Result<bool> {
    let root = workspace::root();
    let mut violations = Vec::new();
    let mut generated = Vec::new();
    let mut checked = 0;
    for path in source_files(root)? {
        let text =
            std::fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {}", path.display()))?;
        violations.extend(names::check_path(&path));
        if path.extension().is_some_and(|extension| extension == "toml") {
            violations.extend(shape::check_manifest(&path, &text));
            continue;
        }
        checked += 1;
        if shape::is_generated(&text) {
            generated.push(path);
            continue;
        }
        violations.extend(check_source(&path, &text));
    }
    match tracked_files(root) {
        Some(tracked) => violations.extend(names::check_tracked(&tracked, |path| begins_as_elf(root, path))),
        None => println!("tidy: not a git checkout, so not looked for committed build artefacts"),
    }
    for path in &generated {
        println!("tidy: exempt because generated: {}", path.display());
    }
    for violation in &violations {
        println!("{violation}");
    }
    println!("tidy: {checked} files, {} violations", violations.len());
    Ok(violations.is_empty())
}

/// Every rule about the text of one Rust file.
fn check_source(path: &Path, text: &str) -> Vec<Violation> {
    let mut violations = shape::check_text(path, text);
    match tokens::lex(text) {
        Ok(tokens) => {
            violations.extend(shape::check_attributes(path, &tokens));
            violations.extend(names::check_modules(path, &tokens));
            violations.extend(rooms::check(path, &tokens));
            violations.extend(tests_wait::check(path, &tokens));
        }
        Err((line, reason)) => {
            violations.push(Violation::new(path, line, format!("not Rust: {reason}"), "correct the syntax"))
        }
    }
    violations
}

/// Rust files and crate manifests of the checkout, by path relative to its top.
fn source_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let walk = walkdir::WalkDir::new(root).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| entry.file_name() != "target" && entry.file_name() != ".git") {
        let entry = entry.context("cannot walk the checkout")?;
        let is_rust = entry.path().extension().is_some_and(|extension| extension == "rs");
        if entry.file_type().is_file() && (is_rust || entry.file_name() == "Cargo.toml") {
            files.push(entry.path().strip_prefix(root)?.to_owned());
        }
    }
    Ok(files)
}

/// What git tracks, or `None` when this is no git checkout.
fn tracked_files(root: &Path) -> Option<Vec<PathBuf>> {
    let mut git = Command::new("git");
    let listed = invoke::capture(git.current_dir(root).args(["ls-files", "-z"])).ok()?;
    Some(listed.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect())
}

fn begins_as_elf(root: &Path, path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    std::fs::File::open(root.join(path)).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
        && magic == *b"\x7fELF"
}

/// Lines that a check of tokens complains about, for the tests of such checks.
#[cfg(test)]
fn lines_of(check: fn(&Path, &[tokens::Token]) -> Vec<Violation>, path: &str, source: &str) -> Vec<usize> {
    let tokens = tokens::lex(source).unwrap_or_default();
    check(Path::new(path), &tokens).iter().map(|violation| violation.line).collect()
}

/// No complaint.
#[cfg(test)]
const NONE: [usize; 0] = [];
