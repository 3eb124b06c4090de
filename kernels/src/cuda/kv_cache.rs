//! Keys and values on a machine, and blocks of them on the host. Never decides which block is whose.

use super::Buffer;
use super::args::cuckoo_kv;
use super::attention::kernel_of;
use super::machine::{Machine, Piece};
use crate::kv::{KvKind, scale_block};
use crate::ops::{Heads, KV_BLOCK_TOKENS, KvShape, OpsError, StepLayout};

/// Values of a head that a lane can keep, times the lanes.
const DIM_MAX: usize = 512;

/// Keys, values, and the scales of both: one piece of memory each, `[layer][block]` of what `cuckoo_kv` says.
pub struct KvCache<M: Machine> {
    shape: KvShape,
    planes: [M::Memory; 4],
}

/// Blocks on the host: `[slot][layer]` of keys, values and their scales.
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

impl<M: Machine> KvCache<M> {
    pub(super) fn new(machine: &mut M, shape: KvShape) -> Result<Self, OpsError> {
        assert!(shape.head_dim.is_multiple_of(16) && shape.head_dim <= DIM_MAX, "a head has 16 to {DIM_MAX} values");
        let count = shape.layers.saturating_mul(shape.blocks);
        let [keys, values, key_scales, value_scales] = plane_bytes(&shape);
        let mut plane = |bytes: usize| machine.allocate(count.saturating_mul(bytes), "the KV cache");
        Ok(Self { shape, planes: [plane(keys)?, plane(values)?, plane(key_scales)?, plane(value_scales)?] })
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

    /// Where the parts of a block lie: plane, byte on the machine, bytes of a slot on the host.
    fn parts(
        &self,
        block: u32,
        host: &HostKv,
        slot: u32,
    ) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
        let (shape, bytes, block, slot) = (self.shape, plane_bytes(&self.shape), block as usize, slot as usize);
        assert!(KvShape { blocks: 0, ..shape } == KvShape { blocks: 0, ..host.shape }, "blocks of the same shape");
        assert!(block < shape.blocks && slot < host.shape.blocks, "block {block} and slot {slot} are there");
        let mut at = slot * shape.layers * bytes.iter().sum::<usize>();
        (0..shape.layers).flat_map(|layer| (0..4).map(move |plane| (layer, plane))).map(move |(layer, plane)| {
            let begin = at;
            at += bytes[plane];
            (plane, (layer * shape.blocks + block) * bytes[plane], begin..at)
        })
    }

    /// Copies a block to the host.
    pub(super) fn read(&self, machine: &mut M, block: u32, host: &mut HostKv, slot: u32) -> Result<(), OpsError> {
        for (plane, at, bytes) in self.parts(block, host, slot).collect::<Vec<_>>() {
            machine.read(&self.planes[plane], at, &mut host.bytes[bytes])?;
        }
        Ok(())
    }

    /// Copies a block from the host.
    pub(super) fn write(&mut self, machine: &mut M, block: u32, host: &HostKv, slot: u32) -> Result<(), OpsError> {
        for (plane, at, bytes) in self.parts(block, host, slot).collect::<Vec<_>>() {
            machine.write(&mut self.planes[plane], at, &host.bytes[bytes])?;
        }
        Ok(())
    }
}

impl HostKv {
    pub(super) fn new(shape: KvShape) -> Result<Self, OpsError> {
        let each = plane_bytes(&shape).iter().sum::<usize>().saturating_mul(shape.layers);
        let (mut bytes, count) = (Vec::new(), each.saturating_mul(shape.blocks));
        bytes.try_reserve_exact(count).map_err(|_| OpsError::OutOfMemory { what: "spilled blocks", bytes: count })?;
        bytes.resize(count, 0);
        Ok(Self { shape, bytes })
    }
}
