//! What masks cost: sixteen sequences that decode together on the real model, with a JSON schema and without.
//!
//! Rounds are interleaved and medians printed, so that a busy machine disturbs both alike. Trust the ratio.

mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cuckoo_kernels::Cpu;
use cuckoo_kernels::KvKind;
use cuckoo_kernels::ops::KV_BLOCK_TOKENS;
use cuckoo_models::{Constrainer, Grammar, ModelFiles};
use cuckoo_runtime::{Batch, BatchLimits, Engine, MaskWorkers, SharedMatcher};
use cuckoo_wire::message::{Assign, Constraint, ReplicaId, SequenceId, WeightsHash};

use support::{argument, is_test, quantile};

const SEQUENCES: u32 = 16;
const PROMPT_TOKENS: u32 = 32;
const WEIGHTS: WeightsHash = WeightsHash([0; 32]);
/// Long enough that no output is complete before the clock stops.
const SCHEMA: &str = r#"{"type": "array", "minItems": 100, "items": {"type": "object", "properties": {
    "name": {"type": "string", "minLength": 1, "maxLength": 40}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5},
    "email": {"type": "string", "pattern": "^[a-z]{1,12}@[a-z]{1,12}\\.org$"}, "note": {"type": "string", "maxLength": 200}},
    "required": ["name", "age", "tags", "email", "note"], "additionalProperties": false}}"#;

struct Bench {
    engine: Engine<Cpu>,
    limits: BatchLimits,
    constrainer: Constrainer,
    workers: MaskWorkers,
    tokens: u32,
}

fn assign(id: u32, tokens: u32, constraint: Option<Constraint>) -> Assign {
    // Ordinary words, different for each sequence.
    let prompt = (0..PROMPT_TOKENS).map(|i| 1_000 + (i * 37 + id * 101) % 20_000).collect();
    let sequence = SequenceId(u64::from(id));
    Assign {
        seed: u64::from(id),
        credit: u32::MAX,
        constraint,
        ..Assign::new(ReplicaId(0), sequence, prompt, tokens, KV_BLOCK_TOKENS as u32)
    }
}

impl Bench {
    /// Tokens per second of all sequences together, once their prompts are computed.
    fn decode(&mut self, constrained: bool) -> f64 {
        let mut batch = Batch::new(self.limits, WEIGHTS);
        let mut matchers: HashMap<SequenceId, SharedMatcher> = HashMap::new();
        for id in 0..SEQUENCES {
            let constraint = constrained.then(|| Constraint::JsonSchema(SCHEMA.to_owned()));
            batch.assign(assign(id, self.tokens + 1, constraint));
            if constrained {
                let matcher = self.constrainer.compile(&Grammar::JsonSchema(SCHEMA.to_owned())).expect("it compiles");
                matchers.insert(SequenceId(u64::from(id)), Arc::new(Mutex::new(matcher)));
                batch.constraint_is_ready(SequenceId(u64::from(id)));
            }
        }
        let (mut began, mut drawn) = (Instant::now(), 0);
        while let Some(plan) = batch.plan() {
            if plan.draws.len() < SEQUENCES as usize {
                began = Instant::now();
                drawn = 0;
            }
            let mask = |d: &cuckoo_runtime::Draw| {
                let untold = d.untold.clone()?;
                Some(self.workers.mask(&matchers[&d.sequence], untold))
            };
            let masks: Vec<_> = plan.draws.iter().map(mask).collect();
            let output = self.engine.step_masked(&plan, &masks).expect("the device works");
            assert!(masks.iter().flatten().all(|m| m.failure().is_none()), "every mask is there");
            assert_eq!(masks.iter().flatten().count(), if constrained { output.drawn.len() } else { 0 });
            drawn += output.drawn.len();
            batch.apply(plan, output, Duration::ZERO);
        }
        drawn as f64 / began.elapsed().as_secs_f64()
    }
}

fn main() {
    let weights = support::weights();
    let files = ModelFiles::open(&weights.path).expect("the model can be read");
    let spec = files.spec().expect("its architecture is known");
    let limits = BatchLimits {
        sequences_max: SEQUENCES,
        step_tokens_max: SEQUENCES * PROMPT_TOKENS,
        step_target: Duration::MAX,
        drafts_max: 0,
        kv_blocks: 1_024,
        kv_kind: KvKind::F16,
        spill_bytes: 0,
        context_tokens: 2_048,
    };
    let threads = argument("--threads").unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let engine = Engine::new(Cpu::new(threads), &files, &spec, limits).expect("the model loads");
    let tokenizer = files.tokenizer().expect("it has a vocabulary");
    let constrainer = Constrainer::new(&tokenizer).expect("its outputs can be constrained");
    let workers = MaskWorkers::start(threads.div_ceil(8)).expect("there is a thread");
    let (tokens, rounds) = if is_test() { (4, 1) } else { (96, 9) };
    let mut bench = Bench { engine, limits, constrainer, workers, tokens };
    // The first round of each fills caches.
    bench.decode(false);
    bench.decode(true);
    let (mut free, mut masked, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        free.push(bench.decode(false));
        masked.push(bench.decode(true));
        ratios.push(masked[masked.len() - 1] / free[free.len() - 1]);
    }
    let median = |values: &mut [f64]| quantile(values, 0.5);
    println!("{SEQUENCES} sequences, {threads} threads, {tokens} tokens each");
    println!("without masks {:8.1} tokens/s", median(&mut free));
    println!("with masks    {:8.1} tokens/s", median(&mut masked));
    println!("ratio         {:8.3}", median(&mut ratios));
}
