//! How many goroutines stood at one place, over time: few numbers for a long time.

/// One count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// How many were there.
    pub count: u64,
    /// How many had come since the process is watched.
    pub arrived: u64,
    /// How many had gone.
    pub left: u64,
    /// Of those who were there in two readings behind each other, all together, it was known whether they had run in
    /// between.
    pub stayed: u64,
    /// How many of those had run.
    pub stirred: u64,
}

/// Kept at most.
const MOST: usize = 96;

/// A rise must go on in so many parts of its time.
const PARTS: usize = 4;

/// Counts over time, the oldest first: close together lately, far apart long ago.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<Sample>);

/// What must hold for a rise to be more than noise.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// It must have gone on for so long, nanoseconds.
    pub window_ns: u64,
    /// So many more than at its beginning, at least.
    pub more: u64,
    /// It must not have begun before, `CLOCK_MONOTONIC` nanoseconds: a process that starts fills its pools.
    pub not_before_ns: u64,
}

/// A rise that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// At its beginning.
    pub first: Sample,
    /// Now.
    pub last: Sample,
}

impl Growth {
    /// How long it has gone on, nanoseconds.
    pub fn window_ns(&self) -> u64 {
        self.last.at_ns.saturating_sub(self.first.at_ns)
    }

    /// More than at its beginning.
    pub fn more(&self) -> u64 {
        self.last.count.saturating_sub(self.first.count)
    }

    /// Came since.
    pub fn arrived(&self) -> u64 {
        self.last.arrived.saturating_sub(self.first.arrived)
    }

    /// Went since.
    pub fn left(&self) -> u64 {
        self.last.left.saturating_sub(self.first.left)
    }

    /// Whether those who stay are at work: at one reading and the next at least a tenth has run in between. So it is with a
    /// pool and with sessions; whoever has leaked does not run again, unless a clock makes it.
    pub fn is_lively(&self) -> bool {
        const SHARE: u64 = 10;
        let stayed = self.last.stayed.saturating_sub(self.first.stayed);
        stayed > 0 && self.last.stirred.saturating_sub(self.first.stirred) * SHARE >= stayed
    }

    /// More per minute.
    pub fn per_minute(&self) -> f64 {
        self.more() as f64 * 60e9 / self.window_ns().max(1) as f64
    }
}

impl Samples {
    /// Takes the next one.
    pub fn push(&mut self, sample: Sample) {
        if self.0.len() >= MOST {
            // The gaps grow with their age, so that any length of time up to now keeps its parts.
            let gap = |at: &usize| {
                let near = self.0.get(at - 1).zip(self.0.get(*at)).zip(self.0.get(at + 1));
                near.map_or(f64::MAX, |((before, this), behind)| {
                    let age = sample.at_ns.saturating_sub(this.at_ns).max(1);
                    behind.at_ns.saturating_sub(before.at_ns) as f64 / age as f64
                })
            };
            let narrowest = (1..MOST - 1).min_by(|one, other| gap(one).total_cmp(&gap(other)));
            self.0.remove(narrowest.unwrap_or(1));
        }
        self.0.push(sample);
    }

    /// All of them, the oldest first.
    pub fn all(&self) -> &[Sample] {
        &self.0
    }

    /// The count at a time, and at the last reading.
    pub fn since(&self, ns: u64) -> Option<Growth> {
        let behind = self.0.partition_point(|sample| sample.at_ns <= ns);
        let first = self.0.get(behind.saturating_sub(1))?;
        Some(Growth { first: *first, last: *self.0.last()? })
    }

    /// The longest rise that goes on now: nearly nobody left, and some came in each of its four quarters. `None` if there is
    /// none that is long and high enough.
    pub fn growth(&self, demand: Demand) -> Option<Growth> {
        let last = *self.0.last()?;
        let before = self.0.iter().take_while(|first| last.at_ns.saturating_sub(first.at_ns) >= demand.window_ns);
        let before = before.filter(|first| first.at_ns >= demand.not_before_ns);
        before.map(|first| Growth { first: *first, last }).find(|growth| {
            let enough = demand.more.max(growth.first.count / 50);
            growth.more() >= enough && growth.left() * 20 <= growth.arrived() && self.is_steady(growth)
        })
    }

    /// Whether a rise has begun that is too short yet, or was seen too rarely, and when it would be long enough.
    pub fn ripens(&self, demand: Demand) -> Option<u64> {
        let last = self.0.last()?;
        let late = self.0.partition_point(|first| first.at_ns < demand.not_before_ns);
        // Nobody has left since this one.
        let rising = (late..self.0.len()).find(|at| {
            self.0
                .get(*at)
                .map(|first| Growth { first: *first, last: *last })
                .is_some_and(|growth| growth.more() > 0 && growth.left() * 20 <= growth.arrived())
        })?;
        let at = self.0.get(rising)?.at_ns.saturating_add(demand.window_ns);
        (at > last.at_ns || self.0.len() - rising < PARTS + 1).then_some(at)
    }

    /// Whether it rose in each of four parts of about the same length, or of three where it was not counted often, and did
    /// not come nearly to a stop in the last.
    fn is_steady(&self, growth: &Growth) -> bool {
        let (start, length) = (growth.first.at_ns, growth.window_ns());
        let at = |part: usize| {
            let until = start + length / PARTS as u64 * part as u64;
            match part {
                PARTS => self.0.len().saturating_sub(1),
                _ => self.0.partition_point(|sample| sample.at_ns <= until).saturating_sub(1),
            }
        };
        let mut bounds: Vec<usize> = (0..=PARTS).map(at).collect();
        bounds.dedup();
        let bounds: Vec<&Sample> = bounds.into_iter().filter_map(|at| self.0.get(at)).collect();
        let parts: Vec<Growth> = bounds
            .windows(2)
            .filter_map(|pair| Some(Growth { first: **pair.first()?, last: **pair.last()? }))
            .collect();
        // A pool that fills slows down before it stops.
        parts.len() + 1 >= PARTS
            && parts.iter().all(|part| part.more() > 0)
            && parts.last().is_some_and(|last| last.per_minute() * 4.0 >= growth.per_minute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const DEMAND: Demand = Demand { window_ns: 10 * S, more: 8, not_before_ns: 0 };

    fn growth(counts: impl IntoIterator<Item = u64>) -> Option<Growth> {
        let mut samples = Samples::default();
        let (mut arrived, mut left, mut before) = (0, 0, None);
        for (at, count) in (100..).zip(counts) {
            let last = before.replace(count).unwrap_or(count);
            arrived += count.saturating_sub(last);
            left += last.saturating_sub(count);
            samples.push(Sample { at_ns: at * S, count, arrived, left, ..Sample::default() });
        }
        samples.growth(DEMAND)
    }

    #[test]
    fn a_rise_that_goes_on() {
        let found = growth((0..=10).map(|n| n * 3));
        assert_eq!(found.map(|growth| (growth.more(), growth.per_minute() as u64)), Some((30, 180)));
        // Long, and still known to the minute it began after a thousand counts.
        let found = growth((0..1000).map(|n| 5 + n * 2));
        assert!(found.is_some_and(|growth| growth.more() == 999 * 2));
        // After a long rest.
        assert!(growth(std::iter::repeat_n(4, 50).chain((0..20).map(|n| n * 5))).is_some());
    }

    #[test]
    fn rises_that_are_none() {
        assert_eq!(growth(std::iter::repeat_n(1000, 50)), None, "at rest");
        assert_eq!(growth((0..5).map(|n| n * 100)), None, "too short");
        assert_eq!(growth((0..=10).map(|n| n / 2)), None, "too few");
        assert_eq!(growth((0..12).map(|n| n * 9).chain(std::iter::repeat_n(100, 8))), None, "a pool that is full");
        assert_eq!(growth((0..20).chain((0..20).rev())), None, "a peak");
        assert_eq!(growth((0..60).map(|n| (n % 7) * 10 + n)), None, "load that comes and goes");
        assert_eq!(growth([0].into_iter().chain(std::iter::repeat_n(50, 20))), None, "one step");
    }
}
