//! What developers are told, from the replies of a market. Never needs one.
#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::{Value, json};

fn envelope(surface: Surface) -> Envelope {
    Envelope::new(surface, RequestId([0xab; 16]), "wren".to_owned(), 1_700_000_000)
}

fn delta(text: &str, tokens: &[u32]) -> Option<Reply> {
    Some(Reply::Delta { first: 0, tokens: tokens.to_vec(), text: text.to_owned() })
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
