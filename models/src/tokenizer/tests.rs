//! Tokenizers against other implementations' results, and against texts made to break them.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::gguf::GgufWriter;

/// Where models too large to commit lie, if somebody fetched them.
pub(super) fn cached(path: &str) -> Option<PathBuf> {
    let path = std::env::home_dir()?.join(".cache/cuckoo-test-models").join(path);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is absent (tests/fixtures/fetch_vocabularies.py fetches vocabularies)", path.display());
    None
}

pub(super) fn fixture(name: &str) -> serde_json::Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// llama.cpp's own pairs of texts and tokens, for every vocabulary of a supported kind.
#[test]
fn agrees_with_llama_cpp() {
    let names = [
        "gpt-2",
        "llama-bpe",
        "qwen2",
        "qwen35",
        "refact",
        "starcoder",
        "command-r",
        "llama-spm",
        "phi-3",
        "mpt",
        "falcon",
        "deepseek-llm",
        "gemma-4",
        "bert-bge",
        "deepseek-coder",
    ];
    for name in names {
        let Some(path) = cached(&format!("llama.cpp-vocabs/ggml-vocab-{name}.gguf")) else { return };
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        let texts = std::fs::read_to_string(path.with_extension("gguf.inp")).unwrap();
        let expected = std::fs::read_to_string(path.with_extension("gguf.out")).unwrap();
        let texts = texts.strip_suffix("\n__ggml_vocab_test__\n").unwrap_or(&texts);
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let expected: Vec<&str> = expected.lines().collect();
        assert!(texts.len() == expected.len() && texts.len() > 40, "{name}: {} texts", texts.len());
        for (text, expected) in texts.iter().zip(&expected) {
            let expected: Vec<u32> = expected.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{name}: {text:?}");
            // WordPiece forgets how words were written.
            assert!(name == "bert-bge" || &tokenizer.decode(&expected) == text, "{name}: {text:?}");
        }
        println!("{name}: {} texts agree", texts.len());
    }
}

/// A vocabulary in metadata, as converters write it.
fn metadata(model: &str, tokens: &[impl AsRef<str>], types: &[i32]) -> GgufWriter {
    GgufWriter::new()
        .meta_str("tokenizer.ggml.model", model)
        .meta_strings("tokenizer.ggml.tokens", tokens)
        .meta_i32s("tokenizer.ggml.token_type", types)
}

fn load(file: &GgufWriter) -> Result<Tokenizer, TokenizerError> {
    let bytes = file.to_bytes();
    Tokenizer::from_gguf(&Gguf::parse(&bytes, bytes.len() as u64).unwrap())
}

fn sentence_piece() -> (Tokenizer, serde_json::Value) {
    let trained = fixture("sentencepiece.json");
    let list = |key: &str| trained[key].as_array().unwrap().clone();
    let tokens: Vec<String> = list("tokens").iter().map(|token| token.as_str().unwrap().to_owned()).collect();
    let types: Vec<i32> = list("types").iter().map(|kind| kind.as_i64().unwrap() as i32).collect();
    let scores: Vec<f32> = list("scores").iter().map(|score| score.as_f64().unwrap() as f32).collect();
    let file = metadata("llama", &tokens, &types)
        .meta_f32s("tokenizer.ggml.scores", &scores)
        .meta_u32("tokenizer.ggml.bos_token_id", 1)
        .meta_u32("tokenizer.ggml.eos_token_id", 2)
        .meta_u32("tokenizer.ggml.unknown_token_id", 0);
    (load(&file).unwrap(), trained)
}

/// A vocabulary trained by sentencepiece, against sentencepiece.
#[test]
fn agrees_with_sentencepiece() {
    let (tokenizer, trained) = sentence_piece();
    assert!(tokenizer.add_bos(), "the default of such vocabularies");
    let cases = trained["cases"].as_array().unwrap();
    assert!(cases.len() > 300);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let tokens = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokens, ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.decode(&tokens), text);
    }
    // A stranger's text cannot name a control token, unless it may.
    assert!(!tokenizer.encode("</s>", false).unwrap().contains(&2));
    assert_eq!(tokenizer.encode("a</s>b", true).unwrap().iter().filter(|id| **id == 2).count(), 1);
    assert_eq!(tokenizer.decode(&tokenizer.encode("a</s>b", true).unwrap()), "a</s>b");
}

/// The bytes in order, a few merges, and some specials.
fn small(splitter: &str) -> Tokenizer {
    load(&small_file(splitter)).unwrap()
}

fn small_file(splitter: &str) -> GgufWriter {
    let mut tokens: Vec<String> = (0..=255).map(|byte| load::byte_char(byte).to_string()).collect();
    let mut types = vec![1; 256];
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "a a", "aa aa"];
    for (token, kind) in merges.iter().map(|merge| (merge.replace(' ', ""), 1)) {
        tokens.push(token);
        types.push(kind);
    }
    for (token, kind) in [("<|end|>", 3), ("<|end|>>", 3), ("wörd", 4)] {
        tokens.push(token.to_owned());
        types.push(kind);
    }
    metadata("gpt2", &tokens, &types)
        .meta_str("tokenizer.ggml.pre", splitter)
        .meta_strings("tokenizer.ggml.merges", &merges)
        .meta_u32("tokenizer.ggml.eos_token_id", 0)
}

const KINDS: [&str; 4] = ["gpt-2", "smollm", "llama-bpe", "qwen2"];

#[test]
fn specials_are_found_longest_first_and_only_where_asked() {
    let tokenizer = small("gpt-2");
    assert_eq!(tokenizer.encode("hello hello", false).unwrap(), [259, 260]);
    assert_eq!(tokenizer.encode("hello<|end|>>", true).unwrap(), [259, 264]);
    assert_eq!(tokenizer.encode("<|end|>hello", true).unwrap(), [263, 259]);
    assert!(tokenizer.encode("<|end|>", false).unwrap().iter().all(|id| *id < 256));
    // User-defined tokens are text: they are found either way, and decode as text.
    assert_eq!(tokenizer.encode("hellowördhello", false).unwrap(), [259, 265, 259]);
    assert_eq!(tokenizer.eos_ids(), [0, 263]);
    let mut decoder = tokenizer.decoder();
    assert_eq!(decoder.push(263), None, "a control token is no text");
    assert_eq!(decoder.push(265).as_deref(), Some("wörd"));
    assert_eq!(decoder.push(9_999), None);
}

#[test]
fn a_decoder_never_cuts_a_character() {
    let tokenizer = small("gpt-2");
    let mut decoder = tokenizer.decoder();
    let texts: Vec<Option<String>> = "a🦀é".bytes().map(|byte| decoder.push(u32::from(byte))).collect();
    // In this vocabulary a token's id is its byte.
    let whole = |text: &str| Some(text.to_owned());
    assert_eq!(texts, [whole("a"), None, None, None, whole("🦀"), None, whole("é")]);
    // A character that breaks off is replaced once, as soon as it is known to be broken.
    assert_eq!(decoder.push(0xf0), None);
    assert_eq!(decoder.push(0x9f), None);
    assert_eq!(decoder.push(u32::from(b'x')), whole("\u{fffd}x"));
    assert_eq!(decoder.push(0xff), whole("\u{fffd}"));
    assert_eq!(decoder.push(0xe3), None);
    assert_eq!(decoder.finish(), whole("\u{fffd}"));
    assert_eq!(decoder.finish(), None);
}

#[test]
fn long_runs_stay_fast_and_longer_texts_are_refused() {
    for kind in KINDS {
        let tokenizer = small(kind);
        for unit in ["a", " ", "\n", "1", "!", "é", "<", "<|end|", "'s", "\u{301}", " a", "aA"] {
            let text = unit.repeat((1 << 15) / unit.len());
            let started = std::time::Instant::now();
            let tokens = tokenizer.encode(&text, true).unwrap();
            assert_eq!(tokenizer.decode(&tokens), text);
            assert!(started.elapsed().as_secs() < 5, "{kind} {unit:?}: {:?}", started.elapsed());
        }
        let error = tokenizer.encode(&"a".repeat(TEXT_BYTES_MAX + 1), false).unwrap_err();
        assert_eq!(error, TokenizeError::TooLong(TEXT_BYTES_MAX + 1));
    }
}

#[test]
fn bad_vocabularies_are_refused_by_name() {
    let refused = |file: &GgufWriter| load(file).unwrap_err().to_string();
    assert!(refused(&small_file("kimi-k2")).contains("\"kimi-k2\""));
    assert!(refused(&GgufWriter::new()).contains("tokenizer.ggml.model"));
    let tokens = ["a", "b", "c"];
    assert!(refused(&metadata("rwkv", &tokens, &[1; 3])).contains("\"rwkv\""));
    assert!(refused(&metadata("gpt2", &tokens, &[1; 3])).contains("tokenizer.ggml.pre"));
    assert!(refused(&metadata("gpt2", &tokens, &[1; 2])).contains("2 entries for 3 tokens"));
    assert!(refused(&metadata("gpt2", &tokens, &[1, 9, 1])).contains("unknown type 9"));
    let byte_level = |tokens: &[&str], merges: &[&str]| {
        let types = vec![1; tokens.len()];
        let file = metadata("gpt2", tokens, &types).meta_str("tokenizer.ggml.pre", "gpt-2");
        file.meta_strings("tokenizer.ggml.merges", merges)
    };
    assert!(refused(&byte_level(&["a", "b", "a"], &[])).contains("same text"));
    assert!(refused(&byte_level(&tokens, &["a b"])).contains("merge 0"));
    assert!(refused(&byte_level(&tokens, &["ab"])).contains("merge 0"));
    let file = byte_level(&tokens, &[]).meta_u32("tokenizer.ggml.eos_token_id", 3);
    assert!(refused(&file).contains("outside the 3 tokens"));
    let error = load(&byte_level(&tokens, &[])).unwrap().encode("ad", false).unwrap_err();
    assert_eq!(error, TokenizeError::NoToken(b'd'));

    let scored = |types: &[i32], scores: &[f32]| {
        metadata("llama", &["a", "<0x0Z>", "<s>"], types).meta_f32s("tokenizer.ggml.scores", scores)
    };
    assert!(refused(&metadata("llama", &tokens, &[1; 3])).contains("tokenizer.ggml.scores"));
    assert!(refused(&scored(&[1; 3], &[0.0, 1.0])).contains("2 entries"));
    assert!(refused(&scored(&[1; 3], &[0.0, f32::NAN, 1.0])).contains("no number"));
    assert!(refused(&scored(&[1, 6, 3], &[0.0; 3])).contains("names no byte"));
}

#[test]
fn merges_go_by_score_and_unused_tokens_come_apart() {
    let tokens = ["<unk>", "a", "b", "c", "ab", "bc", "abc", " "];
    let file = |types: &[i32], scores: &[f32]| {
        metadata("llama", &tokens, types)
            .meta_f32s("tokenizer.ggml.scores", scores)
            .meta_bool("tokenizer.ggml.add_space_prefix", false)
            .meta_u32("tokenizer.ggml.unknown_token_id", 0)
    };
    let encode = |types: &[i32], scores: &[f32], text: &str| load(&file(types, scores)).unwrap().encode(text, false);
    let normal = [2, 1, 1, 1, 1, 1, 1, 1];
    assert_eq!(encode(&normal, &[0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -9.0, 0.0], "abc").unwrap(), [6]);
    assert_eq!(encode(&normal, &[0.0, 0.0, 0.0, 0.0, -2.0, -1.0, f32::NEG_INFINITY, 0.0], "bcab").unwrap(), [5, 4]);
    // Equal scores merge from the left.
    assert_eq!(encode(&normal, &[0.0; 8], "ababc").unwrap(), [4, 6]);
    // An unused token may be a step to a longer one, but is never given out.
    let unused = [2, 1, 1, 1, 5, 1, 1, 1];
    assert_eq!(encode(&unused, &[0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, 0.0], "abcab").unwrap(), [6, 1, 2]);
    // Without byte tokens, an unknown character is the unknown token.
    assert_eq!(encode(&normal, &[0.0; 8], "aé").unwrap(), [1, 0]);
}

/// Runs a property on vocabularies that are built once.
fn check<S: Strategy>(strategy: S, property: impl Fn(S::Value)) {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let result = runner.run(&strategy, |value| {
        property(value);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn every_text_survives_a_round_trip() {
    let tokenizers = KINDS.map(small);
    check((any::<String>(), 0usize..4, any::<bool>()), |(text, kind, special)| {
        let tokenizer = &tokenizers[kind];
        let tokens = tokenizer.encode(&text, special).unwrap();
        assert_eq!(tokenizer.decode(&tokens), text);
        let mut decoder = tokenizer.decoder();
        let mut streamed: String = tokens.iter().filter_map(|token| decoder.push(*token)).collect();
        streamed.extend(decoder.finish());
        assert_eq!(streamed, text);
    });
}

#[test]
fn every_text_of_sentences_survives() {
    let (tokenizer, _) = sentence_piece();
    check("[ a-zé!▂🦀\n\\[]{0,40}", |text| {
        let tokens = tokenizer.encode(&text, false).unwrap();
        assert_eq!(tokenizer.decode(&tokens), text);
    });
}

#[test]
fn decoders_survive_any_tokens() {
    let tokenizer = small("qwen2");
    check(prop::collection::vec(0u32..300, 0..50), |tokens| {
        let mut decoder = tokenizer.decoder();
        let mut streamed: String = tokens.iter().filter_map(|token| decoder.push(*token)).collect();
        streamed.extend(decoder.finish());
        // Streaming only leaves out control tokens.
        let shown: Vec<u32> = tokens.into_iter().filter(|token| ![263, 264].contains(token)).collect();
        assert_eq!(streamed, tokenizer.decode(&shown));
    });
}
