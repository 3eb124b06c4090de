//! API keys: how they are made, checked and recognized. Never keeps or prints a key; what is kept is a hash that is
//! worthless without the pepper.
//!
//! A key is `ck_live_`, 27 characters of 160 random bits in base 62, and 6 characters of CRC-32 over all before, so
//! that a mistyped key is refused without asking the database and secret scanners can tell a key from noise.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cuckoo_wire::limits::NAME_BYTES_MAX;
use cuckoo_wire::message::ApiKey;
use parking_lot::Mutex;

use super::account::ClientId;
use super::store::{Store, StoreError, StoredKey};

/// What every key begins with.
const KEY_PREFIX: &str = "ck_live_";
/// 62^27 > 2^160.
const SECRET_CHARS: usize = 27;
/// 62^6 > 2^32.
const CHECKSUM_CHARS: usize = 6;
/// Characters of the secret that are kept and shown; 112 unknown bits remain.
const SHOWN_CHARS: usize = 8;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Keys that are recognized without asking the database.
const KEYS_CACHED_MAX: usize = 4_096;

/// The pepper's name in the data directory.
const PEPPER_FILE: &str = "ledger.pepper";
/// First bytes of a pepper file, so that a wrong file is recognized as one.
const PEPPER_MAGIC: &[u8; 16] = b"cuckoo-pepper-1\n";

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// The account it opens.
    pub client: ClientId,
    /// How it begins: `ck_live_` and eight characters.
    pub prefix: String,
    /// What its owner calls it.
    pub label: String,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
}

/// Why keys cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The file system refused.
    #[error("pepper file {path} cannot be used ({detail}): check its permissions and its disk")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// Others can read the pepper.
    #[error("pepper file {path} can be read by others (mode {mode:03o}): run `chmod 600 {path}`")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a pepper.
    #[error("pepper file {path} is not one: restore it from a backup; without it no API key is recognized")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// Not this ledger's pepper.
    #[error(
        "pepper file {path} is not the one that this ledger's API keys were made with: restore it from a backup, or copy it \
         from a scheduler that shares the ledger"
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
    },
    /// A label that cannot be kept.
    #[error("a key's label has at most {NAME_BYTES_MAX} bytes and no control characters; this one has {0} bytes")]
    Label(usize),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All keys of a ledger.
pub(super) struct Keys<S> {
    store: Arc<S>,
    pepper: [u8; 32],
    /// By hash; keys are never taken back, so what is here stays true.
    known: Mutex<HashMap<[u8; 32], ClientId>>,
}

impl<S: Store> Keys<S> {
    /// Reads the pepper in `dir`, or makes one there, and makes sure that it is the ledger's.
    pub(super) async fn open(dir: &Path, store: Arc<S>) -> Result<Self, KeyError> {
        let path = dir.join(PEPPER_FILE);
        let pepper = load_or_create_pepper(&path)?;
        let fingerprint = blake3::derive_key("cuckoo ledger 2026-01 fingerprint of the API key pepper", &pepper);
        if !store.pin_pepper(&fingerprint).await? {
            return Err(KeyError::Mismatch { path });
        }
        Ok(Self { store, pepper, known: Mutex::new(HashMap::new()) })
    }

    /// A fresh key with a fresh account. The key's text is nowhere but in the answer.
    pub(super) async fn create(&self, label: &str, created_ms: i64) -> Result<(ApiKey, ClientId), KeyError> {
        if label.len() > NAME_BYTES_MAX || label.contains(char::is_control) {
            return Err(KeyError::Label(label.len()));
        }
        let key = generate(rand::random());
        let client = ClientId::random();
        let stored = StoredKey {
            hash: self.hash(&key),
            prefix: shown(&key).to_owned(),
            client,
            label: label.to_owned(),
            created_ms,
        };
        self.store.add_key(&stored).await?;
        Ok((ApiKey(key), client))
    }

    /// Whose key this is; `None` for nobody's.
    pub(super) async fn authenticate(&self, key: &ApiKey) -> Result<Option<ClientId>, KeyError> {
        if !is_well_formed(&key.0) {
            return Ok(None);
        }
        let hash = self.hash(&key.0);
        if let Some(client) = self.known.lock().get(&hash) {
            return Ok(Some(*client));
        }
        let candidates = self.store.keys(Some(shown(&key.0))).await?;
        // `blake3::Hash` compares in constant time.
        let same = |stored: &&StoredKey| blake3::Hash::from_bytes(stored.hash) == blake3::Hash::from_bytes(hash);
        let client = candidates.iter().find(same).map(|stored| stored.client);
        if let Some(client) = client {
            let mut known = self.known.lock();
            if known.len() >= KEYS_CACHED_MAX {
                known.clear();
            }
            known.insert(hash, client);
        }
        Ok(client)
    }

    /// All keys, oldest first.
    pub(super) async fn list(&self) -> Result<Vec<KeyInfo>, KeyError> {
        let info = |StoredKey { prefix, client, label, created_ms, .. }| {
            let prefix = format!("{KEY_PREFIX}{prefix}");
            KeyInfo { client, prefix, label, created_ms }
        };
        Ok(self.store.keys(None).await?.into_iter().map(info).collect())
    }

    fn hash(&self, key: &str) -> [u8; 32] {
        *blake3::keyed_hash(&self.pepper, key.as_bytes()).as_bytes()
    }
}

fn generate(secret: [u8; 20]) -> String {
    let mut key = String::from(KEY_PREFIX);
    key.push_str(&base62(&secret, SECRET_CHARS));
    let checksum = checksum(&key);
    key.push_str(&checksum);
    key
}

/// Whether `key` could be one: shape and checksum.
fn is_well_formed(key: &str) -> bool {
    let body = KEY_PREFIX.len() + SECRET_CHARS;
    key.len() == body + CHECKSUM_CHARS
        && key.starts_with(KEY_PREFIX)
        && key.bytes().skip(KEY_PREFIX.len()).all(|c| ALPHABET.contains(&c))
        && key[body..] == checksum(&key[..body])
}

/// The part of a well-formed key that people may see.
fn shown(key: &str) -> &str {
    &key[KEY_PREFIX.len()..KEY_PREFIX.len() + SHOWN_CHARS]
}

fn checksum(text: &str) -> String {
    base62(&crc32(text.as_bytes()).to_be_bytes(), CHECKSUM_CHARS)
}

/// A big-endian number in exactly `digits` digits, which must be enough.
fn base62(number: &[u8], digits: usize) -> String {
    let mut number = number.to_vec();
    let mut out = vec![0; digits];
    for digit in out.iter_mut().rev() {
        // One step of long division: the quotient stays, the remainder is the digit.
        let remainder = number.iter_mut().fold(0_u32, |carry, byte| {
            let part = carry << 8 | u32::from(*byte);
            *byte = u8::try_from(part / 62).expect("the carry is below 62, so the quotient is below 256");
            part % 62
        });
        *digit = ALPHABET[remainder as usize];
    }
    assert!(number.iter().all(|b| *b == 0), "{digits} digits do not hold the number");
    out.into_iter().map(char::from).collect()
}

/// CRC-32 as in zip and PNG (reflected 0x04C11DB7).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

fn load_or_create_pepper(path: &Path) -> Result<[u8; 32], KeyError> {
    match File::open(path) {
        Ok(file) => read_pepper(path, file),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => create_pepper(path),
        Err(e) => Err(io(path, &e)),
    }
}

fn create_pepper(path: &Path) -> Result<[u8; 32], KeyError> {
    let pepper: [u8; 32] = rand::random();
    // It appears under its name complete or not at all; the ledger's lock keeps a second process away.
    let staged = path.with_extension("pepper-new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all(PEPPER_MAGIC)?;
        file.write_all(&pepper)?;
        file.sync_all()?;
        std::fs::rename(&staged, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(|e| io(path, &e))?;
    Ok(pepper)
}

fn read_pepper(path: &Path, file: File) -> Result<[u8; 32], KeyError> {
    let mode = file.metadata().map_err(|e| io(path, &e))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = Vec::new();
    file.take(256).read_to_end(&mut text).map_err(|e| io(path, &e))?;
    let pepper = text.strip_prefix(PEPPER_MAGIC).and_then(|p| p.try_into().ok());
    pepper.ok_or_else(|| KeyError::Malformed { path: path.to_owned() })
}

fn io(path: &Path, error: &std::io::Error) -> KeyError {
    KeyError::Io { path: path.to_owned(), detail: error.to_string() }
}

#[cfg(test)]
mod tests;
