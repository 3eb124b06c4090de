//! Masks against brute force: every token of a small vocabulary is tried on a description of the same texts that the
//! parser never sees.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use regex_automata::Anchored;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::util::start;

use super::*;

/// Tokens of more than one byte: they cut characters, cross the borders of lexemes and begin one another.
const WORDS: [&[u8]; 21] = [
    b"ab",
    b"abc",
    b"abcd",
    b"ba",
    b" a",
    b"  ",
    b"\r\n",
    b"{\"",
    b"\":",
    b"\",\"",
    b"\"}",
    b"12",
    b"123",
    b"-1",
    b"1.",
    b"true",
    b"null",
    "日".as_bytes(),
    "日本".as_bytes(),
    b"\xe6\x97",
    b"\xa5\xe6",
];

const END: u32 = 256 + WORDS.len() as u32;

/// What GPT-2's vocabularies write for a byte.
fn written(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match plain(byte) {
        true => char::from(byte),
        false => char::from_u32(256 + (0..byte).filter(|b| !plain(*b)).count() as u32).unwrap(),
    }
}

/// Every byte, some words, and an end.
fn tokenizer(words: &[&[u8]], end: bool) -> Tokenizer {
    with_control(words, &[], end)
}

/// The same, and these tokens after the end, which stand for no text.
pub(crate) fn with_control(words: &[&[u8]], control: &[&str], end: bool) -> Tokenizer {
    let bytes: Vec<[u8; 1]> = (0..=255).map(|b| [b]).collect();
    let all = bytes.iter().map(<[u8; 1]>::as_slice).chain(words.iter().copied());
    let vocab: serde_json::Map<String, serde_json::Value> = all
        .enumerate()
        .map(|(id, word)| (word.iter().map(|b| written(*b)).collect(), serde_json::Value::from(id)))
        .collect();
    let end_id = vocab.len();
    let name = if end { "<|end|>" } else { "<|other|>" };
    let names = [name].into_iter().chain(control.iter().copied());
    let added: Vec<serde_json::Value> = names
        .enumerate()
        .map(|(i, name)| serde_json::json!({"id": end_id + i, "content": name, "special": true}))
        .collect();
    let tokenizer = serde_json::json!({
        "added_tokens": added, "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let config = end.then_some(r#"{"eos_token": "<|end|>"}"#);
    Tokenizer::from_hf_json(&tokenizer.to_string(), config).unwrap()
}

fn allows(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

/// Which texts are meant: whether a text can still become one of them, and whether it is one.
trait Oracle {
    fn can_become(&self, text: &[u8]) -> bool;
    fn is_whole(&self, text: &[u8]) -> bool;
}

struct Texts(Vec<Vec<u8>>);

impl Oracle for Texts {
    fn can_become(&self, text: &[u8]) -> bool {
        self.0.iter().any(|whole| whole.starts_with(text))
    }

    fn is_whole(&self, text: &[u8]) -> bool {
        self.0.iter().any(|whole| whole == text)
    }
}

struct Automatic(dense::DFA<Vec<u32>>);

impl Automatic {
    fn new(regex: &str) -> Self {
        let config = dense::Config::new().minimize(true).start_kind(StartKind::Anchored);
        Self(dense::Builder::new().configure(config).build(&format!("^(?:{regex})$")).unwrap())
    }

    fn state(&self, text: &[u8]) -> regex_automata::util::primitives::StateID {
        let start = self.0.start_state(&start::Config::new().anchored(Anchored::Yes)).unwrap();
        text.iter().fold(start, |state, byte| self.0.next_state(state, *byte))
    }
}

impl Oracle for Automatic {
    fn can_become(&self, text: &[u8]) -> bool {
        !self.0.is_dead_state(self.state(text))
    }

    fn is_whole(&self, text: &[u8]) -> bool {
        self.0.is_match_state(self.0.next_eoi_state(self.state(text)))
    }
}

/// Walks at random, and at every step asks the oracle about every token of the vocabulary.
fn agrees(constrainer: &Constrainer, tokenizer: &Tokenizer, grammar: &Grammar, oracle: &dyn Oracle, seed: u64) {
    let mut matcher = constrainer.compile(grammar).unwrap_or_else(|e| panic!("{grammar:?}: {e}"));
    let (mut text, mut choices) = (Vec::new(), seed);
    for _ in 0..24 {
        let mask = matcher.mask().unwrap_or_else(|e| panic!("{grammar:?} after {text:?}: {e}"));
        let mut open = Vec::new();
        for token in 0..tokenizer.vocab_len() as u32 {
            let expected = match token == END {
                true => oracle.is_whole(&text),
                false => oracle.can_become(&[text.as_slice(), tokenizer.token_bytes(token).unwrap()].concat()),
            };
            let shown = String::from_utf8_lossy(&text);
            assert_eq!(allows(&mask, token), expected, "{grammar:?} after {shown:?}: token {token}");
            open.extend(expected.then_some(token));
        }
        choices = choices.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = open[(choices >> 33) as usize % open.len()];
        matcher.accept(&[token]).unwrap();
        if token == END {
            assert!(matcher.is_over());
            assert!(allows(&matcher.mask().unwrap(), END), "after the end there is only the end");
            return;
        }
        text.extend_from_slice(tokenizer.token_bytes(token).unwrap());
    }
}

#[test]
fn masks_of_regexes_are_what_brute_force_finds() {
    let tokenizer = tokenizer(&WORDS, true);
    let constrainer = Constrainer::new(&tokenizer).unwrap();
    for regex in [
        "abc",
        "a*b+c?",
        "(ab|abc|abcd)*",
        "[a-c]{2,5}",
        r"-?(0|[1-9][0-9]{0,3})(\.[0-9]{1,2})?",
        "日本?語*",
        "[日-本]{1,3}",
        "(a|b)*a(a|b)(a|b)",
        r#"\{"[a-b]*":(true|null|12)\}"#,
        r"(\r\n| ){0,3}a",
        "",
        "a{0}",
    ] {
        for seed in 0..4 {
            agrees(&constrainer, &tokenizer, &Grammar::Regex(regex.to_owned()), &Automatic::new(regex), seed);
        }
        let anchored = Grammar::Regex(format!("^{regex}$"));
        agrees(&constrainer, &tokenizer, &anchored, &Automatic::new(regex), 9);
    }
}

#[test]
fn masks_of_finite_languages_are_what_brute_force_finds() {
    let tokenizer = tokenizer(&WORDS, true);
    let constrainer = Constrainer::new(&tokenizer).unwrap();
    let texts = |texts: &[&str]| Texts(texts.iter().map(|t| t.as_bytes().to_vec()).collect());
    let schema = |text: &str| Grammar::JsonSchema(text.to_owned());
    let cases = [
        (schema(r#"{"enum": ["a", "ab", 12, null, true]}"#), texts(&["\"a\"", "\"ab\"", "12", "null", "true"])),
        (schema(r#"{"type": "integer", "minimum": 8, "maximum": 12}"#), texts(&["8", "9", "10", "11", "12"])),
        (
            Grammar::Lark("start: x x?\nx: \"ab\" | \"a\" y\ny: \"b\" | \"12\"".to_owned()),
            texts(&["ab", "a12", "abab", "aba12", "a12ab", "a12a12"]),
        ),
    ];
    for (grammar, oracle) in &cases {
        (0..6).for_each(|seed| agrees(&constrainer, &tokenizer, grammar, oracle, seed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Whatever is to be chosen from: quotes, control characters, cut characters, beginnings of one another.
    #[test]
    fn masks_of_choices_are_what_brute_force_finds(
        choices in prop::collection::vec("[ab\"\\\\日\u{0}\n\u{7f}\u{2028}😀1-3{}]{0,4}", 1..8), seed: u64,
    ) {
        let tokenizer = tokenizer(&WORDS, true);
        let constrainer = Constrainer::new(&tokenizer).unwrap();
        let oracle = Texts(choices.iter().map(|c| c.as_bytes().to_vec()).collect());
        agrees(&constrainer, &tokenizer, &Grammar::Choice(choices), &oracle, seed);
    }

    /// Text from strangers neither panics nor stays without an answer.
    #[test]
    fn noise_is_compiled_or_refused(text in "[a-c{}\\[\\]()|*+?^$\":,/&~<>% \n\\\\.0-9-]{0,40}") {
        let constrainer = Constrainer::new(&tokenizer(&WORDS, true)).unwrap();
        for grammar in [
            Grammar::Regex(text.clone()),
            Grammar::Lark(format!("start: {text}")),
            Grammar::JsonSchema(format!("{{\"pattern\": {}}}", serde_json::Value::from(text.clone()))),
            Grammar::JsonSchema(text),
        ] {
            if let Ok(mut matcher) = constrainer.compile(&grammar) {
                prop_assert!(matcher.mask().is_ok());
            }
        }
    }
}

#[test]
fn a_state_is_rebuilt_from_the_tokens_alone() {
    let tokenizer = tokenizer(&WORDS, true);
    let constrainer = Constrainer::new(&tokenizer).unwrap();
    let grammar = Grammar::JsonSchema(r#"{"type": "object", "properties": {"ab": {"type": "integer"}}}"#.to_owned());
    let text = br#"{"ab": 12}"#;
    let tokens: Vec<u32> = text.iter().map(|b| u32::from(*b)).collect();
    let mut matcher = constrainer.compile(&grammar).unwrap();
    for at in 0..=tokens.len() {
        let mut rebuilt = constrainer.compile(&grammar).unwrap();
        rebuilt.accept(&tokens[..at]).unwrap();
        assert_eq!(rebuilt.mask(), matcher.mask(), "after {at}");
        assert_eq!(matcher.mask(), matcher.mask(), "asking changes nothing");
        if let Some(token) = tokens.get(at) {
            matcher.accept(&[*token]).unwrap();
        }
    }
    assert!(matcher.is_over());
    let mut other = constrainer.compile(&grammar).unwrap();
    assert!(matches!(other.accept(&[u32::from(b'{'), u32::from(b'x')]), Err(ConstraintError::Stuck(_))));
    assert!(matches!(constrainer.compile(&grammar).unwrap().accept(&[1 << 20]), Err(ConstraintError::Stuck(_))));
}

#[test]
fn json_cannot_be_blank_for_ever() {
    let tokenizer = tokenizer(&WORDS, true);
    let constrainer = Constrainer::new(&tokenizer).unwrap();
    let mut matcher = constrainer.compile(&Grammar::JsonObject).unwrap();
    assert!(!allows(&matcher.mask().unwrap(), u32::from(b' ')), "it begins at once");
    matcher.accept(&[u32::from(b'{'), u32::from(b' ')]).unwrap();
    assert!(!allows(&matcher.mask().unwrap(), u32::from(b' ')));
    let mut indented = constrainer.compile(&Grammar::JsonObject).unwrap();
    indented.accept(&[u32::from(b'{'), u32::from(b'\n')]).unwrap();
    let spaces = (0..100).take_while(|_| indented.accept(&[u32::from(b' ')]).is_ok()).count();
    assert_eq!(spaces, 32);
}

#[test]
fn what_costs_too_much_is_refused_in_time() {
    let constrainer = Constrainer::new(&tokenizer(&WORDS, true)).unwrap();
    let many = |f: &dyn Fn(usize) -> String, n: usize, between: &str| (0..n).map(f).collect::<Vec<_>>().join(between);
    let object = |i: usize, j: usize| format!(r#"{{"properties": {{"p{i}_{j}": {{}}}}, "required": ["p{i}_{j}"]}}"#);
    let product = many(&|i| format!(r#"{{"anyOf": [{}]}}"#, many(&|j| object(i, j), 6, ",")), 8, ",");
    let nested = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    for grammar in [
        Grammar::JsonSchema(format!(r#"{{"allOf": [{product}]}}"#)),
        Grammar::JsonSchema(nested(r#"{"items":"#, "}", 2_000)),
        Grammar::JsonSchema(format!(r#"{{"pattern": "{}"}}"#, "a?".repeat(20_000))),
        Grammar::JsonSchema(format!(r#"{{"patternProperties": {{"{}": {{}}}}}}"#, "a?".repeat(20_000))),
        Grammar::Regex("a?".repeat(20_000)),
        Grammar::Regex(nested("(", ")", 2_000)),
        Grammar::Lark(format!("start: {}", nested("(", ")", 4_000))),
        Grammar::Lark(format!("start: A0\n{}\nA40: \"x\"", many(&|i| format!("A{i}: A{0} A{0}", i + 1), 40, "\n"))),
    ] {
        let began = std::time::Instant::now();
        let error = constrainer.compile(&grammar).expect_err("it is too much").to_string();
        assert!(began.elapsed().as_secs() < 20, "{error}");
        assert!(error.len() < 1_000 && !error.contains("<state>"), "{error}");
    }
    // Deep chains of rules are no such thing.
    let chain = many(&|i| format!("a{i}: a{}", i + 1), 1_000, "\n");
    let mut chained = constrainer.compile(&Grammar::Lark(format!("start: a0\n{chain}\na1000: \"x\""))).unwrap();
    assert!(allows(&chained.mask().unwrap(), u32::from(b'x')));
}

#[test]
fn a_vocabulary_must_be_able_to_end_and_to_spell() {
    let constrained = |tokenizer: &Tokenizer| Constrainer::new(tokenizer).map(|_| ()).unwrap_err().to_string();
    assert!(constrained(&tokenizer(&WORDS, false)).contains("ends an output"));
    let json = r#"{"added_tokens": [{"id": 1, "content": "<|end|>", "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;
    let poor = Tokenizer::from_hf_json(json, Some(r#"{"eos_token": "<|end|>"}"#)).unwrap();
    assert!(constrained(&poor).contains("0x20"));
}

#[test]
fn the_same_grammar_is_compiled_once() {
    let constrainer = Constrainer::new(&tokenizer(&WORDS, true)).unwrap();
    let grammar = |i: usize| Grammar::Regex(format!("a{{{i}}}"));
    for i in 0..3 * COMPILED_MAX {
        constrainer.compile(&grammar(i)).unwrap();
        constrainer.compile(&grammar(0)).unwrap();
        assert!(constrainer.compiled.lock().unwrap().len() <= COMPILED_MAX);
    }
    let compiled = constrainer.compiled.lock().unwrap();
    assert!(compiled.iter().any(|(g, _)| *g == grammar(0)), "what is asked for often stays");
    assert!(!compiled.iter().any(|(g, _)| *g == grammar(1)));
}
