//! The kernel programs, each loaded by itself: what `cargo xtask vm` asks of every kernel of its matrix.

use anyhow::{Context, Result, ensure};
use observer_tests::observer::Observer;
use serde_json::Value;

#[test]
fn each_program_loads_or_says_why_not() -> Result<()> {
    let run = Observer::new(&["bench-programs"])?.run()?;
    let (tried, loads): (Vec<&str>, Vec<&str>) = run.stdout.lines().partition(|line| line.starts_with("# "));
    let loads: Vec<Value> = loads.into_iter().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(!tried.is_empty() && tried.len() == loads.len(), "{run:#?}");
    for (name, load) in tried.iter().zip(&loads) {
        ensure!(load["program"] == name[2..], "{name}: {load}");
        match load["refused"].as_str().or(load["absent"].as_str()) {
            // Since 5.16 the kernel says how many instructions its verifier walked through.
            None => ensure!(load["instructions"].is_null() || load["instructions"].as_u64() > Some(1), "{load}"),
            Some(why) => ensure!(!why.is_empty() && load["instructions"].is_null(), "{load}"),
        }
    }
    let census = loads.iter().find(|load| load["program"] == "census").context("no census")?;
    ensure!(census["section"] == "iter/task", "{census}");
    let all = loads.iter().all(|load| load["refused"].is_null());
    ensure!(run.code == Some(if all { 0 } else { 2 }), "{run:#?}");
    Ok(())
}
