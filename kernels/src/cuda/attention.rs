//! Keys, values and attention as launches.

use super::args::{cuckoo_attention, cuckoo_rope_store, cuckoo_row};
use super::kv_cache::KvCache;
use super::machine::{Machine, Piece};
use super::operations::WARP;
use super::{Buffer, Cuda, RopeTable, Vector};
use crate::ops::{ATTENTION_SPLIT, Heads, Mask, OpsError, StepLayout};

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
        cache.check(step, heads, qkv);
        let last = step.spans.iter().map(|s| s.first_position + s.rows).max().unwrap_or(0);
        assert!(table.is_none_or(|t| last <= t.positions && 2 * t.pairs <= heads.dim), "every position has its turns");
        let (rows, blocks) = self.layout(step, cache.blocks())?;
        let args = cuckoo_rope_store {
            turns: table.map_or(0, |t| t.memory.address()),
            rows,
            blocks,
            qkv: qkv.address(),
            kv: cache.args(layer),
            count: qkv.rows as u32,
            query_heads: heads.query as u32,
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
        cache.check(step, heads, qkv);
        assert_eq!(out.cols, heads.query * heads.dim, "attention gives one output a query head");
        assert!(sinks.is_none_or(|s| s.len == heads.query), "a sink for each query head");
        out.begin(qkv.rows);
        let (rows, blocks) = self.layout(step, cache.blocks())?;
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
                kv: cache.args(layer),
                sinks: sinks.map_or(0, |s| s.memory.address()),
                parts,
                out: out.address() + bytes(out.cols),
                count: count as u32,
                query_heads: heads.query as u32,
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
