//! The walks of whole expressions: each gives the length of the first word of a text that is not empty.

use super::class::{is_lower_or_neutral, is_upper_or_neutral};
use super::{Class, class, is_mark, is_punctuation, is_symbol, run};

pub(super) fn gpt2(text: &str) -> usize {
    if let Some(len) = contraction(text, false) {
        return len;
    }
    let after = text.strip_prefix(' ').unwrap_or(text);
    match after.chars().next().map(class) {
        Some(of) if of != Class::Space => (text.len() - after.len()) + run(after, |c| class(c) == of),
        _ => space(text),
    }
}

pub(super) fn words(text: &str, digits_max: usize, marks: bool) -> usize {
    if let Some(len) = contraction(text, true) {
        return len;
    }
    let is_letter = |c| class(c) == Class::Letter || marks && is_mark(c);
    let mut chars = text.chars();
    let first = chars.next().expect("the text is not empty");
    let rest = chars.as_str();
    if is_letter(first) {
        return run(text, is_letter);
    }
    if class(first) == Class::Number {
        return numbers(text, digits_max);
    }
    if !matches!(first, '\r' | '\n') && rest.starts_with(is_letter) {
        return first.len_utf8() + run(rest, is_letter);
    }
    others_or_space(text, |c| class(c) == Class::Other && !is_letter(c), &['\r', '\n'])
}

pub(super) fn cased(text: &str, digits_max: usize, contractions: bool) -> usize {
    let first = text.chars().next().expect("the text is not empty");
    let may_lead = !matches!(class(first), Class::Letter | Class::Number) && !matches!(first, '\r' | '\n');
    let lead = if may_lead { first.len_utf8() } else { 0 };
    // The expression tries its first half with the leading character, then without, and then its second half.
    for half in [lower_word, upper_word] {
        let with = half(&text[lead..]).map(|len| lead + len);
        if let Some(len) = with.or_else(|| half(text)) {
            let ending = contraction(&text[len..], true).filter(|_| contractions);
            return len + ending.unwrap_or(0);
        }
    }
    if class(first) == Class::Number {
        return numbers(text, digits_max);
    }
    others_or_space(text, |c| class(c) == Class::Other, &['\r', '\n', '/'])
}

/// `U*L+`, where both match letters without case: it ends in the last place where `L` can be.
fn lower_word(text: &str) -> Option<usize> {
    let upper = run(text, is_upper_or_neutral);
    let lower = run(&text[upper..], is_lower_or_neutral);
    if lower > 0 {
        return Some(upper + lower);
    }
    let last = text[..upper].char_indices().rev().find(|(_, c)| is_lower_or_neutral(*c));
    last.map(|(at, c)| at + c.len_utf8())
}

/// `U+L*`.
fn upper_word(text: &str) -> Option<usize> {
    match run(text, is_upper_or_neutral) {
        0 => None,
        upper => Some(upper + run(&text[upper..], is_lower_or_neutral)),
    }
}

pub(super) fn deepseek3(text: &str) -> Option<usize> {
    let mut chars = text.chars();
    let first = chars.next().expect("the text is not empty");
    let rest = chars.as_str();
    let latin = run(rest, |c| c.is_ascii_alphabetic());
    if first.is_ascii_punctuation() && latin > 0 {
        return Some(1 + latin);
    }
    let is_letter = |c| class(c) == Class::Letter || is_mark(c);
    let is_other = |c| is_punctuation(c) || is_symbol(c);
    if is_letter(first) {
        return Some(run(text, is_letter));
    }
    if !is_other(first) && !matches!(first, '\r' | '\n') && rest.starts_with(is_letter) {
        return Some(first.len_utf8() + run(rest, is_letter));
    }
    let after = text.strip_prefix(' ').unwrap_or(text);
    if after.starts_with(is_other) || first.is_whitespace() {
        return Some(others_or_space(text, is_other, &['\r', '\n']));
    }
    None
}

fn numbers(text: &str, max: usize) -> usize {
    let numbers = text.char_indices().take(max).take_while(|(_, c)| class(*c) == Class::Number);
    numbers.map(|(at, c)| at + c.len_utf8()).last().unwrap_or(0)
}

/// ` ?[others]+[breaks]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn others_or_space(text: &str, is_other: impl Fn(char) -> bool, breaks: &[char]) -> usize {
    let after = text.strip_prefix(' ').unwrap_or(text);
    let others = run(after, is_other);
    if others > 0 {
        let end = (text.len() - after.len()) + others;
        return end + run(&text[end..], |c| breaks.contains(&c));
    }
    let spaces = &text[..run(text, char::is_whitespace)];
    match spaces.rfind(['\r', '\n']) {
        Some(last_break) => last_break + 1,
        None => space(text),
    }
}

/// `\s+(?!\S)|\s+`: a run of whitespace leaves its last character to the word that follows, if it has one to spare.
fn space(text: &str) -> usize {
    let len = run(text, char::is_whitespace);
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
