//! Text to tokens and back, for the vocabularies of GGUF files and of `tokenizer.json`. It adds no tokens that the text does not hold.
//!
//! ```text
//! text ──specials──▶ fragments ──splitter──▶ words ──merger──▶ tokens     (byte-level BPE: gpt-2, llama 3, qwen 2)
//! text ──specials──▶ fragments ───────────────────merger──▶ tokens     (SentencePiece BPE: llama 1 and 2, gemma)
//! text ──specials──▶ fragments ──word pieces──────────────▶ tokens     (WordPiece: BERT)
//! ```
//!
//! Everything is linear in the text but the merger's heap, so no text is slow: there is no regular expression in it.

use std::{collections::HashMap, sync::Arc};

use aho_corasick::AhoCorasick;
use unicode_normalization::UnicodeNormalization as _;

use crate::gguf::Gguf;

mod decode;
mod encode;
mod hf;
mod load;
mod merge;
mod same;
mod split;
mod vocab;
mod word_piece;

pub use decode::Decoder;
use encode::Encoding;
pub use load::TokenizerError;
pub use same::{OtherTokens, same_vocabulary};
use split::Splitter;
use vocab::{TokenKind, Vocab};
use word_piece::WordPiece;

/// The longest text that [`Tokenizer::encode`] accepts, in bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// Why a text cannot be tokenized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizeError {
    /// The text is longer than [`TEXT_BYTES_MAX`].
    #[error("the text has {0} bytes; at most {TEXT_BYTES_MAX} are tokenized at once: shorten it")]
    TooLong(usize),
    /// The vocabulary has neither a token for a byte nor one for unknown text, so the text would not survive.
    #[error("the model's vocabulary has no token for byte {0:#04x}: remove the character or choose another model")]
    NoToken(u8),
}

/// A vocabulary with its rules. Immutable; share it by `Arc` between threads.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Arc<Vocab>,
    rules: Rules,
    /// Finds control tokens written out in a text.
    control: Option<Matcher>,
    /// Finds user-defined tokens, which no text may cut.
    user_defined: Option<Matcher>,
    bos: Option<u32>,
    eos: Vec<u32>,
    add_bos: bool,
    /// The token that an encoder wants after every text.
    last: Option<u32>,
    /// Texts are composed (Unicode's NFC) before they are cut.
    composed: bool,
}

/// What two tokens merge to: (left, right) to (rank, merged).
type Merges = HashMap<(u32, u32), (u32, u32)>;

/// How text between special tokens becomes tokens.
#[derive(Debug)]
enum Rules {
    ByteLevel {
        splitter: Splitter,
        /// The token of each single byte.
        bytes: Box<[Option<u32>; 256]>,
        merges: Merges,
        /// A word that is itself a token is not merged from its bytes.
        whole_words: bool,
    },
    SentencePiece {
        /// The cost of making each token: the order of merges.
        costs: Vec<u32>,
        /// The token of each byte, for characters that are no tokens.
        bytes: Box<[Option<u32>; 256]>,
        unknown: Option<u32>,
        /// Whether a text begins as if a space came before it.
        space_prefix: bool,
    },
    Ranked(Ranked),
    WordPiece(WordPiece),
}

/// SentencePiece's characters, merged in the order of a list instead of by score: gemma in `tokenizer.json`.
#[derive(Debug)]
struct Ranked {
    splitter: Splitter,
    merges: Merges,
    /// The token of each byte, for characters that are no tokens.
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
    /// Unknown characters side by side are one unknown token.
    fuse_unknown: bool,
    space_prefix: bool,
    /// A word that is itself a token is not merged: always, or only where it is made of line breaks.
    whole_words: bool,
    whole_breaks: bool,
}

/// Finds some tokens' texts in a text: leftmost first, longest of those.
#[derive(Debug)]
struct Matcher {
    automaton: AhoCorasick,
    tokens: Vec<u32>,
}

impl Tokenizer {
    /// Reads the vocabulary in `gguf`'s metadata. Unknown kinds are refused by name.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        load::tokenizer(gguf)
    }

    /// Reads a `tokenizer.json` of Hugging Face, and the `tokenizer_config.json` beside it, which names the special
    /// tokens. What cannot be reproduced exactly is refused by name.
    pub fn from_hf_json(tokenizer: &str, config: Option<&str>) -> Result<Self, TokenizerError> {
        hf::tokenizer(tokenizer, config)
    }

    /// The tokens of `text`. With `special`, the texts of control tokens (such as `<|im_end|>`) become those tokens;
    /// without, they are ordinary text, which is what a stranger's words must be. No BOS is added (see
    /// [`Tokenizer::add_bos`]).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizeError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenizeError::TooLong(text.len()));
        }
        let mut encoding = Encoding::with_capacity(text.len() / 3);
        let control = self.control.as_ref().filter(|_| special);
        for fragment in Matcher::cut(control, text) {
            match fragment {
                Fragment::Token(token) => encoding.tokens.push(token),
                Fragment::Text(text) => self.encode_plain(text, &mut encoding)?,
            }
        }
        Ok(encoding.tokens)
    }

    /// The text of `tokens`, control tokens written out: the inverse of [`Tokenizer::encode`], but for vocabularies that
    /// compose or lower texts. Bytes that are no UTF-8
    /// become U+FFFD; ids outside the vocabulary are left out.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut decoder = Decoder::verbatim(self.vocab.clone(), self.prefixes_space());
        let mut text: String = tokens.iter().filter_map(|token| decoder.push(*token)).collect();
        text.extend(decoder.finish());
        text
    }

    /// A decoder for the tokens that *continue* a text, one by one. It leaves out control tokens, and keeps a first
    /// token's leading space.
    pub fn decoder(&self) -> Decoder {
        Decoder::continuing(self.vocab.clone())
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether the model wants [`Tokenizer::bos`] before every prompt.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// The token that the model wants after every text: encoders only (BERT's `[SEP]`).
    pub fn last(&self) -> Option<u32> {
        self.last
    }

    /// The tokens that end a generation: end of sequence, of turn, of message. Sorted, without repetition.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// Adds tokens that end a generation: those that a configuration beside the vocabulary names.
    pub fn with_eos_ids(mut self, ids: &[u32]) -> Result<Self, TokenizerError> {
        let tokens = self.vocab_len();
        if let Some(id) = ids.iter().find(|id| **id as usize >= tokens) {
            return Err(TokenizerError::SpecialId { key: "eos_token_id", id: u64::from(*id), tokens });
        }
        self.eos.extend(ids);
        self.eos.sort_unstable();
        self.eos.dedup();
        Ok(self)
    }

    /// Adds tokens that no text becomes, so that there is one for each of `rows` logits: rows are often padded.
    pub(crate) fn padded_to(mut self, rows: usize) -> Result<Self, TokenizerError> {
        let tokens = self.vocab_len();
        match (tokens..=load::TOKENS_MAX).contains(&rows) {
            false => Err(TokenizerError::Json(format!("it has {tokens} tokens, and the model {rows}"))),
            true => {
                self.vocab = Arc::new(self.vocab.padded_to(rows));
                Ok(self)
            }
        }
    }

    /// The number of tokens; ids are below it.
    pub fn vocab_len(&self) -> usize {
        self.vocab.len()
    }

    /// The bytes that a token stands for (a control token's are its name); `None` outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        self.vocab.bytes(token)
    }

    /// Whether a token is a control or unknown token: one that stands for no text of its own.
    pub fn is_special(&self, token: u32) -> bool {
        matches!(self.vocab.kind(token), Some(TokenKind::Control | TokenKind::Unknown))
    }

    fn prefixes_space(&self) -> bool {
        match &self.rules {
            Rules::SentencePiece { space_prefix, .. } => *space_prefix,
            Rules::Ranked(ranked) => ranked.space_prefix,
            // Every word's first token has a space that the text's first word never had.
            Rules::WordPiece(_) => true,
            Rules::ByteLevel { .. } => false,
        }
    }

    /// Encodes what lies between control tokens.
    fn encode_plain(&self, text: &str, encoding: &mut Encoding) -> Result<(), TokenizeError> {
        // A prefix is part of the text that user-defined tokens are looked for in, as it is in SentencePiece.
        let prefixed = matches!(self.rules, Rules::SentencePiece { space_prefix: true, .. });
        let prefixed = prefixed.then(|| format!(" {text}"));
        for fragment in Matcher::cut(self.user_defined.as_ref(), prefixed.as_deref().unwrap_or(text)) {
            match fragment {
                Fragment::Token(token) => encoding.tokens.push(token),
                Fragment::Text(text) if self.composed && !text.is_ascii() => {
                    encoding.fragment(&text.nfc().collect::<String>(), &self.vocab, &self.rules)?;
                }
                Fragment::Text(text) => encoding.fragment(text, &self.vocab, &self.rules)?,
            }
        }
        Ok(())
    }
}

/// A token found in a text, or the text between two of them.
enum Fragment<'t> {
    Token(u32),
    Text(&'t str),
}

impl Matcher {
    /// Cuts `text` at the tokens that `matcher` finds; with none, the text is one fragment. No fragment is empty.
    fn cut<'t>(matcher: Option<&'t Self>, text: &'t str) -> impl Iterator<Item = Fragment<'t>> {
        let mut found = matcher.map(|matcher| (matcher, matcher.automaton.find_iter(text)));
        let mut pending: Option<(usize, u32)> = None;
        let mut start = 0;
        std::iter::from_fn(move || {
            if let Some((end, token)) = pending.take() {
                start = end;
                return Some(Fragment::Token(token));
            }
            if let Some((matcher, hits)) = &mut found
                && let Some(hit) = hits.next()
            {
                let token = matcher.tokens[hit.pattern().as_usize()];
                if hit.start() == start {
                    start = hit.end();
                    return Some(Fragment::Token(token));
                }
                pending = Some((hit.end(), token));
                return Some(Fragment::Text(&text[start..hit.start()]));
            }
            let rest = &text[start..];
            start = text.len();
            (!rest.is_empty()).then_some(Fragment::Text(rest))
        })
    }
}

#[cfg(test)]
mod hf_tests;
#[cfg(test)]
mod tests;
