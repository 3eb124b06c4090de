//! The doors: one UDP port for miners and for developers' native streams, one TCP port for HTTP. Leaves fail alone.

pub(crate) mod developer;
pub(crate) mod http;
pub(crate) mod miner;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cuckoo_wire::limits::{CONNECTIONS_MAX, HANDSHAKE_TIMEOUT};
use cuckoo_wire::{Admission, Close, PeerId, Role, peer_of, role_of};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::dispatcher::LinkId;
use crate::market::Market;

/// Share of [`CONNECTIONS_MAX`] above which unknown addresses must prove themselves by a Retry (RFC 9000 §8.1).
const RETRY_ABOVE: usize = CONNECTIONS_MAX / 4;

/// Messages of the gateway.
pub(crate) enum GatewayMsg {
    /// A peer is in.
    Connection(quinn::Connection, Role),
}

/// What the gateway starts with: doors that are open already.
pub(crate) struct GatewayArgs {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) http: Option<TcpListener>,
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) market: Market,
    pub(crate) name: String,
    /// Cancelled when nobody new may come in.
    pub(crate) closing: CancellationToken,
}

pub(crate) struct Gateway;

pub(crate) struct State {
    market: Market,
    name: String,
    links_made: AtomicU64,
    /// The newest connection of every miner.
    miners: HashMap<PeerId, quinn::Connection>,
    /// Accept loops; aborted when this actor goes.
    _doors: JoinSet<()>,
}

impl Actor for Gateway {
    type Msg = GatewayMsg;
    type State = State;
    type Arguments = GatewayArgs;

    async fn pre_start(&self, me: ActorRef<GatewayMsg>, args: GatewayArgs) -> Result<State, ActorProcessingErr> {
        let mut doors = JoinSet::new();
        doors.spawn(accept(args.endpoint, args.admission, args.closing.clone(), me));
        if let Some(listener) = args.http {
            let closing = args.closing.clone();
            doors.spawn(http::run(listener, args.market.clone(), async move { closing.cancelled().await }));
        }
        let (links_made, miners) = (AtomicU64::new(0), HashMap::new());
        Ok(State { market: args.market, name: args.name, links_made, miners, _doors: doors })
    }

    async fn handle(
        &self,
        me: ActorRef<GatewayMsg>,
        message: GatewayMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let GatewayMsg::Connection(connection, role) = message;
        let started = match role {
            Role::Developer => {
                let args = developer::DeveloperArgs { connection, market: state.market.clone() };
                Actor::spawn_linked(None, developer::Developer, args, me.get_cell()).await.map(|_| ())
            }
            Role::Miner => {
                state.end_older(&connection);
                let id = LinkId(state.links_made.fetch_add(1, Ordering::Relaxed));
                let args = miner::MinerArgs { id, connection, market: state.market.clone(), name: state.name.clone() };
                Actor::spawn_linked(None, miner::Miner, args, me.get_cell()).await.map(|_| ())
            }
        };
        if let Err(error) = started {
            tracing::warn!(%error, ?role, "a connection could not be served");
        }
        Ok(())
    }

    /// Connections end, and a fault in one is nobody else's.
    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<GatewayMsg>,
        event: SupervisionEvent,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, why) = event {
            tracing::warn!(%why, "a connection failed");
        }
        Ok(())
    }
}

impl State {
    /// A miner is in one place. What it had on an older connection, which may be half open, goes on elsewhere; a second
    /// process with its key must not take turns with it.
    fn end_older(&mut self, connection: &quinn::Connection) {
        self.miners.retain(|_, older| older.close_reason().is_none());
        let Some(peer) = peer_of(connection) else { return };
        if let Some(older) = self.miners.insert(peer, connection.clone()) {
            tracing::info!(miner = %peer.short(), "a newer connection takes the place of an older one");
            let why = "another connection was made with this miner's key: give every miner a data directory of its own";
            Close::NotAllowed.close(&older, why);
        }
    }
}

/// Lets peers in: validated addresses only when it is crowded, known keys only, within a time limit.
async fn accept(
    endpoint: quinn::Endpoint,
    admission: Arc<dyn Admission>,
    closing: CancellationToken,
    gateway: ActorRef<GatewayMsg>,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            () = closing.cancelled() => break,
            Some(_) = handshakes.join_next(), if !handshakes.is_empty() => continue,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        if endpoint.open_connections() > RETRY_ABOVE && !incoming.remote_address_validated() {
            // Only an already validated address cannot be asked again, and that was just checked.
            let _ = incoming.retry();
            continue;
        }
        let Ok(permit) = room.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (admission, gateway) = (admission.clone(), gateway.clone());
        handshakes.spawn(async move {
            let Some((connection, role)) = admit(incoming, &*admission).await else { return };
            let counted = connection.clone();
            if gateway.cast(GatewayMsg::Connection(connection, role)).is_ok() {
                // The place is free again when the connection has ended, whoever ended it.
                tokio::spawn(async move {
                    counted.closed().await;
                    drop(permit);
                });
            }
        });
    }
    // Connections in use go on until the scheduler stops.
    std::future::pending::<()>().await;
}

async fn admit(incoming: quinn::Incoming, admission: &dyn Admission) -> Option<(quinn::Connection, Role)> {
    let from = incoming.remote_address();
    let connection = match tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming.into_future()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%from, %error, "handshake failed");
            return None;
        }
        Err(_) => {
            tracing::debug!(%from, "handshake took too long");
            return None;
        }
    };
    let (Some(peer), Some(role)) = (peer_of(&connection), role_of(&connection)) else {
        Close::Protocol.close(&connection, "no key or no role");
        return None;
    };
    // The handshake asked without knowing the role, and the list may have changed since.
    if !admission.admits(&peer, Some(role)) {
        tracing::info!(%peer, ?role, "not admitted");
        Close::NotAllowed.close(&connection, "this key may not connect here: ask the scheduler's operator to allow it");
        return None;
    }
    Some((connection, role))
}
