//! What is to be continued: a chat's messages, or a completion's prompt. Never touches the text itself.

use cuckoo_wire::limits;
use cuckoo_wire::message::{ChatMessage, Prompt, Refusal};
use serde_json::Value;

use super::super::fields::{self, Fields};
use super::super::ignored::Ignored;
use super::tools;

/// Between the text parts of one message: each part is a paragraph of its own, as other servers have it too.
const BETWEEN_PARTS: &str = "\n";

/// The turns of a chat.
pub(super) fn messages(fields: &mut Fields, ignored: &mut Ignored) -> Result<Vec<ChatMessage>, Refusal> {
    let items = match fields.take("messages") {
        None => return Err(Refusal::invalid("messages", "messages is missing: send at least one")),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(fields::wrong("messages", "an array of messages", &other)),
    };
    // Looked at before the messages are, so that a flood of them costs nothing.
    if items.len() > limits::CHAT_MESSAGES_MAX {
        let (got, max) = (items.len(), limits::CHAT_MESSAGES_MAX);
        return Err(Refusal::invalid("messages", format!("messages has {got} messages: at most {max} are accepted")));
    }
    items.into_iter().enumerate().map(|(i, item)| message(&format!("messages[{i}]"), item, ignored)).collect()
}

fn message(path: &str, item: Value, ignored: &mut Ignored) -> Result<ChatMessage, Refusal> {
    let mut fields = Fields::nested(path, item)?;
    let role_path = fields.path_of("role");
    let role = match fields.text("role")?.as_deref() {
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool") => "tool",
        Some(other) => {
            let other = fields::quoted(&Value::String(other.to_owned()));
            let known = "use system, developer, user, assistant or tool";
            return Err(Refusal::invalid(
                &role_path,
                format!("{role_path} is {other}, which is not supported: {known}"),
            ));
        }
        None => return Err(Refusal::invalid(&role_path, format!("{role_path} is missing"))),
    };
    for name in ["function_call", "audio", "refusal"] {
        match fields.take(name) {
            Some(value) if value != Value::Array(Vec::new()) => {
                let path = fields.path_of(name);
                return Err(Refusal::invalid(&path, format!("{path} is not supported: send text only")));
            }
            _ => {}
        }
    }
    let calls = tools::calls(&mut fields, ignored)?;
    let answers = fields.text("tool_call_id")?;
    let content_path = fields.path_of("content");
    let content = match fields.take("content") {
        Some(value) => content(&content_path, value, ignored)?,
        // Whoever called tools need not have said anything.
        None if !calls.is_empty() => String::new(),
        None => return Err(Refusal::invalid(&content_path, format!("{content_path} is missing: send a string"))),
    };
    fields.rest(ignored);
    Ok(ChatMessage { role: role.to_owned(), content, calls, answers })
}

/// A string, or text parts.
fn content(path: &str, value: Value, ignored: &mut Ignored) -> Result<String, Refusal> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(fields::wrong(path, "a string or an array of text parts", &other)),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = Fields::nested(&format!("{path}[{i}]"), part)?;
        let (kind_path, text_path) = (part.path_of("type"), part.path_of("text"));
        match part.text("type")?.as_deref() {
            Some("text") => {}
            Some(other) => {
                let other = fields::quoted(&Value::String(other.to_owned()));
                return Err(Refusal::invalid(
                    &kind_path,
                    format!("{kind_path} is {other}: only \"text\" is supported"),
                ));
            }
            None => return Err(Refusal::invalid(&kind_path, format!("{kind_path} is missing: send \"text\""))),
        }
        let text = part.text("text")?;
        texts.push(text.ok_or_else(|| Refusal::invalid(&text_path, format!("{text_path} is missing")))?);
        part.rest(ignored);
    }
    Ok(texts.join(BETWEEN_PARTS))
}

/// A string or token ids, as they are or as the only item of an array.
pub(super) fn completion(fields: &mut Fields) -> Result<Prompt, Refusal> {
    match fields.take("prompt") {
        None => Err(Refusal::invalid("prompt", "prompt is missing: send a string or an array of token ids")),
        Some(Value::String(text)) => Ok(Prompt::Text(text)),
        Some(Value::Array(mut items)) => match items.as_mut_slice() {
            [Value::String(text)] => Ok(Prompt::Text(std::mem::take(text))),
            [Value::Array(tokens)] => token_ids(tokens),
            [Value::String(_) | Value::Array(_), ..] => Err(Refusal::invalid(
                "prompt",
                format!("prompt is an array of {} prompts: send each as a request of its own", items.len()),
            )),
            tokens => token_ids(tokens),
        },
        Some(other) => Err(fields::wrong("prompt", "a string or an array of token ids", &other)),
    }
}

fn token_ids(items: &[Value]) -> Result<Prompt, Refusal> {
    if items.len() > limits::PROMPT_TOKENS_MAX {
        let (got, max) = (items.len(), limits::PROMPT_TOKENS_MAX);
        return Err(Refusal::invalid("prompt", format!("prompt has {got} tokens: at most {max} are accepted")));
    }
    let id = |(i, item)| fields::count(&format!("prompt[{i}]"), item);
    Ok(Prompt::Tokens(items.iter().enumerate().map(id).collect::<Result<_, _>>()?))
}
