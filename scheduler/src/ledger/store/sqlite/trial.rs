//! The trial balance: everything that the tables say, computed again from the postings. Reads only.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::super::super::account::Account;
use super::super::super::books::{Kind, Transfer, TransferId};
use super::super::{GENESIS, Posting, Totals, TrialBalance};
use super::{Failure, rows};

pub(super) async fn balance(connection: &mut SqliteConnection) -> Result<TrialBalance, Failure> {
    // One snapshot, however long this takes; the writer goes on meanwhile.
    let mut tx = connection.begin().await?;
    let accounts = accounts(&mut tx).await?;
    let (postings, chain) = check_postings(&mut tx, &accounts).await?;
    let holds_open = check_holds(&mut tx).await?;
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
        let kept = Kept { account: rows::account(rows::get(&row, 1)?)?, balance: rows::get(&row, 2)? };
        if kept.balance < 0 && !kept.account.is_external() {
            return Err(rows::out_of_balance(format!("{} has {} nano-credits", kept.account, kept.balance)));
        }
        accounts.insert(rows::get(&row, 0)?, kept);
    }
    Ok(accounts)
}

/// The chain is whole and the postings add up to the balances. How many there are and the last link.
async fn check_postings(tx: &mut SqliteConnection, accounts: &HashMap<i64, Kept>) -> Result<(u64, [u8; 32]), Failure> {
    let mut sums: HashMap<i64, i128> = HashMap::new();
    let (mut seq, mut chain) = (0_i64, GENESIS);
    let sql = "SELECT seq, transfer, kind, request, debit, credit, amount, at_ms, chain FROM posting ORDER BY seq";
    let mut found = sqlx::query(sql).fetch(tx);
    while let Some(row) = found.try_next().await? {
        seq += 1;
        let (debit, credit): (i64, i64) = (rows::get(&row, 4)?, rows::get(&row, 5)?);
        let posting = posting(&row, accounts, debit, credit)?;
        if posting.seq != seq {
            return Err(rows::out_of_balance(format!("posting {seq} is missing")));
        }
        chain = posting.chain(&chain);
        let written: [u8; 32] = rows::bytes(rows::get(&row, 8)?)?;
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

fn posting(row: &SqliteRow, accounts: &HashMap<i64, Kept>, debit: i64, credit: i64) -> Result<Posting, Failure> {
    let name = |id| {
        let kept = accounts.get(&id).ok_or_else(|| rows::out_of_balance(format!("account {id} is missing")))?;
        Ok::<_, Failure>(kept.account)
    };
    let kind: &str = rows::get(row, 2)?;
    let request: Option<&[u8]> = rows::get(row, 3)?;
    let transfer = Transfer {
        id: TransferId(rows::bytes(rows::get(row, 1)?)?),
        kind: Kind::from_name(kind).ok_or_else(|| rows::out_of_balance(format!("a posting is for '{kind}'")))?,
        request: request.map(rows::request).transpose()?,
        debit: name(debit)?,
        credit: name(credit)?,
        amount: rows::get(row, 6)?,
    };
    Ok(Posting { seq: rows::get(row, 0)?, at_ms: rows::get(row, 7)?, transfer })
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
    let kept = rows::totals(tx).await?;
    if summed != kept {
        return Err(rows::out_of_balance(format!("the totals are {kept:?}, the holds add up to {summed:?}")));
    }
    Ok(kept)
}
