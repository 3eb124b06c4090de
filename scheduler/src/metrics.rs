//! What the scheduler counts, in the OpenMetrics text format. Names follow vLLM's where there is one.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use cuckoo_wire::PeerId;
use cuckoo_wire::message::{Reply, Step, Usage};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MinerLabel {
    miner: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabel {
    why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartyLabel {
    party: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// All of the scheduler's metrics, with the registry that prints them.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<OutcomeLabel, Counter>,
    pub(crate) waiting: Gauge,
    pub(crate) replicas: Gauge,
    running: Gauge,
    tokens: Family<KindLabel, Counter>,
    /// Of `tokens`, those of outputs.
    generated: Counter,
    first_token: Histogram,
    batch: Family<MinerLabel, Histogram>,
    kv_blocks: Family<MinerLabel, Gauge>,
    settled: Family<PartyLabel, Counter<u64, AtomicU64>>,
    moves: Family<WhyLabel, Counter>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("cuckoo");
        let tokens: Family<KindLabel, Counter> = Family::default();
        let generated = tokens.get_or_create(&KindLabel { kind: "generation" }).clone();
        let metrics = Self {
            requests: Family::default(),
            waiting: Gauge::default(),
            replicas: Gauge::default(),
            running: Gauge::default(),
            generated,
            tokens,
            first_token: Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
            batch: Family::new_with_constructor(|| {
                Histogram::new([0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0])
            }),
            kv_blocks: Family::default(),
            settled: Family::default(),
            moves: Family::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register("requests", "Requests that ended, by outcome", metrics.requests.clone());
        r.register("num_requests_running", "Requests that are paid for and not ended", metrics.running.clone());
        r.register("num_requests_waiting", "Requests that wait for a replica", metrics.waiting.clone());
        r.register("replicas", "Replicas that miners offer", metrics.replicas.clone());
        r.register("tokens", "Tokens billed, by kind", metrics.tokens.clone());
        r.register("time_to_first_token_seconds", "From the request to its first token", metrics.first_token.clone());
        r.register("replica_batch_size", "Sequences in a miner's batch, a sample a step", metrics.batch.clone());
        r.register("replica_kv_blocks_used", "KV blocks in use on a miner", metrics.kv_blocks.clone());
        r.register("settled_nanocredits", "Money settled, by who paid or got it", metrics.settled.clone());
        r.register("moves", "Requests that another miner went on with, by why", metrics.moves.clone());
        Self { registry, ..metrics }
    }

    /// Counts a request as running until the guard goes.
    pub(crate) fn running(&self) -> RunningGuard {
        self.running.inc();
        RunningGuard(self.running.clone())
    }

    /// Requests that are paid for and not ended.
    pub(crate) fn requests_running(&self) -> i64 {
        self.running.get()
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    pub(crate) fn tokens(&self, count: usize) {
        self.generated.inc_by(count as u64);
    }

    /// Another miner goes on with a request.
    pub(crate) fn moved(&self, why: &str) {
        self.moves.get_or_create(&WhyLabel { why: why.to_owned() }).inc();
    }

    /// A request ended with this last reply, or with nobody to read one.
    pub(crate) fn ended(&self, last: Option<&Reply>) {
        let outcome = match last {
            Some(Reply::Refused(refusal)) => format!("{:?}", refusal.code),
            Some(_) => "Finished".to_owned(),
            None => "Cancelled".to_owned(),
        };
        self.requests.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn settled(&self, usage: &Usage) {
        self.tokens.get_or_create(&KindLabel { kind: "prompt" }).inc_by(u64::from(usage.prompt_tokens));
        let parties =
            [("developer", usage.cost), ("miner", usage.miner), ("author", usage.author), ("network", usage.network)];
        for (party, amount) in parties {
            self.settled.get_or_create(&PartyLabel { party }).inc_by(amount);
        }
    }

    /// A miner finished a step.
    pub(crate) fn step(&self, miner: &PeerId, step: &Step) {
        let label = MinerLabel { miner: miner.short() };
        if !step.items.is_empty() {
            self.batch.get_or_create(&label).observe(f64::from(step.batch));
        }
        self.kv_blocks.get_or_create(&label).set(step.blocks_used as i64);
    }

    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// See [`Metrics::running`].
pub(crate) struct RunningGuard(Gauge);

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
