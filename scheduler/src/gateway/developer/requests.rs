//! The requests of one developer's connection, in a few tasks. A miner's step has news of many of them at once: here they are
//! worked off in one go, and what they write leaves in few datagrams. A task a request would wake as many tasks, and send
//! as many datagrams, as there are tokens.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;

/// Tasks of a connection: what is worked off in one go is not worked off by two processors.
const LANES: usize = 2;
/// Requests of a lane that have been read and not begun. They are begun at once; more of them wait in their streams.
const BEGINNING_QUEUE: usize = 16;

/// A request, and what relays its replies. Apart: so what all requests have to say is there before the first of them is
/// written, and leaves together.
type Parts = [BoxFuture<'static, ()>; 2];

/// Where requests are handed in. They go on when this is dropped: whoever made them may come back.
#[derive(Clone)]
pub(super) struct Requests {
    lanes: [mpsc::Sender<Parts>; LANES],
    added: Arc<AtomicUsize>,
}

impl Requests {
    /// Starts the tasks, which end with their last requests once nobody can add any.
    pub(super) fn start() -> Self {
        let lane = |_| {
            let (requests_in, requests) = mpsc::channel(BEGINNING_QUEUE);
            // It yields after a round of those that were woken, and so needs no budget: that would cut a burst into pieces.
            tokio::spawn(tokio::task::unconstrained(run(requests)));
            requests_in
        };
        Self { lanes: std::array::from_fn(lane), added: Arc::default() }
    }

    /// Has a request run, and its replies relayed. How many there are is bounded by the streams of a connection.
    pub(super) async fn add(
        &self,
        request: impl Future<Output = ()> + Send + 'static,
        relay: impl Future<Output = ()> + Send + 'static,
    ) {
        let lane = self.added.fetch_add(1, Ordering::Relaxed) % LANES;
        // The task is there as long as `self`.
        let _ = self.lanes[lane].send([alone(request), alone(relay)]).await;
    }
}

/// What breaks this leaves the others alone, as it would between tasks.
fn alone(part: impl Future<Output = ()> + Send + 'static) -> BoxFuture<'static, ()> {
    AssertUnwindSafe(part).catch_unwind().map(|_| ()).boxed()
}

async fn run(mut new: mpsc::Receiver<Parts>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = running.next() => {}
            parts = new.recv() => match parts {
                Some(parts) => running.extend(parts),
                None => break,
            },
        }
    }
    while running.next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::{Notify, oneshot};

    use super::*;

    #[tokio::test]
    async fn requests_run_beside_each_other_and_outlive_whoever_added_them() {
        let (requests, ended) = (Requests::start(), Arc::new(AtomicUsize::new(0)));
        let go = Arc::new(Notify::new());
        let mut done = Vec::new();
        for _ in 0..100 {
            let (done_in, one) = oneshot::channel();
            let (go, ended) = (go.clone(), ended.clone());
            done.push(one);
            let request = async move {
                go.notified().await;
                ended.fetch_add(1, Ordering::Relaxed);
            };
            let relay = async move {
                let _ = done_in.send(());
            };
            requests.add(request, relay).await;
        }
        drop(requests);
        tokio::task::yield_now().await;
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        while ended.load(Ordering::Relaxed) < 100 {
            go.notify_waiters();
            tokio::task::yield_now().await;
        }
        for one in done {
            one.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_request_that_panics_takes_no_other_with_it() {
        let requests = Requests::start();
        let (go_in, go) = oneshot::channel::<()>();
        let (done_in, done) = oneshot::channel();
        let request = async move {
            go.await.unwrap();
            done_in.send(1).unwrap();
        };
        requests.add(request, async {}).await;
        for _ in 0..LANES {
            requests.add(async { panic!("this is a test") }, async {}).await;
        }
        let (later_in, later) = oneshot::channel();
        requests.add(async move { later_in.send(2).unwrap() }, async {}).await;
        assert_eq!(later.await.unwrap(), 2);
        go_in.send(()).unwrap();
        assert_eq!(done.await.unwrap(), 1);
    }
}
