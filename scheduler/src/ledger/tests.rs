//! The ledger as its users see it: concurrent, abandoned, failing. Every ledger lies in a directory that vanishes.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use cuckoo_wire::message::RefusalCode;
use ractor::{ActorProcessingErr, SupervisionEvent};
use tokio::sync::mpsc;

use super::books::tests::failover;
use super::write::tests::finished;
use super::*;

/// Stands for the scheduler: hears which child failed.
struct Owner;

impl Actor for Owner {
    type Msg = ();
    type State = mpsc::Sender<String>;
    type Arguments = mpsc::Sender<String>;

    async fn pre_start(
        &self,
        _: ActorRef<()>,
        failures: mpsc::Sender<String>,
    ) -> Result<mpsc::Sender<String>, ActorProcessingErr> {
        Ok(failures)
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        failures: &mut mpsc::Sender<String>,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, why) = event {
            failures.send(why.to_string()).await?;
        }
        Ok(())
    }
}

struct Opened {
    ledger: LedgerHandle,
    failures: mpsc::Receiver<String>,
    owner: ActorRef<()>,
}

async fn open(dir: &Path) -> Opened {
    let (sender, failures) = mpsc::channel(1);
    let (owner, _) = Actor::spawn(None, Owner, sender).await.unwrap();
    let start = async || match LedgerHandle::open(dir, None, PeerId([1; 32]), owner.get_cell()).await {
        Err(LedgerError::Store(e)) => Err(e),
        other => Ok(other.unwrap()),
    };
    let ledger = super::store::patiently(start).await.unwrap();
    crate::adopt::all(&ledger).await.unwrap();
    Opened { ledger, failures, owner }
}

/// A ledger, and a developer who has `nano`.
async fn with_client(dir: &Path, nano: u64) -> (Opened, ClientId) {
    let opened = open(dir).await;
    let key = opened.ledger.create_key("test", nano).await.unwrap();
    let client = opened.ledger.authenticate(&key).await.unwrap().unwrap();
    (opened, client)
}

async fn available(ledger: &LedgerHandle, client: ClientId) -> i64 {
    ledger.wallet(vec![Account::Client(client)], 0).await.unwrap().balances[0].1
}

fn request(n: u16) -> RequestId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&n.to_le_bytes());
    RequestId(id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_at_once_settle_to_the_unit() {
    const REQUESTS: u16 = 500;
    let dir = tempfile::tempdir().unwrap();
    let (Opened { ledger, .. }, client) = with_client(dir.path(), 500 * 84_000).await;
    let started = Instant::now();
    let requests: Vec<_> = (0..REQUESTS)
        .map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                ledger.hold(request(n), &client, 84_000).await.unwrap();
                ledger.settle(Settlement { request: request(n), ..failover(0) }, finished()).await.unwrap()
            })
        })
        .collect();
    let split = Settled { cost: 60_000, miner: 49_200, author: 4_800, network: 6_000 };
    for settled in requests {
        assert_eq!(settled.await.unwrap(), split);
    }
    let rate = f64::from(REQUESTS) / started.elapsed().as_secs_f64();
    println!("{REQUESTS} concurrent requests, held and settled durably: {rate:.0} requests/s");
    let n = u64::from(REQUESTS);
    let totals = ledger.totals().await.unwrap();
    assert_eq!(totals.requests, n);
    assert_eq!(totals.split, Settled { cost: 60_000 * n, miner: 49_200 * n, author: 4_800 * n, network: 6_000 * n });
    assert_eq!(available(&ledger, client).await, 500 * 24_000);
    let trial = ledger.trial_balance().await.unwrap();
    assert_eq!((trial.totals, trial.holds_open), (totals, 0));
    assert_eq!(trial.postings, 1 + n * 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_overspends_by_being_quick() {
    let dir = tempfile::tempdir().unwrap();
    let (Opened { ledger, .. }, client) = with_client(dir.path(), 10_500).await;
    let holds: Vec<_> = (0..64)
        .map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move { ledger.hold(request(n), &client, 1_000).await })
        })
        .collect();
    let mut held = 0;
    for hold in holds {
        match hold.await.unwrap() {
            Ok(()) => held += 1,
            Err(e) => assert_eq!(e, HoldError::Insufficient { available: 500, needed: 1_000 }),
        }
    }
    assert_eq!(held, 10);
    assert_eq!(available(&ledger, client).await, 500);
}

#[tokio::test]
async fn a_crash_gives_back_what_was_held() {
    let dir = tempfile::tempdir().unwrap();
    let (Opened { ledger, owner, .. }, client) = with_client(dir.path(), 10_000).await;
    ledger.hold(request(1), &client, 6_000).await.unwrap();
    assert_eq!(available(&ledger, client).await, 4_000);
    // No message is handled any more and nothing is closed in order.
    ledger.actor.kill();
    owner.kill();
    while Arc::strong_count(&ledger.store) > 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(ledger.release(request(1), finished()).await, Err(LedgerError::Stopped));
    drop(ledger);
    let Opened { ledger, .. } = open(dir.path()).await;
    assert_eq!(available(&ledger, client).await, 10_000);
    let again = ledger.hold(request(1), &client, 6_000).await;
    assert_eq!(again, Err(HoldError::Ledger(Refused::Fenced(request(1)).into())), "it was taken over to be ended");
    assert_eq!(ledger.trial_balance().await.unwrap().holds_open, 0);
}

#[tokio::test]
async fn a_hold_that_nobody_waits_for_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let (Opened { ledger, .. }, client) = with_client(dir.path(), 10_000).await;
    {
        let mut hold = Box::pin(ledger.hold(request(1), &client, 6_000));
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(hold.as_mut().poll(context)));
        assert!(polled.await.is_pending(), "it was asked for and has no answer yet");
    }
    // The release stands behind the hold in the actor's mailbox, and this behind both.
    ledger.hold(request(2), &client, 10_000).await.unwrap();
    assert_eq!(ledger.release(request(1), finished()).await, Ok(6_000), "as the first time");
}

#[tokio::test]
async fn what_nobody_waits_for_is_done_too() {
    let dir = tempfile::tempdir().unwrap();
    let (Opened { ledger, .. }, client) = with_client(dir.path(), 200_000).await;
    ledger.hold(request(1), &client, 84_000).await.unwrap();
    ledger.hold(request(2), &client, 84_000).await.unwrap();
    ledger.settle_later(Settlement { request: request(1), ..failover(0) }, finished());
    ledger.release_later(request(2), finished());
    ledger.release_later(request(3), finished());
    ledger.hold(request(4), &client, 140_000).await.unwrap();
    assert_eq!(available(&ledger, client).await, 0);
    assert_eq!(ledger.totals().await.unwrap().requests, 1);
}

#[tokio::test]
async fn a_broken_invariant_stops_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let (Opened { ledger, mut failures, .. }, client) = with_client(dir.path(), 100_000).await;
    ledger.hold(request(1), &client, 84_000).await.unwrap();
    let wrong = Settlement { request: request(1), max_tokens: 10, ..failover(0) };
    let error = ledger.settle(wrong, finished()).await.unwrap_err();
    assert!(matches!(&error, LedgerError::Store(StoreError::Broken(b)) if b.invariant.starts_with("I5")), "{error}");
    assert_eq!(Refusal::from(error).code, RefusalCode::Internal);
    assert!(failures.recv().await.unwrap().contains("I5"), "the owner hears of it");
    assert_eq!(ledger.release(request(1), finished()).await, Err(LedgerError::Stopped));
    ledger.trial_balance().await.unwrap();
}

#[tokio::test]
async fn the_same_payment_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let (Opened { ledger, .. }, client) = with_client(dir.path(), 0).await;
    for _ in 0..3 {
        ledger.deposit(&client, 700, DepositId([1; 16])).await.unwrap();
    }
    ledger.deposit(&client, 70, DepositId([2; 16])).await.unwrap();
    assert_eq!(available(&ledger, client).await, 770);
    let other = ledger.deposit(&client, 1, DepositId([1; 16])).await;
    assert!(matches!(other, Err(LedgerError::Rejected(Rejection::Conflict(_)))), "{other:?}");
}

#[tokio::test]
async fn refusals_say_what_developers_can_use() {
    let dir = tempfile::tempdir().unwrap();
    let (Opened { ledger, .. }, client) = with_client(dir.path(), 1_500_000_000).await;
    let refusal = Refusal::from(ledger.hold(request(1), &client, 2_000_000_001).await.unwrap_err());
    assert_eq!(refusal.code, RefusalCode::InsufficientCredit);
    assert!(refusal.message.contains("2.000000001") && refusal.message.contains("has 1.5"), "{}", refusal.message);
    let full = StoreError::Full { path: dir.path().to_owned() };
    let refusal = Refusal::from(LedgerError::Store(full));
    assert_eq!(refusal.code, RefusalCode::Unavailable);
    assert!(!refusal.message.contains('/'), "no path leaves the machine: {}", refusal.message);
    assert_eq!(Refusal::from(LedgerError::Stopped).code, RefusalCode::Unavailable);
}
