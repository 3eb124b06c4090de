//! Balances and last entries of a few accounts. Reads only.

use cuckoo_wire::message::{Wallet, WalletEntry};
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::super::super::account::Account;
use super::super::WALLET_ENTRIES_MAX;
use super::super::rows::{self, Columns, Failure};

/// A transaction that sees one moment.
pub(super) const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

pub(super) async fn read(
    connection: &mut PgConnection,
    accounts: &[Account],
    entries_max: u32,
) -> Result<Wallet, Failure> {
    let limit = entries_max.min(WALLET_ENTRIES_MAX);
    let mut wallet = Wallet::default();
    let mut entries: Vec<(i64, WalletEntry)> = Vec::new();
    // Entries and balances agree.
    let mut tx = connection.begin_with(SNAPSHOT).await?;
    for account in accounts {
        let name = account.to_string();
        let sql = "SELECT a.id, a.balance + (SELECT coalesce(sum(i.amount), 0)::bigint FROM income AS i \
                   WHERE i.account = a.id) FROM account AS a WHERE a.name = $1";
        let Some(row) = sqlx::query(sql).bind(&name).fetch_optional(&mut *tx).await? else {
            wallet.balances.push((name, 0));
            continue;
        };
        let id = row.int(0)?;
        wallet.balances.push((name.clone(), row.int(1)?));
        // Two questions, each answered from an index.
        let given = "SELECT p.seq, p.at_ms, a.name, -p.amount, p.kind, p.request FROM posting AS p \
                     JOIN account AS a ON a.id = p.credit WHERE p.debit = $1 ORDER BY p.at_ms DESC, p.seq DESC LIMIT $2";
        let taken = "SELECT p.seq, p.at_ms, a.name, p.amount, p.kind, p.request FROM posting AS p \
                     JOIN account AS a ON a.id = p.debit WHERE p.credit = $1 ORDER BY p.at_ms DESC, p.seq DESC LIMIT $2";
        for sql in [given, taken] {
            for row in sqlx::query(sql).bind(id).bind(i64::from(limit)).fetch_all(&mut *tx).await? {
                entries.push(rows::entry(&row, &name)?);
            }
        }
    }
    tx.rollback().await?;
    // Schedulers number their postings each for itself, so time comes first.
    entries.sort_by_key(|(seq, entry)| std::cmp::Reverse((entry.at_ms, *seq)));
    wallet.entries = entries.into_iter().take(limit as usize).map(|(_, entry)| entry).collect();
    Ok(wallet)
}
