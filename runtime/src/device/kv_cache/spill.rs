//! The second tier: which blocks of the device lie in host memory as well, and where. Knows no tensors and no sequences.
//!
//! ```text
//!            store                   pin                unpin
//! blank slot ─────▶ named, in line ─────▶ named, kept ─────▶ named, first in line
//!                    ▲   │ store of another name, when it is first in line
//!                    └───┘
//! ```
//!
//! A block whose room on the device is needed is stored here under its name; when that is wanted again its slot is pinned,
//! copied back, and unpinned. What a name stands for never changes, so the copy stays good: it is kept for as long as
//! nobody else needs its slot, and a block that is evicted a second time need not be copied out again. Slots stand in line
//! in the order in which they are overwritten: blank ones, then those whose block lies on the device again, then least
//! recently stored. No operation searches.

use std::collections::HashMap;

use super::BlockHash;
use super::order::Order;

/// One block of one group of layers, on its way between the device and the host.
///
/// A step's copies are carried out in their order, before the step's rows and after those of the step before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCopy {
    /// The group of layers.
    pub group: usize,
    /// Which way it goes.
    pub way: KvWay,
    /// The block on the device.
    pub block: u32,
    /// The slot on the host.
    pub slot: u32,
}

/// Which way a block goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvWay {
    /// From the device to the host.
    Out,
    /// From the host to the device.
    In,
}

/// Slots in host memory, and the names of what they hold.
#[derive(Debug)]
pub(super) struct HostPool {
    /// What a slot contains, or [`BlockHash::NONE`].
    names: Vec<BlockHash>,
    /// Slots that may be overwritten: all that are not pinned.
    line: Order,
    /// Where named slots are. Never iterated, so its order decides nothing.
    index: HashMap<BlockHash, u32>,
}

impl HostPool {
    /// `total` blank slots; with none it stores nothing.
    pub(super) fn new(total: u32) -> Self {
        let mut line = Order::new(total);
        (0..total).for_each(|slot| line.push_last(slot));
        // Twice the slots: a table that is at most half full clears away its removed entries and never grows.
        let index = HashMap::with_capacity(2 * total as usize);
        Self { names: vec![BlockHash::NONE; total as usize], line, index }
    }

    /// Whether the block of that name is here.
    pub(super) fn has(&self, name: BlockHash) -> bool {
        self.index.contains_key(&name)
    }

    /// The slot into which the block of that name is to be copied, which is evicted from the device. `None` where there is
    /// nothing to copy: it is here already, or every slot is pinned.
    pub(super) fn store(&mut self, name: BlockHash) -> Option<u32> {
        if let Some(&slot) = self.index.get(&name) {
            self.line.remove(slot);
            self.line.push_last(slot);
            return None;
        }
        let slot = self.line.first()?;
        self.line.remove(slot);
        let before = std::mem::replace(&mut self.names[slot as usize], name);
        self.index.remove(&before);
        self.index.insert(name, slot);
        self.line.push_last(slot);
        Some(slot)
    }

    /// The slot of that name, which nothing overwrites until it is unpinned. It must not be pinned already.
    pub(super) fn pin(&mut self, name: BlockHash) -> Option<u32> {
        let slot = *self.index.get(&name)?;
        self.line.remove(slot);
        Some(slot)
    }

    /// Lets a pinned slot be overwritten again: next, for its block lies on the device as well.
    pub(super) fn unpin(&mut self, slot: u32) {
        self.line.push_first(slot);
    }
}

#[cfg(test)]
impl HostPool {
    /// Named slots in the order in which they are overwritten, after those that are blank.
    pub(super) fn stored(&self) -> Vec<BlockHash> {
        let names = self.line.numbers().into_iter().map(|slot| self.names[slot as usize]);
        names.filter(|name| *name != BlockHash::NONE).collect()
    }

    /// What each slot contains.
    pub(super) fn names(&self) -> &[BlockHash] {
        &self.names
    }

    /// Everything that must hold between two calls while nothing is pinned.
    pub(super) fn assert_sound(&self) {
        let mut line = self.line.numbers();
        let named = self.names.iter().enumerate().filter(|(_, n)| **n != BlockHash::NONE);
        let found = named.inspect(|(at, n)| assert_eq!(self.index.get(n), Some(&(*at as u32)))).count();
        assert_eq!(found, self.index.len(), "index and names say the same");
        assert!(self.index.len() <= self.names.len(), "the pool is bounded");
        line.sort_unstable();
        assert!(line.iter().copied().eq(0..self.names.len() as u32), "each slot stands in line once");
    }

    /// Room that its structures take, in entries.
    pub(super) fn footprint(&self) -> usize {
        self.names.capacity() + self.line.footprint() + self.index.capacity()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::device::choices::Choices;

    const SLOTS: usize = 12;

    /// The same pool in the plainest words: one list that is searched.
    #[derive(Default)]
    struct Naive {
        /// In the order in which they are overwritten.
        line: Vec<BlockHash>,
        pinned: Vec<BlockHash>,
    }

    impl Naive {
        /// Whether there is something to copy.
        fn store(&mut self, name: BlockHash) -> bool {
            let here = self.line.iter().position(|n| *n == name).map(|at| self.line.remove(at));
            let full = self.line.len() + self.pinned.len() == SLOTS;
            if here.is_none() && full && self.line.is_empty() {
                return false;
            }
            if here.is_none() && full {
                self.line.remove(0);
            }
            self.line.push(name);
            here.is_none()
        }
    }

    #[test]
    fn the_pool_agrees_with_a_naive_model_over_a_million_events() {
        let (mut pool, mut naive) = (HostPool::new(SLOTS as u32), Naive::default());
        let mut choices = Choices(3);
        // What a device would have copied where.
        let mut slots = [BlockHash::NONE; SLOTS];
        let (mut copied, mut kept, mut refused) = (0u32, 0u32, 0u32);
        for event in 0..1_200_000 {
            let name = BlockHash::of(u128::from(choices.below(40)) + 1);
            match choices.below(4) {
                0 | 1 if !naive.pinned.contains(&name) => {
                    let slot = pool.store(name);
                    assert_eq!(slot.is_some(), naive.store(name));
                    match slot {
                        Some(slot) => (slots[slot as usize], copied) = (name, copied + 1),
                        None => *(if pool.has(name) { &mut kept } else { &mut refused }) += 1,
                    }
                }
                2 if !naive.pinned.contains(&name) => {
                    let at = naive.line.iter().position(|n| *n == name);
                    let slot = pool.pin(name);
                    assert_eq!(slot.is_some(), at.is_some());
                    if let (Some(slot), Some(at)) = (slot, at) {
                        assert_eq!(slots[slot as usize], name, "it holds what was copied there");
                        naive.pinned.push(naive.line.remove(at));
                    }
                }
                _ if choices.below(32) == 0 => {
                    while let Some(name) = naive.pinned.pop() {
                        pool.unpin(pool.index[&name]);
                        naive.line.insert(0, name);
                    }
                }
                _ => {}
            }
            assert_eq!(pool.has(name), naive.line.contains(&name) || naive.pinned.contains(&name));
            if event % 16 == 0 {
                assert_eq!(pool.stored(), naive.line, "the same order");
            }
        }
        assert!(copied > 100_000 && kept > 10_000 && refused > 100, "{copied} {kept} {refused}: it was a real test");
        while let Some(name) = naive.pinned.pop() {
            pool.unpin(pool.index[&name]);
        }
        pool.assert_sound();
    }

    #[test]
    fn a_pool_without_room_stores_nothing() {
        let mut pool = HostPool::new(0);
        assert_eq!((pool.store(BlockHash::of(1)), pool.pin(BlockHash::of(1))), (None, None));
        let mut pool = HostPool::new(1);
        assert_eq!(pool.store(BlockHash::of(1)), Some(0));
        assert_eq!(pool.pin(BlockHash::of(1)), Some(0));
        assert_eq!(pool.store(BlockHash::of(2)), None, "what is pinned is not overwritten");
        pool.unpin(0);
        assert_eq!((pool.store(BlockHash::of(1)), pool.store(BlockHash::of(2))), (None, Some(0)));
        assert!(!pool.has(BlockHash::of(1)));
        pool.assert_sound();
    }
}
