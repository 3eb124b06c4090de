//! Attention over paged keys and values. A query sees its blocks in order of position, with a running maximum in each split,
//! and goes through the same arithmetic whether it is alone or one of many that share the loads of a block.

use std::ops::Range;

use super::disjoint::Disjoint;
use super::kv_cache::{Bytes, Halves, KvCache, Stored};
use super::lanes::{Kernel, LANES, Lanes, Level};
use super::pool::Pool;
use super::rows::capped;
use crate::kv::KvKind;
use crate::ops::{ATTENTION_SPLIT, Heads, KV_BLOCK_TOKENS, Mask, Span, StepLayout};

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

/// One query: where it is, and its softmax so far.
struct Query {
    /// Where its values begin in the fused projection.
    at: usize,
    /// Where its result begins in the output.
    out: usize,
    /// The positions it sees.
    seen: Range<usize>,
    /// Of the split that is being folded; the weighted sum of its values is in `parts` of [`Rows::run`].
    split: Softmax,
    /// Of the splits before it; the weighted sum of their values is in the output.
    all: Softmax,
}

/// A softmax of some scores.
#[derive(Clone, Copy)]
struct Softmax {
    /// The highest score.
    max: f32,
    /// Sum of `exp(score - max)`.
    sum: f32,
}

impl Softmax {
    /// Of no scores.
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match self.cache.shape.kind {
            KvKind::F16 => self.attend::<L, Halves<'_, false>>(l),
            KvKind::BF16 => self.attend::<L, Halves<'_, true>>(l),
            KvKind::Q8_0 => self.attend::<L, Bytes<'_>>(l),
        }
    }
}

/// 16 positions of a sequence.
struct Block<S> {
    /// Their keys and values.
    stored: S,
    /// Position of the first.
    begin: usize,
}

type Scores = [f32; KV_BLOCK_TOKENS];

impl<'a> Rows<'a> {
    #[inline(always)]
    fn attend<L: Lanes, S: Stored<'a>>(self, l: L) {
        let (group, dim) = (self.heads.query / self.heads.kv, self.heads.dim);
        let mut queries = self.queries(group);
        let mut parts = vec![0.0; queries.len() * dim];
        // Later rows see later positions: the first sees the earliest, the last the latest.
        let earliest = self.mask.seen(self.span, self.first).start;
        let latest = self.mask.seen(self.span, self.first + self.rows - 1).end;
        for split in earliest / ATTENTION_SPLIT..latest.div_ceil(ATTENTION_SPLIT) {
            let begin = earliest.max(split * ATTENTION_SPLIT) / KV_BLOCK_TOKENS;
            let end = latest.min((split + 1) * ATTENTION_SPLIT).div_ceil(KV_BLOCK_TOKENS);
            for b in begin..end {
                let (keys, values) = self.cache.block(self.layer, self.blocks[b], self.kv_head);
                let block = Block { stored: S::new(keys, values, dim), begin: b * KV_BLOCK_TOKENS };
                let rows = self.rows_that_see(&block);
                let rows = rows.start * group..rows.end * group;
                self.fold_all(l, &block, &mut queries[rows.clone()], &mut parts[rows.start * dim..rows.end * dim]);
            }
            for (query, part) in queries.iter_mut().zip(parts.chunks_exact_mut(dim)) {
                self.join(l, query, part);
            }
        }
        for query in &queries {
            let inverse = l.splat(1.0 / query.all.sum);
            for v in self.result(query).as_chunks_mut::<LANES>().0 {
                l.store(l.mul(l.load(v), inverse), v);
            }
        }
    }

    /// The rows of this chunk that see something of a block.
    fn rows_that_see<S>(&self, block: &Block<S>) -> Range<usize> {
        let position = self.span.first_position + self.first;
        let end = block.begin + KV_BLOCK_TOKENS;
        let first = if self.mask.causal { block.begin.saturating_sub(position) } else { 0 };
        let last = self.mask.window.map_or(self.rows, |window| (end + window - 1).saturating_sub(position));
        first..last.min(self.rows)
    }

    /// The queries of all rows, results at zero; `group` query heads share the key/value head.
    fn queries(&self, group: usize) -> Vec<Query> {
        let (dim, heads) = (self.heads.dim, self.kv_head * group..(self.kv_head + 1) * group);
        let rows = self.first..self.first + self.rows;
        let all = rows.flat_map(|i| heads.clone().map(move |head| (i, self.span.first_row + i, head)));
        let queries = all.map(|(i, row, head)| {
            let all = self.sinks.map_or(Softmax::EMPTY, |sinks| Softmax { max: sinks[head], sum: 1.0 });
            let at = row * self.heads.qkv_cols() + head * dim;
            let out = (row * self.heads.query + head) * dim;
            Query { at, out, seen: self.mask.seen(self.span, i), split: Softmax::EMPTY, all }
        });
        let queries: Vec<Query> = queries.collect();
        queries.iter().for_each(|query| self.result(query).fill(0.0));
        queries
    }

    /// Where the weighted sum of the values of a query's splits grows: its place in the output.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "parts of a shared output; callers hold one query's at a time")]
    fn result(&self, query: &Query) -> &mut [f32] {
        // SAFETY: a row and head belong to one chunk, and within it no two results of this function for the same query
        // are alive at once.
        unsafe { self.out.range(query.out..query.out + self.heads.dim) }
    }

    /// Folds a block into the `parts` of all `queries`.
    #[inline(always)]
    fn fold_all<L: Lanes, S: Stored<'a>>(&self, l: L, block: &Block<S>, queries: &mut [Query], parts: &mut [f32]) {
        let mut left = (queries, parts);
        while L::QUERIES >= 6 && left.0.len() >= 6 {
            left = self.fold::<L, S, 6>(l, block, left);
        }
        while L::QUERIES >= 3 && left.0.len() >= 3 {
            left = self.fold::<L, S, 3>(l, block, left);
        }
        while left.0.len() >= 2 {
            left = self.fold::<L, S, 2>(l, block, left);
        }
        if !left.0.is_empty() {
            self.fold::<L, S, 1>(l, block, left);
        }
    }

    /// Folds a block into the parts of the first `N` queries, and returns the others.
    #[inline(always)]
    fn fold<'q, L: Lanes, S: Stored<'a>, const N: usize>(
        &self,
        l: L,
        block: &Block<S>,
        (queries, parts): (&'q mut [Query], &'q mut [f32]),
    ) -> (&'q mut [Query], &'q mut [f32]) {
        let dim = self.heads.dim;
        let (queries, others) = queries.split_at_mut(N);
        let (parts, parts_of_others) = parts.split_at_mut(N * dim);
        let q: [&[f32]; N] = std::array::from_fn(|n| &self.qkv[queries[n].at..][..dim]);
        let mut weights = scores(l, &block.stored, q, &self.mask);
        let (mut rescale, mut seen) = ([0.0; N], [(0, 0); N]);
        for n in 0..N {
            let Range { start, end } = queries[n].seen;
            seen[n] = (start.saturating_sub(block.begin), (end - block.begin).min(KV_BLOCK_TOKENS));
            rescale[n] = soften(l, &mut weights[n], seen[n], &mut queries[n].split);
        }
        let mut parts = parts.chunks_exact_mut(dim);
        let mut out: [&mut [f32]; N] = std::array::from_fn(|_| parts.next().expect("a part for each query"));
        if seen == [(0, KV_BLOCK_TOKENS); N] {
            add_values(l, &block.stored, &weights, rescale, 0..KV_BLOCK_TOKENS, &mut out);
        } else {
            // What lies beyond may be anything, NaN included: it is not even multiplied by zero.
            for n in 0..N {
                let out = std::array::from_mut(&mut out[n]);
                add_values(l, &block.stored, &[weights[n]], [rescale[n]], seen[n].0..seen[n].1, out);
            }
        }
        (others, parts_of_others)
    }

    /// Joins what a query has of a split, if it saw anything of it, to what it has of those before, and begins anew.
    #[inline(always)]
    fn join<L: Lanes>(&self, l: L, query: &mut Query, part: &mut [f32]) {
        let Softmax { max, sum } = query.split;
        if sum == 0.0 {
            return; // the highest score's own weight is 1, so nothing was seen
        }
        let highest = if max > query.all.max { max } else { query.all.max };
        let before = exp(l, query.all.max - highest);
        let this = exp(l, max - highest);
        query.all = Softmax { max: highest, sum: sum.mul_add(this, query.all.sum * before) };
        let (out, _) = self.result(query).as_chunks_mut::<LANES>();
        let (part, _) = part.as_chunks_mut::<LANES>();
        let (before, this) = (l.splat(before), l.splat(this));
        for (out, part) in out.iter_mut().zip(part) {
            l.store(l.fma(l.load(part), this, l.mul(l.load(out), before)), out);
            l.store(l.splat(0.0), part);
        }
        query.split = Softmax::EMPTY;
    }
}

/// One lane of [`Lanes::exp`].
#[inline(always)]
fn exp<L: Lanes>(l: L, x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    l.store(l.exp(l.splat(x)), &mut lanes);
    lanes[0]
}

/// Scores of the 16 keys of a block, products summed in the order of the head's values.
#[inline(always)]
fn scores<'a, L: Lanes, S: Stored<'a>, const N: usize>(l: L, block: &S, q: [&[f32]; N], mask: &Mask) -> [Scores; N] {
    let mut sums = [l.splat(0.0); N];
    let dim = block.dim();
    assert!(dim.is_multiple_of(LANES) && q.iter().all(|q| q.len() == dim), "a key for each value of a head");
    for c in 0..dim / LANES {
        let scales = block.key_scales(l, c);
        for d in c * LANES..(c + 1) * LANES {
            let k = block.key(l, scales, d);
            for n in 0..N {
                // SAFETY: `d` is below `dim`, which is the length of every query: asserted above. Checked at each of the
                // products, that would cost a tenth of a prompt's attention.
                let value = unsafe { *q[n].get_unchecked(d) };
                sums[n] = l.fma(l.splat(value), k, sums[n]);
            }
        }
    }
    let mut scores = [[0.0; KV_BLOCK_TOKENS]; N];
    for n in 0..N {
        l.store(capped(l, l.mul(sums[n], l.splat(mask.scale)), mask.softcap), &mut scores[n]);
    }
    scores
}

/// Turns the scores that are seen into weights under the new running maximum, the others into 0. Returns what earlier
/// sums are to be multiplied by.
#[inline(always)]
fn soften<L: Lanes>(l: L, scores: &mut Scores, (from, to): (usize, usize), so_far: &mut Softmax) -> f32 {
    if (from, to) != (0, KV_BLOCK_TOKENS) {
        scores[..from].fill(f32::NEG_INFINITY);
        scores[to..].fill(f32::NEG_INFINITY);
    }
    let a = l.load(scores);
    let highest = l.largest(a);
    let max = if highest > so_far.max { highest } else { so_far.max };
    let weights = l.exp(l.add(a, l.splat(-max)));
    l.store(weights, scores);
    // A maximum that stays rescales by `exp(0)`, which is 1.
    let rescale = if max != so_far.max { exp(l, so_far.max - max) } else { 1.0 };
    *so_far = Softmax { max, sum: so_far.sum * rescale + l.sum(weights) };
    rescale
}

/// `out = out * rescale`, then `+= weight * value` in order of position, for the values of a block that are `seen`.
#[inline(always)]
fn add_values<'a, L: Lanes, S: Stored<'a>, const N: usize>(
    l: L,
    block: &S,
    weights: &[Scores; N],
    rescale: [f32; N],
    seen: Range<usize>,
    out: &mut [&mut [f32]; N],
) {
    let dim = block.dim();
    let mut at = 0;
    // Several vectors at a time keep enough sums in flight to hide the latency of an addition.
    while at + 4 * LANES <= dim {
        add_columns::<L, S, N, 4>(l, (block, at), weights, rescale, seen.clone(), out);
        at += 4 * LANES;
    }
    while at + LANES <= dim {
        add_columns::<L, S, N, 1>(l, (block, at), weights, rescale, seen.clone(), out);
        at += LANES;
    }
}

/// [`add_values`] for `16 * C` columns beginning at `at`.
#[inline(always)]
fn add_columns<'a, L: Lanes, S: Stored<'a>, const N: usize, const C: usize>(
    l: L,
    (block, at): (&S, usize),
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
    let scales = block.value_scales::<L, C>(l, at);
    for j in seen {
        let j = j % KV_BLOCK_TOKENS; // which it is, and now the compiler knows
        let v = block.values::<L, C>(l, &scales, j, at);
        for c in 0..C {
            for n in 0..N {
                sums[n][c] = l.fma(l.splat(weights[n][j]), v[c], sums[n][c]);
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
