//! `tokenizer.json` files against Hugging Face's own library, and against files that cannot be reproduced.
#![allow(clippy::unwrap_used)]

use sha2::{Digest as _, Sha256};

use super::tests::{cached, fixture};
use super::*;

fn digest(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    Sha256::digest(&bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// `tests/fixtures/hf_tokenizers.py` fetches the files and made the digests.
#[test]
fn agrees_with_the_tokenizers_library() {
    let parity = fixture("tokenizers_parity.json");
    let texts = fixture("splits.json")["texts"].as_array().unwrap().clone();
    for (name, entry) in parity.as_object().unwrap() {
        let folder = if name == "minilm" { "all-minilm-l6-v2".to_owned() } else { format!("tokenizers/{name}") };
        let Some(path) = cached(&folder) else { continue };
        let json = std::fs::read_to_string(path.join("tokenizer.json")).unwrap();
        let config = std::fs::read_to_string(path.join("tokenizer_config.json")).ok();
        let tokenizer = Tokenizer::from_hf_json(&json, config.as_deref()).unwrap();
        let own = entry["special_texts"].as_array().unwrap();
        let mut wrong = Vec::new();
        for (key, special) in [("special", true), ("plain", false)] {
            let digests = entry[key].as_array().unwrap();
            assert_eq!(digests.len(), texts.len() + own.len());
            for (text, expected) in texts.iter().chain(own).zip(digests) {
                let text = text.as_str().unwrap();
                let tokens = tokenizer.encode(text, special).unwrap();
                if digest(&tokens) != expected.as_str().unwrap() {
                    wrong.push((key, text, tokens));
                }
            }
        }
        let first: Vec<_> = wrong.iter().take(8).collect();
        assert!(wrong.is_empty(), "{name}: {} texts differ, such as {first:?}", wrong.len());
        println!("{name}: {} texts agree, both ways", texts.len() + own.len());
        match name.as_str() {
            "minilm" => {
                assert_eq!((tokenizer.bos(), tokenizer.last(), tokenizer.add_bos()), (Some(101), Some(102), true))
            }
            "llama3_1" => assert!(tokenizer.add_bos() && tokenizer.bos() == Some(128_000)),
            "gemma3" => assert!(tokenizer.add_bos() && tokenizer.bos() == Some(2)),
            "qwen3" => assert!(!tokenizer.add_bos() && tokenizer.eos_ids().contains(&151_645)),
            _ => {}
        }
    }
}

fn json(model: &str, more: &str) -> String {
    format!(
        r#"{{"added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"model":{model}{more}}}"#
    )
}

#[test]
fn what_cannot_be_reproduced_is_refused() {
    let refused = |json: &str| Tokenizer::from_hf_json(json, None).unwrap_err().to_string();
    assert!(refused("{").contains("tokenizer.json"));
    assert!(refused(&json(r#"{"type":"WordLevel","vocab":{}}"#, "")).contains("WordLevel"));
    assert!(refused(&json(r#"{"type":"BPE","vocab":{"a":0}}"#, "")).contains("neither"));
    assert!(refused(&json(r#"{"type":"BPE","vocab":{"a":4294967295}}"#, "")).contains("more than"));
    assert!(refused(&json(r#"{"type":"BPE","vocab":{"a":0,"b":0}}"#, "")).contains("two tokens"));
    let with = |steps: &str| {
        let steps = format!(r#"{{"added_tokens":[],"model":{{"type":"BPE","vocab":{{"a":0}}}},{steps}}}"#);
        refused(&steps)
    };
    assert!(with(r#""normalizer":{"type":"Lowercase"}"#).contains("Lowercase"));
    assert!(with(r#""pre_tokenizer":{"type":"Whitespace"}"#).contains("Whitespace"));
    let split = r#""pre_tokenizer":{"type":"Split","pattern":{"Regex":"x(y|z)+"},"behavior":"Isolated"}"#;
    assert!(with(split).contains("x(y|z)+"));
    let byte_level = r#""pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false}"#;
    let steps = format!(r#"{{"added_tokens":[],"model":{{"vocab":{{"a":0,"b":1}},"merges":["a b"]}},{byte_level}}}"#);
    assert!(refused(&steps).contains("merge 0"));
    let steps = format!(r#"{{"added_tokens":[],"model":{{"vocab":{{"a":0,"b":9}}}},{byte_level}}}"#);
    let tokenizer = Tokenizer::from_hf_json(&steps, None).unwrap();
    assert_eq!((tokenizer.encode("ab", false).unwrap(), tokenizer.vocab_len()), (vec![0, 9], 10));
}
