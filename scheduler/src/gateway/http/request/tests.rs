//! What the door makes of bodies: every field, good and bad. Never needs a market.
#![allow(clippy::unwrap_used)]

use super::*;
use cuckoo_wire::message::Constraint;
use proptest::prelude::*;
use serde_json::json;

mod tools;

fn read(surface: Surface, body: Value) -> Result<Asked, Refusal> {
    translate(surface, body.as_object().unwrap().clone(), ApiKey("ck_1".to_owned()))
}

/// A chat with these fields besides.
fn chat(extra: Value) -> Result<Asked, Refusal> {
    let mut body = json!({"model": "wren", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    read(Surface::Chat, body)
}

/// A completion of this prompt.
fn completion(prompt: Value) -> Result<Asked, Refusal> {
    read(Surface::Completion, json!({"model": "wren", "prompt": prompt}))
}

/// The turns of a chat of these messages.
fn turns(messages: Value) -> Result<Vec<(String, String)>, Refusal> {
    match chat(json!({"messages": messages}))?.generate.prompt {
        Prompt::Chat(turns) => Ok(turns.into_iter().map(|turn| (turn.role, turn.content)).collect()),
        other => panic!("a chat became {other:?}"),
    }
}

#[track_caller]
fn refused_for(param: &str, result: Result<Asked, Refusal>) -> String {
    let refusal = result.expect_err("it is to be refused");
    assert_eq!(refusal.param.as_deref(), Some(param), "{}", refusal.message);
    assert_eq!(refusal.code, cuckoo_wire::message::RefusalCode::InvalidRequest);
    refusal.message
}

#[test]
fn a_bare_request_gets_the_usual_values() {
    let asked = chat(json!({})).unwrap();
    let messages = vec![cuckoo_wire::message::ChatMessage::new("user", "hi")];
    let expected = Generate::new(ApiKey("ck_1".to_owned()), "wren".to_owned(), Prompt::Chat(messages));
    assert_eq!(asked.generate, expected);
    assert_eq!((asked.generate.sampling.temperature, asked.generate.sampling.top_p), (1.0, 1.0));
    assert!(!asked.stream && !asked.include_usage && asked.ignored.header().is_none());
}

#[test]
fn every_field_gets_through() {
    let asked = chat(json!({
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1,
        "presence_penalty": -1, "frequency_penalty": 0.25, "seed": -2, "stop": ["a", "b"], "logit_bias": {"12": -100, "3": 1.5},
        "stream": true, "stream_options": {"include_usage": true}, "n": 1, "ignore_eos": true,
        "max_price": {"prompt": "0.02", "completion": 0.06}, "typical_p": 0.7, "dry_multiplier": 0.8, "dry_base": 2,
        "dry_allowed_length": 3, "dry_penalty_last_n": 64, "dry_sequence_breakers": ["\n"], "xtc_probability": 0.5,
        "xtc_threshold": 0.2, "min_tokens": 3, "allowed_token_ids": [9, 5, 9], "bad_words": ["x", "y"],
        "stop_token_ids": [4], "include_stop_str_in_output": true,
    }))
    .unwrap();
    let sampling = Sampling {
        temperature: 0.5,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.05,
        repetition_penalty: 1.1,
        presence_penalty: -1.0,
        frequency_penalty: 0.25,
        logit_bias: BTreeMap::from([(3, 1.5), (12, -100.0)]),
        seed: Some(u64::MAX - 1),
        typical_p: 0.7,
        dry_multiplier: 0.8,
        dry_base: 2.0,
        dry_allowed_length: 3,
        dry_penalty_last_n: 64,
        xtc_probability: 0.5,
        xtc_threshold: 0.2,
        min_tokens: 3,
        allowed_token_ids: [5, 9].into(),
    };
    let breakers = asked.generate.dry_sequence_breakers.as_deref();
    assert_eq!((breakers, &asked.generate.stop_token_ids[..]), (Some(&["\n".to_owned()][..]), &[4][..]));
    assert_eq!((asked.generate.bad_words.join(" "), asked.generate.include_stop), ("x y".to_owned(), true));
    let everything = chat(json!({"dry_penalty_last_n": -1})).unwrap().generate.sampling;
    assert_eq!(everything, Sampling::default());
    assert_eq!(asked.generate.sampling, sampling);
    assert_eq!(asked.generate.stop, ["a", "b"]);
    assert_eq!(asked.generate.max_tokens, Some(7));
    assert!(asked.generate.ignore_eos && asked.stream && asked.include_usage);
    let price = Price { input_per_mtok: 20_000_000, output_per_mtok: 60_000_000 };
    assert_eq!(asked.generate.max_price, Some(price));
    assert!(asked.ignored.header().is_none());
}

#[test]
fn what_is_out_of_range_is_named() {
    for (param, value) in [
        ("temperature", json!(-1)),
        ("temperature", json!(2.01)),
        ("temperature", json!(1e308)),
        ("temperature", json!("0.5")),
        ("temperature", json!([])),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-1)),
        ("top_k", json!(1.5)),
        ("top_k", json!(4_294_967_296_u64)),
        ("min_p", json!(-0.1)),
        ("repetition_penalty", json!(0)),
        ("presence_penalty", json!(3)),
        ("frequency_penalty", json!(-3)),
        ("seed", json!(1.5)),
        ("seed", json!("1")),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-5)),
        ("max_completion_tokens", json!(0)),
        ("stop", json!("")),
        ("stop", json!(vec!["x"; limits::STOPS_MAX + 1])),
        ("stop", json!("x".repeat(limits::STOP_BYTES_MAX + 1))),
        ("stop[1]", json!(["a", 1])),
        ("logit_bias", json!({"1": 101})),
        ("logit_bias", json!({"1": "1"})),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!({"07": 1})),
        ("logit_bias", json!({"the": 1})),
        ("logit_bias", json!([])),
        ("stream", json!("yes")),
        ("ignore_eos", json!(1)),
        ("max_price", json!(5)),
        ("max_price.prompt", json!({"prompt": "-1"})),
        ("max_price.completion", json!({"completion": 0.000_000_000_1})),
        ("max_price", json!({"prompt": "100000"})),
        ("model", json!("")),
        ("model", json!(7)),
        ("model", json!("x".repeat(limits::NAME_BYTES_MAX + 1))),
        ("stream_options", json!({"include_usage": true})),
    ] {
        refused_for(param, chat(json!({param.split(['.', '[']).next().unwrap(): value})));
    }
    refused_for("max_completion_tokens", chat(json!({"max_tokens": 5, "max_completion_tokens": 6})));
    assert_eq!(chat(json!({"max_tokens": 5, "max_completion_tokens": 5})).unwrap().generate.max_tokens, Some(5));
    let options = json!({"stream": true, "stream_options": {"include_usage": "yes"}});
    refused_for("stream_options.include_usage", chat(options));
}

#[test]
fn what_is_out_of_range_of_other_servers_parameters_is_named() {
    for (param, value) in [
        ("typical_p", json!(0)),
        ("typical_p", json!(1.5)),
        ("dry_multiplier", json!(-1)),
        ("dry_multiplier", json!(101)),
        ("dry_base", json!(0.5)),
        ("dry_allowed_length", json!(0)),
        ("dry_penalty_last_n", json!(-2)),
        ("dry_sequence_breakers", json!([""])),
        ("dry_sequence_breakers", json!(vec!["x"; limits::DRY_BREAKERS_MAX + 1])),
        ("xtc_probability", json!(1.1)),
        ("xtc_threshold", json!(-0.1)),
        ("min_tokens", json!(-1)),
        ("allowed_token_ids", json!([])),
        ("allowed_token_ids", json!({"1": 2})),
        ("allowed_token_ids", json!((0..=limits::ALLOWED_TOKENS_MAX).collect::<Vec<_>>())),
        ("allowed_token_ids[1]", json!([1, -1])),
        ("bad_words", json!([""])),
        ("bad_words", json!(vec!["x"; limits::BAD_WORDS_MAX + 1])),
        ("bad_words", json!("x".repeat(limits::BAD_WORD_BYTES_MAX + 1))),
        ("stop_token_ids", json!(vec![1; limits::STOP_TOKENS_ASKED_MAX + 1])),
        ("stop_token_ids[0]", json!(["a"])),
        ("include_stop_str_in_output", json!("yes")),
        ("logprobs", json!(1)),
        ("top_logprobs", json!(5)),
        ("top_logprobs", json!(21)),
        ("prompt_logprobs", json!(21)),
        ("prompt_logprobs", json!(-1)),
    ] {
        refused_for(param, chat(json!({param.split('[').next().unwrap(): value})));
    }
    refused_for("min_tokens", chat(json!({"max_tokens": 5, "min_tokens": 6})));
}

#[test]
fn log_probabilities_are_asked_for_in_each_interfaces_way() {
    let show = |asked: Result<Asked, Refusal>| {
        let asked = asked.unwrap();
        assert_eq!(asked.generate.logprobs, asked.show.logprobs);
        (asked.show.logprobs, asked.generate.prompt_logprobs, asked.generate.echo)
    };
    assert_eq!(show(chat(json!({"logprobs": false, "top_logprobs": 0}))), (None, None, false));
    assert_eq!(show(chat(json!({"logprobs": true}))), (Some(0), None, false));
    assert_eq!(
        show(chat(json!({"logprobs": true, "top_logprobs": 20, "prompt_logprobs": 0}))),
        (Some(20), Some(0), false)
    );
    let completion = |mut extra: Value| {
        extra.as_object_mut().unwrap().extend(json!({"model": "wren", "prompt": "x"}).as_object().unwrap().clone());
        read(Surface::Completion, extra)
    };
    assert_eq!(show(completion(json!({"logprobs": 5}))), (Some(5), None, false));
    assert_eq!(show(completion(json!({"logprobs": 0, "echo": true}))), (Some(0), Some(0), true));
    assert_eq!(show(completion(json!({"logprobs": 3, "echo": true, "prompt_logprobs": 2}))), (Some(3), Some(3), true));
    assert_eq!(show(completion(json!({"echo": true, "stream": true}))), (None, None, true));
    refused_for("logprobs", completion(json!({"logprobs": true})));
    refused_for("logprobs", completion(json!({"logprobs": 21})));
    refused_for("top_logprobs", completion(json!({"logprobs": 2, "top_logprobs": 2})));
    refused_for("prompt_logprobs", completion(json!({"prompt_logprobs": 1, "stream": true})));
}

#[test]
fn what_would_change_the_answer_is_refused() {
    for (param, value) in [
        ("n", json!(2)),
        ("n", json!(1_000_000_000)),
        ("n", json!(-1)),
        ("best_of", json!(2)),
        ("echo", json!(true)),
        ("suffix", json!("end")),
        ("tool_choice", json!("any")),
        ("functions", json!([{"name": "f"}])),
        ("grammar", json!("root ::= \"a\"")),
        ("guided_whitespace_pattern", json!("x*")),
        ("modalities", json!(["text", "audio"])),
        ("truncation", json!("auto")),
        ("provider", json!({"only": ["x"]})),
    ] {
        let message = refused_for(param, chat(json!({param: value})));
        assert!(message.contains("not supported"), "{message}");
    }
}

#[test]
fn every_way_to_constrain_an_output_is_understood() {
    let schema = json!({"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}});
    let as_schema = Constraint::JsonSchema(schema.to_string());
    assert!(schema.to_string().find("\"b\"") < schema.to_string().find("\"a\""), "members stay in order");
    let choice = Constraint::Choice(vec!["yes".to_owned(), "no".to_owned()]);
    let named = json!({"name": "bird", "schema": schema, "strict": true, "description": "A bird."});
    for (field, body, expected) in [
        ("response_format", json!({"response_format": {"type": "json_object"}}), Constraint::JsonObject),
        (
            "response_format.json_schema.schema",
            json!({"response_format": {"type": "json_schema", "json_schema": named}}),
            as_schema.clone(),
        ),
        ("guided_json", json!({"guided_json": schema}), as_schema.clone()),
        ("guided_json", json!({"guided_json": schema.to_string()}), as_schema.clone()),
        ("guided_regex", json!({"guided_regex": "a+"}), Constraint::Regex("a+".to_owned())),
        ("guided_choice", json!({"guided_choice": ["yes", "no"]}), choice.clone()),
        ("guided_grammar", json!({"guided_grammar": "start: \"a\""}), Constraint::Grammar("start: \"a\"".to_owned())),
        ("structured_outputs.json", json!({"structured_outputs": {"json": schema}}), as_schema),
        ("structured_outputs.regex", json!({"structured_outputs": {"regex": "a"}}), Constraint::Regex("a".to_owned())),
        ("structured_outputs.choice", json!({"structured_outputs": {"choice": ["yes", "no"]}}), choice),
        (
            "structured_outputs.grammar",
            json!({"structured_outputs": {"grammar": "g"}}),
            Constraint::Grammar("g".to_owned()),
        ),
        (
            "structured_outputs.json_object",
            json!({"structured_outputs": {"json_object": true}}),
            Constraint::JsonObject,
        ),
    ] {
        let asked = chat(body.clone()).unwrap_or_else(|e| panic!("{body}: {e}"));
        assert_eq!(asked.generate.constraint, Some(expected), "{body}");
        let renamed = asked.names.rename(Refusal::invalid("constraint", "it is empty"));
        assert_eq!(
            (renamed.param.as_deref(), renamed.message),
            (Some(field), format!("{field} cannot be used: it is empty"))
        );
        let other = asked.names.rename(Refusal::invalid("prompt", "too long"));
        assert_eq!(other.param.as_deref(), Some("messages"));
    }
    let listed =
        chat(json!({"response_format": {"type": "json_schema", "json_schema": named}})).unwrap().ignored.header();
    assert_eq!(listed.unwrap(), "response_format.json_schema.description");
}

#[test]
fn constraints_that_make_no_sense_are_named() {
    for (param, body) in [
        ("response_format", json!({"response_format": "json"})),
        ("response_format.type", json!({"response_format": {}})),
        ("response_format.type", json!({"response_format": {"type": "yaml"}})),
        ("response_format.json_schema", json!({"response_format": {"type": "json_schema"}})),
        (
            "response_format.json_schema.schema",
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
        ),
        (
            "response_format.json_schema.schema",
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}),
        ),
        (
            "response_format.json_schema.strict",
            json!({"response_format": {"type": "json_schema", "json_schema": {"strict": 1}}}),
        ),
        ("guided_json", json!({"guided_json": [1]})),
        ("guided_regex", json!({"guided_regex": 5})),
        ("guided_choice", json!({"guided_choice": "a"})),
        ("guided_choice", json!({"guided_choice": []})),
        ("guided_choice", json!({"guided_choice": vec!["a"; limits::CONSTRAINT_CHOICES_MAX + 1]})),
        ("guided_choice[1]", json!({"guided_choice": ["a", 1]})),
        ("guided_grammar", json!({"guided_grammar": {}})),
        ("guided_grammar", json!({"guided_grammar": "x".repeat(limits::CONSTRAINT_BYTES_MAX + 1)})),
        ("structured_outputs", json!({"structured_outputs": {}})),
        ("structured_outputs", json!({"structured_outputs": "json"})),
        ("structured_outputs.structural_tag", json!({"structured_outputs": {"regex": "a", "structural_tag": "x"}})),
        ("guided_regex", json!({"response_format": {"type": "json_object"}, "guided_regex": "a"})),
        ("structured_outputs.regex", json!({"structured_outputs": {"json": {}, "regex": "a"}})),
        ("ignore_eos", json!({"ignore_eos": true, "guided_regex": "a"})),
    ] {
        refused_for(param, chat(body));
    }
}

#[test]
fn what_asks_for_nothing_is_fine() {
    let neutral = json!({
        "n": 1, "best_of": 1, "echo": false, "suffix": null, "logprobs": false, "top_logprobs": null, "tools": [],
        "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"], "temperature": null,
        "stop": null, "logit_bias": null, "stream_options": null, "max_price": null, "seed": null,
    });
    assert!(chat(neutral).unwrap().ignored.header().is_none());
}

#[test]
fn what_is_not_used_is_listed() {
    let asked = chat(json!({
        "user": "me", "store": true, "metadata": {"a": 1}, "stream": true, "stream_options": {"include_obfuscation": false},
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {}}], "name": "Ann"}],
        "max_price": {"request": 1},
    }));
    let listed = asked.unwrap().ignored.header().unwrap();
    let expected = "max_price.request, messages[].content[].cache_control, messages[].name, metadata, store, \
                    stream_options.include_obfuscation, user";
    assert_eq!(listed, expected);
}

#[test]
fn messages_are_text_with_a_role() {
    let got = turns(json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "three", "refusal": null, "tool_calls": []},
    ]));
    let expected = [("system", "Be brief."), ("user", "one\ntwo"), ("assistant", "three")];
    assert_eq!(got.unwrap(), expected.map(|(role, content)| (role.to_owned(), content.to_owned())));
    for (param, message) in [
        ("messages[0].role", json!({"content": "x"})),
        ("messages[0].role", json!({"role": "alien", "content": "x"})),
        ("messages[0].tool_call_id", json!({"role": "tool", "content": "x"})),
        ("messages[0].tool_call_id", json!({"role": "tool", "content": "x", "tool_call_id": "a"})),
        ("messages[0].tool_call_id", json!({"role": "user", "content": "x", "tool_call_id": "a"})),
        ("messages[0].role", json!({"role": 1, "content": "x"})),
        ("messages[0].content", json!({"role": "user"})),
        ("messages[0].content", json!({"role": "assistant", "content": null})),
        ("messages[0].content", json!({"role": "user", "content": 5})),
        ("messages[0].content[0].type", json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})),
        ("messages[0].content[0].type", json!({"role": "user", "content": [{"text": "x"}]})),
        ("messages[0].content[0].text", json!({"role": "user", "content": [{"type": "text"}]})),
        ("messages[0].content[0]", json!({"role": "user", "content": ["x"]})),
        ("messages[0].tool_calls[0].type", json!({"role": "assistant", "content": "x", "tool_calls": [{}]})),
        ("messages[0]", json!("hi")),
    ] {
        let refusal = turns(json!([message])).unwrap_err();
        assert_eq!(refusal.param.as_deref(), Some(param), "{}", refusal.message);
    }
    let user = json!({"role": "user", "content": "x"});
    for bad in [json!([]), json!("hi"), json!(null), json!(vec![user; limits::CHAT_MESSAGES_MAX + 1])] {
        assert_eq!(turns(bad).unwrap_err().param.as_deref(), Some("messages"));
    }
    let long = turns(json!([{"role": "user", "content": "x".repeat(limits::PROMPT_BYTES_MAX + 1)}])).unwrap_err();
    assert_eq!(long.param.as_deref(), Some("messages"), "the field by its name in this interface");
}

#[test]
fn a_completion_has_one_prompt() {
    let prompt = |value| completion(value).map(|asked| asked.generate.prompt);
    assert_eq!(prompt(json!("once")).unwrap(), Prompt::Text("once".to_owned()));
    assert_eq!(prompt(json!(["once"])).unwrap(), Prompt::Text("once".to_owned()));
    assert_eq!(prompt(json!([1, 2, 3])).unwrap(), Prompt::Tokens(vec![1, 2, 3]));
    assert_eq!(prompt(json!([5])).unwrap(), Prompt::Tokens(vec![5]));
    assert_eq!(prompt(json!([[1, 2]])).unwrap(), Prompt::Tokens(vec![1, 2]));
    for bad in
        [json!(null), json!(""), json!([]), json!([[]]), json!(5), json!({}), json!(["a", "b"]), json!([[1], [2]])]
    {
        refused_for("prompt", completion(bad));
    }
    refused_for("prompt", completion(json!(vec![1; limits::PROMPT_TOKENS_MAX + 1])));
    refused_for("prompt[1]", completion(json!([1, -1])));
    refused_for("prompt[1]", completion(json!([1, "a"])));
    refused_for("prompt[0]", completion(json!([4_294_967_296_u64])));
}

#[test]
fn refusals_name_the_field_that_was_sent() {
    for name in ["messages", "prompt"] {
        let param = |surface: Surface| surface.rename(Refusal::invalid(name, "too long")).param.unwrap();
        assert_eq!((param(Surface::Chat).as_str(), param(Surface::Completion).as_str()), ("messages", "prompt"));
    }
    assert_eq!(Surface::Chat.rename(Refusal::invalid("seed", "x")).param.as_deref(), Some("seed"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let name = prop_oneof![Just("role".to_owned()), Just("type".to_owned()), ".{0,6}".prop_map(String::from)];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map(name, inner, 0..5).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever a known field holds, the answer is a request in range or a refusal that names the field.
    #[test]
    fn noise_in_a_field_never_panics(which in 0..SUPPORTED_PARAMETERS.len() + 3, value in any_json()) {
        let named = [SUPPORTED_PARAMETERS, &["messages", "model", "functions"]].concat()[which];
        match chat(json!({named: value})) {
            Ok(asked) => prop_assert!(asked.generate.check().is_ok()),
            Err(refusal) => {
                let param = refusal.param.unwrap_or_default();
                prop_assert!(param.starts_with(named), "{} for {}", param, named);
            }
        }
    }

    #[test]
    fn a_prompt_of_noise_never_panics(value in any_json()) {
        let _ = completion(value);
    }
}
