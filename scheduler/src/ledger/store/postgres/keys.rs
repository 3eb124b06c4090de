//! Tables of API keys. Sees hashes only, never a key.

use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::super::super::account::Account;
use super::super::rows::{self, Columns, Failure};
use super::super::{StoredKey, step};
use super::writer::Writer;

/// Whether `fingerprint` is the one that is kept, now or from before.
pub(super) async fn pin_pepper(writer: &mut Writer, fingerprint: &[u8; 32]) -> Result<bool, Failure> {
    let connection = &mut writer.connection;
    let insert = sqlx::query("INSERT INTO pepper (id, fingerprint) VALUES (1, $1) ON CONFLICT (id) DO NOTHING");
    insert.bind(fingerprint.as_slice()).execute(&mut *connection).await?;
    let kept = sqlx::query("SELECT fingerprint FROM pepper WHERE id = 1").fetch_one(&mut *connection).await?;
    Ok(kept.blob(0)? == fingerprint)
}

pub(super) async fn add(writer: &mut Writer, key: &StoredKey) -> Result<(), Failure> {
    let Writer { connection, lease, journal, .. } = writer;
    let mut tx = connection.begin().await?;
    lease.hold(&mut tx, journal).await?;
    // A fresh client has a fresh account: a collision of random ids is an error, never a shared account.
    let account = sqlx::query("INSERT INTO account (name, balance) VALUES ($1, 0) RETURNING id")
        .bind(Account::Client(key.client).to_string())
        .fetch_one(&mut *tx)
        .await?
        .int(0)?;
    step::reached("key: the account is made");
    sqlx::query("INSERT INTO api_key (hash, prefix, client, label, created_ms) VALUES ($1, $2, $3, $4, $5)")
        .bind(key.hash.as_slice())
        .bind(key.prefix.as_str())
        .bind(account)
        .bind(key.label.as_str())
        .bind(key.created_ms)
        .execute(&mut *tx)
        .await?;
    step::reached("key: written");
    tx.commit().await?;
    step::reached("key: committed");
    Ok(())
}

pub(super) async fn list(connection: &mut PgConnection, prefix: Option<&str>) -> Result<Vec<StoredKey>, Failure> {
    let sql = "SELECT k.hash, k.prefix, a.name, k.label, k.created_ms FROM api_key AS k \
               JOIN account AS a ON a.id = k.client WHERE $1::text IS NULL OR k.prefix = $1 \
               ORDER BY k.created_ms, k.hash";
    sqlx::query(sql).bind(prefix).fetch_all(connection).await?.iter().map(rows::key).collect()
}
