//! Every syntax written and read back however it is cut, outputs that are no calls, and real templates.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::constraint::{Constrainer, Grammar};
use crate::template::{ChatTemplate, TemplateError};

const TOOLS: [&str; 3] = ["get", "get_weather", "f-2"];

fn parser(syntax: &'static Syntax, kept: Kept) -> Parser {
    Parser::new(syntax, TOOLS.map(str::to_owned).to_vec(), kept)
}

/// What an output comes to: its content, and each call's name and arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    content: String,
    calls: Vec<(String, String)>,
}

impl Told {
    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Content(text) => {
                    assert!(!text.is_empty());
                    self.content.push_str(&text);
                }
                Event::Call { name } => self.calls.push((name, String::new())),
                Event::Arguments(text) => {
                    assert!(!text.is_empty());
                    self.calls.last_mut().expect("a call has begun").1.push_str(&text);
                }
            }
        }
    }
}

fn read<'t>(syntax: &'static Syntax, kept: Kept, pieces: impl IntoIterator<Item = &'t str>) -> Told {
    let (mut parser, mut told) = (parser(syntax, kept), Told::default());
    pieces.into_iter().for_each(|piece| told.take(parser.push(piece)));
    told.take(parser.finish());
    assert_eq!(parser.calls() as usize, told.calls.len());
    told
}

/// `text` in pieces that end at these characters.
fn cut<'t>(text: &'t str, cuts: &[usize]) -> Vec<&'t str> {
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| ends[cut % ends.len()]).chain([0, text.len()]).collect();
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z\"\\\\{}\\[\\]<>/ \n\t日😀]{0,8}".prop_map(Value::from),
        Just(Value::from("</tool_call>")),
        Just(Value::from("<tool_call>{\"name\": \"get\", ")),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec(("[a-z\" ]{0,3}", inner), 0..3).prop_map(|o| Value::Object(o.into_iter().collect())),
        ]
    })
}

fn calls() -> impl Strategy<Value = Vec<(usize, Value)>> {
    let object = prop::collection::vec(("[a-z]{1,3}", json_value()), 0..3);
    let object = object.prop_map(|members| Value::Object(members.into_iter().collect()));
    prop::collection::vec((0..TOOLS.len(), object), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// What any syntax writes is read back, however it is cut, with the text around it, and no marker is content.
    #[test]
    fn what_is_written_is_read_back_however_it_is_cut(
        calls in calls(), before in "([A-Z][a-z日]{0,6}[.!])?", after in "([A-Z][a-z日]{0,6}[.!])?",
        cuts in prop::collection::vec(0usize..10_000, 0..60), every: bool, sure: bool,
    ) {
        for syntax in SYNTAXES {
            let calls = if syntax.many { &calls[..] } else { &calls[..1] };
            let texts: Vec<String> = calls.iter().map(|(_, arguments)| arguments.to_string()).collect();
            let expected: Vec<(String, String)> =
                calls.iter().zip(&texts).map(|((tool, _), text)| (TOOLS[*tool].to_owned(), text.clone())).collect();
            let pairs: Vec<(&str, &str)> = expected.iter().map(|(n, a)| (n.as_str(), a.as_str())).collect();
            let before = if syntax.bare { "" } else { before.as_str() };
            let text = format!("{before}{}{after}", syntax.write(&pairs));
            let cuts: Vec<usize> = if every { (0..text.len()).collect() } else { cuts.clone() };
            let kept = if sure { Kept::TextAndCalls } else { Kept::Unsure };
            let told = read(syntax, kept, cut(&text, &cuts));
            prop_assert_eq!(&told.calls, &expected, "{}: {}", syntax.name, &text);
            prop_assert_eq!(told.content, format!("{before}{after}"), "{}: {}", syntax.name, text);
        }
    }

    /// Pieces of markers, of calls and of text in any order: cuts change nothing, and what is not a call is all there.
    #[test]
    fn nothing_is_lost_and_cuts_do_not_matter(
        which in 0..SYNTAXES.len(), parts in prop::collection::vec(0usize..18, 0..14),
        cuts in prop::collection::vec(0usize..10_000, 0..60),
    ) {
        let syntax = &SYNTAXES[which];
        let whole = syntax.write(&[("get", r#"{"a": [1, "x"]}"#)]);
        let other = syntax.write(&[("nobody", r#"{}"#)]);
        let pieces = [
            syntax.trigger, syntax.list_open, syntax.call_open, syntax.call_close, syntax.list_close, &whole, &other,
            &whole[..whole.len() / 2], &syntax.trigger[..1], " ", "\n", "text", "{", "}", "\"", ", ", r#"{"name": "get""#,
            r#", "arguments": {"a": "#,
        ];
        let text: String = parts.iter().map(|part| pieces[*part]).collect();
        let told = read(syntax, Kept::Unsure, cut(&text, &cuts));
        prop_assert_eq!(&told, &read(syntax, Kept::Unsure, [text.as_str()]), "{}: {:?}", syntax.name, &text);
        for (name, arguments) in &told.calls {
            prop_assert!(TOOLS.contains(&name.as_str()));
            prop_assert!(serde_json::from_str::<Value>(arguments).unwrap().is_object());
        }
        // Characters of content come in the order in which they were written; without calls, all of them do.
        let mut rest = text.chars();
        prop_assert!(told.content.chars().all(|c| rest.any(|other| other == c)), "{:?} of {:?}", told.content, text);
        if told.calls.is_empty() {
            prop_assert_eq!(told.content, text);
        }
    }

    /// An output that a grammar holds may end anywhere: what was given out until then is a beginning of the whole.
    #[test]
    fn a_cut_output_is_a_beginning(calls in calls(), end in 0usize..10_000) {
        for syntax in SYNTAXES {
            let calls = if syntax.many { &calls[..] } else { &calls[..1] };
            let texts: Vec<(&str, String)> = calls.iter().map(|(tool, a)| (TOOLS[*tool], a.to_string())).collect();
            let pairs: Vec<(&str, &str)> = texts.iter().map(|(n, a)| (*n, a.as_str())).collect();
            let text = syntax.write(&pairs);
            let told = read(syntax, Kept::Calls, [&text[..text.floor_char_boundary(end % (text.len() + 1))]]);
            prop_assert_eq!(told.content, "", "{}", syntax.name);
            for ((name, arguments), (whole_name, whole)) in told.calls.iter().zip(&texts) {
                prop_assert!(name == whole_name && whole.starts_with(arguments.as_str()));
            }
        }
    }
}

#[test]
fn what_is_no_call_is_content_whole() {
    let hermes = Syntax::named("hermes").unwrap();
    for text in [
        "<tool_call>",
        "<tool_call>\n{\"name\": \"nobody\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": 1,}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"get\", \"arguments\": \"{}\"}\n</tool_call>",
        "<tool_call>{\"name\": \"get\", \"arguments\": {\"a\": \"unfinished",
        "<tool_call> 7 </tool_call> and <tool_call",
        "a < b, and <tool",
        "no call at all \n\n",
    ] {
        assert_eq!(read(hermes, Kept::Unsure, [text]), Told { content: text.to_owned(), calls: vec![] }, "{text}");
    }
    let good = "<tool_call>{\"name\": \"get\", \"arguments\": {}}</tool_call>";
    let told = read(hermes, Kept::Unsure, ["<tool_call> bad ", good, " <tool_call>{\"name\": \"get\",", good]);
    assert_eq!(told.content, "<tool_call> bad <tool_call>{\"name\": \"get\",");
    assert_eq!(told.calls.len(), 2);
    let long =
        format!("<tool_call>{{\"name\": \"get\", \"arguments\": {{\"a\": \"{}\"}}}}</tool_call>", "x".repeat(70_000));
    assert_eq!(
        read(hermes, Kept::Unsure, [long.as_str()]).content,
        long,
        "no more is held back than there is room for"
    );
    assert_eq!(read(hermes, Kept::TextAndCalls, [long.as_str()]).calls[0].1.len(), 70_000 + 9);
}

#[test]
fn a_call_without_its_end_is_a_call() {
    let hermes = Syntax::named("hermes").unwrap();
    let told = read(
        hermes,
        Kept::Unsure,
        ["Well.\n<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": 1}, \"id\": \"x\"}\n"],
    );
    assert_eq!(told, Told { content: "Well.".to_owned(), calls: vec![("get".to_owned(), "{\"a\": 1}".to_owned())] });
    let cut = read(hermes, Kept::Unsure, ["<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": 1}}\n</tool"]);
    assert_eq!((cut.content.as_str(), cut.calls.len()), ("", 1));
}

#[test]
fn llamas_call_begins_the_output_or_is_none() {
    let llama = Syntax::named("llama").unwrap();
    let call = r#"{"name": "get", "parameters": {"a": 1}}"#;
    for text in [call.to_owned(), format!("<|python_tag|>{call}"), format!("\n <|python_tag|>\n{call}")] {
        let told = read(llama, Kept::TextAndCalls, [text.as_str()]);
        assert_eq!(told, Told { content: String::new(), calls: vec![("get".to_owned(), "{\"a\": 1}".to_owned())] });
    }
    for text in [format!("So: {call}"), r#"{"named": 1}"#.to_owned(), r#" {"name": "Bob"} "#.to_owned()] {
        assert_eq!(read(llama, Kept::TextAndCalls, [text.as_str()]), Told { content: text, calls: vec![] });
    }
}

#[test]
fn ids_are_as_templates_want_them() {
    for syntax in SYNTAXES {
        let id = syntax.call_id(b"request", 0);
        assert_eq!(id, syntax.call_id(b"request", 0));
        assert!(id != syntax.call_id(b"request", 1) && id != syntax.call_id(b"another", 0));
        assert_eq!(id.len(), if syntax.short_ids { 9 } else { 29 });
        assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    }
}

/// Outputs of a grammar, drawn at random from its masks: each is text and calls, and every argument fits its schema.
#[test]
fn every_output_of_a_grammar_is_read_as_text_and_whole_calls() {
    let schema = r#"{"properties": {"city": {"enum": ["Rom", "</tool_call>", "]"]}, "n": {"type": "integer", "minimum": 1, "maximum": 3}},
        "required": ["city"], "additionalProperties": false, "type": "object"}"#;
    let functions: Vec<(String, String)> = TOOLS.iter().map(|name| (name.to_string(), schema.to_owned())).collect();
    let (mut whole, mut with_text) = (0, 0);
    for syntax in SYNTAXES {
        for controls in [false, true] {
            let marks = [syntax.trigger, syntax.call_open, syntax.list_close].map(str::trim_ascii);
            let marks: Vec<&str> = marks.into_iter().filter(|mark| mark.len() > 1).collect();
            let words: Vec<&[u8]> = if controls { vec![b" a"] } else { marks.iter().map(|m| m.as_bytes()).collect() };
            let control: &[&str] = if controls { &marks } else { &[] };
            let tokenizer = crate::constraint::tests::with_control(&words, control, true);
            let constrainer = Constrainer::new(&tokenizer).unwrap();
            for (text, many) in [(true, true), (true, false), (false, true), (false, false)] {
                let grammar = CallGrammar { syntax, functions: functions.clone(), text, many: many && syntax.many };
                let matcher =
                    constrainer.compile(&Grammar::Calls(grammar)).unwrap_or_else(|e| panic!("{}: {e}", syntax.name));
                for seed in 0..6 {
                    let (pieces, ended) = walk(matcher.clone(), &tokenizer, seed);
                    let told = read(syntax, Kept::TextAndCalls, pieces.iter().map(String::as_str));
                    let shown = format!("{} {text} {many} {controls}: {:?}", syntax.name, pieces.concat());
                    assert!(text || (!ended || !told.calls.is_empty()), "{shown}");
                    assert!(text || told.content.is_empty(), "{shown}");
                    assert!(many || told.calls.len() <= 1, "{shown}");
                    let complete = told.calls.len() - usize::from(!ended && !told.calls.is_empty());
                    for (_, arguments) in &told.calls[..complete] {
                        let value: Value = serde_json::from_str(arguments).unwrap_or_else(|e| panic!("{e}: {shown}"));
                        assert!(["Rom", "</tool_call>", "]"].contains(&value["city"].as_str().unwrap()), "{shown}");
                        whole += 1;
                    }
                    with_text += usize::from(!told.content.is_empty() && !told.calls.is_empty());
                }
            }
        }
    }
    println!("{whole} calls, {with_text} outputs with text and calls");
    assert!(whole > 200 && with_text > 30);
}

/// Text of tokens drawn from the masks, and whether the output came to its end.
fn walk(mut matcher: crate::Matcher, tokenizer: &crate::Tokenizer, seed: u64) -> (Vec<String>, bool) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = move |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let (mut pieces, mut pending) = (Vec::new(), Vec::new());
    for step in 0..400 {
        let mask = matcher.mask().unwrap();
        let allowed = |token: &u32| mask.get(*token as usize / 32).is_some_and(|w| w >> (token % 32) & 1 == 1);
        let open: Vec<u32> = (0..tokenizer.vocab_len() as u32).filter(allowed).collect();
        let rare: Vec<u32> = open.iter().copied().filter(|t| *t >= 256 && !tokenizer.eos_ids().contains(t)).collect();
        let ascii: Vec<u32> = open.iter().copied().filter(|t| (0x20..0x7f).contains(t)).collect();
        let end = open.iter().find(|t| tokenizer.eos_ids().contains(t)).copied();
        let token = match end {
            Some(end) if open.len() == 1 || (step > 40 && next(3) == 0) => end,
            _ if !rare.is_empty() && next(4) == 0 => rare[next(rare.len())],
            _ if !ascii.is_empty() && next(8) > 0 => ascii[next(ascii.len())],
            _ => open[next(open.len())],
        };
        if tokenizer.eos_ids().contains(&token) {
            return (pieces, true);
        }
        matcher.accept(&[token]).unwrap();
        pending.extend_from_slice(tokenizer.token_bytes(token).unwrap());
        if let Ok(text) = std::str::from_utf8(&pending) {
            pieces.push(text.to_owned());
            pending.clear();
        }
    }
    (pieces, false)
}

/// What real templates speak, by the names of llama.cpp's copies of them.
#[test]
fn real_templates_are_known_by_what_they_write() {
    let Some(folder) = std::env::home_dir().map(|home| home.join(".cache/cuckoo-test-models/llama.cpp-templates"))
    else {
        return;
    };
    if !folder.exists() {
        println!("skipped: {} is absent (tests/fixtures/fetch_vocabularies.py fetches it)", folder.display());
        return;
    }
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut spoken = BTreeMap::<&str, Vec<String>>::new();
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let template = ChatTemplate::new(&std::fs::read_to_string(&file).unwrap(), "<BOS>", "<EOS>").unwrap();
        let dialect = Dialect::detect(&template);
        let tool = Tool { name: "get_weather", description: None, parameters: None };
        let function = json!({"name": "get_weather", "arguments": {"city": "Rome 4712"}});
        let chat = [
            json!({"role": "user", "content": "Hello."}),
            json!({"role": "assistant", "content": null, "tool_calls": [{"id": "call_from_elsewhere", "type": "function", "function": function}]}),
            json!({"role": "tool", "tool_call_id": "call_from_elsewhere", "name": "get_weather", "content": "Rain 4713."}),
            json!({"role": "user", "content": "Thanks 4714."}),
        ];
        let prompt = |turns| dialect.prompt(&template, &ToolChat { messages: &chat[..turns], tools: &[tool] });
        let expected = ["get_weather", "Rome 4712", "Rain 4713.", "Thanks 4714."];
        // Mistral's wants the assistant to speak after a tool.
        let refused = matches!(prompt(4), Err(TemplateError::Refused(why)) if why.contains("alternate"));
        let turns = if refused { 3 } else { 4 };
        match prompt(turns) {
            Ok(prompt) => {
                for told in &expected[..turns] {
                    assert!(prompt.contains(told), "{name}: {told} is not in {prompt}");
                }
            }
            // It wants variables of its own in any conversation.
            Err(_) if name == "fireworks-ai-llama-3-firefunction-v2" => {}
            Err(why) => panic!("{name}: {why}"),
        }
        // As many as a request may have, each with a schema of some size.
        let properties: Vec<(String, Value)> = (0..8)
            .map(|i| (format!("p{i}"), json!({"type": "string", "description": "what it is", "enum": ["a", "b"]})))
            .collect();
        let schema = json!({"type": "object", "properties": Value::Object(properties.into_iter().collect()), "required": ["p1"]});
        let many = vec![Tool { name: "get", description: Some("Gets it."), parameters: Some(&schema) }; 128];
        let told = dialect.prompt(&template, &ToolChat { messages: &chat[..1], tools: &many });
        assert!(told.is_ok() || name == "fireworks-ai-llama-3-firefunction-v2", "{name}: {told:?}");
        spoken.entry(if dialect.is_native() { dialect.syntax().name } else { "" }).or_default().push(name);
    }
    let strangers = spoken.remove("").unwrap().len();
    println!("{strangers} templates get the generic syntax; {spoken:#?}");
    for (syntax, models) in NATIVE {
        assert_eq!(spoken.remove(syntax).unwrap(), *models, "{syntax}");
    }
    assert!(spoken.is_empty(), "{spoken:?}");
}

/// The templates that know tools, and what they write calls in.
const NATIVE: &[(&str, &[&str])] = &[
    ("apriel", &["Apriel-1.6-15b-Thinker-fixed", "unsloth-Apriel-1.5"]),
    ("deepseek", &["llama-cpp-deepseek-r1"]),
    ("functionary", &["meetkai-functionary-medium-v3.1"]),
    (
        "hermes",
        &[
            "Bielik-11B-v3.0-Instruct",
            "MiMo-VL",
            "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
            "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
            "Qwen-QwQ-32B",
            "Qwen-Qwen2.5-7B-Instruct",
            "Qwen-Qwen3-0.6B",
            "Reka-Edge",
            "ibm-granite-granite-4.0",
            "ibm-granite-granite-4.1",
        ],
    ),
    (
        "llama",
        &["meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "meta-llama-Llama-3.3-70B-Instruct"],
    ),
    ("minimax", &["MiniMax-M1"]),
    ("mistral", &["mistralai-Mistral-Nemo-Instruct-2407"]),
    ("mistral-args", &["mistralai-Ministral-3-14B-Reasoning-2512", "unsloth-mistral-Devstral-Small-2507"]),
    ("nemotron", &["NVIDIA-Nemotron-Nano-v2"]),
];
