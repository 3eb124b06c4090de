//! Either store, chosen when the program starts.

use cuckoo_wire::message::{RequestId, Wallet};

use super::super::account::Account;
use super::super::write::{Done, Rejected, Write};
use super::{
    Kept, Note, PostgresStore, Reopened, SqliteStore, Store, StoreError, StoredKey, Takeover, Totals, TrialBalance,
};
use crate::journal::{Append, Refused};

/// A ledger, wherever it is.
#[allow(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub enum AnyStore {
    /// In a file, for one scheduler.
    Sqlite(SqliteStore),
    /// On a server, for many.
    Postgres(PostgresStore),
}

macro_rules! either {
    ($self:ident, $store:ident => $work:expr) => {
        match $self {
            AnyStore::Sqlite($store) => $work.await,
            AnyStore::Postgres($store) => $work.await,
        }
    };
}

impl Store for AnyStore {
    fn accept(&self, append: Append<'_>) -> Option<Result<(), Refused>> {
        match self {
            Self::Sqlite(store) => store.accept(append),
            Self::Postgres(store) => store.accept(append),
        }
    }

    fn flush(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.flush(),
            Self::Postgres(store) => store.flush(),
        }
    }

    async fn commit(&self, writes: &[Write], at_ms: i64) -> Result<Vec<Result<Done, Rejected>>, StoreError> {
        either!(self, store => store.commit(writes, at_ms))
    }

    async fn take_over(&self, which: Takeover) -> Result<Vec<Reopened>, StoreError> {
        either!(self, store => store.take_over(which))
    }

    async fn request(&self, request: RequestId) -> Result<Option<Kept>, StoreError> {
        either!(self, store => store.request(request))
    }

    async fn exchange(&self, note: Option<&Note>) -> Result<Vec<Vec<u8>>, StoreError> {
        either!(self, store => store.exchange(note))
    }

    async fn tend(&self, at_ms: i64) -> Result<(), StoreError> {
        either!(self, store => store.tend(at_ms))
    }

    async fn wallet(&self, accounts: &[Account], entries_max: u32) -> Result<Wallet, StoreError> {
        either!(self, store => store.wallet(accounts, entries_max))
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        either!(self, store => store.totals())
    }

    async fn trial_balance(&self) -> Result<TrialBalance, StoreError> {
        either!(self, store => store.trial_balance())
    }

    async fn pin_pepper(&self, fingerprint: &[u8; 32]) -> Result<bool, StoreError> {
        either!(self, store => store.pin_pepper(fingerprint))
    }

    async fn add_key(&self, key: &StoredKey) -> Result<(), StoreError> {
        either!(self, store => store.add_key(key))
    }

    async fn keys(&self, prefix: Option<&str>) -> Result<Vec<StoredKey>, StoreError> {
        either!(self, store => store.keys(prefix))
    }
}
