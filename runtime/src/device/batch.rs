//! Continuous batching, decided: which sequences take part in the next step, and what a finished step means for them.
//!
//! Pure: assignments, cancellations, credits and drawn tokens come in; step plans and news for the scheduler come out.
//! No clock, channel, socket or tensor inside. The life of a sequence:
//!
//! ```text
//! assign ▶ waiting ──(slot and blocks free)──▶ running ──(prefilled)──▶ decoding ──▶ ended
//!             └────────────── cancel ─────────────┴────────────────────────┘
//! ```
//!
//! A step is a list of spans within one budget of tokens: first one row for each decoding sequence, then chunks of
//! prompts in order of arrival. A sequence whose developer has not read what it sent (no credit left) sits steps out
//! and holds nobody else up.

use std::collections::VecDeque;
use std::sync::Arc;

use cuckoo_kernels::ops::{KV_BLOCK_TOKENS, Span};
use cuckoo_kernels::sampling::{SamplingParams, TokenCounts};
use cuckoo_wire::limits::REPLICA_SEQUENCES_MAX;
use cuckoo_wire::message::{Assign, End, Sampling, SequenceId, StepItem, Window};

use super::kv_cache::KvCache;

/// Sequences accepted beyond those that run, so that a freed slot is filled without waiting for a round trip.
const SEQUENCES_AHEAD: u32 = 4;

/// The extent of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Sequences that run at once.
    pub sequences_max: u32,
    /// Rows of one step: decodes and prompt chunks together. Bounds how long a step takes, so what a new prompt may
    /// cost those who are decoding.
    pub step_tokens_max: u32,
    /// KV blocks of the device.
    pub kv_blocks: u32,
    /// Longest sequence.
    pub context_tokens: u32,
}

/// What the next step computes. Rows are in the order of `spans`.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    /// One token a row.
    pub tokens: Vec<u32>,
    /// Whose rows these are.
    pub spans: Vec<Span>,
    /// Block tables of the spans, concatenated.
    pub blocks: Vec<u32>,
    /// Draws to make after it.
    pub draws: Vec<Draw>,
}

/// One token to be drawn.
#[derive(Clone, Debug)]
pub struct Draw {
    /// For whom.
    pub sequence: SequenceId,
    /// The row of the step whose logits are used.
    pub row: usize,
    /// Position of the token to be drawn.
    pub position: u64,
    /// Key of the generator.
    pub seed: u64,
    /// How.
    pub params: Arc<SamplingParams>,
    /// For penalties.
    pub counts: Arc<TokenCounts>,
}

/// One sequence of one assignment.
#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    /// Everything known, drawn tokens included.
    tokens: Vec<u32>,
    /// How many of `tokens` came with the assignment.
    assigned: u32,
    /// Positions whose keys and values are in the cache.
    computed: u32,
    /// Rows of the step in flight.
    in_flight: u32,
    max_new: u32,
    credit: u32,
    seed: u64,
    stop_tokens: Vec<u32>,
    params: Arc<SamplingParams>,
    counts: Arc<TokenCounts>,
    /// What it took from the window.
    reserved: u32,
    blocks: Vec<u32>,
    cancelled: bool,
}

/// The sequences of one replica.
#[derive(Debug)]
pub struct Batch {
    limits: BatchLimits,
    cache: KvCache,
    waiting: VecDeque<Sequence>,
    /// In order of admission.
    running: Vec<Sequence>,
    /// What has been granted so far.
    window: Window,
    /// What assignments have taken of it.
    taken: Window,
    /// News that no step result carries: cancellations of waiting sequences, refusals.
    news: Vec<StepItem>,
}

impl Batch {
    /// An empty batch with all blocks free.
    pub fn new(limits: BatchLimits) -> Self {
        assert!(limits.sequences_max > 0 && limits.step_tokens_max >= limits.sequences_max, "a step must hold a batch");
        let accepted = limits.sequences_max + SEQUENCES_AHEAD;
        assert!(accepted as usize <= REPLICA_SEQUENCES_MAX, "the protocol bounds a replica's sequences");
        Self {
            cache: KvCache::new(limits.kv_blocks),
            waiting: VecDeque::new(),
            running: Vec::new(),
            window: Window { sequences: u64::from(accepted), blocks: u64::from(limits.kv_blocks) },
            taken: Window::default(),
            news: Vec::new(),
            limits,
        }
    }

    /// What is granted to the scheduler, cumulative.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Sequences that run, and those that wait for a slot.
    pub fn sequences(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// KV blocks in use.
    pub fn blocks_used(&self) -> u32 {
        self.cache.used()
    }

    /// Takes a sequence in, or answers with news that says why not.
    pub fn assign(&mut self, assign: Assign) {
        if let Err(why) = self.check(&assign) {
            self.news.push(ended(assign.sequence, 0, End::Failed(why)));
            return;
        }
        self.taken.sequences += 1;
        self.taken.blocks += u64::from(assign.blocks);
        let prompt = assign.prompt_tokens as usize;
        let mut counts = TokenCounts::default();
        counts.push_prompt(&assign.tokens[..prompt]);
        assign.tokens[prompt..].iter().for_each(|t| counts.push_output(*t));
        self.waiting.push_back(Sequence {
            id: assign.sequence,
            assigned: assign.tokens.len() as u32,
            tokens: assign.tokens,
            computed: 0,
            in_flight: 0,
            max_new: assign.max_new,
            credit: assign.credit,
            seed: assign.seed,
            stop_tokens: assign.stop_tokens,
            params: Arc::new(params(&assign.sampling)),
            counts: Arc::new(counts),
            reserved: assign.blocks,
            blocks: Vec::new(),
            cancelled: false,
        });
    }

    fn check(&self, assign: &Assign) -> Result<(), String> {
        assign.check().map_err(|e| e.0)?;
        let known = assign.tokens.len() as u32;
        let needed = Assign::blocks_for(known, assign.max_new, KV_BLOCK_TOKENS as u32);
        match () {
            () if self.find(assign.sequence).is_some() => Err("the sequence is already here".to_owned()),
            () if known + assign.max_new > self.limits.context_tokens => Err(format!(
                "{known} tokens and {} new ones exceed the context of {}",
                assign.max_new, self.limits.context_tokens
            )),
            () if assign.blocks != needed => {
                Err(format!("{} blocks for a sequence that needs {needed}", assign.blocks))
            }
            () if self.taken.sequences >= self.window.sequences
                || self.taken.blocks + u64::from(needed) > self.window.blocks =>
            {
                Err("the window was overdrawn".to_owned())
            }
            () => Ok(()),
        }
    }

    /// Ends a sequence; unknown ones have ended already. Its blocks are free at once, or after the step in flight.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(at) = self.waiting.iter().position(|s| s.id == id) {
            let sequence = self.waiting.remove(at).expect("found there");
            self.retire(sequence, Vec::new(), End::Cancelled);
        } else if let Some(at) = self.running.iter().position(|s| s.id == id) {
            match self.running[at].in_flight > 0 {
                true => self.running[at].cancelled = true,
                false => {
                    let sequence = self.running.remove(at);
                    self.retire(sequence, Vec::new(), End::Cancelled);
                }
            }
        }
    }

    /// Raises what a sequence may send.
    pub fn credit(&mut self, id: SequenceId, tokens: u32) {
        if let Some(sequence) = self.find_mut(id) {
            sequence.credit = sequence.credit.max(tokens);
        }
    }

    /// The next step, or `None` where nobody can take one. Until [`Batch::apply`] its sequences are in flight.
    pub fn plan(&mut self) -> Option<StepPlan> {
        self.admit();
        let mut plan = StepPlan::default();
        let mut budget = self.limits.step_tokens_max;
        for sequence in self.running.iter_mut().filter(|s| s.is_decoding() && s.has_credit()) {
            sequence.take(1, &mut plan);
            budget -= 1;
        }
        for sequence in self.running.iter_mut().filter(|s| !s.is_decoding() && s.in_flight == 0) {
            let chunk = sequence.uncomputed().min(budget);
            if chunk == 0 {
                break;
            }
            sequence.take(chunk, &mut plan);
            budget -= chunk;
        }
        (!plan.spans.is_empty()).then_some(plan)
    }

    fn admit(&mut self) {
        while (self.running.len() as u32) < self.limits.sequences_max {
            let Some(first) = self.waiting.front() else { return };
            // In order: a large sequence is not overtaken for ever by small ones.
            let Some(blocks) = self.cache.allocate(first.reserved) else { return };
            let mut sequence = self.waiting.pop_front().expect("seen above");
            sequence.blocks = blocks;
            self.running.push(sequence);
        }
    }

    /// Takes in what the planned step drew, one token for each of its draws, and ends who has ended.
    pub fn apply(&mut self, plan: StepPlan, drawn: &[u32]) {
        assert_eq!(plan.draws.len(), drawn.len(), "one token a draw");
        for sequence in &mut self.running {
            sequence.computed += std::mem::take(&mut sequence.in_flight);
        }
        for (Draw { sequence: id, counts, .. }, token) in plan.draws.into_iter().zip(drawn) {
            // The sequence must be the only holder of its counts, or `push` would copy them.
            drop(counts);
            let sequence = self.find_mut(id).expect("a sequence in flight stays");
            if sequence.cancelled {
                continue;
            }
            let first = sequence.drawn();
            match sequence.push(*token) {
                None => self.news.push(StepItem { sequence: id, first, tokens: vec![*token], end: None }),
                Some(end) => self.end(id, vec![*token], end),
            }
        }
        let cancelled: Vec<SequenceId> = self.running.iter().filter(|s| s.cancelled).map(|s| s.id).collect();
        cancelled.into_iter().for_each(|id| self.end(id, Vec::new(), End::Cancelled));
    }

    /// News since the last call.
    pub fn take_news(&mut self) -> Vec<StepItem> {
        std::mem::take(&mut self.news)
    }

    fn end(&mut self, id: SequenceId, tokens: Vec<u32>, end: End) {
        let at = self.running.iter().position(|s| s.id == id).expect("only running sequences end here");
        let sequence = self.running.remove(at);
        self.retire(sequence, tokens, end);
    }

    fn retire(&mut self, sequence: Sequence, tokens: Vec<u32>, end: End) {
        let first = sequence.drawn() - tokens.len() as u32;
        self.news.push(StepItem { sequence: sequence.id, first, tokens, end: Some(end) });
        self.window.sequences += 1;
        self.window.blocks += u64::from(sequence.reserved);
        self.cache.release(sequence.blocks);
    }

    fn find(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.iter().chain(&self.waiting).find(|s| s.id == id)
    }

    fn find_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.iter_mut().chain(&mut self.waiting).find(|s| s.id == id)
    }
}

impl Sequence {
    /// Tokens drawn since the assignment.
    fn drawn(&self) -> u32 {
        self.tokens.len() as u32 - self.assigned
    }

    fn uncomputed(&self) -> u32 {
        self.tokens.len() as u32 - self.computed
    }

    /// Whether everything but the newest token is in the cache, and something has been drawn.
    fn is_decoding(&self) -> bool {
        self.drawn() > 0 && self.uncomputed() == 1
    }

    fn has_credit(&self) -> bool {
        self.in_flight == 0 && self.drawn() < self.credit
    }

    /// Adds `rows` rows to the plan, and a draw if they reach the newest token.
    fn take(&mut self, rows: u32, plan: &mut StepPlan) {
        let (from, to) = (self.computed as usize, (self.computed + rows) as usize);
        plan.spans.push(Span {
            first_row: plan.tokens.len(),
            rows: rows as usize,
            first_position: from,
            first_block: plan.blocks.len(),
        });
        plan.tokens.extend_from_slice(&self.tokens[from..to]);
        plan.blocks.extend_from_slice(&self.blocks[..to.div_ceil(KV_BLOCK_TOKENS)]);
        if to == self.tokens.len() {
            plan.draws.push(Draw {
                sequence: self.id,
                row: plan.tokens.len() - 1,
                position: to as u64,
                seed: self.seed,
                params: self.params.clone(),
                counts: self.counts.clone(),
            });
        }
        self.in_flight = rows;
    }

    fn push(&mut self, token: u32) -> Option<End> {
        self.tokens.push(token);
        Arc::make_mut(&mut self.counts).push_output(token);
        match () {
            () if self.stop_tokens.binary_search(&token).is_ok() => Some(End::Stop),
            () if self.drawn() >= self.max_new => Some(End::Length),
            () => None,
        }
    }
}

fn ended(sequence: SequenceId, first: u32, end: End) -> StepItem {
    StepItem { sequence, first, tokens: Vec::new(), end: Some(end) }
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

#[cfg(test)]
mod tests;
