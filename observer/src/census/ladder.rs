//! The attach ladder: each family of probes goes down until a rung holds.
//!
//! Loading is not proof: a kernel may refuse at load, or load and refuse at attach. So every rung is
//! really tried, down to the last program, and a rung that holds in part is taken off again.

use super::budget::FAMILIES;
use super::event::Family;
use super::meter::Payer;
use super::object::reason;
use crate::host::KernelTypes;
use aya::Ebpf;
use aya::programs::{
    BtfTracePoint, FEntry, FExit, KProbe, Program, ProgramError, TracePoint, kprobe::KProbeError,
    trace_point::TracePointError,
};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::io::ErrorKind;

/// A way to attach, cheapest for the machine as a whole first (docs/design/0009-the-probes-budget.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// fentry/fexit on `__x64_sys_*`.
    Fentry,
    /// `syscalls:sys_enter_*`/`sys_exit_*`.
    Tracepoint,
    /// `sys_enter`/`sys_exit` with types, one pair for all families on it: every system call of the machine pays.
    TpBtf,
    /// kprobe/kretprobe on `__x64_sys_*`. Last: a kretprobe has few instances, each held by a thread asleep in its call, and
    /// returns are missed when they run out.
    Kprobe,
}

impl Rung {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::Fentry, Self::Tracepoint, Self::TpBtf, Self::Kprobe];
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::TpBtf => "tp_btf",
            Self::Tracepoint => "tracepoint",
        })
    }
}

/// A rung that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fall {
    /// Which.
    pub rung: Rung,
    /// What the kernel said.
    pub reason: String,
}

/// Where one family of probes ended up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyStatus {
    /// The rung in use; `None` if none held.
    pub rung: Option<Rung>,
    /// The rungs above it (or all), in the order tried.
    pub falls: Vec<Fall>,
}

/// `fentry`, `kprobe`, `tp_btf`, `tracepoint`, or `none: why`.
impl fmt::Display for FamilyStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.rung, self.falls.last()) {
            (Some(rung), _) => rung.fmt(f),
            (None, Some(_)) => {
                f.write_str("none: ")?;
                for (at, Fall { rung, reason }) in self.falls.iter().enumerate() {
                    let separator = if at == 0 { "" } else { "; " };
                    write!(f, "{separator}{rung}: {reason}")?;
                }
                Ok(())
            }
            (None, None) => f.write_str("none: not tried"),
        }
    }
}

/// A system call of a family.
struct Syscall {
    name: &'static str,
    args: u8,
    /// Newer than the oldest kernel supported: its absence is no failure.
    optional: bool,
}

const fn call(name: &'static str, args: u8) -> Syscall {
    Syscall { name, args, optional: false }
}

const fn newer(name: &'static str, args: u8) -> Syscall {
    Syscall { name, args, optional: true }
}

const POLL: &[Syscall] = &[
    call("poll", 3),
    call("ppoll", 5),
    call("select", 5),
    call("pselect6", 6),
    call("epoll_wait", 4),
    call("epoll_pwait", 6),
    newer("epoll_pwait2", 6), // 5.11
];
const FUTEX: &[Syscall] = &[
    call("futex", 6),
    newer("futex_waitv", 5), // 5.16
    newer("futex_wait", 6),  // 6.7
];
/// Only for the wake history.
const WAKES: &[Syscall] = &[newer("futex_wake", 4), newer("futex_requeue", 4)]; // 6.7
const SOCKET: &[Syscall] =
    &[call("read", 3), call("recvfrom", 6), call("recvmsg", 3), call("accept", 3), call("accept4", 4)];
const CONNECT: &[Syscall] = &[call("connect", 3)];

fn syscalls(family: Family, wakes: bool) -> impl Iterator<Item = &'static Syscall> {
    let (calls, more): (_, &[Syscall]) = match family {
        Family::Poll => (POLL, &[]),
        Family::Futex => (FUTEX, if wakes { WAKES } else { &[] }),
        Family::Connect => (CONNECT, &[]),
        Family::Socket => (SOCKET, &[]),
    };
    calls.iter().chain(more)
}

/// Whose cost a program of the object is, by its name.
pub(super) fn payer(program: &str) -> Payer {
    if program.starts_with("thread_") {
        return Payer::Nobody;
    }
    if program.starts_with("tcp_state") {
        return Payer::Family(Family::Connect);
    }
    let call = program.strip_prefix("fentry_").or_else(|| program.strip_prefix("fexit_"));
    let is_of = |family: &Family| call.is_some_and(|call| syscalls(*family, true).any(|known| known.name == call));
    FAMILIES.into_iter().find(is_of).map_or(Payer::Shared, Payer::Family)
}

/// The families whose calls run a program that several share: those with a call of as many arguments, where it is for such calls
/// alone; else all.
pub(super) fn sharers(program: &str) -> Vec<Family> {
    let args: Option<u8> = program.strip_prefix("tracepoint_enter_").and_then(|args| args.parse().ok());
    // The newer calls are rare.
    let has = |family: &Family| args.is_none_or(|args| syscalls(*family, false).any(|c| !c.optional && c.args == args));
    FAMILIES.into_iter().filter(has).collect()
}

/// Keeps a program attached until dropped.
type Link = Box<dyn Any + Send>;

/// Threads that take probes off at the end.
const DETACHERS: usize = 16;

/// Everything that is attached.
pub(super) struct Links {
    /// By family: what only it uses.
    families: HashMap<Family, Vec<Link>>,
    /// What all families share; stays until the end.
    shared: Vec<Link>,
    /// Calls that only wake are attached, too.
    wakes: bool,
    /// The pair all families on `tp_btf` share, or why there is none.
    pair: Option<Result<Vec<Link>, String>>,
}

impl Links {
    /// Nothing yet. `wakes`: calls that only wake are to be attached, too.
    pub(super) fn new(wakes: bool) -> Self {
        Self { families: HashMap::new(), shared: Vec::new(), wakes, pair: None }
    }

    /// Takes off what only this family uses.
    pub(super) fn drop_family(&mut self, family: Family) {
        detach(self.families.remove(&family).unwrap_or_default());
    }

    /// Takes off the shared pair; it can be attached again.
    pub(super) fn drop_pair(&mut self) {
        if let Some(Ok(held)) = self.pair.take() {
            detach(held);
        }
    }
}

/// Takes everything off at once, in no order: nobody reads what is in flight any more. The kernel waits for its readers each time
/// that it lets a probe go, which several threads do together.
impl Drop for Links {
    fn drop(&mut self) {
        let families = self.families.drain().flat_map(|(_, held)| held);
        let pair = self.pair.take().and_then(Result::ok).into_iter().flatten();
        let mut held: Vec<Link> = families.chain(self.shared.drain(..)).chain(pair).collect();
        let share = held.len().div_ceil(DETACHERS).max(1);
        std::thread::scope(|scope| {
            while !held.is_empty() {
                let some = held.split_off(held.len().saturating_sub(share));
                // Without a thread it is done here.
                let _ = std::thread::Builder::new().spawn_scoped(scope, move || drop(some));
            }
        });
    }
}

/// Entries before returns, the reverse of attaching: an entry whose return is not seen would stay in flight.
fn detach(mut held: Vec<Link>) {
    while let Some(link) = held.pop() {
        drop(link);
    }
}

/// Why a step did not work.
enum Failure {
    /// The kernel has no such function or tracepoint.
    Absent(String),
    /// Anything else.
    Refused(String),
}

impl Failure {
    fn into_reason(self) -> String {
        match self {
            Self::Absent(reason) | Self::Refused(reason) => reason,
        }
    }
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        if let ProgramError::LoadError { verifier_log, .. } = &error {
            log::debug!("refused by the verifier:\n{verifier_log}");
        }
        let text = reason(&error);
        let absent = match &error {
            ProgramError::Btf(aya::BtfError::UnknownBtfTypeName { .. }) => true,
            ProgramError::SyscallError(error) => error.io_error.kind() == ErrorKind::NotFound,
            // Only the file of the one event; a missing PMU or tracefs is another error.
            ProgramError::TracePointError(TracePointError::FileError { filename, io_error }) => {
                io_error.kind() == ErrorKind::NotFound && filename.ends_with("id")
            }
            ProgramError::KProbeError(KProbeError::FileError { .. }) => false,
            _ => false,
        };
        if absent { Self::Absent(text) } else { Self::Refused(text) }
    }
}

/// A program of the object by name and kind.
fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Failure>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| Failure::Refused(format!("no program {name} in the object")))?;
    Ok(program.try_into()?)
}

/// Tries rungs from the best one down until one holds. `step` keeps in the vector what it attached; dropping it takes
/// that off again.
fn descend(
    rungs: impl IntoIterator<Item = Rung>,
    mut step: impl FnMut(Rung, &mut Vec<Link>) -> Result<(), Failure>,
) -> (FamilyStatus, Vec<Link>) {
    let mut status = FamilyStatus::default();
    for rung in rungs {
        let mut held = Vec::new();
        match step(rung, &mut held) {
            Ok(()) => {
                status.rung = Some(rung);
                return (status, held);
            }
            Err(failure) => status.falls.push(Fall { rung, reason: failure.into_reason() }),
        }
    }
    (status, Vec::new())
}

/// Attaches one family on the best rung that holds.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    links: &mut Links,
    types: Option<&KernelTypes>,
    family: Family,
    rungs: &[Rung],
) -> FamilyStatus {
    let wakes = links.wakes;
    let (status, mut held) = descend(rungs.iter().copied(), |rung, held| match (rung, types) {
        (Rung::Fentry | Rung::TpBtf, None) => Err(Failure::Refused("the kernel's BTF is not known".to_owned())),
        (Rung::Fentry, Some(types)) => fentry(ebpf, types, family, wakes, held),
        (Rung::Kprobe, _) => each(family, wakes, |call| kprobe(ebpf, call, held)),
        (Rung::TpBtf, Some(types)) => pair(ebpf, links, types),
        (Rung::Tracepoint, _) => each(family, wakes, |call| tracepoint(ebpf, call, held)),
    });
    links.families.entry(family).or_default().append(&mut held);
    status
}

/// Runs a step for every call of the family; those the kernel may lack may be absent.
fn each(family: Family, wakes: bool, mut step: impl FnMut(&Syscall) -> Result<(), Failure>) -> Result<(), Failure> {
    for call in syscalls(family, wakes) {
        match step(call) {
            Err(Failure::Absent(_)) if call.optional => {}
            Err(Failure::Absent(reason)) => {
                return Err(Failure::Absent(format!("{}: {reason}", call.name)));
            }
            Err(Failure::Refused(reason)) => {
                return Err(Failure::Refused(format!("{}: {reason}", call.name)));
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

fn fentry(
    ebpf: &mut Ebpf,
    types: &KernelTypes,
    family: Family,
    wakes: bool,
    held: &mut Vec<Link>,
) -> Result<(), Failure> {
    let outcome = each(family, wakes, |call| {
        let function = format!("__x64_sys_{}", call.name);
        // Return before entry: an entry without its return would stay in flight.
        let exit: &mut FExit = program(ebpf, &format!("fexit_{}", call.name))?;
        load_once(exit.fd().is_ok(), || exit.load(&function, &types.btf))?;
        let link = exit.attach()?;
        held.push(Box::new(exit.take_link(link)?));
        let entry: &mut FEntry = program(ebpf, &format!("fentry_{}", call.name))?;
        load_once(entry.fd().is_ok(), || entry.load(&function, &types.btf))?;
        let link = entry.attach()?;
        held.push(Box::new(entry.take_link(link)?));
        Ok(())
    });
    if outcome.is_err() {
        for call in syscalls(family, wakes) {
            // Those that were never loaded say so.
            if let Ok(entry) = program::<FEntry>(ebpf, &format!("fentry_{}", call.name)) {
                let _ = entry.unload();
            }
            if let Ok(exit) = program::<FExit>(ebpf, &format!("fexit_{}", call.name)) {
                let _ = exit.unload();
            }
        }
    }
    outcome
}

/// Loads a program that several attachments share, once.
fn load_once(loaded: bool, load: impl FnOnce() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    if loaded { Ok(()) } else { load() }
}

fn kprobe(ebpf: &mut Ebpf, call: &Syscall, held: &mut Vec<Link>) -> Result<(), Failure> {
    for name in ["kprobe_exit", "kprobe_enter"] {
        let probe: &mut KProbe = program(ebpf, name)?;
        load_once(probe.fd().is_ok(), || probe.load())?;
        let link = probe.attach(format!("__x64_sys_{}", call.name), 0)?;
        held.push(Box::new(probe.take_link(link)?));
    }
    Ok(())
}

fn tracepoint(ebpf: &mut Ebpf, call: &Syscall, held: &mut Vec<Link>) -> Result<(), Failure> {
    let enter = format!("tracepoint_enter_{}", call.args);
    for (name, event) in [("tracepoint_exit", "sys_exit"), (enter.as_str(), "sys_enter")] {
        let probe: &mut TracePoint = program(ebpf, name)?;
        load_once(probe.fd().is_ok(), || probe.load())?;
        let link = probe.attach("syscalls", &format!("{event}_{}", call.name))?;
        held.push(Box::new(probe.take_link(link)?));
    }
    Ok(())
}

/// The shared pair; tried once, its outcome holds for every family.
fn pair(ebpf: &mut Ebpf, links: &mut Links, types: &KernelTypes) -> Result<(), Failure> {
    if links.pair.is_none() {
        let mut held = Vec::new();
        let outcome = [("btf_exit", "sys_exit"), ("btf_enter", "sys_enter")]
            .into_iter()
            .try_for_each(|(name, event)| btf_tracepoint(ebpf, types, name, event, &mut held));
        links.pair = Some(outcome.map(|()| held).map_err(Failure::into_reason));
    }
    match &links.pair {
        Some(Err(reason)) => Err(Failure::Refused(reason.clone())),
        _ => Ok(()),
    }
}

fn btf_tracepoint(
    ebpf: &mut Ebpf,
    types: &KernelTypes,
    name: &str,
    event: &str,
    held: &mut Vec<Link>,
) -> Result<(), Failure> {
    let probe: &mut BtfTracePoint = program(ebpf, name)?;
    load_once(probe.fd().is_ok(), || probe.load(event, &types.btf))?;
    let link = probe.attach()?;
    held.push(Box::new(probe.take_link(link)?));
    Ok(())
}

/// Attaches to TCP state changes: with types, else by the tracepoint's record.
pub(super) fn attach_tcp_state(
    ebpf: &mut Ebpf,
    links: &mut Links,
    types: Option<&KernelTypes>,
    rungs: &[Rung],
) -> FamilyStatus {
    // A tracepoint of its own: with types it costs less, and nobody else.
    let rungs = [Rung::TpBtf, Rung::Tracepoint].into_iter().filter(|rung| rungs.contains(rung));
    let (status, mut held) = descend(rungs, |rung, held| match (rung, types) {
        (Rung::TpBtf, Some(types)) if types.offsets.sock_protocol != observer_ebpf::ABSENT => {
            btf_tracepoint(ebpf, types, "tcp_state_btf", "inet_sock_set_state", held)
        }
        (Rung::TpBtf, _) => Err(Failure::Refused("the kernel's BTF lacks sk_protocol".to_owned())),
        _ => plain_tracepoint(ebpf, "tcp_state_tracepoint", ("sock", "inet_sock_set_state"), held),
    });
    links.families.entry(Family::Connect).or_default().append(&mut held);
    status
}

/// Attaches to the end of threads and to `exec`, which ends a thread's id; `Err` says why calls in flight cannot keep
/// their entries.
pub(super) fn attach_thread_exit(
    ebpf: &mut Ebpf,
    links: &mut Links,
    types: Option<&KernelTypes>,
) -> Result<(), String> {
    let mut held = Vec::new();
    for (name, event) in [("thread_exec", "sched_process_exec"), ("thread_exit", "sched_process_exit")] {
        let typed = match types {
            Some(types) => btf_tracepoint(ebpf, types, &format!("{name}_btf"), event, &mut held),
            None => Err(Failure::Refused("the kernel's BTF is not known".to_owned())),
        };
        typed
            .or_else(|_| plain_tracepoint(ebpf, &format!("{name}_tracepoint"), ("sched", event), &mut held))
            .map_err(Failure::into_reason)?;
    }
    links.shared.append(&mut held);
    Ok(())
}

fn plain_tracepoint(
    ebpf: &mut Ebpf,
    name: &str,
    (category, event): (&str, &str),
    held: &mut Vec<Link>,
) -> Result<(), Failure> {
    let probe: &mut TracePoint = program(ebpf, name)?;
    load_once(probe.fd().is_ok(), || probe.load())?;
    let link = probe.attach(category, event)?;
    held.push(Box::new(probe.take_link(link)?));
    Ok(())
}
