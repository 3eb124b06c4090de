//! One developer's connection: a stream a call. A request is a function, run with the connection's others ([`requests`]);
//! its text goes straight from [`Market::serve`] to its stream.

mod requests;

use std::time::Duration;

use cuckoo_wire::limits::{CALL_FRAME_BYTES_MAX, CREDIT_TOKENS, DEVELOPER_STALL_MAX, REPLY_FRAME_BYTES_MAX};
use cuckoo_wire::message::{Call, Refusal, RefusalCode, Reply};
use cuckoo_wire::{Close, FrameError, FrameReader, FrameWriter, PeerId, peer_of};
use quinn::{ConnectionError, StoppedError};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::market::Market;
use crate::serve::{Listener, Replies, Resume};
use requests::Requests;

/// Tokens that are sent to a developer of whom nothing is heard meanwhile, not even that they have come. Acknowledgements come
/// all the time from whoever is there; who has vanished without a word pays for little more than twice this.
const UNHEARD_TOKENS_MAX: usize = CREDIT_TOKENS as usize / 4;
/// How often it is looked whether something has come.
const HEARING_INTERVAL: Duration = Duration::from_millis(5);
/// How long a stream may take to say what it wants.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages of a developer's connection.
pub(crate) enum DeveloperMsg {
    /// It ended.
    Over,
}

/// What it starts with.
pub(crate) struct DeveloperArgs {
    pub(crate) connection: quinn::Connection,
    pub(crate) market: Market,
}

pub(crate) struct Developer;

pub(crate) struct State {
    connection: quinn::Connection,
    _streams: JoinSet<()>,
}

impl Actor for Developer {
    type Msg = DeveloperMsg;
    type State = State;
    type Arguments = DeveloperArgs;

    async fn pre_start(&self, me: ActorRef<DeveloperMsg>, args: DeveloperArgs) -> Result<State, ActorProcessingErr> {
        let mut streams = JoinSet::new();
        let connection = args.connection.clone();
        streams.spawn(async move {
            accept(args).await;
            let _ = me.cast(DeveloperMsg::Over);
        });
        Ok(State { connection, _streams: streams })
    }

    async fn handle(
        &self,
        me: ActorRef<DeveloperMsg>,
        message: DeveloperMsg,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let DeveloperMsg::Over = message;
        me.stop(None);
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        Close::Shutdown.close(&self.connection, "the scheduler is going down");
    }
}

async fn accept(args: DeveloperArgs) {
    let Some(peer) = peer_of(&args.connection) else { return };
    let requests = Requests::start();
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            stream = args.connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    let (connection, market) = (args.connection.clone(), args.market.clone());
                    let requests = requests.clone();
                    calls.spawn(async move {
                        let broken = answer((send, recv), connection.clone(), market, peer, &requests).await;
                        broken.unwrap_or_else(|error| break_off(&connection, &error));
                    });
                }
                Err(_) => return,
            },
            Some(_) = calls.join_next(), if !calls.is_empty() => {}
        }
    }
}

/// A call went wrong. Another version or garbage: the connection has no future. A vanished reader is no fault.
fn break_off(connection: &quinn::Connection, error: &FrameError) {
    tracing::debug!(%error, "call broke");
    if !matches!(error, FrameError::Io(_)) {
        Close::Protocol.close(connection, &error.to_string());
    }
}

async fn answer(
    (send, recv): (quinn::SendStream, quinn::RecvStream),
    connection: quinn::Connection,
    market: Market,
    peer: PeerId,
    requests: &Requests,
) -> Result<(), FrameError> {
    let mut reader = FrameReader::new(recv, CALL_FRAME_BYTES_MAX);
    let mut writer = FrameWriter::new(send, REPLY_FRAME_BYTES_MAX);
    let call = match tokio::time::timeout(CALL_TIMEOUT, reader.next::<Call>()).await {
        Ok(call) => call?,
        Err(_) => return writer.send(&Reply::Refused(Refusal::new(RefusalCode::InvalidRequest, "no call came"))).await,
    };
    match call {
        None => {}
        Some(Call::Generate(request)) => {
            let serve = |market: Market, listener| async move { market.serve(request, listener).await };
            begin(requests, market, (writer, connection), serve).await;
        }
        Some(Call::Resume { api_key, request, after }) => {
            let resume = Resume { api_key, request, after };
            let serve = |market: Market, listener| async move { market.resume(resume, listener).await };
            begin(requests, market, (writer, connection), serve).await;
        }
        Some(Call::Embed(request)) => {
            let serve =
                |market: Market, listener: Listener| async move { market.embed(request, listener.replies).await };
            begin(requests, market, (writer, connection), serve).await;
        }
        Some(Call::Models) => finish(writer, Reply::Models(market.models().await)).await?,
        Some(Call::Explain { api_key, request }) => {
            let reply = market.explain(&api_key, request).await.map_or_else(Reply::Refused, Reply::Explained);
            finish(writer, reply).await?;
        }
        Some(Call::Wallet { api_key, entries_max }) => {
            let reply = match market.wallet(peer, api_key.as_ref(), entries_max).await {
                Ok(wallet) => Reply::Wallet(wallet),
                Err(refusal) => Reply::Refused(refusal),
            };
            finish(writer, reply).await?;
        }
    }
    Ok(())
}

async fn finish(mut writer: FrameWriter<quinn::SendStream>, reply: Reply) -> Result<(), FrameError> {
    writer.send(&reply).await?;
    let _ = writer.get_mut().finish();
    Ok(())
}

/// Begins a request, and to relay its replies. It outlives its stream: when the receiver goes, it stops, and ends unless its
/// developer comes back.
async fn begin<F: Future<Output = ()> + Send + 'static>(
    requests: &Requests,
    market: Market,
    (writer, connection): (FrameWriter<quinn::SendStream>, quinn::Connection),
    serve: impl FnOnce(Market, Listener) -> F,
) {
    let (replies_in, replies) = Replies::queue(&market);
    let farewell = CancellationToken::new();
    let served = serve(market, Listener { replies: replies_in, farewell: farewell.clone() });
    let relayed = async move {
        let relayed = relay(writer, connection.clone(), replies, farewell).await;
        relayed.unwrap_or_else(|error| break_off(&connection, &error));
    };
    requests.add(served, relayed).await;
}

/// Relays a request's replies until they end, the developer goes, or it takes nothing for too long.
async fn relay(
    mut writer: FrameWriter<quinn::SendStream>,
    connection: quinn::Connection,
    mut replies: Replies,
    farewell: CancellationToken,
) -> Result<(), FrameError> {
    let stopped = writer.get_mut().stopped();
    let gone = async {
        let said_so = match stopped.await {
            Ok(_) => true,
            Err(StoppedError::ConnectionLost(lost)) => matches!(lost, ConnectionError::ApplicationClosed(_)),
            Err(StoppedError::ZeroRttRejected) => false,
        };
        if said_so {
            farewell.cancel();
        }
    };
    tokio::pin!(gone);
    // Streams that go in step are not to look in step too.
    let unheard = writer.get_mut().id().index() as usize % UNHEARD_TOKENS_MAX;
    let mut hearing = Hearing { connection, datagrams: 0, unheard };
    loop {
        let reply = tokio::select! {
            () = &mut gone => return Ok(()),
            reply = replies.first() => reply,
        };
        let Some(reply) = reply else { break };
        if let Reply::Delta { tokens, .. } = reply {
            let tokens = tokens.len();
            if !hearing.has_room_for(tokens) {
                tokio::select! {
                    () = &mut gone => return Ok(()),
                    () = hearing.room_for(tokens) => {}
                }
            }
            hearing.unheard += tokens;
        }
        match tokio::time::timeout(DEVELOPER_STALL_MAX, writer.send(reply)).await {
            Ok(sent) => sent?,
            Err(_) => {
                let _ = writer.get_mut().reset(quinn::VarInt::from_u32(Close::Busy as u32));
                return Ok(());
            }
        }
        replies.pass();
    }
    let _ = writer.get_mut().finish();
    Ok(())
}

/// Whether anything comes back from a developer that is sent tokens. What its socket would still take is no sign of life: that
/// many tokens are hundreds.
struct Hearing {
    connection: quinn::Connection,
    /// Datagrams that had come when it was last looked.
    datagrams: u64,
    /// Tokens sent since.
    unheard: usize,
}

impl Hearing {
    /// Whether so many tokens may be sent without a look: that takes the connection's lock, so it is not done for each token.
    fn has_room_for(&self, tokens: usize) -> bool {
        self.unheard == 0 || self.unheard + tokens <= UNHEARD_TOKENS_MAX
    }

    /// Waits until so many tokens may be sent. Gone with the connection, if nothing comes any more.
    async fn room_for(&mut self, tokens: usize) {
        while !self.has_room_for(tokens) {
            let datagrams = self.connection.stats().udp_rx.datagrams;
            match std::mem::replace(&mut self.datagrams, datagrams) == datagrams {
                true => tokio::time::sleep(HEARING_INTERVAL).await,
                false => self.unheard = 0,
            }
        }
    }
}
