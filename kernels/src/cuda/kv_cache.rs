//! Keys and values on a machine, and blocks of them on the host. Never decides which block is whose.

use std::collections::HashMap;

use super::args::{cuckoo_kv, cuckoo_kv_copy};
use super::attention::kernel_of;
use super::machine::{Machine, Piece};
use super::operations::THREADS;
use super::{Buffer, Cuda};
use crate::kv::{KvKind, scale_block};
use crate::ops::{Heads, KV_BLOCK_TOKENS, KvShape, OpsError, StepLayout};

/// Values of a head that a lane can keep, times the lanes.
const DIM_MAX: usize = 512;

/// Keys, values, and the scales of both: one piece of memory each, `[layer][block]` of what `cuckoo_kv` says.
pub struct KvCache<M: Machine> {
    shape: KvShape,
    planes: [M::Memory; 4],
}

/// Blocks on the host: `[slot][layer]` of keys, values and their scales, as `cuckoo_kv_pack` packs them.
pub struct HostKv {
    shape: KvShape,
    bytes: Vec<u8>,
}

/// Bytes of a block of one layer in each of the planes.
fn plane_bytes(shape: &KvShape) -> [usize; 4] {
    let values = KV_BLOCK_TOKENS * shape.kv_heads * shape.head_dim;
    match shape.kind {
        KvKind::F16 | KvKind::BF16 => [2 * values, 2 * values, 0, 0],
        KvKind::Q8_0 => {
            let scales = 2 * values / scale_block(shape.head_dim);
            [values, values, scales, scales]
        }
    }
}

/// Bytes of a block of all layers.
fn slot_bytes(shape: &KvShape) -> usize {
    plane_bytes(shape).iter().sum::<usize>().saturating_mul(shape.layers)
}

impl<M: Machine> KvCache<M> {
    pub(super) fn new(machine: &mut M, shape: KvShape) -> Result<Self, OpsError> {
        assert!(shape.head_dim.is_multiple_of(16) && shape.head_dim <= DIM_MAX, "a head has 16 to {DIM_MAX} values");
        let count = shape.layers.saturating_mul(shape.blocks);
        let [keys, values, key_scales, value_scales] = plane_bytes(&shape);
        let mut plane = |bytes: usize| machine.allocate(count.saturating_mul(bytes), "the KV cache");
        Ok(Self { shape, planes: [plane(keys)?, plane(values)?, plane(key_scales)?, plane(value_scales)?] })
    }

    /// Where it is, which no other cache is.
    pub(super) fn address(&self) -> u64 {
        self.planes[0].address()
    }

    pub(super) fn blocks(&self) -> usize {
        self.shape.blocks
    }

    pub(super) fn kind(&self) -> KvKind {
        self.shape.kind
    }

    /// Checks a step against the cache.
    pub(super) fn check(&self, step: &StepLayout<'_>, heads: Heads, qkv: &Buffer<M>) {
        assert_eq!(qkv.rows, step.rows(), "every row belongs to a span");
        assert_eq!(qkv.cols, heads.qkv_cols(), "a row is queries, keys and values");
        assert!(heads.query.is_multiple_of(heads.kv), "query heads are shared out evenly");
        assert!(heads.kv == self.shape.kv_heads && heads.dim == self.shape.head_dim, "the cache has those heads");
    }

    /// One layer, as kernels are told of it.
    pub(super) fn args(&self, layer: usize) -> cuckoo_kv {
        let shape = &self.shape;
        assert!(layer < shape.layers, "layer {layer} is not in the cache");
        let bytes = plane_bytes(shape);
        let plane = |i: usize| self.planes[i].address() + (layer * shape.blocks * bytes[i]) as u64;
        cuckoo_kv {
            keys: plane(0),
            values: plane(1),
            key_scales: plane(2),
            value_scales: plane(3),
            kind: kernel_of(shape.kind) as u32,
            scale_block: scale_block(shape.head_dim) as u32,
            kv_heads: shape.kv_heads as u32,
            dim: shape.head_dim as u32,
        }
    }
}

impl HostKv {
    pub(super) fn new(shape: KvShape) -> Result<Self, OpsError> {
        let each = slot_bytes(&shape);
        let (mut bytes, count) = (Vec::new(), each.saturating_mul(shape.blocks));
        bytes.try_reserve_exact(count).map_err(|_| OpsError::OutOfMemory { what: "spilled blocks", bytes: count })?;
        bytes.resize(count, 0);
        Ok(Self { shape, bytes })
    }
}

/// Copies that go together: how many, and runs of them whose slots follow one another, as (first, slot, how many).
fn runs(slots: impl Iterator<Item = u32>) -> Vec<(usize, usize, usize)> {
    let mut runs: Vec<(usize, usize, usize)> = Vec::new();
    for (i, slot) in slots.enumerate() {
        match runs.last_mut() {
            Some((_, first, count)) if *first + *count == slot as usize => *count += 1,
            _ => runs.push((i, slot as usize, 1)),
        }
    }
    runs
}

impl<M: Machine> Cuda<M> {
    /// Blocks that are packed at once.
    fn packed_at_once(&self, cache: &KvCache<M>, host: &HostKv, copies: impl Iterator<Item = (u32, u32)>) -> usize {
        let shape = cache.shape;
        assert!(KvShape { blocks: 0, ..shape } == KvShape { blocks: 0, ..host.shape }, "blocks of the same shape");
        for (block, slot) in copies {
            let there = (block as usize) < shape.blocks && (slot as usize) < host.shape.blocks;
            assert!(there, "block {block} and slot {slot} are there");
        }
        (self.bounds.staging_bytes / slot_bytes(&shape)).max(1)
    }

    /// Packs blocks, or unpacks them.
    fn pack(&mut self, cache: &KvCache<M>, blocks: &[u32], back: bool) -> Result<(), OpsError> {
        let shape = cache.shape;
        let packed =
            self.scratch.staging.at_least(&mut self.machine, blocks.len() * slot_bytes(&shape), "packed blocks")?;
        let args = cuckoo_kv_copy {
            planes: [0, 1, 2, 3].map(|i| cache.planes[i].address()),
            packed,
            blocks: self.scratch.numbers.holding(&mut self.machine, blocks, "numbers of blocks")?,
            bytes: plane_bytes(&shape).map(|bytes| bytes as u32),
            layers: shape.layers as u32,
            cache_blocks: shape.blocks as u32,
            count: blocks.len() as u32,
            back: u32::from(back),
        };
        // SAFETY: blocks were checked against the cache, none is written twice, and there is room for all that are packed.
        unsafe { self.launch(c"cuckoo_kv_pack", [shape.layers, blocks.len(), 1], (THREADS, 0), &args) }
    }

    /// [`crate::ops::Ops::copy_out`].
    pub(super) fn spill(
        &mut self,
        cache: &KvCache<M>,
        host: &mut HostKv,
        copies: &[(u32, u32)],
    ) -> Result<(), OpsError> {
        let bytes = slot_bytes(&cache.shape);
        for copies in copies.chunks(self.packed_at_once(cache, host, copies.iter().copied())) {
            let blocks: Vec<u32> = copies.iter().map(|(block, _)| *block).collect();
            self.pack(cache, &blocks, false)?;
            for (first, slot, count) in runs(copies.iter().map(|(_, slot)| *slot)) {
                let to = &mut host.bytes[slot * bytes..][..count * bytes];
                self.scratch.staging.read(&mut self.machine, first * bytes, to)?;
            }
        }
        Ok(())
    }

    /// [`crate::ops::Ops::copy_in`].
    pub(super) fn restore(
        &mut self,
        host: &HostKv,
        cache: &mut KvCache<M>,
        copies: &[(u32, u32)],
    ) -> Result<(), OpsError> {
        let bytes = slot_bytes(&cache.shape);
        let at_once = self.packed_at_once(cache, host, copies.iter().map(|(slot, block)| (*block, *slot)));
        // Of those that go to one block the last is what stays.
        let last: HashMap<u32, usize> = copies.iter().enumerate().map(|(i, (_, block))| (*block, i)).collect();
        let kept = copies.iter().enumerate().filter(|(i, (_, block))| last[block] == *i);
        let copies: Vec<(u32, u32)> = kept.map(|(_, copy)| *copy).collect();
        for copies in copies.chunks(at_once) {
            self.scratch.staging.at_least(&mut self.machine, copies.len() * bytes, "packed blocks")?;
            for (first, slot, count) in runs(copies.iter().map(|(slot, _)| *slot)) {
                let from = &host.bytes[slot * bytes..][..count * bytes];
                self.scratch.staging.write(&mut self.machine, first * bytes, from)?;
            }
            let blocks: Vec<u32> = copies.iter().map(|(_, block)| *block).collect();
            self.pack(cache, &blocks, true)?;
        }
        Ok(())
    }
}
