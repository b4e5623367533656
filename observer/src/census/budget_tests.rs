//! The governor against made-up costs.

use super::*;

const STEP: Duration = Duration::from_secs(1);

/// A host: what each family costs at every call, CPU seconds a second, and what its probes cost when no call is looked at.
struct World {
    governor: Governor,
    now: Duration,
    full: BTreeMap<Family, f64>,
    skipped: f64,
    changes: Vec<(Duration, Change)>,
    spent: f64,
}

impl World {
    fn new(budget: &str) -> Self {
        let governor = Governor::new(budget.parse().expect("a budget"), FAMILIES, Duration::ZERO);
        Self { governor, now: Duration::ZERO, full: BTreeMap::new(), skipped: 0.0, changes: Vec::new(), spent: 0.0 }
    }

    fn cost(&self, family: Family) -> f64 {
        let full = self.full.get(&family).copied().unwrap_or(0.0);
        match self.governor.families()[&family].watch {
            Watch::Off => 0.0,
            watch => full * (self.skipped + (1.0 - self.skipped) / watch.one_in() as f64),
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += STEP;
            let costs: Vec<(Family, f64)> = FAMILIES.into_iter().map(|family| (family, self.cost(family))).collect();
            self.spent += costs.iter().map(|(_, cost)| cost).sum::<f64>() * STEP.as_secs_f64();
            let window = Duration::from_millis(50);
            let ns = |cost: f64| (cost * window.as_nanos() as f64) as u64;
            let reading = Reading {
                window,
                families: costs.into_iter().map(|(family, cost)| (family, ns(cost))).collect(),
                rest_ns: 0,
            };
            if let Some(change) = self.governor.measured(&reading, self.now) {
                self.changes.push((self.now, change));
                self.governor.changed(self.now);
            }
        }
    }

    fn watch(&self, family: Family) -> Watch {
        self.governor.families()[&family].watch
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_quiet_host_keeps_everything() {
    let mut world = World::new("1%");
    world.full = BTreeMap::from([(Family::Poll, 0.004), (Family::Futex, 0.005)]);
    world.run(10 * MINUTE);
    assert_eq!(world.changes, []);
}

#[test]
fn a_short_burst_is_let_pass() {
    let mut world = World::new("1%");
    world.full.insert(Family::Futex, 0.03);
    world.run(2 * STEP);
    world.full.clear();
    world.run(MINUTE);
    assert_eq!(world.changes, []);
}

#[test]
fn one_reading_alone_takes_nothing_off() {
    let mut world = World::new("1%");
    world.full.insert(Family::Futex, 0.05);
    world.run(3 * STEP);
    assert_eq!(world.changes.len(), 1, "in debt");
    // An interrupt in the middle of a run, now and then.
    for _ in 0..5 {
        world.full = BTreeMap::from([(Family::Poll, 0.2)]);
        world.run(STEP);
        world.full.clear();
        world.run(STEP);
    }
    assert_eq!(world.watch(Family::Poll), Watch::Full);
}

#[test]
fn the_dearest_is_sampled_as_much_as_it_takes() {
    let mut world = World::new("1%");
    world.full = BTreeMap::from([(Family::Poll, 0.002), (Family::Futex, 0.03)]);
    world.run(12 * STEP);
    assert_eq!(world.watch(Family::Futex), Watch::Sampled { shift: 3 });
    assert_eq!((world.watch(Family::Poll), world.changes.len()), (Watch::Full, 1));
}

#[test]
fn a_million_calls_a_second_are_taken_off_and_the_average_holds() {
    let mut world = World::new("1%");
    // 300 ns a call; a call that is not looked at costs a fifth.
    world.full = BTreeMap::from([(Family::Poll, 0.001), (Family::Futex, 0.3)]);
    world.skipped = 0.2;
    // Two readings for each of two steps: sampled, then off.
    world.run(4 * STEP);
    assert_eq!((world.watch(Family::Futex), world.watch(Family::Poll)), (Watch::Off, Watch::Full));
    let (before, from) = (world.spent, world.now);
    world.run(60 * MINUTE);
    let average = (world.spent - before) / (world.now - from).as_secs_f64();
    assert!(average < 0.01, "{average}");
    // It was tried again, less and less often.
    let tries: Vec<Duration> =
        world.changes.iter().filter(|(_, change)| change.from == Watch::Off).map(|(at, _)| *at).collect();
    assert!((3..=20).contains(&tries.len()), "{tries:?}");
    assert!(tries.windows(2).all(|two| two[1] - two[0] >= RETRY.0), "{tries:?}");
    assert!(tries.windows(2).next_back().is_some_and(|two| two[1] - two[0] >= RETRY.1), "{tries:?}");
    assert_eq!(world.governor.families()[&Family::Futex].restored, 0);
}

#[test]
fn what_was_taken_off_comes_back_when_the_load_ends() {
    let mut world = World::new("1%");
    world.full.insert(Family::Futex, 0.3);
    world.skipped = 0.2;
    world.run(MINUTE);
    world.full.insert(Family::Futex, 0.0001);
    world.run(3 * MINUTE);
    assert_eq!(world.watch(Family::Futex), Watch::Full);
    let state = &world.governor.families()[&Family::Futex];
    assert!(state.restored == 1 && state.shed >= 2, "{state:?}");
    assert!(state.reduced > MINUTE && !world.governor.is_shedding());
    // And its next failure does not wait for ever, since this one is long ago.
    world.run(2 * MINUTE);
    assert_eq!(world.governor.families()[&Family::Futex].retry, RETRY.0);
}

#[test]
fn a_cost_that_sampling_does_not_lower_holds_nothing_back() {
    // Calls of processes that are not looked at cost the same however few calls are.
    let mut world = World::new("1%");
    world.full.insert(Family::Futex, 0.3);
    world.skipped = 0.2;
    world.run(MINUTE);
    assert_eq!(world.watch(Family::Futex), Watch::Off);
    world.full.insert(Family::Futex, 0.006);
    world.skipped = 1.0;
    world.run(5 * MINUTE);
    assert_eq!(world.watch(Family::Futex), Watch::Full, "{:?}", world.changes);
}

#[test]
fn nothing_flaps_between_the_aim_and_the_budget() {
    let mut world = World::new("1%");
    world.full.insert(Family::Poll, 0.011);
    world.run(60 * MINUTE);
    // What is a little too much is tried again, less and less often.
    let times: Vec<Duration> = world.changes.iter().map(|(at, _)| *at).collect();
    assert!(times.len() < 24, "{times:?}");
    assert!(times.windows(2).any(|two| two[1] - two[0] >= RETRY.1), "{times:?}");
    world.full.insert(Family::Poll, 0.0085);
    world.run(20 * MINUTE);
    let changes = world.changes.len();
    assert_eq!(world.watch(Family::Poll), Watch::Full);
    world.run(60 * MINUTE);
    assert!(world.changes.len() == changes, "{:?}", world.changes);
}

#[test]
fn the_next_dearest_follows_where_one_is_not_enough() {
    let mut world = World::new("0.1%");
    world.skipped = 1.0;
    world.full = BTreeMap::from([(Family::Poll, 0.2), (Family::Futex, 0.3), (Family::Connect, 0.0001)]);
    world.run(10 * STEP);
    assert_eq!(world.watch(Family::Futex), Watch::Off);
    assert_eq!(world.watch(Family::Poll), Watch::Off);
    assert_eq!(world.watch(Family::Connect), Watch::Full);
}

#[test]
fn without_a_limit_nothing_is_given_up_and_what_was_comes_back() {
    let mut world = World::new("off");
    world.full.insert(Family::Futex, 0.9);
    world.run(MINUTE);
    assert_eq!(world.changes, []);
    world.governor.set_budget("1%".parse().expect("a budget"));
    world.run(5 * STEP);
    assert!(world.governor.is_shedding());
    world.governor.set_budget(CpuBudget::OFF);
    world.run(5 * STEP);
    assert!(!world.governor.is_shedding());
}

#[test]
fn a_family_that_could_not_be_attached_again_stays_off() {
    let mut world = World::new("1%");
    world.full.insert(Family::Futex, 0.5);
    world.skipped = 1.0;
    world.run(5 * STEP);
    assert_eq!(world.watch(Family::Futex), Watch::Off);
    world.full.clear();
    world.run(3 * MINUTE);
    world.governor.failed(Family::Futex, Watch::Off);
    assert!(world.governor.is_shedding());
}

#[test]
fn budgets_as_they_are_typed() {
    for (text, share) in [("1%", 0.01), ("0.5%", 0.005), ("100%", 1.0), ("2.25 %", 0.0225)] {
        let budget: CpuBudget = text.parse().expect(text);
        assert!((budget.share().expect(text) - share).abs() < 1e-12);
        assert_eq!(budget.to_string().parse(), Ok(budget));
    }
    assert_eq!(("off".parse(), CpuBudget::OFF.to_string()), (Ok(CpuBudget::OFF), "off".to_owned()));
    assert_eq!(CpuBudget::default().to_string(), "1%");
    for (text, why) in [
        ("1", "such as 1%"),
        ("", "such as 1%"),
        ("NaN%", "between"),
        ("0%", "--probes none"),
        ("101%", "between"),
        ("-1%", "between"),
    ] {
        let error = text.parse::<CpuBudget>().expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    }
}
