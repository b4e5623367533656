//! The probes under a budget: what they cost is measured now and then, and the [`Governor`]'s answer is done.
//!
//! On a thread of its own, so that a program that begins to call the kernel a million times a second is answered within a second
//! whatever the interval of the census, and so that the census does not wait while the kernel lets a probe go.

use super::budget::{Change, FAMILIES, FamilyState, Governor, Reading, Watch};
use super::event::{Family, ProbeReading, WaitStats};
use super::meter::{Costs, Meter, ProgramCost};
use super::probes::{ProbeError, ProbePlane, ProbeStatus};
use super::row::{Census, Pid};
use crate::settings::CpuBudget;
use observer_ebpf::{TIMEOUT_INFINITE, TIMEOUT_INVALID, TIMEOUT_NEGATIVE};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The kernel's statistics are on for so long (they cost two readings of the clock each time that any BPF program of the host runs).
const WINDOW: Duration = Duration::from_millis(50);
/// Between two windows, and between those right after a change.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(150));
/// A family that is attached is never quite without weight.
const LEAST_CALLS: f64 = 1e-3;
/// Between two estimates where the kernel does not measure: calls are counted once a census, and a change must show in them.
const ESTIMATE: Duration = Duration::from_secs(2);
/// Until statistics that were refused are asked for again.
const REFUSED: Duration = Duration::from_secs(60);
/// What a call is taken to cost where the kernel does not measure: one that is looked at, and one that sampling passes over
/// (both rather too much; `cargo xtask bench tax` has the figures).
const ESTIMATED_NS: (f64, f64) = (800.0, 150.0);
/// How long a drain waits for a change that is being made, and how often it looks.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(1));

/// What the probes cost, and what was given up for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spending {
    /// What they may cost.
    pub budget: CpuBudget,
    /// Why the kernel does not measure them; then their cost is estimated from the calls they count.
    pub unmeasured: Option<String>,
    /// What all probes cost when they were measured last, CPU seconds a second.
    pub share: f64,
    /// For how long they were measured, all windows together.
    pub measured: Duration,
    /// The families that are attached, or were.
    pub families: BTreeMap<Family, FamilyState>,
    /// Every program, by name, while it was measured.
    pub programs: BTreeMap<String, ProgramCost>,
}

impl Spending {
    /// The families of which not every call was looked at all the time.
    pub fn reduced(&self) -> impl Iterator<Item = (Family, &FamilyState)> {
        self.families
            .iter()
            .filter(|(_, state)| !state.reduced.is_zero() || state.watch != Watch::Full)
            .map(|(f, s)| (*f, s))
    }
}

/// What both threads know.
struct Shared {
    plane: Mutex<ProbePlane>,
    state: Mutex<State>,
    /// Told when `State::ends` is set.
    end: Condvar,
}

struct State {
    governor: Governor,
    unmeasured: Option<String>,
    measured: Duration,
    programs: BTreeMap<String, ProgramCost>,
    calls: Calls,
    /// What is being done now.
    changing: Option<Change>,
    ends: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Attached probes with a budget. Dropping it detaches everything.
pub struct GovernedProbes {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

impl GovernedProbes {
    /// Begins to measure these probes, and to keep them within the budget.
    pub fn new(plane: ProbePlane, budget: CpuBudget) -> Self {
        let attached: Vec<Family> =
            FAMILIES.into_iter().filter(|family| plane.status().of(*family).rung.is_some()).collect();
        let state = State {
            governor: Governor::new(budget, attached, Duration::ZERO),
            unmeasured: None,
            measured: Duration::ZERO,
            programs: BTreeMap::new(),
            calls: Calls::default(),
            changing: None,
            ends: false,
        };
        let shared = Arc::new(Shared { plane: Mutex::new(plane), state: Mutex::new(state), end: Condvar::new() });
        let theirs = shared.clone();
        let keeper = std::thread::Builder::new().name("probe-budget".to_owned()).spawn(move || keep(&theirs));
        let keeper = keeper
            .inspect_err(|error| {
                log::warn!("--cpu-budget is not kept: no thread: {error}");
                lock(&shared.state).unmeasured = Some(format!("no thread: {error}"));
            })
            .ok();
        Self { shared, keeper }
    }

    /// Which rung each family stands on; see [`ProbePlane::status`].
    pub fn status(&self) -> ProbeStatus {
        lock(&self.shared.plane).status().clone()
    }

    /// See [`ProbePlane::set_filter`].
    pub fn set_filter(&self, pids: &[Pid]) -> Result<(), ProbeError> {
        lock(&self.shared.plane).set_filter(pids)
    }

    /// Another budget from now on.
    pub fn set_budget(&self, budget: CpuBudget) {
        lock(&self.shared.state).governor.set_budget(budget);
    }

    /// What is there now, see [`ProbePlane::note_pids`] and [`ProbePlane::drain`]; `None` while a change is being made: everything
    /// waits in the kernel.
    pub fn drain(&self, census: &Census) -> Result<Option<ProbeReading>, ProbeError> {
        let until = Instant::now() + PATIENCE.0;
        let mut plane = loop {
            match self.shared.plane.try_lock() {
                Ok(plane) => break plane,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(PATIENCE.1),
                Err(TryLockError::WouldBlock) => return Ok(None),
            }
        };
        plane.note_pids(census);
        let reading = plane.drain()?;
        drop(plane);
        let mut state = lock(&self.shared.state);
        let watches: BTreeMap<Family, Watch> = state.watches().collect();
        let one_in = |family| watches.get(&family).map_or(0, |watch| watch.one_in());
        state.calls.note(Counted::of(&reading.stats), one_in, Instant::now());
        drop(state);
        Ok(Some(reading))
    }

    /// What they cost, and what was given up.
    pub fn spending(&self) -> Spending {
        let state = lock(&self.shared.state);
        let mut families = state.governor.families().clone();
        for (family, watch) in state.watches() {
            families.entry(family).and_modify(|family| family.watch = watch);
        }
        Spending {
            budget: state.governor.budget(),
            unmeasured: state.unmeasured.clone(),
            share: state.governor.total(),
            measured: state.measured,
            families,
            programs: state.programs.clone(),
        }
    }
}

impl Drop for GovernedProbes {
    fn drop(&mut self) {
        lock(&self.shared.state).ends = true;
        self.shared.end.notify_all();
        if let Some(keeper) = self.keeper.take() {
            // It has told of its panic on stderr; the probes go all the same.
            let _ = keeper.join();
        }
    }
}

impl Shared {
    /// Waits; true when it is over.
    fn pause(&self, time: Duration) -> bool {
        let state = lock(&self.state);
        let waited = self.end.wait_timeout_while(state, time, |state| !state.ends);
        waited.unwrap_or_else(PoisonError::into_inner).0.ends
    }
}

/// Measures and acts until it is over.
fn keep(shared: &Shared) {
    let began = Instant::now();
    let mut meter = Meter::of(lock(&shared.plane).object());
    let mut refused: Option<Instant> = None;
    loop {
        let pause = {
            let state = lock(&shared.state);
            match (&state.unmeasured, state.governor.is_unsettled(began.elapsed())) {
                (Some(_), _) => ESTIMATE,
                (None, true) => PAUSE.1,
                (None, false) => PAUSE.0,
            }
        };
        if shared.pause(pause) {
            return;
        }
        let asks = refused.is_none_or(|at| at.elapsed() >= REFUSED);
        let costs = asks.then(|| meter.window(|| shared.pause(WINDOW)));
        let change = {
            let mut state = lock(&shared.state);
            if state.ends {
                return;
            }
            let reading = match costs {
                Some(Ok(costs)) => {
                    (refused, state.unmeasured) = (None, None);
                    state.reading(&costs)
                }
                Some(Err(why)) => {
                    if state.unmeasured.is_none() && state.governor.budget() != CpuBudget::OFF {
                        log::info!(
                            "--cpu-budget is kept by an estimate: {why}; `observer doctor` says what is missing"
                        );
                    }
                    (refused, state.unmeasured) = (Some(Instant::now()), Some(why));
                    state.estimate()
                }
                None => state.estimate(),
            };
            state.changing = state.governor.measured(&reading, began.elapsed());
            state.changing.clone()
        };
        if let Some(change) = change {
            act(shared, &change);
            let mut state = lock(&shared.state);
            state.changing = None;
            state.calls.changed.insert(change.family);
            if change.from == Watch::Off && state.unmeasured.is_some() {
                // An estimate knows nothing but the calls, and those are the ones it was taken off for.
                state.calls.a_second.remove(&change.family);
            }
            state.governor.changed(began.elapsed());
            drop(state);
            // Programs may have been loaded again.
            meter = Meter::of(lock(&shared.plane).object());
        }
    }
}

impl State {
    /// How each family is looked at: while a change is being made, as before, since the kernel takes its time.
    fn watches(&self) -> impl Iterator<Item = (Family, Watch)> {
        let before = |family: Family| self.changing.as_ref().filter(|change| change.family == family);
        let families = self.governor.families().iter();
        families.map(move |(family, state)| (*family, before(*family).map_or(state.watch, |change| change.from)))
    }

    /// What the kernel measured.
    fn reading(&mut self, costs: &Costs) -> Reading {
        self.measured += costs.window;
        for (name, cost) in &costs.programs {
            self.programs.entry(name.clone()).or_default().add(cost);
        }
        let weights = weights(self, &costs.entered());
        Reading { window: costs.window, families: costs.by_family(&weights), rest_ns: costs.rest_ns() }
    }

    /// What the calls that were counted cost as a rule. Futex calls that only wake are not counted.
    fn estimate(&self) -> Reading {
        let window = Duration::from_secs(1);
        let cost = |(family, state): (&Family, &FamilyState)| {
            let rate = self.calls.rate(*family);
            let counted = rate.always + rate.by_chance / state.watch.one_in().max(1) as f64;
            let passed = rate.entered() - counted;
            (*family, (counted * ESTIMATED_NS.0 + passed * ESTIMATED_NS.1).max(0.0) as u64)
        };
        let on = self.governor.families().iter().filter(|(_, state)| state.watch != Watch::Off);
        Reading { window, families: on.map(cost).collect(), rest_ns: 0 }
    }
}

/// How much of a program that several families share is whose: by their calls a second. Calls of sockets are counted nowhere, futex
/// calls that only wake are not counted where the others are, and of processes that are not looked at no call is: what was entered
/// and not counted is sockets' or the dearest's where futexes have no part in the program, the rest is theirs.
fn weights(state: &State, entered: &[(Vec<Family>, f64)]) -> BTreeMap<Family, f64> {
    let on = state.governor.families().iter().filter(|(_, family)| family.watch != Watch::Off);
    let mut weights: BTreeMap<Family, f64> =
        on.map(|(family, _)| (*family, state.calls.rate(*family).entered().max(LEAST_CALLS))).collect();
    let counted = weights.clone();
    let all: f64 = entered.iter().map(|(_, rate)| rate).sum();
    let mut uncounted = (all - counted.values().sum::<f64>()).max(0.0);
    let is_for_futex = weights.contains_key(&Family::Futex);
    let certain = |sharers: &[Family]| !(is_for_futex && sharers.contains(&Family::Futex));
    for (sharers, rate) in entered.iter().filter(|(sharers, _)| certain(sharers)) {
        let theirs = || counted.iter().filter(|(family, _)| sharers.contains(family));
        let more = (rate - theirs().map(|(_, rate)| rate).sum::<f64>()).clamp(0.0, uncounted);
        let dearest = theirs().max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(family, _)| *family);
        let whose = theirs().map(|(family, _)| *family).find(|family| *family == Family::Socket).or(dearest);
        if let Some(weight) = whose.and_then(|family| weights.get_mut(&family)) {
            *weight += more;
            uncounted -= more;
        }
    }
    if let Some(futex) = weights.get_mut(&Family::Futex) {
        *futex += uncounted;
    }
    weights
}

/// Calls of a family that were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    /// Those that sampling passes over never, as in `observer-ebpf/src/probes/syscall.rs`.
    always: u64,
    /// The others.
    by_chance: u64,
}

impl Counted {
    fn of(stats: &[WaitStats]) -> BTreeMap<Family, Self> {
        let mut families: BTreeMap<Family, Self> = BTreeMap::new();
        for stats in stats {
            let counted = families.entry(stats.family).or_default();
            for (kind, calls) in (0_u32..).zip(&stats.calls) {
                let is_bad = matches!(kind, TIMEOUT_NEGATIVE | TIMEOUT_INVALID);
                let is_always = is_bad || kind == TIMEOUT_INFINITE && stats.family == Family::Poll;
                *(if is_always { &mut counted.always } else { &mut counted.by_chance }) += calls;
            }
        }
        families
    }
}

/// Calls of a family that are entered, a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rate {
    always: f64,
    by_chance: f64,
}

impl Rate {
    fn entered(self) -> f64 {
        self.always + self.by_chance
    }
}

/// How many calls are entered, from those that are counted.
#[derive(Default)]
struct Calls {
    at: Option<Instant>,
    since_attach: BTreeMap<Family, Counted>,
    a_second: BTreeMap<Family, Rate>,
    /// Families that are looked at otherwise since the last time: what they counted meanwhile is a bit of both.
    changed: BTreeSet<Family>,
}

impl Calls {
    /// Takes the sums since attach; `one_in`: of how many calls of a family one was counted, 0 for none.
    fn note(&mut self, since_attach: BTreeMap<Family, Counted>, one_in: impl Fn(Family) -> u64, now: Instant) {
        let sums = |all: &BTreeMap<Family, Counted>, family| all.get(&family).copied().unwrap_or_default();
        if let Some(at) = self.at.replace(now) {
            let time = now.duration_since(at).as_secs_f64().max(1e-3);
            for family in FAMILIES.into_iter().filter(|family| !self.changed.contains(family)) {
                let (new, old, one_in) =
                    (sums(&since_attach, family), sums(&self.since_attach, family), one_in(family));
                // Nothing is counted: what it was before is the best that is known.
                if one_in == 0 {
                    continue;
                }
                // Sums of processes that ended are gone.
                let a_second = |new: u64, old: u64| new.saturating_sub(old) as f64 / time;
                let (always, by_chance) = (a_second(new.always, old.always), a_second(new.by_chance, old.by_chance));
                self.a_second.insert(family, Rate { always, by_chance: by_chance * one_in as f64 });
            }
        }
        self.changed.clear();
        self.since_attach = since_attach;
    }

    fn rate(&self, family: Family) -> Rate {
        self.a_second.get(&family).copied().unwrap_or_default()
    }
}

fn act(shared: &Shared, change: &Change) {
    let Change { family, from, to, total, cost } = change;
    let mut plane = lock(&shared.plane);
    let done = match (from, to) {
        (_, Watch::Off) => plane.detach(*family),
        (Watch::Off, _) => plane.set_sampling(*family, to.shift()).and_then(|()| plane.attach_again(*family)),
        _ => plane.set_sampling(*family, to.shift()),
    };
    let is_on = plane.status().of(*family).rung.is_some() && !plane.is_detached(*family);
    drop(plane);
    let mut state = lock(&shared.state);
    let budget = state.governor.budget();
    let failure = match done {
        Err(error) => Some(error.to_string()),
        Ok(()) if *to != Watch::Off && !is_on => Some("they could not be attached again".to_owned()),
        Ok(()) => None,
    };
    if let Some(why) = failure {
        log::warn!("--cpu-budget {budget}: {} probes stay as they are: {why}", family.name());
        state.governor.failed(*family, if is_on { *from } else { Watch::Off });
        return;
    }
    let percent = |share: f64| share * 100.0;
    let text = format!(
        "--cpu-budget {budget}: {} probes: {from} before, {to} from now on; all probes cost {:.2}% of a CPU, these {:.2}%",
        family.name(),
        percent(*total),
        percent(*cost)
    );
    if to.one_in() == 0 || from.one_in() != 0 && to.one_in() > from.one_in() {
        log::warn!("{text}");
    } else {
        log::info!("{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::ladder;
    use super::*;

    const ALL: [Family; 2] = [Family::Poll, Family::Futex];

    fn counted(always: u64, by_chance: u64) -> Counted {
        Counted { always, by_chance }
    }

    /// A state a second after nothing was counted.
    fn after_a_second(watch: Watch, poll: Counted, futex: Counted) -> State {
        let mut governor = Governor::new(CpuBudget::default(), ALL, Duration::ZERO);
        governor.failed(Family::Poll, watch);
        let mut calls = Calls::default();
        let one_in = |family| if family == Family::Poll { watch.one_in() } else { 1 };
        let began = Instant::now();
        calls.note(BTreeMap::new(), one_in, began);
        let sums = BTreeMap::from([(Family::Poll, poll), (Family::Futex, futex)]);
        calls.note(sums, one_in, began + Duration::from_secs(1));
        let (programs, measured) = (BTreeMap::new(), Duration::ZERO);
        State { governor, unmeasured: None, measured, programs, calls, changing: None, ends: false }
    }

    #[test]
    fn calls_that_sampling_never_passes_over_are_not_taken_for_a_sample() {
        let stats = |family, calls: [u64; 8]| WaitStats {
            pid: 1,
            family,
            calls: calls.to_vec(),
            waits: Vec::new(),
            total_ns: 0,
            longest_ns: 0,
            failed: 0,
        };
        // Unknown, none, zero, finite, infinite, negative, absurd, invalid.
        let calls = [1, 2, 4, 8, 16, 32, 64, 128];
        let sums = Counted::of(&[stats(Family::Poll, calls), stats(Family::Poll, calls), stats(Family::Futex, calls)]);
        assert_eq!(sums[&Family::Poll], counted(2 * 176, 2 * 79));
        assert_eq!(sums[&Family::Futex], counted(160, 95));

        // A program polls without a limit at what is ready, another is busy with futexes: that one is the dearest.
        let state = after_a_second(Watch::Sampled { shift: 6 }, counted(10_000, 100), counted(0, 200_000));
        assert_eq!(state.calls.rate(Family::Poll), Rate { always: 10_000.0, by_chance: 6_400.0 });
        let weights = weights(&state, &[]);
        assert!(weights[&Family::Poll] < weights[&Family::Futex] / 10.0, "{weights:?}");
        let estimate = state.estimate();
        assert_eq!(estimate.families[&Family::Poll], 10_100 * 800 + 6_300 * 150);
        assert_eq!(estimate.families[&Family::Futex], 200_000 * 800);
    }

    #[test]
    fn what_was_entered_and_not_counted_is_of_those_who_can_have_entered_it() {
        let programs = |three: f64, six: f64| {
            let [three_args, six_args] = ["tracepoint_enter_3", "tracepoint_enter_6"].map(ladder::sharers);
            vec![(three_args, three), (six_args, six)]
        };
        let weights = |poll: u64, three: f64, six: f64| {
            let state = after_a_second(Watch::Full, counted(0, poll), counted(0, 1_000));
            let weights = weights(&state, &programs(three, six));
            (weights[&Family::Poll].round(), weights[&Family::Futex].round())
        };
        // Futex calls that only wake.
        assert_eq!(weights(100_000, 100_000.0, 201_000.0), (100_000.0, 201_000.0));
        // Another process, which is not looked at, spins in poll(0).
        assert_eq!(weights(10, 1_000_000.0, 1_000.0), (1_000_000.0, 1_000.0));
        assert_eq!(weights(10, 0.0, 0.0), (10.0, 1_000.0));
        // With futex off, what is entered there is of those who are on.
        let [six_args] = ["tracepoint_enter_6"].map(ladder::sharers);
        let mut state = after_a_second(Watch::Full, counted(0, 10), counted(0, 1_000));
        state.governor.failed(Family::Futex, Watch::Off);
        let weights = super::weights(&state, &[(six_args, 500_000.0)]);
        assert!(!weights.contains_key(&Family::Futex) && weights.values().sum::<f64>() >= 499_000.0, "{weights:?}");
    }

    #[test]
    fn what_was_counted_while_the_sampling_changed_says_nothing() {
        let mut state = after_a_second(Watch::Full, counted(0, 1_000_000), counted(0, 10));
        let before = state.calls.rate(Family::Poll);
        let began = state.calls.at.expect("noted");
        // Half a second in full, half a second of one call in 64.
        state.calls.changed.insert(Family::Poll);
        let sums = |poll| BTreeMap::from([(Family::Poll, counted(0, poll)), (Family::Futex, counted(0, 30))]);
        state.calls.note(sums(1_500_000 + 7_812), |_| 64, began + Duration::from_secs(1));
        assert_eq!(state.calls.rate(Family::Poll), before);
        state.calls.note(sums(1_507_812 + 15_625), |_| 64, began + Duration::from_secs(2));
        assert_eq!(state.calls.rate(Family::Poll).entered(), 1_000_000.0);
        // Off: what it was stays known. The others go on.
        let one_in = |family| u64::from(family == Family::Futex);
        state.calls.note(sums(1_523_437), one_in, began + Duration::from_secs(3));
        assert_eq!(state.calls.rate(Family::Poll).entered(), 1_000_000.0);
        assert_eq!(state.calls.rate(Family::Futex).entered(), 0.0);
    }

    #[test]
    fn while_a_change_is_made_the_family_is_looked_at_as_before() {
        let mut state = after_a_second(Watch::Off, counted(0, 0), counted(0, 0));
        state.changing =
            Some(Change { family: Family::Poll, from: Watch::Full, to: Watch::Off, total: 0.0, cost: 0.0 });
        let watches: BTreeMap<Family, Watch> = state.watches().collect();
        assert_eq!(watches, BTreeMap::from([(Family::Poll, Watch::Full), (Family::Futex, Watch::Full)]));
        state.changing = None;
        assert!(state.watches().any(|(family, watch)| (family, watch) == (Family::Poll, Watch::Off)));
    }
}
