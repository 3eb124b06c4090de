//! Text to tokens and back, for the vocabularies found in GGUF files. It adds no tokens that the text does not hold.
//!
//! ```text
//! text ──specials──▶ fragments ──splitter──▶ words ──merger──▶ tokens        (byte-level BPE: gpt-2, llama 3, qwen 2)
//! text ──specials──▶ fragments ───────────────────merger──▶ tokens        (SentencePiece BPE: llama 1 and 2, gemma)
//! ```
//!
//! Everything is linear in the text but the merger's heap, so no text is slow: there is no regular expression in it.

use std::{collections::HashMap, sync::Arc};

use aho_corasick::AhoCorasick;

use crate::gguf::Gguf;

mod decode;
mod load;
mod merge;
mod split;
mod vocab;

pub use decode::Decoder;
pub use load::TokenizerError;
use merge::{Merger, Symbol};
use split::Splitter;
use vocab::{TokenKind, Vocab};

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

    /// The tokens of `text`. With `special`, the texts of control tokens (such as `<|im_end|>`) become those tokens;
    /// without, they are ordinary text, which is what a stranger's words must be. No BOS is added (see
    /// [`Tokenizer::add_bos`]).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizeError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenizeError::TooLong(text.len()));
        }
        let mut encoding = Encoding { tokens: Vec::with_capacity(text.len() / 3), merger: Merger::default() };
        let control = self.control.as_ref().filter(|_| special);
        for fragment in Matcher::cut(control, text) {
            match fragment {
                Fragment::Token(token) => encoding.tokens.push(token),
                Fragment::Text(text) => self.encode_plain(text, &mut encoding)?,
            }
        }
        Ok(encoding.tokens)
    }

    /// The text of `tokens`, control tokens written out: the inverse of [`Tokenizer::encode`]. Bytes that are no UTF-8
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

    /// The tokens that end a generation: end of sequence, of turn, of message. Sorted, without repetition.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
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
        matches!(self.rules, Rules::SentencePiece { space_prefix: true, .. })
    }

    /// Encodes what lies between control tokens.
    fn encode_plain(&self, text: &str, encoding: &mut Encoding) -> Result<(), TokenizeError> {
        let prefixed = self.prefixes_space().then(|| format!(" {text}"));
        for fragment in Matcher::cut(self.user_defined.as_ref(), prefixed.as_deref().unwrap_or(text)) {
            match fragment {
                Fragment::Token(token) => encoding.tokens.push(token),
                Fragment::Text(text) => match &self.rules {
                    Rules::ByteLevel { splitter, bytes, merges, whole_words } => {
                        splitter.split(text, &mut |word| {
                            match self.vocab.find(word.as_bytes()).filter(|_| *whole_words) {
                                Some(token) => encoding.tokens.push(token),
                                None => encoding.byte_level_word(word, bytes, merges)?,
                            }
                            Ok(())
                        })?;
                    }
                    Rules::SentencePiece { costs, bytes, unknown, .. } => {
                        encoding.sentence_piece(text, &self.vocab, costs, bytes, *unknown)?;
                    }
                },
            }
        }
        Ok(())
    }
}

/// Tokens so far, and the memory to make more.
struct Encoding {
    tokens: Vec<u32>,
    merger: Merger,
}

impl Encoding {
    fn byte_level_word(
        &mut self,
        word: &str,
        bytes: &[Option<u32>; 256],
        merges: &Merges,
    ) -> Result<(), TokenizeError> {
        self.merger.clear();
        for byte in word.bytes() {
            let token = bytes[usize::from(byte)].ok_or(TokenizeError::NoToken(byte))?;
            self.merger.push(1, Some(token));
        }
        let symbols = self.merger.merge(|left, right| merges.get(&(left.token?, right.token?)).copied());
        self.tokens.extend(symbols.map(|symbol| symbol.token.expect("bytes are tokens and merge to tokens")));
        Ok(())
    }

    fn sentence_piece(
        &mut self,
        text: &str,
        vocab: &Vocab,
        costs: &[u32],
        bytes: &[Option<u32>; 256],
        unknown: Option<u32>,
    ) -> Result<(), TokenizeError> {
        let raw = text.as_bytes();
        let spelled = |symbol: &Symbol| &raw[symbol.start as usize..(symbol.start + symbol.len) as usize];
        self.merger.clear();
        for (at, c) in text.char_indices() {
            let len = c.len_utf8();
            self.merger.push(len as u32, vocab.find(&raw[at..at + len]));
        }
        // How tokens came about, for those that exist only as steps on the way to longer ones.
        let mut made_of = HashMap::new();
        let symbols = self.merger.merge(|left, right| {
            let start = left.start as usize;
            let token = vocab.find(&raw[start..start + (left.len + right.len) as usize])?;
            if vocab.kind(token) == Some(TokenKind::Unused) {
                made_of.insert((left.start, left.len + right.len), (*left, *right));
            }
            Some((costs[token as usize], token))
        });
        let symbols: Vec<Symbol> = symbols.copied().collect();
        let mut stack: Vec<Symbol> = symbols.into_iter().rev().collect();
        while let Some(symbol) = stack.pop() {
            if let Some((left, right)) = made_of.get(&(symbol.start, symbol.len)) {
                stack.extend([*right, *left]);
                continue;
            }
            match symbol.token {
                Some(token) => self.tokens.push(token),
                None => self.fall_back(spelled(&symbol), bytes, unknown)?,
            }
        }
        Ok(())
    }

    /// A character that is no token becomes its bytes' tokens, or the unknown token.
    fn fall_back(&mut self, raw: &[u8], bytes: &[Option<u32>; 256], unknown: Option<u32>) -> Result<(), TokenizeError> {
        let mut tokens = raw.iter().map(|byte| bytes[usize::from(*byte)].ok_or(*byte));
        match tokens.clone().find_map(Result::err) {
            None => self.tokens.extend(tokens.by_ref().flatten()),
            Some(byte) => self.tokens.push(unknown.ok_or(TokenizeError::NoToken(byte))?),
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
mod tests;
