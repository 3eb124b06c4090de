//! Balances and last entries of a few accounts. Reads only.

use cuckoo_wire::limits::REPLY_FRAME_BYTES_MAX;
use cuckoo_wire::message::{Wallet, WalletEntry};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::super::super::account::Account;
use super::{Failure, rows};

/// Entries of a wallet.
pub const WALLET_ENTRIES_MAX: u32 = 512;

// Two names of at most 80 bytes and 46 bytes of numbers make an entry, and the reply is to fit its frame.
const _: () = assert!(WALLET_ENTRIES_MAX as usize * 208 + 16_384 <= REPLY_FRAME_BYTES_MAX);

pub(super) async fn read(
    connection: &mut SqliteConnection,
    accounts: &[Account],
    entries_max: u32,
) -> Result<Wallet, Failure> {
    let limit = entries_max.min(WALLET_ENTRIES_MAX);
    let mut wallet = Wallet::default();
    let mut entries: Vec<(i64, WalletEntry)> = Vec::new();
    // One snapshot: entries and balances agree.
    let mut tx = connection.begin().await?;
    for account in accounts {
        let name = account.to_string();
        let found = sqlx::query("SELECT id, balance FROM account WHERE name = ?1").bind(&name);
        let Some(row) = found.fetch_optional(&mut *tx).await? else {
            wallet.balances.push((name, 0));
            continue;
        };
        let id: i64 = rows::get(&row, 0)?;
        wallet.balances.push((name.clone(), rows::get(&row, 1)?));
        // Two questions, each answered from an index: one with OR would sort everything the account ever did.
        let given = "SELECT p.seq, p.at_ms, a.name, -p.amount, p.kind, p.request FROM posting AS p \
                     JOIN account AS a ON a.id = p.credit WHERE p.debit = ?1 ORDER BY p.seq DESC LIMIT ?2";
        let taken = "SELECT p.seq, p.at_ms, a.name, p.amount, p.kind, p.request FROM posting AS p \
                     JOIN account AS a ON a.id = p.debit WHERE p.credit = ?1 ORDER BY p.seq DESC LIMIT ?2";
        for sql in [given, taken] {
            for row in sqlx::query(sql).bind(id).bind(limit).fetch_all(&mut *tx).await? {
                entries.push(entry(&row, &name)?);
            }
        }
    }
    tx.rollback().await?;
    entries.sort_by_key(|(seq, _)| std::cmp::Reverse(*seq));
    wallet.entries = entries.into_iter().take(limit as usize).map(|(_, entry)| entry).collect();
    Ok(wallet)
}

fn entry(row: &SqliteRow, account: &str) -> Result<(i64, WalletEntry), Failure> {
    let request: Option<&[u8]> = rows::get(row, 5)?;
    let entry = WalletEntry {
        at_ms: rows::get(row, 1)?,
        account: account.to_owned(),
        counterparty: rows::get(row, 2)?,
        amount: rows::get(row, 3)?,
        kind: rows::get(row, 4)?,
        request: request.map(rows::request).transpose()?,
    };
    Ok((rows::get(row, 0)?, entry))
}
