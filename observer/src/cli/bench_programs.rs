//! `observer bench-programs`: each kernel program loaded by itself, for `cargo xtask vm`.

use super::{FAILED, NOTHING};
use crate::census::load_each;
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
        let line = match &load.outcome {
            Ok(instructions) => json!({ "program": load.name, "section": load.section, "instructions": instructions }),
            Err(refused) => json!({ "program": load.name, "section": load.section, "refused": refused }),
        };
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(if loads.iter().all(|load| load.outcome.is_ok()) { NOTHING } else { FAILED })
}
