//! Grammars as they are written, and as the parser reads them.

use std::collections::BTreeMap;

use llguidance::JsonCompileOptions;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::ConstraintError;
use crate::tools::CallGrammar;

/// Between JSON's tokens: one space, or a new line and its indentation. A model may format its answer, but it cannot
/// fill it with blanks for ever.
const WHITESPACE: &str = r"\x20|\r?\n[\x20\x09]{0,32}";

/// Bytes of a regular expression. Compiling takes time that grows with the square of a long row of optional parts.
const REGEX_BYTES_MAX: usize = 4_096;
/// Bytes of a grammar, which may hold regular expressions of any length.
const LARK_BYTES_MAX: usize = 16_384;

/// What an output must match, from its first byte to its last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that satisfies this JSON schema. Of formats, `time` and `date-time` admit second 60 in any minute, and names
    /// of hosts may be longer than DNS allows.
    JsonSchema(String),
    /// This regular expression, in the syntax of Rust's `regex`.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// This grammar, in llguidance's variant of Lark's syntax.
    Lark(String),
    /// Calls of tools, perhaps with text around them.
    Calls(CallGrammar),
}

impl Grammar {
    /// The grammar as llguidance takes it, for a vocabulary with these control tokens.
    pub(super) fn top_level(&self, control: &BTreeMap<String, u32>) -> Result<TopLevelGrammar, ConstraintError> {
        Ok(match self {
            Self::JsonObject => json_schema(json!({"type": "object"}))?,
            Self::JsonSchema(text) => json_schema(
                serde_json::from_str(text)
                    .map_err(|e| ConstraintError::Invalid(format!("the schema is not valid JSON: {e}")))?,
            )?,
            Self::Regex(regex) => {
                short("the regular expression", regex, REGEX_BYTES_MAX)?;
                TopLevelGrammar::from_regex(unanchored(regex))
            }
            Self::Choice(choices) => TopLevelGrammar::from_lark(choice(choices)?),
            Self::Lark(text) if text.trim().is_empty() => {
                return Err(ConstraintError::Invalid("the grammar is empty".to_owned()));
            }
            Self::Lark(text) => {
                short("the grammar", text, LARK_BYTES_MAX)?;
                TopLevelGrammar::from_lark(text.clone())
            }
            Self::Calls(calls) => TopLevelGrammar::from_lark(calls.lark(control)?),
        })
    }
}

fn short(what: &str, text: &str, bytes_max: usize) -> Result<(), ConstraintError> {
    match text.len() > bytes_max {
        true => {
            Err(ConstraintError::Invalid(format!("{what} has {} bytes: at most {bytes_max} are compiled", text.len())))
        }
        false => Ok(()),
    }
}

/// Refuses long regular expressions wherever a schema may hold one.
fn check_patterns(schema: &Value) -> Result<(), ConstraintError> {
    match schema {
        Value::Object(members) => members.iter().try_for_each(|(name, value)| {
            match (name.as_str(), value) {
                ("pattern", Value::String(regex)) => short("a pattern of the schema", regex, REGEX_BYTES_MAX)?,
                ("patternProperties", Value::Object(patterns)) => {
                    patterns.keys().try_for_each(|p| short("a pattern of the schema", p, REGEX_BYTES_MAX))?;
                }
                _ => {}
            }
            check_patterns(value)
        }),
        Value::Array(items) => items.iter().try_for_each(check_patterns),
        _ => Ok(()),
    }
}

fn json_schema(schema: Value) -> Result<TopLevelGrammar, ConstraintError> {
    Ok(TopLevelGrammar::from_json_schema(embedded(schema)?))
}

/// A schema with our options in place of its own: those could switch the checks off.
pub(crate) fn embedded(schema: Value) -> Result<Value, ConstraintError> {
    let mut schema = match schema {
        // `true` is the schema that everything satisfies.
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err(ConstraintError::Unsatisfiable("the schema is false".to_owned())),
        Value::Object(_) => schema,
        other => {
            return Err(ConstraintError::Invalid(format!(
                "a JSON schema is an object or a boolean, not {}",
                kind(&other)
            )));
        }
    };
    check_patterns(&schema)?;
    let options =
        JsonCompileOptions { whitespace_pattern: Some(WHITESPACE.to_owned()), ..JsonCompileOptions::default() };
    options.apply_to(&mut schema);
    Ok(schema)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The whole output is matched, so anchors at the very ends say nothing; the parser does not know them.
fn unanchored(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        // After an odd number of backslashes it is the character.
        Some(rest) if rest.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 0 => rest,
        _ => regex,
    }
}

fn choice(choices: &[String]) -> Result<String, ConstraintError> {
    if choices.is_empty() {
        return Err(ConstraintError::Unsatisfiable("there is nothing to choose from".to_owned()));
    }
    // A terminal, so that one lexeme holds all of them.
    let choices: Vec<String> = choices.iter().map(|c| quoted(c)).collect();
    Ok(format!("start: CHOICE\nCHOICE: {}", choices.join(" | ")))
}

/// A text as a Lark string, which is JSON's, but with no characters that the parser's lexer might stumble over.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            ' ' | '!' | '#'..='[' | ']'..='~' => out.push(c),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    out.push('"');
    out
}
