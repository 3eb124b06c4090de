//! One block of one key/value head as kernels read it, for every format. The values that a kernel gets are exact.

use super::super::lanes::{LANES, Lanes};
use crate::kv::scale_block;
use crate::ops::KV_BLOCK_TOKENS;

/// Keys and values of 16 positions.
pub(in crate::cpu) trait Stored<'a>: Copy {
    /// What 16 consecutive values of the keys are multiplied by.
    type KeyScales<L: Lanes>: Copy;
    /// What `16 * C` consecutive columns of the values are multiplied by.
    type ValueScales<const C: usize>;

    /// Of the bytes of a block's keys and of its values.
    fn new(keys: &'a [u8], values: &'a [u8], dim: usize) -> Self;
    /// Values of a head.
    fn dim(&self) -> usize;
    /// Scales of values `16 * c ..` of the keys.
    fn key_scales<L: Lanes>(&self, l: L, c: usize) -> Self::KeyScales<L>;
    /// Value `d` of each key.
    fn key<L: Lanes>(&self, l: L, scales: Self::KeyScales<L>, d: usize) -> L::F;
    /// Scales of columns `at ..`.
    fn value_scales<L: Lanes, const C: usize>(&self, l: L, at: usize) -> Self::ValueScales<C>;
    /// Columns `at ..` of the values at position `j`.
    fn values<L: Lanes, const C: usize>(&self, l: L, scales: &Self::ValueScales<C>, j: usize, at: usize) -> [L::F; C];
}

/// Two bytes a value: `f16`, or `bf16` where that is said.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Halves<'a, const BFLOAT: bool> {
    /// `[dim][16]`.
    keys: &'a [[u16; LANES]],
    /// `[16][dim]`.
    values: &'a [u16],
    dim: usize,
}

#[inline(always)]
fn load<const BFLOAT: bool, L: Lanes>(l: L, v: &[u16; LANES]) -> L::F {
    if BFLOAT { l.load_bf16(v) } else { l.load_f16(v) }
}

impl<'a, const BFLOAT: bool> Stored<'a> for Halves<'a, BFLOAT> {
    type KeyScales<L: Lanes> = ();
    type ValueScales<const C: usize> = ();

    #[inline(always)]
    fn new(keys: &'a [u8], values: &'a [u8], dim: usize) -> Self {
        let keys: &[[u16; LANES]] = bytemuck::cast_slice(keys);
        assert_eq!(keys.len(), dim, "a key for each value of a head");
        Self { keys, values: bytemuck::cast_slice(values), dim }
    }

    #[inline(always)]
    fn dim(&self) -> usize {
        self.dim
    }

    #[inline(always)]
    fn key_scales<L: Lanes>(&self, _l: L, _c: usize) {}

    #[inline(always)]
    fn key<L: Lanes>(&self, l: L, _scales: (), d: usize) -> L::F {
        load::<BFLOAT, L>(l, &self.keys[d])
    }

    #[inline(always)]
    fn value_scales<L: Lanes, const C: usize>(&self, _l: L, _at: usize) {}

    #[inline(always)]
    fn values<L: Lanes, const C: usize>(&self, l: L, _scales: &(), j: usize, at: usize) -> [L::F; C] {
        let (v, _) = self.values[j * self.dim + at..][..C * LANES].as_chunks::<LANES>();
        let mut columns = [l.splat(0.0); C];
        for c in 0..C {
            columns[c] = load::<BFLOAT, L>(l, &v[c]);
        }
        columns
    }
}

/// A byte a value, and an `f16` for [`scale_block`] of them: after the bytes, as `[block][16 positions]` of either.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Bytes<'a> {
    /// `[dim][16]`.
    keys: &'a [[i8; LANES]],
    key_scales: &'a [[u16; LANES]],
    /// `[16][dim]`.
    values: &'a [i8],
    value_scales: &'a [[u16; LANES]],
    dim: usize,
    block: usize,
}

impl<'a> Stored<'a> for Bytes<'a> {
    type KeyScales<L: Lanes> = L::F;
    type ValueScales<const C: usize> = [[f32; KV_BLOCK_TOKENS]; C];

    #[inline(always)]
    fn new(keys: &'a [u8], values: &'a [u8], dim: usize) -> Self {
        let (keys, key_scales) = keys.split_at(dim * LANES);
        let (values, value_scales) = values.split_at(dim * LANES);
        Self {
            keys: bytemuck::cast_slice(keys),
            key_scales: bytemuck::cast_slice(key_scales),
            values: bytemuck::cast_slice(values),
            value_scales: bytemuck::cast_slice(value_scales),
            dim,
            block: scale_block(dim),
        }
    }

    #[inline(always)]
    fn dim(&self) -> usize {
        self.dim
    }

    #[inline(always)]
    fn key_scales<L: Lanes>(&self, l: L, c: usize) -> L::F {
        l.load_f16(&self.key_scales[c * LANES / self.block])
    }

    #[inline(always)]
    fn key<L: Lanes>(&self, l: L, scales: L::F, d: usize) -> L::F {
        l.mul(l.load_i8(&self.keys[d]), scales)
    }

    #[inline(always)]
    fn value_scales<L: Lanes, const C: usize>(&self, l: L, at: usize) -> [[f32; KV_BLOCK_TOKENS]; C] {
        let mut scales = [[0.0; KV_BLOCK_TOKENS]; C];
        for (c, scales) in scales.iter_mut().enumerate() {
            l.store(l.load_f16(&self.value_scales[(at + c * LANES) / self.block]), scales);
        }
        scales
    }

    #[inline(always)]
    fn values<L: Lanes, const C: usize>(
        &self,
        l: L,
        scales: &[[f32; KV_BLOCK_TOKENS]; C],
        j: usize,
        at: usize,
    ) -> [L::F; C] {
        let (v, _) = self.values[j * self.dim + at..][..C * LANES].as_chunks::<LANES>();
        let mut columns = [l.splat(0.0); C];
        for c in 0..C {
            columns[c] = l.mul(l.load_i8(&v[c]), l.splat(scales[c][j]));
        }
        columns
    }
}
