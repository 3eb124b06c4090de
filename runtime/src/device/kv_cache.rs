//! Which KV blocks belong to whom, and what those that nobody holds still contain. Knows no tensors and no sequences.
//!
//! ```text
//!            allocate                publish                    release by the last holder
//! idle, blank ──────▶ held, blank ──────────▶ held, named ───────────────────────▶ idle, named
//!      ▲                   │ release               ▲                                   │  │
//!      └───────────────────┘                       └───────────── share ───────────────┘  │
//!      ▲                                                                                  │
//!      └────────── allocate takes the least recently used when no blank one is left ──────┘
//! ```
//!
//! A full block is named by a hash of all tokens up to its end. Whoever needs the same prefix shares the block instead
//! of computing it again; blocks are shared whole, never written after they got their name. Idle blocks stand in one
//! list in the order in which they are taken: blank ones first, then named ones, least recently used first. A release
//! puts a sequence's last blocks before its first, so a chain is forgotten from its end and its beginning stays useful.
//!
//! Everything is an array over block numbers; the list is threaded through two of them. No operation searches.
//!
//! What is taken for another's content may be kept in host memory (`spill`), from where it is copied back when its name is
//! wanted again.

mod groups;
mod news;
mod order;
mod spill;

use std::collections::HashMap;

pub use cuckoo_wire::BlockHash;
pub use groups::HOLE;
pub(super) use groups::{KvGroups, Table};
pub(super) use news::News;
use order::Order;
pub use spill::{KvCopy, KvWay};

/// The allocator and the prefix cache of one device's KV blocks.
#[derive(Debug)]
pub struct KvCache {
    /// How many hold a block; 0 stands in the list.
    references: Vec<u32>,
    /// What a block contains, or [`BlockHash::NONE`].
    names: Vec<BlockHash>,
    /// Blocks that nobody holds, in the order in which they are taken.
    idle: Order,
    /// Where named blocks are. Never iterated, so its order decides nothing.
    index: HashMap<BlockHash, u32>,
    evictions: u64,
    /// What is to be told of names; `None` where nobody asks.
    news: Option<News>,
}

impl KvCache {
    /// All of `total` blocks idle and blank.
    pub fn new(total: u32) -> Self {
        let mut idle = Order::new(total);
        // The lowest numbers are handed out first, so that a lightly used cache touches little memory.
        (0..total).for_each(|block| idle.push_last(block));
        Self {
            references: vec![0; total as usize],
            names: vec![BlockHash::NONE; total as usize],
            idle,
            // Twice the blocks: a table that is at most half full clears away its removed entries and never grows.
            index: HashMap::with_capacity(2 * total as usize),
            evictions: 0,
            news: None,
        }
    }

    /// Remembers which names come and leave, until they are taken.
    pub(super) fn with_news(self) -> Self {
        Self { news: Some(News::default()), ..self }
    }

    /// Names that came and left, at most so many each: see [`News::take`].
    pub(super) fn take_news(&mut self, most: usize) -> (Vec<u64>, Vec<u64>) {
        self.news.as_mut().map(|news| news.take(most)).unwrap_or_default()
    }

    /// Names of all that is here.
    pub(super) fn cached_names(&self) -> impl Iterator<Item = u64> {
        self.names.iter().filter(|name| **name != BlockHash::NONE).map(|name| name.short())
    }

    /// Takes one block, blank: an idle one that contains nothing, or else the least recently used. `None` if all are held.
    pub fn allocate(&mut self) -> Option<u32> {
        Some(self.take()?.0)
    }

    /// The same, and the name of what the block contains until somebody writes to it, if it has one.
    fn take(&mut self) -> Option<(u32, Option<BlockHash>)> {
        let block = self.idle.first()?;
        self.idle.remove(block);
        let name = std::mem::replace(&mut self.names[block as usize], BlockHash::NONE);
        let evicted = (name != BlockHash::NONE).then_some(name);
        if let Some(name) = evicted {
            self.index.remove(&name);
            self.evictions += 1;
            self.news.iter_mut().for_each(|news| news.left(name.short()));
        }
        self.references[block as usize] = 1;
        Some((block, evicted))
    }

    /// Whether the block of that name is idle: holding it then leaves one fewer to allocate. `None` where it is not here.
    pub fn is_idle(&self, name: BlockHash) -> Option<bool> {
        Some(self.references[*self.index.get(&name)? as usize] == 0)
    }

    /// Takes the block of that name as one more holder.
    pub fn share(&mut self, name: BlockHash) -> Option<u32> {
        let block = *self.index.get(&name)?;
        if self.references[block as usize] == 0 {
            self.idle.remove(block);
        }
        self.references[block as usize] += 1;
        Some(block)
    }

    /// Names a full block that the caller alone holds, and returns the block to use from now on: where another of that
    /// name is here already, the caller becomes a holder of that one and its own is given back.
    pub fn publish(&mut self, block: u32, name: BlockHash) -> u32 {
        let at = block as usize;
        assert!(self.references[at] == 1 && self.names[at] == BlockHash::NONE, "only a blank block is named");
        if let Some(shared) = self.share(name) {
            self.release(&[block]);
            return shared;
        }
        self.names[at] = name;
        self.index.insert(name, block);
        self.news.iter_mut().for_each(|news| news.came(name.short()));
        block
    }

    /// Gives up one hold on each of `blocks`, which are in order of position.
    pub fn release(&mut self, blocks: &[u32]) {
        // Later positions are released, and so evicted, first: without its beginning the end of a chain is never found.
        for &block in blocks.iter().rev() {
            let references = &mut self.references[block as usize];
            assert!(*references > 0, "a KV block was released twice");
            *references -= 1;
            if *references > 0 {
                continue;
            }
            match self.names[block as usize] == BlockHash::NONE {
                true => self.idle.push_first(block),
                false => self.idle.push_last(block),
            }
        }
    }

    /// Blocks that somebody holds.
    pub fn used(&self) -> u32 {
        self.total() - self.idle.len()
    }

    /// Blocks that [`KvCache::allocate`] can take, those with content included.
    pub fn available(&self) -> u32 {
        self.idle.len()
    }

    /// Blocks with content that can be shared, held or idle.
    pub fn cached(&self) -> u32 {
        self.index.len() as u32
    }

    /// Blocks whose content was given up for another's, since the beginning.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Blocks there are.
    pub fn total(&self) -> u32 {
        self.references.len() as u32
    }
}

#[cfg(test)]
impl KvCache {
    /// Idle blocks in the order in which they would be taken.
    pub(super) fn idle_blocks(&self) -> Vec<u32> {
        self.idle.numbers()
    }

    /// Everything that must hold between two calls; `holds` is how often each block is held, as its holders know it.
    pub(super) fn assert_sound(&self, holds: impl IntoIterator<Item = u32>) {
        let mut expected = vec![0; self.total() as usize];
        holds.into_iter().for_each(|block| expected[block as usize] += 1);
        assert_eq!(self.references, expected, "references are what holders hold: no leak, no use after release");
        let order = self.idle_blocks();
        assert!(order.iter().all(|b| self.references[*b as usize] == 0), "nothing held is in the list");
        let idle = self.references.iter().filter(|r| **r == 0).count();
        assert_eq!(order.len(), idle, "with the right length and no block held, each idle block is there once");
        let blank = order.iter().take_while(|b| self.names[**b as usize] == BlockHash::NONE).count();
        let named = order.iter().filter(|b| self.names[**b as usize] != BlockHash::NONE).count();
        assert_eq!(blank + named, order.len(), "blank blocks are taken before named ones");
        let names = self.names.iter().enumerate().filter(|(_, n)| **n != BlockHash::NONE);
        let found = names.inspect(|(at, n)| assert_eq!(self.index.get(n), Some(&(*at as u32)))).count();
        assert_eq!(found, self.index.len(), "index and names say the same");
    }

    /// Room that its structures take, in entries.
    pub(super) fn footprint(&self) -> usize {
        self.index.capacity() + self.idle.footprint() + self.names.capacity() + self.references.capacity()
    }
}

#[cfg(test)]
mod tests;
