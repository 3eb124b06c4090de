//! Builds a tokenizer from GGUF metadata, refusing what it cannot reproduce exactly. It encodes nothing.

use std::{collections::HashMap, sync::Arc};

use aho_corasick::{AhoCorasick, MatchKind};

use super::split::Stage;
use super::{Matcher, Merges, Ranked, Rules, Splitter, TokenKind, Tokenizer, Vocab, WordPiece};
use crate::gguf::Gguf;

/// The most text that control tokens, or user-defined ones, may have together, in bytes: it bounds their automaton.
const SPECIAL_BYTES_MAX: usize = 1 << 20;

/// The most tokens accepted where no header bounds them.
pub(super) const TOKENS_MAX: usize = 1 << 21;

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
    #[error(
        "tokenizer model {0:?} is not supported (\"gpt2\", \"llama\", \"gemma4\" and \"bert\" are): choose another model"
    )]
    UnknownModel(String),
    #[error("pre-tokenizer {0:?} is not supported, and guessing would garble text: choose another model")]
    UnknownSplitter(String),
    #[error("tokenizer.json cannot be used: {0}")]
    Json(String),
    #[error("the tokenizer's step {0:?} is not supported, and leaving it out would garble text: choose another model")]
    UnknownStep(String),
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
        "gemma4" => ranked(gguf, texts, kinds)?,
        "bert" => word_piece(gguf, texts, kinds)?,
        other => return Err(TokenizerError::UnknownModel(other.to_owned())),
    };
    let id = |key| special_id(gguf, key, texts.len());
    let is_bert = matches!(rules, Rules::WordPiece(_));
    // Some converters leave BERT's own names out; without its ends a text's vector would be another.
    let named = |text: &str| vocab.find(text.as_bytes()).filter(|_| is_bert);
    let first = if is_bert { id("tokenizer.ggml.cls_token_id")?.or(named("[CLS]")) } else { None };
    let bos = id("tokenizer.ggml.bos_token_id")?.or(first);
    let last = if is_bert { id("tokenizer.ggml.seperator_token_id")?.or(named("[SEP]")) } else { None };
    Ok(Tokenizer {
        control: matcher(vocab.texts(TokenKind::Control))?,
        user_defined: matcher(vocab.texts(TokenKind::UserDefined))?,
        eos: eos(gguf, &vocab)?,
        add_bos: bos.is_some() && gguf.bool("tokenizer.ggml.add_bos_token").unwrap_or(adds_bos),
        bos,
        last,
        composed: false,
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
    let (bytes, single) = byte_level_pieces(texts, &kinds, &ids);
    let rules = Rules::ByteLevel {
        splitter,
        bytes: single,
        merges: merges(gguf, &ids)?,
        whole_words: Splitter::keeps_words(name),
    };
    Ok((Vocab::new(bytes, kinds), rules, Splitter::adds_bos(name)))
}

/// What byte-level tokens stand for, and the tokens of single bytes.
pub(super) fn byte_level_pieces(texts: &[String], kinds: &[TokenKind], ids: &HashMap<&str, u32>) -> Pieces {
    let byte_of: HashMap<char, u8> = (0..=255).map(|byte| (byte_char(byte), byte)).collect();
    let spelled = |text: &String, kind: &TokenKind| -> Box<[u8]> {
        // Control and user-defined tokens are plain text, and so is what no byte-level encoder can have written.
        let plain = matches!(kind, TokenKind::Control | TokenKind::UserDefined);
        let bytes: Option<Box<[u8]>> = text.chars().map(|c| byte_of.get(&c).copied()).collect();
        bytes.filter(|_| !plain).unwrap_or_else(|| text.as_bytes().into())
    };
    let bytes = texts.iter().zip(kinds).map(|(text, kind)| spelled(text, kind)).collect();
    let single = std::array::from_fn(|byte| {
        let text = byte_char(byte as u8).to_string();
        ids.get(text.as_str()).copied().filter(|id| kinds[*id as usize] == TokenKind::Normal)
    });
    (bytes, Box::new(single))
}

pub(super) fn ids_by_text(texts: &[String]) -> Result<HashMap<&str, u32>, TokenizerError> {
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
    ranked_merges(list.iter().map(|merge| merge.split_once(' ').unwrap_or((merge, ""))), ids)
}

/// Ranks pairs by their place in a list, and finds what they make.
pub(super) fn ranked_merges<'t>(
    pairs: impl ExactSizeIterator<Item = (&'t str, &'t str)>,
    ids: &HashMap<&str, u32>,
) -> Result<Merges, TokenizerError> {
    let mut merges = HashMap::with_capacity(pairs.len());
    let mut joined = String::new();
    for (rank, (left, right)) in pairs.enumerate() {
        joined.clear();
        joined.extend([left, right]);
        let found = || Some(((*ids.get(left)?, *ids.get(right)?), *ids.get(joined.as_str())?));
        let Some((pair, token)) = found() else {
            return Err(TokenizerError::Merge { rank, merge: format!("{left} {right}") });
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

pub(super) type Pieces = (Vec<Box<[u8]>>, Box<[Option<u32>; 256]>);

/// What SentencePiece's tokens stand for, and the tokens of single bytes.
pub(super) fn sentence_pieces(texts: &[String], kinds: &[TokenKind]) -> Result<Pieces, TokenizerError> {
    let mut single = [None; 256];
    let mut bytes: Vec<Box<[u8]>> = Vec::with_capacity(texts.len());
    for (token, (text, kind)) in texts.iter().zip(kinds).enumerate() {
        bytes.push(match kind {
            TokenKind::Byte => {
                let byte = named_byte(text);
                let byte = byte.ok_or_else(|| TokenizerError::ByteToken { token, text: text.clone() })?;
                single[usize::from(byte)] = Some(token as u32);
                [byte].into()
            }
            TokenKind::Control => text.as_bytes().into(),
            _ => text.replace('\u{2581}', " ").into_bytes().into(),
        });
    }
    Ok((bytes, Box::new(single)))
}

/// The byte that a token like `<0x0A>` names.
pub(super) fn named_byte(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'))?;
    let digits = hex.len() == 2 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(hex, 16).ok().filter(|_| digits)
}

/// SentencePiece BPE: tokens are plain text with U+2581 for space, merged by score, unknown characters as bytes.
fn sentence_piece(gguf: &Gguf, texts: &[String], kinds: Vec<TokenKind>) -> Result<Loaded, TokenizerError> {
    const KEY: &str = "tokenizer.ggml.scores";
    let scores = gguf.numbers(KEY).ok_or(TokenizerError::Missing(KEY))?;
    if scores.len() != texts.len() {
        return Err(TokenizerError::Length { key: KEY, found: scores.len(), tokens: texts.len() });
    }
    let (bytes, single) = sentence_pieces(texts, &kinds)?;
    let costs = scores.iter().enumerate().map(|(token, score)| cost(*score).ok_or(TokenizerError::Score { token }));
    let rules = Rules::SentencePiece {
        costs: costs.collect::<Result<_, _>>()?,
        bytes: single,
        unknown: special_id(gguf, "tokenizer.ggml.unknown_token_id", texts.len())?,
        space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true),
    };
    Ok((Vocab::new(bytes, kinds), rules, true))
}

/// SentencePiece's tokens with a list of merges: gemma 4. Lines are cut apart, and breaks side by side are a token.
fn ranked(gguf: &Gguf, texts: &[String], kinds: Vec<TokenKind>) -> Result<Loaded, TokenizerError> {
    let merges = merges(gguf, &ids_by_text(texts)?)?;
    let (bytes, single) = sentence_pieces(texts, &kinds)?;
    let rules = Rules::Ranked(Ranked {
        splitter: Splitter { stages: vec![Stage::Lines] },
        merges,
        bytes: single,
        unknown: special_id(gguf, "tokenizer.ggml.unknown_token_id", texts.len())?,
        fuse_unknown: true,
        space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix").unwrap_or(false),
        whole_words: false,
        whole_breaks: true,
    });
    Ok((Vocab::new(bytes, kinds), rules, true))
}

/// BERT's tokens: U+2581 for the space before a word, nothing before what continues one.
fn word_piece(gguf: &Gguf, texts: &[String], kinds: Vec<TokenKind>) -> Result<Loaded, TokenizerError> {
    const KEY: &str = "tokenizer.ggml.unknown_token_id";
    let bytes = texts.iter().map(|text| text.replace('\u{2581}', " ").into_bytes().into()).collect();
    let unknown = special_id(gguf, KEY, texts.len())?.ok_or(TokenizerError::Missing(KEY))?;
    let lowercase = gguf.bool("tokenizer.ggml.normalizer.lowercase").unwrap_or(true);
    let strip_accents = gguf.bool("tokenizer.ggml.normalizer.strip_accents").unwrap_or(lowercase);
    let rules = Rules::WordPiece(WordPiece { lowercase, strip_accents, ..WordPiece::uncased(unknown) });
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
    Ok(with_end_names(ids, vocab))
}

/// Adds the tokens whose names say that they end something.
pub(super) fn with_end_names(mut ids: Vec<u32>, vocab: &Vocab) -> Vec<u32> {
    let ends = |text: &[u8]| END_NAMES.iter().any(|name| name.as_bytes() == text);
    ids.extend(vocab.texts(TokenKind::Control).filter(|(_, text)| ends(text)).map(|(id, _)| id));
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Finds the given texts; empty ones are no tokens of any text.
pub(super) fn matcher<'t>(texts: impl Iterator<Item = (u32, &'t [u8])>) -> Result<Option<Matcher>, TokenizerError> {
    let (tokens, texts): (Vec<u32>, Vec<&[u8]>) = texts.filter(|(_, text)| !text.is_empty()).unzip();
    let total: usize = texts.iter().map(|text| text.len()).sum();
    if tokens.is_empty() {
        return Ok(None);
    }
    if total > SPECIAL_BYTES_MAX {
        return Err(TokenizerError::Specials(total));
    }
    let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
    let automaton = automaton.map_err(|_| TokenizerError::Specials(total))?;
    Ok(Some(Matcher { automaton, tokens }))
}
