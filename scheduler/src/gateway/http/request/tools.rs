//! What the model may call, and calls in messages. Schemas are passed on as they came.

use cuckoo_wire::limits;
use cuckoo_wire::message::{Refusal, Tool, ToolCall, ToolChoice, Tools};
use serde_json::Value;

use super::super::fields::{self, Fields};
use super::super::ignored::Ignored;

/// `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn tools(fields: &mut Fields, ignored: &mut Ignored) -> Result<Option<Tools>, Refusal> {
    let items = array(fields, "tools", limits::TOOLS_MAX)?;
    let tools = items.into_iter().enumerate().map(|(i, item)| tool(&format!("tools[{i}]"), item, ignored));
    let tools: Vec<Tool> = tools.collect::<Result<_, _>>()?;
    let choice = choice(fields, ignored)?;
    let parallel = fields.flag("parallel_tool_calls")?.unwrap_or(true);
    if tools.is_empty() && matches!(choice, ToolChoice::Required | ToolChoice::Named(_)) {
        return Err(Refusal::invalid("tool_choice", "tool_choice wants a call, but there are no tools: send some"));
    }
    Ok((!tools.is_empty()).then_some(Tools { tools, choice, parallel }))
}

/// The items of an array, counted before they are looked at.
fn array(fields: &mut Fields, name: &str, max: usize) -> Result<Vec<Value>, Refusal> {
    let path = fields.path_of(name);
    match fields.take(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) if items.len() > max => {
            Err(Refusal::invalid(&path, format!("{path} has {} items: at most {max} are accepted", items.len())))
        }
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(fields::wrong(&path, "an array", &other)),
    }
}

fn tool(path: &str, item: Value, ignored: &mut Ignored) -> Result<Tool, Refusal> {
    let mut function = function(path, item, ignored)?;
    let name = needed(&mut function, "name")?;
    let description = function.text("description")?;
    let parameters_path = function.path_of("parameters");
    let parameters = match function.take("parameters") {
        None => None,
        Some(schema @ Value::Object(_)) => Some(schema.to_string()),
        Some(other) => return Err(fields::wrong(&parameters_path, "a JSON schema, as an object", &other)),
    };
    let strict = function.flag("strict")?.unwrap_or(false);
    function.rest(ignored);
    Ok(Tool { name, description, parameters, strict })
}

/// The function in `{"type": "function", "function": {…}}`.
fn function(path: &str, item: Value, ignored: &mut Ignored) -> Result<Fields, Refusal> {
    let mut fields = Fields::nested(path, item)?;
    let kind_path = fields.path_of("type");
    match fields.text("type")?.as_deref() {
        Some("function") => {}
        Some(other) => {
            let other = fields::quoted(&Value::String(other.to_owned()));
            let why = format!("{kind_path} is {other}: only \"function\" is supported");
            return Err(Refusal::invalid(&kind_path, why));
        }
        None => return Err(Refusal::invalid(&kind_path, format!("{kind_path} is missing: send \"function\""))),
    }
    let function_path = fields.path_of("function");
    let Some(function) = fields.take("function") else {
        return Err(Refusal::invalid(&function_path, format!("{function_path} is missing")));
    };
    let function = Fields::nested(&function_path, function)?;
    fields.rest(ignored);
    Ok(function)
}

fn needed(fields: &mut Fields, name: &str) -> Result<String, Refusal> {
    let path = fields.path_of(name);
    fields.text(name)?.ok_or_else(|| Refusal::invalid(&path, format!("{path} is missing: send a string")))
}

fn choice(fields: &mut Fields, ignored: &mut Ignored) -> Result<ToolChoice, Refusal> {
    let name = "tool_choice";
    match fields.take(name) {
        None => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Ok(ToolChoice::Never),
            "auto" => Ok(ToolChoice::Auto),
            "required" => Ok(ToolChoice::Required),
            _ => {
                let word = fields::quoted(&Value::String(word));
                let known = "use \"none\", \"auto\", \"required\" or name a function";
                Err(Refusal::invalid(name, format!("tool_choice is {word}, which is not supported: {known}")))
            }
        },
        Some(value @ Value::Object(_)) => {
            let mut function = function(name, value, ignored)?;
            let chosen = needed(&mut function, "name")?;
            function.rest(ignored);
            Ok(ToolChoice::Named(chosen))
        }
        Some(other) => Err(fields::wrong(name, "a string or an object", &other)),
    }
}

/// The calls of an assistant's message.
pub(super) fn calls(message: &mut Fields, ignored: &mut Ignored) -> Result<Vec<ToolCall>, Refusal> {
    let path = message.path_of("tool_calls");
    let items = array(message, "tool_calls", limits::CALLS_MAX)?;
    let call = |(i, item): (usize, Value)| {
        let path = format!("{path}[{i}]");
        let id = match &item {
            // Taken by itself: what it stands beside is the same as in a tool.
            Value::Object(members) => members.get("id").and_then(Value::as_str).map(str::to_owned),
            _ => None,
        };
        let id_path = format!("{path}.id");
        let mut item = item;
        item.as_object_mut().and_then(|members| members.remove("id"));
        let mut function = function(&path, item, ignored)?;
        let id = id.ok_or_else(|| Refusal::invalid(&id_path, format!("{id_path} is missing: send a string")))?;
        let call =
            ToolCall { id, name: needed(&mut function, "name")?, arguments: needed(&mut function, "arguments")? };
        function.rest(ignored);
        Ok(call)
    };
    items.into_iter().enumerate().map(call).collect()
}
