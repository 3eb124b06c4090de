//! The relay: what a scheduler adds to a token on its way from miner to developer, beside bare quinn in the same run.
//!
//! A miner that computes nothing sends one step frame a tick; a real scheduler splits it, detokenizes, meters and sends
//! each developer its token. Everything runs in this process, so CPU per token is that of all ends together; the bare
//! row has the same ends without the scheduler. Rows are interleaved; medians and ratios are printed.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cuckoo::{Address, Client, Identity, Request};
use cuckoo_scheduler::{ScheduleConfig, Scheduler, schedule};
use cuckoo_wire::limits::{
    ASSIGN_FRAME_BYTES_MAX, MINER_BEAT, MINER_FRAME_BYTES_MAX, NANO_PER_CREDIT, REPLY_FRAME_BYTES_MAX,
};
use cuckoo_wire::message::{
    Assign, Beat, End, Hello, Offer, Price, ReplicaFrame, ReplicaId, Reply, Step, StepItem, Task, ToMiner, WeightsHash,
    Window,
};
use cuckoo_wire::{Admission, FrameReader, FrameWriter, PeerId, Role, connect, listen};
use tokio::sync::{Mutex, mpsc};

const STREAMS: usize = 64;
const TICK: Duration = Duration::from_millis(20);

/// One run's figures.
#[derive(Default)]
struct Figures {
    latencies_us: Vec<f64>,
    cpu_us_a_token: f64,
    tokens: usize,
}

/// When the miner sent the token with this index; one tick for all streams.
type Sent = Arc<Mutex<Vec<Instant>>>;

fn main() {
    let tokens = if support::is_test() { 5 } else { 250 };
    let rounds = if support::is_test() { 1 } else { 3 };
    let shelf = support::shelf();
    let hash = support::weights().hash;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let (mut relayed, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (shelf, hash) = (shelf.clone(), WeightsHash(hash.0));
        // Spawned: the thread that blocks here is no worker.
        relayed.push(runtime.block_on(async { tokio::spawn(relay(shelf, hash, tokens)).await }).expect("it ran"));
        bare.push(runtime.block_on(async { tokio::spawn(direct(tokens)).await }).expect("it ran"));
    }
    println!("{STREAMS} streams, a token each every {TICK:?}, {rounds} interleaved rounds of {tokens} tokens a stream");
    let a = row("through the scheduler", relayed);
    let b = row("bare quinn", bare);
    println!("  added: p50 {:+.0} us, p99 {:+.0} us; CPU {:.2} x", a.0 - b.0, a.1 - b.1, a.2 / b.2);
}

fn row(name: &str, runs: Vec<Figures>) -> (f64, f64, f64) {
    let median = |f: &dyn Fn(&Figures) -> f64| support::quantile(&mut runs.iter().map(f).collect::<Vec<_>>(), 0.5);
    let p = |q: f64| median(&|r: &Figures| support::quantile(&mut r.latencies_us.clone(), q));
    let (p50, p99, cpu) = (p(0.5), p(0.99), median(&|r: &Figures| r.cpu_us_a_token));
    let tokens: usize = runs.iter().map(|r| r.tokens).sum();
    println!("  {name:<22} p50 {p50:>6.0} us  p99 {p99:>6.0} us  CPU {cpu:>6.2} us a token  ({tokens} tokens)");
    (p50, p99, cpu)
}

/// Processor time of this process, in microseconds.
fn cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    // schedstat covers one thread; the tasks together are the process.
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let ns: f64 = tasks
        .filter_map(|t| std::fs::read_to_string(t.path().join("schedstat")).ok())
        .filter_map(|s| s.split_whitespace().next()?.parse::<f64>().ok())
        .sum();
    assert!(ns > 0.0, "the kernel accounts for threads: {stat}");
    ns / 1e3
}

async fn scheduler(shelf: std::path::PathBuf, home: &std::path::Path) -> (Scheduler, String) {
    let config = ScheduleConfig {
        identity: Identity::generate(),
        name: "bench".to_owned(),
        quic: "127.0.0.1:0".parse().expect("an address"),
        http: None,
        ledger_dir: home.to_owned(),
        database: None,
        shelf_dir: shelf,
        miners_allowed: None,
    };
    let scheduler = schedule(config).await.expect("it starts");
    let key = scheduler.create_key("bench", 1_000 * NANO_PER_CREDIT).await.expect("a key");
    (scheduler, key.0)
}

async fn relay(shelf: std::path::PathBuf, weights: WeightsHash, tokens: usize) -> Figures {
    let home = tempfile::tempdir().expect("a directory");
    let (scheduler, key) = scheduler(shelf, home.path()).await;
    let model = scheduler.models().first().expect("a model").clone();
    let (sent, address) = (Sent::default(), scheduler.address().clone());
    let miner = tokio::spawn(mine(address.clone(), weights, tokens, sent.clone()));
    let client = Client::connect(&address, &Identity::generate()).await.expect("a connection");
    let (arrivals_in, arrivals) = mpsc::channel(STREAMS * 2);
    for _ in 0..STREAMS {
        let mut request = Request::completion(key.clone(), model.clone(), "a").max_tokens(tokens as u32);
        request.0.ignore_eos = true;
        let (client, arrivals) = (client.clone(), arrivals_in.clone());
        tokio::spawn(async move {
            let mut generation = client.generate(request).await.expect("accepted");
            while let Some(delta) = generation.next().await.expect("it goes on") {
                let now = Instant::now();
                for i in 0..delta.tokens.len() {
                    let _ = arrivals.send((delta.first as usize + i, now)).await;
                }
            }
        });
    }
    drop(arrivals_in);
    let figures = collect(arrivals, &sent).await;
    miner.await.expect("the miner ran");
    scheduler.stop(Duration::from_secs(5)).await;
    figures
}

/// Matches arrivals with departures.
async fn collect(mut arrivals: mpsc::Receiver<(usize, Instant)>, sent: &Sent) -> Figures {
    let mut figures = Figures::default();
    let mut cpu = None;
    while let Some((index, at)) = arrivals.recv().await {
        cpu.get_or_insert_with(cpu_us);
        let departed = sent.lock().await[index];
        // The first tokens pay for what only happens once.
        if index > 0 {
            figures.latencies_us.push(at.duration_since(departed).as_secs_f64() * 1e6);
        }
        figures.tokens += 1;
    }
    figures.cpu_us_a_token = (cpu_us() - cpu.expect("tokens came")) / figures.tokens as f64;
    figures
}

/// A miner that gives every sequence a token each tick.
async fn mine(to: Address, weights: WeightsHash, tokens: usize, sent: Sent) {
    let connection = connect(&to, &Identity::generate(), Role::Miner).await.expect("a connection");
    let (send, recv) = connection.open_bi().await.expect("a stream");
    let mut hello = FrameWriter::new(send, MINER_FRAME_BYTES_MAX);
    let mut control = FrameReader::new(recv, ASSIGN_FRAME_BYTES_MAX);
    hello.send(&Hello { name: "bench".to_owned(), program: "bench".to_owned() }).await.expect("sent");
    let mut replica = FrameWriter::new(connection.open_uni().await.expect("a stream"), MINER_FRAME_BYTES_MAX);
    let window = Window { sequences: STREAMS as u64, blocks: 1 << 20 };
    let offer = Offer {
        replica: ReplicaId(1),
        weights,
        context_tokens: 8_192,
        block_tokens: 16,
        ask: Price::default(),
        window,
        task: Task::Generate,
        adapters: Vec::new(),
    };
    replica.send(&ReplicaFrame::Offer(offer)).await.expect("sent");
    let mut assigned: Vec<Assign> = Vec::new();
    let mut beats = tokio::time::interval(MINER_BEAT);
    while assigned.len() < STREAMS {
        tokio::select! {
            said = control.next() => if let Some(ToMiner::Assign(assign)) = said.expect("a frame") {
                assigned.push(assign);
            },
            // Who says nothing is given nothing.
            _ = beats.tick() => replica.send(&ReplicaFrame::Beat(Beat::default())).await.expect("sent"),
        }
    }
    // Credits are read, and always come in time at this pace.
    let credits = tokio::spawn(async move { while let Ok(Some(ToMiner::Credit { .. })) = control.next().await {} });
    let mut clock = tokio::time::interval(TICK);
    for index in 0..tokens {
        clock.tick().await;
        let end = (index + 1 == tokens).then_some(End::Length);
        let item = |a: &Assign| StepItem::new(a.sequence, index as u32, vec![28 + (index % 100) as u32], end.clone());
        let items = assigned.iter().map(item).collect();
        let step = Step { window, batch: STREAMS as u32, blocks_used: 1, items, ..Step::default() };
        sent.lock().await.push(Instant::now());
        replica.send(&ReplicaFrame::Step(step)).await.expect("sent");
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    credits.abort();
}

struct Anybody;

impl Admission for Anybody {
    fn admits(&self, _: &PeerId, _: Option<Role>) -> bool {
        true
    }
}

/// The same frames, from one end to the other without anything between.
async fn direct(tokens: usize) -> Figures {
    let identity = Identity::generate();
    let endpoint =
        listen("127.0.0.1:0".parse().expect("an address"), &identity, Arc::new(Anybody)).expect("it listens");
    let address = Address::new(identity.peer_id(), endpoint.local_addr().expect("bound"));
    let sent = Sent::default();
    let server = tokio::spawn(send_direct(endpoint, tokens, sent.clone()));
    let connection = connect(&address, &Identity::generate(), Role::Developer).await.expect("a connection");
    let (arrivals_in, arrivals) = mpsc::channel(STREAMS * 2);
    for _ in 0..STREAMS {
        let (connection, arrivals) = (connection.clone(), arrivals_in.clone());
        tokio::spawn(async move {
            let (mut send, recv) = connection.open_bi().await.expect("a stream");
            send.write_all(&[1]).await.expect("sent");
            let mut reader = FrameReader::new(recv, REPLY_FRAME_BYTES_MAX);
            while let Ok(Some(Reply::Delta { first, .. })) = reader.next().await {
                let _ = arrivals.send((first as usize, Instant::now())).await;
            }
        });
    }
    drop(arrivals_in);
    let figures = collect(arrivals, &sent).await;
    server.await.expect("it ran");
    figures
}

async fn send_direct(endpoint: quinn::Endpoint, tokens: usize, sent: Sent) {
    let connection = endpoint.accept().await.expect("a peer").await.expect("a handshake");
    let mut writers = Vec::new();
    for _ in 0..STREAMS {
        let (send, _) = connection.accept_bi().await.expect("a stream");
        writers.push(FrameWriter::new(send, REPLY_FRAME_BYTES_MAX));
    }
    let mut clock = tokio::time::interval(TICK);
    for index in 0..tokens {
        clock.tick().await;
        sent.lock().await.push(Instant::now());
        for writer in &mut writers {
            let delta = Reply::Delta {
                first: index as u32,
                tokens: vec![28],
                text: "a".to_owned(),
                logprobs: Vec::new(),
                calls: Vec::new(),
            };
            writer.send(&delta).await.expect("sent");
        }
    }
    for writer in &mut writers {
        let _ = writer.get_mut().finish();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
}
