//! One batch of writes, whatever the engine: what must be looked up for it, and the lists of rows that it adds and
//! changes. Lists travel to the engine as one JSON text each, so a batch of any size is a handful of statements.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cuckoo_wire::message::RequestId;
use serde_json::{Value, json};

use super::super::account::{Account, hex};
use super::super::books::{
    Books, Broken, Command, Decision, DepositId, HoldRow, HoldState, Settled, Settlement, Transfer, TransferId,
};
use super::super::write::{Done, Rejected, Write};
use super::{Posting, Totals};
use crate::journal::{Damaged, Ending, Entry, Journal, Segment};

/// What a batch must know before it is decided.
#[derive(Default)]
pub(super) struct Needs {
    /// Balances.
    pub(super) accounts: BTreeSet<Account>,
    /// Holds.
    pub(super) holds: BTreeSet<RequestId>,
    /// Requests that the journal in memory does not know.
    pub(super) rows: BTreeSet<RequestId>,
    /// By transfer id.
    pub(super) deposits: HashMap<[u8; 16], DepositId>,
}

impl Needs {
    pub(super) fn of(writes: &[Write], journal: &Journal) -> Self {
        let mut needs = Self::default();
        for write in writes {
            if let Some(command) = write.money() {
                needs.add(command);
            }
            let request = write.entry().map(Entry::request);
            needs.rows.extend(request.filter(|request| journal.row(request).is_none()));
        }
        needs
    }

    fn add(&mut self, command: &Command) {
        match command {
            Command::Deposit { id, client, .. } => {
                self.accounts.extend([Account::Client(*client), Account::ExtDeposit]);
                self.deposits.insert(TransferId::of_deposit(*id).0, *id);
            }
            Command::Hold { request, client, .. } => {
                self.accounts.extend([Account::Client(*client), Account::Hold(*request)]);
                self.holds.insert(*request);
            }
            Command::Settle(settlement) => {
                self.accounts.extend(paid_by(settlement));
                self.holds.insert(settlement.request);
            }
            Command::Release { request } => {
                self.accounts.insert(Account::Hold(*request));
                self.holds.insert(*request);
            }
        }
    }
}

/// Accounts that a settlement touches, apart from the developer's.
fn paid_by(settlement: &Settlement) -> impl Iterator<Item = Account> {
    let network = [Account::NetFee, Account::NetAudit, Account::NetReliability];
    let authors = settlement.royalties.iter().map(|r| Account::AuthorPending(r.author));
    let miners = settlement.attempts.iter().map(|a| Account::MinerPending(a.miner));
    network.into_iter().chain([Account::Hold(settlement.request)]).chain(authors).chain(miners)
}

/// What a batch adds and changes.
#[derive(Default)]
pub(super) struct Changes<'a> {
    pub(super) legs: Vec<Transfer>,
    /// In their last state.
    pub(super) holds: HashMap<RequestId, HoldRow>,
    pub(super) settled: Totals,
    pub(super) segment: Segment,
    opened: Vec<(RequestId, &'a [u8])>,
    ended: BTreeSet<RequestId>,
}

/// Rows whose long columns are slices of one blob, so that bytes need not be written as digits.
pub(super) struct Rows {
    /// JSON.
    pub(super) list: String,
    pub(super) blob: Vec<u8>,
}

impl Rows {
    /// One without slices. It is never empty: an empty one would be bound as NULL.
    fn blob() -> Vec<u8> {
        vec![0]
    }
}

impl<'a> Changes<'a> {
    /// Lets books and journal decide, and notes what changes. Each write has its own answer.
    ///
    /// # Errors
    /// An invariant that fails: nothing may be written.
    pub(super) fn decide(
        writes: &'a [Write],
        books: &mut Books,
        journal: &mut Journal,
    ) -> Result<(Self, Vec<Result<Done, Rejected>>), Broken> {
        let before = books.sum();
        let mut changes = Self::default();
        let mut answers = Vec::with_capacity(writes.len());
        for write in writes {
            answers.push(write.apply(books, journal)?.map(|changed| {
                if let Some(decision) = changed.money {
                    changes.add(decision);
                }
                if let (Some(entry), true) = (write.entry(), changed.noted) {
                    changes.note(entry);
                }
                changed.done
            }));
        }
        if books.sum() != before {
            let detail = format!("the accounts of a batch sum to {}, not {before}", books.sum());
            return Err(Broken { invariant: "I1 (debits = credits)", detail });
        }
        Ok((changes, answers))
    }

    pub(super) fn moves_money(&self) -> bool {
        !self.legs.is_empty() || !self.holds.is_empty()
    }

    fn add(&mut self, decision: Decision) {
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
    }

    fn note(&mut self, entry: &'a Entry) {
        match entry {
            Entry::Open { request, spec, .. } => self.opened.push((*request, spec)),
            Entry::Append { request, first, tokens, by, .. } => self.segment.add(*request, *first, tokens, *by),
            Entry::End { request, .. } => {
                self.ended.insert(*request);
            }
        }
    }

    /// Accounts whose balance changes, and developers' whose hold does.
    pub(super) fn moved(&self) -> BTreeSet<Account> {
        let mut moved: BTreeSet<Account> = self.legs.iter().flat_map(|l| [l.debit, l.credit]).collect();
        moved.extend(self.holds.values().map(|h| Account::Client(h.client)));
        moved
    }

    /// By how much each account changes.
    pub(super) fn deltas(&self) -> BTreeMap<Account, i64> {
        let mut deltas: BTreeMap<Account, i64> = BTreeMap::new();
        for leg in &self.legs {
            *deltas.entry(leg.debit).or_default() -= leg.amount;
            *deltas.entry(leg.credit).or_default() += leg.amount;
        }
        deltas
    }

    /// `[seq, transfer, kind, request, debit, credit, amount, at_ms, chain]` for each leg, chained on `last`.
    pub(super) fn postings(
        &self,
        ids: &HashMap<Account, i64>,
        (mut seq, mut chain): (i64, [u8; 32]),
        at_ms: i64,
    ) -> Result<String, Broken> {
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
        Ok(text(list.into_iter()))
    }

    /// `[request, client, amount, state, cost, miner, author, network, prompt tokens, completion tokens]` each.
    pub(super) fn hold_rows(&self, ids: &HashMap<Account, i64>) -> Result<String, Broken> {
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
        Ok(text(list.into_iter()))
    }

    /// That all due holds were written.
    pub(super) fn check_holds_written(&self, written: u64) -> Result<(), Broken> {
        let due = self.holds.len();
        if usize::try_from(written) == Ok(due) {
            return Ok(());
        }
        let detail = format!("{due} holds were to be written and {written} could be");
        Err(Broken { invariant: "I3 (a hold resolves exactly once)", detail })
    }

    /// `[request, first segment, opened_ms, spec's place from 1, its length]` each, without those that ended at once.
    pub(super) fn opened_rows(&self, journal: &Journal, at_ms: i64) -> Option<Rows> {
        let (mut list, mut blob) = (Vec::new(), Rows::blob());
        for (request, spec) in &self.opened {
            let row = journal.row(request)?;
            list.push(json!([hex(&request.0), row.first_segment, at_ms, blob.len() + 1, spec.len()]));
            blob.extend_from_slice(spec);
        }
        (!list.is_empty()).then(|| Rows { list: text(list.into_iter()), blob })
    }

    /// `[request, ended_ms, output's place from 1, its length, ending's place, its length]` each.
    pub(super) fn ended_rows(&self, journal: &Journal, at_ms: i64) -> Option<Rows> {
        let (mut list, mut blob) = (Vec::new(), Rows::blob());
        for request in &self.ended {
            let row = journal.row(request)?;
            let output = to_bytes(&row.tokens);
            let ending = to_bytes(row.ending.as_ref()?);
            let (at, then) = (blob.len() + 1, blob.len() + 1 + output.len());
            list.push(json!([hex(&request.0), at_ms, at, output.len(), then, ending.len()]));
            blob.extend_from_slice(&output);
            blob.extend_from_slice(&ending);
        }
        (!list.is_empty()).then(|| Rows { list: text(list.into_iter()), blob })
    }

    /// That every request that ended was open until now, and this scheduler's.
    pub(super) fn check_ends_written(&self, written: u64) -> Result<(), Broken> {
        let due = self.ended.len();
        if usize::try_from(written) == Ok(due) {
            return Ok(());
        }
        let detail = format!("{due} requests were to end and {written} could");
        Err(Broken { invariant: "of the journal (a request ends once)", detail })
    }
}

/// A list as the engines read it.
pub(super) fn text(list: impl Iterator<Item = Value>) -> String {
    Value::Array(list.collect()).to_string()
}

/// Ids as a list.
pub(super) fn requests(list: &BTreeSet<RequestId>) -> String {
    text(list.iter().map(|r| json!(hex(&r.0))))
}

pub(super) fn id_of(ids: &HashMap<Account, i64>, account: &Account) -> Result<i64, Broken> {
    let missing = || Broken { invariant: "of the tables", detail: format!("{account} has no row") };
    ids.get(account).copied().ok_or_else(missing)
}

pub(super) fn signed(amount: u64) -> Result<i64, Broken> {
    let detail = || format!("a batch's costs of {amount} nano-credits exceed all money");
    i64::try_from(amount).map_err(|_| Broken { invariant: "I1 (debits = credits)", detail: detail() })
}

/// Output or ending, as kept.
fn to_bytes<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain values can be written")
}

/// Reads an output back.
pub(super) fn output(bytes: &[u8]) -> Result<Vec<u32>, Damaged> {
    postcard::from_bytes(bytes).map_err(|e| Damaged(format!("an output cannot be read ({e})")))
}

/// Reads an ending back.
pub(super) fn ending(bytes: &[u8]) -> Result<Ending, Damaged> {
    postcard::from_bytes(bytes).map_err(|e| Damaged(format!("an ending cannot be read ({e})")))
}
