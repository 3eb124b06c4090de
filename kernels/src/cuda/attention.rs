//! Keys, values and attention as launches. Decides which rows go together, and which splits are computed side by side: never
//! what any of them computes.

use std::cmp::Reverse;
use std::ffi::CStr;

mod laid;

pub(super) use self::laid::StepLists;
use super::args::{cuckoo_attention, cuckoo_rope_store, cuckoo_rounded, cuckoo_tile};
use super::kv_cache::KvCache;
use super::machine::{Machine, Piece};
use super::operations::WARP;
use super::scratch::Bounds;
use super::{Buffer, Cuda, RopeTable, Vector};
use crate::kv::KvKind;
use crate::ops::{ACTIVATION_BLOCK, ATTENTION_SPLIT, Heads, KV_BLOCK_TOKENS, Mask, OpsError, StepLayout};

/// Queries (rows times query heads of a KV head) of a span that are left to tiles of few queries.
const NARROW_QUERIES: usize = 32;

/// Threads that store a head of the rows of a KV block.
const STORE_THREADS: usize = 128;

/// What kernels number a tile with that keeps its sums to itself.
const NO_PART: u32 = u32::MAX;

/// Bytes of a slot of a kernel's shared memory, and others of attention.cu.
const SLOT_BYTES: usize = 16896;

/// How many queries a block of threads takes, and with how many threads.
#[derive(Clone, Copy, Debug)]
struct Shape {
    queries: usize,
    threads: usize,
    /// KV blocks whose scores are made together, four for each warp that shares a query.
    chunk: usize,
    slots: usize,
    /// Room for a query in shared memory, whatever its size.
    query_floats: usize,
    /// Kernels by how keys and values are kept.
    kernels: [&'static CStr; 3],
}

const NARROW: Shape = Shape {
    queries: 8,
    threads: 128,
    chunk: 16,
    slots: 3,
    query_floats: 0,
    kernels: [c"cuckoo_attention_narrow_f16", c"cuckoo_attention_narrow_bf16", c"cuckoo_attention_narrow_q8_0"],
};

/// By the most values of a head.
const WIDE: [(usize, Shape); 3] = [
    (
        128,
        wide(
            64,
            128,
            [c"cuckoo_attention_wide_128_f16", c"cuckoo_attention_wide_128_bf16", c"cuckoo_attention_wide_128_q8_0"],
        ),
    ),
    (
        256,
        wide(
            32,
            256,
            [c"cuckoo_attention_wide_256_f16", c"cuckoo_attention_wide_256_bf16", c"cuckoo_attention_wide_256_q8_0"],
        ),
    ),
    (
        512,
        wide(
            16,
            512,
            [c"cuckoo_attention_wide_512_f16", c"cuckoo_attention_wide_512_bf16", c"cuckoo_attention_wide_512_q8_0"],
        ),
    ),
];

const fn wide(queries: usize, query_floats: usize, kernels: [&'static CStr; 3]) -> Shape {
    Shape { queries, threads: 256, chunk: 4, slots: 2, query_floats, kernels }
}

impl Shape {
    /// Query heads of a KV head that go together: as few blocks of threads as can be, with as many heads each.
    fn heads_each(&self, heads: Heads) -> usize {
        let group = heads.query / heads.kv;
        group.div_ceil(group.div_ceil(self.queries))
    }

    fn shared_bytes(&self, dim: usize) -> usize {
        // As `Tile` of attention.cu has it: a query, its weights and what is known of KV blocks, what was joined, what it sees
        // and where it goes.
        let floats = self.queries * (self.query_floats.max(dim) + self.chunk * (KV_BLOCK_TOKENS + 3) + 3 + self.chunk);
        self.slots * SLOT_BYTES + floats * size_of::<f32>()
    }
}

/// What is launched for a step's attention.
#[derive(Debug, Default)]
struct Plan {
    narrow: Vec<cuckoo_tile>,
    wide: Vec<cuckoo_tile>,
    /// Tiles whose splits are joined afterwards.
    joins: Vec<cuckoo_tile>,
    /// Rows of splits that are joined.
    part_rows: usize,
}

impl Plan {
    fn new((step, heads): (&StepLayout<'_>, Heads), mask: &Mask, shapes: [&Shape; 2], bounds: Bounds) -> Self {
        let group = heads.query / heads.kv;
        let blocks = shapes.map(|shape| heads.kv * group.div_ceil(shape.heads_each(heads)));
        let [narrow, wide] = tiles(step, heads, mask, shapes);
        let splits = |tile: &cuckoo_tile| (tile.split_end - tile.split) as usize;
        let work: usize = [&narrow, &wide]
            .into_iter()
            .zip(blocks)
            .map(|(t, blocks)| t.iter().map(splits).sum::<usize>() * blocks)
            .sum();
        let rows_most = bounds.parts_bytes / (heads.query * part_floats(heads.dim) * size_of::<f32>());
        let mut plan = Self::default();
        for (tiles, is_wide) in [(narrow, false), (wide, true)] {
            for tile in tiles {
                let (count, part) = (splits(&tile), plan.part_rows);
                let rows = count * tile.rows as usize;
                let own = if is_wide { &mut plan.wide } else { &mut plan.narrow };
                if count == 1 || count * bounds.fill <= work || part + rows > rows_most {
                    own.push(tile);
                    continue;
                }
                own.extend((0..count as u32).map(|i| cuckoo_tile {
                    split: tile.split + i,
                    split_end: tile.split + i + 1,
                    part: part as u32 + i * tile.rows,
                    ..tile
                }));
                plan.joins.push(cuckoo_tile { part: part as u32, ..tile });
                plan.part_rows += rows;
            }
        }
        // What takes longest begins first.
        plan.narrow.sort_by_key(|tile| Reverse(splits(tile)));
        plan.wide.sort_by_key(|tile| Reverse(splits(tile)));
        plan
    }
}

/// Floats of the sums of one row, query head and split.
fn part_floats(dim: usize) -> usize {
    dim + 4
}

/// Rows that go together: those of short spans, and those of long ones.
fn tiles(step: &StepLayout<'_>, heads: Heads, mask: &Mask, [narrow, wide]: [&Shape; 2]) -> [Vec<cuckoo_tile>; 2] {
    let mut tiles = [Vec::new(), Vec::new()];
    for span in step.spans {
        let is_wide = span.rows * (heads.query / heads.kv) > NARROW_QUERIES;
        let shape = if is_wide { wide } else { narrow };
        let rows_each = shape.queries / shape.heads_each(heads);
        for first in (0..span.rows).step_by(rows_each) {
            let rows = rows_each.min(span.rows - first);
            let (begin, end) = (mask.seen(span, first).start, mask.seen(span, first + rows - 1).end);
            tiles[usize::from(is_wide)].push(cuckoo_tile {
                first_row: (span.first_row + first) as u32,
                rows: rows as u32,
                position: (span.first_position + first) as u32,
                first_block: span.first_block as u32,
                span_end: (span.first_position + span.rows) as u32,
                split: (begin / ATTENTION_SPLIT) as u32,
                split_end: end.div_ceil(ATTENTION_SPLIT) as u32,
                part: NO_PART,
            });
        }
    }
    tiles
}

impl<M: Machine> Cuda<M> {
    /// [`crate::ops::Ops::rope_store`].
    pub(super) fn store(
        &mut self,
        table: Option<&RopeTable<M>>,
        (step, heads): (&StepLayout<'_>, Heads),
        qkv: &mut Buffer<M>,
        (cache, layer): (&mut KvCache<M>, usize),
    ) -> Result<(), OpsError> {
        cache.check(step, heads, qkv);
        let last = step.spans.iter().map(|s| s.first_position + s.rows).max().unwrap_or(0);
        assert!(table.is_none_or(|t| last <= t.positions && 2 * t.pairs <= heads.dim), "every position has its turns");
        let laid = self.steps.laid(&mut self.machine, step, cache)?;
        let args = cuckoo_rope_store {
            turns: table.map_or(0, |t| t.memory.address()),
            groups: laid.rows(),
            qkv: qkv.written(),
            kv: cache.args(layer),
            query_heads: heads.query as u32,
            pairs: table.map_or(0, |t| t.pairs as u32),
            halves: u32::from(table.is_some_and(|t| t.halves)),
            padding: 0,
        };
        let grid = [laid.groups(), heads.query + 2 * heads.kv, 1];
        let kernels = [c"cuckoo_rope_store_f16", c"cuckoo_rope_store_bf16", c"cuckoo_rope_store_q8_0"];
        let turned = heads.dim * KV_BLOCK_TOKENS * size_of::<u16>();
        // SAFETY: rows, heads and blocks were checked against the cache and the buffer.
        unsafe { self.launch(kernels[kernel_of(cache.kind())], grid, (STORE_THREADS, turned), &args) }
    }

    /// [`crate::ops::Ops::attention`].
    pub(super) fn attend(
        &mut self,
        step: &StepLayout<'_>,
        (heads, mask, sinks): (Heads, Mask, Option<&Vector<M>>),
        qkv: &Buffer<M>,
        (cache, layer): (&KvCache<M>, usize),
        out: &mut Buffer<M>,
    ) -> Result<(), OpsError> {
        cache.check(step, heads, qkv);
        assert_eq!(out.cols, heads.query * heads.dim, "attention gives one output a query head");
        assert!(sinks.is_none_or(|s| s.len == heads.query), "a sink for each query head");
        out.begin(qkv.rows);
        let wide = WIDE.iter().find(|(most, _)| heads.dim <= *most).map_or(&WIDE[WIDE.len() - 1].1, |(_, shape)| shape);
        let shapes = [&NARROW, wide];
        let laid = self.steps.laid(&mut self.machine, step, cache)?;
        let planned = laid.planned(&mut self.machine, (step, heads), &mask, shapes, self.bounds)?;
        let blocks = laid.tables();
        // Tiles of many queries do not round.
        let rounds = planned.wide == 0 && heads.dim.is_multiple_of(ACTIVATION_BLOCK);
        let rounded = if rounds { self.leave_rounded(out.address(), out)? } else { cuckoo_rounded::default() };
        let bytes = planned.part_rows * heads.query * part_floats(heads.dim) * size_of::<f32>();
        let args = cuckoo_attention {
            tiles: planned.tiles,
            blocks,
            qkv: qkv.address(),
            kv: cache.args(layer),
            sinks: sinks.map_or(0, |s| s.memory.address()),
            parts: self.scratch.parts.at_least(&mut self.machine, bytes, "sums of attention")?,
            out: out.address(),
            rounded,
            query_heads: heads.query as u32,
            heads_each: 0,
            window: mask.window.map_or(0, |w| u32::try_from(w).unwrap_or(0)),
            causal: u32::from(mask.causal),
            scale: mask.scale,
            softcap: mask.softcap.unwrap_or(0.0),
        };
        let group = heads.query / heads.kv;
        let mut tiles = planned.tiles;
        for (shape, count) in shapes.into_iter().zip([planned.narrow, planned.wide]) {
            let heads_each = shape.heads_each(heads);
            let args = cuckoo_attention { tiles, heads_each: heads_each as u32, ..args };
            tiles += (count * size_of::<cuckoo_tile>()) as u64;
            let grid = [count, heads.kv * group.div_ceil(heads_each), 1];
            let extent = (shape.threads, shape.shared_bytes(heads.dim));
            // SAFETY: rows, heads and blocks were checked against cache and buffers, tiles are of the step's rows, and there is
            // room for every part.
            unsafe { self.launch(shape.kernels[kernel_of(cache.kind())], grid, extent, &args)? }
        }
        // SAFETY: as above; what is joined was left by the launches before.
        unsafe {
            let args = cuckoo_attention { tiles, ..args };
            self.launch(c"cuckoo_attention_join", [planned.joins, heads.query, planned.join_rows], (WARP, 0), &args)
        }
    }
}

/// Where a kind's kernels stand in lists of them.
pub(super) fn kernel_of(kind: KvKind) -> usize {
    match kind {
        KvKind::F16 => 0,
        KvKind::BF16 => 1,
        KvKind::Q8_0 => 2,
    }
}

#[cfg(test)]
mod tests;
