//! The daemon tells a real collector what it finds: over gRPC and HTTP, compressed or not, and when the collector was away.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use observer_tests::deadline::wait_until;
use observer_tests::observer::{Live, Observer, binary};
use observer_tests::rotel::{self, Point, Ports, Rotel};
use observer_tests::{compile, procfs, skip};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SOON: Duration = Duration::from_secs(40);

/// The daemon with these variables in a PID namespace of its own, after a script that starts its victims; fd 3 is the test's hand.
fn daemon(victims: &str, variables: &[(&str, &str)]) -> Result<Live> {
    let script =
        format!("exec 3<&0; {victims} exec '{}' daemon --threshold 1s --listen none </dev/null", binary()?.display());
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script]);
    let mut observer = Observer::through(command);
    for (name, value) in variables {
        observer = observer.env(name, value);
    }
    observer.start()
}

/// A process of that name in the daemon's namespace, by its id out here.
fn inside(live: &Live, name: &str) -> Result<Pid> {
    let is = |pid: &i32| procfs::comm(*pid, *pid).is_ok_and(|comm| comm == name);
    let family = procfs::descendants(live.guard.pid());
    let pid = family.into_iter().map(|(pid, _)| pid).find(is);
    Ok(Pid::from_raw(pid.with_context(|| format!("no {name} in the namespace"))?))
}

/// Type and unit of everything that a daemon with a lock wait always tells.
const METRICS: &[(&str, &str, &str)] = &[
    ("observer.threads.blocked", "Gauge", "{thread}"),
    ("observer.threads.seen", "Gauge", "{thread}"),
    ("observer.process.threads.blocked", "Gauge", "{thread}"),
    ("observer.findings.open", "Gauge", "{finding}"),
    ("observer.findings.opened.count", "Sum", "{finding}"),
    ("observer.findings.resolved.count", "Sum", "{finding}"),
    ("observer.wait.duration", "Histogram", "s"),
    ("observer.wait.failures.count", "Sum", "{call}"),
    ("observer.timeouts.count", "Sum", "{call}"),
    ("observer.probes.cpu.time", "Sum", "s"),
    ("observer.probes.sampling", "Gauge", "{call}"),
    ("observer.probes.reduced.time", "Sum", "s"),
    ("observer.self.cpu.time", "Sum", "s"),
    ("observer.self.memory.usage", "Gauge", "By"),
    ("observer.census.duration", "Gauge", "s"),
    ("observer.census.count", "Sum", "{census}"),
    ("observer.export.queue.length", "Gauge", "{item}"),
    ("observer.export.sent.count", "Sum", "{record}"),
    ("observer.export.lost.count", "Sum", "{record}"),
    ("observer.self.workers.stuck", "Gauge", "{thread}"),
    ("observer.self.workers.replaced.count", "Sum", "{thread}"),
];

fn whole_life(protocol: &str, compression: &str) -> Result<()> {
    let program = match rotel::program() {
        Ok(program) => program,
        Err(why) => skip!("no rotel: {why}"),
    };
    let ports = Ports::free()?;
    let rotel = Rotel::start(&program, ports)?;
    let port = if protocol == "grpc" { ports.grpc } else { ports.http };
    let victim = compile::victim("held", compile::Abi::Native)?;
    let mut live = daemon(
        &format!("'{}' joined <&3 >/dev/null &", victim.display()),
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{port}")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", compression),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
            ("OTEL_RESOURCE_ATTRIBUTES", "k8s.cluster.name=first%20one"),
            ("OTEL_SERVICE_NAME", "eyes"),
        ],
    )?;

    let opened = rotel.event("observer.finding.opened", "lock_wait", SOON)?;
    let resource = |key: &str| opened.resource.get(key).map(String::as_str);
    let name = victim.file_name().and_then(|name| name.to_str());
    ensure!(resource("process.executable.name") == name, "{opened:#?}");
    ensure!(resource("process.executable.path") == victim.to_str(), "{opened:#?}");
    ensure!(resource("k8s.cluster.name") == Some("first one") && resource("os.type") == Some("linux"), "{opened:#?}");
    ensure!(resource("service.name").is_none() && resource("process.pid").is_none(), "{opened:#?}");
    ensure!(opened.field("SeverityNumber") == Some("SEVERITY_NUMBER_WARN(13)"), "{opened:#?}");
    ensure!(opened.field("SeverityText") == opened.attribute("observer.finding.severity"), "{opened:#?}");
    let body = opened.field("Body").context("a body")?;
    ensure!(body.contains("holder") && body.contains("mutex"), "{body}");
    let attribute = |key: &str| opened.attribute(key).with_context(|| format!("no {key}: {opened:#?}"));
    ensure!(attribute("event.name")? == "observer.finding.opened");
    ensure!(attribute("observer.finding.state")? == "open");
    ensure!(attribute("observer.finding.chain")?.contains("held by holder"), "{opened:#?}");
    ensure!(attribute("code.stacktrace")?.contains("work_while_holding"), "{opened:#?}");
    ensure!(attribute("observer.thread.tids")?.matches("Int(").count() == 4, "{opened:#?}");
    ensure!(attribute("observer.finding.evidence")?.starts_with('{'), "{opened:#?}");
    for key in ["process.pid", "process.creation.time", "observer.finding.since", "observer.finding.title"] {
        attribute(key)?;
    }
    ensure!(opened.attribute("process.command_line").is_none(), "it may hold secrets: {opened:#?}");

    live.guard.tell("one more")?;
    let changed = rotel.event("observer.finding.changed", "lock_wait", SOON)?;
    ensure!(
        changed.attribute("observer.thread.tids").is_some_and(|tids| tids.matches("Int(").count() == 5),
        "{changed:#?}"
    );
    let open: fn(&Point) -> bool =
        |point| point.is("observer.findings.open", &[("kind", "lock_wait"), ("severity", "warning")]);
    wait_for_point(&rotel, "an open finding", |point| {
        open(point) && point.number("Value").is_ok_and(|count| count >= 1.0)
    })?;

    kill(inside(&live, "held")?, Signal::SIGKILL)?;
    let resolved = rotel.event("observer.finding.resolved", "lock_wait", SOON)?;
    for one in [&changed, &resolved] {
        ensure!(one.attribute("observer.finding.id") == opened.attribute("observer.finding.id"), "{one:#?}");
        ensure!(one.resource == opened.resource, "also when the process is gone: {one:#?}");
    }
    ensure!(resolved.field("SeverityNumber") == Some("SEVERITY_NUMBER_INFO(9)"), "{resolved:#?}");
    ensure!(resolved.attribute("observer.finding.state") == Some("resolved"), "{resolved:#?}");

    let over = [("kind", "lock_wait")];
    wait_for_point(&rotel, "its end in the metrics", |point| point.is("observer.findings.resolved.count", &over))?;
    wait_for_point(&rotel, "nothing open", |point| {
        open(point) && point.number("Value").is_ok_and(|count| count == 0.0)
    })?;
    check_metrics(&rotel.points()?)?;
    kill(inside(&live, "observer")?, Signal::SIGTERM)?;
    let ended = live.finish(SOON)?.expect_code(0)?;
    ensure!(!ended.stderr.contains("OTLP"), "{}", ended.stderr);
    Ok(())
}

fn wait_for_point(rotel: &Rotel, what: &str, wanted: impl Fn(&Point) -> bool) -> Result<Point> {
    wait_until(what, SOON, || Ok(rotel.points()?.into_iter().find(&wanted)))
        .with_context(|| rotel.printed().unwrap_or_default())
}

fn check_metrics(points: &[Point]) -> Result<()> {
    for (name, kind, unit) in METRICS {
        let of_it: Vec<&Point> = points.iter().filter(|point| point.is(name, &[])).collect();
        ensure!(!of_it.is_empty(), "no {name}");
        for point in of_it {
            let says = |key: &str, value: &str| point.metric.get(key).is_some_and(|text| text == value);
            ensure!(says("DataType", kind) && says("Unit", unit), "{point:#?}");
            ensure!(
                !point.resource.contains_key("process.pid"),
                "a series for every process there ever was: {point:#?}"
            );
            let (start, time) = (point.number("StartTimestamp")?, point.number("Timestamp")?);
            if *kind == "Gauge" {
                continue;
            }
            ensure!(says("AggregationTemporality", "AGGREGATION_TEMPORALITY_CUMULATIVE"), "{point:#?}");
            ensure!(*kind == "Histogram" || says("IsMonotonic", "true"), "{point:#?}");
            ensure!(start > 0.0 && start <= time, "{point:#?}");
        }
    }
    for point in points {
        let is_known = METRICS.iter().any(|(name, _, _)| point.is(name, &[])) || point.is("observer.lost.count", &[]);
        ensure!(is_known, "not tested: {point:#?}");
    }
    let values = |name: &str, attributes: &[(&str, &str)]| -> Result<Vec<f64>> {
        points.iter().filter(|point| point.is(name, attributes)).map(|point| point.number("Value")).collect()
    };
    let last = |name: &str, attributes: &[(&str, &str)]| -> Result<f64> {
        values(name, attributes)?.last().copied().with_context(|| format!("no {name} {attributes:?}"))
    };
    let kind = ("kind", "lock_wait");
    ensure!(last("observer.findings.opened.count", &[kind, ("severity", "warning")])? == 1.0);
    ensure!(last("observer.findings.resolved.count", &[kind])? == 1.0);
    let blocked = values("observer.process.threads.blocked", &[("class", "lock")])?;
    ensure!(blocked.contains(&3.0) && blocked.contains(&4.0), "three, then four waiters: {blocked:?}");
    let censuses = values("observer.census.count", &[])?;
    ensure!(censuses.is_sorted() && last("observer.census.count", &[])? >= 3.0, "{censuses:?}");
    let seconds = last("observer.self.cpu.time", &[])?;
    ensure!(seconds > 0.0 && seconds < 600.0, "seconds, not nanoseconds: {seconds}");
    ensure!(last("observer.self.memory.usage", &[])? > 1e6);
    ensure!(last("observer.export.sent.count", &[("sink", "otlp")])? > 20.0);
    ensure!(last("observer.export.lost.count", &[("sink", "otlp"), ("reason", "queue_full")])? == 0.0);
    let own = points.iter().find(|point| point.is("observer.census.count", &[])).context("own numbers")?;
    let says = |key: &str| own.resource.get(key).map(String::as_str);
    ensure!(says("service.name") == Some("eyes") && says("k8s.cluster.name") == Some("first one"), "{own:#?}");
    ensure!(says("host.name").is_some() && says("service.version").is_some(), "{own:#?}");
    Ok(())
}

/// This collector takes no profiles, as most do.
#[test]
fn a_collector_without_profiles_is_asked_once_and_gets_the_rest() -> Result<()> {
    let program = match rotel::program() {
        Ok(program) => program,
        Err(why) => skip!("no rotel: {why}"),
    };
    for protocol in ["grpc", "http/protobuf"] {
        let ports = Ports::free()?;
        let rotel = Rotel::start(&program, ports)?;
        let port = if protocol == "grpc" { ports.grpc } else { ports.http };
        let victim = compile::victim("held", compile::Abi::Native)?;
        let live = daemon(
            &format!("'{}' joined <&3 >/dev/null &", victim.display()),
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{port}")),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                ("OTEL_METRIC_EXPORT_INTERVAL", "300"),
                ("OBSERVER_OTLP_PROFILES", "true"),
            ],
        )?;
        let reason = if protocol == "grpc" { "grpc_unimplemented" } else { "http_404" };
        let lost = |point: &Point| point.is("observer.export.lost.count", &[("sink", "otlp"), ("reason", reason)]);
        let first = wait_for_point(&rotel, "the refused profile", lost)?;
        let count = first.number("Value")?;
        // The finding comes after the first stacks: several intervals later.
        rotel.event("observer.finding.opened", "lock_wait", SOON)?;
        kill(inside(&live, "observer")?, Signal::SIGTERM)?;
        let ended = live.finish(SOON)?.expect_code(0)?;
        let points = rotel.points()?;
        let counts: Vec<f64> =
            points.iter().filter(|point| lost(point)).map(|point| point.number("Value")).collect::<Result<_>>()?;
        ensure!(counts.iter().all(|other| *other == count), "{protocol}: asked once only: {counts:?}");
        ensure!(ended.stderr.matches("takes no profiles").count() == 1, "{}", ended.stderr);
    }
    Ok(())
}

#[test]
fn grpc_compressed() -> Result<()> {
    whole_life("grpc", "gzip")
}

#[test]
fn grpc_plain() -> Result<()> {
    whole_life("grpc", "none")
}

#[test]
fn http_compressed() -> Result<()> {
    whole_life("http/protobuf", "gzip")
}

#[test]
fn http_plain() -> Result<()> {
    whole_life("http/protobuf", "none")
}

#[test]
fn what_happens_while_the_receiver_is_away_arrives_when_it_is_back() -> Result<()> {
    let program = match rotel::program() {
        Ok(program) => program,
        Err(why) => skip!("no rotel: {why}"),
    };
    let ports = Ports::free()?;
    let mut rotel = Rotel::start(&program, ports)?;
    let held = compile::victim("held", compile::Abi::Native)?;
    let deadlock = compile::victim("deadlock", compile::Abi::Native)?;
    let mut live = daemon(
        // The second one hangs when it is told.
        &format!("'{}' read >/dev/null & '{}' --on-stdin <&3 >/dev/null &", held.display(), deadlock.display()),
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{}", ports.grpc)),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
        ],
    )?;
    rotel.event("observer.finding.opened", "lock_wait", SOON)?;
    rotel.kill();

    live.guard.tell("now")?;
    live.finding(SOON, |finding| finding["kind"] == "deadlock" && finding["state"] == "open")?;
    kill(inside(&live, "deadlock")?, Signal::SIGKILL)?;
    live.finding(SOON, |finding| finding["kind"] == "deadlock" && finding["state"] == "resolved")?;

    let back = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as f64;
    let rotel = Rotel::start(&program, ports)?;
    rotel.event("observer.finding.resolved", "deadlock", SOON)?;
    let events: Vec<String> =
        rotel.records()?.iter().filter_map(|one| one.field("EventName").map(str::to_owned)).collect();
    ensure!(events == ["observer.finding.opened", "observer.finding.resolved"], "each once, in order: {events:?}");
    let before = |point: &Point| point.number("Timestamp").is_ok_and(|time| time < back);
    wait_for_point(&rotel, "a sample of the time without a receiver", |point| {
        point.is("observer.census.count", &[]) && before(point)
    })?;
    let after = wait_for_point(&rotel, "what is lost", |point| {
        point.is("observer.export.lost.count", &[("sink", "otlp")]) && !before(point)
    })?;
    ensure!(after.number("Value")? == 0.0, "{after:#?}");

    kill(inside(&live, "observer")?, Signal::SIGTERM)?;
    let ended = live.finish(SOON)?.expect_code(0)?;
    ensure!(ended.stderr.contains("OTLP: not taken, to be sent again"), "it says so, once: {}", ended.stderr);
    Ok(())
}

#[test]
fn settings_that_cannot_work_are_refused_at_once() -> Result<()> {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem"),
    ] {
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:1"), (name, value)];
        let line = daemon("", &variables)?.finish(SOON)?.expect_refusal()?;
        ensure!(line.contains(name) || line.contains(value), "{name}={value}: {line}");
    }
    Ok(())
}
