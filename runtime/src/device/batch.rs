//! Continuous batching, decided: which sequences take part in the next step, and what a finished step means for them.
//!
//! Pure: assignments, cancellations, credits, drawn tokens and durations come in; step plans and news for the scheduler
//! come out. No clock, channel, socket or tensor inside. The life of a sequence:
//!
//! ```text
//! assign ▶ waiting ──(slot, rows and blocks free)──▶ running: prefilling ▶ decoding ──▶ ended
//!             │ ▲                                        │
//!             │ └───── preempted: others need blocks ────┤
//!             └────────────────── cancel ────────────────┴──▶ ended
//! ```
//!
//! A step is a list of spans within one budget of rows: first one row for each decoding sequence, then chunks of
//! prompts in order of arrival. A sequence whose developer has not read what it sent (no credit left) sits steps out
//! and holds nobody else up; so does one whose constraint is being compiled. Where rows are cheap and the next tokens can
//! be guessed, a decoding sequence gets a row for each guess (`speculation`), of its own words or of a draft model
//! (`draft_model`).
//!
//! Blocks are allocated as sequences grow, and full blocks are shared between those with the same beginning. The window
//! counts worst cases, most of which never happen, so more of them are granted than there are blocks: at
//! [`BLOCKS_GRANTED_PER_BLOCK`]. Where they do happen, the youngest sequences wait for the oldest: any one of them
//! fits alone, so the oldest always goes on, and all of them end.

mod guess;
mod plan;
mod sequence;
mod step;

use std::collections::VecDeque;
use std::time::Duration;

use cuckoo_kernels::KvKind;
use cuckoo_kernels::ops::KV_BLOCK_TOKENS;
use cuckoo_wire::limits::{BLOCK_NEWS_MAX, BLOCK_TOKENS, REPLICA_SEQUENCES_MAX};
use cuckoo_wire::message::{Assign, End, Logprobs, SequenceId, StepItem, WeightsHash, Window};

pub use self::plan::{Draw, GuessedRow, Placeholder, Score, StepOutput, StepPlan};
use self::sequence::{Sequence, Stay};
use self::step::Flight;
use super::budget::StepBudget;
use super::draft_model::{DraftModel, DraftPlan};
use super::kv_cache::{BlockHash, KvGroups};
use super::kv_plan::KvPlan;

/// Sequences accepted beyond those that run, so that a freed slot is filled without waiting for a round trip.
const SEQUENCES_AHEAD: u32 = 4;
// Names of blocks mean something to a scheduler.
const _: () = assert!(KV_BLOCK_TOKENS == BLOCK_TOKENS);
/// Blocks granted to the scheduler for each that there is. It takes worst cases from the window: prompt and all the
/// tokens that may ever come. Those who come in share and end early; two is what a batch survives with few preemptions.
const BLOCKS_GRANTED_PER_BLOCK: u64 = 2;
/// Steps that may be planned and not applied: one that is computed, and one behind it that needs no planning when the
/// first is done.
pub const STEPS_IN_FLIGHT_MAX: usize = 2;
/// Of the reason why a sequence failed, so much is told: many may fail in one step.
const REASON_CHARS_MAX: usize = 120;
/// Rows that a step may have beyond one a sequence, however long it takes: a prompt must get through.
const PROMPT_ROWS_MIN: u32 = KV_BLOCK_TOKENS as u32;

/// The extent of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Sequences that run at once.
    pub sequences_max: u32,
    /// Rows of one step: decodes and prompt chunks together. Bounds memory, and how long a step takes.
    pub step_tokens_max: u32,
    /// How long a step should take: prompts are cut so that those who are decoding wait about so long.
    pub step_target: Duration,
    /// Draft tokens of one step, of all its sequences together; 0 where nothing is speculated on.
    pub drafts_max: u32,
    /// KV blocks of the device, as the window counts them; see [`KvPlan`].
    pub kv_blocks: u32,
    /// How keys and values are kept.
    pub kv_kind: KvKind,
    /// Bytes of host memory for blocks whose room on the device is needed; 0 where they are forgotten.
    pub spill_bytes: u64,
    /// Longest sequence.
    pub context_tokens: u32,
}

impl BatchLimits {
    /// Draws of one step at most: one a sequence, and one a draft.
    pub fn draws_max(&self) -> u32 {
        self.sequences_max + self.drafts_max
    }

    /// Those of the draft model of such a batch: it has as many blocks, and forgets those whose room is needed.
    pub fn of_draft(&self) -> Self {
        Self { spill_bytes: 0, ..*self }
    }
}

/// What a batch has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchStats {
    /// Tokens of sequences that began to run, as assigned.
    pub prefix_lookup_tokens: u64,
    /// Of these, how many the cache had: they were not computed.
    pub prefix_hit_tokens: u64,
    /// How often a sequence lost its blocks and had to begin again.
    pub preemptions: u64,
    /// Rows computed for nothing: their sequence had ended or lost its blocks when its step landed.
    pub rows_discarded: u64,
    /// Blocks with content that were overwritten.
    pub evictions: u64,
    /// Of these, how many were copied to the host before.
    pub spilled: u64,
    /// Blocks copied back from there, rather than computed again.
    pub restored: u64,
    /// Draft tokens computed.
    pub drafts: u64,
    /// Of these, how many were drawn.
    pub drafts_accepted: u64,
    /// Of the draft tokens, how many a draft model proposed.
    pub drafts_asked: u64,
    /// Of these, how many were drawn.
    pub drafts_asked_accepted: u64,
    /// Rows that the draft model computed for them.
    pub draft_model_rows: u64,
}

/// The sequences of one replica.
#[derive(Debug)]
pub struct Batch {
    limits: BatchLimits,
    weights: WeightsHash,
    /// Adapters that sequences may use.
    adapters: Vec<WeightsHash>,
    cache: KvGroups,
    budget: StepBudget,
    /// What guesses, if anything does and has not failed.
    draft_model: Option<DraftModel>,
    /// In order of arrival, those that were preempted before the others.
    waiting: VecDeque<Sequence>,
    /// In order of admission.
    running: Vec<Sequence>,
    /// Steps planned and not applied, oldest first.
    flights: VecDeque<Flight>,
    /// Steps planned so far.
    planned: u64,
    /// Stays among the running begun so far.
    stays: u64,
    stats: BatchStats,
    /// What has been granted so far to one scheduler.
    window: Window,
    /// What others have beside that.
    others: Window,
    /// What assignments have taken of it.
    taken: Window,
    /// News that no step result carries: cancellations of waiting sequences, refusals.
    news: Vec<StepItem>,
}

impl Batch {
    /// An empty batch of sequences of the model `weights`, in which all layers see everything.
    pub fn new(limits: BatchLimits, weights: WeightsHash) -> Self {
        Self::with_kv(limits, weights, &KvPlan::plain(limits.kv_blocks))
    }

    /// An empty batch of sequences of the model `weights`, with all blocks of `kv` free and blank.
    pub fn with_kv(limits: BatchLimits, weights: WeightsHash, kv: &KvPlan) -> Self {
        assert!(limits.sequences_max > 0 && limits.step_tokens_max >= limits.sequences_max, "a step must hold a batch");
        let accepted = limits.sequences_max + SEQUENCES_AHEAD;
        assert!(accepted as usize <= REPLICA_SEQUENCES_MAX, "the protocol bounds a replica's sequences");
        let rows_min = limits.step_tokens_max.min(limits.sequences_max + PROMPT_ROWS_MIN);
        Self {
            cache: KvGroups::new(&kv.groups),
            budget: StepBudget::new(rows_min, limits.step_tokens_max, limits.step_target),
            draft_model: None,
            waiting: VecDeque::new(),
            running: Vec::new(),
            flights: VecDeque::new(),
            planned: 0,
            stays: 0,
            stats: BatchStats::default(),
            window: Window {
                sequences: u64::from(accepted),
                blocks: u64::from(limits.kv_blocks) * BLOCKS_GRANTED_PER_BLOCK,
            },
            others: Window::default(),
            taken: Window::default(),
            news: Vec::new(),
            limits,
            weights,
            adapters: Vec::new(),
        }
    }

    /// The same batch with a draft model beside it.
    pub fn with_draft(mut self, plan: &DraftPlan) -> Self {
        self.draft_model = Some(DraftModel::new(plan, &self.limits));
        self
    }

    /// The same, whose sequences may use `adapters`; plans name them by their places in this list.
    pub fn with_adapters(self, adapters: &[WeightsHash]) -> Self {
        Self { adapters: adapters.to_vec(), ..self }
    }

    /// What is granted to the scheduler, cumulative.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Others may take so much beside what the window has: it may wait here.
    pub fn grant_others(&mut self, others: Window) {
        self.others = others;
    }

    /// Sequences that run, and those that wait for a slot.
    pub fn sequences(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// KV blocks that running sequences hold, of those that the window counts; what idle ones contain can be overwritten at
    /// any time.
    pub fn blocks_used(&self) -> u32 {
        self.blocks_by_group().next().unwrap_or(0)
    }

    /// Names of all blocks in the cache.
    pub fn cached_names(&self) -> impl Iterator<Item = u64> {
        self.cache.cached_names()
    }

    /// Names of blocks that came into the cache, and those that left it, since they were taken last: at most
    /// [`BLOCK_NEWS_MAX`] each.
    pub fn take_block_news(&mut self) -> (Vec<u64>, Vec<u64>) {
        self.cache.take_news(BLOCK_NEWS_MAX)
    }

    /// The same for each group of layers: the first is the one that sees most.
    pub fn blocks_by_group(&self) -> impl Iterator<Item = u32> {
        self.cache.used()
    }

    /// How long a step takes on this device, as far as is known, what the draft model does for it included.
    pub fn expected(&self, plan: &StepPlan) -> Option<Duration> {
        let passes = self.draft_model.as_ref().map_or(Some(Duration::ZERO), |model| model.expected(&plan.passes))?;
        Some(self.budget.expected(plan.tokens.len() as u32)?.saturating_add(passes))
    }

    /// What has happened so far.
    pub fn stats(&self) -> BatchStats {
        let (spilled, restored) = self.cache.copied();
        BatchStats { evictions: self.cache.evictions(), spilled, restored, ..self.stats }
    }

    /// Takes a sequence in, or answers with news that says why not.
    pub fn assign(&mut self, assign: Assign) {
        if let Err(why) = self.check(&assign) {
            return self.refuse(assign.sequence, assign.blocks, &why);
        }
        if !self.take(assign.sequence, assign.blocks) {
            return;
        }
        let root = BlockHash::root(&self.weights.0, assign.adapter.as_ref().map(|a| &a.0), &assign.cache_salt);
        let adapter = assign.adapter.and_then(|hash| self.adapters.iter().position(|a| *a == hash));
        self.waiting.push_back(Sequence::new(assign, root, adapter));
    }

    /// Answers what cannot run here. What it took from the window returns, or the window would shrink for ever.
    pub fn refuse(&mut self, id: SequenceId, blocks: u32, why: &str) {
        if self.take(id, blocks) {
            self.give_back(blocks);
            self.tell_failed(id, why.to_owned());
        }
    }

    fn tell_failed(&mut self, id: SequenceId, why: String) {
        self.news.push(StepItem::new(id, 0, Vec::new(), Some(End::Failed(why))));
    }

    fn check(&self, assign: &Assign) -> Result<(), String> {
        assign.check().map_err(|e| e.0)?;
        let (known, new) = (assign.tokens.len() as u32, assign.max_new);
        let needed = Assign::blocks_for(known, new, KV_BLOCK_TOKENS as u32);
        let why = match () {
            () if self.sequences_all().any(|s| s.id == assign.sequence) => "the sequence is already here".to_owned(),
            () if assign.adapter.is_some_and(|hash| !self.adapters.contains(&hash)) => {
                "the adapter is not loaded here".to_owned()
            }
            () if known + new > self.limits.context_tokens => {
                format!("{known} tokens and {new} new ones exceed the context of {}", self.limits.context_tokens)
            }
            () if needed > self.limits.kv_blocks => format!(
                "{known} tokens and {new} new ones need {needed} KV blocks of {KV_BLOCK_TOKENS}, and there are {}",
                self.limits.kv_blocks
            ),
            () if assign.blocks != needed => format!("{} blocks for a sequence that needs {needed}", assign.blocks),
            () => return Ok(()),
        };
        Err(why)
    }

    /// Ends a sequence; unknown ones have ended already. Its blocks are free at once: a step in flight that still writes
    /// to them is computed before any step that uses them for somebody else.
    pub fn cancel(&mut self, id: SequenceId) {
        self.end(id, End::Cancelled);
    }

    /// Ends a sequence that cannot go on, like [`Batch::cancel`].
    pub fn fail(&mut self, id: SequenceId, why: &str) {
        self.end(id, End::Failed(why.chars().take(REASON_CHARS_MAX).collect()));
    }

    /// Whether a sequence waits for [`Batch::constraint_is_ready`], or for [`Batch::fail`].
    pub fn is_compiling(&self, id: SequenceId) -> bool {
        self.waiting.iter().any(|s| s.id == id && s.is_compiling())
    }

    /// A sequence's constraint is compiled, for all the tokens that it was assigned with: it may run.
    pub fn constraint_is_ready(&mut self, id: SequenceId) {
        if let Some(sequence) = self.waiting.iter_mut().find(|s| s.id == id) {
            sequence.constraint_is_ready();
        }
    }

    fn end(&mut self, id: SequenceId, end: End) {
        let sequence = match self.waiting.iter().position(|s| s.id == id) {
            Some(at) => self.waiting.remove(at),
            None => self.running.iter().position(|s| s.id == id).map(|at| self.running.remove(at)),
        };
        if let Some(sequence) = sequence {
            self.retire(sequence, Vec::new(), Vec::new(), end);
        }
    }

    /// Raises what a sequence may send.
    pub fn credit(&mut self, id: SequenceId, tokens: u32) {
        if let Some(sequence) = self.running.iter_mut().chain(&mut self.waiting).find(|s| s.id == id) {
            sequence.credit = sequence.credit.max(tokens);
        }
    }

    /// News since the last call.
    pub fn take_news(&mut self) -> Vec<StepItem> {
        std::mem::take(&mut self.news)
    }

    /// Ends a sequence that neither waits nor runs any more; `tokens` are the last it drew.
    fn retire(&mut self, sequence: Sequence, tokens: Vec<u32>, logprobs: Vec<Logprobs>, end: End) {
        let first = sequence.drawn() - tokens.len() as u32;
        self.news.push(StepItem { logprobs, ..StepItem::new(sequence.id, first, tokens, Some(end)) });
        self.give_back(sequence.reserved);
        self.release(&sequence.stay);
    }

    /// Gives up what a sequence holds, of the draft model too.
    fn release(&mut self, stay: &Stay) {
        self.cache.release(&stay.tables);
        if let Some(model) = &mut self.draft_model {
            model.release(&stay.followed);
        }
    }

    /// Takes from the window; false, and the sequence has failed, where that has been overdrawn: nothing is given back.
    fn take(&mut self, id: SequenceId, blocks: u32) -> bool {
        let (sequences, all) = (self.taken.sequences + 1, self.taken.blocks + u64::from(blocks));
        if sequences > self.window.sequences + self.others.sequences || all > self.window.blocks + self.others.blocks {
            self.tell_failed(id, "the window was overdrawn".to_owned());
            return false;
        }
        self.taken = Window { sequences, blocks: all };
        true
    }

    fn give_back(&mut self, blocks: u32) {
        self.window.sequences += 1;
        self.window.blocks += u64::from(blocks);
    }

    fn sequences_all(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().chain(&self.waiting)
    }
}

#[cfg(test)]
mod tests;
