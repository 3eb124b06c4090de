//! What a well-formed message may hold beyond its types: the checks that whoever receives one runs before using it.

use super::{Assign, ChatMessage, Constraint, Generate, Hello, Offer, Prompt, Refusal, RefusalCode, Sampling, Step};
use crate::limits;

/// A peer's message that breaks the protocol's rules: the link is closed with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Sampling {
    /// Refuses values outside their ranges, NaN included.
    pub fn check(&self) -> Result<(), Refusal> {
        between("temperature", self.temperature, 0.0, 2.0)?;
        between("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        between("min_p", self.min_p, 0.0, 1.0)?;
        between("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE, 2.0)?;
        between("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        if self.logit_bias.len() > limits::LOGIT_BIAS_MAX {
            return Err(too_many("logit_bias", self.logit_bias.len(), limits::LOGIT_BIAS_MAX, "entries"));
        }
        self.logit_bias.values().try_for_each(|bias| between("logit_bias", *bias, -100.0, 100.0))
    }
}

impl Generate {
    /// Refuses what no model and no account could make good.
    pub fn check(&self) -> Result<(), Refusal> {
        self.sampling.check()?;
        self.check_prompt()?;
        if self.model.len() > limits::NAME_BYTES_MAX {
            return Err(too_many("model", self.model.len(), limits::NAME_BYTES_MAX, "bytes"));
        }
        if self.stop.len() > limits::STOPS_MAX {
            return Err(too_many("stop", self.stop.len(), limits::STOPS_MAX, "strings"));
        }
        for stop in &self.stop {
            if stop.is_empty() {
                return Err(Refusal::invalid("stop", "a stop string is empty: leave it out"));
            }
            if stop.len() > limits::STOP_BYTES_MAX {
                return Err(too_many("stop", stop.len(), limits::STOP_BYTES_MAX, "bytes in a string"));
            }
        }
        if let Some(constraint) = &self.constraint {
            constraint.check()?;
            if self.ignore_eos {
                let why = "an output with a constraint ends where it is complete: leave ignore_eos out";
                return Err(Refusal::invalid("ignore_eos", why));
            }
        }
        if self.max_tokens == Some(0) {
            return Err(Refusal::invalid("max_tokens", "max_tokens is 0: ask for at least one token"));
        }
        match &self.max_price {
            Some(price) if !price.is_sane() => Err(Refusal::invalid("max_price", "max_price is absurdly high")),
            _ => Ok(()),
        }
    }

    fn check_prompt(&self) -> Result<(), Refusal> {
        let bytes = match &self.prompt {
            Prompt::Chat(messages) => {
                check_chat(messages)?;
                messages.iter().map(|m| m.content.len()).sum()
            }
            Prompt::Text(text) if text.is_empty() => return Err(Refusal::invalid("prompt", "the prompt is empty")),
            Prompt::Text(text) => text.len(),
            Prompt::Tokens(tokens) if tokens.is_empty() => {
                return Err(Refusal::invalid("prompt", "the prompt is empty"));
            }
            Prompt::Tokens(tokens) if tokens.len() > limits::PROMPT_TOKENS_MAX => {
                return Err(too_many("prompt", tokens.len(), limits::PROMPT_TOKENS_MAX, "tokens"));
            }
            Prompt::Tokens(_) => 0,
        };
        match bytes > limits::PROMPT_BYTES_MAX {
            true => Err(too_many("prompt", bytes, limits::PROMPT_BYTES_MAX, "bytes")),
            false => Ok(()),
        }
    }
}

fn check_chat(messages: &[ChatMessage]) -> Result<(), Refusal> {
    if messages.is_empty() {
        return Err(Refusal::invalid("messages", "there are no messages: send at least one"));
    }
    if messages.len() > limits::CHAT_MESSAGES_MAX {
        return Err(too_many("messages", messages.len(), limits::CHAT_MESSAGES_MAX, "messages"));
    }
    match messages.iter().find(|m| !matches!(m.role.as_str(), "system" | "user" | "assistant")) {
        Some(m) => Err(Refusal::invalid(
            "messages",
            format!("role '{}' is not known: use system, user or assistant", m.role.escape_debug()),
        )),
        None => Ok(()),
    }
}

impl Hello {
    /// Refuses names that are too long.
    pub fn check(&self) -> Result<(), Invalid> {
        match self.name.len() <= limits::NAME_BYTES_MAX && self.program.len() <= limits::NAME_BYTES_MAX {
            true => Ok(()),
            false => Err(Invalid(format!("a miner's name has at most {} bytes", limits::NAME_BYTES_MAX))),
        }
    }
}

impl Offer {
    /// Refuses what would make arithmetic on windows or prices meaningless.
    pub fn check(&self) -> Result<(), Invalid> {
        match () {
            () if !self.ask.is_sane() => Err(Invalid("the price asked is absurdly high".to_owned())),
            () if self.block_tokens == 0 || self.block_tokens > 4_096 => {
                Err(Invalid(format!("a KV block of {} tokens makes no sense", self.block_tokens)))
            }
            () if self.context_tokens == 0 => Err(Invalid("a context of 0 tokens makes no sense".to_owned())),
            () if self.window.sequences > limits::REPLICA_SEQUENCES_MAX as u64 => {
                Err(Invalid(format!("a replica runs at most {} sequences", limits::REPLICA_SEQUENCES_MAX)))
            }
            () => Ok(()),
        }
    }
}

impl Step {
    /// Refuses more items or tokens than a step can have.
    pub fn check(&self) -> Result<(), Invalid> {
        match () {
            () if self.items.len() > 2 * limits::REPLICA_SEQUENCES_MAX => {
                Err(Invalid("a step names more sequences than a replica can run".to_owned()))
            }
            () if self.items.iter().any(|i| i.tokens.len() > limits::STEP_TOKENS_MAX) => {
                Err(Invalid(format!("a step item has more than {} tokens", limits::STEP_TOKENS_MAX)))
            }
            () => Ok(()),
        }
    }
}

impl Assign {
    /// Refuses what the rest of the message contradicts.
    pub fn check(&self) -> Result<(), Invalid> {
        let known = self.tokens.len();
        match () {
            () if known == 0 || known > limits::PROMPT_TOKENS_MAX => {
                Err(Invalid(format!("an assignment of {known} tokens")))
            }
            () if self.prompt_tokens as usize > known => {
                Err(Invalid("the prompt is longer than the tokens".to_owned()))
            }
            () if self.max_new == 0 || self.max_new as usize > limits::PROMPT_TOKENS_MAX => {
                Err(Invalid(format!("{} new tokens", self.max_new)))
            }
            () if self.stop_tokens.len() > limits::STOP_TOKENS_MAX => Err(Invalid("too many stop tokens".to_owned())),
            () => {
                let constraint = self.constraint.as_ref().map_or(Ok(()), Constraint::check);
                constraint.and(self.sampling.check()).map_err(|r| Invalid(r.message))
            }
        }
    }
}

fn between(param: &str, value: f32, low: f32, high: f32) -> Result<(), Refusal> {
    // Written so that NaN fails.
    if value >= low && value <= high {
        return Ok(());
    }
    let range = match low == f32::MIN_POSITIVE {
        true => format!("above 0 and at most {high}"),
        false => format!("from {low} to {high}"),
    };
    Err(Refusal::invalid(param, format!("{param} is {value}: it must be {range}")))
}

fn too_many(param: &str, got: usize, max: usize, what: &str) -> Refusal {
    Refusal {
        code: RefusalCode::InvalidRequest,
        message: format!("{param} has {got} {what}: at most {max} are accepted"),
        param: Some(param.to_owned()),
    }
}
