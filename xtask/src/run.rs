//! `cargo xtask run`: observer on a program that really deadlocks, or with the caller's own arguments.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::setup::{self, Purpose};
use crate::started::Started;
use crate::{ebpf, invoke, workspace};

const VICTIM: &str = "tests/victims/deadlock.c";

/// Builds observer and a victim with two threads that wait for each other's lock, attaches, and prints
/// the report. Succeeds when observer found the deadlock.
pub(crate) fn demonstrate() -> Result<ExitCode> {
    invoke::as_root("observer")?;
    setup::prepare(Purpose::Demonstration)?;
    setup::mount_tracefs();
    let observer = built_observer()?;
    let binary = workspace::compile_c(VICTIM, "victims")?;

    let mut victim = Started::start(&mut Command::new(&binary))?;
    let ready = victim.wait_until_ready(Duration::from_secs(20))?;
    let pid = victim.pid();
    println!("A small program ({VICTIM}) runs as process {pid}.");
    println!("It says of itself:\n{}", truth(&ready));
    println!("observer looks at it from outside:\n");
    println!("$ observer attach {pid} --once --threshold 1s\n");

    let status = invoke::as_root(&observer)?
        .args(["attach", &pid.to_string(), "--once", "--threshold", "1s"])
        .status()
        .with_context(|| format!("cannot start {}", observer.display()))?;
    victim.still_runs().context("the victim must outlive the look at it")?;
    drop(victim);
    match status.code() {
        Some(1) => {
            println!("\nobserver found it (exit status 1 means: at least one finding).");
            println!("Your own process: cargo xtask run -- attach PID --once");
            Ok(ExitCode::SUCCESS)
        }
        Some(0) => {
            eprintln!("xtask: observer found nothing, though the program hangs; see `cargo xtask run -- doctor`");
            Ok(ExitCode::FAILURE)
        }
        _ => {
            eprintln!("xtask: observer could not look ({status}); see `cargo xtask run -- doctor`");
            Ok(ExitCode::from(2))
        }
    }
}

/// The threads of the victim, what each waits for and who holds it, in the victim's own words: what
/// observer has to find out from outside.
fn truth(ready: &serde_json::Value) -> String {
    let threads = ready["threads"].as_array().map(Vec::as_slice).unwrap_or_default();
    let line = |thread: &serde_json::Value| {
        let word = |key: &str| match &thread[key] {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        format!(
            "  thread {} ({}) waits for the {} at {}, which thread {} holds\n",
            word("tid"),
            word("name"),
            word("resource"),
            word("waits_for"),
            word("owner")
        )
    };
    match threads {
        [] => "  my threads wait for each other\n".to_owned(),
        threads => threads.iter().map(line).collect(),
    }
}

/// Builds observer and runs it as root with `arguments`; its exit status is ours.
pub(crate) fn observer(arguments: &[&str]) -> Result<ExitCode> {
    setup::mount_tracefs();
    let observer = built_observer()?;
    let status = invoke::as_root(&observer)?
        .args(arguments)
        .status()
        .with_context(|| format!("cannot start {}", observer.display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(2)))
}

fn built_observer() -> Result<std::path::PathBuf> {
    if workspace::given_observer()?.is_none() {
        ebpf::renew_if_stale()?;
        // The build that the tests use, too: a newcomer waits for one build, not for two.
        eprintln!("xtask: building observer (unoptimised, in minutes; to keep: cargo install --path observer)");
    }
    workspace::quick_observer()
}
