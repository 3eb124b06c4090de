//! The real model's file: its sizes, its header damaged, and its tokenizer against an independent implementation.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use cuckoo_models::{Gguf, ModelFiles, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::weights;

#[test]
fn it_is_the_llama_that_its_publisher_describes() {
    let files = ModelFiles::open(weights()).unwrap();
    let spec = files.spec().unwrap();
    assert_eq!((spec.layers, spec.hidden, spec.heads, spec.kv_heads, spec.head_dim), (30, 576, 9, 3, 64));
    assert_eq!((spec.ffn, spec.vocab, spec.context_tokens), (1_536, 49_152, 8_192));
    assert_eq!((spec.rope_base, spec.tied_head, spec.rope_freqs), (100_000.0, true, false));
    assert_eq!((files.parameters(), files.has_halves()), (134_515_008, false));
}

/// Texts in many scripts, code, digits, blanks and special tokens; `fixtures/make_fixtures.py` has byte-level BPE written
/// from scratch in Python, and made these.
#[test]
fn its_tokens_are_those_of_an_independent_implementation() {
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(weights()).unwrap()).unwrap();
    let cases: Vec<Value> = serde_json::from_str(include_str!("fixtures/smollm2_tokens.json")).unwrap();
    assert!(cases.len() > 300);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let tokens = tokenizer.encode(text, case["special"].as_bool().unwrap()).unwrap();
        assert_eq!(tokens, ids, "{text:?}");
        assert_eq!(tokenizer.decode(&tokens), text);
        let mut decoder = tokenizer.decoder();
        let mut pieces: String = tokens.iter().filter_map(|t| decoder.push(*t)).collect();
        pieces.push_str(&decoder.finish().unwrap_or_default());
        if !tokens.iter().any(|t| tokenizer.is_special(*t)) {
            assert_eq!(pieces, text, "piece by piece");
        }
    }
    assert_eq!((tokenizer.bos(), tokenizer.add_bos(), tokenizer.vocab_len()), (Some(1), false, 49_152));
    assert_eq!(tokenizer.eos_ids(), [0, 2], "<|endoftext|> and <|im_end|>");
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(1_000));
    assert_eq!(tokenizer.token_bytes(2), Some(b"<|im_end|>".as_slice()));
    assert_eq!(tokenizer.token_bytes(49_152), None);
}

/// The beginning of the file, which holds the whole header, and the size of all of it.
fn header() -> &'static (Vec<u8>, u64) {
    static HEADER: OnceLock<(Vec<u8>, u64)> = OnceLock::new();
    HEADER.get_or_init(|| {
        let file = File::open(weights()).unwrap();
        let mut bytes = vec![0; 1_800_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        (bytes, file.metadata().unwrap().len())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Cut, and changed where it is not vocabulary: the beginning has the sizes, the end the tensors.
    #[test]
    fn a_damaged_header_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let (mut bytes, whole) = header().clone();
        for (at, value) in changes {
            let (at, len) = (at.index(6_000), bytes.len());
            bytes[if at < 3_000 { at } else { len - at }] = value;
        }
        let len = cut.map_or(bytes.len(), |cut| cut.index(bytes.len()));
        let _ = Gguf::parse(&bytes[..len], whole);
    }
}
