//! One miner's connection: greets it, passes its offers and windows to the dispatcher, and splits its step frames
//! straight into the requests' channels. After placement a token meets no mailbox.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cuckoo_wire::limits::{
    ASSIGN_FRAME_BYTES_MAX, CONTROL_QUEUE, CREDIT_TOKENS, HANDSHAKE_TIMEOUT, MINER_FRAME_BYTES_MAX,
    PROMPT_LOGPROBS_TOKENS_MAX, STEP_SCORES_MAX,
};
use cuckoo_wire::message::{
    Assign, Encode, End, Hello, Invalid, Logprobs, ReplicaFrame, ReplicaId, SequenceId, Step, StepItem, ToMiner,
};
use cuckoo_wire::{Close, FrameError, FrameReader, FrameWriter, PeerId, peer_of};
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::dispatcher::progress::Progress;
use crate::dispatcher::{DispatcherMsg, LinkId, Order, ReplicaKey};
use crate::market::Market;

/// How long the steps that a leaving miner has sent may take to be read.
const LAST_STEPS_MAX: Duration = Duration::from_secs(1);

/// News of one sequence, from its miner.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) tokens: Vec<u32>,
    pub(crate) end: Option<End>,
    /// One for each token, or none.
    pub(crate) logprobs: Vec<Logprobs>,
    /// Of the prompt's next tokens.
    pub(crate) prompt_logprobs: Vec<Logprobs>,
}

/// Items of one sequence that may wait: every one but the last has a token, of which credit allows so many, or as many
/// scores of a prompt's tokens as fit, or the last of these.
const NEWS_QUEUE: usize = CREDIT_TOKENS as usize + PROMPT_LOGPROBS_TOKENS_MAX.div_ceil(STEP_SCORES_MAX) + 1;

/// A miner's connection, as placements use it.
pub(crate) struct MinerLink {
    id: LinkId,
    peer: PeerId,
    connection: quinn::Connection,
    control: mpsc::Sender<ToMiner>,
    sequences: Mutex<Sequences>,
    sequences_made: AtomicU64,
}

/// What runs on a miner, and how its replicas get on. One lock holds both, so that no sequence joins a replica that has
/// just gone.
#[derive(Default)]
struct Sequences {
    replicas: HashMap<ReplicaId, Progress>,
    entries: HashMap<SequenceId, Entry>,
}

/// Where one sequence's tokens go.
struct Entry {
    replica: ReplicaId,
    received: u32,
    credited: u32,
    news: mpsc::Sender<News>,
}

/// A sequence on a miner; dropping it cancels what still runs. Its channel ends without a last item if the miner is lost.
pub(crate) struct Running {
    link: Arc<MinerLink>,
    replica: ReplicaId,
    sequence: SequenceId,
    news: mpsc::Receiver<News>,
    credited: u32,
    taken: u32,
}

impl MinerLink {
    /// Who the miner is.
    pub(crate) fn peer(&self) -> PeerId {
        self.peer
    }

    /// How long a packet takes to it and back.
    pub(crate) fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// Sends an order and opens the channel of its news.
    pub(crate) fn give(self: &Arc<Self>, order: Order) -> Running {
        let sequence = SequenceId(self.sequences_made.fetch_add(1, Ordering::Relaxed));
        let (news_in, news) = mpsc::channel(NEWS_QUEUE);
        let (replica, message) = match order {
            Order::Assign(assign) => {
                (assign.replica, ToMiner::Assign(Assign { sequence, credit: CREDIT_TOKENS, ..assign }))
            }
            Order::Encode(encode) => (encode.replica, ToMiner::Encode(Encode { sequence, ..encode })),
        };
        let mut sequences = self.sequences.lock();
        // On a replica that has gone since the board chose it, the channel ends at once and the request moves on.
        if sequences.join(sequence, replica, news_in, Instant::now()) {
            self.send(message);
        }
        drop(sequences);
        Running { link: self.clone(), replica, sequence, news, credited: CREDIT_TOKENS, taken: 0 }
    }

    /// Queues a control message. The queue holds more than a window allows, so a full one is a miner that does not read.
    fn send(&self, message: ToMiner) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.control.try_send(message) {
            Close::Protocol.close(&self.connection, "the control stream is not being read");
        }
    }

    /// How a replica gets on; `None` if it has gone.
    pub(crate) fn progress(&self, replica: ReplicaId) -> Option<Progress> {
        self.sequences.lock().replicas.get(&replica).copied()
    }

    /// Ends the channels of a replica that is gone.
    fn lose_replica(&self, replica: ReplicaId) {
        let mut sequences = self.sequences.lock();
        sequences.replicas.remove(&replica);
        sequences.entries.retain(|_, entry| entry.replica != replica);
    }
}

impl Sequences {
    /// A sequence is assigned to a replica; false if that has gone.
    fn join(&mut self, sequence: SequenceId, replica: ReplicaId, news: mpsc::Sender<News>, now: Instant) -> bool {
        let Some(progress) = self.replicas.get_mut(&replica) else { return false };
        progress.given(now);
        self.entries.insert(sequence, Entry { replica, received: 0, credited: CREDIT_TOKENS, news });
        true
    }

    /// A sequence may send up to `tokens` in all.
    fn credit(&mut self, sequence: SequenceId, tokens: u32, now: Instant) {
        let Some(entry) = self.entries.get_mut(&sequence) else { return };
        entry.credited = tokens;
        if let Some(progress) = self.replicas.get_mut(&entry.replica) {
            progress.given(now);
        }
    }

    /// Hands a step's items to their requests.
    fn split(&mut self, replica: ReplicaId, items: Vec<StepItem>, now: Instant) -> Result<(), Invalid> {
        let has_output = |item: &StepItem| !item.tokens.is_empty() || matches!(item.end, Some(End::Embedded(_)));
        let computed = items.is_empty() || items.iter().any(has_output);
        for item in items {
            // Ended and abandoned sequences may still have news under way.
            let Some(entry) = self.entries.get_mut(&item.sequence) else { continue };
            if entry.replica != replica || entry.received != item.first {
                return Err(Invalid(format!(
                    "sequence {} continues at token {} where {} was expected",
                    item.sequence.0, item.first, entry.received
                )));
            }
            if item.tokens.is_empty() && item.end.is_none() && item.prompt_logprobs.is_empty() {
                return Err(Invalid("an item without news".to_owned()));
            }
            entry.received += item.tokens.len() as u32;
            if entry.received > entry.credited {
                return Err(Invalid(format!("sequence {} sent more tokens than its credit", item.sequence.0)));
            }
            let ended = item.end.is_some();
            let StepItem { tokens, end, logprobs, prompt_logprobs, .. } = item;
            // Who keeps to credit and whole portions of scores always finds room; a request that has just gone is no
            // fault of the miner's.
            let sent = entry.news.try_send(News { tokens, end, logprobs, prompt_logprobs });
            if let Err(mpsc::error::TrySendError::Full(_)) = sent {
                return Err(Invalid(format!("sequence {} sent more items than it can have", item.sequence.0)));
            }
            if ended {
                self.entries.remove(&item.sequence);
            }
        }
        let owes = self.entries.values().any(|entry| entry.replica == replica && entry.received < entry.credited);
        if let Some(progress) = self.replicas.get_mut(&replica) {
            progress.stepped(computed, owes, now);
        }
        Ok(())
    }
}

impl Running {
    /// Who runs it.
    pub(crate) fn miner(&self) -> PeerId {
        self.link.peer
    }

    /// The next news, or `None` if the miner was lost.
    pub(crate) async fn next(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// The developer has taken so many tokens more: the miner may send as many again.
    pub(crate) fn credit(&mut self, tokens: u32) {
        self.taken += tokens;
        // Half a window at a time keeps the miner busy and credits rare.
        if self.taken + CREDIT_TOKENS >= self.credited + CREDIT_TOKENS / 2 {
            self.credited = self.taken + CREDIT_TOKENS;
            self.link.sequences.lock().credit(self.sequence, self.credited, Instant::now());
            let (replica, sequence) = (self.replica, self.sequence);
            self.link.send(ToMiner::Credit { replica, sequence, tokens: self.credited });
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An entry that is still there has not ended.
        if self.link.sequences.lock().entries.remove(&self.sequence).is_some() {
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
        *self.link.sequences.lock() = Sequences::default();
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
        sequences: Mutex::default(),
        sequences_made: AtomicU64::new(1),
    });
    let registered = Registered { link: link.clone(), market: market.clone() };
    let mut replicas: JoinSet<Result<(), FrameError>> = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
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
            said = control_in.next::<Hello>() => match said {
                Ok(Some(_)) => return Err(FrameError::Malformed),
                Ok(None) | Err(FrameError::Io(_)) => break,
                Err(error) => return Err(error),
            }
        }
    }
    // A miner that leaves does so when its last steps have arrived, which is before they are read.
    let read = async { while replicas.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_STEPS_MAX, read).await;
    drop(registered);
    Ok(())
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
    link.sequences.lock().replicas.insert(offer.replica, Progress::default());
    let mut replica = ReplicaStream { key, link, market };
    replica.market.dispatcher().tell(DispatcherMsg::Offer(key, offer, replica.link.clone()));
    while let Some(frame) = reader.next::<ReplicaFrame>().await? {
        match frame {
            ReplicaFrame::Step(step) => replica.step(step)?,
            ReplicaFrame::Drain => replica.market.dispatcher().tell(DispatcherMsg::Drain(key)),
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
    fn step(&mut self, mut step: Step) -> Result<(), FrameError> {
        step.check().map_err(invalid)?;
        self.market.metrics().step(&self.link.peer, &step);
        let items = std::mem::take(&mut step.items);
        self.link.sequences.lock().split(self.key.replica, items, Instant::now()).map_err(invalid)?;
        self.market.dispatcher().tell(DispatcherMsg::Stepped(self.key, step));
        Ok(())
    }
}

impl Drop for ReplicaStream {
    fn drop(&mut self) {
        self.market.dispatcher().tell(DispatcherMsg::ReplicaLost(self.key));
        self.link.lose_replica(self.key.replica);
    }
}

fn invalid(why: Invalid) -> FrameError {
    FrameError::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, why))
}

fn silent() -> FrameError {
    FrameError::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the peer said nothing"))
}

#[cfg(test)]
mod tests;
