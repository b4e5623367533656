//! Readings made by hand: who came, who went, who waits since when, and who may have a lock.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up must fail")]

use super::*;
use crate::model::Confidence;
use crate::model::testkit::{S, go_group, goroutines};
use crate::proc::GoWait;

/// A process after these readings, one a second from second 100 on.
fn read(readings: Vec<Vec<GoroutineGroup>>) -> GoProcess {
    let mut all = (100..).zip(readings).map(|(at, groups)| goroutines(10, at, groups));
    let first = all.next().unwrap();
    let mut go = GoProcess::new(first.clone());
    go.learn(first);
    all.for_each(|reading| go.learn(reading));
    go
}

fn senders(goids: std::ops::Range<u64>) -> GoroutineGroup {
    go_group("chan send", &["runtime.gopark", "runtime.chansend", "main.leak", "main.serve.func1"], goids)
}

#[test]
fn arrivals_and_departures_by_identity() {
    let go = read(vec![vec![senders(10..20)], vec![senders(12..25)], vec![senders(12..25)], vec![senders(12..26)]]);
    let site = go.sites().next().unwrap();
    let growth = site.samples.since(0).unwrap();
    assert_eq!((site.count, growth.arrived(), growth.left()), (14, 6, 2));
    assert_eq!((site.oldest_ns, site.goids), (100 * S, (12, 25)));
    assert_eq!(site.site.place.function, "main.leak");
    let newest = go.goroutine(25).unwrap().1;
    assert_eq!(go.waiting_since(newest), 103 * S);
}

#[test]
fn missing_once_is_not_gone_and_another_wait_is_another_time() {
    let go = read(vec![vec![senders(10..20)], vec![senders(11..20)], vec![senders(10..20)]]);
    let growth = go.sites().next().unwrap().samples.since(0).unwrap();
    assert_eq!((growth.arrived(), growth.left()), (0, 0));
    let mut moved = senders(10..20);
    moved.members[3].sp += 64;
    let go = read(vec![vec![senders(10..20)], vec![moved.clone()]]);
    let since = |at: usize| go.waiting_since(&moved.members[at]);
    assert_eq!((since(0), since(3)), (100 * S, 101 * S), "it has waited anew");
}

#[test]
fn who_has_run_in_between_waits_anew_at_the_same_place() {
    let counted = |counts: [u8; 3]| {
        let mut group = senders(10..13);
        for (member, ran) in group.members.iter_mut().zip(counts) {
            member.ran = Some(ran);
        }
        group
    };
    let last = counted([7, 8, 0]);
    let go = read(vec![vec![counted([7, 7, 255])], vec![counted([7, 8, 255])], vec![last.clone()]]);
    let since: Vec<u64> = last.members.iter().map(|member| go.waiting_since(member) / S).collect();
    assert_eq!(since, [100, 101, 102]);
    let growth = go.sites().next().unwrap().samples.since(0).unwrap();
    let last = growth.last;
    assert_eq!((last.stayed, last.stirred, growth.arrived(), growth.left()), (6, 2, 0, 0));
    assert!(growth.is_lively());
    // What is not known is not taken for rest, and not for work.
    let go = read(vec![vec![senders(10..13)], vec![senders(10..13)]]);
    let growth = go.sites().next().unwrap().samples.since(0).unwrap();
    assert_eq!((growth.last.stayed, growth.is_lively()), (0, false));
}

#[test]
fn what_was_cut_short_says_nobody_left() {
    let mut cut = goroutines(10, 101, vec![senders(10..12)]);
    cut.lost.insert("deadline".to_owned(), 8);
    let mut go = read(vec![vec![senders(10..20)]]);
    for at in 101..105 {
        cut.taken_ns = at * S;
        go.learn(cut.clone());
    }
    go.learn(goroutines(10, 105, vec![senders(10..20)]));
    let growth = go.sites().next().unwrap().samples.since(0).unwrap();
    assert_eq!((growth.more(), growth.left()), (0, 0));
}

#[test]
fn one_that_is_cut_short_now_and_then_takes_nothing_back() {
    let mut go = read(vec![vec![senders(10..20)], vec![senders(10..20)]]);
    let mut cut = goroutines(10, 102, vec![senders(10..12)]);
    cut.lost.insert("deadline".to_owned(), 8);
    let now = |go: &GoProcess| (go.latest.taken_ns / S, go.sites().next().unwrap().count, go.censuses);
    go.learn(cut.clone());
    assert_eq!(now(&go), (101, 10, 2), "the one before stands for it");
    cut.taken_ns = 103 * S;
    go.learn(cut.clone());
    assert_eq!(now(&go), (103, 2, 3), "but only once");
    go.learn(goroutines(10, 104, vec![senders(10..20)]));
    assert_eq!(now(&go), (104, 10, 4));
    let last = go.goroutine(19).unwrap().1;
    assert_eq!(go.waiting_since(last), 100 * S, "it has waited all the time");
    cut.taken_ns = 105 * S;
    go.learn(cut);
    assert_eq!(now(&go), (104, 10, 4), "a whole one later it holds anew");
}

#[test]
fn where_nobody_had_looked_it_was_not_empty() {
    let samples = |go: &GoProcess| -> Vec<(u64, u64)> {
        let site = go.sites().find(|history| history.site.place.function == "main.leak").unwrap();
        site.samples.all().iter().map(|sample| (sample.at_ns / S, sample.count)).collect()
    };
    let other = || go_group("chan receive", &["runtime.gopark", "runtime.chanrecv", "main.worker"], 1..3);
    let cut = |at| {
        let mut cut = goroutines(10, at, vec![other()]);
        cut.lost.insert("deadline".to_owned(), 8);
        cut
    };
    let mut go = GoProcess::new(cut(100));
    go.learn(cut(100));
    go.learn(cut(101));
    go.learn(goroutines(10, 102, vec![other(), senders(10..20)]));
    assert_eq!(samples(&go), [(102, 10)], "they stood behind the cut");
    let mut go = read(vec![vec![other()]]);
    go.learn(cut(101));
    go.learn(cut(102));
    go.learn(goroutines(10, 103, vec![other(), senders(10..20)]));
    assert_eq!(samples(&go), [(100, 0), (103, 10)]);
}

#[test]
fn a_process_of_many_places_is_bounded() {
    let groups = |from: u64| -> Vec<GoroutineGroup> {
        let one = |n: u64| go_group("chan send", &["runtime.gopark", &format!("main.f{n}")], n..n + 1);
        (from..from + 1500).map(one).collect()
    };
    let mut go = read(vec![groups(1), groups(1501)]);
    for at in 102..300 {
        go.learn(goroutines(10, at, groups(3001)));
    }
    assert!(go.sites.len() <= MOST_SITES, "{}", go.sites.len());
    assert_eq!(go.sites().count(), 1500, "the places of now are known");
    assert_eq!(go.lives.len(), 1500);
}

/// Goroutines at the lock at `address`, in `main.(*Engine).Call` and what called it.
fn at_lock(address: u64, stack: &[&str], goids: std::ops::Range<u64>) -> GoroutineGroup {
    let lock = ["runtime.gopark", "sync.runtime_SemacquireMutex", "sync.(*Mutex).lockSlow", "sync.(*Mutex).Lock"];
    let frames: Vec<&str> = lock.iter().chain(stack).copied().collect();
    let mut group = go_group("semacquire", &frames, goids);
    for member in &mut group.members {
        member.wait = Some(GoWait::Semaphore { address });
    }
    group
}

#[test]
fn holders_are_inferred_from_where_they_stand() {
    let waiters = at_lock(0x1000, &["main.(*Engine).Call", "main.serve"], 10..15);
    let mut inside = go_group("", &["syscall.Syscall", "main.(*Engine).collect", "main.(*Engine).Call"], 5..6);
    inside.state = GoState::Syscall;
    let bystander = go_group("chan receive", &["runtime.gopark", "main.(*Engine).Wait", "main.main"], 1..2);
    let go = read(vec![vec![waiters.clone(), inside.clone(), bystander.clone()]]);
    let queues = go.lock_queues();
    assert_eq!(queues.len(), 1);
    let queue = &queues[0];
    assert_eq!(
        (queue.address, queue.waiters.len(), queue.taker.function.as_str()),
        (Some(0x1000), 5, "main.(*Engine).Call")
    );
    let holder = go.holder(queue).unwrap();
    assert_eq!((holder.goroutine.goid, holder.confidence), (5, Confidence::Likely));
    // Several that may have it, and only a method of the same type: possible.
    let two = go_group("chan send", &["runtime.gopark", "main.(*Engine).Call"], 6..8);
    let go = read(vec![vec![waiters.clone(), inside, two]]);
    let holder =
        go.holder(&go.lock_queues()[0]).map(|holder| (holder.goroutine.goid, holder.confidence, holder.others));
    assert_eq!(holder, Some((5, Confidence::Possible, 2)), "the one in a call is named");
    let go = read(vec![vec![waiters.clone(), bystander]]);
    assert_eq!(go.holder(&go.lock_queues()[0]).map(|holder| holder.goroutine.goid), Some(1));
    let go = read(vec![vec![waiters]]);
    assert!(go.holder(&go.lock_queues()[0]).is_none());
}
