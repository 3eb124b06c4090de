//! What developers are told, from the replies of a market. Never needs one.
#![allow(clippy::unwrap_used)]

use super::*;
use cuckoo_wire::message::TokenLogprob;
use serde_json::{Value, json};

fn envelope(surface: Surface) -> Envelope {
    Envelope::new(surface, Show::default(), RequestId([0xab; 16]), "wren".to_owned(), 1_700_000_000)
}

fn delta(text: &str, tokens: &[u32]) -> Option<Reply> {
    Some(Reply::Delta {
        first: 0,
        tokens: tokens.to_vec(),
        text: text.to_owned(),
        logprobs: Vec::new(),
        calls: Vec::new(),
    })
}

fn finished(reason: FinishReason) -> Option<Reply> {
    let usage =
        Usage { prompt_tokens: 5, completion_tokens: 3, cost: 42, miner: 38, author: 1, network: 3, migrations: 2 };
    Some(Reply::Finished { reason, usage })
}

fn refused() -> Option<Reply> {
    Some(Reply::Refused(Refusal::new(RefusalCode::MinerFailed, "all gone")))
}

fn usage_json() -> Value {
    json!({
        "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "cost": "0.000000042",
        "x_cuckoo": {"miner": 38, "author": 1, "network": 3, "migrations": 2},
    })
}

/// A body with what all bodies have.
fn body(id: &str, object: &str, choices: Value) -> Value {
    let fingerprint = format!("cuckoo-{}-wren", env!("CARGO_PKG_VERSION"));
    json!({
        "id": id, "object": object, "created": 1_700_000_000, "model": "wren", "system_fingerprint": fingerprint,
        "choices": choices,
    })
}

fn with_usage(mut body: Value, usage: Value) -> Value {
    body["usage"] = usage;
    body
}

fn parsed(events: &[String]) -> Vec<Value> {
    events.iter().map(|event| serde_json::from_str(event).unwrap_or_else(|_| json!(event))).collect()
}

/// All events of a stream of these replies.
fn stream(surface: Surface, include_usage: bool, replies: Vec<Option<Reply>>) -> Vec<Value> {
    let mut pieces = Pieces::new(envelope(surface), include_usage);
    let mut events = pieces.opening();
    for reply in replies {
        assert!(!pieces.ended(), "replies after the end");
        events.extend(pieces.take(reply));
    }
    assert!(pieces.ended());
    parsed(&events)
}

const CHAT_ID: &str = "chatcmpl-abababababababababababababababab";
const COMPLETION_ID: &str = "cmpl-abababababababababababababababab";

#[test]
fn a_whole_chat_is_a_message() {
    let mut whole = Whole::new(envelope(Surface::Chat));
    assert_eq!(whole.take(delta("Hel", &[1])).unwrap(), None);
    assert_eq!(whole.take(delta("", &[2])).unwrap(), None);
    assert_eq!(whole.take(delta("lo", &[3])).unwrap(), None);
    let got: Value = serde_json::from_str(&whole.take(finished(FinishReason::Stop)).unwrap().unwrap()).unwrap();
    let choice = json!([{
        "index": 0, "message": {"role": "assistant", "content": "Hello", "refusal": null}, "logprobs": null,
        "finish_reason": "stop",
    }]);
    assert_eq!(got, with_usage(body(CHAT_ID, "chat.completion", choice), usage_json()));
}

#[test]
fn a_whole_completion_is_text() {
    let mut whole = Whole::new(envelope(Surface::Completion));
    whole.take(delta("Hello", &[1])).unwrap();
    let got: Value = serde_json::from_str(&whole.take(finished(FinishReason::Length)).unwrap().unwrap()).unwrap();
    let choice = json!([{"index": 0, "text": "Hello", "logprobs": null, "finish_reason": "length"}]);
    assert_eq!(got, with_usage(body(COMPLETION_ID, "text_completion", choice), usage_json()));
}

#[test]
fn a_chat_in_pieces_is_role_text_finish_done() {
    let replies = vec![delta("Hel", &[1]), delta("", &[2]), delta("lo", &[3]), finished(FinishReason::Stop)];
    let piece = |delta: Value, reason: Value| {
        let choice = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
        body(CHAT_ID, "chat.completion.chunk", choice)
    };
    let expected = vec![
        piece(json!({"role": "assistant", "content": "", "refusal": null}), Value::Null),
        piece(json!({"content": "Hel"}), Value::Null),
        piece(json!({"content": "lo"}), Value::Null),
        piece(json!({}), json!("stop")),
        json!("[DONE]"),
    ];
    assert_eq!(stream(Surface::Chat, false, replies), expected);
}

#[test]
fn a_completion_in_pieces_is_text_finish_usage_done() {
    let replies = vec![delta("Hello", &[1, 2, 3]), finished(FinishReason::Length)];
    let piece = |text: &str, reason: Value| {
        let choice = json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": reason}]);
        with_usage(body(COMPLETION_ID, "text_completion", choice), Value::Null)
    };
    let expected = vec![
        piece("Hello", Value::Null),
        piece("", json!("length")),
        with_usage(body(COMPLETION_ID, "text_completion", json!([])), usage_json()),
        json!("[DONE]"),
    ];
    assert_eq!(stream(Surface::Completion, true, replies), expected);
}

#[test]
fn a_stream_that_breaks_says_why_and_is_not_done() {
    for (reply, code, message) in [
        (refused(), "miner_failed", "all gone"),
        (None, "internal", "broke off"),
        (Some(Reply::Models(vec![])), "internal", ""),
    ] {
        let events = stream(Surface::Chat, true, vec![delta("x", &[1]), reply]);
        let error = &events.last().unwrap()["error"];
        assert_eq!(error["code"], code);
        assert!(error["message"].as_str().unwrap().contains(message), "{error}");
        assert!(error["param"].is_null() && error["type"].is_string());
        assert!(!events.contains(&json!("[DONE]")));
    }
}

#[test]
fn only_a_failure_after_tokens_forbids_to_try_again() {
    use axum::response::IntoResponse;

    let retry = |first: Option<Reply>| {
        let mut whole = Whole::new(envelope(Surface::Chat));
        whole.take(first).unwrap();
        let response = whole.take(refused()).unwrap_err().into_response();
        response.headers().get("x-should-retry").map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(retry(delta("", &[1])).as_deref(), Some("false"), "text was held back, but the token was made");
    assert_eq!(retry(delta("", &[])), None);
    assert_eq!(retry(Some(Reply::Accepted { request: RequestId([0; 16]), prompt_tokens: 1 })), None);
}

#[test]
fn an_event_is_one_line_whatever_the_text() {
    let mut pieces = Pieces::new(envelope(Surface::Chat), false);
    let events = pieces.take(delta("a\nb\r\n\u{2028}\0\"", &[1]));
    assert!(events.iter().all(|event| !event.contains(['\n', '\r'])), "{events:?}");
    assert_eq!(parsed(&events)[0]["choices"][0]["delta"]["content"], "a\nb\r\n\u{2028}\0\"");
}

fn asking(surface: Surface, logprobs: Option<u8>, prompt_logprobs: Option<u8>, echo: bool) -> Envelope {
    let show = Show { logprobs, prompt_logprobs, echo };
    Envelope::new(surface, show, RequestId([0xab; 16]), "wren".to_owned(), 1_700_000_000)
}

fn token(token: u32, bytes: &[u8], logprob: f32) -> TokenLogprob {
    TokenLogprob { token, bytes: bytes.to_vec(), special: false, logprob: Some(logprob) }
}

fn entry(chosen: TokenLogprob, rank: u32, top: Vec<TokenLogprob>) -> TokenLogprobs {
    TokenLogprobs { chosen, rank, top }
}

/// "a", half of an "é", the other half, and the end.
fn told() -> Vec<Option<Reply>> {
    let ends = TokenLogprob { special: true, ..token(9, b"<end>", f32::NEG_INFINITY) };
    let tops = || vec![token(5, b"b", -0.25), token(1, b"a", -1.5)];
    let entries = [
        ("a", entry(token(1, b"a", -1.5), 2, tops())),
        ("", entry(token(2, b"\xc3", -2.0), 3, tops())),
        ("\u{e9}", entry(token(3, b"\xa9", -0.5), 1, vec![token(3, b"\xa9", -0.5), token(1, b"a", -3.0)])),
        ("", entry(ends, 4, tops())),
    ];
    let delta = |(i, (text, entry)): (usize, (&str, TokenLogprobs))| {
        let (first, tokens) = (i as u32, vec![entry.chosen.token]);
        Some(Reply::Delta { first, tokens, text: text.to_owned(), logprobs: vec![entry], calls: Vec::new() })
    };
    entries.into_iter().enumerate().map(delta).chain([finished(FinishReason::Stop)]).collect()
}

fn of_prompt() -> Vec<Option<Reply>> {
    let first = TokenLogprob { logprob: None, ..token(7, "日".as_bytes(), 0.0) };
    let entries = [entry(first, 0, vec![]), entry(token(8, b" x", -4.0), 3, vec![token(5, b"b", -0.25)])];
    let piece = |text: &str, logprobs| Some(Reply::Prompt { text: text.to_owned(), logprobs });
    vec![piece("日 x", vec![]), piece("", entries[..1].to_vec()), piece("", entries[1..].to_vec())]
}

fn whole(envelope: Envelope, replies: Vec<Option<Reply>>) -> Value {
    let mut whole = Whole::new(envelope);
    let body = replies.into_iter().find_map(|reply| whole.take(reply).unwrap());
    serde_json::from_str(&body.unwrap()).unwrap()
}

fn pieces(envelope: Envelope, replies: Vec<Option<Reply>>) -> Vec<Value> {
    let mut pieces = Pieces::new(envelope, false);
    parsed(&replies.into_iter().flat_map(|reply| pieces.take(reply)).collect::<Vec<_>>())
}

#[test]
fn a_chats_tokens_have_text_bytes_and_rivals() {
    let b = json!({"token": "b", "logprob": -0.25, "bytes": [98]});
    let a = |logprob: f32| json!({"token": "a", "logprob": logprob, "bytes": [97]});
    let half = json!({"token": "\\xa9", "logprob": -0.5, "bytes": [169]});
    let content = json!([
        {"token": "a", "logprob": -1.5, "bytes": [97], "top_logprobs": [b, a(-1.5)]},
        {"token": "\\xc3", "logprob": -2.0, "bytes": [195], "top_logprobs": [b, a(-1.5)]},
        {"token": "\\xa9", "logprob": -0.5, "bytes": [169], "top_logprobs": [half, a(-3.0)]},
        {"token": "<end>", "logprob": -9999.0, "bytes": null, "top_logprobs": [b, a(-1.5)]},
    ]);
    let got = whole(asking(Surface::Chat, Some(2), None, false), told());
    assert_eq!(got["choices"][0]["logprobs"], json!({"content": content, "refusal": null}));
    assert_eq!(got["choices"][0]["message"]["content"], "a\u{e9}");
    let events = pieces(asking(Surface::Chat, Some(2), None, false), told());
    let streamed: Vec<&Value> =
        events.iter().filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array()).flatten().collect();
    assert_eq!(json!(streamed), content, "each token once, those without text too");
    assert_eq!(events.len(), 6, "a piece a token, the reason, and the end");
    let none = whole(asking(Surface::Chat, Some(0), None, false), told());
    assert_eq!(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[test]
fn a_completions_tokens_stand_in_columns() {
    let expected = json!({
        "text_offset": [0, 1, 1, 2],
        "token_logprobs": [-1.5, -2.0, -0.5, -9999.0],
        "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9", "<end>"],
        "top_logprobs": [
            {"b": -0.25, "a": -1.5}, {"b": -0.25, "bytes:\\xc3": -2.0}, {"bytes:\\xa9": -0.5}, {"b": -0.25, "<end>": -9999.0},
        ],
    });
    let mut got = whole(asking(Surface::Completion, Some(1), None, false), told());
    assert_eq!(got["choices"][0]["logprobs"].take(), expected);
    let events = pieces(asking(Surface::Completion, Some(1), None, false), told());
    let offsets: Vec<&Value> =
        events.iter().filter_map(|e| e["choices"][0]["logprobs"]["text_offset"].get(0)).collect();
    assert_eq!(json!(offsets), expected["text_offset"]);
}

#[test]
fn an_echoed_prompt_comes_first_with_its_tokens() {
    let replies = || [of_prompt(), told()].concat();
    let got = whole(asking(Surface::Completion, Some(1), None, true), replies());
    let choice = &got["choices"][0];
    assert_eq!(choice["text"], "日 xa\u{e9}");
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 3, 4, 4, 5]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -4.0, -1.5, -2.0, -0.5, -9999.0]));
    assert_eq!(choice["logprobs"]["top_logprobs"][0], Value::Null);
    assert_eq!(choice["logprobs"]["top_logprobs"][1], json!({"b": -0.25, " x": -4.0}));
    let events = pieces(asking(Surface::Completion, Some(1), None, true), replies());
    assert_eq!(events[0]["choices"][0]["text"], "日 x");
    assert_eq!(events[0]["choices"][0]["logprobs"]["tokens"], json!(["日", " x"]));
    assert_eq!(events[1]["choices"][0]["logprobs"]["text_offset"], json!([3]));
    let silent = pieces(asking(Surface::Completion, None, None, true), replies());
    assert_eq!(
        (&silent[0]["choices"][0]["text"], &silent[0]["choices"][0]["logprobs"]),
        (&json!("日 x"), &Value::Null)
    );
}

#[test]
fn a_prompts_own_tokens_are_told_as_vllm_tells_them() {
    let expected = json!([null, {
        "8": {"logprob": -4.0, "rank": 3, "decoded_token": " x"},
        "5": {"logprob": -0.25, "rank": 1, "decoded_token": "b"},
    }]);
    let replies = || [of_prompt()[1..].to_vec(), told()].concat();
    let completion = whole(asking(Surface::Completion, None, Some(1), false), replies());
    assert_eq!(completion["choices"][0]["prompt_logprobs"], expected);
    assert_eq!(
        (&completion["choices"][0]["logprobs"], &completion["choices"][0]["text"]),
        (&Value::Null, &json!("a\u{e9}"))
    );
    let chat = whole(asking(Surface::Chat, None, Some(1), false), replies());
    assert_eq!(chat["prompt_logprobs"], expected);
}

/// Index, id and name in the first piece, and arguments.
type Piece<'a> = (u32, Option<(&'a str, &'a str)>, &'a str);

/// A reply with these pieces of calls.
fn calls(text: &str, calls: &[Piece<'_>]) -> Option<Reply> {
    let calls = calls.iter().map(|(index, begun, arguments)| CallDelta {
        index: *index,
        begun: begun.map(|(id, name)| (id.to_owned(), name.to_owned())),
        arguments: (*arguments).to_owned(),
    });
    let (text, calls) = (text.to_owned(), calls.collect());
    Some(Reply::Delta { first: 0, tokens: vec![1], text, logprobs: Vec::new(), calls })
}

fn replies_with_calls(text: &str) -> Vec<Option<Reply>> {
    vec![
        calls(text, &[(0, Some(("call_a", "get")), "{\"a\"")]),
        calls("", &[(0, None, ": 1}"), (1, Some(("call_b", "stop")), "")]),
        calls("", &[(1, None, "{}")]),
        finished(FinishReason::ToolCalls),
    ]
}

#[test]
fn calls_are_streamed_in_openais_shape() {
    let got = stream(Surface::Chat, false, replies_with_calls("Well."));
    let deltas: Vec<Value> = got[1..got.len() - 2].iter().map(|event| event["choices"][0]["delta"].clone()).collect();
    let begun = |index: u32, id: &str, name: &str| {
        let function = json!({"name": name, "arguments": ""});
        json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
    };
    let more = |index: u32, text: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]});
    let expected = [
        json!({"content": "Well."}),
        begun(0, "call_a", "get"),
        more(0, "{\"a\""),
        more(0, ": 1}"),
        begun(1, "call_b", "stop"),
        more(1, "{}"),
    ];
    assert_eq!(deltas, expected);
    assert_eq!(got[got.len() - 2]["choices"][0]["finish_reason"], "tool_calls");
    assert!(got[..got.len() - 2].iter().all(|event| event["choices"][0]["finish_reason"].is_null()));
    assert_eq!(got[got.len() - 1], "[DONE]");
}

#[test]
fn whole_calls_are_the_pieces_together() {
    for (text, content) in [("Well.", json!("Well.")), ("", Value::Null)] {
        let mut whole = Whole::new(envelope(Surface::Chat));
        let body = replies_with_calls(text).into_iter().find_map(|reply| whole.take(reply).unwrap()).unwrap();
        let choice = &serde_json::from_str::<Value>(&body).unwrap()["choices"][0];
        let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let message = json!({
            "role": "assistant", "content": content, "refusal": null,
            "tool_calls": [call("call_a", "get", "{\"a\": 1}"), call("call_b", "stop", "{}")],
        });
        assert_eq!((&choice["message"], &choice["finish_reason"]), (&message, &json!("tool_calls")));
    }
}
