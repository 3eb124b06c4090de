//! The walks against the regular expressions that they walk.
#![allow(clippy::unwrap_used)]

use std::{convert::Infallible, path::PathBuf};

use proptest::prelude::*;

use super::*;

fn words(splitter: &Splitter, text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let result: Result<(), Infallible> = splitter.split(text, &mut |word| {
        words.push(word.to_owned());
        Ok(())
    });
    result.unwrap();
    words
}

/// Words found by Python's `regex` module; `tests/fixtures/make_fixtures.py` has the expressions.
#[test]
fn agrees_with_regular_expressions() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/splits.json");
    let fixture: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let texts = fixture["texts"].as_array().unwrap();
    assert!(texts.len() > 300);
    for (name, expected) in fixture["words"].as_object().unwrap() {
        let splitter = Splitter::named(name).unwrap();
        for (text, expected) in texts.iter().zip(expected.as_array().unwrap()) {
            let expected: Vec<&str> = expected.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
            // Cutting at digits leaves empty pieces between neighbours, which are no words.
            let expected: Vec<&str> = expected.into_iter().filter(|word| !word.is_empty()).collect();
            assert_eq!(words(&splitter, text.as_str().unwrap()), expected, "{name}: {text}");
        }
    }
}

#[test]
fn unknown_kinds_have_no_splitter() {
    for name in ["", "default", "kimi-k2", "superbpe", "GPT-2"] {
        assert_eq!(Splitter::named(name), None, "{name}");
    }
}

const NAMES: [&str; 13] = [
    "gpt-2",
    "smollm",
    "llama-bpe",
    "qwen2",
    "qwen35",
    "gpt-4o",
    "tekken",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "falcon",
    "bloom",
    "viking",
];

proptest! {
    #[test]
    fn words_are_never_empty_and_make_up_the_text(text in "[ \t\r\na1'é٣sS!ſ🦀\u{3000}]{0,40}") {
        for name in NAMES {
            let words = words(&Splitter::named(name).unwrap(), &text);
            prop_assert!(words.iter().all(|word| !word.is_empty()));
            prop_assert_eq!(words.concat(), text.clone());
        }
    }
}
