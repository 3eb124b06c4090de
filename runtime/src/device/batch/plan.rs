//! What a step is, as the executor gets it. Decides nothing.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use cuckoo_kernels::ops::Span;
use cuckoo_kernels::sampling::{Logprobs, SamplingParams, TokenHistory};
use cuckoo_wire::message::SequenceId;

use crate::device::draft_model::Guess;
#[cfg(doc)]
use crate::device::kv_cache::HOLE;
use crate::device::kv_cache::KvCopy;

/// What one step computes. Rows are in the order of `spans`.
///
/// Steps are computed in the order in which they were planned. Blocks rely on it: one that is given back while a step
/// that writes to it is in flight may be written by the next step, and by none before.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    /// Counts the plans of one batch.
    pub(super) number: u64,
    /// Blocks to be copied between the device and the host, in this order, before anything of the step is computed and after
    /// all of the step before it.
    pub copies: Vec<KvCopy>,
    /// One token a row; those of `placeholders` are not known yet.
    pub tokens: Vec<u32>,
    /// Rows whose token the step before this one draws.
    pub placeholders: Vec<Placeholder>,
    /// Whose rows these are.
    pub spans: Vec<Span>,
    /// For each span its sequence.
    pub owners: Vec<SequenceId>,
    /// For each span which of the batch's adapters its rows use, if any.
    pub adapters: Vec<Option<usize>>,
    /// Block tables of the spans, concatenated, for each group of layers. All are as long, so that a span begins at the
    /// same place in each; [`HOLE`] stands where a group's window does not reach.
    pub blocks: Vec<Vec<u32>>,
    /// Draws to make after it.
    pub draws: Vec<Draw>,
    /// Rows whose logits are asked how probable the token after them is.
    pub scores: Vec<Score>,
    /// What the draft model computes first, one after the other; these have no passes themselves, and what one of them has
    /// placeholders for is drawn by the one before it.
    pub passes: Vec<StepPlan>,
    /// Rows whose token is guessed by those.
    pub guesses: Vec<GuessedRow>,
}

/// A row whose token a draft model draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuessedRow {
    /// The row.
    pub row: usize,
    /// Where its token comes from.
    pub from: Guess,
}

/// A row whose token was not known when its step was planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placeholder {
    /// The row.
    pub row: usize,
    /// Which of the draws of the step before gives its token.
    pub draw: usize,
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
    /// For what reads it; empty where nothing does.
    pub history: Arc<TokenHistory>,
    /// Tokens that may not come yet.
    pub forbidden: Arc<[u32]>,
    /// Where a mask says what may be drawn: the tokens that came since the mask before this one.
    pub untold: Option<Vec<u32>>,
    /// Whether the token's log-probability is wanted, and those of how many most probable tokens.
    pub logprobs: Option<u32>,
}

/// A token of a prompt that is held against the logits of the row before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Score {
    /// The row of the step whose logits are used.
    pub row: usize,
    /// The token that follows it.
    pub token: u32,
    /// How many of the most probable tokens are wanted beside it.
    pub top: u32,
}

/// What a step gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One token for each draw.
    pub drawn: Vec<u32>,
    /// For each draw what it wants to know of its token, if anything; empty where no draw does.
    pub logprobs: Vec<Option<Logprobs>>,
    /// One for each score.
    pub scores: Vec<Logprobs>,
    /// The token of each guess.
    pub guesses: Vec<u32>,
    /// How long each pass of the draft model took: all of them, or those before it failed.
    pub passes: Vec<Duration>,
    /// Why it failed, if it did. Its guesses are any tokens then.
    pub draft_fault: Option<String>,
    /// One for each span, of an encoder.
    pub vectors: Vec<Vec<f32>>,
    /// Spans whose rows an adapter has turned into what are no numbers: what was drawn and scored for them is nothing.
    pub broken: Vec<usize>,
}

impl StepOutput {
    /// Tokens, of a step where nobody wants to know more.
    pub fn of(drawn: &[u32]) -> Self {
        Self { drawn: drawn.to_vec(), ..Self::default() }
    }
}

impl StepPlan {
    /// The tokens of all rows, given what the step before drew and the tokens of its guesses.
    pub fn resolve(&self, drawn_before: &[u32], guesses: &[u32]) -> Cow<'_, [u32]> {
        let mut tokens = Cow::Borrowed(self.tokens.as_slice());
        for placeholder in &self.placeholders {
            tokens.to_mut()[placeholder.row] = drawn_before[placeholder.draw];
        }
        for (guessed, token) in self.guesses.iter().zip(guesses) {
            tokens.to_mut()[guessed.row] = *token;
        }
        tokens
    }
}
