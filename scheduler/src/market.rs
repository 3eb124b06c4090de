//! What a request needs of the scheduler, in one place: shared handles, no state of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cuckoo_wire::PeerId;
use cuckoo_wire::limits::NANO_PER_CREDIT;
use cuckoo_wire::message::{ApiKey, Explanation, ModelInfo, Price, Refusal, RefusalCode, RequestId, Wallet};
use tokio::sync::Semaphore;

use crate::catalog::CatalogHandle;
use crate::dispatcher::{Computes, DispatcherHandle, Ticket};
use crate::ledger::{Account, ClientId, LedgerHandle};
use crate::metrics::Metrics;

/// Prompts that are rendered and tokenized at a time; the rest wait. Tokenizing is work for processors, and more of it
/// at once only makes each slower.
const TOKENIZING_MAX: usize = 2;
/// Constraints that are compiled at a time; the rest wait.
const COMPILING_MAX: usize = 2;
/// Entries of a wallet at most.
const WALLET_ENTRIES_MAX: u32 = 100;
/// How much dearer than the cheapest miner one may be for requests that name no limit.
const PRICE_SLACK: u64 = 2;
/// What a hold assumes where nobody has offered a price yet: 10 credits per million tokens.
const PRICE_UNKNOWN: Price = Price { input_per_mtok: 10 * NANO_PER_CREDIT, output_per_mtok: 10 * NANO_PER_CREDIT };

/// Shared by everything that serves requests.
#[derive(Clone)]
pub(crate) struct Market(Arc<Shared>);

struct Shared {
    catalog: CatalogHandle,
    dispatcher: DispatcherHandle,
    ledger: LedgerHandle,
    metrics: Arc<Metrics>,
    tokenizing: Semaphore,
    compiling: Semaphore,
    tickets: AtomicU64,
}

impl Market {
    pub(crate) fn new(
        catalog: CatalogHandle,
        dispatcher: DispatcherHandle,
        ledger: LedgerHandle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (tokenizing, compiling) = (Semaphore::new(TOKENIZING_MAX), Semaphore::new(COMPILING_MAX));
        let tickets = AtomicU64::new(1);
        Self(Arc::new(Shared { catalog, dispatcher, ledger, metrics, tokenizing, compiling, tickets }))
    }

    pub(crate) fn catalog(&self) -> &CatalogHandle {
        &self.0.catalog
    }

    pub(crate) fn dispatcher(&self) -> &DispatcherHandle {
        &self.0.dispatcher
    }

    pub(crate) fn ledger(&self) -> &LedgerHandle {
        &self.0.ledger
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn tokenizing(&self) -> &Semaphore {
        &self.0.tokenizing
    }

    pub(crate) fn compiling(&self) -> &Semaphore {
        &self.0.compiling
    }

    pub(crate) fn next_ticket(&self) -> Ticket {
        Ticket(self.0.tickets.fetch_add(1, Ordering::Relaxed))
    }

    /// Whose key this is.
    pub(crate) async fn client_of(&self, key: &ApiKey) -> Result<ClientId, Refusal> {
        let client = self.0.ledger.authenticate(key).await.map_err(Refusal::from)?;
        client.ok_or_else(|| {
            Refusal::new(RefusalCode::InvalidApiKey, "the API key is not known here: check it, or ask for a new one")
        })
    }

    /// Whether this is anybody's key.
    pub(crate) async fn authenticate(&self, key: &ApiKey) -> Result<(), Refusal> {
        self.client_of(key).await.map(|_| ())
    }

    /// What a request may be charged: what it `names`, or else [`PRICE_SLACK`] times the lowest ask, so that nobody who
    /// asks for a fortune gets it from developers who did not say what they would pay.
    pub(crate) async fn price_limit(&self, names: Option<Price>, model: Computes) -> Price {
        if let Some(price) = names {
            return price;
        }
        let lowest = self.0.dispatcher.quote(model).await.lowest_ask;
        lowest.map_or(PRICE_UNKNOWN, |ask| Price {
            input_per_mtok: ask.input_per_mtok.saturating_mul(PRICE_SLACK),
            output_per_mtok: ask.output_per_mtok.saturating_mul(PRICE_SLACK),
        })
    }

    /// The catalog, with what miners offer now.
    pub(crate) async fn models(&self) -> Vec<ModelInfo> {
        let mut models = Vec::new();
        for model in self.0.catalog.all() {
            let quote = self.0.dispatcher.quote(model.computes()).await;
            models.push(model.info(&quote));
        }
        models
    }

    /// Accounts of a peer's key, and of an API key.
    pub(crate) async fn wallet(&self, peer: PeerId, key: Option<&ApiKey>, entries: u32) -> Result<Wallet, Refusal> {
        let mut accounts = Account::of_peer(peer).to_vec();
        if let Some(key) = key {
            accounts.push(Account::Client(self.client_of(key).await?));
        }
        self.0.ledger.wallet(accounts, entries.min(WALLET_ENTRIES_MAX)).await.map_err(Refusal::from)
    }

    /// Why a request went where it went; only whoever paid for it is told.
    pub(crate) async fn explain(&self, key: &ApiKey, request: RequestId) -> Result<Explanation, Refusal> {
        let client = self.client_of(key).await?;
        self.0.dispatcher.explain(request, client).await.ok_or_else(|| {
            Refusal::invalid(
                "request",
                format!("{request} is not known here: it is not of this account, was placed nowhere, or is long ago"),
            )
        })
    }

    pub(crate) fn metrics_text(&self) -> String {
        self.0.metrics.render()
    }

    /// Whether requests can be served at all; why, if they cannot. An owner of shared truth that failed has stopped the
    /// process.
    pub(crate) async fn healthy(&self) -> Result<(), String> {
        match self.0.catalog.all().is_empty() {
            true => Err("no model is in the catalog".to_owned()),
            false => self.0.dispatcher.health().await,
        }
    }
}
