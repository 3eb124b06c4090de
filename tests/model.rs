//! The real model on the CPU backend: against the f64 reference, and bit for bit against itself however it is batched,
//! cut into chunks, spread over threads, resumed, found in the cache, preempted or planned ahead.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cuckoo_kernels::ops::{KV_BLOCK_TOKENS, KvShape, Span, StepLayout};
use cuckoo_kernels::reference::Rounding;
use cuckoo_kernels::{Cpu, Exact, KvKind, Ops, Reference};
use cuckoo_models::{Adapter, ArchSpec, ModelFiles, Tokenizer};
use cuckoo_runtime::forward::{KvMemory, Model, Workspace, kv_shapes};
use cuckoo_runtime::{Batch, BatchLimits, BatchStats, Engine, KvPlan, StepPlan};
use cuckoo_wire::message::{Assign, End, Logprobs, ReplicaId, Sampling, SequenceId, StepItem, WeightsHash};

use self::drafting::DraftFiles;
use crate::support::weights;

pub(crate) mod adapters;
pub(crate) mod drafting;
mod kv_kinds;
mod logprobs;
mod memory;
mod spill;

const TEXTS: [&str; 3] = [
    "The cuckoo lays its eggs in the nests of other birds, which then raise the young as their own. Most species live in trees,",
    "fn main() {\n    let numbers = vec![1, 2, 3];\n    let total: i32 = numbers.iter().sum();\n    println!(\"{total}\");\n}\n",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France is Paris, which lies on the river Seine.",
];

pub(crate) struct Files {
    pub(crate) files: ModelFiles,
    pub(crate) spec: ArchSpec,
    pub(crate) tokenizer: Tokenizer,
    /// Adapters that sequences may use, by the hashes of their files.
    adapters: Vec<(WeightsHash, PathBuf)>,
}

pub(crate) fn files() -> Files {
    open(&weights())
}

pub(crate) fn open(path: &Path) -> Files {
    let files = ModelFiles::open(path).unwrap();
    Files { spec: files.spec().unwrap(), tokenizer: files.tokenizer().unwrap(), adapters: Vec::new(), files }
}

/// Logits of every position of `tokens`, computed as one chunk.
pub(crate) fn logits<O: Ops>(ops: O, files: &Files, tokens: &[u32]) -> Vec<Vec<f32>> {
    logits_kept(KvKind::F16, ops, files, tokens)
}

/// The same with keys and values of some format.
pub(crate) fn logits_kept<O: Ops>(kind: KvKind, mut ops: O, files: &Files, tokens: &[u32]) -> Vec<Vec<f32>> {
    let model = Model::load(&mut ops, &files.files, &files.spec, |_| ()).unwrap();
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(16) as u32).collect();
    let mut work = Workspace::new(&mut ops, &files.spec, tokens.len(), tokens.len()).unwrap();
    let shapes = kv_shapes(&files.spec, blocks.len()).into_iter().map(|shape| KvShape { kind, ..shape });
    let shapes: Vec<KvShape> = shapes.collect();
    let mut cache = KvMemory::new(&mut ops, &shapes).unwrap();
    let spans = [Span { first_row: 0, rows: tokens.len(), first_position: 0, first_block: 0 }];
    let wanted: Vec<usize> = (0..tokens.len()).collect();
    let steps = vec![StepLayout { spans: &spans, blocks: &blocks }; shapes.len()];
    model.forward(&mut ops, &mut work, &mut cache, tokens, &steps, &wanted).unwrap();
    ops.read(&work.logits).unwrap().chunks(files.spec.vocab).map(<[f32]>::to_vec).collect()
}

fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}

#[test]
fn logits_are_the_contracts_and_near_unrounded_ones() {
    let files = files();
    let mut differences = Vec::new();
    for text in TEXTS {
        let tokens = files.tokenizer.encode(text, true).unwrap();
        let cpu = logits(Cpu::new(2), &files, &tokens);
        let contract = logits(Exact::new(), &files, &tokens);
        let unrounded = logits(Reference::new(Rounding::None), &files, &tokens);
        for (at, (ours, contract)) in cpu.iter().zip(&contract).enumerate() {
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(bits(ours) == bits(contract), "position {at} of {text:?} is not what the contract says");
            if let Some(next) = tokens.get(at + 1) {
                differences.push((log_probability(ours, *next) - log_probability(&unrounded[at], *next)).abs());
            }
        }
    }
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    println!("logits equal the contract's bit for bit; log-probabilities differ by {mean:.4} nats from unrounded ones");
    assert!(mean <= 0.0556, "mean difference of log-probabilities: {mean}");
}

/// Other checkpoints, where they have been fetched: architecture, file, and how far log-probabilities may be from those
/// of unrounded activations.
const OTHERS: [(&str, &str, f64); 2] =
    [("qwen2", "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf", 0.1), ("gemma3", "gemma-3-270m.Q4_K_M.gguf", 0.1)];

pub(crate) fn other(name: &str) -> Option<PathBuf> {
    let path = std::env::home_dir()?.join(".cache/cuckoo-test-models").join(name);
    if !path.exists() {
        println!("skipped: {name} has not been fetched");
        return None;
    }
    Some(path)
}

#[test]
fn other_checkpoints_compute_what_the_contract_says() {
    for (architecture, name, noise) in OTHERS {
        let Some(path) = other(name) else { continue };
        let files = open(&path);
        assert_eq!(files.spec.architecture, architecture);
        let text = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is Madrid.";
        let mut tokens = files.tokenizer.encode(text, true).unwrap();
        if files.tokenizer.add_bos() {
            tokens.insert(0, files.tokenizer.bos().unwrap());
        }
        let cpu = logits(Cpu::new(2), &files, &tokens);
        let contract = logits(Exact::new(), &files, &tokens);
        let unrounded = logits(Reference::new(Rounding::None), &files, &tokens);
        let (mut surprise, mut difference) = (0.0, 0.0);
        for (at, next) in tokens.iter().enumerate().skip(1) {
            let same = cpu[at - 1].iter().zip(&contract[at - 1]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{name}: position {at}");
            let (ours, exact) = (log_probability(&cpu[at - 1], *next), log_probability(&unrounded[at - 1], *next));
            surprise -= ours;
            difference += (ours - exact).abs();
        }
        let n = (tokens.len() - 1) as f64;
        let (surprise, difference) = (surprise / n, difference / n);
        println!("{name}: {surprise:.3} nats a token, {difference:.4} from unrounded ones");
        assert!(surprise < 2.0, "{name} finds plain text surprising: {surprise} nats a token");
        assert!(difference < noise, "{name}: {difference}");
    }
}

/// How a generation is run.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) threads: usize,
    pub(crate) batch: u32,
    pub(crate) step_tokens: u32,
    pub(crate) kv_blocks: u32,
    pub(crate) kv_kind: KvKind,
    /// Host memory for blocks whose room is needed.
    pub(crate) spill_bytes: u64,
    /// Steps planned before the first of them is computed.
    pub(crate) in_flight: usize,
    /// Guesses in one step.
    pub(crate) drafts: u32,
}

pub(crate) const ALONE: Shape = Shape {
    threads: 2,
    batch: 1,
    step_tokens: 512,
    kv_blocks: 512,
    kv_kind: KvKind::F16,
    spill_bytes: 0,
    in_flight: 1,
    drafts: 0,
};

/// Output of one sequence: tokens, and a digest of the bits of the logits that each was drawn from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Output {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logits: Vec<u64>,
    end: Option<End>,
    logprobs: Vec<Logprobs>,
    prompt: Vec<Logprobs>,
}

pub(crate) fn assign(id: usize, tokens: &[u32], prompt: usize, max_new: u32, sampling: &Sampling) -> Assign {
    Assign {
        prompt_tokens: prompt as u32,
        seed: sampling.seed.unwrap_or(0),
        sampling: sampling.clone(),
        credit: 10_000,
        bad_words: if sampling.dry_multiplier > 0.0 { vec![vec![28, 198], vec![30]] } else { vec![] },
        dry_breakers: vec![28, 30],
        logprobs: sampling.seed.filter(|seed| seed % 2 == 1).map(|_| 5),
        ..Assign::new(ReplicaId(0), SequenceId(id as u64), tokens.to_vec(), max_new, KV_BLOCK_TOKENS as u32)
    }
}

fn fnv(values: &[f32]) -> u64 {
    values.iter().fold(0xcbf2_9ce4_8422_2325, |h, v| (h ^ u64::from(v.to_bits())).wrapping_mul(0x0100_0000_01b3))
}

pub(crate) fn generate(files: &Files, shape: Shape, assigns: Vec<Assign>) -> Vec<Output> {
    generate_counting(files, shape, assigns).0
}

fn generate_counting(files: &Files, shape: Shape, assigns: Vec<Assign>) -> (Vec<Output>, BatchStats) {
    let (outputs, stats, _) = generate_watching(files, shape, assigns);
    (outputs, stats)
}

/// The same, and the most blocks that were held at once, for each group of layers.
fn generate_watching(files: &Files, shape: Shape, assigns: Vec<Assign>) -> (Vec<Output>, BatchStats, Vec<u32>) {
    generate_beside(files, None, shape, assigns)
}

/// The same, with a draft model.
fn generate_beside(
    files: &Files,
    draft: Option<&DraftFiles>,
    shape: Shape,
    assigns: Vec<Assign>,
) -> (Vec<Output>, BatchStats, Vec<u32>) {
    generate_on(Cpu::new(shape.threads), (files, draft), shape, assigns)
}

/// The same on some backend.
pub(crate) fn generate_on<O: Ops>(
    backend: O,
    (files, draft): (&Files, Option<&DraftFiles>),
    shape: Shape,
    assigns: Vec<Assign>,
) -> (Vec<Output>, BatchStats, Vec<u32>) {
    let limits = BatchLimits {
        sequences_max: shape.batch,
        step_tokens_max: shape.step_tokens,
        step_target: Duration::MAX,
        drafts_max: shape.drafts,
        kv_blocks: shape.kv_blocks,
        kv_kind: shape.kv_kind,
        spill_bytes: shape.spill_bytes,
        context_tokens: 8_192,
    };
    let kv = KvPlan::new(&files.spec, &limits);
    let mut engine = Engine::new(backend, &files.files, &files.spec, limits).unwrap();
    let hashes: Vec<WeightsHash> = files.adapters.iter().map(|(hash, _)| *hash).collect();
    let mut batch = Batch::with_kv(limits, WeightsHash([0; 32]), &kv).with_adapters(&hashes);
    if let Some(draft) = draft {
        engine = engine.with_draft(&draft.files, &draft.spec, limits).unwrap();
        batch = batch.with_draft(&draft.plan(limits));
    }
    for (_, path) in &files.adapters {
        engine.add_adapter(&Adapter::open(path, &files.spec).unwrap(), &File::open(path).unwrap()).unwrap();
    }
    let mut most = vec![0; kv.groups.len()];
    let mut outputs = vec![Output::default(); assigns.len()];
    let known: Vec<usize> = assigns.iter().map(|a| a.tokens.len()).collect();
    let mut left = assigns.into_iter();
    let mut plans: VecDeque<StepPlan> = VecDeque::new();
    loop {
        while batch.sequences().0 + batch.sequences().1 < shape.batch as usize {
            let Some(next) = left.next() else { break };
            batch.assign(next);
        }
        while plans.len() < shape.in_flight {
            let Some(plan) = batch.plan() else { break };
            plans.push_back(plan);
        }
        let Some(plan) = plans.pop_front() else { break };
        let mut output = engine.step(&plan).unwrap();
        output.passes.fill(Duration::ZERO);
        if !plan.draws.is_empty() {
            let logits = engine.logits().unwrap();
            for (draw, row) in plan.draws.iter().zip(logits.chunks(files.spec.vocab)) {
                let (id, digests) = (draw.sequence.0 as usize, &mut outputs[draw.sequence.0 as usize].logits);
                let at = draw.position as usize - known[id];
                digests.resize(digests.len().max(at + 1), 0);
                digests[at] = fnv(row);
            }
        }
        batch.apply(plan, output, Duration::ZERO);
        most.iter_mut().zip(batch.blocks_by_group()).for_each(|(most, now)| *most = now.max(*most));
        for StepItem { sequence, first, tokens, end, logprobs, prompt_logprobs } in batch.take_news() {
            let output = &mut outputs[sequence.0 as usize];
            output.logprobs.extend(logprobs);
            output.prompt.extend(prompt_logprobs);
            assert_eq!(output.tokens.len(), first as usize, "gapless");
            output.tokens.extend(tokens);
            output.end = end.or(output.end.take());
        }
    }
    assert!(batch.blocks_by_group().all(|blocks| blocks == 0), "all blocks return");
    // A step planned ahead may have drawn once more after a stop token: that is discarded.
    outputs.iter_mut().for_each(|o| o.logits.truncate(o.tokens.len()));
    (outputs, batch.stats(), most)
}

pub(crate) fn prompts(files: &Files) -> Vec<Vec<u32>> {
    let words: Vec<u32> = files.tokenizer.encode(&TEXTS.join("\n").repeat(2), true).unwrap();
    (0..16).map(|i| words[i * 3..i * 3 + 5 + i * 7].to_vec()).collect()
}

/// Odd seeds also use what looks at the order of tokens, and what throws a coin of its own.
pub(crate) fn sampled(seed: u64) -> Sampling {
    let odd = seed % 2 == 1;
    Sampling {
        dry_multiplier: if odd { 0.8 } else { 0.0 },
        xtc_probability: if odd { 0.5 } else { 0.0 },
        typical_p: if odd { 0.97 } else { 1.0 },
        temperature: 0.9,
        top_p: 0.95,
        repetition_penalty: 1.1,
        frequency_penalty: 0.2,
        seed: Some(seed),
        ..Sampling::default()
    }
}

#[test]
fn batched_equals_alone() {
    let files = files();
    let assigns: Vec<Assign> = prompts(&files)
        .iter()
        .enumerate()
        .map(|(i, p)| assign(i, p, p.len(), 8 + i as u32, &sampled(i as u64)))
        .collect();
    let alone = generate(&files, ALONE, assigns.clone());
    assert!(alone.iter().all(|o| o.end == Some(End::Length)));
    for batch in [3, 16] {
        let together = generate(&files, Shape { batch, step_tokens: 48, ..ALONE }, assigns.clone());
        assert_eq!(alone, together, "batch {batch}");
    }
}

#[test]
fn chunked_equals_whole_on_any_number_of_threads() {
    let files = files();
    let prompt = files.tokenizer.encode(&TEXTS.join("\n"), true).unwrap();
    assert!(prompt.len() > 64);
    let assigns = vec![assign(0, &prompt, prompt.len(), 10, &sampled(1))];
    let whole = generate(&files, ALONE, assigns.clone());
    for step_tokens in [1, 7, 64] {
        assert_eq!(whole, generate(&files, Shape { step_tokens, ..ALONE }, assigns.clone()), "chunks of {step_tokens}");
    }
    for threads in [1, 3] {
        assert_eq!(whole, generate(&files, Shape { threads, ..ALONE }, assigns.clone()), "{threads} threads");
    }
}

#[test]
fn a_seed_decides_and_a_resumed_sequence_goes_on_the_same() {
    let files = files();
    let prompt = &prompts(&files)[5];
    let run = |seed| generate(&files, ALONE, vec![assign(0, prompt, prompt.len(), 24, &sampled(seed))]).remove(0);
    let whole = run(7);
    assert_eq!(whole.tokens, run(7).tokens);
    assert_ne!(whole.tokens, run(8).tokens);
    for accepted in [1, 9, 23] {
        let known = [prompt.as_slice(), &whole.tokens[..accepted]].concat();
        let rest = assign(0, &known, prompt.len(), 24 - accepted as u32, &sampled(7));
        let resumed = generate(&files, ALONE, vec![rest]).remove(0);
        assert_eq!(resumed.tokens, whole.tokens[accepted..], "after {accepted} tokens");
        assert_eq!(resumed.logits, whole.logits[accepted..]);
        assert_eq!(resumed.logprobs, whole.logprobs[accepted..]);
    }
}

/// Without penalties, so that steps may be planned ahead.
fn plain(seed: u64) -> Sampling {
    Sampling { temperature: 0.9, top_p: 0.95, seed: Some(seed), ..Sampling::default() }
}

#[test]
fn cached_equals_cold() {
    let files = files();
    let words = files.tokenizer.encode(&TEXTS.join("\n").repeat(2), true).unwrap();
    let first = assign(0, &words[..70], 70, 20, &sampled(1));
    let mut expected = vec![generate(&files, ALONE, vec![first.clone()]).remove(0)];
    // The same prompt, one that is all full blocks, one that goes on from the first's output, one that parts early.
    let answered = [&words[..70], &expected[0].tokens, &words[100..130]].concat();
    let parted = [&words[..40], &words[90..120]].concat();
    let mut assigns = vec![first];
    for (tokens, seed) in [(&words[..70], 2), (&words[..64], 3), (&answered[..], 4), (&parted[..], 5)] {
        let id = assigns.len();
        let alone = assign(0, tokens, tokens.len(), 20, &sampled(seed));
        expected.push(generate(&files, ALONE, vec![alone]).remove(0));
        assigns.push(assign(id, tokens, tokens.len(), 20, &sampled(seed)));
    }
    let (one_after_another, stats) = generate_counting(&files, ALONE, assigns.clone());
    assert_eq!(expected, one_after_another);
    assert_eq!(stats.prefix_hit_tokens, 64 + 48 + 80 + 32, "{stats:?}");
    let (together, stats) = generate_counting(&files, Shape { batch: 5, step_tokens: 80, ..ALONE }, assigns);
    assert_eq!(expected, together);
    assert!(stats.prefix_hit_tokens > 0, "{stats:?}");
}

#[test]
fn preempted_equals_undisturbed() {
    let files = files();
    let words = files.tokenizer.encode(&TEXTS.join("\n").repeat(2), true).unwrap();
    let assigns: Vec<Assign> = (0..3)
        .map(|i| assign(i, &words[i * 40..i * 40 + 30], 30, 60, &if i == 1 { plain(1) } else { sampled(i as u64) }))
        .collect();
    let roomy = Shape { batch: 3, step_tokens: 64, ..ALONE };
    let (undisturbed, stats) = generate_counting(&files, roomy, assigns.clone());
    assert_eq!(stats.preemptions, 0);
    // Nine blocks in the end where one sequence may need six: somebody must wait, and be computed again.
    for in_flight in [1, 2] {
        let tight = Shape { kv_blocks: 9, in_flight, ..roomy };
        let (preempted, stats) = generate_counting(&files, tight, assigns.clone());
        assert_eq!(undisturbed, preempted, "{in_flight} in flight");
        assert!(stats.preemptions > 0, "{stats:?}");
    }
}

#[test]
fn planned_ahead_equals_one_by_one() {
    let files = files();
    let mut assigns: Vec<Assign> = prompts(&files)
        .iter()
        .take(6)
        .enumerate()
        .map(|(i, p)| assign(i, p, p.len(), 12 + i as u32, &plain(i as u64)))
        .collect();
    let whole = generate(&files, ALONE, assigns.clone());
    // Some of them meet a stop token, with a row behind it in flight.
    for (assign, output) in assigns.iter_mut().zip(&whole).take(3) {
        assign.stop_tokens = vec![output.tokens[5]];
    }
    let alone = generate(&files, ALONE, assigns.clone());
    assert_eq!(alone[0].end, Some(End::Stop));
    let ahead = Shape { batch: 4, step_tokens: 40, in_flight: 2, ..ALONE };
    let (outputs, stats) = generate_counting(&files, ahead, assigns);
    assert_eq!(alone, outputs);
    assert!(stats.rows_discarded >= 3, "{stats:?}");
}

/// Gemma 3 sees 512 positions in five of six layers: their blocks are let go on the way, and no bit changes.
#[test]
fn windows_let_go_of_their_tail() {
    let Some(path) = other("gemma-3-270m.Q4_K_M.gguf") else { return };
    let files = open(&path);
    let text = include_str!("../benches/peers/text.txt").repeat(2);
    let mut words = files.tokenizer.encode(&text, true).unwrap();
    words.insert(0, files.tokenizer.bos().unwrap());
    let long = |id, from: usize, to: usize, new| assign(id, &words[from..to], to - from, new, &plain(id as u64));
    let first = long(0, 0, 2_060, 12);
    let shape = Shape { step_tokens: 128, ..ALONE };
    let (chunked, _, most) = generate_watching(&files, shape, vec![first.clone()]);
    // 511 positions before a row, up to 128 rows, and the ends of blocks.
    assert_eq!((most[0], most.len()), (130, 2));
    assert!(most[1] <= 34 + 8, "{most:?}");
    let whole = generate(&files, Shape { step_tokens: 2_100, ..ALONE }, vec![first.clone()]);
    assert_eq!(chunked, whole, "chunked = whole");
    // It goes on from where it ended, though most of its windowed blocks are gone.
    let on = [&words[..2_060], &chunked[0].tokens, &words[2_060..2_070]].concat();
    let on = Assign { seed: 5, ..assign(1, &on, on.len(), 12, &plain(5)) };
    let cold = generate(&files, shape, vec![Assign { sequence: SequenceId(0), ..on.clone() }]);
    let (warm, stats) = generate_counting(&files, shape, vec![first, on]);
    assert_eq!((&warm[0], &warm[1]), (&chunked[0], &cold[0]), "cached = cold");
    assert_eq!(stats.prefix_hit_tokens, 2_064, "all full blocks of the first: {stats:?}");
    // Three that outgrow the device together, each beyond its window.
    let three: Vec<Assign> = (0..3).map(|i| long(i, i * 300, i * 300 + 560, 40)).collect();
    let roomy = Shape { batch: 3, step_tokens: 64, ..ALONE };
    let (undisturbed, stats) = generate_counting(&files, roomy, three.clone());
    assert_eq!(stats.preemptions, 0);
    let (preempted, stats) = generate_counting(&files, Shape { kv_blocks: 108, ..roomy }, three);
    assert!(stats.preemptions > 0, "{stats:?}");
    assert_eq!(undisturbed, preempted, "preempted = undisturbed");
}

#[test]
fn speculated_equals_plain() {
    let files = files();
    // A text that comes three times is continued as it went on before, until the noise of a temperature leads away.
    let words = files.tokenizer.encode(&TEXTS[0].repeat(3), true).unwrap();
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let assigns: Vec<Assign> = [greedy.clone(), greedy, plain(2), plain(3), sampled(4)]
        .iter()
        .enumerate()
        .map(|(i, sampling)| assign(i, &words[..words.len() - 3 * i - 1], words.len() - 3 * i - 1, 40, sampling))
        .collect();
    let alone = generate(&files, ALONE, assigns.clone());
    for (batch, in_flight) in [(1, 1), (4, 1), (4, 2)] {
        let shape = Shape { batch, step_tokens: 96, in_flight, drafts: 8, ..ALONE };
        let (outputs, stats) = generate_counting(&files, shape, assigns.clone());
        assert_eq!(alone, outputs, "{batch} together, {in_flight} in flight");
        println!(
            "{batch} together, {in_flight} in flight: {} of {} guesses right",
            stats.drafts_accepted, stats.drafts
        );
        match in_flight {
            1 => assert!(stats.drafts_accepted > 20 && stats.drafts > stats.drafts_accepted, "{stats:?}"),
            // Who has a token in flight cannot say what comes after it.
            _ => assert_eq!(stats.drafts, 0),
        }
    }
}
