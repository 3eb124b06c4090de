//! From the market's replies to OpenAI's JSON, whole or in pieces: pure. Never waits, never counts tokens of its own.

use std::borrow::Cow;

use cuckoo_wire::message::{CallDelta, FinishReason, Refusal, RefusalCode, Reply, RequestId, TokenLogprobs, Usage};
use serde::Serialize;

use super::decimal;
use super::failure::Failure;
use super::request::{Show, Surface};

mod calls;
mod logprobs;

use self::calls::{Call, CallPiece};
use self::logprobs::{Offset, PromptTokens, Shown};

/// The last event of a stream that came to its end.
const DONE: &str = "[DONE]";

/// What every piece of an answer repeats.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    surface: Surface,
    show: Show,
    id: String,
    created_unix: u64,
    model: String,
    system_fingerprint: String,
}

/// A whole answer, as far as it has come.
#[derive(Debug)]
pub(super) struct Whole {
    envelope: Envelope,
    text: String,
    calls: Vec<Call>,
    tokens: bool,
    prompt: Vec<TokenLogprobs>,
    output: Vec<TokenLogprobs>,
}

/// An answer in pieces: takes replies, gives the data of server-sent events.
#[derive(Debug)]
pub(super) struct Pieces {
    envelope: Envelope,
    include_usage: bool,
    tokens: bool,
    ended: bool,
    /// A prompt that is echoed with log-probabilities: it is sent when all of it is here.
    echo: Option<(String, Vec<TokenLogprobs>)>,
    offset: Offset,
}

impl Envelope {
    /// Of a request that was accepted.
    pub(super) fn new(surface: Surface, show: Show, request: RequestId, model: String, created_unix: u64) -> Self {
        let prefix = match surface {
            Surface::Chat => "chatcmpl",
            Surface::Completion => "cmpl",
        };
        let request = request.to_string();
        let id = format!("{prefix}-{}", request.trim_start_matches("req_"));
        // Equal seeds promise equal text as long as this stays the same: the model and the program that ran it.
        let system_fingerprint = format!("cuckoo-{}-{model}", env!("CARGO_PKG_VERSION"));
        Self { surface, show, id, created_unix, model, system_fingerprint }
    }

    fn body<'a>(&'a self, choices: Vec<Choice<'a>>, usage: UsageField) -> Body<'a> {
        let object = match (self.surface, choices.first()) {
            (Surface::Completion, _) => "text_completion",
            (Surface::Chat, Some(Choice { content: Content::Message { .. }, .. })) => "chat.completion",
            (Surface::Chat, _) => "chat.completion.chunk",
        };
        Body {
            id: &self.id,
            object,
            created: self.created_unix,
            model: &self.model,
            system_fingerprint: &self.system_fingerprint,
            choices,
            usage,
            prompt_logprobs: None,
        }
    }

    /// What the answer says of these tokens, if it says anything.
    fn shown(&self, tokens: &[TokenLogprobs], offset: &mut Offset) -> Option<Shown> {
        let top = self.show.logprobs?;
        Some(match self.surface {
            Surface::Chat => logprobs::chat(tokens, top),
            Surface::Completion => logprobs::completion(tokens, top, offset),
        })
    }

    fn piece(
        &self,
        delta: Delta<'_>,
        logprobs: Option<Shown>,
        finish_reason: Option<&'static str>,
        usage: UsageField,
    ) -> String {
        let content = match self.surface {
            Surface::Chat => Content::Delta { delta },
            Surface::Completion => Content::Text { text: Cow::Borrowed(delta.content.unwrap_or_default()) },
        };
        let choice = Choice { index: 0, content, logprobs, prompt_logprobs: None, finish_reason };
        line(&self.body(vec![choice], usage))
    }
}

impl Whole {
    /// Nothing yet.
    pub(super) fn new(envelope: Envelope) -> Self {
        Self { envelope, text: String::new(), calls: Vec::new(), tokens: false, prompt: Vec::new(), output: Vec::new() }
    }

    /// Takes the next reply; `None` is the end of the market's channel. Gives the response's body at the end.
    pub(super) fn take(&mut self, reply: Option<Reply>) -> Result<Option<String>, Failure> {
        match step(reply) {
            Step::Nothing => Ok(None),
            Step::Prompt { text, logprobs } => {
                self.text.push_str(&text);
                self.prompt.extend(logprobs);
                Ok(None)
            }
            Step::Text { text, tokens, logprobs, calls } => {
                self.text.push_str(&text);
                calls::gather(&mut self.calls, calls);
                self.tokens |= tokens;
                self.output.extend(logprobs);
                Ok(None)
            }
            Step::End { reason, usage } => Ok(Some(self.body(reason, &usage))),
            Step::Failed(refusal) => Err(failure(refusal, self.tokens)),
        }
    }

    fn body(&self, reason: FinishReason, usage: &Usage) -> String {
        let text = Cow::Borrowed(self.text.as_str());
        let content = match self.envelope.surface {
            Surface::Chat => {
                // Whoever only called tools has said nothing.
                let content = Some(text).filter(|text| self.calls.is_empty() || !text.is_empty());
                Content::Message {
                    message: Message { role: "assistant", content, refusal: (), tool_calls: &self.calls },
                }
            }
            Surface::Completion => Content::Text { text },
        };
        let show = self.envelope.show;
        let tokens = match show.echo {
            true => &[self.prompt.as_slice(), &self.output].concat(),
            false => &self.output,
        };
        let logprobs = self.envelope.shown(tokens, &mut Offset::default());
        let of_prompt = show.prompt_logprobs.map(|top| logprobs::prompt(&self.prompt, top));
        let (of_body, of_choice) = match self.envelope.surface {
            Surface::Chat => (of_prompt, None),
            Surface::Completion => (None, of_prompt),
        };
        let finish_reason = Some(word(reason));
        let choice = Choice { index: 0, content, logprobs, prompt_logprobs: of_choice, finish_reason };
        let body = self.envelope.body(vec![choice], Some(Some(usage.into())));
        line(&Body { prompt_logprobs: of_body, ..body })
    }
}

impl Pieces {
    /// Nothing yet.
    pub(super) fn new(envelope: Envelope, include_usage: bool) -> Self {
        let Show { logprobs, echo, .. } = envelope.show;
        let echo = (echo && logprobs.is_some()).then(Default::default);
        Self { envelope, include_usage, tokens: false, ended: false, echo, offset: Offset::default() }
    }

    /// What is sent before the first token: a chat's role.
    pub(super) fn opening(&self) -> Vec<String> {
        match self.envelope.surface {
            Surface::Chat => {
                let delta = Delta { role: Some("assistant"), content: Some(""), refusal: Some(()), ..Delta::default() };
                vec![self.envelope.piece(delta, None, None, self.no_usage())]
            }
            Surface::Completion => Vec::new(),
        }
    }

    /// Takes the next reply; `None` is the end of the market's channel. Gives the events to send.
    pub(super) fn take(&mut self, reply: Option<Reply>) -> Vec<String> {
        match step(reply) {
            Step::Nothing => Vec::new(),
            Step::Prompt { text, logprobs } => match &mut self.echo {
                Some(echo) => {
                    echo.0.push_str(&text);
                    echo.1.extend(logprobs);
                    Vec::new()
                }
                None => self.text(&text, &[]),
            },
            Step::Text { text, tokens, logprobs, calls } => {
                self.tokens |= tokens;
                let mut events = self.echoed();
                events.extend(self.text(&text, &logprobs));
                events.extend(calls.iter().flat_map(|call| self.call(call)));
                events
            }
            Step::End { reason, usage } => {
                self.ended = true;
                let mut events = self.echoed();
                events.push(self.envelope.piece(Delta::default(), None, Some(word(reason)), self.no_usage()));
                if self.include_usage {
                    events.push(line(&self.envelope.body(Vec::new(), Some(Some((&usage).into())))));
                }
                events.push(DONE.to_owned());
                events
            }
            Step::Failed(refusal) => {
                self.ended = true;
                vec![line(&failure(refusal, self.tokens).body())]
            }
        }
    }

    /// More text, or tokens whose text is held back.
    fn text(&mut self, text: &str, tokens: &[TokenLogprobs]) -> Vec<String> {
        if text.is_empty() && tokens.is_empty() {
            return Vec::new();
        }
        let shown = self.envelope.shown(tokens, &mut self.offset);
        vec![self.envelope.piece(Delta::of(text), shown, None, self.no_usage())]
    }

    /// More of a call.
    fn call(&self, call: &CallDelta) -> Vec<String> {
        let piece = |piece| {
            let delta = Delta { tool_calls: Some([piece]), ..Delta::default() };
            self.envelope.piece(delta, None, None, self.no_usage())
        };
        calls::pieces(call).into_iter().map(piece).collect()
    }

    /// The prompt, once: nothing more of it comes after the first token.
    fn echoed(&mut self) -> Vec<String> {
        let (text, tokens) = self.echo.take().unwrap_or_default();
        self.text(&text, &tokens)
    }

    /// Whether nothing comes any more.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// OpenAI has `"usage": null` in every other event of a stream whose last one holds the usage, and no such key in
    /// other streams.
    fn no_usage(&self) -> UsageField {
        self.include_usage.then_some(None)
    }
}

/// What a reply means to an answer that has begun.
enum Step {
    Nothing,
    Prompt { text: String, logprobs: Vec<TokenLogprobs> },
    Text { text: String, tokens: bool, logprobs: Vec<TokenLogprobs>, calls: Vec<CallDelta> },
    End { reason: FinishReason, usage: Usage },
    Failed(Refusal),
}

fn step(reply: Option<Reply>) -> Step {
    match reply {
        Some(Reply::Accepted { .. }) => Step::Nothing,
        Some(Reply::Prompt { text, logprobs }) => Step::Prompt { text, logprobs },
        Some(Reply::Delta { tokens, text, logprobs, calls, .. }) => {
            Step::Text { text, tokens: !tokens.is_empty(), logprobs, calls }
        }
        Some(Reply::Finished { reason, usage }) => Step::End { reason, usage },
        Some(Reply::Refused(refusal)) => Step::Failed(refusal),
        Some(Reply::Models(_) | Reply::Wallet(_) | Reply::Embedding { .. } | Reply::Explained(_)) => {
            Step::Failed(Refusal::new(RefusalCode::Internal, "the market answered another question: report this"))
        }
        None => Step::Failed(Refusal::new(RefusalCode::Internal, "the answer broke off without a reason: report this")),
    }
}

fn failure(refusal: Refusal, tokens: bool) -> Failure {
    match tokens {
        true => Failure::from(refusal).after_tokens(),
        false => Failure::from(refusal),
    }
}

fn word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

fn line(body: &impl Serialize) -> String {
    serde_json::to_string(body).expect("the answer's types have string keys only")
}

/// Absent, `null`, or there.
type UsageField = Option<Option<UsageBody>>;

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<Choice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: UsageField,
    /// vLLM's, of a chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptTokens>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    #[serde(flatten)]
    content: Content<'a>,
    logprobs: Option<Shown>,
    /// vLLM's, of a completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptTokens>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Message { message: Message<'a> },
    Delta { delta: Delta<'a> },
    Text { text: Cow<'a, str> },
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Option<Cow<'a, str>>,
    refusal: (),
    #[serde(skip_serializing_if = "<[Call]>::is_empty")]
    tool_calls: &'a [Call],
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallPiece<'a>; 1]>,
}

impl<'a> Delta<'a> {
    fn of(text: &'a str) -> Self {
        Self { content: Some(text), ..Self::default() }
    }
}

#[derive(Serialize)]
pub(super) struct UsageBody {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
    /// Credits, as a decimal string.
    cost: String,
    x_cuckoo: Shares,
}

/// Who got the cost, in nano-credits.
#[derive(Serialize)]
struct Shares {
    miner: u64,
    author: u64,
    network: u64,
    migrations: u32,
}

impl From<&Usage> for UsageBody {
    fn from(usage: &Usage) -> Self {
        let &Usage { prompt_tokens, completion_tokens, cost, miner, author, network, migrations } = usage;
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: u64::from(prompt_tokens) + u64::from(completion_tokens),
            cost: decimal::credits(cost),
            x_cuckoo: Shares { miner, author, network, migrations },
        }
    }
}

#[cfg(test)]
mod tests;
