//! Where a scheduler is and who it must prove to be: `cuckoo://<peer id>@host:port`, the string that miners join with.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::identity::PeerId;

const SCHEME: &str = "cuckoo://";

/// A scheduler's address. The key hash is part of it, so that nobody else can answer there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Who must answer.
    pub peer: PeerId,
    /// Host name or IP address, without brackets.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

/// Why an address could not be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Not in the form.
    #[error(
        "'{0}' is not a scheduler's address: it looks like cuckoo://<64 hex digits>@host:port, as `cuckoo up` prints it"
    )]
    Malformed(String),
    /// The host has no address.
    #[error("cannot find the address of {host}: {source}")]
    Lookup {
        /// The name asked for.
        host: String,
        /// What the resolver said.
        source: std::io::Error,
    },
}

impl Address {
    /// For a scheduler that listens on `at`.
    pub fn new(peer: PeerId, at: SocketAddr) -> Self {
        Self { peer, host: at.ip().to_string(), port: at.port() }
    }

    /// Looks the host up.
    pub async fn resolve(&self) -> Result<SocketAddr, AddressError> {
        let failed = |source| AddressError::Lookup { host: self.host.clone(), source };
        let mut found = tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(failed)?;
        found.next().ok_or_else(|| failed(std::io::Error::from(std::io::ErrorKind::NotFound)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "{SCHEME}{}@[{}]:{}", self.peer, self.host, self.port),
            false => write!(f, "{SCHEME}{}@{}:{}", self.peer, self.host, self.port),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(s: &str) -> Result<Self, AddressError> {
        let parse = || {
            let (peer, at) = s.trim().strip_prefix(SCHEME)?.split_once('@')?;
            let (host, port) = at.rsplit_once(':')?;
            let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
            if host.is_empty() || host.contains(['/', '@', '[', ']']) {
                return None;
            }
            Some(Self { peer: peer.parse().ok()?, host: host.to_owned(), port: port.parse().ok()? })
        };
        parse().ok_or_else(|| AddressError::Malformed(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Identity;

    #[test]
    fn prints_and_parses() {
        let peer = Identity::generate().peer_id();
        for at in ["127.0.0.1:4433", "[::1]:9"] {
            let address = Address::new(peer, at.parse().unwrap());
            assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
            assert!(address.to_string().ends_with(at));
        }
    }

    #[test]
    fn says_what_an_address_looks_like() {
        for bad in ["", "127.0.0.1:1", "cuckoo://abc@h:1", "cuckoo://@h:1", "quic://x@h:1"] {
            let error = bad.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("cuckoo://<64 hex digits>@host:port"), "{error}");
        }
        let id = Identity::generate().peer_id();
        for bad in [format!("cuckoo://{id}@h"), format!("cuckoo://{id}@h:70000"), format!("cuckoo://{id}@:1")] {
            assert!(bad.parse::<Address>().is_err());
        }
    }
}
