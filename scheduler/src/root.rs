//! The root of the scheduler's actor tree, and the way in for the command.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cuckoo_wire::message::ApiKey;
use cuckoo_wire::{Address, Admission, Identity, PeerId, Role};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::adopt;
use crate::catalog::CatalogHandle;
use crate::dispatcher::{DispatcherHandle, exchange};
use crate::gateway::{Gateway, GatewayArgs, http};
use crate::ledger::{LedgerHandle, PostgresUrl};
use crate::market::Market;
use crate::metrics::Metrics;

/// How often a stopping scheduler looks whether its requests have ended.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// How a scheduler runs.
#[derive(Clone, Debug)]
pub struct ScheduleConfig {
    /// Who it is: miners and developers connect to this key.
    pub identity: Identity,
    /// What it calls itself towards miners.
    pub name: String,
    /// UDP address for miners and developers.
    pub quic: SocketAddr,
    /// TCP address of the HTTP interface, if any.
    pub http: Option<SocketAddr>,
    /// Where the ledger lives, or what only this scheduler has of one that is elsewhere.
    pub ledger_dir: PathBuf,
    /// The ledger that this scheduler shares with others, if it does.
    pub database: Option<PostgresUrl>,
    /// Where models live.
    pub shelf_dir: PathBuf,
    /// Only these miners may join; anybody if `None`.
    pub miners_allowed: Option<HashSet<PeerId>>,
}

/// Why a scheduler did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The UDP port.
    #[error(transparent)]
    Quic(#[from] cuckoo_wire::QuicError),
    /// The TCP port.
    #[error("{0}")]
    Http(String),
    /// Something inside.
    #[error("the scheduler could not start: {0}")]
    Start(String),
    /// Something inside, later.
    #[error("the scheduler failed: {0}")]
    Failed(String),
}

/// A running scheduler. Dropping it does not stop it; [`Scheduler::stop`] does.
pub struct Scheduler {
    root: ActorRef<RootMsg>,
    finished: JoinHandle<()>,
    failure: watch::Receiver<Option<String>>,
    closing: CancellationToken,
    endpoint: quinn::Endpoint,
    market: Market,
    address: Address,
    http: Option<SocketAddr>,
}

/// Opens the doors and the books. Returns when requests can come.
pub async fn schedule(config: ScheduleConfig) -> Result<Scheduler, ScheduleError> {
    let admission: Arc<dyn Admission> = Arc::new(AllowList { miners: config.miners_allowed });
    let endpoint = cuckoo_wire::listen(config.quic, &config.identity, admission.clone())?;
    let quic_at = endpoint.local_addr().map_err(|e| ScheduleError::Start(e.to_string()))?;
    let listener = match config.http {
        Some(at) => Some(http::listen(at).await.map_err(|e| ScheduleError::Http(e.to_string()))?),
        None => None,
    };
    let http = listener.as_ref().and_then(|l| l.local_addr().ok());
    let (failure_in, failure) = watch::channel(None);
    let closing = CancellationToken::new();
    let (market_in, market) = tokio::sync::oneshot::channel();
    let args = RootArgs {
        endpoint: endpoint.clone(),
        listener,
        admission,
        name: config.name,
        ledger_dir: config.ledger_dir,
        database: config.database,
        me: config.identity.peer_id(),
        shelf_dir: config.shelf_dir,
        failure: failure_in,
        closing: closing.clone(),
        market: market_in,
    };
    let (root, finished) = Actor::spawn(None, Root, args).await.map_err(|e| ScheduleError::Start(e.to_string()))?;
    let market = market.await.map_err(|_| ScheduleError::Start("it stopped at once".to_owned()))?;
    let address = Address::new(config.identity.peer_id(), quic_at);
    Ok(Scheduler { root, finished, failure, closing, endpoint, market, address, http })
}

impl Scheduler {
    /// Where miners and developers connect, and whom they must find there.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Where the HTTP interface listens.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Names of the models that can be asked for.
    pub fn models(&self) -> Vec<String> {
        self.market.catalog().all().iter().map(|m| m.name().to_owned()).collect()
    }

    /// Whether this model makes vectors of texts, rather than text.
    pub fn is_encoder(&self, model: &str) -> bool {
        self.market.catalog().find(model).is_some_and(|model| model.embedding_dims().is_some())
    }

    /// A new API key whose account holds `deposit` nano-credits.
    pub async fn create_key(&self, label: &str, deposit: u64) -> Result<ApiKey, ScheduleError> {
        self.market.ledger().create_key(label, deposit).await.map_err(|e| ScheduleError::Failed(e.to_string()))
    }

    /// Whether `key` is somebody's here.
    pub async fn knows_key(&self, key: &ApiKey) -> Result<bool, ScheduleError> {
        let client = self.market.ledger().authenticate(key).await;
        client.map(|c| c.is_some()).map_err(|e| ScheduleError::Failed(e.to_string()))
    }

    /// Whether any replica serves `model` now.
    pub async fn is_served(&self, model: &str) -> bool {
        match self.market.catalog().find(model) {
            Some(model) => self.market.dispatcher().quote(model.computes()).await.replicas > 0,
            None => false,
        }
    }

    /// Recomputes all balances from all postings; an error says what does not agree.
    pub async fn audit_books(&self) -> Result<(), ScheduleError> {
        let balance = self.market.ledger().trial_balance().await;
        balance.map(|_| ()).map_err(|e| ScheduleError::Failed(e.to_string()))
    }

    /// Waits until it ends by itself: never, unless something inside fails.
    pub async fn ended(&mut self) -> ScheduleError {
        let _ = (&mut self.finished).await;
        ScheduleError::Failed(self.failure.borrow().clone().unwrap_or_else(|| "stopped".to_owned()))
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Waits until all requests have ended, at most `patience`.
    pub async fn drained(&self, patience: Duration) {
        let drained = async {
            while self.market.metrics().requests_running() > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        let _ = tokio::time::timeout(patience, drained).await;
    }

    /// Lets nobody in, lets running requests finish within `patience`, and stops.
    pub async fn stop(self, patience: Duration) {
        self.close();
        self.drained(patience).await;
        self.root.stop(None);
        let _ = self.finished.await;
        cuckoo_wire::Close::Shutdown.close_all(&self.endpoint, "the scheduler is going down");
        self.endpoint.wait_idle().await;
    }
}

/// Developers prove themselves by API keys; miners by being on the list, where there is one.
struct AllowList {
    miners: Option<HashSet<PeerId>>,
}

impl Admission for AllowList {
    fn admits(&self, peer: &PeerId, role: Option<Role>) -> bool {
        match (role, &self.miners) {
            (Some(Role::Miner), Some(allowed)) => allowed.contains(peer),
            _ => true,
        }
    }
}

/// Messages of the root: none, it only supervises.
enum RootMsg {}

struct RootArgs {
    endpoint: quinn::Endpoint,
    listener: Option<TcpListener>,
    admission: Arc<dyn Admission>,
    name: String,
    ledger_dir: PathBuf,
    database: Option<PostgresUrl>,
    me: PeerId,
    shelf_dir: PathBuf,
    failure: watch::Sender<Option<String>>,
    closing: CancellationToken,
    market: tokio::sync::oneshot::Sender<Market>,
}

struct RootState {
    failure: watch::Sender<Option<String>>,
    /// These end with the root.
    _adopting: AbortOnDropHandle<()>,
    _exchanging: AbortOnDropHandle<()>,
}

struct Root;

impl Actor for Root {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = RootArgs;

    async fn pre_start(&self, me: ActorRef<RootMsg>, args: RootArgs) -> Result<Self::State, ActorProcessingErr> {
        let metrics = Arc::new(Metrics::new());
        let ledger = LedgerHandle::open(&args.ledger_dir, args.database.as_ref(), args.me, me.get_cell()).await?;
        adopt::all(&ledger).await?;
        let adopting = AbortOnDropHandle::new(tokio::spawn(adopt::for_ever(ledger.clone())));
        let catalog = CatalogHandle::start(args.shelf_dir, me.get_cell()).await?;
        let dispatcher = DispatcherHandle::start(me.get_cell(), metrics.clone()).await?;
        let exchanging = AbortOnDropHandle::new(tokio::spawn(exchange::for_ever(dispatcher.clone(), ledger.clone())));
        let market = Market::new(catalog, dispatcher, ledger, metrics);
        let gateway = GatewayArgs {
            endpoint: args.endpoint,
            http: args.listener,
            admission: args.admission,
            market: market.clone(),
            name: args.name,
            closing: args.closing,
        };
        Actor::spawn_linked(None, Gateway, gateway, me.get_cell()).await?;
        let _ = args.market.send(market);
        Ok(RootState { failure: args.failure, _adopting: adopting, _exchanging: exchanging })
    }

    /// Whoever owns shared truth and fails takes the scheduler along: better no answer than a wrong one.
    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<RootMsg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let why = match event {
            SupervisionEvent::ActorFailed(_, why) => why.to_string(),
            SupervisionEvent::ActorTerminated(who, _, why) => {
                format!("{:?} stopped: {}", who.get_id(), why.unwrap_or_default())
            }
            _ => return Ok(()),
        };
        tracing::error!(why, "the scheduler stops");
        state.failure.send_replace(Some(why));
        me.stop(None);
        Ok(())
    }
}
