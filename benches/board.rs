//! Decisions of the scheduler: a fleet of thousands, a million cached blocks, and requests that find most of their prompt
//! somewhere. What is timed is everything between a request and its placement: queue, prefix index, cost, reservation.
//!
//! Prints placements a second on one core and the distribution of a placement's time; and how long it takes to decide which models
//! a fleet should have loaded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cuckoo_scheduler::{
    BlockName, Board, Computes, Ended, LinkId, Need, Placement, ReplicaKey, Residency, Steps, Tenant, Ticket, Whom,
    mixed,
};
use cuckoo_wire::message::{
    Capacity, KvFormat, Loadable, Numerics, Offer, Price, ReplicaId, ServiceClass, Task, WeightsHash, Window,
};

const WEIGHTS: WeightsHash = WeightsHash([7; 32]);
const SEQUENCES: u64 = 16;
const BLOCKS: u64 = 8_192;
/// Blocks of a prompt that everybody who asks the same way shares, and of what is its own.
const SHARED_BLOCKS: usize = 64;
const OWN_BLOCKS: usize = 4;

struct Size {
    replicas: u64,
    /// Blocks in the caches of all replicas.
    blocks: usize,
    placements: u64,
}

fn key(link: u64) -> ReplicaKey {
    ReplicaKey { link: LinkId(link), replica: ReplicaId(1) }
}

fn offer(price: u64) -> Offer {
    Offer {
        replica: ReplicaId(1),
        weights: WEIGHTS,
        context_tokens: 8_192,
        block_tokens: 16,
        ask: Price { input_per_mtok: price, output_per_mtok: price },
        window: Window { sequences: SEQUENCES, blocks: BLOCKS },
        task: Task::Generate,
        adapters: Vec::new(),
        device: 0,
        numerics: Numerics::exact(1, KvFormat::F16),
    }
}

/// The beginning that requests of a kind share.
fn beginning(kind: u64) -> impl Iterator<Item = BlockName> {
    (0..SHARED_BLOCKS as u64).map(move |block| mixed(kind << 20 | block))
}

fn need(number: u64, kinds: u64) -> Need {
    let own = (0..OWN_BLOCKS as u64).map(|block| mixed(number << 20 | 1 << 60 | block));
    let chain: Arc<[BlockName]> = beginning(mixed(number) % kinds).chain(own).collect();
    Need {
        model: Computes { weights: WEIGHTS, adapter: None },
        task: Task::Generate,
        tokens: chain.len() as u32 * 16 + 5,
        max_new: 256,
        limit: Price { input_per_mtok: 1_000, output_per_mtok: 1_000 },
        tenant: Tenant(mixed(number ^ 5) % 200),
        class: ServiceClass::Standard,
        has_begun: false,
        chain,
        whom: Whom::Any,
        numerics: None,
    }
}

/// A fleet of unequal replicas whose caches are full of beginnings.
fn fleet(size: &Size) -> (Board, u64) {
    let mut board = Board::new(1);
    let kinds = (size.blocks as u64 / SHARED_BLOCKS as u64 / 4).max(1);
    for link in 0..size.replicas {
        board.offer(key(link), offer(100 + mixed(link) % 100), Duration::from_millis(5 + mixed(link ^ 1) % 60));
        for step in 0..20 {
            let rows = 1 + (mixed(link << 8 | step) % 64) as u32;
            let took = Duration::from_micros((5_000 + 200 * u64::from(rows)) * (1 + mixed(link ^ 2) % 4));
            board.stepped(key(link), Steps { steps: 1, rows, took, ..Steps::default() });
        }
    }
    let mut stored = 0;
    for number in 0.. {
        if stored >= size.blocks {
            break;
        }
        // Every beginning is on four replicas.
        let cached: Vec<BlockName> = beginning(number % kinds).collect();
        board.stepped(key(mixed(number ^ 9) % size.replicas), Steps { cached: &cached, ..Steps::default() });
        stored += SHARED_BLOCKS;
    }
    (board, kinds)
}

fn measure(size: &Size) {
    let (mut board, kinds) = fleet(size);
    let at_once = (size.replicas * SEQUENCES / 2).min(size.placements / 2) as usize;
    let mut running: std::collections::VecDeque<Placement> = std::collections::VecDeque::new();
    let mut granted = std::collections::HashMap::<ReplicaKey, Window>::new();
    let (mut times, mut hits, mut considered) = (Vec::new(), 0, 0);
    for number in 0..size.placements {
        let now = Duration::from_millis(number);
        let need = need(number, kinds);
        let began = Instant::now();
        board.submit(Ticket(number), need, now).expect("there is room");
        let placed = board.place(now);
        times.push(began.elapsed());
        for placement in placed {
            hits += u64::from(placement.reasons.candidates[0].cached_tokens > 0);
            considered += placement.reasons.candidates.len();
            running.push_back(placement);
        }
        if running.len() > at_once
            && let Some(ended) = running.pop_front()
        {
            let window = granted.entry(ended.key).or_insert(Window { sequences: SEQUENCES, blocks: BLOCKS });
            window.sequences += 1;
            window.blocks += u64::from(ended.blocks);
            board.answered(ended.key, ended.ticket, now);
            board.ended(ended.key, ended.ticket, Ended { output: 100, is_lost: false }, now);
            board.grant(ended.key, *window);
        }
    }
    times.sort_unstable();
    let (total, at) = (times.iter().sum::<Duration>(), |share: f64| times[(times.len() as f64 * share) as usize]);
    println!(
        "{:>6} replicas, {:>8} blocks: {:>7.0} placements/s, p50 {:>5.1} µs, p99 {:>5.1} µs, p99.9 {:>6.1} µs; \
         {:.1} candidates each, {:.0} % went to a cache",
        size.replicas,
        board.blocks_known(),
        times.len() as f64 / total.as_secs_f64(),
        at(0.5).as_secs_f64() * 1e6,
        at(0.99).as_secs_f64() * 1e6,
        at(0.999).as_secs_f64() * 1e6,
        considered as f64 / times.len() as f64,
        100.0 * hits as f64 / times.len() as f64,
    );
}

/// One decision over a fleet in which every miner could serve eight models and has one or two, and more of all is wanted.
fn residency(devices: u64) {
    const MODELS: u8 = 8;
    const ROUNDS: usize = 5;
    let model = |n: u8| WeightsHash([n; 32]);
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let mut residency = Residency::default();
            for link in 0..devices {
                let loadable = |n: u8| Loadable {
                    weights: model(n),
                    memory_bytes: u64::from(n) << 30,
                    load_ms: 10_000,
                    ask: Price { input_per_mtok: 10, output_per_mtok: 10 },
                };
                let models = (1..=MODELS).map(loadable).collect();
                residency.capacity(LinkId(link), vec![Capacity { device: 0, memory_bytes: 24 << 30, models }]);
                residency.offered(key(link), 0, model(if link % 2 == 0 { 3 } else { 4 }));
            }
            let wanted = (1..=MODELS).map(|n| (model(n), 100.0 * devices as f64)).collect();
            let began = Instant::now();
            let asked = residency.decide(&wanted, &|_| Some(100.0), Duration::ZERO);
            let took = began.elapsed();
            assert!(!asked.is_empty(), "more is wanted than there is");
            took
        })
        .collect();
    times.sort_unstable();
    println!(
        "{devices} devices that could serve {MODELS} models: a decision takes {:?} (median of {ROUNDS})",
        times[ROUNDS / 2]
    );
}

fn main() {
    let is_test = std::env::args().any(|arg| arg == "--test");
    let sizes: &[Size] = match is_test {
        true => &[Size { replicas: 20, blocks: 2_000, placements: 200 }],
        false => &[
            Size { replicas: 10, blocks: 10_000, placements: 200_000 },
            Size { replicas: 1_000, blocks: 100_000, placements: 200_000 },
            Size { replicas: 10_000, blocks: 1_000_000, placements: 400_000 },
        ],
    };
    sizes.iter().for_each(measure);
    residency(if is_test { 20 } else { 10_000 });
}
