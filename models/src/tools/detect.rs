//! Which syntax a template speaks, found by having it write a call and reading that back.

use serde_json::{Value, json};

use super::generic;
use super::parser::{Event, Kept, Parser};
use super::syntax::{SYNTAXES, Syntax};
use crate::template::{ChatTemplate, Conversation, TemplateError};

/// How tools are spoken of with one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialect {
    syntax: &'static Syntax,
    /// The template itself tells of tools and writes calls and answers.
    native: bool,
    /// The template wants a call without a text to have no content, rather than an empty one.
    wants_null: bool,
    /// The template knows system messages.
    has_system: bool,
}

/// A tool, as templates list it.
#[derive(Clone, Copy, Debug)]
pub struct Tool<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it does.
    pub description: Option<&'a str>,
    /// The JSON schema of its arguments.
    pub parameters: Option<&'a Value>,
}

/// A conversation in which tools may be called.
#[derive(Clone, Copy, Debug)]
pub struct ToolChat<'a> {
    /// As [`Conversation::messages`].
    pub messages: &'a [Value],
    /// The tools.
    pub tools: &'a [Tool<'a>],
}

/// The call that templates are to write.
const NAME: &str = "look_up_bird";
const ANSWER: &str = "It is a wren 4711.";
const SAID: &str = "Answer in verse 4711.";

impl Dialect {
    /// Tries the template: a dozen milliseconds, so once a model.
    pub fn detect(template: &ChatTemplate) -> Self {
        let system = json!([{"role": "system", "content": SAID}, {"role": "user", "content": "Hi."}]);
        let has_system = render(template, &system, None, true).is_some_and(|prompt| prompt.contains(SAID));
        match native(template) {
            Some((syntax, wants_null)) => Self { syntax, native: true, wants_null, has_system },
            None => Self { syntax: Syntax::generic(), native: false, wants_null: false, has_system },
        }
    }

    /// How this model writes calls.
    pub fn syntax(&self) -> &'static Syntax {
        self.syntax
    }

    /// Whether the model's own template knows tools.
    pub fn is_native(&self) -> bool {
        self.native
    }

    /// The prompt, up to where the assistant's answer begins.
    ///
    /// # Errors
    /// What [`ChatTemplate::render_conversation`] says.
    pub fn prompt(&self, template: &ChatTemplate, chat: &ToolChat<'_>) -> Result<String, TemplateError> {
        let tools: Vec<Value> = chat.tools.iter().map(Tool::listed).collect();
        let messages = match self.native {
            true => self.own(chat.messages),
            false => generic::messages(self.syntax, chat.messages, &tools, self.has_system),
        };
        let tools = (self.native && !tools.is_empty()).then_some(tools.as_slice());
        let conversation = Conversation { messages: &messages, tools, add_generation_prompt: true, extra: &[] };
        template.render_conversation(&conversation)
    }

    /// Messages with ids, and contents of calls without a text, as the template wants them.
    fn own(&self, messages: &[Value]) -> Vec<Value> {
        let mut messages = messages.to_vec();
        let rename = |id: &mut Value| {
            if let Some(own) = id.as_str().map(|id| self.syntax.own_id(id)) {
                *id = own.into();
            }
        };
        for message in &mut messages {
            if message["content"].as_str().is_none_or(str::is_empty) && message["tool_calls"].is_array() {
                message["content"] = if self.wants_null { Value::Null } else { json!("") };
            }
            if let Some(id) = message.get_mut("tool_call_id") {
                rename(id);
            }
            let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
            calls.into_iter().flatten().filter_map(|call| call.get_mut("id")).for_each(rename);
        }
        messages
    }
}

impl Tool<'_> {
    fn listed(&self) -> Value {
        // A tool without parameters has none to give; templates expect to be told so, and a description.
        let parameters = self.parameters.cloned().unwrap_or_else(|| json!({"type": "object", "properties": {}}));
        let description = self.description.unwrap_or_default();
        let function = json!({"name": self.name, "description": description, "parameters": parameters});
        json!({"type": "function", "function": function})
    }
}

/// The syntax of a template that lists tools, writes calls that can be read back, and tells answers.
fn native(template: &ChatTemplate) -> Option<(&'static Syntax, bool)> {
    let parameters = json!({"type": "object", "properties": {"wing": {"type": "string"}}, "required": ["wing"]});
    let tool = Tool { name: NAME, description: Some("Finds a bird."), parameters: Some(&parameters) };
    let tools = [tool.listed()];
    let user = json!({"role": "user", "content": "Which bird?"});
    let asked = render(template, &json!([user]), Some(&tools), true).filter(|prompt| prompt.contains(NAME))?;
    [json!(""), Value::Null].into_iter().find_map(|content| {
        let function = json!({"name": NAME, "arguments": {"wing": "left"}});
        let call = json!({"id": "abcdefghi", "type": "function", "function": function});
        let calls = json!({"role": "assistant", "content": content, "tool_calls": [call]});
        let called = render(template, &json!([user, calls]), Some(&tools), false)?;
        let tool = json!({"role": "tool", "tool_call_id": "abcdefghi", "name": NAME, "content": ANSWER});
        render(template, &json!([user, calls, tool]), Some(&tools), true).filter(|prompt| prompt.contains(ANSWER))?;
        let syntax = SYNTAXES.iter().find(|syntax| turns(&asked, &called).iter().any(|turn| reads(syntax, turn)))?;
        Some((syntax, content.is_null()))
    })
}

fn render(template: &ChatTemplate, messages: &Value, tools: Option<&[Value]>, open: bool) -> Option<String> {
    let messages = messages.as_array().map_or(&[][..], Vec::as_slice);
    let conversation = Conversation { messages, tools, add_generation_prompt: open, extra: &[] };
    template.render_conversation(&conversation).ok()
}

/// What the assistant said in `called`, which goes on from `asked`. Where the two begin alike beyond the prompt, as
/// markers do, the beginning of the marker belongs to it.
fn turns<'t>(asked: &str, called: &'t str) -> Vec<&'t str> {
    let alike = asked.bytes().zip(called.bytes()).take_while(|(a, b)| a == b).count();
    let at = called.floor_char_boundary(alike);
    let marker = called[..at].rfind(['<', '[']).unwrap_or(at);
    vec![&called[at..], &called[marker..]]
}

fn reads(syntax: &'static Syntax, turn: &str) -> bool {
    let mut parser = Parser::new(syntax, vec![NAME.to_owned()], Kept::Unsure);
    let mut events = parser.push(turn);
    events.extend(parser.finish());
    let arguments: String = events
        .iter()
        .map(|event| match event {
            Event::Arguments(text) => text.as_str(),
            Event::Call { .. } | Event::Content(_) => "",
        })
        .collect();
    parser.calls() == 1 && serde_json::from_str::<Value>(&arguments).is_ok_and(|got| got == json!({"wing": "left"}))
}
