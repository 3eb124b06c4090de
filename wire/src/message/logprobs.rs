//! How probable tokens were found to be: as miners say it, and as developers read it.

use serde::{Deserialize, Serialize};

use super::{End, SequenceId, StepItem};
use crate::limits;

/// How probable a model found a token, before anything that sampling does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its place among all tokens, from 1: the most probable first, lower ids first among equals.
    pub rank: u32,
    /// The most probable tokens with theirs, in that order.
    pub top: Vec<(u32, f32)>,
}

impl StepItem {
    /// News without log-probabilities.
    pub fn new(sequence: SequenceId, first: u32, tokens: Vec<u32>, end: Option<End>) -> Self {
        Self { sequence, first, tokens, end, logprobs: Vec::new(), prompt_logprobs: Vec::new() }
    }

    /// Bytes that it takes in a frame at most.
    pub fn bytes_max(&self) -> usize {
        let end = match &self.end {
            Some(End::Failed(why)) => why.len(),
            Some(End::Embedded(vector)) => 4 * vector.len(),
            _ => 0,
        };
        let logprobs = self.logprobs.len() + self.prompt_logprobs.len();
        32 + end + self.tokens.len() * 5 + logprobs * limits::LOGPROBS_BYTES_MAX
    }
}

/// One token as a person may read it, and its natural logarithm of probability before penalties and temperature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its id.
    pub token: u32,
    /// What it stands for; not always whole characters. At most [`limits::TOKEN_TEXT_BYTES_MAX`].
    pub bytes: Vec<u8>,
    /// Whether it adds nothing to the text: the bytes are its name.
    pub special: bool,
    /// `None` for a prompt's first token, which nothing came before.
    pub logprob: Option<f32>,
}

/// One token of prompt or output among those that could have stood there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// The token itself.
    pub chosen: TokenLogprob,
    /// Its place among all tokens, from 1: the most probable first. 0 for a prompt's first token.
    pub rank: u32,
    /// The most probable tokens, in that order, as many as were asked for.
    pub top: Vec<TokenLogprob>,
}

/// Which tokens of a prompt a miner is to score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptLogprobs {
    /// How many most probable tokens to name beside each.
    pub top: u8,
    /// The first token that is scored, by its position: at least 1. Those before it have been scored elsewhere.
    pub from: u32,
}
