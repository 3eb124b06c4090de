//! Formats whose blocks are 256 columns: parts of 32 with small integer scales, under one or two `f16` for all.

use bytemuck::{Pod, Zeroable};

use super::super::activations::Activations;
use super::super::lanes::{LANES, Lanes};
use super::planes::{self, Group, Nibbles, Pairs};
use super::products::{add_half_minimum, add_minimum, add_scaled, dots, dots_signed, start, start_half};
use super::{BLOCK, IntegerBlock, WeightBlock};
use crate::quant::{IQ4_VALUES, IntBlock, Quant, int_blocks, small_scales, super_scales};

/// Parts of a superblock.
const PARTS: usize = 8;

/// Flips the sign of an `f16`: minimums are subtracted.
const SIGN: u16 = 0x8000;

fn half(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

/// The parts of a row's superblock.
fn parts(quant: Quant, bytes: &[u8]) -> [IntBlock; PARTS] {
    let mut parts = [IntBlock::default(); PARTS];
    int_blocks(quant, bytes, &mut parts);
    parts
}

/// [`Quant::Q4_K`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Q4KBlock {
    q: [Nibbles; PARTS],
    /// `[part][row]`.
    scale: [[i8; LANES]; PARTS],
    minimum: [[u8; LANES]; PARTS],
    d: [u16; LANES],
    /// With the sign flipped.
    dmin: [u16; LANES],
}

impl WeightBlock for Q4KBlock {
    const QUANT: Quant = Quant::Q4_K;
    const BLOCKS: usize = PARTS;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        let [d, dmin] = super_scales(Self::QUANT, bytes);
        (self.d[lane], self.dmin[lane]) = (d, dmin ^ SIGN);
        for (j, part) in parts(Self::QUANT, bytes).iter().enumerate() {
            let small = small_scales(Self::QUANT, bytes, j);
            self.scale[j][lane] = small.scale[0];
            self.minimum[j][lane] = small.minimum[0];
            planes::put_nibbles(&mut self.q[j], lane, &part.q);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        for (j, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let q = std::array::from_fn(|col| planes::nibble(&self.q[j], lane, col) as i8);
            let scale = [half(self.d[lane]) * f32::from(self.scale[j][lane]); 2];
            let minimum = [half(self.dmin[lane]) * f32::from(self.minimum[j][lane]); 2];
            IntBlock { q, scale, minimum }.values(Self::QUANT, out);
        }
    }
}

impl IntegerBlock for Q4KBlock {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, j: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut products = start(l, 0, &x);
        dots::<L, 8, T>(l, &planes::nibbles(l, &self.q[j]), 0..8, &x, &mut products);
        let scale = l.mul(l.load_f16(&self.d), l.load_i8(&self.scale[j]));
        add_scaled(l, products, scale, &x, sums);
        let minimum = l.mul(l.load_f16(&self.dmin), l.load_u8(&self.minimum[j]));
        add_minimum(l, minimum, &x, sums);
    }
}

/// [`Quant::Q5_K`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Q5KBlock {
    q: [Nibbles; PARTS],
    /// The fifth bits.
    h: [Group; PARTS],
    /// `[part][row]`.
    scale: [[i8; LANES]; PARTS],
    minimum: [[u8; LANES]; PARTS],
    d: [u16; LANES],
    /// With the sign flipped.
    dmin: [u16; LANES],
}

impl WeightBlock for Q5KBlock {
    const QUANT: Quant = Quant::Q5_K;
    const BLOCKS: usize = PARTS;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        let [d, dmin] = super_scales(Self::QUANT, bytes);
        (self.d[lane], self.dmin[lane]) = (d, dmin ^ SIGN);
        for (j, part) in parts(Self::QUANT, bytes).iter().enumerate() {
            let small = small_scales(Self::QUANT, bytes, j);
            self.scale[j][lane] = small.scale[0];
            self.minimum[j][lane] = small.minimum[0];
            planes::put_nibbles(&mut self.q[j], lane, &part.q);
            planes::put_bits(&mut self.h[j], lane, &part.q, 4);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        for (j, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let q = std::array::from_fn(|col| {
                (planes::nibble(&self.q[j], lane, col) | planes::bit(&self.h[j], lane, col) << 4) as i8
            });
            let scale = [half(self.d[lane]) * f32::from(self.scale[j][lane]); 2];
            let minimum = [half(self.dmin[lane]) * f32::from(self.minimum[j][lane]); 2];
            IntBlock { q, scale, minimum }.values(Self::QUANT, out);
        }
    }
}

impl IntegerBlock for Q5KBlock {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, j: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut products = start(l, 0, &x);
        let q = planes::join_bits::<L, 4>(l, planes::nibbles(l, &self.q[j]), &self.h[j]);
        dots::<L, 4, T>(l, &q, 0..8, &x, &mut products);
        let scale = l.mul(l.load_f16(&self.d), l.load_i8(&self.scale[j]));
        add_scaled(l, products, scale, &x, sums);
        let minimum = l.mul(l.load_f16(&self.dmin), l.load_u8(&self.minimum[j]));
        add_minimum(l, minimum, &x, sums);
    }
}

/// [`Quant::Q6_K`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Q6KBlock {
    q: [Nibbles; PARTS],
    /// The fifth and sixth bits.
    h: [Pairs; PARTS],
    /// `[part][half][row]`.
    scale: [[[i8; LANES]; 2]; PARTS],
    d: [u16; LANES],
}

impl WeightBlock for Q6KBlock {
    const QUANT: Quant = Quant::Q6_K;
    const BLOCKS: usize = PARTS;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = super_scales(Self::QUANT, bytes)[0];
        for (j, part) in parts(Self::QUANT, bytes).iter().enumerate() {
            let small = small_scales(Self::QUANT, bytes, j);
            for half in 0..2 {
                self.scale[j][half][lane] = small.scale[half];
            }
            planes::put_nibbles(&mut self.q[j], lane, &part.q);
            planes::put_pairs(&mut self.h[j], lane, &part.q, 4);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        for (j, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let q = std::array::from_fn(|col| {
                (planes::nibble(&self.q[j], lane, col) | planes::pair(&self.h[j], lane, col) << 4) as i8
            });
            let scale = [0, 1].map(|side| half(self.d[lane]) * f32::from(self.scale[j][side][lane]));
            let minimum = [0.0; 2];
            IntBlock { q, scale, minimum }.values(Self::QUANT, out);
        }
    }
}

impl IntegerBlock for Q6KBlock {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, j: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let q = planes::join_pairs::<L, 4>(l, planes::nibbles(l, &self.q[j]), &self.h[j]);
        // 63 * 127, twice, two times over is what 16 bits hold.
        let d = l.load_f16(&self.d);
        for half in 0..2 {
            let mut products = start_half(l, 32, half, &x);
            dots::<L, 2, T>(l, &q, 4 * half..4 * half + 4, &x, &mut products);
            add_scaled(l, products, l.mul(d, l.load_i8(&self.scale[j][half])), &x, sums);
        }
    }
}

/// [`Quant::Q3_K`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Q3KBlock {
    q: [Pairs; PARTS],
    /// The third bits.
    h: [Group; PARTS],
    /// `[part][half][row]`.
    scale: [[[i8; LANES]; 2]; PARTS],
    d: [u16; LANES],
}

impl WeightBlock for Q3KBlock {
    const QUANT: Quant = Quant::Q3_K;
    const BLOCKS: usize = PARTS;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = super_scales(Self::QUANT, bytes)[0];
        for (j, part) in parts(Self::QUANT, bytes).iter().enumerate() {
            let small = small_scales(Self::QUANT, bytes, j);
            for half in 0..2 {
                self.scale[j][half][lane] = small.scale[half];
            }
            planes::put_pairs(&mut self.q[j], lane, &part.q, 0);
            planes::put_bits(&mut self.h[j], lane, &part.q, 2);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        for (j, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let q = std::array::from_fn(|col| {
                (planes::pair(&self.q[j], lane, col) | planes::bit(&self.h[j], lane, col) << 2) as i8
            });
            let scale = [0, 1].map(|side| half(self.d[lane]) * f32::from(self.scale[j][side][lane]));
            let minimum = [0.0; 2];
            IntBlock { q, scale, minimum }.values(Self::QUANT, out);
        }
    }
}

impl IntegerBlock for Q3KBlock {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, j: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let q = planes::join_bits::<L, 2>(l, planes::pairs(l, &self.q[j]), &self.h[j]);
        let d = l.load_f16(&self.d);
        for half in 0..2 {
            let mut products = start_half(l, 4, half, &x);
            dots::<L, 4, T>(l, &q, 4 * half..4 * half + 4, &x, &mut products);
            add_scaled(l, products, l.mul(d, l.load_i8(&self.scale[j][half])), &x, sums);
        }
    }
}

/// [`Quant::Q2_K`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Q2KBlock {
    q: [Pairs; PARTS],
    /// `[part][half][row]`.
    scale: [[[i8; LANES]; 2]; PARTS],
    minimum: [[[u8; LANES]; 2]; PARTS],
    d: [u16; LANES],
    /// With the sign flipped.
    dmin: [u16; LANES],
}

impl WeightBlock for Q2KBlock {
    const QUANT: Quant = Quant::Q2_K;
    const BLOCKS: usize = PARTS;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        let [d, dmin] = super_scales(Self::QUANT, bytes);
        (self.d[lane], self.dmin[lane]) = (d, dmin ^ SIGN);
        for (j, part) in parts(Self::QUANT, bytes).iter().enumerate() {
            let small = small_scales(Self::QUANT, bytes, j);
            for half in 0..2 {
                self.scale[j][half][lane] = small.scale[half];
                self.minimum[j][half][lane] = small.minimum[half];
            }
            planes::put_pairs(&mut self.q[j], lane, &part.q, 0);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        for (j, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let q = std::array::from_fn(|col| planes::pair(&self.q[j], lane, col) as i8);
            let scale = [0, 1].map(|side| half(self.d[lane]) * f32::from(self.scale[j][side][lane]));
            let minimum = [0, 1].map(|side| half(self.dmin[lane]) * f32::from(self.minimum[j][side][lane]));
            IntBlock { q, scale, minimum }.values(Self::QUANT, out);
        }
    }
}

impl IntegerBlock for Q2KBlock {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, j: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let q = planes::pairs(l, &self.q[j]);
        let d = l.load_f16(&self.d);
        for half in 0..2 {
            let mut products = start_half(l, 0, half, &x);
            dots::<L, 4, T>(l, &q, 4 * half..4 * half + 4, &x, &mut products);
            add_scaled(l, products, l.mul(d, l.load_i8(&self.scale[j][half])), &x, sums);
        }
        let dmin = l.load_f16(&self.dmin);
        for half in 0..2 {
            add_half_minimum(l, l.mul(dmin, l.load_u8(&self.minimum[j][half])), half, &x, sums);
        }
    }
}

/// [`Quant::IQ4_XS`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Iq4XsBlock {
    q: [Nibbles; PARTS],
    /// `[part][row]`.
    scale: [[i8; LANES]; PARTS],
    d: [u16; LANES],
}

impl WeightBlock for Iq4XsBlock {
    const QUANT: Quant = Quant::IQ4_XS;
    const BLOCKS: usize = PARTS;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = super_scales(Self::QUANT, bytes)[0];
        for (j, part) in parts(Self::QUANT, bytes).iter().enumerate() {
            let small = small_scales(Self::QUANT, bytes, j);
            self.scale[j][lane] = small.scale[0];
            let index = part.q.map(|q| IQ4_VALUES.iter().position(|v| *v == q).unwrap_or(0) as i8);
            planes::put_nibbles(&mut self.q[j], lane, &index);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        for (j, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let q = std::array::from_fn(|col| IQ4_VALUES[usize::from(planes::nibble(&self.q[j], lane, col))]);
            let scale = [half(self.d[lane]) * f32::from(self.scale[j][lane]); 2];
            let minimum = [0.0; 2];
            IntBlock { q, scale, minimum }.values(Self::QUANT, out);
        }
    }
}

impl IntegerBlock for Iq4XsBlock {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, j: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut products = start(l, L::SIGNED_BIAS, &x);
        let mut q = planes::nibbles(l, &self.q[j]);
        for q in &mut q {
            *q = l.lookup(*q, &IQ4_VALUES);
        }
        dots_signed(l, &q, &x, &mut products);
        let scale = l.mul(l.load_f16(&self.d), l.load_i8(&self.scale[j]));
        add_scaled(l, products, scale, &x, sums);
    }
}
