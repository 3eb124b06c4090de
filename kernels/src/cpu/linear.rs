//! Matrix times activations, with as many rows of activations as share a load of weights. The order in which a result
//! is summed depends on the number of columns alone.

use std::ops::Range;

use bytemuck::Zeroable;

use super::activations::{Activations, Planes, quantize};
use super::disjoint::Disjoint;
use super::lanes::{Kernel, LANES, Lanes, Level};
use super::pool::Pool;
use super::weights::{FloatBlock, IntegerBlock, Matrix, Part, Tiles, with_blocks};
use crate::ops::{ACTIVATION_BLOCK, SEGMENT_BLOCKS};

/// Activations that one chunk keeps coming back to: about half of a 512 KiB second-level cache.
const TOKENS_BYTES: usize = 256 << 10;

/// How far ahead the weights of a single tile are asked for: the processor's own prefetcher stops at every page, and a
/// product of one row runs at the speed of memory.
const AHEAD_BYTES: usize = 2048;

/// Multiplications that make a chunk worth handing to a thread: some ten microseconds.
const CHUNK_PRODUCTS: usize = 1 << 18;

/// `out[i] = w * x[i]`, or `+=` if `add`, for `tokens` rows of `w.cols` values.
pub(super) fn linear(
    pool: &mut Pool,
    level: Level,
    (x, planes, quantized): (&[f32], Planes, &mut Vec<Activations>),
    w: &Matrix,
    (out, add): (&mut [f32], bool),
) {
    let tokens = x.len() / w.cols;
    if w.is_quantized() {
        quantized.resize(x.len() / ACTIVATION_BLOCK * planes as usize, Activations::zeroed());
        quantize(pool, level, x, planes, quantized);
    }
    let plan = Plan::new(pool.threads(), w, tokens, planes);
    let output = Output { data: Disjoint::new(out), cols: w.rows, add };
    let quantized = &*quantized;
    pool.run(plan.chunks.len() * plan.token_chunks, &|chunk| {
        // Chunks of the same tokens are neighbours, so that those stay in a cache.
        let (part, tiles) = &plan.chunks[chunk % plan.chunks.len()];
        let first = chunk / plan.chunks.len() * plan.tokens_each;
        let tokens = first..tokens.min(first + plan.tokens_each);
        let area = Area { rows: part.rows, first_row: part.first_row, cols: w.cols, tiles: tiles.clone(), tokens };
        with_blocks!(&part.tiles, blocks => level.run(FloatTiles { area, blocks, x, output: &output }),
            level.run(IntegerTiles { area, blocks, x: quantized, planes: planes as usize, output: &output }));
    });
}

/// How a product is cut into chunks. It decides who computes what, never how.
struct Plan<'a> {
    chunks: Vec<(&'a Part, Range<usize>)>,
    tokens_each: usize,
    token_chunks: usize,
}

impl<'a> Plan<'a> {
    fn new(threads: usize, w: &'a Matrix, tokens: usize, planes: Planes) -> Self {
        let token_bytes = w.cols / ACTIVATION_BLOCK * planes as usize * size_of::<Activations>();
        // Never so few that the weights are read from memory too often for the arithmetic.
        let tokens_each = (TOKENS_BYTES / token_bytes / 8 * 8).max(16).min(tokens.next_multiple_of(8).max(8));
        // Several chunks a thread, so that one that is slowed down or late leaves its share to the others.
        let products = tokens * w.rows * w.cols / (4 * threads);
        let tiles_each = products.max(CHUNK_PRODUCTS) / (tokens.clamp(1, tokens_each) * w.cols * LANES);
        let tiles_each = tiles_each.max(1);
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
    /// Stores 16 rows of one token, or as many as the part has.
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
struct IntegerTiles<'a, B> {
    area: Area,
    blocks: &'a [B],
    x: &'a [Activations],
    /// Of each block of activations, one after the other.
    planes: usize,
    output: &'a Output<'a>,
}

impl<B: IntegerBlock> Kernel for IntegerTiles<'_, B> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let end = self.area.tokens.end;
        for tile in self.area.tiles.clone() {
            let mut token = self.area.tokens.start;
            while L::TOKENS >= 8 && token + 8 <= end {
                self.group::<L, 8>(l, tile, token);
                token += 8;
            }
            while L::TOKENS >= 4 && token + 4 <= end {
                self.group::<L, 4>(l, tile, token);
                token += 4;
            }
            while token + 2 <= end {
                self.group::<L, 2>(l, tile, token);
                token += 2;
            }
            if token < end {
                self.group::<L, 1>(l, tile, token);
            }
        }
    }
}

impl<B: IntegerBlock> IntegerTiles<'_, B> {
    /// One tile times `T` tokens: segment after segment of columns, in each block after block.
    #[inline(always)]
    fn group<L: Lanes, const T: usize>(&self, l: L, tile: usize, token: usize) {
        let n = self.area.cols / ACTIVATION_BLOCK;
        let units = n / B::BLOCKS;
        let blocks = &self.blocks[tile * units..][..units];
        let x: [&[Activations]; T] =
            std::array::from_fn(|t| &self.x[(token + t) * n * self.planes..][..n * self.planes]);
        let first = token == self.area.tokens.start;
        let mut totals = [l.splat(0.0); T];
        for segment in (0..n).step_by(SEGMENT_BLOCKS) {
            let mut sums = [l.splat(0.0); T];
            for b in segment..n.min(segment + SEGMENT_BLOCKS) {
                let unit = &blocks[b / B::BLOCKS];
                if first && b % B::BLOCKS == 0 {
                    prefetch_after(l, unit, AHEAD_BYTES);
                }
                for plane in 0..self.planes {
                    let x = std::array::from_fn(|t| &x[t][b * self.planes + plane]);
                    unit.multiply(l, b % B::BLOCKS, x, &mut sums);
                }
            }
            for t in 0..T {
                totals[t] = l.add(totals[t], sums[t]);
            }
        }
        for (t, total) in totals.into_iter().enumerate() {
            self.output.put(l, &self.area, tile, token + t, total);
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
