//! Which replicas have which KV blocks in their caches, as they say: so that a prompt can go where most of it is known.
//!
//! A block's name is a hash over everything up to its end (`cuckoo_wire::BlockHash`), so equal names mean equal prefixes,
//! and a chain can be searched by halves: who has a block nearly always has what stands before it, because chains are
//! forgotten from their ends.

use std::collections::{HashMap, HashSet};

use super::members::Members;

/// A block's name, its first 64 bits: two blocks of the same name by accident cost a slower first token.
pub type BlockName = u64;

/// Blocks of one replica that are remembered; it is told apart from those that lie by its offer.
const HOLDER_BLOCKS_MAX: usize = 1 << 20;
/// Up to so many holders of a block are simply listed; and so many of a block are looked at.
const FEW_MAX: usize = 8;

/// Caches of the replicas of one model.
#[derive(Debug, Default)]
pub(super) struct PrefixIndex {
    holders: HashMap<BlockName, Holders>,
    /// What each replica holds, so that it can be forgotten with it.
    held: HashMap<u32, HashSet<BlockName>>,
    blocks: usize,
}

/// Replicas that hold one block, in an order that follows from who came and went.
#[derive(Clone, Debug)]
enum Holders {
    Few(Vec<u32>),
    Many(Members),
}

impl Holders {
    fn list(&self) -> &[u32] {
        match self {
            Self::Few(list) => list,
            Self::Many(members) => members.list(),
        }
    }

    fn has(&self, replica: u32) -> bool {
        match self {
            Self::Few(list) => list.contains(&replica),
            Self::Many(members) => members.has(replica),
        }
    }

    fn add(&mut self, replica: u32) {
        match self {
            Self::Few(list) if list.len() < FEW_MAX => list.push(replica),
            Self::Few(list) => *self = Self::Many(list.iter().copied().chain([replica]).collect()),
            Self::Many(members) => _ = members.add(replica),
        }
    }

    fn remove(&mut self, replica: u32) {
        match self {
            Self::Few(list) => list.retain(|holder| *holder != replica),
            Self::Many(members) => _ = members.remove(replica),
        }
    }
}

impl PrefixIndex {
    /// A replica has a block now. What is beyond its bound is not remembered.
    pub(super) fn store(&mut self, replica: u32, name: BlockName) {
        let held = self.held.entry(replica).or_default();
        if held.len() >= HOLDER_BLOCKS_MAX || !held.insert(name) {
            return;
        }
        self.blocks += 1;
        self.holders.entry(name).or_insert_with(|| Holders::Few(Vec::new())).add(replica);
    }

    /// A replica has a block no longer.
    pub(super) fn remove(&mut self, replica: u32, name: BlockName) {
        if self.held.get_mut(&replica).is_some_and(|held| held.remove(&name)) {
            self.drop_holder(replica, name);
        }
    }

    /// A replica is gone, with all it had.
    pub(super) fn forget(&mut self, replica: u32) {
        for name in self.held.remove(&replica).unwrap_or_default() {
            self.drop_holder(replica, name);
        }
    }

    fn drop_holder(&mut self, replica: u32, name: BlockName) {
        self.blocks -= 1;
        let Some(holders) = self.holders.get_mut(&name) else { return };
        holders.remove(replica);
        if holders.list().is_empty() {
            self.holders.remove(&name);
        }
    }

    /// Blocks of all replicas together.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// How many of the first blocks of `chain` a replica has.
    pub(super) fn hit(&self, replica: u32, chain: &[BlockName]) -> usize {
        let has = |name: &BlockName| self.holders.get(name).is_some_and(|holders| holders.has(replica));
        match chain.first() {
            Some(first) if has(first) => chain.partition_point(has),
            _ => 0,
        }
    }

    /// Offers replicas that have some of `chain`, those who have most first, until `take` says that it is enough. One may be
    /// offered more than once. Where many have the same, `pick` says where among them to begin.
    pub(super) fn deepest(&self, chain: &[BlockName], pick: u64, mut take: impl FnMut(u32) -> bool) {
        if chain.first().is_none_or(|first| !self.holders.contains_key(first)) {
            return;
        }
        let mut depth = chain.partition_point(|name| self.holders.contains_key(name));
        while depth > 0 {
            let Some(holders) = self.holders.get(&chain[depth - 1]) else { return };
            let list = holders.list();
            let from = (pick % list.len() as u64) as usize;
            for at in 0..list.len().min(FEW_MAX) {
                if !take(list[(from + at) % list.len()]) {
                    return;
                }
            }
            // Those who have less are looked for at half the depth, and so on: a logarithm of the chain.
            depth /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn best(index: &PrefixIndex, chain: &[BlockName], wanted: usize) -> Vec<u32> {
        let mut found = Vec::new();
        index.deepest(chain, 0, |replica| {
            if !found.contains(&replica) {
                found.push(replica);
            }
            found.len() < wanted
        });
        found
    }

    #[test]
    fn the_deepest_comes_first() {
        let mut index = PrefixIndex::default();
        let chain: Vec<BlockName> = (1..=32).collect();
        chain.iter().for_each(|name| index.store(7, *name));
        chain[..16].iter().for_each(|name| index.store(8, *name));
        chain[..3].iter().for_each(|name| index.store(9, *name));
        assert_eq!(best(&index, &chain, 2), [7, 8]);
        assert_eq!(
            (index.hit(7, &chain), index.hit(8, &chain), index.hit(9, &chain), index.hit(1, &chain)),
            (32, 16, 3, 0)
        );
        chain[20..].iter().for_each(|name| index.remove(7, *name));
        assert_eq!((index.hit(7, &chain), index.blocks()), (20, 20 + 16 + 3));
        index.forget(7);
        assert_eq!((best(&index, &chain, 1), index.blocks()), (vec![8], 19));
        assert_eq!(best(&index, &[99, 1, 2], 4), [] as [u32; 0], "a chain begins at its beginning");
    }

    #[test]
    fn what_is_said_twice_counts_once() {
        let mut index = PrefixIndex::default();
        (0..3).for_each(|_| index.store(1, 5));
        index.remove(1, 5);
        index.remove(1, 5);
        assert_eq!((index.blocks(), index.holders.len()), (0, 0));
    }

    proptest! {
        /// Against the plain way of keeping it.
        #[test]
        fn holders_are_who_holds(acts in prop::collection::vec((0u8..8, 0u32..20, 0u64..6), 1..400)) {
            let (mut index, mut plain) = (PrefixIndex::default(), HashSet::new());
            for (act, replica, name) in acts {
                match act {
                    0..5 => { index.store(replica, name); plain.insert((replica, name)); }
                    5..7 => { index.remove(replica, name); plain.remove(&(replica, name)); }
                    _ => { index.forget(replica); plain.retain(|(r, _)| *r != replica); }
                }
                prop_assert_eq!(index.blocks(), plain.len());
                for name in 0..6 {
                    let mut listed = index.holders.get(&name).map(|h| h.list().to_vec()).unwrap_or_default();
                    listed.sort_unstable();
                    let mut held: Vec<u32> = plain.iter().filter(|(_, n)| *n == name).map(|(r, _)| *r).collect();
                    held.sort_unstable();
                    prop_assert_eq!(&listed, &held);
                    prop_assert!(held.iter().all(|r| index.hit(*r, &[name]) == 1));
                }
            }
        }
    }
}
