//! Products, sums and the exponential of the contract. Knows no operation of a model.

use crate::ops::{ACTIVATION_BLOCK, SEGMENT_BLOCKS};
use crate::quant::{Quant, dequantize_row, quantize_activations};

/// One row of activations, as it is and as integer products see it.
pub(super) struct Activations {
    values: Vec<f32>,
    q: Vec<i8>,
    scales: Vec<f32>,
}

impl Activations {
    pub(super) fn new(row: &[f32]) -> Self {
        let (mut q, mut scales) = (vec![0; row.len()], vec![0.0; row.len() / ACTIVATION_BLOCK]);
        quantize_activations(row, &mut q, &mut scales);
        Self { values: row.to_vec(), q, scales }
    }
}

/// 32 columns of a row of weights: `value = scale * q + minimum`, every part exact.
struct Block {
    q: [i32; ACTIVATION_BLOCK],
    scale: f32,
    minimum: Option<f32>,
}

impl Block {
    fn read(quant: Quant, bytes: &[u8]) -> Self {
        let half = |at: usize| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        let nibble = |i: usize, from: usize| i32::from(bytes[from + i % 16] >> (i / 16 * 4) & 15);
        match quant {
            Quant::Q4_0 => Self { q: std::array::from_fn(|i| nibble(i, 2) - 8), scale: half(0), minimum: None },
            Quant::Q4_1 => Self { q: std::array::from_fn(|i| nibble(i, 4)), scale: half(0), minimum: Some(half(2)) },
            Quant::Q8_0 => {
                Self { q: std::array::from_fn(|i| i32::from(bytes[2 + i] as i8)), scale: half(0), minimum: None }
            }
            Quant::F32 | Quant::F16 | Quant::BF16 => unreachable!("floating-point weights are not integers"),
        }
    }
}

/// One row of weights times every row of activations.
pub(super) fn row_product(quant: Quant, bytes: &[u8], x: &[Activations], out: &mut [f32]) {
    if quant.is_float() {
        let mut weights = vec![0.0; bytes.len() / quant.block_bytes()];
        dequantize_row(quant, bytes, &mut weights);
        for (out, x) in out.iter_mut().zip(x) {
            *out = float_product(&weights, &x.values);
        }
        return;
    }
    let blocks: Vec<Block> = bytes.chunks_exact(quant.block_bytes()).map(|b| Block::read(quant, b)).collect();
    for (out, x) in out.iter_mut().zip(x) {
        *out = integer_product(&blocks, x);
    }
}

/// Four sums over columns 0, 1, 2, 3 modulo 4, then those.
fn float_product(weights: &[f32], x: &[f32]) -> f32 {
    let mut sums = [0.0f32; 4];
    weights.iter().zip(x).enumerate().for_each(|(i, (w, x))| sums[i % 4] = w.mul_add(*x, sums[i % 4]));
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

/// Segments in order; in each, blocks in order: the integer product scaled, then the minimum.
fn integer_product(blocks: &[Block], x: &Activations) -> f32 {
    let mut total = 0.0f32;
    for (segment, blocks) in blocks.chunks(SEGMENT_BLOCKS).enumerate() {
        let mut sum = 0.0f32;
        for (i, block) in blocks.iter().enumerate() {
            let at = segment * SEGMENT_BLOCKS + i;
            let (q, scale) = (&x.q[at * ACTIVATION_BLOCK..][..ACTIVATION_BLOCK], x.scales[at]);
            let dot: i32 = block.q.iter().zip(q).map(|(w, x)| w * i32::from(*x)).sum();
            sum = (dot as f32).mul_add(block.scale * scale, sum);
            if let Some(minimum) = block.minimum {
                let scaled_sum = scale * q.iter().map(|x| i32::from(*x)).sum::<i32>() as f32;
                sum = minimum.mul_add(scaled_sum, sum);
            }
        }
        total += sum;
    }
    total
}

/// Adds values up: those half the length apart, and so on, as the shuffles of a warp do.
pub(super) fn fold(v: &mut [f32]) -> f32 {
    let mut half = v.len() / 2;
    while half > 0 {
        for i in 0..half {
            v[i] += v[i + half];
        }
        half /= 2;
    }
    v[0]
}

/// `e^x` as `expf` of Cephes computes it, with fused operations; 0 below -87.3, at most `e^88`.
pub(super) fn exp(x: f32) -> f32 {
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
