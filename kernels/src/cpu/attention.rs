//! Causal attention over paged keys and values. A query sees its blocks in order of position, with a running maximum, and
//! goes through the same arithmetic whether it is alone or one of many that share the loads of a block.

use std::ops::Range;

use super::disjoint::Disjoint;
use super::kv_cache::KvCache;
use super::lanes::{Kernel, LANES, Lanes, Level};
use super::pool::Pool;
use super::rows::capped;
use crate::ops::{Heads, KV_BLOCK_TOKENS, Mask, Span, StepLayout};

/// Rows of a span that go through the blocks together: enough that a block is loaded from far away seldom, few enough
/// that a prompt makes chunks for all threads.
const ROWS_EACH: usize = 16;

/// [`crate::ops::Ops::attention`], on the rows of `qkv`.
pub(super) fn attention(
    (pool, level): (&mut Pool, Level),
    step: &StepLayout<'_>,
    (heads, mask, sinks): (Heads, Mask, Option<&[f32]>),
    qkv: &[f32],
    (cache, layer): (&KvCache, usize),
    out: &mut [f32],
) {
    let out = Disjoint::new(out);
    let mut chunks = Vec::new();
    for span in step.spans {
        for first in (0..span.rows).step_by(ROWS_EACH) {
            chunks.extend((0..heads.kv).map(|head| (span, first, head)));
        }
    }
    pool.run(chunks.len(), &|i| {
        let (span, first, kv_head) = chunks[i];
        let rows = (span.rows - first).min(ROWS_EACH);
        let blocks = &step.blocks[span.first_block..];
        level.run(Rows { heads, mask, sinks, qkv, cache, layer, out: &out, span, first, rows, kv_head, blocks });
    });
}

/// Some rows of a span, for all query heads that share a key/value head.
struct Rows<'a> {
    heads: Heads,
    mask: Mask,
    sinks: Option<&'a [f32]>,
    qkv: &'a [f32],
    cache: &'a KvCache,
    layer: usize,
    out: &'a Disjoint<'a, f32>,
    span: &'a Span,
    first: usize,
    rows: usize,
    kv_head: usize,
    blocks: &'a [u32],
}

/// One query's softmax so far.
#[derive(Clone, Copy)]
struct Running {
    /// The highest score.
    max: f32,
    /// Sum of `exp(score - max)`.
    sum: f32,
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let group = self.heads.query / self.heads.kv;
        let mut running = vec![Running { max: f32::NEG_INFINITY, sum: 0.0 }; self.rows * group];
        for (q, running) in running.iter_mut().enumerate() {
            self.sums(q).fill(0.0);
            if let Some(sinks) = self.sinks {
                *running = Running { max: sinks[self.place(q).1], sum: 1.0 };
            }
        }
        // Later rows see later positions: the first sees the earliest, the last the latest.
        let earliest = self.mask.seen(self.span, self.first).start;
        let latest = self.mask.seen(self.span, self.first + self.rows - 1).end;
        for b in earliest / KV_BLOCK_TOKENS..latest.div_ceil(KV_BLOCK_TOKENS) {
            let (keys, values) = self.cache.block(self.layer, self.blocks[b], self.kv_head);
            let block = Block { keys, values, begin: b * KV_BLOCK_TOKENS };
            let rows = self.rows_that_see(&block);
            let (mut q, queries) = (rows.start * group, rows.end * group);
            while L::QUERIES >= 4 && q + 4 <= queries {
                self.fold::<L, 4>(l, &block, q, &mut running);
                q += 4;
            }
            if L::QUERIES >= 4 && q + 3 == queries {
                self.fold::<L, 3>(l, &block, q, &mut running);
                q += 3;
            }
            while q + 2 <= queries {
                self.fold::<L, 2>(l, &block, q, &mut running);
                q += 2;
            }
            if q < queries {
                self.fold::<L, 1>(l, &block, q, &mut running);
            }
        }
        for (q, running) in running.iter().enumerate() {
            let inverse = l.splat(1.0 / running.sum);
            for v in self.sums(q).as_chunks_mut::<LANES>().0 {
                l.store(l.mul(l.load(v), inverse), v);
            }
        }
    }
}

/// 16 positions of a sequence.
struct Block<'a> {
    /// `[dim][16]`.
    keys: &'a [u16],
    /// `[16][dim]`.
    values: &'a [u16],
    /// Position of the first.
    begin: usize,
}

type Scores = [f32; KV_BLOCK_TOKENS];

impl Rows<'_> {
    /// The rows of this chunk that see something of a block.
    fn rows_that_see(&self, block: &Block<'_>) -> Range<usize> {
        let position = self.span.first_position + self.first;
        let end = block.begin + KV_BLOCK_TOKENS;
        let first = if self.mask.causal { block.begin.saturating_sub(position) } else { 0 };
        let last = self.mask.window.map_or(self.rows, |window| (end + window - 1).saturating_sub(position));
        first..last.min(self.rows)
    }

    /// Which of the 16 positions of a block a query sees.
    fn seen(&self, block: &Block<'_>, query: usize) -> Range<usize> {
        let row = self.first + query / (self.heads.query / self.heads.kv);
        let seen = self.mask.seen(self.span, row);
        seen.start.saturating_sub(block.begin)..(seen.end - block.begin).min(KV_BLOCK_TOKENS)
    }

    /// Row and query head of a query of this chunk.
    fn place(&self, query: usize) -> (usize, usize) {
        let group = self.heads.query / self.heads.kv;
        (self.span.first_row + self.first + query / group, self.kv_head * group + query % group)
    }

    fn query(&self, query: usize) -> &[f32] {
        let (row, head) = self.place(query);
        &self.qkv[row * self.heads.qkv_cols() + head * self.heads.dim..][..self.heads.dim]
    }

    /// Where the weighted sum of a query's values grows: its place in the output.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "parts of a shared output; callers hold one query's at a time")]
    fn sums(&self, query: usize) -> &mut [f32] {
        let (row, head) = self.place(query);
        let at = row * self.heads.query * self.heads.dim + head * self.heads.dim;
        // SAFETY: a row and head belong to one chunk, and within it no two results of this function for the same query
        // are alive at once.
        unsafe { self.out.range(at..at + self.heads.dim) }
    }

    /// Folds a block into the results of queries `first .. first + N`.
    #[inline(always)]
    fn fold<L: Lanes, const N: usize>(&self, l: L, block: &Block<'_>, first: usize, running: &mut [Running]) {
        let q: [&[f32]; N] = std::array::from_fn(|n| self.query(first + n));
        let seen: [Range<usize>; N] = std::array::from_fn(|n| self.seen(block, first + n));
        let mut weights = scores(l, block.keys, q, &self.mask);
        let mut rescale = [0.0; N];
        for n in 0..N {
            rescale[n] = soften(l, &mut weights[n], &seen[n], &mut running[first + n]);
        }
        let mut out: [&mut [f32]; N] = std::array::from_fn(|n| self.sums(first + n));
        if seen.iter().all(|seen| *seen == (0..KV_BLOCK_TOKENS)) {
            add_values(l, block.values, &weights, rescale, 0..KV_BLOCK_TOKENS, &mut out);
        } else {
            // What lies beyond may be anything, NaN included: it is not even multiplied by zero.
            for n in 0..N {
                let out = std::array::from_mut(&mut out[n]);
                add_values(l, block.values, &[weights[n]], [rescale[n]], seen[n].clone(), out);
            }
        }
    }
}

/// Scores of the 16 keys of a block, products summed in the order of the head's values.
#[inline(always)]
fn scores<L: Lanes, const N: usize>(l: L, keys: &[u16], q: [&[f32]; N], mask: &Mask) -> [Scores; N] {
    let mut sums = [l.splat(0.0); N];
    let (keys, _) = keys.as_chunks::<LANES>();
    let q: [&[f32]; N] = q.map(|q| &q[..keys.len()]);
    for (d, k) in keys.iter().enumerate() {
        let k = l.load_f16(k);
        for n in 0..N {
            sums[n] = l.fma(l.splat(q[n][d]), k, sums[n]);
        }
    }
    let mut scores = [[0.0; KV_BLOCK_TOKENS]; N];
    for n in 0..N {
        l.store(capped(l, l.mul(sums[n], l.splat(mask.scale)), mask.softcap), &mut scores[n]);
    }
    scores
}

/// Turns the scores that are `seen` into weights under the new running maximum, the others into 0. Returns what earlier
/// sums are to be multiplied by.
#[inline(always)]
fn soften<L: Lanes>(l: L, scores: &mut Scores, seen: &Range<usize>, running: &mut Running) -> f32 {
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    let a = l.load(scores);
    let highest = l.largest(a);
    let max = if highest > running.max { highest } else { running.max };
    let weights = l.exp(l.add(a, l.splat(-max)));
    l.store(weights, scores);
    let mut rescale = 1.0; // which is what `exp` gives for a maximum that stays
    if max != running.max {
        let mut lanes = [0.0; LANES];
        l.store(l.exp(l.splat(running.max - max)), &mut lanes);
        rescale = lanes[0];
    }
    *running = Running { max, sum: running.sum * rescale + l.sum(weights) };
    rescale
}

/// `out = out * rescale`, then `+= weight * value` in order of position, for the values of a block that are `seen`.
#[inline(always)]
fn add_values<L: Lanes, const N: usize>(
    l: L,
    values: &[u16],
    weights: &[Scores; N],
    rescale: [f32; N],
    seen: Range<usize>,
    out: &mut [&mut [f32]; N],
) {
    let dim = values.len() / KV_BLOCK_TOKENS;
    let mut at = 0;
    // Several vectors at a time keep enough sums in flight to hide the latency of an addition.
    while at + 4 * LANES <= dim {
        add_columns::<L, N, 4>(l, (values, dim, at), weights, rescale, seen.clone(), out);
        at += 4 * LANES;
    }
    while at + LANES <= dim {
        add_columns::<L, N, 1>(l, (values, dim, at), weights, rescale, seen.clone(), out);
        at += LANES;
    }
}

/// [`add_values`] for `16 * C` columns beginning at `at`.
#[inline(always)]
fn add_columns<L: Lanes, const N: usize, const C: usize>(
    l: L,
    (values, dim, at): (&[u16], usize, usize),
    weights: &[Scores; N],
    rescale: [f32; N],
    seen: Range<usize>,
    out: &mut [&mut [f32]; N],
) {
    let mut sums = [[l.splat(0.0); C]; N];
    for n in 0..N {
        let (old, _) = out[n][at..at + C * LANES].as_chunks::<LANES>();
        for c in 0..C {
            sums[n][c] = l.mul(l.load(&old[c]), l.splat(rescale[n]));
        }
    }
    for j in seen {
        let (v, _) = values[j * dim + at..][..C * LANES].as_chunks::<LANES>();
        for c in 0..C {
            let v = l.load_f16(&v[c]);
            for n in 0..N {
                sums[n][c] = l.fma(l.splat(weights[n][j]), v, sums[n][c]);
            }
        }
    }
    for n in 0..N {
        let (new, _) = out[n][at..at + C * LANES].as_chunks_mut::<LANES>();
        for c in 0..C {
            l.store(sums[n][c], &mut new[c]);
        }
    }
}
