//! The actor around the [`Board`]: requests and windows come in as messages, assignments go out to miners' links.

pub(crate) mod board;
pub(crate) mod exchange;
mod explanations;
pub(crate) mod progress;
mod residency;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cuckoo_wire::message::{
    Assign, Candidate, Capacity, Encode, Explanation, Numerics, Offer, PlacementReasons, Price, Refusal, RefusalCode,
    RequestId, Step, WeightsHash,
};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub use board::{
    BlockName, Board, Charge, Computes, Considered, Ended, LinkId, Need, Objective, Placement, Quote, Reasons, Replica,
    ReplicaKey, Steps, Tenant, Ticket, Turned, WAITING_MAX, Whom, mixed, objective,
};
use explanations::Explanations;
use residency::actor::{Demand, ResidencyActor, ResidencyMsg};
pub use residency::{DeviceKey, Residency};

use crate::gateway::miner::{MinerLink, Running};
use crate::ledger::ClientId;

/// How often waiting requests are looked through for those that waited too long.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often it is decided which models are loaded where, unless somebody waits for one that nobody serves.
const RESIDENCY_INTERVAL: Duration = Duration::from_secs(5);
/// A dispatcher that does not answer within this is not well.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages of the dispatcher.
#[allow(clippy::large_enum_variant, reason = "a submission is moved once a placement")]
pub(crate) enum DispatcherMsg {
    /// What a miner says: see [`DispatcherHandle::hear`].
    OfMiner(MinerNews, OwnedSemaphorePermit),
    /// A replica should have spoken by now, or has spoken again.
    Suspect(ReplicaKey, bool),
    /// It is gone.
    ReplicaLost(ReplicaKey),
    /// A miner is gone.
    LinkLost(LinkId),
    /// Place this.
    Submit(Submission),
    /// Not this any more.
    Withdraw(Ticket),
    /// A placed request has its first token.
    Answered(ReplicaKey, Ticket),
    /// A placed request runs no longer.
    Ended(ReplicaKey, Ticket, Ended),
    /// Why did a client's request go where it went?
    Explain(RequestId, ClientId, RpcReplyPort<Option<Explanation>>),
    /// How does a model stand?
    Quote(Computes, RpcReplyPort<Quote>),
    /// Does anybody get on with what is assigned?
    Health(RpcReplyPort<Result<(), String>>),
    /// Which models could be loaded, of those of which that may have changed.
    Expected(Vec<(WeightsHash, bool)>),
    /// Miners were asked for what they should load.
    Decided,
    /// What was charged since this was asked last?
    Charges(RpcReplyPort<Vec<Charge>>),
    /// Other schedulers have charged so much.
    ChargedElsewhere(Vec<Charge>, RpcReplyPort<()>),
    /// Look for requests that waited too long.
    Expire,
}

/// What a miner says of itself.
#[allow(clippy::large_enum_variant, reason = "nearly all of them are steps")]
pub(crate) enum MinerNews {
    /// What its devices could serve.
    Capacity(Arc<MinerLink>, Vec<Capacity>),
    /// A replica is there.
    Offer(ReplicaKey, Offer, Arc<MinerLink>),
    /// It has computed, or accepts more.
    Stepped(ReplicaKey, Step),
    /// It accepts nothing more.
    Drain(ReplicaKey),
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
    pub(crate) request: RequestId,
    pub(crate) client: ClientId,
    pub(crate) need: Need,
    pub(crate) order: Order,
    pub(crate) reply: oneshot::Sender<Result<Placed, Refusal>>,
}

impl From<ClientId> for Tenant {
    fn from(client: ClientId) -> Self {
        Self(u64::from_le_bytes(client.0))
    }
}

/// A request that runs on a miner.
pub(crate) struct Placed {
    pub(crate) running: Running,
    pub(crate) ask: Price,
    pub(crate) numerics: Numerics,
}

/// A request's place on a replica, as the board knows it: it is told how that goes on, and of its end when this is
/// dropped.
pub(crate) struct Seat {
    dispatcher: ActorRef<DispatcherMsg>,
    key: ReplicaKey,
    ticket: Ticket,
    has_answered: bool,
    ended: Ended,
}

impl Seat {
    /// The miner has said something, of so many tokens of output.
    pub(crate) fn heard(&mut self, tokens: u32) {
        if !std::mem::replace(&mut self.has_answered, true) {
            let _ = self.dispatcher.cast(DispatcherMsg::Answered(self.key, self.ticket));
        }
        self.ended.output += tokens;
    }

    /// The miner has failed.
    pub(crate) fn lost(&mut self) {
        self.ended.is_lost = true;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let _ = self.dispatcher.cast(DispatcherMsg::Ended(self.key, self.ticket, self.ended));
    }
}

pub(crate) struct Dispatcher;

pub(crate) struct State {
    board: Board,
    residency: ActorRef<ResidencyMsg>,
    /// When it is decided again which models are loaded where.
    residency_due: Duration,
    is_deciding: bool,
    links: HashMap<ReplicaKey, Arc<MinerLink>>,
    waiting: HashMap<Ticket, Submission>,
    explanations: Explanations,
    /// When the board's time began.
    start: Instant,
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

    /// Passes on what a miner says, when there is a place among its messages that are `unheard`: who says too much waits for
    /// itself, and is not read meanwhile.
    pub(crate) async fn hear(&self, unheard: &Arc<Semaphore>, news: MinerNews) {
        // Places are never closed.
        if let Ok(place) = unheard.clone().acquire_owned().await {
            self.tell(DispatcherMsg::OfMiner(news, place));
        }
    }

    /// Waits until a client's request runs somewhere. Dropping this takes it off the board.
    pub(crate) async fn place(
        &self,
        (request, client): (RequestId, ClientId),
        ticket: Ticket,
        need: Need,
        order: Order,
    ) -> Result<Placed, Refusal> {
        let (reply, placed) = oneshot::channel();
        let waiting = Waiting { ticket, dispatcher: self };
        self.tell(DispatcherMsg::Submit(Submission { ticket, request, client, need, order, reply }));
        let outcome = placed.await.unwrap_or_else(|_| Err(going_down()));
        std::mem::forget(waiting);
        outcome
    }

    /// Why a client's request went where it went, where that is known.
    pub(crate) async fn explain(&self, request: RequestId, client: ClientId) -> Option<Explanation> {
        match self.0.call(|reply| DispatcherMsg::Explain(request, client, reply), None).await {
            Ok(ractor::rpc::CallResult::Success(explanation)) => explanation,
            _ => None,
        }
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
        // What fails there ends this actor too, and with it the process.
        let residency = Actor::spawn_linked(None, ResidencyActor, me.clone(), me.get_cell()).await?.0;
        Ok(State {
            board: Board::new(rand::random()),
            residency,
            residency_due: Duration::ZERO,
            is_deciding: false,
            links: HashMap::new(),
            waiting: HashMap::new(),
            explanations: Explanations::default(),
            start: Instant::now(),
            metrics,
        })
    }

    async fn handle(
        &self,
        me: ActorRef<DispatcherMsg>,
        message: DispatcherMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let now = state.start.elapsed();
        match message {
            DispatcherMsg::OfMiner(news, place) => state.hear(news, place)?,
            DispatcherMsg::Suspect(key, is_suspect) => state.board.suspect(key, is_suspect),
            DispatcherMsg::ReplicaLost(key) => {
                state.links.remove(&key);
                state.residency.cast(ResidencyMsg::Lost(key))?;
                state.board.lose(key);
            }
            DispatcherMsg::LinkLost(link) => {
                state.links.retain(|key, _| key.link != link);
                state.residency.cast(ResidencyMsg::LinkLost(link))?;
                state.board.lose_link(link);
            }
            DispatcherMsg::Submit(submission) => state.submit(submission, now),
            DispatcherMsg::Withdraw(ticket) => {
                state.waiting.remove(&ticket);
                state.board.withdraw(ticket);
            }
            DispatcherMsg::Answered(key, ticket) => state.board.answered(key, ticket, now),
            DispatcherMsg::Ended(key, ticket, end) => state.board.ended(key, ticket, end, now),
            DispatcherMsg::Explain(request, client, reply) => {
                let _ = reply.send(state.explanations.of(request, client));
                return Ok(());
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
            DispatcherMsg::Charges(reply) => {
                let _ = reply.send(state.board.take_charges(exchange::CHARGES_MAX));
                return Ok(());
            }
            DispatcherMsg::ChargedElsewhere(charges, reply) => {
                state.board.charge_elsewhere(&charges);
                let _ = reply.send(());
                return Ok(());
            }
            DispatcherMsg::Expire => {
                state.expire(now);
                state.decide_residency(now)?;
            }
            DispatcherMsg::Expected(models) => {
                models.into_iter().for_each(|(weights, is_loadable)| state.board.expect(weights, is_loadable));
            }
            DispatcherMsg::Decided => {
                state.is_deciding = false;
                return Ok(());
            }
        }
        state.place(now, &me);
        state.metrics.waiting.set(state.board.waiting() as i64);
        state.metrics.replicas.set(state.links.len() as i64);
        Ok(())
    }
}

impl State {
    fn hear(&mut self, news: MinerNews, place: OwnedSemaphorePermit) -> Result<(), ActorProcessingErr> {
        match news {
            MinerNews::Capacity(link, devices) => self.residency.cast(ResidencyMsg::Capacity(link, devices, place))?,
            MinerNews::Offer(key, offer, link) => {
                tracing::info!(miner = %link.peer().short(), replica = key.replica.0, "replica offered");
                self.residency.cast(ResidencyMsg::Offered(key, offer.device, offer.weights))?;
                self.board.offer(key, offer, link.round_trip());
                self.links.insert(key, link);
            }
            MinerNews::Stepped(key, step) => {
                self.board.stepped(key, facts(&step));
                self.board.grant(key, step.window);
            }
            MinerNews::Drain(key) => self.board.drain(key),
        }
        Ok(())
    }

    fn submit(&mut self, submission: Submission, now: Duration) {
        if submission.reply.is_closed() {
            return;
        }
        match self.board.submit(submission.ticket, submission.need.clone(), now) {
            Ok(()) => _ = self.waiting.insert(submission.ticket, submission),
            Err(why) => {
                let refusal = self.refusal(&submission.need, why);
                let _ = submission.reply.send(Err(refusal));
            }
        }
    }

    fn place(&mut self, now: Duration, me: &ActorRef<DispatcherMsg>) {
        for placement in self.board.place(now) {
            let (key, ticket) = (placement.key, placement.ticket);
            let mut submission = self.waiting.remove(&ticket).expect("the board places who waits");
            let link = self.links.get(&key).expect("the board places on offered replicas").clone();
            submission.order.place(&placement);
            let ended = Ended { output: 0, is_lost: false };
            let seat = Seat { dispatcher: me.clone(), key, ticket, has_answered: false, ended };
            let running = link.give(submission.order, seat);
            let reasons = self.reasons(&submission.need, placement.reasons);
            self.explanations.add(submission.request, submission.client, reasons);
            // If nobody waits for it any more, dropping it cancels it on the miner.
            let Placement { ask, numerics, .. } = placement;
            let _ = submission.reply.send(Ok(Placed { running, ask, numerics }));
        }
    }

    /// Has it decided which models should be loaded, if it is time: one decision after the other.
    fn decide_residency(&mut self, now: Duration) -> Result<(), ActorProcessingErr> {
        if self.is_deciding || (now < self.residency_due && !self.board.has_unserved()) {
            return Ok(());
        }
        (self.residency_due, self.is_deciding) = (now + RESIDENCY_INTERVAL, true);
        let rates = self.links.keys().filter_map(|key| Some((*key, self.board.rate(*key)?))).collect();
        let demand = Demand { wanted: self.board.wanted(now), rates, now };
        Ok(self.residency.cast(ResidencyMsg::Decide(demand))?)
    }

    /// Why a request went where it went, in words that its developer may read.
    fn reasons(&self, need: &Need, reasons: Reasons) -> PlacementReasons {
        let told = |c: Considered| {
            Some(Candidate {
                miner: self.links.get(&c.key)?.peer(),
                replica: c.key.replica,
                cached_tokens: c.cached_tokens,
                terms: c.terms,
                ttft_p95_ms: c.ttft_p95_ms as f32,
                itl_ms: c.itl_ms as f32,
                meets: c.meets,
                found_by: c.found_by,
            })
        };
        PlacementReasons {
            waited_ms: reasons.waited.as_secs_f32() * 1e3,
            waiting: reasons.waiting,
            replicas: reasons.replicas,
            other_numerics: reasons.other_numerics,
            class: need.class,
            served_tokens: reasons.served_tokens,
            prompt_tokens: need.tokens,
            candidates: reasons.candidates.into_iter().filter_map(told).collect(),
        }
    }

    fn expire(&mut self, now: Duration) {
        for (ticket, why) in self.board.expire(now) {
            let Some(submission) = self.waiting.remove(&ticket) else { continue };
            let refusal = self.refusal(&submission.need, why);
            let _ = submission.reply.send(Err(refusal));
        }
    }

    fn refusal(&self, need: &Need, why: Turned) -> Refusal {
        let why = match why {
            Turned::Busy(after) => {
                let seconds = after.as_secs() as u32;
                let why = match self.board.quote_for(need).replicas {
                    0 => "no miner has loaded this model yet",
                    _ => "all miners of this model are busy",
                };
                let message = format!("{why}: try again in {seconds} s");
                return Refusal { retry_after_s: Some(seconds), ..Refusal::new(RefusalCode::QueueFull, message) };
            }
            Turned::Unserved => "no miner serves this model now".to_owned(),
            Turned::Unmatched => {
                let begun = need.numerics.map(|numerics| format!(" ({numerics})")).unwrap_or_default();
                format!(
                    "the miners of this model that are here now compute in another way than those that made the \
                     beginning of this answer{begun}, so that they would not go on with the same tokens"
                )
            }
            Turned::Unsuited => match self.board.quote_for(need).lowest_ask {
                Some(ask) if !ask.within(&need.limit) => format!(
                    "no miner serves this model at the price allowed; the lowest ask is {} in and {} out (nano-credits \
                     per million tokens)",
                    ask.input_per_mtok, ask.output_per_mtok
                ),
                _ => "no miner of this model has room for so long a request".to_owned(),
            },
        };
        Refusal::new(RefusalCode::NoCapacity, format!("{why}: try again later"))
    }
}

fn facts(step: &Step) -> Steps<'_> {
    let Step { steps, rows, took_us, blocks_used, cached, evicted, .. } = step;
    let took = Duration::from_micros(*took_us);
    Steps { steps: *steps, rows: *rows, took, blocks_used: *blocks_used, cached, evicted }
}

fn going_down() -> Refusal {
    Refusal::new(RefusalCode::Unavailable, "the scheduler is going down: try again")
}

#[cfg(test)]
mod tests;
