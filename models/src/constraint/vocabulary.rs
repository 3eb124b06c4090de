//! A tokenizer's vocabulary as the parser wants it: a trie of the bytes that tokens stand for.

use llguidance::toktrie::{TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::ConstraintError;
use crate::tokenizer::Tokenizer;

/// The longest token that the trie takes.
const TOKEN_BYTES_MAX: usize = 1_000;

/// The trie of one vocabulary.
pub(super) struct Vocabulary {
    trie: TokTrie,
}

impl Vocabulary {
    /// Tokens that stand for no text of their own are in no output, so that a grammar speaks of text alone: they have no
    /// bytes here. Nor has a token with the byte 0xFF, which no UTF-8 text holds and which the trie has another use for.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Self, ConstraintError> {
        let tokens = tokenizer.vocab_len() as u32;
        let ends: Vec<u32> = tokenizer.eos_ids().iter().copied().filter(|id| *id < tokens).collect();
        let Some(end) = ends.first() else {
            return Err(ConstraintError::Vocabulary("it has no token that ends an output".to_owned()));
        };
        let words: Vec<Vec<u8>> = (0..tokens)
            .map(|token| match tokenizer.token_bytes(token) {
                Some(bytes)
                    if !tokenizer.is_special(token)
                        && !ends.contains(&token)
                        && bytes.len() <= TOKEN_BYTES_MAX
                        && !bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) =>
                {
                    bytes.to_vec()
                }
                _ => Vec::new(),
            })
            .collect();
        // With these alone, any text that has begun can be ended: ASCII's characters, and what follows in a longer one.
        let missing = (0x20..0x7f).chain(0x80..0xc0).find(|byte| !words.iter().any(|word| word.as_slice() == [*byte]));
        if let Some(byte) = missing {
            return Err(ConstraintError::Vocabulary(format!(
                "its vocabulary has no token for the byte {byte:#04x} alone"
            )));
        }
        let trie = TokTrie::from(&TokRxInfo::new(tokens, *end), &words).with_eos_tokens(&ends);
        Ok(Self { trie })
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(text)
    }

    /// The longest tokens first are not what the tokenizer would choose, so nothing is forced: the model cuts the text.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
