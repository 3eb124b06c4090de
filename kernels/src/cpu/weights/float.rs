//! Floating-point weights in tiles: one column of 16 rows after the other.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::super::lanes::{LANES, Lanes};
use super::{BLOCK, WeightBlock};
use crate::quant::{Quant, e4m3};

/// A block of floating-point values.
pub(in crate::cpu) trait FloatBlock: WeightBlock {
    /// One column of 16 rows.
    fn column<L: Lanes>(&self, l: L, col: usize) -> L::F;
}

/// [`crate::Quant::F32`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::cpu) struct F32Block([[f32; LANES]; BLOCK]);

impl WeightBlock for F32Block {
    const QUANT: Quant = Quant::F32;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        for (column, v) in self.0.iter_mut().zip(bytes.as_chunks::<4>().0) {
            column[lane] = f32::from_le_bytes(*v);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        out.iter_mut().zip(&self.0).for_each(|(v, column)| *v = column[lane]);
    }
}

impl FloatBlock for F32Block {
    #[inline(always)]
    fn column<L: Lanes>(&self, l: L, col: usize) -> L::F {
        l.load(&self.0[col])
    }
}

/// [`crate::Quant::F16`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::cpu) struct F16Block([[u16; LANES]; BLOCK]);

impl WeightBlock for F16Block {
    const QUANT: Quant = Quant::F16;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        for (column, v) in self.0.iter_mut().zip(bytes.as_chunks::<2>().0) {
            column[lane] = u16::from_le_bytes(*v);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        out.iter_mut().zip(&self.0).for_each(|(v, column)| *v = f16::from_bits(column[lane]).to_f32());
    }
}

impl FloatBlock for F16Block {
    #[inline(always)]
    fn column<L: Lanes>(&self, l: L, col: usize) -> L::F {
        l.load_f16(&self.0[col])
    }
}

/// [`crate::Quant::BF16`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::cpu) struct Bf16Block([[u16; LANES]; BLOCK]);

impl WeightBlock for Bf16Block {
    const QUANT: Quant = Quant::BF16;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        for (column, v) in self.0.iter_mut().zip(bytes.as_chunks::<2>().0) {
            column[lane] = u16::from_le_bytes(*v);
        }
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        out.iter_mut().zip(&self.0).for_each(|(v, column)| *v = bf16::from_bits(column[lane]).to_f32());
    }
}

impl FloatBlock for Bf16Block {
    #[inline(always)]
    fn column<L: Lanes>(&self, l: L, col: usize) -> L::F {
        l.load_bf16(&self.0[col])
    }
}

/// [`crate::Quant::FP8`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::cpu) struct Fp8Block {
    q: [[u8; LANES]; BLOCK],
    d: [f32; LANES],
}

impl WeightBlock for Fp8Block {
    const QUANT: Quant = Quant::FP8;

    fn put(&mut self, lane: usize, bytes: &[u8]) {
        let (d, codes) = bytes.split_first_chunk().expect("a block begins with its scale");
        self.d[lane] = f32::from_le_bytes(*d);
        self.q.iter_mut().zip(codes).for_each(|(column, code)| column[lane] = *code);
    }

    fn values(&self, lane: usize, out: &mut [f32]) {
        out.iter_mut().zip(&self.q).for_each(|(v, column)| *v = e4m3(column[lane]) * self.d[lane]);
    }
}

impl FloatBlock for Fp8Block {
    #[inline(always)]
    fn column<L: Lanes>(&self, l: L, col: usize) -> L::F {
        l.mul(l.load_e4m3(&self.q[col]), l.load(&self.d))
    }
}
