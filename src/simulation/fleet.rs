//! Miners: the real [`Batch`], with its KV cache, around a step that only takes time.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use cuckoo_kernels::KvKind;
use cuckoo_runtime::{Batch, BatchLimits, Draw, StepOutput, StepPlan};
use cuckoo_wire::limits::BLOCK_TOKENS;
use cuckoo_wire::message::{
    Assign, Numerics, Offer, Price, ReplicaId, SequenceId, StepItem, Task, WeightsHash, Window,
};

use super::chance::Chance;

/// The one model of a simulation.
pub(super) const WEIGHTS: WeightsHash = WeightsHash([7; 32]);
/// Nano-credits for a million tokens that a miner asks about.
const ASK: f64 = 10e9;
/// Rows of a step at most.
const STEP_ROWS_MAX: u32 = 512;

/// What a miner is like. Steps take `base + row · rows + context · thousands of tokens` milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hardware {
    /// Which kind, for people.
    pub name: &'static str,
    base_ms: f64,
    row_ms: f64,
    context_ms: f64,
    sequences: u32,
    blocks: u32,
    /// What it asks, as a share of the usual.
    ask: f64,
}

/// An 8-bit model of eight thousand million weights on what people have: bandwidth and arithmetic of each card's data sheet
/// at half of what it says, and KV memory after the weights.
pub const HARDWARE: [Hardware; 4] = [
    Hardware {
        name: "datacentre",
        base_ms: 7.0,
        row_ms: 0.04,
        context_ms: 0.06,
        sequences: 64,
        blocks: 12_000,
        ask: 1.2,
    },
    Hardware { name: "high end", base_ms: 17.0, row_ms: 0.12, context_ms: 0.2, sequences: 32, blocks: 3_500, ask: 1.0 },
    Hardware { name: "middle", base_ms: 34.0, row_ms: 0.35, context_ms: 0.4, sequences: 16, blocks: 1_500, ask: 0.8 },
    Hardware { name: "low end", base_ms: 55.0, row_ms: 0.9, context_ms: 0.7, sequences: 8, blocks: 900, ask: 0.6 },
];

impl Hardware {
    fn step_ms(&self, rows: usize, context: u64) -> f64 {
        self.base_ms + self.row_ms * rows as f64 + self.context_ms * context as f64 / 1e3
    }

    /// Sequences that it runs at once.
    pub fn sequences(&self) -> u32 {
        self.sequences
    }

    /// KV blocks that it has.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// What it decodes with a full batch, in tokens a second.
    pub fn tokens_per_second(&self) -> f64 {
        f64::from(self.sequences) * 1e3 / self.step_ms(self.sequences as usize, u64::from(self.blocks) * 8)
    }

    /// What it asks, as a share of the usual.
    pub fn price(&self) -> f64 {
        self.ask
    }

    fn limits(&self) -> BatchLimits {
        BatchLimits {
            sequences_max: self.sequences,
            step_tokens_max: STEP_ROWS_MAX,
            step_target: Duration::from_secs_f64((self.base_ms * 3.0).max(60.0) / 1e3),
            drafts_max: 0,
            kv_blocks: self.blocks,
            kv_kind: KvKind::F16,
            spill_bytes: 0,
            context_tokens: 131_072,
        }
    }
}

/// A step that is computed.
#[derive(Debug)]
struct Computing {
    plan: StepPlan,
    took: Duration,
}

/// What a miner says after a step.
#[derive(Debug)]
pub(super) struct Frame {
    /// News of sequences.
    pub(super) items: Vec<StepItem>,
    /// What it accepts.
    pub(super) window: Window,
    /// Rows of the step.
    pub(super) rows: u32,
    /// How long it took.
    pub(super) took: Duration,
    /// Blocks in use.
    pub(super) blocks_used: u64,
    /// Names that came into its cache.
    pub(super) cached: Vec<u64>,
    /// Names that left it.
    pub(super) evicted: Vec<u64>,
}

/// One miner.
#[derive(Debug)]
pub(super) struct SimMiner {
    /// What it is.
    pub(super) hardware: Hardware,
    /// How it computes.
    pub(super) numerics: Numerics,
    /// One way to it, in microseconds.
    pub(super) latency_us: u64,
    /// Its connection, which is a new one after each loss.
    pub(super) link: u64,
    /// Whether it runs.
    pub(super) is_up: bool,
    /// Until when it does nothing.
    pub(super) frozen_until_us: u64,
    /// How long it has computed, in microseconds.
    pub(super) busy_us: u64,
    batch: Batch,
    computing: Option<Computing>,
    /// What came before its window allowed it, where nobody minds windows.
    pub(super) waiting: VecDeque<(usize, Assign)>,
    /// Until when nothing that it sends arrives.
    pub(super) cut_off_until_us: u64,
    /// When the last that it sent arrives.
    pub(super) heard_us: u64,
    taken: Window,
    /// Which request a sequence is.
    requests: HashMap<SequenceId, usize>,
    /// Of finished batches: tokens looked up, and found.
    looked_up: (u64, u64),
}

impl SimMiner {
    pub(super) fn new(hardware: Hardware, numerics: Numerics, latency_us: u64, link: u64) -> Self {
        Self {
            hardware,
            numerics,
            latency_us,
            link,
            is_up: true,
            frozen_until_us: 0,
            busy_us: 0,
            batch: Batch::new(hardware.limits(), WEIGHTS),
            computing: None,
            waiting: VecDeque::new(),
            cut_off_until_us: 0,
            heard_us: 0,
            taken: Window::default(),
            requests: HashMap::new(),
            looked_up: (0, 0),
        }
    }

    /// What it offers on a new connection.
    pub(super) fn offer(&self) -> Offer {
        Offer {
            replica: ReplicaId(1),
            weights: WEIGHTS,
            context_tokens: 131_072,
            block_tokens: BLOCK_TOKENS as u32,
            ask: self.ask(),
            window: self.batch.window(),
            task: Task::Generate,
            adapters: Vec::new(),
            device: 0,
            numerics: self.numerics,
        }
    }

    /// What it asks.
    pub(super) fn ask(&self) -> Price {
        let ask = (ASK * self.hardware.ask) as u64;
        Price { input_per_mtok: ask / 4, output_per_mtok: ask }
    }

    /// Forgets everything: it is a new process, or on a new connection.
    pub(super) fn reset(&mut self, link: u64) {
        let (looked_up, hit) = self.looked_up();
        *self = Self {
            busy_us: self.busy_us,
            looked_up: (looked_up, hit),
            frozen_until_us: self.frozen_until_us,
            ..Self::new(self.hardware, self.numerics, self.latency_us, link)
        };
    }

    /// Tokens of prompts that were looked for in its cache, and that were there.
    pub(super) fn looked_up(&self) -> (u64, u64) {
        let stats = self.batch.stats();
        (self.looked_up.0 + stats.prefix_lookup_tokens, self.looked_up.1 + stats.prefix_hit_tokens)
    }

    /// A sequence reaches it. False if its window does not allow that.
    pub(super) fn assign(&mut self, request: usize, assign: Assign) -> bool {
        let window = self.batch.window();
        let fits =
            self.taken.sequences < window.sequences && self.taken.blocks + u64::from(assign.blocks) <= window.blocks;
        if fits {
            self.taken.sequences += 1;
            self.taken.blocks += u64::from(assign.blocks);
            self.requests.insert(assign.sequence, request);
            self.batch.assign(assign);
        }
        fits
    }

    /// Lets the next in that waits here, if the window allows it.
    pub(super) fn admit(&mut self) -> Option<usize> {
        let (request, assign) = self.waiting.pop_front()?;
        if self.assign(request, assign.clone()) {
            return Some(request);
        }
        self.waiting.push_front((request, assign));
        None
    }

    /// A sequence is not wanted any more.
    pub(super) fn cancel(&mut self, sequence: SequenceId) {
        self.waiting.retain(|(_, assign)| assign.sequence != sequence);
        self.batch.cancel(sequence);
    }

    /// Begins a step if it can; when it will be done, in microseconds from now.
    pub(super) fn launch(&mut self, chance: &mut Chance) -> Option<u64> {
        if self.computing.is_some() || !self.is_up {
            return None;
        }
        let plan = self.batch.plan()?;
        let context = u64::from(self.batch.blocks_used()) * BLOCK_TOKENS as u64;
        let took_ms = self.hardware.step_ms(plan.tokens.len(), context) * chance.between(0.95, 1.08);
        let took = Duration::from_secs_f64(took_ms / 1e3);
        self.computing = Some(Computing { plan, took });
        self.busy_us += took.as_micros() as u64;
        Some(took.as_micros() as u64)
    }

    /// Its step is done; `token` says what a request's next one is, at a place of its prompt and answer together.
    pub(super) fn land(&mut self, token: impl Fn(usize, u64) -> u32) -> Option<Frame> {
        let Computing { plan, took } = self.computing.take()?;
        // What is drawn for those that were cancelled meanwhile is nobody's.
        let draw = |draw: &Draw| self.requests.get(&draw.sequence).map_or(0, |request| token(*request, draw.position));
        let drawn: Vec<u32> = plan.draws.iter().map(draw).collect();
        let rows = plan.tokens.len() as u32;
        self.batch.apply(plan, StepOutput::of(&drawn), took);
        Some(self.frame(rows, took))
    }

    /// What there is to say without a step, if anything.
    pub(super) fn news(&mut self) -> Option<Frame> {
        let frame = self.frame(0, Duration::ZERO);
        (!frame.items.is_empty()).then_some(frame)
    }

    fn frame(&mut self, rows: u32, took: Duration) -> Frame {
        let items = self.batch.take_news();
        for item in items.iter().filter(|item| item.end.is_some()) {
            self.requests.remove(&item.sequence);
        }
        let (cached, evicted) = self.batch.take_block_news();
        let blocks_used = u64::from(self.batch.blocks_used());
        Frame { items, window: self.batch.window(), rows, took, blocks_used, cached, evicted }
    }
}

#[cfg(test)]
mod tests {
    use cuckoo_wire::message::KvFormat;

    use super::*;

    #[test]
    fn what_is_not_wanted_any_more_is_not_computed_for_nobody() {
        let mut miner = SimMiner::new(HARDWARE[0], Numerics::exact(1, KvFormat::F16), 0, 0);
        for request in 0..3 {
            let sequence = SequenceId(request as u64);
            miner.waiting.push_back((request, Assign::new(ReplicaId(1), sequence, vec![1; 8], 4, 16)));
        }
        miner.cancel(SequenceId(1));
        assert_eq!(std::iter::from_fn(|| miner.admit()).collect::<Vec<_>>(), [0, 2]);
    }
}
