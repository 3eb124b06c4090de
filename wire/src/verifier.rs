//! Raw public keys in place of certificates (RFC 7250): TLS proves that a peer holds its key, and here that key is
//! compared with the name it was called by, or shown to the list of who may come in.

use std::fmt;
use std::sync::Arc;

use ed25519_dalek::pkcs8::EncodePrivateKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};

use crate::identity::{Identity, PeerId, PublicKey, hex, unhex};
use crate::quic::Admission;

/// DER of a SubjectPublicKeyInfo for Ed25519, up to the 32 bytes of the key (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Top-level domain that never resolves (RFC 2606).
const NAME_SUFFIX: &str = ".cuckoo.invalid";

/// The server name that calls for one peer: a TLS name, two labels because one holds at most 63 bytes.
pub(crate) fn server_name(peer: &PeerId) -> String {
    let digits = hex(&peer.0);
    format!("{}.{}{NAME_SUFFIX}", &digits[..32], &digits[32..])
}

fn peer_of_name(name: &str) -> Option<PeerId> {
    let digits: String = name.strip_suffix(NAME_SUFFIX)?.chars().filter(|c| *c != '.').collect();
    unhex(&digits).map(PeerId)
}

/// The key in a raw "certificate".
pub(crate) fn key_of(certificate: &CertificateDer<'_>) -> Option<PublicKey> {
    certificate.strip_prefix(&SPKI_PREFIX)?.try_into().ok().map(PublicKey)
}

/// What TLS presents for us.
pub(crate) fn certified(identity: &Identity, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
    let pkcs8 = identity.signing_key().to_pkcs8_der().map_err(|e| Error::General(e.to_string()))?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_bytes().to_vec()));
    let key = provider.key_provider.load_private_key(der)?;
    let spki = key.public_key().ok_or_else(|| Error::General("the key has no public part".to_owned()))?.to_vec();
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key)))
}

/// Accepts the server that was called for, and no other.
#[derive(Debug)]
pub(crate) struct CalledFor {
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

/// Accepts clients that the list admits.
pub(crate) struct Admitted {
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
    pub(crate) admission: Arc<dyn Admission>,
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admitted")
    }
}

fn sole_key(certificate: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<PublicKey, Error> {
    match key_of(certificate) {
        Some(key) if rest.is_empty() => Ok(key),
        _ => Err(CertificateError::BadEncoding.into()),
    }
}

impl ServerCertVerifier for CalledFor {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ServerName::DnsName(name) = name else { return Err(Error::UnsupportedNameType) };
        let key = sole_key(certificate, rest)?;
        match peer_of_name(name.as_ref()) {
            Some(wanted) if wanted == key.peer_id() => Ok(ServerCertVerified::assertion()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(certificate.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Admitted {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.admission.admits(&sole_key(certificate, rest)?.peer_id(), None) {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(certificate.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_server_name_calls_for_exactly_one_peer() {
        let peer = Identity::generate().peer_id();
        let name = server_name(&peer);
        assert!(name.split('.').all(|label| label.len() <= 63));
        assert_eq!(peer_of_name(&name), Some(peer));
        for bad in ["", ".cuckoo.invalid", "aa.cuckoo.invalid", "example.com"] {
            assert_eq!(peer_of_name(bad), None);
        }
    }
}
