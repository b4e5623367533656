//! Recorded stacks (names only) against the table.
//!
//! `## label/thread: reading` begins a stack; the reading is `rest` or `rest in job kind`, `-` for none. The stacks were taken
//! with `eu-stack` from programs made to wait in one place; labels name program and version.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use super::table::{self, Known};
use super::*;
use std::collections::BTreeSet;

const RECORDED: [(&str, &str); 10] = [
    ("c", include_str!("stacks/c.txt")),
    ("go", include_str!("stacks/go.txt")),
    ("java", include_str!("stacks/java.txt")),
    ("nginx", include_str!("stacks/nginx.txt")),
    ("node", include_str!("stacks/node.txt")),
    ("postgresql", include_str!("stacks/pg.txt")),
    ("python 3.11", include_str!("stacks/py311.txt")),
    ("python 3.13", include_str!("stacks/py313.txt")),
    ("redis", include_str!("stacks/redis.txt")),
    ("rust", include_str!("stacks/rust.txt")),
];

struct Recorded {
    file: &'static str,
    label: &'static str,
    expected: &'static str,
    frames: Vec<Frame>,
}

fn recorded() -> Vec<Recorded> {
    let mut all = Vec::new();
    for (file, text) in RECORDED {
        for block in text.split("## ").filter(|block| !block.trim().is_empty()) {
            let (head, body) = block.split_once('\n').unwrap();
            let (label, expected) = head.rsplit_once(": ").unwrap_or((head, "?"));
            let name = |line: &str| (line != "?").then(|| line.to_owned());
            let frames = body.lines().filter(|line| !line.is_empty());
            let frames = frames.map(|line| Frame { function: name(line), ..Frame::default() }).collect();
            all.push(Recorded { file, label, expected, frames });
        }
    }
    all
}

fn said(reading: Option<&Reading>) -> String {
    let Some(reading) = reading else { return "-".to_owned() };
    match &reading.job {
        Some(job) => format!("{} in a {:?} of {}", reading.rest.name(), job.kind, job.runtime).to_lowercase(),
        None => reading.rest.name().to_owned(),
    }
}

#[test]
fn recorded_stacks_read_as_they_should() {
    let mut wrong = Vec::new();
    for Recorded { file, label, expected, frames } in recorded() {
        let said = said(classify(&frames).as_ref());
        if said != expected {
            let names: Vec<_> = frames.iter().map(|f| f.function.as_deref().unwrap_or("?")).collect();
            wrong.push(format!("{file} ## {label}: {said} (expected {expected})\n    {}", names.join("\n    ")));
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_measured_row_is_hit_by_a_recorded_stack() {
    let mut hit = BTreeSet::new();
    for Recorded { frames, .. } in recorded() {
        let names: Vec<String> =
            frames.iter().map(|f| f.function.as_deref().map(name::normalised).unwrap_or_default()).collect();
        for (at, this) in names.iter().enumerate() {
            hit.extend(table::row_of(this, names.get(at + 1).map(String::as_str)).map(|row| row.pattern));
        }
    }
    let measured = table::rows().filter(|(group, _)| matches!(group.known, Known::Measured(_)));
    let missed: Vec<&str> = measured.map(|(_, row)| row.pattern).filter(|pattern| !hit.contains(pattern)).collect();
    assert!(missed.is_empty(), "said to be measured, and in no recorded stack: {missed:#?}");
}

#[test]
fn no_pattern_stands_twice() {
    let mut seen = BTreeSet::new();
    let twice: Vec<&str> = table::rows().map(|(_, row)| row.pattern).filter(|pattern| !seen.insert(*pattern)).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn inner_functions_of_the_c_library_are_part_of_the_call() {
    let frame = |name: &str, module: &str| Frame {
        function: Some(name.to_owned()),
        module: Some(module.to_owned()),
        ..Frame::default()
    };
    let libc = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    let stack = |middle: Frame| {
        [
            frame("__futex_abstimed_wait_common64", libc),
            frame("__pthread_cond_wait_common", libc),
            frame("___pthread_cond_wait", libc),
            middle,
            frame("start_thread", libc),
        ]
    };
    let own = classify(&stack(frame("bioProcessBackgroundJobs", "/usr/bin/redis-server"))).unwrap();
    assert_eq!((own.rest, own.job), (Rest::Idle, None));
    let other = classify(&stack(frame("handle", "/srv/app"))).unwrap();
    assert_eq!(other.rest, Rest::Condition);
}

/// What a stack of these functions says.
fn reads(names: &[&str]) -> Option<Reading> {
    let name = |name: &&str| (*name != "?").then(|| (*name).to_owned());
    classify(&names.iter().map(|n| Frame { function: name(n), ..Frame::default() }).collect::<Vec<_>>())
}

#[test]
fn a_mutex_is_named_by_the_function_that_was_called() {
    // With debug symbols of the C library there is an inner frame.
    for inner in [&["__GI___lll_lock_wait"][..], &[]] {
        let reading = reads(&[inner, &["__pthread_mutex_lock", "app"]].concat()).unwrap();
        assert_eq!(
            (reading.by.as_str(), reading.lock.unwrap().place),
            ("__pthread_mutex_lock", Place::Word(0)),
            "{inner:?}"
        );
    }
}

#[test]
fn a_condition_in_an_unnamed_callback_is_not_the_loop_at_rest() {
    let said_of = |names: &[&str]| said(reads(names).as_ref());
    assert_eq!(said_of(&["pthread_cond_wait", "?", "aeMain", "main"]), "work in a callback of redis");
    assert_eq!(said_of(&["epoll_wait", "?", "aeMain", "main"]), "idle");
    assert_eq!(said_of(&["?", "aeMain", "main"]), "-", "nothing is known of what it waits for");
    assert_eq!(said_of(&["pthread_cond_wait", "bioProcessBackgroundJobs", "start_thread"]), "idle");
}

#[test]
fn whoever_runs_a_once_does_not_wait_for_it() {
    let runner =
        ["syscall", "std::sys::sync::condvar::futex::Condvar::wait", "parking_lot::once::Once::call_once_slow"];
    assert_eq!(reads(&runner).unwrap().rest, Rest::Condition);
    let waiter = ["syscall", "parking_lot::once::Once::call_once_slow", "app"];
    assert_eq!(reads(&waiter).unwrap().rest, Rest::Lock);
}

#[test]
fn processes_of_postgresql_are_no_callbacks_of_the_postmaster() {
    let waits = ["PGSemaphoreLock", "LWLockAcquire", "WalWriterFlush"];
    for own in [
        "CheckpointerMain",
        "AuxiliaryProcessMain",
        "StartBackgroundWorker",
        "StartAutoVacWorker",
        "StartAutoVacLauncher",
    ] {
        let reading = reads(&[&waits[..], &[own, "?", "PostmasterMain", "main"]].concat()).unwrap();
        assert_eq!((reading.rest, reading.job), (Rest::Lock, None), "{own}");
    }
}

#[test]
fn whoever_waits_for_the_lock_of_a_leaders_loop_interrupts_nothing() {
    let follower = reads(&["pthread_mutex_lock", "wsgi_req_accept", "simple_loop_run", "start_thread"]).unwrap();
    assert_eq!((follower.rest, follower.job), (Rest::Lock, None));
    let leader = reads(&["epoll_wait", "event_queue_wait", "wsgi_req_accept", "simple_loop_run"]).unwrap();
    assert_eq!((leader.rest, leader.leads), (Rest::Idle, true));
}
