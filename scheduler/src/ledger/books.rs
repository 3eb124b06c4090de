//! The rules of the books, pure: which transfers a command makes, or why it makes none. Reads no clock, no disk and no
//! randomness; every amount is an integer number of nano-credits.
//!
//! ```text
//! deposit  ext:deposit ──▶ client
//! hold     client ──▶ hold:{request}                    the worst case, before any work
//! settle   hold ──▶ miners, author, net:fee, net:audit, net:reliability; what is left ──▶ client
//! release  hold ──▶ client                              nothing was delivered
//! ```
//!
//! A hold resolves once, by settle or release. Every transfer has an id made from what it is for, so a command that is
//! tried again moves nothing and has the outcome of the first time.

use std::fmt;

use cuckoo_wire::PeerId;
use cuckoo_wire::limits::NANO_PER_CREDIT;
use cuckoo_wire::message::{Price, RequestId};

use super::account::{Account, ClientId};

mod split;
mod state;

pub use state::Books;

/// Hundredths of a percent in a whole.
pub const BPS: u16 = 10_000;
/// The network's fee.
pub const FEE_BPS: u16 = 500;
/// The share that pays for audits.
pub const AUDIT_BPS: u16 = 300;
/// The share that pays for reliability.
pub const RELIABILITY_BPS: u16 = 200;
/// The most that authors may take: a model's, or an adapter's and its base's together.
pub const ROYALTY_BPS_MAX: u16 = 2_000;
/// Royalties of one request: an adapter's and its base's.
pub const ROYALTIES_MAX: usize = 2;

// Whatever authors take, most of the cost is the miners'.
const _: () = assert!(FEE_BPS + AUDIT_BPS + RELIABILITY_BPS + ROYALTY_BPS_MAX < BPS / 2);

/// Something to be done to the books.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Money comes in.
    Deposit {
        /// Names the payment; the same one counts once.
        id: DepositId,
        /// Whose.
        client: ClientId,
        /// In nano-credits, above 0.
        amount: u64,
    },
    /// The worst case of a request is set aside.
    Hold {
        /// What for.
        request: RequestId,
        /// Who pays.
        client: ClientId,
        /// In nano-credits; 0 for a free model.
        amount: u64,
    },
    /// A request has ended: those who worked are paid and the rest goes back.
    Settle(Settlement),
    /// A request has ended with nothing delivered: everything goes back.
    Release {
        /// Which.
        request: RequestId,
    },
}

/// Names a payment from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DepositId(pub [u8; 16]);

/// What a request used.
#[derive(Clone, Debug, PartialEq)]
pub struct Settlement {
    /// Which; its hold pays.
    pub request: RequestId,
    /// Tokens of the prompt that all attempts share.
    pub prompt_tokens: u32,
    /// Tokens that were given to the developer: the sum of the attempts'.
    pub delivered_tokens: u32,
    /// The most that the developer allowed.
    pub max_tokens: u32,
    /// The miners that worked on it, in order; at least one.
    pub attempts: Vec<Attempt>,
    /// What authors get: the model's, then, where that is an adapter, its base's. At most [`ROYALTIES_MAX`].
    pub royalties: Vec<Royalty>,
}

/// What one author gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Royalty {
    /// Who.
    pub author: PeerId,
    /// The share of the cost; all of a request together are at most [`ROYALTY_BPS_MAX`].
    pub bps: u16,
}

/// One miner's part. Output is paid by accepted tokens; the prompt is paid to the miner that finished, which is the
/// last one that delivered a token (or the last one, where nobody did).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attempt {
    /// Who.
    pub miner: PeerId,
    /// What it asked when it was chosen.
    pub ask: Price,
    /// Tokens accepted from it and delivered.
    pub tokens: u32,
    /// Tokens of prompts that are its alone, and paid to it: texts that it made vectors of.
    pub own_prompt_tokens: u32,
}

impl Attempt {
    /// Of a miner that has delivered nothing yet.
    pub fn new(miner: PeerId, ask: Price) -> Self {
        Self { miner, ask, tokens: 0, own_prompt_tokens: 0 }
    }
}

/// Who gets what of a request's cost: `cost = miner + author + network`, in nano-credits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// What the developer paid; never more than the hold.
    pub cost: u64,
    /// To all its miners.
    pub miner: u64,
    /// To the authors.
    pub author: u64,
    /// Fee, audit and reliability.
    pub network: u64,
}

/// What a command did, now or the first time it was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The deposit counts.
    Deposited,
    /// The amount is held.
    Held,
    /// Paid.
    Settled(Settled),
    /// So many nano-credits went back.
    Released(u64),
}

/// Why a command did nothing. The books are fine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The worst case is more than the account has.
    #[error("the request may cost up to {} credits and the account has {}: add credit, or ask for fewer tokens",
        Credits(*needed), Credits(*available))]
    Insufficient {
        /// Nano-credits that can be spent.
        available: u64,
        /// Nano-credits that would be held.
        needed: u64,
    },
    /// Nothing is held for this request.
    #[error("{0} has no hold: hold first, then settle or release")]
    UnknownHold(RequestId),
    /// The request is over and paid.
    #[error("{0} is settled already: a new request needs a new id")]
    AlreadySettled(RequestId),
    /// The request is over and unpaid.
    #[error("{0} is released already: a new request needs a new id")]
    AlreadyReleased(RequestId),
    /// The id was used for something else.
    #[error("{0} was used before with other contents: use a new id")]
    Conflict(String),
    /// The command makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// An invariant of the books does not hold: a bug. Nothing more may be written, and the process is to stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ledger invariant {invariant} is broken: {detail}; the books are left as they were before")]
pub struct Broken {
    /// Its name.
    pub invariant: &'static str,
    /// What was found.
    pub detail: String,
}

/// One movement of money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Unique for ever.
    pub id: TransferId,
    /// What for.
    pub kind: Kind,
    /// The request it belongs to.
    pub request: Option<RequestId>,
    /// Where it comes from.
    pub debit: Account,
    /// Where it goes.
    pub credit: Account,
    /// Nano-credits, above 0.
    pub amount: i64,
}

/// First half of BLAKE3(request or deposit ‖ phase ‖ leg).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransferId(pub [u8; 16]);

/// What a transfer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Money came in.
    Deposit,
    /// Set aside.
    Hold,
    /// Paid for work.
    Settle,
    /// What a settled request did not use.
    Void,
    /// What a failed request would have used.
    Release,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldRow {
    /// Who pays.
    pub client: ClientId,
    /// What was set aside, in nano-credits.
    pub amount: i64,
    /// What became of it.
    pub state: HoldState,
}

/// Where a hold is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldState {
    /// Set aside.
    Open,
    /// Paid.
    Settled {
        /// Who got what.
        split: Settled,
        /// Prompt tokens billed.
        prompt_tokens: u32,
        /// Output tokens billed.
        completion_tokens: u32,
    },
    /// Given back.
    Released,
}

/// What a decision rests on: all that the books must look up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// What the command's client can spend.
    pub available: i64,
    /// The command's request.
    pub hold: Option<HoldRow>,
    /// Where and how much the command's deposit went, if it came before.
    pub deposit: Option<(ClientId, i64)>,
    /// All that was ever paid in.
    pub deposited: i64,
}

/// What a command does. A repeated one has no legs and changes no hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Happen together or not at all.
    pub legs: Vec<Transfer>,
    /// The request's new state.
    pub hold: Option<(RequestId, HoldRow)>,
    /// For the caller.
    pub outcome: Outcome,
}

/// What `command` does to books of which `facts` are known.
///
/// # Errors
/// The outer one is a bug; the inner one is an ordinary no.
pub fn decide(command: &Command, facts: &Facts) -> Result<Result<Decision, Rejection>, Broken> {
    match command {
        Command::Deposit { id, client, amount } => Ok(decide_deposit(*id, *client, *amount, facts)),
        Command::Hold { request, client, amount } => Ok(decide_hold(*request, *client, *amount, facts)),
        Command::Settle(settlement) => split::decide_settle(settlement, facts.hold),
        Command::Release { request } => Ok(decide_release(*request, facts.hold)),
    }
}

fn decide_deposit(id: DepositId, client: ClientId, amount: u64, facts: &Facts) -> Result<Decision, Rejection> {
    let invalid = |why: &str| Rejection::Invalid(format!("a deposit of {} credits {why}", Credits(amount)));
    let amount = i64::try_from(amount).map_err(|_| invalid("is more than the books can hold"))?;
    match facts.deposit {
        Some(first) if first == (client, amount) => return Ok(Decision::repeated(Outcome::Deposited)),
        Some(_) => return Err(Rejection::Conflict(format!("deposit {}", super::account::hex(&id.0)))),
        None if amount == 0 => return Err(invalid("is none: name an amount")),
        None => {}
    }
    // No account can hold more than was ever paid in, so this one check keeps every balance within range.
    facts.deposited.checked_add(amount).ok_or_else(|| invalid("is more than the books can hold"))?;
    let leg = Transfer {
        id: TransferId::of_deposit(id),
        kind: Kind::Deposit,
        request: None,
        debit: Account::ExtDeposit,
        credit: Account::Client(client),
        amount,
    };
    Ok(Decision { legs: vec![leg], hold: None, outcome: Outcome::Deposited })
}

fn decide_hold(request: RequestId, client: ClientId, amount: u64, facts: &Facts) -> Result<Decision, Rejection> {
    if let Some(first) = facts.hold {
        return match first.state {
            HoldState::Open if first.client == client && u64::try_from(first.amount) == Ok(amount) => {
                Ok(Decision::repeated(Outcome::Held))
            }
            HoldState::Open => Err(Rejection::Conflict(request.to_string())),
            HoldState::Settled { .. } => Err(Rejection::AlreadySettled(request)),
            HoldState::Released => Err(Rejection::AlreadyReleased(request)),
        };
    }
    let available = u64::try_from(facts.available).unwrap_or(0);
    let amount = match i64::try_from(amount) {
        Ok(fits) if amount <= available => fits,
        _ => return Err(Rejection::Insufficient { available, needed: amount }),
    };
    let leg = Transfer::of_request(request, Kind::Hold, 0, Account::Client(client), Account::Hold(request), amount);
    let hold = HoldRow { client, amount, state: HoldState::Open };
    Ok(Decision { legs: leg.into_iter().collect(), hold: Some((request, hold)), outcome: Outcome::Held })
}

fn decide_release(request: RequestId, hold: Option<HoldRow>) -> Result<Decision, Rejection> {
    let hold = hold.ok_or(Rejection::UnknownHold(request))?;
    let outcome = Outcome::Released(hold.amount.unsigned_abs());
    match hold.state {
        HoldState::Settled { .. } => return Err(Rejection::AlreadySettled(request)),
        HoldState::Released => return Ok(Decision::repeated(outcome)),
        HoldState::Open => {}
    }
    let (from, to) = (Account::Hold(request), Account::Client(hold.client));
    let leg = Transfer::of_request(request, Kind::Release, 0, from, to, hold.amount);
    let released = HoldRow { state: HoldState::Released, ..hold };
    Ok(Decision { legs: leg.into_iter().collect(), hold: Some((request, released)), outcome })
}

impl Decision {
    fn repeated(outcome: Outcome) -> Self {
        Self { legs: Vec::new(), hold: None, outcome }
    }
}

impl Transfer {
    /// One leg of a request's phase; none where there is nothing to move.
    fn of_request(
        request: RequestId,
        kind: Kind,
        leg: u32,
        debit: Account,
        credit: Account,
        amount: i64,
    ) -> Option<Self> {
        // The remainder is a leg of its settlement.
        let phase = if kind == Kind::Void { Kind::Settle } else { kind };
        let id = TransferId::new(&request.0, phase, leg);
        (amount != 0).then_some(Self { id, kind, request: Some(request), debit, credit, amount })
    }
}

impl TransferId {
    /// The one transfer of a deposit.
    pub fn of_deposit(id: DepositId) -> Self {
        Self::new(&id.0, Kind::Deposit, 0)
    }

    fn new(subject: &[u8; 16], phase: Kind, leg: u32) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(subject).update(&[phase.code()]).update(&leg.to_le_bytes());
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        Self(id)
    }
}

impl Kind {
    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deposit => "deposit",
            Self::Hold => "hold",
            Self::Settle => "settle",
            Self::Void => "void",
            Self::Release => "release",
        }
    }

    /// As hashed: never renumbered.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Deposit => 0,
            Self::Hold => 1,
            Self::Settle => 2,
            Self::Release => 3,
            Self::Void => 4,
        }
    }

    /// Reads [`Kind::name`] back.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Deposit, Self::Hold, Self::Settle, Self::Void, Self::Release].into_iter().find(|k| k.name() == name)
    }
}

/// Nano-credits, printed exactly as credits.
#[derive(Clone, Copy, Debug)]
pub struct Credits(pub u64);

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, nano) = (self.0 / NANO_PER_CREDIT, self.0 % NANO_PER_CREDIT);
        match nano {
            0 => write!(f, "{whole}"),
            _ => write!(f, "{whole}.{}", format!("{nano:09}").trim_end_matches('0')),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
