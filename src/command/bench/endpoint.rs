//! An OpenAI-compatible endpoint as a stream of events, over hyper, which the HTTP door brings in anyway. One connection
//! a request, in plain text: what is measured stands beside the bench, or behind a tunnel.

use std::pin::Pin;

use anyhow::{Context, bail};
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// What an error quotes of an answer at most.
const QUOTE_BYTES_MAX: usize = 300;
/// The longest line of a stream of events.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Where requests go.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    authority: String,
    address: String,
    path: String,
    key: Option<String>,
}

impl Endpoint {
    /// `url` is what OpenAI clients call the base URL; a missing `/v1` is added.
    pub(super) fn new(url: &str, key: Option<String>) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
        if uri.scheme_str() != Some("http") {
            bail!("{url:?}: only http:// endpoints can be measured");
        }
        let authority = uri.authority().with_context(|| format!("{url:?} names no host"))?;
        let base = match uri.path().trim_end_matches('/') {
            "" => "/v1",
            path => path,
        };
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
        Ok(Self { authority: authority.to_string(), address, path: format!("{base}/chat/completions"), key })
    }

    /// Sends a request whose answer is a stream of events.
    pub(super) async fn ask(&self, body: &Value) -> anyhow::Result<Events> {
        let socket =
            TcpStream::connect(&self.address).await.with_context(|| format!("cannot reach {}", self.address))?;
        socket.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
        // Errors of the connection reach whoever reads the answer.
        let connection = AbortOnDrop(tokio::spawn(async move { _ = connection.await }));
        let mut request = Request::post(&self.path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "text/event-stream");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let answer = sender.send_request(request.body(body.to_string())?).await?;
        let status = answer.status();
        let mut events = Events { body: answer.into_body(), buffer: Vec::new(), _connection: connection };
        if !status.is_success() {
            while events.buffer.len() < QUOTE_BYTES_MAX && events.fill().await? {}
            events.buffer.truncate(QUOTE_BYTES_MAX);
            bail!("{status}: {}", String::from_utf8_lossy(&events.buffer));
        }
        Ok(events)
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The events of one answer.
pub(super) struct Events {
    body: Incoming,
    buffer: Vec<u8>,
    _connection: AbortOnDrop,
}

impl Events {
    /// The next event, or `None` at the end.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            while let Some(line) = take_line(&mut self.buffer) {
                match line.strip_prefix("data:").map(str::trim) {
                    Some("[DONE]") => return Ok(None),
                    Some(data) => return Ok(Some(serde_json::from_str(data)?)),
                    // Comments, names and the empty line between events.
                    None => {}
                }
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                bail!("a line of the stream is longer than {LINE_BYTES_MAX} bytes");
            }
            if !self.fill().await? {
                bail!("the stream ended before its end");
            }
        }
    }

    /// Waits for more bytes; `false` at the end.
    async fn fill(&mut self) -> anyhow::Result<bool> {
        loop {
            let frame = std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
            let Some(frame) = frame.transpose()? else { return Ok(false) };
            if let Ok(data) = frame.into_data() {
                let data: Bytes = data;
                self.buffer.extend_from_slice(&data);
                return Ok(true);
            }
        }
    }
}

/// The first whole line, without its end.
fn take_line(buffer: &mut Vec<u8>) -> Option<String> {
    let end = buffer.iter().position(|b| *b == b'\n')?;
    let line: Vec<u8> = buffer.drain(..=end).collect();
    Some(String::from_utf8_lossy(&line).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn base_urls_are_understood_as_clients_do() {
        let path = |url: &str| Endpoint::new(url, None).map(|e| (e.address, e.path));
        assert_eq!(path("http://h:8080").unwrap(), ("h:8080".to_owned(), "/v1/chat/completions".to_owned()));
        assert_eq!(path("http://h/v1/").unwrap(), ("h:80".to_owned(), "/v1/chat/completions".to_owned()));
        assert_eq!(path("http://[::1]:1/api/v1").unwrap().0, "[::1]:1");
        assert!(path("https://h/v1").is_err() && path("h:8080").is_err() && path("").is_err());
    }

    #[test]
    fn lines_are_taken_whole() {
        let mut buffer = b"data: 1\r\n\nda".to_vec();
        assert_eq!(take_line(&mut buffer).unwrap(), "data: 1");
        assert_eq!(take_line(&mut buffer).unwrap(), "");
        assert_eq!(take_line(&mut buffer), None);
        assert_eq!(buffer, b"da");
    }
}
