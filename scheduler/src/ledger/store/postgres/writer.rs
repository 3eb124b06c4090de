//! The connection that writes, and the lease under which it does.

use std::collections::{BTreeSet, HashMap};

use cuckoo_wire::PeerId;
use cuckoo_wire::message::RequestId;
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::super::super::account::Account;
use super::super::StoreError;
use super::super::rows::{self, Columns, Failure};
use super::journal;
use crate::journal::Journal;

/// Accounts whose rows are remembered, so that they are not looked up for every batch.
const ACCOUNTS_KNOWN_MAX: usize = 4_096;

/// See the file's head. What it knows is right as long as nobody takes a request from it, which its row tells.
pub(super) struct Writer {
    pub(super) connection: PgConnection,
    pub(super) lease: Lease,
    /// What runs here.
    pub(super) journal: Journal,
    /// Row ids of accounts that are only ever paid: they never change.
    pub(super) known: HashMap<Account, i64>,
}

/// The right to write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) me: PeerId,
    /// This scheduler's row.
    pub(super) id: i64,
    /// This process, among those that were this scheduler.
    pub(super) run: i64,
    /// How often others have taken requests over, as far as is known here.
    pub(super) taken: i64,
}

impl Writer {
    /// Reads what runs here. A transaction of a connection that was lost holds the row's lock until it has ended, so what
    /// is read is what it left.
    pub(super) async fn load(mut connection: PgConnection, me: PeerId, run: (i64, i64)) -> Result<Self, Failure> {
        let mut lease = Lease { me, id: run.0, run: run.1, taken: 0 };
        let mut tx = connection.begin().await?;
        lease.taken = lease.lock(&mut tx).await?;
        let journal = journal::load(&mut tx, lease).await?;
        tx.rollback().await?;
        Ok(Self { connection, lease, journal, known: HashMap::new() })
    }

    /// Remembers the row of an account.
    pub(super) fn remember(known: &mut HashMap<Account, i64>, account: Account, id: i64) {
        if known.len() >= ACCOUNTS_KNOWN_MAX {
            known.clear();
        }
        known.insert(account, id);
    }
}

impl Lease {
    /// Locks this scheduler's row until the transaction ends, and answers how often requests were taken from it.
    ///
    /// # Errors
    /// If another process is this scheduler by now.
    async fn lock(&self, tx: &mut PgConnection) -> Result<i64, Failure> {
        let sql = "SELECT run, taken FROM scheduler WHERE id = $1 FOR NO KEY UPDATE";
        let row = sqlx::query(sql).bind(self.id).fetch_one(tx).await?;
        self.check(row.int(0)?)?;
        row.int(1)
    }

    pub(super) fn check(&self, run: i64) -> Result<(), Failure> {
        if run == self.run { Ok(()) } else { Err(StoreError::LeaseLost(self.me).into()) }
    }

    /// Locks this scheduler's row, and forgets of `journal` what others have taken over.
    pub(super) async fn hold(&mut self, tx: &mut PgConnection, journal: &mut Journal) -> Result<(), Failure> {
        let taken = self.lock(tx).await?;
        self.heed(tx, journal, taken).await
    }

    /// Forgets of `journal` what others have taken over, if they have.
    pub(super) async fn heed(
        &mut self,
        tx: &mut PgConnection,
        journal: &mut Journal,
        taken: i64,
    ) -> Result<(), Failure> {
        if taken != self.taken {
            let sql = "SELECT request FROM request WHERE owner = $1 AND ended_ms IS NULL";
            let left = sqlx::query(sql).bind(self.id).fetch_all(tx).await?;
            let left = left.iter().map(|row| rows::request(row.blob(0)?));
            let left = left.collect::<Result<BTreeSet<RequestId>, Failure>>()?;
            journal.retain(|request, _| left.contains(request));
            self.taken = taken;
        }
        Ok(())
    }
}
