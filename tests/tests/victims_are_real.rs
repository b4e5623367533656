//! Every victim and every healthy program really is in the state it promises: checked from `/proc`, without observer.

use anyhow::{Context, Result, ensure};
use observer_tests::compile::{Abi, can_build};
use observer_tests::deadline::wait_until;
use observer_tests::victim::{BUSY, CONTENDED, IDLE, Truth, TruthThread, Unready, Victim};
use observer_tests::{procfs, skip};
use std::time::Duration;

const FUTEX: u32 = 202;
const POLL_ALIKE: &[&str] = &["poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait2"];

/// Every thread that promises a system call is asleep in it, with the arguments it read itself.
fn check_threads(truth: &Truth) -> Result<()> {
    for thread in &truth.threads {
        let state = procfs::state(thread.pid, thread.tid).with_context(|| format!("{thread:?} is gone"))?;
        if let Some((name, number, args)) = &thread.syscall {
            let looping = truth.all["loops"] == true;
            let seen = if looping {
                wait_until("the loop to be in its call", Duration::from_secs(2), || {
                    Ok(procfs::syscall(thread.pid, thread.tid).filter(|(n, _)| n == number))
                })?
            } else {
                ensure!(state == thread.state, "{thread:?} is in state {state}");
                procfs::syscall(thread.pid, thread.tid).with_context(|| format!("{thread:?} runs"))?
            };
            ensure!(seen == (*number, *args), "{name}: {seen:x?} is not {thread:x?}");
        }
        ensure!(procfs::comm(thread.pid, thread.tid)? == thread.name, "comm of {thread:?}");
        let own = procfs::status_numbers(thread.pid, thread.tid, "NSpid")?;
        ensure!(own.last() == Some(&thread.inside.0.into()), "{thread:?} is {own:?} in its namespace");
    }
    Ok(())
}

fn word(pid: i32, address: u64) -> Result<u32> {
    let bytes = procfs::memory(pid, address, 4)?;
    Ok(u32::from_ne_bytes(bytes.try_into().ok().context("four bytes")?))
}

/// The lock in the target's memory names the owner the truth names, the way glibc 2.36 stores it.
fn check_owner(thread: &TruthThread, owner_inside: i32) -> Result<()> {
    let Some((_, FUTEX, args)) = &thread.syscall else {
        return Ok(());
    };
    let owner = owner_inside.cast_unsigned();
    let uaddr = args[0];
    let stored = match thread.resource.as_deref() {
        Some("mutex") if args[1] & 0x7f == 6 || args[2] & 0x8000_0000 != 0 => word(thread.pid, uaddr)? & 0x3fff_ffff,
        Some("mutex") => word(thread.pid, uaddr + 8)?,
        Some("rwlock") => word(thread.pid, thread.waits_for.context("rwlock")? + 24)?,
        Some("thread") => word(thread.pid, uaddr)?,
        _ => return Ok(()),
    };
    ensure!(stored == owner, "memory says owner {stored}, the truth {owner}: {thread:x?}");
    Ok(())
}

fn check_owners(truth: &Truth) -> Result<()> {
    for thread in &truth.threads {
        let Some(owner) = thread.owner else { continue };
        let inside = truth.threads.iter().find(|t| t.tid == owner).map_or(owner, |t| t.inside.0);
        check_owner(thread, inside)?;
        let alive = thread.owner_pid.is_some_and(|pid| procfs::state(pid, owner).is_some());
        ensure!(alive == thread.owner_pid.is_some(), "owner {owner} of {thread:?}");
    }
    Ok(())
}

fn check(name: &str, args: &[&str]) -> Result<Truth> {
    let victim = Victim::start(name, args)?;
    let checked = || -> Result<()> {
        check_threads(&victim.truth)?;
        check_owners(&victim.truth)?;
        ensure!(!victim.truth.pids().is_empty(), "nobody to look at");
        Ok(())
    };
    checked().with_context(|| victim.what.clone())?;
    Ok(victim.truth.clone())
}

/// Following owners from the first thread leads back to it, through all.
fn check_cycle(truth: &Truth) -> Result<()> {
    let first = truth.threads.first().context("threads")?;
    let mut at = first;
    for _ in 0..truth.threads.len() {
        let owner = at.owner.context("owner")?;
        at = truth.threads.iter().find(|t| t.tid == owner).context("owner is one of them")?;
    }
    ensure!(at == first, "no cycle: {truth:#?}");
    Ok(())
}

#[test]
fn mutex_cycles() -> Result<()> {
    for threads in ["2", "3", "5"] {
        check_cycle(&check("deadlock", &["--threads", threads])?)?;
    }
    check_cycle(&check("deadlock", &["--self"])?)?;
    for kind in ["errorcheck", "recursive", "adaptive", "timed", "clock", "robust"] {
        check_cycle(&check("deadlock", &["--kind", kind])?)?;
    }
    Ok(())
}

#[test]
fn the_kernel_refuses_the_last_of_a_pi_cycle() -> Result<()> {
    for threads in ["2", "3"] {
        let truth = check("deadlock", &["--kind", "pi", "--threads", threads])?;
        let parked = truth.threads.last().context("threads")?;
        ensure!(parked.owner.is_none(), "{parked:?}");
        let first = truth.thread("payments")?;
        let (_, _, args) = first.syscall.as_ref().context("futex")?;
        ensure!(args[1] == 0x86, "FUTEX_LOCK_PI|PRIVATE, not {:#x}", args[1]);
    }
    Ok(())
}

#[test]
fn a_hang_forms_when_told_and_not_before() -> Result<()> {
    let mut unready = Unready::start("deadlock", &["--on-stdin"])?;
    let pid = unready.pid();
    wait_until("three threads in a futex or read", Duration::from_secs(5), || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?.count();
        Ok((tasks == 3).then_some(()))
    })?;
    unready.tell("now")?;
    check_cycle(&unready.ready()?.truth)?;
    check_cycle(&check("deadlock", &["--after", "100"])?)
}

#[test]
fn other_cycles() -> Result<()> {
    for mode in ["wr-wr", "rd-wr", "mixed", "join", "join-mutex"] {
        check_cycle(&check("cycles", &[mode])?).context(mode)?;
    }
    let join = check("cycles", &["join"])?;
    for thread in &join.threads {
        let (_, _, args) = thread.syscall.as_ref().context("futex")?;
        ensure!(
            args[1] == 0x109 && args[2] == u64::from(thread.owner.context("owner")?.cast_unsigned()),
            "{thread:x?}"
        );
    }
    let readers = check("cycles", &["readers"])?;
    ensure!(readers.thread("first")?.owner.is_none(), "readers have no owner");
    Ok(())
}

#[test]
fn held_locks() -> Result<()> {
    for mode in ["read", "nanosleep", "poll", "rwlock", "chain"] {
        let truth = check("held", &[mode])?;
        let root = truth.number("root")?;
        let waits = truth.threads.iter().filter(|t| t.owner.is_some()).count();
        ensure!(waits == 3, "{mode}: three wait");
        ensure!(truth.threads.iter().any(|t| t.tid == root && t.owner.is_none()), "{mode}: the root waits for no lock");
    }
    Ok(())
}

#[test]
fn locks_across_processes_and_after_death() -> Result<()> {
    let cycle = check("processes", &["cycle"])?;
    check_cycle(&cycle)?;
    ensure!(cycle.pids().len() == 2, "two processes");
    for mode in ["thread-exit", "owner-exit"] {
        let truth = check("processes", &[mode])?;
        for thread in &truth.threads {
            let owner = thread.owner.context("owner")?;
            ensure!(!std::path::Path::new(&format!("/proc/{owner}")).exists(), "{mode}: {owner} lives");
        }
    }
    let fork = check("processes", &["fork-held"])?;
    let forked = fork.thread("forked")?;
    ensure!(forked.pid == fork.pid && forked.owner_pid != Some(forked.pid), "the owner stayed behind: {fork:#?}");
    Ok(())
}

/// Every mode of `timeouts.c` with what a poll-family call was given, read back from its arguments and memory.
#[test]
fn timeouts() -> Result<()> {
    for (mode, milliseconds) in [
        ("poll-infinite", Some(-1)),
        ("poll-neg5", Some(-5)),
        ("poll-50ms", Some(50)),
        ("poll-30h", Some(108_000_000)),
        ("poll-intmax", Some(i32::MAX)),
        ("epoll-infinite", Some(-1)),
        ("epoll-neg7", Some(-7)),
        ("epoll-50ms", Some(50)),
        ("ppoll-null", None),
        ("ppoll-finite", None),
        ("ppoll-year", None),
        ("select-null", None),
        ("select-finite", None),
        ("select-year", None),
        ("pselect-null", None),
        ("pselect-finite", None),
        ("epoll-pwait2-null", None),
        ("epoll-pwait2-finite", None),
        ("epoll-pwait2-year", None),
        ("futex-year", None),
        ("poll-zero", None),
        ("ppoll-invalid", None),
    ] {
        let victim = Victim::start("timeouts", &[mode])?;
        let truth = &victim.truth;
        check_threads(truth).context(mode)?;
        let thread = truth.thread("waiter")?;
        let Some((call, _, args)) = &thread.syscall else {
            ensure!(truth.all["loops"] == true, "{mode}: only loops may promise no call");
            continue;
        };
        ensure!(POLL_ALIKE.contains(&call.as_str()) || mode == "futex-year", "{mode}: {call}");
        if let Some(expected) = milliseconds {
            let given = args[if call == "poll" { 2 } else { 3 }] as u32;
            ensure!(given.cast_signed() == expected, "{mode}: {given:#x}");
            continue;
        }
        let pointer = args[match call.as_str() {
            "ppoll" => 2,
            "select" | "pselect6" => 4,
            _ => 3,
        }];
        let kind = truth.all["timeout"]["kind"].as_str().context("kind")?;
        ensure!((pointer == 0) == (kind == "infinite"), "{mode}: {pointer:#x} is not {kind}");
        if pointer != 0 {
            // The kernel writes the remaining time back only when the call ends.
            let bytes = procfs::memory(thread.pid, pointer, 8)?;
            let seconds = i64::from_ne_bytes(bytes.try_into().ok().context("eight bytes")?);
            ensure!(seconds == if kind == "absurd" { 365 * 86400 } else { 3600 }, "{mode}: {seconds} s");
        }
    }
    Ok(())
}

#[test]
fn connects() -> Result<()> {
    for (mode, state) in [("blocking", "02"), ("nonblocking", "02"), ("established", "01")] {
        let victim = Victim::start("connects", &[mode])?;
        check_threads(&victim.truth)?;
        let port = |key: &str| -> Result<String> {
            let text = victim.truth.text(key)?;
            Ok(format!("0100007F:{:04X}", text.rsplit(':').next().context("port")?.parse::<u16>()?))
        };
        let row = format!(" {} {} {state} ", port("local")?, port("remote")?);
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", victim.truth.pid))?;
        ensure!(table.contains(&row), "{mode}: no{row}in\n{table}");
    }
    Ok(())
}

#[test]
fn stopped_and_uninterruptible() -> Result<()> {
    for mode in ["wait4", "lock", "alone"] {
        let victim = Victim::start("stopped", &[mode])?;
        check_threads(&victim.truth)?;
        let stopped = victim.truth.number("stopped")?;
        ensure!(procfs::state(stopped, stopped) == Some('T'), "{mode}: {stopped} is not stopped");
    }
    check("stopped", &["continued"])?;
    let dstate = Victim::start("dstate", &[])?;
    let vforker = dstate.truth.threads.first().context("threads")?;
    ensure!(procfs::state(vforker.pid, vforker.tid) == Some('D'), "{vforker:?}");
    ensure!(procfs::parent(dstate.truth.number("child")?) == Some(vforker.pid), "its child");
    Ok(())
}

#[test]
fn a_pid_namespace_of_its_own() -> Result<()> {
    let truth = check("namespaces", &[])?;
    check_cycle(&truth)?;
    ensure!(truth.threads.iter().all(|t| t.inside.1 == 1 && t.inside.0 != t.tid), "{truth:#?}");
    Ok(())
}

#[test]
fn an_unreadable_page_blocks_its_reader_until_the_process_dies() -> Result<()> {
    let mut victim = Victim::start("unreadable", &[])?;
    check_threads(&victim.truth)?;
    let page = observer_tests::victim::address(&victim.truth.all["page"]).context("page")?;
    let pid = victim.truth.pid;
    let (send, receive) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let _ = send.send(());
        procfs::memory(pid, page, 4)
    });
    receive.recv()?;
    let blocked =
        wait_until("the read to come back", Duration::from_millis(500), || Ok(reader.is_finished().then_some(())));
    ensure!(blocked.is_err(), "the read came back");
    victim.guard().kill();
    wait_until("the read to end with the process", Duration::from_secs(5), || Ok(reader.is_finished().then_some(())))
}

#[test]
fn thirty_two_bits() -> Result<()> {
    let victim = Victim::start_as(Abi::I386Bare, "tiny32", &[])?;
    let pid = victim.truth.pid;
    let number = wait_until("poll of the i386 table", Duration::from_secs(5), || {
        Ok(procfs::syscall(pid, pid).map(|(number, _)| number).filter(|&n| n == 168))
    })?;
    ensure!(number == 168, "{number}");
    let program = std::fs::read(format!("/proc/{pid}/exe"))?;
    ensure!(program.get(4) == Some(&1), "ELFCLASS32");
    Ok(())
}

#[test]
fn thirty_two_bit_deadlock() -> Result<()> {
    if let Err(why) = can_build(Abi::I386) {
        skip!("gcc -m32 does not work here: {}", why.lines().next().unwrap_or_default());
    }
    let victim = Victim::start_as(Abi::I386, "deadlock", &[])?;
    for thread in &victim.truth.threads {
        let (number, _) = procfs::syscall(thread.pid, thread.tid).context("asleep")?;
        // futex_time64 when glibc has it, else futex: 240 is mq_open for x86-64.
        ensure!(number == 240 || number == 422, "{number}");
    }
    check_cycle(&victim.truth)
}

#[test]
fn healthy_programs() -> Result<()> {
    for (name, mode) in IDLE.iter().chain(BUSY).chain(CONTENDED) {
        check(name, &[mode])?;
    }
    Ok(())
}

#[test]
fn a_dropped_victim_leaves_nobody_behind() -> Result<()> {
    for (name, args) in [("processes", &["cycle"][..]), ("stopped", &["wait4"]), ("dstate", &[]), ("namespaces", &[])] {
        let mut victim = Victim::start(name, args)?;
        let mut family: Vec<i32> = procfs::descendants(victim.guard().pid()).into_iter().map(|(pid, _)| pid).collect();
        family.push(victim.guard().pid());
        ensure!(family.len() > 1, "{name} has children");
        drop(victim);
        for pid in family {
            // A killed child may stay a zombie until its new parent reaps it.
            wait_until("a member of the family to go", Duration::from_secs(5), || {
                Ok(matches!(procfs::state(pid, pid), None | Some('Z' | 'X')).then_some(()))
            })
            .with_context(|| format!("{pid} of {name} is still there"))?;
        }
    }
    Ok(())
}

#[test]
fn a_victim_ends_when_its_stdin_does() -> Result<()> {
    let mut victim = Victim::start("held", &["read"])?;
    victim.guard().close_stdin();
    let status = victim.guard().ended(Duration::from_secs(5))?;
    ensure!(status.success(), "{status}");
    Ok(())
}
