//! Which descriptors of a process are sockets: the kernel's file iterator and the links of `/proc/PID/fd` say the same.

use anyhow::{Context, Result, ensure};
use observer_tests::observer::Observer;
use observer_tests::skip;
use observer_tests::victim::Victim;
use serde_json::Value;

/// What the two ways list, and why the first one is missing.
fn listed(pids: &[i32]) -> Result<Vec<Value>> {
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    let args: Vec<&str> = ["bench-sockets", "--list"].into_iter().chain(pids.iter().map(String::as_str)).collect();
    let run = Observer::new(&args)?.run()?.expect_code(0)?;
    run.stdout.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn has(list: &Value, fd: i32) -> bool {
    list.as_array().into_iter().flatten().any(|one| one[0] == fd)
}

/// With so many sockets, the listing by the iterator equals that of `/proc` and the truth.
fn agree(count: &str) -> Result<()> {
    let victim = Victim::start("file_tables", &[count])?;
    let [process] = &listed(&[victim.truth.pid])?[..] else { anyhow::bail!("one process was asked for") };
    let links = process["proc"].as_array().context("the links")?;
    ensure!(links.len() == usize::try_from(victim.truth.number("sockets")?)?, "{} links", links.len());
    if let Some(why) = process["not_because"].as_str() {
        // Not to be skipped where there is an iterator.
        let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
        let numbers: Vec<u32> = kernel.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
        ensure!(numbers.as_slice() < &[6, 1], "{kernel}: {why}");
        skip!("the kernel's file iterator came with 6.1: {why}");
    }
    ensure!(process["iterator"] == process["proc"], "{process:#}");
    ensure!(has(&process["iterator"], victim.truth.number("passed")?), "{process:#}");
    ensure!(!has(&process["iterator"], victim.truth.number("own")?), "of another table: {process:#}");
    Ok(())
}

#[test]
fn few_of_every_kind() -> Result<()> {
    agree("0")
}

#[test]
fn more_than_one_read_of_the_iterator() -> Result<()> {
    agree("5000")
}

#[test]
fn a_process_that_is_gone() -> Result<()> {
    let victim = Victim::start("file_tables", &["0"])?;
    let pid = victim.truth.pid;
    drop(victim);
    let line = Observer::new(&["bench-sockets", "--list", &pid.to_string()])?.run()?.expect_refusal()?;
    ensure!(line.contains("no such process"), "{line}");
    Ok(())
}
