//! How much memory keys and values get, and for what: arithmetic over a model's description, before anything is allocated.
//!
//! The scheduler counts one kind of block: 16 positions of a sequence, of which [`BatchLimits::kv_blocks`] exist. Layers that
//! see everything have so many blocks. Layers with a window have as many as the batch can use at once, and as many again as
//! keep the last windows of the conversations that the other layers' blocks can remember; never more than the others. So a
//! sequence that the window of the protocol lets in has its blocks in every group, and the worst case of all of them is
//! decided by the layers that see everything.

use cuckoo_kernels::ops::{KV_BLOCK_TOKENS, KvShape};
use cuckoo_models::ArchSpec;

use super::batch::{BatchLimits, STEPS_IN_FLIGHT_MAX};
use crate::forward::{kv_groups, kv_shapes};

/// A conversation that is kept is taken to be of so many blocks, 2,048 positions.
const CONVERSATION_BLOCKS: u64 = 128;

/// The memory for keys and values of one model on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPlan {
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
}

impl KvPlan {
    /// Of `spec` for batches within `limits`.
    pub fn new(spec: &ArchSpec, limits: &BatchLimits) -> Self {
        let block_bytes = kv_shapes(spec, 1).into_iter().map(|shape| shape.block_bytes() as u64);
        Self::of(kv_groups(spec).into_iter().zip(block_bytes), limits)
    }

    /// The same of groups of layers by window and bytes of a block.
    fn of(groups: impl Iterator<Item = (Option<u32>, u64)>, limits: &BatchLimits) -> Self {
        let groups = groups.map(|(window, block_bytes)| GroupPlan {
            window,
            block_bytes,
            blocks: window.map_or(limits.kv_blocks, |window| windowed_blocks(window, limits)),
        });
        Self { groups: groups.collect() }
    }

    /// How many blocks, at most [`BatchLimits::kv_blocks`], fit `bytes` on the device, where each of these models has so
    /// many.
    pub fn blocks_within(specs: &[&ArchSpec], limits: &BatchLimits, bytes: u64) -> u32 {
        let plan = |kv_blocks| BatchLimits { kv_blocks, ..*limits };
        let needed =
            |limits| specs.iter().map(|spec| Self::new(spec, &limits).device_bytes()).fold(0, u64::saturating_add);
        let fit = |kv_blocks| needed(plan(kv_blocks)) <= bytes;
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
        Self { groups: vec![GroupPlan { window: None, block_bytes: 0, blocks }] }
    }

    /// What [`cuckoo_kernels::Ops::kv_cache`] is asked for, for each group.
    pub fn shapes(&self, spec: &ArchSpec) -> Vec<KvShape> {
        let shapes = kv_shapes(spec, 0).into_iter().zip(&self.groups);
        shapes.map(|(shape, group)| KvShape { blocks: group.blocks as usize, ..shape }).collect()
    }

    /// Bytes on the device.
    pub fn device_bytes(&self) -> u64 {
        self.groups.iter().map(|group| group.block_bytes.saturating_mul(u64::from(group.blocks))).sum()
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
