//! The probe plane: attached once, drained now and then.

use super::event::{Family, ProbeReading, WaitStats};
use super::ladder::{self, FamilyStatus, Links, Rung};
use super::object::{self, Plain, reason};
use super::row::{Census, Pid};
use super::sites::{self, Kept, Names};
use super::translate::{family, family_number, translate};
use crate::host::{KernelTypes, capability, clock};
use aya::Ebpf;
use aya::maps::{Array, HashMap as BpfHashMap, MapData, MapError, PerCpuArray, RingBuf};
use aya_log::EbpfLogger;
use log::LevelFilter;
use observer_ebpf::{
    ABI_VERSION, ACCOUNT_ENTERED, ACCOUNT_NAMES, Attempt, Event, FILTER_ALL, FILTER_LISTED, FILTER_NAMESPACE, GAP_MASK,
    GAP_SHIFT, Globals, Offsets, ProcessKey, ProcessWaits, SAMPLE_MASK, THREAD_EXIT, ThreadState,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;
use thiserror::Error;

/// Inode number of the initial PID namespace (`PROC_PID_INIT_INO`).
const INITIAL_PIDNS: u32 = 0xEFFF_FFFC;
/// Events taken by one drain; several times what the ring holds.
const MOST_EVENTS: usize = 8192;
/// Bytes of the ring for stacks: 31 of them, and 255 for an audit.
const EVENT_STACKS: u32 = 512 << 10;
const AUDIT_STACKS: u32 = 4 << 20;
/// `BPF_EXIST`: what is gone stays so.
const ONLY_OLD: u64 = 2;
/// Drains after which the aggregate of a process that is no longer listed is dropped.
const FORGET_AFTER: u32 = 3;
/// Processes that can be listened to by their ids: with `--children` the descendants of one may be many.
const MOST_LISTED: u32 = 32_768;

/// Which processes the probes look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Every process on the host.
    All,
    /// These only: process ids of the *initial* PID namespace (`ThreadRow::initial.1`).
    Listed(Vec<Pid>),
    /// Those of observer's own PID namespace and below.
    Namespace,
}

/// How to attach.
#[derive(Clone, Debug)]
pub struct ProbeSettings {
    /// A wait longer than this is reported when it ends.
    pub long_wait: Duration,
    /// A connection slower than this is reported.
    pub slow_connect: Duration,
    /// Which processes.
    pub filter: Filter,
    /// Level of the probes' own diagnostics; `Off` costs nothing.
    pub log_level: LevelFilter,
    /// The rungs to try, best first; [`Rung::ALL`] but in tests.
    pub rungs: Vec<Rung>,
    /// Room for calls in flight (one per blocked thread of an observed process).
    pub in_flight: u32,
    /// Room for aggregates: one for each family of calls that an observed process uses.
    pub most_processes: u32,
    /// Room for TCP connection attempts that are not answered yet.
    pub most_attempts: u32,
    /// Every call site is told apart, and its stack kept once: for the audit of a few processes.
    pub sites: bool,
    /// Room for these sites; the least used go.
    pub most_sites: u32,
    /// Who wakes which futex word and thread is kept.
    pub wakes: bool,
    /// Room for these words, and as many threads; the least used go.
    pub most_wakes: u32,
    /// A wait without limit is an [`EventKind::Habit`](super::EventKind::Habit) after so many finite or zero timeouts of the same thread and
    /// call, and none without limit.
    pub habit_after: u32,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        Self {
            long_wait: Duration::from_secs(5),
            slow_connect: Duration::from_secs(1),
            filter: Filter::All,
            log_level: LevelFilter::Off,
            rungs: Rung::ALL.to_vec(),
            in_flight: 32_768,
            most_processes: 8192,
            most_attempts: 16_384,
            sites: false,
            most_sites: 8192,
            wakes: false,
            most_wakes: 16_384,
            habit_after: 8,
        }
    }
}

/// Where every family of probes ended up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// `poll` and its relatives.
    pub poll: FamilyStatus,
    /// `futex`.
    pub futex: FamilyStatus,
    /// `connect`.
    pub connect: FamilyStatus,
    /// TCP state changes.
    pub tcp_state: FamilyStatus,
    /// `read recvfrom recvmsg accept accept4`; tried only for [`ProbeSettings::sites`].
    #[serde(default)]
    pub socket: FamilyStatus,
}

impl ProbeStatus {
    /// Where one family stands.
    pub fn of(&self, family: Family) -> &FamilyStatus {
        match family {
            Family::Poll => &self.poll,
            Family::Futex => &self.futex,
            Family::Connect => &self.connect,
            Family::Socket => &self.socket,
        }
    }

    fn of_mut(&mut self, family: Family) -> &mut FamilyStatus {
        match family {
            Family::Poll => &mut self.poll,
            Family::Futex => &mut self.futex,
            Family::Connect => &mut self.connect,
            Family::Socket => &mut self.socket,
        }
    }
}

/// Why the probe plane cannot be used at all.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Maps or object refused.
    #[error(
        "cannot create the probes' maps: {reason}; run as root, or with CAP_BPF and CAP_PERFMON \
         (and RLIMIT_MEMLOCK unlimited before 5.11)"
    )]
    Load {
        /// What the loader says.
        reason: String,
    },
    /// A map that must be there is not, or cannot be used.
    #[error("map `{map}`: {reason}; please report this kernel")]
    Map {
        /// Which.
        map: &'static str,
        /// Why.
        reason: String,
    },
}

/// Attached probes. Dropping it detaches everything; nothing is pinned.
pub struct ProbePlane {
    status: ProbeStatus,
    /// The rungs to try.
    rungs: Vec<Rung>,
    // Detached first.
    links: Links,
    /// Families on the shared pair, and `THREAD_EXIT`, as in the map.
    enabled: u32,
    /// Families taken off by [`Self::detach`].
    detached: HashSet<Family>,
    /// Calls that were in flight then.
    cut: u64,
    /// Events, stacks and aggregates of processes without a name in observer's namespace, so far.
    outside: u64,
    /// Records that are none, so far.
    malformed: u64,
    ring: RingBuf<MapData>,
    stacks: RingBuf<MapData>,
    /// What sites and wakes need from one drain to the next.
    kept: Kept,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    ebpf: Ebpf,
    in_initial_namespace: bool,
    /// Initial process id → id in observer's namespace.
    view: HashMap<Pid, Pid>,
    /// Drains for which a process with an aggregate was not in the census.
    missing: HashMap<Pid, u32>,
}

impl ProbePlane {
    /// Goes down the ladder for every family. A family for which no rung holds is `none` in
    /// [`status`](Self::status), with the reasons; only a loader that cannot even create maps is an error.
    pub fn attach(settings: &ProbeSettings) -> Result<Self, ProbeError> {
        let types = KernelTypes::get();
        if let Err(error) = types {
            log::warn!("probes without kernel types: {error}");
        }
        let types = types.ok();
        let view_pidns = capability::view_pidns();
        let in_initial_namespace = view_pidns == INITIAL_PIDNS;
        let globals = Globals {
            abi: ABI_VERSION,
            filter: match settings.filter {
                Filter::Listed(_) => FILTER_LISTED,
                // Everything is below the initial namespace.
                Filter::Namespace if !in_initial_namespace && types.is_some() => FILTER_NAMESPACE,
                Filter::All | Filter::Namespace => FILTER_ALL,
            },
            view_pidns,
            sites: settings.sites.into(),
            wakes: settings.wakes.into(),
            habit_after: settings.habit_after,
            long_wait_ns: clock::whole_ns(settings.long_wait),
            slow_connect_ns: clock::whole_ns(settings.slow_connect),
        };
        let offsets = types.map_or(Offsets::NONE, |types| types.offsets);
        // Maps that are not asked for have one entry: an empty map is refused.
        let sizes = [
            ("IN_FLIGHT", settings.in_flight.max(1)),
            ("PROCESSES", settings.most_processes.max(1)),
            ("SOCKETS", settings.most_attempts.max(1)),
            ("WANTED", 1),
            ("SETTLED", 1),
            ("FILTER", if matches!(settings.filter, Filter::Listed(_)) { MOST_LISTED } else { 1 }),
            ("SITES", if settings.sites { settings.most_sites.max(1) } else { 1 }),
            ("STACKS", if settings.sites { AUDIT_STACKS } else { EVENT_STACKS }),
            ("WORDS", if settings.wakes { settings.most_wakes.max(1) } else { 1 }),
            ("WOKEN", if settings.wakes { settings.most_wakes.max(1) } else { 1 }),
        ];
        let mut ebpf = object::load(&offsets, &globals, settings.log_level as u8, &sizes)
            .map_err(|error| ProbeError::Load { reason: reason(&error) })?;

        let ring = take_ring(&mut ebpf, "EVENTS")?;
        let stacks = take_ring(&mut ebpf, "STACKS")?;
        let logger = if settings.log_level == LevelFilter::Off {
            None
        } else {
            EbpfLogger::init(&mut ebpf).inspect_err(|error| log::warn!("the probes' own log is lost: {error}")).ok()
        };
        note_clocks(&mut ebpf)?;
        if let Filter::Listed(pids) = &settings.filter {
            replace_filter(&mut ebpf, &pids.iter().copied().collect())?;
        }

        let mut links = Links::new(settings.wakes);
        let mut enabled = 0u32;
        let mut family = |ebpf: &mut Ebpf, links: &mut Links, family: Family| {
            let status = ladder::attach(ebpf, links, types, family, &settings.rungs);
            if status.rung == Some(Rung::TpBtf) {
                enabled |= 1 << family_number(family);
            }
            status
        };
        let mut status = ProbeStatus {
            poll: family(&mut ebpf, &mut links, Family::Poll),
            futex: family(&mut ebpf, &mut links, Family::Futex),
            connect: family(&mut ebpf, &mut links, Family::Connect),
            tcp_state: FamilyStatus::default(),
            socket: if settings.sites {
                family(&mut ebpf, &mut links, Family::Socket)
            } else {
                FamilyStatus::default()
            },
        };
        status.tcp_state = ladder::attach_tcp_state(&mut ebpf, &mut links, types, &settings.rungs);
        match ladder::attach_thread_exit(&mut ebpf, &mut links, types) {
            Ok(()) => enabled |= THREAD_EXIT,
            Err(why) => log::debug!("ends of threads are not seen, calls cost more: {why}"),
        }
        for (name, family) in [
            ("poll", &status.poll),
            ("futex", &status.futex),
            ("connect", &status.connect),
            ("tcp_state", &status.tcp_state),
        ] {
            log::debug!("probes {name}: {family}; fell from {:?}", family.falls);
        }
        let mut plane = Self {
            status,
            rungs: settings.rungs.clone(),
            links,
            enabled,
            detached: HashSet::new(),
            cut: 0,
            outside: 0,
            malformed: 0,
            ring,
            stacks,
            kept: Kept::new(settings),
            logger,
            ebpf,
            in_initial_namespace,
            view: HashMap::new(),
            missing: HashMap::new(),
        };
        plane.set_enabled(enabled)?;
        Ok(plane)
    }

    /// Which rung each family stands on, and why not a better one.
    pub fn status(&self) -> &ProbeStatus {
        &self.status
    }

    /// Takes one family's probes off; what they counted stays. For `connect`, TCP state changes, too.
    ///
    /// Its calls in flight are forgotten: their returns will not be seen.
    pub fn detach(&mut self, family: Family) -> Result<(), ProbeError> {
        if self.status.of(family).rung.is_none() || !self.detached.insert(family) {
            return Ok(());
        }
        if self.enabled & (1 << family_number(family)) != 0 {
            self.set_enabled(self.enabled & !(1 << family_number(family)))?;
            if self.enabled & !THREAD_EXIT == 0 {
                self.links.drop_pair();
            }
        }
        self.links.drop_family(family);
        if family == Family::Connect {
            self.forget_attempts()?;
        }
        self.forget_in_flight(family)
    }

    /// Puts back what [`detach`](Self::detach) took off, on the rung it stood on or the next that holds;
    /// [`status`](Self::status) says which. Does nothing for a family that is attached.
    pub fn attach_again(&mut self, family: Family) -> Result<(), ProbeError> {
        if !self.is_detached(family) {
            return Ok(());
        }
        // What threads passed meanwhile is not known: of what they passed before, the probes forget the limits.
        self.change_sampling(family, |word| word & !GAP_MASK | word.wrapping_add(1 << GAP_SHIFT) & GAP_MASK)?;
        self.detached.remove(&family);
        let types = KernelTypes::get().ok();
        let before = self.status.of(family).clone();
        // Those above it were refused once; only that is known of them.
        let rungs: Vec<Rung> = before
            .rung
            .into_iter()
            .flat_map(|stood| self.rungs.iter().copied().skip_while(move |rung| *rung != stood))
            .collect();
        let mut status = ladder::attach(&mut self.ebpf, &mut self.links, types, family, &rungs);
        if status.rung == Some(Rung::TpBtf) {
            self.set_enabled(self.enabled | 1 << family_number(family))?;
        }
        status.falls.splice(0..0, before.falls);
        *self.status.of_mut(family) = status;
        if family == Family::Connect {
            self.status.tcp_state = ladder::attach_tcp_state(&mut self.ebpf, &mut self.links, types, &self.rungs);
        }
        Ok(())
    }

    /// Whether [`detach`](Self::detach) took this family off.
    pub fn is_detached(&self, family: Family) -> bool {
        self.detached.contains(&family)
    }

    /// Of this family's calls only about one in `2^shift` (at random; at most [`SAMPLE_MASK`]) is counted and timed; the others are
    /// in the account as `sampled_out`. Bad timeouts are seen in all calls. Zero, as at first: every call.
    ///
    /// Counts and sums are those of the calls looked at; nothing is scaled up.
    pub fn set_sampling(&mut self, family: Family, shift: u32) -> Result<(), ProbeError> {
        self.change_sampling(family, |word| word & !SAMPLE_MASK | shift.min(SAMPLE_MASK))
    }

    fn change_sampling(&mut self, family: Family, change: impl FnOnce(u32) -> u32) -> Result<(), ProbeError> {
        let mut map: Array<_, u32> = typed(self.ebpf.map_mut("SAMPLE"), "SAMPLE")?;
        let at = family_number(family);
        let word = map.get(&at, 0).map_err(|error| map_error("SAMPLE", &error))?;
        map.set(at, change(word), 0).map_err(|error| map_error("SAMPLE", &error))
    }

    /// Threads that the probes keep something of, and how many of these are in a call: at most so many as live, unless
    /// something leaks. Walks a map: not for every turn.
    pub fn threads_kept(&mut self) -> Result<(usize, usize), ProbeError> {
        let map: BpfHashMap<_, u64, Plain<ThreadState>> = typed(self.ebpf.map_mut("IN_FLIGHT"), "IN_FLIGHT")?;
        let threads = map.iter().filter_map(Result::ok);
        Ok(threads
            .fold((0, 0), |(all, busy), (_, Plain(thread))| (all + 1, busy + usize::from(thread.call.start_ns != 0))))
    }

    /// The loaded object, for the kernel's own figures of each program.
    pub(super) fn object(&self) -> &Ebpf {
        &self.ebpf
    }

    fn set_enabled(&mut self, enabled: u32) -> Result<(), ProbeError> {
        let mut map: Array<_, u32> = typed(self.ebpf.map_mut("ENABLED"), "ENABLED")?;
        map.set(0, enabled, 0).map_err(|error| map_error("ENABLED", &error))?;
        self.enabled = enabled;
        Ok(())
    }

    /// Replaces the list of observed processes (ids of the initial PID namespace). Has an effect only if
    /// attached with [`Filter::Listed`].
    ///
    /// The answer is how many the list has no room for: they are looked at without probes.
    pub fn set_filter(&mut self, pids: &BTreeSet<Pid>) -> Result<usize, ProbeError> {
        replace_filter(&mut self.ebpf, pids)
    }

    /// Learns from a census which initial process id is which in observer's namespace, and which
    /// processes still live; and what time of day it is.
    pub fn note_pids(&mut self, census: &Census) -> Result<(), ProbeError> {
        note_clocks(&mut self.ebpf)?;
        self.view.clear();
        // Threads of a process mostly follow each other.
        let processes = census.rows.chunk_by(|a, b| a.process == b.process).filter_map(|threads| threads.first());
        self.view.extend(processes.map(|row| (row.initial.1, row.process.pid)));
        if !self.in_initial_namespace {
            self.kept.note_threads(census);
        }
        Ok(())
    }

    /// Takes what is there without waiting. `account` has the names of `ACCOUNT_NAMES`, and where there are any
    /// `outside_view`: events and aggregates of processes without a name in observer's namespace; `malformed`: records
    /// that are none; `cut_in_flight`: calls and attempts whose ends are not seen, because [`detach`](Self::detach) came first.
    pub fn drain(&mut self) -> Result<ProbeReading, ProbeError> {
        let mut events = Vec::new();
        // A program that sends faster than we read must not keep us here: what is left waits in the ring.
        for _ in 0..MOST_EVENTS {
            let Some(item) = self.ring.next() else { break };
            let Some(event) = object::read::<Event>(&item) else {
                self.malformed += 1;
                continue;
            };
            match translate(&event, self.in_initial_namespace, &self.view) {
                Some(event) => events.push(event),
                None => self.outside += 1,
            }
        }
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        let stats = self.stats()?;
        let mut account = self.account()?;
        let names = Names { in_initial_namespace: self.in_initial_namespace, processes: &self.view };
        let stacks = sites::stacks(&mut self.stacks, &names, &mut self.outside, &mut self.malformed);
        let sites = self.kept.sites(&mut self.ebpf, &names, &mut account)?;
        let (word_wakes, thread_wakes) = self.kept.wakes(&mut self.ebpf, &names, &mut account)?;
        let own = [("outside_view", self.outside), ("malformed", self.malformed), ("cut_in_flight", self.cut)];
        for (name, count) in own {
            if count > 0 {
                account.insert(name.to_owned(), count);
            }
        }
        Ok(ProbeReading { events, stats, sites, stacks, word_wakes, thread_wakes, account })
    }

    /// Forgets the TCP attempts whose ends are no longer seen: they would fill the map, or be taken for others.
    fn forget_attempts(&mut self) -> Result<(), ProbeError> {
        let mut map: BpfHashMap<_, u64, Plain<Attempt>> = typed(self.ebpf.map_mut("SOCKETS"), "SOCKETS")?;
        let open: Vec<u64> = map.keys().filter_map(Result::ok).collect();
        for socket in open {
            // Gone meanwhile: nothing to forget.
            self.cut += u64::from(map.remove(&socket).is_ok());
        }
        Ok(())
    }

    /// Forgets calls in flight of a family whose returns are no longer seen, and nothing else of their threads: what they passed
    /// before is what a change of habit is told by. What a thread's next call writes meanwhile may be lost: that call is then
    /// counted as unpaired.
    fn forget_in_flight(&mut self, family: Family) -> Result<(), ProbeError> {
        let mut map: BpfHashMap<_, u64, Plain<ThreadState>> = typed(self.ebpf.map_mut("IN_FLIGHT"), "IN_FLIGHT")?;
        let stale: Vec<(u64, ThreadState)> = map
            .iter()
            .filter_map(Result::ok)
            .map(|(key, Plain(thread))| (key, thread))
            .filter(|(_, thread)| thread.call.start_ns != 0 && thread.call.family == family_number(family))
            .collect();
        for (key, mut thread) in stale {
            thread.call.start_ns = 0;
            // Gone with its thread: nothing to forget.
            self.cut += u64::from(map.insert(key, Plain(thread), ONLY_OLD).is_ok());
        }
        Ok(())
    }

    fn stats(&mut self) -> Result<Vec<WaitStats>, ProbeError> {
        let mut map: BpfHashMap<_, Plain<ProcessKey>, Plain<ProcessWaits>> =
            typed(self.ebpf.map_mut("PROCESSES"), "PROCESSES")?;
        let mut stats = Vec::new();
        let mut gone = Vec::new();
        let mut seen = HashSet::new();
        for entry in map.iter() {
            // An entry that is being replaced while we walk is read again next time.
            let Ok((Plain(key), Plain(waits))) = entry else {
                continue;
            };
            let listed = self.view.get(&key.tgid).copied();
            if listed.is_none() && !self.view.is_empty() && seen.insert(key.tgid) {
                let times = self.missing.entry(key.tgid).or_insert(0);
                *times += 1;
            }
            let is_gone = self.missing.get(&key.tgid).is_some_and(|times| *times >= FORGET_AFTER) && listed.is_none();
            if is_gone {
                gone.push(key);
            }
            let pid = listed.or(self.in_initial_namespace.then_some(key.tgid));
            match (pid, family(key.family)) {
                (Some(pid), Some(family)) => stats.push(WaitStats {
                    pid,
                    family,
                    calls: waits.calls.to_vec(),
                    waits: waits.waits.to_vec(),
                    total_ns: waits.total_ns,
                    longest_ns: waits.longest_ns,
                    failed: waits.failed,
                }),
                // Once: it is the same aggregate each time.
                _ => self.outside += u64::from(is_gone),
            }
        }
        for key in gone {
            // Gone already: nothing to drop.
            let _ = map.remove(&Plain(key));
        }
        self.missing.retain(|tgid, times| seen.contains(tgid) && *times < FORGET_AFTER);
        stats.sort_by_key(|stats| (stats.pid, stats.family));
        Ok(stats)
    }

    fn account(&mut self) -> Result<BTreeMap<String, u64>, ProbeError> {
        let map: PerCpuArray<_, u64> = typed(self.ebpf.map("ACCOUNT"), "ACCOUNT")?;
        let mut account = BTreeMap::new();
        let mut entered = 0;
        // Those that were entered first: what is read later is larger, and no call is to be missing where it went to.
        let (others, first): (Vec<_>, Vec<_>) = (0_u32..).zip(ACCOUNT_NAMES).partition(|(at, _)| *at < ACCOUNT_ENTERED);
        for (index, name) in first.into_iter().chain(others) {
            let values = map.get(&index, 0).map_err(|error| map_error("ACCOUNT", &error))?;
            let count: u64 = values.iter().sum();
            entered += if index >= ACCOUNT_ENTERED { count } else { 0 };
            account.insert(name.to_owned(), count);
        }
        account.entry("seen".to_owned()).and_modify(|seen| *seen += entered);
        Ok(account)
    }
}

pub(super) fn map_error(map: &'static str, error: &MapError) -> ProbeError {
    ProbeError::Map { map, reason: reason(error) }
}

/// A map of the object, by name, as its type.
pub(super) fn typed<M, T>(map: Option<M>, name: &'static str) -> Result<T, ProbeError>
where
    T: TryFrom<M, Error = MapError>,
{
    let map = map.ok_or_else(|| ProbeError::Map { map: name, reason: "not in the object".to_owned() })?;
    T::try_from(map).map_err(|error| map_error(name, &error))
}

fn take_ring(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, ProbeError> {
    typed(ebpf.take_map(name), name)
}

/// Tells the probes how far the time of day is from the monotonic clock.
fn note_clocks(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    let mut map: Array<_, i64> = typed(ebpf.map_mut("REALTIME"), "REALTIME")?;
    map.set(0, clock::realtime_offset_ns(), 0).map_err(|error| map_error("REALTIME", &error))
}

fn replace_filter(ebpf: &mut Ebpf, pids: &BTreeSet<Pid>) -> Result<usize, ProbeError> {
    let mut map: BpfHashMap<_, u32, u8> = typed(ebpf.map_mut("FILTER"), "FILTER")?;
    let old: BTreeSet<u32> = map.keys().filter_map(Result::ok).collect();
    for pid in old.difference(pids) {
        // Removed meanwhile: nothing to do.
        let _ = map.remove(pid);
    }
    let mut left_out = 0;
    for pid in pids.difference(&old) {
        match map.insert(pid, 1, 0) {
            Ok(()) => {}
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::E2BIG) => left_out += 1,
            Err(error) => return Err(map_error("FILTER", &error)),
        }
    }
    Ok(left_out)
}
