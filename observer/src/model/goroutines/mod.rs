//! The goroutines of Go processes over time: since when each waits, and how many stand where.
//!
//! The runtime keeps no usable time of a wait (`g.waitsince` is that of a collection), so the times here are those of our
//! own first sight of (goid, g, pc, sp): lower bounds.

mod holder;
mod samples;
mod site;

pub use holder::{GoHolder, LockQueue};
pub use samples::{Demand, Growth, Sample, Samples};
pub use site::{GoClass, Place, Site, is_standard, waits_for_signals};

use super::host::Host;
use crate::census::{Pid, ProcessId};
use crate::proc::{GoState, Goroutine, GoroutineGroup, Goroutines, Stack};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Goroutines of one process that are told apart over time; of more only their numbers are kept.
const MOST_LIVES: usize = 400_000;
/// Sites of one process whose history is kept.
const MOST_SITES: usize = 2000;

/// One goroutine at one place.
#[derive(Clone, Copy, Debug)]
struct Life {
    g: u64,
    pc: u64,
    sp: u64,
    ran: Option<u8>,
    site: u32,
    /// First seen in this very wait.
    since_ns: u64,
    /// First seen at this site, whatever it did in between.
    here_ns: u64,
    /// The census that saw it last.
    seen: u64,
}

/// One site over time.
#[derive(Debug)]
pub struct SiteHistory {
    /// Where.
    pub site: Site,
    /// The stack of its largest group.
    pub stack: Arc<Stack>,
    /// Goroutines there now.
    pub count: u64,
    /// How many there were, came and went.
    pub samples: Samples,
    /// First sight of the wait that has lasted longest, `CLOCK_MONOTONIC` nanoseconds.
    pub oldest_ns: u64,
    /// Bytes of stack they have.
    pub stack_bytes: u64,
    /// Lowest and highest number of those there now.
    pub goids: (u64, u64),
    /// Came there since the process is watched; the first census counts none.
    arrived: u64,
    /// Went away.
    left: u64,
    /// Of how many, reading by reading, it is known whether they have run since the one before.
    stayed: u64,
    /// How many of those had.
    stirred: u64,
    /// The census that saw it last.
    seen: u64,
}

/// The goroutines of one process.
#[derive(Debug)]
pub struct GoProcess {
    /// As read last.
    pub latest: Goroutines,
    /// Complete or partial readings so far, without those that were set aside.
    pub censuses: u64,
    /// `CLOCK_MONOTONIC` of the first, nanoseconds.
    pub first_ns: u64,
    /// When all of them were read last, `CLOCK_MONOTONIC` nanoseconds.
    whole_ns: Option<u64>,
    /// The last reading was cut short and is set aside: `latest` is the one before it.
    is_kept: bool,
    /// Readings in which program goroutines waited for the collector, of the last ones: see [`GoProcess::gc`].
    gc: Vec<GcSample>,
    /// When it was first seen that the collector holds up several, and how many readings ago it was seen last.
    held: Option<(u64, usize)>,
    sites: Vec<SiteHistory>,
    index: HashMap<Site, u32>,
    lives: HashMap<u64, Life>,
}

/// Where a reading shows most goroutines that the collector holds up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldUp {
    /// Where.
    pub site: Site,
    /// The stack of one of them.
    pub stack: Arc<Stack>,
    /// How many.
    pub count: u64,
}

/// What one reading says of the collector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcSample {
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// Goroutines of the program that it holds up.
    pub held_up: u64,
    /// Goroutines of the program in a run queue.
    pub runnable: u64,
    /// Goroutines of the program that run, or are in system calls.
    pub running: u64,
    /// The collector's own goroutines that work now.
    pub workers: u64,
    /// Resident memory of the process, bytes; 0 if unknown.
    pub rss_bytes: u64,
    /// What the collector takes for live on the heap, bytes; 0 if unknown.
    pub heap_bytes: u64,
    /// Where most of those stand that it holds up.
    pub held: Option<HeldUp>,
}

impl GcSample {
    /// Goroutines with work to do.
    pub fn busy(&self) -> u64 {
        self.held_up + self.runnable + self.running
    }

    /// Whether it shows more than the help every allocation may have to give now and then.
    pub fn is_stalled(&self) -> bool {
        self.held_up >= 2 && self.held_up * 10 >= self.busy()
    }
}

/// Readings that are kept for [`GoProcess::gc`].
const GC_SAMPLES: usize = 30;
/// After so many readings without a stall the next one is another.
const HELD_PAUSE: usize = 8;

impl GoProcess {
    fn new(latest: Goroutines) -> Self {
        let first_ns = latest.taken_ns;
        Self {
            latest,
            censuses: 0,
            first_ns,
            whole_ns: None,
            is_kept: false,
            gc: Vec::new(),
            held: None,
            sites: Vec::new(),
            index: HashMap::new(),
            lives: HashMap::new(),
        }
    }

    /// Takes the next reading.
    fn learn(&mut self, all: Goroutines) {
        let now = all.taken_ns;
        // Left out for want of time: whoever is missing may live.
        let others: u64 = ["unreadable", "unsound"].into_iter().filter_map(|why| all.lost.get(why)).sum();
        let is_cut = all.lost.contains_key("deadline") || all.lost.contains_key("limit");
        let is_whole = !is_cut && others <= 8 + all.total() as u64 / 20;
        // Once: those who are missing are taken to be where the reading before has shown them.
        if !is_whole && !self.is_kept && self.whole_ns == Some(self.latest.taken_ns) {
            self.is_kept = true;
            self.note_gc(&all);
            return;
        }
        self.is_kept = false;
        self.censuses += 1;
        let census = self.censuses;
        for site in &mut self.sites {
            (site.count, site.stack_bytes, site.oldest_ns, site.goids) = (0, 0, u64::MAX, (u64::MAX, 0));
        }
        let mut largest: BTreeMap<u32, usize> = BTreeMap::new();
        for group in all.groups.iter().filter(|group| !group.members.is_empty()) {
            let Some(index) = self.site_of(group) else { continue };
            if largest.get(&index).is_none_or(|most| group.members.len() > *most) {
                largest.insert(index, group.members.len());
                if let Some(site) = self.sites.get_mut(index as usize) {
                    site.stack = Arc::clone(&group.stack);
                }
            }
            for member in &group.members {
                self.note(index, member, now, census);
            }
        }
        if is_whole {
            self.whole_ns = Some(now);
            self.let_go(census);
        }
        for site in &mut self.sites {
            let SiteHistory { count, arrived, left, stayed, stirred, .. } = *site;
            if is_whole {
                site.samples.push(Sample { at_ns: now, count, arrived, left, stayed, stirred });
            }
        }
        self.forget(census);
        self.note_gc(&all);
        self.latest = all;
    }

    fn site_of(&mut self, group: &GoroutineGroup) -> Option<u32> {
        let site = Site::of(group)?;
        if let Some(index) = self.index.get(&site) {
            return Some(*index);
        }
        if self.sites.len() >= MOST_SITES {
            return None;
        }
        let index = self.sites.len() as u32;
        self.index.insert(site.clone(), index);
        // A site that is new was empty when the whole process was read last.
        let mut samples = Samples::default();
        if let Some(at_ns) = self.whole_ns {
            samples.push(Sample { at_ns, ..Sample::default() });
        }
        self.sites.push(SiteHistory {
            site,
            stack: Arc::clone(&group.stack),
            count: 0,
            samples,
            oldest_ns: u64::MAX,
            stack_bytes: 0,
            goids: (u64::MAX, 0),
            arrived: 0,
            left: 0,
            stayed: 0,
            stirred: 0,
            seen: self.censuses,
        });
        Some(index)
    }

    fn note(&mut self, index: u32, member: &Goroutine, now: u64, census: u64) {
        let Some(site) = self.sites.get_mut(index as usize) else { return };
        site.seen = census;
        site.count += 1;
        site.stack_bytes = site.stack_bytes.saturating_add(member.stack_bytes);
        site.goids = (site.goids.0.min(member.goid), site.goids.1.max(member.goid));
        let Goroutine { goid, g, pc, sp, ran, .. } = *member;
        let fresh = Life { g, pc, sp, ran, site: index, since_ns: now, here_ns: now, seen: census };
        let Some(life) = self.lives.get_mut(&goid) else {
            site.oldest_ns = site.oldest_ns.min(now);
            if self.lives.len() < MOST_LIVES {
                self.lives.insert(goid, fresh);
                site.arrived += u64::from(census > 1);
            }
            return;
        };
        let before = *life;
        *life = fresh;
        if before.site == index && before.g == g {
            life.here_ns = before.here_ns;
            let has_run = before.ran.zip(ran).map(|(before, now)| before != now);
            site.stayed += u64::from(has_run.is_some());
            site.stirred += u64::from(has_run == Some(true));
            if (before.pc, before.sp) == (pc, sp) && has_run != Some(true) {
                life.since_ns = before.since_ns;
            }
            site.oldest_ns = site.oldest_ns.min(life.since_ns);
        } else {
            site.oldest_ns = site.oldest_ns.min(now);
            site.arrived += 1;
            if let Some(old) = self.sites.get_mut(before.site as usize) {
                old.left += 1;
            }
        }
    }

    /// Whoever was missing twice is gone: once it may have been on its way while it was read.
    fn let_go(&mut self, census: u64) {
        let sites = &mut self.sites;
        self.lives.retain(|_, life| {
            let stays = life.seen + 1 >= census;
            if !stays && let Some(site) = sites.get_mut(life.site as usize) {
                site.left += 1;
            }
            stays
        });
    }

    /// Forgets the places that nobody has been at for longest.
    fn forget(&mut self, census: u64) {
        const FORGOTTEN: u64 = 64;
        if self.sites.len() < MOST_SITES / 2 {
            return;
        }
        let mut moved: HashMap<u32, u32> = HashMap::new();
        let mut kept = Vec::new();
        for (old, site) in (0_u32..).zip(std::mem::take(&mut self.sites)) {
            if site.seen + FORGOTTEN >= census {
                moved.insert(old, kept.len() as u32);
                kept.push(site);
            }
        }
        self.sites = kept;
        self.index = (0..).zip(&self.sites).map(|(at, site)| (site.site.clone(), at)).collect();
        self.lives.retain(|_, life| match moved.get(&life.site) {
            Some(new) => {
                life.site = *new;
                true
            }
            None => false,
        });
    }

    fn note_gc(&mut self, all: &Goroutines) {
        let (rss_bytes, heap_bytes) = (all.rss_bytes.unwrap_or(0), all.heap_bytes.unwrap_or(0));
        let mut sample = GcSample { at_ns: all.taken_ns, rss_bytes, heap_bytes, ..GcSample::default() };
        for group in &all.groups {
            let count = group.members.len() as u64;
            if group.is_system {
                let is_worker = group.function.as_deref() == Some("runtime.gcBgMarkWorker")
                    || group.function.as_deref() == Some("runtime.bgsweep");
                let works = group.state != GoState::Waiting || group.reason == "GC worker (active)";
                sample.workers += if is_worker && works { count } else { 0 };
                continue;
            }
            match (site::class(group), group.state) {
                (GoClass::Gc, _) => {
                    sample.held_up += count;
                    if sample.held.as_ref().is_none_or(|held| held.count < count)
                        && let Some(site) = Site::of(group)
                    {
                        sample.held = Some(HeldUp { site, stack: Arc::clone(&group.stack), count });
                    }
                }
                (_, GoState::Runnable | GoState::Preempted) => sample.runnable += count,
                (_, GoState::Running | GoState::Syscall) => sample.running += count,
                _ => {}
            }
        }
        // A stall with pauses is one.
        self.held = match self.held {
            Some((since, _)) if sample.is_stalled() => Some((since, 0)),
            None if sample.is_stalled() => Some((sample.at_ns, 0)),
            Some((since, ago)) if ago < HELD_PAUSE => Some((since, ago + 1)),
            _ => None,
        };
        if self.gc.len() == GC_SAMPLES {
            self.gc.remove(0);
        }
        self.gc.push(sample);
    }

    /// What the last readings say of the collector, the oldest first.
    pub fn gc(&self) -> &[GcSample] {
        &self.gc
    }

    /// Since when the collector holds up several goroutines, now and then at least; `CLOCK_MONOTONIC` nanoseconds.
    pub fn held_since(&self) -> Option<u64> {
        self.held.map(|(since, _)| since)
    }

    /// Whether the collector may hold up the program, by the last readings: worth looking at more often.
    pub fn is_gc_suspect(&self) -> bool {
        const LAST: usize = 8;
        let is_held = |sample: &GcSample| sample.held_up > 0 || sample.workers > 0 && sample.runnable > 0;
        self.gc.iter().rev().take(LAST).any(is_held)
    }

    /// The sites where somebody is now.
    pub fn sites(&self) -> impl Iterator<Item = &SiteHistory> {
        self.sites.iter().filter(|site| site.count > 0)
    }

    /// Since when a goroutine is in the wait it is in, at least; `CLOCK_MONOTONIC` nanoseconds.
    pub fn waiting_since(&self, member: &Goroutine) -> u64 {
        let life =
            self.lives.get(&member.goid).filter(|life| (life.g, life.pc, life.sp) == (member.g, member.pc, member.sp));
        life.map_or(self.latest.taken_ns, |life| life.since_ns)
    }

    /// First sight of the wait of a group that has lasted longest, `CLOCK_MONOTONIC` nanoseconds.
    pub fn oldest(&self, group: &GoroutineGroup) -> u64 {
        group.members.iter().map(|member| self.waiting_since(member)).min().unwrap_or(self.latest.taken_ns)
    }

    /// The history of the site a group stands at.
    pub fn site(&self, group: &GoroutineGroup) -> Option<&SiteHistory> {
        self.sites.get(*self.index.get(&Site::of(group)?)? as usize)
    }

    /// What a group waits for, by its reason and its frames.
    pub fn class(group: &GoroutineGroup) -> GoClass {
        site::class(group)
    }

    /// The groups of the program: those of the runtime are left out.
    pub fn groups(&self) -> impl Iterator<Item = &GoroutineGroup> {
        self.latest.groups.iter().filter(|group| !group.is_system && !group.members.is_empty())
    }

    /// The goroutine of this number and its group.
    pub fn goroutine(&self, goid: u64) -> Option<(&GoroutineGroup, &Goroutine)> {
        let mut all = self.latest.groups.iter().flat_map(|group| group.members.iter().map(move |one| (group, one)));
        all.find(|(_, one)| one.goid == goid)
    }

    /// Time from the first reading to the last, nanoseconds.
    pub fn watched_ns(&self) -> u64 {
        self.latest.taken_ns.saturating_sub(self.first_ns)
    }
}

/// Go processes by id.
#[derive(Debug, Default)]
pub(super) struct GoProcesses(pub(super) BTreeMap<ProcessId, GoProcess>);

impl Host {
    /// Takes readings of goroutines.
    pub fn learn_goroutines(&mut self, all: &[Goroutines]) {
        for reading in all {
            // What could not be read says nothing.
            if reading.missing.is_some()
                || self.threads_of(reading.process.pid).all(|row| row.process != reading.process)
            {
                continue;
            }
            let known = self.go.0.entry(reading.process);
            known.or_insert_with(|| GoProcess::new(reading.clone())).learn(reading.clone());
        }
    }

    /// The goroutines of a process, if they were read.
    pub fn goroutines(&self, process: ProcessId) -> Option<&GoProcess> {
        self.go.0.get(&process)
    }

    /// Every process whose goroutines were read.
    pub fn go_processes(&self) -> impl Iterator<Item = (ProcessId, &GoProcess)> {
        self.go.0.iter().map(|(process, known)| (*process, known))
    }

    /// Whether a process runs Go, as its program says.
    pub fn is_go(&self, process: ProcessId) -> bool {
        self.process(process).is_some_and(|facts| facts.runtime.starts_with("go1"))
    }

    /// The thread that runs a goroutine, in observer's own numbers.
    pub fn thread_of(&self, process: ProcessId, goroutine: &Goroutine) -> Option<Pid> {
        let is_it = |row: &&crate::census::ThreadRow| row.own.0 == goroutine.tid && row.process == process;
        (goroutine.tid != 0).then(|| self.threads_of(process.pid).find(is_it)).flatten().map(|row| row.tid)
    }
}

#[cfg(test)]
mod tests;
