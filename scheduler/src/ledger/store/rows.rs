//! Rows of the tables as values of books and journal, whatever the engine. Whatever does not fit is damage, never a
//! panic.

use cuckoo_wire::PeerId;
use cuckoo_wire::message::{RequestId, WalletEntry};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;

use super::super::account::{Account, ClientId};
use super::super::books::{Broken, Credits, HoldRow, HoldState, Kind, Settled, Transfer, TransferId};
use super::{Kept, Posting, Reopened, StoreError, StoredKey, Totals, batch};
use crate::journal::{Damaged, Epoch, Row};

/// What can end a transaction.
pub(super) enum Failure {
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

impl From<Damaged> for Failure {
    fn from(e: Damaged) -> Self {
        Self::Store(e.into())
    }
}

/// Columns of a row, by index.
pub(super) trait Columns {
    fn int(&self, index: usize) -> Result<i64, Failure>;
    fn flag(&self, index: usize) -> Result<bool, Failure>;
    fn text(&self, index: usize) -> Result<&str, Failure>;
    fn blob(&self, index: usize) -> Result<&[u8], Failure>;
    fn maybe_blob(&self, index: usize) -> Result<Option<&[u8]>, Failure>;
}

macro_rules! columns {
    ($row:ty) => {
        impl Columns for $row {
            fn int(&self, index: usize) -> Result<i64, Failure> {
                Ok(self.try_get(index)?)
            }
            fn flag(&self, index: usize) -> Result<bool, Failure> {
                Ok(self.try_get(index)?)
            }
            fn text(&self, index: usize) -> Result<&str, Failure> {
                Ok(self.try_get(index)?)
            }
            fn blob(&self, index: usize) -> Result<&[u8], Failure> {
                Ok(self.try_get(index)?)
            }
            fn maybe_blob(&self, index: usize) -> Result<Option<&[u8]>, Failure> {
                Ok(self.try_get(index)?)
            }
        }
    };
}
columns!(SqliteRow);
columns!(PgRow);

/// Something that this program never wrote.
pub(super) fn out_of_balance(detail: impl Into<String>) -> Failure {
    Failure::Store(StoreError::OutOfBalance(detail.into()))
}

pub(super) fn bytes<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Failure> {
    bytes.try_into().map_err(|_| out_of_balance(format!("a column of {N} bytes has {}", bytes.len())))
}

pub(super) fn request(id: &[u8]) -> Result<RequestId, Failure> {
    bytes(id).map(RequestId)
}

pub(super) fn account(name: &str) -> Result<Account, Failure> {
    name.parse().map_err(|e| out_of_balance(format!("{e}")))
}

pub(super) fn client(name: &str) -> Result<ClientId, Failure> {
    match account(name)? {
        Account::Client(client) => Ok(client),
        other => Err(out_of_balance(format!("{other} stands where a developer should"))),
    }
}

/// An amount or a count that is never negative.
pub(super) fn unsigned(row: &impl Columns, index: usize) -> Result<u64, Failure> {
    let value = row.int(index)?;
    u64::try_from(value).map_err(|_| out_of_balance(format!("{value} stands where nothing can be negative")))
}

/// `cost, miner, author, network` from column `first` on.
pub(super) fn split(row: &impl Columns, first: usize) -> Result<Settled, Failure> {
    let split = Settled {
        cost: unsigned(row, first)?,
        miner: unsigned(row, first + 1)?,
        author: unsigned(row, first + 2)?,
        network: unsigned(row, first + 3)?,
    };
    if u128::from(split.cost) != u128::from(split.miner) + u128::from(split.author) + u128::from(split.network) {
        let cost = Credits(split.cost);
        return Err(out_of_balance(format!("a cost of {cost} credits is not the sum of its shares: {split:?}")));
    }
    Ok(split)
}

/// `request, client's name, amount, state, cost, miner, author, network, prompt_tokens, completion_tokens` from column
/// `first` on.
pub(super) fn hold(row: &impl Columns, first: usize) -> Result<(RequestId, HoldRow), Failure> {
    let tokens = |index| -> Result<u32, Failure> {
        let count = unsigned(row, first + index)?;
        u32::try_from(count).map_err(|_| out_of_balance(format!("a request of {count} tokens")))
    };
    let state = match row.text(first + 3)? {
        "open" => HoldState::Open,
        "released" => HoldState::Released,
        "settled" => HoldState::Settled {
            split: split(row, first + 4)?,
            prompt_tokens: tokens(8)?,
            completion_tokens: tokens(9)?,
        },
        other => return Err(out_of_balance(format!("a hold is '{other}'"))),
    };
    let client = client(row.text(first + 1)?)?;
    Ok((request(row.blob(first)?)?, HoldRow { client, amount: row.int(first + 2)?, state }))
}

/// `requests, cost, miner, author, network`.
pub(super) fn totals(row: &impl Columns) -> Result<Totals, Failure> {
    Ok(Totals { requests: unsigned(row, 0)?, split: split(row, 1)? })
}

/// `seq, transfer, kind, request, amount, at_ms` from column 0 on, and the names that its accounts have.
pub(super) fn posting(row: &impl Columns, debit: Account, credit: Account) -> Result<Posting, Failure> {
    let kind = row.text(2)?;
    let transfer = Transfer {
        id: TransferId(bytes(row.blob(1)?)?),
        kind: Kind::from_name(kind).ok_or_else(|| out_of_balance(format!("a posting is for '{kind}'")))?,
        request: row.maybe_blob(3)?.map(request).transpose()?,
        debit,
        credit,
        amount: row.int(4)?,
    };
    Ok(Posting { seq: row.int(0)?, at_ms: row.int(5)?, transfer })
}

/// `order, at_ms, counterparty, amount, kind, request`; the order, for sorting, comes along.
pub(super) fn entry(row: &impl Columns, account: &str) -> Result<(i64, WalletEntry), Failure> {
    let entry = WalletEntry {
        at_ms: row.int(1)?,
        account: account.to_owned(),
        counterparty: row.text(2)?.to_owned(),
        amount: row.int(3)?,
        kind: row.text(4)?.to_owned(),
        request: row.maybe_blob(5)?.map(request).transpose()?,
    };
    Ok((row.int(0)?, entry))
}

/// `hash, prefix, client's name, label, created_ms`.
pub(super) fn key(row: &impl Columns) -> Result<StoredKey, Failure> {
    Ok(StoredKey {
        hash: bytes(row.blob(0)?)?,
        prefix: row.text(1)?.to_owned(),
        client: client(row.text(2)?)?,
        label: row.text(3)?.to_owned(),
        created_ms: row.int(4)?,
    })
}

fn epoch(row: &impl Columns, index: usize) -> Result<Epoch, Failure> {
    let value = row.int(index)?;
    u32::try_from(value).map(Epoch).map_err(|_| out_of_balance(format!("a request has owner number {value}")))
}

/// `request, client's name, owner's peer, epoch, whether there is a spec, first_segment, ending` of a request whose tokens
/// are not read.
pub(super) fn journal(row: &impl Columns) -> Result<(RequestId, Row), Failure> {
    let known = Row {
        client: client(row.text(1)?)?,
        owner: PeerId(bytes(row.blob(2)?)?),
        epoch: epoch(row, 3)?,
        resumable: row.flag(4)?,
        first_segment: row.int(5)?,
        tokens: Vec::new(),
        makers: Vec::new(),
        ending: row.maybe_blob(6)?.map(batch::ending).transpose()?,
    };
    Ok((request(row.blob(0)?)?, known))
}

/// `request, client's name, …` of a hold, then `owner's peer, epoch, spec, output, ending`; an open request's tokens are
/// not there.
pub(super) fn kept(row: &impl Columns) -> Result<Kept, Failure> {
    let (_, hold) = hold(row, 0)?;
    Ok(Kept {
        client: hold.client,
        owner: PeerId(bytes(row.blob(10)?)?),
        epoch: epoch(row, 11)?,
        spec: row.blob(12)?.to_vec(),
        tokens: row.maybe_blob(13)?.map(batch::output).transpose()?.unwrap_or_default(),
        ending: row.maybe_blob(14)?.map(batch::ending).transpose()?,
        hold: hold.state,
    })
}

/// A row of the journal that was taken over, and its spec.
pub(super) fn reopened(request: RequestId, row: &Row, spec: Vec<u8>) -> Reopened {
    let Row { client, epoch, tokens, makers, .. } = row;
    Reopened { request, client: *client, spec, tokens: tokens.clone(), makers: makers.clone(), epoch: *epoch }
}
