//! The door's endpoints, and what all of them share: CORS, request ids, error shapes. Never looks inside a body itself.

use std::any::Any;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cuckoo_wire::message::{ApiKey, Refusal, RefusalCode, Reply, RequestId};
use futures_util::{Stream, stream};
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowMethods, Any as AnyOrigin, CorsLayer};

use super::answer::{Envelope, Pieces, Whole};
use super::catalog::{Model, ModelList};
use super::cursor::{Counter, Cursor};
use super::embeddings::{self, Vectors};
use super::failure::{Failure, X_SHOULD_RETRY};
use super::ignored::{Ignored, X_CUCKOO_IGNORED};
use super::intake::{self, Budget, Upload};
use super::request::{self, Asked, Surface};
use crate::market::Market;
use crate::serve::{Listener, Replies, Resume};

/// Names the request, in logs and in questions to the operator.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Asks proxies to pass events on as they come.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Comments are sent this often while there is nothing to say, so that nobody in between thinks the stream dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A stream's status is held back for so long, or until the first reply: a request that is turned away at once, as when
/// the queue is full, gets a status that clients know how to retry, not an event within a success.
const STATUS_WAIT: Duration = Duration::from_millis(250);
/// Browsers may remember for so long what CORS allows.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(3600);

#[derive(Clone)]
struct Door {
    market: Market,
    bodies: Budget,
}

/// All endpoints.
pub(super) fn router(market: Market) -> Router {
    // Only what a key protects is open to other sites' scripts: a page must not read the operator's figures.
    let api = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/embeddings", post(vectors))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(cors());
    let operation = Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(wrong_method);
    api.merge(operation)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(with_request_id))
        .with_state(Door { market, bodies: Budget::new() })
}

async fn chat(State(door): State<Door>, headers: HeaderMap, body: Body) -> Response {
    generate(door, Surface::Chat, &headers, body).await.unwrap_or_else(Failure::into_response)
}

async fn completion(State(door): State<Door>, headers: HeaderMap, body: Body) -> Response {
    generate(door, Surface::Completion, &headers, body).await.unwrap_or_else(Failure::into_response)
}

async fn vectors(State(door): State<Door>, headers: HeaderMap, body: Body) -> Response {
    embed(door, &headers, body).await.unwrap_or_else(Failure::into_response)
}

async fn embed(door: Door, headers: &HeaderMap, body: Body) -> Result<Response, Failure> {
    let mut upload = Upload::new(headers, body);
    let asked = match take_in(&door, headers, &mut upload, embeddings::translate).await {
        Ok(asked) => asked,
        Err(failure) => {
            upload.discard().await;
            return Err(failure);
        }
    };
    let embeddings::Asked { embed, encoding, ignored } = asked;
    let model = embed.model.clone();
    let (sender, mut replies) = Replies::queue(&door.market);
    tokio::spawn(async move { door.market.embed(embed, sender).await });
    let request = accepted(&mut replies).await?;
    let mut answer = Vectors::new(model, encoding);
    let body = loop {
        if let Some(body) = answer.take(replies.recv().await)? {
            break body;
        }
    };
    Ok(dressed(([(header::CONTENT_TYPE, "application/json")], body).into_response(), request, &ignored))
}

async fn generate(door: Door, surface: Surface, headers: &HeaderMap, body: Body) -> Result<Response, Failure> {
    let mut upload = Upload::new(headers, body);
    let translate = |body, key| request::translate(surface, body, key);
    let asked = match take_in(&door, headers, &mut upload, translate).await {
        Ok(asked) => asked,
        Err(failure) => {
            upload.discard().await;
            return Err(failure);
        }
    };
    let Asked { generate, stream, include_usage, show, ignored, names } = asked;
    let cursor = if stream { Cursor::of(headers)? } else { None };
    let (model, calls_tools) = (generate.model.clone(), generate.callable().is_some());
    let (sender, mut replies) = Replies::queue(&door.market);
    let farewell = CancellationToken::new();
    if !stream {
        // Whoever takes an answer as a whole has nothing to come back with.
        farewell.cancel();
    }
    let listener = Listener { replies: sender, farewell };
    // On a task of its own, so that the market can end the request in good order after this handler is dropped; what
    // tells it to is the receiver, which nothing but this handler and its response's body holds.
    tokio::spawn(async move {
        match cursor {
            Some(Cursor { request, after, .. }) => {
                let resume = Resume { api_key: generate.api_key, request, after };
                door.market.resume(resume, listener).await;
            }
            None => door.market.serve(generate, listener).await,
        }
    });
    let request = accepted(&mut replies).await.map_err(|refusal| names.rename(refusal))?;
    let envelope = Envelope::new(surface, show, request, model, unix_now());
    let answer = match stream {
        true => {
            let pieces = Pieces::new(envelope, include_usage);
            let opening = if cursor.is_some() { Vec::new() } else { pieces.opening() };
            let counter = Counter::new(cursor.unwrap_or(Cursor::start(request)), calls_tools);
            events(replies, pieces, opening, counter).await
        }
        false => whole(replies, Whole::new(envelope)).await,
    };
    Ok(dressed(answer.unwrap_or_else(Failure::into_response), request, &ignored))
}

/// The response to a request that was accepted, with its id and the fields that were not used.
fn dressed(mut response: Response, request: RequestId, ignored: &Ignored) -> Response {
    let id = HeaderValue::try_from(request.to_string()).expect("a request's id is ASCII");
    response.headers_mut().insert(X_REQUEST_ID, id);
    if let Some(names) = ignored.header() {
        response.headers_mut().insert(X_CUCKOO_IGNORED, names);
    }
    response
}

/// Everything up to a request in range. The key is looked at first: of a stranger's body nothing is kept.
async fn take_in<T>(
    door: &Door,
    headers: &HeaderMap,
    upload: &mut Upload,
    translate: impl FnOnce(Map<String, Value>, ApiKey) -> Result<T, Refusal>,
) -> Result<T, Failure> {
    let key = intake::api_key(headers)?;
    door.market.authenticate(&key).await?;
    intake::check_head(headers)?;
    let body = upload.object(&door.bodies).await?;
    Ok(translate(body, key)?)
}

/// The request's id, once the market has taken the request on.
async fn accepted(replies: &mut Replies) -> Result<RequestId, Refusal> {
    match replies.recv().await {
        Some(Reply::Accepted { request, .. }) => Ok(request),
        Some(Reply::Refused(refusal)) => Err(refusal),
        Some(_) | None => Err(Refusal::new(RefusalCode::Internal, "the market gave no answer: report this")),
    }
}

async fn whole(mut replies: Replies, mut answer: Whole) -> Result<Response, Failure> {
    loop {
        if let Some(body) = answer.take(replies.recv().await)? {
            return Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response());
        }
    }
}

async fn events(
    mut replies: Replies,
    pieces: Pieces,
    opening: Vec<String>,
    counter: Counter,
) -> Result<Response, Failure> {
    let at = counter.at();
    let mut events = Events { waiting: opening.into_iter().map(|data| (data, at)).collect(), pieces, counter };
    match timeout(STATUS_WAIT, replies.recv()).await {
        Ok(Some(Reply::Refused(refusal))) => return Err(refusal.into()),
        Ok(first) => events.take(first),
        Err(_) => {}
    }
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("cuckoo");
    let mut response = Sse::new(event_stream(replies, events)).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// The events of one answer, each with its id.
struct Events {
    waiting: VecDeque<(String, Cursor)>,
    pieces: Pieces,
    counter: Counter,
}

impl Events {
    fn take(&mut self, reply: Option<Reply>) {
        self.counter.reply(reply.as_ref());
        let events = self.pieces.take(reply);
        self.waiting.extend(events.into_iter().filter_map(|data| Some((data, self.counter.event()?))));
    }
}

/// What waits goes out first, then what the replies bring. Dropping the stream drops the receiver.
fn event_stream(replies: Replies, events: Events) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold((replies, events), |(mut replies, mut events)| async move {
        loop {
            if let Some((data, id)) = events.waiting.pop_front() {
                return Some((Ok(Event::default().id(id.to_string()).data(data)), (replies, events)));
            }
            if events.pieces.ended() {
                return None;
            }
            events.take(replies.recv().await);
        }
    })
}

async fn models(State(door): State<Door>, headers: HeaderMap) -> Result<Json<ModelList>, Failure> {
    door.market.authenticate(&intake::api_key(&headers)?).await?;
    Ok(Json(door.market.models().await.into()))
}

async fn model(
    State(door): State<Door>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Json<Model>, Failure> {
    door.market.authenticate(&intake::api_key(&headers)?).await?;
    // A name that is not UTF-8 is nobody's.
    let id = id.map(|Path(id)| id).unwrap_or_default();
    match door.market.models().await.into_iter().find(|model| model.name == id) {
        Some(model) => Ok(Json(model.into())),
        None => Err(Refusal::at(
            RefusalCode::ModelNotFound,
            "model",
            format!("there is no model '{}': /v1/models lists those there are", id.escape_debug()),
        )
        .into()),
    }
}

async fn health(State(door): State<Door>) -> Response {
    match door.market.healthy().await {
        Ok(()) => Json(json!({"status": "ok"})).into_response(),
        Err(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "unavailable", "reason": reason}))).into_response()
        }
    }
}

async fn metrics(State(door): State<Door>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], door.market.metrics_text()).into_response()
}

async fn unknown_route(uri: Uri) -> Failure {
    let known = "see /v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings, /health, /metrics";
    let message = format!("there is nothing at {}: {known}", uri.path().escape_debug());
    Failure::new(StatusCode::NOT_FOUND, "unknown_route", message)
}

async fn wrong_method(request: Request) -> Failure {
    let message = format!("{} is not possible at {}", request.method(), request.uri().path().escape_debug());
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
}

/// Gives every response an id: the request's own where it got one.
async fn with_request_id(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().entry(X_REQUEST_ID).or_insert_with(|| {
        HeaderValue::try_from(RequestId(rand::random()).to_string()).expect("a request's id is ASCII")
    });
    response
}

/// A bug in a handler costs its own request only. The panic itself was logged where it happened.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    Failure::from(Refusal::new(RefusalCode::Internal, "the request met a bug: report this")).into_response()
}

/// Keys travel in a header, never in a cookie, so any site may call; whatever headers its client library adds are fine.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AnyOrigin)
        .allow_methods(AllowMethods::list([axum::http::Method::GET, axum::http::Method::POST]))
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([X_REQUEST_ID, X_CUCKOO_IGNORED, X_SHOULD_RETRY, header::RETRY_AFTER])
        .max_age(PREFLIGHT_MAX_AGE)
}

fn unix_now() -> u64 {
    // A clock before 1970 is broken; the answer is still good.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
