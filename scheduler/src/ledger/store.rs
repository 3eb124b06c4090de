//! Where the books are kept: what any store must do, and how postings are chained. Decides nothing: the rules are in
//! `books`, the SQL of one engine in a file below.

use std::future::Future;
use std::path::PathBuf;

use cuckoo_wire::message::{RequestId, Wallet};

use super::account::{Account, ClientId};
use super::books::{Broken, Command, Outcome, Rejection, Settled, Transfer};

mod sqlite;
#[cfg(test)]
pub(super) mod stub;

pub use sqlite::{SqliteStore, WALLET_ENTRIES_MAX};

/// A ledger's durable side. Everything is integer nano-credits.
pub trait Store: Send + Sync + 'static {
    /// Applies `commands` in order, in one transaction that is durable when this returns. Each has its own outcome.
    ///
    /// # Errors
    /// Where nothing at all was written.
    fn commit(
        &self,
        commands: &[Command],
        at_ms: i64,
    ) -> impl Future<Output = Result<Vec<Result<Outcome, Rejection>>, StoreError>> + Send;

    /// Requests whose hold is neither settled nor released.
    fn open_holds(&self) -> impl Future<Output = Result<Vec<RequestId>, StoreError>> + Send;

    /// Balances of `accounts`, and of the entries that touch them the newest `entries_max`.
    fn wallet(&self, accounts: &[Account], entries_max: u32)
    -> impl Future<Output = Result<Wallet, StoreError>> + Send;

    /// Sums over all settled requests.
    fn totals(&self) -> impl Future<Output = Result<Totals, StoreError>> + Send;

    /// Recomputes everything from the postings and compares.
    ///
    /// # Errors
    /// [`StoreError::OutOfBalance`] names the first thing that differs.
    fn trial_balance(&self) -> impl Future<Output = Result<TrialBalance, StoreError>> + Send;

    /// Keeps the fingerprint of the pepper that key hashes are made with. `false` if another one is kept already.
    fn pin_pepper(&self, fingerprint: &[u8; 32]) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Keeps a new key and opens its client's account.
    fn add_key(&self, key: &StoredKey) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Keys that begin with `prefix`, or all for `None`, in the order in which they were made.
    fn keys(&self, prefix: Option<&str>) -> impl Future<Output = Result<Vec<StoredKey>, StoreError>> + Send;
}

/// An API key as it is kept: its text cannot be had from this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredKey {
    /// BLAKE3 of the key, keyed with the pepper.
    pub hash: [u8; 32],
    /// Its first characters, for people.
    pub prefix: String,
    /// The account it opens.
    pub client: ClientId,
    /// What its owner calls it.
    pub label: String,
    /// When it was made, Unix milliseconds.
    pub created_ms: i64,
}

/// Sums over all settled requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many.
    pub requests: u64,
    /// What developers paid, and to whom it went.
    pub split: Settled,
}

/// What a trial balance that is right found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialBalance {
    /// Accounts ever used.
    pub accounts: u64,
    /// Postings ever made.
    pub postings: u64,
    /// Holds that wait for their end.
    pub holds_open: u64,
    /// Nano-credits ever paid in.
    pub deposited: i64,
    /// The last posting's chain: two ledgers with the same one have the same history.
    pub chain: [u8; 32],
    /// As kept, and equal to the sums.
    pub totals: Totals,
}

/// Why a store did nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No room.
    #[error("{path}: no space is left; free some, and requests are taken again")]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{path} cannot be written or read ({detail}): check its permissions and its disk")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// Another process has it.
    #[error("{path} is in use by another process: stop that one, or use another data directory")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Not a ledger, or not one that this program knows.
    #[error("{path} {detail}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead and what to do.
        detail: String,
    },
    /// The database is not what was written.
    #[error("{path} is damaged ({detail}): restore it from a backup")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The books do not agree with their postings.
    #[error("the books are out of balance: {0}; restore them from a backup")]
    OutOfBalance(String),
    /// A bug.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// A transfer as written down.
struct Posting {
    /// 1, 2, 3, …
    seq: i64,
    at_ms: i64,
    transfer: Transfer,
}

/// The chain before the first posting.
const GENESIS: [u8; 32] = [0; 32];

impl Posting {
    /// BLAKE3 of what came before and of this: `previous ‖ seq ‖ transfer ‖ kind ‖ amount ‖ at_ms ‖ has request ‖
    /// request ‖ debit's name ‖ 0 ‖ credit's name`, integers little-endian.
    fn chain(&self, previous: &[u8; 32]) -> [u8; 32] {
        let Transfer { id, kind, request, debit, credit, amount } = &self.transfer;
        let mut hasher = blake3::Hasher::new();
        hasher.update(previous).update(&self.seq.to_le_bytes()).update(&id.0).update(&[kind.code()]);
        hasher.update(&amount.to_le_bytes()).update(&self.at_ms.to_le_bytes()).update(&[u8::from(request.is_some())]);
        hasher.update(&request.map_or([0; 16], |r| r.0));
        hasher.update(debit.to_string().as_bytes()).update(&[0]).update(credit.to_string().as_bytes());
        *hasher.finalize().as_bytes()
    }
}
