//! Calls of tools as OpenAI's interface has them, whole and in pieces.

use cuckoo_wire::message::CallDelta;
use serde::Serialize;

/// A call, as far as it has come.
#[derive(Debug, Serialize)]
pub(super) struct Call {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function,
}

#[derive(Debug, Serialize)]
struct Function {
    name: String,
    arguments: String,
}

/// Adds what has come to the calls before it.
pub(super) fn gather(calls: &mut Vec<Call>, deltas: Vec<CallDelta>) {
    for CallDelta { begun, arguments, .. } in deltas {
        if let Some((id, name)) = begun {
            calls.push(Call { id, kind: "function", function: Function { name, arguments: String::new() } });
        }
        if let Some(call) = calls.last_mut() {
            call.function.arguments.push_str(&arguments);
        }
    }
}

/// A piece of a call: with a name, or with more of the arguments.
#[derive(Debug, Serialize)]
pub(super) struct CallPiece<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionPiece<'a>,
}

#[derive(Debug, Serialize)]
struct FunctionPiece<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

/// A call begins with a piece that has its name and no arguments yet.
pub(super) fn pieces(delta: &CallDelta) -> Vec<CallPiece<'_>> {
    let mut pieces = Vec::new();
    if let Some((id, name)) = &delta.begun {
        let function = FunctionPiece { name: Some(name), arguments: "" };
        pieces.push(CallPiece { index: delta.index, id: Some(id), kind: Some("function"), function });
    }
    if !delta.arguments.is_empty() {
        let function = FunctionPiece { name: None, arguments: &delta.arguments };
        pieces.push(CallPiece { index: delta.index, id: None, kind: None, function });
    }
    pieces
}
