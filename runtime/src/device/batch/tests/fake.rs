//! A device without a model: it keeps in its blocks what a model would, and draws from what it finds there. A block that
//! is shared wrongly, overwritten or read after it was given back changes what is drawn.

use std::time::Duration;

use super::super::*;

/// SplitMix64: the tests' only source of choices.
pub(super) struct Choices(pub(super) u64);

impl Choices {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % bound
    }

    pub(super) fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below(u64::from(high - low) + 1) as u32
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Tokens that the fake model draws are below this.
const VOCABULARY: u64 = 50;
/// What some sequences draw is below this, so that it repeats and can be guessed.
const VOCABULARY_POOR: u64 = 2;

/// What a position's keys and values are: like a model's, they depend on all tokens up to it.
fn key(before: u64, token: u32) -> u64 {
    mix(before ^ mix(u64::from(token) + 1))
}

/// What is drawn after reading the keys of a whole context.
fn draw(keys: impl Iterator<Item = u64>, seed: u64) -> u32 {
    let vocabulary = if seed % 2 == 1 { VOCABULARY_POOR } else { VOCABULARY };
    (mix(keys.fold(seed, |h, k| mix(h ^ k))) % vocabulary) as u32
}

/// What a sequence draws, whatever happens around it.
pub(super) fn expected(assign: &Assign) -> (Vec<u32>, End) {
    let mut keys: Vec<u64> = Vec::new();
    let mut known = assign.tokens.clone();
    let mut drawn = Vec::new();
    loop {
        for token in &known[keys.len()..] {
            keys.push(key(keys.last().copied().unwrap_or(0), *token));
        }
        let token = draw(keys.iter().copied(), assign.seed);
        known.push(token);
        drawn.push(token);
        if assign.stop_tokens.contains(&token) {
            return (drawn, End::Stop);
        }
        if drawn.len() as u32 == assign.max_new {
            return (drawn, End::Length);
        }
    }
}

pub(super) struct FakeDevice {
    blocks: Vec<[u64; KV_BLOCK_TOKENS]>,
    drawn: Vec<u32>,
}

impl FakeDevice {
    pub(super) fn new(limits: BatchLimits) -> Self {
        Self { blocks: vec![[0; KV_BLOCK_TOKENS]; limits.kv_blocks as usize], drawn: Vec::new() }
    }

    /// Like an engine's step: plans come in the order in which they were made.
    pub(super) fn step(&mut self, plan: &StepPlan) -> Vec<u32> {
        let tokens = plan.resolve(&self.drawn);
        for span in &plan.spans {
            let table = &plan.blocks[span.first_block..span.first_block + span.blocks()];
            for row in 0..span.rows {
                let at = span.first_position + row;
                let before = at.checked_sub(1).map_or(0, |p| self.read(table, p));
                self.blocks[table[at / KV_BLOCK_TOKENS] as usize][at % KV_BLOCK_TOKENS] =
                    key(before, tokens[span.first_row + row]);
            }
        }
        self.drawn = plan
            .draws
            .iter()
            .map(|d| {
                let span = plan.spans.iter().find(|s| (s.first_row..s.first_row + s.rows).contains(&d.row)).unwrap();
                let table = &plan.blocks[span.first_block..span.first_block + span.blocks()];
                let position = span.first_position + d.row - span.first_row + 1;
                assert_eq!(d.position as usize, position, "drawn after the row's token");
                draw((0..d.position as usize).map(|p| self.read(table, p)), d.seed)
            })
            .collect();
        self.drawn.clone()
    }

    fn read(&self, table: &[u32], position: usize) -> u64 {
        self.blocks[table[position / KV_BLOCK_TOKENS] as usize][position % KV_BLOCK_TOKENS]
    }
}

/// Plans, computes and applies one step; whether there was one.
pub(super) fn run(batch: &mut Batch, device: &mut FakeDevice) -> bool {
    let Some(plan) = batch.plan() else { return false };
    let drawn = device.step(&plan);
    batch.apply(plan, &drawn, Duration::ZERO);
    batch.assert_sound();
    true
}

impl Batch {
    /// Everything that must hold between two calls.
    pub(super) fn assert_sound(&self) {
        self.cache.assert_sound(self.running.iter().flat_map(|s| s.stay.blocks.iter().copied()));
        assert!(self.running.len() <= self.limits.sequences_max as usize);
        assert!(self.running.is_sorted_by(|a, b| a.stay.number < b.stay.number), "in order of admission");
        assert!(
            self.waiting.iter().all(|s| s.stay.blocks.is_empty() && s.stay.planned == 0),
            "who waits holds nothing"
        );
        assert!(self.flights.len() <= STEPS_IN_FLIGHT_MAX);
        for s in &self.running {
            assert!(s.stay.blocks.len() as u32 <= s.reserved, "never more than was taken from the window");
            assert!(s.stay.computed <= s.stay.planned && s.stay.computed <= s.known());
        }
        assert!(self.taken.sequences <= self.window.sequences && self.taken.blocks <= self.window.blocks);
    }

    /// Room that its structures take, in entries.
    pub(super) fn footprint(&self) -> usize {
        self.cache.footprint()
            + self.running.capacity()
            + self.waiting.capacity()
            + self.flights.capacity()
            + self.news.capacity()
    }
}
