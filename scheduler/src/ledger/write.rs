//! What is written at once: money, journal, or one of each about the same request, which then happen together or not at
//! all. Pure, like the books and the journal that it joins.

use cuckoo_wire::message::RequestId;

use super::account::ClientId;
use super::books::{Books, Broken, Command, Decision, DepositId, Outcome, Rejection, Settlement};
use crate::journal::{Ending, Entry, Epoch, Journal, Maker, Noted, Refused};

/// One thing to be written. Made by the functions below alone, so money and journal always speak of the same request.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    money: Option<Command>,
    entry: Option<Entry>,
}

/// How a request ends, and the right to end it.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// The writer's.
    pub epoch: Epoch,
    /// How.
    pub ending: Ending,
}

/// What a write did, now or the first time it was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// The books say.
    Money(Outcome),
    /// The tokens are in the journal.
    Appended,
}

/// Why a write did nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The books say no.
    #[error(transparent)]
    Money(#[from] Rejection),
    /// The journal says no.
    #[error(transparent)]
    Journal(#[from] Refused),
}

/// What a write changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// For the caller.
    pub done: Done,
    /// In the books, where money is part of it.
    pub money: Option<Decision>,
    /// Whether the journal has a new entry: the write's.
    pub noted: bool,
}

impl Write {
    /// Money comes in.
    pub fn deposit(id: DepositId, client: ClientId, amount: u64) -> Self {
        Self { money: Some(Command::Deposit { id, client, amount }), entry: None }
    }

    /// A request begins, and what it may cost is set aside. `spec` as of [`Entry::Open`].
    pub fn open(request: RequestId, client: ClientId, amount: u64, spec: Vec<u8>) -> Self {
        let entry = Entry::Open { request, client, spec };
        Self { money: Some(Command::Hold { request, client, amount }), entry: Some(entry) }
    }

    /// Tokens are accepted, the first of them being number `first` of the output. `by` as of [`Entry::Append`].
    pub fn append(request: RequestId, epoch: Epoch, first: u32, tokens: Vec<u32>, by: Option<Maker>) -> Self {
        Self { money: None, entry: Some(Entry::Append { request, epoch, first, tokens, by }) }
    }

    /// A request ends and is paid.
    pub fn settle(settlement: Settlement, end: End) -> Self {
        let request = settlement.request;
        Self { money: Some(Command::Settle(settlement)), entry: Some(end.entry(request)) }
    }

    /// A request ends unpaid.
    pub fn release(request: RequestId, end: End) -> Self {
        Self { money: Some(Command::Release { request }), entry: Some(end.entry(request)) }
    }

    /// What it says to the books.
    pub fn money(&self) -> Option<&Command> {
        self.money.as_ref()
    }

    /// What it says to the journal.
    pub fn entry(&self) -> Option<&Entry> {
        self.entry.as_ref()
    }

    /// Does it to `books` and `journal`, whole or not at all.
    ///
    /// # Errors
    /// The outer one is a bug; the inner one is an ordinary no.
    pub fn apply(&self, books: &mut Books, journal: &mut Journal) -> Result<Result<Changed, Rejected>, Broken> {
        let noted = match self.entry.as_ref().map(|entry| journal.check(entry)).transpose() {
            Ok(noted) => noted,
            Err(refused) => return Ok(Err(refused.into())),
        };
        self.check_output(journal)?;
        let decision = match self.money.as_ref().map(|command| books.apply(command)).transpose()?.transpose() {
            Ok(decision) => decision,
            Err(rejection) => return Ok(Err(rejection.into())),
        };
        let moved = decision.as_ref().is_some_and(|d| d.hold.is_some());
        if let (Some(entry), Some(noted), true) = (&self.entry, noted, self.money.is_some())
            && moved != (noted == Noted::Now)
        {
            let detail = format!("{} is {noted:?} in the journal and its hold {moved}", entry.request());
            return Err(Broken { invariant: "I3 (a hold resolves exactly once)", detail });
        }
        if let (Some(entry), Some(Noted::Now)) = (&self.entry, noted) {
            journal.note(entry);
        }
        let done = decision.as_ref().map_or(Done::Appended, |d| Done::Money(d.outcome));
        Ok(Ok(Changed { done, money: decision, noted: noted == Some(Noted::Now) }))
    }

    /// Nobody is billed for tokens that the journal does not have: a developer could not ask for them again.
    fn check_output(&self, journal: &Journal) -> Result<(), Broken> {
        let Some(Command::Settle(settlement)) = &self.money else { return Ok(()) };
        match journal.row(&settlement.request) {
            Some(row) if row.resumable && row.ending.is_none() => {
                let (billed, logged) = (settlement.delivered_tokens, row.tokens.len());
                if billed as usize <= logged {
                    return Ok(());
                }
                let detail = format!("{} bills {billed} tokens and has {logged} in the journal", settlement.request);
                Err(Broken { invariant: "I5 (billed tokens = delivered tokens <= logged tokens)", detail })
            }
            _ => Ok(()),
        }
    }
}

impl End {
    /// Of a request that nobody took over.
    pub fn first(ending: Ending) -> Self {
        Self { epoch: Epoch::FIRST, ending }
    }

    fn entry(self, request: RequestId) -> Entry {
        Entry::End { request, epoch: self.epoch, ending: self.ending }
    }
}

#[cfg(test)]
pub(super) mod tests;
