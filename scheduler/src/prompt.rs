//! From what a developer sent to the tokens that are billed: template, tokenizer, and whether it all fits.

use std::sync::Arc;

use cuckoo_wire::message::{Prompt, Refusal, RefusalCode, Sampling};

use crate::catalog::Model;
use crate::market::Market;

/// Renders and tokenizes, off the threads that do I/O and only a few prompts at a time.
pub(crate) async fn tokens(market: &Market, model: &Arc<Model>, prompt: &Prompt) -> Result<Vec<u32>, Refusal> {
    let tokens = match prompt {
        Prompt::Tokens(tokens) => tokens.clone(),
        other => {
            let _turn = market.tokenizing().acquire().await.map_err(|_| internal("no turn to tokenize"))?;
            let (model, prompt) = (model.clone(), other.clone());
            tokio::task::spawn_blocking(move || model.tokens(&prompt)).await.map_err(|e| internal(&e.to_string()))??
        }
    };
    match tokens.iter().find(|t| **t as usize >= model.tokenizer().vocab_len()) {
        Some(token) => Err(Refusal::invalid(
            "prompt",
            format!("token {token} does not exist: the model has {} tokens", model.tokenizer().vocab_len()),
        )),
        None if tokens.is_empty() => Err(Refusal::invalid("prompt", "the prompt is empty")),
        None => Ok(tokens),
    }
}

/// How many tokens may follow the prompt: what was asked for, or what the context leaves. Never truncates.
pub(crate) fn room(model: &Model, prompt_tokens: u32, asked: Option<u32>) -> Result<u32, Refusal> {
    let context = model.context_tokens();
    let needed = u64::from(prompt_tokens) + u64::from(asked.unwrap_or(1));
    if needed > u64::from(context) {
        let wanted = match asked {
            Some(asked) => format!("{needed} tokens ({prompt_tokens} in the prompt, {asked} for the completion)"),
            None => format!("{prompt_tokens} tokens in the prompt and at least one for the completion"),
        };
        return Err(Refusal {
            code: RefusalCode::ContextLengthExceeded,
            message: format!(
                "this model's context is {context} tokens, but you asked for {wanted}: shorten the prompt or ask for less"
            ),
            param: Some("messages".to_owned()),
        });
    }
    Ok(asked.unwrap_or(context - prompt_tokens))
}

/// Refuses biases of tokens that do not exist.
pub(crate) fn check_bias(model: &Model, sampling: &Sampling) -> Result<(), Refusal> {
    match sampling.logit_bias.keys().find(|t| **t as usize >= model.tokenizer().vocab_len()) {
        Some(token) => Err(Refusal::invalid("logit_bias", format!("token {token} does not exist in this model"))),
        None => Ok(()),
    }
}

fn internal(why: &str) -> Refusal {
    Refusal::new(RefusalCode::Internal, format!("the prompt could not be tokenized: {why}"))
}
