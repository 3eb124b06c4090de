//! A failure as a developer sees it: status, OpenAI's error object, retry headers. Never decides what failed.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cuckoo_wire::message::{Refusal, RefusalCode};
use serde::Serialize;

/// When a client may come again after the queue was full or the scheduler unavailable.
const RETRY_SOON_S: u64 = 1;
/// When a client may come again after no miner could take its request: miners come back more slowly than slots.
const RETRY_LATER_S: u64 = 5;

/// Tells OpenAI's clients whether to try again by themselves.
pub(super) const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Everything that a response to a failed request says.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    detail: Detail,
    retry_after_s: Option<u64>,
    tokens_billed: bool,
}

/// The body of every failure, and of the event that ends a stream early.
#[derive(Debug, Serialize)]
pub(super) struct ErrorBody<'a> {
    error: &'a Detail,
}

/// OpenAI's error object: all four keys are always there.
#[derive(Debug, Serialize)]
struct Detail {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: &'static str,
}

impl Failure {
    /// A failure of the door itself; `code` is for programs, `message` for people.
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let detail = Detail { message: message.into(), kind: kind_of(status), param: None, code };
        Self { status, detail, retry_after_s: None, tokens_billed: false }
    }

    /// The same failure, with a hint when to come again.
    pub(super) fn retry_soon(mut self) -> Self {
        self.retry_after_s = Some(RETRY_SOON_S);
        self
    }

    /// The same failure of a request whose tokens were paid for: a client that repeats it by itself would pay twice.
    pub(super) fn after_tokens(mut self) -> Self {
        self.tokens_billed = true;
        self
    }

    /// What the body says, as JSON that is one line.
    pub(super) fn body(&self) -> ErrorBody<'_> {
        ErrorBody { error: &self.detail }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let (status, code, retry_after_s) = match refusal.code {
            RefusalCode::InvalidRequest => (StatusCode::BAD_REQUEST, "invalid_request", None),
            RefusalCode::ContextLengthExceeded => (StatusCode::BAD_REQUEST, "context_length_exceeded", None),
            RefusalCode::InvalidApiKey => (StatusCode::UNAUTHORIZED, "invalid_api_key", None),
            RefusalCode::InsufficientCredit => (StatusCode::PAYMENT_REQUIRED, "insufficient_credit", None),
            RefusalCode::NotAllowed => (StatusCode::FORBIDDEN, "not_allowed", None),
            RefusalCode::ModelNotFound => (StatusCode::NOT_FOUND, "model_not_found", None),
            RefusalCode::Stalled => (StatusCode::REQUEST_TIMEOUT, "stalled", None),
            RefusalCode::QueueFull => (StatusCode::TOO_MANY_REQUESTS, "queue_full", Some(RETRY_SOON_S)),
            RefusalCode::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", None),
            RefusalCode::MinerFailed => (StatusCode::BAD_GATEWAY, "miner_failed", None),
            RefusalCode::NoCapacity => (StatusCode::SERVICE_UNAVAILABLE, "no_capacity", Some(RETRY_LATER_S)),
            RefusalCode::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", Some(RETRY_SOON_S)),
        };
        let detail = Detail { message: refusal.message, kind: kind_of(status), param: refusal.param, code };
        let retry_after_s = refusal.retry_after_s.map(u64::from).or(retry_after_s);
        Self { status, detail, retry_after_s, tokens_billed: false }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.tokens_billed {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}

/// OpenAI's coarse word for a status.
fn kind_of(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::PAYMENT_REQUIRED => "insufficient_quota",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn every_refusal_has_its_status_and_code() {
        let table = [
            (RefusalCode::InvalidRequest, 400, "invalid_request", false),
            (RefusalCode::ContextLengthExceeded, 400, "context_length_exceeded", false),
            (RefusalCode::InvalidApiKey, 401, "invalid_api_key", false),
            (RefusalCode::InsufficientCredit, 402, "insufficient_credit", false),
            (RefusalCode::NotAllowed, 403, "not_allowed", false),
            (RefusalCode::ModelNotFound, 404, "model_not_found", false),
            (RefusalCode::Stalled, 408, "stalled", false),
            (RefusalCode::QueueFull, 429, "queue_full", true),
            (RefusalCode::Internal, 500, "internal", false),
            (RefusalCode::MinerFailed, 502, "miner_failed", false),
            (RefusalCode::NoCapacity, 503, "no_capacity", true),
            (RefusalCode::Unavailable, 503, "unavailable", true),
        ];
        for (refused, status, code, retry) in table {
            let failure = Failure::from(Refusal::new(refused, "why"));
            assert_eq!(serde_json::to_value(failure.body()).unwrap()["error"]["code"], code);
            let response = failure.into_response();
            assert_eq!(response.status().as_u16(), status, "{code}");
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), retry, "{code}");
            assert!(!response.headers().contains_key(X_SHOULD_RETRY), "{code}");
        }
    }

    #[test]
    fn all_four_keys_are_always_there() {
        let plain = Failure::new(StatusCode::NOT_FOUND, "unknown_route", "no such thing");
        let expected = json!({"error": {
            "message": "no such thing", "type": "invalid_request_error", "param": Value::Null, "code": "unknown_route",
        }});
        assert_eq!(serde_json::to_value(plain.body()).unwrap(), expected);
        let named = Failure::from(Refusal::invalid("top_p", "top_p is 2"));
        assert_eq!(serde_json::to_value(named.body()).unwrap()["error"]["param"], "top_p");
    }

    #[test]
    fn clients_are_told_not_to_pay_twice() {
        let response = Failure::from(Refusal::new(RefusalCode::MinerFailed, "gone")).after_tokens().into_response();
        assert_eq!(response.headers()[X_SHOULD_RETRY], "false");
    }
}
