//! Formats whose blocks are 32 columns: integers with a scale and perhaps a minimum.

use bytemuck::{Pod, Zeroable};

use super::super::activations::Activations;
use super::super::lanes::{GROUP, LANES, Lanes};
use super::planes::{self, Bytes, Group, Nibbles};
use super::products::{add_minimum, add_scaled, dots, dots_signed, start};
use super::{BLOCK, IntegerBlock, WeightBlock};
use crate::quant::{E2M1_DOUBLED, IQ4_VALUES, IntBlock, Quant, half_of_e8m0};

fn bits_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn half(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

/// Nibbles as files have them, low ones first: a group is four bytes as they stand.
fn put_file_nibbles(plane: &mut Nibbles, lane: usize, bytes: &[u8]) {
    for (group, bytes) in plane.iter_mut().zip(bytes.as_chunks::<GROUP>().0) {
        group[GROUP * lane..][..GROUP].copy_from_slice(bytes);
    }
}

/// [`Quant::Q4_0`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Q4_0Block {
    q: Nibbles,
    d: [u16; LANES],
}

impl WeightBlock for Q4_0Block {
    const QUANT: Quant = Quant::Q4_0;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = bits_at(bytes, 0);
        put_file_nibbles(&mut self.q, lane, &bytes[2..]);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let (scale, minimum) = (half(self.d[lane]), 0.0);
        let q = std::array::from_fn(|col| planes::nibble(&self.q, lane, col) as i8);
        IntBlock { q, scale: [scale; 2], minimum: [minimum; 2] }.values(Self::QUANT, out);
    }
}

impl IntegerBlock for Q4_0Block {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, _: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut products = start(l, 8, &x);
        dots::<L, 8, T>(l, &planes::nibbles(l, &self.q), 0..8, &x, &mut products);
        add_scaled(l, products, l.load_f16(&self.d), &x, sums);
    }
}

/// [`Quant::Q4_1`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Q4_1Block {
    q: Nibbles,
    d: [u16; LANES],
    m: [u16; LANES],
}

impl WeightBlock for Q4_1Block {
    const QUANT: Quant = Quant::Q4_1;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        (self.d[lane], self.m[lane]) = (bits_at(bytes, 0), bits_at(bytes, 2));
        put_file_nibbles(&mut self.q, lane, &bytes[4..]);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let (scale, minimum) = (half(self.d[lane]), half(self.m[lane]));
        let q = std::array::from_fn(|col| planes::nibble(&self.q, lane, col) as i8);
        IntBlock { q, scale: [scale; 2], minimum: [minimum; 2] }.values(Self::QUANT, out);
    }
}

impl IntegerBlock for Q4_1Block {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, _: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut products = start(l, 0, &x);
        dots::<L, 8, T>(l, &planes::nibbles(l, &self.q), 0..8, &x, &mut products);
        add_scaled(l, products, l.load_f16(&self.d), &x, sums);
        add_minimum(l, l.load_f16(&self.m), &x, sums);
    }
}

/// [`Quant::INT4`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Int4Block {
    q: Nibbles,
    d: [f32; LANES],
    m: [f32; LANES],
}

impl WeightBlock for Int4Block {
    const QUANT: Quant = Quant::INT4;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        let singles = bytes.as_chunks().0;
        (self.d[lane], self.m[lane]) = (f32::from_le_bytes(singles[0]), f32::from_le_bytes(singles[1]));
        put_file_nibbles(&mut self.q, lane, &bytes[8..]);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let q = std::array::from_fn(|col| planes::nibble(&self.q, lane, col) as i8);
        IntBlock { q, scale: [self.d[lane]; 2], minimum: [self.m[lane]; 2] }.values(Self::QUANT, out);
    }
}

impl IntegerBlock for Int4Block {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, _: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut products = start(l, 0, &x);
        dots::<L, 8, T>(l, &planes::nibbles(l, &self.q), 0..8, &x, &mut products);
        add_scaled(l, products, l.load(&self.d), &x, sums);
        add_minimum(l, l.load(&self.m), &x, sums);
    }
}

/// [`Quant::Q5_0`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Q5_0Block {
    q: Nibbles,
    /// The fifth bits.
    h: Group,
    d: [u16; LANES],
}

impl WeightBlock for Q5_0Block {
    const QUANT: Quant = Quant::Q5_0;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = bits_at(bytes, 0);
        let q = std::array::from_fn(|c| {
            (bytes[2 + 4 + c % 16] >> (c / 16 * 4) & 15 | (bytes[2 + c / 8] >> (c % 8) & 1) << 4) as i8
        });
        planes::put_nibbles(&mut self.q, lane, &q);
        planes::put_bits(&mut self.h, lane, &q, 4);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let (scale, minimum) = (half(self.d[lane]), 0.0);
        let q = std::array::from_fn(|col| {
            (planes::nibble(&self.q, lane, col) | planes::bit(&self.h, lane, col) << 4) as i8
        });
        IntBlock { q, scale: [scale; 2], minimum: [minimum; 2] }.values(Self::QUANT, out);
    }
}

impl IntegerBlock for Q5_0Block {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, _: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut products = start(l, 16, &x);
        let q = planes::join_bits::<L, 4>(l, planes::nibbles(l, &self.q), &self.h);
        // 31 * 127, twice, four times over is what 16 bits hold.
        dots::<L, 4, T>(l, &q, 0..8, &x, &mut products);
        add_scaled(l, products, l.load_f16(&self.d), &x, sums);
    }
}

/// [`Quant::Q5_1`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Q5_1Block {
    q: Nibbles,
    /// The fifth bits.
    h: Group,
    d: [u16; LANES],
    m: [u16; LANES],
}

impl WeightBlock for Q5_1Block {
    const QUANT: Quant = Quant::Q5_1;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        (self.d[lane], self.m[lane]) = (bits_at(bytes, 0), bits_at(bytes, 2));
        let q = std::array::from_fn(|c| {
            (bytes[4 + 4 + c % 16] >> (c / 16 * 4) & 15 | (bytes[4 + c / 8] >> (c % 8) & 1) << 4) as i8
        });
        planes::put_nibbles(&mut self.q, lane, &q);
        planes::put_bits(&mut self.h, lane, &q, 4);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let (scale, minimum) = (half(self.d[lane]), half(self.m[lane]));
        let q = std::array::from_fn(|col| {
            (planes::nibble(&self.q, lane, col) | planes::bit(&self.h, lane, col) << 4) as i8
        });
        IntBlock { q, scale: [scale; 2], minimum: [minimum; 2] }.values(Self::QUANT, out);
    }
}

impl IntegerBlock for Q5_1Block {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, _: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut products = start(l, 0, &x);
        let q = planes::join_bits::<L, 4>(l, planes::nibbles(l, &self.q), &self.h);
        // 31 * 127, twice, four times over is what 16 bits hold.
        dots::<L, 4, T>(l, &q, 0..8, &x, &mut products);
        add_scaled(l, products, l.load_f16(&self.d), &x, sums);
        add_minimum(l, l.load_f16(&self.m), &x, sums);
    }
}

/// [`Quant::Q8_0`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Q8_0Block {
    q: Bytes,
    d: [u16; LANES],
}

impl WeightBlock for Q8_0Block {
    const QUANT: Quant = Quant::Q8_0;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = bits_at(bytes, 0);
        for (group, bytes) in self.q.iter_mut().zip(bytes[2..].as_chunks::<GROUP>().0) {
            group[GROUP * lane..][..GROUP].copy_from_slice(bytes);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let (scale, minimum) = (half(self.d[lane]), 0.0);
        let q = std::array::from_fn(|col| planes::byte(&self.q, lane, col) as i8);
        IntBlock { q, scale: [scale; 2], minimum: [minimum; 2] }.values(Self::QUANT, out);
    }
}

impl IntegerBlock for Q8_0Block {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, _: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut products = start(l, L::SIGNED_BIAS, &x);
        dots_signed(l, &planes::bytes(l, &self.q), &x, &mut products);
        add_scaled(l, products, l.load_f16(&self.d), &x, sums);
    }
}

/// [`Quant::IQ4_NL`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Iq4NlBlock {
    q: Nibbles,
    d: [u16; LANES],
}

impl WeightBlock for Iq4NlBlock {
    const QUANT: Quant = Quant::IQ4_NL;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = bits_at(bytes, 0);
        put_file_nibbles(&mut self.q, lane, &bytes[2..]);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let (scale, minimum) = (half(self.d[lane]), 0.0);
        let q = std::array::from_fn(|col| IQ4_VALUES[usize::from(planes::nibble(&self.q, lane, col))]);
        IntBlock { q, scale: [scale; 2], minimum: [minimum; 2] }.values(Self::QUANT, out);
    }
}

impl IntegerBlock for Iq4NlBlock {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, _: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut products = start(l, L::SIGNED_BIAS, &x);
        let mut q = planes::nibbles(l, &self.q);
        for q in &mut q {
            *q = l.lookup(*q, &IQ4_VALUES);
        }
        dots_signed(l, &q, &x, &mut products);
        add_scaled(l, products, l.load_f16(&self.d), &x, sums);
    }
}

/// [`Quant::MXFP4`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(32))]
pub(in crate::cpu) struct Mxfp4Block {
    q: Nibbles,
    /// Half the powers of two, as the upper halves of singles: exact.
    d: [u16; LANES],
}

impl WeightBlock for Mxfp4Block {
    const QUANT: Quant = Quant::MXFP4;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        self.d[lane] = (half_of_e8m0(bytes[0]).to_bits() >> 16) as u16;
        put_file_nibbles(&mut self.q, lane, &bytes[1..]);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        let (scale, minimum) = (half::bf16::from_bits(self.d[lane]).to_f32(), 0.0);
        let q = std::array::from_fn(|col| E2M1_DOUBLED[usize::from(planes::nibble(&self.q, lane, col))]);
        IntBlock { q, scale: [scale; 2], minimum: [minimum; 2] }.values(Self::QUANT, out);
    }
}

impl IntegerBlock for Mxfp4Block {
    #[inline(always)]
    fn multiply<L: Lanes, const T: usize>(&self, l: L, _: usize, x: [&Activations; T], sums: &mut [L::F; T]) {
        let mut products = start(l, L::SIGNED_BIAS, &x);
        let mut q = planes::nibbles(l, &self.q);
        for q in &mut q {
            *q = l.lookup(*q, &E2M1_DOUBLED);
        }
        dots_signed(l, &q, &x, &mut products);
        add_scaled(l, products, l.load_bf16(&self.d), &x, sums);
    }
}

const _: () = assert!(BLOCK == 32 && LANES == 16, "layouts here are of 16 rows by 32 columns");
