//! A program that reaches one known state, and the truth it tells about it.

use crate::compile::{self, Abi};
use crate::deadline::{wait_for_age, wait_until};
use crate::guard::Guard;
use crate::procfs;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a victim may take to get into its state.
const READY: Duration = Duration::from_secs(60);

/// Healthy programs that are idle: nothing they do may ever be a finding.
pub const IDLE: &[(&str, &str)] = &[
    ("healthy_server", "idle"),
    ("healthy_pool", "idle"),
    ("healthy_pool", "timed"),
    ("healthy_waits", "nanosleep"),
    ("healthy_waits", "clock-nanosleep"),
    ("healthy_waits", "pipe"),
    ("healthy_waits", "join"),
    ("healthy_waits", "semaphore"),
    ("healthy_waits", "barrier"),
    ("healthy_waits", "sigwait"),
    ("healthy_waits", "eventfd"),
    ("healthy_waits", "accept"),
    ("healthy_waits", "flock-free"),
    ("connects", "established"),
    ("stopped", "alone"),
    ("stopped", "continued"),
];

/// Healthy programs that work.
pub const BUSY: &[(&str, &str)] = &[
    ("healthy_server", "busy"),
    ("healthy_pool", "busy"),
    ("healthy_waits", "lock-brief"),
    ("healthy_spawner", "posix_spawn"),
    ("healthy_spawner", "vfork"),
];

/// Healthy programs whose threads are always in each other's way: they use whole CPUs.
pub const CONTENDED: &[(&str, &str)] =
    &[("healthy_contended", "mutex"), ("healthy_contended", "timed"), ("healthy_contended", "rwlock")];

/// One thread of a victim, as the victim knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TruthThread {
    /// Its name.
    pub name: String,
    /// Thread id, seen from the test.
    pub tid: i32,
    /// Process id, seen from the test.
    pub pid: i32,
    /// Thread and process id inside the victim's own PID namespace.
    pub inside: (i32, i32),
    /// State letter.
    pub state: char,
    /// System call it sleeps in: name, number and arguments, where the victim promises one.
    pub syscall: Option<(String, u32, [u64; 6])>,
    /// Kind of what it waits for.
    pub resource: Option<String>,
    /// Address of the lock object.
    pub waits_for: Option<u64>,
    /// Thread id of the owner.
    pub owner: Option<i32>,
    /// Process id of the owner; `None` when the owner is gone.
    pub owner_pid: Option<i32>,
    /// `CLOCK_REALTIME` nanoseconds when its wait began.
    pub since_ns: i128,
}

/// What a victim says of itself, once, when its state is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// Whom to look at.
    pub pid: i32,
    /// Which shape.
    pub shape: String,
    /// The threads that matter.
    pub threads: Vec<TruthThread>,
    /// The whole line.
    pub all: Value,
}

impl Truth {
    /// Reads the line.
    pub fn parse(line: &str) -> Result<Self> {
        let all: Value = serde_json::from_str(line).with_context(|| format!("truth: {line}"))?;
        ensure!(all["ready"] == true, "not ready: {line}");
        let threads = all["threads"].as_array().context("threads")?;
        Ok(Self {
            pid: int(&all["pid"])?,
            shape: text(&all["shape"])?,
            threads: threads.iter().map(thread).collect::<Result<_>>()?,
            all,
        })
    }

    /// Every process of this victim that is worth looking at.
    pub fn pids(&self) -> Vec<i32> {
        match self.all["pids"].as_array() {
            Some(pids) => pids.iter().filter_map(|p| int(p).ok()).collect(),
            None => vec![self.pid],
        }
    }

    /// The thread of that name.
    pub fn thread(&self, name: &str) -> Result<&TruthThread> {
        self.threads.iter().find(|t| t.name == name).with_context(|| format!("no thread {name}"))
    }

    /// A number the shape adds.
    pub fn number(&self, key: &str) -> Result<i32> {
        int(&self.all[key]).with_context(|| format!("truth has no {key}"))
    }

    /// A string the shape adds.
    pub fn text(&self, key: &str) -> Result<String> {
        text(&self.all[key]).with_context(|| format!("truth has no {key}"))
    }

    /// When the first and when the last of the threads that wait for something began to wait.
    pub fn wait_began(&self) -> Result<(i128, i128)> {
        let waits = || self.threads.iter().filter(|t| t.resource.is_some()).map(|t| t.since_ns);
        Ok((waits().min().context("nobody waits")?, waits().max().context("nobody waits")?))
    }
}

fn int(v: &Value) -> Result<i32> {
    Ok(i32::try_from(v.as_i64().context("a number")?)?)
}

fn text(v: &Value) -> Result<String> {
    Ok(v.as_str().context("a string")?.to_owned())
}

/// `0x…`, or a plain number.
pub fn address(v: &Value) -> Option<u64> {
    match v {
        Value::String(s) => u64::from_str_radix(s.strip_prefix("0x")?, 16).ok(),
        other => other.as_u64(),
    }
}

fn thread(v: &Value) -> Result<TruthThread> {
    let syscall = match v["args"].as_array() {
        None => None,
        Some(list) => {
            let args: Vec<u64> = list.iter().filter_map(address).collect();
            let args = args.try_into().ok().context("six arguments")?;
            Some((text(&v["syscall"])?, u32::try_from(int(&v["syscall_number"])?)?, args))
        }
    };
    Ok(TruthThread {
        name: text(&v["name"])?,
        tid: int(&v["tid"])?,
        pid: int(&v["pid"])?,
        inside: (int(&v["inside_tid"])?, int(&v["inside_pid"])?),
        state: text(&v["state"])?.chars().next().context("state")?,
        syscall,
        resource: v["resource"].as_str().map(str::to_owned),
        waits_for: address(&v["waits_for"]),
        owner: int(&v["owner"]).ok(),
        owner_pid: int(&v["owner_pid"]).ok(),
        since_ns: v["since_ns"].as_i64().context("since_ns")?.into(),
    })
}

/// A running victim. Dropping it kills it and what it started.
#[derive(Debug)]
pub struct Victim {
    guard: Guard,
    /// Program and arguments, for messages.
    pub what: String,
    /// What it said; see [`Unready::ready`].
    pub truth: Truth,
    reached: Instant,
}

impl Victim {
    /// Starts `victims/<name>.c` and waits until it has reached its state.
    pub fn start(name: &str, args: &[&str]) -> Result<Self> {
        Unready::start(name, args)?.ready()
    }

    /// Starts one that is built for another ABI.
    pub fn start_as(abi: Abi, name: &str, args: &[&str]) -> Result<Self> {
        Unready::start_as(abi, name, args)?.ready()
    }

    /// Waits until its state is at least this old.
    pub fn older_than(&self, age: Duration) -> Result<()> {
        wait_for_age(self.reached, age)
    }

    /// The beginning of a command that runs in the PID namespace of a victim of [`Unready::start_inside`].
    pub fn enter(&self) -> Result<Command> {
        let (first, _) = *procfs::descendants(self.guard.pid()).first().context("nothing runs in the namespace")?;
        Ok(enter(first))
    }

    /// Starts another victim in the same namespace.
    pub fn start_beside(&self, name: &str, args: &[&str]) -> Result<Self> {
        let mut command = self.enter()?;
        command.arg(compile::victim(name, Abi::Native)?).args(args);
        Unready::start_command(command, format!("nsenter … {name} {}", args.join(" ")))?.ready()
    }

    /// The process that was started (not always the one to look at).
    pub fn guard(&mut self) -> &mut Guard {
        &mut self.guard
    }
}

/// The beginning of a command that runs in the PID and mount namespace of this process.
fn enter(pid: i32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--pid", "--mount", "--"]);
    command
}

/// A victim that has not reached its state yet: it waits for a line on stdin, or for its time.
#[derive(Debug)]
pub struct Unready {
    guard: Guard,
    what: String,
}

impl Unready {
    /// Starts `victims/<name>.c`.
    pub fn start(name: &str, args: &[&str]) -> Result<Self> {
        Self::start_as(Abi::Native, name, args)
    }

    /// Starts one that is built for another ABI.
    pub fn start_as(abi: Abi, name: &str, args: &[&str]) -> Result<Self> {
        Self::start_program(&compile::victim(name, abi)?, args)
    }

    /// Starts a program that tells truth the way victims do.
    pub fn start_program(program: &Path, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args);
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        Self::start_command(command, format!("{name} {}", args.join(" ")))
    }

    /// Starts `victims/<name>.c` as the first process of a PID namespace with a `/proc` of its own. All that runs in
    /// there ends with it.
    pub fn start_inside(name: &str, args: &[&str]) -> Result<Self> {
        Self::start_program_inside(&compile::victim(name, Abi::Native)?, args)
    }

    /// The same with any program that tells truth the way victims do.
    pub fn start_program_inside(program: &Path, args: &[&str]) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]).arg(program).args(args);
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        Self::start_command(command, format!("unshare … {name} {}", args.join(" ")))
    }

    /// [`Victim::enter`], once the victim is the first process of its namespace: before, it is `unshare` still.
    pub fn enter(&self) -> Result<Command> {
        let unshare = std::fs::read_link(format!("/proc/{}/exe", self.guard.pid()))?;
        let first = || {
            let (pid, _) = *procfs::descendants(self.guard.pid()).first()?;
            let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            (program != unshare).then_some(pid)
        };
        wait_until("the victim to run in its namespace", READY, || Ok(first())).map(enter)
    }

    /// Starts any command that tells truth the way victims do.
    pub fn start_command(command: Command, what: String) -> Result<Self> {
        Ok(Self { guard: Guard::start(command, Stdio::inherit())?, what })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.guard.pid()
    }

    /// Writes a line to its stdin: "now".
    pub fn tell(&mut self, line: &str) -> Result<()> {
        self.guard.tell(line)
    }

    /// Waits for its line of truth.
    pub fn ready(mut self) -> Result<Victim> {
        let line = self
            .guard
            .line(READY)
            .with_context(|| format!("{} never got ready", self.what))?
            .with_context(|| format!("{} ended before it was ready", self.what))?;
        let truth = Truth::parse(&line).with_context(|| self.what.clone())?;
        Ok(Victim { guard: self.guard, what: self.what, truth, reached: Instant::now() })
    }
}
