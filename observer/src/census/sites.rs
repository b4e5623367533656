//! Call sites, their stacks, and who wakes whom: from the kernel's maps to user-space terms.

use super::event::{SiteStack, SiteStats, ThreadWakes, WordWakes};
use super::object::{self, Plain};
use super::probes::{ProbeError, ProbeSettings, typed};
use super::row::{Census, Pid};
use crate::host::clock;
use aya::Ebpf;
use aya::maps::{HashMap as BpfHashMap, MapData, RingBuf};
use observer_ebpf::{
    Call, FAMILY_CONNECT, FAMILY_SOCKET, SiteKey, SiteRecord, TIMEOUT_KINDS, ThreadState, UserStack, Wakes, WordKey,
    WordRecord,
};
use std::collections::{BTreeMap, HashMap};

/// Stacks taken by one drain; more than the ring holds.
const MOST_STACKS: usize = 512;
/// A socket call in flight is a site from this on, as one that returned: 1 ms.
const SHORTEST_NS: u64 = 1_000_000;

/// What is called how in observer's PID namespace.
pub(super) struct Names<'a> {
    /// Observer is in the initial one: ids are what they are.
    pub(super) in_initial_namespace: bool,
    /// Initial process id → id here.
    pub(super) processes: &'a HashMap<Pid, Pid>,
}

impl Names<'_> {
    fn process(&self, tgid: Pid) -> Option<Pid> {
        self.processes.get(&tgid).copied().or(self.in_initial_namespace.then_some(tgid))
    }
}

/// What a plane keeps between drains for sites and wakes.
#[derive(Default)]
pub(super) struct Kept {
    sites: bool,
    wakes: bool,
    /// Initial thread id → id in observer's namespace; empty unless one of the two is asked for.
    threads: HashMap<Pid, Pid>,
}

impl Kept {
    pub(super) fn new(settings: &ProbeSettings) -> Self {
        Self { sites: settings.sites, wakes: settings.wakes, threads: HashMap::new() }
    }

    /// Learns the names of threads.
    pub(super) fn note_threads(&mut self, census: &Census) {
        if self.sites || self.wakes {
            self.threads.clear();
            self.threads.extend(census.rows.iter().map(|row| (row.initial.0, row.tid)));
        }
    }

    fn thread(&self, tid: Pid, names: &Names<'_>) -> Option<Pid> {
        self.threads.get(&tid).copied().or(names.in_initial_namespace.then_some(tid))
    }

    /// Every site, those of calls in flight included. `account` gets `sites_evicted`.
    pub(super) fn sites(
        &self,
        ebpf: &mut Ebpf,
        names: &Names<'_>,
        account: &mut BTreeMap<String, u64>,
    ) -> Result<Vec<SiteStats>, ProbeError> {
        if !self.sites {
            return Ok(Vec::new());
        }
        let mut found = BTreeMap::new();
        {
            let map: BpfHashMap<_, Plain<SiteKey>, Plain<SiteRecord>> = typed(ebpf.map_mut("SITES"), "SITES")?;
            // An entry that is evicted while we walk is not there.
            for (Plain(key), Plain(record)) in map.iter().filter_map(Result::ok) {
                found.insert((key.tgid, key.site, key.syscall), record);
            }
        }
        evicted(account, "sites", found.len());
        let map: BpfHashMap<_, u64, Plain<ThreadState>> = typed(ebpf.map_mut("IN_FLIGHT"), "IN_FLIGHT")?;
        let now_ns = clock::monotonic_ns();
        for (id, Plain(thread)) in map.iter().filter_map(Result::ok) {
            // The others were counted when they were entered.
            if matches!(thread.call.family, FAMILY_SOCKET | FAMILY_CONNECT) {
                add_in_flight(&mut found, id, &thread.call, now_ns);
            }
        }
        let mut sites: Vec<SiteStats> = found
            .into_iter()
            .filter_map(|((tgid, site, syscall), record)| {
                let tid = if record.view_tid != 0 {
                    record.view_tid
                } else {
                    // A thread that has ended has no name here; its process may still have.
                    self.thread(record.tid, names).unwrap_or(0)
                };
                Some(SiteStats {
                    pid: names.process(tgid)?,
                    site,
                    syscall,
                    calls: record.calls.to_vec(),
                    ended: record.ended,
                    total_ns: record.total_ns,
                    longest_ns: record.longest_ns,
                    timeouts_ns: (record.shortest_timeout_ns, record.longest_timeout_ns),
                    raw: record.raw,
                    tid,
                    last_ns: record.last_ns,
                    args: record.args,
                })
            })
            .collect();
        sites.sort_by_key(|site| (site.pid, site.syscall, site.site));
        Ok(sites)
    }

    /// Who wakes which word, and which thread. `account` gets `words_evicted` and `woken_evicted`: at most so many, for
    /// threads that ended are among them.
    pub(super) fn wakes(
        &self,
        ebpf: &mut Ebpf,
        names: &Names<'_>,
        account: &mut BTreeMap<String, u64>,
    ) -> Result<(Vec<WordWakes>, Vec<ThreadWakes>), ProbeError> {
        if !self.wakes {
            return Ok((Vec::new(), Vec::new()));
        }
        let mut words = Vec::new();
        let mut entries = 0;
        let map: BpfHashMap<_, Plain<WordKey>, Plain<WordRecord>> = typed(ebpf.map_mut("WORDS"), "WORDS")?;
        for (Plain(key), Plain(word)) in map.iter().filter_map(Result::ok) {
            entries += 1;
            let Wakes { wakes, last_ns, lead, last, usual } = word.wakes;
            // One that owes a waker and has none yet.
            if wakes == 0 {
                continue;
            }
            if let Some(pid) = names.process(key.tgid) {
                let name = |tid| self.thread(tid, names).unwrap_or(0);
                let (last, usual) = (name(last), name(usual));
                words.push(WordWakes { pid, address: key.address, wakes, last, last_ns, usual, lead });
            }
        }
        evicted(account, "words", entries);
        let mut threads = Vec::new();
        let map: BpfHashMap<_, u64, Plain<Wakes>> = typed(ebpf.map_mut("WOKEN"), "WOKEN")?;
        let mut entries = 0;
        for (id, Plain(Wakes { wakes, last_ns, lead, last, usual })) in map.iter().filter_map(Result::ok) {
            entries += 1;
            if let Some(tid) = self.thread(id as u32, names) {
                let name = |tid| self.thread(tid, names).unwrap_or(0);
                let (last, usual) = (name(last), name(usual));
                threads.push(ThreadWakes { tid, wakes, last, last_ns, usual, lead });
            }
        }
        evicted(account, "woken", entries);
        words.sort_by_key(|word| (word.pid, word.address));
        threads.sort_by_key(|thread| thread.tid);
        Ok((words, threads))
    }
}

/// The kernel does not count what it evicts: what was entered and is not there.
fn evicted(account: &mut BTreeMap<String, u64>, what: &str, entries: usize) {
    let new = account.get(&format!("{what}_new")).copied().unwrap_or(0);
    account.insert(format!("{what}_evicted"), new.saturating_sub(entries as u64));
}

/// Adds a socket call that has not returned and is long enough in flight.
fn add_in_flight(found: &mut BTreeMap<(u32, u64, u32), SiteRecord>, id: u64, call: &Call, now_ns: u64) {
    if call.start_ns == 0 || call.site == 0 || now_ns.saturating_sub(call.start_ns) < SHORTEST_NS {
        return;
    }
    let record = found.entry(((id >> 32) as u32, call.site, call.nr)).or_insert(SiteRecord {
        calls: [0; TIMEOUT_KINDS],
        ended: 0,
        total_ns: 0,
        longest_ns: 0,
        shortest_timeout_ns: 0,
        longest_timeout_ns: 0,
        raw: 0,
        last_ns: 0,
        args: [0; 6],
        tid: 0,
        view_tid: 0,
        has_stack: 0,
        has_bad: 0,
    });
    if let Some(calls) = record.calls.get_mut(call.kind as usize) {
        *calls += 1;
    }
    if call.start_ns >= record.last_ns {
        (record.last_ns, record.args, record.tid, record.view_tid) = (call.start_ns, call.args, id as u32, 0);
    }
}

/// Takes the stacks that are there.
pub(super) fn stacks(
    ring: &mut RingBuf<MapData>,
    names: &Names<'_>,
    outside: &mut u64,
    malformed: &mut u64,
) -> Vec<SiteStack> {
    let mut stacks = Vec::new();
    for _ in 0..MOST_STACKS {
        let Some(item) = ring.next() else { break };
        let Some(stack) = object::read::<UserStack>(&item) else {
            *malformed += 1;
            continue;
        };
        let Some(bytes) = stack.bytes.get(..stack.len as usize) else {
            *malformed += 1;
            continue;
        };
        let (pid, tid) = if stack.view_tgid != 0 && stack.view_tid != 0 {
            (stack.view_tgid, stack.view_tid)
        } else if names.in_initial_namespace {
            (stack.tgid, stack.tid)
        } else {
            *outside += 1;
            continue;
        };
        let UserStack { site, ip, sp, bp, .. } = stack;
        stacks.push(SiteStack { pid, tid, site, ip, sp, bp, bytes: bytes.to_vec() });
    }
    stacks
}
