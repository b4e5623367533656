//! Who a process is.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use super::victim::{Victim, wait_for};
use crate::census::ProcessId;
use crate::proc::{GatherSettings, Gatherer, Libc, MemoryRange, ProcError, ProcessFacts, ThreadWant, exists};
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

fn gatherer() -> Gatherer {
    // A busy machine must not fail these tests.
    Gatherer::new(GatherSettings { deadline: Duration::from_secs(5), ..GatherSettings::default() })
}

fn facts(gatherer: &mut Gatherer, process: ProcessId) -> ProcessFacts {
    gatherer.gather(&[], &[process], &[], &[]).processes.pop().unwrap()
}

#[test]
fn a_weird_command_line() {
    let victim = Victim::named("-we ird\n)", &["idle", "", "two words", "\u{1f980}", ""]);
    let found = facts(&mut gatherer(), victim.id);
    assert_eq!(found.cmdline, ["-we ird\n)", "idle", "", "two words", "\u{1f980}", ""]);
    assert_eq!(found.comm, "proc-victim");
    assert!(found.exe.unwrap().ends_with("/proc-victim"));
    assert_eq!((found.runtime.as_str(), found.libc), ("native", Libc::Glibc));
    assert_eq!(found.missing, Vec::<String>::new());
}

#[test]
fn an_exec_is_noticed_and_else_the_cache_answers() {
    let mut victim = Victim::start(&["exec"]);
    let mut gatherer = gatherer();
    assert_eq!(facts(&mut gatherer, victim.id).cmdline, ["victim", "exec"]);
    victim.input.write_all(b"x").unwrap();
    let after = wait_for("the new command line", Duration::from_secs(5), || {
        Some(facts(&mut gatherer, victim.id)).filter(|f| f.cmdline != ["victim", "exec"] && f.missing.is_empty())
    });
    assert_eq!(after.process, victim.id);
    assert_eq!(after.cmdline, ["again", "idle", "as another"]);
    let gone = victim.kill();
    let facts = gatherer.gather(&[], &[gone], &[], &[]);
    assert_eq!((facts.processes.len(), facts.lost.get("process: ESRCH")), (0, Some(&1)));
}

#[test]
fn a_process_in_the_topmost_cgroup_with_other_mounts() {
    // Into the topmost cgroup of each hierarchy first, wherever the tests themselves run.
    let start = |then: &str| {
        let mut command = Command::new("unshare");
        let up = "for procs in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do echo $$ > $procs; done";
        command.args(["--mount", "sh", "-c", &format!("({up}) 2>/dev/null; {then} echo 1 && read line")]);
        Victim::spawn(command, true)
    };
    let same = start("");
    let found = facts(&mut gatherer(), same.id);
    if found.cgroup.as_deref() != Some("/") {
        eprintln!(
            "SKIPPED: a_process_in_the_topmost_cgroup_with_other_mounts: cannot leave the cgroup {:?}",
            found.cgroup
        );
        return;
    }
    assert_eq!((found.container, found.missing), (None, Vec::new()), "the mounts are ours: it is where we are");

    let apart = start("mount -t tmpfs none /sys/fs/cgroup &&");
    let found = facts(&mut gatherer(), apart.id);
    assert_eq!((found.container, found.cgroup.as_deref()), (None, Some("/")));
    assert_eq!(found.missing, ["container: its cgroup path is / and its cgroups are mounted otherwise than ours"]);
}

#[test]
fn runtimes() {
    let mut gatherer = gatherer();
    let java = tempfile::tempdir().unwrap();
    let source = java.path().join("Wait.java");
    std::fs::write(
        &source,
        "class Wait { public static void main(String[] a) throws Exception { System.in.read(); } }",
    )
    .unwrap();
    let source = source.to_string_lossy().into_owned();
    let table: [(&str, &[&str], &str); 3] = [
        ("python3", &["-c", "input()"], "cpython3."),
        ("node", &["-e", "process.stdin.resume()"], "node"),
        ("java", &[&source], "jvm"),
    ];
    for (program, args, expected) in table {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("skipped: no {program} here");
            continue;
        }
        let mut command = Command::new(program);
        command.args(args);
        let victim = Victim::spawn(command, false);
        // Until the interpreter is loaded it is something else (python3 may be a shell script).
        let found = wait_for(expected, Duration::from_secs(30), || {
            Some(facts(&mut gatherer, victim.id)).filter(|f| f.runtime.starts_with(expected))
        });
        assert_eq!(found.libc, Libc::Glibc, "{found:?}");
        assert!(found.runtime.ends_with(|c: char| c.is_ascii_digit()), "{found:?}");
    }
}

#[test]
fn go_programs_and_static_ones() {
    use crate::proc::elf::Elf;
    use crate::proc::runtime::{go_version, recognise};
    let open = |path: &str| Elf::open(std::fs::File::open(path).ok()?).ok();
    let go = ["/usr/bin/runc", "/usr/bin/kubectl", "/usr/local/bin/docker"].iter().find_map(|p| open(p));
    match go {
        Some(elf) => {
            let version = go_version(&elf).unwrap();
            assert!(version.starts_with("go1."), "{version}");
            let mut headerless = elf;
            headerless.sections.clear();
            assert_eq!(go_version(&headerless), Some(version));
        }
        None => eprintln!("skipped: no Go program here"),
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("a.c"), dir.path().join("a"));
    std::fs::write(&source, "int main(void) { return 0; }").unwrap();
    let status = Command::new("cc").args(["-static", "-s", "-o"]).args([&program, &source]).status().unwrap();
    if status.success() {
        let elf = open(&program.to_string_lossy());
        let found = recognise(u32::MAX, Some("/a"), &Default::default(), elf.as_ref());
        assert_eq!((found.runtime.as_str(), found.libc), ("native", Libc::Glibc));
    } else {
        eprintln!("skipped: no static C library here");
    }
}

#[test]
fn why_a_number_cannot_be_attached_to() {
    assert!(matches!(exists(u32::MAX), Err(ProcError::NoSuchProcess { .. })));
    assert!(matches!(exists(0), Err(ProcError::NoSuchProcess { .. })));

    let mut victim = Victim::start(&["threads", "2"]);
    let tid = std::fs::read_dir(format!("/proc/{}/task", victim.id.pid))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .find(|tid| *tid != victim.id.pid)
        .unwrap();
    let Err(error) = exists(tid) else { panic!("{tid}") };
    assert!(matches!(&error, ProcError::NotALeader { pid, .. } if *pid == victim.id.pid));
    assert!(error.to_string().contains(&format!("attach to {}", victim.id.pid)));

    victim.kill_only();
    let error = wait_for("it is a zombie", Duration::from_secs(5), || exists(victim.id.pid).err());
    assert!(matches!(error, ProcError::Zombie { ppid, .. } if ppid == std::process::id()), "{error}");
    let gone = victim.kill();
    assert_eq!(exists(gone.pid), Err(ProcError::NoSuchProcess { pid: gone.pid }));
}

#[test]
#[ignore = "a measurement"]
fn cost() {
    let victim = Victim::start(&["threads", "100"]);
    let tids = std::fs::read_dir(format!("/proc/{}/task", victim.id.pid)).unwrap();
    let wants: Vec<ThreadWant> = tids
        .map(|e| ThreadWant {
            process: victim.id,
            tid: e.unwrap().file_name().into_string().unwrap().parse().unwrap(),
            switches: 0,
            memory: vec![MemoryRange { addr: victim.value, len: 64 }; 3],
            fd: Some(0),
            kernel_stack: false,
            file_lock: false,
            set: None,
            far_end: None,
        })
        .collect();
    let mut gatherer = gatherer();
    let mut measure = |what: &str, wants: &[ThreadWant], processes: &[ProcessId], sockets: &[ProcessId]| {
        let mut times: Vec<Duration> = (0..101)
            .map(|_| {
                let start = Instant::now();
                let facts = gatherer.gather(wants, processes, sockets, &[]);
                assert_eq!(facts.lost.values().sum::<u64>(), 0, "{:?}", facts.lost);
                start.elapsed()
            })
            .collect();
        eprintln!("{what}: first {:?}", times[0]);
        times.sort();
        eprintln!("{what}: median {:?} worst {:?}", times[50], times[100]);
    };
    let memory_only: Vec<ThreadWant> = wants.iter().map(|w| ThreadWant { fd: None, ..w.clone() }).collect();
    measure("identity of 1 process", &[], &[victim.id], &[]);
    measure("memory of 1 thread, identity", &memory_only[..1], &[victim.id], &[]);
    measure("memory of 100 threads, identity", &memory_only, &[victim.id], &[]);
    measure("memory and fd of 100 threads, identity", &wants, &[victim.id], &[]);
    measure("SYN-SENT sockets of 1 process", &[], &[], &[victim.id]);
}
