//! The ledger as its users see it: concurrent, abandoned, failing. Every ledger lies in a directory that vanishes.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use cuckoo_wire::message::{KvFormat, Numerics, Price, RefusalCode};
use ractor::{ActorProcessingErr, SupervisionEvent};
use tokio::sync::mpsc;

use super::books::tests::failover;
use super::store::{OnServer, Place, patiently};
use super::write::tests::finished;
use super::*;
use crate::journal::{Epoch, Made, Maker};

impl LedgerHandle {
    /// Sets aside what a request may cost that nobody could go on with.
    async fn hold(&self, request: RequestId, client: &ClientId, amount_nano: u64) -> Result<(), HoldError> {
        self.open_request(request, client, amount_nano, Vec::new()).await
    }
}

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
    let opened = open_in(dir, None).await;
    crate::adopt::all(&opened.ledger).await.unwrap();
    opened
}

/// A ledger as it was left.
async fn open_in(dir: &Path, database: Option<&PostgresUrl>) -> Opened {
    let (sender, failures) = mpsc::channel(1);
    let (owner, _) = Actor::spawn(None, Owner, sender).await.unwrap();
    let start = async || match LedgerHandle::open(dir, database, PeerId([1; 32]), owner.get_cell()).await {
        Err(LedgerError::Store(e)) => Err(e),
        other => Ok(other.unwrap()),
    };
    let ledger = patiently(start).await.unwrap();
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

/// Ends everything at once: no message is handled any more and nothing is closed in order.
async fn crash(Opened { ledger, owner, .. }: Opened) {
    ledger.actor.kill();
    owner.kill();
    while Arc::strong_count(&ledger.store) > 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(ledger.release(request(1), finished()).await, Err(LedgerError::Stopped));
}

#[tokio::test]
async fn a_crash_gives_back_what_was_held() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, client) = with_client(dir.path(), 10_000).await;
    opened.ledger.hold(request(1), &client, 6_000).await.unwrap();
    assert_eq!(available(&opened.ledger, client).await, 4_000);
    crash(opened).await;
    let Opened { ledger, .. } = open(dir.path()).await;
    let again = ledger.hold(request(1), &client, 6_000).await;
    assert_eq!(again, Err(HoldError::Ledger(Refused::Fenced(request(1)).into())), "it was taken over to be ended");
    assert_eq!(available(&ledger, client).await, 10_000);
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

/// A request runs, its scheduler ends without a word, and the next one goes on where it was.
async fn goes_on_after_a_crash(dir: &Path, database: Option<&PostgresUrl>) {
    let maker = Maker {
        miner: PeerId([3; 32]),
        ask: Price { input_per_mtok: 1, output_per_mtok: 2 },
        numerics: Some(Numerics::exact(1, KvFormat::Q8_0)),
    };
    let opened = open_in(dir, database).await;
    let key = opened.ledger.create_key("test", 100_000).await.unwrap();
    let client = opened.ledger.authenticate(&key).await.unwrap().unwrap();
    opened.ledger.open_request(request(1), &client, 84_000, vec![4, 2]).await.unwrap();
    opened
        .ledger
        .append(Append { request: request(1), epoch: Epoch::FIRST, first: 0, tokens: &[7; 100], by: Some(maker) })
        .await
        .unwrap();
    opened.ledger.flush().unwrap();
    crash(opened).await;

    let Opened { ledger, .. } = open_in(dir, database).await;
    let mut taken = ledger.adopt().await.unwrap();
    assert_eq!(ledger.adopt().await.unwrap(), []);
    let Reopened { spec, tokens, makers, epoch, .. } = taken.pop().unwrap();
    assert_eq!((spec, tokens, epoch), (vec![4, 2], vec![7; 100], Epoch(2)));
    assert_eq!(makers, [Made { first: 0, by: maker }]);
    let late = ledger
        .append(Append { request: request(1), epoch: Epoch::FIRST, first: 100, tokens: &[9], by: None })
        .await
        .unwrap_err();
    assert_eq!(late, LedgerError::Refused(Refused::Fenced(request(1))));
    assert_eq!(Refusal::from(late).code, RefusalCode::Unavailable);
    ledger.append(Append { request: request(1), epoch, first: 100, tokens: &[8; 50], by: None }).await.unwrap();
    // A developer comes back, and asks for it as if nobody ran it.
    let claimed = ledger.claim(request(1)).await.unwrap().unwrap();
    assert_eq!((claimed.epoch, claimed.tokens.len()), (Epoch(3), 150));
    ledger
        .append(Append { request: request(1), epoch: claimed.epoch, first: 150, tokens: &[6; 100], by: None })
        .await
        .unwrap();
    let end = End { epoch: claimed.epoch, ..finished() };
    ledger.settle(Settlement { request: request(1), ..failover(0) }, end).await.unwrap();
    assert_eq!(ledger.claim(request(1)).await.unwrap(), None, "it has ended");
    let kept = ledger.request(request(1)).await.unwrap().unwrap();
    assert_eq!(kept.tokens, [vec![7; 100], vec![8; 50], vec![6; 100]].concat());
    assert_eq!(available(&ledger, client).await, 40_000);
    ledger.trial_balance().await.unwrap();
}

#[tokio::test]
async fn a_request_in_a_file_goes_on_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    goes_on_after_a_crash(dir.path(), None).await;
}

#[tokio::test]
async fn a_request_on_a_server_goes_on_after_a_crash() {
    let place = OnServer::make().await;
    goes_on_after_a_crash(place.dir.path(), Some(&place.url())).await;
}

#[tokio::test]
async fn a_process_that_is_no_longer_its_scheduler_stops() {
    let place = OnServer::make().await;
    let Opened { ledger, mut failures, .. } = open_in(place.dir.path(), Some(&place.url())).await;
    let pepper = place.dir.path().join("ledger.pepper");
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(pepper, other.path().join("ledger.pepper")).unwrap();
    let copy = open_in(other.path(), Some(&place.url())).await;
    // Nobody writes; it hears of it when its lease is due.
    let why = failures.recv().await.unwrap();
    assert!(why.contains("another process runs as scheduler"), "{why}");
    assert_eq!(ledger.hold(request(1), &ClientId([1; 8]), 0).await, Err(HoldError::Ledger(LedgerError::Stopped)));
    copy.ledger.create_key("test", 5).await.unwrap();
}
