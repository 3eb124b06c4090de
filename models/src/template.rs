//! Chat templates: messages to the prompt that a model was trained on. It reads no files and calls nothing.
//!
//! A template is a stranger's program, so it runs on fuel, with bounded recursion and output, and on a thread whose stack
//! holds the deepest nesting that its bounded source and fuel allow. Memory is bounded only through those: a template
//! that doubles a string in a loop can ask for much before its fuel ends, so templates of unknown origin belong in a
//! process of their own.

use std::{collections::BTreeMap, error::Error as _, io, thread};

use minijinja::{Environment, ErrorKind, syntax::SyntaxConfig, value::Serde, value::Value};

use crate::gguf::Gguf;

mod guard;
mod json;
#[cfg(test)]
mod parity_tests;
mod python;
#[cfg(test)]
mod tests;

/// The longest template accepted, in bytes.
pub const SOURCE_BYTES_MAX: usize = 256 << 10;
/// The longest prompt that a template may make, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// How many instructions a rendering may run, for a few messages; each message adds [`FUEL_PER_MESSAGE`].
pub const FUEL: u64 = 100_000;
/// What each message adds to [`FUEL`], so that long conversations render.
pub const FUEL_PER_MESSAGE: u64 = 500;
/// What each tool adds, for templates that write its schema by themselves.
pub const FUEL_PER_TOOL: u64 = 4_000;
/// How deep macros, blocks and loops may nest while they run, in the engine's own measure: a macro counts four and each
/// loop in it one. Templates that write JSON by themselves use some seven for each level of a tool's schema.
pub const RECURSION_MAX: usize = 400;

/// The stack on which templates are compiled and run, in bytes. The compiler and the destructors of values recurse once
/// per operator of a chain and level of a list; the worst that [`SOURCE_BYTES_MAX`] or [`FUEL`] allow fits, in debug
/// builds too (see the tests). Pages that are not touched cost nothing.
const STACK_BYTES: usize = 512 << 20;

/// Why a template was refused or gave no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The model has none.
    #[error("the file has no tokenizer.chat_template: use completions instead of chat, or choose a chat model")]
    Missing,
    /// The source is longer than [`SOURCE_BYTES_MAX`].
    #[error("a chat template of {0} bytes is longer than the {SOURCE_BYTES_MAX} accepted: do not use this model")]
    TooLong(usize),
    /// It is no Jinja that is understood here.
    #[error("the chat template cannot be compiled: {0}")]
    Syntax(String),
    /// The template itself refuses the messages, by `raise_exception`.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// It ran out of fuel.
    #[error("the chat template ran too long: too many messages for it, or a hostile template")]
    Fuel,
    /// The prompt is longer than [`OUTPUT_BYTES_MAX`].
    #[error("the chat template made more than {OUTPUT_BYTES_MAX} bytes: shorten the messages")]
    OutputTooLong,
    /// Anything else that went wrong while it ran.
    #[error("the chat template failed: {0}")]
    Failed(String),
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A conversation in the shapes of the OpenAI API, as templates know them.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// Objects with a role, content (a text, or a list of parts), and what else there is. The arguments of a call must
    /// be an object, not a text that holds one.
    pub messages: &'a [serde_json::Value],
    /// The tools that the model may call.
    pub tools: Option<&'a [serde_json::Value]>,
    /// Whether the prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Variables of the template's own, such as `enable_thinking`.
    pub extra: &'a [(&'a str, serde_json::Value)],
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles the template in `gguf`'s metadata, with its special tokens' texts.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TemplateError> {
        let source = gguf.str("tokenizer.chat_template").ok_or(TemplateError::Missing)?;
        let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap_or_default();
        let text = |key| gguf.u64(key).and_then(|id| tokens.get(usize::try_from(id).ok()?)).map_or("", String::as_str);
        Self::new(source, text("tokenizer.ggml.bos_token_id"), text("tokenizer.ggml.eos_token_id"))
    }

    /// Compiles a template; `bos` and `eos` are what it sees as `bos_token` and `eos_token`.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::TooLong(source.len()));
        }
        guard::check(source)?;
        let environment = on_deep_stack(|| {
            let mut environment = environment();
            let compiled = environment.add_template_owned("chat", python::without_generation_tags(source));
            compiled.map(|()| environment).map_err(|why| TemplateError::Syntax(one_line(&why)))
        })?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The prompt for `messages`; with `add_generation_prompt`, it ends where the assistant's answer begins.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let fuel = fuel(messages.len(), 0);
        self.run(fuel, || Value::from(Serde(messages)), Value::from(()), add_generation_prompt, BTreeMap::new())
    }

    /// The prompt for a conversation with tools, calls of tools, or content in parts.
    pub fn render_conversation(&self, conversation: &Conversation<'_>) -> Result<String, TemplateError> {
        let tools = conversation.tools.map_or(Value::from(()), |tools| Value::from(Serde(tools)));
        let extra = conversation.extra.iter().map(|(name, value)| (*name, Value::from(Serde(value)))).collect();
        let messages = || Value::from(Serde(conversation.messages));
        let fuel = fuel(conversation.messages.len(), conversation.tools.map_or(0, <[_]>::len));
        self.run(fuel, messages, tools, conversation.add_generation_prompt, extra)
    }

    fn run(
        &self,
        fuel: u64,
        messages: impl FnOnce() -> Value + Send,
        tools: Value,
        add_generation_prompt: bool,
        extra: BTreeMap<&str, Value>,
    ) -> Result<String, TemplateError> {
        on_deep_stack(|| {
            let own = minijinja::context! {
                messages => messages(),
                add_generation_prompt,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
                // transformers always defines these; templates ask whether they are none.
                tools,
                documents => Value::from(()),
            };
            let context = minijinja::context! { ..own, ..Value::from(extra) };
            let mut environment = self.environment.clone();
            environment.set_fuel(Some(fuel));
            let mut prompt = Prompt { text: Vec::new(), full: false };
            let template = environment.get_template("chat").map_err(|why| TemplateError::Failed(one_line(&why)))?;
            match template.render_captured_to(context, &mut prompt) {
                Ok(_) => String::from_utf8(prompt.text).map_err(|why| TemplateError::Failed(why.to_string())),
                Err(_) if prompt.full => Err(TemplateError::OutputTooLong),
                Err(why) => Err(failure(&why)),
            }
        })
    }
}

fn fuel(messages: usize, tools: usize) -> u64 {
    let (messages, tools) = (messages as u64, tools as u64);
    FUEL.saturating_add(FUEL_PER_MESSAGE.saturating_mul(messages)).saturating_add(FUEL_PER_TOOL.saturating_mul(tools))
}

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("only flags were set"));
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(python::format);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", python::string);
    environment.add_test("iterable", python::is_iterable);
    environment.add_function("raise_exception", python::raise_exception);
    environment.add_function("strftime_now", python::strftime_now);
    environment
}

fn failure(why: &minijinja::Error) -> TemplateError {
    if why.kind() == ErrorKind::OutOfFuel {
        return TemplateError::Fuel;
    }
    let mut source = why.source();
    while let Some(cause) = source {
        if let Some(python::Raised(message)) = cause.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        source = cause.source();
    }
    TemplateError::Failed(one_line(why))
}

/// An error on one line: messages quote hostile text.
fn one_line(why: &dyn std::fmt::Display) -> String {
    why.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(400).collect()
}

/// Runs `work` on a thread with [`STACK_BYTES`] of stack.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, TemplateError> + Send) -> Result<T, TemplateError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("template".to_owned()).stack_size(STACK_BYTES);
        let running = thread.spawn_scoped(scope, work);
        let running = running.map_err(|why| TemplateError::Failed(format!("no thread for it: {why}")))?;
        running.join().unwrap_or_else(|_| Err(TemplateError::Failed("the template engine panicked".to_owned())))
    })
}

/// Collects the output, up to [`OUTPUT_BYTES_MAX`].
struct Prompt {
    text: Vec<u8>,
    full: bool,
}

impl io::Write for Prompt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > OUTPUT_BYTES_MAX {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
