//! A miner's link to one of its schedulers: one connection, one control stream, one stream a replica. Lost links are made
//! again with growing pauses; what a scheduler will never accept ends the miner with its reason.

mod session;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use cuckoo_wire::message::{Capacity, ReplicaId, ToMiner, WeightsHash};
use cuckoo_wire::{Address, Identity};
use ractor::{Actor, ActorProcessingErr, ActorRef, DerivedActorRef};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::device::{BatcherMsg, OutletId};
use session::{Session, SessionError};

/// First pause before a lost link is tried again; doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// How the miner stands with its scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkStatus {
    /// Not yet, or no longer.
    Connecting,
    /// Connected, with so many replicas offered.
    Connected {
        /// Replicas.
        replicas: usize,
    },
    /// All work is finished after a drain.
    Drained,
    /// The scheduler will not have this miner.
    Refused(String),
}

/// Messages of the link.
pub(crate) enum LinkMsg {
    /// A model on a device has a fresh batcher.
    Ready {
        /// Which.
        slot: usize,
        /// Its batcher.
        batcher: ActorRef<BatcherMsg>,
    },
    /// A connection was made and welcomed.
    Connected(Session),
    /// No connection will ever be made.
    Refused(String),
    /// The scheduler sent something.
    Inbound(ToMiner),
    /// The connection with this number ended.
    Lost {
        /// Which.
        session: u64,
        /// How.
        why: String,
    },
    /// A replica's stream ended because its batcher is done with it.
    ReplicaDone(ReplicaId),
    /// Finish what runs of a model, accept nothing more for it, and say when nothing is left.
    Unload(usize),
    /// Finish what runs, accept nothing more.
    Drain,
}

/// What a link tells the miner.
#[derive(Debug)]
pub(crate) enum LinkNews {
    /// A scheduler needs models on a device, these and no others.
    Serve {
        /// The link to it.
        link: usize,
        /// Which device.
        device: u32,
        /// Which models.
        weights: Vec<WeightsHash>,
    },
    /// The scheduler of a link is gone.
    Lost(usize),
    /// A link has nothing left on a model that is to be unloaded.
    Released(usize),
}

/// Whom a link is to.
pub(crate) struct LinkConfig {
    pub(crate) identity: Identity,
    /// Which of the miner's links it is.
    pub(crate) index: usize,
    pub(crate) scheduler: Address,
    pub(crate) name: String,
    pub(crate) status: watch::Sender<LinkStatus>,
}

/// What a link starts with.
pub(crate) struct LinkArgs {
    pub(crate) config: LinkConfig,
    /// What its scheduler is told of the miner's devices; the newest counts.
    pub(crate) capacities: watch::Receiver<Vec<Capacity>>,
    /// Who hears what the scheduler needs.
    pub(crate) root: DerivedActorRef<LinkNews>,
}

pub(crate) struct Link;

pub(crate) struct State {
    args: LinkConfig,
    capacities: watch::Receiver<Vec<Capacity>>,
    root: DerivedActorRef<LinkNews>,
    /// By slot.
    batchers: HashMap<usize, ActorRef<BatcherMsg>>,
    session: Option<Session>,
    replicas: HashMap<ReplicaId, Replica>,
    /// Slots whose models are to be unloaded.
    leaving: HashSet<usize>,
    sessions_made: u64,
    replicas_made: u32,
    draining: bool,
    /// Connecting, reading and writing; aborted when this actor goes, however it goes.
    tasks: JoinSet<()>,
}

/// A batcher that is offered.
struct Replica {
    slot: usize,
    batcher: ActorRef<BatcherMsg>,
}

impl Actor for Link {
    type Msg = LinkMsg;
    type State = State;
    type Arguments = LinkArgs;

    async fn pre_start(&self, me: ActorRef<LinkMsg>, args: LinkArgs) -> Result<State, ActorProcessingErr> {
        let mut state = State {
            args: args.config,
            capacities: args.capacities,
            root: args.root,
            batchers: HashMap::new(),
            session: None,
            replicas: HashMap::new(),
            leaving: HashSet::new(),
            sessions_made: 0,
            replicas_made: 0,
            draining: false,
            tasks: JoinSet::new(),
        };
        state.connect(&me);
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<LinkMsg>,
        message: LinkMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        while state.tasks.try_join_next().is_some() {}
        match message {
            // A batcher that was made again for a model that leaves takes nothing any more.
            LinkMsg::Ready { slot, .. } if state.leaving.contains(&slot) => {}
            LinkMsg::Ready { slot, batcher } => {
                state.batchers.insert(slot, batcher.clone());
                state.attach(&me, slot, batcher);
            }
            LinkMsg::Connected(session) => state.connected(&me, session),
            LinkMsg::Refused(why) => {
                state.args.status.send_replace(LinkStatus::Refused(why.clone()));
                return Err(why.into());
            }
            LinkMsg::Inbound(message) => state.inbound(message),
            LinkMsg::Lost { session, why } => state.lost(&me, session, &why),
            LinkMsg::ReplicaDone(replica) => {
                if let Some(done) = state.replicas.remove(&replica) {
                    state.release(done.slot);
                }
                state.report();
            }
            LinkMsg::Unload(slot) => state.unload(slot),
            LinkMsg::Drain => {
                state.draining = true;
                for (name, replica) in &state.replicas {
                    let _ = replica.batcher.cast(BatcherMsg::Drain(state.outlet(*name)));
                }
                state.report();
            }
        }
        Ok(())
    }
}

impl State {
    /// Tries until a scheduler welcomes this miner or refuses it for good.
    fn connect(&mut self, me: &ActorRef<LinkMsg>) {
        self.args.status.send_replace(LinkStatus::Connecting);
        self.sessions_made += 1;
        let (number, me) = (self.sessions_made, me.clone());
        let (identity, address, name) =
            (self.args.identity.clone(), self.args.scheduler.clone(), self.args.name.clone());
        self.tasks.spawn(async move {
            let mut pause = BACKOFF_MIN;
            let outcome = loop {
                match Session::open(number, &address, &identity, &name).await {
                    Ok(session) => break LinkMsg::Connected(session),
                    Err(SessionError::Refused(why)) => break LinkMsg::Refused(why),
                    Err(SessionError::Failed(why)) => {
                        tracing::warn!(why, retry_ms = pause.as_millis() as u64, "no link to the scheduler");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(BACKOFF_MAX);
                    }
                }
            };
            let _ = me.cast(outcome);
        });
    }

    fn connected(&mut self, me: &ActorRef<LinkMsg>, mut session: Session) {
        tracing::info!(scheduler = %self.args.scheduler, "linked");
        self.tasks.spawn(session.read(me.clone()));
        self.tasks.spawn(session.tell(self.capacities.clone()));
        self.session = Some(session);
        let batchers: Vec<_> = self.batchers.iter().map(|(slot, batcher)| (*slot, batcher.clone())).collect();
        batchers.into_iter().for_each(|(slot, batcher)| self.attach(me, slot, batcher));
        self.report();
    }

    /// A replica's name among all links.
    fn outlet(&self, replica: ReplicaId) -> OutletId {
        OutletId { link: self.args.index, replica }
    }

    /// Offers a batcher on the connection, if there is one.
    fn attach(&mut self, me: &ActorRef<LinkMsg>, slot: usize, batcher: ActorRef<BatcherMsg>) {
        let Some(session) = &self.session else { return };
        if self.draining {
            return;
        }
        self.replicas_made += 1;
        let replica = ReplicaId(self.replicas_made);
        let (frames, received) = session.outlet();
        self.tasks.spawn(session.write(replica, received, me.clone()));
        // A batcher that died meanwhile is replaced by its device, which says so.
        let _ = batcher.cast(BatcherMsg::Attach { outlet: self.outlet(replica), frames });
        self.replicas.insert(replica, Replica { slot, batcher });
        self.report();
    }

    /// Lets what runs on a model finish, and offers it no more.
    fn unload(&mut self, slot: usize) {
        self.batchers.remove(&slot);
        self.leaving.insert(slot);
        for (name, replica) in self.replicas.iter().filter(|(_, replica)| replica.slot == slot) {
            let _ = replica.batcher.cast(BatcherMsg::Drain(self.outlet(*name)));
        }
        self.release(slot);
    }

    /// Says so where nothing is left on a model that leaves.
    fn release(&mut self, slot: usize) {
        if self.replicas.values().all(|replica| replica.slot != slot) && self.leaving.remove(&slot) {
            let _ = self.root.cast(LinkNews::Released(slot));
        }
    }

    fn inbound(&mut self, message: ToMiner) {
        let outlet = |replica| self.outlet(replica);
        let (replica, message) = match message {
            ToMiner::Assign(assign) => (assign.replica, BatcherMsg::Assign(outlet(assign.replica), assign)),
            ToMiner::Encode(encode) => (encode.replica, BatcherMsg::Encode(outlet(encode.replica), encode)),
            ToMiner::Cancel { replica, sequence } => (replica, BatcherMsg::Cancel(outlet(replica), sequence)),
            ToMiner::Credit { replica, sequence, tokens } => {
                (replica, BatcherMsg::Credit(outlet(replica), sequence, tokens))
            }
            ToMiner::Serve { device, weights } => {
                let _ = self.root.cast(LinkNews::Serve { link: self.args.index, device, weights });
                return;
            }
            ToMiner::Welcome { .. } | ToMiner::Refused(_) => {
                tracing::warn!("the scheduler repeated its greeting");
                return;
            }
        };
        // A replica that is gone took its sequences with it; the scheduler learns so from its stream.
        if let Some(replica) = self.replicas.get(&replica) {
            let _ = replica.batcher.cast(message);
        }
    }

    fn lost(&mut self, me: &ActorRef<LinkMsg>, session: u64, why: &str) {
        if self.session.as_ref().is_none_or(|s| s.number() != session) {
            return;
        }
        tracing::warn!(why, "link lost");
        self.session = None;
        let _ = self.root.cast(LinkNews::Lost(self.args.index));
        for (name, replica) in std::mem::take(&mut self.replicas) {
            let _ = replica.batcher.cast(BatcherMsg::Detach(self.outlet(name)));
            self.release(replica.slot);
        }
        match self.draining {
            true => self.report(),
            false => self.connect(me),
        }
    }

    fn report(&self) {
        let status = match (self.draining && self.replicas.is_empty(), &self.session) {
            (true, _) => LinkStatus::Drained,
            (false, Some(_)) => LinkStatus::Connected { replicas: self.replicas.len() },
            (false, None) => LinkStatus::Connecting,
        };
        self.args.status.send_replace(status);
    }
}
