//! Who has the other end of what a thread waits for. Victim and observer run in a PID namespace of their own, so that the
//! search sees these processes only.

use anyhow::{Context, Result, ensure};
use observer_tests::observer::{OLD_ENOUGH, Observer};
use observer_tests::report::Report;
use observer_tests::skip;
use observer_tests::victim::{Unready, Victim};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

const ONCE: &[&str] = &["--once", "--output", "json", "--probes", "none"];

fn start(mode: &str, dir: &Path) -> Result<Victim> {
    let victim = Unready::start_inside("ends", &[mode, dir.to_str().context("a path")?])?.ready()?;
    victim.older_than(OLD_ENOUGH)?;
    Ok(victim)
}

fn look_at(victim: &mut Victim, pids: &[i32]) -> Result<Report> {
    Observer::attach_inside(victim, pids, ONCE)?.run()?.report()
}

/// The holders the victim promises, by thread and descriptor.
type Promised = BTreeMap<(String, i64, bool), BTreeSet<(i64, i64)>>;

fn promised(victim: &Victim) -> Result<Promised> {
    let mut all = Promised::new();
    for end in victim.truth.all["ends"].as_array().context("ends")? {
        let number = |key: &str| end[key].as_i64().with_context(|| format!("{key} of {end}"));
        let name = end["name"].as_str().context("name")?.to_owned();
        let place = (name, number("fd")?, end["member"] == true);
        all.entry(place).or_default().insert((number("pid")?, number("far")?));
    }
    ensure!(!all.is_empty(), "the victim promises nothing: {:#}", victim.truth.all);
    Ok(all)
}

/// What is expected of an end: everything was searched, and these hold it.
fn expect_end(end: &Value, holders: &BTreeSet<(i64, i64)>, object: &str) -> Result<()> {
    let holders: Vec<Value> = holders.iter().map(|(pid, fd)| json!({ "pid": pid, "fd": fd })).collect();
    ensure!(end["holders"] == Value::from(holders.clone()), "expected {holders:?}: {end:#}");
    ensure!(end["unsearched"] == 0, "{end:#}");
    ensure!(end["object"].as_str().is_some_and(|text| text.starts_with(object)), "expected {object}…: {end:#}");
    Ok(())
}

fn wait_of<'a>(report: &'a Report, victim: &Victim, name: &str) -> Result<&'a Value> {
    let thread = victim.truth.thread(name)?;
    Ok(&report.thread(thread.pid, thread.tid)?["wait"])
}

/// Looks at all processes of a victim together and at each alone: the single waits have the ends promised.
fn single_ends(mode: &str, kind: &str, object: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut victim = start(mode, dir.path())?;
    let pids = victim.truth.pids();
    let together = look_at(&mut victim, &pids)?;
    for ((name, fd, _), holders) in promised(&victim)? {
        let pid = victim.truth.thread(&name)?.pid;
        let alone = look_at(&mut victim, &[pid])?;
        for report in [&together, &alone] {
            let wait = wait_of(report, &victim, &name)?;
            ensure!(wait["resource"]["kind"] == kind && wait["resource"]["fd"] == fd, "{mode}: {wait:#}");
            expect_end(&wait["far_end"], &holders, object).with_context(|| format!("{mode}: {name}"))?;
            ensure!(wait["members"] == json!([]), "{mode}: {wait:#}");
            // A writer waits because it is full, a reader because nothing is in it.
            let unread = wait["far_end"]["unread_bytes"].as_u64();
            let expected = (kind == "pipe").then(|| wait["class"] == "write");
            ensure!(unread.map(|bytes| bytes > 0) == expected, "{mode}: {name}: {wait:#}");
            if report.findings().count() == 0 {
                // Anybody may open a FIFO that somebody reads from.
                ensure!(mode == "fifos", "{mode}: no finding: {:#}", report.json);
                continue;
            }
            expect_deadlock(mode, report, &victim).context(mode.to_owned())?;
        }
    }
    Ok(())
}

/// One finding: the victim's threads wait for each other, each chain runs round.
fn expect_deadlock(mode: &str, report: &Report, victim: &Victim) -> Result<()> {
    let sure = if mode == "threads" { "possible" } else { "likely" };
    let finding = report.only("deadlock", &victim.truth)?.expect("confidence", sure)?;
    let tids: BTreeSet<i64> = victim.truth.threads.iter().map(|thread| thread.tid.into()).collect();
    ensure!(finding.0["evidence"]["members"] == json!(tids), "{:#}", finding.0);
    let edges = finding.0["chain"].as_array().context("chain")?;
    let from: BTreeSet<i64> = edges.iter().filter_map(|edge| edge["from"]["tid"].as_i64()).collect();
    let to: BTreeSet<i64> = edges.iter().filter_map(|edge| edge["held_by"]["tid"].as_i64()).collect();
    ensure!(edges.len() == tids.len() && from == tids && to == tids, "{edges:#?}");
    ensure!(report.code == Some(1), "a finding is exit code 1");
    let asked =
        report.json["processes"].as_array().into_iter().flatten().flat_map(|process| process["threads"].as_array());
    for thread in asked.flatten().filter(|thread| tids.iter().any(|tid| thread["tid"] == *tid)) {
        ensure!(thread["chain"]["end"]["kind"] == "cycle", "{thread:#}");
    }
    Ok(())
}

#[test]
fn full_pipes() -> Result<()> {
    single_ends("pipes", "pipe", "pipe:[")
}

#[test]
fn full_unix_sockets() -> Result<()> {
    single_ends("socketpair", "unix", "socket:[")
}

#[test]
fn fifos_that_have_names() -> Result<()> {
    single_ends("fifos", "pipe", "/")
}

#[test]
fn a_pipe_between_parent_and_child() -> Result<()> {
    single_ends("child", "pipe", "pipe:[")
}

#[test]
fn a_child_whose_output_nobody_reads() -> Result<()> {
    single_ends("unread", "pipe", "pipe:[")
}

#[test]
fn a_worker_at_rest_might_read_it_yet() -> Result<()> {
    single_ends("threads", "pipe", "pipe:[")
}

#[test]
fn full_connections_over_loopback() -> Result<()> {
    single_ends("tcp", "tcp", "socket:[")
}

#[test]
fn full_connections_between_network_namespaces() -> Result<()> {
    let mut probe = Command::new("unshare");
    probe.args(["--net", "ip", "link", "add", "far0", "type", "veth", "peer", "name", "near0"]);
    if !probe.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        skip!("no veth pair can be made with ip(8)");
    }
    single_ends("veth", "tcp", "socket:[")
}

#[test]
fn a_chain_is_followed_through_an_end_out_of_scope() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut victim = start("chain", dir.path())?;
    let recording = dir.path().join("recording.ndjson");
    let first = victim.truth.thread("first")?.pid;
    let more = ["--record", recording.to_str().context("a path")?];
    let report = Observer::attach_inside(&mut victim, &[first], &[ONCE, &more].concat())?.run()?.report()?;
    // What was gathered of processes that were not asked for is in the recording only.
    let text = std::fs::read_to_string(&recording)?;
    let mut told: BTreeMap<i64, Value> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let turn: Value = serde_json::from_str(line)?;
        for thread in turn["facts"]["threads"].as_array().into_iter().flatten() {
            told.insert(thread["tid"].as_i64().context("tid")?, thread.clone());
        }
    }
    let (second, third) = (victim.truth.thread("second")?, victim.truth.thread("third")?);
    let end = &told.get(&i64::from(second.tid)).context("nothing was gathered of the second")?["far_end"];
    let holders = end["holders"].as_array().context("holders")?;
    let [holder] = holders.as_slice() else { anyhow::bail!("one has the other end: {end:#}") };
    let promised = promised(&victim)?;
    let place = ("second".to_owned(), end_fd(&promised)?, false);
    let found = (holder["process"]["pid"].as_i64().context("pid")?, holder["fd"].as_i64().context("fd")?);
    ensure!(promised.get(&place) == Some(&BTreeSet::from([found])), "{end:#}: {promised:?}");
    ensure!(told.contains_key(&i64::from(third.tid)), "who has the other end was not looked at: {:?}", told.keys());
    let tid = |name: &str| Ok::<i64, anyhow::Error>(victim.truth.thread(name)?.tid.into());
    let steps = [("first", "second", "holder"), ("second", "third", "other_end"), ("third", "fourth", "child")];
    let mut expected = Vec::new();
    for (from, to, relation) in steps {
        expected.push((tid(from)?, tid(to)?, relation));
    }
    let waiter = report.thread(first, first)?;
    let finding = report.only("lock_wait", &victim.truth)?.expect("confidence", "certain")?;
    for chain in [&finding.0["chain"], &waiter["chain"]["links"]] {
        let step = |link: &'_ Value| {
            let relation = steps.iter().map(|(.., relation)| *relation).find(|relation| link["relation"] == *relation);
            Some((link["from"]["tid"].as_i64()?, link["held_by"]["tid"].as_i64()?, relation?))
        };
        let found: Vec<_> = chain.as_array().context("a chain")?.iter().filter_map(step).collect();
        ensure!(found == expected, "{chain:#}");
    }
    let end = &waiter["chain"]["end"];
    ensure!(end["kind"] == "root" && end["tid"] == tid("fourth")?, "{end:#}");
    ensure!(end["doing"].as_str().is_some_and(|doing| doing.contains("nanosleep")), "{end:#}");
    ensure!(finding.0["explanation"].as_str().is_some_and(|text| text.contains("nanosleep")), "{:#}", finding.0);
    Ok(())
}

fn end_fd(promised: &Promised) -> Result<i64> {
    promised.keys().map(|(_, fd, _)| *fd).next().context("an end")
}

/// The members of a polled set: all of them, with events and ends.
fn members(mode: &str, kind: &str, events: &[&[&str]], object: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut victim = start(mode, dir.path())?;
    let poller = victim.truth.thread("poller")?.pid;
    let report = look_at(&mut victim, &[poller])?;
    let wait = wait_of(&report, &victim, "poller")?;
    let members = wait["members"].as_array().context("members")?;
    ensure!(wait["class"] == "event" && wait["members_cut"] == 0 && wait["far_end"].is_null(), "{mode}: {wait:#}");
    let promised = promised(&victim)?;
    let found: BTreeSet<i64> = members.iter().filter_map(|m| m["fd"].as_i64()).collect();
    let expected: BTreeSet<i64> = promised.keys().map(|(_, fd, _)| *fd).collect();
    ensure!(found == expected && members.len() == expected.len(), "{mode}: {expected:?}: {wait:#}");
    for (((_, fd, _), holders), events) in promised.iter().zip(events) {
        let member = members.iter().find(|m| m["fd"] == *fd).context("a member")?;
        ensure!(member["kind"] == kind, "{mode}: {member:#}");
        ensure!(member["events"] == json!(events), "{mode}: expected {events:?}: {member:#}");
        expect_end(&member["far_end"], holders, object).with_context(|| format!("{mode}: fd {fd}"))?;
    }
    let resource = &wait["resource"];
    if mode != "epoll" {
        let detail = resource["detail"].as_str().unwrap_or_default();
        ensure!(resource["kind"] == "descriptors" && detail.starts_with("2 descriptors: "), "{mode}: {resource:#}");
        ensure!(expected.iter().all(|fd| detail.contains(&format!("(fd {fd}, "))), "{mode}: {detail}");
    }
    Ok(())
}

#[test]
fn members_of_poll() -> Result<()> {
    members("poll", "pipe", &[&["in"], &["out"]], "pipe:[")
}

#[test]
fn members_of_select() -> Result<()> {
    members("select", "unix", &[&["in"], &["in", "out"]], "socket:[")
}

#[test]
fn members_of_epoll() -> Result<()> {
    // The kernel adds err and hup to what was asked for.
    let each: &[&str] = &["in", "err", "hup", "rdhup"];
    members("epoll", "unix", &[each, each], "socket:[")
}

#[test]
fn a_pidfd_and_an_eventfd_in_a_set() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut victim = start("pidfd", dir.path())?;
    let poller = victim.truth.thread("poller")?.pid;
    let report = look_at(&mut victim, &[poller])?;
    let wait = wait_of(&report, &victim, "poller")?;
    let member = |fd: i64| {
        let mut members = wait["members"].as_array().into_iter().flatten();
        members.find(|m| m["fd"] == fd).with_context(|| format!("no member {fd}: {wait:#}"))
    };
    ensure!(wait["members"].as_array().map(Vec::len) == Some(2), "{wait:#}");
    let process = member(victim.truth.number("pidfd")?.into())?;
    let other = victim.truth.thread("other")?.pid;
    ensure!(process["kind"] == "child" && process["detail"] == format!("process {other}"), "{process:#}");
    ensure!(process["far_end"].is_null(), "{process:#}");
    for ((_, fd, _), holders) in promised(&victim)? {
        let counter = member(fd)?;
        ensure!(counter["kind"] == "eventfd", "{counter:#}");
        expect_end(&counter["far_end"], &holders, "eventfd-id ")?;
    }
    Ok(())
}

#[test]
fn a_child_by_its_pidfd() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut victim = start("waitid", dir.path())?;
    let parent = victim.truth.thread("parent")?.pid;
    let report = look_at(&mut victim, &[parent])?;
    let wait = wait_of(&report, &victim, "parent")?;
    let child = victim.truth.thread("child")?.pid;
    ensure!(wait["class"] == "child" && wait["resource"]["kind"] == "child", "{wait:#}");
    ensure!(wait["resource"]["fd"] == victim.truth.number("pidfd")?, "{wait:#}");
    ensure!(wait["resource"]["detail"] == format!("process {child}"), "{wait:#}");
    Ok(())
}

#[test]
fn the_text_names_the_other_end() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut victim = start("child", dir.path())?;
    let (child, parent) = (victim.truth.thread("child")?.pid, victim.truth.thread("parent")?.pid);
    let far = victim.truth.all["ends"][0]["far"].clone();
    let output = Observer::attach_inside(&mut victim, &[child], &["--once", "--probes", "none"])?.run()?;
    let expected = format!(", other end: parent (pid {parent}, fd {far})");
    ensure!(output.stdout.contains(&expected) && output.stdout.contains("pipe:["), "{expected}: {}", output.stdout);
    Ok(())
}

#[test]
fn healthy_processes_joined_by_pipes_have_no_finding() -> Result<()> {
    are_left_alone(&["pipeline", "worker", "self-pipe"])
}

#[test]
fn healthy_processes_with_both_ends_have_no_finding() -> Result<()> {
    are_left_alone(&["both-ends", "ping-pong", "socket-pong"])
}

fn are_left_alone(modes: &[&str]) -> Result<()> {
    for mode in modes {
        let mut victim = Unready::start_inside("healthy_ends", &[*mode])?.ready()?;
        victim.older_than(OLD_ENOUGH)?;
        let pids = victim.truth.pids();
        for look in [ONCE, &["--for", "2500ms", "--output", "json", "--probes", "none"]] {
            Observer::attach_inside(&mut victim, &pids, look)?.run()?.report()?.expect_silence(mode)?;
        }
    }
    Ok(())
}
