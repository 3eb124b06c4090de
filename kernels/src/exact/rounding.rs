//! Products, sums and the exponential of the contract. Knows no operation of a model.

use std::ops::AddAssign;

use crate::ops::{ACTIVATION_BLOCK, Activation, SEGMENT_BLOCKS};
use crate::quant::{
    IntBlock, IntFormat, PLANE_STEP, Quant, dequantize_row, int_blocks, quantize_activations, quantize_activations_fine,
};

/// One row of activations, as it is and as integer products see it.
pub(super) struct Activations {
    values: Vec<f32>,
    /// Integers with a scale a block; two of them make up a value of 15 bits.
    planes: Vec<(Vec<i8>, Vec<f32>)>,
}

impl Activations {
    pub(super) fn new(row: &[f32]) -> Self {
        let (mut q, mut scales) = (vec![0; row.len()], vec![0.0; row.len() / ACTIVATION_BLOCK]);
        quantize_activations(row, &mut q, &mut scales);
        Self { values: row.to_vec(), planes: vec![(q, scales)] }
    }

    pub(super) fn fine(row: &[f32]) -> Self {
        let (mut high, mut low) = (vec![0; row.len()], vec![0; row.len()]);
        let mut scales = vec![0.0; row.len() / ACTIVATION_BLOCK];
        quantize_activations_fine(row, &mut high, &mut low, &mut scales);
        let upper = scales.iter().map(|scale| PLANE_STEP * scale).collect();
        Self { values: row.to_vec(), planes: vec![(high, upper), (low, scales)] }
    }
}

/// One row of weights times every row of activations.
pub(super) fn row_product(quant: Quant, bytes: &[u8], x: &[Activations], out: &mut [f32]) {
    if quant.is_float() {
        let mut weights = vec![0.0; bytes.len() / quant.block_bytes() * quant.block()];
        dequantize_row(quant, bytes, &mut weights);
        for (out, x) in out.iter_mut().zip(x) {
            *out = float_product(&weights, &x.values);
        }
        return;
    }
    let Some(format) = quant.integers() else { return };
    let mut blocks = vec![IntBlock::default(); bytes.len() / quant.block_bytes() * quant.block() / ACTIVATION_BLOCK];
    int_blocks(quant, bytes, &mut blocks);
    for (out, x) in out.iter_mut().zip(x) {
        *out = integer_product(format, &blocks, x);
    }
}

/// Four sums over columns 0, 1, 2, 3 modulo 4, then those.
pub(super) fn float_product(weights: &[f32], x: &[f32]) -> f32 {
    let mut sums = [0.0f32; 4];
    weights.iter().zip(x).enumerate().for_each(|(i, (w, x))| sums[i % 4] = w.mul_add(*x, sums[i % 4]));
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

/// Segments in order; in each, blocks in order; for each, the planes of activations.
fn integer_product(format: IntFormat, blocks: &[IntBlock], x: &Activations) -> f32 {
    let mut total = 0.0f32;
    for (segment, blocks) in blocks.chunks(SEGMENT_BLOCKS).enumerate() {
        let mut sum = 0.0f32;
        for (i, block) in blocks.iter().enumerate() {
            let at = segment * SEGMENT_BLOCKS + i;
            for (q, scales) in &x.planes {
                let q = &q[at * ACTIVATION_BLOCK..][..ACTIVATION_BLOCK];
                sum = add_block(format, block, (q, scales[at]), sum);
            }
        }
        total += sum;
    }
    total
}

/// Integer products scaled, one or, with scales of 16, two; then as many minimums.
fn add_block(format: IntFormat, block: &IntBlock, (q, scale): (&[i8], f32), mut sum: f32) -> f32 {
    let groups = if format.halves { 2 } else { 1 };
    let width = ACTIVATION_BLOCK / groups;
    for ((group, w), x) in block.q.chunks(width).enumerate().zip(q.chunks(width)) {
        let dot: i32 = w.iter().zip(x).map(|(w, x)| (i32::from(*w) - format.offset) * i32::from(*x)).sum();
        sum = (dot as f32).mul_add(block.scale[group] * scale, sum);
    }
    for (group, x) in q.chunks(width).enumerate().filter(|_| format.minimums) {
        let scaled_sum = scale * x.iter().map(|x| i32::from(*x)).sum::<i32>() as f32;
        sum = block.minimum[group].mul_add(scaled_sum, sum);
    }
    sum
}

/// Adds values up: those half the length apart, and so on, as the shuffles of a warp do.
pub(crate) fn fold<T: Copy + AddAssign>(v: &mut [T]) -> T {
    let mut half = v.len() / 2;
    while half > 0 {
        for i in 0..half {
            let other = v[i + half];
            v[i] += other;
        }
        half /= 2;
    }
    v[0]
}

/// `1 / sqrt(mean(x^2) + epsilon)`.
pub(super) fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum_of_squares(x) / x.len() as f32 + epsilon).sqrt()
}

/// From sums of the columns equal modulo 32.
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    let mut squares = [0.0f32; 32];
    x.iter().enumerate().for_each(|(i, v)| squares[i % 32] = v.mul_add(*v, squares[i % 32]));
    fold(&mut squares)
}

/// `c * tanh(v / c)`, if there is a cap, by `tanh(y) = 1 - 2 / (e^(2y) + 1)`.
pub(super) fn capped(v: f32, softcap: Option<f32>) -> f32 {
    let Some(cap) = softcap else { return v };
    cap * (1.0 + -2.0 / (exp(v / cap * 2.0) + 1.0))
}

/// An activation.
pub(super) fn activated(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + exp(-x)),
        Activation::GeluTanh => x / (1.0 + exp(0.044_715f32.mul_add(x * x * x, x) * -1.595_769)),
        Activation::ClampedSwiglu { alpha, limit } => {
            let x = if limit < x { limit } else { x };
            x / (1.0 + exp(x * -alpha))
        }
        Activation::GeluErf => {
            let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
            let t = 1.0 / 0.327_591_1f32.mul_add(z, 1.0);
            let terms = [-1.453_152, 1.421_413_8, -0.284_496_72, 0.254_829_6];
            let p = terms.into_iter().fold(1.061_405_4f32, |p, c| p.mul_add(t, c));
            let tail = p * t * exp(-(z * z)) * -0.5;
            x.abs().mul_add(tail, if 0.0 > x { 0.0 } else { x })
        }
    }
}

/// `e^x` as `expf` of Cephes computes it, with fused operations; 0 below -87.3, at most `e^88`.
pub(crate) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.3;
    if x < LEAST {
        return 0.0;
    }
    let clamped = if x > 88.0 { 88.0 } else { x };
    let n = (clamped * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-355.0 / 512.0, clamped));
    let terms = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let p = terms.into_iter().fold(1.987_569_1e-4f32, |p, c| p.mul_add(r, c));
    // A NaN has no exponent and stays what it is.
    let power = f32::from_bits((n as i32).wrapping_add(127).wrapping_shl(23) as u32);
    (p.mul_add(r * r, r) + 1.0) * power
}
