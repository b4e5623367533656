//! What the probes keep by thread, call site and futex word, and that every call entered is accounted for: a victim that makes
//! the calls it is told to. Needs root; where it cannot run it prints `SKIPPED:` and why.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod victim;

use observer::census::{
    Census, EventKind, Family, Filter, IterSource, Pid, ProbePlane, ProbeReading, ProbeSettings, Rung, Source,
    TimeoutKind,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use victim::{Victim, skipped};

const DEADLINE: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);
const POLL: u32 = 7;
const RECVFROM: u32 = 45;

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

/// A victim, and the probes on it, by this rung alone; a rung that does not hold here is a skip.
fn on(rung: Rung, settings: ProbeSettings, test: impl Fn(&mut Victim, &mut ProbePlane)) {
    let mut victim = Victim::start(&mut Command::new(program())).unwrap();
    let mut iterator = match IterSource::load() {
        Ok(iterator) => iterator,
        Err(error) => return skipped(&error),
    };
    let census = iterator.take().unwrap();
    let filter = Filter::Listed(vec![initial(&census, &victim)]);
    let settings = ProbeSettings { filter, rungs: vec![rung], ..settings };
    let mut plane = match ProbePlane::attach(&settings) {
        Ok(plane) => plane,
        Err(error) => return skipped(&error),
    };
    for family in [&plane.status().poll, &plane.status().futex] {
        if family.rung.is_none() {
            return skipped(family);
        }
    }
    plane.note_pids(&census).unwrap();
    test(&mut victim, &mut plane);
}

/// Its process id in the initial PID namespace.
fn initial(census: &Census, victim: &Victim) -> Pid {
    census.rows.iter().find(|row| row.process.pid == victim.pid()).unwrap().initial.1
}

/// A test of each rung of each of these, so that a rung which cannot be tested here is counted.
macro_rules! on_each_rung {
    ($($test:ident: $settings:expr;)*) => {$(
        mod $test {
            use super::*;

            #[test]
            fn by_fentry() {
                on(Rung::Fentry, $settings, super::$test);
            }

            #[test]
            fn by_kprobe() {
                on(Rung::Kprobe, $settings, super::$test);
            }

            #[test]
            fn by_tp_btf() {
                on(Rung::TpBtf, $settings, super::$test);
            }

            #[test]
            fn by_tracepoint() {
                on(Rung::Tracepoint, $settings, super::$test);
            }
        }
    )*};
}

on_each_rung! {
    a_change_of_habit_has_its_history_and_its_stack: ProbeSettings::default();
    few_calls_before_are_no_habit: ProbeSettings::default();
    calls_at_another_place_are_no_habit: ProbeSettings::default();
    what_a_thread_forgot_is_no_habit: ProbeSettings::default();
    what_was_passed_while_the_probes_were_off_is_no_habit: ProbeSettings::default();
    a_thread_in_flight_when_the_probes_come_off_keeps_what_it_passed: ProbeSettings::default();
    sites_are_told_apart_and_have_one_stack_each: ProbeSettings { sites: true, ..ProbeSettings::default() };
    who_wakes_whom_is_known: ProbeSettings { wakes: true, ..ProbeSettings::default() };
    entries_and_returns_stay_paired: ProbeSettings::default();
    a_wait_that_began_before_the_probes_is_unpaired_and_one_cut_by_detaching_is_forgotten: ProbeSettings::default();
    of_sampled_calls_the_bad_are_all_seen: ProbeSettings::default();
    threads_without_room_are_counted: ProbeSettings { in_flight: 8, long_wait: HOUR, ..ProbeSettings::default() };
    sites_without_room_are_counted: ProbeSettings { sites: true, most_sites: 64, ..ProbeSettings::default() };
    words_without_room_are_counted: ProbeSettings { wakes: true, most_wakes: 64, ..ProbeSettings::default() };
    processes_without_room_are_counted: ProbeSettings { most_processes: 1, ..ProbeSettings::default() };
}

/// State changes of TCP sockets have two rungs only.
mod attempts_without_room_are_counted {
    use super::*;

    fn settings() -> ProbeSettings {
        ProbeSettings { most_attempts: 4, slow_connect: HOUR, ..ProbeSettings::default() }
    }

    #[test]
    fn by_tp_btf() {
        on(Rung::TpBtf, settings(), attempts_without_room_are_counted);
    }

    #[test]
    fn by_tracepoint() {
        on(Rung::Tracepoint, settings(), attempts_without_room_are_counted);
    }
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
    // Other processes are filtered at this very moment, more of them on a busy machine: what is read later is larger.
    let meanwhile = 100 + of("filtered") / 100;
    assert!(
        of("seen") <= left + 2 && left <= of("seen") + meanwhile,
        "{} seen, {left} accounted for: {:#?}",
        of("seen"),
        reading.account
    );
}

fn a_change_of_habit_has_its_history_and_its_stack(victim: &mut Victim, plane: &mut ProbePlane) {
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
}

fn few_calls_before_are_no_habit(victim: &mut Victim, plane: &mut ProbePlane) {
    victim.tell("finite 5");
    victim.tell("infinite 1");
    victim.tell("zero 1000");
    victim.tell("infinite 1");
    let reading = plane.drain().unwrap();
    assert_eq!(reading.events, [], "it waited without limit before");
    assert_eq!(reading.stacks, []);
}

/// A resolver gives its polls a limit; the connection that is made then is waited for without one.
fn calls_at_another_place_are_no_habit(victim: &mut Victim, plane: &mut ProbePlane) {
    victim.tell("finite 20");
    victim.tell("elsewhere 20");
    victim.tell("finite 7");
    victim.tell("infinite 1");
    let reading = plane.drain().unwrap();
    assert_eq!(reading.events, [], "seven in a row");
    let stats = reading.stats.iter().find(|stats| stats.family == Family::Poll).unwrap();
    assert_eq!((stats.calls[3], stats.calls[4]), (47, 1), "{stats:?}");
}

/// A thread that uses more calls than have room keeps no history of the one it came back to.
fn what_a_thread_forgot_is_no_habit(victim: &mut Victim, plane: &mut ProbePlane) {
    victim.tell("infinite 1");
    victim.tell("mixed 1");
    victim.tell("finite 20");
    victim.tell("infinite 1");
    let reading = plane.drain().unwrap();
    assert_eq!(reading.events, [], "it waited without limit before");
    assert!(reading.account["habits_replaced"] >= 3, "{:#?}", reading.account);
    victim.tell("negative 1");
    let reading = plane.drain().unwrap();
    let [bad] = &reading.events[..] else { panic!("{:#?}", reading.events) };
    assert_eq!((bad.kind, bad.timeout_raw), (EventKind::BadTimeout, -5));
    balance(&reading, plane);
}

fn what_was_passed_while_the_probes_were_off_is_no_habit(victim: &mut Victim, plane: &mut ProbePlane) {
    // What was passed unseen first: a limit that was seen to be missing is remembered whatever else is forgotten.
    for seen in [false, true] {
        victim.tell("finite 20");
        plane.detach(Family::Poll).unwrap();
        victim.tell("infinite 3");
        plane.set_sampling(Family::Poll, 3).unwrap();
        plane.attach_again(Family::Poll).unwrap();
        plane.set_sampling(Family::Poll, 0).unwrap();
        if seen {
            // What is passed from now on is a history of its own.
            victim.tell("finite 7");
        }
        victim.tell("infinite 1");
        let reading = plane.drain().unwrap();
        assert_eq!(reading.events, [], "it waited without limit before");
        assert_eq!(reading.account["habits_replaced"], 0);
    }
}

fn a_thread_in_flight_when_the_probes_come_off_keeps_what_it_passed(victim: &mut Victim, plane: &mut ProbePlane) {
    for family in [Family::Poll, Family::Futex] {
        victim.tell("infinite 1");
        victim.send("sleep 1000");
        let until = Instant::now() + DEADLINE;
        while plane.threads_kept().unwrap().1 == 0 {
            assert!(Instant::now() < until, "never in flight");
            std::thread::yield_now();
        }
        plane.detach(family).unwrap();
        plane.attach_again(family).unwrap();
        victim.done();
        victim.tell("finite 20");
        victim.tell("infinite 1");
        let reading = plane.drain().unwrap();
        assert_eq!(reading.events, [], "it waited without limit before");
    }
}

fn threads_without_room_are_counted(victim: &mut Victim, plane: &mut ProbePlane) {
    const THREADS: u64 = 64;
    const ROOM: u64 = 8;
    victim.tell(&format!("gather {THREADS}"));
    let reading = plane.drain().unwrap();
    let of = |name: &str| reading.account[name];
    assert_eq!(plane.threads_kept().unwrap(), (ROOM as usize, ROOM as usize));
    // The negative timeout of each, and its wait.
    assert_eq!(of("in_flight_full"), 2 * (THREADS - ROOM), "{:#?}", reading.account);
    assert!(reading.events.iter().all(|event| event.kind == EventKind::BadTimeout), "{:#?}", reading.events);
    assert_eq!((reading.events.len() as u64, of("repeated"), of("ring_full")), (THREADS, 0, 0));
    let stats = reading.stats.iter().find(|stats| stats.family == Family::Poll).unwrap();
    assert_eq!((stats.calls[4], stats.calls[5]), (THREADS, THREADS), "counted all the same: {stats:?}");
    balance(&reading, plane);

    victim.tell("scatter");
    let reading = plane.drain().unwrap();
    assert_eq!(reading.events, []);
    let (threads, in_flight) = plane.threads_kept().unwrap();
    assert!(threads <= 1 && in_flight == 0, "{threads} threads, {in_flight} in flight: {:#?}", reading.account);
    assert!(reading.account["unpaired"] <= reading.account["in_flight_full"], "{:#?}", reading.account);
    balance(&reading, plane);
    victim.tell("finite 3");
    let after = plane.drain().unwrap();
    assert_eq!(after.account["measured"], reading.account["measured"] + 3, "there is room again");
    assert_eq!(after.account["in_flight_full"], reading.account["in_flight_full"]);
}

/// Room for one aggregate: whoever comes first has it, until it has ended.
fn processes_without_room_are_counted(victim: &mut Victim, plane: &mut ProbePlane) {
    let calls_of = |reading: &ProbeReading, pid: Pid, family: Family| -> Option<u64> {
        let stats = reading.stats.iter().find(|stats| (stats.pid, stats.family) == (pid, family))?;
        Some(stats.calls.iter().sum())
    };
    let mut iterator = IterSource::load().unwrap();
    let mut first = Victim::start(&mut Command::new(program())).unwrap();
    let census = iterator.take().unwrap();
    plane.set_filter(&BTreeSet::from([initial(&census, &first), initial(&census, victim)])).unwrap();
    plane.note_pids(&census).unwrap();
    let (pid, first_pid) = (victim.pid(), first.pid());
    first.tell("finite 3");
    victim.tell("finite 20");
    first.tell("handoff 20");
    let reading = plane.drain().unwrap();
    let of = |name: &str| reading.account[name];
    assert_eq!(reading.stats.len(), 1, "{:#?}", reading.stats);
    assert_eq!(calls_of(&reading, first_pid, Family::Poll), Some(3));
    // Measured they are all, and each that has no aggregate is counted once.
    assert!(of("measured") >= 3 + 20 + 20, "{:#?}", reading.account);
    assert_eq!(of("processes_full"), of("measured") - 3, "{:#?}", reading.account);
    balance(&reading, plane);
    // Findings do not need it.
    victim.tell("negative 1");
    let reading = plane.drain().unwrap();
    let [bad] = &reading.events[..] else { panic!("{:#?}", reading.events) };
    assert_eq!((bad.kind, bad.pid), (EventKind::BadTimeout, pid));

    // Zero polls that wait to be added are all counted, whoever loses them.
    let before = reading.account["processes_full"];
    victim.tell("zero 1000");
    victim.tell("finite 1");
    let reading = plane.drain().unwrap();
    let lost = reading.account["processes_full"] - before;
    assert!((1001 - 64..=1001).contains(&lost), "{lost}");

    drop(first);
    let before = reading.account["processes_full"];
    // It goes once its process was missing in some censuses.
    for _ in 0..6 {
        plane.note_pids(&iterator.take().unwrap()).unwrap();
        plane.drain().unwrap();
    }
    victim.tell("finite 5");
    let reading = plane.drain().unwrap();
    assert!(calls_of(&reading, pid, Family::Poll) >= Some(5), "there is room again: {:#?}", reading.stats);
    assert_eq!(reading.account["processes_full"], before);
    balance(&reading, plane);
}

/// Room for four attempts: those beyond it are counted and not followed.
fn attempts_without_room_are_counted(victim: &mut Victim, plane: &mut ProbePlane) {
    if plane.status().tcp_state.rung.is_none() {
        return skipped(&plane.status().tcp_state);
    }
    let full = |reading: &ProbeReading| reading.account["sockets_full"];
    victim.tell("attempt 10");
    let reading = plane.drain().unwrap();
    assert_eq!((full(&reading), &reading.events[..]), (6, &[][..]), "{:#?}", reading.account);
    // Nothing is heard of one that fails.
    victim.tell("refused");
    let reading = plane.drain().unwrap();
    assert_eq!((full(&reading), &reading.events[..]), (7, &[][..]));
    victim.tell("give-up");
    assert_eq!(plane.drain().unwrap().events, []);
    victim.tell("refused");
    let reading = plane.drain().unwrap();
    let [refused] = &reading.events[..] else { panic!("there is room again: {:#?}", reading.events) };
    assert_eq!((refused.kind, refused.ret), (EventKind::Connect, -i64::from(libc::ECONNREFUSED)));
    victim.tell("attempt 4");
    assert_eq!(full(&plane.drain().unwrap()), 7);
}

fn sites_without_room_are_counted(victim: &mut Victim, plane: &mut ProbePlane) {
    const PLACES: u64 = 512;
    const ROOM: u64 = 64;
    victim.tell("places");
    let reading = plane.drain().unwrap();
    let of = |name: &str| reading.account[name];
    let sites: Vec<_> = reading.sites.iter().filter(|site| site.syscall == POLL).collect();
    assert!((1..=ROOM).contains(&(sites.len() as u64)), "{}", sites.len());
    assert!(sites.iter().all(|site| site.pid == victim.pid() && site.calls[3] == 1 && site.ended <= 1), "{sites:#?}");
    assert!(of("sites_new") + of("sites_full") >= PLACES, "{:#?}", reading.account);
    assert!(of("sites_evicted") + of("sites_full") >= PLACES - ROOM, "{:#?}", reading.account);
    let stats = reading.stats.iter().find(|stats| stats.family == Family::Poll).unwrap();
    assert_eq!(stats.calls[3], PLACES, "the process has them all: {stats:?}");
    let without = of("stacks_limited") + of("stacks_full") + of("stacks_unreadable");
    assert!(reading.stacks.len() as u64 + without >= PLACES, "{:#?}", reading.account);
    assert_eq!(reading.events, []);
    balance(&reading, plane);
}

fn words_without_room_are_counted(victim: &mut Victim, plane: &mut ProbePlane) {
    const WORDS: u64 = 300;
    const ROOM: u64 = 64;
    victim.tell(&format!("words {WORDS}"));
    let reading = plane.drain().unwrap();
    let of = |name: &str| reading.account[name];
    let words = &reading.word_wakes;
    assert!((1..=ROOM).contains(&(words.len() as u64)), "{}", words.len());
    let by_main = |words: &observer::census::WordWakes| (words.usual, words.last, words.wakes);
    let waker = victim.pid();
    assert!(words.iter().all(|words| by_main(words) == (waker, waker, 1)), "{words:#?}");
    assert!(of("wakes") >= WORDS, "{:#?}", reading.account);
    assert!(of("words_new") + of("wakes_full") >= WORDS, "{:#?}", reading.account);
    assert!(of("words_evicted") + of("wakes_full") >= WORDS - ROOM, "{:#?}", reading.account);
    assert_eq!(reading.events, []);
    balance(&reading, plane);
}

fn sites_are_told_apart_and_have_one_stack_each(victim: &mut Victim, plane: &mut ProbePlane) {
    victim.tell("finite 10");
    victim.tell("recv");
    let reading = plane.drain().unwrap();
    let polls: Vec<_> = reading.sites.iter().filter(|site| site.syscall == POLL).collect();
    let [poll] = polls[..] else { panic!("{polls:#?}") };
    assert_eq!((poll.pid, poll.calls[3], poll.ended), (victim.pid(), 10, 10), "{poll:?}");
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
}

fn who_wakes_whom_is_known(victim: &mut Victim, plane: &mut ProbePlane) {
    victim.tell("handoff 50");
    let reading = plane.drain().unwrap();
    let waker = victim.pid();
    let word = reading.word_wakes.iter().max_by_key(|word| word.wakes).unwrap();
    assert!(word.wakes >= 50, "{:#?}", reading.word_wakes);
    assert_eq!((word.pid, word.usual), (waker, waker), "{word:?}");
    assert!(reading.account["wakes"] >= 50);
    assert!(reading.sites.is_empty());
}

/// Threads killed in a wait, `exec` by a thread that is not the leader, interrupted and restarted waits: every entry
/// goes with its thread.
fn entries_and_returns_stay_paired(victim: &mut Victim, plane: &mut ProbePlane) {
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
}

fn a_wait_that_began_before_the_probes_is_unpaired_and_one_cut_by_detaching_is_forgotten(
    victim: &mut Victim,
    plane: &mut ProbePlane,
) {
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
    victim.done();
    let before = plane.drain().unwrap();
    // On a busy machine the kernel lets the probes go later than the sleep ends.
    let cut = before.account.get("cut_in_flight").copied().unwrap_or(0);
    assert_eq!(cut + before.account["measured"], 1, "{:#?}", before.account);
    victim.tell("finite 20");
    let off = plane.drain().unwrap();
    assert_eq!(off.stats, before.stats, "nothing is counted while the family is off");

    // In mid-wait this time.
    victim.send("sleep 1000");
    let call = format!("/proc/{}/syscall", victim.pid());
    let until = Instant::now() + DEADLINE;
    while !std::fs::read_to_string(&call).unwrap().starts_with("7 ") {
        assert!(Instant::now() < until, "never asleep");
        std::thread::yield_now();
    }
    plane.attach_again(Family::Poll).unwrap();
    assert_eq!((plane.status().poll.rung, plane.is_detached(Family::Poll)), (rung, false));
    victim.done();
    victim.tell("finite 20");
    let on = plane.drain().unwrap();
    let calls = |reading: &ProbeReading| {
        reading.stats.iter().find(|stats| stats.family == Family::Poll).map_or(0, |stats| stats.calls[3])
    };
    assert_eq!(calls(&on), calls(&before) + 20);
    if matches!(rung, Some(Rung::Fentry | Rung::TpBtf)) {
        assert_eq!(on.account["unpaired"], 1);
    }
}

fn of_sampled_calls_the_bad_are_all_seen(victim: &mut Victim, plane: &mut ProbePlane) {
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
}
