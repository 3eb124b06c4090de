//! Refuses templates whose expressions are so long that compiling them would take quadratic time or deep recursion.
//! It reads tags as the engine's lexer does, and understands nothing else of them.

use super::TemplateError;

/// The most tokens in one tag. The longest tag of some seventy models' templates has under 300.
const TAG_TOKENS_MAX: usize = 1_024;
/// The most `elif`s, each of which nests in the one before. Real templates have up to 20.
const ELIFS_MAX: usize = 1_024;

/// Checks every tag of `source`. What the engine will refuse anyway is left to it.
pub(super) fn check(source: &str) -> Result<(), TemplateError> {
    let mut rest = source;
    let mut elifs = 0;
    while let Some(start) = rest.find('{') {
        let (inside, is_block) = match rest.as_bytes().get(start + 1) {
            Some(b'#') => {
                let Some(end) = rest[start + 2..].find("#}") else { return Ok(()) };
                rest = &rest[start + 2 + end + 2..];
                continue;
            }
            Some(b'%') => (&rest[start + 2..], true),
            Some(b'{') => (&rest[start + 2..], false),
            _ => {
                rest = &rest[start + 1..];
                continue;
            }
        };
        let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
        if let Some(raw) = simple_tag(inside, "raw").filter(|_| is_block) {
            let Some(after) = after_raw(raw) else { return Ok(()) };
            rest = after;
            continue;
        }
        elifs += usize::from(is_block && inside.trim_start().starts_with("elif"));
        let Some(after) = after_tag(inside, is_block)? else { return Ok(()) };
        rest = after;
        if elifs > ELIFS_MAX {
            return Err(TemplateError::Syntax(format!("more than {ELIFS_MAX} elif tags: do not use this model")));
        }
    }
    Ok(())
}

/// What follows the tag whose inside `text` begins with; `None` where it never ends.
fn after_tag(text: &str, is_block: bool) -> Result<Option<&str>, TemplateError> {
    let end = if is_block { "%}" } else { "}}" };
    let (mut rest, mut open, mut tokens) = (text, 0i64, 0);
    loop {
        rest = rest.trim_ascii_start();
        let closes = rest.strip_prefix(['-', '+']).and_then(|rest| rest.strip_prefix(end));
        if let Some(after) = closes.or_else(|| rest.strip_prefix(end)).filter(|_| open == 0) {
            return Ok(Some(after));
        }
        let Some(first) = rest.chars().next() else { return Ok(None) };
        tokens += 1;
        if tokens > TAG_TOKENS_MAX {
            let why = format!("a tag of more than {TAG_TOKENS_MAX} tokens: do not use this model");
            return Err(TemplateError::Syntax(why));
        }
        let len = match first {
            '(' | '[' | '{' => {
                open += 1;
                1
            }
            ')' | ']' | '}' => {
                open -= 1;
                1
            }
            '"' | '\'' => match string_len(rest.as_bytes()) {
                Some(len) => len,
                None => return Ok(None),
            },
            c if c.is_alphanumeric() || c == '_' => {
                let word = |c: char| c.is_alphanumeric() || c == '_';
                rest.len() - rest.trim_start_matches(word).len()
            }
            c => c.len_utf8(),
        };
        rest = &rest[len..];
    }
}

/// The length of the string literal that `text` begins with, quotes included.
fn string_len(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    let end = text[1..].iter().position(|byte| {
        let ends = !escaped && *byte == text[0];
        escaped = !escaped && *byte == b'\\';
        ends
    });
    end.map(|end| end + 2)
}

/// What follows `{% endraw %}`.
fn after_raw(mut text: &str) -> Option<&str> {
    loop {
        text = &text[text.find("{%")? + 2..];
        let inside = text.strip_prefix(['-', '+']).unwrap_or(text);
        if let Some(after) = simple_tag(inside, "endraw") {
            return Some(after);
        }
    }
}

/// What follows a tag that is only `name`, if `text` begins inside one.
fn simple_tag<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let rest = text.trim_ascii_start().strip_prefix(name)?.trim_ascii_start();
    rest.strip_prefix(['-', '+']).unwrap_or(rest).strip_prefix("%}")
}
