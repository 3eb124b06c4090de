//! Log-probabilities as OpenAI's two interfaces and vLLM show them. Knows no tokenizer: replies say what tokens stand for.

use cuckoo_wire::message::{TokenLogprob, TokenLogprobs};
use serde::{Serialize, Serializer};

/// JSON has no infinities; this is what others send in place of minus infinity.
const LEAST: f32 = -9_999.0;

/// `choices[].logprobs`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Shown {
    /// Of a chat.
    Chat {
        /// One entry a token.
        content: Vec<ChatToken>,
        /// Nothing is ever refused.
        refusal: (),
    },
    /// Of a completion.
    Completion(CompletionTokens),
}

#[derive(Debug, Serialize)]
pub(super) struct ChatToken {
    #[serde(flatten)]
    token: Spelled,
    top_logprobs: Vec<Spelled>,
}

#[derive(Debug, Serialize)]
struct Spelled {
    token: String,
    logprob: f32,
    /// `None` for a token that stands for no text.
    bytes: Option<Vec<u8>>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct CompletionTokens {
    text_offset: Vec<u32>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<Named<f32>>>,
}

/// vLLM's `prompt_logprobs`: for each token who could have stood there, by id; nothing for the first.
pub(super) type PromptTokens = Vec<Option<Named<Standing>>>;

/// A JSON object in order. Not `serde_json`'s, which has no 32-bit numbers: equal ones must be written alike everywhere.
#[derive(Debug)]
pub(super) struct Named<T>(Vec<(String, T)>);

#[derive(Debug, Serialize)]
pub(super) struct Standing {
    logprob: f32,
    rank: u32,
    decoded_token: String,
}

impl<T> Named<T> {
    /// Adds an entry unless there is one of that name.
    fn add(&mut self, name: String, value: T) {
        if !self.0.iter().any(|(known, _)| *known == name) {
            self.0.push((name, value));
        }
    }
}

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Where the next token of a completion begins, in characters.
#[derive(Clone, Debug, Default)]
pub(super) struct Offset {
    chars: u32,
    /// The beginning of a character.
    pending: Vec<u8>,
}

impl Offset {
    /// Where this token begins.
    fn pass(&mut self, token: &TokenLogprob) -> u32 {
        let begin = self.chars;
        if !token.special {
            self.pending.extend_from_slice(&token.bytes);
            loop {
                let (whole, wrong) = match std::str::from_utf8(&self.pending) {
                    Ok(whole) => (whole, 0),
                    Err(why) => {
                        let whole = std::str::from_utf8(&self.pending[..why.valid_up_to()]).unwrap_or_default();
                        (whole, why.error_len().unwrap_or(0))
                    }
                };
                // What can be no character is shown as one.
                self.chars += whole.chars().count() as u32 + u32::from(wrong > 0);
                let done = whole.len() + wrong;
                self.pending.drain(..done);
                if wrong == 0 {
                    break;
                }
            }
        }
        begin
    }
}

/// A chat's tokens.
pub(super) fn chat(tokens: &[TokenLogprobs], top: u8) -> Shown {
    let content = tokens
        .iter()
        .map(|t| ChatToken { token: spelled(&t.chosen), top_logprobs: first(t, top).map(spelled).collect() });
    Shown::Chat { content: content.collect(), refusal: () }
}

/// A completion's tokens; those of an echoed prompt begin with one that nothing came before.
pub(super) fn completion(tokens: &[TokenLogprobs], top: u8, offset: &mut Offset) -> Shown {
    let mut shown = CompletionTokens::default();
    for t in tokens {
        shown.text_offset.push(offset.pass(&t.chosen));
        shown.token_logprobs.push(t.chosen.logprob.map(finite));
        shown.tokens.push(in_a_dictionary(&t.chosen));
        shown.top_logprobs.push(t.chosen.logprob.map(|_| {
            // The token itself is there in any case; tokens of equal text share an entry, the more probable one's.
            let mut named = Named(Vec::new());
            for token in first(t, top).chain([&t.chosen]) {
                named.add(in_a_dictionary(token), logprob(token));
            }
            named
        }));
    }
    Shown::Completion(shown)
}

/// A prompt's tokens.
pub(super) fn prompt(tokens: &[TokenLogprobs], top: u8) -> PromptTokens {
    let standing = |token: &TokenLogprob, rank| Standing { logprob: logprob(token), rank, decoded_token: text(token) };
    let one = |t: &TokenLogprobs| {
        t.chosen.logprob?;
        let mut named = Named(Vec::new());
        named.add(t.chosen.token.to_string(), standing(&t.chosen, t.rank));
        for (token, rank) in first(t, top).zip(1..) {
            named.add(token.token.to_string(), standing(token, rank));
        }
        Some(named)
    };
    tokens.iter().map(one).collect()
}

/// The `top` most probable tokens: more may have been asked for on another's behalf.
fn first(t: &TokenLogprobs, top: u8) -> impl Iterator<Item = &TokenLogprob> {
    t.top.iter().take(usize::from(top))
}

fn spelled(token: &TokenLogprob) -> Spelled {
    let bytes = (!token.special).then(|| token.bytes.clone());
    Spelled { token: text(token), logprob: logprob(token), bytes }
}

fn logprob(token: &TokenLogprob) -> f32 {
    finite(token.logprob.unwrap_or(LEAST))
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST)
}

/// A token's text; one that is no whole characters has its bytes escaped.
fn text(token: &TokenLogprob) -> String {
    match std::str::from_utf8(&token.bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => token.bytes.iter().map(|b| format!("\\x{b:02x}")).collect(),
    }
}

/// As above, with the mark by which completions tell escaped bytes from text.
fn in_a_dictionary(token: &TokenLogprob) -> String {
    match std::str::from_utf8(&token.bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("bytes:{}", text(token)),
    }
}
