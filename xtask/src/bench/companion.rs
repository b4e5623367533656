//! Who watches the workload while it is measured: nobody, observer in its modes, bpftrace, strace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::namespace::Namespace;
use crate::started::{Started, only_child};
use crate::workspace;

/// How long a watcher may take to attach; bpftrace compiles first, a verifier may be slow.
const ATTACHED_WITHIN: Duration = Duration::from_secs(90);

/// How long the set of eBPF objects a watcher holds must stay the same to count as complete.
const SETTLED_AFTER: Duration = Duration::from_millis(700);

/// How long a watcher may take to go after an interrupt.
const GONE_WITHIN: Duration = Duration::from_secs(15);

/// What runs beside the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// Nothing: what the others are compared with.
    Off,
    /// `observer watch --probes none`.
    CensusOnly,
    /// `observer watch` on this rung, every probe, the whole (small) host.
    Watch(Rung),
    /// `observer attach PID`, every probe, filtered to the process in the kernel.
    Attach,
    /// The same work as the probes, in bpftrace.
    Bpftrace,
    /// `observer daemon` that exports nothing.
    Daemon(Probes),
    /// `perf trace -s -p PID`.
    PerfTrace,
    /// `strace -c -f -p PID`.
    Strace,
}

/// Probes of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Probes {
    /// None.
    None,
    /// With the budget that is the default.
    Budget,
}

/// A rung of the attach ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rung {
    /// fentry and fexit.
    Fentry,
    /// kprobe and kretprobe.
    Kprobe,
    /// Typed raw tracepoints.
    TpBtf,
    /// System call tracepoints.
    Tracepoint,
}

impl Rung {
    const ALL: [Self; 4] = [Self::Fentry, Self::Kprobe, Self::TpBtf, Self::Tracepoint];

    /// As `--probes` has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::TpBtf => "tp_btf",
            Self::Tracepoint => "tracepoint",
        }
    }
}

impl Mode {
    /// Those that this machine has, in the order of the table's columns.
    pub(crate) fn here(observer: &Path, workload: &Namespace) -> Result<Vec<Self>> {
        let mut modes = vec![Self::Off, Self::CensusOnly];
        for rung in Rung::ALL {
            if holds(observer, workload, rung)? {
                modes.push(Self::Watch(rung));
            } else {
                eprintln!("xtask: this kernel has no {}", rung.name());
            }
        }
        modes.extend([Self::Attach, Self::Bpftrace]);
        if crate::invoke::is_installed("perf") {
            modes.push(Self::PerfTrace);
        } else {
            eprintln!("xtask: perf is not installed: its column is left out");
        }
        modes.push(Self::Strace);
        Ok(modes)
    }

    /// The column's heading.
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Self::Off => "nobody watches",
            Self::CensusOnly => "observer, census only",
            Self::Watch(Rung::Fentry) => "observer watch, fentry",
            Self::Watch(Rung::Kprobe) => "observer watch, kprobe",
            Self::Watch(Rung::TpBtf) => "observer watch, tp_btf",
            Self::Watch(Rung::Tracepoint) => "observer watch, tracepoint",
            Self::Daemon(Probes::None) => "daemon, no probes",
            Self::Daemon(Probes::Budget) => "daemon, default budget",
            Self::Attach => "observer attach, best rung",
            Self::Bpftrace => "bpftrace, same probes",
            Self::PerfTrace => "perf trace -s",
            Self::Strace => "strace -c",
        }
    }

    /// Starts it on the workload and waits until it is attached; `None` for [`Mode::Off`].
    pub(crate) fn start(self, observer: &Path, workload: &Namespace) -> Result<Option<Companion>> {
        let pid = workload.pid.to_string();
        let mut command = match self {
            Self::Off => return Ok(None),
            Self::CensusOnly | Self::Watch(_) => {
                let probes = if let Self::Watch(rung) = self { rung.name() } else { "none" };
                let mut inside = workload.inside(observer);
                inside.args(["watch", "--probes", probes, "--output", "ndjson", "--for", "120s"]);
                without_budget(observer, &mut inside)?;
                inside
            }
            Self::Attach => {
                let mut attach = Command::new(observer);
                attach.args(["attach", &pid, "--probes", "auto", "--output", "ndjson", "--for", "120s"]);
                without_budget(observer, &mut attach)?;
                attach
            }
            Self::Bpftrace => {
                let mut bpftrace = Command::new("bpftrace");
                bpftrace.arg(workspace::root().join("xtask/bench/tax.bt")).arg(&pid);
                bpftrace
            }
            Self::Daemon(probes) => {
                let mut inside = workload.inside(observer);
                inside.args(["daemon", "--listen", "none", "--stdout=false"]);
                match probes {
                    Probes::None => _ = inside.args(["--probes", "none"]),
                    Probes::Budget => {}
                }
                inside
            }
            Self::PerfTrace => {
                let mut perf = Command::new("perf");
                perf.args(["trace", "-s", "-p", &pid]);
                perf
            }
            Self::Strace => {
                let mut strace = Command::new("strace");
                strace.args(["-c", "-f", "-p", &pid]);
                strace
            }
        };
        // Then observer says when its probes are on.
        command.env("OBSERVER_LOG", "warn,observer::cli=info");
        let started = Started::start(&mut command)?;
        let attached = Companion::attached(self, started);
        attached.with_context(|| format!("cannot measure `{}`", self.heading())).map(Some)
    }
}

/// A watcher that is attached.
pub(crate) struct Companion {
    started: Started,
    /// The process to interrupt: the watcher itself, also beneath `nsenter`.
    pid: u32,
}

impl Companion {
    fn attached(mode: Mode, mut started: Started) -> Result<Self> {
        let pid = match mode {
            Mode::CensusOnly | Mode::Watch(_) | Mode::Daemon(_) => {
                only_child(started.pid(), ATTACHED_WITHIN).or_else(|error| started.still_runs().and(Err(error)))?
            }
            _ => started.pid(),
        };
        if mode == Mode::Strace {
            let attached = |line: &str| line.contains("attached").then_some(());
            started.wait_for("it attached", ATTACHED_WITHIN, attached)?;
        } else {
            if matches!(mode, Mode::Watch(_) | Mode::Attach | Mode::Daemon(Probes::Budget)) {
                let attached = |line: &str| line.contains("probes attached").then_some(());
                started.wait_for("its probes are attached", ATTACHED_WITHIN, attached)?;
            }
            wait_until_settled(&mut started, pid)?;
        }
        Ok(Self { started, pid })
    }

    /// Ends it as Ctrl-C would.
    pub(crate) fn stop(self) -> Result<()> {
        self.started.interrupt(self.pid, GONE_WITHIN).map(|_| ())
    }
}

/// Waits until the process holds eBPF objects and has added none for a while: what a program says of
/// itself differs, what it holds in the kernel does not.
fn wait_until_settled(started: &mut Started, pid: u32) -> Result<()> {
    let deadline = Instant::now() + ATTACHED_WITHIN;
    let mut held = Vec::new();
    let mut since = Instant::now();
    loop {
        let now = ebpf_objects(pid).or_else(|error| started.still_runs().and(Err(error)))?;
        if now != held {
            held = now;
            since = Instant::now();
        }
        if !held.is_empty() && since.elapsed() >= SETTLED_AFTER {
            return Ok(());
        }
        started.still_runs()?;
        ensure!(
            Instant::now() < deadline,
            "process {pid} holds {} eBPF objects after {ATTACHED_WITHIN:?} and has not settled: does it attach?",
            held.len()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Descriptors of eBPF programs, maps, links and perf events that a process holds.
fn ebpf_objects(pid: u32) -> Result<Vec<PathBuf>> {
    let directory = format!("/proc/{pid}/fd");
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))? {
        let Ok(target) = entry.and_then(|entry| std::fs::read_link(entry.path())) else {
            continue;
        };
        let name = target.to_string_lossy();
        if name.starts_with("anon_inode:bpf") || name == "anon_inode:[perf_event]" {
            objects.push(target);
        }
    }
    objects.sort();
    Ok(objects)
}

/// The probes unlimited: what they cost is what is measured. Binaries from before the budget have no such flag.
fn without_budget(observer: &Path, command: &mut Command) -> Result<()> {
    let (_, help) = crate::invoke::capture_any(Command::new(observer).args(["watch", "--help"]))?;
    if help.contains("--cpu-budget") {
        command.args(["--cpu-budget", "off"]);
    }
    Ok(())
}

/// Whether probes attach on this rung alone.
fn holds(observer: &Path, workload: &Namespace, rung: Rung) -> Result<bool> {
    let probes = capability(observer, workload, rung.name())?;
    Ok(["poll", "futex", "connect"].iter().all(|family| probes[family] == rung.name()))
}

/// Which rung of the attach ladder each probe got, in observer's own words.
pub(crate) fn rungs(observer: &Path, workload: &Namespace) -> Result<String> {
    let probes = capability(observer, workload, "auto")?;
    let probes = probes.as_object().context("the report's capability.probes is not an object")?;
    let words = probes
        .iter()
        .map(|(family, rung)| format!("{family}: {}", rung.as_str().map_or_else(|| rung.to_string(), str::to_owned)));
    Ok(words.collect::<Vec<_>>().join(", "))
}

fn capability(observer: &Path, workload: &Namespace, probes: &str) -> Result<serde_json::Value> {
    let mut command = Command::new(observer);
    command.args(["attach", &workload.pid.to_string(), "--once", "--threshold", "1s", "--output", "json"]);
    command.args(["--probes", probes]);
    let (_, printed) = crate::invoke::capture_any(&mut command)?;
    let report = serde_json::Deserializer::from_str(&printed).into_iter::<serde_json::Value>().next();
    let Some(Ok(report)) = report else {
        bail!("`{}` printed no report: {printed}", crate::invoke::shown(&command));
    };
    Ok(report["capability"]["probes"].clone())
}
