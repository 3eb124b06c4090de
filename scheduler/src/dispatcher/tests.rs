//! The actor around the board.
#![allow(clippy::unwrap_used)]

use cuckoo_wire::message::ReplicaId;
use futures_util::FutureExt;

use super::*;

#[tokio::test]
async fn a_miner_that_says_too_much_waits_until_it_was_heard() {
    let (supervisor, _) = Actor::spawn(None, Nobody, ()).await.unwrap();
    let metrics = Arc::new(crate::metrics::Metrics::new());
    let dispatcher = DispatcherHandle::start(supervisor.get_cell(), metrics).await.unwrap();
    let (talks, other) = (Arc::new(Semaphore::new(3)), Arc::new(Semaphore::new(3)));
    let news = || MinerNews::Drain(ReplicaKey { link: LinkId(1), replica: ReplicaId(1) });
    // Nobody else runs here before something waits.
    let heard = (0..5).filter(|_| dispatcher.hear(&talks, news()).now_or_never().is_some()).count();
    assert_eq!(heard, 3);
    assert!(dispatcher.hear(&other, news()).now_or_never().is_some(), "others do not wait for it");
    dispatcher.hear(&talks, news()).await;
    dispatcher.health().await.unwrap();
    assert_eq!((talks.available_permits(), other.available_permits()), (3, 3));
}

/// Stands for the scheduler.
struct Nobody;

impl Actor for Nobody {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}
