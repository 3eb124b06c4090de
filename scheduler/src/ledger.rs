//! The double-entry ledger: who has what, what is held for running requests, who is paid for finished ones; and, in the
//! same transactions, the journal of what runs. Knows neither models nor miners' connections.
//!
//! ```text
//! LedgerHandle ──open, append, settle, release, deposit──▶ inbox ─▶ actor: what comes while one batch commits is the next
//!      │              └─▶ Store::commit ─▶ Books, Journal (the rules) ─▶ postings, balances; requests, tokens
//!      ├─append, flush──▶ Store::accept, flush, past the actor: tokens alone, where the store takes them so
//!      └─adopt, claim, request, wallet, totals, trial balance, keys, exchange──▶ Store, past the actor
//! ```
//!
//! A write is answered when it is durable; tokens are when they are flushed. A broken invariant fails the actor, and its supervisor is to stop the
//! process: nothing more may be written.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cuckoo_wire::PeerId;
use cuckoo_wire::message::{ApiKey, Refusal, RefusalCode, RequestId, Wallet};
use ractor::{Actor, ActorCell, ActorRef};
use tokio::sync::{Semaphore, oneshot};

mod account;
mod actor;
mod books;
mod inbox;
mod keys;
mod store;
#[cfg(test)]
mod tests;
mod write;

pub use account::{Account, ClientId, UnknownAccount};
pub use books::{
    AUDIT_BPS, Attempt, BPS, Books, Broken, Command, Credits, Decision, DepositId, FEE_BPS, Facts, HoldRow, HoldState,
    Kind, Outcome, RELIABILITY_BPS, ROYALTIES_MAX, ROYALTY_BPS_MAX, Rejection, Royalty, Settled, Settlement, Transfer,
    TransferId, decide,
};
pub use keys::{KeyError, KeyInfo};
pub use store::{
    AnyStore, ENDED_KEPT, Kept, LEASE_SECONDS, NOTE_BYTES_MAX, NoUrl, Note, PostgresStore, PostgresUrl, Reopened,
    SqliteStore, Store, StoreError, StoredKey, TAKEOVER_MAX, Takeover, Totals, TrialBalance, WALLET_ENTRIES_MAX,
    stop_at_step,
};
pub use write::{Changed, Done, End, Rejected, Write};

use crate::journal::{Append, Ending, Refused};
use actor::{Ledger, LedgerMsg};
use inbox::{Inbox, Port};
use keys::Keys;

/// Writes of one transaction that move money.
pub const LEDGER_BATCH_MAX: usize = 256;
/// Writes of one transaction.
pub const LEDGER_WRITES_MAX: usize = 4_096;
/// Bytes that the writes of one transaction add to the journal, about; one write may have more.
pub const LEDGER_BYTES_MAX: usize = 8 << 20;
/// How often the store is tended: leases are renewed, and what is old is forgotten.
pub const TEND_EVERY: Duration = Duration::from_secs(1);
/// Writes that may wait for an answer; whoever comes then waits for a place. Bounds the actor's inbox.
pub const LEDGER_WAITING_MAX: usize = 4_096;
/// After a failed commit, commands that nobody waits for are tried again this often.
const LEDGER_RETRY: Duration = Duration::from_secs(1);

/// The ledger, for everybody who uses it.
#[derive(Clone)]
pub struct LedgerHandle {
    actor: ActorRef<LedgerMsg>,
    inbox: Arc<Inbox>,
    store: Arc<AnyStore>,
    keys: Arc<Keys<AnyStore>>,
    waiting: Arc<Semaphore>,
}

/// Why the ledger did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The books say no.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The journal says no.
    #[error(transparent)]
    Refused(#[from] Refused),
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
    /// Opens the ledger of scheduler `me` under `supervisor`: in `database`, or else in `dir`, where one is made if there
    /// is none. `dir` has what is this scheduler's alone. What an earlier process left open waits for [`Self::adopt`].
    pub async fn open(
        dir: &Path,
        database: Option<&PostgresUrl>,
        me: PeerId,
        supervisor: ActorCell,
    ) -> Result<Self, LedgerError> {
        let store = Arc::new(match database {
            Some(url) => AnyStore::Postgres(PostgresStore::open(url, dir, me).await?),
            None => AnyStore::Sqlite(SqliteStore::open(dir, me).await?),
        });
        let keys = Arc::new(Keys::open(dir, store.clone()).await?);
        let inbox = Arc::new(Inbox::default());
        let (actor, _) = Actor::spawn_linked(None, Ledger::default(), (store.clone(), inbox.clone()), supervisor)
            .await
            .map_err(|_| LedgerError::Stopped)?;
        Ok(Self { actor, inbox, store, keys, waiting: Arc::new(Semaphore::new(LEDGER_WAITING_MAX)) })
    }

    /// Takes over what was left open by an earlier run of this scheduler, and by schedulers that are gone: a few at a
    /// time, so ask until there are none, at the start and every now and then. Whoever asks is to go on with them or to
    /// release them.
    pub async fn adopt(&self) -> Result<Vec<Reopened>, LedgerError> {
        let earlier = self.store.take_over(Takeover::Earlier).await?;
        Ok(if earlier.is_empty() { self.store.take_over(Takeover::Expired).await? } else { earlier })
    }

    /// Takes one open request over, whoever runs it, for a developer who asks for it here. `None` if it is unknown or has
    /// ended.
    pub async fn claim(&self, request: RequestId) -> Result<Option<Reopened>, LedgerError> {
        Ok(self.store.take_over(Takeover::Request(request)).await?.pop())
    }

    /// What is known of a request, with its output so far or, for [`ENDED_KEPT`], after its end.
    pub async fn request(&self, request: RequestId) -> Result<Option<Kept>, LedgerError> {
        Ok(self.store.request(request).await?)
    }

    /// Tells the other schedulers of a shared store something, and hears what they have told since this was asked last: see
    /// [`Store::exchange`].
    pub async fn exchange(&self, note: Option<&Note>) -> Result<Vec<Vec<u8>>, LedgerError> {
        Ok(self.store.exchange(note).await?)
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

    /// Opens `request` in its first epoch and sets aside what it may cost; `spec` is what another process needs to go on
    /// with it. If the caller stops waiting, it is ended and the hold given back.
    pub async fn open_request(
        &self,
        request: RequestId,
        client: &ClientId,
        amount_nano: u64,
        spec: Vec<u8>,
    ) -> Result<(), HoldError> {
        let _place = self.waiting.acquire().await.map_err(|_| HoldError::Ledger(LedgerError::Stopped))?;
        let mut abandoned = Abandoned { ledger: self, request: Some(request) };
        let answer = self.ask(Write::open(request, *client, amount_nano, spec)).await;
        abandoned.request = None;
        match answer {
            Ok(_) => Ok(()),
            Err(LedgerError::Rejected(Rejection::Insufficient { available, needed })) => {
                Err(HoldError::Insufficient { available, needed })
            }
            Err(e) => Err(HoldError::Ledger(e)),
        }
    }

    /// Accepts tokens of a request's output. They may be sent on after [`Self::flush`]; tried again, they count once.
    pub async fn append(&self, append: Append<'_>) -> Result<(), LedgerError> {
        if let Some(accepted) = self.accept(append) {
            return accepted;
        }
        let Append { request, epoch, first, tokens, by } = append;
        self.submit(Write::append(request, epoch, first, tokens.to_vec(), by)).await.map(|_| ())
    }

    /// [`Self::append`], where that need not wait; `None` where it must.
    pub fn accept(&self, append: Append<'_>) -> Option<Result<(), LedgerError>> {
        let accepted = self.store.accept(append)?;
        Some(accepted.map_err(|refused| Rejected::from(refused).into()))
    }

    /// Writes down what was accepted by now.
    ///
    /// # Errors
    /// If it could not: nothing that was accepted is lost by that, and it is to be tried again.
    pub fn flush(&self) -> Result<(), LedgerError> {
        Ok(self.store.flush()?)
    }

    /// Ends a request and pays for it. Tried again, it has the first outcome.
    pub async fn settle(&self, settlement: Settlement, end: End) -> Result<Settled, LedgerError> {
        match self.submit(Write::settle(settlement, end)).await? {
            Done::Money(Outcome::Settled(settled)) => Ok(settled),
            other => unreachable!("a settlement was answered with {other:?}"),
        }
    }

    /// Ends a request and gives its hold back, nothing having been delivered; answers how much, in nano-credits.
    pub async fn release(&self, request: RequestId, end: End) -> Result<u64, LedgerError> {
        match self.submit(Write::release(request, end)).await? {
            Done::Money(Outcome::Released(amount)) => Ok(amount),
            other => unreachable!("a release was answered with {other:?}"),
        }
    }

    /// [`Self::settle`] for a caller that cannot wait, such as a `Drop`. It is tried until the store takes it; a
    /// rejection is logged.
    pub fn settle_later(&self, settlement: Settlement, end: End) {
        self.cast(Write::settle(settlement, end));
    }

    /// [`Self::release`] for a caller that cannot wait, such as a `Drop`. It is tried until the store takes it.
    pub fn release_later(&self, request: RequestId, end: End) {
        self.cast(Write::release(request, end));
    }

    /// Adds money that came from outside. The same `id` counts once.
    pub async fn deposit(&self, client: &ClientId, amount_nano: u64, id: DepositId) -> Result<(), LedgerError> {
        self.submit(Write::deposit(id, *client, amount_nano)).await.map(|_| ())
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

    async fn submit(&self, write: Write) -> Result<Done, LedgerError> {
        let _place = self.waiting.acquire().await.map_err(|_| LedgerError::Stopped)?;
        self.ask(write).await
    }

    /// Hands a write in at once; what came of it is waited for.
    fn ask(&self, write: Write) -> impl Future<Output = Result<Done, LedgerError>> + use<> {
        // No timeout: a disk that hangs is the caller's deadline to notice, and the write may yet be durable.
        let (port, answer) = oneshot::channel();
        let handed_in = self.hand_in(write, Some(port));
        async move {
            handed_in?;
            answer.await.map_err(|_| LedgerError::Stopped)?
        }
    }

    fn hand_in(&self, write: Write, port: Option<Port>) -> Result<(), LedgerError> {
        if self.inbox.push(write, port)? && self.actor.cast(LedgerMsg::Commit).is_err() {
            self.inbox.close();
            return Err(LedgerError::Stopped);
        }
        Ok(())
    }

    fn cast(&self, write: Write) {
        if self.hand_in(write, None).is_err() {
            tracing::warn!("the ledger has stopped before a request was closed; the next start will find it open");
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
            self.ledger.release_later(request, End::first(Ending::Gone));
        }
    }
}

/// Unix milliseconds.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl From<Rejected> for LedgerError {
    fn from(e: Rejected) -> Self {
        match e {
            Rejected::Money(rejection) => Self::Rejected(rejection),
            Rejected::Journal(refused) => Self::Refused(refused),
        }
    }
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
            // Whoever took the request over tells the developer how it goes on.
            LedgerError::Refused(refused @ Refused::Fenced(_)) => {
                Self::new(RefusalCode::Unavailable, refused.to_string())
            }
            LedgerError::Refused(refused) => Self::new(RefusalCode::Internal, refused.to_string()),
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
