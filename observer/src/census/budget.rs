//! The governor: what the probes may cost, and what is given up when they cost more.
//!
//! Pure: costs and times are arguments (`governed.rs` measures and acts). The budget is a share of one CPU, on average: a bucket
//! fills with what may be spent and empties with what is. Once it is empty, the dearest family is sampled, then taken off; once
//! it is full again, what was given up comes back in steps, each of them an attempt that costs little if it fails.

use super::event::Family;
use crate::settings::CpuBudget;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Families that can be sampled and taken off.
pub const FAMILIES: [Family; 4] = [Family::Poll, Family::Futex, Family::Connect, Family::Socket];
/// The coarsest sampling: one call in `1 << 6` is looked at. Beyond that the test itself is what costs.
pub const MOST_SHIFT: u32 = 6;
/// What the bucket holds: a burst of that much time at full budget may be spent at once.
const BURST: Duration = Duration::from_secs(5);
/// Debt is remembered up to that much time at full budget.
const DEBT: Duration = Duration::from_secs(60);
/// Changes aim at this share of the budget, and nothing comes back while more is used: between it and the whole nothing changes.
const AIM: f64 = 0.7;
/// A coarser sampling is made finer again after that much calm at the earliest.
const CALM: Duration = Duration::from_secs(5);
/// A family that was taken off is tried again after so long, and after twice as long each time that it fails.
const RETRY: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(600));
/// An attempt has succeeded when the family is still there after so long.
const SETTLED: Duration = Duration::from_secs(60);

/// How a family is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Watch {
    /// Every call.
    Full,
    /// One call in `1 << shift`.
    Sampled {
        /// 1 to [`MOST_SHIFT`].
        shift: u32,
    },
    /// None: its probes are off.
    Off,
}

impl Watch {
    /// The shift; 0 for every call.
    pub fn shift(self) -> u32 {
        match self {
            Self::Sampled { shift } => shift,
            Self::Full | Self::Off => 0,
        }
    }

    fn sampled(shift: u32) -> Self {
        if shift == 0 { Self::Full } else { Self::Sampled { shift: shift.min(MOST_SHIFT) } }
    }

    /// Of how many calls one is looked at; 0 if none is.
    pub fn one_in(self) -> u64 {
        if self == Self::Off { 0 } else { 1 << self.shift() }
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("every call"),
            Self::Sampled { .. } => write!(f, "one call in {}", self.one_in()),
            Self::Off => f.write_str("off"),
        }
    }
}

/// What the probes used while they were measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// How long the kernel's statistics were on.
    pub window: Duration,
    /// CPU time within that, nanoseconds, by family.
    pub families: BTreeMap<Family, u64>,
    /// CPU time of probes that belong to no family, nanoseconds: ends of threads.
    pub rest_ns: u64,
}

impl Reading {
    /// CPU seconds a second.
    fn rate(&self, ns: u64) -> f64 {
        ns as f64 / (self.window.as_nanos() as f64).max(1.0)
    }

    fn family(&self, family: Family) -> f64 {
        self.rate(self.families.get(&family).copied().unwrap_or(0))
    }

    fn total(&self) -> f64 {
        self.rate(self.families.values().sum::<u64>() + self.rest_ns)
    }
}

/// What is to be done to a family of probes, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which.
    pub family: Family,
    /// How it was looked at.
    pub from: Watch,
    /// How it shall be looked at.
    pub to: Watch,
    /// What all probes cost, CPU seconds a second.
    pub total: f64,
    /// What this family costs of that.
    pub cost: f64,
}

/// One family, as the governor knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct FamilyState {
    /// How it is looked at.
    pub watch: Watch,
    /// CPU seconds a second when it was measured last.
    pub cost: f64,
    /// Estimated CPU time so far.
    pub spent: Duration,
    /// Time for which not every call was looked at.
    pub reduced: Duration,
    /// Times it was sampled more coarsely or taken off.
    pub shed: u64,
    /// Times it came back to every call.
    pub restored: u64,
    /// When it was changed last.
    changed: Duration,
    /// The last change gave something back: an attempt that may still fail.
    on_trial: bool,
    retry: Duration,
}

impl Default for FamilyState {
    fn default() -> Self {
        Self {
            watch: Watch::Full,
            cost: 0.0,
            spent: Duration::ZERO,
            reduced: Duration::ZERO,
            shed: 0,
            restored: 0,
            changed: Duration::ZERO,
            on_trial: false,
            retry: RETRY.0,
        }
    }
}

/// Keeps the average of what the probes cost within the budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Governor {
    budget: CpuBudget,
    families: BTreeMap<Family, FamilyState>,
    /// CPU seconds that may be spent now; negative is debt.
    credit: f64,
    /// When the last reading was taken.
    last: Duration,
    /// When something was changed last.
    changed: Duration,
    /// CPU seconds a second at the last reading.
    total: f64,
    /// The last reading was too much, too: one alone may be an interrupt, or a neighbour's turn on this CPU, in the middle of
    /// a run, which the kernel counts as the probe's.
    is_over: bool,
}

impl Governor {
    /// A governor of these families, all of which are looked at in full; `now` is any clock that does not go back.
    pub fn new(budget: CpuBudget, attached: impl IntoIterator<Item = Family>, now: Duration) -> Self {
        let families =
            attached.into_iter().map(|family| (family, FamilyState { changed: now, ..FamilyState::default() }));
        let credit = budget.share().map_or(0.0, |share| share * BURST.as_secs_f64());
        Self { budget, families: families.collect(), credit, last: now, changed: now, total: 0.0, is_over: false }
    }

    /// The budget.
    pub fn budget(&self) -> CpuBudget {
        self.budget
    }

    /// Another budget from now on.
    pub fn set_budget(&mut self, budget: CpuBudget) {
        self.budget = budget;
    }

    /// Every family that was attached.
    pub fn families(&self) -> &BTreeMap<Family, FamilyState> {
        &self.families
    }

    /// What all probes cost when they were measured last, CPU seconds a second.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// Whether something was changed so recently that the next measurement should come soon.
    pub fn is_unsettled(&self, now: Duration) -> bool {
        self.is_over || now.saturating_sub(self.changed) < CALM
    }

    /// Whether a family is not looked at in full.
    pub fn is_shedding(&self) -> bool {
        self.families.values().any(|state| state.watch != Watch::Full)
    }

    /// Takes a reading that ended now, and says what should change. Readings whose window began before the last change was done
    /// are not to be given here.
    pub fn measured(&mut self, reading: &Reading, now: Duration) -> Option<Change> {
        let since = now.saturating_sub(self.last);
        self.last = now;
        self.total = reading.total();
        for (family, state) in &mut self.families {
            state.cost = reading.family(*family);
            state.spent += since.mul_f64(state.cost.clamp(0.0, 1e6));
            if state.watch != Watch::Full {
                state.reduced += since;
            }
            let settled = state.watch == Watch::Full && now.saturating_sub(state.changed) >= SETTLED;
            if settled && self.budget.share().is_none_or(|share| self.total <= share) {
                state.on_trial = false;
                state.retry = RETRY.0;
            }
        }
        let Some(share) = self.budget.share() else { return self.give_back(f64::INFINITY, now) };
        let (most, least) = (share * BURST.as_secs_f64(), -share * DEBT.as_secs_f64());
        self.credit = (self.credit + (share - self.total) * since.as_secs_f64()).clamp(least, most);
        let was_over = std::mem::replace(&mut self.is_over, self.credit < 0.0 && self.total > share);
        if self.is_over {
            was_over.then(|| self.shed(share, now)).flatten()
        } else if self.credit >= most {
            self.give_back(share * AIM, now)
        } else {
            None
        }
    }

    /// A change took until now; meanwhile everything cost what it did before.
    pub fn changed(&mut self, now: Duration) {
        let since = now.saturating_sub(self.last);
        self.last = now;
        self.changed = now;
        self.is_over = false;
        if let Some(share) = self.budget.share() {
            let least = -share * DEBT.as_secs_f64();
            self.credit =
                (self.credit + (share - self.total) * since.as_secs_f64()).max(least).min(share * BURST.as_secs_f64());
        }
        for state in self.families.values_mut() {
            state.spent += since.mul_f64(state.cost.clamp(0.0, 1e6));
        }
    }

    /// The dearest family gets less.
    fn shed(&mut self, share: f64, now: Duration) -> Option<Change> {
        let on = self.families.iter().filter(|(_, state)| state.watch != Watch::Off);
        let (family, state) = on.max_by(|(_, a), (_, b)| a.cost.total_cmp(&b.cost))?;
        let (family, shift) = (*family, state.watch.shift());
        let rest = self.total - state.cost;
        // Halved until it fits; what sampling cannot do is known when it has been tried.
        let enough = (shift + 1..=MOST_SHIFT)
            .find(|next| rest + state.cost / f64::from(1 << (next - shift)) <= share * AIM)
            .unwrap_or(MOST_SHIFT);
        let to = if shift >= MOST_SHIFT { Watch::Off } else { Watch::sampled(enough) };
        Some(self.change(family, to, now))
    }

    /// What was given up comes back, one step at a time, if all of it stays below `aim`.
    fn give_back(&mut self, aim: f64, now: Duration) -> Option<Change> {
        let unlimited = aim.is_infinite();
        if self.total > aim {
            return None;
        }
        // What was taken off is missed most.
        let off = self.families.iter().find(|(_, state)| {
            state.watch == Watch::Off && (unlimited || now.saturating_sub(state.changed) >= state.retry)
        });
        if let Some((family, _)) = off {
            return Some(self.change(*family, Watch::sampled(MOST_SHIFT), now));
        }
        if !unlimited && now.saturating_sub(self.changed) < CALM {
            return None;
        }
        let finer = |state: &FamilyState| match state.watch {
            // As fine as the rest of the budget allows, by what it costs now.
            // Part of the cost is that of calls that are passed over, which does not grow: where the sum says no, one step
            // is tried now and then.
            Watch::Sampled { shift } => (0..shift)
                .find(|next| self.total - state.cost + state.cost * f64::from(1 << (shift - next)) <= aim)
                .or((now.saturating_sub(state.changed) >= state.retry).then_some(shift - 1))
                .map(Watch::sampled),
            Watch::Full | Watch::Off => None,
        };
        let sampled = self.families.iter().filter_map(|(family, state)| Some((*family, finer(state)?, state.cost)));
        let (family, to, _) = sampled.min_by(|(.., a), (.., b)| a.total_cmp(b))?;
        Some(self.change(family, to, now))
    }

    fn change(&mut self, family: Family, to: Watch, now: Duration) -> Change {
        let total = self.total;
        let state = self.families.entry(family).or_default();
        let change = Change { family, from: state.watch, to, total, cost: state.cost };
        let is_less = to == Watch::Off || change.from != Watch::Off && to.shift() > change.from.shift();
        if is_less && state.on_trial {
            state.retry = (state.retry * 2).min(RETRY.1);
        }
        state.on_trial = !is_less;
        if to == Watch::Full {
            state.restored += 1;
        } else if is_less {
            state.shed += 1;
        }
        state.watch = to;
        state.changed = now;
        self.changed = now;
        change
    }

    /// The change could not be made: the family is looked at like this.
    pub fn failed(&mut self, family: Family, actual: Watch) {
        if let Some(state) = self.families.get_mut(&family) {
            state.watch = actual;
        }
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
