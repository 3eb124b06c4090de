//! Which KV blocks belong to whom: a free list over block numbers. Knows no tensors and no sequences.

/// The allocator of one device's KV blocks.
#[derive(Debug)]
pub struct KvCache {
    free: Vec<u32>,
    total: u32,
}

impl KvCache {
    /// All of `total` blocks free.
    pub fn new(total: u32) -> Self {
        // The lowest numbers are handed out first, so that a lightly used cache touches little memory.
        Self { free: (0..total).rev().collect(), total }
    }

    /// Takes `count` blocks, or none if there are not so many.
    pub fn allocate(&mut self, count: u32) -> Option<Vec<u32>> {
        let keep = self.free.len().checked_sub(count as usize)?;
        Some(self.free.split_off(keep))
    }

    /// Gives blocks back.
    pub fn release(&mut self, blocks: Vec<u32>) {
        self.free.extend(blocks.into_iter().rev());
        assert!(self.free.len() <= self.total as usize, "a KV block was released twice");
    }

    /// Blocks in use.
    pub fn used(&self) -> u32 {
        self.total - self.free.len() as u32
    }

    /// Blocks there are.
    pub fn total(&self) -> u32 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn blocks_are_never_shared_and_all_return(asks in prop::collection::vec((0u32..9, any::<bool>()), 1..200)) {
            let mut cache = KvCache::new(40);
            let mut held: Vec<Vec<u32>> = Vec::new();
            for (count, release) in asks {
                let used: u32 = held.iter().map(|b| b.len() as u32).sum();
                prop_assert_eq!(cache.used(), used);
                if release && !held.is_empty() {
                    cache.release(held.swap_remove(0));
                    continue;
                }
                match cache.allocate(count) {
                    Some(blocks) => {
                        prop_assert_eq!(blocks.len(), count as usize);
                        held.push(blocks);
                    }
                    None => prop_assert!(used + count > 40),
                }
                let all: Vec<u32> = held.iter().flatten().copied().collect();
                prop_assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
            }
            held.into_iter().for_each(|b| cache.release(b));
            prop_assert_eq!(cache.used(), 0);
        }
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn releasing_twice_is_a_bug() {
        let mut cache = KvCache::new(2);
        let blocks = cache.allocate(1).unwrap();
        cache.release(blocks.clone());
        cache.release(blocks);
    }
}
