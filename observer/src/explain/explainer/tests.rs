//! From a blocked thread to its named stack, without root.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use super::*;
use crate::census::Registers;
use crate::proc::{StackEnd, exists};
use std::process::{Child, Command};
use std::sync::{Condvar, Mutex};

const DEADLINE: Duration = Duration::from_secs(60);

/// What `/proc/PID/task/TID/syscall` tells: the registers, without the frame pointer; `None` while it runs.
fn registers(pid: u32, tid: u32) -> Option<Registers> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let hex = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let [.., sp, ip] = words[..] else { return None };
    Some(Registers { ip: hex(ip)?, sp: hex(sp)?, bp: None })
}

/// Asks until there is an answer.
fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// A thread of this test that waits, until the guard is dropped.
struct Waiting {
    shared: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<std::thread::JoinHandle<()>>,
    tid: u32,
}

#[inline(never)]
fn waits_for_a_condition(shared: &(Mutex<bool>, Condvar)) {
    let mut done = shared.0.lock().unwrap();
    while !*done {
        done = shared.1.wait(done).unwrap();
    }
    // Behind the wait, so that this is no tail call.
    std::hint::black_box(&done);
}

impl Waiting {
    fn start() -> Self {
        let shared = Arc::new((Mutex::new(false), Condvar::new()));
        let (sender, receiver) = channel();
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            sender.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            waits_for_a_condition(&of_thread);
        });
        Self { shared, thread: Some(thread), tid: receiver.recv().unwrap() }
    }

    /// Its registers, once it waits.
    fn registers(&self) -> Registers {
        let futex = libc::SYS_futex.to_string();
        let path = format!("/proc/self/task/{}/syscall", self.tid);
        wait_for("the thread waits for a futex", || {
            let waits = std::fs::read_to_string(&path).ok()?.split(' ').next() == Some(&futex);
            // The lock of the condition is free only once the thread has let go of it.
            let lets_go = self.shared.0.try_lock().is_ok();
            registers(std::process::id(), self.tid).filter(|_| waits && lets_go)
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        *self.shared.0.lock().unwrap() = true;
        self.shared.1.notify_all();
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Stacks that were lost: pages that vanish are counted for the whole process, and other tests make them vanish.
fn lost(explained: &Explained) -> u64 {
    explained.lost.iter().filter(|(reason, _)| reason.starts_with("stack: ")).map(|(_, count)| count).sum()
}

fn explain_all(explainer: &mut Explainer, wants: &[StackWant]) -> Explained {
    let mut all = explainer.stacks(wants, DEADLINE);
    wait_for("all stacks", || {
        let more = explainer.stacks(&[], DEADLINE);
        all.stacks.extend(more.stacks);
        (more.pending == 0).then_some(())
    });
    all
}

#[test]
fn a_waiting_thread_of_this_process() {
    let waiting = Waiting::start();
    let process = exists(std::process::id()).unwrap().id;
    let want = StackWant { process, tid: waiting.tid, switches: 7, registers: waiting.registers(), sought: Vec::new() };
    let mut explainer = Explainer::new(ExplainSettings::default());
    let explained = explain_all(&mut explainer, std::slice::from_ref(&want));
    let [fact] = &explained.stacks[..] else { panic!("{explained:?}") };
    assert_eq!((fact.tid, fact.process, fact.switches), (waiting.tid, process, 7));
    let names: Vec<&str> = fact.stack.frames.iter().filter_map(|frame| frame.function.as_deref()).collect();
    assert!(names.iter().any(|name| name.ends_with("waits_for_a_condition")), "{names:#?}");
    assert_eq!(fact.stack.end, StackEnd::Root, "{names:#?}");
    assert_eq!(lost(&explained), 0, "{:?}", explained.lost);
    // Now everything is known; on a busy machine the time for names may be over before the last of them.
    let mut again = || explain_all(&mut explainer, std::slice::from_ref(&want)).stacks;
    assert!((0..5).any(|_| again() == explained.stacks), "{:#?}", explained.stacks);
}

/// A process that waits for ever, ended when the guard is dropped.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_that_ends_before_it_is_looked_at() {
    let sleeper = Sleeper(Command::new("sleep").arg("120").spawn().unwrap());
    let pid = sleeper.0.id();
    let process = exists(pid).unwrap().id;
    let registers = wait_for("it sleeps", || registers(pid, pid));
    drop(sleeper);
    let mut explainer = Explainer::new(ExplainSettings::default());
    let explained =
        explain_all(&mut explainer, &[StackWant { process, tid: pid, switches: 1, registers, sought: Vec::new() }]);
    let [fact] = &explained.stacks[..] else { panic!("{explained:?}") };
    assert!(fact.stack.frames.is_empty() && !fact.stack.is_complete(), "{fact:?}");
    assert_eq!(lost(&explained), 1, "{:?}", explained.lost);
}

#[test]
fn registers_that_lead_nowhere() {
    let process = exists(std::process::id()).unwrap().id;
    let want = |ip, sp, bp| StackWant {
        process,
        tid: process.pid,
        switches: 0,
        registers: Registers { ip, sp, bp: Some(bp) },
        sought: vec![1],
    };
    let wants = [want(0, 0, 0), want(u64::MAX, u64::MAX, u64::MAX), want(8, u64::MAX - 7, 1 << 63)];
    let explained = explain_all(&mut Explainer::new(ExplainSettings::default()), &wants);
    assert_eq!(explained.stacks.len(), 3);
    assert!(explained.stacks.iter().all(|fact| fact.stack.frames.len() == 1 && !fact.stack.is_complete()));
    assert_eq!(lost(&explained), 3, "{:?}", explained.lost);
}
