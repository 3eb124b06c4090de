//! QUIC endpoints: mutually authenticated by raw public keys, one ALPN a role, nothing sent before the handshake is
//! done (no 0-RTT, no resumption: a resumed session would skip the check of the key).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::AlwaysResolvesServerRawPublicKeys;

use crate::address::{Address, AddressError};
use crate::identity::{Identity, PeerId};
use crate::limits;
use crate::verifier::{Admitted, CalledFor, certified, key_of, server_name};

/// What a connection is for; negotiated as its ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Asks for tokens.
    Developer,
    /// Makes tokens.
    Miner,
}

impl Role {
    const ALL: [Role; 2] = [Role::Developer, Role::Miner];

    fn alpn(self) -> &'static [u8] {
        match self {
            Role::Developer => b"cuckoo-developer",
            Role::Miner => b"cuckoo-miner",
        }
    }
}

/// Who may come in. Asked during the handshake, when the role is not known yet, and again after every accept.
pub trait Admission: Send + Sync + 'static {
    /// Whether `peer` may connect: in `role`, or in any if none is given.
    fn admits(&self, peer: &PeerId, role: Option<Role>) -> bool;
}

/// Why a connection was closed on purpose; its code in QUIC's CONNECTION_CLOSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// Nothing more to say.
    Done,
    /// This peer may not come in.
    NotAllowed,
    /// The peer broke the protocol, or speaks another version.
    Protocol,
    /// Going down; come back later.
    Shutdown,
    /// Too many connections.
    Busy,
}

impl Close {
    /// Closes `connection` with a reason that people can read.
    pub fn close(self, connection: &quinn::Connection, reason: &str) {
        connection.close(quinn::VarInt::from_u32(self as u32), reason.as_bytes());
    }

    /// Closes everything on `endpoint`.
    pub fn close_all(self, endpoint: &quinn::Endpoint, reason: &str) {
        endpoint.close(quinn::VarInt::from_u32(self as u32), reason.as_bytes());
    }

    /// What the other end meant.
    pub fn of(closed: &quinn::ApplicationClose) -> Option<(Close, String)> {
        let all = [Close::Done, Close::NotAllowed, Close::Protocol, Close::Shutdown, Close::Busy];
        let code = closed.error_code.into_inner();
        let close = all.into_iter().find(|c| *c as u64 == code)?;
        Some((close, String::from_utf8_lossy(&closed.reason).into_owned()))
    }
}

/// Why an endpoint or a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The port is taken, or not ours to use.
    #[error("cannot listen on UDP {at}: {source}; stop whatever uses it or choose another port")]
    Bind {
        /// Where.
        at: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key that TLS cannot use.
    #[error("TLS set-up failed: {0}")]
    Tls(#[from] rustls::Error),
    /// The address leads nowhere.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Not a connection that QUIC can try.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// Where to.
        to: String,
        /// Why not.
        source: quinn::ConnectError,
    },
    /// Tried, and failed.
    #[error("no connection to {to}: {why}")]
    Handshake {
        /// Where to.
        to: String,
        /// What happened and what to do.
        why: String,
    },
}

/// Listens for both roles on one UDP port.
pub fn listen(
    at: SocketAddr,
    identity: &Identity,
    admission: Arc<dyn Admission>,
) -> Result<quinn::Endpoint, QuicError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Admitted { algorithms: provider.signature_verification_algorithms, admission };
    let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(identity, &provider)?)));
    tls.alpn_protocols = Role::ALL.map(|r| r.alpn().to_vec()).to_vec();
    tls.max_early_data_size = 0;
    tls.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport(limits::DEVELOPER_KEEP_ALIVE, limits::DEVELOPER_IDLE_MAX)));
    config.max_incoming(1_024).incoming_buffer_size_total(8 << 20);
    quinn::Endpoint::server(config, at).map_err(|source| QuicError::Bind { at, source })
}

/// An endpoint to call out from, of the address family of `to`.
pub fn local_endpoint(to: SocketAddr) -> Result<quinn::Endpoint, QuicError> {
    let any = match to.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let at = SocketAddr::new(any, 0);
    quinn::Endpoint::client(at).map_err(|source| QuicError::Bind { at, source })
}

/// Connects to the scheduler that `address` names, and to no other.
pub async fn connect(address: &Address, identity: &Identity, role: Role) -> Result<quinn::Connection, QuicError> {
    let to = address.resolve().await?;
    let endpoint = local_endpoint(to)?;
    let connecting = endpoint
        .connect_with(client_config(identity, role)?, to, &server_name(&address.peer))
        .map_err(|source| QuicError::Connect { to: to.to_string(), source })?;
    let failed = |why: String| QuicError::Handshake { to: to.to_string(), why };
    match tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(e)) => Err(failed(explain(&e))),
        Err(_) => Err(failed(format!(
            "no answer within {} s: is a scheduler running there, and does UDP get through?",
            limits::HANDSHAKE_TIMEOUT.as_secs()
        ))),
    }
}

fn explain(error: &quinn::ConnectionError) -> String {
    match error {
        quinn::ConnectionError::TransportError(e) if e.reason.contains("ApplicationVerificationFailure") => {
            "another peer than the address names answers there: ask for the current address".to_owned()
        }
        quinn::ConnectionError::ApplicationClosed(c) => Close::of(c).map_or_else(|| error.to_string(), |(_, why)| why),
        other => other.to_string(),
    }
}

fn client_config(identity: &Identity, role: Role) -> Result<quinn::ClientConfig, QuicError> {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = CalledFor { algorithms: provider.signature_verification_algorithms };
    let mut tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(identity, &provider)?)));
    tls.alpn_protocols = vec![role.alpn().to_vec()];
    tls.enable_early_data = false;
    tls.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(match role {
        Role::Miner => transport(limits::MINER_KEEP_ALIVE, limits::MINER_IDLE_MAX),
        Role::Developer => {
            let mut t = transport(limits::DEVELOPER_KEEP_ALIVE, limits::DEVELOPER_IDLE_MAX);
            // What a developer has not read is held back at its source rather than here.
            t.stream_receive_window(quinn::VarInt::from_u32(16 << 10));
            t
        }
    }));
    Ok(config)
}

fn transport(keep_alive: Duration, idle_max: Duration) -> quinn::TransportConfig {
    let mut t = quinn::TransportConfig::default();
    t.max_concurrent_bidi_streams(quinn::VarInt::from_u32(limits::CONNECTION_REQUESTS_MAX))
        .max_concurrent_uni_streams(quinn::VarInt::from_u32(limits::REPLICAS_MAX as u32))
        .keep_alive_interval(Some(keep_alive))
        .max_idle_timeout(Some(quinn::IdleTimeout::try_from(idle_max).expect("seconds fit")))
        .send_window(4 << 20)
        .stream_receive_window(quinn::VarInt::from_u32(2 << 20))
        .receive_window(quinn::VarInt::from_u32(8 << 20))
        .datagram_receive_buffer_size(None);
    t
}

/// Who is at the other end.
pub fn peer_of(connection: &quinn::Connection) -> Option<PeerId> {
    let certificates = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    key_of(certificates.first()?).map(|key| key.peer_id())
}

/// What the other end connected for.
pub fn role_of(connection: &quinn::Connection) -> Option<Role> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    let alpn = data.protocol?;
    Role::ALL.into_iter().find(|r| r.alpn() == alpn)
}
