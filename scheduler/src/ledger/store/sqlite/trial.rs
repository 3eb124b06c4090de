//! The trial balance: everything that the tables say, computed again from the postings. Reads only.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::super::super::account::Account;
use super::super::rows::{self, Columns, Failure};
use super::super::{GENESIS, Posting, Totals, TrialBalance, batch};
use super::log::Tail;
use crate::journal::{Output, Segment};

pub(super) async fn balance(connection: &mut SqliteConnection, tail: &Tail) -> Result<TrialBalance, Failure> {
    // One snapshot, however long this takes; the writer goes on meanwhile.
    let mut tx = connection.begin().await?;
    let accounts = accounts(&mut tx).await?;
    let (postings, chain) = check_postings(&mut tx, &accounts).await?;
    let holds_open = check_holds(&mut tx).await?;
    check_requests(&mut tx).await?;
    check_outputs(&mut tx, tail).await?;
    let totals = check_totals(&mut tx).await?;
    tx.rollback().await?;
    let deposited = accounts.values().find(|a| a.account == Account::ExtDeposit).map_or(0, |a| -a.balance);
    Ok(TrialBalance { accounts: accounts.len() as u64, postings, holds_open, deposited, chain, totals })
}

/// An account as kept.
struct Kept {
    account: Account,
    balance: i64,
}

async fn accounts(tx: &mut SqliteConnection) -> Result<HashMap<i64, Kept>, Failure> {
    let mut accounts = HashMap::new();
    let mut found = sqlx::query("SELECT id, name, balance FROM account").fetch(tx);
    while let Some(row) = found.try_next().await? {
        let kept = Kept { account: rows::account(row.text(1)?)?, balance: row.int(2)? };
        if kept.balance < 0 && !kept.account.is_external() {
            return Err(rows::out_of_balance(format!("{} has {} nano-credits", kept.account, kept.balance)));
        }
        accounts.insert(row.int(0)?, kept);
    }
    Ok(accounts)
}

/// The chain is whole and the postings add up to the balances. How many there are and the last link.
async fn check_postings(tx: &mut SqliteConnection, accounts: &HashMap<i64, Kept>) -> Result<(u64, [u8; 32]), Failure> {
    let mut sums: HashMap<i64, i128> = HashMap::new();
    let (mut seq, mut chain) = (0_i64, GENESIS);
    let sql = "SELECT seq, transfer, kind, request, amount, at_ms, debit, credit, chain FROM posting ORDER BY seq";
    let mut found = sqlx::query(sql).fetch(tx);
    while let Some(row) = found.try_next().await? {
        seq += 1;
        let (debit, credit) = (row.int(6)?, row.int(7)?);
        let posting: Posting = rows::posting(&row, name(accounts, debit)?, name(accounts, credit)?)?;
        if posting.seq != seq {
            return Err(rows::out_of_balance(format!("posting {seq} is missing")));
        }
        chain = posting.chain(&chain);
        let written: [u8; 32] = rows::bytes(row.blob(8)?)?;
        if chain != written {
            return Err(rows::out_of_balance(format!("posting {seq} does not continue the chain")));
        }
        *sums.entry(debit).or_default() -= i128::from(posting.transfer.amount);
        *sums.entry(credit).or_default() += i128::from(posting.transfer.amount);
    }
    for (id, kept) in accounts {
        let sum = sums.get(id).copied().unwrap_or(0);
        if sum != i128::from(kept.balance) {
            let Kept { account, balance } = kept;
            return Err(rows::out_of_balance(format!("{account} has {balance}, its postings add up to {sum}")));
        }
    }
    let all: i128 = accounts.values().map(|a| i128::from(a.balance)).sum();
    if all != 0 {
        return Err(rows::out_of_balance(format!("all accounts sum to {all}, not 0")));
    }
    Ok((seq.unsigned_abs(), chain))
}

fn name(accounts: &HashMap<i64, Kept>, id: i64) -> Result<Account, Failure> {
    accounts.get(&id).map(|kept| kept.account).ok_or_else(|| rows::out_of_balance(format!("account {id} is missing")))
}

/// Every hold took in its amount, and gave it out exactly once in the way that its row says. How many are open.
async fn check_holds(tx: &mut SqliteConnection) -> Result<u64, Failure> {
    let sql = "SELECT lower(hex(h.request)) FROM hold AS h \
               LEFT JOIN account AS a ON a.name = 'hold:req_' || lower(hex(h.request)) WHERE \
               h.amount <> (SELECT coalesce(sum(amount), 0) FROM posting WHERE credit = a.id) OR \
               CASE h.state WHEN 'open' THEN 0 ELSE h.amount END <> \
                 (SELECT coalesce(sum(amount), 0) FROM posting WHERE debit = a.id) OR \
               h.cost <> (SELECT coalesce(sum(amount), 0) FROM posting WHERE debit = a.id AND kind = 'settle') OR \
               CASE h.state WHEN 'released' THEN h.amount ELSE 0 END <> \
                 (SELECT coalesce(sum(amount), 0) FROM posting WHERE debit = a.id AND kind = 'release') LIMIT 1";
    if let Some(request) = sqlx::query_scalar::<_, String>(sql).fetch_optional(&mut *tx).await? {
        return Err(rows::out_of_balance(format!("the hold of req_{request} is not what its postings say")));
    }
    let orphan = "SELECT a.name FROM account AS a WHERE a.name LIKE 'hold:%' AND NOT EXISTS \
                  (SELECT 1 FROM hold AS h WHERE a.name = 'hold:req_' || lower(hex(h.request)) \
                   AND h.request = unhex(substr(a.name, 10))) LIMIT 1";
    if let Some(name) = sqlx::query_scalar::<_, String>(orphan).fetch_optional(&mut *tx).await? {
        return Err(rows::out_of_balance(format!("{name} belongs to no hold")));
    }
    let open = sqlx::query("SELECT count(*) FROM hold WHERE state = 'open'").fetch_one(tx).await?;
    rows::unsigned(&open, 0)
}

async fn check_totals(tx: &mut SqliteConnection) -> Result<Totals, Failure> {
    let sql = "SELECT count(*), coalesce(sum(cost), 0), coalesce(sum(miner), 0), coalesce(sum(author), 0), \
               coalesce(sum(network), 0) FROM hold WHERE state = 'settled'";
    let row = sqlx::query(sql).fetch_one(&mut *tx).await?;
    let summed = Totals { requests: rows::unsigned(&row, 0)?, split: rows::split(&row, 1)? };
    let kept = totals(tx).await?;
    if summed != kept {
        return Err(rows::out_of_balance(format!("the totals are {kept:?}, the holds add up to {summed:?}")));
    }
    Ok(kept)
}

/// The one row of sums.
pub(super) async fn totals(tx: &mut SqliteConnection) -> Result<Totals, Failure> {
    let sql = "SELECT requests, cost, miner, author, network FROM total WHERE id = 1";
    rows::totals(&sqlx::query(sql).fetch_one(tx).await?)
}

/// A request is open in the journal exactly if its hold is.
async fn check_requests(tx: &mut SqliteConnection) -> Result<(), Failure> {
    let sql = "SELECT lower(hex(h.request)) FROM hold AS h LEFT JOIN request AS r ON r.request = h.request WHERE \
               CASE h.state WHEN 'open' THEN r.request IS NULL OR r.ended_ms IS NOT NULL \
               ELSE r.request IS NOT NULL AND r.ended_ms IS NULL END LIMIT 1";
    match sqlx::query_scalar::<_, String>(sql).fetch_optional(tx).await? {
        Some(request) => Err(rows::out_of_balance(format!("req_{request} is not in the journal as its hold is"))),
        None => Ok(()),
    }
}

/// Outputs have no gaps, and nobody was billed for a token that is not there.
async fn check_outputs(tx: &mut SqliteConnection, tail: &Tail) -> Result<(), Failure> {
    let open = "SELECT request, owner, first_segment FROM request WHERE ended_ms IS NULL";
    let mut outputs: HashMap<i64, HashMap<_, Output>> = HashMap::new();
    for row in sqlx::query(open).fetch_all(&mut *tx).await? {
        let output = Output::beginning(row.int(2)?);
        outputs.entry(row.int(1)?).or_default().insert(rows::request(row.blob(0)?)?, output);
    }
    {
        let mut segments = sqlx::query("SELECT owner, seq, body FROM segment ORDER BY owner, seq").fetch(&mut *tx);
        while let Some(row) = segments.try_next().await? {
            if let Some(outputs) = outputs.get_mut(&row.int(0)?) {
                Segment::from_bytes(row.blob(2)?)?.replay(row.int(1)?, outputs)?;
            }
        }
    }
    for (owner, outputs) in &mut outputs {
        super::journal::replay_tail(tx, tail, *owner, outputs).await?;
    }
    let ended = "SELECT r.request, r.output, h.completion_tokens, length(r.spec) > 0 FROM request AS r \
                 JOIN hold AS h ON h.request = r.request WHERE r.ended_ms IS NOT NULL";
    let mut ended = sqlx::query(ended).fetch(tx);
    while let Some(row) = ended.try_next().await? {
        let (logged, billed) = (batch::output(row.blob(1)?)?.len() as u64, rows::unsigned(&row, 2)?);
        if row.flag(3)? && billed > logged {
            let request = rows::request(row.blob(0)?)?;
            return Err(rows::out_of_balance(format!("{request} paid {billed} tokens and its output has {logged}")));
        }
    }
    Ok(())
}
