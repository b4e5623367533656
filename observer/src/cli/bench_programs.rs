//! `observer bench-programs`: each kernel program loaded by itself, for `cargo xtask vm`.

use super::{FAILED, NOTHING};
use crate::census::{LoadOutcome, load_each};
use serde_json::json;
use std::io::Write;

/// Loads each kernel program by itself, a line of JSON for each. A line `# NAME` comes before each try, so that
/// whoever watches our system calls knows whose they are. Exit status 2: some are refused.
pub(super) fn run() -> anyhow::Result<u8> {
    let mut out = std::io::stdout().lock();
    let mut announced = Ok(());
    let loads = load_each(|name| {
        if announced.is_ok() {
            announced = writeln!(out, "# {name}").and_then(|()| out.flush());
        }
    })?;
    announced?;
    for load in &loads {
        let (key, value) = match &load.outcome {
            LoadOutcome::Loaded(instructions) => ("instructions", json!(instructions)),
            LoadOutcome::Absent(what) => ("absent", json!(what)),
            LoadOutcome::Refused(why) => ("refused", json!(why)),
        };
        let line = json!({ "program": load.name, "section": load.section, key: value });
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(if loads.iter().any(|load| matches!(load.outcome, LoadOutcome::Refused(_))) { FAILED } else { NOTHING })
}
