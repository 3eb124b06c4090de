//! The store on SQLite: one writer, one transaction a batch, a few statements whatever the batch's size; tokens alone go to a
//! log ([`log`]), also while a transaction is about something else. Holds no balance in memory, and of what runs nothing that a
//! transaction which failed was about: there is nothing to undo.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cuckoo_wire::PeerId;
use cuckoo_wire::message::{RequestId, Wallet};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Sqlite, SqlitePool};
use tokio::sync::{Mutex, MutexGuard};

use super::super::account::Account;
use super::super::books::Broken;
use super::super::write::{Done, Rejected, Write};
use super::rows::Failure;
use super::{Kept, Note, Reopened, Store, StoreError, StoredKey, Takeover, Totals, TrialBalance, files, step};
use crate::journal::{Append, Entry, Journal, Refused};
use log::{Log, Tail};

mod batch;
mod journal;
mod keys;
mod log;
mod trial;
mod wallet;

/// The database's name in the data directory.
const FILE: &str = "ledger.db";
/// Tokens that the database does not have yet.
const LOG_FILE: &str = "tokens.log";
/// Locked for as long as a process writes the ledger.
const LOCK_FILE: &str = "ledger.lock";
/// See `schema.sql`.
const APPLICATION_ID: i64 = 1_667_976_295;
/// The tables' version that this program writes.
const SCHEMA_VERSION: i64 = 2;
/// The version that had no journal.
const WITHOUT_JOURNAL: i64 = 1;
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
    log: PathBuf,
    me: PeerId,
    /// This scheduler's row and this process's run of it.
    run: (i64, i64),
    /// `None` after a failure: the next use connects anew and reads anew what runs, so that no half-open transaction is
    /// ever continued.
    pen: Mutex<Option<Pen>>,
    /// `None` while a transaction has all of it, and after that has failed. Only who has the pen takes it.
    live: parking_lot::Mutex<Option<Live>>,
    readers: SqlitePool,
    /// Unlocked when dropped.
    _lock: File,
}

/// The one connection that writes.
struct Pen {
    connection: SqliteConnection,
    /// This scheduler's row.
    id: i64,
    /// This process, among those that were this scheduler.
    run: i64,
    /// Whether a commit waits for the disk.
    waits: bool,
}

/// What is known because nobody else writes. Tokens alone need no more than this.
struct Live {
    /// What runs here.
    journal: Journal,
    /// What was accepted since the last transaction.
    log: Log,
}

/// Both, for a transaction.
struct Writer {
    pen: Pen,
    live: Live,
}

impl Live {
    fn flush(&mut self) -> Result<(), StoreError> {
        self.log.flush(self.journal.next_segment())
    }

    /// Whether the log is to be taken along, or to be written anew.
    fn is_due(&self) -> bool {
        self.log.is_long() || journal::is_long(&self.journal)
    }
}

impl Pen {
    /// Whether the next commits are to wait for the disk (https://www.sqlite.org/pragma.html#pragma_synchronous).
    async fn wait_for_disk(&mut self, waits: bool) -> Result<(), sqlx::Error> {
        if self.waits != waits {
            let sql = if waits { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            sqlx::query(sql).execute(&mut self.connection).await?;
            self.waits = waits;
        }
        Ok(())
    }
}

impl SqliteStore {
    /// Opens the ledger in `dir` for scheduler `me`, or makes one there.
    ///
    /// # Errors
    /// If another process has it, the directory cannot be used, or the file is no ledger of this version.
    pub async fn open(dir: &Path, me: PeerId) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|e| files::unusable(dir, &e))?;
        let lock = files::lock(&dir.join(LOCK_FILE))?;
        let path = dir.join(FILE);
        let options = SqliteConnectOptions::new().filename(&path).busy_timeout(BUSY_WAIT).foreign_keys(true);
        let read_only = options.clone().read_only(true).disable_statement_logging();
        let readers = SqlitePoolOptions::new().max_connections(READERS).connect_lazy_with(read_only);
        let log = dir.join(LOG_FILE);
        let (pen, live) = (Mutex::new(None), parking_lot::Mutex::new(None));
        let mut store = Self { path, log, me, run: (0, 0), pen, live, readers, _lock: lock };
        let mut connection = store.connect().await?;
        store.run = store.prepare(&mut connection).await?;
        let writer = store.load(connection).await?;
        store.put(store.pen.lock().await, writer);
        Ok(store)
    }

    /// Reads what runs here, for a connection that is to write, and moves what the log has into the database. A connection that
    /// was given up may still be at its commit: it has the lock that this one waits for, so what is read is what it left.
    async fn load(&self, mut connection: SqliteConnection) -> Result<Writer, StoreError> {
        let (id, run) = self.run;
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.map_err(|e| self.error(e))?;
        journal::take_in(&mut tx, &Tail::read(&self.log)?).await.map_err(|f| self.explain(f))?;
        step::reached("open: the log is taken in");
        let journal = journal::load(&mut tx, self.me, id).await.map_err(|f| self.explain(f))?;
        tx.commit().await.map_err(|e| self.error(e))?;
        step::reached("open: committed");
        let log = Log::begin(&self.log, id)?;
        Ok(Writer { pen: Pen { connection, id, run, waits: true }, live: Live { journal, log } })
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

    /// Makes the tables in a new file, or those that an older one lacks; refuses a file of somebody else. This process is
    /// a new run of the scheduler from then on: its row and the run's number.
    async fn prepare(&self, connection: &mut SqliteConnection) -> Result<(i64, i64), StoreError> {
        let e = |e| self.error(e);
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await.map_err(e)?;
        let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *tx).await.map_err(e)?;
        let application: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *tx).await.map_err(e)?;
        let tables: i64 =
            sqlx::query_scalar("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *tx).await.map_err(e)?;
        let foreign = |detail: String| Err(StoreError::Foreign { path: self.path.clone(), detail });
        match (version, application) {
            (0, 0) if tables == 0 => {
                sqlx::raw_sql(include_str!("sqlite/schema.sql")).execute(&mut *tx).await.map_err(e)?;
            }
            (WITHOUT_JOURNAL | SCHEMA_VERSION, APPLICATION_ID) => {}
            (newer, APPLICATION_ID) => {
                return foreign(format!("has ledger version {newer}; this program knows {SCHEMA_VERSION}: update it"));
            }
            _ => return foreign("is another program's database: use another data directory".to_owned()),
        }
        if version < SCHEMA_VERSION {
            sqlx::raw_sql(include_str!("sqlite/journal.sql")).execute(&mut *tx).await.map_err(e)?;
        }
        step::reached("open: tables are made");
        let run = journal::register(&mut tx, self.me).await.map_err(|f| self.explain(f))?;
        if version == WITHOUT_JOURNAL {
            journal::adopt_holds(&mut tx, run.0).await.map_err(|f| self.explain(f))?;
        }
        step::reached("open: registered");
        tx.commit().await.map_err(e)?;
        step::reached("open: this run has begun");
        Ok(run)
    }

    /// The writer, out of its slots: only who succeeds puts it back. A connection that failed, or whose user stopped
    /// waiting, is closed instead, and closing undoes its transaction. Nothing is accepted beside it, and all that was accepted
    /// before is with the system: without it, that is read from there.
    async fn writer(&self) -> Result<(MutexGuard<'_, Option<Pen>>, Writer), StoreError> {
        let mut slot = self.pen.lock().await;
        let live = self.take_live()?;
        let mut writer = match (slot.take(), live) {
            (Some(pen), Some(live)) => Writer { pen, live },
            _ => self.load(self.connect().await?).await?,
        };
        writer.pen.wait_for_disk(true).await.map_err(|e| self.error(e))?;
        Ok((slot, writer))
    }

    /// As [`Self::writer`], for who needs nothing of what runs: that stays where it is. `waits` for the disk at its commits, or not.
    async fn pen(&self, waits: bool) -> Result<(MutexGuard<'_, Option<Pen>>, Pen), StoreError> {
        let mut slot = self.pen.lock().await;
        let has_live = self.live.lock().is_some();
        let mut pen = match slot.take().filter(|_| has_live) {
            Some(pen) => pen,
            None => {
                self.take_live()?;
                let Writer { pen, live } = self.load(self.connect().await?).await?;
                *self.live.lock() = Some(live);
                pen
            }
        };
        pen.wait_for_disk(waits).await.map_err(|e| self.error(e))?;
        Ok((slot, pen))
    }

    /// What runs, after what was accepted is with the system.
    fn take_live(&self) -> Result<Option<Live>, StoreError> {
        let mut live = self.live.lock();
        live.as_mut().map_or(Ok(()), Live::flush)?;
        Ok(live.take())
    }

    /// What `read` says of what runs, to who has the pen.
    fn of_live<T>(&self, read: impl FnOnce(&mut Live) -> T) -> T {
        read(self.live.lock().as_mut().expect("only who has the pen takes it"))
    }

    /// Has the disk have what was flushed, while more is.
    async fn sync(&self) -> Result<(), StoreError> {
        let unsynced = self.live.lock().as_mut().map_or(Ok(None), |live| live.log.unsynced())?;
        let Some(file) = unsynced else { return Ok(()) };
        let synced = tokio::task::spawn_blocking(move || file.sync_data()).await.map_err(io::Error::other);
        synced.flatten().map_err(|e| files::failed(&self.log, &e))
    }

    /// Puts a writer back that succeeded.
    fn put(&self, mut slot: MutexGuard<'_, Option<Pen>>, Writer { pen, live }: Writer) {
        *slot = Some(pen);
        *self.live.lock() = Some(live);
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

impl Store for SqliteStore {
    fn accept(&self, append: Append<'_>) -> Option<Result<(), Refused>> {
        batch::accept(self.live.lock().as_mut()?, append)
    }

    /// On the caller's thread: a page or two are handed to the system, which waits for no disk unless all memory is full of what
    /// disks have not taken. The disk has them when the store is tended: to wait for it would cost each token milliseconds.
    fn flush(&self) -> Result<(), StoreError> {
        self.live.lock().as_mut().map_or(Ok(()), Live::flush)
    }

    async fn commit(&self, writes: &[Write], at_ms: i64) -> Result<Vec<Result<Done, Rejected>>, StoreError> {
        let has_tokens = writes.iter().any(|write| write.money().is_none());
        if has_tokens {
            let (slot, mut writer) = self.writer().await?;
            let Writer { pen, live: Live { journal, log } } = &mut writer;
            let done = batch::commit(pen, journal, Some(log), writes, at_ms).await.map_err(|f| self.explain(f))?;
            self.put(slot, writer);
            return Ok(done);
        }
        // Money waits for the disk, and the others' tokens do not wait for it.
        let (mut slot, mut pen) = self.pen(true).await?;
        let about = writes.iter().filter_map(|write| write.entry().map(Entry::request));
        let mut lent = self.of_live(|live| live.journal.lend(about));
        let done = batch::commit(&mut pen, &mut lent, None, writes, at_ms).await.map_err(|f| self.explain(f))?;
        self.of_live(|live| live.journal.take_back(lent));
        *slot = Some(pen);
        Ok(done)
    }

    async fn take_over(&self, which: Takeover) -> Result<Vec<Reopened>, StoreError> {
        // Mostly there are none, and nobody waits for who only looks.
        let mut reader = self.reader().await?;
        if !journal::has_any(&mut reader, which, self.run).await.map_err(|f| self.explain(f))? {
            return Ok(Vec::new());
        }
        drop(reader);
        let (slot, mut writer) = self.writer().await?;
        let taken = journal::take_over(&mut writer, which).await.map_err(|f| self.explain(f))?;
        self.put(slot, writer);
        Ok(taken)
    }

    async fn request(&self, request: RequestId) -> Result<Option<Kept>, StoreError> {
        let (tail, mut reader) = (Tail::read(&self.log)?, self.reader().await?);
        journal::read(&mut reader, &tail, request).await.map_err(|f| self.explain(f))
    }

    /// There are no others.
    async fn exchange(&self, _: Option<&Note>) -> Result<Vec<Vec<u8>>, StoreError> {
        Ok(Vec::new())
    }

    async fn tend(&self, at_ms: i64) -> Result<(), StoreError> {
        self.sync().await?;
        if self.live.lock().as_ref().is_some_and(Live::is_due) {
            let (slot, mut writer) = self.writer().await?;
            journal::take_along(&mut writer).await.map_err(|f| self.explain(f))?;
            self.put(slot, writer);
        }
        // What is forgotten may be forgotten once more: it need not wait for the disk.
        let (mut slot, mut pen) = self.pen(false).await?;
        let needed = self.of_live(|live| live.journal.first_needed());
        journal::forget(&mut pen, needed, at_ms).await.map_err(|f| self.explain(f))?;
        *slot = Some(pen);
        Ok(())
    }

    async fn wallet(&self, accounts: &[Account], entries_max: u32) -> Result<Wallet, StoreError> {
        let mut reader = self.reader().await?;
        wallet::read(&mut reader, accounts, entries_max).await.map_err(|f| self.explain(f))
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        let mut reader = self.reader().await?;
        trial::totals(&mut reader).await.map_err(|f| self.explain(f))
    }

    async fn trial_balance(&self) -> Result<TrialBalance, StoreError> {
        let (tail, mut reader) = (Tail::read(&self.log)?, self.reader().await?);
        trial::balance(&mut reader, &tail).await.map_err(|f| self.explain(f))
    }

    async fn pin_pepper(&self, fingerprint: &[u8; 32]) -> Result<bool, StoreError> {
        let (mut slot, mut pen) = self.pen(true).await?;
        let pinned = keys::pin_pepper(&mut pen.connection, fingerprint).await.map_err(|f| self.explain(f))?;
        *slot = Some(pen);
        Ok(pinned)
    }

    async fn add_key(&self, key: &StoredKey) -> Result<(), StoreError> {
        let (mut slot, mut pen) = self.pen(true).await?;
        keys::add(&mut pen.connection, key).await.map_err(|f| self.explain(f))?;
        *slot = Some(pen);
        Ok(())
    }

    async fn keys(&self, prefix: Option<&str>) -> Result<Vec<StoredKey>, StoreError> {
        let mut reader = self.reader().await?;
        keys::list(&mut reader, prefix).await.map_err(|f| self.explain(f))
    }
}

#[cfg(test)]
mod tests;
