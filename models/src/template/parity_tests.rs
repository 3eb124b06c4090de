//! Many models' templates against jinja2 in transformers' set-up; `tests/fixtures/chat_templates.py` made the digests.
#![allow(clippy::unwrap_used)]

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use super::*;

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// A template whose clock stands where the fixture's stood.
fn compile(source: &str, now: jiff::civil::DateTime) -> Result<ChatTemplate, TemplateError> {
    let mut template = ChatTemplate::new(source, "<BOS>", "<EOS>")?;
    let told = move |format: String| jiff::fmt::strtime::format(&format, now).unwrap();
    template.environment.add_function("strftime_now", told);
    Ok(template)
}

fn render(template: &ChatTemplate, conversation: &Json) -> Result<String, TemplateError> {
    let extra = conversation.get("extra").and_then(Json::as_object);
    let extra: Vec<(&str, Json)> =
        extra.into_iter().flatten().map(|(name, value)| (name.as_str(), value.clone())).collect();
    template.render_conversation(&Conversation {
        messages: conversation["messages"].as_array().unwrap(),
        tools: conversation.get("tools").map(|tools| tools.as_array().unwrap().as_slice()),
        add_generation_prompt: conversation.get("add_generation_prompt").is_none_or(|value| value.as_bool().unwrap()),
        extra: &extra,
    })
}

/// The templates of the fixture, where they are at hand.
fn fixture() -> Option<(Json, Vec<(String, ChatTemplate)>)> {
    let folder = std::env::home_dir()?.join(".cache/cuckoo-test-models/llama.cpp-templates");
    if !folder.exists() {
        println!("skipped: {} is absent (tests/fixtures/fetch_vocabularies.py fetches it)", folder.display());
        return None;
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/chat_templates.json");
    let fixture: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let now = fixture["now"].as_str().unwrap().parse().unwrap();
    let source = |file| std::fs::read_to_string(folder.join(file)).unwrap();
    let names = fixture["templates"].as_object().unwrap().keys();
    let templates = names.map(|file| (file.clone(), compile(&source(file), now).unwrap())).collect();
    Some((fixture, templates))
}

/// In Jinja, `'a'|safe + b` escapes `b` for HTML, which this engine's `+` never does. Only one of these templates adds
/// marked texts: where it lists tools. Everything else in those prompts must agree.
const ESCAPED: (&str, &[&str]) = (
    "meetkai-functionary-medium-v3.1.jinja",
    &[
        "tools",
        "tools without system",
        "call",
        "call answered",
        "two calls",
        "no content",
        "nested tool",
        "nested call",
        "numbers",
        "bare tools",
    ],
);

/// `a ~ b` writes numbers below 1e-4 and from 1e16 without an exponent, where Python has one.
const UNLIKE: &[(&str, &str)] = &[("GigaChat3-10B-A1.8B.jinja", "numbers"), ("GigaChat3.1-10B-A1.8B.jinja", "numbers")];

#[test]
fn agrees_with_transformers_on_many_models() {
    let Some((fixture, templates)) = fixture() else { return };
    assert_eq!(templates.len(), 70);
    let conversations = fixture["conversations"].as_array().unwrap();
    let (mut agreed, mut refused, mut failed) = (0, 0, 0);
    let (mut wrong, mut unlike, mut unseen, mut escaped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (file, template) in &templates {
        let outcomes = fixture["templates"][file].as_array().unwrap();
        assert_eq!(outcomes.len(), conversations.len());
        let before = agreed;
        for (conversation, expected) in conversations.iter().zip(outcomes) {
            let name = conversation["name"].as_str().unwrap();
            let plain = expected.as_str().or(expected["plain"].as_str());
            match (render(template, conversation), plain, expected["refused"].as_str()) {
                (Ok(prompt), Some(plain), _) if digest(&prompt) == plain => agreed += 1,
                (Err(TemplateError::Refused(why)), None, Some(expected)) if why == expected => refused += 1,
                // Where Jinja itself fails on a type, this engine may have looser types and give a prompt.
                (_, None, None) if expected["failed"].is_string() => failed += 1,
                (Ok(_), Some(_), _) if UNLIKE.contains(&(file, name)) => unlike.push((file.as_str(), name)),
                (Ok(_), _, _) => wrong.push(format!("{file}, {name}: other than {expected}")),
                (Err(why), _, _) => wrong.push(format!("{file}, {name}: {why:?} where {expected} was expected")),
            }
            if expected["plain"].is_string() {
                escaped.push((file.as_str(), name));
            }
        }
        if agreed == before {
            unseen.push(file);
        }
    }
    println!("{agreed} prompts and {refused} refusals agree; Jinja fails on {failed} more");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(unlike, UNLIKE);
    assert!(unseen.is_empty(), "no prompt of these was compared: {unseen:?}");
    assert_eq!(escaped, ESCAPED.1.iter().map(|name| (ESCAPED.0, *name)).collect::<Vec<_>>());
}
