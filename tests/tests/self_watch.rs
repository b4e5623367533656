//! Whatever receivers and targets do, the census goes on; and when it does not, `/healthz` says so.

use anyhow::{Context, Result, ensure};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use observer_tests::deadline::wait_until;
use observer_tests::serving::{Serving, value};
use observer_tests::victim::Unready;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

const DEADLOCKS: &str = r#"observer_findings_open{kind="deadlock",severity="critical"}"#;

#[test]
fn nobody_reads_stdout() -> Result<()> {
    let mut victim = Unready::start_inside("deadlock", &[])?.ready()?;
    // Two findings are more than a page of the pipe.
    let others = [victim.start_beside("deadlock", &["--threads", "3"])?, victim.start_beside("deadlock", &["--self"])?];
    let daemon = Serving::start_unread(&mut victim)?;
    let page = daemon.page_with(DEADLOCKS, |open| open == 3.0)?;
    ensure!(value(&page, r#"observer_export_lost_total{sink="stdout",reason="queue_full"}"#) == Some(0.0), "{page}");
    daemon.turns(5)?;
    // The writer sleeps in the pipe, with something left to write.
    let page = daemon.get("/metrics")?.body;
    let sent = value(&page, r#"observer_export_sent_total{sink="stdout"}"#).context("sent")?;
    ensure!(sent < 3.0, "the pipe took everything: this test has no point: {page}");
    ensure!(daemon.get("/healthz")?.status == 200);
    drop(others);
    // What is over is queued as well; and the end comes in time.
    daemon.turns(2)?;
    kill(Pid::from_raw(daemon.pid()?), Signal::SIGTERM)?;
    let mut live = daemon.live;
    let status = live.guard.ended(Duration::from_secs(60))?;
    ensure!(status.code() == Some(0), "{status}: {}", live.stderr()?);
    Ok(())
}

#[test]
fn clients_that_never_read_and_never_ask() -> Result<()> {
    let mut victim = Unready::start_inside("deadlock", &[])?.ready()?;
    let daemon = Serving::start(&mut victim)?;
    daemon.page_with(DEADLOCKS, |open| open == 1.0)?;
    let mut clients = Vec::new();
    for number in 0..80 {
        let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // The answer does not fit.
        setsockopt(&client, sockopt::RcvBuf, &1)?;
        connect(std::os::fd::AsRawFd::as_raw_fd(&client), &SockaddrStorage::from(daemon.address))?;
        let mut client = TcpStream::from(client);
        if number % 2 == 0 {
            client.write_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")?;
        }
        clients.push(client);
    }
    ensure!(daemon.get("/healthz")?.status == 200, "others are served");
    daemon.turns(5)?;
    ensure!(daemon.get("/healthz")?.body.starts_with("ok: "));
    daemon.page_with(r#"observer_export_lost_total{sink="prometheus",reason="too many connections"}"#, |lost| {
        lost > 0.0
    })?;
    // Those that are left have had their time.
    daemon.page_with(r#"observer_export_lost_total{sink="prometheus",reason="client too slow"}"#, |lost| lost > 0.0)?;
    drop(clients);
    Ok(())
}

#[test]
fn a_reader_that_a_target_keeps_is_replaced_and_counted() -> Result<()> {
    let mut victim = Unready::start_inside("deadlock", &[])?.ready()?;
    let _unreadable = victim.start_beside("unreadable", &[])?;
    let daemon = Serving::start(&mut victim)?;
    daemon.page_with("observer_self_workers_stuck", |stuck| stuck >= 1.0)?;
    daemon.page_with("observer_self_workers_replaced_total", |replaced| replaced >= 1.0)?;
    let page = daemon.page_with(DEADLOCKS, |open| open == 1.0)?;
    ensure!(value(&page, r#"observer_lost_total{stage="facts",reason="reader panicked"}"#).is_none(), "{page}");
    daemon.turns(5)?;
    ensure!(daemon.get("/healthz")?.status == 200);
    // One target is one reader, however long it lasts.
    let stuck = value(&daemon.get("/metrics")?.body, "observer_self_workers_stuck").context("stuck")?;
    ensure!(stuck <= 2.0, "one reader of facts, one of stacks: {stuck}");
    Ok(())
}

#[test]
fn a_census_that_does_not_turn_is_said_and_forgiven() -> Result<()> {
    let mut victim = Unready::start_inside("deadlock", &[])?.ready()?;
    let daemon = Serving::start(&mut victim)?;
    daemon.page_with(DEADLOCKS, |open| open == 1.0)?;
    ensure!(daemon.get("/healthz")?.status == 200);
    // The loop's thread alone: the server goes on.
    let main = Pid::from_raw(daemon.pid()?);
    ptrace::seize(main, ptrace::Options::empty()).context("seize the loop")?;
    ptrace::interrupt(main)?;
    wait_until("the loop to stop", Duration::from_secs(20), || {
        let status = waitpid(main, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL))?;
        Ok((!matches!(status, WaitStatus::StillAlive)).then_some(()))
    })?;
    let ill = wait_until("/healthz to say so", Duration::from_secs(30), || {
        let answer = daemon.get("/healthz")?;
        Ok((answer.status == 503).then_some(answer))
    })?;
    ensure!(ill.body.contains("the last census was 1") && ill.body.contains("(10 s are allowed)"), "{ill:?}");
    ensure!(daemon.get("/metrics")?.status == 200, "the last numbers are still served");
    ptrace::detach(main, None)?;
    wait_until("/healthz to forgive", Duration::from_secs(30), || {
        Ok((daemon.get("/healthz")?.status == 200).then_some(()))
    })
}
