//! What a well-formed message may hold beyond its types: the checks that whoever receives one runs before using it.

use std::collections::BTreeSet;

use super::embedding::check_vector;
use super::tools::check_calls;
use super::{
    Assign, Beat, ChatMessage, Constraint, End, Generate, Hello, Logprobs, Offer, Prompt, PromptLogprobs, Refusal,
    Sampling, Step, Tools,
};
use crate::limits;

/// A peer's message that breaks the protocol's rules: the link is closed with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Sampling {
    /// Refuses values outside their ranges, NaN included.
    pub fn check(&self) -> Result<(), Refusal> {
        for (param, value, low, high) in [
            ("temperature", self.temperature, 0.0, 2.0),
            ("top_p", self.top_p, f32::MIN_POSITIVE, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE, 2.0),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
            ("typical_p", self.typical_p, f32::MIN_POSITIVE, 1.0),
            ("dry_multiplier", self.dry_multiplier, 0.0, 100.0),
            ("dry_base", self.dry_base, 1.0, 8.0),
            ("xtc_probability", self.xtc_probability, 0.0, 1.0),
            ("xtc_threshold", self.xtc_threshold, 0.0, 1.0),
        ] {
            between(param, value, low, high)?;
        }
        if self.dry_allowed_length == 0 {
            let why = "dry_allowed_length is 0: it must be 1 or more, or nothing could ever be said";
            return Err(Refusal::invalid("dry_allowed_length", why));
        }
        if self.logit_bias.len() > limits::LOGIT_BIAS_MAX {
            return Err(too_many("logit_bias", self.logit_bias.len(), limits::LOGIT_BIAS_MAX, "entries"));
        }
        self.logit_bias.values().try_for_each(|bias| between("logit_bias", *bias, -100.0, 100.0))?;
        if self.allowed_token_ids.len() > limits::ALLOWED_TOKENS_MAX {
            let got = self.allowed_token_ids.len();
            return Err(too_many("allowed_token_ids", got, limits::ALLOWED_TOKENS_MAX, "tokens"));
        }
        Ok(())
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
        check_texts("stop", &self.stop, limits::STOPS_MAX, limits::STOP_BYTES_MAX)?;
        check_texts("bad_words", &self.bad_words, limits::BAD_WORDS_MAX, limits::BAD_WORD_BYTES_MAX)?;
        let breakers = self.dry_sequence_breakers.as_deref().unwrap_or_default();
        let (texts_max, bytes_max) = (limits::DRY_BREAKERS_MAX, limits::DRY_BREAKER_BYTES_MAX);
        check_texts("dry_sequence_breakers", breakers, texts_max, bytes_max)?;
        if self.stop_token_ids.len() > limits::STOP_TOKENS_ASKED_MAX {
            let got = self.stop_token_ids.len();
            return Err(too_many("stop_token_ids", got, limits::STOP_TOKENS_ASKED_MAX, "tokens"));
        }
        for (param, top) in [("top_logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if let Some(top) = top.filter(|top| usize::from(*top) > limits::TOP_LOGPROBS_MAX) {
                return Err(too_many(param, usize::from(top), limits::TOP_LOGPROBS_MAX, "tokens beside each"));
            }
        }
        self.check_tools()?;
        if let Some(constraint) = &self.constraint {
            constraint.check()?;
            if matches!(constraint, Constraint::Calls(_)) {
                return Err(Refusal::invalid("constraint", "calls of tools are asked for by tools"));
            }
            if self.ignore_eos {
                let why = "an output with a constraint ends where it is complete: leave ignore_eos out";
                return Err(Refusal::invalid("ignore_eos", why));
            }
        }
        if self.max_tokens == Some(0) {
            return Err(Refusal::invalid("max_tokens", "max_tokens is 0: ask for at least one token"));
        }
        if let Some(max) = self.max_tokens.filter(|max| *max < self.sampling.min_tokens) {
            let why =
                format!("min_tokens is {} and max_tokens is {max}: it must be at most that", self.sampling.min_tokens);
            return Err(Refusal::invalid("min_tokens", why));
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
                let calls = |m: &ChatMessage| m.calls.iter().map(|c| c.name.len() + c.arguments.len()).sum::<usize>();
                let tools = self.tools.as_ref().map_or(0, Tools::prompt_bytes);
                messages.iter().map(|m| m.content.len() + calls(m)).sum::<usize>() + tools
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

/// Refuses more texts than `texts_max`, empty ones, and such of more than `bytes_max` bytes.
fn check_texts(param: &str, texts: &[String], texts_max: usize, bytes_max: usize) -> Result<(), Refusal> {
    if texts.len() > texts_max {
        return Err(too_many(param, texts.len(), texts_max, "strings"));
    }
    for text in texts {
        if text.is_empty() {
            return Err(Refusal::invalid(param, format!("a string in {param} is empty: leave it out")));
        }
        if text.len() > bytes_max {
            return Err(too_many(param, text.len(), bytes_max, "bytes in a string"));
        }
    }
    Ok(())
}

fn check_chat(messages: &[ChatMessage]) -> Result<(), Refusal> {
    if messages.is_empty() {
        return Err(Refusal::invalid("messages", "there are no messages: send at least one"));
    }
    if messages.len() > limits::CHAT_MESSAGES_MAX {
        return Err(too_many("messages", messages.len(), limits::CHAT_MESSAGES_MAX, "messages"));
    }
    match messages.iter().find(|m| !matches!(m.role.as_str(), "system" | "user" | "assistant" | "tool")) {
        Some(m) => Err(Refusal::invalid(
            "messages",
            format!("role '{}' is not known: use system, user, assistant or tool", m.role.escape_debug()),
        )),
        None => check_calls(messages),
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
            () if self.adapters.len() > limits::ADAPTERS_MAX => {
                Err(Invalid(format!("a replica offers at most {} adapters", limits::ADAPTERS_MAX)))
            }
            () if self.adapters.iter().collect::<BTreeSet<_>>().len() < self.adapters.len() => {
                Err(Invalid("a replica offers an adapter twice".to_owned()))
            }
            () if self.window.sequences > limits::REPLICA_SEQUENCES_MAX as u64 => {
                Err(Invalid(format!("a replica runs at most {} sequences", limits::REPLICA_SEQUENCES_MAX)))
            }
            () => self.numerics.check(),
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
            () if self.cached.len().max(self.evicted.len()) > limits::BLOCK_NEWS_MAX => {
                Err(Invalid(format!("a step tells of more than {} blocks", limits::BLOCK_NEWS_MAX)))
            }
            () if self.items.iter().any(|i| i.tokens.len() > limits::STEP_TOKENS_MAX) => {
                Err(Invalid(format!("a step item has more than {} tokens", limits::STEP_TOKENS_MAX)))
            }
            () if self.items.iter().any(|i| !i.logprobs.is_empty() && i.logprobs.len() != i.tokens.len()) => {
                Err(Invalid("a step item has log-probabilities of some of its tokens".to_owned()))
            }
            () if self.items.iter().any(|i| i.prompt_logprobs.len() > limits::STEP_SCORES_MAX) => {
                Err(Invalid(format!("a step item scores more than {} tokens", limits::STEP_SCORES_MAX)))
            }
            () => self.items.iter().try_for_each(|i| match &i.end {
                Some(End::Embedded(_)) if !i.tokens.is_empty() => {
                    Err(Invalid("a step item has both tokens and a vector".to_owned()))
                }
                Some(End::Embedded(vector)) => check_vector(vector),
                _ => Ok(()),
            }),
        }?;
        self.items.iter().flat_map(|i| i.logprobs.iter().chain(&i.prompt_logprobs)).try_for_each(Logprobs::check)
    }
}

impl Beat {
    /// Refuses a step that nobody would wait for.
    pub fn check(&self) -> Result<(), Invalid> {
        match self.due() > limits::STEP_DUE_MAX {
            true => Err(Invalid(format!("a step that is to take {} ms", self.due_ms))),
            false => Ok(()),
        }
    }
}

impl Logprobs {
    /// Refuses what are no logarithms of probabilities.
    fn check(&self) -> Result<(), Invalid> {
        // Written so that NaN fails.
        let sound = |logprob: f32| logprob <= 0.0;
        match () {
            () if self.top.len() > limits::TOP_LOGPROBS_MAX => {
                Err(Invalid(format!("more than {} most probable tokens", limits::TOP_LOGPROBS_MAX)))
            }
            () if !sound(self.logprob) || !self.top.iter().all(|(_, logprob)| sound(*logprob)) => {
                Err(Invalid("a logarithm of a probability is above 0".to_owned()))
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
            () if self.bad_words.len() > limits::BAD_WORD_WAYS_MAX
                || self.bad_words.iter().any(|w| w.len() > limits::BAD_WORD_TOKENS_MAX) =>
            {
                Err(Invalid("too many bad words, or too long ones".to_owned()))
            }
            () if self.dry_breakers.len() > limits::DRY_BREAKER_TOKENS_MAX || !self.dry_breakers.is_sorted() => {
                Err(Invalid("too many tokens that end repetitions, or not sorted".to_owned()))
            }
            () => self.check_logprobs(),
        }?;
        let constraint = self.constraint.as_ref().map_or(Ok(()), Constraint::check);
        constraint.and(self.sampling.check()).map_err(|r| Invalid(r.message))
    }

    fn check_logprobs(&self) -> Result<(), Invalid> {
        let tops = [self.logprobs, self.prompt_logprobs.map(|p| p.top)];
        let sound = |p: PromptLogprobs| {
            let prompt = self.prompt_tokens as usize;
            (1..=prompt).contains(&(p.from as usize)) && prompt <= limits::PROMPT_LOGPROBS_TOKENS_MAX
        };
        match () {
            () if tops.into_iter().flatten().any(|top| usize::from(top) > limits::TOP_LOGPROBS_MAX) => {
                Err(Invalid(format!("more than {} most probable tokens", limits::TOP_LOGPROBS_MAX)))
            }
            () if !self.prompt_logprobs.is_none_or(sound) => {
                Err(Invalid("log-probabilities of a prompt that is too long, or from beyond it".to_owned()))
            }
            () => Ok(()),
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

pub(super) fn too_many(param: &str, got: usize, max: usize, what: &str) -> Refusal {
    Refusal::invalid(param, format!("{param} has {got} {what}: at most {max} are accepted"))
}
