//! Paged keys and values, and the rotation that goes before storing them. Never decides which block is whose.
//!
//! A block holds, for one layer and one key/value head, keys as `[dim][16 tokens]` and then values as
//! `[16 tokens][dim]`: scores then come out one token to a lane, and no sum ever runs across lanes. Where values have scales,
//! those of keys and those of values follow them (`stored`).

mod stored;

use std::sync::OnceLock;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

pub(super) use self::stored::{Bytes, Halves, Stored};
use super::arena::{Arena, Slab};
use super::disjoint::Disjoint;
use super::lanes::LANES;
use super::pool::Pool;
use crate::kv::{KvKind, quantize, scale_block};
use crate::ops::{Heads, KV_BLOCK_TOKENS, KvShape, OpsError, Rope, RopePairs, Span, StepLayout};

/// Keys and values of all layers.
pub struct KvCache {
    pub(super) shape: KvShape,
    /// As [`Stored`] has it.
    data: Slab<u8>,
}

impl KvCache {
    pub(super) fn new(arena: &mut Arena, shape: KvShape) -> Result<Self, OpsError> {
        assert_eq!(shape.head_dim % LANES, 0, "a head has a multiple of {LANES} values");
        Ok(Self { shape, data: arena.zeroed(shape.bytes(), "the KV cache")? })
    }

    /// Bytes of one key or value block.
    fn plane(&self) -> usize {
        KV_BLOCK_TOKENS * self.shape.kind.row_bytes(self.shape.head_dim)
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

    /// The bytes of keys and of values, for a [`Stored`].
    pub(super) fn block(&self, layer: usize, block: u32, head: usize) -> (&[u8], &[u8]) {
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
    kind: KvKind,
    /// Bytes of one key or value block.
    plane: usize,
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
        Self { at, dim: cache.shape.head_dim, kind: cache.shape.kind, plane: cache.plane() }
    }

    /// Stores the keys and values of all heads of a row at `slot` of its block.
    ///
    /// # Safety
    /// No other thread touches that slot meanwhile.
    unsafe fn store(&self, data: &Disjoint<'_, u8>, row: usize, slot: usize, keys: &[f32], values: &[f32]) {
        let mut rounding = Rounding::new(self.kind, self.dim);
        for (head, (keys, values)) in keys.chunks_exact(self.dim).zip(values.chunks_exact(self.dim)).enumerate() {
            let at = self.at[row] + head * 2 * self.plane;
            let size = rounding.size();
            for (d, key) in rounding.round(keys).chunks_exact(size).enumerate() {
                let place = at + (d * KV_BLOCK_TOKENS + slot) * size;
                // SAFETY: one value of the slot that is ours by the contract.
                unsafe { data.range(place..place + size) }.copy_from_slice(key);
            }
            // SAFETY: the scales of the same slot.
            unsafe { rounding.store_scales(data, at, slot) };
            let (at, len) = (at + self.plane, self.dim * size);
            let place = at + slot * len;
            // SAFETY: the values of the same slot.
            unsafe { data.range(place..place + len) }.copy_from_slice(rounding.round(values));
            // SAFETY: and their scales.
            unsafe { rounding.store_scales(data, at, slot) };
        }
    }
}

/// Room to round the values of a head in.
enum Rounding {
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Bytes(Vec<i8>, Vec<f16>),
}

impl Rounding {
    fn new(kind: KvKind, dim: usize) -> Self {
        match kind {
            KvKind::F16 => Self::F16(vec![f16::ZERO; dim]),
            KvKind::BF16 => Self::Bf16(vec![bf16::ZERO; dim]),
            KvKind::Q8_0 => Self::Bytes(vec![0; dim], vec![f16::ZERO; dim / scale_block(dim)]),
        }
    }

    /// Bytes of a value.
    fn size(&self) -> usize {
        match self {
            Self::F16(_) | Self::Bf16(_) => 2,
            Self::Bytes(..) => 1,
        }
    }

    /// The bytes of a head's values.
    fn round(&mut self, v: &[f32]) -> &[u8] {
        match self {
            Self::F16(halves) => {
                halves.convert_from_f32_slice(v);
                bytemuck::cast_slice(halves)
            }
            Self::Bf16(halves) => {
                halves.convert_from_f32_slice(v);
                bytemuck::cast_slice(halves)
            }
            Self::Bytes(bytes, scales) => {
                quantize(v, bytes, scales);
                bytemuck::cast_slice(bytes)
            }
        }
    }

    /// Stores the scales of what was rounded last, if the format has any, in the key or value block that begins at `at`.
    ///
    /// # Safety
    /// No other thread touches that slot meanwhile.
    unsafe fn store_scales(&self, data: &Disjoint<'_, u8>, at: usize, slot: usize) {
        let Self::Bytes(bytes, scales) = self else { return };
        for (block, scale) in scales.iter().enumerate() {
            let place = at + bytes.len() * KV_BLOCK_TOKENS + (block * KV_BLOCK_TOKENS + slot) * 2;
            // SAFETY: one scale of the slot that is ours by the contract.
            unsafe { data.range(place..place + 2) }.copy_from_slice(&scale.to_bits().to_ne_bytes());
        }
    }
}
