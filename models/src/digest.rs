//! The hashes that name weights: 32 bytes, written as 64 hexadecimal digits. It computes none of them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that is no hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hash: 64 hexadecimal digits are needed")]
pub struct ParseHashError(String);

macro_rules! hashes {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), to_hex(&self.0))
            }
        }

        impl FromStr for $name {
            type Err = ParseHashError;
            fn from_str(text: &str) -> Result<Self, ParseHashError> {
                from_hex(text).map(Self).ok_or_else(|| ParseHashError(text.chars().take(80).collect()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

hashes! {
    /// The BLAKE3 hash of a weights file: the name by which the shelf and the network know it.
    WeightsHash;
    /// The SHA-256 hash of a weights file: how publishers outside this network state what they published.
    Sha256Hash;
    /// The BLAKE3 hash of a manifest's canonical encoding.
    ManifestId;
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(|d| char::from_digit(d.into(), 16)).collect()
}

/// Exactly `2 * N` hexadecimal digits of either case.
pub(crate) const fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    const fn digit(c: u8) -> Option<u8> {
        match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            b'A'..=b'F' => Some(c - b'A' + 10),
            _ => None,
        }
    }
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    let mut at = 0;
    while at < N {
        let (Some(high), Some(low)) = (digit(text[2 * at]), digit(text[2 * at + 1])) else { return None };
        bytes[at] = high << 4 | low;
        at += 1;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hashes_round_trip_and_refuse_other_texts() {
        let hash = WeightsHash(std::array::from_fn(|i| (i * 9) as u8));
        assert_eq!(hash.to_string().parse::<WeightsHash>().unwrap(), hash);
        assert_eq!(hash.to_string().to_uppercase().parse::<WeightsHash>().unwrap(), hash);
        assert_eq!(serde_json::from_str::<WeightsHash>(&serde_json::to_string(&hash).unwrap()).unwrap(), hash);
        for bad in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32), &"+0".repeat(32)] {
            assert!(bad.parse::<WeightsHash>().is_err(), "{bad}");
        }
    }
}
