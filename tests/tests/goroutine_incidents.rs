//! The four incidents of Go services, as real programs: `observer attach` names the guilty line and who started the
//! goroutines, and a look at the whole host finds the leaks by itself while they are small. Healthy programs: nothing.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::Recipe;
use observer_tests::deadline::wait_for_age;
use observer_tests::guard::Guard;
use observer_tests::observer::Observer;
use observer_tests::skip;
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The start of a program, of which nothing is said: ten thresholds of one second, and some time for clocks.
const STARTED: Duration = Duration::from_millis(10_500);

const INCIDENTS: Recipe = Recipe { program: "incidents", source: "incidents.go", command: &["go", "build"] };
const HEALTHY: Recipe = Recipe { program: "healthy", source: "healthy_goroutines.go", command: &["go", "build"] };

/// A program in one of its modes.
fn start(recipe: &Recipe, arguments: &[&str]) -> Result<(Guard, Instant)> {
    let mut command = Command::new(recipe.build()?);
    command.args(arguments);
    let mut guard = Guard::start(command, Stdio::null())?;
    let line = guard.line(Duration::from_secs(60))?;
    ensure!(line.as_deref() == Some("ready"), "{arguments:?} said {line:?}");
    Ok((guard, Instant::now()))
}

/// One look, when the start of the program is over: the findings.
fn look(guard: &Guard, since: Instant) -> Result<Value> {
    wait_for_age(since, STARTED)?;
    Ok(Observer::attach(&[guard.pid()], &["--once", "--output", "json"])?.run()?.report()?.json)
}

fn of_kind<'a>(report: &'a Value, kind: &str) -> Result<&'a Value> {
    let findings = report["findings"].as_array().context("findings")?;
    let found = findings.iter().find(|finding| finding["kind"] == kind);
    found.with_context(|| format!("no {kind}: {findings:#?}; account: {:#}", report["account"]))
}

/// The place and the creator of what a finding is about.
fn expect_place(finding: &Value, place: &str, creator: &str) -> Result<()> {
    let evidence = &finding["evidence"];
    ensure!(evidence["place"]["function"] == place, "{finding:#}");
    ensure!(evidence["created_by"]["function"] == creator, "{finding:#}");
    for at in ["place", "created_by"] {
        let file = evidence[at]["file"].as_str().context("a file")?;
        ensure!(file.ends_with("incidents.go") && evidence[at]["line"].as_u64() > Some(0), "{finding:#}");
    }
    let title = finding["title"].as_str().context("title")?;
    let explanation = finding["explanation"].as_str().context("explanation")?;
    ensure!(title.contains(place) || explanation.contains(place), "{finding:#}");
    ensure!(explanation.contains(creator), "{finding:#}");
    Ok(())
}

#[test]
fn a_negative_timeout_inside_of_a_lock() -> Result<()> {
    if let Some(missing) = INCIDENTS.missing() {
        skip!("{missing} is not installed");
    }
    let (guard, since) = start(&INCIDENTS, &["poll"])?;
    let report = look(&guard, since)?;
    let timeout = of_kind(&report, "bad_timeout")?;
    ensure!(timeout["confidence"] == "certain" && timeout["evidence"]["timeout_raw"] == "-5", "{timeout:#}");
    let blocked = of_kind(&report, "goroutine_blocked")?;
    expect_place(blocked, "main.(*Engine).Call", "main.poll")?;
    ensure!(blocked["confidence"] == "likely", "{blocked:#}");
    let evidence = &blocked["evidence"];
    ensure!(evidence["count"].as_u64() >= Some(50) && evidence["arrived"].as_u64() >= Some(2), "{blocked:#}");
    // From a goroutine to the lock, to the goroutine that has it, to the call its thread is in.
    let chain = blocked["chain"].as_array().context("chain")?;
    let (first, second) = (chain.first().context("a step")?, chain.get(1).context("a second step")?);
    ensure!(first["from"]["goid"].is_u64() && first["from"]["tid"].is_null(), "{chain:#?}");
    ensure!(first["held_by"]["goid"] == second["from"]["goid"] && first["confidence"] == "likely", "{chain:#?}");
    ensure!(second["from"]["tid"] == timeout["threads"][0], "{chain:#?}; {timeout:#}");
    let detail = second["waits_for"]["detail"].as_str().context("detail")?;
    ensure!(detail.starts_with("poll()") && detail.contains("-5"), "{chain:#?}");
    Ok(())
}

#[test]
fn a_result_that_nobody_reads() -> Result<()> {
    if let Some(missing) = INCIDENTS.missing() {
        skip!("{missing} is not installed");
    }
    let (guard, since) = start(&INCIDENTS, &["unread"])?;
    let report = look(&guard, since)?;
    let leak = of_kind(&report, "goroutine_leak")?;
    expect_place(leak, "main.RunAsync.func1", "main.RunAsync")?;
    let evidence = &leak["evidence"];
    ensure!(evidence["wait_reason"] == "chan send" && evidence["left"] == 0, "{leak:#}");
    // 20 a second.
    let rate = evidence["growth_per_minute"].as_f64().context("a rate")?;
    ensure!((600.0..=1400.0).contains(&rate), "{leak:#}");
    ensure!(evidence["memory_bytes"].as_u64() > Some(2048 * 100), "{leak:#}");
    ensure!(report["findings"].as_array().map(Vec::len) == Some(1), "{report:#}");
    Ok(())
}

#[test]
fn a_collector_that_holds_up_requests() -> Result<()> {
    if let Some(missing) = INCIDENTS.missing() {
        skip!("{missing} is not installed");
    }
    let (guard, since) = start(&INCIDENTS, &["cache"])?;
    let report = look(&guard, since)?;
    let stall = of_kind(&report, "gc_stall")?;
    ensure!(stall["evidence"]["held_up_most"].as_u64() >= Some(2), "{stall:#}");
    ensure!(stall["evidence"]["rss_bytes"].as_u64() > Some(10 << 20), "{stall:#}");
    ensure!(stall["explanation"].as_str().is_some_and(|text| text.contains("resident memory")), "{stall:#}");
    let frames = stall["evidence"]["stack"].as_array().context("stack")?;
    let names = |name: &str| frames.iter().any(|frame| frame.as_str().is_some_and(|frame| frame.starts_with(name)));
    ensure!(frames.is_empty() || names("main.cache") || names("main.answer"), "{stall:#}");
    Ok(())
}

#[test]
fn health_checks_without_a_time_limit() -> Result<()> {
    if let Some(missing) = INCIDENTS.missing() {
        skip!("{missing} is not installed");
    }
    let (guard, since) = start(&INCIDENTS, &["health"])?;
    let report = look(&guard, since)?;
    let leak = of_kind(&report, "goroutine_leak")?;
    expect_place(leak, "main.checkHealth", "main.health")?;
    let beside = leak["evidence"]["beside"].as_array().context("beside")?;
    let of_client = |function: &str| beside.iter().any(|site| site["place"]["function"] == function);
    ensure!(of_client("net/http.(*persistConn).writeLoop"), "{leak:#}");
    ensure!(leak["remedy"].as_str().is_some_and(|remedy| remedy.contains("http.Client.Timeout")), "{leak:#}");
    // One mistake, one finding.
    ensure!(report["findings"].as_array().map(Vec::len) == Some(1), "{report:#}");
    Ok(())
}

/// A look at the whole host, which nobody told of the program.
fn watched(arguments: &[&str], kind: &str, place: &str, creator: &str) -> Result<Value> {
    let (guard, _) = start(&INCIDENTS, arguments)?;
    let watch = ["watch", "--threshold", "1s", "--output", "ndjson", "--for", "100s"];
    let mut watch = Observer::new(&watch)?.start()?;
    let pid = guard.pid();
    let found = watch.finding(Duration::from_secs(100), |one| one["pid"] == pid && one["kind"] == kind)?;
    expect_place(&found, place, creator)?;
    Ok(found)
}

#[test]
fn the_host_is_watched_and_a_small_leak_found() -> Result<()> {
    if let Some(missing) = INCIDENTS.missing() {
        skip!("{missing} is not installed");
    }
    // Two a second.
    let leak = watched(&["unread", "500"], "goroutine_leak", "main.RunAsync.func1", "main.RunAsync")?;
    ensure!(leak["evidence"]["count"].as_u64() < Some(250), "{leak:#}");
    Ok(())
}

#[test]
fn the_host_is_watched_and_a_pile_behind_a_lock_found() -> Result<()> {
    if let Some(missing) = INCIDENTS.missing() {
        skip!("{missing} is not installed");
    }
    watched(&["poll"], "goroutine_blocked", "main.(*Engine).Call", "main.poll").map(|_| ())
}

#[test]
fn healthy_programs_have_no_finding() -> Result<()> {
    if let Some(missing) = HEALTHY.missing() {
        skip!("{missing} is not installed");
    }
    let modes = ["rest", "load", "peak", "pool"];
    let programs: Vec<(Guard, Instant)> = modes.iter().map(|mode| start(&HEALTHY, &[mode])).collect::<Result<_>>()?;
    let pids: Vec<i32> = programs.iter().map(|(guard, _)| guard.pid()).collect();
    let (_, since) = programs.last().context("a program")?;
    // From their very start on, for several thresholds behind it.
    let host = ["watch", "--threshold", "1s", "--output", "ndjson", "--for", "40s"];
    let host = Observer::new(&host)?.start()?;
    wait_for_age(*since, STARTED)?;
    for look in [&["--once", "--output", "json"][..], &["--for", "12s", "--output", "json"]] {
        let report = Observer::attach(&pids, look)?.run()?.report()?;
        report.expect_silence(&format!("{modes:?} ({pids:?})"))?;
    }
    let output = host.finish(Duration::from_secs(120))?;
    let ours = |line: &&str| pids.iter().any(|pid| line.contains(&format!("\"pid\":{pid},")));
    let found: Vec<&str> = output.stdout.lines().filter(ours).collect();
    ensure!(found.is_empty(), "{modes:?} ({pids:?}): {found:#?}");
    Ok(())
}
