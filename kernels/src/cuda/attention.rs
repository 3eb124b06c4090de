//! Keys, values and attention as launches.

use super::args::{cuckoo_attention, cuckoo_rope_store, cuckoo_row};
use super::machine::{Machine, Memory};
use super::operations::WARP;
use super::{Buffer, Cuda, KvCache, RopeTable, Vector};
use crate::ops::{ATTENTION_SPLIT, Heads, KV_BLOCK_TOKENS, Mask, OpsError, StepLayout};

/// Memory for sums of splits: more rows than fit take turns.
const PARTS_BYTES: usize = 64 << 20;

impl<M: Machine> Cuda<M> {
    /// What stands where in a step.
    fn layout(&mut self, step: &StepLayout<'_>, cache_blocks: usize) -> Result<(u64, u64), OpsError> {
        assert!(step.blocks.iter().all(|b| (*b as usize) < cache_blocks), "every block is in the cache");
        let mut rows = Vec::with_capacity(step.rows());
        for span in step.spans {
            assert!(span.first_block + span.blocks() <= step.blocks.len(), "a table names a block for each position");
            rows.extend((0..span.rows).map(|i| cuckoo_row {
                position: (span.first_position + i) as u32,
                first_block: span.first_block as u32,
                span_begin: span.first_position as u32,
                span_end: (span.first_position + span.rows) as u32,
            }));
        }
        let machine = &mut self.machine;
        Ok((
            self.scratch.rows.holding(machine, &rows, "the rows of a step")?,
            self.scratch.blocks.holding(machine, step.blocks, "the block tables of a step")?,
        ))
    }

    /// [`crate::ops::Ops::rope_store`].
    pub(super) fn store(
        &mut self,
        table: Option<&RopeTable<M>>,
        (step, heads): (&StepLayout<'_>, Heads),
        qkv: &mut Buffer<M>,
        (cache, layer): (&mut KvCache<M>, usize),
    ) -> Result<(), OpsError> {
        let layer = cache.layer(step, heads, qkv, layer);
        let last = step.spans.iter().map(|s| s.first_position + s.rows).max().unwrap_or(0);
        assert!(table.is_none_or(|t| last <= t.positions && 2 * t.pairs <= heads.dim), "every position has its turns");
        let (rows, blocks) = self.layout(step, cache.shape.blocks)?;
        let args = cuckoo_rope_store {
            turns: table.map_or(0, |t| t.memory.address()),
            rows,
            blocks,
            qkv: qkv.address(),
            keys: cache.keys.address() + layer,
            values: cache.values.address() + layer,
            count: qkv.rows as u32,
            query_heads: heads.query as u32,
            kv_heads: heads.kv as u32,
            dim: heads.dim as u32,
            pairs: table.map_or(0, |t| t.pairs as u32),
            halves: u32::from(table.is_some_and(|t| t.halves)),
        };
        let threads = (heads.dim / 2).next_multiple_of(WARP).min(128);
        let grid = [qkv.rows, heads.query + 2 * heads.kv, 1];
        // SAFETY: rows, heads and blocks were checked against the cache and the buffer.
        unsafe { self.launch(c"cuckoo_rope_store_rows", grid, (threads, 0), &args) }
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
        let layer = cache.layer(step, heads, qkv, layer);
        assert_eq!(out.cols, heads.query * heads.dim, "attention gives one output a query head");
        assert!(sinks.is_none_or(|s| s.len == heads.query), "a sink for each query head");
        out.begin(qkv.rows);
        let (rows, blocks) = self.layout(step, cache.shape.blocks)?;
        let longest = step.spans.iter().map(|s| s.first_position + s.rows).max().unwrap_or(0);
        let splits = longest.div_ceil(ATTENTION_SPLIT).max(1);
        let row_bytes = heads.query * splits * (heads.dim + 2) * size_of::<f32>();
        let together = (PARTS_BYTES / row_bytes).clamp(1, qkv.rows.max(1));
        let parts = self.scratch.parts.at_least(&mut self.machine, together * row_bytes, "sums of attention")?;
        for first in (0..qkv.rows).step_by(together) {
            let count = together.min(qkv.rows - first);
            let bytes = |cols: usize| (first * cols * size_of::<f32>()) as u64;
            let args = cuckoo_attention {
                rows: rows + (first * size_of::<cuckoo_row>()) as u64,
                blocks,
                qkv: qkv.address() + bytes(qkv.cols),
                keys: cache.keys.address() + layer,
                values: cache.values.address() + layer,
                sinks: sinks.map_or(0, |s| s.memory.address()),
                parts,
                out: out.address() + bytes(out.cols),
                count: count as u32,
                query_heads: heads.query as u32,
                kv_heads: heads.kv as u32,
                dim: heads.dim as u32,
                splits: splits as u32,
                window: mask.window.map_or(0, |w| u32::try_from(w).unwrap_or(0)),
                causal: u32::from(mask.causal),
                scale: mask.scale,
                softcap: mask.softcap.unwrap_or(0.0),
                padding: 0,
            };
            // SAFETY: rows, heads and blocks were checked against cache and buffers, and there is room for every part.
            unsafe {
                self.launch(c"cuckoo_attention_splits", [count, heads.query, splits], (WARP, 0), &args)?;
                self.launch(c"cuckoo_attention_join", [count, heads.query, 1], (WARP, 0), &args)?;
            }
        }
        Ok(())
    }
}

impl<M: Machine> KvCache<M> {
    /// Checks a step against the cache; where the layer begins, in bytes.
    fn layer(&self, step: &StepLayout<'_>, heads: Heads, qkv: &Buffer<M>, layer: usize) -> u64 {
        let shape = &self.shape;
        assert_eq!(qkv.rows, step.rows(), "every row belongs to a span");
        assert_eq!(qkv.cols, heads.qkv_cols(), "a row is queries, keys and values");
        assert!(heads.query.is_multiple_of(heads.kv), "query heads are shared out evenly");
        assert!(layer < shape.layers && heads.kv == shape.kv_heads && heads.dim == shape.head_dim, "the cache's heads");
        (layer * shape.blocks * shape.kv_heads * shape.head_dim * KV_BLOCK_TOKENS * size_of::<u16>()) as u64
    }
}
