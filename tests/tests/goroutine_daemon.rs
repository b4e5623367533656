//! `observer daemon`, which nobody told of any program: it opens the finding of each incident by itself, with the guilty line
//! and its creator, while the leak is small; and none of the healthy programs beside them.

use anyhow::{Context, Result, ensure};
use observer_tests::golang::Toolchain;
use observer_tests::guard::Guard;
use observer_tests::incidents::{self, Incident, STARTED};
use observer_tests::observer::Observer;
use observer_tests::skip;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Milliseconds between requests of an incident that count, and how many goroutines may be there when the finding opens: those
/// of 40 s, of which the first 10.5 and 12 more thresholds must pass.
const RATES: [(&str, &str, u64); 4] =
    [("poll", "200", 200), ("unread", "500", 80), ("cache", "", 0), ("health", "500", 80)];
/// By then all must be open; a busy machine of two processors has an incident that takes both.
const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn each_incident_is_opened_by_itself_while_it_is_small() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    // Built before anybody looks.
    for source in ["incidents.go", "healthy_goroutines.go"] {
        go.build(source, observer_tests::golang::Build::Plain)?;
    }
    let mut daemon = Observer::new(&["daemon", "--listen=none", "--threshold=1s"])?.start()?;
    let healthy = ["rest", "load"].map(|mode| incidents::start(&go, "healthy_goroutines.go", &[mode]));
    let healthy: Vec<(Guard, Instant)> = healthy.into_iter().collect::<Result<_>>()?;
    let mut victims: BTreeMap<i32, (&Incident, u64, Guard)> = BTreeMap::new();
    for (mode, every, most) in RATES {
        let arguments: Vec<&str> = [mode, every].into_iter().filter(|word| !word.is_empty()).collect();
        let (guard, _) = incidents::start(&go, "incidents.go", &arguments)?;
        victims.insert(guard.pid(), (Incident::of(mode), most, guard));
    }
    let began = Instant::now();
    let mut opened: BTreeMap<i32, Value> = BTreeMap::new();
    let mut of_healthy = Vec::new();
    // The healthy ones are watched for as long as it took, and beyond their start.
    let watched = STARTED + Duration::from_secs(20);
    while opened.len() < victims.len() || began.elapsed() < watched {
        ensure!(began.elapsed() < LIMIT, "within {LIMIT:?} only {opened:#?}; {}", daemon.stderr()?);
        let Ok(line) = daemon.guard.line(Duration::from_secs(1)) else { continue };
        let line = line.with_context(|| "the daemon ended")?;
        let finding: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let pid = i32::try_from(finding["pid"].as_i64().context("pid")?)?;
        if healthy.iter().any(|(guard, _)| guard.pid() == pid) {
            of_healthy.push(finding);
            continue;
        }
        let Some((incident, most, _)) = victims.get(&pid) else { continue };
        if finding["kind"] != incident.kind || opened.contains_key(&pid) {
            continue;
        }
        ensure!(finding["state"] == "open", "{finding:#}");
        incident.expect_place(&finding)?;
        let count = finding["evidence"]["count"].as_u64();
        println!("{} after {:?}: {count:?}", incident.mode, began.elapsed());
        if *most > 0 {
            ensure!(count.is_some_and(|count| (8..*most).contains(&count)), "{count:?} of at most {most}: {finding:#}");
        }
        opened.insert(pid, finding);
    }
    ensure!(of_healthy.is_empty(), "{of_healthy:#?}");
    Ok(())
}
