//! The ways to ask for structured output: OpenAI's `response_format`, and vLLM's `guided_…` and `structured_outputs`.

use cuckoo_wire::message::{Constraint, Refusal};
use serde_json::Value;

use super::super::fields::{self, Fields};
use super::super::ignored::Ignored;

/// A constraint, and the field that it stands in.
type Named = (Constraint, String);

/// The constraint that a body asks for, if any; two of them are refused.
pub(super) fn constraint(fields: &mut Fields, ignored: &mut Ignored) -> Result<Option<Named>, Refusal> {
    let mut asked = Vec::new();
    asked.extend(response_format(fields, ignored)?);
    for (name, read) in
        [("guided_json", json as Read), ("guided_regex", regex), ("guided_choice", choice), ("guided_grammar", grammar)]
    {
        if let Some(value) = fields.take(name) {
            asked.push((read(name, value)?, name.to_owned()));
        }
    }
    asked.extend(structured_outputs(fields, ignored)?);
    match asked.as_slice() {
        [_, (_, second), ..] => {
            let first = &asked[0].1;
            Err(Refusal::invalid(second, format!("{first} and {second} both constrain the output: send one of them")))
        }
        _ => Ok(asked.pop()),
    }
}

/// Reads one kind of constraint from the value of the field of this name.
type Read = fn(&str, Value) -> Result<Constraint, Refusal>;

fn response_format(fields: &mut Fields, ignored: &mut Ignored) -> Result<Option<Named>, Refusal> {
    let name = "response_format";
    let Some(value) = fields.take(name) else { return Ok(None) };
    let mut format = Fields::nested(name, value)?;
    let kind = format.text("type")?;
    let constraint = match kind.as_deref() {
        Some("text") => None,
        Some("json_object") => Some((Constraint::JsonObject, name.to_owned())),
        Some("json_schema") => {
            let path = format.path_of("json_schema");
            let Some(value) = format.take("json_schema") else {
                return Err(Refusal::invalid(&path, format!("{path} is missing: send {{\"name\", \"schema\"}}")));
            };
            let mut parts = Fields::nested(&path, value)?;
            // A name for people, a description for models that read it, and a flag that cannot make us any stricter.
            parts.text("name")?;
            parts.flag("strict")?;
            let path = parts.path_of("schema");
            let Some(schema) = parts.take("schema") else {
                return Err(Refusal::invalid(&path, format!("{path} is missing: send a JSON schema")));
            };
            parts.rest(ignored);
            Some((json(&path, schema)?, path))
        }
        other => {
            let got = other.map_or("missing".to_owned(), |kind| fields::quoted(&Value::String(kind.to_owned())));
            let path = format.path_of("type");
            let why = format!("{path} is {got}: it must be \"text\", \"json_object\" or \"json_schema\"");
            return Err(Refusal::invalid(&path, why));
        }
    };
    format.rest(ignored);
    Ok(constraint)
}

fn structured_outputs(fields: &mut Fields, ignored: &mut Ignored) -> Result<Vec<Named>, Refusal> {
    let name = "structured_outputs";
    let Some(value) = fields.take(name) else { return Ok(Vec::new()) };
    let mut parts = Fields::nested(name, value)?;
    let mut asked = Vec::new();
    for (part, read) in [("json", json as Read), ("regex", regex), ("choice", choice), ("grammar", grammar)] {
        if let Some(value) = parts.take(part) {
            let path = parts.path_of(part);
            asked.push((read(&path, value)?, path));
        }
    }
    if parts.flag("json_object")? == Some(true) {
        asked.push((Constraint::JsonObject, parts.path_of("json_object")));
    }
    for part in ["structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"] {
        let path = parts.path_of(part);
        match parts.take(part) {
            None | Some(Value::Bool(false)) => {}
            Some(_) => return Err(Refusal::invalid(&path, format!("{path} is not supported: leave it out"))),
        }
    }
    if asked.is_empty() {
        let why = "structured_outputs names no constraint: send one of json, regex, choice, grammar, json_object";
        return Err(Refusal::invalid(name, why));
    }
    parts.rest(ignored);
    Ok(asked)
}

/// A schema as JSON, or as a text that holds JSON.
fn json(path: &str, value: Value) -> Result<Constraint, Refusal> {
    match value {
        Value::String(text) => Ok(Constraint::JsonSchema(text)),
        Value::Object(_) | Value::Bool(_) => Ok(Constraint::JsonSchema(value.to_string())),
        other => Err(fields::wrong(path, "a JSON schema", &other)),
    }
}

fn regex(path: &str, value: Value) -> Result<Constraint, Refusal> {
    text(path, value).map(Constraint::Regex)
}

fn grammar(path: &str, value: Value) -> Result<Constraint, Refusal> {
    text(path, value).map(Constraint::Grammar)
}

fn text(path: &str, value: Value) -> Result<String, Refusal> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(fields::wrong(path, "a string", &other)),
    }
}

fn choice(path: &str, value: Value) -> Result<Constraint, Refusal> {
    let Value::Array(items) = value else { return Err(fields::wrong(path, "an array of strings", &value)) };
    let texts = items.into_iter().enumerate().map(|(i, item)| text(&format!("{path}[{i}]"), item));
    Ok(Constraint::Choice(texts.collect::<Result<_, _>>()?))
}
