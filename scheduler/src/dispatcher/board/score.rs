//! What it costs to place a request on a replica, in milliseconds, and what its developer will see.

use std::cmp::Ordering;
use std::time::Duration;

use cuckoo_wire::message::{Price, ServiceClass, Terms};

use super::Need;
use super::fleet::Replica;

/// What a class asks for, and what it gives for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The first token, in milliseconds.
    pub ttft_ms: f64,
    /// Between tokens, in milliseconds.
    pub itl_ms: f64,
    /// How long it waits for a replica that could take it.
    pub patience: Duration,
    /// What twice the lowest price is worth, in milliseconds of the whole answer.
    double_price_ms: f64,
}

/// Finding out that a miner is gone takes so long.
const DETECTION_MS: f64 = 300.0;

/// What is aimed at for requests of a class: no promise, but the line between in time and late.
pub fn objective(class: ServiceClass) -> Objective {
    let (ttft_ms, itl_ms, patience_s, double_price_ms) = match class {
        ServiceClass::Interactive => (1_000.0, 80.0, 30, 500.0),
        ServiceClass::Standard => (2_000.0, 100.0, 120, 5_000.0),
        ServiceClass::Batch => (30_000.0, 500.0, 600, 60_000.0),
    };
    Objective { ttft_ms, itl_ms, patience: Duration::from_secs(patience_s), double_price_ms }
}

/// What is known of a request beside its need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// Tokens of output that are expected.
    pub(super) output: f64,
    /// The least that anybody asks for it.
    pub(super) lowest_cost: f64,
}

/// What a placement would be like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Foreseen {
    pub(super) terms: Terms,
    /// The first token, in milliseconds, in the middle of what may be.
    pub(super) ttft_ms: f64,
    pub(super) ttft_p95_ms: f64,
    pub(super) itl_ms: f64,
    pub(super) meets: bool,
}

impl Foreseen {
    /// Which is better, the smaller one: whether it misses what the class aims at, then what it costs.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        other.meets.cmp(&self.meets).then_with(|| self.terms.total().total_cmp(&other.terms.total()))
    }

    /// The same, after so many milliseconds of waiting for room.
    pub(super) fn wait(&mut self, ms: f64, class: ServiceClass) {
        self.terms.queue += ms as f32;
        self.ttft_ms += ms;
        self.ttft_p95_ms += ms;
        self.meets &= self.ttft_p95_ms <= objective(class).ttft_ms;
    }
}

/// A request on a replica that has `cached` tokens of it.
pub(super) fn foresee(replica: &Replica, need: &Need, cached: u32, outlook: &Outlook) -> Foreseen {
    let uncached = f64::from(need.tokens.saturating_sub(cached).max(1));
    let running = replica.running.len() as u32;
    let prefill_ms = replica.time.prefill_ms();
    // Steps have rows of others' prompts too, as many as of late.
    let rows = running + 1 + replica.prompt_rows.value() as u32;
    let itl_ms = replica.time.step_ms(rows, replica.context + u64::from(need.tokens));
    let (queue, prefill) = (replica.prefilling as f64 * prefill_ms, uncached * prefill_ms);
    // Everybody there waits while the prompt is computed, and a row longer for each token.
    let slower = uncached * replica.time.row_ms() + outlook.output * replica.time.row_ms();
    let cost = cost_at(need, outlook.output, &replica.ask());
    let objective = objective(need.class);
    let ttft_ms = replica.network_ms + queue + prefill + itl_ms;
    let ttft_p95_ms = ttft_ms * replica.late.value();
    let above = if outlook.lowest_cost > 0.0 { (cost / outlook.lowest_cost - 1.0).max(0.0) } else { 0.0 };
    let terms = Terms {
        network: replica.network_ms as f32,
        queue: queue as f32,
        prefill: prefill as f32,
        decode: (outlook.output * itl_ms) as f32,
        crowding: (f64::from(running) * slower) as f32,
        price: (above * objective.double_price_ms) as f32,
        risk: (replica.losses.value() * (DETECTION_MS + f64::from(need.tokens) * prefill_ms)) as f32,
    };
    let meets = ttft_p95_ms <= objective.ttft_ms && itl_ms <= objective.itl_ms;
    Foreseen { terms, ttft_ms, ttft_p95_ms, itl_ms, meets }
}

/// What a request is expected to cost at a price, in nano-credits.
pub(super) fn cost_at(need: &Need, output: f64, ask: &Price) -> f64 {
    (f64::from(need.tokens) * ask.input_per_mtok as f64 + output * ask.output_per_mtok as f64) / 1e6
}
