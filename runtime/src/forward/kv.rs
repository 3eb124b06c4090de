//! Which layers share block tables, and the memory of their keys and values.

use cuckoo_kernels::ops::{KvShape, OpsError};
use cuckoo_kernels::{KvKind, Memory, Ops};
use cuckoo_models::ArchSpec;
use cuckoo_models::arch::LayerSpec;

/// Keys and values of a whole model: one cache for each group of layers, and where blocks of it may be kept on the host.
pub struct KvMemory<O: Memory> {
    pub(super) groups: Vec<O::KvCache>,
    host: Vec<O::HostKv>,
}

impl<O: Memory> KvMemory<O> {
    /// One cache for each of `shapes`; see [`kv_shapes`].
    pub fn new(ops: &mut O, shapes: &[KvShape]) -> Result<Self, OpsError> {
        Self::with_host(ops, shapes, &[])
    }

    /// The same, with as many blocks on the host as `host` says.
    pub fn with_host(ops: &mut O, shapes: &[KvShape], host: &[KvShape]) -> Result<Self, OpsError> {
        Ok(Self {
            groups: shapes.iter().map(|shape| ops.kv_cache(*shape)).collect::<Result<_, _>>()?,
            host: host.iter().map(|shape| ops.host_kv(*shape)).collect::<Result<_, _>>()?,
        })
    }
}

impl<O: Ops> KvMemory<O> {
    /// Copies `(block, slot)` of a group to the host, one after the other.
    pub fn copy_out(&mut self, ops: &mut O, group: usize, blocks: &[(u32, u32)]) -> Result<(), OpsError> {
        ops.copy_out(&self.groups[group], &mut self.host[group], blocks)
    }

    /// Copies `(slot, block)` of a group back, one after the other.
    pub fn copy_in(&mut self, ops: &mut O, group: usize, slots: &[(u32, u32)]) -> Result<(), OpsError> {
        ops.copy_in(&self.host[group], &mut self.groups[group], slots)
    }
}

/// The windows of the groups of layers that share block tables: first the layers that see everything, if there are any.
pub fn kv_groups(spec: &ArchSpec) -> Vec<Option<u32>> {
    let mut windows: Vec<Option<u32>> = spec.blocks.iter().map(|layer| window(spec, layer)).collect();
    windows.sort_unstable();
    windows.dedup();
    windows
}

/// A window that is never full is none.
fn window(spec: &ArchSpec, layer: &LayerSpec) -> Option<u32> {
    let window = layer.attention.window.filter(|window| *window < spec.context_tokens);
    window.and_then(|window| u32::try_from(window).ok())
}

/// The group of each layer, and its number in it. An encoder's layers take turns in one place: a text is computed in one
/// step, so what a layer stored is read by that layer alone.
pub(super) fn kv_places(spec: &ArchSpec) -> Vec<(usize, usize)> {
    if spec.is_encoder() {
        return vec![(0, 0); spec.layers];
    }
    let groups = kv_groups(spec);
    let mut filled = vec![0; groups.len()];
    let place = |layer: &LayerSpec| {
        let group = groups.binary_search(&window(spec, layer)).expect("every layer's window is among them");
        filled[group] += 1;
        (group, filled[group] - 1)
    };
    spec.blocks.iter().map(place).collect()
}

/// The KV cache that each group of `spec` needs for `blocks` blocks, in the format that is usual.
pub fn kv_shapes(spec: &ArchSpec, blocks: usize) -> Vec<KvShape> {
    let mut layers = vec![0; kv_groups(spec).len()];
    kv_places(spec).into_iter().for_each(|(group, place)| layers[group] = layers[group].max(place + 1));
    let (kv_heads, head_dim, kind) = (spec.kv_heads, spec.head_dim, KvKind::default());
    let shape = |layers| KvShape { layers, kv_heads, head_dim, blocks, kind };
    layers.into_iter().map(shape).collect()
}
