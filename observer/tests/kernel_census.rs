//! The kernel half for real: a victim with threads blocked in known ways, seen by the iterator, by `/proc`
//! and by the probes. Needs root; where it cannot run it prints `SKIPPED:` and why.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod victim;

use observer::census::{
    Census, EventKind, Family, Filter, IterSource, Pid, ProbePlane, ProbeReading, ProbeSettings, ProcSource, Rung,
    Source, ThreadRow, TimeoutKind,
};
use observer::host::clock::monotonic_ns;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};
use victim::{Victim, skipped};

const DEADLINE: Duration = Duration::from_secs(20);
const POLL: u32 = 7;
const CLOCK_NANOSLEEP: u32 = 230;
const FUTEX: u32 = 202;

/// A python victim that blocks threads in poll, a sleep and a lock, and obeys lines on its input.
const VICTIM: &str = r#"
import ctypes, ctypes.util, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
lock = threading.Lock(); lock.acquire()
def run(f): threading.Thread(target=f, daemon=True).start()
run(lambda: libc.poll(None, 0, 3600000))
run(lambda: time.sleep(3600))
run(lambda: lock.acquire())
print("up", flush=True)
for line in sys.stdin:
    if line == "probe\n":
        r, w = socket.socketpair(); w.send(b"x")
        pollfd = (ctypes.c_short * 4)()
        ctypes.memmove(pollfd, ctypes.byref(ctypes.c_int(r.fileno())), 4); pollfd[2] = 1
        libc.poll(pollfd, 1, -5)
        libc.poll(None, 0, 50)
        libc.poll(None, 0, 0)
        listener = socket.socket(); listener.bind(("127.0.0.1", 0)); address = listener.getsockname(); listener.close()
        s = socket.socket(); s.setblocking(False)
        s.connect_ex(address)
        with open("/proc/thread-self/comm", "wb") as f: f.write(b"a) b\n(\xff")
        print("done", flush=True)
"#;

fn python(mut command: Command) -> Option<Victim> {
    Victim::start(command.args(["-c", VICTIM])).ok()
}

fn victim() -> Option<Victim> {
    python(Command::new("python3"))
}

/// In a PID namespace of its own, as process 1 there; needs root.
fn contained_victim() -> Option<Victim> {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "python3"]);
    python(command)
}

fn of(census: &Census, pid: Pid) -> Vec<&ThreadRow> {
    census.rows.iter().filter(|row| row.process.pid == pid).collect()
}

fn in_call<'a>(rows: &[&'a ThreadRow], number: u32) -> Option<&'a ThreadRow> {
    rows.iter().find(|row| row.syscall.is_some_and(|call| call.number == number)).copied()
}

/// Takes censuses until all three threads are blocked where they belong.
fn settled(source: &mut dyn Source, pid: Pid) -> Census {
    let until = Instant::now() + DEADLINE;
    loop {
        let census = source.take().unwrap();
        let rows = of(&census, pid);
        if [POLL, CLOCK_NANOSLEEP, FUTEX].iter().all(|&call| in_call(&rows, call).is_some()) {
            return census;
        }
        assert!(Instant::now() < until, "the victim's threads never blocked: {rows:#?}");
        std::thread::yield_now();
    }
}

#[test]
fn the_iterator_and_proc_agree_and_off_cpu_time_is_true() {
    let mut iterator = match IterSource::load() {
        Ok(iterator) => iterator,
        Err(error) => return skipped(&error),
    };
    let before = monotonic_ns();
    let Some(mut victim) = victim() else {
        return skipped(&"no python3");
    };
    let pid = victim.pid();
    let settled_census = settled(&mut iterator, pid);
    // All three blocked between these two moments, whoever looks and whenever.
    let after = settled_census.clocks.mono_ns;
    victim.tell("probe");

    let by_kernel = settled(&mut iterator, pid);
    let by_proc = settled(&mut ProcSource::new(), pid);
    let (kernel_rows, proc_rows) = (of(&by_kernel, pid), of(&by_proc, pid));
    assert_eq!(kernel_rows.len(), 4, "{kernel_rows:#?}");
    for call in [POLL, CLOCK_NANOSLEEP, FUTEX] {
        let kernel = in_call(&kernel_rows, call).unwrap();
        let proc = in_call(&proc_rows, call).unwrap();
        assert_eq!(kernel.tid, proc.tid);
        assert_eq!(kernel.syscall, proc.syscall);
        assert_eq!(kernel.own, proc.own);
        assert_eq!(kernel.pidns, proc.pidns);
        assert_eq!(kernel.ppid, std::process::id());
        assert_eq!(kernel.ppid, proc.ppid);
        assert_eq!(kernel.comm, proc.comm);
        assert_eq!(kernel.state_letter(), 'S');
        assert_eq!(kernel.state_letter(), proc.state_letter());
        assert_eq!(kernel.nvcsw, proc.nvcsw);
        assert!(kernel.start_ns.abs_diff(proc.start_ns) <= 10_000_000, "{kernel:?} {proc:?}");
        let (by_kernel, by_proc) = (kernel.registers.unwrap(), proc.registers.unwrap());
        assert_eq!((by_kernel.ip, by_kernel.sp), (by_proc.ip, by_proc.sp));
        assert!(kernel.cgroup_id != 0 && kernel.is_blocked() && !kernel.on_cpu && !kernel.compat);
        let since = kernel.off_cpu_since_ns.unwrap();
        let slack = 100_000_000;
        assert!(since + slack >= before && since <= after + slack, "{call}: {since} is not within {before}..{after}");
        assert_eq!(proc.off_cpu_since_ns, None);
    }
    assert_eq!(in_call(&kernel_rows, POLL).unwrap().syscall.unwrap().args[2] as i32, 3_600_000);
    // The kernel cuts names at 15 bytes; the bytes that are not UTF-8 are replaced, the rest kept.
    let main = kernel_rows.iter().find(|row| row.tid == pid).unwrap();
    assert_eq!(main.comm, "a) b\n(\u{fffd}");
    assert_eq!(main.comm, proc_rows.iter().find(|row| row.tid == pid).unwrap().comm);

    let sleeper = in_call(&kernel_rows, CLOCK_NANOSLEEP).unwrap().tid;
    let stacks = iterator.kernel_stacks(&[sleeper, sleeper]).unwrap();
    assert!(stacks[&sleeper].len() > 3, "{stacks:?}");
    assert!(iterator.kernel_stacks(&[]).unwrap().is_empty());
}

/// A row without what is converted anew at every whole census, to some microseconds.
fn lasting(row: &ThreadRow) -> ThreadRow {
    ThreadRow { off_cpu_since_ns: None, ..row.clone() }
}

#[test]
fn rows_taken_over_are_as_true_as_whole_ones() {
    let (mut again, mut whole) = match (IterSource::load(), IterSource::load()) {
        (Ok(again), Ok(whole)) => (again, whole),
        (Err(error), _) | (_, Err(error)) => return skipped(&error),
    };
    let Some(mut victim) = victim() else {
        return skipped(&"no python3");
    };
    let pid = victim.pid();
    settled(&mut whole, pid);
    let mut rows = Vec::new();
    // More passes than every thread needs to be written whole once more.
    for pass in 0..40 {
        if pass == 20 {
            victim.tell("probe");
        }
        let census = again.take_again(std::mem::take(&mut rows)).unwrap();
        assert!(!census.lost.contains_key("settled_unknown"), "{:?}", census.lost);
        assert!(census.rows.is_sorted_by_key(|row| row.tid));
        let truth = settled(&mut whole, pid);
        let [known, truth] = [&census, &truth].map(|census| {
            let asleep = of(census, pid).into_iter().filter(|row| row.tid != pid);
            asleep.map(|row| (lasting(row), row.off_cpu_since_ns.unwrap())).collect::<Vec<_>>()
        });
        assert_eq!(known.len(), 3, "pass {pass}");
        for ((known, since), (truth, at)) in known.iter().zip(&truth) {
            assert_eq!(known, truth, "pass {pass}");
            assert!(since.abs_diff(*at) < 100_000_000, "pass {pass}: {since} {at}");
        }
        // What has run is seen at once: the main thread has renamed itself.
        if pass > 20 {
            assert_eq!(of(&census, pid).iter().find(|row| row.tid == pid).unwrap().comm, "a) b\n(\u{fffd}");
        }
        rows = census.rows;
    }
    // Other rows than those handed out: nothing is taken over, nothing is missing.
    let fewer = rows.split_off(rows.len() / 2);
    let census = again.take_again(fewer).unwrap();
    assert!(!census.lost.contains_key("settled_unknown"), "{:?}", census.lost);
    assert_eq!(of(&census, pid).len(), 4);
    assert_eq!(of(&again.take_again(census.rows).unwrap(), pid).len(), 4);
    assert_eq!(of(&again.take().unwrap(), pid).len(), 4);
}

#[test]
fn ids_of_a_contained_process_are_told_apart() {
    let mut iterator = match IterSource::load() {
        Ok(iterator) => iterator,
        Err(error) => return skipped(&error),
    };
    let Some(victim) = contained_victim() else {
        return skipped(&"no unshare, or no right to");
    };
    let census = iterator.take().unwrap();
    // `unshare` forks the process that becomes 1.
    let inner = census.rows.iter().find(|row| row.ppid == victim.pid()).unwrap().process.pid;
    let by_kernel = settled(&mut iterator, inner);
    let by_proc = settled(&mut ProcSource::new(), inner);
    let (kernel_rows, proc_rows) = (of(&by_kernel, inner), of(&by_proc, inner));
    for call in [POLL, CLOCK_NANOSLEEP, FUTEX] {
        let kernel = in_call(&kernel_rows, call).unwrap();
        let proc = in_call(&proc_rows, call).unwrap();
        assert_eq!((kernel.tid, kernel.process.pid), (proc.tid, inner));
        assert_eq!((kernel.own, kernel.own.1), (proc.own, 1));
        assert_ne!(kernel.own.0, kernel.tid);
        assert_eq!(kernel.pidns, proc.pidns);
        let ours = by_kernel.rows.iter().find(|row| row.tid == std::process::id()).unwrap();
        assert_ne!(kernel.pidns, ours.pidns);
    }
}

/// Runs tests of this file again inside a PID namespace, where the ids of the view are not the initial ones.
#[test]
fn inside_a_pid_namespace_the_view_is_that_namespace() {
    const INSIDE: &str = "OBSERVER_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return namespace_filter();
    }
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--nocapture", "--test-threads=1", "inside_a_pid", "the_iterator", "ids_of", "probes_by_typed"])
        .env(INSIDE, "1")
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return skipped(&error),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    if !text.contains("running 4 tests") {
        return skipped(&String::from_utf8_lossy(&output.stderr));
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    for line in errors.lines().filter(|line| line.contains("SKIPPED")) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Without a list: everything in the namespace, under the names of the namespace, and nothing else.
fn namespace_filter() {
    let settings = ProbeSettings { filter: Filter::Namespace, rungs: vec![Rung::TpBtf], ..ProbeSettings::default() };
    let mut plane = match ProbePlane::attach(&settings) {
        Ok(plane) => plane,
        Err(error) => return skipped(&error),
    };
    let Some(mut victim) = victim() else {
        return skipped(&"no python3");
    };
    victim.tell("probe");
    let census = ProcSource::new().take().unwrap();
    let mut iterator = IterSource::load().unwrap();
    plane.note_pids(&iterator.take().unwrap()).unwrap();
    let reading = drain_until(&mut plane, |reading| {
        reading.stats.iter().any(|stats| stats.pid == victim.pid() && stats.family == Family::Poll)
    });
    let bad: Vec<_> = reading.events.iter().filter(|event| event.kind == EventKind::BadTimeout).collect();
    assert_eq!(bad.len(), 1, "{reading:#?}");
    assert_eq!((bad[0].pid, bad[0].tid), (victim.pid(), victim.pid()));
    let here: Vec<Pid> = census.rows.iter().map(|row| row.process.pid).collect();
    assert!(reading.stats.iter().all(|stats| here.contains(&stats.pid)), "{reading:#?}");
}

/// Drains until the condition holds; events accumulate.
fn drain_until(plane: &mut ProbePlane, mut enough: impl FnMut(&ProbeReading) -> bool) -> ProbeReading {
    let until = Instant::now() + DEADLINE;
    let mut all = ProbeReading::default();
    loop {
        let reading = plane.drain().unwrap();
        all.events.extend(reading.events);
        (all.stats, all.account) = (reading.stats, reading.account);
        if enough(&all) {
            return all;
        }
        assert!(Instant::now() < until, "{all:#?}");
        std::thread::yield_now();
    }
}

fn probes_on(rung: Rung) {
    let Some(mut victim) = victim() else {
        return skipped(&"no python3");
    };
    let pid = victim.pid();
    let mut iterator = match IterSource::load() {
        Ok(iterator) => iterator,
        Err(error) => return skipped(&error),
    };
    let census = settled(&mut iterator, pid);
    let settings = ProbeSettings {
        long_wait: Duration::from_millis(40),
        slow_connect: Duration::from_secs(60),
        filter: Filter::Listed(vec![of(&census, pid)[0].initial.1]),
        rungs: vec![rung],
        ..ProbeSettings::default()
    };
    let mut plane = match ProbePlane::attach(&settings) {
        Ok(plane) => plane,
        Err(error) => return skipped(&error),
    };
    if plane.status().poll.rung.is_none() {
        return skipped(&plane.status().poll);
    }
    assert_eq!(plane.status().poll.rung, Some(rung));
    plane.note_pids(&census).unwrap();
    victim.tell("probe");

    let reading = drain_until(&mut plane, |reading| {
        let poll = reading.stats.iter().find(|stats| stats.family == Family::Poll);
        poll.is_some_and(|stats| stats.waits.iter().sum::<u64>() >= 2 && stats.calls.iter().sum::<u64>() >= 3)
    });
    assert!(reading.events.iter().all(|event| event.pid == pid), "{reading:#?}");
    let bad: Vec<_> = reading.events.iter().filter(|event| event.kind == EventKind::BadTimeout).collect();
    assert_eq!(bad.len(), 1, "{reading:#?}");
    assert_eq!((bad[0].timeout, bad[0].timeout_raw, bad[0].syscall), (TimeoutKind::Negative, -5, Some(POLL)));
    assert_eq!(bad[0].tid, pid);
    let long =
        reading.events.iter().find(|event| event.kind == EventKind::LongWait && event.family == Family::Poll).unwrap();
    assert!(long.wait_ns >= 50_000_000 && long.timeout_ns == 50_000_000 && long.ret == 0, "{long:?}");
    let stats = reading.stats.iter().find(|stats| stats.family == Family::Poll).unwrap();
    let [_, _, zero, finite, infinite, negative, ..] = stats.calls[..] else { panic!("{stats:?}") };
    assert_eq!((zero, finite, infinite, negative), (1, 1, 0, 1), "{stats:?}");
    // The poll of zero milliseconds is counted, and not timed.
    assert_eq!((stats.waits.iter().sum::<u64>(), reading.account["not_timed"]), (2, 1), "{stats:?}");
    assert!(stats.longest_ns >= 50_000_000, "{stats:?}");
    // A non-blocking connect to a port nobody listens on: seen by its socket.
    if plane.status().tcp_state.rung.is_some() {
        let refused =
            reading.events.iter().find(|event| event.kind == EventKind::Connect && event.syscall.is_none()).unwrap();
        assert_eq!(refused.ret, -i64::from(libc::ECONNREFUSED));
        assert!(refused.remote.is_some_and(|remote| remote.ip().is_loopback()), "{refused:?}");
    }
    for loss in ["ring_full", "in_flight_full", "processes_full", "sockets_full", "timeout_unreadable", "unpaired"] {
        assert_eq!(reading.account[loss], 0, "{loss}");
    }
    assert!(reading.account["filtered"] > 0 || reading.account["seen"] > 0);

    // Nobody is listed any more: nothing is counted any more.
    plane.set_filter(&std::collections::BTreeSet::new()).unwrap();
    victim.tell("probe");
    let silent = drain_until(&mut plane, |_| true);
    assert!(silent.events.iter().all(|event| event.kind != EventKind::BadTimeout), "{silent:#?}");
}

#[test]
fn probes_by_fentry() {
    probes_on(Rung::Fentry);
}

#[test]
fn probes_by_kprobe() {
    probes_on(Rung::Kprobe);
}

#[test]
fn probes_by_typed_tracepoints() {
    probes_on(Rung::TpBtf);
}

#[test]
fn probes_by_syscall_tracepoints() {
    probes_on(Rung::Tracepoint);
}

#[test]
fn every_rung_that_does_not_hold_says_why() {
    let settings = ProbeSettings { filter: Filter::Listed(Vec::new()), ..ProbeSettings::default() };
    let plane = match ProbePlane::attach(&settings) {
        Ok(plane) => plane,
        Err(error) => return skipped(&error),
    };
    let status = plane.status();
    for family in [&status.poll, &status.futex, &status.connect, &status.tcp_state] {
        assert!(family.falls.iter().all(|fall| !fall.reason.is_empty()), "{family:?}");
        assert!(family.rung.is_some() || !family.falls.is_empty(), "{family:?}");
    }
}

/// Keeps what was logged.
struct Journal(std::sync::Mutex<String>);

static JOURNAL: Journal = Journal(std::sync::Mutex::new(String::new()));

impl log::Log for Journal {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push_str(&format!("{}\n", record.args()));
    }

    fn flush(&self) {}
}

#[test]
fn a_full_map_is_counted_and_logged_by_the_probes() {
    log::set_logger(&JOURNAL).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
    let mut iterator = match IterSource::load() {
        Ok(iterator) => iterator,
        Err(error) => return skipped(&error),
    };
    let census = iterator.take().unwrap();
    let settings = ProbeSettings {
        filter: Filter::Listed(vec![of(&census, std::process::id())[0].initial.1]),
        in_flight: 1,
        log_level: log::LevelFilter::Debug,
        ..ProbeSettings::default()
    };
    let mut plane = match ProbePlane::attach(&settings) {
        Ok(plane) => plane,
        Err(error) => return skipped(&error),
    };
    if plane.status().poll.rung.is_none() {
        return skipped(&plane.status().poll);
    }
    let enough = std::sync::atomic::AtomicBool::new(false);
    let wait = || {
        while !enough.load(std::sync::atomic::Ordering::Relaxed) {
            nix::poll::poll(&mut [], nix::poll::PollTimeout::from(20u8)).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(wait);
        }
        let reading = drain_until(&mut plane, |reading| {
            let logged = JOURNAL.0.lock().unwrap().contains("in-flight map full");
            logged && reading.account["in_flight_full"] > 0
        });
        enough.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reading.account["measured"] <= reading.account["seen"]);
    });
}
