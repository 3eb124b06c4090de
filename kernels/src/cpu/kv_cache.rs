//! Paged keys and values in `f16`, and the rotation that goes before storing them. Never decides which block is whose.
//!
//! A block holds, for one layer and one key/value head, keys as `[dim][16 tokens]` and then values as
//! `[16 tokens][dim]`: scores then come out one token to a lane, and no sum ever runs across lanes.

use std::sync::OnceLock;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::arena::{Arena, Slab};
use super::disjoint::Disjoint;
use super::lanes::LANES;
use super::pool::Pool;
use crate::ops::{Heads, KV_BLOCK_TOKENS, KvShape, OpsError, Rope, RopePairs, Span, StepLayout};

/// Keys and values of all layers.
pub struct KvCache {
    pub(super) shape: KvShape,
    /// Bits of `f16`.
    data: Slab<u16>,
}

impl KvCache {
    pub(super) fn new(arena: &mut Arena, shape: KvShape) -> Result<Self, OpsError> {
        assert_eq!(shape.head_dim % LANES, 0, "a head has a multiple of {LANES} values");
        Ok(Self { shape, data: arena.zeroed(shape.bytes() / 2, "the KV cache")? })
    }

    /// Values of one key or value block.
    fn plane(&self) -> usize {
        KV_BLOCK_TOKENS * self.shape.head_dim
    }

    /// Where the keys of a block begin; its values follow.
    fn keys_at(&self, layer: usize, block: u32, head: usize) -> usize {
        let s = &self.shape;
        assert!(
            layer < s.layers && (block as usize) < s.blocks && head < s.kv_heads,
            "block {block} is not in the cache"
        );
        ((layer * s.blocks + block as usize) * s.kv_heads + head) * 2 * self.plane()
    }

    /// Copies a block of all layers from another cache of the same shape: in each, it lies in one piece.
    pub(super) fn copy(&mut self, to: u32, from: &Self, block: u32) {
        let len = self.shape.kv_heads * 2 * self.plane();
        assert!(
            self.shape == KvShape { blocks: self.shape.blocks, ..from.shape },
            "a block is copied between caches of the same layers and heads"
        );
        for layer in 0..self.shape.layers {
            let (to, from_at) = (self.keys_at(layer, to, 0), from.keys_at(layer, block, 0));
            self.data.as_mut()[to..to + len].copy_from_slice(&from.data[from_at..from_at + len]);
        }
    }

    /// Keys `[dim][16]` and values `[16][dim]`.
    pub(super) fn block(&self, layer: usize, block: u32, head: usize) -> (&[u16], &[u16]) {
        let at = self.keys_at(layer, block, head);
        self.data[at..at + 2 * self.plane()].split_at(self.plane())
    }
}

/// Positions whose cosines and sines are computed together.
const TURNS_TOGETHER: usize = 64;

/// Cosine and sine of a pair.
type Turn = (f32, f32);

/// Cosines and sines of every position, computed when a position is first met: a long context costs nothing until then.
pub struct RopeTable {
    rope: Rope,
    /// `[position % 64][pair]` of (cosine, sine), for 64 positions each.
    turns: Vec<OnceLock<Box<[Turn]>>>,
}

impl RopeTable {
    pub(super) fn new(rope: &Rope) -> Result<Self, OpsError> {
        assert!(!rope.frequencies.is_empty(), "a rotation turns at least one pair");
        let turns = (0..rope.positions.div_ceil(TURNS_TOGETHER)).map(|_| OnceLock::new()).collect();
        Ok(Self { rope: rope.clone(), turns })
    }

    /// Bytes of the table of a rotation, when every position has been met.
    pub(super) fn bytes(rope: &Rope) -> u64 {
        let chunks = rope.positions.div_ceil(TURNS_TOGETHER) as u64;
        let turns = (TURNS_TOGETHER * rope.frequencies.len() * size_of::<Turn>()) as u64;
        chunks.saturating_mul(turns + size_of::<OnceLock<Box<[Turn]>>>() as u64)
    }

    fn turns(&self, position: usize) -> &[Turn] {
        let half = self.rope.frequencies.len();
        let chunk = self.turns[position / TURNS_TOGETHER].get_or_init(|| {
            let first = position / TURNS_TOGETHER * TURNS_TOGETHER;
            (0..TURNS_TOGETHER * half).map(|i| self.rope.turn(first + i / half, i % half)).collect()
        });
        &chunk[position % TURNS_TOGETHER * half..][..half]
    }

    /// Rotates one head.
    fn rotate(&self, head: &mut [f32], position: usize) {
        let turns = self.turns(position);
        for (i, &(cosine, sine)) in turns.iter().enumerate() {
            let (a, b) = match self.rope.pairs {
                RopePairs::Adjacent => (2 * i, 2 * i + 1),
                RopePairs::Halves => (i, i + turns.len()),
            };
            (head[a], head[b]) = (head[a] * cosine - head[b] * sine, head[a] * sine + head[b] * cosine);
        }
    }
}

/// A row of a step: its span and its place in it.
pub(super) fn span_of<'a>(step: &StepLayout<'a>, row: usize) -> &'a Span {
    &step.spans[step.spans.partition_point(|s| s.first_row + s.rows <= row)]
}

/// [`crate::ops::Ops::rope_store`] on the rows of `qkv`.
pub(super) fn rope_store(
    pool: &mut Pool,
    table: Option<&RopeTable>,
    step: &StepLayout<'_>,
    heads: Heads,
    qkv: &mut [f32],
    (cache, layer): (&mut KvCache, usize),
) {
    const ROWS_EACH: usize = 4;
    let (cols, rows) = (heads.qkv_cols(), step.rows());
    let (qkv, places) = (Disjoint::new(qkv), Places::of(cache, step, layer));
    let data = Disjoint::new(cache.data.as_mut());
    pool.run(rows.div_ceil(ROWS_EACH), &|chunk| {
        for row in chunk * ROWS_EACH..rows.min((chunk + 1) * ROWS_EACH) {
            // SAFETY: every row belongs to one chunk.
            let qkv = unsafe { qkv.range(row * cols..(row + 1) * cols) };
            let span = span_of(step, row);
            let position = span.first_position + row - span.first_row;
            let (rotated, values) = qkv.split_at_mut((heads.query + heads.kv) * heads.dim);
            if let Some(table) = table {
                rotated.chunks_exact_mut(heads.dim).for_each(|head| table.rotate(head, position));
            }
            let keys = &rotated[heads.query * heads.dim..];
            // SAFETY: `Places::of` has made sure that no two rows of the step store at the same place.
            unsafe { places.store(&data, row, position % KV_BLOCK_TOKENS, keys, values) };
        }
    });
}

/// Where the rows of a step store.
struct Places {
    /// First key of head 0, for each row.
    at: Vec<usize>,
    dim: usize,
}

impl Places {
    fn of(cache: &KvCache, step: &StepLayout<'_>, layer: usize) -> Self {
        let at = step.spans.iter().flat_map(|span| {
            (span.first_position..span.first_position + span.rows)
                .map(|position| cache.keys_at(layer, step.blocks[span.first_block + position / KV_BLOCK_TOKENS], 0))
        });
        let at: Vec<usize> = at.collect();
        let positions = step.spans.iter().flat_map(|span| span.first_position..span.first_position + span.rows);
        let mut slots: Vec<_> = at.iter().copied().zip(positions.map(|p| p % KV_BLOCK_TOKENS)).collect();
        slots.sort_unstable();
        assert!(slots.windows(2).all(|w| w[0] != w[1]), "two rows of a step store at the same place of the KV cache");
        Self { at, dim: cache.shape.head_dim }
    }

    /// Stores the keys and values of all heads of a row at `slot` of its block.
    ///
    /// # Safety
    /// No other thread touches that slot meanwhile.
    unsafe fn store(&self, data: &Disjoint<'_, u16>, row: usize, slot: usize, keys: &[f32], values: &[f32]) {
        let dim = self.dim;
        let mut halves = vec![f16::ZERO; dim];
        for (head, (keys, values)) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate() {
            let at = self.at[row] + head * 2 * dim * KV_BLOCK_TOKENS;
            halves.convert_from_f32_slice(keys);
            for (d, key) in halves.iter().enumerate() {
                let place = at + d * KV_BLOCK_TOKENS + slot;
                // SAFETY: one element of the slot that is ours by the contract.
                let to = unsafe { data.range(place..place + 1) };
                to[0] = key.to_bits();
            }
            halves.convert_from_f32_slice(values);
            let place = at + (KV_BLOCK_TOKENS + slot) * dim;
            // SAFETY: the values of the same slot.
            let to = unsafe { data.range(place..place + dim) };
            to.copy_from_slice(bytemuck::cast_slice(&halves));
        }
    }
}
