//! BERT's WordPiece: words in their simplest spelling, then the longest tokens from the left.

use unicode_normalization::UnicodeNormalization as _;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::Vocab;
use super::split::is_punctuation;

/// Longer words are unknown, as in training.
const WORD_CHARS_MAX: usize = 100;

/// How texts are spelled before they are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WordPiece {
    pub(super) unknown: u32,
    pub(super) lowercase: bool,
    pub(super) strip_accents: bool,
    /// Control characters are left out.
    pub(super) clean: bool,
    /// Ideographs are words of their own.
    pub(super) ideographs: bool,
    pub(super) word_chars_max: usize,
}

impl WordPiece {
    /// As BERT's uncased models were trained.
    pub(super) fn uncased(unknown: u32) -> Self {
        Self {
            unknown,
            lowercase: true,
            strip_accents: true,
            clean: true,
            ideographs: true,
            word_chars_max: WORD_CHARS_MAX,
        }
    }

    pub(super) fn encode(&self, text: &str, vocab: &Vocab, tokens: &mut Vec<u32>) {
        // A word begins with a space in the vocabulary, which is how beginnings differ from continuations.
        let mut word = String::from(" ");
        let mut end_word = |word: &mut String| {
            if word.len() > 1 {
                self.word(word, vocab, tokens);
                word.truncate(1);
            }
        };
        for c in self.spelled(text) {
            if c.is_whitespace() {
                end_word(&mut word);
            } else if c.is_ascii_punctuation() || is_punctuation(c) || self.ideographs && is_ideograph(c) {
                end_word(&mut word);
                word.push(c);
                end_word(&mut word);
            } else {
                word.push(c);
            }
        }
        end_word(&mut word);
    }

    /// The characters of a text, cleaned, without accents, in lower case.
    fn spelled<'t>(&self, text: &'t str) -> Box<dyn Iterator<Item = char> + 't> {
        let Self { clean, strip_accents, lowercase, .. } = *self;
        let cleaned = text.chars().filter(move |c| !clean || !is_control(*c));
        let is_accent = |c: &char| c.general_category() == GeneralCategory::NonspacingMark;
        let bare: Box<dyn Iterator<Item = char> + 't> = match strip_accents {
            true => Box::new(cleaned.nfd().filter(move |c| !is_accent(c))),
            false => Box::new(cleaned),
        };
        if lowercase { Box::new(bare.flat_map(char::to_lowercase)) } else { bare }
    }

    fn word(&self, word: &str, vocab: &Vocab, tokens: &mut Vec<u32>) {
        let before = tokens.len();
        if word.chars().count() - 1 > self.word_chars_max {
            tokens.push(self.unknown);
            return;
        }
        let mut rest = word;
        while !rest.is_empty() {
            let ends = rest.char_indices().rev().map(|(at, c)| at + c.len_utf8());
            let longest = ends.filter_map(|end| Some((end, vocab.find(&rest.as_bytes()[..end])?))).next();
            // Only the space: the word's first character is unknown.
            let Some((end, token)) = longest.filter(|(end, _)| rest.len() < word.len() || *end > 1) else {
                tokens.truncate(before);
                tokens.push(self.unknown);
                return;
            };
            tokens.push(token);
            rest = &rest[end..];
        }
    }
}

fn is_control(c: char) -> bool {
    use GeneralCategory::{Control, Format, PrivateUse};
    match c {
        '\t' | '\n' | '\r' => false,
        '\0' | '\u{fffd}' => true,
        _ => matches!(c.general_category(), Control | Format | PrivateUse),
    }
}

fn is_ideograph(c: char) -> bool {
    matches!(c,
        '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{20000}'..='\u{2a6df}' | '\u{2a700}'..='\u{2b73f}'
        | '\u{2b740}'..='\u{2b81f}' | '\u{2b920}'..='\u{2ceaf}' | '\u{f900}'..='\u{faff}' | '\u{2f800}'..='\u{2fa1f}')
}
