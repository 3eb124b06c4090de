//! Texts that a request forbids or singles out, as the tokens that miners compare: bad words, and what ends a repetition.
//! The functions are pure; [`resolve`] runs them off the threads that do I/O.

use std::sync::Arc;

use cuckoo_models::{TokenizeError, Tokenizer};
use cuckoo_wire::limits::{BAD_WORD_TOKENS_MAX, DRY_BREAKER_TOKENS_MAX};
use cuckoo_wire::message::{DRY_BREAKERS, Generate, Refusal, RefusalCode};

use crate::catalog::Model;
use crate::market::Market;

/// A request's texts as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    /// Ways of writing bad words.
    pub(crate) bad: Vec<Vec<u32>>,
    /// Tokens that end a repetition, sorted; empty without DRY.
    pub(crate) dry_breakers: Vec<u32>,
}

/// The tokens of all texts in `request`; costs nothing where there are none.
pub(crate) async fn resolve(market: &Market, model: &Arc<Model>, request: &Generate) -> Result<Words, Refusal> {
    let wants_dry = request.sampling.dry_multiplier > 0.0;
    if request.bad_words.is_empty() && !wants_dry {
        return Ok(Words::default());
    }
    let asked = request.dry_sequence_breakers.clone();
    let _turn = market.tokenizing().acquire().await.map_err(|_| internal("no turn to tokenize"))?;
    let (model, bad) = (model.clone(), request.bad_words.clone());
    let resolved = tokio::task::spawn_blocking(move || {
        let tokenizer = model.tokenizer();
        let dry_breakers = match asked {
            _ if !wants_dry => Vec::new(),
            Some(texts) => dry_breakers(tokenizer, &texts)?,
            None => model.dry_breakers(|| dry_breakers(tokenizer, &DRY_BREAKERS))?,
        };
        Ok(Words { bad: bad_words(tokenizer, &bad)?, dry_breakers })
    });
    resolved.await.map_err(|e| internal(&e.to_string()))?
}

/// Each word as a text begins with it and as it follows a space.
fn bad_words(tokenizer: &Tokenizer, words: &[String]) -> Result<Vec<Vec<u32>>, Refusal> {
    let mut ways = Vec::new();
    for word in words {
        let bare = match word.trim_start() {
            "" => word.as_str(),
            bare => bare,
        };
        for text in [bare, &format!(" {bare}")] {
            let way = tokenizer.encode(text, false).map_err(|e| refused("bad_words", &e))?;
            if way.len() > BAD_WORD_TOKENS_MAX {
                let why = format!("the bad word '{}' is too many tokens: shorten it", bare.escape_debug());
                return Err(Refusal::invalid("bad_words", why));
            }
            if !way.is_empty() && !ways.contains(&way) {
                ways.push(way);
            }
        }
    }
    Ok(ways)
}

/// Every token whose text contains one of `texts`. Of a text that is in no token, the last token of it stands for it.
fn dry_breakers(tokenizer: &Tokenizer, texts: &[impl AsRef<str>]) -> Result<Vec<u32>, Refusal> {
    let mut breakers = Vec::new();
    for text in texts.iter().map(AsRef::as_ref) {
        let before = breakers.len();
        let within = |token: &u32| tokenizer.token_bytes(*token).is_some_and(|bytes| contains(bytes, text.as_bytes()));
        breakers.extend((0..tokenizer.vocab_len() as u32).filter(within));
        if breakers.len() == before {
            // After a letter, so that no space is taken for a part of it.
            let tokens =
                tokenizer.encode(&format!("a{text}"), false).map_err(|e| refused("dry_sequence_breakers", &e))?;
            breakers.extend(tokens.last());
        }
    }
    breakers.sort_unstable();
    breakers.dedup();
    if breakers.len() > DRY_BREAKER_TOKENS_MAX {
        let got = breakers.len();
        let why =
            format!("dry_sequence_breakers are in {got} tokens, at most {DRY_BREAKER_TOKENS_MAX}: name longer ones");
        return Err(Refusal::invalid("dry_sequence_breakers", why));
    }
    Ok(breakers)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn refused(param: &str, error: &TokenizeError) -> Refusal {
    Refusal::invalid(param, error.to_string())
}

fn internal(why: &str) -> Refusal {
    Refusal::new(RefusalCode::Internal, format!("the words could not be tokenized: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Bytes, and a few words as GPT-2 writes them.
    fn tokenizer() -> Tokenizer {
        let tokens = ["a", "b", "c", "Ġ", ":", "Ċ", "ab", "Ġab", "):", "Ġc", "x"];
        let merges = ["a b", "Ġ ab", "Ġ c"];
        let vocab: Vec<String> = tokens.iter().enumerate().map(|(i, t)| format!("\"{t}\":{i}")).collect();
        let json = format!(
            r#"{{"model":{{"type":"BPE","vocab":{{{}}},"merges":{merges:?}}},"added_tokens":[],
                "pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false,"use_regex":true}},
                "decoder":{{"type":"ByteLevel"}}}}"#,
            vocab.join(",")
        );
        Tokenizer::from_hf_json(&json, None).unwrap()
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&t| t.to_owned()).collect()
    }

    #[test]
    fn a_bad_word_is_written_with_and_without_a_space() {
        let bad = bad_words(&tokenizer(), &texts(&["ab", " abc", "\n"])).unwrap();
        assert_eq!(bad, [vec![6], vec![7], vec![6, 2], vec![7, 2], vec![5], vec![3, 5]]);
    }

    #[test]
    fn a_breaker_is_every_token_that_contains_it() {
        let tokenizer = tokenizer();
        let breakers = |t: &[&str]| dry_breakers(&tokenizer, t).unwrap();
        assert_eq!(breakers(&[":"]), [4, 8]);
        assert_eq!(breakers(&["\n", ":", "ab"]), [4, 5, 6, 7, 8]);
        assert_eq!(breakers(&["bx"]), [10], "in no token: its last one");
        assert!(breakers(&[]).is_empty());
    }
}
