//! Formats whose blocks are 32 columns: integers with a scale and perhaps a minimum, in tiles.
//!
//! Bytes are laid so that one load holds [`GROUP`] columns of 16 rows. In 4-bit formats a byte holds column `c` below and
//! column `c + 16` above, which is how files have it as well.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::super::activations::Activations;
use super::super::lanes::{GROUP, LANES, Lanes};
use super::{BLOCK, WeightBlock};

/// Four columns of 16 rows, one byte each.
pub(super) type Group = [u8; GROUP * LANES];

/// A block of integers with scales.
pub(in crate::cpu) trait IntegerBlock: WeightBlock {
    /// Adds the products of block `block` of this unit (0 where a unit is one block) and of one block of `T` rows of
    /// activations to `sums`, as [`crate::ops::Ops::linear`] says.
    fn multiply<L: Lanes, const T: usize>(&self, l: L, block: usize, x: [&Activations; T], sums: &mut [L::F; T]);
}

/// The integers of `T` rows of activations.
#[inline(always)]
pub(super) fn integers<'a, const T: usize>(x: &[&'a Activations; T]) -> [&'a [i32; 8]; T] {
    x.map(|x| &x.q)
}

/// `-offset * sum` of every row of activations, to start its products from.
#[inline(always)]
pub(super) fn less<L: Lanes, const T: usize>(l: L, offset: i32, x: &[&Activations; T]) -> [L::I; T] {
    let mut start = [l.isplat(0); T];
    if offset != 0 {
        for t in 0..T {
            start[t] = l.isplat(-offset * (x[t].sums[0] + x[t].sums[1]));
        }
    }
    start
}

/// `sums += dots * (scale * x.scale)`.
#[inline(always)]
pub(super) fn add_scaled<L: Lanes, const T: usize>(
    l: L,
    dots: [L::I; T],
    scale: L::F,
    x: &[&Activations; T],
    sums: &mut [L::F; T],
) {
    for t in 0..T {
        sums[t] = l.fma(l.to_f32(dots[t]), l.mul(scale, l.splat(x[t].scale)), sums[t]);
    }
}

/// `sums += minimum * x.scaled_sum`.
#[inline(always)]
pub(super) fn add_minimum<L: Lanes, const T: usize>(l: L, minimum: L::F, x: &[&Activations; T], sums: &mut [L::F; T]) {
    for t in 0..T {
        sums[t] = l.fma(minimum, l.splat(x[t].scaled_sum), sums[t]);
    }
}

/// The eight groups of a block of 4-bit integers, in order of columns.
#[inline(always)]
pub(super) fn nibbles<L: Lanes>(l: L, q: &[Group; 4]) -> [L::B; 8] {
    let [a, b, c, d] = [l.bytes(&q[0]), l.bytes(&q[1]), l.bytes(&q[2]), l.bytes(&q[3])];
    [l.low(a), l.low(b), l.low(c), l.low(d), l.high(a), l.high(b), l.high(c), l.high(d)]
}

/// Puts the 16 bytes of a row where [`nibbles`] finds them.
pub(super) fn put_nibbles(q: &mut [Group; 4], lane: usize, bytes: &[u8]) {
    for (group, bytes) in q.iter_mut().zip(bytes.as_chunks::<GROUP>().0) {
        group[GROUP * lane..][..GROUP].copy_from_slice(bytes);
    }
}

/// The integer of a column.
pub(super) fn nibble(q: &[Group; 4], lane: usize, col: usize) -> u8 {
    q[col % 16 / GROUP][GROUP * lane + col % GROUP] >> (4 * (col / 16)) & 15
}

pub(super) fn bits_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn half(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// [`crate::Quant::Q4_0`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Q4_0Block {
    q: [Group; 4],
    d: [u16; LANES],
}

impl WeightBlock for Q4_0Block {
    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = bits_at(bytes, 0);
        put_nibbles(&mut self.q, lane, &bytes[2..]);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let d = half(self.d[lane]);
        out.iter_mut().enumerate().for_each(|(col, v)| *v = d * (f32::from(nibble(&self.q, lane, col)) - 8.0));
    }
}

impl IntegerBlock for Q4_0Block {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, _: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut dots = less(l, 8, &x);
        l.dot(nibbles(l, &self.q), integers(&x), &mut dots);
        add_scaled(l, dots, l.load_f16(&self.d), &x, sums);
    }
}

/// [`crate::Quant::Q4_1`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Q4_1Block {
    q: [Group; 4],
    d: [u16; LANES],
    m: [u16; LANES],
}

impl WeightBlock for Q4_1Block {
    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = bits_at(bytes, 0);
        self.m[lane] = bits_at(bytes, 2);
        put_nibbles(&mut self.q, lane, &bytes[4..]);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let (d, m) = (half(self.d[lane]), half(self.m[lane]));
        out.iter_mut().enumerate().for_each(|(col, v)| *v = d * f32::from(nibble(&self.q, lane, col)) + m);
    }
}

impl IntegerBlock for Q4_1Block {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, _: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut dots = less(l, 0, &x);
        l.dot(nibbles(l, &self.q), integers(&x), &mut dots);
        add_scaled(l, dots, l.load_f16(&self.d), &x, sums);
        add_minimum(l, l.load_f16(&self.m), &x, sums);
    }
}

/// [`crate::Quant::Q8_0`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Q8_0Block {
    q: [Group; 8],
    d: [u16; LANES],
}

impl WeightBlock for Q8_0Block {
    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = bits_at(bytes, 0);
        for (group, bytes) in self.q.iter_mut().zip(bytes[2..].as_chunks::<GROUP>().0) {
            group[GROUP * lane..][..GROUP].copy_from_slice(bytes);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let d = half(self.d[lane]);
        for (col, v) in out.iter_mut().enumerate() {
            *v = d * f32::from(self.q[col / GROUP][GROUP * lane + col % GROUP] as i8);
        }
    }
}

impl IntegerBlock for Q8_0Block {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, _: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut dots = less(l, L::SIGNED_BIAS, &x);
        let q = &self.q;
        let [a, b, c, d] = [l.bytes(&q[0]), l.bytes(&q[1]), l.bytes(&q[2]), l.bytes(&q[3])];
        let [e, f, g, h] = [l.bytes(&q[4]), l.bytes(&q[5]), l.bytes(&q[6]), l.bytes(&q[7])];
        l.dot_signed([a, b, c, d, e, f, g, h], integers(&x), &mut dots);
        add_scaled(l, dots, l.load_f16(&self.d), &x, sums);
    }
}

const _: () = assert!(BLOCK == 32 && LANES == 16, "layouts here are of 16 rows by 32 columns");
