//! How much memory keys and values get, and for what: arithmetic over a model's description, before anything is allocated.
//!
//! The scheduler counts one kind of block: 16 positions of a sequence, of which [`BatchLimits::kv_blocks`] exist. Layers that
//! see everything have so many blocks. Layers with a window have as many as the batch can use at once, and as many again as
//! keep the last windows of the conversations that the other layers' blocks can remember; never more than the others. So a
//! sequence that the window of the protocol lets in has its blocks in every group, and the worst case of all of them is
//! decided by the layers that see everything.

use cuckoo_kernels::KvKind;
use cuckoo_kernels::ops::{KV_BLOCK_TOKENS, KvShape};
use cuckoo_models::ArchSpec;

use super::batch::{BatchLimits, STEPS_IN_FLIGHT_MAX};
use crate::forward::{kv_groups, kv_shapes};

/// A conversation that is kept is taken to be of so many blocks, 2,048 positions.
const CONVERSATION_BLOCKS: u64 = 128;

/// Blocks in host memory are counted up to here: a thousand million positions.
const HOST_BLOCKS_MAX: u32 = 1 << 26;

/// The memory for keys and values of one model on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPlan {
    /// How values are kept.
    pub kind: KvKind,
    /// Groups of layers, in the order of [`kv_groups`].
    pub groups: Vec<GroupPlan>,
}

/// The memory of the layers that have the same window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// How many of the newest positions they see, the own one included; `None`: all.
    pub window: Option<u32>,
    /// Bytes of a block over all of them.
    pub block_bytes: u64,
    /// Blocks on the device.
    pub blocks: u32,
    /// Blocks that are kept in host memory when their room on the device is needed.
    pub host_blocks: u32,
}

impl KvPlan {
    /// Of `spec` for batches within `limits`.
    pub fn new(spec: &ArchSpec, limits: &BatchLimits) -> Self {
        let shapes = kv_shapes(spec, 1).into_iter().map(|shape| KvShape { kind: limits.kv_kind, ..shape });
        let block_bytes = shapes.map(|shape| shape.block_bytes() as u64);
        Self::of(kv_groups(spec).into_iter().zip(block_bytes), limits)
    }

    /// The same of groups of layers by window and bytes of a block.
    fn of(groups: impl Iterator<Item = (Option<u32>, u64)>, limits: &BatchLimits) -> Self {
        let groups = groups.map(|(window, block_bytes)| GroupPlan {
            window,
            block_bytes,
            blocks: window.map_or(limits.kv_blocks, |window| windowed_blocks(window, limits)),
            host_blocks: 0,
        });
        let mut plan = Self { kind: limits.kv_kind, groups: groups.collect() };
        // Each group keeps the same share of its blocks: a prefix is of use only where all of them have it.
        let (spill, device) = (u128::from(limits.spill_bytes), u128::from(plan.device_bytes().max(1)));
        for group in &mut plan.groups {
            group.host_blocks = (u128::from(group.blocks) * spill / device).min(u128::from(HOST_BLOCKS_MAX)) as u32;
        }
        plan
    }

    /// With how many blocks, at most [`BatchLimits::kv_blocks`], a batch `fits`; 0 if with none.
    pub fn blocks_that_fit(limits: &BatchLimits, fits: impl Fn(&BatchLimits) -> bool) -> u32 {
        let fit = |kv_blocks| fits(&BatchLimits { kv_blocks, ..*limits });
        // Every group grows with the number, so a bisection finds the largest that fits.
        let (mut most, mut too_many) = (0, limits.kv_blocks.saturating_add(1));
        while too_many - most > 1 {
            let middle = most + (too_many - most) / 2;
            if fit(middle) { most = middle } else { too_many = middle }
        }
        most
    }

    /// One group that sees everything, of `blocks` blocks, whatever its layers: for a batch without a model.
    pub fn plain(blocks: u32) -> Self {
        let group = GroupPlan { window: None, block_bytes: 0, blocks, host_blocks: 0 };
        Self { kind: KvKind::default(), groups: vec![group] }
    }

    /// What [`cuckoo_kernels::Memory::kv_cache`] is asked for, for each group.
    pub fn shapes(&self, spec: &ArchSpec) -> Vec<KvShape> {
        self.shapes_of(spec, |group| group.blocks)
    }

    /// What [`cuckoo_kernels::Memory::host_kv`] is asked for, for each group.
    pub fn host_shapes(&self, spec: &ArchSpec) -> Vec<KvShape> {
        self.shapes_of(spec, |group| group.host_blocks)
    }

    fn shapes_of(&self, spec: &ArchSpec, blocks: impl Fn(&GroupPlan) -> u32) -> Vec<KvShape> {
        let shapes = kv_shapes(spec, 0).into_iter().zip(&self.groups);
        shapes.map(|(shape, group)| KvShape { blocks: blocks(group) as usize, kind: self.kind, ..shape }).collect()
    }

    /// Bytes on the device.
    pub fn device_bytes(&self) -> u64 {
        self.groups.iter().map(|group| group.block_bytes.saturating_mul(u64::from(group.blocks))).sum()
    }

    /// Bytes in host memory, for blocks that do not fit on the device.
    pub fn host_bytes(&self) -> u64 {
        self.groups.iter().map(|group| group.block_bytes.saturating_mul(u64::from(group.host_blocks))).sum()
    }
}

/// Blocks that a sequence with few rows in flight holds at most in a group with a window.
pub(super) fn window_blocks(window: u32) -> u32 {
    // With `r` rows in flight it holds `window - 1 + r` positions, which lie in up to `(window + 29 + r) / 16` blocks wherever
    // they begin. Fifteen rows are counted here, what is beyond that for all sequences together.
    window.saturating_add(44) / KV_BLOCK_TOKENS as u32
}

fn windowed_blocks(window: u32, limits: &BatchLimits) -> u32 {
    let tail = u64::from(window_blocks(window));
    let rows = u64::from(limits.step_tokens_max) * STEPS_IN_FLIGHT_MAX as u64;
    let running = u64::from(limits.sequences_max) * tail + rows.div_ceil(KV_BLOCK_TOKENS as u64);
    let kept = u64::from(limits.kv_blocks) * tail / CONVERSATION_BLOCKS;
    (running + kept).min(u64::from(limits.kv_blocks)) as u32
}

#[cfg(test)]
mod tests;
