//! Probabilities as whole numbers, whose sums have no order, and top-p: which tokens are the most probable that together
//! reach a probability. It sorts only the few on the border.

/// Width of a bucket of logarithms of probabilities, below the highest: an eighth.
const BUCKETS_EACH: f32 = 8.0;

/// Tokens less probable than `e^-29` of the best weigh nothing, and share the last bucket.
const BUCKETS: usize = 29 * BUCKETS_EACH as usize + 1;

/// The distribution of logits at a temperature, as multiples of the most probable token's probability.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// The highest logit.
    most: f32,
    sharpness: f32,
}

impl Scale {
    /// With `most` as the highest logit.
    pub(super) fn new(most: f32, temperature: f64) -> Self {
        Self { most, sharpness: sharpness(temperature) }
    }

    /// Logarithm of a token's probability, below the highest.
    fn below(self, logit: f32) -> f32 {
        (logit - self.most) * self.sharpness
    }

    /// Its probability, in multiples of 2^-40 of the most probable one's.
    pub(super) fn weight(self, logit: f32) -> u64 {
        whole(exp(self.below(logit)))
    }
}

/// One over the temperature. Finite, so that the best token keeps its zero however small the temperature is.
pub(super) fn sharpness(temperature: f64) -> f32 {
    ((1.0 / temperature) as f32).min(f32::MAX)
}

/// `v * 2^40` for `v` from 0 to 1, rounded to nearest, ties to even.
fn whole(v: f32) -> u64 {
    /// A sum with this has the whole number in its low bits, rounded as sums are.
    const ROUND: f64 = 4096.0;
    (f64::from(v) + ROUND).to_bits() - ROUND.to_bits()
}

/// How much `part` of a sum of weights is, rounded up.
pub(super) fn share(part: f32, total: u64) -> u64 {
    (part_of(part) * total as f64).ceil() as u64
}

/// A part of all probability as sums of weights are multiplied by it: from 0 to 2, and 0 where it is no number.
pub fn part_of(part: f32) -> f64 {
    f64::from(part.clamp(0.0, 2.0).max(0.0))
}

/// Indices, in no order, of the shortest prefix of tokens, most probable first and lower indices first among equals,
/// whose share of all weight reaches `p`; at least one.
pub(super) fn nucleus(logits: &[f32], scale: Scale, p: f32) -> Vec<usize> {
    let mut sums = [0u64; BUCKETS];
    for chunk in logits.chunks(16) {
        // In a loop of its own, which the compiler turns into vectors.
        let mut raised = [0.0; 16];
        for (raised, &logit) in raised.iter_mut().zip(chunk) {
            *raised = exp(scale.below(logit));
        }
        for (&raised, &logit) in raised.iter().zip(chunk) {
            sums[bucket(scale.below(logit))] += whole(raised);
        }
    }
    let goal = share(p, sums.iter().sum());
    let (mut sum, mut border) = (0, 0);
    while border + 1 < BUCKETS && sum + sums[border] < goal {
        sum += sums[border];
        border += 1;
    }
    let (mut chosen, mut last) = (Vec::new(), Vec::new());
    for (i, &logit) in logits.iter().enumerate() {
        match bucket(scale.below(logit)) {
            b if b < border => chosen.push(i),
            b if b == border => last.push(i),
            _ => (),
        }
    }
    last.sort_unstable_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    for i in last {
        if sum >= goal && !chosen.is_empty() {
            break;
        }
        sum += scale.weight(logits[i]);
        chosen.push(i);
    }
    chosen
}

fn bucket(below: f32) -> usize {
    // The conversion saturates: minus infinity lands in the last bucket.
    ((-below * BUCKETS_EACH) as usize).min(BUCKETS - 1)
}

/// `e^x` for `x <= 0`, within 2 units in the last place; 0 below -80. Cephes' polynomial without branches, fused
/// operations or library calls, so that it is fast and the same on every machine.
pub(super) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -80.0;
    /// Adding this to a small number leaves it rounded in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > LEAST { x } else { LEAST };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * (355.0 / 512.0)) + n * 2.121_944_4e-4;
    let p =
        ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1) * r;
    let p = ((p + 0.5) * r * r + r) + 1.0;
    let power = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < LEAST { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The weight of the most probable token.
    const WHOLE: u64 = 1 << 40;

    proptest! {
        #[test]
        fn exp_is_accurate(x in -80f32..0.0) {
            let exact = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) - exact).abs() <= exact * 2.4e-7);
        }

        /// Against a plain sort of everything. A border within rounding of the goal may fall on either side.
        #[test]
        fn it_is_the_sorted_prefix(
            logits in prop::collection::vec(-30f32..3.0, 1..1500), p in 0.01f32..0.99, temperature in 0.3f64..3.0,
        ) {
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weight = |i: usize| (f64::from(logits[i] - most) / temperature).exp();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            let total: f64 = order.iter().map(|&i| weight(i)).sum();
            let mut got = nucleus(&logits, Scale::new(most, temperature), p);
            let mass = |n: usize| order[..n].iter().map(|&i| weight(i)).sum::<f64>() / total;
            prop_assert!(mass(got.len()) > f64::from(p) - 1e-6, "too few");
            prop_assert!(got.len() == 1 || mass(got.len() - 1) < f64::from(p) + 1e-6, "too many");
            let mut prefix = order[..got.len()].to_vec();
            prefix.sort_unstable();
            got.sort_unstable();
            prop_assert_eq!(got, prefix);
        }
    }

    #[test]
    fn the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        let scale = Scale::new(3.0, 1e-45);
        assert_eq!(nucleus(&[f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY], scale, 0.5), [1]);
        assert_eq!(nucleus(&[1.0, 1.0, 1.0, 1.0], Scale::new(1.0, 1.0), 0.5), [0, 1]);
    }

    #[test]
    fn weights_are_rounded_to_even() {
        let unit = 2f32.powi(-40);
        let rounded = [0.5, 1.5, 2.5, 2.75, 3.0].map(|v| whole(v * unit));
        assert_eq!(rounded, [0, 2, 2, 3, 3]);
        assert_eq!((whole(0.0), whole(1.0), whole(0.5 + 2f32.powi(-24))), (0, WHOLE, WHOLE / 2 + (1 << 16)));
        assert_eq!(Scale::new(0.0, 1.0).weight(-28.5), 0, "it has no bucket of its own");
        // A million tokens of the same weight do not overflow.
        assert_eq!(share(1.0, WHOLE << 20), WHOLE << 20);
        assert_eq!(share(0.5, 3), 2, "half of three is reached by two");
        assert_eq!([-1.0, 0.0, f32::NAN].map(|p| share(p, WHOLE)), [0; 3]);
    }
}
