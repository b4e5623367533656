//! The timeout audit of one process: what it waits for, from which call sites, with which limits.
//!
//! Two sources, one table. The probes count every call of the families they know, by call site; the censuses see
//! whatever sleeps, also in calls that no probe is on and in waits that began before the probes came. A site is where
//! the same functions make the same call: sites of the probes that differ only below that are one row.

use super::decode::{self, Call};
use super::host::{Host, switches};
use super::wait::{Class, Resource, ResourceKind, Timeout, Wait};
use crate::census::{Pid, ProcessId, SiteStats, SocketLimit, SocketLimits, TimeoutKind};
use crate::proc::{FdFact, Frame, Stack, StackEnd};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// Sleeps kept; what a busy process has beyond it is counted.
const MOST_SLEEPS: usize = 8192;
/// A stack that was cut must have so many frames in common with another to be the same place.
const COMMON: usize = 3;

/// How many kinds of timeouts there are.
const KINDS: usize = observer_ebpf::TIMEOUT_KINDS;

/// Kinds in the order of the `TIMEOUT_*` constants.
pub const ORDER: [TimeoutKind; KINDS] = [
    TimeoutKind::Unknown,
    TimeoutKind::None,
    TimeoutKind::Zero,
    TimeoutKind::Finite,
    TimeoutKind::Infinite,
    TimeoutKind::Negative,
    TimeoutKind::Absurd,
    TimeoutKind::Invalid,
];

/// What a wait without a limit, or with a wrong one, may lead to; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Risk {
    /// Waits for a peer on another machine without a limit: when that stays silent, this wait never ends.
    RemoteUnlimited,
    /// A negative or malformed timeout.
    Wrong,
    /// A limit of more than a day.
    Absurd,
    /// Waits for another process of this machine without a limit.
    LocalUnlimited,
    /// Waits for a lock without a deadline.
    LockUnlimited,
    /// Whether there is a limit cannot be told.
    Unknown,
    /// An event loop, a listener or a worker at rest without a limit: how they are written.
    RestUnlimited,
    /// Every wait has a limit.
    Limited,
    /// Never waits.
    NeverWaits,
}

impl Risk {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::RemoteUnlimited => "remote_unlimited",
            Self::Wrong => "wrong",
            Self::Absurd => "absurd",
            Self::LocalUnlimited => "local_unlimited",
            Self::LockUnlimited => "lock_unlimited",
            Self::Unknown => "unknown",
            Self::RestUnlimited => "rest_unlimited",
            Self::Limited => "limited",
            Self::NeverWaits => "never_waits",
        }
    }

    /// Worth a warning, and an exit status of 1.
    pub fn is_warning(self) -> bool {
        self <= Self::Absurd
    }
}

/// A call site.
#[derive(Clone, Debug)]
pub struct Site {
    /// Name of the call.
    pub syscall: &'static str,
    /// What it waits for.
    pub class: Class,
    /// Calls by kind, in the order of [`ORDER`]: of each call the probes saw, and of each sleep that only a census saw.
    pub calls: [u64; KINDS],
    /// Calls the probes saw; 0 if the site is known from censuses alone, which see what sleeps and miss what is short.
    pub probed: u64,
    /// Waits that ended under the probes, their sum and the longest, nanoseconds.
    pub ended: u64,
    /// Sum of the waits that ended, nanoseconds.
    pub total_ns: u64,
    /// The longest wait, still going on or not, nanoseconds.
    pub longest_ns: u64,
    /// Shortest and longest finite timeout, nanoseconds.
    pub timeouts_ns: Option<(u64, u64)>,
    /// The last bad timeout as passed, else the last one.
    pub raw: Option<String>,
    /// Threads that wait there now, with since when (`CLOCK_MONOTONIC`, nanoseconds).
    pub waiting: BTreeMap<Pid, u64>,
    /// A thread that called there.
    pub tid: Pid,
    /// What was waited for at the last call, if it can be told.
    pub resource: Option<Resource>,
    /// Members of the polled set.
    pub members: usize,
    /// Whether the peer is on another machine; `None`: no peer, or unknown.
    pub remote: Option<bool>,
    /// Where the limit comes from.
    pub limit: LimitFrom,
    /// The stack.
    pub stack: Option<Arc<Stack>>,
    /// What it may lead to.
    pub risk: Risk,
}

/// Where a limit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitFrom {
    /// The call's argument.
    Argument,
    /// `SO_RCVTIMEO` or `SO_SNDTIMEO` of the socket, and its mode (`O_NONBLOCK`).
    Socket,
    /// There is no way to give one.
    Nowhere,
}

impl LimitFrom {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Argument => "argument",
            Self::Socket => "socket",
            Self::Nowhere => "nowhere",
        }
    }
}

impl Site {
    /// The mean of the waits that ended, nanoseconds.
    pub fn typical_ns(&self) -> Option<u64> {
        self.total_ns.checked_div(self.ended)
    }

    fn count(&self, kind: TimeoutKind) -> u64 {
        ORDER.iter().zip(self.calls).filter(|(one, _)| **one == kind).map(|(_, calls)| calls).sum()
    }

    /// Calls of these kinds.
    pub fn calls_of(&self, kinds: &[TimeoutKind]) -> u64 {
        kinds.iter().map(|kind| self.count(*kind)).sum()
    }

    fn rate(&self) -> Risk {
        use TimeoutKind as K;
        let unlimited = self.calls_of(&[K::Infinite, K::Negative]) > 0;
        let single = self.members <= 1;
        let peer =
            matches!(self.class, Class::Read | Class::Write | Class::Connect) || self.class == Class::Event && single;
        let is_loop = self.syscall.starts_with("epoll") || self.syscall.starts_with("io_");
        let kind = self.resource.as_ref().map(|resource| resource.kind);
        // A peer may be behind it: which one is not known.
        let hidden = self.remote.is_none() && matches!(kind, None | Some(ResourceKind::Socket | ResourceKind::Other));
        let listens = self.class == Class::Event && kind == Some(ResourceKind::Tcp) && self.remote.is_none();
        let own = matches!(
            kind,
            Some(ResourceKind::Eventfd | ResourceKind::Time | ResourceKind::Signal | ResourceKind::Terminal)
        );
        if unlimited && peer && !is_loop && self.remote == Some(true) {
            Risk::RemoteUnlimited
        } else if self.calls_of(&[K::Negative, K::Invalid]) > 0 {
            Risk::Wrong
        } else if self.count(K::Absurd) > 0 && !is_loop && !Call::named(self.syscall).is_futex() {
            Risk::Absurd
        } else if unlimited && self.class == Class::Lock {
            Risk::LockUnlimited
        } else if unlimited && peer && !is_loop && hidden {
            Risk::Unknown
        } else if unlimited
            && (is_loop || own || listens || !single || matches!(self.class, Class::Condition | Class::Accept))
        {
            Risk::RestUnlimited
        } else if unlimited {
            Risk::LocalUnlimited
        } else if self.calls_of(&[K::Unknown, K::None]) > 0 {
            Risk::Unknown
        } else if self.calls_of(&[K::Finite, K::Absurd]) > 0 {
            Risk::Limited
        } else {
            Risk::NeverWaits
        }
    }
}

/// A sleep that a census saw.
#[derive(Debug)]
struct Sleep {
    wait: Wait,
    compat: bool,
    stack: Option<Arc<Stack>>,
    since_ns: u64,
    seen_ns: u64,
    /// It began before the probes could see it.
    early: bool,
}

/// What descriptors are and which limits their sockets have, at the end of the audit.
#[derive(Debug, Default)]
pub struct Descriptors {
    /// By number.
    pub facts: BTreeMap<i32, FdFact>,
    /// By number; without those of which the kernel does not say.
    pub limits: BTreeMap<i32, SocketLimits>,
}

/// An audit, in progress.
#[derive(Debug)]
pub struct Audit {
    process: ProcessId,
    /// When the probes were in place, `CLOCK_MONOTONIC` nanoseconds.
    began_ns: u64,
    sleeps: BTreeMap<(Pid, u64), Sleep>,
    /// Sleeps that were not kept.
    pub dropped: u64,
    /// Sleeps whose stack was not read before they ended.
    pub without_stack: u64,
    now_ns: u64,
}

impl Audit {
    /// An audit of a process by probes that are in place since then.
    pub fn new(process: ProcessId, began_ns: u64) -> Self {
        Self { process, began_ns, sleeps: BTreeMap::new(), dropped: 0, without_stack: 0, now_ns: 0 }
    }

    /// Takes what sleeps now.
    pub fn note(&mut self, host: &Host) {
        self.now_ns = host.now_ns();
        let rows = host.threads_of(self.process.pid).filter(|row| row.process == self.process && row.is_blocked());
        for row in rows {
            let Some(wait) = host.wait(row.tid).filter(is_audited) else { continue };
            let key = (row.tid, switches(row));
            if self.sleeps.len() >= MOST_SLEEPS && !self.sleeps.contains_key(&key) {
                self.dropped += 1;
                continue;
            }
            let since_ns = host.since(row).ns;
            let stack = host.shared_stack(row.tid).cloned();
            let (compat, early) = (row.compat, since_ns < self.began_ns);
            let sleep = self.sleeps.entry(key).or_insert_with(|| Sleep {
                wait: wait.clone(),
                compat,
                stack: None,
                since_ns,
                seen_ns: 0,
                early,
            });
            sleep.seen_ns = self.now_ns;
            // Facts and stacks come a census later.
            sleep.stack = stack.or(sleep.stack.take());
            sleep.wait = wait;
        }
    }

    /// The descriptors that a site's calls work on: to be looked up for [`sites`](Self::sites).
    pub fn descriptors(&self, host: &Host) -> BTreeSet<i32> {
        let probed = self.probed(host).filter_map(|site| Call::lookup(site.syscall, false).fd(&site.args));
        let asleep = self.sleeps.values().flat_map(|sleep| {
            let members = sleep.wait.members.iter().filter_map(|member| member.resource.fd);
            members.chain(Call::named(sleep.wait.syscall).fd(&sleep.wait.args))
        });
        probed.chain(asleep).filter(|fd| *fd >= 0).collect()
    }

    fn probed<'a>(&self, host: &'a Host) -> impl Iterator<Item = &'a SiteStats> {
        let pid = self.process.pid;
        host.probes().sites().iter().filter(move |site| site.pid == pid)
    }

    /// Every call site seen, the riskiest first.
    pub fn sites(&mut self, host: &Host, known: &Descriptors) -> Vec<Site> {
        let mut sites: Vec<Site> = Vec::new();
        for stats in self.probed(host) {
            add(&mut sites, of_probe(host, stats, known));
        }
        let probed: BTreeSet<&str> = self.probed(host).map(|site| Call::lookup(site.syscall, false).name).collect();
        let mut without_stack = 0;
        for ((tid, _), sleep) in &self.sleeps {
            let ongoing = sleep.seen_ns == self.now_ns;
            let counted = probed.contains(sleep.wait.syscall) && !sleep.early && !sleep.compat;
            if sleep.stack.is_none() {
                without_stack += 1;
                // Counted by the probes anyway; or a turn of a loop that began before they came, and had a limit.
                let is_limited = matches!(sleep.wait.timeout.kind, TimeoutKind::Finite | TimeoutKind::Zero);
                let is_turn = !ongoing && is_limited && !sleep.compat && probed.contains(sleep.wait.syscall);
                if counted || is_turn {
                    continue;
                }
            }
            let site = of_sleep(*tid, sleep, (ongoing, counted), known);
            let is_counted =
                counted && sites.iter().any(|one| one.syscall == site.syscall && is_same_place(one, &site));
            add(&mut sites, if is_counted { site } else { of_sleep(*tid, sleep, (ongoing, false), known) });
        }
        self.without_stack = without_stack;
        for site in &mut sites {
            site.risk = site.rate();
        }
        sites.sort_by(|one, other| {
            let key = |site: &Site| (site.risk, std::cmp::Reverse(site.longest_ns), site.syscall);
            key(one).cmp(&key(other))
        });
        sites
    }
}

/// What is waited for on purpose, and by the kernel itself, is no matter of timeouts.
fn is_audited(wait: &Wait) -> bool {
    !matches!(wait.class, Class::Sleep | Class::Io | Class::Stopped | Class::Other)
        && !wait.syscall.starts_with("rt_sig")
        && wait
            .resource
            .as_ref()
            .is_none_or(|resource| resource.kind != ResourceKind::File || wait.class == Class::FileLock)
}

fn empty(syscall: &'static str, class: Class, tid: Pid) -> Site {
    Site {
        syscall,
        class,
        calls: [0; KINDS],
        probed: 0,
        ended: 0,
        total_ns: 0,
        longest_ns: 0,
        timeouts_ns: None,
        raw: None,
        waiting: BTreeMap::new(),
        tid,
        resource: None,
        members: 0,
        remote: None,
        limit: LimitFrom::Argument,
        stack: None,
        risk: Risk::Unknown,
    }
}

fn of_probe(host: &Host, stats: &SiteStats, known: &Descriptors) -> Site {
    let call = Call::lookup(stats.syscall, false);
    let mut site = empty(call.name, call.class, stats.tid);
    for (slot, calls) in site.calls.iter_mut().zip(&stats.calls) {
        *slot = *calls;
    }
    site.probed = stats.calls.iter().sum();
    (site.ended, site.total_ns, site.longest_ns) = (stats.ended, stats.total_ns, stats.longest_ns);
    site.timeouts_ns = (stats.timeouts_ns != (0, 0)).then_some(stats.timeouts_ns);
    site.raw = Some(stats.raw.to_string());
    site.stack = host.probes().site_stack(stats.pid, stats.site).filter(|stack| !stack.frames.is_empty()).cloned();
    let fact = call.fd(&stats.args).and_then(|fd| known.facts.get(&fd));
    site.resource = fact.map(decode::described);
    if call.is_futex() {
        site.resource = Some(Resource::at(ResourceKind::Futex, stats.args[0]));
    }
    site.members = match call.name {
        "poll" | "ppoll" => stats.args[1] as u32 as usize,
        // As many as fit below the highest; how many there are lies in memory that is another's by now.
        "select" | "pselect6" => 2,
        _ => 1,
    };
    site.remote = site.resource.as_ref().and_then(is_remote);
    // What the argument does not say, the socket does.
    let none = ORDER.iter().position(|kind| *kind == TimeoutKind::None);
    if let Some(none) = none.filter(|none| site.calls.get(*none).is_some_and(|calls| *calls > 0)) {
        let (kind, limit, from) = limit_of(&call, &stats.args, &Timeout::UNKNOWN, known);
        site.limit = from;
        move_calls(&mut site, none, kind);
        note_finite(&mut site, limit);
    }
    site
}

fn of_sleep(tid: Pid, sleep: &Sleep, (ongoing, counted): (bool, bool), known: &Descriptors) -> Site {
    let wait = &sleep.wait;
    let call = Call::named(wait.syscall);
    let mut site = empty(wait.syscall, wait.class, tid);
    let (kind, limit, from) = limit_of(&call, &wait.args, &wait.timeout, known);
    site.limit = from;
    if !counted {
        if let Some(slot) = slot(&mut site, kind) {
            *slot = 1;
        }
        note_finite(&mut site, limit);
    }
    if ongoing {
        site.waiting.insert(tid, sleep.since_ns);
    }
    site.longest_ns = sleep.seen_ns.saturating_sub(sleep.since_ns);
    site.raw.clone_from(&wait.timeout.raw);
    site.stack = sleep.stack.clone().filter(|stack| !stack.frames.is_empty());
    site.members = if wait.class == Class::Event { wait.members.len() + wait.members_cut as usize } else { 1 };
    site.resource = match wait.members.as_slice() {
        [only] if !wait.syscall.starts_with("epoll") && wait.members_cut == 0 => Some(only.resource.clone()),
        _ => wait.resource.clone(),
    };
    // What was not found in time then may have been found in the end.
    let vague = site.resource.as_ref().filter(|r| matches!(r.kind, ResourceKind::Socket | ResourceKind::Other));
    let fact = vague.and_then(|resource| known.facts.get(&resource.fd?)).filter(|fact| fact.socket.is_some());
    if let Some(fact) = fact {
        site.resource = Some(decode::described(fact));
    }
    site.remote = site.resource.as_ref().and_then(is_remote);
    site
}

fn slot(site: &mut Site, kind: TimeoutKind) -> Option<&mut u64> {
    ORDER.iter().position(|one| *one == kind).and_then(|at| site.calls.get_mut(at))
}

fn move_calls(site: &mut Site, from: usize, to: TimeoutKind) {
    let calls = site.calls.get_mut(from).map(std::mem::take).unwrap_or(0);
    if let Some(slot) = slot(site, to) {
        *slot += calls;
    }
}

fn note_finite(site: &mut Site, limit: Option<u64>) {
    if let Some(ns) = limit {
        let (low, high) = site.timeouts_ns.unwrap_or((ns, ns));
        site.timeouts_ns = Some((low.min(ns), high.max(ns)));
    }
}

/// The limit of a call: its kind, its length if it is finite, and where it comes from.
fn limit_of(
    call: &Call,
    args: &[u64; 6],
    timeout: &Timeout,
    known: &Descriptors,
) -> (TimeoutKind, Option<u64>, LimitFrom) {
    let finite = timeout.requested_ns.and_then(|ns| u64::try_from(ns).ok());
    let on_socket = matches!(call.class, Class::Read | Class::Write | Class::Accept | Class::Connect);
    if !matches!(timeout.kind, TimeoutKind::None | TimeoutKind::Unknown) || !on_socket {
        let finite = finite.filter(|_| timeout.kind == TimeoutKind::Finite);
        return match timeout.kind {
            TimeoutKind::None => (TimeoutKind::Infinite, None, LimitFrom::Nowhere),
            kind => (kind, finite, LimitFrom::Argument),
        };
    }
    let Some((fd, fact)) = call.fd(args).and_then(|fd| Some((fd, known.facts.get(&fd)?))) else {
        return (TimeoutKind::Unknown, None, LimitFrom::Socket);
    };
    if fact.flags & libc::O_NONBLOCK as u32 != 0 || never_blocks(call, args) {
        return (TimeoutKind::Zero, None, LimitFrom::Socket);
    }
    if !fact.target.starts_with("socket:") {
        return (TimeoutKind::Infinite, None, LimitFrom::Nowhere);
    }
    let is_send = matches!(call.class, Class::Write | Class::Connect);
    let limit = known.limits.get(&fd).map(|limits| if is_send { limits.send } else { limits.receive });
    match limit {
        Some(SocketLimit::None) => (TimeoutKind::Infinite, None, LimitFrom::Socket),
        Some(SocketLimit::After(ns)) => (TimeoutKind::Finite, Some(ns), LimitFrom::Socket),
        None => (TimeoutKind::Unknown, None, LimitFrom::Socket),
    }
}

/// `MSG_DONTWAIT`.
fn never_blocks(call: &Call, args: &[u64; 6]) -> bool {
    let flags = match call.name {
        "recvfrom" | "recv" | "sendto" | "send" => args[3],
        "recvmsg" | "sendmsg" => args[2],
        "recvmmsg" | "sendmmsg" => args[3],
        _ => 0,
    };
    flags & libc::MSG_DONTWAIT as u64 != 0
}

/// Whether the peer of a socket is on another machine (or in another network namespace); `None` without a peer.
fn is_remote(resource: &Resource) -> Option<bool> {
    match resource.kind {
        ResourceKind::Tcp | ResourceKind::Udp | ResourceKind::Other | ResourceKind::Socket => {}
        ResourceKind::Unix | ResourceKind::Pipe => return Some(false),
        _ => return None,
    }
    let address = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<SocketAddr>().ok());
    let remote = address(&resource.remote).filter(|remote| remote.port() != 0)?;
    let local = address(&resource.local);
    let same = local.is_some_and(|local| local.ip().to_canonical() == remote.ip().to_canonical());
    Some(!remote.ip().to_canonical().is_loopback() && !same)
}

/// Adds a site, to one at the same place if there is one.
fn add(sites: &mut Vec<Site>, new: Site) {
    match sites.iter_mut().find(|site| site.syscall == new.syscall && is_same_place(site, &new)) {
        Some(site) => join(site, new),
        None => sites.push(new),
    }
}

fn is_same_place(one: &Site, other: &Site) -> bool {
    match (&one.stack, &other.stack) {
        (Some(one), Some(other)) => same_stack(one, other),
        (None, None) => one.class == other.class && one.remote == other.remote,
        _ => false,
    }
}

/// The same functions, lines included; of a stack that was cut, as far as it goes.
fn same_stack(one: &Stack, other: &Stack) -> bool {
    if std::ptr::eq(one, other) {
        return true;
    }
    let common = one.frames.len().min(other.frames.len());
    let is_cut = |stack: &Stack| stack.frames.len() == common && matches!(stack.end, StackEnd::Stopped(_));
    let lengths = one.frames.len() == other.frames.len() || common >= COMMON && (is_cut(one) || is_cut(other));
    lengths && one.frames.iter().zip(&other.frames).all(|(one, other)| place(one) == place(other))
}

type Place<'a> = (Option<&'a str>, Option<&'a str>, Option<u32>, u64);

fn place(frame: &Frame) -> Place<'_> {
    let offset = if frame.function.is_some() && frame.line.is_some() { 0 } else { frame.offset };
    (frame.module.as_deref(), frame.function.as_deref(), frame.line, offset)
}

fn join(site: &mut Site, new: Site) {
    for (slot, calls) in site.calls.iter_mut().zip(new.calls) {
        *slot += calls;
    }
    site.probed += new.probed;
    site.ended += new.ended;
    site.total_ns = site.total_ns.saturating_add(new.total_ns);
    site.longest_ns = site.longest_ns.max(new.longest_ns);
    if let Some((low, high)) = new.timeouts_ns {
        note_finite(site, Some(low));
        note_finite(site, Some(high));
    }
    // A sleep was decoded with its memory, the probes' last call was not.
    let sharper = new.probed == 0 && new.resource.is_some();
    if sharper || site.resource.is_none() {
        (site.resource, site.members) = (new.resource, new.members);
        if new.probed == 0 {
            site.class = new.class;
        }
    }
    site.remote = match (site.remote, new.remote) {
        (Some(one), Some(other)) => Some(one || other),
        (one, other) => one.or(other),
    };
    site.raw = new.raw.or(site.raw.take());
    site.waiting.extend(new.waiting);
    if new.limit == LimitFrom::Socket {
        site.limit = new.limit;
    }
    // The one that was followed farther.
    if new.stack.as_ref().is_some_and(|new| site.stack.as_ref().is_none_or(|old| old.frames.len() < new.frames.len())) {
        site.stack = new.stack;
    }
}

#[cfg(test)]
mod tests;
