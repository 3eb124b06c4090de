//! Rows of activations as integer products see them: [`crate::quant::quantize_activations`] in the layout of the kernels.

use bytemuck::{Pod, Zeroable};

use super::disjoint::Disjoint;
use super::lanes::{Kernel, LANES, Lanes, Level};
use super::pool::Pool;
use crate::ops::ACTIVATION_BLOCK;
use crate::quant::{ACTIVATION_MAX, ACTIVATION_MAX_FINE, PLANE_STEP, activation_scale};

/// Integers of 8 bits that an activation is rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Planes {
    /// [`crate::quant::quantize_activations`].
    One = 1,
    /// [`crate::quant::quantize_activations_fine`]: a block of the high ones, then one of the low ones.
    Two = 2,
}

/// 32 quantized activations.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Activations {
    /// Four signed bytes in each, the earliest column in the lowest.
    pub(super) q: [i32; ACTIVATION_BLOCK / 4],
    /// What one unit is worth.
    pub(super) scale: f32,
    /// `scale * (sums[0] + sums[1])`, for formats with a minimum.
    pub(super) scaled_sum: f32,
    /// Sums of the integers of each half, for formats with an offset or with scales of 16.
    pub(super) sums: [i32; 2],
}

/// Quantizes rows that lie one after the other.
pub(super) fn quantize(pool: &mut Pool, level: Level, x: &[f32], planes: Planes, out: &mut [Activations]) {
    const BLOCKS_EACH: usize = 512;
    let to = Disjoint::new(out);
    pool.run(x.len().div_ceil(BLOCKS_EACH * ACTIVATION_BLOCK), &|chunk| {
        let first = chunk * BLOCKS_EACH;
        let x = &x[first * ACTIVATION_BLOCK..x.len().min((first + BLOCKS_EACH) * ACTIVATION_BLOCK)];
        // SAFETY: every chunk of the job has its own range.
        let out = unsafe { to.range(first * planes as usize..(first + x.len() / ACTIVATION_BLOCK) * planes as usize) };
        level.run(Quantize { x, planes, out });
    });
}

struct Quantize<'a> {
    x: &'a [f32],
    planes: Planes,
    out: &'a mut [Activations],
}

impl Kernel for Quantize<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (blocks, _) = self.x.as_chunks::<ACTIVATION_BLOCK>();
        match self.planes {
            Planes::One => blocks.iter().zip(self.out).for_each(|(x, out)| quantize_block(l, x, out)),
            Planes::Two => {
                let pairs = self.out.as_chunks_mut().0;
                blocks.iter().zip(pairs).for_each(|(x, out)| quantize_block_fine(l, x, out));
            }
        }
    }
}

#[inline(always)]
fn quantize_block<L: Lanes>(l: L, x: &[f32; ACTIVATION_BLOCK], out: &mut Activations) {
    let (halves, scale) = scaled(l, x, ACTIVATION_MAX);
    *out = Activations { scale, scaled_sum: scale, ..Activations::zeroed() };
    if scale > 0.0 {
        let inverse = l.splat(1.0 / scale);
        put(l, [l.to_i32(l.mul(halves[0], inverse)), l.to_i32(l.mul(halves[1], inverse))], out);
    }
}

#[inline(always)]
fn quantize_block_fine<L: Lanes>(l: L, x: &[f32; ACTIVATION_BLOCK], [high, low]: &mut [Activations; 2]) {
    let (halves, scale) = scaled(l, x, ACTIVATION_MAX_FINE);
    *low = Activations { scale, scaled_sum: scale, ..Activations::zeroed() };
    *high = Activations { scale: PLANE_STEP * scale, ..*low };
    if scale > 0.0 {
        let inverse = l.splat(1.0 / scale);
        let (mut upper, mut lower) = ([l.isplat(0); 2], [l.isplat(0); 2]);
        for half in 0..2 {
            let unit = l.round(l.mul(halves[half], inverse));
            upper[half] = l.to_i32(l.mul(unit, l.splat(1.0 / PLANE_STEP)));
            lower[half] = l.to_i32(l.fma(l.to_f32(upper[half]), l.splat(-PLANE_STEP), unit));
        }
        put(l, upper, high);
        put(l, lower, low);
    }
}

/// The two halves of a block, and its scale where its largest magnitude is `most` units.
#[inline(always)]
fn scaled<L: Lanes>(l: L, x: &[f32; ACTIVATION_BLOCK], most: f32) -> ([L::F; 2], f32) {
    let (halves, _) = x.as_chunks::<LANES>();
    let [a, b] = [l.load(&halves[0]), l.load(&halves[1])];
    let amax = l.ilargest(l.max_magnitude(l.max_magnitude(l.isplat(0), a), b));
    ([a, b], activation_scale(amax as u32, most))
}

/// Fills in a block's integers and their sums.
#[inline(always)]
fn put<L: Lanes>(l: L, [a, b]: [L::I; 2], out: &mut Activations) {
    let (bytes, _) = bytemuck::cast_mut::<_, [i8; ACTIVATION_BLOCK]>(&mut out.q).as_chunks_mut::<LANES>();
    l.store_i8(a, &mut bytes[0]);
    l.store_i8(b, &mut bytes[1]);
    out.sums = [l.isum(a), l.isum(b)];
    out.scaled_sum = out.scale * (out.sums[0] + out.sums[1]) as f32;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cpu::Isa;
    use crate::quant::{quantize_activations, quantize_activations_fine};
    use proptest::prelude::*;

    proptest! {
        /// The kernel's activations are the public function's.
        #[test]
        fn activations_agree(mut x in prop::collection::vec(-50f32..50.0, 64), exponent in -45i32..38, bad in 0usize..200) {
            x.iter_mut().take(32).for_each(|v| *v *= 10f32.powi(exponent));
            if let Some(v) = x.get_mut(bad) {
                *v = f32::NAN;
            }
            let (mut q, mut scales) = ([0i8; 64], [0f32; 2]);
            quantize_activations(&x, &mut q, &mut scales);
            let (mut high, mut low, mut fine_scales) = ([0i8; 64], [0i8; 64], [0f32; 2]);
            quantize_activations_fine(&x, &mut high, &mut low, &mut fine_scales);
            for level in Isa::ALL.into_iter().filter_map(Level::new) {
                let mut out = vec![Activations::zeroed(); 2];
                quantize(&mut Pool::new(1), level, &x, Planes::One, &mut out);
                for (b, out) in out.iter().enumerate() {
                    prop_assert_eq!(out.scale.to_bits(), scales[b].to_bits());
                    let q = &q[b * 32..][..32];
                    prop_assert_eq!(bytemuck::cast_slice::<_, i8>(&out.q), q);
                    let sum = |q: &[i8]| q.iter().map(|&v| i32::from(v)).sum::<i32>();
                    prop_assert_eq!(out.sums, [sum(&q[..16]), sum(&q[16..])]);
                }
                let mut out = vec![Activations::zeroed(); 4];
                quantize(&mut Pool::new(1), level, &x, Planes::Two, &mut out);
                for (b, pair) in out.chunks(2).enumerate() {
                    let scales = [128.0 * fine_scales[b], fine_scales[b]];
                    prop_assert_eq!([pair[0].scale, pair[1].scale].map(f32::to_bits), scales.map(f32::to_bits));
                    prop_assert_eq!(bytemuck::cast_slice::<_, i8>(&pair[0].q), &high[b * 32..][..32]);
                    prop_assert_eq!(bytemuck::cast_slice::<_, i8>(&pair[1].q), &low[b * 32..][..32]);
                }
            }
        }
    }
}
