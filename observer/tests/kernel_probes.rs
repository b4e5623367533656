//! What the probes keep by thread, call site and futex word, and that every call entered is accounted for: a victim that makes
//! the calls it is told to. Needs root; where it cannot run it prints `SKIPPED:` and why.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use observer::census::{
    EventKind, Family, Filter, IterSource, ProbePlane, ProbeReading, ProbeSettings, Rung, Source, TimeoutKind,
};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);
const POLL: u32 = 7;
const RECVFROM: u32 = 45;

/// Killed when dropped.
struct Victim(Child, BufReader<ChildStdout>);

/// The victim, built once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/victims/probed.c");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probed");
        let unfinished = program.with_extension(format!("{}", std::process::id()));
        let gcc = Command::new("gcc")
            .args(["-O2", "-fno-omit-frame-pointer", "-pthread", "-o"])
            .arg(&unfinished)
            .arg(source)
            .output()
            .unwrap();
        assert!(gcc.status.success(), "{}", String::from_utf8_lossy(&gcc.stderr));
        std::fs::rename(unfinished, &program).unwrap();
        program
    })
}

impl Victim {
    fn start() -> Self {
        let mut child = Command::new(program()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut victim = Self(child, out);
        victim.expect("up");
        victim
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    }

    fn send(&mut self, order: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    fn tell(&mut self, order: &str) {
        self.send(order);
        self.expect("done");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Gone already: nothing to kill, nothing to wait for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn skipped(why: &dyn std::fmt::Display) {
    let thread = std::thread::current();
    // A closed stderr must not turn a skip into a failure.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {}: {why}", thread.name().unwrap_or("?"));
}

/// A victim, and the probes on it; on every rung that holds here.
fn on_each_rung(settings: &ProbeSettings, test: impl Fn(&mut Victim, &mut ProbePlane)) {
    let mut held = 0;
    for rung in Rung::ALL {
        let mut victim = Victim::start();
        let mut iterator = match IterSource::load() {
            Ok(iterator) => iterator,
            Err(error) => return skipped(&error),
        };
        let census = iterator.take().unwrap();
        let row = census.rows.iter().find(|row| row.process.pid == victim.0.id()).unwrap();
        let settings =
            ProbeSettings { filter: Filter::Listed(vec![row.initial.1]), rungs: vec![rung], ..settings.clone() };
        let mut plane = match ProbePlane::attach(&settings) {
            Ok(plane) => plane,
            Err(error) => return skipped(&error),
        };
        if plane.status().poll.rung.is_none() || plane.status().futex.rung.is_none() {
            continue;
        }
        plane.note_pids(&census);
        held += 1;
        test(&mut victim, &mut plane);
    }
    assert!(held > 0, "no rung holds");
}

/// Calls of the victim's first process and all that were entered there, by where they went.
fn balance(reading: &ProbeReading, plane: &mut ProbePlane) {
    let of = |name: &str| reading.account[name];
    let (_, in_flight) = plane.threads_kept().unwrap();
    let left = of("filtered")
        + of("sampled_out")
        + of("not_timed")
        + of("in_flight_full")
        + of("measured")
        + of("ended_in_wait")
        + of("return_missed")
        + in_flight as u64;
    // Other processes are filtered at this very moment: what is read later is larger.
    assert!(of("seen").abs_diff(left) <= 2, "{} seen, {left} accounted for: {:#?}", of("seen"), reading.account);
}

#[test]
fn a_change_of_habit_has_its_history_and_its_stack() {
    on_each_rung(&ProbeSettings::default(), |victim, plane| {
        victim.tell("zero 5000");
        victim.tell("finite 3");
        victim.tell("infinite 2");
        let reading = plane.drain().unwrap();
        let [habit] = &reading.events[..] else { panic!("{:#?}", reading.events) };
        assert_eq!((habit.kind, habit.syscall, habit.timeout), (EventKind::Habit, Some(POLL), TimeoutKind::Infinite));
        let history = habit.history.unwrap();
        assert_eq!((history.zero, history.finite, history.infinite, history.other), (5000, 3, 0, 0));
        assert_eq!(history.longest_timeout_ns, 1_000_000);
        let [stack] = &reading.stacks[..] else { panic!("{} stacks", reading.stacks.len()) };
        assert!(habit.site != 0 && stack.site == habit.site && stack.tid == habit.tid, "{habit:?}");
        assert!(stack.bytes.len() > 512 && stack.ip != 0 && stack.sp != 0, "{stack:?}");
        // The count of zeros is behind by some of the later ones, and caught up by the next other call.
        let stats = reading.stats.iter().find(|stats| stats.family == Family::Poll).unwrap();
        assert_eq!((stats.calls[2], stats.calls[3], stats.calls[4]), (5000, 3, 2), "{stats:?}");

        victim.tell("negative 100000");
        let reading = plane.drain().unwrap();
        let bad: Vec<_> = reading.events.iter().filter(|event| event.kind == EventKind::BadTimeout).collect();
        assert_eq!(bad.len() as u64 + reading.account["repeated"], 100_000);
        assert!((1..100).contains(&bad.len()), "{} events", bad.len());
        assert_eq!(bad[0].history.unwrap().infinite, 2);
        assert!(bad.iter().is_sorted_by_key(|event| event.history.unwrap().other));
        balance(&reading, plane);
    });
}

#[test]
fn few_calls_before_are_no_habit() {
    on_each_rung(&ProbeSettings::default(), |victim, plane| {
        victim.tell("finite 5");
        victim.tell("infinite 1");
        victim.tell("zero 1000");
        victim.tell("infinite 1");
        let reading = plane.drain().unwrap();
        assert_eq!(reading.events, [], "it waited without limit before");
        assert_eq!(reading.stacks, []);
    });
}

#[test]
fn sites_are_told_apart_and_have_one_stack_each() {
    on_each_rung(&ProbeSettings { sites: true, ..ProbeSettings::default() }, |victim, plane| {
        victim.tell("finite 10");
        victim.tell("recv");
        let reading = plane.drain().unwrap();
        let polls: Vec<_> = reading.sites.iter().filter(|site| site.syscall == POLL).collect();
        let [poll] = polls[..] else { panic!("{polls:#?}") };
        assert_eq!((poll.pid, poll.calls[3], poll.ended), (victim.0.id(), 10, 10), "{poll:?}");
        assert_eq!(poll.timeouts_ns, (1_000_000, 1_000_000));
        assert!(poll.longest_ns >= 1_000_000 && poll.total_ns >= 10_000_000, "{poll:?}");
        assert_eq!(reading.stacks.iter().filter(|stack| stack.site == poll.site).count(), 1);
        if plane.status().socket.rung.is_some() {
            let receives: Vec<_> = reading.sites.iter().filter(|site| site.syscall == RECVFROM).collect();
            let [receive] = receives[..] else { panic!("{receives:#?}") };
            assert!(receive.ended == 1 && receive.longest_ns >= 20_000_000, "{receive:?}");
            // It waits for orders: a read in flight.
            let waits = |reading: &ProbeReading| {
                reading.sites.iter().any(|site| site.syscall == 0 && site.calls.iter().sum::<u64>() > site.ended)
            };
            let until = Instant::now() + DEADLINE;
            while !waits(&plane.drain().unwrap()) {
                assert!(Instant::now() < until);
                std::thread::yield_now();
            }
        }
        assert_eq!(reading.account["sites_evicted"], 0);
    });
}

#[test]
fn who_wakes_whom_is_known() {
    on_each_rung(&ProbeSettings { wakes: true, ..ProbeSettings::default() }, |victim, plane| {
        victim.tell("handoff 50");
        let reading = plane.drain().unwrap();
        let waker = victim.0.id();
        let word = reading.word_wakes.iter().max_by_key(|word| word.wakes).unwrap();
        assert!(word.wakes >= 50, "{:#?}", reading.word_wakes);
        assert_eq!((word.pid, word.usual), (waker, waker), "{word:?}");
        assert!(reading.account["wakes"] >= 50);
        assert!(reading.sites.is_empty());
    });
}

/// Threads killed in a wait, `exec` by a thread that is not the leader, interrupted and restarted waits: every entry
/// goes with its thread.
#[test]
fn entries_and_returns_stay_paired() {
    on_each_rung(&ProbeSettings::default(), |victim, plane| {
        for order in ["restarts 5", "killed", "execs", "killed", "execs", "handoff 5"] {
            victim.tell(order);
        }
        let reading = plane.drain().unwrap();
        balance(&reading, plane);
        let (threads, in_flight) = plane.threads_kept().unwrap();
        // Its main thread, that has polled.
        assert!(threads <= 1 && in_flight == 0, "{threads} threads, {in_flight} in flight: {:#?}", reading.account);
        assert!(reading.account["interrupted"] >= 5, "{:#?}", reading.account);
        assert_eq!(reading.account["unpaired"], 0);
        let futex = reading.stats.iter().find(|stats| stats.family == Family::Futex).unwrap();
        assert!(futex.calls[4] >= 10, "a wait that begins again is entered again: {futex:?}");
    });
}

#[test]
fn a_wait_that_began_before_the_probes_is_unpaired_and_one_cut_by_detaching_is_forgotten() {
    on_each_rung(&ProbeSettings::default(), |victim, plane| {
        let rung = plane.status().poll.rung;
        victim.send("sleep 1000");
        let until = Instant::now() + DEADLINE;
        while plane.threads_kept().unwrap().1 == 0 {
            assert!(Instant::now() < until, "never in flight");
            std::thread::yield_now();
        }
        plane.detach(Family::Poll).unwrap();
        assert!(plane.is_detached(Family::Poll));
        assert_eq!(plane.threads_kept().unwrap().1, 0);
        victim.expect("done");
        let before = plane.drain().unwrap();
        victim.tell("finite 20");
        let off = plane.drain().unwrap();
        assert_eq!(off.stats, before.stats, "nothing is counted while the family is off");

        // In mid-wait this time.
        victim.send("sleep 1000");
        let call = format!("/proc/{}/syscall", victim.0.id());
        let until = Instant::now() + DEADLINE;
        while !std::fs::read_to_string(&call).unwrap().starts_with("7 ") {
            assert!(Instant::now() < until, "never asleep");
            std::thread::yield_now();
        }
        plane.attach_again(Family::Poll).unwrap();
        assert_eq!((plane.status().poll.rung, plane.is_detached(Family::Poll)), (rung, false));
        victim.expect("done");
        victim.tell("finite 20");
        let on = plane.drain().unwrap();
        let calls = |reading: &ProbeReading| {
            reading.stats.iter().find(|stats| stats.family == Family::Poll).map_or(0, |stats| stats.calls[3])
        };
        assert_eq!(calls(&on), calls(&before) + 20);
        if matches!(rung, Some(Rung::Fentry | Rung::TpBtf)) {
            assert_eq!(on.account["unpaired"], 1);
        }
    });
}

#[test]
fn of_sampled_calls_the_bad_are_all_seen() {
    on_each_rung(&ProbeSettings::default(), |victim, plane| {
        plane.set_sampling(Family::Poll, 3).unwrap();
        victim.tell("zero 80000");
        victim.tell("negative 1000");
        let reading = plane.drain().unwrap();
        let stats = reading.stats.iter().find(|stats| stats.family == Family::Poll).unwrap();
        let out = reading.account["sampled_out"];
        // 10,000 expected, with a standard deviation of 94.
        assert!((69_000..=71_000).contains(&out), "{out}");
        assert_eq!(stats.calls[2] + out, 80_000, "{stats:?}");
        let bad = reading.events.iter().filter(|event| event.kind == EventKind::BadTimeout).count() as u64;
        assert_eq!(bad + reading.account["repeated"], 1000);
        assert_eq!(reading.account["unpaired"], 0);
        balance(&reading, plane);
        plane.set_sampling(Family::Poll, 0).unwrap();
        victim.tell("zero 100");
        victim.tell("finite 1");
        let all = plane.drain().unwrap();
        assert_eq!(all.account["sampled_out"], out);
    });
}
