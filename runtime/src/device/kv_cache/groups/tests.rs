#![allow(clippy::unwrap_used)]

use super::*;
use crate::device::choices::Choices;

const TOKENS: u32 = KV_BLOCK_TOKENS as u32;

fn group(window: Option<u32>, blocks: u32) -> GroupPlan {
    GroupPlan { window, block_bytes: 1, blocks, host_blocks: 0 }
}

/// Block `at` of a chain of some kind; chains share beginnings with those of kinds that are near.
fn link(kind: u32, at: u32) -> BlockHash {
    BlockHash::of((u128::from(at) << 16 | u128::from(kind >> 5u32.saturating_sub(at))) + 1)
}

fn chain(kind: u32, len: u32) -> Vec<BlockHash> {
    (0..len).map(|at| link(kind, at)).collect()
}

/// A sequence as a batch has it, and what is in the memory that its tables name.
struct Holder {
    kind: u32,
    tables: Vec<Table>,
    published: u32,
    computed: u32,
}

/// A device that remembers what is in each block: the name of the chain's block, or which holder's own rows.
struct World {
    windows: Vec<Option<u32>>,
    groups: KvGroups,
    blocks: Vec<Vec<Option<BlockHash>>>,
    /// The same of each slot on the host.
    slots: Vec<Vec<Option<BlockHash>>>,
    holders: Vec<Holder>,
    /// Reused, merged, refused.
    counts: [u64; 3],
}

impl World {
    fn new(plans: &[GroupPlan]) -> Self {
        Self {
            windows: plans.iter().map(|p| p.window).collect(),
            groups: KvGroups::new(plans),
            blocks: plans.iter().map(|p| vec![None; p.blocks as usize]).collect(),
            slots: plans.iter().map(|p| vec![None; p.host_blocks as usize]).collect(),
            holders: Vec::new(),
            counts: [0; 3],
        }
    }

    fn first_seen(window: Option<u32>, position: u32) -> u32 {
        window.map_or(0, |w| (position + 1).saturating_sub(w) / TOKENS)
    }

    /// The longest usable beginning, in the plainest words.
    fn find(&self, chain: &[BlockHash]) -> u32 {
        let usable = |end: &u32| {
            self.windows.iter().enumerate().all(|(group, window)| {
                let from = Self::first_seen(*window, end * TOKENS);
                chain[from as usize..*end as usize]
                    .iter()
                    .all(|name| self.groups.groups[group].has(Reach::Anywhere, *name))
            })
        };
        (0..=chain.len() as u32).rev().find(usable).unwrap()
    }

    fn join(&mut self, kind: u32, len: u32) {
        let chain = chain(kind, len);
        let found = self.groups.find(&chain);
        assert_eq!(found, self.find(&chain), "chain of {len} blocks");
        if !self.groups.fits(&chain, found, found + 1) {
            self.counts[2] += 1;
            return;
        }
        let tables = self.groups.settle(&chain, found, found + 1);
        self.counts[0] += u64::from(found);
        let computed = found * TOKENS;
        self.holders.push(Holder { kind, tables, published: found, computed });
    }

    /// Computes up to `rows` rows of a holder, and names what is full.
    fn compute(&mut self, at: usize, rows: u32) {
        let holder = &mut self.holders[at];
        let len = self.groups.grow(&mut holder.tables, (holder.computed + rows).div_ceil(TOKENS));
        let rows = rows.min(len * TOKENS - holder.computed);
        self.counts[2] += u64::from(rows == 0);
        self.carry();
        let holder = &self.holders[at];
        for block in holder.computed / TOKENS..(holder.computed + rows).div_ceil(TOKENS) {
            for (group, table) in holder.tables.iter().enumerate() {
                self.blocks[group][table.blocks[block as usize] as usize] = None;
            }
        }
        self.land(at, rows);
    }

    /// Carries out what is to be copied, as a step does before its rows are computed.
    fn carry(&mut self) {
        for KvCopy { group, way, block, slot } in self.groups.take_copies() {
            let (block, slot) = (&mut self.blocks[group][block as usize], &mut self.slots[group][slot as usize]);
            match way {
                KvWay::Out => *slot = *block,
                KvWay::In => *block = *slot,
            }
        }
    }

    fn land(&mut self, at: usize, rows: u32) {
        let holder = &mut self.holders[at];
        holder.computed += rows;
        for block in holder.published..holder.computed / TOKENS {
            let name = link(holder.kind, block);
            for (group, table) in holder.tables.iter().enumerate() {
                self.blocks[group][table.blocks[block as usize] as usize] = Some(name);
            }
            let before: Vec<u32> = holder.tables.iter().map(|t| t.blocks[block as usize]).collect();
            self.groups.publish(&mut holder.tables, block, name);
            let merged = holder.tables.iter().zip(before).filter(|(t, b)| t.blocks[block as usize] != *b);
            self.counts[1] += merged.count() as u64;
        }
        holder.published = holder.computed / TOKENS;
        self.groups.advance(&mut holder.tables, holder.computed);
    }

    fn catch_up(&mut self, at: usize, ahead: u32) {
        let holder = &mut self.holders[at];
        let chain = chain(holder.kind, holder.published + ahead);
        let found = self.groups.find_on(&chain, holder.published);
        if found > holder.published {
            self.groups.catch_up(&mut holder.tables, &chain, (holder.published, found));
            (holder.published, holder.computed) = (found, found * TOKENS);
        }
    }

    fn leave(&mut self, at: usize) {
        let holder = self.holders.swap_remove(at);
        self.groups.release(&holder.tables);
    }

    /// Every block that a holder's next row sees holds what it should, and nothing is held beyond that.
    fn check(&mut self) {
        self.carry();
        self.groups.assert_sound(self.holders.iter().map(|h| &h.tables));
        for (number, group) in self.groups.groups.iter().enumerate() {
            let memories =
                [(group.blocks.names.as_slice(), &self.blocks[number]), (group.host.names(), &self.slots[number])];
            for (names, contents) in memories {
                let named = names.iter().zip(contents).filter(|(name, _)| **name != BlockHash::NONE);
                named.for_each(|(name, content)| assert_eq!(*content, Some(*name), "everything is what its name says"));
            }
        }
        for holder in &self.holders {
            for (group, table) in holder.tables.iter().enumerate() {
                let from = Self::first_seen(self.windows[group], holder.computed);
                assert_eq!(table.holes, from, "what is behind the window is let go, and nothing else");
                for block in from..holder.published {
                    let content = self.blocks[group][table.blocks[block as usize] as usize];
                    assert_eq!(content, Some(link(holder.kind, block)), "block {block} of group {group}");
                }
            }
        }
    }
}

#[test]
fn what_is_behind_a_window_is_let_go_and_the_last_window_is_enough() {
    let mut world = World::new(&[group(None, 40), group(Some(40), 10)]);
    world.join(0, 0);
    for _ in 0..160 {
        world.compute(0, 3);
        world.check();
        assert!(world.holders[0].tables[1].held().len() as u32 <= window_blocks(40));
    }
    assert_eq!(world.holders[0].tables.iter().map(|t| t.held().len()).collect::<Vec<_>>(), [30, 3]);
    world.leave(0);
    // 480 positions of which the windowed layers have the last ten blocks: all of it can be used.
    assert_eq!(world.groups.find(&chain(0, 30)), 30);
    // From position 320 on a row sees block 17, and ten blocks from 20 on are here.
    assert_eq!(world.groups.find(&chain(0, 20)), 0);
    assert_eq!(world.groups.find(&chain(0, 24)), 24);
    world.join(0, 30);
    world.check();
    assert_eq!(world.holders[0].computed, 480);
}

const EVENTS: u64 = 1_200_000;

/// A million random events in ten worlds, each found prefix against the plainest search, every block's content watched.
#[test]
fn groups_agree_with_plain_words_over_a_million_events() {
    storm(Choices(11), |_| 0);
}

/// The same with pools of all sizes on the host.
#[test]
fn what_is_spilled_comes_back_as_it_was_over_a_million_events() {
    let (spilled, restored) = storm(Choices(12), |choices| choices.below(48) as u32);
    println!("spilled {spilled}, restored {restored}");
    assert!(spilled > 100_000 && restored > 20_000, "{spilled} {restored}: it was a real test");
}

/// Blocks copied to the host and back.
fn storm(mut choices: Choices, host_blocks: impl Fn(&mut Choices) -> u32) -> (u64, u64) {
    let (mut counts, mut copied) = ([0; 3], (0, 0));
    for world in 0..10 {
        let mut groups: Vec<GroupPlan> = Vec::new();
        if world % 4 != 3 {
            groups.push(group(None, 24 + choices.below(40) as u32));
        }
        for _ in 0..1 + choices.below(2) {
            let window = 1 + choices.below(100) as u32;
            groups.push(group(Some(window), window_blocks(window) + choices.below(24) as u32));
        }
        groups.iter_mut().for_each(|group| group.host_blocks = host_blocks(&mut choices));
        let mut world = World::new(&groups);
        for event in 0..EVENTS / 10 {
            let (pick, holders) = (choices.below(8), world.holders.len());
            let at = choices.below(holders.max(1) as u64) as usize;
            match pick {
                0 => world.join(choices.below(64) as u32, choices.below(20) as u32),
                1..=4 if holders > 0 => world.compute(at, 1 + choices.below(40) as u32),
                5 if holders > 0 => world.catch_up(at, choices.below(6) as u32),
                _ if holders > choices.below(8) as usize => world.leave(at),
                _ => {}
            }
            if event % 16 == 0 {
                world.check();
            }
        }
        while !world.holders.is_empty() {
            world.leave(0);
        }
        world.check();
        assert!(world.groups.used().all(|used| used == 0), "everything comes back");
        copied = (copied.0 + world.groups.copied().0, copied.1 + world.groups.copied().1);
        counts.iter_mut().zip(world.counts).for_each(|(all, here)| *all += here);
    }
    println!("reused, merged, refused: {counts:?}");
    assert!(counts.iter().zip([100_000, 10_000, 1_000]).all(|(c, least)| *c > least), "{counts:?}");
    copied
}

#[test]
fn what_comes_back_is_not_overwritten_by_what_must_go() {
    // Both tiers are full: each block that comes back drives one out, whose only room is the slot of one that came back.
    let mut world = World::new(&[GroupPlan { host_blocks: 3, ..group(None, 4) }]);
    for kind in [0, 64] {
        world.join(kind, 0);
        (0..3).for_each(|_| world.compute(0, 16));
        world.leave(0);
    }
    world.check();
    assert_eq!(world.groups.copied(), (2, 0), "the second chain took the last blank block and two of the first");
    world.join(0, 3);
    world.check();
    assert_eq!((world.holders[0].computed, world.groups.copied()), (48, (5, 2)), "the third made room for new rows");
    world.leave(0);
    assert_eq!(world.groups.find(&chain(64, 3)), 3, "nothing is lost");
}

#[test]
fn a_pool_without_room_for_all_forgets_ends_first() {
    let mut world = World::new(&[GroupPlan { host_blocks: 2, ..group(None, 4) }]);
    world.join(0, 0);
    (0..4).for_each(|_| world.compute(0, 16));
    world.leave(0);
    world.join(64, 0);
    (0..4).for_each(|_| world.compute(0, 16));
    world.check();
    assert_eq!(world.groups.find(&chain(0, 4)), 2, "the first two of four");
}
