//! Where the replies to a request come out. What they speak of is written down before anybody has it: once for all that was
//! accepted by then, of other requests too.

use cuckoo_wire::limits::REPLY_QUEUE;
use cuckoo_wire::message::Reply;
use tokio::sync::mpsc;

use crate::hold::patiently;
use crate::market::Market;

/// Replies to one request, in order. Dropping this stops all work on it.
pub(crate) struct Replies {
    receiver: mpsc::Receiver<Reply>,
    market: Market,
    /// What it speaks of may not be written down yet.
    next: Option<Reply>,
    /// Nothing more can be written down.
    is_over: bool,
}

impl Replies {
    /// A queue of [`REPLY_QUEUE`] replies.
    pub(crate) fn queue(market: &Market) -> (mpsc::Sender<Reply>, Self) {
        let (sender, receiver) = mpsc::channel(REPLY_QUEUE);
        (sender, Self { receiver, market: market.clone(), next: None, is_over: false })
    }

    /// The next reply; `None` after the last one. Where nothing can be written down any more, that it is refused is the last.
    /// Nothing is lost if this is dropped midway.
    pub(crate) async fn recv(&mut self) -> Option<Reply> {
        if self.is_over {
            return None;
        }
        if self.next.is_none() {
            self.next = Some(self.receiver.recv().await?);
        }
        let ledger = self.market.ledger();
        if let Err(error) = patiently(|| std::future::ready(ledger.flush())).await {
            // Whoever makes replies hears that nobody waits for them.
            self.receiver.close();
            (self.is_over, self.next) = (true, None);
            return Some(Reply::Refused(error.into()));
        }
        self.next.take()
    }
}
