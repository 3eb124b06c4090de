//! Keys and values of the oracle, as they are.

use crate::ops::{KV_BLOCK_TOKENS, KvShape};

/// `[layer][block][slot][kv head]` of keys and values.
pub struct KvCache {
    pub(super) shape: KvShape,
    pub(super) keys: Vec<Vec<f64>>,
    pub(super) values: Vec<Vec<f64>>,
}

impl KvCache {
    /// Copies a block of all layers from another cache of the same shape.
    pub(super) fn copy(&mut self, to: u32, from: &Self, block: u32) {
        for layer in 0..self.shape.layers {
            let len = KV_BLOCK_TOKENS * self.shape.kv_heads;
            let (to, from_at) = (self.at(layer, to, 0, 0), from.at(layer, block, 0, 0));
            self.keys[to..to + len].clone_from_slice(&from.keys[from_at..from_at + len]);
            self.values[to..to + len].clone_from_slice(&from.values[from_at..from_at + len]);
        }
    }

    pub(super) fn at(&self, layer: usize, block: u32, slot: usize, head: usize) -> usize {
        let s = &self.shape;
        let inside = layer < s.layers && (block as usize) < s.blocks && head < s.kv_heads;
        assert!(inside, "block {block} is not in the cache");
        ((layer * s.blocks + block as usize) * KV_BLOCK_TOKENS + slot) * s.kv_heads + head
    }
}
