//! What a sequence holds so far, as penalties read it. Grows with its sequence and never looks at logits.

use std::collections::HashMap;

/// The tokens of one sequence, in order and counted.
#[derive(Clone, Debug, Default)]
pub struct TokenHistory {
    /// Prompt and output.
    pub(super) tokens: Vec<u32>,
    /// Occurrences in the output; 0 for tokens that only the prompt holds.
    pub(crate) output: HashMap<u32, u32>,
}

impl TokenHistory {
    /// Tokens that were given.
    pub fn push_prompt(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        for &token in tokens {
            self.output.entry(token).or_insert(0);
        }
    }

    /// A token that was drawn.
    pub fn push_output(&mut self, token: u32) {
        self.tokens.push(token);
        *self.output.entry(token).or_insert(0) += 1;
    }
}
