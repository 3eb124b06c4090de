//! Tools that a model may call, and its calls, as developers send and get them.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::check::too_many;
use super::{ChatMessage, Generate, Prompt, Refusal};
use crate::limits;

/// What a request lets a model call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    /// The tools, each of another name.
    pub tools: Vec<Tool>,
    /// Whether it may, must or must not.
    pub choice: ToolChoice,
    /// More than once in an output.
    pub parallel: bool,
}

/// A function that the developer runs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// The JSON schema of its arguments, an object; without one it takes none.
    pub parameters: Option<String>,
    /// Refuse the request rather than hold arguments to less than the schema.
    pub strict: bool,
}

/// Whether tools are called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToolChoice {
    /// Never: the model does not hear of them.
    Never,
    /// As the model likes.
    Auto,
    /// At least once, and nothing else is said.
    Required,
    /// This one, and nothing else is said.
    Named(String),
}

/// A call that an assistant has made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// What its answer refers to.
    pub id: String,
    /// Of the tool.
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

/// More of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallDelta {
    /// Which one of the output, counted from 0.
    pub index: u32,
    /// Its id and its tool's name, in the first piece.
    pub begun: Option<(String, String)>,
    /// More of its arguments: all pieces together are a JSON object.
    pub arguments: String,
}

impl Generate {
    /// The tools that the model hears of.
    pub fn callable(&self) -> Option<&Tools> {
        self.tools.as_ref().filter(|tools| tools.choice != ToolChoice::Never && !tools.tools.is_empty())
    }

    /// Refuses tools and calls that cannot be, or that do not go together.
    pub(super) fn check_tools(&self) -> Result<(), Refusal> {
        let Some(tools) = &self.tools else { return Ok(()) };
        tools.check()?;
        if self.callable().is_none() {
            return Ok(());
        }
        if !matches!(self.prompt, Prompt::Chat(_)) {
            return Err(Refusal::invalid("tools", "tools are for chats: send messages, or leave tools out"));
        }
        if self.constraint.is_some() {
            let why = "tools and another constraint on the output cannot be used together: send one of them";
            return Err(Refusal::invalid("constraint", why));
        }
        if self.ignore_eos {
            let why = "an output that may call tools ends where it is complete: leave ignore_eos out";
            return Err(Refusal::invalid("ignore_eos", why));
        }
        Ok(())
    }
}

impl Tools {
    fn check(&self) -> Result<(), Refusal> {
        let (got, max) = (self.tools.len(), limits::TOOLS_MAX);
        if got > max {
            return Err(too_many("tools", got, max, "tools"));
        }
        for (i, tool) in self.tools.iter().enumerate() {
            let path = format!("tools[{i}].function.name");
            check_name(&path, &tool.name)?;
            if self.tools[..i].iter().any(|other| other.name == tool.name) {
                let why = format!("{path} is '{}', which another tool is called, too: rename one", tool.name);
                return Err(Refusal::invalid(&path, why));
            }
        }
        let bytes: usize = self.tools.iter().map(|tool| tool.parameters.as_ref().map_or(0, String::len)).sum();
        if bytes > limits::CONSTRAINT_BYTES_MAX {
            let max = limits::CONSTRAINT_BYTES_MAX;
            let why = format!("the parameters of all tools have {bytes} bytes: at most {max} are accepted");
            return Err(Refusal::invalid("tools", why));
        }
        match &self.choice {
            ToolChoice::Named(name) if !self.tools.iter().any(|tool| tool.name == *name) => Err(Refusal::invalid(
                "tool_choice",
                format!("tool_choice names '{}', which is not among the tools", name.escape_debug()),
            )),
            ToolChoice::Required if self.tools.is_empty() => {
                Err(Refusal::invalid("tool_choice", "tool_choice is \"required\", but there are no tools: send some"))
            }
            _ => Ok(()),
        }
    }

    /// Bytes that reach the prompt.
    pub(super) fn prompt_bytes(&self) -> usize {
        let bytes = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.tools.iter().map(|tool| tool.name.len() + bytes(&tool.description) + bytes(&tool.parameters)).sum()
    }
}

fn check_name(path: &str, name: &str) -> Result<(), Refusal> {
    let is_letter = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let max = limits::NAME_BYTES_MAX;
    match !name.is_empty() && name.len() <= max && name.bytes().all(is_letter) {
        true => Ok(()),
        false => {
            let why = format!("{path} must be 1 to {max} letters, digits, '_' and '-', not '{}'", short(name));
            Err(Refusal::invalid(path, why))
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(limits::NAME_BYTES_MAX).flat_map(char::escape_debug).collect()
}

/// Refuses calls without a name, and answers to nothing.
pub(super) fn check_calls(messages: &[ChatMessage]) -> Result<(), Refusal> {
    let mut known: HashSet<&str> = HashSet::new();
    for (i, message) in messages.iter().enumerate() {
        let path = format!("messages[{i}]");
        if !message.calls.is_empty() && message.role != "assistant" {
            return Err(Refusal::invalid(&path, format!("{path} calls tools: only an assistant does")));
        }
        if message.calls.len() > limits::CALLS_MAX {
            let (got, max) = (message.calls.len(), limits::CALLS_MAX);
            return Err(too_many(&path, got, max, "calls"));
        }
        for (j, call) in message.calls.iter().enumerate() {
            let path = format!("{path}.tool_calls[{j}]");
            check_name(&format!("{path}.function.name"), &call.name)?;
            if call.id.is_empty() || call.id.len() > limits::CALL_ID_BYTES_MAX {
                let (path, max) = (format!("{path}.id"), limits::CALL_ID_BYTES_MAX);
                return Err(Refusal::invalid(&path, format!("{path} must have 1 to {max} bytes")));
            }
            known.insert(&call.id);
        }
        let path = format!("{path}.tool_call_id");
        match (message.role == "tool", &message.answers) {
            (true, Some(id)) if known.contains(id.as_str()) => {}
            (true, Some(id)) => {
                let why = format!("{path} is '{}', which no call of an earlier message has", short(id));
                return Err(Refusal::invalid(&path, why));
            }
            (true, None) => {
                return Err(Refusal::invalid(&path, format!("{path} is missing: name the call that is answered")));
            }
            (false, Some(_)) => {
                return Err(Refusal::invalid(&path, format!("{path} is for messages of the role tool")));
            }
            (false, None) => {}
        }
    }
    Ok(())
}

impl fmt::Debug for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tool({})", self.name)
    }
}

impl fmt::Debug for ToolCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ToolCall({}, {} bytes)", self.name, self.arguments.len())
    }
}
