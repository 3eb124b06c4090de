//! One sequence of one assignment: what is known of it, how far it is computed, and which blocks it holds.

use std::sync::Arc;

use cuckoo_kernels::ops::{KV_BLOCK_TOKENS, Span};
use cuckoo_kernels::sampling::{SamplingParams, TokenCounts};
use cuckoo_wire::message::{Assign, End, Sampling, SequenceId};

use super::plan::{Draw, Placeholder, StepPlan};
use crate::device::kv_cache::BlockHash;

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
    stop_tokens: Vec<u32>,
    params: Arc<SamplingParams>,
    /// Kept up to date only where penalties read it.
    counts: Arc<TokenCounts>,
    constraint: Constrained,
    /// What it took from the window.
    pub(super) reserved: u32,
    /// Tokens found in the cache in its first stay; `None` before.
    pub(super) cached: Option<u32>,
    /// Names of the full blocks of `tokens`, as far as they were asked for; the chain's root is before them.
    names: Vec<BlockHash>,
    root: BlockHash,
    /// What it holds while it runs.
    pub(super) stay: Stay,
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
    pub(super) blocks: Vec<u32>,
    /// Leading blocks that have their names in the cache.
    pub(super) published: u32,
    /// Positions whose keys and values are in the cache.
    pub(super) computed: u32,
    /// The same, once the steps in flight have landed.
    pub(super) planned: u32,
    /// The newest draw in flight, by its index in its step. While a step is planned there is no other: the draw of
    /// the token after `tokens`.
    pub(super) pending: Option<usize>,
}

/// What one sequence has in one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// [`Stay::number`].
    pub(super) stay: u64,
    pub(super) rows: u32,
    /// Index of its draw, if it has one.
    pub(super) draw: Option<usize>,
}

impl Sequence {
    /// Takes over what was assigned; `root` begins the names of its blocks.
    pub(super) fn new(assign: Assign, root: BlockHash) -> Self {
        let params = params(&assign.sampling);
        let mut counts = TokenCounts::default();
        if is_penalized(&params) {
            let (prompt, output) = assign.tokens.split_at(assign.prompt_tokens as usize);
            counts.push_prompt(prompt);
            output.iter().for_each(|t| counts.push_output(*t));
        }
        Self {
            id: assign.sequence,
            assigned: assign.tokens.len() as u32,
            tokens: assign.tokens,
            max_new: assign.max_new,
            credit: assign.credit,
            seed: assign.seed,
            stop_tokens: assign.stop_tokens,
            params: Arc::new(params),
            counts: Arc::new(counts),
            constraint: if assign.constraint.is_some() { Constrained::Compiling } else { Constrained::No },
            reserved: assign.blocks,
            cached: None,
            names: Vec::new(),
            root,
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
        is_penalized(&self.params) || self.constraint != Constrained::No
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
        let known = self.stay.pending.is_none() || !self.reads_its_tokens();
        self.is_decoding() && self.has_credit() && self.drawn_ahead() < self.max_new && known
    }

    /// Whether it would decode if only its newest token were known: penalties and masks depend on that token.
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

    /// Whether its blocks hold one more position than is planned.
    pub(super) fn has_room(&self) -> bool {
        (self.stay.planned as usize) < self.stay.blocks.len() * KV_BLOCK_TOKENS
    }

    /// Names of the first `blocks` blocks; all of them are full of known tokens.
    pub(super) fn names(&mut self, blocks: u32) -> &[BlockHash] {
        for at in self.names.len()..blocks as usize {
            let parent = at.checked_sub(1).map_or(self.root, |before| self.names[before]);
            self.names.push(parent.next(&self.tokens[at * KV_BLOCK_TOKENS..(at + 1) * KV_BLOCK_TOKENS]));
        }
        &self.names[..blocks as usize]
    }

    /// Names of the blocks that it may share. The last token is always computed: its logits are needed.
    pub(super) fn shareable(&mut self) -> &[BlockHash] {
        self.names((self.known() - 1) / KV_BLOCK_TOKENS as u32)
    }

    /// Adds `rows` rows to the plan, and a draw if they reach the newest token.
    pub(super) fn take(&mut self, rows: u32, plan: &mut StepPlan) -> Share {
        let (from, to) = (self.stay.planned as usize, (self.stay.planned + rows) as usize);
        let first_row = plan.tokens.len();
        plan.spans.push(Span { first_row, rows: rows as usize, first_position: from, first_block: plan.blocks.len() });
        match self.stay.pending.take() {
            Some(draw) => {
                assert_eq!((from, rows), (self.tokens.len(), 1), "only the token in flight is unknown");
                plan.placeholders.push(Placeholder { row: first_row, draw });
                plan.tokens.push(0);
            }
            None => plan.tokens.extend_from_slice(&self.tokens[from..to]),
        }
        plan.blocks.extend_from_slice(&self.stay.blocks[..to.div_ceil(KV_BLOCK_TOKENS)]);
        if to >= self.tokens.len() {
            self.stay.pending = Some(plan.draws.len());
            let untold = self.tell();
            plan.draws.push(Draw {
                sequence: self.id,
                row: plan.tokens.len() - 1,
                position: to as u64,
                seed: self.seed,
                params: self.params.clone(),
                counts: self.counts.clone(),
                untold,
            });
        }
        self.stay.planned = to as u32;
        Share { stay: self.stay.number, rows, draw: self.stay.pending }
    }

    /// Takes a drawn token in; why it is the last one, if it is.
    pub(super) fn push(&mut self, token: u32) -> Option<End> {
        self.tokens.push(token);
        if is_penalized(&self.params) {
            Arc::make_mut(&mut self.counts).push_output(token);
        }
        match () {
            () if self.stop_tokens.binary_search(&token).is_ok() => Some(End::Stop),
            () if self.drawn() >= self.max_new => Some(End::Length),
            () => None,
        }
    }
}

fn is_penalized(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0 || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0
}

fn params(s: &Sampling) -> SamplingParams {
    SamplingParams {
        temperature: s.temperature,
        top_k: s.top_k,
        top_p: s.top_p,
        min_p: s.min_p,
        repetition_penalty: s.repetition_penalty,
        presence_penalty: s.presence_penalty,
        frequency_penalty: s.frequency_penalty,
        logit_bias: s.logit_bias.iter().map(|(token, bias)| (*token, *bias)).collect(),
    }
}
