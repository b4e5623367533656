//! A real Prometheus scrapes the daemon; promtool reads its pages and tests its alerts.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use observer_tests::compile::target_dir;
use observer_tests::deadline::wait_until;
use observer_tests::observer::Observer;
use observer_tests::serving::{Serving, get, value};
use observer_tests::victim::Unready;
use observer_tests::{guard::Guard, skip};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const OPEN: &str = r#"observer_findings_open{kind="deadlock",severity="critical"}"#;
const NO_TOOL: &str = "prometheus is not under target/tools: `cargo xtask toolchain` unpacks it";

/// A program of Debian's package `prometheus`, unpacked by `cargo xtask toolchain` (and `test`).
fn tool(name: &str) -> Result<Option<PathBuf>> {
    let path = target_dir()?.join("tools/prometheus/usr/bin").join(name);
    Ok(path.is_file().then_some(path))
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A Prometheus that scrapes one target every second.
struct Prometheus {
    _guard: Guard,
    _data: tempfile::TempDir,
    address: SocketAddr,
}

impl Prometheus {
    fn start(program: &Path, target: SocketAddr) -> Result<Self> {
        let data = tempfile::tempdir()?;
        let config = data.path().join("prometheus.yml");
        let alerts = deploy().canonicalize()?.join("prometheus/alerts.yaml");
        let mut text = "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n".to_owned();
        writeln!(text, "rule_files: ['{}']", alerts.display())?;
        writeln!(text, "scrape_configs: [{{job_name: observer, static_configs: [{{targets: ['{target}']}}]}}]")?;
        std::fs::write(&config, text)?;
        let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", data.path().join("data").display()));
        command.arg(format!("--web.listen-address={free}"));
        let guard = Guard::start(command, Stdio::null())?;
        let this = Self { _guard: guard, _data: data, address: free };
        wait_until("Prometheus to be ready", Duration::from_secs(30), || {
            Ok(get(free, "/-/ready", "").ok().filter(|answer| answer.status == 200))
        })?;
        Ok(this)
    }

    /// What it answers at this path of its API.
    fn ask(&self, path: &str) -> Result<Value> {
        let answer = get(self.address, path, "")?;
        // Long answers come in chunks; JSON has no line of its own that is a number.
        let body = answer.body.lines().find(|line| line.starts_with('{')).context("no JSON")?;
        let json: Value = serde_json::from_str(body).with_context(|| format!("{path}: {body}"))?;
        ensure!(json["status"] == "success", "{path}: {json:#}");
        Ok(json["data"].clone())
    }

    /// The values of a query, each with its labels.
    fn query(&self, query: &str) -> Result<Vec<(Value, f64)>> {
        let mut quoted = String::new();
        for byte in query.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => quoted.push(char::from(byte)),
                other => write!(quoted, "%{other:02X}")?,
            }
        }
        let data = self.ask(&format!("/api/v1/query?query={quoted}"))?;
        let results = data["result"].as_array().with_context(|| format!("{query}: {data}"))?;
        let one = |result: &Value| {
            let number = result["value"][1].as_str().and_then(|text| text.parse().ok()).context("a number")?;
            Ok((result["metric"].clone(), number))
        };
        results.iter().map(one).collect()
    }

    /// Waits until the query has one value, for which `wanted` holds.
    fn wait_for(&self, query: &str, wanted: impl Fn(f64) -> bool) -> Result<f64> {
        let mut last = Vec::new();
        let value = wait_until(query, Duration::from_secs(60), || {
            last = self.query(query)?;
            Ok(match last.as_slice() {
                [(_, value)] if wanted(*value) => Some(*value),
                _ => None,
            })
        });
        value.with_context(|| format!("the last answer: {last:?}"))
    }
}

#[test]
fn prometheus_scrapes_a_deadlock() -> Result<()> {
    let Some(program) = tool("prometheus")? else { skip!("{NO_TOOL}") };
    let mut victim = Unready::start_inside("deadlock", &[])?.ready()?;
    let mut daemon = Serving::start(&mut victim)?;
    daemon.ready()?;
    let prometheus = Prometheus::start(&program, daemon.address)?;

    prometheus.wait_for(r#"up{job="observer"}"#, |up| up == 1.0)?;
    prometheus.wait_for(OPEN, |open| open == 1.0)?;
    prometheus.wait_for(r#"observer_findings_opened_total{kind="deadlock"}"#, |opened| opened == 1.0)?;
    prometheus
        .wait_for(r#"observer_process_threads_blocked{executable="deadlock",class="lock"}"#, |count| count == 2.0)?;
    prometheus.wait_for(r#"observer_threads_blocked{class="lock"}"#, |count| count == 2.0)?;
    // Fifteen scrapes, each of them good, while censuses go on.
    prometheus.wait_for(r#"count_over_time(up{job="observer"}[1m])"#, |count| count >= 15.0)?;
    let failed = prometheus.query(r#"count_over_time((up{job="observer"} == 0)[1m:1s])"#)?;
    ensure!(failed.is_empty(), "scrapes failed: {failed:?}");
    prometheus.wait_for("increase(observer_census_total[15s])", |more| more > 5.0)?;
    let waits = prometheus.query(
        "observer_wait_duration_seconds_count - ignoring(le) \
                                  observer_wait_duration_seconds_bucket{le=\"+Inf\"}",
    )?;
    ensure!(!waits.is_empty() && waits.iter().all(|(_, difference)| *difference == 0.0), "{waits:?}");

    let labels = prometheus.ask("/api/v1/labels")?;
    let labels: BTreeSet<&str> = labels.as_array().context("labels")?.iter().filter_map(Value::as_str).collect();
    let allowed = BTreeSet::from([
        "__name__",
        "class",
        "container_id",
        "executable",
        "family",
        "instance",
        "job",
        "kind",
        "le",
        "pod_uid",
        "reason",
        "severity",
        "sink",
        "stage",
        "timeout",
        "version",
        // Of the alerts.
        "alertname",
        "alertstate",
    ]);
    ensure!(labels.is_subset(&allowed), "{labels:?}");

    // It says the same as the daemon, whose numbers were right above.
    let page = daemon.get("/metrics")?.body;
    ensure!(value(&page, OPEN) == Some(1.0), "{page}");
    alerts_and_dashboard_are_understood(&prometheus)?;

    // The namespace ends with its first process, the victim.
    drop(victim);
    prometheus
        .wait_for(r#"up{job="observer"}"#, |up| up == 0.0)
        .context("the namespace ends with its first process")?;
    daemon.live.guard.kill();
    Ok(())
}

fn alerts_and_dashboard_are_understood(prometheus: &Prometheus) -> Result<()> {
    let rules = prometheus.ask("/api/v1/rules")?;
    let rules: Vec<&Value> = rules["groups"]
        .as_array()
        .context("groups")?
        .iter()
        .filter_map(|group| group["rules"].as_array())
        .flatten()
        .collect();
    ensure!(rules.len() == 8, "{rules:#?}");
    for rule in &rules {
        ensure!(rule["health"] == "ok" || rule["health"] == "unknown", "{rule:#}");
    }
    let critical = rules.iter().find(|rule| rule["name"] == "ObserverCriticalFinding").context("the alert")?;
    ensure!(critical["state"] == "pending", "five minutes are not over: {critical:#}");
    let down = rules.iter().find(|rule| rule["name"] == "ObserverDown").context("the alert")?;
    ensure!(down["state"] == "inactive", "{down:#}");

    let dashboard: Value = serde_json::from_slice(&std::fs::read(deploy().join("grafana/observer.json"))?)?;
    let mut with_answer = 0;
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().context("a query")?;
            let query = query.replace("$__rate_interval", "30s").replace("$instance", ".*");
            let answer = prometheus.query(&query).with_context(|| panel["title"].to_string())?;
            with_answer += usize::from(!answer.is_empty());
        }
    }
    // The rest is about losses, silences and connections, of which there are none.
    ensure!(with_answer >= 17, "only {with_answer} queries of the dashboard have an answer");
    Ok(())
}

#[test]
fn promtool_has_nothing_to_say_about_the_page() -> Result<()> {
    let Some(promtool) = tool("promtool")? else { skip!("{NO_TOOL}") };
    let mut victim = Unready::start_inside("deadlock", &[])?.ready()?;
    let daemon = Serving::start(&mut victim)?;
    let page = daemon.page_with(OPEN, |open| open == 1.0)?;
    let mut check = Command::new(promtool);
    let mut check =
        check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    check.stdin.take().context("stdin")?.write_all(page.as_bytes())?;
    let output = check.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn alert_rules_fire_when_they_should() -> Result<()> {
    let Some(promtool) = tool("promtool")? else { skip!("{NO_TOOL}") };
    for args in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]] {
        let output = Command::new(&promtool).args(args).current_dir(deploy().join("prometheus")).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && said.contains("SUCCESS"), "promtool {args:?}: {said}");
    }
    Ok(())
}

#[test]
fn the_format_is_what_the_reader_asks_for() -> Result<()> {
    let mut victim = Unready::start_inside("deadlock", &[])?.ready()?;
    let daemon = Serving::start(&mut victim)?;
    daemon.page_with(OPEN, |open| open == 1.0)?;
    let ready = daemon.ready()?;
    for family in ["poll", "futex", "connect", "tcp_state"] {
        let rung = ready["probes"][family].as_str().unwrap_or_default();
        ensure!(
            ["fentry", "kprobe", "tp_btf", "tracepoint"].contains(&rung) || rung.starts_with("none: "),
            "{ready:#}"
        );
    }
    let open = get(daemon.address, "/metrics", "Accept: application/openmetrics-text;version=1.0.0\r\n")?;
    ensure!(open.head.contains("application/openmetrics-text; version=1.0.0"), "{}", open.head);
    ensure!(open.body.ends_with("# EOF\n") && value(&open.body, OPEN) == Some(1.0), "{}", open.body);
    let text = daemon.get("/metrics")?;
    ensure!(text.head.contains("text/plain; version=0.0.4") && !text.body.contains("# EOF"), "{text:?}");
    ensure!(daemon.get("/metric")?.status == 404);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid()?), Signal::SIGTERM)?;
    daemon.live.finish(Duration::from_secs(60))?.expect_code(0)?;
    Ok(())
}

#[test]
fn an_address_in_use_is_an_error_that_names_the_setting() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let line = Observer::new(&["daemon"])?.env("OBSERVER_LISTEN", &address).run()?.expect_refusal()?;
    ensure!(line.contains(&address) && line.contains("`listen`") && line.contains("in use"), "{line}");
    Ok(())
}
