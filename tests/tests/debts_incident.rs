//! Servers that owe answers to everybody while all of their threads are parked as if they were idle: a request takes a second
//! connection to the database while it holds one, and the pool waits without a limit. And their healthy siblings.

use anyhow::{Context, Result, ensure};
use observer_tests::deadline::wait_for_age;
use observer_tests::debts::{Server, THRESHOLD, attach, found, kinds, look, number};
use observer_tests::observer::Observer;
use observer_tests::postgres::Postgres;
use observer_tests::report::Report;
use observer_tests::requests::{Client, unanswered};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

/// Connections of the pool.
const SIZE: usize = 4;

/// A server with its database and its clients.
struct Scene {
    clients: Vec<Client>,
    server: Server,
    database: Postgres,
}

impl Scene {
    /// Starts all three; every client has been served once.
    fn start(mode: &str, clients: usize, seconds: u64) -> Result<Self> {
        let database = Postgres::start()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_pool_server"));
        command.args([mode, &database.address.to_string(), &SIZE.to_string(), &seconds.to_string()]);
        let server = Server::start(command)?;
        let mut clients = Client::several(server.address, clients)?;
        for client in clients.iter_mut().filter(|_| ["nested", "timeout", "good"].contains(&mode)) {
            client.served()?;
        }
        Ok(Self { clients, server, database })
    }

    fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// How many connections to the database have had their answer and wait for a question, says the database.
    fn idle(&self) -> Result<usize> {
        let count = "select count(*) from pg_stat_activity \
            where backend_type = 'client backend' and state = 'idle' and pid <> pg_backend_pid()";
        Ok(self.database.ask(count)?.parse()?)
    }

    /// Most ask at once, then the others; see [`exhaust`].
    fn exhaust(&mut self) -> Result<usize> {
        exhaust(&mut self.clients)
    }
}

/// All but three ask at once, and these a little later; how many are not answered one threshold after that.
fn exhaust(clients: &mut [Client]) -> Result<usize> {
    let (burst, late) = clients.split_at_mut(clients.len() - 3);
    let since = everybody_asks(burst)?;
    // By then nothing moves any more.
    wait_for_age(since, Duration::from_millis(300))?;
    let since = everybody_asks(late)?;
    let owed = unanswered(clients, THRESHOLD)?;
    wait_for_age(since, THRESHOLD)?;
    Ok(owed)
}

fn everybody_asks(clients: &mut [Client]) -> Result<Instant> {
    for client in clients {
        client.ask()?;
    }
    Ok(Instant::now())
}

/// What a finding about an exhausted pool must say, against the truth.
fn expect_pool(finding: &Value, remote: &str, owed: usize) -> Result<()> {
    ensure!(finding["evidence"]["pool"]["remote"] == remote, "the database is {remote}: {finding:#}");
    ensure!(number(finding, "/pool/size")? == SIZE as u64, "{finding:#}");
    ensure!(number(finding, "/unanswered/count")? == owed as u64, "{owed} are not answered: {finding:#}");
    for told in ["title", "explanation", "remedy"] {
        ensure!(finding[told].as_str().is_some_and(|text| !text.is_empty()), "{told}: {finding:#}");
    }
    let explanation = finding["explanation"].as_str().context("explanation")?;
    ensure!(explanation.contains(remote), "{explanation}");
    Ok(())
}

/// A task per client, and one per connection to the database; all of them wait.
fn expect_tasks(report: &Report, pid: i32) -> Result<()> {
    let tasks = &report.process(pid)?["tasks"];
    ensure!(tasks["total"] == 4 * SIZE && tasks["idle"] == 4 * SIZE, "{tasks:#}");
    let mut counts: Vec<u64> =
        tasks["groups"].as_array().into_iter().flatten().filter_map(|g| g["idle"].as_u64()).collect();
    counts.retain(|count| *count > 0);
    ensure!(counts == [3 * SIZE as u64, SIZE as u64], "{tasks:#}");
    let finding = found(report, "pool_exhausted", pid)?;
    let evidence = &finding["evidence"]["tasks"];
    ensure!(evidence["groups"][0]["idle_long"] == 3 * SIZE && evidence["is_whole"] == true, "{evidence:#}");
    let explanation = finding["explanation"].as_str().context("explanation")?;
    let told = format!("Of its {} tasks of tokio none runs; {} of ", 4 * SIZE, 3 * SIZE);
    ensure!(explanation.contains(&told), "not {told}: {explanation}");
    Ok(())
}

#[test]
fn a_pool_exhausted_from_within() -> Result<()> {
    let mut scene = Scene::start("nested", 3 * SIZE, 0)?;
    let owed = scene.exhaust()?;
    ensure!(owed >= SIZE, "{owed} requests are not answered: the pool is not exhausted");
    ensure!(scene.idle()? == SIZE, "{} connections are idle", scene.idle()?);
    let database = scene.database.address.to_string();

    let report = look(&[scene.pid()])?;
    expect_pool(found(&report, "pool_exhausted", scene.pid())?, &database, owed)?;
    // One mistake, one finding.
    ensure!(kinds(&report, scene.pid()) == ["pool_exhausted"], "{:#}", report.json["findings"]);
    let debts = &report.process(scene.pid())?["debts"];
    ensure!(debts["unanswered"] == owed, "{debts:#}");
    expect_tasks(&report, scene.pid())?;

    let screen = attach(&[scene.pid()], &["--once"])?.expect_code(1)?.stdout;
    // The stacks that follow are long; the story is told before they begin.
    let screen = screen.split("\n  stack of ").next().context("a screen")?;
    ensure!(screen.lines().count() <= 30, "more than a screen: {screen}");
    for told in [&database, "pool_exhausted", &format!("{owed} requests"), &format!("{SIZE} connections")] {
        ensure!(screen.contains(told), "it does not say {told}: {screen}");
    }
    // Nor have they been answered since.
    ensure!(unanswered(&mut scene.clients, Duration::ZERO)? == owed);
    Ok(())
}

#[test]
fn the_host_is_watched_and_the_pool_found() -> Result<()> {
    let mut scene = Scene::start("nested", 2 * SIZE, 0)?;
    let mut watch = Observer::new(&["watch", "--threshold", "2s", "--output", "ndjson", "--for", "60s"])?.start()?;
    let owed = scene.exhaust()?;
    let pid = scene.pid();
    let finding = watch.finding(Duration::from_secs(60), |one| one["pid"] == pid && one["kind"] == "pool_exhausted")?;
    expect_pool(&finding, &scene.database.address.to_string(), owed)
}

#[test]
fn a_pool_that_waits_with_a_limit() -> Result<()> {
    const LIMIT: u64 = 12;
    let mut scene = Scene::start("timeout", 2 * SIZE, LIMIT)?;
    let pid = scene.pid();
    let mut live = Observer::new(&["attach", &pid.to_string()])?
        .args(&["--threshold", "2s", "--output", "ndjson", "--for", "60s"])
        .start()?;
    scene.exhaust()?;
    let ours = |one: &Value| one["pid"] == pid && one["kind"] == "pool_exhausted";
    let opened = live.finding(Duration::from_secs(LIMIT), |one| ours(one) && one["state"] == "open")?;
    // In the end all are answered, some with 503; then the debt is paid, and that is said.
    let mut refused = 0;
    for client in scene.clients.iter_mut().filter(|client| client.asked.is_some()) {
        let status = client.answer(Duration::from_secs(2 * LIMIT))?.context("never answered")?;
        refused += usize::from(status == 503);
    }
    ensure!(refused > 0, "nobody had to wait too long");
    let resolved = live.finding(Duration::from_secs(30), |one| ours(one) && one["state"] == "resolved")?;
    ensure!(resolved["id"] == opened["id"], "{opened:#}{resolved:#}");
    Ok(())
}

#[test]
fn a_pool_of_threads_exhausted_from_within() -> Result<()> {
    let backend = Server::python(&["backend"])?;
    let server = Server::python(&["pool", &backend.address.to_string(), &SIZE.to_string()])?;
    let mut clients = Client::several(server.address, 3 * SIZE)?;
    for client in &mut clients {
        client.served()?;
    }
    let owed = exhaust(&mut clients)?;
    ensure!(owed >= SIZE, "{owed} requests are not answered: the pool is not exhausted");
    let report = look(&[server.pid()])?;
    expect_pool(found(&report, "pool_exhausted", server.pid())?, &backend.address.to_string(), owed)
}

#[test]
fn workers_blocked_in_the_middle_of_tasks() -> Result<()> {
    let mut scene = Scene::start("blocked", SIZE, 0)?;
    let owed = scene.exhaust()?;
    ensure!(owed == SIZE, "{owed} requests are not answered");
    let report = look(&[scene.pid()])?;
    let debts = &report.process(scene.pid())?["debts"];
    ensure!(debts["unanswered"] == owed, "{debts:#}");
    let tasks = &report.process(scene.pid())?["tasks"];
    ensure!(tasks["total"] == 2 * SIZE && tasks["running"] == 2, "a task per client and connection: {tasks:#}");
    // Two workers are in the middle of a request each; nobody is left to read the others.
    found(&report, "lock_wait", scene.pid())?;
    let finding = found(&report, "not_reading", scene.pid())?;
    ensure!(number(finding, "/connections")? == owed as u64 - 2, "{finding:#}");
    // The pool lies idle, and nobody has taken anything from it: whose requests wait, waits for a worker.
    ensure!(!kinds(&report, scene.pid()).contains(&"pool_exhausted"), "{:#}", report.json["findings"]);
    Ok(())
}

#[test]
fn servers_that_use_the_pool_well() -> Result<()> {
    let mut good = Scene::start("good", 3 * SIZE, 0)?;
    let mut poll = Scene::start("longpoll", 3 * SIZE, 4)?;
    let pids = [good.pid(), poll.pid()];
    // Idle first.
    look(&pids)?.expect_silence("idle servers")?;
    // The clients go on until observer has seen enough; long polls take two thresholds each.
    let live = Observer::new(&["attach", &pids[0].to_string(), &pids[1].to_string()])?
        .args(&["--threshold", "2s", "--output", "json", "--for", "14s"])
        .start()?;
    let until = Instant::now() + Duration::from_secs(16);
    let polls = std::thread::scope(|scope| {
        let polling = scope.spawn(|| -> Result<usize> {
            let mut polls = 0;
            while Instant::now() < until {
                everybody_asks(&mut poll.clients)?;
                for client in &mut poll.clients {
                    let status = client.answer(Duration::from_secs(30))?;
                    ensure!(status == Some(200), "answered with {status:?}");
                    polls += 1;
                }
            }
            Ok(polls)
        });
        while Instant::now() < until {
            everybody_asks(&mut good.clients)?;
            for client in &mut good.clients {
                let status = client.answer(Duration::from_secs(30))?;
                ensure!(status == Some(200), "answered with {status:?}");
            }
        }
        polling.join().map_err(|_| anyhow::anyhow!("the polling thread panicked"))?
    })?;
    ensure!(polls >= 3 * SIZE, "{polls} polls");
    live.finish(Duration::from_secs(60))?.report()?.expect_silence("servers under load")
}
