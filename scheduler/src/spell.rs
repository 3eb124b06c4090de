//! Log-probabilities as developers read them: each token with the bytes that it stands for. Pure; counts what a prompt
//! still lacks, so that a request that moves to another miner gets nothing twice.

use std::sync::Arc;

use cuckoo_models::Tokenizer;
use cuckoo_wire::limits::{PROMPT_LOGPROBS_TOKENS_MAX, PROMPT_PIECE_BYTES, TOKEN_TEXT_BYTES_MAX};
use cuckoo_wire::message::{Generate, Logprobs, Prompt, PromptLogprobs, Refusal, Reply, TokenLogprob, TokenLogprobs};

use crate::catalog::Model;

/// The log-probabilities of one request.
pub(crate) struct Speller {
    model: Arc<Model>,
    /// How many tokens are wanted beside each one of the output.
    output: Option<u8>,
    /// Which of the prompt's tokens are wanted next.
    prompt: Option<PromptLogprobs>,
    prompt_tokens: u32,
    /// Whether the prompt's first token is one that its text does not show.
    hides_first: bool,
}

/// A miner that answered something else than was asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unasked;

impl Speller {
    /// Of a request whose prompt is `tokens`.
    pub(crate) fn new(model: Arc<Model>, request: &Generate, tokens: &[u32]) -> Result<Self, Refusal> {
        if request.prompt_logprobs.is_some() && tokens.len() > PROMPT_LOGPROBS_TOKENS_MAX {
            let why = format!(
                "the prompt has {} tokens, and log-probabilities are given for at most {PROMPT_LOGPROBS_TOKENS_MAX}: \
                 shorten it or do not ask for them",
                tokens.len()
            );
            return Err(Refusal::invalid("prompt_logprobs", why));
        }
        let first = tokens.first().copied().unwrap_or_default();
        let name = model.tokenizer().token_bytes(first).unwrap_or_default();
        let shows = |text: &str| text.as_bytes().starts_with(name);
        let hides_first = match &request.prompt {
            Prompt::Text(text) => model.tokenizer().is_special(first) && !shows(text),
            Prompt::Chat(_) | Prompt::Tokens(_) => false,
        };
        Ok(Self {
            output: request.logprobs,
            prompt: request.prompt_logprobs.map(|top| PromptLogprobs { top, from: 1 }),
            prompt_tokens: tokens.len() as u32,
            hides_first,
            model,
        })
    }

    /// What to ask the next miner for: of drawn tokens, and of those of the prompt that nobody has scored.
    pub(crate) fn wanted(&self) -> (Option<u8>, Option<PromptLogprobs>) {
        (self.output, self.prompt.filter(|p| p.from < self.prompt_tokens))
    }

    /// The prompt's first token, which nobody scores: nothing comes before it.
    pub(crate) fn first(&self, tokens: &[u32]) -> Option<TokenLogprobs> {
        self.prompt?;
        let mut chosen = spelled(self.model.tokenizer(), *tokens.first()?, None);
        chosen.special = self.hides_first;
        Some(TokenLogprobs { chosen, rank: 0, top: Vec::new() })
    }

    /// What a miner found of the next tokens of the prompt.
    pub(crate) fn prompt(&mut self, tokens: &[u32], found: &[Logprobs]) -> Result<Vec<TokenLogprobs>, Unasked> {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = self.prompt.as_mut().ok_or(Unasked)?;
        let (from, to) = (wanted.from as usize, wanted.from as usize + found.len());
        if to > self.prompt_tokens as usize {
            return Err(Unasked);
        }
        let (tokenizer, top) = (self.model.tokenizer(), wanted.top);
        let spell = |(token, found): (&u32, &Logprobs)| {
            let mut spelled = entry(tokenizer, *token, found, top)?;
            // In a prompt every token is written out.
            spelled.chosen.special = false;
            Ok(spelled)
        };
        let spelled = tokens[from..to].iter().zip(found).map(spell).collect::<Result<_, _>>()?;
        wanted.from = to as u32;
        Ok(spelled)
    }

    /// What a miner found of drawn tokens. Before the first of them all of the prompt must have been scored.
    pub(crate) fn output(&self, tokens: &[u32], found: &[Logprobs]) -> Result<Vec<TokenLogprobs>, Unasked> {
        let expected = if self.output.is_some() { tokens.len() } else { 0 };
        let is_early = !tokens.is_empty() && self.wanted().1.is_some();
        if found.len() != expected || is_early {
            return Err(Unasked);
        }
        let top = self.output.unwrap_or(0);
        tokens.iter().zip(found).map(|(token, found)| entry(self.model.tokenizer(), *token, found, top)).collect()
    }
}

/// A prompt's text in pieces that fit a reply.
pub(crate) fn echo(text: &str) -> Vec<Reply> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(rest.floor_char_boundary(PROMPT_PIECE_BYTES));
        pieces.push(Reply::Prompt { text: piece.to_owned(), logprobs: Vec::new() });
        rest = later;
    }
    pieces
}

/// A prompt's log-probabilities in pieces that fit a reply.
pub(crate) fn pieces(tokens: Vec<TokenLogprobs>) -> Vec<Reply> {
    let (mut pieces, mut piece, mut bytes) = (Vec::new(), Vec::new(), 0);
    for token in tokens {
        bytes += std::iter::once(&token.chosen).chain(&token.top).map(|t| t.bytes.len() + 16).sum::<usize>() + 16;
        piece.push(token);
        if bytes >= PROMPT_PIECE_BYTES {
            pieces.push(Reply::Prompt { text: String::new(), logprobs: std::mem::take(&mut piece) });
            bytes = 0;
        }
    }
    if !piece.is_empty() {
        pieces.push(Reply::Prompt { text: String::new(), logprobs: piece });
    }
    pieces
}

fn entry(tokenizer: &Tokenizer, token: u32, found: &Logprobs, top: u8) -> Result<TokenLogprobs, Unasked> {
    let unknown = |(token, _): &(u32, f32)| *token as usize >= tokenizer.vocab_len();
    if found.top.len() > usize::from(top) {
        return Err(Unasked);
    }
    // A model may have more rows of logits than tokens: those stand for nothing, and nothing is said of them.
    let named = found.top.iter().filter(|t| !unknown(t));
    Ok(TokenLogprobs {
        chosen: spelled(tokenizer, token, Some(found.logprob)),
        rank: found.rank,
        top: named.map(|(token, logprob)| spelled(tokenizer, *token, Some(*logprob))).collect(),
    })
}

fn spelled(tokenizer: &Tokenizer, token: u32, logprob: Option<f32>) -> TokenLogprob {
    let bytes = tokenizer.token_bytes(token).unwrap_or_default();
    let bytes = bytes[..bytes.len().min(TOKEN_TEXT_BYTES_MAX)].to_vec();
    TokenLogprob { token, bytes, special: tokenizer.is_special(token), logprob }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pieces_fit_a_reply_and_lose_nothing() {
        let token = |token, len| TokenLogprob { token, bytes: vec![b'x'; len], special: false, logprob: Some(-1.0) };
        let one = |i: u32| TokenLogprobs {
            chosen: token(i, TOKEN_TEXT_BYTES_MAX),
            rank: 1,
            top: (0..20).map(|t| token(t, TOKEN_TEXT_BYTES_MAX)).collect(),
        };
        let all: Vec<TokenLogprobs> = (0..40).map(one).collect();
        let (mut got, mut count) = (Vec::new(), 0);
        for piece in pieces(all.clone()) {
            cuckoo_wire::encode(&piece, cuckoo_wire::limits::REPLY_FRAME_BYTES_MAX).unwrap();
            let Reply::Prompt { logprobs, .. } = piece else { panic!("{piece:?}") };
            got.extend(logprobs);
            count += 1;
        }
        assert!(got == all && count > 3, "{count} pieces");
        assert!(pieces(Vec::new()).is_empty());
        let text = "日".repeat(PROMPT_PIECE_BYTES);
        let told: Vec<String> = echo(&text)
            .into_iter()
            .map(|piece| match piece {
                Reply::Prompt { text, .. } => text,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(told.concat() == text && told.iter().all(|t| t.len() <= PROMPT_PIECE_BYTES) && told.len() == 4);
    }
}
