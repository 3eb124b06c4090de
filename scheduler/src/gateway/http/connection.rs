//! One developer's TCP connection, from accept to close: HTTP/1.1 with a limit on every wait. Never looks at requests.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use cuckoo_wire::limits;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

/// The next request's head must be there by then: bounds both an idle connection and one that drips.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's head, and of what may wait to be read or written.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// Serves requests until the peer leaves, or until the response in progress is through once `closing` is cancelled.
pub(super) async fn serve<S>(stream: S, router: Router, closing: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let io = TokioIo::new(Patient::new(stream, limits::DEVELOPER_STALL_MAX));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BUFFER_BYTES_MAX);
    let mut connection = pin!(builder.serve_connection(io, TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // A peer that leaves early or sends no HTTP is its own affair.
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection broke off");
    }
}

/// A stream whose peer must take what it is sent within a time: one that does not is an error, and with the connection
/// goes the request that it stalls.
struct Patient<S> {
    stream: S,
    stall_max: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn new(stream: S, stall_max: Duration) -> Self {
        Self { stream, stall_max, stalled: None }
    }

    /// Passes on what a write came to, and runs the clock while it comes to nothing.
    fn watched<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.stall_max)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watched(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watched(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use axum::body::Body;
    use axum::routing::get;
    use bytes::Bytes;
    use futures_util::stream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{Instant, timeout};

    const PIPE_BYTES: usize = 1 << 10;

    /// A response that never ends.
    fn endless() -> Router {
        let forever = stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&[b'x'; 512])));
        Router::new().route("/", get(|| async { Body::from_stream(forever) }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_dropped() {
        let (mut peer, ours) = duplex(PIPE_BYTES);
        let begun = Instant::now();
        let served = tokio::spawn(serve(ours, endless(), CancellationToken::new()));
        peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        served.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), limits::DEVELOPER_STALL_MAX.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_a_little_now_and_then_is_kept() {
        let (mut peer, ours) = duplex(PIPE_BYTES);
        let served = tokio::spawn(serve(ours, endless(), CancellationToken::new()));
        peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        for _ in 0..8 {
            tokio::time::sleep(limits::DEVELOPER_STALL_MAX / 2).await;
            peer.read_exact(&mut [0; PIPE_BYTES]).await.unwrap();
        }
        assert!(!served.is_finished());
        served.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_drips_is_given_up() {
        let (mut peer, ours) = duplex(PIPE_BYTES);
        let begun = Instant::now();
        let served = tokio::spawn(serve(ours, endless(), CancellationToken::new()));
        let drip = async {
            peer.write_all(b"GET / HTTP/1.1\r\n").await?;
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                peer.write_all(b"x-a: b\r\n").await?;
            }
            #[allow(unreachable_code)]
            Ok::<(), io::Error>(())
        };
        tokio::select! {
            broken = drip => assert!(broken.is_err()),
            ended = served => ended.unwrap(),
        }
        assert!(begun.elapsed() <= HEAD_TIMEOUT + Duration::from_secs(2), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn closing_ends_an_idle_connection_at_once() {
        let (mut peer, ours) = duplex(PIPE_BYTES);
        let closing = CancellationToken::new();
        let router = Router::new().route("/", get(|| async { "ok" }));
        let served = tokio::spawn(serve(ours, router, closing.clone()));
        peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        peer.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        closing.cancel();
        timeout(Duration::from_secs(1), served).await.expect("it was idle").unwrap();
    }
}
