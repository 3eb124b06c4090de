//! From OpenAI's JSON to a request for tokens: pure, and strict about whatever would change the answer. Never drops a
//! field in silence: what it does not know it lists, what it cannot honour it refuses.

use std::collections::BTreeMap;

use cuckoo_wire::limits;
use cuckoo_wire::message::{ApiKey, Generate, Price, Prompt, Refusal, Sampling};
use serde_json::{Map, Value};

use super::decimal;
use super::fields::{self, Fields};
use super::ignored::Ignored;

mod prompt;
mod structured;
mod unsupported;

/// The parameters that this door understands besides model and prompt, as `/v1/models` lists them.
pub(super) const SUPPORTED_PARAMETERS: [&str; 23] = [
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
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
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
    /// Fields that were not used.
    pub(super) ignored: Ignored,
    /// The field that holds the constraint, if there is one.
    pub(super) constraint_field: Option<String>,
}

impl Asked {
    /// What renames refusals once this has been taken apart.
    pub(super) fn names(&self, surface: Surface) -> Names {
        Names { surface, constraint: self.constraint_field.clone() }
    }
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
    let (constraint, constraint_field) = structured::constraint(&mut fields, &mut ignored)?.unzip();
    let generate = Generate {
        api_key,
        model,
        prompt,
        sampling: sampling(&mut fields)?,
        stop: fields.texts("stop")?,
        max_tokens: max_tokens(&mut fields)?,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        max_price: max_price(&mut fields, &mut ignored)?,
        constraint,
    };
    let names = Names { surface, constraint: constraint_field.clone() };
    generate.check().map_err(|refusal| names.rename(refusal))?;
    fields.rest(&mut ignored);
    Ok(Asked { generate, stream, include_usage, ignored, constraint_field })
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
    })
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
fn max_price(fields: &mut Fields, ignored: &mut Ignored) -> Result<Option<Price>, Refusal> {
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
