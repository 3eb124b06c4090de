//! What the layers of a step share: its rows and tiles as lists on the machine, checked, made and sent for the first of them.

use super::super::args::{cuckoo_kv_rows, cuckoo_tile};
use super::super::kv_cache::KvCache;
use super::super::machine::Machine;
use super::super::scratch::{Bounds, Held};
use super::{Plan, Shape};
use crate::ops::{Heads, KV_BLOCK_TOKENS, Mask, OpsError, Span, StepLayout};

/// Caches whose steps are known at once: those of a model's groups of layers, and of its draft's.
const LAID_MAX: usize = 4;

/// The newest step of each cache.
pub(in super::super) struct StepLists<M: Machine> {
    laid: Vec<Laid<M>>,
}

impl<M: Machine> Default for StepLists<M> {
    fn default() -> Self {
        Self { laid: Vec::new() }
    }
}

impl<M: Machine> StepLists<M> {
    /// The lists of `step`, whose block tables name blocks of `cache`.
    pub(super) fn laid(
        &mut self,
        machine: &mut M,
        step: &StepLayout<'_>,
        cache: &KvCache<M>,
    ) -> Result<&mut Laid<M>, OpsError> {
        let of = cache.address();
        let at = self.laid.iter().position(|laid| laid.cache == of).unwrap_or_else(|| {
            if self.laid.len() == LAID_MAX {
                self.laid.remove(0);
            }
            self.laid.push(Laid::new(of));
            self.laid.len() - 1
        });
        let laid = &mut self.laid[at];
        laid.begin(machine, step, cache.blocks())?;
        Ok(laid)
    }
}

/// A step in a cache.
pub(super) struct Laid<M: Machine> {
    /// Where that cache is.
    cache: u64,
    /// What was checked and sent: the spans, and how many blocks there are; the tables say the rest.
    of: Option<(Vec<Span>, usize)>,
    rows: Held<M>,
    groups: usize,
    tables: Held<M>,
    /// Tiles of layers without a window, and of those with one.
    tiles: [Tiles<M>; 2],
}

/// A plan, whose it is, and its tiles.
struct Tiles<M: Machine> {
    of: Option<(Heads, Mask)>,
    planned: Planned,
    held: Held<M>,
}

impl<M: Machine> Default for Tiles<M> {
    fn default() -> Self {
        Self { of: None, planned: Planned::default(), held: Held::default() }
    }
}

/// A plan on the machine: tiles of few queries, then those of many, then those that are joined.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Planned {
    /// Where they are.
    pub(super) tiles: u64,
    pub(super) narrow: usize,
    pub(super) wide: usize,
    pub(super) joins: usize,
    /// The most rows of a tile that is joined.
    pub(super) join_rows: usize,
    pub(super) part_rows: usize,
}

impl<M: Machine> Laid<M> {
    fn new(cache: u64) -> Self {
        let (rows, tables) = (Held::default(), Held::default());
        Self { cache, of: None, rows, groups: 0, tables, tiles: Default::default() }
    }

    fn begin(&mut self, machine: &mut M, step: &StepLayout<'_>, cache_blocks: usize) -> Result<(), OpsError> {
        let same = |(spans, blocks): &(Vec<Span>, usize)| (spans.as_slice(), *blocks) == (step.spans, cache_blocks);
        if self.of.as_ref().is_some_and(same) && self.tables.has(step.blocks) {
            return Ok(());
        }
        check_tables(step, cache_blocks);
        self.of = None;
        for tiles in &mut self.tiles {
            tiles.of = None;
        }
        let groups = groups(step);
        self.groups = groups.len();
        self.rows.holding(machine, &groups, "the rows of a step")?;
        self.tables.holding(machine, step.blocks, "the block tables of a step")?;
        self.of = Some((step.spans.to_vec(), cache_blocks));
        Ok(())
    }

    /// Where its rows are, by the KV blocks where they stand.
    pub(super) fn rows(&self) -> u64 {
        self.rows.address()
    }

    /// How many such groups of rows there are.
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    /// Where its block tables are.
    pub(super) fn tables(&self) -> u64 {
        self.tables.address()
    }

    /// What is launched for the attention of a layer.
    pub(super) fn planned(
        &mut self,
        machine: &mut M,
        (step, heads): (&StepLayout<'_>, Heads),
        mask: &Mask,
        shapes: [&Shape; 2],
        bounds: Bounds,
    ) -> Result<Planned, OpsError> {
        let known = &mut self.tiles[usize::from(mask.window.is_some())];
        if known.of != Some((heads, *mask)) {
            known.of = None;
            let plan = Plan::new((step, heads), mask, shapes, bounds);
            let tiles: Vec<cuckoo_tile> = [plan.narrow.as_slice(), &plan.wide, &plan.joins].concat();
            known.planned = Planned {
                tiles: known.held.holding(machine, &tiles, "the tiles of an attention")?,
                narrow: plan.narrow.len(),
                wide: plan.wide.len(),
                joins: plan.joins.len(),
                join_rows: plan.joins.iter().map(|tile| tile.rows as usize).max().unwrap_or(0),
                part_rows: plan.part_rows,
            };
            known.of = Some((heads, *mask));
        }
        Ok(known.planned)
    }
}

/// Rows of a step by the KV blocks where they stand.
fn groups(step: &StepLayout<'_>) -> Vec<cuckoo_kv_rows> {
    let mut groups = Vec::new();
    for span in step.spans {
        let mut first = 0;
        while first < span.rows {
            let position = span.first_position + first;
            let rows = (KV_BLOCK_TOKENS - position % KV_BLOCK_TOKENS).min(span.rows - first);
            groups.push(cuckoo_kv_rows {
                first_row: (span.first_row + first) as u32,
                rows: rows as u32,
                position: position as u32,
                block: step.blocks[span.first_block + position / KV_BLOCK_TOKENS],
            });
            first += rows;
        }
    }
    groups
}

/// Checks a step's block tables.
fn check_tables(step: &StepLayout<'_>, cache_blocks: usize) {
    assert!(step.blocks.iter().all(|b| (*b as usize) < cache_blocks), "every block is in the cache");
    for span in step.spans {
        assert!(span.first_block + span.blocks() <= step.blocks.len(), "a table names a block for each position");
    }
}
