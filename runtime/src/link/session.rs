//! One connection to a scheduler, from the greeting to its end. Moves frames; decides nothing.

use cuckoo_wire::limits::{ASSIGN_FRAME_BYTES_MAX, HANDSHAKE_TIMEOUT, MINER_FRAME_BYTES_MAX};
use cuckoo_wire::message::{Capacity, FromMiner, Hello, ReplicaFrame, ReplicaId, ToMiner};
use cuckoo_wire::{Address, Close, FrameError, FrameReader, FrameWriter, Identity, Role};
use ractor::ActorRef;
use tokio::sync::{mpsc, watch};

use super::LinkMsg;

/// Frames of one replica that may wait for its stream.
const OUTLET_FRAMES: usize = 64;

/// Why there is no session.
pub(crate) enum SessionError {
    /// Worth another try.
    Failed(String),
    /// Not worth one.
    Refused(String),
}

/// A welcomed connection.
pub(crate) struct Session {
    number: u64,
    connection: quinn::Connection,
    /// Taken by the one reader.
    control: Option<FrameReader<quinn::RecvStream>>,
    /// Taken by the one writer.
    control_out: Option<FrameWriter<quinn::SendStream>>,
}

impl Session {
    /// Connects and greets.
    pub(crate) async fn open(
        number: u64,
        address: &Address,
        identity: &Identity,
        name: &str,
    ) -> Result<Self, SessionError> {
        let connection = cuckoo_wire::connect(address, identity, Role::Miner)
            .await
            .map_err(|e| SessionError::Failed(e.to_string()))?;
        let greeting = tokio::time::timeout(HANDSHAKE_TIMEOUT, greet(&connection, name)).await;
        let failure = match greeting {
            Ok(Ok((control, out))) => {
                return Ok(Self { number, connection, control: Some(control), control_out: Some(out) });
            }
            Ok(Err(Greeting::Refused(why))) => return Err(SessionError::Refused(why)),
            Ok(Err(Greeting::Broken(error))) => error.to_string(),
            Err(_) => "the scheduler accepted the connection and then said nothing".to_owned(),
        };
        Err(match connection.close_reason() {
            Some(reason) => classify(&reason),
            None => SessionError::Failed(failure),
        })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The queue in front of one replica's stream.
    pub(crate) fn outlet(&self) -> (mpsc::Sender<ReplicaFrame>, mpsc::Receiver<ReplicaFrame>) {
        mpsc::channel(OUTLET_FRAMES)
    }

    /// Hands everything that the scheduler says to the link, until the connection ends.
    pub(crate) fn read(&mut self, link: ActorRef<LinkMsg>) -> impl Future<Output = ()> + Send + 'static {
        let control = self.control.take().expect("one reader a session");
        let (number, connection) = (self.number, self.connection.clone());
        async move {
            let why = forward(control, &link).await;
            let ended = match connection.close_reason().map_or(SessionError::Failed(why), |reason| classify(&reason)) {
                SessionError::Refused(why) => LinkMsg::Refused(why),
                SessionError::Failed(why) => LinkMsg::Lost { session: number, why },
            };
            Close::Done.close(&connection, "link over");
            let _ = link.cast(ended);
        }
    }

    /// Tells the scheduler what the miner's devices could serve, now and whenever that changes, until the connection ends.
    pub(crate) fn tell(
        &mut self,
        mut capacities: watch::Receiver<Vec<Capacity>>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let mut out = self.control_out.take().expect("one writer a session");
        let connection = self.connection.clone();
        async move {
            loop {
                let devices = capacities.borrow_and_update().clone();
                // Before anything is loaded there is nothing to tell.
                if !devices.is_empty() && out.send(&FromMiner::Devices(devices)).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = capacities.changed() => if changed.is_err() { break },
                    _ = connection.closed() => return,
                }
            }
            // The end of this stream would be the miner's.
            connection.closed().await;
        }
    }

    /// Writes a replica's frames to a stream of its own, until its batcher or the connection ends.
    pub(crate) fn write(
        &self,
        replica: ReplicaId,
        mut frames: mpsc::Receiver<ReplicaFrame>,
        link: ActorRef<LinkMsg>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let connection = self.connection.clone();
        async move {
            let written = async {
                let stream = connection.open_uni().await.map_err(std::io::Error::from)?;
                let mut writer = FrameWriter::new(stream, MINER_FRAME_BYTES_MAX);
                while let Some(frame) = frames.recv().await {
                    writer.send(&frame).await?;
                }
                let stream = writer.get_mut();
                // The end of the stream is the replica's end; wait until the scheduler has seen it.
                let _ = stream.finish();
                let _ = stream.stopped().await;
                Ok::<_, FrameError>(())
            };
            if let Err(error) = written.await {
                tracing::debug!(%error, ?replica, "replica stream broke");
            }
            let _ = link.cast(LinkMsg::ReplicaDone(replica));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        Close::Done.close(&self.connection, "miner leaves");
    }
}

enum Greeting {
    Refused(String),
    Broken(FrameError),
}

impl<E: Into<FrameError>> From<E> for Greeting {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

async fn greet(
    connection: &quinn::Connection,
    name: &str,
) -> Result<(FrameReader<quinn::RecvStream>, FrameWriter<quinn::SendStream>), Greeting> {
    let (send, recv) = connection.open_bi().await.map_err(|e| FrameError::Io(e.into()))?;
    let mut writer = FrameWriter::new(send, MINER_FRAME_BYTES_MAX);
    let mut reader = FrameReader::new(recv, ASSIGN_FRAME_BYTES_MAX);
    let program = concat!("cuckoo/", env!("CARGO_PKG_VERSION")).to_owned();
    writer.send(&Hello { name: name.to_owned(), program }).await?;
    match reader.next::<ToMiner>().await? {
        Some(ToMiner::Welcome { scheduler }) => {
            tracing::debug!(scheduler, "welcomed");
            Ok((reader, writer))
        }
        Some(ToMiner::Refused(refusal)) => Err(Greeting::Refused(refusal.message)),
        Some(_) => Err(Greeting::Broken(FrameError::Malformed)),
        None => Err(Greeting::Broken(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into()))),
    }
}

async fn forward(mut control: FrameReader<quinn::RecvStream>, link: &ActorRef<LinkMsg>) -> String {
    loop {
        match control.next::<ToMiner>().await {
            Ok(Some(message)) => {
                if link.cast(LinkMsg::Inbound(message)).is_err() {
                    return "the link is gone".to_owned();
                }
            }
            Ok(None) => return "the scheduler ended the link".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}

/// Whether a closed connection is worth another try.
fn classify(reason: &quinn::ConnectionError) -> SessionError {
    match reason {
        quinn::ConnectionError::ApplicationClosed(closed) => match Close::of(closed) {
            Some((Close::NotAllowed | Close::Protocol, why)) => SessionError::Refused(why),
            Some((Close::Done | Close::Shutdown | Close::Busy, why)) => SessionError::Failed(why),
            None => SessionError::Failed(reason.to_string()),
        },
        // The handshake's own refusal of our key: TLS alert 49, access_denied or certificate errors (RFC 8446 §6.2).
        quinn::ConnectionError::ConnectionClosed(c) if is_key_refusal(c) => SessionError::Refused(
            "the scheduler does not admit this miner's key: ask its operator to allow it (`cuckoo mine` prints the id)"
                .to_owned(),
        ),
        other => SessionError::Failed(other.to_string()),
    }
}

fn is_key_refusal(closed: &quinn::ConnectionClose) -> bool {
    // CRYPTO_ERROR carries the alert in its low byte (RFC 9001 §4.8).
    let code = u64::from(closed.error_code);
    (0x100..0x200).contains(&code) && matches!(code & 0xff, 42 | 46 | 49)
}
