//! Cuts text into the words inside which tokens may merge. Stage after stage cuts the pieces of the one before.
//!
//! Each stage is a hand-written walk of the regular expression that its models were trained with (quoted beside it), so
//! hostile text cannot make a regex engine slow. It walks a piece once and looks back at most one word.

mod class;
mod named;
mod walk;

pub(super) use class::is_punctuation;
use class::{Class, class, is_mark, is_symbol, run};

/// How a vocabulary's text is cut: the stages, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Splitter {
    pub(super) stages: Vec<Stage>,
}

/// One cut. What no match covers is a piece as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,n}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|`
    /// `\s+(?!\S)|\s+` with n = 3 (llama 3) or 1 (qwen 2); with `marks`, `\p{M}` counts as `\p{L}` (qwen 3.5).
    Words { digits: usize, marks: bool },
    /// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+C?|`
    /// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*C?|`
    /// `\p{N}{1,n}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+` where C are contractions (gpt-4o) or nothing
    /// (tekken).
    Cased { digits: usize, contractions: bool },
    /// `[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    DeepSeek3,
    /// `\p{N}{1,n}`
    Numbers { max: usize },
    /// `[0-9][0-9][0-9]`
    ThreeDigits,
    /// `[\r\n]`
    Breaks,
    /// `\s+$`
    TrailingSpace,
    /// `[^\n]+|[\n]+`
    Lines,
    /// A run of characters of a set, with one white space character before it where `space` says so.
    Run { set: Set, space: bool },
}

/// Sets of characters that stages look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// `\p{L}`
    Letters,
    /// `\p{P}`
    Punctuation,
    /// `[\p{P}\$\+<=>\^~\|`]`, which is punctuation of Unicode and ASCII.
    AnyPunctuation,
    /// `\p{Lu}`, `\p{Lt}` and `\p{Ll}`, which deepseek lists one by one.
    CasedLetters,
    /// `[!-/:-~！-／：－～‘-‟　-。]`, ASCII letters included.
    DeepSeekMarks,
    /// `[一-龥ࠀ-一가-퟿]`: from U+0800 on.
    DeepSeekIdeographs,
    /// `[一-龥぀-ゟ゠-ヿ]`
    Cjk,
    /// `[^(\s|.,!?…。，、।۔،)]`, after a plain space.
    NoStops,
}

type Piece<'a, E> = &'a mut dyn FnMut(&str) -> Result<(), E>;

impl Splitter {
    /// Calls `word` with every word of `text`, in order; together they are `text`. Stops at the first error.
    pub(super) fn split<E>(&self, text: &str, word: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        if text.is_empty() {
            return Ok(());
        }
        cut(&self.stages, text, word)
    }
}

fn cut<E>(stages: &[Stage], text: &str, word: Piece<'_, E>) -> Result<(), E> {
    match stages {
        [] => word(text),
        [stage, rest @ ..] => stage.pieces(text, &mut |piece| cut(rest, piece, word)),
    }
}

impl Stage {
    fn pieces<E>(self, text: &str, piece: Piece<'_, E>) -> Result<(), E> {
        let (mut start, mut at) = (0, 0);
        while at < text.len() {
            let rest = &text[at..];
            match self.matched(rest) {
                Some(len) if len > 0 => {
                    if start < at {
                        piece(&text[start..at])?;
                    }
                    piece(&rest[..len])?;
                    at += len;
                    start = at;
                }
                _ => at += self.skip(rest),
            }
        }
        if start < text.len() { piece(&text[start..]) } else { Ok(()) }
    }

    /// The length of a match at the beginning of `text`, which is not empty.
    fn matched(self, text: &str) -> Option<usize> {
        match self {
            Self::Gpt2 => Some(walk::gpt2(text)),
            Self::Words { digits, marks } => Some(walk::words(text, digits, marks)),
            Self::Cased { digits, contractions } => Some(walk::cased(text, digits, contractions)),
            Self::DeepSeek3 => walk::deepseek3(text),
            Self::Numbers { max } => {
                let numbers = text.char_indices().take(max).take_while(|(_, c)| class(*c) == Class::Number);
                numbers.map(|(at, c)| at + c.len_utf8()).last()
            }
            Self::ThreeDigits => {
                let digits = text.as_bytes().get(..3)?;
                digits.iter().all(u8::is_ascii_digit).then_some(3)
            }
            Self::Breaks => text.starts_with(['\r', '\n']).then_some(1),
            Self::TrailingSpace => {
                let len = run(text, char::is_whitespace);
                (len == text.len()).then_some(len)
            }
            Self::Lines => match run(text, |c| c == '\n') {
                0 => Some(run(text, |c| c != '\n')),
                breaks => Some(breaks),
            },
            Self::Run { set, space } => {
                let first = text.chars().next().filter(|c| space && set.may_follow(*c));
                let before = first.map_or(0, char::len_utf8);
                match run(&text[before..], |c| set.contains(c)) {
                    0 => match run(text, |c| set.contains(c)) {
                        0 => None,
                        len => Some(len),
                    },
                    len => Some(before + len),
                }
            }
        }
    }

    /// How far the next match is at least, where none begins here.
    fn skip(self, text: &str) -> usize {
        let one = text.chars().next().map_or(1, char::len_utf8);
        match self {
            // No suffix of a run that does not reach the end reaches it.
            Self::TrailingSpace => run(text, char::is_whitespace).max(one),
            _ => one,
        }
    }
}

impl Set {
    fn contains(self, c: char) -> bool {
        match self {
            Self::Letters => class(c) == Class::Letter,
            Self::Punctuation => is_punctuation(c),
            Self::AnyPunctuation => is_punctuation(c) || matches!(c, '$' | '+' | '<'..='>' | '^' | '~' | '|' | '`'),
            Self::CasedLetters => class::is_cased(c),
            Self::DeepSeekMarks => matches!(
                c,
                '!'..='/' | ':'..='~' | '！'..='／' | '：'..='～' | '\u{2018}'..='\u{201f}' | '\u{3000}'..='\u{3002}'
            ),
            Self::DeepSeekIdeographs => matches!(c, '\u{800}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7ff}'),
            Self::Cjk => matches!(c, '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{30ff}'),
            Self::NoStops => {
                let stop =
                    matches!(c, '(' | '|' | '.' | ',' | '!' | '?' | ')' | '…' | '。' | '，' | '、' | '।' | '۔' | '،');
                !stop && !c.is_whitespace()
            }
        }
    }

    /// Whether the run may begin with this white space.
    fn may_follow(self, c: char) -> bool {
        if self == Self::NoStops { c == ' ' } else { c.is_whitespace() }
    }
}

#[cfg(test)]
mod tests;
