//! Where the replies to a request come out. What they speak of is written down before anybody has it: once for all that was
//! accepted by then, of other requests too.

use cuckoo_wire::limits::REPLY_QUEUE;
use cuckoo_wire::message::Reply;
use tokio::sync::mpsc;

use crate::hold::patiently;
use crate::market::Market;

/// Where replies go in. A reply lies apart: a queue of whole ones writes each where no other was for long.
pub(crate) type Sender = mpsc::Sender<Box<Reply>>;

/// Replies to one request, in order. Dropping this stops all work on it.
pub(crate) struct Replies {
    receiver: mpsc::Receiver<Box<Reply>>,
    market: Market,
    /// The first that has not been taken. What it speaks of may not be written down yet.
    first: Option<Box<Reply>>,
    /// Nothing more can be written down.
    is_over: bool,
}

impl Replies {
    /// A queue of [`REPLY_QUEUE`] replies.
    pub(crate) fn queue(market: &Market) -> (Sender, Self) {
        let (sender, receiver) = mpsc::channel(REPLY_QUEUE);
        (sender, Self { receiver, market: market.clone(), first: None, is_over: false })
    }

    /// The next reply, taken; `None` after the last one.
    pub(crate) async fn recv(&mut self) -> Option<Reply> {
        self.first().await;
        self.first.take().map(|reply| *reply)
    }

    /// The next reply, which stays the next one until it is taken or passed; `None` after the last one. Where nothing can be written down
    /// any more, that it is refused is the last. Nothing is lost if this is dropped midway.
    pub(crate) async fn first(&mut self) -> Option<&Reply> {
        if self.is_over {
            return self.first.as_deref();
        }
        if self.first.is_none() {
            self.first = Some(self.receiver.recv().await?);
        }
        let ledger = self.market.ledger();
        if ledger.flush().is_err()
            && let Err(error) = Box::pin(patiently(|| std::future::ready(ledger.flush()))).await
        {
            // Whoever makes replies hears that nobody waits for them.
            self.receiver.close();
            (self.is_over, self.first) = (true, Some(Box::new(Reply::Refused(error.into()))));
        }
        self.first.as_deref()
    }

    /// The reply that was next is done with.
    pub(crate) fn pass(&mut self) {
        self.first = None;
    }
}
