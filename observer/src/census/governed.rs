//! The probes under a budget: what they cost is measured now and then, and the [`Governor`]'s answer is done.
//!
//! On a thread of its own, so that a program that begins to call the kernel a million times a second is answered within a second
//! whatever the interval of the census, and so that the census does not wait while the kernel lets a probe go.

use super::budget::{Change, FAMILIES, FamilyState, Governor, Reading, Watch};
use super::event::{Family, ProbeReading, WaitStats};
use super::meter::{Costs, Meter, ProgramCost};
use super::probes::{ProbeError, ProbePlane, ProbeStatus};
use super::row::{Census, Pid};
use super::translate::family_number;
use crate::settings::CpuBudget;
use observer_ebpf::{ACCOUNT_ENTERED, ACCOUNT_NAMES};
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

    /// See [`ProbePlane::set_filter`]; `None` while a change is being made: ask again with the next census.
    pub fn set_filter(&self, pids: &BTreeSet<Pid>) -> Result<Option<usize>, ProbeError> {
        self.plane_now().map(|mut plane| plane.set_filter(pids)).transpose()
    }

    /// The probes, unless a change is being made: the kernel takes its time for that.
    fn plane_now(&self) -> Option<MutexGuard<'_, ProbePlane>> {
        let until = Instant::now() + PATIENCE.0;
        loop {
            match self.shared.plane.try_lock() {
                Ok(plane) => return Some(plane),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(PATIENCE.1),
                Err(TryLockError::WouldBlock) => return None,
            }
        }
    }

    /// Another budget from now on.
    pub fn set_budget(&self, budget: CpuBudget) {
        lock(&self.shared.state).governor.set_budget(budget);
    }

    /// What is there now, see [`ProbePlane::note_pids`] and [`ProbePlane::drain`]; `None` while a change is being made: everything
    /// waits in the kernel.
    pub fn drain(&self, census: &Census) -> Result<Option<ProbeReading>, ProbeError> {
        let Some(mut plane) = self.plane_now() else { return Ok(None) };
        plane.note_pids(census)?;
        let reading = plane.drain()?;
        drop(plane);
        let mut state = lock(&self.shared.state);
        let watches: BTreeMap<Family, Watch> = state.watches().collect();
        let one_in = |family| watches.get(&family).map_or(0, |watch| watch.one_in());
        state.calls.note(Counted::of(&reading.stats, &reading.account), one_in, Instant::now());
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
            let Rate { entered, looked_at, one_in } = self.calls.rate(*family);
            // Until they have been counted under another sampling they are taken to follow it.
            let sampled = state.watch.one_in().max(1) as f64;
            let looked_at = match family {
                // They have no aggregates: at most so many.
                Family::Socket => entered / sampled,
                _ => (looked_at * one_in as f64 / sampled).min(entered),
            };
            (*family, (looked_at * ESTIMATED_NS.0 + (entered - looked_at) * ESTIMATED_NS.1) as u64)
        };
        let on = self.governor.families().iter().filter(|(_, state)| state.watch != Watch::Off);
        Reading { window, families: on.map(cost).collect(), rest_ns: 0 }
    }
}

/// How much of a program that several families share is whose: by their calls a second. Futex calls that only wake are entered
/// and not counted: what the programs ran beyond all calls that were counted is theirs, where futexes have a part in the program.
fn weights(state: &State, entered: &[(Vec<Family>, f64)]) -> BTreeMap<Family, f64> {
    let on = state.governor.families().iter().filter(|(_, family)| family.watch != Watch::Off);
    let mut weights: BTreeMap<Family, f64> =
        on.map(|(family, _)| (*family, state.calls.rate(*family).entered.max(LEAST_CALLS))).collect();
    let counted: f64 = weights.values().sum();
    let sum = |of_futex: bool| -> f64 {
        let programs = entered.iter().filter(|(sharers, _)| !of_futex || sharers.contains(&Family::Futex));
        programs.map(|(_, rate)| rate).sum()
    };
    if let Some(futex) = weights.get_mut(&Family::Futex) {
        *futex += (sum(false) - counted).clamp(0.0, sum(true));
    }
    weights
}

/// Calls of a family since the probes were attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    /// All that were entered, on the whole host.
    entered: u64,
    /// Those of them that were looked at: of processes that are observed, and not passed over by sampling.
    looked_at: u64,
}

impl Counted {
    /// The calls of the socket family are looked at as call sites only: they count as entered.
    fn of(stats: &[WaitStats], account: &BTreeMap<String, u64>) -> BTreeMap<Family, Self> {
        let counted = |family| {
            let name = ACCOUNT_NAMES.get((ACCOUNT_ENTERED + family_number(family)) as usize);
            let entered = name.and_then(|name| account.get(*name)).copied().unwrap_or(0);
            let looked_at = stats.iter().filter(|stats| stats.family == family).flat_map(|stats| &stats.calls).sum();
            (family, Self { entered, looked_at })
        };
        FAMILIES.into_iter().map(counted).collect()
    }
}

/// Calls of a family, a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rate {
    entered: f64,
    looked_at: f64,
    /// How they were sampled then.
    one_in: u64,
}

/// How many calls are entered, and how many of them are looked at.
#[derive(Default)]
struct Calls {
    at: Option<Instant>,
    since_attach: BTreeMap<Family, Counted>,
    a_second: BTreeMap<Family, Rate>,
    /// Families that are looked at otherwise since the last time: what they counted meanwhile is a bit of both.
    changed: BTreeSet<Family>,
}

impl Calls {
    /// Takes the sums since attach; `one_in`: of how many calls of a family one is looked at, 0 for none.
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
                let (entered, looked_at) = (a_second(new.entered, old.entered), a_second(new.looked_at, old.looked_at));
                self.a_second.insert(family, Rate { entered, looked_at, one_in });
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

    fn counted(entered: u64, looked_at: u64) -> Counted {
        Counted { entered, looked_at }
    }

    /// A state a second after nothing was counted.
    fn after_a_second(watch: Watch, sums: [(Family, Counted); 2]) -> State {
        let mut governor = Governor::new(CpuBudget::default(), sums.map(|(family, _)| family), Duration::ZERO);
        governor.failed(Family::Poll, watch);
        let mut calls = Calls::default();
        let one_in = |family| if family == Family::Poll { watch.one_in() } else { 1 };
        let began = Instant::now();
        calls.note(BTreeMap::new(), one_in, began);
        calls.note(BTreeMap::from(sums), one_in, began + Duration::from_secs(1));
        let (programs, measured) = (BTreeMap::new(), Duration::ZERO);
        State { governor, unmeasured: None, measured, programs, calls, changing: None, ends: false }
    }

    fn poll_and_futex(watch: Watch, poll: Counted, futex: Counted) -> State {
        after_a_second(watch, [(Family::Poll, poll), (Family::Futex, futex)])
    }

    #[test]
    fn what_is_entered_is_what_the_probes_say_and_no_more_than_a_part_is_looked_at() {
        let stats = |family, calls: [u64; 8]| WaitStats {
            pid: 1,
            family,
            calls: calls.to_vec(),
            waits: Vec::new(),
            total_ns: 0,
            longest_ns: 0,
            failed: 0,
        };
        let calls = [1, 2, 4, 8, 16, 32, 64, 128];
        let account = [("entered_poll", 1000), ("entered_futex", 300), ("entered_socket", 7), ("seen", 1307)];
        let account = account.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        let stats = [stats(Family::Poll, calls), stats(Family::Poll, calls), stats(Family::Futex, calls)];
        let sums = Counted::of(&stats, &account);
        assert_eq!((sums[&Family::Poll], sums[&Family::Futex]), (counted(1000, 510), counted(300, 255)));
        assert_eq!((sums[&Family::Connect], sums[&Family::Socket]), (counted(0, 0), counted(7, 0)));
        for family in FAMILIES {
            let name = ACCOUNT_NAMES[(ACCOUNT_ENTERED + family_number(family)) as usize];
            assert_eq!(name, format!("entered_{}", family.name()));
        }

        // One in 64 is looked at, and the polls without a limit; another program is busy with futexes: that one is the dearest.
        let sampled = Watch::Sampled { shift: 6 };
        let mut state = poll_and_futex(sampled, counted(16_400, 10_100), counted(200_000, 200_000));
        let weights = weights(&state, &[]);
        assert!(weights[&Family::Poll] < weights[&Family::Futex] / 10.0, "{weights:?}");
        let estimate = state.estimate();
        assert_eq!(estimate.families[&Family::Poll], 10_100 * 800 + 6_300 * 150);
        assert_eq!(estimate.families[&Family::Futex], 200_000 * 800);
        // In full from now on, and not counted yet: more than are entered are not looked at.
        state.governor.failed(Family::Poll, Watch::Full);
        assert_eq!(state.estimate().families[&Family::Poll], 16_400 * 800);
    }

    #[test]
    fn what_was_entered_and_not_counted_is_of_those_who_can_have_entered_it() {
        let programs = |three: f64, six: f64| {
            let [three_args, six_args] = ["tracepoint_enter_3", "tracepoint_enter_6"].map(ladder::sharers);
            vec![(three_args, three), (six_args, six)]
        };
        let of = |state: &State, entered: &[(Vec<Family>, f64)]| -> BTreeMap<Family, f64> {
            weights(state, entered).into_iter().map(|(family, weight)| (family, weight.round())).collect()
        };
        let poll_and_futex = |poll: u64| poll_and_futex(Watch::Full, counted(poll, 0), counted(1_000, 1_000));
        let expect = |one, other| BTreeMap::from([one, (Family::Futex, other)]);
        // Futex calls that only wake.
        let state = poll_and_futex(100_000);
        assert_eq!(of(&state, &programs(100_000.0, 201_000.0)), expect((Family::Poll, 100_000.0), 201_000.0));
        // Another process, which is not looked at, spins in poll(0): it is counted as entered.
        let state = poll_and_futex(1_000_000);
        assert_eq!(of(&state, &programs(1_000_000.0, 1_000.0)), expect((Family::Poll, 1_000_000.0), 1_000.0));
        // It began after the calls were counted: no futex entered that program.
        let state = poll_and_futex(10);
        assert_eq!(of(&state, &programs(1_000_000.0, 1_000.0)), expect((Family::Poll, 10.0), 2_000.0));
        assert_eq!(of(&state, &programs(0.0, 0.0)), expect((Family::Poll, 10.0), 1_000.0));
        // A program that reads all the time, in an audit: no futex call.
        let sums = [(Family::Socket, counted(500_000, 0)), (Family::Futex, counted(1_000, 1_000))];
        let state = after_a_second(Watch::Full, sums);
        for entered in [programs(500_000.0, 1_000.0), vec![(ladder::sharers("kprobe_enter"), 501_000.0)]] {
            assert_eq!(of(&state, &entered), expect((Family::Socket, 500_000.0), 1_000.0));
        }
    }

    #[test]
    fn what_was_counted_while_the_sampling_changed_says_nothing() {
        let mut state = poll_and_futex(Watch::Full, counted(1_000_000, 1_000_000), counted(10, 10));
        let before = state.calls.rate(Family::Poll);
        let began = state.calls.at.expect("noted");
        // Half a second in full, half a second of one call in 64.
        state.calls.changed.insert(Family::Poll);
        let sums = |entered, looked_at| {
            BTreeMap::from([(Family::Poll, counted(entered, looked_at)), (Family::Futex, counted(30, 30))])
        };
        state.calls.note(sums(2_000_000, 1_507_812), |_| 64, began + Duration::from_secs(1));
        assert_eq!(state.calls.rate(Family::Poll), before);
        // What is looked at is taken to follow meanwhile.
        state.governor.failed(Family::Poll, Watch::Sampled { shift: 6 });
        assert_eq!(state.estimate().families[&Family::Poll], 15_625 * 800 + 984_375 * 150);
        state.calls.note(sums(3_000_000, 1_523_437), |_| 64, began + Duration::from_secs(2));
        let sampled = Rate { entered: 1_000_000.0, looked_at: 15_625.0, one_in: 64 };
        assert_eq!(state.calls.rate(Family::Poll), sampled);
        // Off: what it was stays known. The others go on.
        let one_in = |family| u64::from(family == Family::Futex);
        state.calls.note(sums(3_000_000, 1_523_437), one_in, began + Duration::from_secs(3));
        assert_eq!(state.calls.rate(Family::Poll), sampled);
        assert_eq!(state.calls.rate(Family::Futex).entered, 0.0);
    }

    #[test]
    fn while_a_change_is_made_the_family_is_looked_at_as_before() {
        let mut state = poll_and_futex(Watch::Off, counted(0, 0), counted(0, 0));
        state.changing =
            Some(Change { family: Family::Poll, from: Watch::Full, to: Watch::Off, total: 0.0, cost: 0.0 });
        let watches: BTreeMap<Family, Watch> = state.watches().collect();
        assert_eq!(watches, BTreeMap::from([(Family::Poll, Watch::Full), (Family::Futex, Watch::Full)]));
        state.changing = None;
        assert!(state.watches().any(|(family, watch)| (family, watch) == (Family::Poll, Watch::Off)));
    }
}
