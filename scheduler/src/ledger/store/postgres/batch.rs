//! One batch in one transaction, as on SQLite. Locks are taken in one order by all schedulers: one's own row, then
//! developers' accounts by name, then new accounts by name.

use std::collections::{BTreeSet, HashMap};

use serde_json::json;
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::super::super::account::{Account, hex};
use super::super::super::books::{Books, Settled};
use super::super::super::write::{Done, Rejected, Write};
use super::super::batch::{self, Changes, Needs, text};
use super::super::rows::{self, Columns, Failure};
use super::super::step;
use super::journal::genesis;
use super::writer::{Lease, Writer};
use crate::journal::Journal;

pub(super) async fn commit(
    writer: &mut Writer,
    writes: &[Write],
    at_ms: i64,
) -> Result<Vec<Result<Done, Rejected>>, Failure> {
    let Writer { connection, lease, journal, known } = writer;
    let mut tx = connection.begin().await?;
    lease.hold(&mut tx, journal).await?;
    step::reached("batch: begun");
    let mut books = load(&mut tx, &Needs::of(writes, journal), journal).await?;
    let (changes, answers) = Changes::decide(writes, &mut books, journal)?;
    if changes.moves_money() {
        write_money(&mut tx, &changes, &books, (*lease, known), at_ms).await?;
    }
    write_journal(&mut tx, &changes, journal, *lease, at_ms).await?;
    tx.commit().await?;
    step::reached("batch: committed");
    journal.keep_running();
    Ok(answers)
}

/// Accounts whose balances are kept as of now. All others are only ever paid, through `income`.
fn is_kept(account: &Account) -> bool {
    matches!(account, Account::Client(_) | Account::Hold(_) | Account::ExtDeposit | Account::ExtPayout)
}

/// Everything that a batch may touch, as it is now. Developers' accounts stay as they are until the batch has ended.
async fn load(tx: &mut PgConnection, needs: &Needs, journal: &mut Journal) -> Result<Books, Failure> {
    let mut books = Books::default();
    let mut accounts: BTreeSet<Account> = needs.accounts.iter().copied().filter(is_kept).collect();
    if !needs.holds.is_empty() {
        let sql = "SELECT h.request, a.name, h.amount, h.state, h.cost, h.miner, h.author, h.network, h.prompt_tokens, \
                   h.completion_tokens FROM jsonb_array_elements_text($1::jsonb) AS j(value) \
                   JOIN hold AS h ON h.request = decode(j.value, 'hex') JOIN account AS a ON a.id = h.client";
        for row in sqlx::query(sql).bind(batch::requests(&needs.holds)).fetch_all(&mut *tx).await? {
            let (request, hold) = rows::hold(&row, 0)?;
            accounts.insert(Account::Client(hold.client));
            books.set_hold(request, hold);
        }
    }
    if !needs.deposits.is_empty() {
        // There is a row to lock, whoever makes it.
        make_accounts(tx, needs.accounts.iter().filter(|a| matches!(a, Account::Client(_) | Account::ExtDeposit)))
            .await?;
    }
    if !accounts.is_empty() {
        let sql = "SELECT a.name, a.balance FROM account AS a WHERE a.name IN \
                   (SELECT j.value FROM jsonb_array_elements_text($1::jsonb) AS j(value)) \
                   ORDER BY a.name FOR NO KEY UPDATE";
        let list = text(accounts.iter().map(|a| json!(a.to_string())));
        for row in sqlx::query(sql).bind(list).fetch_all(&mut *tx).await? {
            books.set_balance(rows::account(row.text(0)?)?, row.int(1)?);
        }
    }
    // After the lock: a deposit that another scheduler makes at this moment is seen.
    load_deposits(tx, needs, &mut books).await?;
    if !needs.rows.is_empty() {
        let sql = "SELECT r.request, a.name, s.peer, r.epoch, length(r.spec) > 0, r.first_segment, r.ending \
                   FROM jsonb_array_elements_text($1::jsonb) AS j(value) \
                   JOIN request AS r ON r.request = decode(j.value, 'hex') JOIN hold AS h ON h.request = r.request \
                   JOIN account AS a ON a.id = h.client JOIN scheduler AS s ON s.id = r.owner";
        for row in sqlx::query(sql).bind(batch::requests(&needs.rows)).fetch_all(tx).await? {
            let (request, known) = rows::journal(&row)?;
            journal.set(request, known);
        }
    }
    Ok(books)
}

async fn load_deposits(tx: &mut PgConnection, needs: &Needs, books: &mut Books) -> Result<(), Failure> {
    if needs.deposits.is_empty() {
        return Ok(());
    }
    let sql = "SELECT p.transfer, a.name, p.amount FROM jsonb_array_elements_text($1::jsonb) AS j(value) \
               JOIN posting AS p ON p.transfer = decode(j.value, 'hex') JOIN account AS a ON a.id = p.credit";
    let list = text(needs.deposits.keys().map(|t| json!(hex(t))));
    for row in sqlx::query(sql).bind(list).fetch_all(tx).await? {
        let transfer: [u8; 16] = rows::bytes(row.blob(0)?)?;
        let id = needs.deposits.get(&transfer).ok_or_else(|| rows::out_of_balance("a deposit nobody asked for"))?;
        books.set_deposit(*id, rows::client(row.text(1)?)?, row.int(2)?);
    }
    Ok(())
}

/// Makes rows of accounts that have none, in the order given: by name, as everybody does.
async fn make_accounts<'a>(tx: &mut PgConnection, accounts: impl Iterator<Item = &'a Account>) -> Result<(), Failure> {
    let mut names: Vec<String> = accounts.map(ToString::to_string).collect();
    names.sort_unstable();
    let sql = "INSERT INTO account (name, balance) SELECT j.value, 0 \
               FROM jsonb_array_elements_text($1::jsonb) AS j(value) ON CONFLICT (name) DO NOTHING";
    sqlx::query(sql).bind(text(names.into_iter().map(|n| json!(n)))).execute(tx).await?;
    Ok(())
}

async fn write_money(
    tx: &mut PgConnection,
    changes: &Changes<'_>,
    books: &Books,
    (lease, known): (Lease, &mut HashMap<Account, i64>),
    at_ms: i64,
) -> Result<(), Failure> {
    let ids = write_accounts(tx, changes, books, known).await?;
    step::reached("batch: accounts are written");
    if !changes.legs.is_empty() {
        let sql = "SELECT seq, chain FROM posting WHERE writer = $1 ORDER BY seq DESC LIMIT 1";
        let last = match sqlx::query(sql).bind(lease.id).fetch_optional(&mut *tx).await? {
            Some(row) => (row.int(0)?, rows::bytes(row.blob(1)?)?),
            None => (0, genesis(lease.me)),
        };
        let sql = "INSERT INTO posting (writer, seq, transfer, kind, request, debit, credit, amount, at_ms, chain) \
                   SELECT $2, (value ->> 0)::bigint, decode(value ->> 1, 'hex'), value ->> 2, \
                   decode(value ->> 3, 'hex'), (value ->> 4)::bigint, (value ->> 5)::bigint, (value ->> 6)::bigint, \
                   (value ->> 7)::bigint, decode(value ->> 8, 'hex') FROM jsonb_array_elements($1::jsonb)";
        sqlx::query(sql).bind(changes.postings(&ids, last, at_ms)?).bind(lease.id).execute(&mut *tx).await?;
        step::reached("batch: postings are written");
    }
    if !changes.holds.is_empty() {
        // An ended hold is never written again, whatever the books believe.
        let sql = "INSERT INTO hold (request, client, amount, state, cost, miner, author, network, prompt_tokens, \
                   completion_tokens) SELECT decode(value ->> 0, 'hex'), (value ->> 1)::bigint, (value ->> 2)::bigint, \
                   value ->> 3, (value ->> 4)::bigint, (value ->> 5)::bigint, (value ->> 6)::bigint, \
                   (value ->> 7)::bigint, (value ->> 8)::bigint, (value ->> 9)::bigint \
                   FROM jsonb_array_elements($1::jsonb) \
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
        let sql = "INSERT INTO total (writer, requests, cost, miner, author, network) VALUES ($1, $2, $3, $4, $5, $6) \
                   ON CONFLICT (writer) DO UPDATE SET requests = total.requests + excluded.requests, \
                   cost = total.cost + excluded.cost, miner = total.miner + excluded.miner, \
                   author = total.author + excluded.author, network = total.network + excluded.network";
        let mut upsert = sqlx::query(sql).bind(lease.id);
        for amount in [changes.settled.requests, cost, miner, author, network] {
            upsert = upsert.bind(batch::signed(amount)?);
        }
        upsert.execute(tx).await?;
        step::reached("batch: totals are written");
    }
    Ok(())
}

/// Writes the balance of every account that is kept as of now, and what all others were paid; row ids come back.
async fn write_accounts(
    tx: &mut PgConnection,
    changes: &Changes<'_>,
    books: &Books,
    known: &mut HashMap<Account, i64>,
) -> Result<HashMap<Account, i64>, Failure> {
    let (kept, paid): (BTreeSet<Account>, BTreeSet<Account>) = changes.moved().into_iter().partition(is_kept);
    let sql = "INSERT INTO account (name, balance) SELECT value ->> 0, (value ->> 1)::bigint \
               FROM jsonb_array_elements($1::jsonb) ON CONFLICT (name) DO UPDATE SET balance = excluded.balance \
               RETURNING id, name";
    let list = text(kept.iter().map(|a| json!([a.to_string(), books.balance(a)])));
    let mut ids = HashMap::with_capacity(kept.len() + paid.len());
    for row in sqlx::query(sql).bind(list).fetch_all(&mut *tx).await? {
        ids.insert(rows::account(row.text(1)?)?, row.int(0)?);
    }
    let strange: BTreeSet<Account> = paid.iter().copied().filter(|account| !known.contains_key(account)).collect();
    if !strange.is_empty() {
        make_accounts(tx, strange.iter()).await?;
        let sql = "SELECT a.id, a.name FROM jsonb_array_elements_text($1::jsonb) AS j(value) \
                   JOIN account AS a ON a.name = j.value";
        let list = text(strange.iter().map(|a| json!(a.to_string())));
        for row in sqlx::query(sql).bind(list).fetch_all(&mut *tx).await? {
            Writer::remember(known, rows::account(row.text(1)?)?, row.int(0)?);
        }
    }
    ids.extend(paid.iter().filter_map(|account| known.get(account).map(|id| (*account, *id))));
    let deltas = changes.deltas();
    let mut incomes = Vec::with_capacity(paid.len());
    for account in &paid {
        incomes.push(json!([batch::id_of(&ids, account)?, deltas.get(account)]));
    }
    if !incomes.is_empty() {
        step::reached("batch: balances are written");
        let sql = "INSERT INTO income (account, amount) SELECT (value ->> 0)::bigint, (value ->> 1)::bigint \
                   FROM jsonb_array_elements($1::jsonb)";
        sqlx::query(sql).bind(text(incomes.into_iter())).execute(tx).await?;
    }
    Ok(ids)
}

async fn write_journal(
    tx: &mut PgConnection,
    changes: &Changes<'_>,
    journal: &mut Journal,
    lease: Lease,
    at_ms: i64,
) -> Result<(), Failure> {
    if let Some(opened) = changes.opened_rows(journal, at_ms) {
        let sql = "INSERT INTO request (request, owner, run, epoch, spec, first_segment, opened_ms) \
                   SELECT decode(value ->> 0, 'hex'), $3, $4, 1, \
                   substr($2::bytea, (value ->> 3)::integer, (value ->> 4)::integer), (value ->> 1)::bigint, \
                   (value ->> 2)::bigint FROM jsonb_array_elements($1::jsonb)";
        let insert = sqlx::query(sql).bind(opened.list).bind(opened.blob).bind(lease.id).bind(lease.run);
        insert.execute(&mut *tx).await?;
        step::reached("batch: requests are opened");
    }
    if let Some(ended) = changes.ended_rows(journal, at_ms) {
        let sql = "UPDATE request AS r SET ended_ms = (value ->> 1)::bigint, \
                   output = substr($2::bytea, (value ->> 2)::integer, (value ->> 3)::integer), \
                   ending = substr($2::bytea, (value ->> 4)::integer, (value ->> 5)::integer) \
                   FROM jsonb_array_elements($1::jsonb) \
                   WHERE r.request = decode(value ->> 0, 'hex') AND r.ended_ms IS NULL AND r.owner = $3";
        let written = sqlx::query(sql).bind(ended.list).bind(ended.blob).bind(lease.id).execute(&mut *tx).await?;
        changes.check_ends_written(written.rows_affected())?;
        step::reached("batch: requests are ended");
    }
    if !changes.segment.0.is_empty() {
        super::journal::write_segment(tx, lease.id, journal, &changes.segment).await?;
    }
    Ok(())
}
