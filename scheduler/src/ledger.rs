//! The double-entry ledger: who has what, what is held for running requests, who is paid for finished ones. Knows
//! neither models nor miners' connections.
//!
//! ```text
//! LedgerHandle ──hold, settle, release, deposit──▶ actor: what arrives while one batch commits is the next batch
//!      │                                             └─▶ Store::commit ─▶ Books (the rules) ─▶ postings, balances
//!      └─wallet, totals, trial balance, keys──────────▶ Store, on connections of their own
//! ```
//!
//! A command is answered when it is durable. A broken invariant fails the actor, and its supervisor is to stop the
//! process: nothing more may be written.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cuckoo_wire::message::{ApiKey, Refusal, RefusalCode, RequestId, Wallet};
use ractor::rpc::CallResult;
use ractor::{Actor, ActorCell, ActorRef};
use tokio::sync::Semaphore;

mod account;
mod actor;
mod books;
mod keys;
mod store;
#[cfg(test)]
mod tests;

pub use account::{Account, ClientId, UnknownAccount};
pub use books::{
    AUDIT_BPS, Attempt, BPS, Books, Broken, Command, Credits, Decision, DepositId, FEE_BPS, Facts, HoldRow, HoldState,
    Kind, Outcome, RELIABILITY_BPS, ROYALTIES_MAX, ROYALTY_BPS_MAX, Rejection, Royalty, Settled, Settlement, Transfer,
    TransferId, decide,
};
pub use keys::{KeyError, KeyInfo};
pub use store::{SqliteStore, Store, StoreError, StoredKey, Totals, TrialBalance, WALLET_ENTRIES_MAX};

use actor::{Ledger, LedgerMsg};
use keys::Keys;

/// Commands of one transaction.
pub const LEDGER_BATCH_MAX: usize = 256;
/// Commands that may wait for an answer; whoever comes then waits for a place. Bounds the actor's mailbox.
pub const LEDGER_WAITING_MAX: usize = 4_096;
/// After a failed commit, commands that nobody waits for are tried again this often.
const LEDGER_RETRY: Duration = Duration::from_secs(1);

/// The ledger, for everybody who uses it.
#[derive(Clone)]
pub struct LedgerHandle {
    actor: ActorRef<LedgerMsg>,
    store: Arc<SqliteStore>,
    keys: Arc<Keys<SqliteStore>>,
    waiting: Arc<Semaphore>,
}

/// Why the ledger did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The books say no.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The store failed; the books are as they were, unless the answer of a commit was lost, so try the same again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// API keys cannot be used.
    #[error(transparent)]
    Keys(KeyError),
    /// The ledger is going down.
    #[error("the ledger has stopped: start the scheduler again")]
    Stopped,
}

/// Why nothing was held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// The worst case is more than the account has.
    #[error("{}", Rejection::Insufficient { available: *available, needed: *needed })]
    Insufficient {
        /// Nano-credits that can be spent.
        available: u64,
        /// Nano-credits that would be held.
        needed: u64,
    },
    /// Anything else.
    #[error(transparent)]
    Ledger(LedgerError),
}

impl LedgerHandle {
    /// Opens the ledger in `dir`, or makes one there, under `supervisor`. What an earlier process still held is given
    /// back: nobody can finish those requests.
    pub async fn open(dir: &Path, supervisor: ActorCell) -> Result<Self, LedgerError> {
        let store = Arc::new(SqliteStore::open(dir).await?);
        let keys = Arc::new(Keys::open(dir, store.clone()).await?);
        release_abandoned(&*store).await?;
        let (actor, _) = Actor::spawn_linked(None, Ledger::default(), store.clone(), supervisor)
            .await
            .map_err(|_| LedgerError::Stopped)?;
        Ok(Self { actor, store, keys, waiting: Arc::new(Semaphore::new(LEDGER_WAITING_MAX)) })
    }

    /// A new API key whose account starts with `deposit_nano` nano-credits. Its text is nowhere but in the answer.
    pub async fn create_key(&self, label: &str, deposit_nano: u64) -> Result<ApiKey, LedgerError> {
        let (key, client) = self.keys.create(label, now_ms()).await?;
        if deposit_nano > 0 {
            self.deposit(&client, deposit_nano, DepositId(rand::random())).await?;
        }
        Ok(key)
    }

    /// Whose key this is; `None` for nobody's.
    pub async fn authenticate(&self, key: &ApiKey) -> Result<Option<ClientId>, LedgerError> {
        Ok(self.keys.authenticate(key).await?)
    }

    /// All keys, oldest first, without their text.
    pub async fn keys(&self) -> Result<Vec<KeyInfo>, LedgerError> {
        Ok(self.keys.list().await?)
    }

    /// Sets aside what `request` may cost. If the caller stops waiting, the hold is given back.
    pub async fn hold(&self, request: RequestId, client: &ClientId, amount_nano: u64) -> Result<(), HoldError> {
        let _place = self.waiting.acquire().await.map_err(|_| HoldError::Ledger(LedgerError::Stopped))?;
        let mut abandoned = Abandoned { ledger: self, request: Some(request) };
        let command = Command::Hold { request, client: *client, amount: amount_nano };
        let answer = self.ask(command).await;
        abandoned.request = None;
        match answer {
            Ok(_) => Ok(()),
            Err(LedgerError::Rejected(Rejection::Insufficient { available, needed })) => {
                Err(HoldError::Insufficient { available, needed })
            }
            Err(e) => Err(HoldError::Ledger(e)),
        }
    }

    /// Pays for a request. Tried again, it has the first outcome.
    pub async fn settle(&self, settlement: Settlement) -> Result<Settled, LedgerError> {
        match self.submit(Command::Settle(settlement)).await? {
            Outcome::Settled(settled) => Ok(settled),
            other => unreachable!("a settlement was answered with {other:?}"),
        }
    }

    /// Gives a request's hold back, nothing having been delivered; answers how much, in nano-credits.
    pub async fn release(&self, request: RequestId) -> Result<u64, LedgerError> {
        match self.submit(Command::Release { request }).await? {
            Outcome::Released(amount) => Ok(amount),
            other => unreachable!("a release was answered with {other:?}"),
        }
    }

    /// [`Self::settle`] for a caller that cannot wait, such as a `Drop`. It is tried until the store takes it; a
    /// rejection is logged.
    pub fn settle_later(&self, settlement: Settlement) {
        self.cast(Command::Settle(settlement));
    }

    /// [`Self::release`] for a caller that cannot wait, such as a `Drop`. It is tried until the store takes it.
    pub fn release_later(&self, request: RequestId) {
        self.cast(Command::Release { request });
    }

    /// Adds money that came from outside. The same `id` counts once.
    pub async fn deposit(&self, client: &ClientId, amount_nano: u64, id: DepositId) -> Result<(), LedgerError> {
        self.submit(Command::Deposit { id, client: *client, amount: amount_nano }).await.map(|_| ())
    }

    /// Balances of `accounts` and their newest entries: at most `entries_max` and [`WALLET_ENTRIES_MAX`].
    pub async fn wallet(&self, accounts: Vec<Account>, entries_max: u32) -> Result<Wallet, LedgerError> {
        Ok(self.store.wallet(&accounts, entries_max).await?)
    }

    /// Sums over all settled requests.
    pub async fn totals(&self) -> Result<Totals, LedgerError> {
        Ok(self.store.totals().await?)
    }

    /// Recomputes all books from the postings and compares; reads everything that was ever written.
    pub async fn trial_balance(&self) -> Result<TrialBalance, LedgerError> {
        Ok(self.store.trial_balance().await?)
    }

    async fn submit(&self, command: Command) -> Result<Outcome, LedgerError> {
        let _place = self.waiting.acquire().await.map_err(|_| LedgerError::Stopped)?;
        self.ask(command).await
    }

    async fn ask(&self, command: Command) -> Result<Outcome, LedgerError> {
        // No timeout: a disk that hangs is the caller's deadline to notice, and the command may yet be durable.
        match self.actor.call(|port| LedgerMsg::Apply(command, Some(port)), None).await {
            Ok(CallResult::Success(answer)) => answer,
            Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => Err(LedgerError::Stopped),
        }
    }

    fn cast(&self, command: Command) {
        if self.actor.cast(LedgerMsg::Apply(command, None)).is_err() {
            tracing::warn!(
                "the ledger has stopped before a request was closed; its hold is released at the next start"
            );
        }
    }
}

/// Gives back what is held for a caller that is gone before it heard so.
struct Abandoned<'a> {
    ledger: &'a LedgerHandle,
    request: Option<RequestId>,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request {
            self.ledger.release_later(request);
        }
    }
}

async fn release_abandoned(store: &impl Store) -> Result<(), LedgerError> {
    let abandoned = store.open_holds().await?;
    for batch in abandoned.chunks(LEDGER_BATCH_MAX) {
        let releases: Vec<Command> = batch.iter().map(|request| Command::Release { request: *request }).collect();
        for outcome in store.commit(&releases, now_ms()).await? {
            outcome?;
        }
    }
    if !abandoned.is_empty() {
        tracing::info!(requests = abandoned.len(), "released what an earlier run still held");
    }
    Ok(())
}

/// Unix milliseconds.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl From<KeyError> for LedgerError {
    fn from(e: KeyError) -> Self {
        match e {
            KeyError::Store(e) => Self::Store(e),
            e => Self::Keys(e),
        }
    }
}

impl From<HoldError> for Refusal {
    fn from(e: HoldError) -> Self {
        match e {
            HoldError::Insufficient { available, needed } => Rejection::Insufficient { available, needed }.into(),
            HoldError::Ledger(e) => e.into(),
        }
    }
}

impl From<LedgerError> for Refusal {
    fn from(e: LedgerError) -> Self {
        match e {
            LedgerError::Rejected(rejection) => rejection.into(),
            // Paths and disks are the operator's business; they are in the log.
            LedgerError::Store(StoreError::Broken(_) | StoreError::OutOfBalance(_)) => {
                Self::new(RefusalCode::Internal, "the accounts have failed: tell the scheduler's operator")
            }
            LedgerError::Store(_) | LedgerError::Keys(_) | LedgerError::Stopped => {
                Self::new(RefusalCode::Unavailable, "the accounts cannot be written now: try again later")
            }
        }
    }
}

impl From<Rejection> for Refusal {
    fn from(e: Rejection) -> Self {
        let code = match e {
            Rejection::Insufficient { .. } => RefusalCode::InsufficientCredit,
            Rejection::Invalid(_) => RefusalCode::InvalidRequest,
            // A scheduler makes the ids of requests, so a wrong one is its own mistake.
            Rejection::UnknownHold(_)
            | Rejection::AlreadySettled(_)
            | Rejection::AlreadyReleased(_)
            | Rejection::Conflict(_) => RefusalCode::Internal,
        };
        Self::new(code, e.to_string())
    }
}
