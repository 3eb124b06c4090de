//! Tools for models whose template knows none: told of in the first message, called and answered in plain text.

use serde_json::{Value, json};

use super::syntax::Syntax;

/// Messages in the words of a template that knows only `system`, `user` and `assistant`; `has_system` if it knows that.
pub(super) fn messages(syntax: &Syntax, messages: &[Value], tools: &[Value], has_system: bool) -> Vec<Value> {
    let mut plain: Vec<Value> = Vec::new();
    // Whether the last message is of tools' answers: the next one of the user joins it, for many templates want turns
    // to alternate.
    let mut answers = false;
    for message in messages {
        let content = message["content"].as_str().unwrap_or_default();
        let (role, text) = match (message["role"].as_str(), message["tool_calls"].as_array()) {
            (Some("tool"), _) => ("user", format!("<tool_response>\n{content}\n</tool_response>")),
            (_, Some(calls)) => ("assistant", with_calls(syntax, content, calls)),
            (role, None) => (role.unwrap_or("user"), content.to_owned()),
        };
        match plain.last_mut().filter(|_| answers && role == "user") {
            Some(last) => last["content"] = format!("{}\n{text}", last["content"].as_str().unwrap_or_default()).into(),
            None => plain.push(json!({"role": role, "content": text})),
        }
        answers = message["role"] == "tool";
    }
    if !tools.is_empty() {
        tell(&mut plain, &instructions(syntax, tools), has_system);
    }
    plain
}

fn with_calls(syntax: &Syntax, content: &str, calls: &[Value]) -> String {
    let calls: Vec<(&str, String)> = calls
        .iter()
        .map(|call| (call["function"]["name"].as_str().unwrap_or_default(), call["function"]["arguments"].to_string()))
        .collect();
    let calls: Vec<(&str, &str)> = calls.iter().map(|(name, arguments)| (*name, arguments.as_str())).collect();
    let between = if content.is_empty() { "" } else { "\n" };
    format!("{content}{between}{}", syntax.write(&calls))
}

/// Puts `text` where the model looks first.
fn tell(messages: &mut Vec<Value>, text: &str, has_system: bool) {
    let role = if has_system { "system" } else { "user" };
    match messages.first_mut().filter(|first| first["role"] == role) {
        Some(first) => {
            let said = first["content"].as_str().unwrap_or_default();
            let both = if has_system { format!("{said}\n\n{text}") } else { format!("{text}\n\n{said}") };
            first["content"] = both.into();
        }
        None => messages.insert(0, json!({"role": role, "content": text})),
    }
}

/// What Hermes' models and Qwen are told, word for word nearly: whoever was trained on any tools was trained on these.
fn instructions(syntax: &Syntax, tools: &[Value]) -> String {
    let tools: Vec<String> = tools.iter().map(Value::to_string).collect();
    let call =
        syntax.write(&[("<function-name>", "<args-json-object>")]).replace("\"<function-name>\"", "<function-name>");
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function \
         signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\nFor each function call, return a json \
         object with function name and arguments within <tool_call></tool_call> XML tags:\n{call}",
        tools.join("\n")
    )
}
