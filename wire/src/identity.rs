//! Who a peer is: an Ed25519 key, and its hash for a name. Keys are made on first use and never leave their file.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// First word of a key file, so that a wrong file is recognized as one.
const KEY_FILE_MAGIC: &str = "cuckoo-ed25519-seed";

/// A peer's own key.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
}

/// An Ed25519 public key (RFC 8032), compressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

/// An Ed25519 signature (RFC 8032).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

/// The name of a peer: BLAKE3 of its public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PeerId(pub [u8; 32]);

/// Why a key file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused.
    #[error("key file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others can read the key.
    #[error(
        "key file {path} can be read by others (mode {mode:03o}): run `chmod 600 {path}`, or delete it for a new identity"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key.
    #[error("key file {path} is not a cuckoo key: restore it from a backup, or delete it for a new identity")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

impl Identity {
    /// A fresh identity that no file holds.
    pub fn generate() -> Self {
        Self { key: SigningKey::from_bytes(&rand::random()) }
    }

    /// Reads the key in `path`, or makes one there (mode 0600) if the file does not exist.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        let io = |source| IdentityError::Io { path: path.to_owned(), source };
        match File::open(path) {
            Ok(file) => Self::read(path, file),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent).map_err(io)?;
                }
                Self::create(path)
            }
            Err(e) => Err(io(e)),
        }
    }

    fn create(path: &Path) -> Result<Self, IdentityError> {
        let io = |source| IdentityError::Io { path: path.to_owned(), source };
        let identity = Self::generate();
        // The key appears under its name complete or not at all, and the first of two starting processes wins.
        let staged = path.with_extension(format!("new-{}", std::process::id()));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged).map_err(io)?;
        writeln!(file, "{KEY_FILE_MAGIC} {}", hex(identity.key.as_bytes())).map_err(io)?;
        file.sync_all().map_err(io)?;
        let linked = std::fs::hard_link(&staged, path);
        std::fs::remove_file(&staged).map_err(io)?;
        match linked {
            Ok(()) => Ok(identity),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Self::read(path, File::open(path).map_err(io)?),
            Err(e) => Err(io(e)),
        }
    }

    fn read(path: &Path, file: File) -> Result<Self, IdentityError> {
        let io = |source| IdentityError::Io { path: path.to_owned(), source };
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(256).read_to_string(&mut text).map_err(io)?;
        let malformed = || IdentityError::Malformed { path: path.to_owned() };
        let seed = text.trim().strip_prefix(KEY_FILE_MAGIC).and_then(|s| unhex(s.trim())).ok_or_else(malformed)?;
        Ok(Self { key: SigningKey::from_bytes(&seed) })
    }

    /// This peer's name.
    pub fn peer_id(&self) -> PeerId {
        self.public_key().peer_id()
    }

    /// This peer's key, as others see it.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.key.verifying_key().to_bytes())
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.key.sign(message).to_bytes())
    }

    /// The key itself, for formats that sign by their own rules.
    pub fn signing_key(&self) -> &SigningKey {
        &self.key
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer_id())
    }
}

impl PublicKey {
    /// The name of whoever holds this key.
    pub fn peer_id(&self) -> PeerId {
        PeerId(*blake3::hash(&self.0).as_bytes())
    }

    /// Whether `signature` over `message` was made with this key.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|k| k.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok())
    }
}

impl PeerId {
    /// The first eight hex digits: enough for people to tell a few peers apart.
    pub fn short(&self) -> String {
        hex(&self.0[..4])
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.short())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", hex(&self.0))
    }
}

impl FromStr for PeerId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        unhex(s).map(Self).ok_or_else(|| format!("'{s}' is not a peer id: it has 64 hexadecimal digits"))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn unhex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * BYTES {
        return None;
    }
    let digit = |c: u8| (c as char).to_digit(16);
    let mut out = [0; BYTES];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_is_made_once_private_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/me.key");
        let first = Identity::load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Identity::load_or_create(&path).unwrap().peer_id(), first.peer_id());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing staged is left");
    }

    #[test]
    fn an_exposed_or_foreign_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        Identity::load_or_create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Identity::load_or_create(&path), Err(IdentityError::Exposed { mode: 0o644, .. })));
        let other = dir.path().join("o");
        std::fs::write(&other, "ssh-ed25519 AAAA").unwrap();
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Identity::load_or_create(&other), Err(IdentityError::Malformed { .. })));
    }

    #[test]
    fn signatures_bind_key_and_message() {
        let (a, b) = (Identity::generate(), Identity::generate());
        let s = a.sign(b"x");
        assert!(a.public_key().verify(b"x", &s));
        assert!(!a.public_key().verify(b"y", &s));
        assert!(!b.public_key().verify(b"x", &s));
    }

    #[test]
    fn peer_ids_print_and_parse() {
        let id = Identity::generate().peer_id();
        assert_eq!(id.to_string().parse::<PeerId>().unwrap(), id);
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<PeerId>().is_err());
        }
    }
}
