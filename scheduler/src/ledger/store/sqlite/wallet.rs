//! Balances and last entries of a few accounts. Reads only.

use cuckoo_wire::message::{Wallet, WalletEntry};
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::super::super::account::Account;
use super::super::WALLET_ENTRIES_MAX;
use super::super::rows::{self, Columns, Failure};

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
        let id = row.int(0)?;
        wallet.balances.push((name.clone(), row.int(1)?));
        // Two questions, each answered from an index: one with OR would sort everything the account ever did.
        let given = "SELECT p.seq, p.at_ms, a.name, -p.amount, p.kind, p.request FROM posting AS p \
                     JOIN account AS a ON a.id = p.credit WHERE p.debit = ?1 ORDER BY p.seq DESC LIMIT ?2";
        let taken = "SELECT p.seq, p.at_ms, a.name, p.amount, p.kind, p.request FROM posting AS p \
                     JOIN account AS a ON a.id = p.debit WHERE p.credit = ?1 ORDER BY p.seq DESC LIMIT ?2";
        for sql in [given, taken] {
            for row in sqlx::query(sql).bind(id).bind(limit).fetch_all(&mut *tx).await? {
                entries.push(rows::entry(&row, &name)?);
            }
        }
    }
    tx.rollback().await?;
    entries.sort_by_key(|(seq, _)| std::cmp::Reverse(*seq));
    wallet.entries = entries.into_iter().take(limit as usize).map(|(_, entry)| entry).collect();
    Ok(wallet)
}
