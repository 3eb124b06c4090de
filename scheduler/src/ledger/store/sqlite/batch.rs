//! One batch of commands in one transaction: look up what they need, let the books decide, write what changed. A
//! handful of statements whatever the batch's size, because lists travel to SQLite as one JSON text.

use std::collections::{BTreeSet, HashMap};

use cuckoo_wire::message::RequestId;
use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::super::super::account::{Account, hex};
use super::super::super::books::{
    Books, Broken, Command, Decision, DepositId, HoldRow, HoldState, Outcome, Rejection, Settled, Settlement,
    TransferId,
};
use super::super::{GENESIS, Posting, Totals};
use super::{Failure, rows};

pub(super) async fn commit(
    connection: &mut SqliteConnection,
    commands: &[Command],
    at_ms: i64,
) -> Result<Vec<Result<Outcome, Rejection>>, Failure> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut books = load(&mut tx, commands).await?;
    let before = books.sum();
    let mut changes = Changes::default();
    let mut outcomes = Vec::with_capacity(commands.len());
    for command in commands {
        outcomes.push(books.apply(command)?.map(|decision| changes.add(decision)));
    }
    if books.sum() != before {
        let detail = format!("the accounts of a batch sum to {}, not {before}", books.sum());
        return Err(Broken { invariant: "I1 (debits = credits)", detail }.into());
    }
    changes.write(&mut tx, &books, at_ms).await?;
    tx.commit().await?;
    Ok(outcomes)
}

/// Everything that `commands` may touch, as it is now.
async fn load(tx: &mut SqliteConnection, commands: &[Command]) -> Result<Books, Failure> {
    let mut books = Books::default();
    let mut accounts: BTreeSet<Account> = BTreeSet::new();
    let (mut requests, mut deposits) = (BTreeSet::new(), HashMap::new());
    for command in commands {
        match command {
            Command::Deposit { id, client, .. } => {
                accounts.extend([Account::Client(*client), Account::ExtDeposit]);
                deposits.insert(TransferId::of_deposit(*id).0, *id);
            }
            Command::Hold { request, client, .. } => {
                accounts.extend([Account::Client(*client), Account::Hold(*request)]);
                requests.insert(*request);
            }
            Command::Settle(settlement) => {
                accounts.extend(paid_by(settlement));
                requests.insert(settlement.request);
            }
            Command::Release { request } => {
                accounts.insert(Account::Hold(*request));
                requests.insert(*request);
            }
        }
    }
    for (request, hold) in load_holds(tx, &requests).await? {
        accounts.insert(Account::Client(hold.client));
        books.set_hold(request, hold);
    }
    load_deposits(tx, &deposits, &mut books).await?;
    load_balances(tx, &accounts, &mut books).await?;
    Ok(books)
}

/// Accounts that a settlement touches, apart from the developer's.
fn paid_by(settlement: &Settlement) -> impl Iterator<Item = Account> {
    let network = [Account::NetFee, Account::NetAudit, Account::NetReliability];
    let authors = settlement.royalties.iter().map(|r| Account::AuthorPending(r.author));
    let miners = settlement.attempts.iter().map(|a| Account::MinerPending(a.miner));
    network.into_iter().chain([Account::Hold(settlement.request)]).chain(authors).chain(miners)
}

async fn load_holds(
    tx: &mut SqliteConnection,
    requests: &BTreeSet<RequestId>,
) -> Result<Vec<(RequestId, HoldRow)>, Failure> {
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    // CROSS JOIN fixes the order: the list first, then one lookup each.
    let sql = "SELECT h.request, a.name, h.amount, h.state, h.cost, h.miner, h.author, h.network, h.prompt_tokens, \
               h.completion_tokens FROM json_each(?1) AS j CROSS JOIN hold AS h ON h.request = unhex(j.value) \
               CROSS JOIN account AS a ON a.id = h.client";
    let list = text(requests.iter().map(|r| json!(hex(&r.0))));
    sqlx::query(sql).bind(list).fetch_all(tx).await?.iter().map(rows::hold).collect()
}

async fn load_deposits(
    tx: &mut SqliteConnection,
    deposits: &HashMap<[u8; 16], DepositId>,
    books: &mut Books,
) -> Result<(), Failure> {
    if deposits.is_empty() {
        return Ok(());
    }
    let sql = "SELECT p.transfer, a.name, p.amount FROM json_each(?1) AS j \
               CROSS JOIN posting AS p ON p.transfer = unhex(j.value) CROSS JOIN account AS a ON a.id = p.credit";
    let list = text(deposits.keys().map(|t| json!(hex(t))));
    for row in sqlx::query(sql).bind(list).fetch_all(tx).await? {
        let transfer: [u8; 16] = rows::bytes(rows::get(&row, 0)?)?;
        let id = deposits.get(&transfer).ok_or_else(|| rows::out_of_balance("a deposit nobody asked for"))?;
        books.set_deposit(*id, rows::client(rows::get(&row, 1)?)?, rows::get(&row, 2)?);
    }
    Ok(())
}

async fn load_balances(
    tx: &mut SqliteConnection,
    accounts: &BTreeSet<Account>,
    books: &mut Books,
) -> Result<(), Failure> {
    let sql = "SELECT a.name, a.balance FROM json_each(?1) AS j CROSS JOIN account AS a ON a.name = j.value";
    let list = text(accounts.iter().map(|a| json!(a.to_string())));
    for row in sqlx::query(sql).bind(list).fetch_all(tx).await? {
        books.set_balance(rows::account(rows::get(&row, 0)?)?, rows::get(&row, 1)?);
    }
    Ok(())
}

/// What a batch adds and changes.
#[derive(Default)]
struct Changes {
    legs: Vec<super::super::super::books::Transfer>,
    /// In their last state.
    holds: HashMap<RequestId, HoldRow>,
    settled: Totals,
}

impl Changes {
    fn add(&mut self, decision: Decision) -> Outcome {
        if let Some((request, hold)) = decision.hold {
            self.holds.insert(request, hold);
            if let HoldState::Settled { split, .. } = hold.state {
                self.settled.requests += 1;
                self.settled.split.cost += split.cost;
                self.settled.split.miner += split.miner;
                self.settled.split.author += split.author;
                self.settled.split.network += split.network;
            }
        }
        self.legs.extend(decision.legs);
        decision.outcome
    }

    async fn write(self, tx: &mut SqliteConnection, books: &Books, at_ms: i64) -> Result<(), Failure> {
        if self.legs.is_empty() && self.holds.is_empty() {
            return Ok(());
        }
        let ids = self.write_accounts(tx, books).await?;
        self.write_postings(tx, &ids, at_ms).await?;
        self.write_holds(tx, &ids).await?;
        if self.settled.requests > 0 {
            let Settled { cost, miner, author, network } = self.settled.split;
            let sql = "UPDATE total SET requests = requests + ?1, cost = cost + ?2, miner = miner + ?3, \
                       author = author + ?4, network = network + ?5 WHERE id = 1";
            let mut update = sqlx::query(sql);
            for amount in [self.settled.requests, cost, miner, author, network] {
                update = update.bind(signed(amount)?);
            }
            update.execute(tx).await?;
        }
        Ok(())
    }

    /// Writes the balance of every account that moved; their row ids come back.
    async fn write_accounts(&self, tx: &mut SqliteConnection, books: &Books) -> Result<HashMap<Account, i64>, Failure> {
        let mut moved: BTreeSet<Account> = self.legs.iter().flat_map(|l| [l.debit, l.credit]).collect();
        moved.extend(self.holds.values().map(|h| Account::Client(h.client)));
        let sql = "INSERT INTO account (name, balance) SELECT value ->> 0, value ->> 1 FROM json_each(?1) WHERE true \
                   ON CONFLICT (name) DO UPDATE SET balance = excluded.balance RETURNING id, name";
        let list = text(moved.iter().map(|a| json!([a.to_string(), books.balance(a)])));
        let rows = sqlx::query(sql).bind(list).fetch_all(tx).await?;
        rows.iter().map(|r| Ok((rows::account(rows::get(r, 1)?)?, rows::get(r, 0)?))).collect()
    }

    async fn write_postings(
        &self,
        tx: &mut SqliteConnection,
        ids: &HashMap<Account, i64>,
        at_ms: i64,
    ) -> Result<(), Failure> {
        if self.legs.is_empty() {
            return Ok(());
        }
        let last = sqlx::query("SELECT seq, chain FROM posting ORDER BY seq DESC LIMIT 1").fetch_optional(&mut *tx);
        let (mut seq, mut chain) = match last.await? {
            Some(row) => (rows::get(&row, 0)?, rows::bytes(rows::get(&row, 1)?)?),
            None => (0, GENESIS),
        };
        let mut list = Vec::with_capacity(self.legs.len());
        for transfer in &self.legs {
            seq += 1;
            let posting = Posting { seq, at_ms, transfer: transfer.clone() };
            chain = posting.chain(&chain);
            let (kind, request) = (transfer.kind.name(), transfer.request.map(|r| hex(&r.0)));
            let (debit, credit) = (id_of(ids, &transfer.debit)?, id_of(ids, &transfer.credit)?);
            let id = hex(&transfer.id.0);
            list.push(json!([seq, id, kind, request, debit, credit, transfer.amount, at_ms, hex(&chain)]));
        }
        let sql = "INSERT INTO posting (seq, transfer, kind, request, debit, credit, amount, at_ms, chain) \
                   SELECT value ->> 0, unhex(value ->> 1), value ->> 2, unhex(value ->> 3), value ->> 4, value ->> 5, \
                   value ->> 6, value ->> 7, unhex(value ->> 8) FROM json_each(?1)";
        sqlx::query(sql).bind(text(list.into_iter())).execute(tx).await?;
        Ok(())
    }

    async fn write_holds(&self, tx: &mut SqliteConnection, ids: &HashMap<Account, i64>) -> Result<(), Failure> {
        if self.holds.is_empty() {
            return Ok(());
        }
        let mut list = Vec::with_capacity(self.holds.len());
        for (request, hold) in &self.holds {
            let (state, split, prompt, completion) = match hold.state {
                HoldState::Open => ("open", Settled::default(), 0, 0),
                HoldState::Released => ("released", Settled::default(), 0, 0),
                HoldState::Settled { split, prompt_tokens, completion_tokens } => {
                    ("settled", split, prompt_tokens, completion_tokens)
                }
            };
            let client = id_of(ids, &Account::Client(hold.client))?;
            let Settled { cost, miner, author, network } = split;
            let request = hex(&request.0);
            list.push(json!([request, client, hold.amount, state, cost, miner, author, network, prompt, completion]));
        }
        let due = list.len();
        // An ended hold is never written again, whatever the books believe.
        let sql = "INSERT INTO hold (request, client, amount, state, cost, miner, author, network, prompt_tokens, \
                   completion_tokens) SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, \
                   value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9 FROM json_each(?1) WHERE true \
                   ON CONFLICT (request) DO UPDATE SET state = excluded.state, cost = excluded.cost, \
                   miner = excluded.miner, author = excluded.author, network = excluded.network, \
                   prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens \
                   WHERE hold.state = 'open' AND hold.client = excluded.client AND hold.amount = excluded.amount";
        let written = sqlx::query(sql).bind(text(list.into_iter())).execute(tx).await?.rows_affected();
        if usize::try_from(written) != Ok(due) {
            let detail = format!("{due} holds were to be written and {written} could be");
            return Err(Broken { invariant: "I3 (a hold resolves exactly once)", detail }.into());
        }
        Ok(())
    }
}

/// A list as SQLite's `json_each` reads it.
fn text(list: impl Iterator<Item = Value>) -> String {
    Value::Array(list.collect()).to_string()
}

fn id_of(ids: &HashMap<Account, i64>, account: &Account) -> Result<i64, Broken> {
    let missing = || Broken { invariant: "of the tables", detail: format!("{account} has no row") };
    ids.get(account).copied().ok_or_else(missing)
}

fn signed(amount: u64) -> Result<i64, Broken> {
    let detail = || format!("a batch's costs of {amount} nano-credits exceed all money");
    i64::try_from(amount).map_err(|_| Broken { invariant: "I1 (debits = credits)", detail: detail() })
}
