//! A device without a model: it keeps in its blocks what a model would, and draws from what it finds there. A block that
//! is shared wrongly, overwritten or read after it was given back changes what is drawn.

use std::time::Duration;

use cuckoo_kernels::ops::Span;

use super::super::*;
use crate::device::choices::mix;
use crate::device::kv_cache::{KvCopy, KvWay, Table};

/// Tokens that the fake model draws are below this.
const VOCABULARY: u64 = 50;
/// What some sequences draw is below this, so that it repeats and can be guessed.
const VOCABULARY_POOR: u64 = 2;

/// What a position's keys and values are: like a model's, they depend on all tokens up to it.
fn key(before: u64, token: u32) -> u64 {
    mix(before ^ mix(u64::from(token) + 1))
}

/// The first position that a row at `at` sees.
fn first_seen(window: Option<u32>, at: usize) -> usize {
    (at + 1).saturating_sub(window.map_or(usize::MAX, |w| w as usize))
}

/// What the row at `at` makes of its token, given how to read a group's key at a position.
fn state(windows: &[Option<u32>], at: usize, token: u32, read: impl Fn(usize, usize) -> u64) -> u64 {
    let mut before = 0;
    for (group, window) in windows.iter().enumerate() {
        // The nearest and the farthest that it sees.
        let seen = first_seen(*window, at)..at;
        let ends = [seen.clone().next(), seen.last()];
        before = ends.into_iter().flatten().fold(before, |h, p| mix(h ^ read(group, p)));
    }
    key(before, token)
}

/// What layers of a group store of a state.
fn stored(group: usize, state: u64) -> u64 {
    mix(state.wrapping_add(group as u64))
}

/// Everything that the row at `at` sees, its own key included.
fn seen(windows: &[Option<u32>], at: usize, read: impl Fn(usize, usize) -> u64) -> Vec<u64> {
    let of = |(group, window): (usize, &Option<u32>)| {
        (first_seen(*window, at)..=at).map(|p| read(group, p)).collect::<Vec<_>>()
    };
    windows.iter().enumerate().flat_map(of).collect()
}

/// What is drawn after reading the keys of a whole context.
fn draw(keys: impl Iterator<Item = u64>, seed: u64) -> u32 {
    let vocabulary = if seed % 2 == 1 { VOCABULARY_POOR } else { VOCABULARY };
    (mix(keys.fold(seed, |h, k| mix(h ^ k))) % vocabulary) as u32
}

/// What a sequence draws, whatever happens around it.
pub(super) fn expected(assign: &Assign) -> (Vec<u32>, End) {
    expected_of(&[None], assign)
}

/// The same for a model whose groups of layers have these windows.
pub(super) fn expected_of(windows: &[Option<u32>], assign: &Assign) -> (Vec<u32>, End) {
    let mut keys: Vec<u64> = Vec::new();
    let mut known = assign.tokens.clone();
    let mut drawn = Vec::new();
    loop {
        for token in &known[keys.len()..] {
            let state = state(windows, keys.len(), *token, |group, p| stored(group, keys[p]));
            keys.push(state);
        }
        let seen = seen(windows, keys.len() - 1, |group, p| stored(group, keys[p]));
        let token = draw(seen.into_iter(), assign.seed);
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

type Keys = [u64; KV_BLOCK_TOKENS];

pub(super) struct FakeDevice {
    windows: Vec<Option<u32>>,
    /// For each group, its blocks.
    blocks: Vec<Vec<Keys>>,
    /// For each group, blocks on the host.
    slots: Vec<Vec<Keys>>,
    drawn: Vec<u32>,
}

impl FakeDevice {
    pub(super) fn new(limits: BatchLimits) -> Self {
        Self::with_kv(&KvPlan::plain(limits.kv_blocks))
    }

    pub(super) fn with_kv(kv: &KvPlan) -> Self {
        let memory = |blocks: u32| vec![[0; KV_BLOCK_TOKENS]; blocks as usize];
        Self {
            windows: kv.groups.iter().map(|g| g.window).collect(),
            blocks: kv.groups.iter().map(|g| memory(g.blocks)).collect(),
            slots: kv.groups.iter().map(|g| memory(g.host_blocks)).collect(),
            drawn: Vec::new(),
        }
    }

    /// Like an engine's step: plans come in the order in which they were made.
    pub(super) fn step(&mut self, plan: &StepPlan) -> Vec<u32> {
        self.step_guessed(plan, &[])
    }

    /// The same, with the tokens of the plan's guesses.
    pub(super) fn step_guessed(&mut self, plan: &StepPlan, guesses: &[u32]) -> Vec<u32> {
        for KvCopy { group, way, block, slot } in &plan.copies {
            let (block, slot) = (&mut self.blocks[*group][*block as usize], &mut self.slots[*group][*slot as usize]);
            match way {
                KvWay::Out => *slot = *block,
                KvWay::In => *block = *slot,
            }
        }
        let tokens = plan.resolve(&self.drawn, guesses);
        assert!(plan.blocks.iter().all(|b| b.len() == plan.blocks[0].len()), "tables of all groups are as long");
        let windows = self.windows.clone();
        for span in &plan.spans {
            for row in 0..span.rows {
                let at = span.first_position + row;
                let state =
                    state(&windows, at, tokens[span.first_row + row], |group, p| *self.at(plan, span, group, p));
                for group in 0..windows.len() {
                    *self.at_mut(plan, span, group, at) = stored(group, state);
                }
            }
        }
        self.drawn = plan
            .draws
            .iter()
            .map(|d| {
                let span = plan.spans.iter().find(|s| (s.first_row..s.first_row + s.rows).contains(&d.row)).unwrap();
                let position = span.first_position + d.row - span.first_row + 1;
                assert_eq!(d.position as usize, position, "drawn after the row's token");
                let seen = seen(&windows, d.position as usize - 1, |group, p| *self.at(plan, span, group, p));
                draw(seen.into_iter(), d.seed)
            })
            .collect();
        self.drawn.clone()
    }

    /// A hole is no block of any device: reading one fails.
    fn at(&self, plan: &StepPlan, span: &Span, group: usize, position: usize) -> &u64 {
        let block = plan.blocks[group][span.first_block + position / KV_BLOCK_TOKENS];
        &self.blocks[group][block as usize][position % KV_BLOCK_TOKENS]
    }

    fn at_mut(&mut self, plan: &StepPlan, span: &Span, group: usize, position: usize) -> &mut u64 {
        let block = plan.blocks[group][span.first_block + position / KV_BLOCK_TOKENS];
        &mut self.blocks[group][block as usize][position % KV_BLOCK_TOKENS]
    }
}

/// A device with a draft model that is the target itself: it is right wherever it does not make a mistake on purpose.
pub(super) struct FakePair {
    pub(super) target: FakeDevice,
    draft: FakeDevice,
    /// It makes a mistake once in so many draws; 0: never.
    pub(super) wrong: u64,
    draws: u64,
}

impl FakePair {
    pub(super) fn new(target: &KvPlan, draft: &KvPlan) -> Self {
        Self { target: FakeDevice::with_kv(target), draft: FakeDevice::with_kv(draft), wrong: 0, draws: 0 }
    }

    /// Like an engine's step. Whatever is held of a sequence, a guess is right if those before it are.
    pub(super) fn step(&mut self, plan: &StepPlan) -> StepOutput {
        let mut output = StepOutput::default();
        let mut passes: Vec<Vec<(u32, bool)>> = Vec::new();
        for pass in &plan.passes {
            let mut drawn: Vec<(u32, bool)> = self.draft.step(pass).into_iter().map(|token| (token, true)).collect();
            for (token, right) in &mut drawn {
                self.draws += 1;
                if self.wrong > 0 && mix(self.draws).is_multiple_of(self.wrong) {
                    (*token, *right) = (*token + 1, false);
                }
            }
            self.draft.drawn = drawn.iter().map(|(token, _)| *token).collect();
            output.passes.push(Duration::from_micros(50 + 2 * pass.tokens.len() as u64));
            passes.push(drawn);
        }
        output.guesses = plan.guesses.iter().map(|g| passes[g.from.pass][g.from.draw].0).collect();
        output.drawn = self.target.step_guessed(plan, &output.guesses);
        for (guessed, token) in plan.guesses.iter().zip(&output.guesses) {
            let span = plan.spans.iter().find(|s| (s.first_row..s.first_row + s.rows).contains(&guessed.row)).unwrap();
            let before = plan.guesses.iter().filter(|g| span.first_row < g.row && g.row < guessed.row);
            let said = passes[guessed.from.pass][guessed.from.draw].1;
            if said && before.into_iter().all(|g| passes[g.from.pass][g.from.draw].1) {
                let draw = plan.draws.iter().position(|d| d.row + 1 == guessed.row).unwrap();
                assert_eq!(*token, output.drawn[draw], "the draft model sees what the target sees");
            }
        }
        output
    }
}

/// Plans, computes and applies one step; whether there was one.
pub(super) fn run(batch: &mut Batch, device: &mut FakeDevice) -> bool {
    let Some(plan) = batch.plan() else { return false };
    let drawn = device.step(&plan);
    batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
    batch.assert_sound();
    true
}

impl Batch {
    /// Everything that must hold between two calls.
    pub(super) fn assert_sound(&self) {
        self.cache.assert_sound(self.running.iter().map(|s| &s.stay.tables));
        if let Some(model) = &self.draft_model {
            model.assert_sound(self.running.iter().map(|s| (&s.stay.followed, s.known())));
        }
        assert!(self.running.len() <= self.limits.sequences_max as usize);
        assert!(self.running.is_sorted_by(|a, b| a.stay.number < b.stay.number), "in order of admission");
        assert!(
            self.waiting.iter().all(|s| s.stay.tables.is_empty() && s.stay.planned == 0),
            "who waits holds nothing"
        );
        assert!(self.flights.len() <= STEPS_IN_FLIGHT_MAX);
        for s in &self.running {
            let most = s.stay.tables.iter().map(Table::len).max();
            assert!(most.is_some_and(|most| most <= s.reserved), "never more than was taken from the window");
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
