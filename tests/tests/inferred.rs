//! Holders of locks that do not record one, inferred from references in live frames.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::Recipe;
use observer_tests::deadline::wait_for_age;
use observer_tests::guard::Guard;
use observer_tests::observer::Observer;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const BUILDS: [Recipe; 3] = [
    rust("rust_debug", &["rustc", "--edition", "2024"]),
    rust("rust_release", &["rustc", "--edition", "2024", "-O"]),
    rust("rust_v0", &["rustc", "--edition", "2024", "-O", "-Cdebuginfo=2", "-Csymbol-mangling-version=v0"]),
];

const fn rust(program: &'static str, command: &'static [&'static str]) -> Recipe {
    Recipe { program, source: "deadlock_rust.rs", command }
}

#[test]
fn two_threads_of_rust_with_locks_in_opposite_order() -> Result<()> {
    for (build, locks) in BUILDS.iter().flat_map(|build| ["std", "rwlock"].map(|locks| (build, locks))) {
        let what = format!("{} {locks}", build.program);
        let mut command = Command::new(build.build()?);
        command.arg(locks);
        let mut guard = Guard::start(command, Stdio::null())?;
        let ready = guard.line(Duration::from_secs(20))?.with_context(|| what.clone())?;
        let addresses: Vec<&str> = ready.split_whitespace().skip(1).collect();
        wait_for_age(Instant::now(), Duration::from_secs(2))?;
        let report = Observer::attach(&[guard.pid()], &["--once", "--output", "json"])?.run()?.report()?;
        let all: Vec<_> = report.findings().collect();
        let [finding] = all.as_slice() else { anyhow::bail!("{what}: {all:#?}") };
        ensure!(finding.kind() == "deadlock" && finding.0["evidence"]["cycle"] == 2, "{what}: {:#}", finding.0);
        // main made the locks: whether it still has a reference in a frame is the compiler's choice.
        ensure!(finding.0["confidence"] != "certain", "{what}: {:#}", finding.0);
        let chain = finding.0["chain"].as_array().context("chain")?;
        ensure!(chain.len() == 2, "{what}: {chain:#?}");
        for link in chain {
            let lock = &link["waits_for"]["address"];
            ensure!(addresses.iter().any(|address| lock == address), "{what}: {lock} is not in {ready}");
            ensure!(link["from"]["tid"] != link["held_by"]["tid"], "{what}: {link}");
        }
        let names: Vec<&str> = finding.0["stacks"][0]["frames"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|frame| frame["function"].as_str())
            .collect();
        ensure!(names.iter().any(|name| name.contains("transfer")), "{what}: {names:?}");
    }
    Ok(())
}
