//! What an output must look like, as developers ask for it and miners are told.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::limits;

/// What the whole output must match. Whether it makes sense is found by compiling it for a vocabulary; never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that satisfies this JSON schema.
    JsonSchema(String),
    /// This regular expression, in the syntax of Rust's `regex`.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// This grammar, in llguidance's variant of Lark's syntax.
    Grammar(String),
    /// Calls of tools. Schedulers send it; developers send tools.
    Calls(CallConstraint),
}

/// Which calls an output may have.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallConstraint {
    /// How the model writes them, by name.
    pub syntax: String,
    /// Each tool's name and the JSON schema of its arguments.
    pub functions: Vec<(String, String)>,
    /// Text may come before calls, or instead of them.
    pub text: bool,
    /// More than one call may come.
    pub many: bool,
}

impl Constraint {
    /// Refuses what is too large to be compiled.
    pub fn check(&self) -> Result<(), Refusal> {
        let refuse = |why: String| Err(Refusal::invalid("constraint", why));
        let bytes = match self {
            Self::JsonObject => 0,
            Self::JsonSchema(text) | Self::Regex(text) | Self::Grammar(text) => text.len(),
            Self::Choice(choices) if choices.is_empty() => {
                return refuse("there is nothing to choose from: name at least one choice".to_owned());
            }
            Self::Choice(choices) if choices.len() > limits::CONSTRAINT_CHOICES_MAX => {
                let (got, max) = (choices.len(), limits::CONSTRAINT_CHOICES_MAX);
                return refuse(format!("there are {got} choices: at most {max} are accepted"));
            }
            Self::Choice(choices) => choices.iter().map(String::len).sum(),
            Self::Calls(calls) if calls.functions.len() > limits::TOOLS_MAX => {
                return refuse(format!("there are {} tools", calls.functions.len()));
            }
            Self::Calls(calls) if calls.functions.iter().any(|(name, _)| name.len() > limits::NAME_BYTES_MAX) => {
                return refuse("a tool's name is too long".to_owned());
            }
            Self::Calls(calls) => calls.functions.iter().map(|(_, schema)| schema.len()).sum(),
        };
        match bytes > limits::CONSTRAINT_BYTES_MAX {
            true => refuse(format!("it has {bytes} bytes: at most {} are accepted", limits::CONSTRAINT_BYTES_MAX)),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for CallConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} tools", self.syntax, self.functions.len())
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JsonObject => write!(f, "JsonObject"),
            Self::JsonSchema(text) => write!(f, "JsonSchema({} bytes)", text.len()),
            Self::Regex(text) => write!(f, "Regex({} bytes)", text.len()),
            Self::Choice(choices) => write!(f, "Choice({} texts)", choices.len()),
            Self::Grammar(text) => write!(f, "Grammar({} bytes)", text.len()),
            Self::Calls(calls) => write!(f, "Calls({calls:?})"),
        }
    }
}
