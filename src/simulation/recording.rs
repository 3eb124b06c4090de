//! What pictures of a run are drawn from, in bounded room however long it is: sums over virtual time in a fixed number of
//! buckets, and how often each value came. Nothing here is read while a run goes on, so it decides nothing.

/// Tenants whose service is recorded, those that ask for most first.
pub(super) const TENANTS_RECORDED: usize = 8;
/// Buckets of time.
const BUCKETS: usize = 240;
/// How wide a bucket is at first.
const WIDTH_US: u64 = 10_000;
/// Values of a distribution are told apart by a twentieth.
const BINS_PER_DECADE: usize = 48;
/// From a tenth of a millisecond on.
const LOWEST_MS: f64 = 0.1;
/// Up to about eleven days.
const DECADES: usize = 10;

/// Everything about one run that is drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recording {
    /// Weighted tokens that each of the busiest tenants got.
    pub(super) served: Vec<(u64, OverTime)>,
    /// Microseconds that miners computed.
    pub(super) busy: OverTime,
    pub(super) miners: usize,
    pub(super) ttft: Distribution,
    pub(super) itl: Distribution,
    pub(super) recovery: Distribution,
}

/// Sums over time. Where a run gets too long for its buckets, two become one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OverTime {
    width_us: u64,
    sums: Vec<u64>,
}

impl Default for OverTime {
    fn default() -> Self {
        Self { width_us: WIDTH_US, sums: vec![0; BUCKETS] }
    }
}

impl OverTime {
    pub(super) fn add(&mut self, at_us: u64, amount: u64) {
        self.reach(at_us);
        self.sums[(at_us / self.width_us) as usize] += amount;
    }

    /// Adds each microsecond of a span where it lies.
    pub(super) fn span(&mut self, mut from_us: u64, until_us: u64) {
        self.reach(until_us);
        while from_us < until_us {
            let at = from_us / self.width_us;
            let to_us = until_us.min((at + 1) * self.width_us);
            self.sums[at as usize] += to_us - from_us;
            from_us = to_us;
        }
    }

    fn reach(&mut self, at_us: u64) {
        while at_us / self.width_us >= BUCKETS as u64 {
            self.width_us *= 2;
            for at in 0..BUCKETS {
                let pair = self.sums.get(2 * at..2 * at + 2);
                self.sums[at] = pair.map_or(0, |pair| pair.iter().sum());
            }
        }
    }

    /// Seconds that a bucket lasts.
    pub(super) fn width_s(&self) -> f64 {
        self.width_us as f64 / 1e6
    }

    /// What was added until so many seconds, bucket by bucket.
    pub(super) fn sums(&self, until_s: f64) -> &[u64] {
        &self.sums[..((until_s / self.width_s()).ceil() as usize).clamp(1, BUCKETS)]
    }
}

/// How often values came, in bins that are as wide as their values are large.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Distribution {
    counts: Vec<u64>,
}

impl Default for Distribution {
    fn default() -> Self {
        Self { counts: vec![0; DECADES * BINS_PER_DECADE] }
    }
}

impl Distribution {
    pub(super) fn of(values_ms: impl Iterator<Item = f64>) -> Self {
        let mut distribution = Self::default();
        for ms in values_ms {
            let bin = (ms / LOWEST_MS).max(1.0).log10() * BINS_PER_DECADE as f64;
            let last = distribution.counts.len() - 1;
            distribution.counts[(bin as usize).min(last)] += 1;
        }
        distribution
    }

    /// Takes another one in.
    pub(super) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, others)| *own += others);
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Values in milliseconds, and the share that is below each: from none to all.
    pub(super) fn shares(&self) -> Vec<(f64, f64)> {
        let all = self.count();
        let edge = |bin: usize| LOWEST_MS * 10f64.powf(bin as f64 / BINS_PER_DECADE as f64);
        let (mut below, mut shares) = (0, Vec::new());
        for (bin, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            // Flat until here, where nothing lies between.
            shares.push((edge(bin), below as f64 / all as f64));
            below += count;
            shares.push((edge(bin + 1), below as f64 / all as f64));
        }
        shares.dedup();
        shares
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_distribution_says_how_many_are_below() {
        let distribution = Distribution::of([5.0, 50.0, 50.0, 500.0].into_iter());
        let below = |ms: f64| {
            let shares = distribution.shares();
            shares.iter().rev().find(|(value, _)| *value <= ms).map_or(0.0, |(_, share)| *share)
        };
        assert_eq!([1.0, 6.0, 40.0, 60.0, 400.0, 600.0].map(below), [0.0, 0.25, 0.25, 0.75, 0.75, 1.0]);
        let odd = Distribution::of([0.0, -1.0, f64::MAX, f64::INFINITY].into_iter());
        assert_eq!((odd.count(), Distribution::default().shares()), (4, Vec::new()));
    }

    #[test]
    fn distributions_of_many_runs_are_one() {
        let mut first = Distribution::of([1.0, 20.0].into_iter());
        first.merge(&Distribution::of([300.0].into_iter()));
        assert_eq!(first, Distribution::of([300.0, 1.0, 20.0].into_iter()));
    }

    proptest! {
        /// Whatever comes, in whichever order, is as if it had been added to buckets of the last width.
        #[test]
        fn time_is_bounded_and_nothing_is_lost(
            adds in prop::collection::vec((0u64..200_000_000, 1u64..100_000, any::<bool>()), 1..40),
        ) {
            let mut over_time = OverTime::default();
            for (at, amount, is_span) in &adds {
                if *is_span { over_time.span(*at, at + amount) } else { over_time.add(*at, *amount) }
            }
            let mut sums = vec![0; BUCKETS];
            for (at, amount, is_span) in adds {
                match is_span {
                    true => (at..at + amount).for_each(|us| sums[(us / over_time.width_us) as usize] += 1),
                    false => sums[(at / over_time.width_us) as usize] += amount,
                }
            }
            prop_assert_eq!(over_time.sums(1e9), &sums[..]);
            prop_assert_eq!(over_time.sums.len(), BUCKETS);
        }
    }
}
