//! How fast a replica is, learned from its steps: time as a linear function of work, refit with every step, and how far
//! first tokens were from what was foreseen.

/// Weight of what is known already when one more step is seen: the last few hundred steps count.
const FORGETTING: f64 = 0.995;
/// What is believed of a model's first replica before it has said anything: milliseconds of an empty step, of a row, and of
/// a thousand tokens of context.
const PRIOR: [f64; 3] = [10.0, 0.5, 0.1];
/// How little that is believed: the variance of each coefficient.
const PRIOR_VARIANCE: [f64; 3] = [100.0, 1.0, 1.0];
/// The sum of variances at which forgetting stops: equal steps teach nothing, and must not make the next odd one count
/// for everything.
const VARIANCE_MAX: f64 = 1_000.0;
/// How far equal steps are apart, as a share of what they take.
const STEP_NOISE: f64 = 0.2;
/// No step is faster, in milliseconds.
const STEP_MIN_MS: f64 = 0.01;
/// Rows of a step that computes prompts, where a rate is wanted and not a time.
const PREFILL_ROWS: f64 = 256.0;

/// Duration of a step: `a + b·rows + c·context`, by recursive least squares with exponential forgetting (Haykin, Adaptive
/// Filter Theory, ch. 10).
#[derive(Clone, Debug)]
pub(super) struct StepTime {
    theta: [f64; 3],
    covariance: [[f64; 3]; 3],
}

impl Default for StepTime {
    fn default() -> Self {
        let mut covariance = [[0.0; 3]; 3];
        for (at, variance) in PRIOR_VARIANCE.into_iter().enumerate() {
            covariance[at][at] = variance;
        }
        Self { theta: PRIOR, covariance }
    }
}

fn features(rows: f64, context: f64) -> [f64; 3] {
    [1.0, rows, context / 1_000.0]
}

fn dot(a: &[f64; 3], b: &[f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

impl StepTime {
    /// Of a newcomer to replicas of which this is known together: as they are, until it shows otherwise.
    pub(super) fn newcomer(&self) -> Self {
        Self { theta: self.theta, ..Self::default() }
    }

    /// A step of so many rows, over sequences of so many tokens together, took so long.
    pub(super) fn observe(&mut self, rows: u32, context: u64, took_ms: f64) {
        let known = self.step_ms(rows, context);
        // Steps vary by a share of what they take: a long one says less of the fixed part.
        let scale = 1.0 / (STEP_NOISE * known);
        let x = features(f64::from(rows), context as f64).map(|x| x * scale);
        let px = self.covariance.map(|row| dot(&row, &x));
        let trace: f64 = (0..3).map(|at| self.covariance[at][at]).sum();
        let forgetting = if trace < VARIANCE_MAX { FORGETTING } else { 1.0 };
        let gain = px.map(|p| p / (forgetting + dot(&x, &px)));
        // A step that somebody's laptop slept through says nothing of the next.
        let error = took_ms.clamp(known / 8.0, known * 8.0) * scale - dot(&self.theta, &x);
        self.theta = std::array::from_fn(|at| self.theta[at] + gain[at] * error);
        // One half, and its mirror: forgetting multiplies what rounding makes uneven with every step, until after some
        // thousands it is all there is (Verhaegen 1989).
        for (row, column) in [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)] {
            let entry = (self.covariance[row][column] - gain[row] * px[column]) / forgetting;
            (self.covariance[row][column], self.covariance[column][row]) = (entry, entry);
        }
    }

    /// How long such a step takes, in milliseconds.
    pub(super) fn step_ms(&self, rows: u32, context: u64) -> f64 {
        dot(&self.theta, &features(f64::from(rows), context as f64)).max(STEP_MIN_MS)
    }

    /// How much longer a step gets by one row, in milliseconds.
    pub(super) fn row_ms(&self) -> f64 {
        self.theta[1].max(0.0)
    }

    /// How long a token of a prompt takes where they are many, in milliseconds.
    pub(super) fn prefill_ms(&self) -> f64 {
        self.row_ms() + (self.theta[0].max(STEP_MIN_MS) / PREFILL_ROWS)
    }
}

/// A quantile of a stream of positive numbers: moves up by each that is above and down by each that is below, in such a
/// ratio that it rests where it should (Robbins and Monro 1951, multiplicative).
#[derive(Clone, Copy, Debug)]
pub(super) struct Quantile {
    share: f64,
    value: f64,
}

/// How far one number moves a [`Quantile`].
const QUANTILE_STEP: f64 = 0.05;
/// No ratio is taken to be larger or smaller than this.
const QUANTILE_RANGE: (f64, f64) = (0.05, 50.0);

impl Quantile {
    /// The number below which `share` of all lie, `value` until there are any.
    pub(super) fn new(share: f64, value: f64) -> Self {
        Self { share, value }
    }

    pub(super) fn observe(&mut self, number: f64) {
        self.value *= match number > self.value {
            true => 1.0 + QUANTILE_STEP * self.share,
            false => 1.0 - QUANTILE_STEP * (1.0 - self.share),
        };
        self.value = self.value.clamp(QUANTILE_RANGE.0, QUANTILE_RANGE.1);
    }

    pub(super) fn value(&self) -> f64 {
        self.value
    }
}

/// A mean in which the newest counts for `share`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mean {
    share: f64,
    value: f64,
}

impl Mean {
    pub(super) fn new(share: f64, value: f64) -> Self {
        Self { share, value }
    }

    pub(super) fn observe(&mut self, number: f64) {
        self.value += self.share * (number - self.value);
    }

    pub(super) fn value(&self) -> f64 {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random: Weyl's sequence.
    fn spread(n: u32) -> f64 {
        (f64::from(n) * 0.618_033_988_749_895).fract()
    }

    #[test]
    fn steps_teach_their_cost() {
        let mut time = StepTime::default();
        let truth = |rows: u32, context: u64| 4.0 + 0.9 * f64::from(rows) + 0.002 * context as f64;
        for n in 0..2_000 {
            let rows = 1 + (spread(n) * 64.0) as u32 + if n % 10 == 0 { 256 } else { 0 };
            let context = (spread(n + 7) * 30_000.0) as u64;
            time.observe(rows, context, truth(rows, context) * (0.9 + 0.2 * spread(n + 3)));
        }
        for (rows, context) in [(16, 5_000), (64, 20_000), (256, 15_000)] {
            let (known, real) = (time.step_ms(rows, context), truth(rows, context));
            assert!((known / real - 1.0).abs() < 0.15, "{rows} rows, {context} tokens: {known} for {real}");
        }
        assert!((time.row_ms() - 0.9).abs() < 0.1);
    }

    #[test]
    fn equal_steps_and_one_outlier_leave_it_sane() {
        let mut time = StepTime::default();
        (0..100_000).for_each(|_| time.observe(1, 500, 20.0));
        assert!((time.step_ms(1, 500) - 20.0).abs() < 0.1);
        time.observe(1, 500, 60_000.0);
        assert!(time.step_ms(1, 500) < 40.0, "{}", time.step_ms(1, 500));
        time.observe(512, 90_000, 1e9);
        assert!(time.step_ms(512, 90_000).is_finite());
    }

    /// Mostly steps of a few sequences, and now and then one with a prompt, as a miner computes them in a quarter of an hour.
    #[test]
    fn many_steps_do_not_wear_it_out() {
        let mut time = StepTime::default();
        let truth = |rows: u32, context: u64| 7.0 + 0.04 * f64::from(rows) + 0.000_06 * context as f64;
        for n in 0..100_000 {
            let rows = 1 + (spread(n / 50) * 20.0) as u32 + if n % 23 == 0 { 300 } else { 0 };
            let context = 500 * u64::from(rows % 300) + n as u64 % 97;
            time.observe(rows, context, truth(rows, context) * (0.95 + 0.13 * spread(n + 3)));
            let (known, real) = (time.step_ms(rows, context), truth(rows, context));
            assert!(n < 1_000 || (known / real - 1.0).abs() < 0.2, "step {n}: {known} for {real}");
            assert!((0..3).all(|at| time.covariance[at][at] > 0.0), "step {n}: {:?}", time.covariance);
        }
    }

    #[test]
    fn a_quantile_rests_where_it_should() {
        let mut p95 = Quantile::new(0.95, 1.5);
        let mut above = 0;
        for n in 0..20_000 {
            above += u32::from(n > 2_000 && spread(n) * 2.0 > p95.value());
            p95.observe(spread(n) * 2.0);
        }
        let share = f64::from(above) / 18_000.0;
        assert!((0.02..0.08).contains(&share), "{share}");
    }
}
