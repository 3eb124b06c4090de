//! One miner's connection: greets it, passes its offers and windows to the dispatcher, and splits its step frames
//! straight into the requests' channels. After placement a token meets no mailbox.

mod news;
mod sequences;
mod suspicion;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use cuckoo_wire::limits::{
    ASSIGN_FRAME_BYTES_MAX, CONTROL_QUEUE, CREDIT_TOKENS, HANDSHAKE_TIMEOUT, MINER_FRAME_BYTES_MAX,
};
use cuckoo_wire::message::{
    Assign, Encode, End, FromMiner, Hello, Invalid, ReplicaFrame, ReplicaId, SequenceId, Step, ToMiner,
};
use cuckoo_wire::{Close, FrameError, FrameReader, FrameWriter, PeerId, peer_of};
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::dispatcher::progress::Progress;
use crate::dispatcher::{DispatcherMsg, LinkId, MinerNews, Order, ReplicaKey, Seat};
use crate::market::Market;
use news::Hearer;
pub(crate) use news::{Heard, News, Standing};
use sequences::Sequences;

/// How long the steps that a leaving miner has sent may take to be read.
const LAST_STEPS_MAX: Duration = Duration::from_secs(1);

/// Messages of a miner that may wait to be heard by the dispatcher: more than it ever sends while one is heard, if it means well.
const UNHEARD_MAX: usize = 64;

/// A miner's connection, as placements use it.
pub(crate) struct MinerLink {
    id: LinkId,
    peer: PeerId,
    connection: quinn::Connection,
    control: mpsc::Sender<ToMiner>,
    sequences: Mutex<Sequences>,
    sequences_made: AtomicU64,
    /// There is something to look after again.
    busy: Notify,
    /// Places for messages of it that the dispatcher has not heard yet.
    unheard: Arc<Semaphore>,
}

/// A sequence on a miner; dropping it cancels what still runs. Its news end without a last item if the miner is lost.
pub(crate) struct Running {
    link: Arc<MinerLink>,
    replica: ReplicaId,
    sequence: SequenceId,
    hearer: Hearer,
    /// What was heard last.
    news: News,
    credited: u32,
    taken: u32,
    /// By so many tokens its first credit comes early. Sequences that begin together would else be given credit together for
    /// ever, in the midst of one step's tokens.
    early: u32,
    seat: Seat,
}

impl MinerLink {
    /// Its name on the board.
    pub(crate) fn id(&self) -> LinkId {
        self.id
    }

    /// Who the miner is.
    pub(crate) fn peer(&self) -> PeerId {
        self.peer
    }

    /// How long a packet takes to it and back.
    pub(crate) fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// Sends an order, and opens the channel of its news.
    pub(crate) fn give(self: &Arc<Self>, order: Order, seat: Seat) -> Running {
        let sequence = SequenceId(self.sequences_made.fetch_add(1, Ordering::Relaxed));
        let (replica, message) = match order {
            Order::Assign(assign) => {
                (assign.replica, ToMiner::Assign(Assign { sequence, credit: CREDIT_TOKENS, ..assign }))
            }
            Order::Encode(encode) => (encode.replica, ToMiner::Encode(Encode { sequence, ..encode })),
        };
        let mut sequences = self.sequences.lock();
        // On a replica that has gone since the board chose it, the channel ends at once and the request moves on.
        let hearer = match sequences.join(sequence, replica, Instant::now()) {
            Some(hearer) => {
                self.send(message);
                self.busy.notify_one();
                hearer
            }
            None => news::channel(Standing::default()).1,
        };
        drop(sequences);
        let early = (sequence.0 % u64::from(CREDIT_TOKENS / 2)) as u32;
        let (link, credited) = (self.clone(), CREDIT_TOKENS);
        Running { link, replica, sequence, hearer, news: News::default(), credited, taken: 0, early, seat }
    }

    /// Queues a control message. The queue holds more than a window allows, so a full one is a miner that does not read.
    pub(crate) fn send(&self, message: ToMiner) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.control.try_send(message) {
            Close::Protocol.close(&self.connection, "the control stream is not being read");
        }
    }

    /// How a replica gets on; `None` if it has gone.
    pub(crate) fn progress(&self, replica: ReplicaId) -> Option<Progress> {
        self.sequences.lock().progress(replica)
    }
}

impl Running {
    /// Who runs it.
    pub(crate) fn miner(&self) -> PeerId {
        self.link.peer
    }

    /// Where it runs.
    pub(crate) fn key(&self) -> ReplicaKey {
        ReplicaKey { link: self.link.id, replica: self.replica }
    }

    /// What may be expected of its miner.
    pub(crate) fn standing(&self) -> Standing {
        self.hearer.standing()
    }

    /// Waits for news, or until something else may be expected of the miner: see [`Running::standing`]. Nothing is lost if
    /// this is dropped midway.
    pub(crate) async fn heard(&mut self) -> Heard {
        std::future::poll_fn(|cx| self.poll_heard(cx)).await
    }

    /// [`Running::heard`], for who waits for something else too.
    pub(crate) fn poll_heard(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        let heard = ready!(self.hearer.poll(&mut self.news, cx));
        match heard {
            Heard::News if !self.news.tokens.is_empty() || matches!(self.news.end, Some(End::Embedded(_))) => {
                self.seat.heard(self.news.tokens.len() as u32);
            }
            Heard::Lost => self.seat.lost(),
            Heard::News | Heard::Standing => {}
        }
        Poll::Ready(heard)
    }

    /// What was heard last. It stays where it is, for each copy of it costs a token more than to judge it does.
    pub(crate) fn news(&mut self) -> &mut News {
        &mut self.news
    }

    /// What it says is no good, or it says nothing: the board hears of it when this is dropped.
    pub(crate) fn blame(&mut self) {
        self.seat.lost();
    }

    /// The developer has taken so many tokens more: the miner may send as many again.
    pub(crate) fn credit(&mut self, tokens: u32) {
        self.taken += tokens;
        // Half a window at a time keeps the miner busy and credits rare.
        if self.credited - self.taken <= CREDIT_TOKENS / 2 + self.early {
            (self.credited, self.early) = (self.taken + CREDIT_TOKENS, 0);
            self.link.sequences.lock().credit(self.sequence, self.credited, Instant::now());
            let (replica, sequence) = (self.replica, self.sequence);
            self.link.send(ToMiner::Credit { replica, sequence, tokens: self.credited });
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An entry that is still there has not ended.
        if self.link.sequences.lock().remove(self.sequence, Instant::now()) {
            let (replica, sequence) = (self.replica, self.sequence);
            self.link.send(ToMiner::Cancel { replica, sequence });
        }
    }
}

/// Messages of a miner's connection.
pub(crate) enum MinerMsg {
    /// It ended.
    Over(String),
}

/// What it starts with.
pub(crate) struct MinerArgs {
    pub(crate) id: LinkId,
    pub(crate) connection: quinn::Connection,
    pub(crate) market: Market,
    pub(crate) name: String,
}

pub(crate) struct Miner;

pub(crate) struct State {
    connection: quinn::Connection,
    _tasks: JoinSet<()>,
}

impl Actor for Miner {
    type Msg = MinerMsg;
    type State = State;
    type Arguments = MinerArgs;

    async fn pre_start(&self, me: ActorRef<MinerMsg>, args: MinerArgs) -> Result<State, ActorProcessingErr> {
        let mut tasks = JoinSet::new();
        let connection = args.connection.clone();
        tasks.spawn(async move {
            let connection = args.connection.clone();
            let why = serve(args).await;
            let why = match (why, connection.close_reason()) {
                (_, Some(reason)) => reason.to_string(),
                (Err(error), None) => {
                    Close::Protocol.close(&connection, &error.to_string());
                    error.to_string()
                }
                (Ok(()), None) => "over".to_owned(),
            };
            let _ = me.cast(MinerMsg::Over(why));
        });
        Ok(State { connection, _tasks: tasks })
    }

    async fn handle(
        &self,
        me: ActorRef<MinerMsg>,
        message: MinerMsg,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let MinerMsg::Over(why) = message;
        tracing::info!(why, "miner left");
        me.stop(None);
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        Close::Shutdown.close(&self.connection, "the scheduler is going down");
    }
}

/// Takes the link off the books however its connection ends.
struct Registered {
    link: Arc<MinerLink>,
    market: Market,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.market.dispatcher().tell(DispatcherMsg::LinkLost(self.link.id));
        self.link.sequences.lock().lose_all();
    }
}

async fn serve(args: MinerArgs) -> Result<(), FrameError> {
    let MinerArgs { id, connection, market, name } = args;
    let greeting = tokio::time::timeout(HANDSHAKE_TIMEOUT, greet(&connection, name));
    let (mut control_out, mut control_in) = greeting.await.map_err(|_| silent())??;
    let peer = peer_of(&connection).ok_or(FrameError::Malformed)?;
    let (control, mut queued) = mpsc::channel(CONTROL_QUEUE);
    let link = Arc::new(MinerLink {
        id,
        peer,
        connection: connection.clone(),
        control,
        sequences: Mutex::new(Sequences::new(Instant::now())),
        sequences_made: AtomicU64::new(1),
        busy: Notify::new(),
        unheard: Arc::new(Semaphore::new(UNHEARD_MAX)),
    });
    let registered = Registered { link: link.clone(), market: market.clone() };
    let mut replicas: JoinSet<Result<(), FrameError>> = JoinSet::new();
    // Apart from the rest, which waits where a miner does not read.
    let mut watch = std::pin::pin!(look(link.clone(), market.clone()));
    let relay = relay(&link, &market, (&mut control_out, &mut control_in, &mut queued), &mut replicas);
    tokio::select! {
        ended = relay => ended?,
        () = &mut watch => {}
    }
    // A miner that leaves does so when its last steps have arrived, which is before they are read.
    let read = async { while replicas.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_STEPS_MAX, read).await;
    drop(registered);
    Ok(())
}

/// Moves frames both ways until the connection ends.
async fn relay(
    link: &Arc<MinerLink>,
    market: &Market,
    (control_out, control_in, queued): (
        &mut FrameWriter<quinn::SendStream>,
        &mut FrameReader<quinn::RecvStream>,
        &mut mpsc::Receiver<ToMiner>,
    ),
    replicas: &mut JoinSet<Result<(), FrameError>>,
) -> Result<(), FrameError> {
    loop {
        tokio::select! {
            stream = link.connection.accept_uni() => {
                let Ok(stream) = stream else { break };
                replicas.spawn(serve_replica(link.clone(), market.clone(), stream));
            }
            Some(ended) = replicas.join_next(), if !replicas.is_empty() => {
                if let Ok(Err(error)) = ended {
                    return Err(error);
                }
            }
            Some(message) = queued.recv() => {
                control_out.feed(&message).await?;
                while let Ok(message) = queued.try_recv() {
                    control_out.feed(&message).await?;
                }
                control_out.flush().await?;
            }
            said = control_in.next::<FromMiner>() => match said {
                Ok(Some(said)) => {
                    said.check().map_err(invalid)?;
                    let FromMiner::Devices(devices) = said;
                    market.dispatcher().hear(&link.unheard, MinerNews::Capacity(link.clone(), devices)).await;
                }
                Ok(None) | Err(FrameError::Io(_)) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Looks whether the miner still gets on, for as long as there is one.
async fn look(link: Arc<MinerLink>, market: Market) {
    loop {
        let interval = link.sequences.lock().look_interval();
        // Who has nothing to do is looked at sooner when it has something.
        let _ = tokio::time::timeout(interval, link.busy.notified()).await;
        let changed = link.sequences.lock().look(link.connection.rtt(), Instant::now());
        for (replica, is_suspect) in changed {
            tracing::info!(miner = %link.peer.short(), replica = replica.0, is_suspect, "a miner's standing");
            market.dispatcher().tell(DispatcherMsg::Suspect(ReplicaKey { link: link.id, replica }, is_suspect));
        }
    }
}

async fn greet(
    connection: &quinn::Connection,
    name: String,
) -> Result<(FrameWriter<quinn::SendStream>, FrameReader<quinn::RecvStream>), FrameError> {
    let (send, recv) = connection.accept_bi().await.map_err(std::io::Error::from)?;
    let mut reader = FrameReader::new(recv, MINER_FRAME_BYTES_MAX);
    let mut writer = FrameWriter::new(send, ASSIGN_FRAME_BYTES_MAX);
    let hello = reader.next::<Hello>().await?.ok_or(FrameError::Malformed)?;
    hello.check().map_err(invalid)?;
    tracing::info!(miner = hello.name, program = hello.program, "miner joined");
    writer.send(&ToMiner::Welcome { scheduler: name }).await?;
    Ok((writer, reader))
}

/// One replica's stream, from its offer to its end.
async fn serve_replica(link: Arc<MinerLink>, market: Market, stream: quinn::RecvStream) -> Result<(), FrameError> {
    let mut reader = FrameReader::new(stream, MINER_FRAME_BYTES_MAX);
    let first =
        tokio::time::timeout(HANDSHAKE_TIMEOUT, reader.next::<ReplicaFrame>()).await.map_err(|_| silent())??;
    let Some(ReplicaFrame::Offer(offer)) = first else { return Err(FrameError::Malformed) };
    offer.check().map_err(invalid)?;
    let key = ReplicaKey { link: link.id, replica: offer.replica };
    link.sequences.lock().add_replica(offer.replica, Instant::now());
    let mut replica = ReplicaStream { key, link, market };
    replica.tell(MinerNews::Offer(key, offer, replica.link.clone())).await;
    while let Some(frame) = reader.next::<ReplicaFrame>().await? {
        match frame {
            ReplicaFrame::Step(step) => replica.step(step).await?,
            ReplicaFrame::Drain => replica.leave().await,
            ReplicaFrame::Beat(beat) => {
                beat.check().map_err(invalid)?;
                replica.link.sequences.lock().beat(key.replica, beat, Instant::now());
            }
            ReplicaFrame::Offer(_) => return Err(FrameError::Malformed),
        }
    }
    Ok(())
}

struct ReplicaStream {
    key: ReplicaKey,
    link: Arc<MinerLink>,
    market: Market,
}

impl ReplicaStream {
    async fn tell(&self, news: MinerNews) {
        self.market.dispatcher().hear(&self.link.unheard, news).await;
    }

    async fn step(&mut self, mut step: Step) -> Result<(), FrameError> {
        step.check().map_err(invalid)?;
        self.market.metrics().step(&self.link.peer, &step);
        let items = std::mem::take(&mut step.items);
        self.link.sequences.lock().split(self.key.replica, items, Instant::now()).map_err(invalid)?;
        self.tell(MinerNews::Stepped(self.key, step)).await;
        Ok(())
    }

    /// Nobody is placed here any more before those who are here look for another place.
    async fn leave(&self) {
        self.tell(MinerNews::Drain(self.key)).await;
        self.link.sequences.lock().leave(self.key.replica);
    }
}

impl Drop for ReplicaStream {
    fn drop(&mut self) {
        self.market.dispatcher().tell(DispatcherMsg::ReplicaLost(self.key));
        self.link.sequences.lock().lose_replica(self.key.replica);
    }
}

fn invalid(why: Invalid) -> FrameError {
    FrameError::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, why))
}

fn silent() -> FrameError {
    FrameError::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the peer said nothing"))
}
