//! The store on SQLite: one writer, one transaction a batch, a few statements whatever the batch's size. Holds no
//! balance in memory, so a commit that fails leaves nothing to undo but the transaction.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cuckoo_wire::message::{RequestId, Wallet};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Sqlite, SqlitePool};
use tokio::sync::{Mutex, MutexGuard};

use super::super::account::Account;
use super::super::books::{Broken, Command, Outcome, Rejection};
use super::{Store, StoreError, StoredKey, Totals, TrialBalance};

mod batch;
mod keys;
mod rows;
mod trial;
mod wallet;

pub use wallet::WALLET_ENTRIES_MAX;

/// The database's name in the data directory.
const FILE: &str = "ledger.db";
/// Locked for as long as a process writes the ledger.
const LOCK_FILE: &str = "ledger.lock";
/// See `schema.sql`.
const APPLICATION_ID: i64 = 1_667_976_295;
/// The tables' version that this program writes.
const SCHEMA_VERSION: i64 = 1;
/// How long a statement waits for a stranger's lock, such as a database shell's.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// The writer's page cache: transfer ids are random, so every insert lands on another page. Negative means KiB.
const CACHE_KIB: &str = "-65536";
/// Pages (4 KiB) in the log before they go to the database: hot pages are then written back once, not every few
/// batches.
const CHECKPOINT_PAGES: &str = "8000";
/// Connections for wallets, totals and trial balances; they never wait for the writer.
const READERS: u32 = 2;
/// A ledger in a directory.
pub struct SqliteStore {
    path: PathBuf,
    /// `None` after a failure: the next use connects anew, so that no half-open transaction is ever continued.
    writer: Mutex<Option<SqliteConnection>>,
    readers: SqlitePool,
    /// Unlocked when dropped.
    _lock: File,
}

impl SqliteStore {
    /// Opens the ledger in `dir`, or makes one there.
    ///
    /// # Errors
    /// If another process has it, the directory cannot be used, or the file is no ledger of this version.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|e| unusable(dir, &e))?;
        let lock = lock(&dir.join(LOCK_FILE))?;
        let path = dir.join(FILE);
        let options = SqliteConnectOptions::new().filename(&path).busy_timeout(BUSY_WAIT).foreign_keys(true);
        let read_only = options.clone().read_only(true).disable_statement_logging();
        let readers = SqlitePoolOptions::new().max_connections(READERS).connect_lazy_with(read_only);
        let store = Self { path, writer: Mutex::new(None), readers, _lock: lock };
        let mut writer = store.connect().await?;
        store.prepare(&mut writer).await?;
        *store.writer.lock().await = Some(writer);
        Ok(store)
    }

    async fn connect(&self) -> Result<SqliteConnection, StoreError> {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            .busy_timeout(BUSY_WAIT)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", CACHE_KIB)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .disable_statement_logging()
            .connect()
            .await
            .map_err(|e| self.error(e))
    }

    /// Makes the tables in a new file; refuses a file of somebody else.
    async fn prepare(&self, writer: &mut SqliteConnection) -> Result<(), StoreError> {
        let e = |e| self.error(e);
        let mut tx = writer.begin_with("BEGIN IMMEDIATE").await.map_err(e)?;
        let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *tx).await.map_err(e)?;
        let application: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *tx).await.map_err(e)?;
        let tables: i64 =
            sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *tx).await.map_err(e)?;
        let foreign = |detail: String| Err(StoreError::Foreign { path: self.path.clone(), detail });
        match (version, application) {
            (0, 0) if tables == 0 => {
                sqlx::raw_sql(include_str!("../schema.sql")).execute(&mut *tx).await.map_err(e)?;
            }
            (SCHEMA_VERSION, APPLICATION_ID) => {}
            (newer, APPLICATION_ID) => {
                return foreign(format!("has ledger version {newer}; this program knows {SCHEMA_VERSION}: update it"));
            }
            _ => return foreign("is another program's database: use another data directory".to_owned()),
        }
        tx.commit().await.map_err(e)
    }

    /// The writer, out of its slot: only who succeeds puts it back. A connection that failed, or whose user stopped
    /// waiting, is closed instead, and closing undoes its transaction.
    async fn writer(&self) -> Result<(MutexGuard<'_, Option<SqliteConnection>>, SqliteConnection), StoreError> {
        let mut slot = self.writer.lock().await;
        let connection = match slot.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        Ok((slot, connection))
    }

    async fn reader(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        self.readers.acquire().await.map_err(|e| self.error(e))
    }

    fn explain(&self, failure: Failure) -> StoreError {
        match failure {
            Failure::Sql(e) => self.error(e),
            Failure::Store(e) => e,
        }
    }

    /// What SQLite's word means to the owner of the disk.
    fn error(&self, error: sqlx::Error) -> StoreError {
        let path = self.path.clone();
        let detail = error.to_string();
        let code = match &error {
            sqlx::Error::Database(e) => e.code().and_then(|c| c.parse::<u32>().ok()).unwrap_or(0),
            sqlx::Error::Io(_) => SQLITE_IOERR,
            _ => 0,
        };
        // The low byte is the kind; the rest says more (https://www.sqlite.org/rescode.html).
        match code & 0xff {
            SQLITE_FULL => StoreError::Full { path },
            SQLITE_BUSY | SQLITE_LOCKED => StoreError::InUse { path },
            SQLITE_CORRUPT | SQLITE_NOTADB => StoreError::Damaged { path, detail },
            SQLITE_CONSTRAINT => StoreError::Broken(Broken { invariant: "of the tables", detail }),
            _ => StoreError::Unusable { path, detail },
        }
    }
}

const SQLITE_BUSY: u32 = 5;
const SQLITE_LOCKED: u32 = 6;
const SQLITE_IOERR: u32 = 10;
const SQLITE_CORRUPT: u32 = 11;
const SQLITE_FULL: u32 = 13;
const SQLITE_CONSTRAINT: u32 = 19;
const SQLITE_NOTADB: u32 = 26;

/// What can end a transaction.
enum Failure {
    Sql(sqlx::Error),
    Store(StoreError),
}

impl From<sqlx::Error> for Failure {
    fn from(e: sqlx::Error) -> Self {
        Self::Sql(e)
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl From<Broken> for Failure {
    fn from(e: Broken) -> Self {
        Self::Store(StoreError::Broken(e))
    }
}

impl Store for SqliteStore {
    async fn commit(&self, commands: &[Command], at_ms: i64) -> Result<Vec<Result<Outcome, Rejection>>, StoreError> {
        let (mut slot, mut connection) = self.writer().await?;
        let done = batch::commit(&mut connection, commands, at_ms).await.map_err(|f| self.explain(f))?;
        *slot = Some(connection);
        Ok(done)
    }

    async fn open_holds(&self) -> Result<Vec<RequestId>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sqlx::query_scalar("SELECT request FROM hold WHERE state = 'open' ORDER BY request");
        let requests: Vec<Vec<u8>> = rows.fetch_all(&mut *reader).await.map_err(|e| self.error(e))?;
        requests.into_iter().map(|r| rows::request(&r).map_err(|f| self.explain(f))).collect()
    }

    async fn wallet(&self, accounts: &[Account], entries_max: u32) -> Result<Wallet, StoreError> {
        let mut reader = self.reader().await?;
        wallet::read(&mut reader, accounts, entries_max).await.map_err(|f| self.explain(f))
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        let mut reader = self.reader().await?;
        rows::totals(&mut reader).await.map_err(|f| self.explain(f))
    }

    async fn trial_balance(&self) -> Result<TrialBalance, StoreError> {
        let mut reader = self.reader().await?;
        trial::balance(&mut reader).await.map_err(|f| self.explain(f))
    }

    async fn pin_pepper(&self, fingerprint: &[u8; 32]) -> Result<bool, StoreError> {
        let (mut slot, mut connection) = self.writer().await?;
        let pinned = keys::pin_pepper(&mut connection, fingerprint).await.map_err(|f| self.explain(f))?;
        *slot = Some(connection);
        Ok(pinned)
    }

    async fn add_key(&self, key: &StoredKey) -> Result<(), StoreError> {
        let (mut slot, mut connection) = self.writer().await?;
        keys::add(&mut connection, key).await.map_err(|f| self.explain(f))?;
        *slot = Some(connection);
        Ok(())
    }

    async fn keys(&self, prefix: Option<&str>) -> Result<Vec<StoredKey>, StoreError> {
        let mut reader = self.reader().await?;
        keys::list(&mut reader, prefix).await.map_err(|f| self.explain(f))
    }
}

/// Locks `path` against other processes until the file is dropped.
fn lock(path: &Path) -> Result<File, StoreError> {
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(|e| unusable(path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(e)) => Err(unusable(path, &e)),
    }
}

fn unusable(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unusable { path: path.to_owned(), detail: error.to_string() }
}

#[cfg(test)]
mod tests;
