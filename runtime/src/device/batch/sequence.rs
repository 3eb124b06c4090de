//! One sequence of one assignment: what is known of it, how far it is computed, and which blocks it holds.

use std::ops::Range;
use std::sync::Arc;

use cuckoo_kernels::ops::{KV_BLOCK_TOKENS, Span};
use cuckoo_kernels::sampling::{self, Dry, SamplingParams, TokenHistory};
use cuckoo_wire::limits::{STEP_SCORES_MAX, STEP_TOKENS_MAX};
use cuckoo_wire::message::{Assign, End, Logprobs, SequenceId};

use super::guess::Guesses;
use super::plan::{Draw, GuessedRow, Placeholder, Score, StepPlan};
use crate::device::draft_model::{DraftModel, Followed, Following};
use crate::device::kv_cache::{BlockHash, Table};
use crate::device::speculation::{Acceptance, Wish, look_up};

/// Tokens that a sequence which has just begun is taken to draw.
const HORIZON_MIN: u32 = 16;

/// One sequence.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Everything known, drawn tokens included.
    pub(super) tokens: Vec<u32>,
    /// How many of `tokens` came with the assignment.
    assigned: u32,
    max_new: u32,
    pub(super) credit: u32,
    seed: u64,
    stop_tokens: Arc<[u32]>,
    /// Stop tokens do not come before this position.
    stops_from: u64,
    params: Arc<SamplingParams>,
    /// Kept up to date only where something reads it.
    history: Arc<TokenHistory>,
    constraint: Constrained,
    /// Whether log-probabilities of drawn tokens are wanted, and of how many others beside each.
    logprobs: Option<u32>,
    /// Those of the prompt's tokens, where they are wanted.
    scoring: Option<Scoring>,
    /// Which of the batch's adapters it uses.
    adapter: Option<usize>,
    /// What it took from the window.
    pub(super) reserved: u32,
    /// Tokens found in the cache in its first stay; `None` before.
    pub(super) cached: Option<u32>,
    /// Names of the full blocks of `tokens`, as far as they were asked for; the chain's root is before them.
    names: Vec<BlockHash>,
    root: BlockHash,
    /// Whether guesses that were found in its own words were right.
    found: Acceptance,
    /// Whether those of the draft model were.
    asked: Acceptance,
    /// What it holds while it runs.
    pub(super) stay: Stay,
}

/// How far a prompt's tokens have been held against what the model expected.
#[derive(Debug)]
struct Scoring {
    /// How many of the most probable tokens are wanted beside each.
    top: u32,
    /// Position of the next token to be scored, from 1; steps in flight do not count.
    next: u32,
    /// Where the prompt ends.
    end: u32,
    /// Scores that have not been sent: less than [`STEP_SCORES_MAX`] between two steps.
    held: Vec<Logprobs>,
}

/// How far a sequence's constraint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Constrained {
    /// It has none.
    No,
    /// It waits for it to be compiled.
    Compiling,
    /// The masks before the next one took so many of its tokens into account.
    Told(u32),
}

/// One stay among the running sequences, from admission to end or preemption. What a step in flight has computed for a
/// stay that is over is discarded.
#[derive(Debug, Default)]
pub(super) struct Stay {
    /// Never given twice, and growing: running sequences are sorted by it.
    pub(super) number: u64,
    /// Whether it never ran before: what later stays find in the cache was computed for it once.
    pub(super) is_first: bool,
    /// Its blocks in each group of layers.
    pub(super) tables: Vec<Table>,
    /// Leading blocks that have their names in the cache.
    pub(super) published: u32,
    /// Positions whose keys and values are in the cache.
    pub(super) computed: u32,
    /// The same, once the steps in flight have landed.
    pub(super) planned: u32,
    /// The newest draw in flight, by its index in its step. While a step is planned there is no other: the draw of
    /// the token after `tokens`.
    pub(super) pending: Option<usize>,
    /// Whether drafts are in flight behind that draw: how many tokens it will be is not known.
    pub(super) drafted: bool,
    /// What the draft model holds of it.
    pub(super) followed: Followed,
}

/// What one sequence has in one step.
#[derive(Clone, Debug)]
pub(super) struct Share {
    /// [`Stay::number`].
    pub(super) stay: u64,
    /// Rows of known tokens.
    pub(super) rows: u32,
    /// Tokens of the rows after those, which count as far as they are drawn, where they are known.
    pub(super) drafts: Vec<u32>,
    /// The same, by index in [`StepPlan::guesses`], where the draft model draws them first.
    pub(super) asked: Range<usize>,
    /// Its draws, by index: none, or one after the newest token and one after each draft.
    pub(super) draws: Range<usize>,
    /// Its scores, by index.
    pub(super) scores: Range<usize>,
}

impl Share {
    /// Rows of guesses.
    pub(super) fn guesses(&self) -> usize {
        self.drafts.len() + self.asked.len()
    }
}

impl Sequence {
    /// Takes over what was assigned; `root` begins the names of its blocks, `adapter` is one of the batch's.
    pub(super) fn new(assign: Assign, root: BlockHash, adapter: Option<usize>) -> Self {
        let params = params(&assign);
        let mut history = TokenHistory::default();
        if params.reads_history() {
            let (prompt, output) = assign.tokens.split_at(assign.prompt_tokens as usize);
            history.push_prompt(prompt);
            output.iter().for_each(|t| history.push_output(*t));
        }
        Self {
            id: assign.sequence,
            assigned: assign.tokens.len() as u32,
            tokens: assign.tokens,
            max_new: assign.max_new,
            credit: assign.credit,
            seed: assign.seed,
            stop_tokens: assign.stop_tokens.into(),
            stops_from: u64::from(assign.prompt_tokens) + u64::from(assign.sampling.min_tokens),
            params: Arc::new(params),
            history: Arc::new(history),
            constraint: if assign.constraint.is_some() { Constrained::Compiling } else { Constrained::No },
            logprobs: assign.logprobs.map(u32::from),
            scoring: assign.prompt_logprobs.map(|p| Scoring {
                top: u32::from(p.top),
                next: p.from,
                end: assign.prompt_tokens,
                held: Vec::new(),
            }),
            adapter,
            reserved: assign.blocks,
            cached: None,
            names: Vec::new(),
            root,
            found: Acceptance::default(),
            asked: Acceptance::default(),
            stay: Stay::default(),
        }
    }

    /// Tokens drawn since the assignment.
    pub(super) fn drawn(&self) -> u32 {
        self.known() - self.assigned
    }

    /// Tokens known.
    pub(super) fn known(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Tokens drawn once the steps in flight have landed.
    fn drawn_ahead(&self) -> u32 {
        self.drawn() + u32::from(self.stay.pending.is_some())
    }

    /// Whether one more token may be sent, beyond those in flight.
    pub(super) fn has_credit(&self) -> bool {
        self.drawn_ahead() < self.credit
    }

    /// Whether it waits for its constraint to be compiled.
    pub(super) fn is_compiling(&self) -> bool {
        self.constraint == Constrained::Compiling
    }

    /// Its constraint is compiled, and knows all tokens that came with the assignment.
    pub(super) fn constraint_is_ready(&mut self) {
        if self.is_compiling() {
            self.constraint = Constrained::Told(self.assigned);
        }
    }

    /// Whether a draw depends on the tokens before it beyond their keys and values.
    fn reads_its_tokens(&self) -> bool {
        self.params.reads_history() || self.constraint != Constrained::No
    }

    /// Tokens that the next mask has to take into account, where there is one.
    fn tell(&mut self) -> Option<Vec<u32>> {
        let Constrained::Told(told) = self.constraint else { return None };
        self.constraint = Constrained::Told(self.known());
        Some(self.tokens[told as usize..].to_vec())
    }

    /// Whether it can do nothing until its developer has read.
    pub(super) fn is_stalled(&self) -> bool {
        self.stay.pending.is_none() && !self.has_credit()
    }

    /// Whether everything but the newest token is computed or about to be, and something has been drawn.
    fn is_decoding(&self) -> bool {
        self.drawn_ahead() > 0 && self.stay.planned + 1 == self.assigned + self.drawn_ahead()
    }

    /// Whether a row for its newest token can be planned now: the token is known, or will be when the row is computed.
    pub(super) fn can_decode(&self) -> bool {
        let known = self.stay.pending.is_none() || !(self.reads_its_tokens() || self.stay.drafted);
        self.is_decoding() && self.has_credit() && self.drawn_ahead() < self.max_new && known
    }

    /// Whether it would decode if only its newest token were known: penalties and masks depend on that token, and of
    /// drafts in flight it is not known how many will be right.
    pub(super) fn waits_for_its_token(&self) -> bool {
        self.is_decoding() && self.has_credit() && self.drawn_ahead() < self.max_new && !self.can_decode()
    }

    /// Rows of known tokens that are not planned yet, where it may draw at their end.
    pub(super) fn rows_to_prefill(&self) -> u32 {
        match self.has_credit() {
            true => self.known().saturating_sub(self.stay.planned),
            false => 0,
        }
    }

    /// Names of the blocks that it may share, and what it holds.
    pub(super) fn chain_and_stay(&mut self) -> (&[BlockHash], &mut Stay) {
        let shareable = self.shareable().len();
        (&self.names[..shareable], &mut self.stay)
    }

    /// Positions that its blocks hold, in every group of layers, beyond those that are planned.
    pub(super) fn room(&self) -> u32 {
        let blocks = self.stay.tables.iter().map(Table::len).min().unwrap_or(0);
        blocks * KV_BLOCK_TOKENS as u32 - self.stay.planned
    }

    /// Names of the first `blocks` blocks; all of them are full of known tokens.
    pub(super) fn names(&mut self, blocks: u32) -> &[BlockHash] {
        for at in self.names.len()..blocks as usize {
            let parent = at.checked_sub(1).map_or(self.root, |before| self.names[before]);
            self.names.push(parent.next(&self.tokens[at * KV_BLOCK_TOKENS..(at + 1) * KV_BLOCK_TOKENS]));
        }
        &self.names[..blocks as usize]
    }

    /// Names of the blocks that it may share. The last token is always computed: its logits are needed, as are those of
    /// the rows before tokens that are still to be scored.
    pub(super) fn shareable(&mut self) -> &[BlockHash] {
        let unread = match &self.scoring {
            Some(scoring) if scoring.next < scoring.end => scoring.next - 1,
            _ => self.known() - 1,
        };
        self.names(unread / KV_BLOCK_TOKENS as u32)
    }

    /// Guesses of the tokens after the newest one that it can use, at most `most`.
    fn guesses_max(&self, most: u32) -> u32 {
        // Penalties and masks depend on each token before.
        if self.stay.pending.is_some() || self.reads_its_tokens() {
            return 0;
        }
        // One more token is drawn than is guessed.
        let wanted = self.max_new.min(self.credit).saturating_sub(self.drawn() + 1);
        most.min(wanted).min(self.room() - 1).min(STEP_TOKENS_MAX as u32 - 1)
    }

    /// Guesses that are found in its own words, as many as are worth their rows at `price` and fit the blocks it holds.
    pub(super) fn drafts(&self, price: f64, most: u32) -> Vec<u32> {
        match self.found.worth(price, self.guesses_max(most) as usize) {
            0 => Vec::new(),
            worth => look_up(&self.tokens, worth).to_vec(),
        }
    }

    /// What it could have of a draft model whose guess costs `price` tokens at least; `None` if nothing.
    pub(super) fn wish(&mut self, model: &DraftModel, most: u32, price: f64) -> Option<Wish> {
        let (known, chance) = (self.known(), self.asked.chance(model.chance()));
        let most = self.guesses_max(most).min(model.guesses_max(known));
        if most == 0 || chance <= price {
            return None;
        }
        let shareable = self.shareable().len();
        let backlog = model.backlog(&self.stay.followed, &self.names[..shareable], known);
        // Whoever has said much will say as much again.
        let horizon = (self.max_new - self.drawn()).min(self.drawn() + HORIZON_MIN);
        Some(Wish { chance, most, backlog, horizon })
    }

    /// What a draft model needs to make so many guesses.
    pub(super) fn following(&mut self, guesses: u32) -> Following<'_> {
        let shareable = self.shareable().len();
        let draw = self.draw(0, u64::from(self.known()));
        let chain = &self.names[..shareable];
        Following { followed: &mut self.stay.followed, tokens: &self.tokens, chain, draw, guesses }
    }

    /// Adds `rows` rows of known tokens and those of guesses to the plan, and draws if they reach the newest token.
    pub(super) fn take(&mut self, rows: u32, guesses: Guesses, plan: &mut StepPlan) -> Share {
        let (from, to) = (self.stay.planned as usize, (self.stay.planned + rows) as usize);
        let first_row = plan.tokens.len();
        plan.blocks.resize(self.stay.tables.len(), Vec::new());
        let first_block = plan.blocks.first().map_or(0, Vec::len);
        let rows_all = rows as usize + guesses.len();
        plan.spans.push(Span { first_row, rows: rows_all, first_position: from, first_block });
        plan.owners.push(self.id);
        plan.adapters.push(self.adapter);
        match self.stay.pending.take() {
            Some(draw) => {
                assert_eq!((from, rows_all), (self.tokens.len(), 1), "only the token in flight is unknown");
                plan.placeholders.push(Placeholder { row: first_row, draw });
                plan.tokens.push(0);
            }
            None => plan.tokens.extend_from_slice(&self.tokens[from..to]),
        }
        let first_score = plan.scores.len();
        if let Some(Scoring { top, next, end, .. }) = self.scoring {
            let rows = from.max(next as usize - 1)..to.min(end as usize - 1);
            let score = |at| Score { row: first_row + at - from, token: self.tokens[at + 1], top };
            plan.scores.extend(rows.map(score));
        }
        for (blocks, table) in plan.blocks.iter_mut().zip(&self.stay.tables) {
            blocks.extend_from_slice(table.first((from + rows_all).div_ceil(KV_BLOCK_TOKENS)));
        }
        let first_draw = plan.draws.len();
        if to >= self.tokens.len() {
            self.stay.pending = Some(first_draw);
            let untold = self.tell();
            let last_row = first_row + rows as usize - 1;
            let draw = |ahead| Draw { logprobs: self.logprobs, ..self.draw(last_row + ahead, (to + ahead) as u64) };
            // Who has a mask guesses nothing, so there is one draw.
            plan.draws.extend((0..=guesses.len()).map(|ahead| Draw { untold: untold.clone(), ..draw(ahead) }));
        }
        self.stay.planned = to as u32;
        self.stay.drafted = guesses.len() > 0;
        let (draws, scores) = (first_draw..plan.draws.len(), first_score..plan.scores.len());
        let (drafts, asked) = add_guesses(guesses, plan);
        Share { stay: self.stay.number, rows, drafts, asked, draws, scores }
    }

    /// The draw of the token at `position` from the logits of a row.
    fn draw(&self, row: usize, position: u64) -> Draw {
        Draw {
            sequence: self.id,
            row,
            position,
            seed: self.seed,
            params: self.params.clone(),
            history: self.history.clone(),
            forbidden: self.forbidden(position),
            untold: None,
            logprobs: None,
        }
    }

    /// Tokens that may not stand at a position yet.
    fn forbidden(&self, position: u64) -> Arc<[u32]> {
        match position < self.stops_from {
            true => self.stop_tokens.clone(),
            false => Arc::default(),
        }
    }

    /// Takes scores of the prompt's next tokens in. Those that are to be sent now: in portions of a fixed size, so that
    /// their number does not depend on how the prompt was cut into steps, or as many as the prompt's end leaves.
    pub(super) fn scored(&mut self, scores: &[sampling::Logprobs]) -> Vec<Vec<Logprobs>> {
        let Some(scoring) = self.scoring.as_mut().filter(|_| !scores.is_empty()) else { return Vec::new() };
        scoring.next += scores.len() as u32;
        scoring.held.extend(scores.iter().cloned().map(told));
        let mut portions = Vec::new();
        while scoring.held.len() >= STEP_SCORES_MAX {
            let later = scoring.held.split_off(STEP_SCORES_MAX);
            portions.push(std::mem::replace(&mut scoring.held, later));
        }
        if scoring.next == scoring.end && !scoring.held.is_empty() {
            portions.push(std::mem::take(&mut scoring.held));
        }
        portions
    }

    /// Rows of a step are computed: takes in what was drawn after them, as far as `drafts` were right. The new tokens,
    /// and why they are the last ones, if they are.
    pub(super) fn land(&mut self, share: &Share, drafts: &[u32], drawn: &[u32]) -> (Vec<u32>, Option<End>) {
        let (mut tokens, mut end) = (Vec::new(), None);
        for (at, token) in drawn.iter().enumerate() {
            tokens.push(*token);
            end = self.push(*token);
            if end.is_some() || drafts.get(at) != Some(token) {
                break;
            }
        }
        let accepted = tokens.len().saturating_sub(1) as u32;
        if !drawn.is_empty() {
            let (found, asked) = if share.asked.is_empty() { (drafts.len(), 0) } else { (0, drafts.len()) };
            self.found.observe(found, (accepted as usize).min(found));
            self.asked.observe(asked, (accepted as usize).min(asked));
        }
        self.stay.computed += share.rows;
        if self.stay.computed == self.stay.planned {
            (self.stay.pending, self.stay.drafted) = (None, false);
        }
        self.stay.computed += accepted;
        self.stay.planned += accepted;
        (tokens, end)
    }

    /// Takes a drawn token in; why it is the last one, if it is.
    fn push(&mut self, token: u32) -> Option<End> {
        self.tokens.push(token);
        if self.params.reads_history() {
            Arc::make_mut(&mut self.history).push_output(token);
        }
        match () {
            () if self.stop_tokens.binary_search(&token).is_ok() => Some(End::Stop),
            () if self.drawn() >= self.max_new => Some(End::Length),
            () => None,
        }
    }
}

/// Adds rows of guesses to a plan: their tokens where they are known, and which of the plan's guesses they are where not.
fn add_guesses(guesses: Guesses, plan: &mut StepPlan) -> (Vec<u32>, Range<usize>) {
    let first = plan.guesses.len();
    match guesses {
        Guesses::Found(tokens) => {
            plan.tokens.extend_from_slice(&tokens);
            (tokens, first..first)
        }
        Guesses::Asked(asked) => {
            for from in asked {
                plan.guesses.push(GuessedRow { row: plan.tokens.len(), from });
                plan.tokens.push(0);
            }
            (Vec::new(), first..plan.guesses.len())
        }
    }
}

/// As the protocol has it.
pub(super) fn told(found: sampling::Logprobs) -> Logprobs {
    Logprobs { logprob: found.logprob, rank: found.rank, top: found.top }
}

fn params(assign: &Assign) -> SamplingParams {
    let s = &assign.sampling;
    let dry = || Dry {
        multiplier: s.dry_multiplier,
        base: s.dry_base,
        allowed_length: s.dry_allowed_length,
        last_n: s.dry_penalty_last_n,
        breakers: assign.dry_breakers.clone(),
    };
    SamplingParams {
        temperature: s.temperature,
        top_k: s.top_k,
        typical_p: s.typical_p,
        top_p: s.top_p,
        min_p: s.min_p,
        xtc_probability: s.xtc_probability,
        xtc_threshold: s.xtc_threshold,
        repetition_penalty: s.repetition_penalty,
        presence_penalty: s.presence_penalty,
        frequency_penalty: s.frequency_penalty,
        dry: (s.dry_multiplier > 0.0).then(dry),
        logit_bias: s.logit_bias.iter().map(|(token, bias)| (*token, *bias)).collect(),
        allowed_tokens: s.allowed_token_ids.iter().copied().collect(),
        bad_words: assign.bad_words.clone(),
    }
}
