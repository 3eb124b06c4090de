//! One batch in one transaction: look up what it needs, let books and journal decide, write what changed. Tokens alone take
//! none.

use std::collections::HashMap;

use serde_json::json;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::super::super::account::Account;
use super::super::super::books::{Books, Settled};
use super::super::super::write::{Done, Rejected, Write};
use super::super::batch::{self, Changes, Needs, text};
use super::super::rows::{self, Columns, Failure};
use super::super::{GENESIS, step};
use super::log::Log;
use super::{Live, Pen};
use crate::journal::{Append, Journal, Noted, Refused};

/// Accepts tokens of what runs here, which take no transaction: they are to be flushed. `None` where the database must be
/// asked, or where a transaction is due.
pub(super) fn accept(live: &mut Live, append: Append<'_>) -> Option<Result<(), Refused>> {
    let Live { journal, log } = live;
    if log.is_full() {
        return None;
    }
    match journal.append(append) {
        Ok(noted) => {
            if noted == Noted::Now {
                log.add(&append);
            }
            step::reached("tokens: accepted");
            Some(Ok(()))
        }
        Err(Refused::Unknown(_)) => None,
        Err(refused) => Some(Err(refused)),
    }
}

/// `journal` knows what runs here of what `writes` are about. With the `log`, which tokens need, all that runs.
pub(super) async fn commit(
    pen: &mut Pen,
    journal: &mut Journal,
    mut log: Option<&mut Log>,
    writes: &[Write],
    at_ms: i64,
) -> Result<Vec<Result<Done, Rejected>>, Failure> {
    let Pen { connection, id, run, .. } = pen;
    let needs = Needs::of(writes, journal);
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    step::reached("batch: begun");
    let mut books = load(&mut tx, &needs, journal).await?;
    let (changes, answers) = Changes::decide(writes, &mut books, journal)?;
    if changes.moves_money() {
        write_money(&mut tx, &changes, &books, at_ms).await?;
    }
    write_journal(&mut tx, &changes, journal, (*id, *run), at_ms).await?;
    if let Some(log) = &mut log {
        super::journal::write_segment(&mut tx, *id, journal, log, changes.segment).await?;
    }
    tx.commit().await?;
    step::reached("batch: committed");
    if let Some(log) = log {
        log.taken()?;
    }
    journal.keep_running();
    Ok(answers)
}

/// Everything that a batch may touch, as it is now.
async fn load(tx: &mut SqliteConnection, needs: &Needs, journal: &mut Journal) -> Result<Books, Failure> {
    let mut books = Books::default();
    let mut accounts = needs.accounts.clone();
    if !needs.holds.is_empty() {
        // CROSS JOIN fixes the order: the list first, then one lookup each.
        let sql = "SELECT h.request, a.name, h.amount, h.state, h.cost, h.miner, h.author, h.network, h.prompt_tokens, \
                   h.completion_tokens FROM json_each(?1) AS j CROSS JOIN hold AS h ON h.request = unhex(j.value) \
                   CROSS JOIN account AS a ON a.id = h.client";
        for row in sqlx::query(sql).bind(batch::requests(&needs.holds)).fetch_all(&mut *tx).await? {
            let (request, hold) = rows::hold(&row, 0)?;
            accounts.insert(Account::Client(hold.client));
            books.set_hold(request, hold);
        }
    }
    if !needs.deposits.is_empty() {
        let sql = "SELECT p.transfer, a.name, p.amount FROM json_each(?1) AS j \
                   CROSS JOIN posting AS p ON p.transfer = unhex(j.value) CROSS JOIN account AS a ON a.id = p.credit";
        let list = text(needs.deposits.keys().map(|t| json!(super::super::super::account::hex(t))));
        for row in sqlx::query(sql).bind(list).fetch_all(&mut *tx).await? {
            let transfer: [u8; 16] = rows::bytes(row.blob(0)?)?;
            let id = needs.deposits.get(&transfer).ok_or_else(|| rows::out_of_balance("a deposit nobody asked for"))?;
            books.set_deposit(*id, rows::client(row.text(1)?)?, row.int(2)?);
        }
    }
    if !accounts.is_empty() {
        let sql = "SELECT a.name, a.balance FROM json_each(?1) AS j CROSS JOIN account AS a ON a.name = j.value";
        let list = text(accounts.iter().map(|a| json!(a.to_string())));
        for row in sqlx::query(sql).bind(list).fetch_all(&mut *tx).await? {
            books.set_balance(rows::account(row.text(0)?)?, row.int(1)?);
        }
    }
    if !needs.rows.is_empty() {
        let sql = "SELECT r.request, a.name, s.peer, r.epoch, length(r.spec) > 0, r.first_segment, r.ending \
                   FROM json_each(?1) AS j CROSS JOIN request AS r ON r.request = unhex(j.value) \
                   CROSS JOIN hold AS h ON h.request = r.request CROSS JOIN account AS a ON a.id = h.client \
                   CROSS JOIN scheduler AS s ON s.id = r.owner";
        for row in sqlx::query(sql).bind(batch::requests(&needs.rows)).fetch_all(tx).await? {
            let (request, known) = rows::journal(&row)?;
            journal.set(request, known);
        }
    }
    Ok(books)
}

async fn write_money(
    tx: &mut SqliteConnection,
    changes: &Changes<'_>,
    books: &Books,
    at_ms: i64,
) -> Result<(), Failure> {
    let ids = write_accounts(tx, changes, books).await?;
    step::reached("batch: accounts are written");
    if !changes.legs.is_empty() {
        let last = sqlx::query("SELECT seq, chain FROM posting ORDER BY seq DESC LIMIT 1").fetch_optional(&mut *tx);
        let last = match last.await? {
            Some(row) => (row.int(0)?, rows::bytes(row.blob(1)?)?),
            None => (0, GENESIS),
        };
        let sql = "INSERT INTO posting (seq, transfer, kind, request, debit, credit, amount, at_ms, chain) \
                   SELECT value ->> 0, unhex(value ->> 1), value ->> 2, unhex(value ->> 3), value ->> 4, value ->> 5, \
                   value ->> 6, value ->> 7, unhex(value ->> 8) FROM json_each(?1)";
        sqlx::query(sql).bind(changes.postings(&ids, last, at_ms)?).execute(&mut *tx).await?;
        step::reached("batch: postings are written");
    }
    if !changes.holds.is_empty() {
        // An ended hold is never written again, whatever the books believe.
        let sql = "INSERT INTO hold (request, client, amount, state, cost, miner, author, network, prompt_tokens, \
                   completion_tokens) SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, \
                   value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9 FROM json_each(?1) WHERE true \
                   ON CONFLICT (request) DO UPDATE SET state = excluded.state, cost = excluded.cost, \
                   miner = excluded.miner, author = excluded.author, network = excluded.network, \
                   prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens \
                   WHERE hold.state = 'open' AND hold.client = excluded.client AND hold.amount = excluded.amount";
        let written = sqlx::query(sql).bind(changes.hold_rows(&ids)?).execute(&mut *tx).await?;
        changes.check_holds_written(written.rows_affected())?;
        step::reached("batch: holds are written");
    }
    if changes.settled.requests > 0 {
        let Settled { cost, miner, author, network } = changes.settled.split;
        let sql = "UPDATE total SET requests = requests + ?1, cost = cost + ?2, miner = miner + ?3, \
                   author = author + ?4, network = network + ?5 WHERE id = 1";
        let mut update = sqlx::query(sql);
        for amount in [changes.settled.requests, cost, miner, author, network] {
            update = update.bind(batch::signed(amount)?);
        }
        update.execute(tx).await?;
        step::reached("batch: totals are written");
    }
    Ok(())
}

/// Writes the balance of every account that moved; their row ids come back.
async fn write_accounts(
    tx: &mut SqliteConnection,
    changes: &Changes<'_>,
    books: &Books,
) -> Result<HashMap<Account, i64>, Failure> {
    let sql = "INSERT INTO account (name, balance) SELECT value ->> 0, value ->> 1 FROM json_each(?1) WHERE true \
               ON CONFLICT (name) DO UPDATE SET balance = excluded.balance RETURNING id, name";
    let list = text(changes.moved().iter().map(|a| json!([a.to_string(), books.balance(a)])));
    let rows = sqlx::query(sql).bind(list).fetch_all(tx).await?;
    rows.iter().map(|r| Ok((rows::account(r.text(1)?)?, r.int(0)?))).collect()
}

async fn write_journal(
    tx: &mut SqliteConnection,
    changes: &Changes<'_>,
    journal: &Journal,
    (owner, run): (i64, i64),
    at_ms: i64,
) -> Result<(), Failure> {
    if let Some(opened) = changes.opened_rows(journal, at_ms) {
        let sql = "INSERT INTO request (request, owner, run, epoch, spec, first_segment, opened_ms) \
                   SELECT unhex(value ->> 0), ?3, ?4, 1, substr(?2, value ->> 3, value ->> 4), value ->> 1, \
                   value ->> 2 FROM json_each(?1)";
        sqlx::query(sql).bind(opened.list).bind(opened.blob).bind(owner).bind(run).execute(&mut *tx).await?;
        step::reached("batch: requests are opened");
    }
    if let Some(ended) = changes.ended_rows(journal, at_ms) {
        // By its index: SQLite would go through all that is open, and for each of them through the list.
        let sql = "UPDATE request INDEXED BY sqlite_autoindex_request_1 SET ended_ms = j.value ->> 1, output = substr(?2, j.value ->> 2, j.value ->> 3), \
                   ending = substr(?2, j.value ->> 4, j.value ->> 5) FROM json_each(?1) AS j \
                   WHERE request = unhex(j.value ->> 0) AND ended_ms IS NULL AND owner = ?3";
        let written = sqlx::query(sql).bind(ended.list).bind(ended.blob).bind(owner).execute(&mut *tx).await?;
        changes.check_ends_written(written.rows_affected())?;
        step::reached("batch: requests are ended");
    }
    Ok(())
}
