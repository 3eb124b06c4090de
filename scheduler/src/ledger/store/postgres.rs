//! The store on PostgreSQL, for many schedulers. Each has one connection that writes, one transaction a batch, and holds
//! the lock of its own row meanwhile: that is what a takeover waits for. Of others it locks only the accounts of
//! developers whose requests it opens or ends.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use cuckoo_wire::PeerId;
use cuckoo_wire::message::{RequestId, Wallet};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool, Postgres};
use tokio::sync::{Mutex, MutexGuard};

use super::super::account::Account;
use super::super::books::Broken;
use super::super::write::{Done, Rejected, Write};
use super::rows::{Columns, Failure};
use super::{Kept, Note, Reopened, Store, StoreError, StoredKey, Takeover, Totals, TrialBalance, files, step};

mod batch;
mod journal;
mod keys;
mod notes;
mod trial;
mod url;
mod wallet;
mod writer;

pub use url::{NoUrl, PostgresUrl};
use writer::Writer;

/// The tables' version that this program writes.
const SCHEMA_VERSION: i64 = 2;
/// The version in which schedulers told each other nothing.
const WITHOUT_NOTES: i64 = 1;
/// Locked for as long as a process is the scheduler whose data directory this is in.
const LOCK_FILE: &str = "store.lock";
/// A server that does not answer for so long is away.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// The same for a new connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// What the server is to do about a scheduler that stands still inside a transaction, or waits for one that does; in
/// milliseconds. Shorter than [`ANSWER_MAX`], so that who waits sees the end of it.
const IDLE_MAX_MS: &str = "5000";
const LOCK_WAIT_MS: &str = "8000";
/// Connections for wallets, totals, trial balances and notes; they never wait for the writer.
const READERS: u32 = 4;
/// Times that a transaction is tried when the server ends it for the sake of another one.
const TRIES_MAX: usize = 3;
/// Names the lock under which tables are made and incomes are added up, together with the schema's name.
const TABLES_LOCK: i32 = 0x636b_4c67;
const INCOME_LOCK: i32 = 0x636b_4c68;

/// A ledger on a server.
pub struct PostgresStore {
    url: PostgresUrl,
    options: PgConnectOptions,
    me: PeerId,
    /// This scheduler's row and this process's run of it.
    run: (i64, i64),
    /// `None` after a failure: the next use connects anew and reads anew what runs.
    writer: Mutex<Option<Writer>>,
    readers: PgPool,
    /// The last note that was heard of each scheduler.
    heard: Mutex<HashMap<i64, i64>>,
    /// Unlocked when dropped.
    _lock: File,
}

impl PostgresStore {
    /// Opens the ledger at `url` for scheduler `me`, or makes its tables there. From then on any other process that is this
    /// scheduler is fenced off; `dir`, its data directory, is locked.
    ///
    /// # Errors
    /// If the server cannot be used, or has something else there.
    pub async fn open(url: &PostgresUrl, dir: &Path, me: PeerId) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|e| files::unusable(dir, &e))?;
        let lock = files::lock(&dir.join(LOCK_FILE))?;
        let away = |detail: String| StoreError::Away { url: url.to_string(), detail };
        let options = PgConnectOptions::from_str(url.as_str()).map_err(|e| away(e.to_string()))?;
        let options = options.application_name("cuckoo").disable_statement_logging().options([
            ("idle_in_transaction_session_timeout", IDLE_MAX_MS),
            ("lock_timeout", LOCK_WAIT_MS),
            ("client_min_messages", "warning"),
        ]);
        let pool = PgPoolOptions::new().max_connections(READERS).acquire_timeout(CONNECT_MAX);
        let readers = pool.connect_lazy_with(options.clone());
        let (url, writer, heard) = (url.clone(), Mutex::new(None), Mutex::default());
        let mut store = Self { url, options, me, run: (0, 0), writer, readers, heard, _lock: lock };
        let mut connection = store.connect().await?;
        store.run = store.within(store.prepare(&mut connection)).await?;
        // What was told before this run is about service that nobody here had a part in.
        *store.heard.get_mut() = store.within(notes::last(&mut connection)).await?;
        let writer = store.within(Writer::load(connection, store.me, store.run)).await?;
        *store.writer.get_mut() = Some(writer);
        Ok(store)
    }

    async fn connect(&self) -> Result<PgConnection, StoreError> {
        let connecting = async {
            let mut connection = self.options.connect().await?;
            // Answered is durable, whatever this server's default is.
            let sql = "SELECT set_config('synchronous_commit', 'on', false) WHERE \
                       current_setting('synchronous_commit') = 'off'";
            sqlx::query(sql).execute(&mut connection).await?;
            Ok(connection)
        };
        match tokio::time::timeout(CONNECT_MAX, connecting).await {
            Ok(connected) => connected.map_err(|e| self.error(e)),
            Err(_) => Err(self.silent(CONNECT_MAX)),
        }
    }

    /// Makes the tables where there are none, and makes this process the newest run of its scheduler.
    async fn prepare(&self, connection: &mut PgConnection) -> Result<(i64, i64), Failure> {
        let mut tx = connection.begin().await?;
        // Two schedulers that start at once: the second sees the first one's tables.
        let sql = "SELECT pg_advisory_xact_lock($1, hashtext(current_schema()))";
        sqlx::query(sql).bind(TABLES_LOCK).execute(&mut *tx).await?;
        let sql = "SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'";
        let tables = sqlx::query(sql).fetch_one(&mut *tx).await?.int(0)?;
        if tables == 0 {
            sqlx::raw_sql(include_str!("postgres/schema.sql")).execute(&mut *tx).await?;
        }
        step::reached("open: tables are made");
        let sql = "SELECT count(*) FROM information_schema.columns WHERE table_schema = current_schema() AND \
                   table_name = 'store' AND column_name = 'application'";
        let ours = sqlx::query(sql).fetch_one(&mut *tx).await?.int(0)? == 1;
        let foreign =
            |detail: String| Failure::Store(StoreError::Foreign { path: self.url.to_string().into(), detail });
        if !ours {
            return Err(foreign("has another program's tables: use another database or schema".to_owned()));
        }
        let version = sqlx::query("SELECT version::bigint FROM store").fetch_one(&mut *tx).await?.int(0)?;
        if version == WITHOUT_NOTES {
            sqlx::raw_sql(include_str!("postgres/notes.sql")).execute(&mut *tx).await?;
            step::reached("open: there are notes");
        } else if version != SCHEMA_VERSION {
            return Err(foreign(format!(
                "has ledger version {version}; this program knows {SCHEMA_VERSION}: update it"
            )));
        }
        let run = journal::register(&mut tx, self.me).await?;
        step::reached("open: registered");
        tx.commit().await?;
        step::reached("open: committed");
        Ok(run)
    }

    /// The writer, out of its slot: only who succeeds puts it back, as in the store on SQLite.
    async fn writer(&self) -> Result<(MutexGuard<'_, Option<Writer>>, Writer), StoreError> {
        let mut slot = self.writer.lock().await;
        let writer = match slot.take() {
            Some(writer) => writer,
            None => {
                let connection = self.connect().await?;
                self.within(Writer::load(connection, self.me, self.run)).await?
            }
        };
        Ok((slot, writer))
    }

    async fn reader(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        self.readers.acquire().await.map_err(|e| self.error(e))
    }

    /// The answer to `work`, which a server may owe for [`ANSWER_MAX`].
    async fn within<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, StoreError> {
        match tokio::time::timeout(ANSWER_MAX, work).await {
            Ok(done) => done.map_err(|f| self.explain(f)),
            Err(_) => Err(self.silent(ANSWER_MAX)),
        }
    }

    fn silent(&self, so_long: Duration) -> StoreError {
        let detail = format!("it said nothing for {} s", so_long.as_secs());
        StoreError::Away { url: self.url.to_string(), detail }
    }

    fn explain(&self, failure: Failure) -> StoreError {
        match failure {
            Failure::Sql(e) => self.error(e),
            Failure::Store(e) => e,
        }
    }

    /// What the server's word means to its owner.
    fn error(&self, error: sqlx::Error) -> StoreError {
        let detail = error.to_string();
        match &error {
            // Class 23: an integrity constraint (https://www.postgresql.org/docs/current/errcodes-appendix.html).
            sqlx::Error::Database(e) if e.code().is_some_and(|code| code.starts_with("23")) => {
                StoreError::Broken(Broken { invariant: "of the tables", detail })
            }
            sqlx::Error::Database(e) if e.code().as_deref() == Some(DISK_FULL) => {
                StoreError::Full { path: self.url.to_string().into() }
            }
            _ => StoreError::Away { url: self.url.to_string(), detail },
        }
    }
}

const DISK_FULL: &str = "53100";
const SERIALIZATION_FAILURE: &str = "40001";
const DEADLOCK: &str = "40P01";

/// Whether the server ended the transaction for the sake of another one: nothing was written.
fn gave_way(failure: &Failure) -> bool {
    matches!(failure, Failure::Sql(sqlx::Error::Database(e))
        if matches!(e.code().as_deref(), Some(SERIALIZATION_FAILURE | DEADLOCK)))
}

/// Writes with the store's writer: `$work` on it, tried again where it gave way to another scheduler.
macro_rules! write_with {
    ($store:expr, $writer:ident => $work:expr) => {{
        let mut tries = 1;
        loop {
            let (mut slot, mut writer) = $store.writer().await?;
            let $writer = &mut writer;
            match tokio::time::timeout(ANSWER_MAX, $work).await {
                Ok(Ok(done)) => {
                    *slot = Some(writer);
                    break Ok(done);
                }
                Ok(Err(failure)) if gave_way(&failure) && tries < TRIES_MAX => tries += 1,
                Ok(Err(failure)) => break Err($store.explain(failure)),
                Err(_) => break Err($store.silent(ANSWER_MAX)),
            }
        }
    }};
}

impl Store for PostgresStore {
    async fn commit(&self, writes: &[Write], at_ms: i64) -> Result<Vec<Result<Done, Rejected>>, StoreError> {
        write_with!(self, writer => batch::commit(writer, writes, at_ms))
    }

    async fn take_over(&self, which: Takeover) -> Result<Vec<Reopened>, StoreError> {
        write_with!(self, writer => journal::take_over(writer, which))
    }

    async fn request(&self, request: RequestId) -> Result<Option<Kept>, StoreError> {
        let mut reader = self.reader().await?;
        self.within(journal::read(&mut reader, request)).await
    }

    async fn exchange(&self, note: Option<&Note>) -> Result<Vec<Vec<u8>>, StoreError> {
        let (mut heard, mut reader) = (self.heard.lock().await, self.reader().await?);
        self.within(notes::exchange(&mut reader, self.run, &mut heard, note)).await
    }

    async fn tend(&self, at_ms: i64) -> Result<(), StoreError> {
        write_with!(self, writer => journal::tend(writer, at_ms))
    }

    async fn wallet(&self, accounts: &[Account], entries_max: u32) -> Result<Wallet, StoreError> {
        let mut reader = self.reader().await?;
        self.within(wallet::read(&mut reader, accounts, entries_max)).await
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        let mut reader = self.reader().await?;
        self.within(trial::totals(&mut reader)).await
    }

    async fn trial_balance(&self) -> Result<TrialBalance, StoreError> {
        let mut reader = self.reader().await?;
        trial::balance(&mut reader).await.map_err(|f| self.explain(f))
    }

    async fn pin_pepper(&self, fingerprint: &[u8; 32]) -> Result<bool, StoreError> {
        write_with!(self, writer => keys::pin_pepper(writer, fingerprint))
    }

    async fn add_key(&self, key: &StoredKey) -> Result<(), StoreError> {
        write_with!(self, writer => keys::add(writer, key))
    }

    async fn keys(&self, prefix: Option<&str>) -> Result<Vec<StoredKey>, StoreError> {
        let mut reader = self.reader().await?;
        self.within(keys::list(&mut reader, prefix)).await
    }
}

#[cfg(test)]
pub(super) mod server;
#[cfg(test)]
mod tests;
