//! Tokens to text, one token at a time. A character is never cut, however many tokens its bytes are spread over.

use std::sync::Arc;

use super::{TokenKind, Vocab};

/// Collects the bytes of tokens and gives out whole characters. Bytes that can be no character become U+FFFD.
#[derive(Debug)]
pub struct Decoder {
    vocab: Arc<Vocab>,
    /// The beginning of a character: at most three bytes between calls.
    pending: Vec<u8>,
    /// Control tokens are written out instead of left out.
    verbatim: bool,
    /// Texts begin with a space that the encoder put there.
    space_prefix: bool,
    /// The next token begins such a text.
    at_prefix: bool,
}

impl Decoder {
    /// Decodes tokens that continue a text.
    pub(super) fn continuing(vocab: Arc<Vocab>) -> Self {
        Self { vocab, pending: Vec::new(), verbatim: false, space_prefix: false, at_prefix: false }
    }

    /// Decodes whole texts exactly.
    pub(super) fn verbatim(vocab: Arc<Vocab>, space_prefix: bool) -> Self {
        Self { vocab, pending: Vec::new(), verbatim: true, space_prefix, at_prefix: space_prefix }
    }

    /// Adds a token; returns the text that it completes, if any. An id outside the vocabulary adds nothing.
    pub fn push(&mut self, token: u32) -> Option<String> {
        let kind = self.vocab.kind(token)?;
        let control = kind == TokenKind::Control;
        let mut bytes = self.vocab.bytes(token)?;
        if control && !self.verbatim {
            return None;
        }
        if std::mem::replace(&mut self.at_prefix, control && self.space_prefix) && !control {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        self.take(false)
    }

    /// Ends the text: a character that never became whole is given out as U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        self.take(true)
    }

    fn take(&mut self, all: bool) -> Option<String> {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                }
                Err(why) => {
                    let (valid, invalid) = rest.split_at(why.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                    rest = invalid;
                    match why.error_len() {
                        Some(len) => rest = &rest[len..],
                        None if all => rest = &[],
                        None => break,
                    }
                    text.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
        let kept = self.pending.len() - rest.len();
        self.pending.drain(..kept);
        (!text.is_empty()).then_some(text)
    }
}
