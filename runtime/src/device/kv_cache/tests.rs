#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use super::*;
use crate::device::choices::Choices;

/// How many leading blocks of `chain` are here, and how many of them are idle.
fn prefix(cache: &KvCache, chain: &[BlockHash]) -> (usize, usize) {
    let found: Vec<bool> = chain.iter().map_while(|name| cache.is_idle(*name)).collect();
    (found.len(), found.iter().filter(|idle| **idle).count())
}

fn name(value: u32) -> BlockHash {
    BlockHash::of(u128::from(value) + 1)
}

#[test]
fn names_depend_on_everything_before_them() {
    let root = BlockHash::root(&[1; 32], None, &[0; 16]);
    assert_ne!(root, BlockHash::root(&[2; 32], None, &[0; 16]), "another model");
    let adapted = BlockHash::root(&[1; 32], Some(&[3; 32]), &[0; 16]);
    assert!(root != adapted && adapted != BlockHash::root(&[1; 32], Some(&[4; 32]), &[0; 16]), "another adapter");
    assert_ne!(root, BlockHash::root(&[1; 32], None, &[1; 16]), "another tenant");
    let (a, b) = (root.next(&[1; 16]), root.next(&[2; 16]));
    assert_ne!(a, b);
    assert_ne!(a.next(&[3; 16]), b.next(&[3; 16]), "the same tokens after others");
    assert_eq!(a, BlockHash::root(&[1; 32], None, &[0; 16]).next(&[1; 16]), "the same everywhere");
    // Names are meant to be known outside one program, so they must not change unnoticed.
    assert_eq!(format!("{a:?}"), "BlockHash(d84335662825ea7562c7caf360dcce1c)");
}

#[test]
fn the_lowest_blank_blocks_go_first_and_named_ones_last() {
    let mut cache = KvCache::new(4);
    let blocks: Vec<u32> = (0..4).map(|_| cache.allocate().unwrap()).collect();
    assert_eq!((blocks, cache.allocate(), cache.used()), (vec![0, 1, 2, 3], None, 4));
    cache.publish(0, name(0));
    cache.publish(1, name(1));
    cache.release(&[0, 1, 2]);
    cache.assert_sound([3]);
    assert_eq!(cache.idle_blocks(), [2, 1, 0], "blank, then the chain from its end");
    assert_eq!(prefix(&cache, &[name(0), name(1), name(2)]), (2, 2));
    assert_eq!((cache.allocate(), cache.evictions()), (Some(2), 0));
    assert_eq!((cache.allocate(), cache.evictions()), (Some(1), 1));
    assert_eq!(prefix(&cache, &[name(0), name(1)]), (1, 1));
}

#[test]
fn sharing_keeps_a_block_and_renews_it() {
    let mut cache = KvCache::new(3);
    for i in 0..3 {
        let block = cache.allocate().unwrap();
        cache.publish(block, name(i));
    }
    cache.release(&[0]);
    cache.release(&[1]);
    cache.release(&[2]);
    assert_eq!(cache.idle_blocks(), [0, 1, 2]);
    assert_eq!((cache.share(name(0)), cache.share(name(0)), cache.share(name(9))), (Some(0), Some(0), None));
    cache.assert_sound([0, 0]);
    cache.release(&[0]);
    assert_eq!(cache.used(), 1);
    cache.release(&[0]);
    assert_eq!(cache.idle_blocks(), [1, 2, 0], "used last, evicted last");
}

#[test]
fn of_two_equal_blocks_one_is_kept() {
    let mut cache = KvCache::new(3);
    let (a, b) = (cache.allocate().unwrap(), cache.allocate().unwrap());
    assert_eq!(cache.publish(a, name(7)), a);
    assert_eq!(cache.publish(b, name(7)), a);
    cache.assert_sound([a, a]);
    assert_eq!((cache.used(), cache.cached(), cache.idle_blocks()), (1, 1, vec![1, 2]));
    cache.release(&[a, a]);
    let c = cache.allocate().unwrap();
    assert_eq!(cache.publish(c, name(7)), a, "an idle one comes back");
    cache.assert_sound([a]);
}

#[test]
#[should_panic(expected = "released twice")]
fn releasing_twice_is_a_bug() {
    let mut cache = KvCache::new(2);
    let block = cache.allocate().unwrap();
    cache.release(&[block]);
    cache.release(&[block]);
}

#[test]
#[should_panic(expected = "only a blank block is named")]
fn naming_twice_is_a_bug() {
    let mut cache = KvCache::new(2);
    let block = cache.allocate().unwrap();
    cache.publish(block, name(1));
    cache.publish(block, name(2));
}

/// The same cache in the plainest words: lists that are searched.
struct Naive {
    holds: Vec<u32>,
    names: Vec<Option<BlockHash>>,
    /// In the order in which they are taken.
    idle: Vec<u32>,
}

impl Naive {
    fn new(total: u32) -> Self {
        Self { holds: vec![0; total as usize], names: vec![None; total as usize], idle: (0..total).collect() }
    }

    fn find(&self, name: BlockHash) -> Option<u32> {
        self.names.iter().position(|n| *n == Some(name)).map(|at| at as u32)
    }

    fn allocate(&mut self) -> Option<u32> {
        let block = (!self.idle.is_empty()).then(|| self.idle.remove(0))?;
        self.names[block as usize] = None;
        self.holds[block as usize] = 1;
        Some(block)
    }

    fn share(&mut self, name: BlockHash) -> Option<u32> {
        let block = self.find(name)?;
        self.idle.retain(|b| *b != block);
        self.holds[block as usize] += 1;
        Some(block)
    }

    fn publish(&mut self, block: u32, name: BlockHash) -> u32 {
        if let Some(shared) = self.share(name) {
            self.release(&[block]);
            return shared;
        }
        self.names[block as usize] = Some(name);
        block
    }

    fn release(&mut self, blocks: &[u32]) {
        for block in blocks.iter().rev() {
            self.holds[*block as usize] -= 1;
            match (self.holds[*block as usize], self.names[*block as usize]) {
                (0, None) => self.idle.insert(0, *block),
                (0, Some(_)) => self.idle.push(*block),
                _ => {}
            }
        }
    }
}

/// A holder of a chain: its blocks, the first `named` of which have names, all determined by `kind`.
#[derive(Default)]
struct Holder {
    kind: u32,
    blocks: Vec<u32>,
    named: usize,
}

/// Chains of one kind share their beginnings with those of the kinds that it divides by powers of two.
fn link(kind: u32, at: usize) -> BlockHash {
    name((at as u32) << 8 | kind >> (6usize.saturating_sub(at)))
}

const BLOCKS: u32 = 48;
const EVENTS: u32 = 1_200_000;

/// A million random events, each against the naive model; and everything is back at the end.
#[test]
fn it_agrees_with_a_naive_model_over_a_million_events() {
    let (mut cache, mut naive) = (KvCache::new(BLOCKS), Naive::new(BLOCKS));
    let links = (0..64).flat_map(|kind| (1..BLOCKS as usize).map(move |at| (link(kind, at), link(kind, at - 1))));
    let parents: HashMap<BlockHash, BlockHash> = links.collect();
    let mut choices = Choices(7);
    let mut holders: Vec<Holder> = Vec::new();
    let (mut shared, mut merged, mut refused) = (0u32, 0u32, 0u32);
    for event in 0..EVENTS {
        match choices.below(8) {
            0 => {
                // Somebody joins and takes what is there of its chain.
                let kind = choices.below(64) as u32;
                let chain: Vec<BlockHash> = (0..choices.below(8) as usize).map(|at| link(kind, at)).collect();
                let prefix = prefix(&cache, &chain);
                let expected = chain.iter().map_while(|n| naive.find(*n)).collect::<Vec<_>>();
                let idle = expected.iter().filter(|b| naive.holds[**b as usize] == 0).count();
                assert_eq!(prefix, (expected.len(), idle));
                let blocks: Vec<u32> = chain[..expected.len()].iter().map(|n| cache.share(*n).unwrap()).collect();
                chain[..expected.len()].iter().for_each(|n| _ = naive.share(*n));
                assert_eq!(blocks, expected);
                shared += blocks.len() as u32;
                holders.push(Holder { kind, named: blocks.len(), blocks });
            }
            1..=3 if !holders.is_empty() => {
                let holder = choices.below(holders.len() as u64) as usize;
                let block = cache.allocate();
                assert_eq!(block, naive.allocate());
                refused += u32::from(block.is_none());
                holders[holder].blocks.extend(block);
            }
            4..=6 if !holders.is_empty() => {
                let at = choices.below(holders.len() as u64) as usize;
                let holder = &mut holders[at];
                if holder.named < holder.blocks.len() {
                    let (own, name) = (holder.blocks[holder.named], link(holder.kind, holder.named));
                    let block = cache.publish(own, name);
                    assert_eq!(block, naive.publish(own, name));
                    merged += u32::from(block != own);
                    holder.blocks[holder.named] = block;
                    holder.named += 1;
                }
            }
            _ if holders.len() > choices.below(12) as usize => {
                let at = choices.below(holders.len() as u64) as usize;
                let holder = holders.swap_remove(at);
                cache.release(&holder.blocks);
                naive.release(&holder.blocks);
            }
            _ => {}
        }
        assert_eq!((cache.available() as usize, cache.used()), (naive.idle.len(), BLOCKS - naive.idle.len() as u32));
        if event % 16 == 0 {
            assert_eq!(cache.idle_blocks(), naive.idle, "the same order of eviction");
            cache.assert_sound(holders.iter().flat_map(|h| h.blocks.iter().copied()));
            assert_chains_are_whole(&holders, &cache, &parents);
        }
    }
    assert!(shared > 10_000 && merged > 1_000 && refused > 1_000 && cache.evictions() > 10_000, "it was a real test");
    holders.iter().for_each(|h| cache.release(&h.blocks));
    cache.assert_sound([]);
    assert_eq!(cache.used(), 0);
}

/// Since ends are evicted before beginnings, whatever has a name can be found from its chain's start.
fn assert_chains_are_whole(holders: &[Holder], cache: &KvCache, parents: &HashMap<BlockHash, BlockHash>) {
    for name in cache.index.keys() {
        if let Some(parent) = parents.get(name) {
            assert!(cache.index.contains_key(parent), "an end without its beginning");
        }
    }
    let mut seen: HashMap<BlockHash, u32> = HashMap::new();
    for holder in holders {
        let chain: Vec<BlockHash> = (0..holder.named).map(|at| link(holder.kind, at)).collect();
        assert_eq!(prefix(cache, &chain).0, holder.named);
        for (name, block) in chain.into_iter().zip(&holder.blocks) {
            assert_eq!(*seen.entry(name).or_insert(*block), *block, "one block a name");
        }
    }
}
