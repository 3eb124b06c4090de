//! The classes of characters that splitters ask for: Unicode's general categories, and `White_Space`.

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Letter,
    Number,
    Space,
    Other,
}

pub(super) fn class(c: char) -> Class {
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

pub(super) fn is_mark(c: char) -> bool {
    !c.is_ascii() && c.general_category_group() == GeneralCategoryGroup::Mark
}

pub(in crate::tokenizer) fn is_punctuation(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Punctuation
}

pub(super) fn is_symbol(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Symbol
}

/// Letters that have a case: upper, lower and title.
pub(super) fn is_cased(c: char) -> bool {
    use GeneralCategory::{LowercaseLetter, TitlecaseLetter, UppercaseLetter};
    matches!(c.general_category(), UppercaseLetter | LowercaseLetter | TitlecaseLetter)
}

/// What may stand where a word is in upper case: letters that are not lower case, and marks.
pub(super) fn is_upper_or_neutral(c: char) -> bool {
    match c {
        'A'..='Z' => true,
        _ if c.is_ascii() => false,
        _ => {
            is_neutral(c)
                || matches!(c.general_category(), GeneralCategory::UppercaseLetter | GeneralCategory::TitlecaseLetter)
        }
    }
}

/// What may stand where a word is in lower case.
pub(super) fn is_lower_or_neutral(c: char) -> bool {
    match c {
        'a'..='z' => true,
        _ if c.is_ascii() => false,
        _ => is_neutral(c) || c.general_category() == GeneralCategory::LowercaseLetter,
    }
}

fn is_neutral(c: char) -> bool {
    use GeneralCategory::{ModifierLetter, OtherLetter};
    matches!(c.general_category(), ModifierLetter | OtherLetter) || is_mark(c)
}

/// The length of the run of such characters that `text` begins with, in bytes.
pub(super) fn run(text: &str, of: impl Fn(char) -> bool) -> usize {
    text.len() - text.trim_start_matches(of).len()
}
