//! Where the books are kept: what any store must do, and how postings are chained. Decides nothing: the rules are in
//! `books`, the SQL of one engine in a file below.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use cuckoo_wire::PeerId;
use cuckoo_wire::limits::REPLY_FRAME_BYTES_MAX;
use cuckoo_wire::message::{RequestId, Wallet};

use super::account::{Account, ClientId};
use super::books::{Broken, HoldState, Settled, Transfer};
use super::write::{Done, Rejected, Write};
use crate::journal::{Append, Damaged, Ending, Epoch, Made, Refused};

mod any;
mod batch;
#[cfg(test)]
mod crash;
mod files;
mod postgres;
mod rows;
mod sqlite;
mod step;
#[cfg(test)]
pub(super) mod stub;
#[cfg(test)]
mod suite;
#[cfg(test)]
pub(super) use suite::{OnServer, Place, patiently};

pub use any::AnyStore;
pub use postgres::{NoUrl, PostgresStore, PostgresUrl};
pub use sqlite::SqliteStore;
pub use step::stop_at_step;

/// Entries of a wallet.
pub const WALLET_ENTRIES_MAX: u32 = 512;
/// What an ended request leaves is kept so long, for developers who ask again.
pub const ENDED_KEPT: Duration = Duration::from_hours(24);
/// Requests that are taken over in one transaction.
pub const TAKEOVER_MAX: usize = 64;
/// A scheduler that shares a store with others and says nothing for so long is gone: its requests may be taken over.
pub const LEASE_SECONDS: i64 = 5;
/// Bytes of a note to other schedulers.
pub const NOTE_BYTES_MAX: usize = 256 << 10;
/// Notes of others that are heard at a time, 64 MiB at most; more wait.
const NOTES_MAX: i64 = 256;
/// Notes are kept so long for who cannot reach the store, and then serves nobody new.
const NOTES_KEPT_SECONDS: i64 = 600;
/// Ended requests, and notes, that are forgotten at a time.
const FORGOTTEN_MAX: i64 = 1_000;
/// Segments of a log before what is still needed of them is written anew, so that one long request does not keep
/// everybody's tokens.
const SEGMENTS_MAX: i64 = if cfg!(test) { 8 } else { 8_192 };

// Two names of at most 80 bytes and 46 bytes of numbers make an entry, and the reply is to fit its frame.
const _: () = assert!(WALLET_ENTRIES_MAX as usize * 208 + 16_384 <= REPLY_FRAME_BYTES_MAX);

/// A ledger's durable side. Everything is integer nano-credits.
pub trait Store: Send + Sync + 'static {
    /// Accepts tokens at once, where that takes less than to gather a batch; `None` where they are to be committed. Nobody is sent
    /// them before [`Self::flush`].
    fn accept(&self, _append: Append<'_>) -> Option<Result<(), Refused>> {
        None
    }

    /// Leaves what was accepted to the system: it survives this process, and a loss of power once the store was tended.
    ///
    /// # Errors
    /// Where it could not: then it is to be tried again.
    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Applies `writes` in order, in one transaction that is durable when this returns. Each has its own answer.
    ///
    /// # Errors
    /// Where nothing at all was written, or the answer was lost: then the same may be tried again, and counts once.
    fn commit(
        &self,
        writes: &[Write],
        at_ms: i64,
    ) -> impl Future<Output = Result<Vec<Result<Done, Rejected>>, StoreError>> + Send;

    /// Takes requests over, at most [`TAKEOVER_MAX`]: whoever had them is fenced off. None left is an empty list.
    fn take_over(&self, which: Takeover) -> impl Future<Output = Result<Vec<Reopened>, StoreError>> + Send;

    /// What is kept of a request; `None` if it was never opened, or has ended and is forgotten.
    fn request(&self, request: RequestId) -> impl Future<Output = Result<Option<Kept>, StoreError>> + Send;

    /// Tells the other schedulers a `note`, and answers what they have told since this was asked last or, at first, since
    /// the store was opened: each note once and each scheduler's in its order. A store of one process has nobody to tell.
    ///
    /// # Errors
    /// Where the note may have been told or not: it is told again with its number, and counts once. Nothing was heard.
    fn exchange(&self, note: Option<&Note>) -> impl Future<Output = Result<Vec<Vec<u8>>, StoreError>> + Send;

    /// What must be done once in a while, every second: renews the lease, has the disk have what was flushed, and forgets what
    /// nobody needs any more.
    fn tend(&self, at_ms: i64) -> impl Future<Output = Result<(), StoreError>> + Send;

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

/// What one scheduler tells all others that share its store. Lost when nobody asks for it in time: nothing that must be true
/// depends on one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// 1, 2, 3, … in this run of the scheduler. The next one is told when this one has been.
    pub number: i64,
    /// For those who understand it; [`NOTE_BYTES_MAX`] at most.
    pub body: Vec<u8>,
}

/// Which requests are taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// What an earlier run of this scheduler left open. A request that this run opened is left alone.
    Earlier,
    /// What schedulers left open whose lease has run out. A store of one process knows that all others are gone.
    Expired,
    /// One, whoever has it. An ended or unknown one is none.
    Request(RequestId),
}

/// An open request that was taken over: to be gone on with, or to be released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reopened {
    /// Which.
    pub request: RequestId,
    /// Whose.
    pub client: ClientId,
    /// What its first owner wrote down for this; empty if nobody can go on.
    pub spec: Vec<u8>,
    /// All tokens accepted until now.
    pub tokens: Vec<u32>,
    /// Who made them, in order.
    pub makers: Vec<Made>,
    /// The right to write.
    pub epoch: Epoch,
}

/// What is kept of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Whose.
    pub client: ClientId,
    /// Who runs it, or did at its end.
    pub owner: PeerId,
    /// Of the newest owner.
    pub epoch: Epoch,
    /// As it was opened with.
    pub spec: Vec<u8>,
    /// All accepted tokens.
    pub tokens: Vec<u32>,
    /// How it ended, if it has.
    pub ending: Option<Ending>,
    /// What became of its money.
    pub hold: HoldState,
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
    /// A database server cannot be reached, or does not do what it is asked.
    #[error("the store at {url} cannot be used ({detail}): check it; requests are taken again once it answers")]
    Away {
        /// Where, without its password.
        url: String,
        /// What was seen.
        detail: String,
    },
    /// Another process is this scheduler now.
    #[error("another process runs as scheduler {0}: stop one of them, or give it a data directory of its own")]
    LeaseLost(PeerId),
    /// The books do not agree with their postings.
    #[error("the books are out of balance: {0}; restore them from a backup")]
    OutOfBalance(String),
    /// A bug.
    #[error(transparent)]
    Broken(#[from] Broken),
}

impl From<Damaged> for StoreError {
    fn from(e: Damaged) -> Self {
        Self::OutOfBalance(e.to_string())
    }
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
