//! A request's head and body, before their meaning is looked at. Never holds more of strangers' bytes than its budget,
//! and never waits for them longer than its time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, StatusCode, header};
use cuckoo_wire::limits;
use cuckoo_wire::message::ApiKey;
use futures_util::StreamExt;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::failure::Failure;

/// A body must be there by then, however slowly it comes.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bodies that are being read at a time, together.
const BODIES_BYTES_MAX: usize = 256 << 20;
/// Of a refused request's body, so much is read and thrown away: most clients look for the answer only when all is sent.
const DISCARD_BYTES_MAX: usize = 4 * limits::CALL_FRAME_BYTES_MAX;
/// And for so long.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an API key; more cannot be one.
const API_KEY_BYTES_MAX: usize = 256;

// One body always fits.
const _: () = assert!(BODIES_BYTES_MAX >= limits::CALL_FRAME_BYTES_MAX);

/// Why a request was not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum IntakeError {
    /// No usable `Authorization`.
    #[error("the API key is missing or garbled: send 'Authorization: Bearer <your key>'")]
    NoApiKey,
    /// Not JSON by its own account.
    #[error("the content type is {0}: send 'Content-Type: application/json'")]
    ContentType(String),
    /// Compressed, which could hide any size.
    #[error("the body is encoded as {0}: send it uncompressed")]
    Compressed(String),
    /// More than anybody's prompt.
    #[error("the body has more than {} bytes: send less", limits::CALL_FRAME_BYTES_MAX)]
    TooLarge,
    /// Not there in time.
    #[error("the body did not arrive within {} seconds", BODY_TIMEOUT.as_secs())]
    TooSlow,
    /// The connection broke, or the framing is wrong.
    #[error("the body could not be read: {0}")]
    Broken(String),
    /// Other requests' bodies fill the memory that is set aside for them.
    #[error("too many requests are being read: try again")]
    Busy,
    /// No JSON.
    #[error("the body is not valid JSON: {0}")]
    NotJson(String),
    /// Another JSON value.
    #[error("the body is not a JSON object")]
    NotAnObject,
}

impl From<IntakeError> for Failure {
    fn from(error: IntakeError) -> Self {
        let (status, code) = match &error {
            IntakeError::NoApiKey => (StatusCode::UNAUTHORIZED, "invalid_api_key"),
            IntakeError::ContentType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type"),
            IntakeError::Compressed(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding"),
            IntakeError::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            IntakeError::TooSlow => (StatusCode::REQUEST_TIMEOUT, "body_too_slow"),
            IntakeError::Broken(_) => (StatusCode::BAD_REQUEST, "body_broken"),
            IntakeError::Busy => {
                return Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string()).retry_soon();
            }
            IntakeError::NotJson(_) | IntakeError::NotAnObject => (StatusCode::BAD_REQUEST, "invalid_json"),
        };
        Failure::new(status, code, error.to_string())
    }
}

/// Memory for the bodies of all connections.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Semaphore>);

impl Budget {
    /// All of it.
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_BYTES_MAX)))
    }
}

/// A body that is still coming.
pub(super) struct Upload {
    chunks: BodyDataStream,
    /// Whether it comes at all: a client that asked first has sent nothing until we begin to read.
    coming: bool,
}

impl Upload {
    /// Of a request with this head.
    pub(super) fn new(headers: &HeaderMap, body: Body) -> Self {
        Self { chunks: body.into_data_stream(), coming: !headers.contains_key(header::EXPECT) }
    }

    /// The body as an object. The budget is taken as bytes arrive, so that announcing a body costs others nothing.
    pub(super) async fn object(&mut self, budget: &Budget) -> Result<Map<String, Value>, IntakeError> {
        self.coming = true;
        let collected = timeout(BODY_TIMEOUT, self.collect(budget)).await;
        let (bytes, _held) = collected.map_err(|_| IntakeError::TooSlow)??;
        object(&bytes)
    }

    async fn collect(&mut self, budget: &Budget) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), IntakeError> {
        let mut bytes = Vec::new();
        let mut held: Option<OwnedSemaphorePermit> = None;
        while let Some(chunk) = self.chunks.next().await {
            let chunk = chunk.map_err(|error| IntakeError::Broken(error.to_string()))?;
            if bytes.len() + chunk.len() > limits::CALL_FRAME_BYTES_MAX {
                return Err(IntakeError::TooLarge);
            }
            let room = Arc::clone(&budget.0).try_acquire_many_owned(chunk.len() as u32);
            let room = room.map_err(|_| IntakeError::Busy)?;
            match &mut held {
                Some(held) => held.merge(room),
                None => held = Some(room),
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((bytes, held))
    }

    /// Reads on for a little and keeps nothing, so that the answer is not lost in a reset connection.
    pub(super) async fn discard(mut self) {
        if !self.coming {
            return;
        }
        let rest = async {
            let mut left = DISCARD_BYTES_MAX;
            while let Some(Ok(chunk)) = self.chunks.next().await {
                let Some(less) = left.checked_sub(chunk.len()) else { return };
                left = less;
            }
        };
        // Whether all of it came does not matter: the answer goes out either way.
        let _ = timeout(DISCARD_TIMEOUT, rest).await;
    }
}

/// The key in `Authorization: Bearer …`.
pub(super) fn api_key(headers: &HeaderMap) -> Result<ApiKey, IntakeError> {
    let value = headers.get(header::AUTHORIZATION).ok_or(IntakeError::NoApiKey)?;
    let (scheme, key) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(IntakeError::NoApiKey)?;
    let key = key.trim();
    match scheme.eq_ignore_ascii_case("bearer") && !key.is_empty() && key.len() <= API_KEY_BYTES_MAX {
        true => Ok(ApiKey(key.to_owned())),
        false => Err(IntakeError::NoApiKey),
    }
}

/// Refuses a body that is not plain JSON, by what the head says of it.
pub(super) fn check_head(headers: &HeaderMap) -> Result<(), IntakeError> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(IntakeError::Compressed(escaped(encoding.as_bytes())));
    }
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return Err(IntakeError::ContentType("missing".to_owned()));
    };
    let essence = kind.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    if !essence.eq_ignore_ascii_case(b"application/json") {
        return Err(IntakeError::ContentType(escaped(kind.as_bytes())));
    }
    // Announced sizes are refused before a byte is read; others as soon as they get there.
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    match announced.is_some_and(|bytes: u64| bytes > limits::CALL_FRAME_BYTES_MAX as u64) {
        true => Err(IntakeError::TooLarge),
        false => Ok(()),
    }
}

/// The beginning of a header's value, as text that is safe to show.
fn escaped(value: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 48;
    value[..value.len().min(SHOWN_BYTES_MAX)].escape_ascii().to_string()
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, IntakeError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(IntakeError::NotAnObject),
        Err(error) => Err(IntakeError::NotJson(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use axum::http::{HeaderName, HeaderValue};
    use bytes::Bytes;
    use futures_util::stream;
    use proptest::prelude::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn upload(chunks: Vec<Vec<u8>>) -> Upload {
        Upload::new(
            &HeaderMap::new(),
            Body::from_stream(stream::iter(chunks.into_iter().map(|c| Ok::<_, std::io::Error>(Bytes::from(c))))),
        )
    }

    #[test]
    fn keys_come_as_bearers() {
        let key = |value: &str| api_key(&headers(&[(header::AUTHORIZATION, value)])).map(|key| key.0);
        assert_eq!(key("Bearer ck_1").unwrap(), "ck_1");
        assert_eq!(key("bearer   ck_1 ").unwrap(), "ck_1");
        let long = format!("Bearer {}", "x".repeat(API_KEY_BYTES_MAX + 1));
        for bad in ["", "Bearer", "Bearer ", "Basic ck_1", "ck_1", "Bearer\u{a0}ck_1", &long] {
            assert_eq!(key(bad), Err(IntakeError::NoApiKey), "{bad}");
        }
        assert_eq!(api_key(&HeaderMap::new()), Err(IntakeError::NoApiKey));
    }

    #[test]
    fn only_plain_json_of_a_sane_size_is_read() {
        let json = (header::CONTENT_TYPE, "application/json");
        let check = |pairs: &[(HeaderName, &str)]| check_head(&headers(pairs));
        assert_eq!(check(std::slice::from_ref(&json)), Ok(()));
        assert_eq!(check(&[(header::CONTENT_TYPE, "Application/JSON; charset=utf-8")]), Ok(()));
        assert_eq!(check(&[json.clone(), (header::CONTENT_ENCODING, "identity")]), Ok(()));
        assert_eq!(check(&[]), Err(IntakeError::ContentType("missing".to_owned())));
        for kind in ["text/plain", "application/jsonp", "application/x-www-form-urlencoded", ""] {
            assert!(matches!(check(&[(header::CONTENT_TYPE, kind)]), Err(IntakeError::ContentType(_))), "{kind}");
        }
        let gzip = check(&[json.clone(), (header::CONTENT_ENCODING, "gzip")]);
        assert_eq!(gzip, Err(IntakeError::Compressed("gzip".to_owned())));
        assert_eq!(check(&[json.clone(), (header::CONTENT_LENGTH, "2097152")]), Ok(()));
        assert_eq!(check(&[json, (header::CONTENT_LENGTH, "2097153")]), Err(IntakeError::TooLarge));
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = "[".repeat(100_000);
        assert!(matches!(object(deep.as_bytes()), Err(IntakeError::NotJson(_))));
        assert_eq!(object(b"[]"), Err(IntakeError::NotAnObject));
    }

    #[tokio::test]
    async fn bodies_are_bounded_one_by_one_and_together() {
        let budget = Budget::new();
        let read = async |chunks| upload(chunks).object(&budget).await;
        assert_eq!(read(vec![b"{\"a\":".to_vec(), b"1}".to_vec()]).await.unwrap()["a"], 1);
        let half = vec![b' '; limits::CALL_FRAME_BYTES_MAX / 2];
        assert_eq!(read(vec![half.clone(), half.clone(), b"1".to_vec()]).await, Err(IntakeError::TooLarge));
        assert_eq!(budget.0.available_permits(), BODIES_BYTES_MAX, "all of it was given back");
        let rest = BODIES_BYTES_MAX - half.len();
        let others = Arc::clone(&budget.0).try_acquire_many_owned(rest as u32).unwrap();
        assert_eq!(read(vec![half.clone(), half.clone()]).await, Err(IntakeError::Busy));
        drop(others);
        assert!(matches!(read(vec![half.clone(), half]).await, Err(IntakeError::NotJson(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_comes_is_given_up() {
        let begun = tokio::time::Instant::now();
        let body = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(Upload::new(&HeaderMap::new(), body).object(&Budget::new()).await, Err(IntakeError::TooSlow));
        assert_eq!(begun.elapsed().as_secs(), BODY_TIMEOUT.as_secs());
        let body = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        Upload::new(&HeaderMap::new(), body).discard().await;
        assert_eq!(begun.elapsed().as_secs(), (BODY_TIMEOUT + DISCARD_TIMEOUT).as_secs());
        let body = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        Upload::new(&headers(&[(header::EXPECT, "100-continue")]), body).discard().await;
        assert_eq!(begun.elapsed().as_secs(), (BODY_TIMEOUT + DISCARD_TIMEOUT).as_secs(), "it was never asked for");
    }

    proptest! {
        #[test]
        fn noise_is_no_object_and_no_panic(bytes: Vec<u8>) {
            let _ = object(&bytes);
        }
    }
}
