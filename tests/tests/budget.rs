//! `--cpu-budget`: what the probes cost on average stays within it, what was given up is told and comes back.

use anyhow::{Context, Result, ensure};
use observer_tests::bpf_stats::{self, Spent};
use observer_tests::deadline::wait_until;
use observer_tests::serving::{Serving, value};
use observer_tests::victim::{Unready, Victim};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The default budget.
const BUDGET: f64 = 0.01;
/// How long its average is measured.
const MEASURED: Duration = Duration::from_secs(30);
/// What may be spent beyond the average: the governor lets bursts of five seconds' worth of budget pass.
const BURST: Duration = Duration::from_secs(5);
/// From the beginning of the storm to calm probes.
const REACTION: Duration = Duration::from_secs(20);
/// Until what was given up is back: what was overspent is saved first (a minute at most), then there is a wait, and
/// where the rest of the host keeps the probes busy it comes back in six steps of 15 s, one family after the other.
const RETURN: Duration = Duration::from_secs(480);

const FUTEX: &str = "observer_probes_sampling{family=\"futex\"}";
const POLL: &str = "observer_probes_sampling{family=\"poll\"}";

fn series(daemon: &Serving, series: &str) -> Result<Option<f64>> {
    Ok(value(&daemon.get("/metrics")?.body, series))
}

fn until(daemon: &Serving, name: &str, limit: Duration, wanted: impl Fn(f64) -> bool) -> Result<()> {
    let waited = wait_until(name, limit, || Ok(series(daemon, name)?.is_some_and(&wanted).then_some(())));
    waited.or_else(|error| {
        let page = daemon.get("/metrics")?.body;
        let probes: Vec<&str> = page.lines().filter(|line| line.starts_with("observer_probes_")).collect();
        Err(error.context(format!("{probes:#?}")))
    })
}

/// One at a time: the probes pay for the calls of the whole host, and another test's storm is no quiet host.
static ONE_STORM: Mutex<()> = Mutex::new(());

fn storm_victim() -> Result<(MutexGuard<'static, ()>, Victim)> {
    let turn = ONE_STORM.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((turn, Unready::start_inside("futex_storm", &[])?.ready()?))
}

#[test]
fn a_storm_of_futex_calls_stays_within_the_budget_and_the_probes_come_back() -> Result<()> {
    let (_turn, mut victim) = storm_victim()?;
    let mut daemon = Serving::start(&mut victim)?;
    let ready = daemon.ready()?;
    if ready.to_string().contains("\"futex\":\"none") {
        observer_tests::skip!("no probe on futex: {ready}");
    }
    // Calm: nothing is given up.
    daemon.turns(4)?;
    for name in [FUTEX, POLL] {
        ensure!(series(&daemon, name)? == Some(1.0), "{name} on a quiet host");
    }

    let statistics = bpf_stats::measure()?;
    let mut spent = Spent::of(daemon.pid()?)?;
    victim.guard().tell("storm")?;
    let began = Instant::now();
    until(&daemon, FUTEX, REACTION, |one_in| one_in == 0.0)?;
    let reaction = (began.elapsed(), spent.so_far()?);

    // The average, as the kernel has it.
    let (from, before) = (Instant::now(), spent.so_far()?);
    wait_until("the measurement to end", MEASURED * 2, || {
        spent.so_far()?;
        Ok((from.elapsed() >= MEASURED).then_some(()))
    })?;
    let (time, cost) = (from.elapsed(), spent.so_far()? - before);
    victim.guard().tell("calm")?;
    let line = victim.guard().line(Duration::from_secs(10))?.context("the storm ended early")?;
    let storm: serde_json::Value = serde_json::from_str(&line)?;
    let rate = storm["calls"].as_f64().context("calls")? / (storm["ns"].as_f64().context("ns")? / 1e9);
    drop(statistics);
    eprintln!(
        "{rate:.0} calls a second; given up after {:?}, {:?} of CPU; then {:.3} % of a CPU for {time:?}",
        reaction.0,
        reaction.1,
        cost.as_secs_f64() / time.as_secs_f64() * 100.0
    );
    ensure!(rate > 300_000.0, "that was no storm: {rate} calls a second");
    let said = daemon.live.stderr()?;
    ensure!(cost <= (time + BURST).mul_f64(BUDGET), "{cost:?} of CPU in {time:?}: {said}");
    let page = daemon.get("/metrics")?.body;
    let reduced = value(&page, "observer_probes_reduced_time_seconds_total{family=\"futex\"}");
    ensure!(reduced.is_some_and(|seconds| seconds > 0.0), "{page}");
    ensure!(value(&page, POLL) == Some(1.0), "poll is cheap here: {page}");

    // Back, and seeing.
    until(&daemon, FUTEX, RETURN, |one_in| one_in == 1.0)?;
    victim.guard().tell("bad")?;
    let finding = daemon.live.finding(Duration::from_secs(20), |line| line["kind"] == "bad_timeout")?;
    ensure!(finding["evidence"].to_string().contains("-3"), "{finding:#}");
    Ok(())
}

#[test]
fn without_a_limit_nothing_is_given_up() -> Result<()> {
    let (_turn, mut victim) = storm_victim()?;
    let pid = victim.truth.pid.to_string();
    let observer = observer_tests::observer::Observer::inside(&mut victim, &["attach", "1"])?;
    let run = observer.args(&["--cpu-budget", "off", "--for", "6s", "--output", "json"]).start()?;
    victim.guard().tell("storm")?;
    let output = run.finish(Duration::from_secs(60))?;
    let report = output.report()?.json;
    let budget = &report["account"]["probe_budget"];
    ensure!(budget["limit"] == "off", "{pid}: {budget:#}");
    if budget["families"]["futex"].is_null() {
        observer_tests::skip!("no probe on futex: {}", report["capability"]);
    }
    let futex = &budget["families"]["futex"];
    ensure!(futex["one_in"] == 1 && futex["shed"] == 0 && futex["reduced_ns"] == 0, "{budget:#}");
    // And what they cost is told all the same.
    ensure!(budget["cpu_share"].as_f64().is_some_and(|share| share > BUDGET), "{budget:#}");
    Ok(())
}

#[test]
fn a_report_says_which_probes_were_off() -> Result<()> {
    let (_turn, mut victim) = storm_victim()?;
    let observer = observer_tests::observer::Observer::inside(&mut victim, &["attach", "1"])?;
    let run = observer.args(&["--cpu-budget", "0.1%", "--for", "10s", "--output", "json"]).start()?;
    victim.guard().tell("storm")?;
    let output = run.finish(Duration::from_secs(60))?;
    let report = output.report()?.json;
    let budget = &report["account"]["probe_budget"];
    let futex = &budget["families"]["futex"];
    if futex.is_null() {
        observer_tests::skip!("no probe on futex: {}", report["capability"]);
    }
    ensure!(futex["one_in"] == 0 && futex["shed"].as_u64() >= Some(1), "{budget:#}");
    ensure!(futex["reduced_ns"].as_u64() > Some(0), "{budget:#}");
    let rung = report["capability"]["probes"]["futex"].as_str().context("futex")?;
    ensure!(rung.starts_with("none: ") && rung.contains("--cpu-budget 0.1%"), "{rung}");
    ensure!(output.stderr.contains("--cpu-budget 0.1%: futex probes"), "{}", output.stderr);
    Ok(())
}
