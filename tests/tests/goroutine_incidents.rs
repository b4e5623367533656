//! The four incidents of Go services, as real programs: `observer attach` names the guilty line and who started the
//! goroutines, and a look at the whole host finds the leaks by itself while they are small. Healthy programs: nothing.

use anyhow::{Context, Result, ensure};
use observer_tests::deadline::wait_for_age;
use observer_tests::golang::Toolchain;
use observer_tests::guard::Guard;
use observer_tests::incidents::{self, Incident, STARTED, found};
use observer_tests::observer::Observer;
use observer_tests::skip;
use serde_json::Value;
use std::time::{Duration, Instant};

const INCIDENTS: &str = "incidents.go";
const HEALTHY: &str = "healthy_goroutines.go";

/// One look at these, when the start of the youngest program is over.
fn look(pids: &[i32], since: Instant) -> Result<Value> {
    wait_for_age(since, STARTED)?;
    Ok(Observer::attach(pids, &["--once", "--output", "json"])?.run()?.report()?.json)
}

fn expect_poll(report: &Value, pid: i32) -> Result<()> {
    let timeout = found(report, pid, "bad_timeout")?;
    ensure!(timeout["confidence"] == "certain" && timeout["evidence"]["timeout_raw"] == "-5", "{timeout:#}");
    let blocked = Incident::of("poll").expect(report, pid)?;
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

/// A request every so many milliseconds, of which each leaves one behind.
fn expect_unread(report: &Value, pid: i32, every_ms: u64) -> Result<()> {
    let leak = Incident::of("unread").expect(report, pid)?;
    let evidence = &leak["evidence"];
    ensure!(evidence["wait_reason"] == "chan send" && evidence["left"] == 0, "{leak:#}");
    ensure!(evidence["run_again"] == false, "{leak:#}");
    let rate = evidence["growth_per_minute"].as_f64().context("a rate")?;
    let most = 60_000.0 / every_ms as f64;
    ensure!((most / 2.0..=most * 1.2).contains(&rate), "{leak:#}");
    ensure!(evidence["memory_bytes"].as_u64() > Some(2048 * 50), "{leak:#}");
    Ok(())
}

fn expect_cache(report: &Value, pid: i32) -> Result<()> {
    let stall = Incident::of("cache").expect(report, pid)?;
    let evidence = &stall["evidence"];
    ensure!(evidence["held_up_most"].as_u64() >= Some(2), "{stall:#}");
    ensure!(evidence["rss_bytes"].as_u64() > Some(10 << 20), "{stall:#}");
    // 400,000 entries of 48 bytes, each with four times 64.
    ensure!(evidence["heap_bytes"].as_u64() > Some(100 << 20), "{stall:#}");
    ensure!(stall["explanation"].as_str().is_some_and(|text| text.contains("resident memory")), "{stall:#}");
    Ok(())
}

fn expect_health(report: &Value, pid: i32) -> Result<()> {
    let leak = Incident::of("health").expect(report, pid)?;
    let beside = leak["evidence"]["beside"].as_array().context("beside")?;
    let of_client = |function: &str| beside.iter().any(|site| site["place"]["function"] == function);
    ensure!(of_client("net/http.(*persistConn).writeLoop"), "{leak:#}");
    ensure!(leak["remedy"].as_str().is_some_and(|remedy| remedy.contains("http.Client.Timeout")), "{leak:#}");
    Ok(())
}

/// One mistake, one finding.
fn expect_one(report: &Value, pid: i32) -> Result<()> {
    let findings = report["findings"].as_array().context("findings")?;
    ensure!(findings.iter().filter(|finding| finding["pid"] == pid).count() == 1, "{findings:#?}");
    Ok(())
}

#[test]
fn a_negative_timeout_inside_of_a_lock() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    let (guard, since) = incidents::start(&go, INCIDENTS, &["poll"])?;
    expect_poll(&look(&[guard.pid()], since)?, guard.pid())
}

#[test]
fn a_result_that_nobody_reads() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    let (guard, since) = incidents::start(&go, INCIDENTS, &["unread"])?;
    let report = look(&[guard.pid()], since)?;
    expect_unread(&report, guard.pid(), 50)?;
    expect_one(&report, guard.pid())
}

#[test]
fn a_collector_that_holds_up_requests() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    let (guard, since) = incidents::start(&go, INCIDENTS, &["cache"])?;
    expect_cache(&look(&[guard.pid()], since)?, guard.pid())
}

#[test]
fn a_program_at_its_memory_limit() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    let (guard, since) = incidents::start(&go, INCIDENTS, &["limit"])?;
    let report = look(&[guard.pid()], since)?;
    let stall = found(&report, guard.pid(), "gc_stall")?;
    Incident::of("cache").expect_place(stall)?;
    ensure!(stall["evidence"]["heap_bytes"].as_u64() > Some(80 << 20), "{stall:#}");
    Ok(())
}

#[test]
fn health_checks_without_a_time_limit() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    let (guard, since) = incidents::start(&go, INCIDENTS, &["health"])?;
    let report = look(&[guard.pid()], since)?;
    expect_health(&report, guard.pid())?;
    expect_one(&report, guard.pid())
}

/// All four, built by another toolchain: one look names each. The one that takes all processors comes by itself.
fn all_at_once(go: Result<Toolchain, String>) -> Result<()> {
    let go = match go {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    let start = |mode: &&str| incidents::start(&go, INCIDENTS, &[mode, "100"]);
    let programs: Vec<(Guard, Instant)> = ["poll", "unread", "health"].iter().map(start).collect::<Result<_>>()?;
    let pids: Vec<i32> = programs.iter().map(|(guard, _)| guard.pid()).collect();
    let (_, since) = programs.last().context("a program")?;
    let report = look(&pids, *since)?;
    let [poll, unread, health] = pids[..] else { anyhow::bail!("three programs") };
    let runtime = |pid: i32| report["processes"].as_array()?.iter().find(|one| one["pid"] == pid)?["runtime"].as_str();
    ensure!(runtime(poll) == Some(&format!("go{}", go.name)), "{:?}", runtime(poll));
    expect_poll(&report, poll)?;
    expect_unread(&report, unread, 100)?;
    expect_health(&report, health)?;
    drop(programs);
    let (cache, since) = start(&"cache")?;
    expect_cache(&look(&[cache.pid()], since)?, cache.pid())
}

#[test]
fn all_incidents_of_go_1_21() -> Result<()> {
    all_at_once(Toolchain::wheel("1.21.13"))
}

#[test]
fn all_incidents_of_go_1_27() -> Result<()> {
    all_at_once(Toolchain::wheel("1.27.3"))
}

/// A look at the whole host, which nobody told of the program.
fn watched(go: &Toolchain, arguments: &[&str]) -> Result<Value> {
    let incident = Incident::of(arguments[0]);
    let (guard, _) = incidents::start(go, INCIDENTS, arguments)?;
    let watch = ["watch", "--threshold", "1s", "--output", "ndjson", "--for", "100s"];
    let mut watch = Observer::new(&watch)?.start()?;
    let pid = guard.pid();
    let wanted = |one: &Value| one["pid"] == pid && one["kind"] == incident.kind;
    let found = watch.finding(Duration::from_secs(100), wanted)?;
    incident.expect_place(&found)?;
    Ok(found)
}

#[test]
fn the_host_is_watched_and_a_small_leak_found() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    // Two a second.
    let leak = watched(&go, &["unread", "500"])?;
    ensure!(leak["evidence"]["count"].as_u64() < Some(250), "{leak:#}");
    Ok(())
}

#[test]
fn the_host_is_watched_and_a_pile_behind_a_lock_found() -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    watched(&go, &["poll"]).map(|_| ())
}

/// Nothing is said of these from their start on, by a look at the whole host and by looks at them.
fn expect_silence(modes: &[&str]) -> Result<()> {
    let go = match Toolchain::debian() {
        Ok(go) => go,
        Err(why) => skip!("{why}"),
    };
    let start = |mode: &&str| incidents::start(&go, HEALTHY, &[mode]);
    let programs: Vec<(Guard, Instant)> = modes.iter().map(start).collect::<Result<_>>()?;
    let pids: Vec<i32> = programs.iter().map(|(guard, _)| guard.pid()).collect();
    let (_, since) = programs.last().context("a program")?;
    // From their very start on, for several thresholds behind it.
    let host = ["watch", "--threshold", "1s", "--output", "ndjson", "--for", "40s"];
    let host = Observer::new(&host)?.start()?;
    wait_for_age(*since, STARTED)?;
    for look in [&["--once", "--output", "json"][..], &["--for", "16s", "--output", "json"]] {
        let report = Observer::attach(&pids, look)?.run()?.report()?;
        report.expect_silence(&format!("{modes:?} ({pids:?})"))?;
    }
    let output = host.finish(Duration::from_secs(120))?;
    let ours = |line: &&str| pids.iter().any(|pid| line.contains(&format!("\"pid\":{pid},")));
    let found: Vec<&str> = output.stdout.lines().filter(ours).collect();
    ensure!(found.is_empty(), "{modes:?} ({pids:?}): {found:#?}");
    Ok(())
}

#[test]
fn healthy_programs_have_no_finding() -> Result<()> {
    expect_silence(&["rest", "load", "peak", "pool"])
}

#[test]
fn what_grows_and_is_at_work_has_no_finding() -> Result<()> {
    expect_silence(&["slow", "bursts", "sessions"])
}

#[test]
fn busy_collectors_have_no_finding() -> Result<()> {
    expect_silence(&["alloc", "spare"])
}
