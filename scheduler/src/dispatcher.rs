//! The actor around the [`Board`]: requests and windows come in as messages, assignments go out to miners' links.

pub(crate) mod board;
pub(crate) mod progress;
mod score;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cuckoo_wire::message::{Assign, Encode, Offer, Price, Refusal, RefusalCode, Window};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::oneshot;

pub use board::{Board, Computes, LinkId, Need, Placement, Quote, Replica, ReplicaKey, Ticket, WAITING_MAX, Whom};

use crate::gateway::miner::{MinerLink, Running};

/// How long a request waits for a replica that could take it.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// How long a request waits where no replica could ever take it: a miner may be restarting.
const UNSERVED_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often waiting requests are looked through for those that waited too long.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// A dispatcher that does not answer within this is not well.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages of the dispatcher.
#[allow(clippy::large_enum_variant, reason = "a submission is moved once a placement")]
pub(crate) enum DispatcherMsg {
    /// A replica is there.
    Offer(ReplicaKey, Offer, Arc<MinerLink>),
    /// It accepts more.
    Grant(ReplicaKey, Window),
    /// It accepts nothing more.
    Drain(ReplicaKey),
    /// It should have spoken by now, or has spoken again.
    Suspect(ReplicaKey, bool),
    /// It is gone.
    ReplicaLost(ReplicaKey),
    /// A miner is gone.
    LinkLost(LinkId),
    /// Place this.
    Submit(Submission),
    /// Not this any more.
    Withdraw(Ticket),
    /// How does a model stand?
    Quote(Computes, RpcReplyPort<Quote>),
    /// Does anybody get on with what is assigned?
    Health(RpcReplyPort<Result<(), String>>),
    /// Look for requests that waited too long.
    Expire,
}

/// What a miner is told to do, complete but for what the placement decides.
#[allow(clippy::large_enum_variant, reason = "an order is moved once a placement")]
pub(crate) enum Order {
    /// Run a sequence.
    Assign(Assign),
    /// Make a vector of a text.
    Encode(Encode),
}

impl Order {
    fn place(&mut self, placement: &Placement) {
        let (replica, blocks) = match self {
            Self::Assign(Assign { replica, blocks, .. }) | Self::Encode(Encode { replica, blocks, .. }) => {
                (replica, blocks)
            }
        };
        (*replica, *blocks) = (placement.key.replica, placement.blocks);
    }
}

/// A request on its way to the board.
pub(crate) struct Submission {
    pub(crate) ticket: Ticket,
    pub(crate) need: Need,
    pub(crate) order: Order,
    pub(crate) reply: oneshot::Sender<Result<Placed, Refusal>>,
}

/// A request that runs on a miner.
pub(crate) struct Placed {
    pub(crate) running: Running,
    pub(crate) ask: Price,
}

pub(crate) struct Dispatcher;

pub(crate) struct State {
    board: Board,
    links: HashMap<ReplicaKey, Arc<MinerLink>>,
    waiting: HashMap<Ticket, (Submission, Instant)>,
    metrics: Arc<crate::metrics::Metrics>,
}

/// Access to the dispatcher for requests and links.
#[derive(Clone)]
pub(crate) struct DispatcherHandle(ActorRef<DispatcherMsg>);

impl DispatcherHandle {
    /// Starts the dispatcher.
    pub(crate) async fn start(
        supervisor: ActorCell,
        metrics: Arc<crate::metrics::Metrics>,
    ) -> Result<Self, ractor::SpawnErr> {
        Ok(Self(Actor::spawn_linked(None, Dispatcher, metrics, supervisor).await?.0))
    }

    /// Sends news of a miner. A dispatcher that is gone takes the process with it, so nobody needs the error.
    pub(crate) fn tell(&self, message: DispatcherMsg) {
        let _ = self.0.cast(message);
    }

    /// Waits until the request runs somewhere. Dropping this takes it off the board.
    pub(crate) async fn place(&self, ticket: Ticket, need: Need, order: Order) -> Result<Placed, Refusal> {
        let (reply, placed) = oneshot::channel();
        let waiting = Waiting { ticket, dispatcher: self };
        self.tell(DispatcherMsg::Submit(Submission { ticket, need, order, reply }));
        let outcome = placed.await.unwrap_or_else(|_| Err(going_down()));
        std::mem::forget(waiting);
        outcome
    }

    /// How a model stands.
    pub(crate) async fn quote(&self, model: Computes) -> Quote {
        match self.0.call(|reply| DispatcherMsg::Quote(model, reply), None).await {
            Ok(ractor::rpc::CallResult::Success(quote)) => quote,
            _ => Quote::default(),
        }
    }

    /// Why no request can be served, if that is so: see [`progress::verdict`].
    pub(crate) async fn health(&self) -> Result<(), String> {
        match self.0.call(DispatcherMsg::Health, Some(HEALTH_TIMEOUT)).await {
            Ok(ractor::rpc::CallResult::Success(verdict)) => verdict,
            _ => Err(format!("the dispatcher does not answer within {} s", HEALTH_TIMEOUT.as_secs())),
        }
    }
}

/// Withdraws the request unless it was answered.
struct Waiting<'a> {
    ticket: Ticket,
    dispatcher: &'a DispatcherHandle,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.dispatcher.tell(DispatcherMsg::Withdraw(self.ticket));
    }
}

impl Actor for Dispatcher {
    type Msg = DispatcherMsg;
    type State = State;
    type Arguments = Arc<crate::metrics::Metrics>;

    async fn pre_start(
        &self,
        me: ActorRef<DispatcherMsg>,
        metrics: Arc<crate::metrics::Metrics>,
    ) -> Result<State, ActorProcessingErr> {
        me.send_interval(EXPIRY_INTERVAL, || DispatcherMsg::Expire);
        Ok(State { board: Board::default(), links: HashMap::new(), waiting: HashMap::new(), metrics })
    }

    async fn handle(
        &self,
        _me: ActorRef<DispatcherMsg>,
        message: DispatcherMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DispatcherMsg::Offer(key, offer, link) => {
                tracing::info!(miner = %link.peer().short(), replica = key.replica.0, "replica offered");
                state.links.insert(key, link);
                state.board.offer(key, offer);
            }
            DispatcherMsg::Grant(key, window) => state.board.grant(key, window),
            DispatcherMsg::Drain(key) => state.board.drain(key),
            DispatcherMsg::Suspect(key, is_suspect) => state.board.suspect(key, is_suspect),
            DispatcherMsg::ReplicaLost(key) => {
                state.links.remove(&key);
                state.board.lose(key);
            }
            DispatcherMsg::LinkLost(link) => {
                state.links.retain(|key, _| key.link != link);
                state.board.lose_link(link);
            }
            DispatcherMsg::Submit(submission) => state.submit(submission),
            DispatcherMsg::Withdraw(ticket) => {
                state.waiting.remove(&ticket);
                state.board.withdraw(ticket);
            }
            DispatcherMsg::Quote(model, reply) => {
                let _ = reply.send(state.board.quote(&model));
                return Ok(());
            }
            DispatcherMsg::Health(reply) => {
                let replicas: Vec<_> =
                    state.links.iter().filter_map(|(key, link)| link.progress(key.replica)).collect();
                let _ = reply.send(progress::verdict(&replicas, Instant::now()));
                return Ok(());
            }
            DispatcherMsg::Expire => state.expire(Instant::now()),
        }
        state.place();
        state.metrics.waiting.set(state.board.waiting() as i64);
        state.metrics.replicas.set(state.links.len() as i64);
        Ok(())
    }
}

impl State {
    fn submit(&mut self, submission: Submission) {
        if submission.reply.is_closed() {
            return;
        }
        match self.board.submit(submission.ticket, submission.need) {
            true => _ = self.waiting.insert(submission.ticket, (submission, Instant::now())),
            false => {
                let refusal = Refusal::new(
                    RefusalCode::QueueFull,
                    format!("{WAITING_MAX} requests are waiting already: try again in a few seconds"),
                );
                let _ = submission.reply.send(Err(refusal));
            }
        }
    }

    fn place(&mut self) {
        for placement in self.board.place() {
            let (mut submission, _) = self.waiting.remove(&placement.ticket).expect("the board places who waits");
            let link = self.links.get(&placement.key).expect("the board places on offered replicas");
            submission.order.place(&placement);
            let running = link.give(submission.order);
            // If nobody waits for it any more, dropping it cancels it on the miner.
            let _ = submission.reply.send(Ok(Placed { running, ask: placement.ask }));
        }
    }

    fn expire(&mut self, now: Instant) {
        let late: Vec<Ticket> = self
            .waiting
            .iter()
            .filter(|(_, (submission, since))| {
                let patience = if self.board.is_served(&submission.need) { WAIT_MAX } else { UNSERVED_WAIT_MAX };
                now.duration_since(*since) > patience
            })
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in late {
            self.board.withdraw(ticket);
            let Some((submission, _)) = self.waiting.remove(&ticket) else { continue };
            let quote = self.board.quote(&submission.need.model);
            let _ = submission.reply.send(Err(no_capacity(&submission.need, &quote)));
        }
    }
}

fn no_capacity(need: &Need, quote: &Quote) -> Refusal {
    let why = match quote {
        Quote { replicas: 0, .. } => "no miner serves this model now".to_owned(),
        Quote { lowest_ask: Some(ask), .. } if !ask.within(&need.limit) => format!(
            "no miner serves this model at the price allowed; the lowest ask is {} in and {} out (nano-credits per million tokens)",
            ask.input_per_mtok, ask.output_per_mtok
        ),
        _ => "all miners of this model were busy for too long".to_owned(),
    };
    Refusal::new(RefusalCode::NoCapacity, format!("{why}: try again later"))
}

fn going_down() -> Refusal {
    Refusal::new(RefusalCode::Unavailable, "the scheduler is going down: try again")
}
