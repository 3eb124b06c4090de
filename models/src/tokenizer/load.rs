//! Builds a tokenizer from GGUF metadata, refusing what it cannot reproduce exactly. It encodes nothing.

use std::{collections::HashMap, sync::Arc};

use aho_corasick::{AhoCorasick, MatchKind};

use super::{Matcher, Merges, Rules, Splitter, TokenKind, Tokenizer, Vocab};
use crate::gguf::Gguf;

/// The most text that control tokens, or user-defined ones, may have together, in bytes: it bounds their automaton.
const SPECIAL_BYTES_MAX: usize = 1 << 20;

/// The names of control tokens that end a turn in models whose metadata names only the end of sequence. They are
/// llama.cpp's list of end-of-generation texts.
const END_NAMES: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
];

/// Why a GGUF file's vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation of the variants and their fields.
pub enum TokenizerError {
    #[error("the file has no {0}: it holds no (whole) tokenizer, convert the model again")]
    Missing(&'static str),
    #[error("tokenizer model {0:?} is not supported (\"gpt2\" and \"llama\" are): choose another model")]
    UnknownModel(String),
    #[error("pre-tokenizer {0:?} is not supported, and guessing would garble text: choose another model")]
    UnknownSplitter(String),
    #[error("{key} has {found} entries for {tokens} tokens: damaged, convert the model again")]
    Length { key: &'static str, found: usize, tokens: usize },
    #[error("tokens {first} and {second} have the same text {text:?}: damaged, convert the model again")]
    Duplicate { first: usize, second: usize, text: String },
    #[error("token {token} has unknown type {code}: convert the model again")]
    TokenType { token: usize, code: f64 },
    #[error("token {token} has a score that is no number: damaged, convert the model again")]
    Score { token: usize },
    #[error("token {token} ({text:?}) is a byte token but names no byte: damaged, convert the model again")]
    ByteToken { token: usize, text: String },
    #[error("merge {rank} ({merge:?}) joins no two tokens to a third: damaged, convert the model again")]
    Merge { rank: usize, merge: String },
    #[error("{key} is {id}, outside the {tokens} tokens: damaged, convert the model again")]
    SpecialId { key: &'static str, id: u64, tokens: usize },
    #[error("special tokens with {0} bytes of text (at most {SPECIAL_BYTES_MAX}): damaged or hostile")]
    Specials(usize),
}

pub(super) fn tokenizer(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
    let model = gguf.str("tokenizer.ggml.model").ok_or(TokenizerError::Missing("tokenizer.ggml.model"))?;
    let texts = gguf.strings("tokenizer.ggml.tokens").ok_or(TokenizerError::Missing("tokenizer.ggml.tokens"))?;
    let kinds = kinds(gguf, texts.len())?;
    let (vocab, rules, adds_bos) = match model {
        "gpt2" => byte_level(gguf, texts, kinds)?,
        "llama" => sentence_piece(gguf, texts, kinds)?,
        other => return Err(TokenizerError::UnknownModel(other.to_owned())),
    };
    let bos = special_id(gguf, "tokenizer.ggml.bos_token_id", texts.len())?;
    Ok(Tokenizer {
        control: matcher(&vocab, TokenKind::Control)?,
        user_defined: matcher(&vocab, TokenKind::UserDefined)?,
        eos: eos(gguf, &vocab)?,
        add_bos: bos.is_some() && gguf.bool("tokenizer.ggml.add_bos_token").unwrap_or(adds_bos),
        bos,
        vocab: Arc::new(vocab),
        rules,
    })
}

fn kinds(gguf: &Gguf, tokens: usize) -> Result<Vec<TokenKind>, TokenizerError> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let codes = gguf.numbers(KEY).ok_or(TokenizerError::Missing(KEY))?;
    if codes.len() != tokens {
        return Err(TokenizerError::Length { key: KEY, found: codes.len(), tokens });
    }
    let kind = |(token, code): (usize, &f64)| {
        TokenKind::from_code(*code).ok_or(TokenizerError::TokenType { token, code: *code })
    };
    codes.iter().enumerate().map(kind).collect()
}

type Loaded = (Vocab, Rules, bool);

/// Byte-level BPE: tokens are spelled in the 256 printable characters that GPT-2 chose for bytes.
fn byte_level(gguf: &Gguf, texts: &[String], kinds: Vec<TokenKind>) -> Result<Loaded, TokenizerError> {
    let name = gguf.str("tokenizer.ggml.pre").ok_or(TokenizerError::Missing("tokenizer.ggml.pre"))?;
    let splitter = Splitter::named(name).ok_or_else(|| TokenizerError::UnknownSplitter(name.to_owned()))?;
    let ids = ids_by_text(texts)?;
    let byte_of: HashMap<char, u8> = (0..=255).map(|byte| (byte_char(byte), byte)).collect();
    let spelled = |text: &String, kind: &TokenKind| -> Box<[u8]> {
        // Control and user-defined tokens are plain text, and so is what no byte-level encoder can have written.
        let plain = matches!(kind, TokenKind::Control | TokenKind::UserDefined);
        let bytes: Option<Box<[u8]>> = text.chars().map(|c| byte_of.get(&c).copied()).collect();
        bytes.filter(|_| !plain).unwrap_or_else(|| text.as_bytes().into())
    };
    let bytes = texts.iter().zip(&kinds).map(|(text, kind)| spelled(text, kind)).collect();
    let single = std::array::from_fn(|byte| {
        let text = byte_char(byte as u8).to_string();
        ids.get(text.as_str()).copied().filter(|id| kinds[*id as usize] == TokenKind::Normal)
    });
    let rules = Rules::ByteLevel {
        splitter,
        bytes: Box::new(single),
        merges: merges(gguf, &ids)?,
        whole_words: splitter == (Splitter::Digits { max: 3 }),
    };
    // llama.cpp adds BOS for llama 3 where the file does not say; the others had none in training.
    let adds_bos = splitter == (Splitter::Digits { max: 3 });
    Ok((Vocab::new(bytes, kinds), rules, adds_bos))
}

fn ids_by_text(texts: &[String]) -> Result<HashMap<&str, u32>, TokenizerError> {
    let mut ids = HashMap::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        if let Some(first) = ids.insert(text.as_str(), id as u32) {
            return Err(TokenizerError::Duplicate { first: first as usize, second: id, text: text.clone() });
        }
    }
    Ok(ids)
}

/// The merges of the file, by the ids of what they join: (rank, joined).
fn merges(gguf: &Gguf, ids: &HashMap<&str, u32>) -> Result<Merges, TokenizerError> {
    const KEY: &str = "tokenizer.ggml.merges";
    let list = gguf.strings(KEY).ok_or(TokenizerError::Missing(KEY))?;
    let mut merges = HashMap::with_capacity(list.len());
    let mut joined = String::new();
    for (rank, merge) in list.iter().enumerate() {
        let pair = merge.split_once(' ').and_then(|(left, right)| {
            joined.clear();
            joined.extend([left, right]);
            Some(((*ids.get(left)?, *ids.get(right)?), *ids.get(joined.as_str())?))
        });
        let Some((pair, token)) = pair else {
            return Err(TokenizerError::Merge { rank, merge: merge.clone() });
        };
        // A repeated merge keeps its first rank, as it would if ranks were searched from the front.
        merges.entry(pair).or_insert((rank as u32, token));
    }
    Ok(merges)
}

/// The character that stands for a byte in byte-level vocabularies: itself where printable, else from U+0100 on.
pub(super) fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let nth = (0..byte).filter(|byte| !printable(*byte)).count() as u32;
    char::from_u32(0x100 + nth).expect("at most 68 characters from U+0100 on")
}

/// SentencePiece BPE: tokens are plain text with U+2581 for space, merged by score, unknown characters as bytes.
fn sentence_piece(gguf: &Gguf, texts: &[String], kinds: Vec<TokenKind>) -> Result<Loaded, TokenizerError> {
    const KEY: &str = "tokenizer.ggml.scores";
    let scores = gguf.numbers(KEY).ok_or(TokenizerError::Missing(KEY))?;
    if scores.len() != texts.len() {
        return Err(TokenizerError::Length { key: KEY, found: scores.len(), tokens: texts.len() });
    }
    let mut single = [None; 256];
    let mut bytes: Vec<Box<[u8]>> = Vec::with_capacity(texts.len());
    for (token, (text, kind)) in texts.iter().zip(&kinds).enumerate() {
        bytes.push(match kind {
            TokenKind::Byte => {
                let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                let byte = hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
                let byte = byte.ok_or_else(|| TokenizerError::ByteToken { token, text: text.clone() })?;
                single[usize::from(byte)] = Some(token as u32);
                [byte].into()
            }
            TokenKind::Control => text.as_bytes().into(),
            _ => text.replace('\u{2581}', " ").into_bytes().into(),
        });
    }
    let costs = scores.iter().enumerate().map(|(token, score)| cost(*score).ok_or(TokenizerError::Score { token }));
    let rules = Rules::SentencePiece {
        costs: costs.collect::<Result<_, _>>()?,
        bytes: Box::new(single),
        unknown: special_id(gguf, "tokenizer.ggml.unknown_token_id", texts.len())?,
        space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true),
    };
    Ok((Vocab::new(bytes, kinds), rules, true))
}

/// An integer that falls as the score rises, in the same order: the bits of a float, made monotone and turned over.
fn cost(score: f64) -> Option<u32> {
    // Adding zero makes -0.0 equal to 0.0, as it is for scores.
    let bits = (score as f32 + 0.0).to_bits();
    let rising = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    (!score.is_nan()).then_some(!rising)
}

fn special_id(gguf: &Gguf, key: &'static str, tokens: usize) -> Result<Option<u32>, TokenizerError> {
    match gguf.u64(key) {
        // Some converters write all ones for "none".
        None | Some(0xffff_ffff) => Ok(None),
        Some(id) if id < tokens as u64 => Ok(Some(id as u32)),
        Some(id) => Err(TokenizerError::SpecialId { key, id, tokens }),
    }
}

fn eos(gguf: &Gguf, vocab: &Vocab) -> Result<Vec<u32>, TokenizerError> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ids.extend(special_id(gguf, key, vocab.len())?);
    }
    let ends = |id: &u32| vocab.bytes(*id).is_some_and(|text| END_NAMES.iter().any(|name| name.as_bytes() == text));
    ids.extend(vocab.of_kind(TokenKind::Control).filter(ends));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn matcher(vocab: &Vocab, kind: TokenKind) -> Result<Option<Matcher>, TokenizerError> {
    let text = |token: &u32| vocab.bytes(*token).unwrap_or_default();
    let tokens: Vec<u32> = vocab.of_kind(kind).filter(|token| !text(token).is_empty()).collect();
    let total: usize = tokens.iter().map(|token| text(token).len()).sum();
    if tokens.is_empty() {
        return Ok(None);
    }
    if total > SPECIAL_BYTES_MAX {
        return Err(TokenizerError::Specials(total));
    }
    let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(tokens.iter().map(text));
    let automaton = automaton.map_err(|_| TokenizerError::Specials(total))?;
    Ok(Some(Matcher { automaton, tokens }))
}
