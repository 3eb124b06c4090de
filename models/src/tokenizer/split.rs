//! Cuts text into the words inside which tokens may merge. It walks the text once and never backtracks.
//!
//! Each kind is a hand-written walk of the regular expression that its models were trained with (quoted beside it), so
//! hostile text cannot make a regex engine slow. Numbers and letters are Unicode's general categories N and L,
//! whitespace is `White_Space`.

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// How a vocabulary's text is cut. The names in GGUF files are those of llama.cpp's `llama-vocab.cpp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Splitter {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// Every `\p{N}` alone, then [`Splitter::Gpt2`] on what lies between.
    SmolLm,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,n}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|`
    /// `\s+(?!\S)|\s+` with n = 3 (llama 3) or 1 (qwen 2).
    Digits { max: usize },
}

impl Splitter {
    /// The splitter that `tokenizer.ggml.pre` names; `None` for names that are not known.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "gpt-2" | "phi-2" => Some(Self::Gpt2),
            "smollm" | "starcoder" | "refact" | "command-r" => Some(Self::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" => Some(Self::Digits { max: 3 }),
            "qwen2" | "deepseek-r1-qwen" => Some(Self::Digits { max: 1 }),
            _ => None,
        }
    }

    /// Calls `word` with every word of `text`, in order; together they are `text`. Stops at the first error.
    pub(super) fn split<E>(self, text: &str, word: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        match self {
            Self::Gpt2 => each(text, gpt2_word, word),
            Self::SmolLm => {
                let mut start = 0;
                for (at, c) in text.char_indices().filter(|(_, c)| class(*c) == Class::Number) {
                    each(&text[start..at], gpt2_word, word)?;
                    start = at + c.len_utf8();
                    word(&text[at..start])?;
                }
                each(&text[start..], gpt2_word, word)
            }
            Self::Digits { max } => each(text, |rest| digits_word(rest, max), word),
        }
    }
}

/// Applies `len`, the length of the first word of a non-empty text, until nothing is left.
fn each<E>(mut text: &str, len: impl Fn(&str) -> usize, word: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
    while !text.is_empty() {
        let (head, tail) = text.split_at(len(text));
        assert!(!head.is_empty(), "a word has at least one character");
        word(head)?;
        text = tail;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

fn class(c: char) -> Class {
    match c {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        _ if c.is_whitespace() => Class::Space,
        _ if c.is_ascii() => Class::Other,
        _ => match c.general_category_group() {
            GeneralCategoryGroup::Letter => Class::Letter,
            GeneralCategoryGroup::Number => Class::Number,
            _ => Class::Other,
        },
    }
}

fn gpt2_word(text: &str) -> usize {
    if let Some(len) = contraction(text, false) {
        return len;
    }
    let run = text.strip_prefix(' ').unwrap_or(text);
    match run.chars().next().map(class) {
        Some(class) if class != Class::Space => (text.len() - run.len()) + run_len(run, class),
        _ => space_len(text),
    }
}

fn digits_word(text: &str, digits_max: usize) -> usize {
    if let Some(len) = contraction(text, true) {
        return len;
    }
    let mut chars = text.chars();
    let first = chars.next().expect("the text is not empty");
    let rest = chars.as_str();
    let letters_follow = rest.chars().next().is_some_and(|c| class(c) == Class::Letter);
    match class(first) {
        Class::Letter => return run_len(text, Class::Letter),
        Class::Number => {
            return text.char_indices().take(digits_max).take_while(is_number).map(end).last().unwrap_or(0);
        }
        Class::Space | Class::Other if letters_follow && !matches!(first, '\r' | '\n') => {
            return first.len_utf8() + run_len(rest, Class::Letter);
        }
        Class::Space | Class::Other => {}
    }
    let run = text.strip_prefix(' ').unwrap_or(text);
    let others = run_len(run, Class::Other);
    if others > 0 {
        let after = &run[others..];
        let breaks = after.len() - after.trim_start_matches(['\r', '\n']).len();
        return (text.len() - run.len()) + others + breaks;
    }
    let spaces = &text[..run_len(text, Class::Space)];
    match spaces.rfind(['\r', '\n']) {
        Some(last_break) => last_break + 1,
        None => space_len(text),
    }
}

fn is_number((_, c): &(usize, char)) -> bool {
    class(*c) == Class::Number
}

fn end((at, c): (usize, char)) -> usize {
    at + c.len_utf8()
}

fn run_len(text: &str, of: Class) -> usize {
    text.char_indices().take_while(|(_, c)| class(*c) == of).map(end).last().unwrap_or(0)
}

/// `\s+(?!\S)|\s+`: a run of whitespace leaves its last character to the word that follows, if it has one to spare.
fn space_len(text: &str) -> usize {
    let len = run_len(text, Class::Space);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len == text.len() || len == last { len } else { len - last }
}

/// `'s|'t|'re|'ve|'m|'ll|'d`. Ignoring case includes U+017F, whose upper case is S, as regular expressions have it.
fn contraction(text: &str, ignore_case: bool) -> Option<usize> {
    let mut chars = text.strip_prefix('\'')?.chars();
    let mut next = || {
        chars.next().map(|c| match c {
            '\u{17f}' if ignore_case => ('s', 2),
            _ if ignore_case => (c.to_ascii_lowercase(), 1),
            _ => (c, 1),
        })
    };
    match next()? {
        ('s', len) => Some(1 + len),
        ('t' | 'm' | 'd', _) => Some(2),
        ('r' | 'v', _) => matches!(next(), Some(('e', _))).then_some(3),
        ('l', _) => matches!(next(), Some(('l', _))).then_some(3),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
