//! Tools at the edge: what the model hears of them, what holds its output to them, and its calls as developers get them.

use std::collections::HashMap;
use std::sync::Arc;

use cuckoo_models::tools::{Event, Kept, Parser};
use cuckoo_models::{ConstraintError, Syntax};
use cuckoo_wire::message::{
    CallConstraint, CallDelta, ChatMessage, Constraint, Refusal, Reply, RequestId, TokenLogprobs, Tool, ToolChoice,
    Tools,
};
use serde_json::{Value, json};

use crate::catalog::Model;
use crate::constraint::{self, Judge};
use crate::market::Market;

/// The schema of arguments that are held to be an object and nothing more.
const ANY_OBJECT: &str = r#"{"type": "object"}"#;

/// What a request with tools adds to its output.
pub(crate) struct Calling {
    /// What miners are told, where the vocabulary allows for it.
    pub(crate) constraint: Option<Constraint>,
    pub(crate) judge: Option<Judge>,
    pub(crate) parser: Parser,
    pub(crate) syntax: &'static Syntax,
}

/// Compiles what holds an output to `tools`. Arguments are held to schemas even where nobody asked to be strict; where
/// one cannot be, its tool is held to any object, or refused if it is to be strict.
pub(crate) async fn calling(market: &Market, model: &Arc<Model>, tools: &Tools) -> Result<Calling, Refusal> {
    let syntax = model.chat()?.1.syntax();
    let mut functions = Vec::new();
    for (i, tool) in tools.tools.iter().enumerate() {
        // All are looked at, though only one may be called.
        let schema = schema(&format!("tools[{i}].function.parameters"), tool)?;
        if !matches!(&tools.choice, ToolChoice::Named(name) if *name != tool.name) {
            functions.push((i, tool, schema));
        }
    }
    let text = tools.choice == ToolChoice::Auto;
    let many = tools.parallel && syntax.many && !matches!(tools.choice, ToolChoice::Named(_));
    let names: Vec<String> = functions.iter().map(|(_, tool, _)| tool.name.clone()).collect();
    let constrained = |functions: &[(usize, &Tool, String)]| {
        let functions = functions.iter().map(|(_, tool, schema)| (tool.name.clone(), schema.clone())).collect();
        Constraint::Calls(CallConstraint { syntax: syntax.name.to_owned(), functions, text, many })
    };
    let mut wanted = constrained(&functions);
    // What was added to schemas may make them too long for a miner.
    wanted.check().map_err(|refusal| Refusal { param: Some("tools".to_owned()), ..refusal })?;
    let mut compiled = constraint::compile(market, model, &wanted).await?;
    if matches!(compiled, Err(ConstraintError::Invalid(_) | ConstraintError::Unsatisfiable(_))) {
        relax(market, model, &mut functions).await?;
        wanted = constrained(&functions);
        compiled = constraint::compile(market, model, &wanted).await?;
    }
    let kept = if text { Kept::TextAndCalls } else { Kept::Calls };
    match compiled {
        Ok(judge) => {
            let parser = Parser::new(syntax, names, kept);
            Ok(Calling { constraint: Some(wanted), judge: Some(judge), parser, syntax })
        }
        Err(ConstraintError::Vocabulary(_)) if text && !tools.tools.iter().any(|tool| tool.strict) => {
            let parser = Parser::new(syntax, names, Kept::Unsure);
            Ok(Calling { constraint: None, judge: None, parser, syntax })
        }
        Err(why) => Err(Refusal::invalid("tools", format!("these tools cannot be used: {why}"))),
    }
}

/// Puts [`ANY_OBJECT`] in the place of every schema that cannot be met.
async fn relax(market: &Market, model: &Arc<Model>, functions: &mut [(usize, &Tool, String)]) -> Result<(), Refusal> {
    let mut all_fine = true;
    for (i, tool, schema) in functions.iter_mut() {
        let alone = Constraint::JsonSchema(schema.clone());
        let Err(why) = constraint::compile(market, model, &alone).await? else { continue };
        all_fine = false;
        if tool.strict {
            let path = format!("tools[{i}].function.parameters");
            return Err(Refusal::invalid(&path, format!("{path} cannot be met strictly: {why}")));
        }
        *schema = ANY_OBJECT.to_owned();
    }
    if all_fine && !functions.iter().any(|(_, tool, _)| tool.strict) {
        // Each can be met, but all together are too much.
        functions.iter_mut().for_each(|(_, _, schema)| *schema = ANY_OBJECT.to_owned());
    }
    Ok(())
}

/// The schema that a tool's arguments are held to: always an object's. A list of properties that does not say whether
/// there may be others is taken for all of them: functions have no others.
fn schema(path: &str, tool: &Tool) -> Result<String, Refusal> {
    let Some(text) = &tool.parameters else {
        return Ok(r#"{"type": "object", "properties": {}, "additionalProperties": false}"#.to_owned());
    };
    let mut schema: Value =
        serde_json::from_str(text).map_err(|e| Refusal::invalid(path, format!("{path} is not valid JSON: {e}")))?;
    let no_object = || Refusal::invalid(path, format!("{path} must be the JSON schema of an object"));
    let members = schema.as_object_mut().ok_or_else(no_object)?;
    match members.get("type") {
        None => _ = members.insert("type".to_owned(), "object".into()),
        Some(Value::Array(kinds)) if kinds.iter().any(|kind| kind == "object") => {
            members.insert("type".to_owned(), "object".into());
        }
        Some(kind) if kind == "object" => {}
        Some(_) => return Err(no_object()),
    }
    let lists_all = ["additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"]
        .into_iter()
        .chain(["allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas", "minProperties"])
        .all(|word| !members.contains_key(word));
    let properties = members.get("properties").and_then(Value::as_object);
    let listed = |name: &Value| properties.zip(name.as_str()).is_some_and(|(listed, name)| listed.contains_key(name));
    let has_all = members.get("required").and_then(Value::as_array).is_none_or(|names| names.iter().all(listed));
    if lists_all && properties.is_some() && has_all {
        members.insert("additionalProperties".to_owned(), false.into());
    }
    Ok(schema.to_string())
}

/// Messages as templates know them.
pub(crate) fn conversation(messages: &[ChatMessage]) -> Result<Vec<Value>, Refusal> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut turns = Vec::with_capacity(messages.len());
    for (i, message) in messages.iter().enumerate() {
        let mut turn = json!({"role": message.role, "content": message.content});
        if !message.calls.is_empty() {
            let calls = message.calls.iter().enumerate().map(|(j, call)| {
                names.insert(&call.id, &call.name);
                let path = format!("messages[{i}].tool_calls[{j}].function.arguments");
                let arguments = arguments(&path, &call.arguments)?;
                let function = json!({"name": call.name, "arguments": arguments});
                Ok(json!({"id": call.id, "type": "function", "function": function}))
            });
            turn["tool_calls"] = calls.collect::<Result<Vec<Value>, Refusal>>()?.into();
        }
        if let Some(id) = &message.answers {
            turn["tool_call_id"] = id.as_str().into();
            turn["name"] = names.get(id.as_str()).copied().unwrap_or_default().into();
        }
        turns.push(turn);
    }
    Ok(turns)
}

/// Arguments as an object: templates write them in their own way.
fn arguments(path: &str, text: &str) -> Result<Value, Refusal> {
    let wrong = |why: String| Refusal::invalid(path, format!("{path} must be a text that holds a JSON object: {why}"));
    match text.trim().is_empty() {
        true => Ok(json!({})),
        false => match serde_json::from_str(text) {
            Ok(Value::Object(members)) => Ok(Value::Object(members)),
            Ok(_) => Err(wrong("it is another value".to_owned())),
            Err(why) => Err(wrong(why.to_string())),
        },
    }
}

/// Parameters as templates list them, in the order in which they were sent.
pub(crate) fn parameters(tools: &Tools) -> Vec<Option<Value>> {
    tools.tools.iter().map(|tool| serde_json::from_str(tool.parameters.as_deref()?).ok()).collect()
}

/// Names the calls of one request and counts them.
#[derive(Debug)]
pub(crate) struct Caller {
    syntax: &'static Syntax,
    request: RequestId,
    calls: u32,
}

impl Caller {
    pub(crate) fn new(syntax: &'static Syntax, request: RequestId) -> Self {
        Self { syntax, request, calls: 0 }
    }

    /// Adds a call, or more of the last one.
    fn take(&mut self, event: Event, calls: &mut Vec<CallDelta>) {
        match event {
            Event::Call { name } => {
                let id = self.syntax.call_id(&self.request.0, self.calls);
                calls.push(CallDelta { index: self.calls, begun: Some((id, name)), arguments: String::new() });
                self.calls += 1;
            }
            Event::Arguments(text) | Event::Content(text) => match calls.last_mut() {
                Some(call) => call.arguments.push_str(&text),
                None => calls.push(CallDelta { index: self.calls.saturating_sub(1), begun: None, arguments: text }),
            },
        }
    }
}

/// Adds what `events` are to a developer: at least one reply, of which the first has the tokens. In a reply, text comes
/// before calls, so text after them begins another one.
pub(crate) fn replies(
    caller: &mut Option<Caller>,
    events: impl Iterator<Item = Event>,
    mut first: u32,
    (mut tokens, mut logprobs): (Vec<u32>, Vec<TokenLogprobs>),
    said: &mut Vec<Reply>,
) {
    let later = first + tokens.len() as u32;
    let mut delta = |text: &mut String, calls: &mut Vec<CallDelta>| {
        let (tokens, logprobs) = (std::mem::take(&mut tokens), std::mem::take(&mut logprobs));
        let (first, text, calls) = (std::mem::replace(&mut first, later), std::mem::take(text), std::mem::take(calls));
        Reply::Delta { first, tokens, text, logprobs, calls }
    };
    let (mut text, mut calls) = (String::new(), Vec::new());
    for event in events {
        match (event, caller.as_mut()) {
            (Event::Content(more), _) => {
                if !calls.is_empty() {
                    said.push(delta(&mut text, &mut calls));
                }
                // Most replies are a token's text and nothing else.
                match text.is_empty() {
                    true => text = more,
                    false => text.push_str(&more),
                }
            }
            (event, Some(caller)) => caller.take(event, &mut calls),
            (_, None) => {}
        }
    }
    said.push(delta(&mut text, &mut calls));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use cuckoo_wire::message::ToolCall;

    use super::*;

    fn held_to(parameters: Option<Value>) -> Result<Value, Refusal> {
        let parameters = parameters.map(|schema| schema.to_string());
        let tool = Tool { name: "f".to_owned(), description: None, parameters, strict: false };
        schema("p", &tool).map(|text| serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn arguments_are_objects_of_what_is_listed() {
        let none = json!({"type": "object", "properties": {}, "additionalProperties": false});
        assert_eq!(held_to(None).unwrap(), none);
        let listed = json!({"properties": {"a": {}}, "required": ["a"]});
        let closed = held_to(Some(listed.clone())).unwrap();
        assert_eq!((&closed["type"], &closed["additionalProperties"]), (&json!("object"), &json!(false)));
        // Where it says something of others, or where that might contradict it, it is left as it is.
        for (key, value) in [
            ("additionalProperties", json!(true)),
            ("patternProperties", json!({"^x": {}})),
            ("required", json!(["a", "b"])),
            ("allOf", json!([{"properties": {"b": {}}}])),
            ("properties", json!([])),
            ("properties", Value::Null),
        ] {
            let mut open = listed.clone();
            open[key] = value;
            let held = held_to(Some(open.clone())).unwrap();
            assert_eq!(held.get("additionalProperties"), open.get("additionalProperties"), "{key}");
        }
        assert_eq!(held_to(Some(json!({"type": ["object", "null"]}))).unwrap()["type"], "object");
        let referred = held_to(Some(json!({"$ref": "#/$defs/none", "required": ["a"]}))).unwrap();
        assert_eq!(referred, json!({"$ref": "#/$defs/none", "required": ["a"], "type": "object"}));
        for bad in [json!({"type": "string"}), json!({"type": ["null"]}), json!({"type": 1}), json!([]), json!("x")] {
            assert_eq!(held_to(Some(bad)).unwrap_err().param.as_deref(), Some("p"));
        }
    }

    #[test]
    fn messages_are_as_templates_know_them() {
        let call = |arguments: &str| ToolCall { id: "i".into(), name: "f".into(), arguments: arguments.into() };
        let chat = |arguments: &str| {
            let called = ChatMessage { calls: vec![call(arguments)], ..ChatMessage::new("assistant", "") };
            let told = ChatMessage { answers: Some("i".into()), ..ChatMessage::new("tool", "7") };
            conversation(&[called, told])
        };
        let function = json!({"name": "f", "arguments": {"b": 1, "a": [2.50]}});
        let call = json!({"id": "i", "type": "function", "function": function});
        let expected = [
            json!({"role": "assistant", "content": "", "tool_calls": [call]}),
            json!({"role": "tool", "content": "7", "tool_call_id": "i", "name": "f"}),
        ];
        assert_eq!(chat(r#"{"b": 1, "a": [2.50]}"#).unwrap(), expected);
        assert_eq!(chat("").unwrap()[0]["tool_calls"][0]["function"]["arguments"], json!({}));
        for bad in ["{\"a\": ", "7", "[]", "\"{}\"", &"[".repeat(10_000)] {
            let refusal = chat(bad).unwrap_err();
            assert_eq!(refusal.param.as_deref(), Some("messages[0].tool_calls[0].function.arguments"), "{bad}");
        }
    }

    #[test]
    fn text_after_a_call_is_a_reply_of_its_own() {
        let mut caller = Some(Caller::new(Syntax::named("mistral").unwrap(), RequestId([7; 16])));
        let events = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| match text.split_once(':') {
                    Some(("call", name)) => Event::Call { name: name.to_owned() },
                    Some(("more", text)) => Event::Arguments(text.to_owned()),
                    _ => Event::Content((*text).to_owned()),
                })
                .collect::<Vec<_>>()
        };
        let replies = |caller: &mut _, events: Vec<Event>, first, tokens| {
            let mut said = Vec::new();
            replies(caller, events.into_iter(), first, (tokens, vec![]), &mut said);
            said
        };
        let all = events(&["a", "b", "call:f", "more:{", "more:}", "c", "call:g"]);
        let told = replies(&mut caller, all, 3, vec![8, 9]);
        let [
            Reply::Delta { first: 3, tokens, text, calls, .. },
            Reply::Delta { first: 5, tokens: none, text: then, calls: last, .. },
        ] = told.as_slice()
        else {
            panic!("{told:?}")
        };
        assert_eq!((tokens.as_slice(), text.as_str(), calls.len()), (&[8, 9][..], "ab", 1));
        assert_eq!((calls[0].index, calls[0].arguments.as_str()), (0, "{}"));
        assert_eq!((none.len(), then.as_str(), last[0].index), (0, "c", 1));
        let ids: Vec<&str> = calls.iter().chain(last).map(|call| call.begun.as_ref().unwrap().0.as_str()).collect();
        assert!(ids[0] != ids[1] && ids.iter().all(|id| id.len() == 9));
        let more = replies(&mut caller, events(&["more:{}"]), 5, vec![1]);
        let [Reply::Delta { calls, .. }] = more.as_slice() else { panic!("{more:?}") };
        assert_eq!(calls[0], CallDelta { index: 1, begun: None, arguments: "{}".to_owned() });
        let plain = replies(&mut None, events(&["a"]), 0, vec![1]);
        assert_eq!(
            plain,
            [Reply::Delta { first: 0, tokens: vec![1], text: "a".into(), logprobs: vec![], calls: vec![] }]
        );
    }
}
