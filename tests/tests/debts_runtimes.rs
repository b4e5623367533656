//! Event loops and pools of Node, Python and Java that have come to a stand, told by their debts; and healthy ones.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::{java_classes, sources};
use observer_tests::deadline::wait_for_age;
use observer_tests::debts::{Server, THRESHOLD, found, kinds, look, number};
use observer_tests::procfs::descendants;
use observer_tests::requests::{Client, unanswered};
use observer_tests::servers::missing;
use observer_tests::skip;
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

/// Connections of the pool of the Java server.
const SIZE: usize = 4;

/// Clients of an event loop, one of whose requests brings it to a stand; the others ask a moment later.
fn stand_still(mut server: Server) -> Result<(Server, Vec<Client>)> {
    let mut clients = Client::several(server.address, 4)?;
    for client in &mut clients {
        client.served()?;
    }
    server.stop()?;
    // The kernel notes the times of an answer and of the next request in ticks of some milliseconds: not in the same one.
    wait_for_age(Instant::now(), Duration::from_millis(50))?;
    clients[0].ask()?;
    wait_for_age(Instant::now(), Duration::from_millis(300))?;
    let since = Instant::now();
    for client in &mut clients[1..] {
        client.ask()?;
    }
    ensure!(unanswered(&mut clients, THRESHOLD)? == clients.len(), "somebody was answered");
    wait_for_age(since, THRESHOLD)?;
    Ok((server, clients))
}

fn node(mode: &str) -> Result<Server> {
    let mut command = Command::new("node");
    command.arg(sources().join("loop_server.js")).arg(mode);
    Server::start(command)
}

fn java(mode: &str, backend: &Server) -> Result<Server> {
    let mut command = Command::new("java");
    command.arg("-cp").arg(java_classes("PoolServer")?);
    command.args(["PoolServer", mode, &backend.address.to_string(), &SIZE.to_string()]);
    Server::start(command)
}

/// A finding that says how many lie unread, and no second one for the same cause.
fn expect_unread(server: &Server, clients: usize) -> Result<Value> {
    let report = look(&[server.pid()])?;
    let debts = &report.process(server.pid())?["debts"];
    // The first request was read, and is what it stands in.
    ensure!(debts["unanswered"] == clients, "{debts:#}");
    ensure!(debts["verdict"] == "hung", "{debts:#}");
    ensure!(kinds(&report, server.pid()).len() == 1, "{:#}", report.json["findings"]);
    Ok(found(&report, "not_reading", server.pid())?.clone())
}

/// A Node server whose loop stands still in this way, and what its finding must say of that.
fn node_stands_still(mode: &str, words: &str) -> Result<()> {
    if let Some(missing) = missing(&["node"]) {
        skip!("{missing} is not installed");
    }
    let (server, clients) = stand_still(node(mode)?)?;
    let finding = expect_unread(&server, clients.len())?;
    let explanation = finding["explanation"].as_str().context("explanation")?;
    ensure!(explanation.contains(words), "{explanation}");
    Ok(())
}

#[test]
fn a_node_loop_that_waits() -> Result<()> {
    node_stands_still("waits", "FutexEmulation::WaitSync")
}

#[test]
fn a_node_loop_that_computes() -> Result<()> {
    node_stands_still("spins", "CPU")
}

#[test]
fn an_asyncio_loop_that_waits_for_a_lock() -> Result<()> {
    let (server, clients) = stand_still(Server::python(&["loop"])?)?;
    expect_unread(&server, clients.len())?;
    Ok(())
}

/// What stops it is no lock and no socket: the pipe that its log goes to is full.
#[test]
fn a_loop_that_waits_to_write_its_log() -> Result<()> {
    let (server, clients) = stand_still(Server::python(&["logs"])?)?;
    let finding = expect_unread(&server, clients.len())?;
    let (reader, _) = *descendants(server.pid()).first().context("a reader")?;
    let held = finding["chain"].as_array().into_iter().flatten().any(|link| link["held_by"]["pid"] == reader);
    ensure!(held, "names {reader}, who does not read: {finding:#}");
    let explanation = finding["explanation"].as_str().context("explanation")?;
    ensure!(explanation.contains("write()") && explanation.contains("pipe"), "{explanation}");
    Ok(())
}

#[test]
fn a_java_pool_exhausted_from_within() -> Result<()> {
    if let Some(missing) = missing(&["java", "javac"]) {
        skip!("{missing} is not installed");
    }
    let backend = Server::python(&["backend"])?;
    let server = java("nested", &backend)?;
    let mut clients = Client::several(server.address, 2 * SIZE)?;
    for client in &mut clients {
        client.served()?;
    }
    let (burst, late) = clients.split_at_mut(2 * SIZE - 3);
    for client in burst {
        client.ask()?;
    }
    wait_for_age(Instant::now(), Duration::from_millis(300))?;
    let since = Instant::now();
    for client in late {
        client.ask()?;
    }
    let owed = unanswered(&mut clients, THRESHOLD)?;
    ensure!(owed >= SIZE, "{owed} requests are not answered: the pool is not exhausted");
    wait_for_age(since, THRESHOLD)?;
    let report = look(&[server.pid()])?;
    let finding = found(&report, "pool_exhausted", server.pid())?;
    ensure!(finding["evidence"]["pool"]["remote"] == backend.address.to_string(), "{finding:#}");
    ensure!(number(finding, "/pool/size")? == SIZE as u64, "{finding:#}");
    ensure!(number(finding, "/unanswered/count")? == owed as u64, "{owed} are not answered: {finding:#}");
    ensure!(kinds(&report, server.pid()) == ["pool_exhausted"], "{:#}", report.json["findings"]);
    Ok(())
}

#[test]
fn healthy_ones_are_left_alone() -> Result<()> {
    if let Some(missing) = missing(&["java", "javac", "node"]) {
        skip!("{missing} is not installed");
    }
    let backend = Server::python(&["backend"])?;
    let servers = [java("good", &backend)?, node("healthy")?, Server::python(&["loop"])?];
    let mut clients = Vec::new();
    for server in &servers {
        clients.extend(Client::several(server.address, 3 * SIZE)?);
    }
    let mut pids: Vec<i32> = servers.iter().map(Server::pid).collect();
    pids.push(backend.pid());
    for _ in 0..5 {
        for client in &mut clients {
            client.ask()?;
        }
        ensure!(unanswered(&mut clients, Duration::from_secs(20))? == 0, "somebody was not answered");
        look(&pids)?.expect_silence("event loops and pools at work")?;
    }
    wait_for_age(Instant::now(), 2 * THRESHOLD)?;
    let report = look(&pids)?;
    report.expect_silence("event loops and pools at rest")
}
