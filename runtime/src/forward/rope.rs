//! The frequencies of a model's rotations, from its description. Pure arithmetic in f64.

use std::f64::consts::TAU;

use cuckoo_kernels::ops::{Rope, RopePairs};
use cuckoo_models::arch::{RopePairing, RopeScaling, RopeSpec};

/// The rotation that `spec` describes, for `positions` positions. `factors` are the divisors that its tensors hold, if it
/// names any.
pub(super) fn rope(spec: &RopeSpec, factors: Option<&[f32]>, positions: usize) -> Rope {
    let plain: Vec<f64> =
        (0..spec.dims / 2).map(|i| libm::pow(f64::from(spec.base), -2.0 * i as f64 / spec.dims as f64)).collect();
    let (mut frequencies, magnitude) = match &spec.scaling {
        RopeScaling::None => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.iter().map(|f| f / f64::from(*factor)).collect(), 1.0),
        RopeScaling::Yarn { attention_factor, .. } => (yarn(spec, &plain), *attention_factor),
        RopeScaling::Llama3 { factor, low, high, original_context } => {
            let scale = |f: &f64| llama3(*f, [*factor, *low, *high].map(f64::from), *original_context as f64);
            (plain.iter().map(scale).collect(), 1.0)
        }
        RopeScaling::LongRope { attention_factor, .. } => (plain, *attention_factor),
    };
    if let Some(factors) = factors {
        frequencies.iter_mut().zip(factors).for_each(|(f, factor)| *f /= f64::from(*factor));
    }
    let pairs = match spec.pairs {
        RopePairing::Adjacent => RopePairs::Adjacent,
        RopePairing::Halves => RopePairs::Halves,
    };
    Rope { frequencies, magnitude, pairs, positions }
}

/// YaRN (arXiv 2309.00071, section 3.2): pairs that turn often over the original context stay, those that turn seldom are
/// slowed down by the factor, those between are mixed.
fn yarn(spec: &RopeSpec, plain: &[f64]) -> Vec<f64> {
    let RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } = spec.scaling else {
        return plain.to_vec();
    };
    let dims = spec.dims as f64;
    // The dimension whose pair turns so often over the original context.
    let dimension = |turns: f32| {
        dims * libm::log(original_context as f64 / (f64::from(turns) * TAU)) / (2.0 * libm::log(f64::from(spec.base)))
    };
    let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(dims - 1.0));
    let mix = |(i, f): (usize, &f64)| {
        let slowed = ((i as f64 - low) / (high - low).max(1e-3)).clamp(0.0, 1.0);
        f / f64::from(factor) * slowed + f * (1.0 - slowed)
    };
    plain.iter().enumerate().map(mix).collect()
}

/// The rule of llama 3.1: long wavelengths are stretched, short ones stay, those between are mixed.
fn llama3(frequency: f64, [factor, low, high]: [f64; 3], original_context: f64) -> f64 {
    let turns = original_context * frequency / TAU;
    if turns > high {
        frequency
    } else if turns < low {
        frequency / factor
    } else {
        let smooth = (turns - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(scaling: RopeScaling) -> RopeSpec {
        RopeSpec { base: 10_000.0, dims: 64, pairs: RopePairing::Halves, scaling, factors: None }
    }

    #[test]
    fn plain_linear_and_divided() {
        let plain = rope(&spec(RopeScaling::None), None, 8);
        assert!((plain.frequencies[0], plain.magnitude, plain.positions) == (1.0, 1.0, 8));
        assert!((plain.frequencies[16] - 0.01).abs() < 1e-15);
        let linear = rope(&spec(RopeScaling::Linear { factor: 4.0 }), None, 8);
        assert!(linear.frequencies.iter().zip(&plain.frequencies).all(|(a, b)| *a == b / 4.0));
        let divided = rope(&spec(RopeScaling::None), Some(&[2.0; 32]), 8);
        assert!(divided.frequencies.iter().zip(&plain.frequencies).all(|(a, b)| *a == b / 2.0));
    }

    /// Ends of the range, and one value worked out with the formulas of the papers by hand.
    #[test]
    fn stretched_contexts() {
        let plain = rope(&spec(RopeScaling::None), None, 8).frequencies;
        let yarn = spec(RopeScaling::Yarn {
            factor: 4.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.138_629_4,
            truncate: true,
        });
        let yarn = rope(&yarn, None, 8);
        assert_eq!(yarn.magnitude, 1.138_629_4);
        assert_eq!((yarn.frequencies[0], yarn.frequencies[31]), (plain[0], plain[31] / 4.0));
        // dimension(32) = 64 ln(4096 / 201.06) / (2 ln 10000) = 10.47 and dimension(1) = 22.51, so 10 and 23.
        let slowed = (16.0 - 10.0) / 13.0;
        assert!((yarn.frequencies[16] - (0.0025 * slowed + 0.01 * (1.0 - slowed))).abs() < 1e-12);
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192 };
        let llama = rope(&spec(scaling), None, 8).frequencies;
        assert_eq!((llama[0], llama[31]), (plain[0], plain[31] / 8.0));
    }
}
