//! Texts for an encoder, decided: which of them share the next step, and what a finished one means.
//!
//! Pure, like [`super::Batch`], and much simpler: a token sees the whole text, so a text is computed whole, in one step, and
//! keeps nothing. Texts go in order of arrival, as many as fit a step's rows.
//!
//! ```text
//! encode ▶ waiting ──(rows, blocks and a place free)──▶ in a step ──▶ ended, with its vector
//!             └────────────────── cancel ──────────────────┴──▶ ended
//! ```
//!
//! Blocks are only the room in which a step's keys and values lie until the next layer overwrites them.

use std::collections::VecDeque;
use std::time::Duration;

use cuckoo_kernels::ops::{KV_BLOCK_TOKENS, Span};
use cuckoo_wire::limits::REPLICA_SEQUENCES_MAX;
use cuckoo_wire::message::{Assign, Encode, End, SequenceId, StepItem, Window};

use super::batch::{BatchLimits, StepOutput, StepPlan};
use super::budget::StepBudget;

/// Steps' worth of texts that are granted: one that is computed, and one that waits, so that no step waits for a round trip.
const STEPS_GRANTED: u32 = 2;
/// Rows of a text for which there is a place in a step: shorter ones fill their places first.
const TEXT_ROWS_USUAL: u32 = 8;

/// Places for texts in a step of so many rows.
pub fn texts_per_step(rows: u32) -> u32 {
    (rows / TEXT_ROWS_USUAL).clamp(1, REPLICA_SEQUENCES_MAX as u32 / STEPS_GRANTED)
}

/// The texts of one replica of an encoder.
#[derive(Debug)]
pub struct TextBatch {
    limits: BatchLimits,
    budget: StepBudget,
    /// In order of arrival.
    waiting: VecDeque<Encode>,
    /// Steps planned and not applied, oldest first.
    flights: VecDeque<Flight>,
    /// What has been granted so far.
    window: Window,
    /// What others have beside that.
    others: Window,
    /// What texts have taken of it.
    taken: Window,
    news: Vec<StepItem>,
}

#[derive(Debug)]
struct Flight {
    rows: u32,
    texts: Vec<Flying>,
}

/// A text in a step.
#[derive(Debug)]
struct Flying {
    sequence: SequenceId,
    /// What it took from the window.
    blocks: u32,
    /// Cancelled meanwhile: its vector is nobody's.
    ended: bool,
}

impl TextBatch {
    /// No texts. A step has up to `step_tokens_max` rows in `kv_blocks` blocks, of at most `sequences_max` texts.
    pub fn new(limits: BatchLimits) -> Self {
        let sequences = limits.sequences_max * STEPS_GRANTED;
        assert!(
            sequences > 0 && sequences as usize <= REPLICA_SEQUENCES_MAX,
            "the protocol bounds a replica's sequences"
        );
        assert!(limits.context_tokens <= limits.step_tokens_max, "a text is computed in one step");
        assert!(Assign::blocks_for(limits.context_tokens, 0, KV_BLOCK_TOKENS as u32) <= limits.kv_blocks);
        Self {
            budget: StepBudget::new(1, limits.step_tokens_max, limits.step_target),
            waiting: VecDeque::new(),
            flights: VecDeque::new(),
            others: Window::default(),
            window: Window {
                sequences: u64::from(sequences),
                blocks: u64::from(limits.kv_blocks) * u64::from(STEPS_GRANTED),
            },
            taken: Window::default(),
            news: Vec::new(),
            limits,
        }
    }

    /// What is granted to the scheduler, cumulative.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Others may take so much beside what the window has: it may wait here.
    pub fn grant_others(&mut self, others: Window) {
        self.others = others;
    }

    /// Texts in steps, and those that wait.
    pub fn sequences(&self) -> (usize, usize) {
        (self.flights.iter().flat_map(|f| &f.texts).filter(|t| !t.ended).count(), self.waiting.len())
    }

    /// How long a step of `rows` rows takes on this device, as far as is known.
    pub fn expected(&self, rows: u32) -> Option<Duration> {
        self.budget.expected(rows)
    }

    /// Takes a text in, or answers with news that says why not.
    pub fn encode(&mut self, encode: Encode) {
        let (known, context) = (encode.tokens.len() as u32, self.limits.context_tokens);
        let needed = Assign::blocks_for(known, 0, KV_BLOCK_TOKENS as u32);
        let why = match encode.check() {
            Err(why) => Some(why.0),
            Ok(()) if self.is_here(encode.sequence) => Some("the sequence is already here".to_owned()),
            Ok(()) if known > context => Some(format!("a text of {known} tokens exceeds the context of {context}")),
            Ok(()) if encode.blocks != needed => {
                Some(format!("{} blocks for a text that needs {needed}", encode.blocks))
            }
            Ok(()) => None,
        };
        match why {
            Some(why) => self.refuse(encode.sequence, encode.blocks, &why),
            None if self.take(encode.sequence, encode.blocks) => self.waiting.push_back(encode),
            None => {}
        }
    }

    /// Answers an assignment that cannot run here: what it took from the window returns.
    pub fn refuse(&mut self, sequence: SequenceId, blocks: u32, why: &str) {
        if self.take(sequence, blocks) {
            self.end(sequence, blocks, End::Failed(why.to_owned()));
        }
    }

    /// Takes from the window; false, and the sequence has failed, if that has been overdrawn.
    fn take(&mut self, sequence: SequenceId, blocks: u32) -> bool {
        let (sequences, all) = (self.taken.sequences + 1, self.taken.blocks + u64::from(blocks));
        if sequences > self.window.sequences + self.others.sequences || all > self.window.blocks + self.others.blocks {
            let end = End::Failed("the window was overdrawn".to_owned());
            self.news.push(StepItem::new(sequence, 0, Vec::new(), Some(end)));
            return false;
        }
        self.taken = Window { sequences, blocks: all };
        true
    }

    fn is_here(&self, id: SequenceId) -> bool {
        let flying = self.flights.iter().flat_map(|f| &f.texts);
        self.waiting.iter().any(|t| t.sequence == id) || flying.filter(|t| !t.ended).any(|t| t.sequence == id)
    }

    /// Ends a text; unknown ones have ended already. One in a step is computed and its vector thrown away.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(at) = self.waiting.iter().position(|t| t.sequence == id) {
            let blocks = self.waiting[at].blocks;
            self.waiting.remove(at);
            return self.end(id, blocks, End::Cancelled);
        }
        let mut flying = self.flights.iter_mut().flat_map(|f| &mut f.texts);
        if let Some(text) = flying.find(|t| t.sequence == id && !t.ended) {
            text.ended = true;
            let blocks = text.blocks;
            self.end(id, blocks, End::Cancelled);
        }
    }

    fn end(&mut self, sequence: SequenceId, blocks: u32, end: End) {
        self.window.sequences += 1;
        self.window.blocks += u64::from(blocks);
        self.news.push(StepItem::new(sequence, 0, Vec::new(), Some(end)));
    }

    /// News since the last call.
    pub fn take_news(&mut self) -> Vec<StepItem> {
        std::mem::take(&mut self.news)
    }

    /// The next step, or `None` where nobody waits. One span a text; the first text goes however long it is.
    pub fn plan(&mut self) -> Option<StepPlan> {
        let mut plan = StepPlan::default();
        let (mut texts, mut blocks) = (Vec::new(), 0);
        while let Some(text) = self.waiting.front() {
            let (rows, sum) = (text.tokens.len(), plan.tokens.len());
            let fits = sum + rows <= self.budget.rows() as usize
                && blocks + text.blocks <= self.limits.kv_blocks
                && texts.len() < self.limits.sequences_max as usize;
            if !fits && !texts.is_empty() {
                break;
            }
            let Encode { sequence, tokens, blocks: own, .. } = self.waiting.pop_front().expect("looked at above");
            plan.spans.push(Span { first_row: sum, rows, first_position: 0, first_block: blocks as usize });
            plan.tokens.extend(tokens);
            texts.push(Flying { sequence, blocks: own, ended: false });
            blocks += own;
        }
        if texts.is_empty() {
            return None;
        }
        plan.blocks.push((0..blocks).collect());
        self.flights.push_back(Flight { rows: plan.tokens.len() as u32, texts });
        Some(plan)
    }

    /// Takes in what the oldest step in flight gave, and how long it took.
    pub fn apply(&mut self, output: StepOutput, took: Duration) {
        let flight = self.flights.pop_front().expect("a step is in flight");
        assert_eq!(flight.texts.len(), output.vectors.len(), "one vector a text");
        self.budget.observe(flight.rows, took);
        for (text, vector) in flight.texts.into_iter().zip(output.vectors) {
            if !text.ended {
                self.end(text.sequence, text.blocks, End::Embedded(vector));
            }
        }
    }
}

#[cfg(test)]
mod tests;
