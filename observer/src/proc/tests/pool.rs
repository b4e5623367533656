//! Targets that block their reader.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use super::victim::{Victim, wait_for};
use crate::census::ProcessId;
use crate::proc::pool::{PoolSettings, ReaderPool};
use crate::proc::{Facts, GatherSettings, Gatherer, MemoryRange, ProcError, ThreadWant};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

fn want(process: ProcessId, addr: u64) -> ThreadWant {
    ThreadWant {
        process,
        tid: process.pid,
        switches: 1,
        memory: vec![MemoryRange { addr, len: 4 }],
        fd: None,
        kernel_stack: false,
        file_lock: false,
        set: None,
        far_end: None,
    }
}

fn error(facts: &Facts, want: usize) -> Option<&str> {
    facts.threads[want].memory[0].error.as_deref()
}

#[test]
fn a_page_that_is_never_served_holds_one_reader_only() {
    let stuck = Victim::start(&["unserved"]);
    let fine = Victim::start(&["memory"]);
    let wants = [want(stuck.id, stuck.value), want(fine.id, fine.value)];
    let mut gatherer = Gatherer::new(GatherSettings::default());

    let start = Instant::now();
    let before = crate::host::clock::monotonic_ns();
    let first = gatherer.gather(&wants, &[stuck.id, fine.id], &[], &[]);
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    assert_eq!(error(&first, 0), Some("deadline"));
    assert_eq!((error(&first, 1), &first.threads[1].memory[0].bytes[..]), (None, &b"aaaa"[..]));
    assert_eq!(first.lost.get("memory: deadline"), Some(&1));
    let [blocked] = &first.blocked_reads[..] else { panic!("{:?}", first.blocked_reads) };
    assert_eq!((blocked.process, blocked.what.as_str()), (stuck.id, "memory"));
    assert!(blocked.since_ns.abs_diff(before) < 100_000_000);
    // What needs no memory of it is known.
    let known = first.processes.iter().find(|p| p.process == stuck.id).unwrap();
    assert!(known.comm.starts_with("proc-victim") && !known.missing.is_empty(), "{known:?}");

    // Not read again, hence at once; others are.
    let start = Instant::now();
    let second = gatherer.gather(&wants, &[], &[], &[]);
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    assert_eq!((error(&second, 0), error(&second, 1)), (Some("blocked"), None));
    assert_eq!(second.blocked_reads, first.blocked_reads);
    assert_eq!(gatherer.pool_stats().stuck, 1);

    stuck.kill();
    wait_for("the read returns", Duration::from_secs(5), || {
        gatherer.gather(&[], &[], &[], &[]).blocked_reads.is_empty().then_some(())
    });
    assert_eq!(gatherer.pool_stats().stuck, 0);
}

#[test]
fn a_command_line_that_is_never_served() {
    let long = "x".repeat(64 * 1024);
    let stuck = Victim::start(&["unserved-cmdline", &long]);
    let mut gatherer = Gatherer::new(GatherSettings::default());
    let start = Instant::now();
    let facts = gatherer.gather(&[], &[stuck.id], &[], &[]);
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    // Kernel 6.18 ends the command line before such a page; others may block in it.
    match &facts.blocked_reads[..] {
        [] => assert!(facts.processes[0].cmdline[2].len() < long.len()),
        [blocked] => assert_eq!(blocked.what, "cmdline"),
        more => panic!("{more:?}"),
    }
    assert!(facts.processes[0].exe.as_ref().unwrap().ends_with("proc-victim"));
}

#[test]
fn readers_are_replaced_up_to_a_bound() {
    let settings = PoolSettings {
        workers: 1,
        max_stuck: 1,
        grace: Duration::ZERO,
        blocked_after: Duration::ZERO,
        ..PoolSettings::default()
    };
    let pool = ReaderPool::new(settings);
    let process = |pid| ProcessId { pid, start_ns: 0 };
    let (began, begun) = channel();
    let mut held = Vec::new();
    for pid in [1, 2] {
        let (release, wait) = channel::<()>();
        held.push(release);
        let began = began.clone();
        pool.submit(process(pid), move |steps| {
            steps.begin("memory");
            began.send(()).unwrap();
            // Until the other end is dropped.
            let _ = wait.recv();
        })
        .unwrap();
        begun.recv_timeout(Duration::from_secs(5)).unwrap();
    }
    assert!(matches!(pool.submit(process(1), |_| ()), Err(ProcError::Blocked { pid: 1, what: "memory", .. })));
    assert_eq!(pool.submit(process(3), |_| ()), Err(ProcError::NoReaderFree { stuck: 2 }));
    assert_eq!(pool.blocked().len(), 2);
    assert_eq!(pool.stats().workers, 2);
    assert_eq!(pool.stats().replaced, 1, "the second is kept as well, but nobody was started for it");
    assert_eq!(pool.stats().stuck, 2);

    held.clear();
    wait_for("the readers return", Duration::from_secs(5), || pool.blocked().is_empty().then_some(()));
    pool.submit(process(3), |_| panic!("a job may panic")).unwrap();
    wait_for("the panic is counted", Duration::from_secs(5), || (pool.stats().panicked == 1).then_some(()));
    pool.submit(process(3), move |_| began.send(()).unwrap()).unwrap();
    begun.recv_timeout(Duration::from_secs(5)).unwrap();
}

#[test]
fn a_reader_that_is_only_slow_or_computes_is_not_counted_as_replaced() {
    let settings = PoolSettings {
        workers: 1,
        grace: Duration::ZERO,
        blocked_after: Duration::from_secs(3600),
        ..PoolSettings::default()
    };
    let pool = ReaderPool::new(settings);
    let computing = ReaderPool::new(PoolSettings { blocked_after: Duration::ZERO, ..settings });
    for pool in [&pool, &computing] {
        let (release, wait) = channel::<()>();
        let (began, begun) = channel();
        let again = began.clone();
        pool.submit(ProcessId { pid: 1, start_ns: 0 }, move |steps| {
            steps.compute();
            again.send(()).unwrap();
            let _ = wait.recv();
        })
        .unwrap();
        begun.recv_timeout(Duration::from_secs(5)).unwrap();
        // Done while the first is still at it: by another reader.
        pool.submit(ProcessId { pid: 2, start_ns: 0 }, move |_| began.send(()).unwrap()).unwrap();
        begun.recv_timeout(Duration::from_secs(5)).unwrap();
        drop(release);
        wait_for("both are done", Duration::from_secs(5), || pool.blocked().is_empty().then_some(()));
        assert_eq!(pool.stats().replaced, 0);
    }
}

#[test]
fn jobs_beyond_the_stuck_ones_are_done_in_the_same_call() {
    let stuck: Vec<Victim> = (0..6).map(|_| Victim::start(&["unserved"])).collect();
    let fine: Vec<Victim> = (0..3).map(|_| Victim::start(&["memory"])).collect();
    let wants: Vec<ThreadWant> = stuck.iter().chain(&fine).map(|v| want(v.id, v.value)).collect();
    let mut gatherer = Gatherer::new(GatherSettings::default());
    let facts = gatherer.gather(&wants, &[], &[], &[]);
    for at in 0..6 {
        assert_eq!(error(&facts, at), Some("deadline"));
    }
    for at in 6..9 {
        assert_eq!(error(&facts, at), None);
    }
    wait_for("six are blocked", Duration::from_secs(5), || {
        (gatherer.gather(&[], &[], &[], &[]).blocked_reads.len() == 6).then_some(())
    });
    assert!(gatherer.pool_stats().workers <= 12);
}

#[test]
fn when_all_readers_are_stuck_the_call_still_ends_in_time() {
    let stuck: Vec<Victim> = (0..5).map(|_| Victim::start(&["unserved"])).collect();
    let fine = Victim::start(&["memory"]);
    let mut settings = GatherSettings::default();
    (settings.pool.workers, settings.pool.max_stuck) = (2, 2);
    let mut gatherer = Gatherer::new(settings);
    let wants: Vec<ThreadWant> = stuck.iter().map(|v| want(v.id, v.value)).collect();
    // On a busy machine the last of them may begin too late to count as blocked in the first call.
    wait_for("four are blocked", Duration::from_secs(5), || {
        let start = Instant::now();
        let facts = gatherer.gather(&wants, &[], &[], &[]);
        assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
        (facts.blocked_reads.len() == 4 && facts.lost.get("memory: no reader free") == Some(&1)).then_some(())
    });
    let facts = gatherer.gather(&[want(fine.id, fine.value)], &[fine.id], &[], &[]);
    assert_eq!(error(&facts, 0), Some("no reader free"));
    assert_eq!(facts.processes[0].comm, "proc-victim");
    drop(stuck);
    wait_for("the reads return", Duration::from_secs(5), || {
        let facts = gatherer.gather(&[want(fine.id, fine.value)], &[], &[], &[]);
        error(&facts, 0).is_none().then_some(())
    });
}

/// The program that the next test runs.
#[test]
#[ignore = "run by a_stuck_reader_does_not_keep_observer_alive"]
fn stuck_program() {
    let Ok(text) = std::env::var("OBSERVER_TEST_STUCK") else {
        return;
    };
    let numbers: Vec<u64> = text.split(' ').map(|n| n.parse().unwrap()).collect();
    let process = ProcessId { pid: u32::try_from(numbers[0]).unwrap(), start_ns: numbers[1] };
    let facts = Gatherer::new(GatherSettings::default()).gather(&[want(process, numbers[2])], &[], &[], &[]);
    assert_eq!(facts.blocked_reads.len(), 1);
}

#[test]
fn a_stuck_reader_does_not_keep_observer_alive() {
    let stuck = Victim::start(&["unserved"]);
    let mut observer = Command::new(std::env::current_exe().unwrap());
    observer
        .args(["--exact", "proc::tests::pool::stuck_program", "--ignored", "--nocapture"])
        .env("OBSERVER_TEST_STUCK", format!("{} {} {}", stuck.id.pid, stuck.id.start_ns, stuck.value));
    let mut child = observer.stdout(std::process::Stdio::null()).spawn().unwrap();
    let status = wait_for("it ends", Duration::from_secs(10), || child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}
