//! The HTTP door as clients see it: raw bytes over TCP, and the official Python client. Never goes through our own types.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::openai::run_client;
use crate::support::Up;

/// Longer than any answer here takes, shorter than anybody waits for a test that hangs.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// The market that all but one of these tests share.
fn shared() -> impl Deref<Target = Up> {
    Up::shared()
}

/// One response, with its body put together from its chunks.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in a body of {}: {}", self.status, self.body))
    }
}

/// A connection to the door.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(up: &Up) -> Self {
        Self::at(&up.http)
    }

    /// The door at a URL.
    pub(crate) fn at(http: &str) -> Self {
        let at = http.strip_prefix("http://").expect("the door's address is a URL");
        let stream = TcpStream::connect(at).expect("the door is open");
        stream.set_read_timeout(Some(READ_TIMEOUT)).expect("a timeout above zero");
        Self(BufReader::new(stream))
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("the door takes it");
    }

    /// Asks for JSON with a JSON body.
    fn post(&mut self, path: &str, key: &str, body: &Value) -> Response {
        self.send(&post(path, key, &body.to_string()));
        self.read()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line in time");
        assert!(line.ends_with("\r\n"), "the connection ended within {line:?}");
        line.truncate(line.len() - 2);
        line
    }

    pub(crate) fn head(&mut self) -> Response {
        let line = self.line();
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|s| s.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Response { status: status.unwrap_or_else(|| panic!("no status in {line:?}")), headers, body: String::new() }
    }

    /// One chunk of a chunked body; nothing at its end.
    pub(crate) fn chunk(&mut self) -> Option<String> {
        let bytes = usize::from_str_radix(&self.line(), 16).expect("a chunk's length");
        let mut chunk = vec![0; bytes];
        self.0.read_exact(&mut chunk).expect("a whole chunk");
        assert_eq!(self.line(), "", "a chunk ends where it says");
        (bytes > 0).then(|| String::from_utf8(chunk).expect("UTF-8"))
    }

    /// All that comes until the door closes.
    pub(crate) fn rest(&mut self) -> impl Read + '_ {
        &mut self.0
    }

    fn read(&mut self) -> Response {
        let mut response = self.head();
        if response.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                response.body.push_str(&chunk);
            }
        } else {
            let bytes = response.header("content-length").map_or(0, |v| v.parse().expect("a length"));
            let mut body = vec![0; bytes];
            self.0.read_exact(&mut body).expect("a whole body");
            response.body = String::from_utf8(body).expect("UTF-8");
        }
        response
    }
}

fn post(path: &str, key: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// One request without a body, on a connection of its own.
fn ask(up: &Up, method: &str, path: &str, headers: &str) -> Response {
    let mut client = Client::connect(up);
    client.send(format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n").as_bytes());
    client.read()
}

/// One request with any body and headers, on a connection of its own.
fn upload(up: &Up, headers: &str, body: &[u8]) -> Response {
    let mut client = Client::connect(up);
    let key = &up.api_key;
    let length = body.len();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\
         {headers}\r\n"
    );
    client.send(head.as_bytes());
    client.send(body);
    client.read()
}

/// Checks that a failure has OpenAI's shape, and returns its message.
#[track_caller]
fn failure(response: &Response, status: u16, code: &str, param: Option<&str>) -> String {
    assert_eq!(response.status, status, "{}", response.body);
    assert!(response.header("x-request-id").is_some_and(|id| id.starts_with("req_")), "every response has an id");
    assert_eq!(response.header("content-type"), Some("application/json"));
    let body = response.json();
    let error = body["error"].as_object().expect("an error object");
    let mut keys: Vec<_> = error.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["code", "message", "param", "type"]);
    assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!(param)), "{}", response.body);
    error["message"].as_str().expect("a message").to_owned()
}

/// The data of a body of server-sent events, whose framing is checked byte by byte.
#[track_caller]
fn events(body: &str) -> Vec<String> {
    assert!(body.ends_with("\n\n"), "the last event is complete");
    let frames = body[..body.len() - 2].split("\n\n");
    let data = frames.filter(|frame| !frame.starts_with(": ")).map(|frame| {
        let lines: Vec<&str> = frame.split('\n').collect();
        let [id, data] = lines[..] else { panic!("an event is an id and one line of data: {frame}") };
        assert!(id.starts_with("id: req_"), "{frame}");
        data.strip_prefix("data: ").unwrap_or_else(|| panic!("no data in {frame}")).to_owned()
    });
    data.collect()
}

fn question(up: &Up, extra: Value) -> Value {
    let mut body = json!({
        "model": up.model, "temperature": 0, "max_tokens": 12, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Name a bird."}],
    });
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body
}

#[test]
fn health_and_metrics_need_no_key() {
    let up = shared();
    let health = ask(&up, "GET", "/health", "");
    assert_eq!((health.status, health.json()), (200, json!({"status": "ok"})));
    let metrics = ask(&up, "GET", "/metrics", "");
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((metrics.status, metrics.header("content-type")), (200, Some(kind)));
    assert!(metrics.body.ends_with("# EOF\n"), "{}", metrics.body);
}

#[test]
fn failures_outside_of_requests_have_the_usual_shape() {
    let up = shared();
    let key = format!("authorization: Bearer {}\r\n", up.api_key);
    failure(&ask(&up, "GET", "/v1/nothing", &key), 404, "unknown_route", None);
    failure(&ask(&up, "GET", "/", ""), 404, "unknown_route", None);
    for (method, path) in [("GET", "/v1/chat/completions"), ("DELETE", "/v1/models"), ("POST", "/health")] {
        let response = ask(&up, method, path, &key);
        failure(&response, 405, "wrong_method", None);
        assert!(response.header("allow").is_some(), "a client is told what is possible");
    }
    let garbled = ["", "authorization: Bearer\r\n", "authorization: Basic abc\r\n", "authorization: \u{e9}\r\n"];
    for headers in garbled.into_iter().chain(["authorization: Bearer ck_nobody\r\n"]) {
        failure(&ask(&up, "GET", "/v1/models", headers), 401, "invalid_api_key", None);
        failure(&ask(&up, "POST", "/v1/chat/completions", headers), 401, "invalid_api_key", None);
    }
    failure(&ask(&up, "GET", "/v1/models/nobody%2Fnothing", &key), 404, "model_not_found", Some("model"));
}

#[test]
fn bodies_that_are_no_json_requests_are_refused() {
    let up = shared();
    let json = "content-type: application/json\r\n";
    failure(&upload(&up, "", b"{}"), 415, "unsupported_content_type", None);
    failure(&upload(&up, "content-type: text/plain\r\n", b"{}"), 415, "unsupported_content_type", None);
    let gzip = format!("{json}content-encoding: gzip\r\n");
    failure(&upload(&up, &gzip, b"\x1f\x8b"), 415, "unsupported_content_encoding", None);
    for bad in [&b""[..], b"{", b"\xff\xfe", b"{\"a\": NaN}", b"{\"a\": 1e999}", b"{}{}", &b"[".repeat(100_000)] {
        failure(&upload(&up, json, bad), 400, "invalid_json", None);
    }
    for bad in [&b"[]"[..], b"null", b"7"] {
        assert!(failure(&upload(&up, json, bad), 400, "invalid_json", None).contains("object"));
    }
    failure(&upload(&up, json, b"{}"), 400, "invalid_request", Some("model"));
    let big = vec![b' '; 3 << 20];
    assert!(failure(&upload(&up, json, &big), 413, "body_too_large", None).contains("2097152"));
}

#[test]
fn a_chunked_body_is_bounded_too() {
    let up = shared();
    let mut client = Client::connect(&up);
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n",
        up.api_key
    );
    client.send(head.as_bytes());
    for _ in 0..3 {
        client.send(b"100000\r\n");
        client.send(&vec![b' '; 1 << 20]);
        client.send(b"\r\n");
    }
    client.send(b"0\r\n\r\n");
    failure(&client.read(), 413, "body_too_large", None);
}

#[test]
fn bad_values_are_named() {
    let up = shared();
    let mut client = Client::connect(&up);
    for (param, value) in [
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("max_tokens", json!(-1)),
        ("seed", json!(0.5)),
        ("stop", json!([""])),
        ("logit_bias", json!({"4000000000": 1})),
        ("logit_bias", json!({"bird": 1})),
        ("n", json!(2)),
        ("functions", json!([{"name": "f"}])),
        ("response_format.type", json!({"type": "xml"})),
        ("logprobs", json!(1)),
        ("top_logprobs", json!(5)),
        ("messages", json!([])),
        ("messages[0].role", json!([{"role": "alien", "content": "hi"}])),
        ("max_price.prompt", json!({"prompt": "-1"})),
    ] {
        let field = param.split(['.', '[']).next().expect("a name");
        let body = question(&up, json!({field: value}));
        failure(&client.post("/v1/chat/completions", &up.api_key, &body), 400, "invalid_request", Some(param));
    }
    let unknown = question(&up, json!({"model": "nobody"}));
    failure(&client.post("/v1/chat/completions", &up.api_key, &unknown), 404, "model_not_found", Some("model"));
}

#[test]
fn a_prompt_beyond_the_context_is_never_truncated() {
    let up = shared();
    let key = format!("authorization: Bearer {}\r\n", up.api_key);
    let model = ask(&up, "GET", &format!("/v1/models/{}", up.model), &key).json();
    let context = model["context_length"].as_u64().expect("a number");
    let body = json!({"model": up.model, "prompt": vec![1; context as usize + 7], "max_tokens": 3});
    let response = Client::connect(&up).post("/v1/completions", &up.api_key, &body);
    let message = failure(&response, 400, "context_length_exceeded", Some("prompt"));
    for number in [context, context + 7] {
        assert!(message.contains(&number.to_string()), "{message}");
    }
}

#[test]
fn models_say_what_a_client_needs() {
    let up = shared();
    let key = format!("authorization: Bearer {}\r\n", up.api_key);
    let list = ask(&up, "GET", "/v1/models", &key).json();
    assert_eq!(list["object"], "list");
    let models = list["data"].as_array().expect("an array");
    let model = models.iter().find(|model| model["id"] == json!(up.model)).expect("the model is listed");
    assert_eq!(model, &ask(&up, "GET", &format!("/v1/models/{}", up.model), &key).json());
    assert_eq!((&model["object"], &model["max_model_len"]), (&json!("model"), &model["context_length"]));
    for price in ["prompt", "completion"] {
        let text = model["pricing"][price].as_str().expect("a decimal string");
        assert!(text.bytes().all(|b| b.is_ascii_digit() || b == b'.') && text.parse::<f64>().is_ok(), "{text}");
    }
    for key in ["quantization", "license", "author", "owned_by"] {
        assert!(model[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {model}");
    }
    let parameters = model["supported_parameters"].as_array().expect("an array");
    assert!(parameters.contains(&json!("temperature")) && model["royalty_bps"].is_u64());
}

#[test]
fn a_stream_says_what_a_whole_answer_says() {
    let up = shared();
    let mut client = Client::connect(&up);
    let whole = client.post("/v1/chat/completions", &up.api_key, &question(&up, json!({"user": "me"})));
    assert_eq!(whole.status, 200, "{}", whole.body);
    assert_eq!(whole.header("x-cuckoo-ignored"), Some("user"), "no field is dropped in silence");
    let usage = json!({"include_usage": true});
    let streaming = question(&up, json!({"stream": true, "stream_options": usage}));
    // The same connection goes on after a whole answer, and after a stream.
    let stream = client.post("/v1/chat/completions", &up.api_key, &streaming);
    assert_eq!((stream.status, stream.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!((stream.header("x-accel-buffering"), stream.header("cache-control")), (Some("no"), Some("no-cache")));
    assert!(stream.header("x-cuckoo-ignored").is_none());

    let whole = whole.json();
    let mut events = events(&stream.body);
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let chunks: Vec<Value> = events.iter().map(|data| serde_json::from_str(data).expect("JSON")).collect();
    let (last, chunks) = chunks.split_last().expect("chunks");
    assert_eq!(last["choices"], json!([]));
    // What money cannot change between two equal requests.
    for count in ["prompt_tokens", "completion_tokens", "total_tokens", "cost"] {
        assert_eq!(last["usage"][count], whole["usage"][count], "{count}");
    }
    let id = stream.header("x-request-id").and_then(|id| id.strip_prefix("req_")).expect("an id");
    for chunk in chunks {
        assert_eq!((&chunk["id"], &chunk["usage"]), (&json!(format!("chatcmpl-{id}")), &Value::Null));
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["choices"][0]["logprobs"], Value::Null);
    }
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": "", "refusal": null}));
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    let message = &whole["choices"][0]["message"];
    assert_eq!(message, &json!({"role": "assistant", "content": text, "refusal": null}));
    assert!(!text.is_empty());
    let ends: Vec<_> = chunks.iter().map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
    assert_eq!(ends.iter().filter(|end| !end.is_null()).count(), 1);
    assert_eq!(ends.last(), Some(&&json!("length")));
}

#[test]
fn the_bill_adds_up() {
    let up = shared();
    let response = Client::connect(&up).post("/v1/chat/completions", &up.api_key, &question(&up, json!({})));
    let usage = &response.json()["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap_or_else(|| panic!("no {name} in {usage}"));
    assert_eq!(count("completion_tokens"), 12);
    assert_eq!(count("total_tokens"), count("prompt_tokens") + 12);
    let share = |name: &str| usage["x_cuckoo"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {usage}"));
    let nano = share("miner") + share("author") + share("network");
    let (whole, fraction) = usage["cost"].as_str().expect("a string").split_once('.').unwrap_or(("0", "0"));
    let cost = format!("{whole}{fraction:0<9}").parse::<u64>().expect("a decimal of at most nine places");
    assert_eq!(cost, nano, "{usage}");
    assert!(nano > 0, "tokens are never free here: {usage}");
}

#[test]
fn browsers_may_call_the_api_and_only_that() {
    let up = shared();
    let wanted = "authorization,content-type,x-stainless-os,x-stainless-retry-count,last-event-id";
    let preflight = format!(
        "origin: https://example.com\r\naccess-control-request-method: POST\r\n\
         access-control-request-headers: {wanted}\r\n"
    );
    let response = ask(&up, "OPTIONS", "/v1/chat/completions", &preflight);
    assert_eq!((response.status, response.header("access-control-allow-origin")), (200, Some("*")));
    let allowed = response.header("access-control-allow-headers").expect("headers").to_ascii_lowercase();
    for name in wanted.split(',') {
        assert!(allowed.split(',').any(|a| a.trim() == name), "{name} in {allowed}");
    }
    assert!(response.header("access-control-allow-methods").is_some_and(|methods| methods.contains("POST")));
    let refused = ask(&up, "GET", "/v1/models", "origin: https://example.com\r\n");
    let exposed = refused.header("access-control-expose-headers").expect("headers").to_ascii_lowercase();
    assert!(exposed.contains("x-request-id") && exposed.contains("x-cuckoo-ignored"), "{exposed}");
    let metrics = ask(&up, "GET", "/metrics", "origin: https://example.com\r\n");
    assert!(metrics.header("access-control-allow-origin").is_none(), "a page may not read the operator's figures");
}

#[test]
fn a_developer_who_leaves_stops_the_work() {
    // Of its own, because others' requests would count here too.
    let up = Up::start();
    let running = || {
        let metrics = ask(&up, "GET", "/metrics", "").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("cuckoo_num_requests_running "));
        line.expect("the gauge is there").parse::<u64>().expect("a count")
    };
    for stream in [true, false] {
        let mut client = Client::connect(&up);
        let endless = question(&up, json!({"max_tokens": 7_000, "stream": stream}));
        client.send(&post("/v1/chat/completions", &up.api_key, &endless.to_string()));
        if stream {
            client.head();
            while !client.chunk().expect("the stream goes on").contains("\"content\":\"") {}
        }
        wait_until("the request runs", || running() == 1);
        drop(client);
        wait_until("the request is gone", || running() == 0);
    }
}

#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_official_python_client_works() {
    let up = shared();
    run_client("openai_client.py", &[&format!("{}/v1", up.http), &up.api_key, &up.model]);
}

#[test]
fn the_official_python_client_calls_tools() {
    let up = shared();
    run_client("openai_tools.py", &[&format!("{}/v1", up.http), &up.api_key, &up.model]);
}
