//! The block tables of a model whose layers see different windows. Knows no tensors and no sequences.
//!
//! Layers with the same window are a group: one table for a sequence, one memory, one [`KvCache`]. A table of a group with
//! a window lets go of blocks that no later row sees; in their places stands [`HOLE`], so that block `b` is entry `b` of
//! every table. What was let go keeps its name, like everything that nobody holds.
//!
//! A chain can be used up to some block if every group has what the next row sees: all of it, or the last window. So a
//! sequence goes on from the cache however long it was, though most of its windowed blocks are long gone.
//!
//! Each group may have a pool of its own in host memory, where evicted blocks go and from where they come back. What is to
//! be copied is a list of events, in the order in which they were decided; whoever computes carries them out in that order.

use cuckoo_kernels::ops::KV_BLOCK_TOKENS;

use super::spill::HostPool;
use super::{BlockHash, KvCache, KvCopy, KvWay};
use crate::device::kv_plan::{GroupPlan, window_blocks};

/// Where a table has no block, because no row will look there.
pub const HOLE: u32 = u32::MAX;

/// Blocks of one sequence in one group, by position.
#[derive(Debug, Default)]
pub(in crate::device) struct Table {
    blocks: Vec<u32>,
    /// How many holes it begins with.
    holes: u32,
}

impl Table {
    /// Entries, holes included.
    pub(in crate::device) fn len(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// The first `len` entries.
    pub(in crate::device) fn first(&self, len: usize) -> &[u32] {
        &self.blocks[..len]
    }

    /// Blocks that it holds.
    pub(in crate::device) fn held(&self) -> &[u32] {
        &self.blocks[self.holes as usize..]
    }

    /// Makes holes of all entries before `end`, and returns what stood there.
    fn cut(&mut self, end: u32) -> Vec<u32> {
        let (from, end) = (self.holes as usize, (end as usize).max(self.holes as usize));
        self.blocks.resize(self.blocks.len().max(end), HOLE);
        self.holes = end as u32;
        let cut = self.blocks[from..end].to_vec();
        self.blocks[from..end].fill(HOLE);
        cut.into_iter().filter(|block| *block != HOLE).collect()
    }
}

/// Allocators and prefix caches of all groups of one device.
#[derive(Debug)]
pub(in crate::device) struct KvGroups {
    groups: Vec<Group>,
    /// Decided, and not yet part of a plan. No more than the blocks that changed hands since the last plan.
    copies: Vec<KvCopy>,
    /// Blocks copied to the host, and back.
    copied: (u64, u64),
}

#[derive(Debug)]
struct Group {
    /// Its place among the groups.
    number: usize,
    /// How many of the newest positions its layers see, the own one included; `None`: all.
    window: Option<u32>,
    blocks: KvCache,
    host: HostPool,
}

/// Where a block may be found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Device,
    Anywhere,
}

impl KvGroups {
    /// Everything idle and blank.
    pub(in crate::device) fn new(groups: &[GroupPlan]) -> Self {
        let group = |(number, plan): (usize, &GroupPlan)| Group {
            number,
            window: plan.window,
            blocks: match number {
                // Chains are forgotten from their ends, and the first group sees most: what it has is what can be used.
                0 => KvCache::new(plan.blocks).with_news(),
                _ => KvCache::new(plan.blocks),
            },
            host: HostPool::new(plan.host_blocks),
        };
        Self { groups: groups.iter().enumerate().map(group).collect(), copies: Vec::new(), copied: (0, 0) }
    }

    /// Up to which block `chain` can be used by whoever begins, wherever its blocks lie.
    pub(in crate::device) fn find(&self, chain: &[BlockHash]) -> u32 {
        self.find_in(Reach::Anywhere, chain, 0)
    }

    /// Up to which block `chain` can be used by whoever uses its first `from` blocks already. What lies on the host alone is
    /// not looked at: it was there, and not wanted, when that sequence was let in.
    pub(in crate::device) fn find_on(&self, chain: &[BlockHash], from: u32) -> u32 {
        self.find_in(Reach::Device, chain, from)
    }

    fn find_in(&self, reach: Reach, chain: &[BlockHash], from: u32) -> u32 {
        let mut end = chain.len() as u32;
        loop {
            let before = end;
            for group in &self.groups {
                end = group.find(reach, chain, from, end);
            }
            if end == before {
                return end;
            }
        }
    }

    /// Whether a sequence that uses `chain` up to block `found` can have `wanted` blocks: all of them, or as many as its
    /// windows need. A block that comes back from the host takes as much room as one that is computed.
    pub(in crate::device) fn fits(&self, chain: &[BlockHash], found: u32, wanted: u32) -> bool {
        self.groups.iter().all(|group| {
            let from = group.first_seen(found * KV_BLOCK_TOKENS as u32);
            let end = group.window.map_or(wanted, |window| wanted.min(from + window_blocks(window)));
            let here = chain[from as usize..found as usize].iter().filter_map(|name| group.blocks.is_idle(*name));
            let held = here.filter(|idle| !idle).count() as u32;
            end - from - held <= group.blocks.available()
        })
    }

    /// Tables of a sequence that uses `chain` up to block `found` and knows tokens of `known` blocks. Groups that see
    /// everything have a block for each, the others only those that are in use: they grow as rows are planned.
    pub(in crate::device) fn settle(&mut self, chain: &[BlockHash], found: u32, known: u32) -> Vec<Table> {
        self.groups.iter_mut().map(|group| group.settle(chain, (found, known), &mut self.copies)).collect()
    }

    /// Lengthens tables to `len` entries, as far as there are blocks, and returns what the shortest has.
    pub(in crate::device) fn grow(&mut self, tables: &mut [Table], len: u32) -> u32 {
        let mut shortest = len;
        for (group, table) in self.groups.iter_mut().zip(tables) {
            while table.len() < len {
                let Some(block) = group.allocate(&mut self.copies) else { break };
                table.blocks.push(block);
            }
            shortest = shortest.min(table.len());
        }
        shortest
    }

    /// Names block `at` of a sequence, which is full.
    pub(in crate::device) fn publish(&mut self, tables: &mut [Table], at: u32, name: BlockHash) {
        for (group, table) in self.groups.iter_mut().zip(tables) {
            if at >= table.holes {
                let block = &mut table.blocks[at as usize];
                *block = group.blocks.publish(*block, name);
            }
        }
    }

    /// Lets go of blocks that no row from `position` on sees.
    pub(in crate::device) fn advance(&mut self, tables: &mut [Table], position: u32) {
        for (group, table) in self.groups.iter_mut().zip(tables) {
            let cut = table.cut(group.first_seen(position));
            group.blocks.release(&cut);
        }
    }

    /// Exchanges blocks of a sequence for those of `chain` up to block `found`, which [`KvGroups::find_on`] gave and of which
    /// it has used `from`.
    pub(in crate::device) fn catch_up(&mut self, tables: &mut [Table], chain: &[BlockHash], (from, found): (u32, u32)) {
        for (group, table) in self.groups.iter_mut().zip(&mut *tables) {
            for at in group.first_seen(found * KV_BLOCK_TOKENS as u32).max(from)..found {
                let shared = group.blocks.share(chain[at as usize]).expect("it was found here");
                // What a table does not reach yet are rows that will not be planned.
                table.blocks.resize(table.blocks.len().max(at as usize + 1), HOLE);
                let own = std::mem::replace(&mut table.blocks[at as usize], shared);
                if own != HOLE {
                    group.blocks.release(&[own]);
                }
            }
        }
        self.advance(tables, found * KV_BLOCK_TOKENS as u32);
    }

    /// Gives up everything that a sequence holds.
    pub(in crate::device) fn release(&mut self, tables: &[Table]) {
        for (group, table) in self.groups.iter_mut().zip(tables) {
            group.blocks.release(table.held());
        }
    }

    /// What is to be copied before the rows that are planned now; whoever takes it must see to it.
    pub(in crate::device) fn take_copies(&mut self) -> Vec<KvCopy> {
        let out = self.copies.iter().filter(|copy| copy.way == KvWay::Out).count() as u64;
        self.copied.0 += out;
        self.copied.1 += self.copies.len() as u64 - out;
        std::mem::take(&mut self.copies)
    }

    /// Names that came into the cache of the group that sees most, and those that left it: at most so many each.
    pub(in crate::device) fn take_news(&mut self, most: usize) -> (Vec<u64>, Vec<u64>) {
        self.groups.first_mut().map(|group| group.blocks.take_news(most)).unwrap_or_default()
    }

    /// Names that are in that cache.
    pub(in crate::device) fn cached_names(&self) -> impl Iterator<Item = u64> {
        self.groups.first().into_iter().flat_map(|group| group.blocks.cached_names())
    }

    /// Blocks copied to the host, and back from there, since the beginning.
    pub(in crate::device) fn copied(&self) -> (u64, u64) {
        self.copied
    }

    /// Blocks that are held, by group.
    pub(in crate::device) fn used(&self) -> impl Iterator<Item = u32> {
        self.groups.iter().map(|group| group.blocks.used())
    }

    /// Blocks whose content was given up for another's, since the beginning.
    pub(in crate::device) fn evictions(&self) -> u64 {
        self.groups.iter().map(|group| group.blocks.evictions()).sum()
    }
}

impl Group {
    /// The first block that a row at `position` sees.
    fn first_seen(&self, position: u32) -> u32 {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window) / KV_BLOCK_TOKENS as u32)
    }

    fn has(&self, reach: Reach, name: BlockHash) -> bool {
        self.blocks.is_idle(name).is_some() || (reach == Reach::Anywhere && self.host.has(name))
    }

    /// [`KvGroups::find`] for this group alone, at most `most`.
    fn find(&self, reach: Reach, chain: &[BlockHash], from: u32, most: u32) -> u32 {
        if self.window.is_none() {
            let names = chain[from as usize..most as usize].iter();
            return from + names.take_while(|name| self.has(reach, **name)).count() as u32;
        }
        // Blocks `at .. end` are here. From the end, so that usually nothing but the last window is looked at.
        let (mut at, mut end) = (most, most);
        while end > from && at > self.first_seen(end * KV_BLOCK_TOKENS as u32) {
            at -= 1;
            if !self.has(reach, chain[at as usize]) {
                end = at;
            }
        }
        end.max(from)
    }

    /// Takes a block for new content. What it contained goes to the host, if there is room.
    fn allocate(&mut self, copies: &mut Vec<KvCopy>) -> Option<u32> {
        let (block, evicted) = self.blocks.take()?;
        if let Some(slot) = evicted.and_then(|name| self.host.store(name)) {
            copies.push(KvCopy { group: self.number, way: KvWay::Out, block, slot });
        }
        Some(block)
    }

    fn settle(&mut self, chain: &[BlockHash], (found, known): (u32, u32), copies: &mut Vec<KvCopy>) -> Table {
        let mut table = Table::default();
        let from = self.first_seen(found * KV_BLOCK_TOKENS as u32);
        table.cut(from);
        // What is shared is held, and what comes back is pinned, before anything is taken: so that none of it is.
        let mut absent = Vec::new();
        for (name, at) in chain[from as usize..found as usize].iter().zip(from..) {
            table.blocks.push(self.blocks.share(*name).unwrap_or(HOLE));
            if table.blocks[at as usize] == HOLE {
                absent.push((at, *name, self.host.pin(*name).expect("it was found on the host")));
            }
        }
        for (at, name, slot) in absent {
            let block = self.allocate(copies).expect("it was seen to fit");
            copies.push(KvCopy { group: self.number, way: KvWay::In, block, slot });
            self.host.unpin(slot);
            // Everything that is planned from now on is computed after the copy.
            table.blocks[at as usize] = self.blocks.publish(block, name);
        }
        while self.window.is_none() && table.len() < known {
            table.blocks.push(self.allocate(copies).expect("it was seen to fit"));
        }
        table
    }
}

#[cfg(test)]
impl KvGroups {
    /// [`KvCache::assert_sound`] of every group, given the tables of all sequences.
    pub(in crate::device) fn assert_sound<'a>(&self, tables: impl Iterator<Item = &'a Vec<Table>> + Clone) {
        for (number, group) in self.groups.iter().enumerate() {
            group.blocks.assert_sound(tables.clone().flat_map(|t| t[number].held().iter().copied()));
            group.host.assert_sound();
            for table in tables.clone().map(|t| &t[number]) {
                let (holes, held) = table.blocks.split_at(table.holes as usize);
                assert!(holes.iter().all(|b| *b == HOLE) && held.iter().all(|b| *b != HOLE), "holes come first");
            }
        }
    }

    /// Blocks with content, in all groups.
    pub(in crate::device) fn cached(&self) -> u32 {
        self.groups.iter().map(|group| group.blocks.cached()).sum()
    }

    /// Room that its structures take, in entries.
    pub(in crate::device) fn footprint(&self) -> usize {
        self.groups.iter().map(|g| g.blocks.footprint() + g.host.footprint()).sum::<usize>() + self.copies.capacity()
    }
}

#[cfg(test)]
mod tests;
