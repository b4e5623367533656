//! The probes under a budget: what they cost is measured now and then, and the [`Governor`]'s answer is done.
//!
//! On a thread of its own, so that a program that begins to call the kernel a million times a second is answered within a second
//! whatever the interval of the census, and so that the census does not wait while the kernel lets a probe go.

use super::budget::{Change, FAMILIES, FamilyState, Governor, Reading, Watch};
use super::event::{Family, ProbeReading};
use super::meter::{Costs, Meter, ProgramCost};
use super::probes::{ProbeError, ProbePlane, ProbeStatus};
use super::row::{Census, Pid};
use crate::settings::CpuBudget;
use std::collections::BTreeMap;
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
        let mut calls = BTreeMap::new();
        for stats in &reading.stats {
            *calls.entry(stats.family).or_default() += stats.calls.iter().sum::<u64>();
        }
        lock(&self.shared.state).calls.note(calls);
        Ok(Some(reading))
    }

    /// What they cost, and what was given up.
    pub fn spending(&self) -> Spending {
        let state = lock(&self.shared.state);
        let mut families = state.governor.families().clone();
        // Not yet: the kernel takes its time.
        if let Some(Change { family, from, .. }) = &state.changing
            && let Some(family) = families.get_mut(family)
        {
            family.watch = *from;
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
            state.governor.changed(began.elapsed());
            drop(state);
            // Programs may have been loaded again.
            meter = Meter::of(lock(&shared.plane).object());
        }
    }
}

impl State {
    /// What the kernel measured.
    fn reading(&mut self, costs: &Costs) -> Reading {
        self.measured += costs.window;
        for (name, cost) in &costs.programs {
            self.programs.entry(name.clone()).or_default().add(cost);
        }
        let weights = weights(self, costs.shared_calls());
        Reading { window: costs.window, families: costs.by_family(&weights), rest_ns: costs.rest_ns() }
    }

    /// What the calls that were counted cost as a rule. Futex calls that only wake are not counted.
    fn estimate(&self) -> Reading {
        let window = Duration::from_secs(1);
        let cost = |(family, state): (&Family, &FamilyState)| {
            let one_in = state.watch.one_in() as f64;
            let (counted, passed) = (self.calls.rate(*family), self.calls.rate(*family) * (one_in - 1.0));
            (*family, (counted * ESTIMATED_NS.0 + passed * ESTIMATED_NS.1).max(0.0) as u64)
        };
        let on = self.governor.families().iter().filter(|(_, state)| state.watch != Watch::Off);
        Reading { window, families: on.map(cost).collect(), rest_ns: 0 }
    }
}

/// How much of a program that several families share is whose: by their calls a second. Futex calls that only wake are not
/// counted where the others are, so what is entered and not counted is theirs.
fn weights(state: &State, entered: f64) -> BTreeMap<Family, f64> {
    let on = state.governor.families().iter().filter(|(_, family)| family.watch != Watch::Off);
    let counted = |family: &Family, watch: Watch| state.calls.rate(*family) * watch.one_in() as f64;
    let mut weights: BTreeMap<Family, f64> =
        on.map(|(family, state)| (*family, counted(family, state.watch).max(LEAST_CALLS))).collect();
    let others: f64 = weights.iter().filter(|(family, _)| **family != Family::Futex).map(|(_, rate)| rate).sum();
    if let Some(futex) = weights.get_mut(&Family::Futex) {
        *futex = futex.max(entered - others);
    }
    weights
}

/// Calls by family, as drained.
#[derive(Default)]
struct Calls {
    at: Option<Instant>,
    since_attach: BTreeMap<Family, u64>,
    a_second: BTreeMap<Family, f64>,
}

impl Calls {
    fn note(&mut self, since_attach: BTreeMap<Family, u64>) {
        let now = Instant::now();
        if let Some(at) = self.at.replace(now) {
            let time = now.duration_since(at).as_secs_f64().max(1e-3);
            let new = |family: &Family, count: u64| {
                // Sums of processes that ended are gone.
                count.saturating_sub(self.since_attach.get(family).copied().unwrap_or(0)) as f64
            };
            self.a_second = since_attach.iter().map(|(family, count)| (*family, new(family, *count) / time)).collect();
        }
        self.since_attach = since_attach;
    }

    fn rate(&self, family: Family) -> f64 {
        self.a_second.get(&family).copied().unwrap_or(0.0)
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
