//! From OpenAI's JSON to a request for tokens: pure, and strict about whatever would change the answer. Never drops a
//! field in silence: what it does not know it lists, what it cannot honour it refuses.

use std::collections::{BTreeMap, BTreeSet};

use cuckoo_wire::limits;
use cuckoo_wire::message::{ApiKey, Generate, Price, Prompt, Refusal, Sampling, ServiceClass};
use serde_json::{Map, Value};

use super::decimal;
use super::fields::{self, Fields};
use super::ignored::Ignored;

mod prompt;
mod structured;
mod tools;
mod unsupported;

/// The parameters that this door understands besides model and prompt, as `/v1/models` lists them.
pub(super) const SUPPORTED_PARAMETERS: &[&str] = &[
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "logit_bias",
    "stream",
    "stream_options",
    "n",
    "ignore_eos",
    "max_price",
    "typical_p",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "xtc_probability",
    "xtc_threshold",
    "min_tokens",
    "allowed_token_ids",
    "bad_words",
    "stop_token_ids",
    "include_stop_str_in_output",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "echo",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
];

/// Which of the two ways to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Surface {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

impl Surface {
    /// A refusal with what is continued by its name in this interface: others do not know through which door it came.
    pub(super) fn rename(self, mut refusal: Refusal) -> Refusal {
        if matches!(refusal.param.as_deref(), Some("messages" | "prompt")) {
            let name = match self {
                Self::Chat => "messages",
                Self::Completion => "prompt",
            };
            refusal.param = Some(name.to_owned());
        }
        refusal
    }
}

/// A request for tokens, and how the answer is to be told.
#[derive(Debug)]
pub(super) struct Asked {
    /// What the market is asked for; its values are in range.
    pub(super) generate: Generate,
    /// As server-sent events.
    pub(super) stream: bool,
    /// With a last event that holds the usage.
    pub(super) include_usage: bool,
    /// With log-probabilities, or the prompt.
    pub(super) show: Show,
    /// Fields that were not used.
    pub(super) ignored: Ignored,
    /// For refusals that come later.
    pub(super) names: Names,
}

/// What the parts of a request are called in the interface that it came through.
#[derive(Debug)]
pub(super) struct Names {
    surface: Surface,
    constraint: Option<String>,
}

impl Names {
    /// A refusal with the field at fault by its name in this interface.
    pub(super) fn rename(&self, refusal: Refusal) -> Refusal {
        match (&self.constraint, refusal.param.as_deref()) {
            (Some(field), Some("constraint")) => {
                let message = format!("{field} cannot be used: {}", refusal.message);
                Refusal { param: Some(field.clone()), message, ..refusal }
            }
            _ => self.surface.rename(refusal),
        }
    }
}

/// What an answer holds besides its output's text; numbers are how many tokens are named beside each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Show {
    /// Log-probabilities of what is in the text.
    pub(super) logprobs: Option<u8>,
    /// Log-probabilities of the prompt, as vLLM has them.
    pub(super) prompt_logprobs: Option<u8>,
    /// The prompt, before the output.
    pub(super) echo: bool,
}

/// Reads a request's body. Errors name the field at fault.
pub(super) fn translate(surface: Surface, body: Map<String, Value>, api_key: ApiKey) -> Result<Asked, Refusal> {
    let mut fields = Fields::of_body(body);
    let mut ignored = Ignored::default();
    unsupported::refuse(&mut fields)?;
    let model = match fields.text("model")? {
        Some(model) if !model.is_empty() => model,
        _ => return Err(Refusal::invalid("model", "model is missing: name one of those that /v1/models lists")),
    };
    let prompt = match surface {
        Surface::Chat => Prompt::Chat(prompt::messages(&mut fields, &mut ignored)?),
        Surface::Completion => prompt::completion(&mut fields)?,
    };
    let (stream, include_usage) = streaming(&mut fields, &mut ignored)?;
    let (constraint, field) = structured::constraint(&mut fields, &mut ignored)?.unzip();
    let tools = tools::tools(&mut fields, &mut ignored)?;
    let show = show(surface, &mut fields, stream)?;
    let generate = Generate {
        api_key,
        model,
        prompt,
        sampling: sampling(&mut fields)?,
        stop: fields.texts("stop")?.unwrap_or_default(),
        max_tokens: max_tokens(&mut fields)?,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        max_price: max_price(&mut fields, &mut ignored)?,
        stop_token_ids: fields.counts("stop_token_ids")?.unwrap_or_default(),
        include_stop: fields.flag("include_stop_str_in_output")?.unwrap_or(false),
        bad_words: fields.texts("bad_words")?.unwrap_or_default(),
        dry_sequence_breakers: fields.texts("dry_sequence_breakers")?,
        logprobs: show.logprobs,
        // What is echoed is scored too.
        prompt_logprobs: show.prompt_logprobs.max(show.logprobs.filter(|_| show.echo)),
        echo: show.echo,
        constraint,
        tools,
        class: class(&mut fields, &mut ignored)?,
    };
    let names = Names { surface, constraint: field };
    generate.check().map_err(|refusal| names.rename(refusal))?;
    fields.rest(&mut ignored);
    Ok(Asked { generate, stream, include_usage, show, ignored, names })
}

/// OpenAI's words for how urgent a request is. `scale` is about a contract, and `auto` about a project's settings.
fn class(fields: &mut Fields, ignored: &mut Ignored) -> Result<ServiceClass, Refusal> {
    let field = "service_tier";
    match fields.text(field)?.as_deref() {
        None | Some("auto" | "default") => Ok(ServiceClass::Standard),
        Some("priority") => Ok(ServiceClass::Interactive),
        Some("flex") => Ok(ServiceClass::Batch),
        Some("scale") => {
            ignored.add(field);
            Ok(ServiceClass::Standard)
        }
        Some(other) => Err(Refusal::invalid(
            field,
            format!("service_tier '{}' is not known: use auto, default, priority or flex", other.escape_debug()),
        )),
    }
}

/// A chat has `logprobs: true` and `top_logprobs: n`, a completion `logprobs: n`; either may have vLLM's `prompt_logprobs`.
fn show(surface: Surface, fields: &mut Fields, stream: bool) -> Result<Show, Refusal> {
    let logprobs = match surface {
        Surface::Completion => top(fields, "logprobs")?,
        Surface::Chat => {
            let wanted = fields.flag("logprobs")?.unwrap_or(false);
            match (wanted, top(fields, "top_logprobs")?) {
                (true, top) => Some(top.unwrap_or(0)),
                (false, None | Some(0)) => None,
                (false, Some(_)) => {
                    return Err(Refusal::invalid("top_logprobs", "top_logprobs needs \"logprobs\": true"));
                }
            }
        }
    };
    if surface == Surface::Completion && top(fields, "top_logprobs")?.is_some_and(|top| top > 0) {
        return Err(Refusal::invalid("top_logprobs", "top_logprobs is for chats: send \"logprobs\" with that number"));
    }
    let echo = fields.flag("echo")?.unwrap_or(false);
    if echo && surface == Surface::Chat {
        return Err(Refusal::invalid("echo", "echo is not supported for chats: leave it out, or ask for a completion"));
    }
    let prompt_logprobs = top(fields, "prompt_logprobs")?;
    if prompt_logprobs.is_some() && stream {
        let why = "prompt_logprobs is not supported with \"stream\": true: ask for a whole answer";
        return Err(Refusal::invalid("prompt_logprobs", why));
    }
    Ok(Show { logprobs, prompt_logprobs, echo })
}

/// How many tokens to name beside each.
fn top(fields: &mut Fields, name: &str) -> Result<Option<u8>, Refusal> {
    let max = limits::TOP_LOGPROBS_MAX;
    match fields.count(name)? {
        None => Ok(None),
        Some(top) => match u8::try_from(top).ok().filter(|top| usize::from(*top) <= max) {
            Some(top) => Ok(Some(top)),
            None => Err(Refusal::invalid(name, format!("{name} is {top}: at most {max} tokens are named beside each"))),
        },
    }
}

fn sampling(fields: &mut Fields) -> Result<Sampling, Refusal> {
    let usual = Sampling::default();
    Ok(Sampling {
        temperature: fields.number("temperature")?.unwrap_or(usual.temperature),
        top_k: fields.count("top_k")?.unwrap_or(usual.top_k),
        top_p: fields.number("top_p")?.unwrap_or(usual.top_p),
        min_p: fields.number("min_p")?.unwrap_or(usual.min_p),
        repetition_penalty: fields.number("repetition_penalty")?.unwrap_or(usual.repetition_penalty),
        presence_penalty: fields.number("presence_penalty")?.unwrap_or(usual.presence_penalty),
        frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(usual.frequency_penalty),
        logit_bias: logit_bias(fields)?,
        seed: fields.seed("seed")?,
        typical_p: fields.number("typical_p")?.unwrap_or(usual.typical_p),
        dry_multiplier: fields.number("dry_multiplier")?.unwrap_or(usual.dry_multiplier),
        dry_base: fields.number("dry_base")?.unwrap_or(usual.dry_base),
        dry_allowed_length: fields.count("dry_allowed_length")?.unwrap_or(usual.dry_allowed_length),
        dry_penalty_last_n: dry_penalty_last_n(fields)?.unwrap_or(usual.dry_penalty_last_n),
        xtc_probability: fields.number("xtc_probability")?.unwrap_or(usual.xtc_probability),
        xtc_threshold: fields.number("xtc_threshold")?.unwrap_or(usual.xtc_threshold),
        min_tokens: fields.count("min_tokens")?.unwrap_or(usual.min_tokens),
        allowed_token_ids: allowed_token_ids(fields)?,
    })
}

/// -1 is everything, as elsewhere.
fn dry_penalty_last_n(fields: &mut Fields) -> Result<Option<u32>, Refusal> {
    match fields.take("dry_penalty_last_n") {
        None => Ok(None),
        Some(value) if value.as_i64() == Some(-1) => Ok(Some(u32::MAX)),
        Some(value) => fields::count("dry_penalty_last_n", &value).map(Some),
    }
}

fn allowed_token_ids(fields: &mut Fields) -> Result<BTreeSet<u32>, Refusal> {
    match fields.counts("allowed_token_ids")? {
        None => Ok(BTreeSet::new()),
        Some(tokens) if tokens.is_empty() => {
            let why = "allowed_token_ids is empty, so nothing could be said: name tokens or leave it out";
            Err(Refusal::invalid("allowed_token_ids", why))
        }
        Some(tokens) => Ok(tokens.into_iter().collect()),
    }
}

fn logit_bias(fields: &mut Fields) -> Result<BTreeMap<u32, f32>, Refusal> {
    let entries = match fields.take("logit_bias") {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(fields::wrong("logit_bias", "an object from token ids to numbers", &other)),
    };
    let bias = |(key, value): (String, Value)| match key.parse::<u32>() {
        // One spelling for each id: otherwise "7" and "07" would silently overrule one another.
        Ok(token) if token.to_string() == key => Ok((token, fields::number("logit_bias", &value)?)),
        _ => {
            let key = fields::quoted(&Value::String(key));
            Err(Refusal::invalid("logit_bias", format!("logit_bias has the key {key}: keys are token ids, as digits")))
        }
    };
    entries.into_iter().map(bias).collect()
}

/// `max_completion_tokens` is the newer name of `max_tokens`.
fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, Refusal> {
    let named = |name: &str, value: Option<u32>| match value {
        Some(0) => Err(Refusal::invalid(name, format!("{name} is 0: ask for at least one token"))),
        value => Ok(value),
    };
    let older = named("max_tokens", fields.count("max_tokens")?)?;
    let newer = named("max_completion_tokens", fields.count("max_completion_tokens")?)?;
    match (older, newer) {
        (Some(a), Some(b)) if a != b => Err(Refusal::invalid(
            "max_completion_tokens",
            format!("max_tokens is {a} and max_completion_tokens is {b}: send one of them"),
        )),
        (older, newer) => Ok(newer.or(older)),
    }
}

/// Whether to stream, and whether with usage.
fn streaming(fields: &mut Fields, ignored: &mut Ignored) -> Result<(bool, bool), Refusal> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let Some(options) = fields.take("stream_options") else { return Ok((stream, false)) };
    if !stream {
        return Err(Refusal::invalid("stream_options", "stream_options needs \"stream\": true"));
    }
    let mut options = Fields::nested("stream_options", options)?;
    let include_usage = options.flag("include_usage")?.unwrap_or(false);
    options.rest(ignored);
    Ok((stream, include_usage))
}

/// The highest price, given in credits per million tokens. A part that is left out is not limited.
pub(super) fn max_price(fields: &mut Fields, ignored: &mut Ignored) -> Result<Option<Price>, Refusal> {
    let Some(price) = fields.take("max_price") else { return Ok(None) };
    let mut parts = Fields::nested("max_price", price)?;
    let mut part = |name: &str| match parts.take(name) {
        None => Ok(limits::PRICE_PER_MTOK_MAX),
        Some(value) => decimal::nano_credits(&value).map_err(|error| {
            let path = parts.path_of(name);
            Refusal::invalid(&path, format!("{path} {error}"))
        }),
    };
    let price = Price { input_per_mtok: part("prompt")?, output_per_mtok: part("completion")? };
    parts.rest(ignored);
    Ok(Some(price))
}

#[cfg(test)]
mod tests;
