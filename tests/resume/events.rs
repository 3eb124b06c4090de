//! Server-sent events: a client that lost its connection sends the id of the last event that came, and gets the rest.

use std::io::Read;

use serde_json::{Value, json};

use super::MINER;
use crate::http::Client;
use crate::market::{Market, sum};
use crate::support::MODEL;

/// One event.
#[derive(Clone, Debug, PartialEq)]
struct Event {
    id: String,
    data: String,
}

/// Asks for a stream, from behind an event if one is named, and takes so many events of it; then the connection breaks.
fn events(market: &Market, body: &Value, last: Option<&str>, most: usize) -> Vec<Event> {
    let mut client = Client::at(market.http());
    let last = last.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{last}content-type: \
         application/json\r\ncontent-length: {}\r\n\r\n",
        market.key(),
        body.len()
    );
    client.send(format!("{head}{body}").as_bytes());
    let response = client.head();
    assert_eq!(response.status, 200, "after {last}: {:?}", client.chunk());
    let (mut events, mut text) = (Vec::new(), String::new());
    while events.len() < most {
        let Some(chunk) = client.chunk() else { break };
        text.push_str(&chunk);
        while let Some((event, rest)) = text.split_once("\n\n").map(|(e, r)| (e.to_owned(), r.to_owned())) {
            text = rest;
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            // A comment, which keeps the connection.
            let Some(data) = field("data: ") else { continue };
            events.push(Event { id: field("id: ").expect("each has one"), data });
        }
    }
    events.truncate(most);
    events
}

/// All events, so many at a time, each time on a new connection.
fn piecemeal(market: &Market, body: &Value, most: usize) -> Vec<Event> {
    let mut all: Vec<Event> = Vec::new();
    while all.last().is_none_or(|event| event.data != "[DONE]") {
        let last = all.last().map(|event| event.id.clone());
        let next = events(market, body, last.as_deref(), most);
        assert!(!next.is_empty(), "it goes on");
        all.extend(next);
    }
    all
}

/// What events say of the answer, without what differs from request to request.
fn contents(events: &[Event]) -> Vec<Value> {
    let read = |event: &Event| match serde_json::from_str::<Value>(&event.data) {
        Ok(mut value) => {
            let fields = value.as_object_mut().expect("an object");
            fields.remove("id").expect("it has one");
            fields.remove("created").expect("it has one");
            value
        }
        Err(_) => json!(event.data),
    };
    events.iter().map(read).collect()
}

fn text(events: &[Event]) -> String {
    contents(events).iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect()
}

#[test]
fn a_stream_of_text_goes_on_behind_the_last_event() {
    let market = Market::start(1, MINER);
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Tell me a story about an owl."}], "max_tokens": 60,
        "seed": 4, "temperature": 0.9, "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
    });
    let whole = events(&market, &body, None, usize::MAX);
    let usage = |events: &[Event]| {
        let found: Vec<Value> = contents(events).into_iter().filter(|e| e["usage"].is_object()).collect();
        found.last().expect("the last event but one has it")["usage"]["completion_tokens"].clone()
    };
    assert_eq!((usage(&whole), whole.last().unwrap().data.as_str()), (json!(60), "[DONE]"));
    let before = market.balances();
    for most in [1, 7, whole.len() - 1] {
        let pieces = piecemeal(&market, &body, most);
        assert_eq!(text(&pieces), text(&whole), "{most} events at a time");
        assert_eq!(usage(&pieces), json!(60));
        // It began once.
        assert_eq!(contents(&pieces).iter().filter(|e| e["choices"][0]["delta"]["role"].is_string()).count(), 1);
    }
    let spent = |after: &std::collections::HashMap<String, i64>| sum(&before, "client:") - sum(after, "client:");
    let three = spent(&market.balances());
    let again = piecemeal(&market, &body, 7);
    assert_eq!(text(&again), text(&whole));
    assert_eq!(spent(&market.balances()) * 3, three * 4, "each was paid once, however often it was asked for");
}

#[test]
fn a_stream_with_calls_goes_on_behind_any_event() {
    let market = Market::start(1, MINER);
    let parameters = json!({
        "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2]}},
        "required": ["city", "days"],
    });
    let tool = json!({"type": "function", "function": {"name": "forecast", "parameters": parameters}});
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "How will the weather be in Rome?"}], "max_tokens": 80,
        "seed": 4, "temperature": 0, "stream": true, "tools": [tool], "tool_choice": "required",
        "stream_options": {"include_usage": true},
    });
    let whole = events(&market, &body, None, usize::MAX);
    let arguments: String = contents(&whole)
        .iter()
        .filter_map(|e| e["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str())
        .collect();
    assert!(arguments.contains("Rome"), "{arguments}");
    // Ids of calls are of their request.
    let plain = |events: &[Event]| -> Vec<Value> {
        let mut all = contents(events);
        for event in &mut all {
            if let Some(id) = event.pointer_mut("/choices/0/delta/tool_calls/0/id") {
                *id = json!("call");
            }
            // Each time somebody was asked anew.
            if let Some(moves) = event.pointer_mut("/usage/x_cuckoo/migrations") {
                *moves = json!(0);
            }
        }
        all
    };
    for most in [1, 3] {
        let pieces = piecemeal(&market, &body, most);
        let (pieces, whole) = (plain(&pieces), plain(&whole));
        let differ = pieces.iter().zip(&whole).find(|(piece, whole)| piece != whole);
        assert!(differ.is_none() && pieces.len() == whole.len(), "{most} events at a time: {differ:?}");
    }
}

#[test]
fn what_is_no_id_is_named() {
    let market = Market::start(0, &[]);
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": true}).to_string();
    for (id, param) in [("7", "Last-Event-ID"), ("req_00000000000000000000000000000001:3", "request")] {
        let mut client = Client::at(market.http());
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nlast-event-id: {id}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            market.key(),
            body.len()
        );
        client.send(head.as_bytes());
        let mut answer = String::new();
        client.rest().read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(param), "{answer}");
    }
}
