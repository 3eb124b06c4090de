//! The miner's link to its scheduler: one connection, one control stream, one stream a replica. Lost links are made
//! again with growing pauses, to the next scheduler where there are several; what one of them will never accept ends the
//! miner with its reason.

mod session;

use std::collections::HashMap;
use std::time::Duration;

use cuckoo_wire::message::{ReplicaId, ToMiner};
use cuckoo_wire::{Address, Identity};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::device::BatcherMsg;
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
    /// A device has a fresh batcher.
    Ready {
        /// Which device.
        device: usize,
        /// Its batcher.
        batcher: ActorRef<BatcherMsg>,
    },
    /// A connection was made and welcomed, by the scheduler of this number.
    Connected(Session, usize),
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
    /// Finish what runs, accept nothing more.
    Drain,
}

/// What a link starts with.
pub(crate) struct LinkArgs {
    pub(crate) identity: Identity,
    pub(crate) schedulers: Vec<Address>,
    pub(crate) name: String,
    pub(crate) status: watch::Sender<LinkStatus>,
}

pub(crate) struct Link;

pub(crate) struct State {
    args: LinkArgs,
    batchers: HashMap<usize, ActorRef<BatcherMsg>>,
    session: Option<Session>,
    replicas: HashMap<ReplicaId, ActorRef<BatcherMsg>>,
    sessions_made: u64,
    /// Which of the schedulers the newest session is with.
    at: usize,
    replicas_made: u32,
    draining: bool,
    /// Connecting, reading and writing; aborted when this actor goes, however it goes.
    tasks: JoinSet<()>,
}

impl Actor for Link {
    type Msg = LinkMsg;
    type State = State;
    type Arguments = LinkArgs;

    async fn pre_start(&self, me: ActorRef<LinkMsg>, args: LinkArgs) -> Result<State, ActorProcessingErr> {
        let mut state = State {
            args,
            batchers: HashMap::new(),
            session: None,
            replicas: HashMap::new(),
            sessions_made: 0,
            at: 0,
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
            LinkMsg::Ready { device, batcher } => {
                state.batchers.insert(device, batcher.clone());
                state.attach(&me, batcher);
            }
            LinkMsg::Connected(session, at) => state.connected(&me, session, at),
            LinkMsg::Refused(why) => {
                state.args.status.send_replace(LinkStatus::Refused(why.clone()));
                return Err(why.into());
            }
            LinkMsg::Inbound(message) => state.inbound(message),
            LinkMsg::Lost { session, why } => state.lost(&me, session, &why),
            LinkMsg::ReplicaDone(replica) => {
                state.replicas.remove(&replica);
                state.report();
            }
            LinkMsg::Drain => {
                state.draining = true;
                state.replicas.values().for_each(|b| _ = b.cast(BatcherMsg::Drain));
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
        let (identity, addresses, name) =
            (self.args.identity.clone(), self.args.schedulers.clone(), self.args.name.clone());
        let mut at = self.at;
        self.tasks.spawn(async move {
            let mut pause = BACKOFF_MIN;
            let outcome = loop {
                match Session::open(number, &addresses[at], &identity, &name).await {
                    Ok(session) => break LinkMsg::Connected(session, at),
                    Err(SessionError::Refused(why)) => break LinkMsg::Refused(why),
                    Err(SessionError::Failed(why)) => {
                        let (scheduler, retry_ms) = (&addresses[at], pause.as_millis() as u64);
                        tracing::warn!(%scheduler, why, retry_ms, "no link to the scheduler");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(BACKOFF_MAX);
                        at = (at + 1) % addresses.len();
                    }
                }
            };
            let _ = me.cast(outcome);
        });
    }

    fn connected(&mut self, me: &ActorRef<LinkMsg>, mut session: Session, at: usize) {
        tracing::info!(scheduler = %self.args.schedulers[at], "linked");
        self.at = at;
        self.tasks.spawn(session.read(me.clone()));
        self.session = Some(session);
        let batchers: Vec<_> = self.batchers.values().cloned().collect();
        batchers.into_iter().for_each(|b| self.attach(me, b));
        self.report();
    }

    /// Offers a batcher on the connection, if there is one.
    fn attach(&mut self, me: &ActorRef<LinkMsg>, batcher: ActorRef<BatcherMsg>) {
        let Some(session) = &self.session else { return };
        if self.draining {
            return;
        }
        self.replicas_made += 1;
        let replica = ReplicaId(self.replicas_made);
        let (outlet, frames) = session.outlet();
        self.tasks.spawn(session.write(replica, frames, me.clone()));
        // A batcher that died meanwhile is replaced by its device, which says so.
        let _ = batcher.cast(BatcherMsg::Attach { replica, outlet });
        self.replicas.insert(replica, batcher);
        self.report();
    }

    fn inbound(&mut self, message: ToMiner) {
        let (replica, message) = match message {
            ToMiner::Assign(assign) => (assign.replica, BatcherMsg::Assign(assign)),
            ToMiner::Encode(encode) => (encode.replica, BatcherMsg::Encode(encode)),
            ToMiner::Cancel { replica, sequence } => (replica, BatcherMsg::Cancel(sequence)),
            ToMiner::Credit { replica, sequence, tokens } => (replica, BatcherMsg::Credit(sequence, tokens)),
            ToMiner::Welcome { .. } | ToMiner::Refused(_) => {
                tracing::warn!("the scheduler repeated its greeting");
                return;
            }
        };
        // A replica that is gone took its sequences with it; the scheduler learns so from its stream.
        if let Some(batcher) = self.replicas.get(&replica) {
            let _ = batcher.cast(message);
        }
    }

    fn lost(&mut self, me: &ActorRef<LinkMsg>, session: u64, why: &str) {
        if self.session.as_ref().is_none_or(|s| s.number() != session) {
            return;
        }
        tracing::warn!(why, "link lost");
        self.session = None;
        self.replicas.drain().for_each(|(_, b)| _ = b.cast(BatcherMsg::Detach));
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
