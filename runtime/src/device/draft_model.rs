//! The bookkeeping of a draft model: a small model that reads what a batch's sequences hold and guesses their next tokens.
//!
//! Pure: positions, blocks and durations come in, passes of the small model come out. It has keys and values of its own, in
//! blocks of its own, and *follows* a sequence only when somebody expects to gain from it; then it computes what it has
//! missed, in pieces that nobody has to wait long for. Nothing of it is owed to anybody: where it lacks blocks, fails or has
//! fallen behind there are fewer guesses, and the output is the same.

use std::ops::Range;
use std::time::Duration;

use cuckoo_kernels::ops::{KV_BLOCK_TOKENS, Span};

use super::batch::{BatchLimits, Draw, Placeholder, StepPlan};
use super::budget::StepBudget;
use super::kv_cache::{BlockHash, KvGroups, Table};
use super::kv_plan::KvPlan;
use super::speculation::{Acceptance, Prices};

/// Of a step's duration, so much may go into catching up with sequences.
const CATCH_UP_SHARE: u32 = 2;
/// Rows of one pass however long they take, beyond one a sequence.
const CATCH_UP_ROWS_MIN: u32 = KV_BLOCK_TOKENS as u32;
/// How often it is taken to be right before anything is known: more than is likely, for a guess that is never tried teaches
/// nothing.
const CHANCE_UNTRIED: f64 = 0.8;
/// After so many steps in which it was not asked, what it costs is measured anew: that may be wrong by now.
const STEPS_UNASKED_MAX: u32 = 256;

/// A small model beside a batch's own, with the same vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftPlan {
    /// Its memory for keys and values.
    pub kv: KvPlan,
    /// Positions that it can compute.
    pub context_tokens: u32,
}

/// The draft model of one batch.
#[derive(Debug)]
pub(super) struct DraftModel {
    cache: KvGroups,
    /// What its passes cost, and how many rows one may have.
    budget: StepBudget,
    /// The same as long as nothing is known.
    unmeasured: StepBudget,
    /// How often it is right, of all sequences: what is expected of a new one.
    acceptance: Acceptance,
    context_tokens: u32,
    /// Steps since it was asked.
    unasked: u32,
}

/// What the draft model holds of one stay of a sequence.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// Its blocks in each group of the draft model's layers; none before it is followed.
    tables: Vec<Table>,
    /// Positions of known tokens whose keys and values are there once the steps in flight are computed.
    computed: u32,
    /// Leading blocks that have their names in the cache.
    published: u32,
}

/// A sequence that may be followed for one step.
pub(super) struct Following<'a> {
    /// What is held of it.
    pub(super) followed: &'a mut Followed,
    /// Its known tokens.
    pub(super) tokens: &'a [u32],
    /// Names of the blocks of these that may be shared.
    pub(super) chain: &'a [BlockHash],
    /// The draw of the token after those.
    pub(super) draw: Draw,
    /// Guesses that are wanted of it.
    pub(super) guesses: u32,
}

impl DraftModel {
    /// One that has seen nothing.
    pub(super) fn new(plan: &DraftPlan, limits: &BatchLimits) -> Self {
        let rows_min = limits.step_tokens_max.min(limits.sequences_max + CATCH_UP_ROWS_MIN);
        let unmeasured = StepBudget::new(rows_min, limits.step_tokens_max, limits.step_target / CATCH_UP_SHARE);
        Self {
            cache: KvGroups::new(&plan.kv.groups),
            budget: unmeasured.clone(),
            unmeasured,
            acceptance: Acceptance::default(),
            context_tokens: plan.context_tokens,
            unasked: 0,
        }
    }

    /// What its guesses cost beside steps of `decodes` rows on `target`; `None` before that is known.
    pub(super) fn prices(&self, target: &StepBudget, decodes: u32) -> Option<Prices> {
        let (pass, row) = self.budget.costs_s();
        let price = |seconds| target.tokens_in(seconds, decodes);
        Some(Prices { row: target.row_price(decodes)?, pass: price(pass), draft_row: price(row) })
    }

    /// The chance that its guess is right, for a sequence of which nothing is known.
    pub(super) fn chance(&self) -> f64 {
        self.acceptance.chance(CHANCE_UNTRIED)
    }

    /// How long `passes` take, as far as is known.
    pub(super) fn expected(&self, passes: &[StepPlan]) -> Option<Duration> {
        passes.iter().map(|pass| self.budget.expected(pass.tokens.len() as u32)).sum()
    }

    /// Guesses that it is asked for after `known` tokens at most: as its context allows, and no more than one before it is
    /// known what that costs.
    pub(super) fn guesses_max(&self, known: u32) -> u32 {
        let most = if self.budget.expected(1).is_some() { u32::MAX } else { 1 };
        (self.context_tokens + 1).saturating_sub(known).min(most)
    }

    /// Rows that are to be computed before it can guess what follows `known` tokens.
    pub(super) fn backlog(&self, followed: &Followed, chain: &[BlockHash], known: u32) -> u32 {
        let computed = match followed.tables.is_empty() {
            true => self.cache.find(chain) * KV_BLOCK_TOKENS as u32,
            false => followed.computed,
        };
        known - computed
    }

    /// Passes that follow these sequences, and for each sequence which draws of which passes are its guesses: as many as it
    /// wants, or fewer where rows or blocks do not suffice. The first pass computes what was missed, those who have missed
    /// least first.
    pub(super) fn passes(&mut self, followings: &mut [Following<'_>]) -> (Vec<StepPlan>, Vec<Vec<Guess>>) {
        let mut guesses = vec![Vec::new(); followings.len()];
        let mut order: Vec<usize> = (0..followings.len()).collect();
        followings.iter_mut().for_each(|f| self.begin(f));
        order.sort_by_key(|at| followings[*at].tokens.len() as u32 - followings[*at].followed.computed);
        let mut rows_left = self.budget.rows();
        let mut passes: Vec<StepPlan> = Vec::new();
        let mut pass = StepPlan::default();
        for at in order {
            let following = &mut followings[at];
            let (from, known) = (following.followed.computed, following.tokens.len() as u32);
            let rows = self.with_blocks(following.followed, (known - from).min(rows_left));
            if rows == 0 {
                continue;
            }
            rows_left -= rows;
            let tokens = &following.tokens[from as usize..(from + rows) as usize];
            span(&mut pass, &following.followed.tables, from, tokens);
            following.followed.computed += rows;
            if from + rows == known && following.guesses > 0 {
                guesses[at].push(Guess { pass: 0, draw: pass.draws.len() });
                pass.draws.push(Draw { row: pass.tokens.len() - 1, ..following.draw.clone() });
            }
        }
        while !pass.tokens.is_empty() {
            let next = self.pass_behind(followings, &mut guesses, passes.len() as u32 + 1);
            passes.push(std::mem::replace(&mut pass, next));
        }
        if !passes.is_empty() {
            self.unasked = 0;
        }
        (passes, guesses)
    }

    /// The pass `number`, from 1, whose rows are what the one before draws.
    fn pass_behind(&mut self, followings: &mut [Following<'_>], guesses: &mut [Vec<Guess>], number: u32) -> StepPlan {
        let mut pass = StepPlan::default();
        for (following, guesses) in followings.iter_mut().zip(guesses) {
            // Who could not take part in the pass before has nothing to go on from.
            if guesses.len() as u32 != number || following.guesses <= number {
                continue;
            }
            let position = following.followed.computed + number - 1;
            let blocks = self.cache.grow(&mut following.followed.tables, blocks_for(position + 1));
            if blocks < blocks_for(position + 1) {
                continue;
            }
            let (row, draw) = (pass.tokens.len(), guesses[number as usize - 1].draw);
            pass.placeholders.push(Placeholder { row, draw });
            span(&mut pass, &following.followed.tables, position, &[0]);
            guesses.push(Guess { pass: number as usize, draw: pass.draws.len() });
            let draw = &following.draw;
            pass.draws.push(Draw { row, position: draw.position + u64::from(number), ..draw.clone() });
        }
        pass
    }

    /// Begins to follow a sequence, with what the cache has of it.
    fn begin(&mut self, following: &mut Following<'_>) {
        if following.followed.tables.is_empty() {
            let found = self.cache.find(following.chain);
            let tables = self.cache.settle(following.chain, found, found);
            *following.followed = Followed { tables, computed: found * KV_BLOCK_TOKENS as u32, published: found };
        }
    }

    /// How many of `rows` more rows it has blocks for in every group, once it has taken what there is.
    fn with_blocks(&mut self, followed: &mut Followed, rows: u32) -> u32 {
        let blocks = self.cache.grow(&mut followed.tables, blocks_for(followed.computed + rows));
        rows.min((blocks * KV_BLOCK_TOKENS as u32).saturating_sub(followed.computed))
    }

    /// A step landed in which a sequence had `guesses` guesses, of which the first `accepted` were drawn: what is computed
    /// of its `known` tokens, and which of their blocks are to be named.
    pub(super) fn landed(&mut self, followed: &mut Followed, guesses: u32, accepted: u32) -> Range<u32> {
        if guesses > 0 {
            self.acceptance.observe(guesses as usize, accepted as usize);
            // The last guess was drawn and not computed.
            followed.computed += accepted.min(guesses - 1);
        }
        followed.published..followed.computed / KV_BLOCK_TOKENS as u32
    }

    /// Gives the blocks that [`DraftModel::landed`] named their names, and lets go of what no later row sees.
    pub(super) fn publish(&mut self, followed: &mut Followed, names: &[BlockHash]) {
        for name in names {
            self.cache.publish(&mut followed.tables, followed.published, *name);
            followed.published += 1;
        }
        if !followed.tables.is_empty() {
            self.cache.advance(&mut followed.tables, followed.computed);
        }
    }

    /// A step was applied whose passes had so many rows and took so long; none, if it had none.
    pub(super) fn observe(&mut self, passes: impl Iterator<Item = (u32, Duration)>) {
        let mut any = false;
        for (rows, took) in passes {
            any = true;
            self.budget.observe(rows, took);
        }
        if !any {
            self.acceptance.observe(0, 0);
            self.unasked += 1;
            if self.unasked == STEPS_UNASKED_MAX {
                (self.unasked, self.budget) = (0, self.unmeasured.clone());
            }
        }
    }

    /// Stops following a sequence.
    pub(super) fn release(&mut self, followed: &Followed) {
        self.cache.release(&followed.tables);
    }
}

/// Where a guess comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guess {
    /// Which pass of the draft model.
    pub pass: usize,
    /// Which of its draws.
    pub draw: usize,
}

/// Adds rows of one sequence, from a position on, to a pass.
fn span(pass: &mut StepPlan, tables: &[Table], position: u32, tokens: &[u32]) {
    pass.blocks.resize(tables.len(), Vec::new());
    let first_block = pass.blocks.first().map_or(0, Vec::len);
    let (first_row, rows) = (pass.tokens.len(), tokens.len());
    pass.spans.push(Span { first_row, rows, first_position: position as usize, first_block });
    pass.tokens.extend_from_slice(tokens);
    for (blocks, table) in pass.blocks.iter_mut().zip(tables) {
        blocks.extend_from_slice(table.first(blocks_for(position + rows as u32) as usize));
    }
}

/// Blocks of so many positions.
fn blocks_for(positions: u32) -> u32 {
    positions.div_ceil(KV_BLOCK_TOKENS as u32)
}

#[cfg(test)]
impl DraftModel {
    /// Everything that must hold between two calls, given what is held of all sequences that run and how many tokens of
    /// them are known.
    pub(super) fn assert_sound<'a>(&self, followed: impl Iterator<Item = (&'a Followed, u32)> + Clone) {
        let tables = followed.clone().map(|(followed, _)| &followed.tables);
        self.cache.assert_sound(tables.filter(|tables| !tables.is_empty()));
        for (followed, known) in followed {
            assert!(followed.computed <= known, "guesses do not count");
            assert!(followed.published * KV_BLOCK_TOKENS as u32 <= followed.computed, "only what is computed is named");
        }
    }

    /// Blocks that are held, of all groups.
    pub(super) fn blocks_used(&self) -> u32 {
        self.cache.used().sum()
    }
}
