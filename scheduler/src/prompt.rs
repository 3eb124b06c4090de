//! From what a developer sent to the tokens that are billed: template, tokenizer, and whether it all fits.

use std::sync::Arc;

use cuckoo_wire::message::{Generate, Prompt, Refusal, RefusalCode};

use crate::catalog::Model;
use crate::market::Market;

/// Refuses models that generate nothing.
pub(crate) fn check_task(model: &Model) -> Result<(), Refusal> {
    match model.embedding_dims() {
        None => Ok(()),
        Some(_) => {
            let why =
                format!("the model '{}' makes vectors of texts and generates nothing: use embeddings", model.name());
            Err(Refusal::invalid("model", why))
        }
    }
}

/// Renders and tokenizes, off the threads that do I/O and only a few prompts at a time.
pub(crate) async fn tokens(market: &Market, model: &Arc<Model>, request: &Generate) -> Result<Vec<u32>, Refusal> {
    let tokens = match &request.prompt {
        Prompt::Tokens(tokens) => tokens.clone(),
        other => {
            let _turn = market.tokenizing().acquire().await.map_err(|_| internal("no turn to tokenize"))?;
            let (model, prompt, tools) = (model.clone(), other.clone(), request.callable().cloned());
            tokio::task::spawn_blocking(move || model.tokens(&prompt, tools.as_ref()))
                .await
                .map_err(|e| internal(&e.to_string()))??
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

/// The text of a prompt: as it was sent, or of its tokens.
pub(crate) fn text(model: &Model, prompt: &Prompt, tokens: &[u32]) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Chat(_) | Prompt::Tokens(_) => model.tokenizer().decode(tokens),
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
        return Err(Refusal::at(
            RefusalCode::ContextLengthExceeded,
            "messages",
            format!(
                "this model's context is {context} tokens, but you asked for {wanted}: shorten the prompt or ask for less"
            ),
        ));
    }
    Ok(asked.unwrap_or(context - prompt_tokens))
}

/// Refuses to promise more tokens than there is room for.
pub(crate) fn check_least(min_tokens: u32, max_new: u32) -> Result<(), Refusal> {
    match min_tokens > max_new {
        true => Err(Refusal::invalid(
            "min_tokens",
            format!("min_tokens is {min_tokens}, and at most {max_new} tokens fit: ask for less"),
        )),
        false => Ok(()),
    }
}

/// Refuses tokens that do not exist, wherever a request names tokens besides its prompt.
pub(crate) fn check_tokens(model: &Model, request: &Generate) -> Result<(), Refusal> {
    let exists = |token: &u32| (*token as usize) < model.tokenizer().vocab_len();
    let unknown = |param: &str, token: Option<&u32>| match token {
        Some(token) => Err(Refusal::invalid(param, format!("token {token} does not exist in this model"))),
        None => Ok(()),
    };
    unknown("logit_bias", request.sampling.logit_bias.keys().find(|t| !exists(t)))?;
    unknown("allowed_token_ids", request.sampling.allowed_token_ids.iter().find(|t| !exists(t)))?;
    unknown("stop_token_ids", request.stop_token_ids.iter().find(|t| !exists(t)))
}

fn internal(why: &str) -> Refusal {
    Refusal::new(RefusalCode::Internal, format!("the prompt could not be tokenized: {why}"))
}
