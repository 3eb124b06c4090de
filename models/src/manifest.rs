//! A model's manifest: what it is, whose it is, and which bytes it means, signed by its author. It holds no weights.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::digest::{ManifestId, WeightsHash, from_hex, to_hex};

/// The largest share of a request's cost that an author may ask, in basis points.
pub const ROYALTY_BPS_MAX: u16 = 2_000;
/// The longest model name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The longest license, architecture or quantization name, in bytes.
pub const TERM_BYTES_MAX: usize = 64;
/// The longest signed manifest in JSON, in bytes.
pub const JSON_BYTES_MAX: usize = 64 << 10;

/// Separates these signatures from all others that a key may make.
const DOMAIN: &[u8] = b"cuckoo model manifest v1\0";

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation of the variants and their fields.
pub enum ManifestError {
    #[error("model name {0:?} must be 1 to {NAME_BYTES_MAX} of a-z, 0-9, '.', '_' and '-', beginning with a-z or 0-9")]
    Name(String),
    #[error("{field} {value:?} must be 1 to {TERM_BYTES_MAX} printable ASCII characters")]
    Term { field: &'static str, value: String },
    #[error("a royalty of {0} basis points is more than the {ROYALTY_BPS_MAX} allowed")]
    Royalty(u16),
    #[error("{0} must be more than zero")]
    Zero(&'static str),
    #[error("the adapter {0:?} names itself as its base")]
    OwnBase(String),
    #[error("the manifest names another author than the key that signs it")]
    NotAuthor,
    #[error("the author's public key is no valid Ed25519 key")]
    AuthorKey,
    #[error("the signature is not the author's: the manifest was changed or forged, do not use this model")]
    Signature,
    #[error("not a signed manifest: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a manifest of {0} bytes is longer than the {JSON_BYTES_MAX} accepted")]
    TooLong(usize),
}

/// What an author says of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What developers ask for: lower case, see [`check_name`].
    pub name: String,
    /// The license, as an SPDX expression.
    pub license: String,
    /// The author's Ed25519 public key, who is paid the royalty.
    #[serde(with = "hex_bytes")]
    pub author: [u8; 32],
    /// The author's share of every request's cost, in basis points, at most [`ROYALTY_BPS_MAX`].
    pub royalty_bps: u16,
    /// The BLAKE3 hash of the weights file.
    pub weights: WeightsHash,
    /// The size of the weights file.
    pub weights_bytes: u64,
    /// The architecture's GGUF name, such as `llama`.
    pub architecture: String,
    /// The number of parameters.
    pub parameters: u64,
    /// How most parameters are stored, such as `Q4_1`.
    pub quantization: String,
    /// The longest sequence, in tokens.
    pub context_tokens: u32,
    /// When it was written, in seconds since 1970.
    pub created_unix: u64,
    /// Where `weights` is an adapter: the model that it changes. Context, template and tokens are that model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
}

/// The model that an adapter was made for. Its name says who is paid for it, its hash what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Its name.
    pub name: String,
    /// The BLAKE3 hash of its weights file.
    pub weights: WeightsHash,
}

/// A manifest with its author's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedManifest {
    /// What was signed.
    pub manifest: Manifest,
    /// The Ed25519 signature of the canonical encoding.
    #[serde(with = "hex_bytes")]
    pub signature: [u8; 64],
}

impl Manifest {
    /// Checks every field's bounds.
    pub fn validate(&self) -> Result<(), ManifestError> {
        check_name(&self.name)?;
        if let Some(base) = &self.base {
            check_name(&base.name)?;
            if base.name == self.name {
                return Err(ManifestError::OwnBase(self.name.clone()));
            }
        }
        let terms =
            [("license", &self.license), ("architecture", &self.architecture), ("quantization", &self.quantization)];
        for (field, value) in terms {
            let printable = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
            if value.is_empty() || value.len() > TERM_BYTES_MAX || !printable {
                return Err(ManifestError::Term { field, value: value.chars().take(TERM_BYTES_MAX).collect() });
            }
        }
        if self.royalty_bps > ROYALTY_BPS_MAX {
            return Err(ManifestError::Royalty(self.royalty_bps));
        }
        let counts = [
            ("weights_bytes", self.weights_bytes),
            ("parameters", self.parameters),
            ("context_tokens", self.context_tokens.into()),
        ];
        match counts.iter().find(|(_, count)| *count == 0) {
            Some((field, _)) => Err(ManifestError::Zero(field)),
            None => Ok(()),
        }
    }

    /// The bytes that are signed and hashed: a domain, then every field in order; integers little-endian, strings
    /// after their length as 32 bits. The base comes last, where there is one: nothing follows that could be taken for it.
    pub fn canonical(&self) -> Vec<u8> {
        let mut bytes = DOMAIN.to_vec();
        let string = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        string(&mut bytes, &self.name);
        string(&mut bytes, &self.license);
        bytes.extend(self.author);
        bytes.extend(self.royalty_bps.to_le_bytes());
        bytes.extend(self.weights.0);
        bytes.extend(self.weights_bytes.to_le_bytes());
        string(&mut bytes, &self.architecture);
        bytes.extend(self.parameters.to_le_bytes());
        string(&mut bytes, &self.quantization);
        bytes.extend(self.context_tokens.to_le_bytes());
        bytes.extend(self.created_unix.to_le_bytes());
        if let Some(base) = &self.base {
            string(&mut bytes, &base.name);
            bytes.extend(base.weights.0);
        }
        bytes
    }

    /// The manifest's name on the network: the BLAKE3 hash of its canonical encoding.
    pub fn id(&self) -> ManifestId {
        ManifestId(blake3::hash(&self.canonical()).into())
    }

    /// Signs a valid manifest with its author's key.
    pub fn sign(self, key: &SigningKey) -> Result<SignedManifest, ManifestError> {
        self.validate()?;
        if key.verifying_key().to_bytes() != self.author {
            return Err(ManifestError::NotAuthor);
        }
        let signature = key.sign(&self.canonical()).to_bytes();
        Ok(SignedManifest { manifest: self, signature })
    }
}

impl SignedManifest {
    /// Checks the fields' bounds and that the author signed exactly them.
    pub fn verify(&self) -> Result<(), ManifestError> {
        self.manifest.validate()?;
        let key = VerifyingKey::from_bytes(&self.manifest.author).map_err(|_| ManifestError::AuthorKey)?;
        let signature = Signature::from_bytes(&self.signature);
        // Strict: small-order keys, which verify anything, are refused.
        key.verify_strict(&self.manifest.canonical(), &signature).map_err(|_| ManifestError::Signature)
    }

    /// The manifest's id; see [`Manifest::id`].
    pub fn id(&self) -> ManifestId {
        self.manifest.id()
    }

    /// Reads and verifies a manifest in JSON, of at most [`JSON_BYTES_MAX`] bytes.
    pub fn from_json(json: &[u8]) -> Result<Self, ManifestError> {
        if json.len() > JSON_BYTES_MAX {
            return Err(ManifestError::TooLong(json.len()));
        }
        let signed: Self = serde_json::from_slice(json)?;
        signed.verify()?;
        Ok(signed)
    }

    /// The manifest in JSON, indented.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest has only strings and integers")
    }
}

/// A model's name is 1 to [`NAME_BYTES_MAX`] of `a-z 0-9 . _ -`, beginning with a letter or digit, so that it is also a
/// safe file name.
pub fn check_name(name: &str) -> Result<(), ManifestError> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(ManifestError::Name(name.chars().take(2 * NAME_BYTES_MAX).collect()))
}

/// Byte arrays as hexadecimal strings.
mod hex_bytes {
    use super::*;

    pub(super) fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_hex(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(deserializer)?;
        from_hex(&text).ok_or_else(|| de::Error::custom(format!("{} hexadecimal digits are needed", 2 * N)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn manifest(key: &SigningKey) -> Manifest {
        Manifest {
            name: "smollm2-135m-instruct".to_owned(),
            license: "Apache-2.0".to_owned(),
            author: key.verifying_key().to_bytes(),
            royalty_bps: 800,
            weights: WeightsHash([7; 32]),
            weights_bytes: 98_362_432,
            architecture: "llama".to_owned(),
            parameters: 134_515_008,
            quantization: "Q4_1".to_owned(),
            context_tokens: 8_192,
            created_unix: 1_790_000_000,
            base: None,
        }
    }

    #[test]
    fn a_signature_covers_every_field() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let signed = manifest(&key).sign(&key).unwrap();
        assert_eq!(SignedManifest::from_json(&signed.to_json()).unwrap(), signed);
        let changes: [fn(&mut Manifest); 11] = [
            |m| m.name.push('x'),
            |m| m.license.push('x'),
            |m| m.royalty_bps += 1,
            |m| m.weights.0[31] ^= 1,
            |m| m.weights_bytes += 1,
            |m| m.architecture.push('x'),
            |m| m.parameters += 1,
            |m| m.quantization.push('x'),
            |m| m.context_tokens += 1,
            |m| m.created_unix += 1,
            |m| m.base = Some(Base { name: "b".to_owned(), weights: WeightsHash([0; 32]) }),
        ];
        for (which, change) in changes.iter().enumerate() {
            let mut forged = signed.clone();
            change(&mut forged.manifest);
            assert_ne!(forged.id(), signed.id(), "change {which}");
            assert!(matches!(forged.verify(), Err(ManifestError::Signature)), "change {which}");
        }
        let mut forged = signed.clone();
        forged.manifest.author = SigningKey::from_bytes(&[4; 32]).verifying_key().to_bytes();
        assert!(forged.verify().is_err());
    }

    #[test]
    fn a_base_is_signed_and_is_another_model() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let base = Base { name: "smollm2".to_owned(), weights: WeightsHash([1; 32]) };
        let signed = Manifest { base: Some(base), ..manifest(&key) }.sign(&key).unwrap();
        assert_eq!(SignedManifest::from_json(&signed.to_json()).unwrap(), signed);
        let changes: [fn(&mut Manifest); 3] = [
            |m| m.base = None,
            |m| m.base.as_mut().unwrap().name.push('x'),
            |m| m.base.as_mut().unwrap().weights.0[0] ^= 1,
        ];
        for change in changes {
            let mut forged = signed.clone();
            change(&mut forged.manifest);
            assert!(matches!(forged.verify(), Err(ManifestError::Signature)));
        }
        for name in ["smollm2-135m-instruct", "../x"] {
            let base = Base { name: name.to_owned(), weights: WeightsHash([1; 32]) };
            assert!(Manifest { base: Some(base), ..manifest(&key) }.sign(&key).is_err(), "{name}");
        }
        // Manifests from before adapters have no such field, and are what they were.
        assert!(!String::from_utf8(manifest(&key).sign(&key).unwrap().to_json()).unwrap().contains("base"));
    }

    #[test]
    fn text_cannot_move_between_fields() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let (mut a, mut b) = (manifest(&key), manifest(&key));
        (a.name, a.license) = ("ab".to_owned(), "c".to_owned());
        (b.name, b.license) = ("a".to_owned(), "bc".to_owned());
        assert_ne!(a.canonical(), b.canonical());
    }

    #[test]
    fn bad_fields_are_refused() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let changes: [fn(&mut Manifest); 9] = [
            |m| m.name.clear(),
            |m| m.name = "../etc".to_owned(),
            |m| m.name = "Upper".to_owned(),
            |m| m.name = "a".repeat(65),
            |m| m.license = "two\nlines".to_owned(),
            |m| m.royalty_bps = 2_001,
            |m| m.weights_bytes = 0,
            |m| m.parameters = 0,
            |m| m.context_tokens = 0,
        ];
        for (which, change) in changes.iter().enumerate() {
            let mut bad = manifest(&key);
            change(&mut bad);
            assert!(bad.sign(&key).is_err(), "change {which}");
        }
        assert!(matches!(manifest(&key).sign(&SigningKey::from_bytes(&[4; 32])), Err(ManifestError::NotAuthor)));
        // A key of small order would let anybody sign.
        let mut weak = manifest(&key).sign(&key).unwrap();
        weak.manifest.author = [0; 32];
        weak.signature = [0; 64];
        assert!(weak.verify().is_err());
        assert!(matches!(SignedManifest::from_json(&[b' '; JSON_BYTES_MAX + 1]), Err(ManifestError::TooLong(_))));
    }
}
