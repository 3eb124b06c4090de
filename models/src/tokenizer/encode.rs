//! Encodes text between special tokens, by each kind of rules.

use std::collections::HashMap;

use super::merge::{Merger, Symbol};
use super::{Merges, Ranked, Rules, TokenKind, TokenizeError, Vocab};

/// Tokens so far, and the memory to make more.
pub(super) struct Encoding {
    pub(super) tokens: Vec<u32>,
    merger: Merger,
}

impl Encoding {
    pub(super) fn with_capacity(tokens: usize) -> Self {
        Self { tokens: Vec::with_capacity(tokens), merger: Merger::default() }
    }

    /// Encodes text that holds no special token.
    pub(super) fn fragment(&mut self, text: &str, vocab: &Vocab, rules: &Rules) -> Result<(), TokenizeError> {
        match rules {
            Rules::ByteLevel { splitter, bytes, merges, whole_words } => splitter.split(text, &mut |word| {
                match vocab.find(word.as_bytes()).filter(|_| *whole_words) {
                    Some(token) => self.tokens.push(token),
                    None => self.byte_level_word(word, bytes, merges)?,
                }
                Ok(())
            }),
            Rules::SentencePiece { costs, bytes, unknown, .. } => {
                self.sentence_piece(text, vocab, costs, bytes, *unknown)
            }
            Rules::Ranked(ranked) => {
                // The vocabulary spells spaces U+2581, so a text that has this character has a space.
                let mut text = text.replace('\u{2581}', " ");
                if ranked.space_prefix {
                    text.insert(0, ' ');
                }
                ranked.splitter.split(&text, &mut |word| self.ranked_word(word, vocab, ranked))
            }
            Rules::WordPiece(rules) => {
                rules.encode(text, vocab, &mut self.tokens);
                Ok(())
            }
        }
    }

    fn ranked_word(&mut self, word: &str, vocab: &Vocab, rules: &Ranked) -> Result<(), TokenizeError> {
        let whole = rules.whole_words || rules.whole_breaks && word.bytes().all(|byte| byte == b'\n');
        if let Some(token) = vocab.find(word.as_bytes()).filter(|_| whole) {
            self.tokens.push(token);
            return Ok(());
        }
        self.merger.clear();
        let mut after_unknown = false;
        for (at, c) in word.char_indices() {
            let raw = &word.as_bytes()[at..at + c.len_utf8()];
            let byte_tokens = || raw.iter().map(|byte| rules.bytes[usize::from(*byte)]);
            let mut is_unknown = false;
            if let Some(token) = vocab.find(raw) {
                self.merger.push(raw.len() as u32, Some(token));
            } else if byte_tokens().all(|token| token.is_some()) {
                byte_tokens().for_each(|token| self.merger.push(1, token));
            } else if let Some(unknown) = rules.unknown {
                is_unknown = true;
                if !(after_unknown && rules.fuse_unknown) {
                    self.merger.push(raw.len() as u32, Some(unknown));
                }
            } else {
                return Err(TokenizeError::NoToken(raw[0]));
            }
            after_unknown = is_unknown;
        }
        let symbols = self.merger.merge(|left, right| rules.merges.get(&(left.token?, right.token?)).copied());
        self.tokens.extend(symbols.filter_map(|symbol| symbol.token));
        Ok(())
    }

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
