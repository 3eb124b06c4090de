//! The HTTP door: OpenAI's interface over the market, request by request. Never decides anything about a request beyond
//! what its JSON says; whoever comes through here is served exactly as through the QUIC door.
//!
//! ```text
//! TCP ▶ connection ▶ routes ▶ intake (key, head, body) ▶ request (JSON ▶ Generate) ▶ Market::serve
//!                         ◀ answer (Reply ▶ JSON or server-sent events) │ failure (status, error object) ◀
//! ```
//!
//! A request lives as long as its connection: when the peer goes, hyper drops the handler or the response's body, with it
//! the receiver of replies, and by that the market's work on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cuckoo_wire::limits;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::market::Market;

mod routes;

mod intake;

mod request;

mod cursor;

mod embeddings;

mod fields;

mod ignored;

mod answer;

mod failure;

mod catalog;

mod decimal;

mod connection;

/// Connections that the kernel keeps until we accept them.
const ACCEPT_QUEUE: u32 = 1_024;
/// What the kernel buffers of a response. Without a limit it takes megabytes, and a developer who reads nothing would
/// have thousands of tokens made for it before anybody noticed.
const SEND_BUFFER_BYTES: u32 = 64 << 10;
/// Before accepting again after accepting failed, as it does when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the door could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Somebody listens there already.
    #[error("HTTP port {} on {} is in use: stop the program that has it, or choose another port", .0.port(), .0.ip())]
    PortInUse(SocketAddr),
    /// The operating system says no.
    #[error("HTTP port {} may not be opened by this user: choose one of 1024 or more", .0.port())]
    NotPermitted(SocketAddr),
    /// Not an address of this machine.
    #[error("this machine has no address {}: listen on one it has, such as 127.0.0.1 or 0.0.0.0", .0.ip())]
    NoSuchAddress(SocketAddr),
    /// Anything else.
    #[error("cannot listen for HTTP on {at}: {error}")]
    Other {
        /// Where.
        at: SocketAddr,
        /// The operating system's word.
        error: io::Error,
    },
}

/// Opens the door at an address; port 0 lets the system choose one.
pub(crate) async fn listen(at: SocketAddr) -> Result<TcpListener, ListenError> {
    let open = || {
        let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restarted scheduler need not wait for its old connections to be forgotten.
        socket.set_reuseaddr(true)?;
        // Accepted connections inherit it.
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        socket.bind(at)?;
        socket.listen(ACCEPT_QUEUE)
    };
    open().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::PortInUse(at),
        io::ErrorKind::PermissionDenied => ListenError::NotPermitted(at),
        io::ErrorKind::AddrNotAvailable => ListenError::NoSuchAddress(at),
        _ => ListenError::Other { at, error },
    })
}

/// Serves the market through the door until `shutdown`; then accepts nobody, and returns when the responses in progress
/// are through. Dropping the future ends them at once.
pub(crate) async fn run(listener: TcpListener, market: Market, shutdown: impl Future<Output = ()> + Send + 'static) {
    let router = routes::router(market);
    let closing = CancellationToken::new();
    let room = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            // Reaped as they end: the set holds no more than what is open.
            Some(_) = connections.join_next() => {}
            (stream, permit) = accept(&listener, &room) => {
                let serving = connection::serve(stream, router.clone(), closing.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
        }
    }
    drop(listener);
    closing.cancel();
    while connections.join_next().await.is_some() {}
}

/// The next connection, once there is room for it. Cancelling this loses none.
async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let permit = Arc::clone(room).acquire_owned().await.expect("nobody closes this semaphore");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A token is a small write: it must not wait for the next one.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection was gone before it was served");
                }
                return (stream, permit);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let at = first.local_addr().unwrap();
        let error = listen(at).await.unwrap_err();
        assert!(matches!(error, ListenError::PortInUse(_)), "{error:?}");
        assert!(error.to_string().contains(&at.port().to_string()), "{error}");
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_named() {
        let error = listen("192.0.2.1:0".parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, ListenError::NoSuchAddress(_)), "{error:?}");
    }
}
