//! Flags over environment over file over defaults, and what to say when one of them is wrong.

use super::keys::{Keys, Wrong, needs_restart};
use super::values::SILENCE_KEYS;
use crate::settings::{Otlp, Settings};
use clap::{Args as _, FromArgMatches as _};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// What environment variables of the keys begin with.
const PREFIX: &str = "OBSERVER_";
/// Variables of that prefix that are no keys.
const OTHERS: [&str; 4] = ["OBSERVER_CONFIG", "OBSERVER_LOG", "OBSERVER_BIN", "OBSERVER_CHECK"];
/// Longest file that is read.
const LONGEST: u64 = 1024 * 1024;

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("cannot read {path}: {source}; give the path of a TOML file to --config")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a regular file; give the path of a TOML file to --config")]
    NotAFile { path: PathBuf },
    #[error("{path} is longer than {LONGEST} bytes: no configuration of observer")]
    TooLong { path: PathBuf },
    #[error("{path}:{line}: {why}")]
    File { path: PathBuf, line: usize, why: String },
    #[error("{name}: {why}")]
    Variable { name: String, why: String },
    #[error("{origin}: {why}")]
    Value { origin: String, why: String },
}

/// The nearest of some names, as the end of a message.
pub(super) fn did_you_mean(name: &str, names: &[&str]) -> Option<String> {
    let nearness = |known: &&str| strsim::jaro_winkler(name, known);
    let nearest = names.iter().max_by(|a, b| nearness(a).total_cmp(&nearness(b)))?;
    (nearness(nearest) > 0.8).then(|| format!("; did you mean `{nearest}`?"))
}

/// The keys as arguments of a command: their names, help and parsers.
pub(super) fn command() -> clap::Command {
    Keys::augment_args(clap::Command::new("keys").no_binary_name(true))
}

/// The names of all keys, in order.
pub(super) fn names() -> Vec<String> {
    command().get_arguments().filter_map(|argument| argument.get_long().map(str::to_owned)).collect()
}

/// `otlp-endpoint` is `OBSERVER_OTLP_ENDPOINT`.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('-', "_"))
}

/// Where the settings come from; kept, so that they can be loaded again.
pub(super) struct Sources {
    /// The file.
    pub file: Option<PathBuf>,
    /// Environment variables.
    pub variables: BTreeMap<String, String>,
    /// Flags.
    pub flags: Keys,
    /// What the standard `OTEL_…` variables say.
    pub standard: Option<Otlp>,
}

impl Sources {
    /// The settings now.
    pub(super) fn load(&self) -> Result<Settings, LoadError> {
        let mut merged = toml::Table::new();
        let mut origins: BTreeMap<String, String> = BTreeMap::new();
        let mut lay = |layer: &Keys, origin: &dyn Fn(&str) -> String| {
            for (key, value) in table(layer) {
                origins.insert(key.clone(), origin(&key));
                merged.insert(key, value);
            }
        };
        if let Some(path) = &self.file {
            let text = read(path)?;
            let (keys, lines) =
                parse(&text).map_err(|(line, why)| LoadError::File { path: path.clone(), line, why })?;
            lay(&keys, &|key| format!("{}:{}: {key}", path.display(), lines.get(key).copied().unwrap_or(1)));
        }
        lay(&from_variables(&self.variables)?, &variable);
        lay(&self.flags, &|key| format!("--{key}"));
        let keys: Keys = merged.try_into().map_err(|error: toml::de::Error| LoadError::Value {
            origin: "settings".to_owned(),
            why: error.message().to_owned(),
        })?;
        keys.settings(self.standard.clone()).map_err(|Wrong { key, why }| LoadError::Value {
            origin: origins.get(key).cloned().unwrap_or_else(|| key.to_owned()),
            why,
        })
    }
}

/// What is there, by key.
fn table(keys: &Keys) -> toml::Table {
    // Keys hold nothing that TOML cannot.
    toml::Table::try_from(keys).unwrap_or_default()
}

/// Every key with its effective value, as a file that makes the same settings again (less the secrets).
pub(super) fn show(settings: &Settings) -> String {
    let table = table(&Keys::of(settings).redacted());
    let mut text = String::new();
    for key in names() {
        match table.get(&key) {
            Some(value) => text.push_str(&format!("{key} = {value}\n")),
            None => text.push_str(&format!("# {key} is not set\n")),
        }
    }
    text
}

/// New settings with the old values of what needs a restart, and the keys that do.
pub(super) fn without_restart(old: &Settings, new: Settings) -> (Settings, Vec<String>) {
    let (before, after) = (table(&Keys::of(old)), table(&Keys::of(&new)));
    let differs = |key: &String| needs_restart(key) && before.get(key) != after.get(key);
    let keys: Vec<String> = names().into_iter().filter(differs).collect();
    let Settings { threshold, interval, cpu_budget, metrics_interval, top_processes, only, silences, .. } = new;
    let kept =
        Settings { threshold, interval, cpu_budget, metrics_interval, top_processes, only, silences, ..old.clone() };
    (kept, keys)
}

fn read(path: &Path) -> Result<String, LoadError> {
    let fail = |source| LoadError::Read { path: path.to_owned(), source };
    let meta = std::fs::metadata(path).map_err(fail)?;
    if !meta.is_file() {
        return Err(LoadError::NotAFile { path: path.to_owned() });
    }
    if meta.len() > LONGEST {
        return Err(LoadError::TooLong { path: path.to_owned() });
    }
    std::fs::read_to_string(path).map_err(fail)
}

/// The keys of a file and the line of each; or the line that is wrong, and why.
fn parse(text: &str) -> Result<(Keys, BTreeMap<String, usize>), (usize, String)> {
    let line = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
    let syntax = |error: toml::de::Error| (line(error.span().map_or(0, |span| span.start)), one_line(error.message()));
    let table = DeTable::parse(text).map_err(syntax)?;
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (key, value) in table.get_ref() {
        check_name(key.get_ref(), &names).map_err(|why| (line(key.span().start), why))?;
        if key.get_ref() == "silence" {
            let tables = value.get_ref().as_array().into_iter().flatten().filter_map(|one| one.get_ref().as_table());
            for key in tables.flat_map(|table| table.keys()) {
                check_name(key.get_ref(), &SILENCE_KEYS).map_err(|why| (line(key.span().start), why))?;
            }
        }
    }
    // Before types are looked at: an error knows where it is, not which key it is about.
    let key_at = |at: usize| {
        let holds = |value: &toml::Spanned<DeValue<'_>>| value.span().contains(&at) || value.span().start == at;
        table.get_ref().iter().find(|(_, value)| holds(value)).map(|(key, _)| key.get_ref().to_string())
    };
    let keys = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let why = one_line(error.message());
        (line(at), key_at(at).map_or(why.clone(), |key| format!("{key}: {why}")))
    })?;
    let lines = table.get_ref().keys().map(|key| (key.get_ref().to_string(), line(key.span().start))).collect();
    Ok((keys, lines))
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(", ")
}

fn check_name(name: &str, known: &[&str]) -> Result<(), String> {
    if known.contains(&name) {
        return Ok(());
    }
    let kebab = name.replace('_', "-");
    let hint = did_you_mean(&kebab, known)
        .unwrap_or_else(|| "; `observer help daemon` and docs/configuration.md list the keys".to_owned());
    Err(format!("unknown key `{name}`{hint}"))
}

/// The keys that environment variables give. An empty variable is none.
fn from_variables(variables: &BTreeMap<String, String>) -> Result<Keys, LoadError> {
    let command = command();
    let mut arguments = Vec::new();
    for key in names() {
        let name = variable(&key);
        let Some(value) = variables.get(&name).filter(|value| !value.is_empty()) else { continue };
        let argument = format!("--{key}={value}");
        // One at a time, so that the message can name the variable.
        command
            .clone()
            .try_get_matches_from([&argument])
            .map_err(|error| LoadError::Variable { name, why: why(&error) })?;
        arguments.push(argument);
    }
    let matches = command.try_get_matches_from(arguments);
    matches
        .and_then(|matches| Keys::from_arg_matches(&matches))
        .map_err(|error| LoadError::Variable { name: "environment".to_owned(), why: why(&error) })
}

/// Variables that look like keys and are none. Not refused: others may give theirs the same prefix, and Kubernetes does so for
/// a service called `observer`.
pub(super) fn misspelt(variables: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let known: Vec<String> = names().iter().map(|key| variable(key)).collect();
    let strange = variables.keys().filter(|name| name.starts_with(PREFIX) && !OTHERS.contains(&name.as_str()));
    let near = strange.filter(|name| !known.contains(name)).filter_map(|name| {
        let near = known.iter().find(|known| strsim::damerau_levenshtein(name, known) <= 2)?;
        Some((name.clone(), near.clone()))
    });
    near.collect()
}

/// What clap says of a value, less the flag that nobody typed.
fn why(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("For more"));
    let text = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests;
