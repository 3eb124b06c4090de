//! How many rows the next step may have, so that it takes about as long as those who decode in it are meant to wait.
//!
//! Pure: what past steps took comes in, a number of rows comes out. A step is taken to cost `a + b * rows`; both are
//! estimated from recent steps, older ones weighing less and less, so that a busier machine, a longer context or a
//! lower clock is followed within some ten steps. Results do not depend on where prompts are cut, so a wrong estimate
//! costs time and nothing else.

use std::time::Duration;

/// Weight of the newest step once there are enough of them.
const NEWEST_WEIGHT: f64 = 0.1;
/// Below this spread (a standard deviation of eight rows) steps are too alike to tell `a` from `b`.
const ROWS_VARIANCE_MIN: f64 = 64.0;
/// A step that took more than so many times what was expected, or wanted, counts as this: other programs' doing.
const OUTLIER: f64 = 4.0;
/// The budget stays where it is while what is wanted lies within this part of it, so that it does not swing.
const DEAD_BAND: f64 = 1.0 / 8.0;
/// The budget grows by at most this part of itself a step; it shrinks at once.
const GROWTH: f64 = 1.0 / 4.0;

/// The budget of steps of one device.
#[derive(Clone, Debug)]
pub struct StepBudget {
    rows_min: u32,
    rows_max: u32,
    target_s: f64,
    rows: u32,
    steps: u32,
    mean_rows: f64,
    mean_s: f64,
    variance: f64,
    covariance: f64,
    /// Seconds a row; `None` until steps of different sizes were seen.
    slope: Option<f64>,
}

impl StepBudget {
    /// Between `rows_min`, which every sequence that decodes needs, and `rows_max`, for steps of about `target`.
    pub fn new(rows_min: u32, rows_max: u32, target: Duration) -> Self {
        assert!(0 < rows_min && rows_min <= rows_max, "a step must hold a row of each sequence");
        Self {
            rows_min,
            rows_max,
            target_s: target.as_secs_f64(),
            // Nothing is known: one step that is too long tells more than many that are too short.
            rows: rows_max,
            steps: 0,
            mean_rows: 0.0,
            mean_s: 0.0,
            variance: 0.0,
            covariance: 0.0,
            slope: None,
        }
    }

    /// Rows that the next step may have.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// What one more row in a step costs, in tokens: the time that it takes, in which a step of `decodes` rows draws so
    /// many. `None` before there was anything to tell it from.
    pub fn row_price(&self, decodes: u32) -> Option<f64> {
        Some(self.tokens_in(self.slope.is_some().then(|| self.slope())?, decodes))
    }

    /// How many tokens are drawn in so many seconds by steps of `decodes` rows.
    pub(super) fn tokens_in(&self, seconds: f64, decodes: u32) -> f64 {
        let rows = f64::from(decodes);
        // Nothing takes no time but in tests, where a row is free.
        seconds * rows / self.expected_s(rows).max(f64::MIN_POSITIVE)
    }

    /// Seconds of a step beside its rows, and of each row: nothing as long as nothing is known.
    pub(super) fn costs_s(&self) -> (f64, f64) {
        (self.expected_s(0.0), self.slope())
    }

    /// How long a step of `rows` rows takes, as far as is known.
    pub fn expected(&self, rows: u32) -> Option<Duration> {
        (self.steps > 0).then(|| Duration::try_from_secs_f64(self.expected_s(f64::from(rows))).unwrap_or(Duration::MAX))
    }

    /// A step of `rows` rows took so long.
    pub fn observe(&mut self, rows: u32, took: Duration) {
        self.estimate(f64::from(rows), took.as_secs_f64());
        let (wanted, now) = (self.wanted(), f64::from(self.rows));
        if (wanted - now).abs() <= now * DEAD_BAND && wanted < f64::from(self.rows_max) {
            return;
        }
        let next = wanted.min(now + (now * GROWTH).max(1.0));
        self.rows = (next as u32).clamp(self.rows_min, self.rows_max);
    }

    fn estimate(&mut self, rows: f64, took_s: f64) {
        let took_s = match self.steps {
            0 => took_s,
            _ => took_s.min(OUTLIER * self.expected_s(rows).max(self.target_s)),
        };
        self.steps = self.steps.saturating_add(1);
        let weight = NEWEST_WEIGHT.max(1.0 / f64::from(self.steps));
        let (rows_off, s_off) = (rows - self.mean_rows, took_s - self.mean_s);
        self.mean_rows += weight * rows_off;
        self.mean_s += weight * s_off;
        self.variance = (1.0 - weight) * (self.variance + weight * rows_off * rows_off);
        self.covariance = (1.0 - weight) * (self.covariance + weight * rows_off * s_off);
        if self.variance >= ROWS_VARIANCE_MIN {
            self.slope = Some(self.covariance / self.variance);
        }
    }

    /// Seconds a row: never negative, and never so much that a step of no rows would save time.
    fn slope(&self) -> f64 {
        let whole = self.mean_s / self.mean_rows.max(1.0);
        self.slope.unwrap_or(whole).clamp(0.0, whole)
    }

    fn expected_s(&self, rows: f64) -> f64 {
        (self.mean_s + self.slope() * (rows - self.mean_rows)).max(0.0)
    }

    /// Rows that would take as long as they may.
    fn wanted(&self) -> f64 {
        let spare_s = self.target_s - self.expected_s(0.0);
        let (least, most) = (f64::from(self.rows_min), f64::from(self.rows_max));
        match spare_s <= 0.0 {
            true => least,
            // A slope of zero divides to infinity, which is as many rows as there may be.
            false => (spare_s / self.slope()).clamp(least, most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(60);

    /// A device whose step costs `fixed + each * rows`, give or take `noise`.
    struct Plant {
        fixed_s: f64,
        each_s: f64,
        noise: f64,
        state: u64,
    }

    impl Plant {
        fn took(&mut self, rows: u32) -> Duration {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let noise = (self.state >> 40) as f64 / (1u64 << 23) as f64 - 1.0;
            Duration::from_secs_f64((self.fixed_s + self.each_s * f64::from(rows)) * (1.0 + self.noise * noise))
        }

        /// Runs `steps` of which every second one is full and the others have `decodes` rows; the budgets.
        fn run(&mut self, budget: &mut StepBudget, steps: u32, decodes: u32) -> Vec<u32> {
            let mut seen = Vec::new();
            for step in 0..steps {
                let rows = if step % 2 == 0 { budget.rows() } else { decodes };
                let took = self.took(rows);
                budget.observe(rows, took);
                seen.push(budget.rows());
            }
            seen
        }
    }

    fn plant(fixed_ms: f64, each_ms: f64, noise: f64) -> Plant {
        Plant { fixed_s: fixed_ms / 1e3, each_s: each_ms / 1e3, noise, state: 1 }
    }

    #[test]
    fn it_finds_the_target_and_stays() {
        for (fixed, each) in [(10.0, 0.5), (0.0, 0.3), (40.0, 1.0), (5.0, 2.0)] {
            let mut budget = StepBudget::new(8, 512, TARGET);
            let seen = plant(fixed, each, 0.1).run(&mut budget, 400, 8);
            let ideal = (60.0 - fixed) / each;
            let late = &seen[100..];
            for rows in late {
                assert!((f64::from(*rows) / ideal - 1.0).abs() < 0.3, "{rows} rows, {ideal} would be right");
            }
            let changes = late.windows(2).filter(|w| w[0] != w[1]).count();
            assert!(changes <= 12, "{changes} changes in {} steps", late.len());
        }
    }

    #[test]
    fn what_steps_take_is_foreseen() {
        let mut budget = StepBudget::new(8, 512, TARGET);
        assert_eq!(budget.expected(8), None);
        plant(10.0, 0.5, 0.0).run(&mut budget, 200, 8);
        for (rows, ms) in [(8, 14.0), (100, 60.0), (512, 266.0)] {
            let expected = budget.expected(rows).expect("steps were seen").as_secs_f64() * 1e3;
            assert!((expected / ms - 1.0).abs() < 0.02, "{rows} rows take {ms} ms, not {expected}");
        }
    }

    #[test]
    fn without_noise_it_does_not_move() {
        let mut budget = StepBudget::new(8, 512, TARGET);
        let seen = plant(10.0, 0.5, 0.0).run(&mut budget, 200, 8);
        assert!(seen[60..].iter().all(|r| *r == seen[60]), "{seen:?}");
    }

    #[test]
    fn bounds_hold_whatever_is_measured() {
        let mut budget = StepBudget::new(8, 64, TARGET);
        plant(500.0, 50.0, 0.5).run(&mut budget, 50, 8);
        assert_eq!(budget.rows(), 8, "those who decode always fit");
        let mut budget = StepBudget::new(8, 64, TARGET);
        plant(0.0, 0.0, 0.0).run(&mut budget, 50, 8);
        assert_eq!(budget.rows(), 64, "nothing that takes no time is cut down");
        for target in [Duration::ZERO, Duration::MAX] {
            let mut budget = StepBudget::new(1, 64, target);
            for took in [Duration::ZERO, Duration::from_secs(1), Duration::from_nanos(1), Duration::MAX] {
                budget.observe(1 + took.subsec_nanos() % 64, took);
                assert!((1..=64).contains(&budget.rows()));
            }
        }
    }

    #[test]
    fn it_follows_a_machine_that_changes() {
        let mut budget = StepBudget::new(8, 512, TARGET);
        plant(10.0, 0.25, 0.1).run(&mut budget, 200, 8);
        assert!((150..=260).contains(&budget.rows()), "{}", budget.rows());
        plant(20.0, 1.0, 0.1).run(&mut budget, 100, 8);
        assert!((30..=52).contains(&budget.rows()), "{}", budget.rows());
        plant(10.0, 0.25, 0.1).run(&mut budget, 200, 8);
        assert!((150..=260).contains(&budget.rows()), "{}", budget.rows());
    }

    #[test]
    fn one_disturbed_step_and_hours_of_decoding_unlearn_little() {
        let mut budget = StepBudget::new(8, 512, TARGET);
        let mut plant = plant(10.0, 0.5, 0.05);
        plant.run(&mut budget, 200, 8);
        let settled = f64::from(budget.rows());
        budget.observe(8, Duration::from_secs(30));
        assert!(f64::from(budget.rows()) > settled * 0.4, "{} of {settled}", budget.rows());
        (0..10_000).for_each(|_| budget.observe(8, plant.took(8)));
        assert!((f64::from(budget.rows()) / settled - 1.0).abs() < 0.3, "{} of {settled}", budget.rows());
    }
}
