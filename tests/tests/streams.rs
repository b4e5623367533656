//! The stream sockets of processes, as observer lists them: read from its own recordings. The victims are in network
//! namespaces of their own, and all run in one PID namespace, so that the whole host is these.

use anyhow::{Context, Result, bail, ensure};
use observer_tests::compile::target_dir;
use observer_tests::guard::Guard;
use observer_tests::observer::{Observer, THRESHOLD};
use observer_tests::skip;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const READY: Duration = Duration::from_secs(20);

struct Victim {
    _guard: Guard,
    server: i32,
    client: i32,
    asked_ns: u64,
}

impl Victim {
    fn start(mode: &str) -> Result<Self> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("victims/stream_sockets.py");
        let mut command = Command::new("python3");
        command.arg(program).arg(mode);
        let mut guard = Guard::start(command, Stdio::inherit())?;
        let line = guard.line(READY)?.context("it ended early")?;
        let told: Value = serde_json::from_str(&line)?;
        let pid = |key: &str| told[key].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("a process");
        let (server, client) = (pid("server")?, pid("client")?);
        Ok(Self { _guard: guard, server, client, asked_ns: told["asked_ns"].as_u64().context("asked_ns")? })
    }
}

fn has_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What observer listed of each process, in the order of its listings, and what it lost.
type Listed = BTreeMap<i64, Vec<Value>>;

fn recorded(name: &str, command: &[&str], pids: &[i32]) -> Result<Listed> {
    let file: PathBuf = target_dir()?.join(format!("streams-{name}-{}.jsonl", std::process::id()));
    let path = file.to_str().context("a path")?;
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    let threshold = format!("{}ms", THRESHOLD.as_millis());
    let mut args = command.to_vec();
    args.extend(pids.iter().map(String::as_str));
    args.extend(["--threshold", &threshold, "--probes", "none", "--output", "json", "--record", path]);
    let run = Observer::new(&args)?.run()?;
    ensure!(matches!(run.code, Some(0 | 1)), "{run:?}");
    let text = std::fs::read_to_string(&file)?;
    std::fs::remove_file(&file)?;
    let mut listed = Listed::new();
    for line in text.lines().skip(1) {
        let observation: Value = serde_json::from_str(line)?;
        let facts = &observation["facts"];
        let lost = facts["lost"].as_object().into_iter().flatten().find(|(why, _)| why.starts_with("streams"));
        ensure!(lost.is_none(), "lost: {lost:?}");
        for streams in facts["streams"].as_array().into_iter().flatten() {
            let pid = streams["process"]["pid"].as_i64().context("a process")?;
            listed.entry(pid).or_default().push(streams.clone());
        }
    }
    Ok(listed)
}

fn connections(streams: &Value) -> Vec<&Value> {
    streams["connections"].as_array().into_iter().flatten().collect()
}

/// The one connection that `is` says.
fn one(streams: &Value, is: impl Fn(&Value) -> bool) -> Result<&Value> {
    match connections(streams).into_iter().filter(|connection| is(connection)).collect::<Vec<_>>().as_slice() {
        [one] => Ok(one),
        all => bail!("{} of {streams:#}", all.len()),
    }
}

fn expect_owed(streams: &Value, victim: &Victim) -> Result<()> {
    let read = one(streams, |c| c["received"] == 5)?;
    ensure!(read["inbound"] == true && read["unread"] == 0 && read["local"] == "127.0.0.1:7000", "{read:#}");
    ensure!(read["last_sent_ns"].is_null() && read["state"] == "ESTAB", "{read:#}");
    let off = read["last_received_ns"].as_u64().context("a time")?.abs_diff(victim.asked_ns);
    ensure!(off < 60_000_000, "off by {off} ns");
    let unread = one(streams, |c| c["received"] == 7)?;
    ensure!(unread["inbound"] == true && unread["unread"] == 7, "{unread:#}");
    let listener = &streams["listeners"][0];
    ensure!(listener["backlog"] == 1 && listener["waiting"].as_array().map(Vec::len) == Some(1), "{listener:#}");
    ensure!(listener["local"] == "127.0.0.1:7000", "{listener:#}");
    Ok(())
}

#[test]
fn a_server_that_owes_in_another_network_namespace() -> Result<()> {
    if !has_root() {
        skip!("a network namespace takes root");
    }
    let victim = Victim::start("owes")?;
    let own = std::fs::read_link("/proc/self/ns/net")?;
    ensure!(std::fs::read_link(format!("/proc/{}/ns/net", victim.server))? != own, "it is in our namespace");
    let listed = recorded("attach", &["attach", "--for", "3s"], &[victim.server, victim.client])?;
    let server = listed.get(&i64::from(victim.server)).context("the server was not listed")?;
    ensure!(server.len() >= 3, "listed {} times in 3 s", server.len());
    for streams in server {
        expect_owed(streams, &victim)?;
    }
    let client = listed.get(&i64::from(victim.client)).context("the client was not listed")?;
    let asks = one(&client[0], |c| c["sent"] == 5)?;
    ensure!(asks["inbound"] == false && asks["remote"] == "127.0.0.1:7000", "{asks:#}");
    ensure!(asks["peer_process"]["pid"] == victim.server, "{asks:#}");
    ensure!(asks["peer"] == one(&server[0], |c| c["received"] == 5)?["inode"], "{asks:#}");
    // Ids and times are the same in every listing.
    for (pid, all) in &listed {
        for streams in &all[1..] {
            ensure!(connections(streams) == connections(&all[0]), "{pid}: {streams:#} after {:#}", all[0]);
        }
    }
    Ok(())
}

#[test]
fn of_a_host_those_that_owe_are_listed_and_the_others_seldom() -> Result<()> {
    if !has_root() {
        skip!("a network namespace takes root");
    }
    let (owes, idle) = (Victim::start("owes")?, Victim::start("idle")?);
    let listed = recorded("watch", &["watch", "--for", "10s"], &[])?;
    let times = |pid: i32| listed.get(&i64::from(pid)).map_or(0, Vec::len);
    // Again and again as long as it owes, at the pace that the budget allows on this machine.
    ensure!(times(owes.server) >= 3, "the one that owes: {} times", times(owes.server));
    for streams in &listed[&i64::from(owes.server)] {
        expect_owed(streams, &owes)?;
    }
    ensure!(times(owes.client) >= 2, "the one that awaits: {} times", times(owes.client));
    // Once, as a service whose answers are learnt; its client is none.
    ensure!((times(idle.server), times(idle.client)) == (1, 0), "idle: {:?}", (times(idle.server), times(idle.client)));
    let answered = one(&listed[&i64::from(idle.server)][0], |c| c["received"] == 5)?;
    ensure!(answered["sent"] == 4 && answered["last_sent_ns"].as_u64() >= answered["last_received_ns"].as_u64());
    ensure!(!listed.contains_key(&i64::from(std::process::id())) || times(std::process::id().cast_signed()) <= 1);
    Ok(())
}
