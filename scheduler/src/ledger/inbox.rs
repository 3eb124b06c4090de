//! What waits to be written. Lies between those who write and the actor, so that a write costs no message: the actor is told
//! that there is something, once, and takes what has come by then. A step of a miner's is a token of many requests at once.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Done, LEDGER_BATCH_MAX, LEDGER_BYTES_MAX, LEDGER_WRITES_MAX, LedgerError, Write};
use crate::journal::Entry;

/// Where somebody waits to hear that a write is durable.
pub(super) type Port = oneshot::Sender<Result<Done, LedgerError>>;

/// Writes, in the order in which they came. Bounded: by the handle's places where somebody waits, by open holds where not.
#[derive(Default)]
pub(super) struct Inbox(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    writes: VecDeque<(Write, Option<Port>)>,
    /// The actor knows that there is something.
    is_told: bool,
    /// The actor is gone.
    is_closed: bool,
}

impl Inbox {
    /// Puts a write behind the others. Whether the actor is to be told.
    ///
    /// # Errors
    /// The actor is gone.
    pub(super) fn push(&self, write: Write, port: Option<Port>) -> Result<bool, LedgerError> {
        let mut waiting = self.0.lock();
        if waiting.is_closed {
            return Err(LedgerError::Stopped);
        }
        waiting.writes.push_back((write, port));
        Ok(waiting.tell())
    }

    /// As many writes as are one transaction, oldest first.
    pub(super) fn take(&self) -> Vec<(Write, Option<Port>)> {
        let mut waiting = self.0.lock();
        let batch = batch_len(&waiting.writes);
        waiting.writes.drain(..batch).collect()
    }

    /// The actor has nothing in hand any more. Whether it is to be told of what has come meanwhile.
    pub(super) fn done(&self) -> bool {
        let mut waiting = self.0.lock();
        waiting.is_told = false;
        waiting.tell()
    }

    /// `batch` could not be written: what nobody waits for will be tried again, in its order. Gives out the others, of the
    /// batch and of what has come since.
    pub(super) fn put_back(&self, batch: Vec<(Write, Option<Port>)>) -> Vec<Port> {
        let mut waiting = self.0.lock();
        let mut ports = Vec::new();
        let later = std::mem::take(&mut waiting.writes);
        for (write, port) in batch.into_iter().chain(later) {
            match port {
                Some(port) => ports.push(port),
                None => waiting.writes.push_back((write, None)),
            }
        }
        waiting.is_told = false;
        ports
    }

    /// Whether something waits.
    pub(super) fn has_any(&self) -> bool {
        !self.0.lock().writes.is_empty()
    }

    /// Whether something waits of which the actor is to be told.
    pub(super) fn tell(&self) -> bool {
        self.0.lock().tell()
    }

    /// The actor is gone: whoever waits hears so, and nothing is taken in any more.
    pub(super) fn close(&self) {
        let mut waiting = self.0.lock();
        waiting.is_closed = true;
        waiting.writes.clear();
    }
}

impl Waiting {
    fn tell(&mut self) -> bool {
        let tells = !self.is_told && !self.writes.is_empty();
        self.is_told |= tells;
        tells
    }
}

/// How many of `writes` are one transaction.
fn batch_len(writes: &VecDeque<(Write, Option<Port>)>) -> usize {
    let (mut money, mut bytes) = (0, 0);
    let fits = |(write, _): &&(Write, Option<Port>)| {
        money += usize::from(write.money().is_some());
        bytes += write.entry().map_or(0, Entry::weight);
        money <= LEDGER_BATCH_MAX && bytes <= LEDGER_BYTES_MAX
    };
    writes.iter().take(LEDGER_WRITES_MAX).take_while(fits).count().max(1).min(writes.len())
}
