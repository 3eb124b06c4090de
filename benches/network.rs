//! The relay: what a scheduler adds to a token on its way from miner to developer, beside bare quinn in the same run; and
//! what many streams take.
//!
//! A miner that computes nothing sends one step frame a tick; a real scheduler, a process of its own, splits it,
//! detokenizes, writes it down, meters and sends each developer its token. Miner and developers are this process; the bare
//! row has the same ends without the scheduler. Rows are interleaved; medians and ratios are printed. `--streams N` and
//! `--tick-ms N` make another batch of it.

mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cuckoo::{Address, Client, Identity, Request};
use cuckoo_wire::limits::{ASSIGN_FRAME_BYTES_MAX, MINER_BEAT, MINER_FRAME_BYTES_MAX, REPLY_FRAME_BYTES_MAX};
use cuckoo_wire::message::{
    Assign, Beat, End, Hello, KvFormat, Numerics, Offer, Price, ReplicaFrame, ReplicaId, Reply, SequenceId, Step,
    StepItem, Task, ToMiner, WeightsHash, Window,
};
use cuckoo_wire::{Admission, FrameReader, FrameWriter, PeerId, Role, connect, listen};
use serde_json::Value;
use tokio::sync::{Mutex, mpsc};

const MODEL: &str = "smollm2-135m-instruct";

/// How much is relayed at a time.
#[derive(Clone, Copy)]
struct Load {
    /// Miners, each with a connection of its own, and as many developers.
    miners: usize,
    /// Streams of each.
    streams: usize,
    tick: Duration,
    /// Tokens of a stream.
    tokens: usize,
}

/// A batch as a miner has it.
const BATCH: Load = Load { miners: 1, streams: 64, tick: Duration::from_millis(20), tokens: 250 };
/// As many streams as there should be room for.
const CROWD: Load = Load { miners: 2, streams: 1_000, tick: Duration::from_millis(200), tokens: 50 };

/// One run's figures.
#[derive(Default)]
struct Figures {
    latencies_us: Vec<f64>,
    /// Of all processes together, and of the scheduler's alone.
    cpu_us_a_token: (f64, f64),
    tokens: usize,
    /// Most that the scheduler ever had, in MiB.
    memory_mib: f64,
}

/// When the miners sent the token with this index; one tick for all streams.
type Sent = Arc<Mutex<Vec<Instant>>>;

fn main() {
    let of = |load: Load| if support::is_test() { Load { tokens: 5, streams: 64, ..load } } else { load };
    let batch = of(BATCH);
    let streams = support::argument("--streams").unwrap_or(batch.streams);
    let tick = support::argument("--tick-ms").map_or(batch.tick, |ms| Duration::from_millis(ms as u64));
    let batch = Load { streams, tick, ..batch };
    let rounds = if support::is_test() { 1 } else { 3 };
    let hash = WeightsHash(support::weights().hash.0);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let (mut relayed, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        // Spawned: the thread that blocks here is no worker.
        relayed.push(runtime.block_on(async { tokio::spawn(relay(batch, hash)).await }).expect("it ran"));
        bare.push(runtime.block_on(async { tokio::spawn(direct(batch)).await }).expect("it ran"));
    }
    let Load { streams, tick, tokens, .. } = batch;
    println!("{streams} streams, a token each every {tick:?}, {rounds} interleaved rounds of {tokens} tokens a stream");
    let a = row("through the scheduler", &relayed);
    let b = row("bare quinn", &bare);
    println!("  added: p50 {:+.0} us, p99 {:+.0} us; CPU {:.2} x", a.0 - b.0, a.1 - b.1, a.2 / b.2);
    let crowd = runtime.block_on(async { tokio::spawn(relay(of(CROWD), hash)).await }).expect("it ran");
    let Load { miners, streams, tick, .. } = of(CROWD);
    println!(
        "{} streams, a token each every {tick:?}: the scheduler had {:.0} MiB",
        miners * streams,
        crowd.memory_mib
    );
    row("through the scheduler", &[crowd]);
}

fn row(name: &str, runs: &[Figures]) -> (f64, f64, f64) {
    let median = |f: &dyn Fn(&Figures) -> f64| support::quantile(&mut runs.iter().map(f).collect::<Vec<_>>(), 0.5);
    let p = |q: f64| median(&|r: &Figures| support::quantile(&mut r.latencies_us.clone(), q));
    let (p50, p99) = (p(0.5), p(0.99));
    let (all, own) = (median(&|r: &Figures| r.cpu_us_a_token.0), median(&|r: &Figures| r.cpu_us_a_token.1));
    let tokens: usize = runs.iter().map(|r| r.tokens).sum();
    println!(
        "  {name:<22} p50 {p50:>6.0} us  p99 {p99:>6.0} us  CPU {all:>6.2} us a token, {own:>6.2} of them the scheduler's  \
         ({tokens} tokens)"
    );
    (p50, p99, all)
}

/// Processor time of a process, in microseconds.
fn cpu_us(process: &str) -> f64 {
    // schedstat covers one thread; the tasks together are the process.
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let ns: f64 = tasks
        .filter_map(|t| std::fs::read_to_string(t.path().join("schedstat")).ok())
        .filter_map(|s| s.split_whitespace().next()?.parse::<f64>().ok())
        .sum();
    assert!(ns > 0.0, "the kernel accounts for threads");
    ns / 1e3
}

/// A scheduler as people run it; killed when dropped.
struct Scheduler {
    child: Child,
    address: Address,
    key: String,
    _home: tempfile::TempDir,
}

impl Scheduler {
    fn start() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let mut child = Command::new(env!("CARGO_BIN_EXE_cuckoo"))
            .args(["schedule", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json", "--home"])
            .arg(home.path())
            .arg("--models-dir")
            .arg(support::shelf())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut ready = String::new();
        let mut said = BufReader::new(child.stdout.take().expect("it is piped"));
        said.read_line(&mut ready).expect("it says that it is ready");
        let ready: Value = serde_json::from_str(&ready).expect("JSON");
        let text = |name: &str| ready[name].as_str().expect("a text");
        Self { address: text("join").parse().expect("an address"), key: text("api_key").to_owned(), child, _home: home }
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// The most that it ever had, in MiB.
    fn memory_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says so");
        most.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn relay(load: Load, weights: WeightsHash) -> Figures {
    let scheduler = Scheduler::start();
    let sent = Sent::default();
    let (ready_in, mut ready) = mpsc::channel(load.miners);
    let go = Arc::new(tokio::sync::Barrier::new(load.miners));
    let mut miners = Vec::new();
    for miner in 0..load.miners {
        // One of them keeps the time.
        let sent = (miner == 0).then(|| sent.clone());
        let to = scheduler.address.clone();
        miners.push(tokio::spawn(mine(to, weights, load, (ready_in.clone(), go.clone()), sent)));
    }
    for _ in 0..load.miners {
        ready.recv().await.expect("it offers");
    }
    let (arrivals_in, arrivals) = mpsc::channel(load.streams * 2);
    for _ in 0..load.miners {
        let client = Client::connect(&scheduler.address, &Identity::generate()).await.expect("a connection");
        for _ in 0..load.streams {
            let mut request = Request::completion(scheduler.key.clone(), MODEL, "a").max_tokens(load.tokens as u32);
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
                assert_eq!(generation.resumed(), 0, "nothing broke");
            });
        }
    }
    drop(arrivals_in);
    let mut figures = collect(arrivals, &sent, Some(scheduler.pid())).await;
    for miner in miners {
        miner.await.expect("the miner ran");
    }
    figures.memory_mib = scheduler.memory_mib();
    figures
}

/// Matches arrivals with departures.
async fn collect(mut arrivals: mpsc::Receiver<(usize, Instant)>, sent: &Sent, scheduler: Option<String>) -> Figures {
    let mut figures = Figures::default();
    let now = || (cpu_us("self"), scheduler.as_ref().map_or(0.0, |pid| cpu_us(pid)));
    let mut cpu = None;
    while let Some((index, at)) = arrivals.recv().await {
        cpu.get_or_insert_with(now);
        // The first tokens pay for what only happens once; and a miner may be a moment ahead of the one that keeps the time.
        let departed = sent.lock().await.get(index).copied().filter(|_| index > 0);
        if let Some(departed) = departed {
            figures.latencies_us.push(at.duration_since(departed).as_secs_f64() * 1e6);
        }
        figures.tokens += 1;
    }
    let (began, ended, tokens) = (cpu.expect("tokens came"), now(), figures.tokens as f64);
    let scheduler = (ended.1 - began.1) / tokens;
    figures.cpu_us_a_token = ((ended.0 - began.0) / tokens + scheduler, scheduler);
    figures
}

/// A miner that gives every sequence a token each tick, once all miners have all of theirs.
async fn mine(
    to: Address,
    weights: WeightsHash,
    load: Load,
    (ready, go): (mpsc::Sender<()>, Arc<tokio::sync::Barrier>),
    sent: Option<Sent>,
) {
    let Load { streams, tick, tokens, .. } = load;
    let connection = connect(&to, &Identity::generate(), Role::Miner).await.expect("a connection");
    let (send, recv) = connection.open_bi().await.expect("a stream");
    let mut hello = FrameWriter::new(send, MINER_FRAME_BYTES_MAX);
    let mut control = FrameReader::new(recv, ASSIGN_FRAME_BYTES_MAX);
    hello.send(&Hello { name: "bench".to_owned(), program: "bench".to_owned() }).await.expect("sent");
    let mut replica = FrameWriter::new(connection.open_uni().await.expect("a stream"), MINER_FRAME_BYTES_MAX);
    let window = Window { sequences: streams as u64, blocks: 1 << 20 };
    let offer = Offer {
        replica: ReplicaId(1),
        weights,
        context_tokens: 8_192,
        block_tokens: 16,
        ask: Price::default(),
        window,
        task: Task::Generate,
        adapters: Vec::new(),
        device: 0,
        numerics: Numerics::exact(1, KvFormat::F16),
    };
    replica.send(&ReplicaFrame::Offer(offer)).await.expect("sent");
    ready.send(()).await.expect("somebody waits");
    let mut assigned: Vec<Assign> = Vec::new();
    let mut beats = tokio::time::interval(MINER_BEAT);
    while assigned.len() < streams {
        tokio::select! {
            said = control.next() => if let Some(ToMiner::Assign(assign)) = said.expect("a frame") {
                assigned.push(assign);
            },
            // Who says nothing is given nothing.
            _ = beats.tick() => replica.send(&ReplicaFrame::Beat(Beat::default())).await.expect("sent"),
        }
    }
    let mut credits = Credits::of(&assigned, control);
    let go = go.wait();
    tokio::pin!(go);
    loop {
        tokio::select! {
            _ = &mut go => break,
            _ = beats.tick() => replica.send(&ReplicaFrame::Beat(Beat::default())).await.expect("sent"),
        }
    }
    let mut clock = tokio::time::interval(tick);
    for index in 0..tokens {
        clock.tick().await;
        let end = (index + 1 == tokens).then_some(End::Length);
        let item = |a: &Assign| StepItem::new(a.sequence, index as u32, vec![28 + (index % 100) as u32], end.clone());
        let items = assigned.iter().map(item).collect();
        let step = Step { window, batch: streams as u32, blocks_used: 1, items, ..Step::default() };
        if let Some(sent) = &sent {
            sent.lock().await.push(Instant::now());
        }
        // It comes in time at this pace, unless the scheduler stands still for a while: then so does the miner.
        credits.cover(index).await;
        replica.send(&ReplicaFrame::Step(step)).await.expect("sent");
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// How many tokens of each sequence may be sent in all.
struct Credits {
    tokens: HashMap<SequenceId, u32>,
    more: mpsc::Receiver<(SequenceId, u32)>,
}

impl Credits {
    /// Of sequences as they were assigned; read from then on.
    fn of(assigned: &[Assign], mut control: FrameReader<quinn::RecvStream>) -> Self {
        let (more_in, more) = mpsc::channel(assigned.len());
        tokio::spawn(async move {
            while let Ok(Some(ToMiner::Credit { sequence, tokens, .. })) = control.next().await {
                if more_in.send((sequence, tokens)).await.is_err() {
                    break;
                }
            }
        });
        Self { tokens: assigned.iter().map(|a| (a.sequence, a.credit)).collect(), more }
    }

    /// Waits until the token with this index may be sent of all.
    async fn cover(&mut self, index: usize) {
        while let Ok((sequence, tokens)) = self.more.try_recv() {
            self.tokens.insert(sequence, tokens);
        }
        while self.tokens.values().any(|tokens| *tokens as usize <= index) {
            let (sequence, tokens) = self.more.recv().await.expect("the scheduler is there");
            self.tokens.insert(sequence, tokens);
        }
    }
}

struct Anybody;

impl Admission for Anybody {
    fn admits(&self, _: &PeerId, _: Option<Role>) -> bool {
        true
    }
}

/// The same frames, from one end to the other without anything between.
async fn direct(load: Load) -> Figures {
    let identity = Identity::generate();
    let endpoint =
        listen("127.0.0.1:0".parse().expect("an address"), &identity, Arc::new(Anybody)).expect("it listens");
    let address = Address::new(identity.peer_id(), endpoint.local_addr().expect("bound"));
    let sent = Sent::default();
    let server = tokio::spawn(send_direct(endpoint, load, sent.clone()));
    let connection = connect(&address, &Identity::generate(), Role::Developer).await.expect("a connection");
    let (arrivals_in, arrivals) = mpsc::channel(load.streams * 2);
    for _ in 0..load.streams {
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
    let figures = collect(arrivals, &sent, None).await;
    server.await.expect("it ran");
    figures
}

async fn send_direct(endpoint: quinn::Endpoint, load: Load, sent: Sent) {
    let connection = endpoint.accept().await.expect("a peer").await.expect("a handshake");
    let (mut writers, mut kept) = (Vec::new(), Vec::new());
    for _ in 0..load.streams {
        let (send, recv) = connection.accept_bi().await.expect("a stream");
        writers.push(FrameWriter::new(send, REPLY_FRAME_BYTES_MAX));
        // Dropped, it would stop a stream that is there because a later one is, and on which nothing has been sent yet.
        kept.push(recv);
    }
    let mut clock = tokio::time::interval(load.tick);
    for index in 0..load.tokens {
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
