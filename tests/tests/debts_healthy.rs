//! Idle is not hung, nor is busy: servers that everybody runs, with clients that hardly ever say a word, that wait on purpose, and
//! that ask all the time. Servers and clients are observed together; nothing they do may ever be a finding.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::sources;
use observer_tests::deadline::wait_for_age;
use observer_tests::debts::{Server, THRESHOLD, look};
use observer_tests::guard::Guard;
use observer_tests::observer::{Live, Observer};
use observer_tests::postgres::Postgres;
use observer_tests::procfs::descendants;
use observer_tests::report::Report;
use observer_tests::servers::{Service, missing};
use observer_tests::skip;
use std::fmt::Display;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long each look lasts: some thresholds, or so many seconds as `OBSERVER_LOOK` says.
fn look_for() -> Result<Duration> {
    let wanted = std::env::var("OBSERVER_LOOK").ok();
    Ok(Duration::from_secs(wanted.map_or(Ok(10), |seconds| seconds.parse()).context("OBSERVER_LOOK is in seconds")?))
}

/// How long to wait for the end of such a look.
const AFTERWARDS: Duration = Duration::from_secs(90);

/// Connections of some habits to some servers, in one process.
fn clients(habits: &[(&str, &dyn Display)]) -> Result<Guard> {
    let mut command = Command::new("python3");
    command.arg(sources().join("habitual_clients.py"));
    command.args(habits.iter().map(|(habit, address)| format!("{habit}={address}")));
    let mut guard = Guard::start(command, Stdio::inherit())?;
    let line = guard.line(Duration::from_secs(60))?;
    ensure!(line.as_deref() == Some("ready"), "clients said {line:?}");
    Ok(guard)
}

fn family(guard: &Guard) -> Vec<i32> {
    let mut pids = vec![guard.pid()];
    pids.extend(descendants(guard.pid()).into_iter().map(|(pid, _)| pid));
    pids
}

/// Looks at all of them for a while.
fn observe(pids: &[i32]) -> Result<Live> {
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    Observer::new(&["attach"])?
        .args(&pids.iter().map(String::as_str).collect::<Vec<_>>())
        .args(&["--threshold", "2s", "--output", "json", "--for", &format!("{}s", look_for()?.as_secs())])
        .start()
}

/// Silence, though their sockets were seen; returns how many requests they have that are not answered.
fn expect_quiet(report: &Report, pids: &[i32], what: &str) -> Result<u64> {
    report.expect_silence(what)?;
    let mut unanswered = 0;
    for process in report.json["processes"].as_array().context("processes")? {
        let debts = &process["debts"];
        // Others may have come or gone with a session of theirs.
        if pids.iter().any(|&pid| process["pid"] == pid) {
            ensure!(debts["connections"].is_u64(), "{what}: sockets were not listed: {debts:#}");
            unanswered += debts["unanswered"].as_u64().unwrap_or(0);
        }
    }
    Ok(unanswered)
}

fn expect_silence(live: Live, pids: &[i32], what: &str) -> Result<u64> {
    expect_quiet(&live.finish(look_for()? + AFTERWARDS)?.report()?, pids, what)
}

/// Starts a shell command that loads a server as long as it is held.
fn load(command: &str) -> Result<Guard> {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("while {command} >/dev/null 2>&1; do :; done")]);
    Guard::start(shell, Stdio::inherit())
}

/// Idle for longer than the threshold and looked at, once and for a while; then under load and looked at.
/// Returns how many requests were open when they were idle.
fn idle_then_busy(what: &str, pids: &[i32], load: impl FnOnce() -> Result<Vec<Guard>>) -> Result<u64> {
    wait_for_age(Instant::now(), THRESHOLD)?;
    let idle = format!("{what} ({pids:?}), idle");
    let open = expect_quiet(&look(pids)?, pids, &idle)?;
    expect_silence(observe(pids)?, pids, &idle)?;
    let mut loads = load()?;
    let live = observe(pids)?;
    expect_silence(live, pids, &format!("{what} ({pids:?}), busy"))?;
    for load in &mut loads {
        ensure!(load.ended(Duration::ZERO).is_err(), "{what}: the load ended, so there was none");
    }
    Ok(open)
}

#[test]
fn web_servers_and_caches() -> Result<()> {
    if let Some(missing) = missing(&["nginx", "haproxy", "redis-server", "redis-benchmark", "memcached", "mosquitto"]) {
        skip!("{missing} is not installed");
    }
    let nginx = Service::nginx()?;
    let haproxy = Service::haproxy(nginx.address)?;
    let redis = Service::redis()?;
    let memcached = Service::memcached()?;
    let mosquitto = Service::mosquitto()?;
    let web: [(&str, &dyn Display); 6] = [
        ("http", &nginx.address),
        ("http", &nginx.address),
        ("http", &nginx.address),
        ("http", &haproxy.address),
        ("http", &haproxy.address),
        ("memcached", &memcached.address),
    ];
    let queues: [(&str, &dyn Display); 6] = [
        ("redis", &redis.address),
        ("blpop", &redis.address),
        ("blpop", &redis.address),
        ("subscribe", &redis.address),
        ("monitor", &redis.address),
        ("mqtt", &mosquitto.address),
    ];
    let clients = [clients(&web)?, clients(&queues)?];
    let mut pids: Vec<i32> = clients.iter().map(Guard::pid).collect();
    for service in [&nginx, &haproxy, &redis, &memcached, &mosquitto] {
        pids.extend(service.pids());
    }
    let open = idle_then_busy("nginx, haproxy, redis, memcached, mosquitto and clients", &pids, || {
        let page = |address| format!("python3 -c \"{}\"", REQUESTS.replace("ADDRESS", &format!("'{address}'")));
        Ok(vec![
            load(&format!("redis-benchmark -p {} -n 20000 -c 20 -q", redis.address.port()))?,
            load(&page(haproxy.address))?,
        ])
    })?;
    // Those in BLPOP look as if they were owed an answer: it is judged, and left alone.
    ensure!(open >= 2, "{open} requests are open");
    Ok(())
}

/// Some hundred requests over four connections.
const REQUESTS: &str = "
import http.client
all = [http.client.HTTPConnection(ADDRESS) for _ in range(4)]
for _ in range(100):
    for one in all:
        one.request('GET', '/')
        assert one.getresponse().read()
";

#[test]
fn a_database() -> Result<()> {
    let database = Postgres::start()?;
    let mut bench = database.client("pgbench")?;
    let filled = bench.args(["--initialize", "--quiet"]).stderr(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure!(filled.success(), "pgbench --initialize: {filled}");
    let mut sessions = Vec::new();
    for first in ["", "listen news;", "begin; select 1 from pgbench_branches;"] {
        let mut session = database.session()?;
        session.tell(&format!("{first}\n\\echo ready"))?;
        while session.line(Duration::from_secs(20))?.context("a session ended")? != "ready" {}
        sessions.push(session);
    }
    let mut pids: Vec<i32> = sessions.iter().map(Guard::pid).collect();
    pids.push(database.pid());
    pids.extend(descendants(database.pid()).into_iter().map(|(pid, _)| pid));
    idle_then_busy("PostgreSQL with idle, listening and idle-in-transaction sessions", &pids, || {
        let mut bench = database.client("pgbench")?;
        let time = (look_for()? + AFTERWARDS).as_secs().to_string();
        bench.args(["--client", "4", "--time", &time, "--no-vacuum"]).stderr(Stdio::null()).stdout(Stdio::null());
        Ok(vec![Guard::start(bench, Stdio::null())?])
    })
    .map(|_| ())
}

#[test]
fn who_waits_on_purpose() -> Result<()> {
    let poll = Server::python(&["longpoll", "5"])?;
    let socket = Server::python(&["websocket", "3"])?;
    let stream = Server::python(&["stream"])?;
    let habits: [(&str, &dyn Display); 6] = [
        ("longpoll", &poll.address),
        ("longpoll", &poll.address),
        ("websocket", &socket.address),
        ("websocket", &socket.address),
        ("stream", &stream.address),
        ("stream", &stream.address),
    ];
    let clients = clients(&habits)?;
    let mut pids = vec![poll.pid(), socket.pid(), stream.pid()];
    pids.extend(family(&clients));
    wait_for_age(Instant::now(), THRESHOLD)?;
    let what = "long-poll, websocket and streaming servers and their clients";
    expect_quiet(&look(&pids)?, &pids, what)?;
    let time = format!("{}s", 2 * look_for()?.as_secs());
    let live = Observer::new(&["watch", "--threshold", "2s", "--output", "ndjson", "--for", &time])?.start()?;
    expect_silence(observe(&pids)?, &pids, what)?;
    // Whoever is told of nobody sees the same.
    let output = live.finish(2 * look_for()? + AFTERWARDS)?;
    let ours = |line: &&str| pids.iter().any(|pid| line.contains(&format!("\"pid\":{pid},")));
    let found: Vec<&str> = output.stdout.lines().filter(ours).collect();
    ensure!(found.is_empty(), "{what} ({pids:?}): {found:#?}");
    Ok(())
}
