//! Peers that break the rules: each is told why and shut out, and nobody else notices.

use std::time::Duration;

use cuckoo::{Address, Client, ClientError, Identity, RefusalCode, Request};
use cuckoo_wire::limits::{ASSIGN_FRAME_BYTES_MAX, MINER_FRAME_BYTES_MAX, PROTOCOL_VERSION};
use cuckoo_wire::message::{
    Hello, KvFormat, Numerics, Offer, Price, ReplicaFrame, ReplicaId, Step, StepItem, Task, ToMiner, WeightsHash,
    Window,
};
use cuckoo_wire::{Close, FrameReader, FrameWriter, Role, connect};
use serde_json::Value;

use crate::support::{MODEL, Process, Up, cuckoo, eventually, get, metric, weights};

fn schedule(options: &[&str]) -> (Process, Value) {
    let args = [&["schedule", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"], options].concat();
    let scheduler = Process::start(&args);
    let ready = scheduler.ready();
    (scheduler, ready)
}

fn address(ready: &Value) -> Address {
    ready["join"].as_str().unwrap().parse().unwrap()
}

/// Why the scheduler closed a connection.
async fn reason(connection: &quinn::Connection) -> (Close, String) {
    let closed = tokio::time::timeout(Duration::from_secs(20), connection.closed()).await.expect("it is closed");
    match closed {
        quinn::ConnectionError::ApplicationClosed(closed) => Close::of(&closed).expect("a known code"),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_oversized_frames_and_other_versions_are_told_apart() {
    let up = Up::shared();
    for role in [Role::Miner, Role::Developer] {
        for (bytes, word) in [
            (vec![2, 0, 0, 0, PROTOCOL_VERSION + 1, 0], "version"),
            (vec![0xff, 0xff, 0xff, 0xff, PROTOCOL_VERSION], "longer"),
            (vec![5, 0, 0, 0, PROTOCOL_VERSION, 0xff, 0xff, 0xff, 0xff], "valid message"),
        ] {
            let connection = connect(&up.quic, &Identity::generate(), role).await.unwrap();
            let (mut send, _recv) = connection.open_bi().await.unwrap();
            send.write_all(&bytes).await.unwrap();
            let (close, why) = reason(&connection).await;
            assert_eq!(close, Close::Protocol);
            assert!(why.contains(word), "{role:?} {bytes:?}: {why}");
        }
    }
    let mut honest = up.client().await.generate(Request::chat(&up.api_key, MODEL, "hi").max_tokens(3)).await.unwrap();
    assert!(honest.text().await.is_ok(), "nobody else notices");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_with_another_key_is_not_trusted() {
    let up = Up::shared();
    let impostor = Address { peer: Identity::generate().peer_id(), ..up.quic.clone() };
    let error = Client::connect(&impostor, &Identity::generate()).await.err().unwrap().to_string();
    assert!(error.contains("another peer"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_that_is_not_on_the_list_is_refused() {
    let known = Identity::generate();
    let (_scheduler, ready) = schedule(&["--allow-miner", &known.peer_id().to_string()]);
    let stranger = connect(&address(&ready), &Identity::generate(), Role::Miner).await.unwrap();
    let (close, why) = reason(&stranger).await;
    assert_eq!(close, Close::NotAllowed);
    assert!(why.contains("allow"), "{why}");
    let home = tempfile::tempdir().unwrap();
    let mut mine = cuckoo();
    mine.args(["mine", "--join", ready["join"].as_str().unwrap(), "--home"]).arg(home.path());
    let output = mine.arg("--models-dir").arg(crate::support::shelf()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("refused") && error.contains("allow"), "{error}");
    let (_miner, _control, _replica) = FakeMiner::join(&address(&ready), &known, 4).await.parts();
}

/// A miner that speaks the protocol and does what a test wants.
pub(crate) struct FakeMiner {
    pub(crate) connection: quinn::Connection,
    pub(crate) control: FrameReader<quinn::RecvStream>,
    replica: FrameWriter<quinn::SendStream>,
    _hello: FrameWriter<quinn::SendStream>,
}

impl FakeMiner {
    pub(crate) async fn join(to: &Address, identity: &Identity, sequences: u64) -> Self {
        Self::keeping(to, identity, KvFormat::F16, sequences).await
    }

    /// With keys and values in this format.
    pub(crate) async fn keeping(to: &Address, identity: &Identity, kv: KvFormat, sequences: u64) -> Self {
        let hash: cuckoo_models::WeightsHash = weights().file_stem().unwrap().to_str().unwrap().parse().unwrap();
        Self::offering(to, identity, WeightsHash(hash.0), (Task::Generate, kv), sequences).await
    }

    pub(crate) async fn offering(
        to: &Address,
        identity: &Identity,
        weights: WeightsHash,
        (task, kv): (Task, KvFormat),
        sequences: u64,
    ) -> Self {
        let connection = connect(to, identity, Role::Miner).await.unwrap();
        let (send, recv) = connection.open_bi().await.unwrap();
        let mut hello = FrameWriter::new(send, MINER_FRAME_BYTES_MAX);
        hello.send(&Hello { name: "fake".into(), program: "test".into() }).await.unwrap();
        let mut control = FrameReader::new(recv, ASSIGN_FRAME_BYTES_MAX);
        assert!(matches!(control.next::<ToMiner>().await.unwrap(), Some(ToMiner::Welcome { .. })));
        let mut replica = FrameWriter::new(connection.open_uni().await.unwrap(), MINER_FRAME_BYTES_MAX);
        let offer = Offer {
            replica: ReplicaId(1),
            weights,
            context_tokens: 8_192,
            block_tokens: 16,
            ask: Price::default(),
            window: Window { sequences, blocks: 10_000 },
            task,
            adapters: Vec::new(),
            device: 0,
            numerics: Numerics::exact(1, kv),
        };
        replica.send(&ReplicaFrame::Offer(offer)).await.unwrap();
        Self { connection, control, replica, _hello: hello }
    }

    fn parts(self) -> (quinn::Connection, FrameReader<quinn::RecvStream>, FrameWriter<quinn::SendStream>) {
        (self.connection, self.control, self.replica)
    }

    /// The next assignment's sequence.
    pub(crate) async fn assigned(&mut self) -> cuckoo_wire::message::Assign {
        loop {
            match self.control.next::<ToMiner>().await.unwrap() {
                Some(ToMiner::Assign(assign)) => return assign,
                Some(_) => {}
                None => panic!("no assignment came"),
            }
        }
    }

    pub(crate) async fn step(&mut self, items: Vec<StepItem>) {
        let window = Window { sequences: 4, blocks: 10_000 };
        let step = Step { window, batch: 1, blocks_used: 1, items, ..Step::default() };
        // A closed connection is what some tests are after.
        let _ = self.replica.send(&ReplicaFrame::Step(step)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn miners_that_claim_too_much_are_shut_out_and_unpaid() {
    let (_scheduler, ready) = schedule(&[]);
    let key = ready["api_key"].as_str().unwrap();
    let client = Client::connect(&address(&ready), &Identity::generate()).await.unwrap();
    type Cheat = fn(cuckoo_wire::message::Assign) -> Vec<StepItem>;
    let cheats: [(&str, Cheat, &str); 3] = [
        ("tokens beyond the credit", |a| many(&a), "credit"),
        ("a gap in the stream", |a| vec![StepItem::new(a.sequence, 3, vec![1], None)], "expected"),
        ("an item without news", |a| vec![StepItem::new(a.sequence, 0, vec![], None)], "without news"),
    ];
    for (what, cheat, word) in cheats {
        let mut miner = FakeMiner::join(&address(&ready), &Identity::generate(), 4).await;
        let mut generation = client.generate(Request::chat(key, MODEL, "hi").max_tokens(2_000)).await.unwrap();
        let assign = miner.assigned().await;
        assert!(assign.tokens.len() > 5 && assign.credit == 64);
        miner.step(cheat(assign)).await;
        let (close, why) = reason(&miner.connection).await;
        assert_eq!(close, Close::Protocol, "{what}");
        assert!(why.contains(word), "{what}: {why}");
        // Its request goes back to the board, where nobody is left to take it.
        loop {
            match generation.next().await {
                Ok(Some(_)) => {}
                Err(ClientError::Refused(refusal)) => {
                    assert_eq!(refusal.code, RefusalCode::NoCapacity, "{what}");
                    break;
                }
                other => panic!("{what}: {other:?}"),
            }
        }
    }
    let http = ready["http"].as_str().unwrap();
    eventually("nothing runs", || metric(http, "cuckoo_num_requests_running") == 0.0);
}

/// A miner whose device hangs: it is there, and computes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn health_tells_of_a_miner_that_hangs_and_its_sequences_move_on() {
    let (_scheduler, ready) = schedule(&[]);
    let http = ready["http"].as_str().unwrap();
    let health = || serde_json::from_str::<Value>(&get(http, "/health")).unwrap();
    let client = Client::connect(&address(&ready), &Identity::generate()).await.unwrap();
    let mut hanging = FakeMiner::join(&address(&ready), &Identity::generate(), 4).await;
    let key = ready["api_key"].as_str().unwrap();
    let mut generation = client.generate(Request::chat(key, MODEL, "hi").max_tokens(2)).await.unwrap();
    let assign = hanging.assigned().await;
    hanging.step(vec![StepItem::new(assign.sequence, 0, vec![28], None)]).await;
    assert_eq!(generation.next().await.unwrap().unwrap().tokens, [28]);
    let since = std::time::Instant::now();
    while health()["status"] == "ok" {
        assert!(since.elapsed() < Duration::from_secs(70), "still well");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(since.elapsed() > Duration::from_secs(59), "{:?}", since.elapsed());
    let why = health()["reason"].as_str().unwrap().to_owned();
    assert!(why.contains("has computed anything for 6"), "{why}");

    let mut other = FakeMiner::join(&address(&ready), &Identity::generate(), 4).await;
    eventually("another miner can serve", || health()["status"] == "ok");
    hanging.replica.get_mut().finish().unwrap();
    let moved = other.assigned().await;
    assert_eq!((moved.tokens, moved.seed), ([assign.tokens, vec![28]].concat(), assign.seed));
    other.step(vec![StepItem::new(moved.sequence, 0, vec![29], None)]).await;
    assert_eq!(generation.next().await.unwrap().unwrap().tokens, [29]);
    while generation.next().await.unwrap().is_some() {}
    assert_eq!(generation.usage().unwrap().migrations, 1);
}

/// More tokens than any credit, in one step.
fn many(assign: &cuckoo_wire::message::Assign) -> Vec<StepItem> {
    (0..5).map(|i| StepItem::new(assign.sequence, i * 16, vec![28; 16], None)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_is_in_one_place() {
    let mut market = crate::market::Market::start(1, &["--batch", "8"]);
    let identity = Identity::load_or_create(&market.miners[0].home.path().join("identity.key")).unwrap();
    let newer = FakeMiner::join(&market.join(), &identity, 4).await;
    // The older one is told why, and does not come again.
    let mut older = market.miners.remove(0);
    eventually("the older one ends", || !older.is_running());
    eventually("the newer one is there", || metric(market.http(), "cuckoo_replicas") == 1.0);
    assert!(newer.connection.close_reason().is_none());
}
