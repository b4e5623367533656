//! Servers that owe something and do not pay: connections not accepted, bytes not read, requests not answered; because of
//! themselves, because they are stopped, or because of whom they wait for.

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use observer_tests::deadline::{wait_for_age, wait_until};
use observer_tests::debts::{Server, THRESHOLD, debtor, found, kinds, look, number};
use observer_tests::guard::Guard;
use observer_tests::postgres::{Postgres, free_port};
use observer_tests::requests::{Client, unanswered};
use observer_tests::sockets;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a state may take to come about.
const REACHED: Duration = Duration::from_secs(20);

#[test]
fn nobody_accepts() -> Result<()> {
    let mut server = Server::python(&["accepts", "4"])?;
    let port = server.address.port();
    Client::connect(server.address)?.served()?;
    server.stop()?;
    let since = Instant::now();
    // One more than the limit fits in.
    let mut waiting = Client::several(server.address, 5)?;
    for client in &mut waiting {
        client.ask()?;
    }
    ensure!(sockets::backlog(port)? == (5, 4), "{:?}", sockets::backlog(port)?);
    wait_for_age(since, THRESHOLD)?;
    let report = look(&[server.pid()])?;
    let finding = found(&report, "not_accepting", server.pid())?;
    ensure!(number(finding, "/backlog")? == 5 && number(finding, "/limit")? == 4, "{finding:#}");
    ensure!(finding["evidence"]["local"] == server.address.to_string(), "{finding:#}");
    Ok(())
}

#[test]
fn a_full_unix_backlog() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("socket");
    let path = path.to_str().context("a path")?;
    let mut server = Server::python(&["accepts-unix", "2", path])?;
    drop(UnixStream::connect(path)?);
    server.stop()?;
    let since = Instant::now();
    let _waiting = (0..3).map(|_| UnixStream::connect(path)).collect::<Result<Vec<_>, _>>()?;
    ensure!(sockets::unix_backlog(path)? == (3, 2), "{:?}", sockets::unix_backlog(path)?);
    wait_for_age(since, THRESHOLD)?;
    let report = look(&[server.pid()])?;
    let finding = found(&report, "not_accepting", server.pid())?;
    ensure!(number(finding, "/backlog")? == 3 && number(finding, "/limit")? == 2, "{finding:#}");
    ensure!(finding["evidence"]["local"] == path, "{finding:#}");
    Ok(())
}

#[test]
fn nobody_reads() -> Result<()> {
    let mut server = Server::python(&["reads"])?;
    let port = server.address.port();
    let mut clients = Client::several(server.address, 3)?;
    for client in &mut clients {
        client.served()?;
    }
    server.stop()?;
    let since = Instant::now();
    for client in &mut clients {
        client.ask()?;
    }
    let bytes = wait_until("unread bytes", REACHED, || {
        let unread = sockets::unread(port)?;
        Ok((unread.iter().filter(|&&bytes| bytes > 0).count() == 3).then(|| unread.iter().sum::<u64>()))
    })?;
    wait_for_age(since, THRESHOLD)?;
    let report = look(&[server.pid()])?;
    let finding = found(&report, "not_reading", server.pid())?;
    ensure!(number(finding, "/unread_bytes")? == bytes, "{bytes} bytes: {finding:#}");
    let debts = &report.process(server.pid())?["debts"];
    ensure!(debts["unread_bytes"] == bytes, "{debts:#}");
    Ok(())
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A server in one network namespace, what it asks in another; the link between them goes down.
fn cut_off() -> Result<()> {
    // This thread's own: what it starts lives in there, and it all goes when they end.
    unshare(CloneFlags::CLONE_NEWNET)?;
    ip("link set lo up")?;
    let mut there = Command::new("unshare");
    there.args(["--net", "sh", "-c", "echo ready; exec cat"]);
    let mut there = Guard::start(there, Stdio::inherit())?;
    ensure!(there.line(REACHED)?.as_deref() == Some("ready"));
    let inside = |command: &[&str]| {
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &there.pid().to_string(), "--net", "--"]).args(command);
        enter
    };
    ip(&format!("link add here type veth peer name there netns {}", there.pid()))?;
    ip("addr add 10.77.0.1/24 dev here")?;
    ip("link set here up")?;
    for words in [&["ip", "addr", "add", "10.77.0.2/24", "dev", "there"][..], &["ip", "link", "set", "there", "up"]] {
        ensure!(inside(words).status()?.success(), "{words:?}");
    }
    let python = debtor(&["backend", "10.77.0.2"]);
    let mut words = vec![python.get_program()];
    words.extend(python.get_args());
    let words: Vec<&str> = words.into_iter().map(|word| word.to_str().context("a word")).collect::<Result<_>>()?;
    let backend = Server::start(inside(&words))?;
    let remote = format!("10.77.0.2:{}", backend.address.port());

    let server = Server::python(&["relay", &remote])?;
    let mut clients = Client::several(server.address, 3)?;
    for client in &mut clients {
        client.served()?;
    }
    ensure!(inside(&["ip", "link", "set", "there", "down"]).status()?.success());
    let since = Instant::now();
    for client in &mut clients {
        client.ask()?;
    }
    let owed = unanswered(&mut clients, THRESHOLD)?;
    ensure!(owed == 3, "{owed} requests are not answered");
    wait_for_age(since, THRESHOLD)?;
    let report = look(&[server.pid()])?;
    let finding = found(&report, "awaiting_reply", server.pid())?;
    ensure!(finding["evidence"]["remote"] == remote, "{remote}: {finding:#}");
    ensure!(number(finding, "/retransmits")? > 0, "{finding:#}");
    ensure!(number(finding, "/unanswered/count")? == 3, "{finding:#}");
    let debts = &report.process(server.pid())?["debts"];
    ensure!(debts["unanswered"] == owed && debts["awaiting_reply"] == 3, "{debts:#}");
    Ok(())
}

#[test]
fn a_peer_that_was_cut_off() -> Result<()> {
    std::thread::spawn(cut_off).join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

#[test]
fn a_stopped_redis() -> Result<()> {
    let address = free_port()?;
    let directory = tempfile::tempdir()?;
    let mut command = Command::new("redis-server");
    command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.current_dir(directory.path());
    let redis = Guard::start(command, Stdio::inherit())?;
    let connect = || wait_until("redis", REACHED, || Ok(TcpStream::connect(address).ok()));
    let mut clients = (0..3).map(|_| connect()).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        client.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        client.read_exact(&mut answer)?;
        ensure!(&answer == b"+PONG\r\n");
    }
    redis.signal(Signal::SIGSTOP)?;
    let since = Instant::now();
    for client in &mut clients {
        client.write_all(b"PING\r\n")?;
    }
    wait_until("unread bytes", REACHED, || Ok((sockets::unread(address.port())? == [6, 6, 6]).then_some(())))?;
    wait_for_age(since, THRESHOLD)?;
    let report = look(&[redis.pid()])?;
    // One mistake, one finding: why nobody reads is that it is stopped.
    let finding = found(&report, "stopped", redis.pid())?;
    ensure!(kinds(&report, redis.pid()) == ["stopped"], "{:#}", report.json["findings"]);
    ensure!(number(finding, "/waiters")? == 3, "{finding:#}");
    let explanation = finding["explanation"].as_str().context("explanation")?;
    ensure!(explanation.contains(&address.to_string()), "who waits: {explanation}");
    let debts = &report.process(redis.pid())?["debts"];
    ensure!(debts["unread_bytes"] == 18, "{debts:#}");
    Ok(())
}

#[test]
fn sessions_behind_a_table_lock() -> Result<()> {
    let database = Postgres::start()?;
    database.ask("create table stock (id int)")?;
    let mut holder = database.session()?;
    holder.tell("begin; lock table stock; select pg_backend_pid();")?;
    let holder_backend: i32 = holder.line(REACHED)?.context("a line")?.parse()?;
    let mut waiters = Vec::new();
    let mut backends = Vec::new();
    for _ in 0..2 {
        let mut waiter = database.session()?;
        waiter.tell("select pg_backend_pid();")?;
        backends.push(waiter.line(REACHED)?.context("a line")?.parse::<i32>()?);
        // The kernel notes the times of an answer and of the next request in ticks of some milliseconds: not in the same one.
        wait_for_age(Instant::now(), Duration::from_millis(50))?;
        waiter.tell("select count(*) from stock;")?;
        waiters.push(waiter);
    }
    let blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    wait_until("two sessions behind the lock", REACHED, || Ok((database.ask(blocked)? == "2").then_some(())))?;
    wait_for_age(Instant::now(), THRESHOLD)?;
    let mut pids = backends.clone();
    pids.extend(waiters.iter().map(Guard::pid));
    pids.push(holder_backend);
    let report = look(&pids)?;
    for (backend, client) in backends.iter().zip(&waiters) {
        let finding = found(&report, "unanswered_requests", *backend)?;
        ensure!(number(finding, "/unanswered/count")? == 1, "{finding:#}");
        // The client waits, too: its finding, if it has one of its own, says for whom.
        for finding in report.json["findings"].as_array().context("findings")? {
            if finding["pid"] == client.pid() {
                ensure!(finding["kind"] == "awaiting_reply", "{finding:#}");
                ensure!(finding["evidence"]["remote"] == database.address.to_string(), "{finding:#}");
            }
        }
    }
    // It has answered, and waits for what comes next.
    ensure!(kinds(&report, holder_backend).is_empty(), "{:#}", report.json["findings"]);
    Ok(())
}
