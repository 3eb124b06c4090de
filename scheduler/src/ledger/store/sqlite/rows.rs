//! Rows of the tables as values of the books. Whatever does not fit is damage, never a panic.

use cuckoo_wire::message::RequestId;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::super::super::account::{Account, ClientId};
use super::super::super::books::{Credits, HoldRow, HoldState, Settled};
use super::super::{StoreError, Totals};
use super::Failure;

/// Reads column `index` of a row.
pub(super) fn get<'r, T>(row: &'r SqliteRow, index: usize) -> Result<T, Failure>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    Ok(row.try_get(index)?)
}

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
pub(super) fn unsigned(row: &SqliteRow, index: usize) -> Result<u64, Failure> {
    let value: i64 = get(row, index)?;
    u64::try_from(value).map_err(|_| out_of_balance(format!("{value} stands where nothing can be negative")))
}

/// `miner, author, network` from column `first` on, and `cost` before them.
pub(super) fn split(row: &SqliteRow, first: usize) -> Result<Settled, Failure> {
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

/// `request, client's name, amount, state, cost, miner, author, network, prompt_tokens, completion_tokens`.
pub(super) fn hold(row: &SqliteRow) -> Result<(RequestId, HoldRow), Failure> {
    let tokens = |index| -> Result<u32, Failure> {
        let count = unsigned(row, index)?;
        u32::try_from(count).map_err(|_| out_of_balance(format!("a request of {count} tokens")))
    };
    let state: &str = get(row, 3)?;
    let state = match state {
        "open" => HoldState::Open,
        "released" => HoldState::Released,
        "settled" => {
            HoldState::Settled { split: split(row, 4)?, prompt_tokens: tokens(8)?, completion_tokens: tokens(9)? }
        }
        other => return Err(out_of_balance(format!("a hold is '{other}'"))),
    };
    let id: &[u8] = get(row, 0)?;
    Ok((request(id)?, HoldRow { client: client(get(row, 1)?)?, amount: get(row, 2)?, state }))
}

/// The one row of sums.
pub(super) async fn totals(connection: &mut SqliteConnection) -> Result<Totals, Failure> {
    let sql = "SELECT requests, cost, miner, author, network FROM total WHERE id = 1";
    let row = sqlx::query(sql).fetch_one(connection).await?;
    Ok(Totals { requests: unsigned(&row, 0)?, split: split(&row, 1)? })
}
