//! Continuous batching on the real model: what a larger batch yields, and what a new prompt costs those who decode.
//!
//! Rounds are interleaved and medians printed, so that a busy machine disturbs all rows alike. Trust the ratios.

mod support;

use std::time::{Duration, Instant};

use cuckoo_kernels::KvKind;
use cuckoo_kernels::ops::KV_BLOCK_TOKENS;
use cuckoo_kernels::{Cpu, Timed};
use cuckoo_models::ModelFiles;
use cuckoo_runtime::{Batch, BatchLimits, Engine};
use cuckoo_wire::message::{Assign, ReplicaId, Sampling, SequenceId, WeightsHash};

const BATCHES: [u32; 5] = [1, 2, 4, 8, 16];
const BUDGETS: [u32; 4] = [32, 64, 128, 256];
const PROMPT_TOKENS: u32 = 32;
const LONG_PROMPT_TOKENS: u32 = 512;
/// Each batch begins with an empty cache, so any name of the model will do.
const WEIGHTS: WeightsHash = WeightsHash([0; 32]);

struct Bench {
    engine: Engine<Timed<Cpu>>,
    /// Steps and tokens are cut down when the run only checks that it works.
    decode_tokens: u32,
    rounds: usize,
}

fn limits(step_tokens_max: u32) -> BatchLimits {
    BatchLimits {
        sequences_max: 16,
        step_tokens_max,
        step_target: Duration::MAX,
        drafts_max: 0,
        kv_blocks: 1_024,
        kv_kind: KvKind::F16,
        spill_bytes: 0,
        context_tokens: 8_192,
    }
}

fn assign(id: u64, prompt_tokens: u32, max_new: u32) -> Assign {
    // Ordinary words, different for each sequence.
    let tokens = (0..prompt_tokens).map(|i| 1_000 + (i * 37 + id as u32 * 101) % 20_000).collect();
    Assign {
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        seed: id,
        credit: u32::MAX,
        ..Assign::new(ReplicaId(0), SequenceId(id), tokens, max_new, KV_BLOCK_TOKENS as u32)
    }
}

impl Bench {
    /// Plans and runs one step; its time, or `None` when nobody has work.
    fn step(&mut self, batch: &mut Batch) -> Option<Duration> {
        let began = Instant::now();
        let plan = batch.plan()?;
        let output = self.engine.step(&plan).expect("the device works");
        batch.apply(plan, output, began.elapsed());
        Some(began.elapsed())
    }

    /// Tokens per second of `n` sequences that decode together.
    fn decode(&mut self, n: u32) -> f64 {
        let mut batch = Batch::new(limits(256), WEIGHTS);
        (0..u64::from(n)).for_each(|i| batch.assign(assign(i, PROMPT_TOKENS, self.decode_tokens + 1)));
        let mut prompt_rows = n * PROMPT_TOKENS;
        while prompt_rows > 0 {
            self.step(&mut batch);
            prompt_rows = prompt_rows.saturating_sub(256);
        }
        let began = Instant::now();
        let before = tokens(&mut batch);
        while self.step(&mut batch).is_some() {}
        let drawn = tokens(&mut batch);
        assert!(before <= u64::from(n) * 2 && drawn > 0, "prompts are done before the clock starts");
        drawn as f64 / began.elapsed().as_secs_f64()
    }

    /// Eight sequences decode; one with a long prompt joins. Its time to first token, and the longest step meanwhile.
    fn join(&mut self, budget: u32, others: u64) -> (f64, f64) {
        let mut batch = Batch::new(limits(budget), WEIGHTS);
        (0..others).for_each(|i| batch.assign(assign(i, PROMPT_TOKENS, 400)));
        (0..16).for_each(|_| _ = self.step(&mut batch));
        batch.take_news();
        batch.assign(assign(99, LONG_PROMPT_TOKENS, 1));
        let (began, mut longest) = (Instant::now(), Duration::ZERO);
        loop {
            longest = longest.max(self.step(&mut batch).expect("there is work"));
            if batch.take_news().iter().any(|i| i.sequence == SequenceId(99)) {
                return (began.elapsed().as_secs_f64() * 1e3, longest.as_secs_f64() * 1e3);
            }
        }
    }
}

fn tokens(batch: &mut Batch) -> u64 {
    batch.take_news().iter().map(|i| i.tokens.len() as u64).sum()
}

fn main() {
    let path = support::weights().path;
    let files = ModelFiles::open(&path).expect("a model");
    let spec = files.spec().expect("a llama");
    let threads =
        support::argument("--threads").unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let engine = Engine::new(Timed::new(Cpu::new(threads)), &files, &spec, limits(256)).expect("it loads");
    let (decode_tokens, rounds) = match support::is_test() {
        true => (2, 1),
        false => (64, support::argument("--rounds").unwrap_or(7)),
    };
    let mut bench = Bench { engine, decode_tokens, rounds };
    decoding(&mut bench, threads);
    profile(&mut bench);
    joining(&mut bench);
}

fn decoding(bench: &mut Bench, threads: usize) {
    let mut rows = BATCHES.map(|_| Vec::new());
    for _ in 0..bench.rounds {
        for (row, n) in rows.iter_mut().zip(BATCHES) {
            row.push(bench.decode(n));
        }
    }
    println!("decode, {threads} threads, medians of {} interleaved rounds", bench.rounds);
    let medians = rows.map(|mut row| support::quantile(&mut row, 0.5));
    for (n, rate) in BATCHES.iter().zip(medians) {
        println!("  batch {n:>2}: {rate:>7.1} tokens/s, {:.2} x batch 1", rate / medians[0]);
    }
}

/// Where a step's time goes, by operation and shape.
fn profile(bench: &mut Bench) {
    for n in [1, 16] {
        bench.engine.backend().take_spent();
        bench.decode(n);
        let spent = bench.engine.backend().take_spent();
        let total: f64 = spent.values().map(|s| s.time.as_secs_f64()).sum();
        println!("decode of {n}, by operation (prompts included)");
        for (name, spent) in spent {
            let (share, each) = (spent.time.as_secs_f64() / total, spent.time / spent.calls as u32);
            println!("  {name:<28} {:>5.1} %  {:>9.1} µs a call", share * 100.0, each.as_secs_f64() * 1e6);
        }
    }
}

fn joining(bench: &mut Bench) {
    println!(
        "a prompt of {LONG_PROMPT_TOKENS} tokens joins 8 that decode: time to its first token, longest step of theirs"
    );
    let budgets = if support::is_test() { &BUDGETS[3..] } else { &BUDGETS[..] };
    let mut rows: Vec<[Vec<f64>; 3]> = budgets.iter().map(|_| Default::default()).collect();
    for _ in 0..bench.rounds.min(5) {
        for (row, budget) in rows.iter_mut().zip(budgets) {
            let (ttft, longest) = bench.join(*budget, 8);
            let (alone, _) = bench.join(*budget, 0);
            row.iter_mut().zip([ttft, longest, alone]).for_each(|(column, value)| column.push(value));
        }
    }
    for (row, budget) in rows.iter_mut().zip(budgets) {
        let [ttft, longest, alone] = row.each_mut().map(|column| support::quantile(column, 0.5));
        println!(
            "  budget {budget:>3}: first token after {ttft:>7.1} ms ({:.2} x alone), steps at most {longest:>6.1} ms",
            ttft / alone
        );
    }
}
