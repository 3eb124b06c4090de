//! Builds a tokenizer from a `tokenizer.json`, refusing what it cannot reproduce exactly. It encodes nothing.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::load::{
    TOKENS_MAX, byte_level_pieces, ids_by_text, matcher, named_byte, ranked_merges, sentence_pieces, with_end_names,
};
use super::split::Stage;
use super::{Ranked, Rules, Splitter, TokenKind, Tokenizer, TokenizerError, Vocab, WordPiece};

/// The longest file accepted, in bytes. The largest real ones (262 k tokens with all their merges) have 33 MB.
const JSON_BYTES_MAX: usize = 64 << 20;

#[derive(Deserialize)]
struct File {
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
    unk_token: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    max_input_chars_per_word: Option<usize>,
    dropout: Option<f64>,
}

/// A merge is two strings, or one with a space between them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair([String; 2]),
}

/// What the steps before the model do to a text.
#[derive(Default)]
struct Steps {
    stages: Vec<Stage>,
    composed: bool,
    space_prefix: bool,
    /// Spaces are spelled U+2581.
    spaces: bool,
    byte_level: bool,
    word_piece: Option<WordPiece>,
}

pub(super) fn tokenizer(json: &str, config: Option<&str>) -> Result<Tokenizer, TokenizerError> {
    let unreadable = |why: serde_json::Error| TokenizerError::Json(why.to_string());
    if json.len() > JSON_BYTES_MAX || config.is_some_and(|config| config.len() > JSON_BYTES_MAX) {
        return Err(TokenizerError::Json(format!("{} bytes are more than {JSON_BYTES_MAX}", json.len())));
    }
    let file: File = serde_json::from_str(json).map_err(unreadable)?;
    let config: Option<Value> = config.map(serde_json::from_str).transpose().map_err(unreadable)?;
    let mut steps = Steps::default();
    file.normalizer.as_ref().map_or(Ok(()), |value| steps.normalizer(value))?;
    file.pre_tokenizer.as_ref().map_or(Ok(()), |value| steps.pre_tokenizer(value))?;
    let (texts, kinds) = tokens(&file)?;
    let (vocab, rules) = match file.model.kind.as_deref() {
        Some("WordPiece") => word_piece(&file.model, texts, kinds, &steps)?,
        Some("BPE") | None if steps.byte_level => byte_level(&file.model, texts, kinds, &steps)?,
        Some("BPE") | None => ranked(&file.model, texts, kinds, &steps)?,
        Some(kind) => return Err(TokenizerError::UnknownModel(kind.to_owned())),
    };
    let id_of = |text: &str| file.added_tokens.iter().find(|token| token.content == text).map(|token| token.id);
    let named = |key: &str| config.as_ref().and_then(|config| token_name(config.get(key)?)).and_then(id_of);
    let (first, last) = file.post_processor.as_ref().map_or((None, None), ends);
    let (first, last) = (first.as_deref().and_then(id_of), last.as_deref().and_then(id_of));
    let bos = named("bos_token").or(first);
    let adds = config.as_ref().and_then(|config| config.get("add_bos_token")?.as_bool());
    let eos = named("eos_token").into_iter().collect();
    let listed = |special: bool| {
        let tokens = file.added_tokens.iter().filter(move |token| token.special == special);
        tokens.map(|token| (token.id, token.content.as_bytes()))
    };
    Ok(Tokenizer {
        control: matcher(listed(true))?,
        user_defined: matcher(listed(false))?,
        eos: if steps.word_piece.is_some() { Vec::new() } else { with_end_names(eos, &vocab) },
        add_bos: bos.is_some() && (first.is_some() || adds.unwrap_or(false)),
        bos,
        last,
        composed: steps.composed,
        vocab: Arc::new(vocab),
        rules,
    })
}

/// All tokens by id. Ids that no token has are tokens that no text becomes.
fn tokens(file: &File) -> Result<(Vec<String>, Vec<TokenKind>), TokenizerError> {
    let ids = file.model.vocab.values().copied().chain(file.added_tokens.iter().map(|token| token.id));
    let len = ids.max().map_or(0, |id| id as usize + 1);
    if len > TOKENS_MAX {
        return Err(TokenizerError::Json(format!("{len} tokens are more than {TOKENS_MAX}")));
    }
    let mut texts: Vec<String> = vec![String::new(); len];
    let mut kinds = vec![TokenKind::Unused; len];
    for (text, id) in &file.model.vocab {
        let at = *id as usize;
        if kinds[at] != TokenKind::Unused {
            let text = text.clone();
            return Err(TokenizerError::Json(format!("two tokens have the id {id}, one of them {text:?}")));
        }
        texts[at].clone_from(text);
        let is_byte = file.model.byte_fallback && named_byte(text).is_some();
        kinds[at] = if is_byte { TokenKind::Byte } else { TokenKind::Normal };
    }
    for token in &file.added_tokens {
        // BERT's mask alone is often so; it appears in no text that is embedded.
        if token.single_word || (token.lstrip || token.rstrip) && token.content != "[MASK]" && token.content != "<mask>"
        {
            return Err(TokenizerError::Json(format!("token {:?} takes space around it", token.content)));
        }
        let at = token.id as usize;
        texts[at].clone_from(&token.content);
        kinds[at] = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
    }
    // Holes are told apart by their ids, so that texts stay unique.
    for (id, text) in texts.iter_mut().enumerate().filter(|(_, text)| text.is_empty()) {
        *text = format!("\u{fffe}{id}");
    }
    Ok((texts, kinds))
}

fn pairs(merges: &[Merge]) -> impl ExactSizeIterator<Item = (&str, &str)> {
    merges.iter().map(|merge| match merge {
        Merge::Joined(merge) => merge.split_once(' ').unwrap_or((merge, "")),
        Merge::Pair([left, right]) => (left.as_str(), right.as_str()),
    })
}

type Loaded = (Vocab, Rules);

fn byte_level(
    model: &Model,
    texts: Vec<String>,
    kinds: Vec<TokenKind>,
    steps: &Steps,
) -> Result<Loaded, TokenizerError> {
    plain_bpe(model, steps.spaces || steps.space_prefix)?;
    let ids = ids_by_text(&texts)?;
    let (bytes, single) = byte_level_pieces(&texts, &kinds, &ids);
    let rules = Rules::ByteLevel {
        splitter: Splitter { stages: steps.stages.clone() },
        bytes: single,
        merges: ranked_merges(pairs(&model.merges), &ids)?,
        whole_words: model.ignore_merges,
    };
    Ok((Vocab::new(bytes, kinds), rules))
}

fn ranked(model: &Model, texts: Vec<String>, kinds: Vec<TokenKind>, steps: &Steps) -> Result<Loaded, TokenizerError> {
    plain_bpe(model, !steps.spaces)?;
    let ids = ids_by_text(&texts)?;
    let unknown = model.unk_token.as_deref().and_then(|text| ids.get(text).copied());
    let merges = ranked_merges(pairs(&model.merges), &ids)?;
    let (bytes, single) = sentence_pieces(&texts, &kinds)?;
    let rules = Rules::Ranked(Ranked {
        splitter: Splitter { stages: steps.stages.clone() },
        merges,
        bytes: single,
        unknown,
        fuse_unknown: model.fuse_unk,
        space_prefix: steps.space_prefix,
        whole_words: model.ignore_merges,
        whole_breaks: false,
    });
    Ok((Vocab::new(bytes, kinds), rules))
}

fn plain_bpe(model: &Model, other_steps: bool) -> Result<(), TokenizerError> {
    let marked = |mark: &Option<String>| mark.as_deref().is_some_and(|mark| !mark.is_empty());
    if marked(&model.continuing_subword_prefix) || marked(&model.end_of_word_suffix) || model.dropout.is_some() {
        return Err(TokenizerError::Json("BPE with marks on subwords, or with dropout, is not supported".to_owned()));
    }
    match other_steps {
        true => Err(TokenizerError::Json("BPE neither over bytes nor with U+2581 for spaces".to_owned())),
        false => Ok(()),
    }
}

fn word_piece(
    model: &Model,
    texts: Vec<String>,
    kinds: Vec<TokenKind>,
    steps: &Steps,
) -> Result<Loaded, TokenizerError> {
    let rules = steps.word_piece.ok_or_else(|| TokenizerError::Json("WordPiece without BERT's steps".to_owned()))?;
    let prefix = model.continuing_subword_prefix.as_deref().unwrap_or("##");
    let unknown = model.unk_token.as_deref().unwrap_or("[UNK]");
    let unknown = *model.vocab.get(unknown).ok_or(TokenizerError::Missing("unk_token"))?;
    let spelled = |(text, kind): (&String, &TokenKind)| match (kind, text.strip_prefix(prefix)) {
        (TokenKind::Control | TokenKind::UserDefined, _) => text.clone(),
        (_, Some(rest)) if !rest.is_empty() => rest.to_owned(),
        _ => format!(" {text}"),
    };
    let bytes = texts.iter().zip(&kinds).map(|token| spelled(token).into_bytes().into()).collect();
    let word_chars_max = model.max_input_chars_per_word.unwrap_or(100).min(1_000);
    Ok((Vocab::new(bytes, kinds), Rules::WordPiece(WordPiece { unknown, word_chars_max, ..rules })))
}

impl Steps {
    fn normalizer(&mut self, value: &Value) -> Result<(), TokenizerError> {
        let flag = |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
        match kind(value) {
            "Sequence" => each(value, "normalizers", |part| self.normalizer(part)),
            "NFC" => {
                self.composed = true;
                Ok(())
            }
            "Prepend" if value.get("prepend").and_then(Value::as_str) == Some("\u{2581}") => {
                self.space_prefix = true;
                Ok(())
            }
            "Replace" if is_space_to_mark(value) => {
                self.spaces = true;
                Ok(())
            }
            "BertNormalizer" => {
                let lowercase = flag("lowercase", true);
                self.word_piece = Some(WordPiece {
                    lowercase,
                    strip_accents: flag("strip_accents", lowercase),
                    clean: flag("clean_text", true),
                    ideographs: flag("handle_chinese_chars", true),
                    ..WordPiece::uncased(0)
                });
                Ok(())
            }
            other => Err(TokenizerError::UnknownStep(other.to_owned())),
        }
    }

    fn pre_tokenizer(&mut self, value: &Value) -> Result<(), TokenizerError> {
        let flag = |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
        match kind(value) {
            "Sequence" => each(value, "pretokenizers", |part| self.pre_tokenizer(part)),
            "ByteLevel" if !flag("add_prefix_space", true) => {
                self.byte_level = true;
                if flag("use_regex", true) {
                    self.stages.push(Stage::Gpt2);
                }
                Ok(())
            }
            "Digits" => {
                let max = if flag("individual_digits", false) { 1 } else { usize::MAX };
                self.stages.push(Stage::Numbers { max });
                Ok(())
            }
            "Split" => self.split(value),
            "Metaspace" => {
                let scheme = value.get("prepend_scheme").and_then(Value::as_str).unwrap_or("always");
                if flag("split", true) || !matches!(scheme, "never" | "always") {
                    return Err(TokenizerError::UnknownStep("Metaspace with words cut apart".to_owned()));
                }
                self.spaces = true;
                self.space_prefix = scheme == "always";
                Ok(())
            }
            "BertPreTokenizer" if self.word_piece.is_some() => Ok(()),
            other => Err(TokenizerError::UnknownStep(other.to_owned())),
        }
    }

    fn split(&mut self, value: &Value) -> Result<(), TokenizerError> {
        let pattern = |kind: &str| value.get("pattern").and_then(|pattern| pattern.get(kind)?.as_str());
        let isolated = value.get("behavior").and_then(Value::as_str) == Some("Isolated");
        let removes_words = value.get("invert").and_then(Value::as_bool).unwrap_or(false);
        match (pattern("Regex"), pattern("String")) {
            // Spaces have become U+2581 before, so there is nothing to cut at.
            (None, Some(" ")) if self.spaces => Ok(()),
            (Some(regex), None) if isolated && !removes_words => {
                let stage = Stage::of_regex(regex);
                self.stages.push(stage.ok_or_else(|| TokenizerError::UnknownSplitter(regex.to_owned()))?);
                Ok(())
            }
            (regex, text) => Err(TokenizerError::UnknownSplitter(regex.or(text).unwrap_or_default().to_owned())),
        }
    }
}

fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("a step without a type")
}

fn each(
    value: &Value,
    key: &str,
    step: impl FnMut(&Value) -> Result<(), TokenizerError>,
) -> Result<(), TokenizerError> {
    value.get(key).and_then(Value::as_array).into_iter().flatten().try_for_each(step)
}

fn is_space_to_mark(value: &Value) -> bool {
    let from = value.get("pattern").and_then(|pattern| pattern.get("String")?.as_str());
    (from, value.get("content").and_then(Value::as_str)) == (Some(" "), Some("\u{2581}"))
}

/// A special token of `tokenizer_config.json`: its text, or an object with it.
fn token_name(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The special tokens that are put around a single text.
fn ends(value: &Value) -> (Option<String>, Option<String>) {
    if kind(value) == "Sequence" {
        let parts = value.get("processors").and_then(Value::as_array).into_iter().flatten();
        return parts.map(ends).find(|ends| *ends != (None, None)).unwrap_or_default();
    }
    let Some(parts) = value.get("single").and_then(Value::as_array) else { return (None, None) };
    let special = |part: Option<&Value>| part?.get("SpecialToken")?.get("id")?.as_str().map(str::to_owned);
    (special(parts.first()), special(parts.last()))
}
