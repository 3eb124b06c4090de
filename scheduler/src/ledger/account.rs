//! The accounts of the books and their names. Knows no amounts and no storage.

use std::fmt;
use std::str::FromStr;

use cuckoo_wire::PeerId;
use cuckoo_wire::message::RequestId;

/// A developer's account, as made with its API key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub [u8; 8]);

/// One account. Its name, as stored and shown, is what it prints; [`str::parse`] reads it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Account {
    /// What a developer can spend.
    Client(ClientId),
    /// What is set aside for one request.
    Hold(RequestId),
    /// What a miner has earned and may still lose to an audit.
    MinerPending(PeerId),
    /// What a miner can be paid.
    MinerPayable(PeerId),
    /// What a model's author has earned and may still lose.
    AuthorPending(PeerId),
    /// What a model's author can be paid.
    AuthorPayable(PeerId),
    /// The network's fee.
    NetFee,
    /// Pays for audits.
    NetAudit,
    /// Pays for reliability.
    NetReliability,
    /// Takes what proven faults leave over.
    NetInsurance,
    /// The world, as it pays in: its balance is what was ever paid in, negated.
    ExtDeposit,
    /// The world, as it is paid.
    ExtPayout,
}

/// A text that names no account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' names no account: expected for example client:{{16 hex digits}} or miner:{{peer id}}:pending")]
pub struct UnknownAccount(String);

impl ClientId {
    /// A fresh one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// What keeps this account's prompts apart from others' in miners' caches. A hash, so that miners are not told whose
    /// requests they run; the same everywhere, so that any scheduler's requests find what an earlier one's left.
    pub fn cache_salt(&self) -> [u8; 16] {
        let mut salt = [0; 16];
        salt.copy_from_slice(&blake3::derive_key("cuckoo 2026 cache salt v1", &self.0)[..16]);
        salt
    }
}

impl Account {
    /// Everything that a peer can own, whether it mines, publishes or both.
    pub fn of_peer(peer: PeerId) -> Vec<Account> {
        vec![Self::MinerPending(peer), Self::MinerPayable(peer), Self::AuthorPending(peer), Self::AuthorPayable(peer)]
    }

    /// Whether this stands for the world outside, the only place where a balance may be negative.
    pub fn is_external(&self) -> bool {
        matches!(self, Self::ExtDeposit | Self::ExtPayout)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientId({self})")
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(id) => write!(f, "client:{id}"),
            // Names are made for every posting, so digits come from a table and not from `fmt`.
            Self::Hold(request) => write!(f, "hold:req_{}", hex(&request.0)),
            Self::MinerPending(peer) => write!(f, "miner:{}:pending", hex(&peer.0)),
            Self::MinerPayable(peer) => write!(f, "miner:{}:payable", hex(&peer.0)),
            Self::AuthorPending(peer) => write!(f, "author:{}:pending", hex(&peer.0)),
            Self::AuthorPayable(peer) => write!(f, "author:{}:payable", hex(&peer.0)),
            Self::NetFee => f.write_str("net:fee"),
            Self::NetAudit => f.write_str("net:audit"),
            Self::NetReliability => f.write_str("net:reliability"),
            Self::NetInsurance => f.write_str("net:insurance"),
            Self::ExtDeposit => f.write_str("ext:deposit"),
            Self::ExtPayout => f.write_str("ext:payout"),
        }
    }
}

impl FromStr for Account {
    type Err = UnknownAccount;

    fn from_str(name: &str) -> Result<Self, UnknownAccount> {
        let parts: Vec<&str> = name.splitn(4, ':').collect();
        let account = match parts.as_slice() {
            ["client", id] => unhex(id).map(|id| Self::Client(ClientId(id))),
            ["hold", request] => {
                request.strip_prefix("req_").and_then(unhex).map(|request| Self::Hold(RequestId(request)))
            }
            ["miner", peer, "pending"] => unhex(peer).map(|peer| Self::MinerPending(PeerId(peer))),
            ["miner", peer, "payable"] => unhex(peer).map(|peer| Self::MinerPayable(PeerId(peer))),
            ["author", peer, "pending"] => unhex(peer).map(|peer| Self::AuthorPending(PeerId(peer))),
            ["author", peer, "payable"] => unhex(peer).map(|peer| Self::AuthorPayable(PeerId(peer))),
            ["net", "fee"] => Some(Self::NetFee),
            ["net", "audit"] => Some(Self::NetAudit),
            ["net", "reliability"] => Some(Self::NetReliability),
            ["net", "insurance"] => Some(Self::NetInsurance),
            ["ext", "deposit"] => Some(Self::ExtDeposit),
            ["ext", "payout"] => Some(Self::ExtPayout),
            _ => None,
        };
        account.ok_or_else(|| UnknownAccount(name.to_owned()))
    }
}

/// Lower-case digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| char::from(DIGITS[usize::from(d)])).collect()
}

/// Exactly `N` bytes, in lower case only: an account has one name.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_read_back() {
        let peer = PeerId([0xa7; 32]);
        let mut accounts = vec![Account::Client(ClientId([1; 8])), Account::Hold(RequestId([0xfe; 16]))];
        accounts.extend(Account::of_peer(peer));
        accounts.extend([Account::NetFee, Account::NetAudit, Account::NetReliability, Account::NetInsurance]);
        accounts.extend([Account::ExtDeposit, Account::ExtPayout]);
        for account in accounts {
            assert_eq!(account.to_string().parse::<Account>().unwrap(), account);
        }
        assert_eq!(Account::Client(ClientId([0x0f; 8])).to_string(), "client:0f0f0f0f0f0f0f0f");
        assert_eq!(Account::MinerPending(peer).to_string(), format!("miner:{peer}:pending"));
        let request = RequestId([0xfe; 16]);
        assert_eq!(Account::Hold(request).to_string(), format!("hold:{request}"));
    }

    #[test]
    fn salts_tell_accounts_apart_and_do_not_name_them() {
        let (a, b) = (ClientId([1; 8]), ClientId([2; 8]));
        assert_eq!(a.cache_salt(), ClientId([1; 8]).cache_salt());
        assert_ne!(a.cache_salt(), b.cache_salt());
        assert!(a.cache_salt() != [0; 16] && !a.cache_salt().windows(8).any(|w| w == a.0));
    }

    #[test]
    fn other_texts_name_nothing() {
        let upper = format!("client:{}", "AB".repeat(8));
        for bad in ["", "client", "client:", "client:é", "hold:00", "miner:00:pending", "net:fees", "net:fee:x", &upper]
        {
            assert!(bad.parse::<Account>().is_err(), "{bad}");
        }
    }
}
