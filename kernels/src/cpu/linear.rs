//! Matrix times activations, with as many rows of activations as share a load of weights. The order in which a result
//! is summed depends on the number of columns alone.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::disjoint::Disjoint;
use super::lanes::{Kernel, LANES, Lanes, Level};
use super::pool::Pool;
use super::weights::{FloatBlock, Matrix, Part, QuantizedBlock, Tiles};
use crate::ops::ACTIVATION_BLOCK;
use crate::quant::activation_scale;

/// Activations that one chunk keeps coming back to: about half of a 512 KiB second-level cache.
const TOKENS_BYTES: usize = 256 << 10;

/// How far ahead the weights of a single tile are asked for: the processor's own prefetcher stops at every page, and a
/// product of one row runs at the speed of memory.
const AHEAD_BYTES: usize = 2048;

/// Multiplications that make a chunk worth handing to a thread: some ten microseconds.
const CHUNK_PRODUCTS: usize = 1 << 18;

/// 32 quantized activations.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Activations {
    /// Two `i16` in each, the earlier column in the lower half.
    pairs: [i32; ACTIVATION_BLOCK / 2],
    /// What one unit is worth.
    scale: f32,
    /// `scale * sum`, for formats with a minimum.
    scaled_sum: f32,
    /// Sum of the integers, for formats with an offset.
    sum: i32,
    unused: u32,
}

/// `out[i] = w * x[i]`, or `+=` if `add`, for `tokens` rows of `w.cols` values.
pub(super) fn linear(
    pool: &mut Pool,
    level: Level,
    (x, quantized): (&[f32], &mut Vec<Activations>),
    w: &Matrix,
    (out, add): (&mut [f32], bool),
) {
    let tokens = x.len() / w.cols;
    if w.is_quantized() {
        quantized.resize(x.len() / ACTIVATION_BLOCK, Activations::zeroed());
        quantize(pool, level, x, quantized);
    }
    let plan = Plan::new(pool.threads(), w, tokens);
    let output = Output { data: Disjoint::new(out), cols: w.rows, add };
    let quantized = &*quantized;
    pool.run(plan.chunks.len() * plan.token_chunks, &|chunk| {
        // Chunks of the same tokens are neighbours, so that those stay in a cache.
        let (part, tiles) = &plan.chunks[chunk % plan.chunks.len()];
        let first = chunk / plan.chunks.len() * plan.tokens_each;
        let tokens = first..tokens.min(first + plan.tokens_each);
        let area = Area { rows: part.rows, first_row: part.first_row, cols: w.cols, tiles: tiles.clone(), tokens };
        match &part.tiles {
            Tiles::F32(blocks) => level.run(FloatTiles { area, blocks, x, output: &output }),
            Tiles::F16(blocks) => level.run(FloatTiles { area, blocks, x, output: &output }),
            Tiles::Bf16(blocks) => level.run(FloatTiles { area, blocks, x, output: &output }),
            Tiles::Q4_0(blocks) => level.run(QuantizedTiles { area, blocks, x: quantized, output: &output }),
            Tiles::Q4_1(blocks) => level.run(QuantizedTiles { area, blocks, x: quantized, output: &output }),
            Tiles::Q8_0(blocks) => level.run(QuantizedTiles { area, blocks, x: quantized, output: &output }),
        }
    });
}

/// How a product is cut into chunks. It decides who computes what, never how.
struct Plan<'a> {
    chunks: Vec<(&'a Part, Range<usize>)>,
    tokens_each: usize,
    token_chunks: usize,
}

impl<'a> Plan<'a> {
    fn new(threads: usize, w: &'a Matrix, tokens: usize) -> Self {
        let token_bytes = w.cols / ACTIVATION_BLOCK * size_of::<Activations>();
        // Never so few that the weights are read from memory too often for the arithmetic.
        let tokens_each = (TOKENS_BYTES / token_bytes / 4 * 4).max(16).min(tokens.next_multiple_of(4).max(4));
        // Several chunks a thread, so that one that is slowed down or late leaves its share to the others.
        let products = tokens * w.rows * w.cols / (4 * threads);
        let tiles_each = products.max(CHUNK_PRODUCTS) / (tokens.clamp(1, tokens_each) * w.cols * LANES);
        // Even, because tiles are computed in pairs.
        let tiles_each = tiles_each.next_multiple_of(2).max(2);
        let mut chunks = Vec::new();
        for part in &w.parts {
            let tiles = part.rows.div_ceil(LANES);
            chunks.extend((0..tiles).step_by(tiles_each).map(|t| (part, t..tiles.min(t + tiles_each))));
        }
        Self { chunks, tokens_each, token_chunks: tokens.div_ceil(tokens_each) }
    }
}

/// What a chunk computes: some tiles of one part, for some tokens.
struct Area {
    rows: usize,
    first_row: usize,
    cols: usize,
    tiles: Range<usize>,
    tokens: Range<usize>,
}

struct Output<'a> {
    data: Disjoint<'a, f32>,
    cols: usize,
    add: bool,
}

impl Output<'_> {
    /// Stores 8 rows of one token, or as many as the part has.
    #[inline(always)]
    fn put<L: Lanes>(&self, l: L, area: &Area, tile: usize, token: usize, v: L::F) {
        let rows = (area.rows - tile * LANES).min(LANES);
        let at = token * self.cols + area.first_row + tile * LANES;
        // SAFETY: every pair of tile and token belongs to one chunk, which holds no other part meanwhile.
        let to = unsafe { self.data.range(at..at + rows) };
        if let Ok(to) = <&mut [f32; LANES]>::try_from(&mut *to) {
            let v = if self.add { l.add(l.load(to), v) } else { v };
            l.store(v, to);
            return;
        }
        let mut lanes = [0.0; LANES];
        l.store(v, &mut lanes);
        for (to, v) in to.iter_mut().zip(lanes) {
            *to = if self.add { *to + v } else { v };
        }
    }
}

/// Integer products.
struct QuantizedTiles<'a, B> {
    area: Area,
    blocks: &'a [B],
    x: &'a [Activations],
    output: &'a Output<'a>,
}

impl<B: QuantizedBlock> Kernel for QuantizedTiles<'_, B> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (tiles, tokens) = (self.area.tiles.clone(), self.area.tokens.clone());
        for tile in tiles.clone().step_by(2) {
            let pair = tile + 1 < tiles.end;
            let mut token = tokens.start;
            while token + 4 <= tokens.end {
                if pair {
                    self.group::<L, 2, 4>(l, tile, token);
                } else {
                    self.group::<L, 1, 4>(l, tile, token);
                }
                token += 4;
            }
            for tile in tile..tiles.end.min(tile + 2) {
                self.rest(l, tile, token);
            }
        }
    }
}

impl<B: QuantizedBlock> QuantizedTiles<'_, B> {
    /// One tile times the last tokens, fewer than four. Two tiles would not pay here: the compiler unrolls them whole and
    /// runs out of registers.
    #[inline(always)]
    fn rest<L: Lanes>(&self, l: L, tile: usize, mut token: usize) {
        if token + 2 <= self.area.tokens.end {
            self.group::<L, 1, 2>(l, tile, token);
            token += 2;
        }
        if token < self.area.tokens.end {
            self.group::<L, 1, 1>(l, tile, token);
        }
    }

    /// `R` tiles times `T` tokens. For every block, in order: the exact integer product, scaled, added; then the minimum.
    #[inline(always)]
    fn group<L: Lanes, const R: usize, const T: usize>(&self, l: L, tile: usize, token: usize) {
        let n = self.area.cols / ACTIVATION_BLOCK;
        let blocks: [&[B]; R] = std::array::from_fn(|r| &self.blocks[(tile + r) * n..][..n]);
        let x: [&[Activations]; T] = std::array::from_fn(|t| &self.x[(token + t) * n..][..n]);
        let first = token == self.area.tokens.start;
        let mut sums = [[l.splat(0.0); T]; R];
        for b in 0..n {
            let tiles: [&B; R] = std::array::from_fn(|r| &blocks[r][b]);
            if first {
                // Tiles that are read side by side are followed by as many that will be.
                let ahead = if R == 1 { AHEAD_BYTES } else { R * n * size_of::<B>() };
                for tile in tiles {
                    prefetch_after(l, tile, ahead);
                }
            }
            let mut dots = [[l.isplat(0); T]; R];
            if B::OFFSET != 0 {
                for t in 0..T {
                    let begin = l.isplat(x[t][b].sum * -B::OFFSET);
                    for dots in &mut dots {
                        dots[t] = begin;
                    }
                }
            }
            B::dot(l, tiles, std::array::from_fn(|t| &x[t][b].pairs), &mut dots);
            for r in 0..R {
                let (scale, minimum) = (tiles[r].scale(l), tiles[r].minimum(l));
                for t in 0..T {
                    let scale = l.mul(scale, l.splat(x[t][b].scale));
                    sums[r][t] = l.fma(l.to_f32(dots[r][t]), scale, sums[r][t]);
                    if let Some(minimum) = minimum {
                        sums[r][t] = l.fma(minimum, l.splat(x[t][b].scaled_sum), sums[r][t]);
                    }
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (t, sum) in sums.into_iter().enumerate() {
                self.output.put(l, &self.area, tile + r, token + t, sum);
            }
        }
    }
}

/// Asks for the block that lies `ahead` bytes after this one.
#[inline(always)]
fn prefetch_after<L: Lanes, B>(l: L, block: &B, ahead: usize) {
    for line in (0..size_of::<B>()).step_by(64) {
        l.prefetch(std::ptr::from_ref(block).cast::<u8>().wrapping_add(ahead + line));
    }
}

/// Floating-point products, with activations as they are.
struct FloatTiles<'a, B> {
    area: Area,
    blocks: &'a [B],
    x: &'a [f32],
    output: &'a Output<'a>,
}

impl<B: FloatBlock> Kernel for FloatTiles<'_, B> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for tile in self.area.tiles.clone() {
            let mut token = self.area.tokens.start;
            while token + 2 <= self.area.tokens.end {
                self.group::<L, 2>(l, tile, token);
                token += 2;
            }
            if token < self.area.tokens.end {
                self.group::<L, 1>(l, tile, token);
            }
        }
    }
}

impl<B: FloatBlock> FloatTiles<'_, B> {
    /// One tile times `T` tokens: four sums over columns 0, 1, 2, 3 modulo 4, then those.
    #[inline(always)]
    fn group<L: Lanes, const T: usize>(&self, l: L, tile: usize, token: usize) {
        let n = self.area.cols / ACTIVATION_BLOCK;
        let blocks = &self.blocks[tile * n..][..n];
        let x: [&[[f32; ACTIVATION_BLOCK]]; T] =
            std::array::from_fn(|t| self.x[(token + t) * self.area.cols..][..self.area.cols].as_chunks().0);
        let mut sums = [[l.splat(0.0); 4]; T];
        for (b, block) in blocks.iter().enumerate() {
            for col in 0..ACTIVATION_BLOCK {
                let w = block.column(l, col);
                for t in 0..T {
                    sums[t][col % 4] = l.fma(w, l.splat(x[t][b][col]), sums[t][col % 4]);
                }
            }
        }
        for (t, s) in sums.into_iter().enumerate() {
            let sum = l.add(l.add(s[0], s[1]), l.add(s[2], s[3]));
            self.output.put(l, &self.area, tile, token + t, sum);
        }
    }
}

/// [`crate::quant::quantize_activations`], in the layout of the kernels.
fn quantize(pool: &mut Pool, level: Level, x: &[f32], out: &mut [Activations]) {
    const BLOCKS_EACH: usize = 512;
    let to = Disjoint::new(out);
    pool.run(x.len().div_ceil(BLOCKS_EACH * ACTIVATION_BLOCK), &|chunk| {
        let x = x.chunks(BLOCKS_EACH * ACTIVATION_BLOCK).nth(chunk).expect("as many chunks as were counted");
        let first = chunk * BLOCKS_EACH;
        // SAFETY: every chunk of the job has its own range.
        let out = unsafe { to.range(first..first + x.len() / ACTIVATION_BLOCK) };
        level.run(Quantize { x, out });
    });
}

struct Quantize<'a> {
    x: &'a [f32],
    out: &'a mut [Activations],
}

impl Kernel for Quantize<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (blocks, _) = self.x.as_chunks::<ACTIVATION_BLOCK>();
        for (x, out) in blocks.iter().zip(self.out) {
            *out = quantize_block(l, x);
        }
    }
}

#[inline(always)]
fn quantize_block<L: Lanes>(l: L, x: &[f32; ACTIVATION_BLOCK]) -> Activations {
    let (vectors, _) = x.as_chunks::<LANES>();
    let mut amax = l.isplat(0);
    for v in vectors {
        amax = l.max_magnitude(amax, l.load(v));
    }
    let mut lanes = [0; LANES];
    l.istore(amax, &mut lanes);
    let scale = activation_scale(lanes.into_iter().fold(0, i32::max) as u32);
    let mut out = Activations { scale, scaled_sum: scale, ..Activations::zeroed() };
    if scale > 0.0 {
        let (pairs, _) = out.pairs.as_chunks_mut::<{ LANES / 2 }>();
        for (v, pairs) in vectors.iter().zip(pairs) {
            l.istore(l.to_i32(l.div(l.load(v), l.splat(scale))), &mut lanes);
            out.sum += lanes.iter().sum::<i32>();
            for (i, pair) in pairs.iter_mut().enumerate() {
                *pair = (lanes[2 * i] & 0xffff) | lanes[2 * i + 1] << 16;
            }
        }
        out.scaled_sum = scale * out.sum as f32;
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cpu::Isa;
    use crate::quant::quantize_activations;
    use proptest::prelude::*;

    proptest! {
        /// The kernel's activations are the public function's.
        #[test]
        fn activations_agree(mut x in prop::collection::vec(-50f32..50.0, 64), exponent in -45i32..38, bad in 0usize..200) {
            x.iter_mut().take(32).for_each(|v| *v *= 10f32.powi(exponent));
            if let Some(v) = x.get_mut(bad) {
                *v = f32::NAN;
            }
            let (mut q, mut scales) = ([0i16; 64], [0f32; 2]);
            quantize_activations(&x, &mut q, &mut scales);
            for level in [Isa::Portable, Isa::Avx2].into_iter().filter_map(Level::new) {
                let mut out = vec![Activations::zeroed(); 2];
                quantize(&mut Pool::new(1), level, &x, &mut out);
                for (b, out) in out.iter().enumerate() {
                    prop_assert_eq!(out.scale.to_bits(), scales[b].to_bits());
                    let q = &q[b * 32..][..32];
                    prop_assert_eq!(out.sum, q.iter().map(|&v| i32::from(v)).sum::<i32>());
                    for (i, pair) in out.pairs.iter().enumerate() {
                        prop_assert_eq!((*pair as i16, (pair >> 16) as i16), (q[2 * i], q[2 * i + 1]));
                    }
                }
            }
        }
    }
}
