//! Models of the shapes that people run, with random weights that are made where they are measured, through the road that every
//! model takes: a GGUF file, the loader, the engine and its batch.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use cuckoo_kernels::Quant;
use cuckoo_kernels::cuda::Profile;
use cuckoo_models::{GgmlType, GgufWriter};
use serde_json::{Value, json};

use super::cost::Rates;
use super::data::Weights;
use super::rig::{Backend, Case, Costs, Rig, Run};

/// Weights are about this large: a residual stream of so many layers stays a number.
const WEIGHT_SIZE: f32 = 0.02;
/// Bytes that are written at once.
const PIECE_BYTES: u64 = 16 << 20;

/// A model's shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// As GGUF files call its family.
    pub(crate) family: &'static str,
    pub(crate) layers: u32,
    pub(crate) hidden: u32,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) ffn: u32,
    pub(crate) vocabulary: u32,
    /// Whether the embedding is the head as well.
    pub(crate) tied: bool,
    /// Whether queries and keys are normed.
    pub(crate) qk_norm: bool,
    pub(crate) rope_base: f32,
}

/// From the models' own `config.json`.
pub(crate) const SHAPES: [Shape; 3] = [
    Shape {
        name: "Llama-3.1-8B",
        family: "llama",
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        ffn: 14_336,
        vocabulary: 128_256,
        tied: false,
        qk_norm: false,
        rope_base: 500_000.0,
    },
    Shape {
        name: "Qwen3-8B",
        family: "qwen3",
        layers: 36,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        ffn: 12_288,
        vocabulary: 151_936,
        tied: false,
        qk_norm: true,
        rope_base: 1_000_000.0,
    },
    Shape {
        name: "SmolLM2-135M",
        family: "llama",
        layers: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        ffn: 1536,
        vocabulary: 49_152,
        tied: true,
        qk_norm: false,
        rope_base: 100_000.0,
    },
];

/// How matrices are stored.
pub(crate) const FORMATS: [Quant; 2] = [Quant::Q4_K, Quant::BF16];

/// The format of a matrix with so many columns: what is no whole number of superblocks takes the smaller blocks.
fn format(wanted: Quant, cols: u64) -> (Quant, GgmlType) {
    match wanted {
        Quant::BF16 => (Quant::BF16, GgmlType::BF16),
        _ if cols.is_multiple_of(Quant::Q4_K.block() as u64) => (Quant::Q4_K, GgmlType::Q4_K),
        _ => (Quant::Q4_0, GgmlType::Q4_0),
    }
}

/// How products with weights of a format can be computed: integers are exact and fast.
pub(crate) fn profiles(quant: Quant) -> &'static [Profile] {
    if quant == Quant::BF16 { &[Profile::Fast, Profile::Exact] } else { &[Profile::Exact] }
}

/// What a model is called.
pub(crate) fn name(shape: &Shape, quant: Quant, profile: Profile) -> String {
    format!("{} {quant}{}", shape.name, if profile == Profile::Fast { ", fast" } else { "" })
}

/// The names and shapes of all tensors; those with one dimension are f32.
fn tensors(shape: &Shape) -> Vec<(String, Vec<u64>)> {
    let [hidden, ffn, vocabulary, dim] = [shape.hidden, shape.ffn, shape.vocabulary, shape.head_dim].map(u64::from);
    let (query, kv) = (u64::from(shape.heads) * dim, u64::from(shape.kv_heads) * dim);
    let mut all = vec![
        ("token_embd.weight".to_owned(), vec![hidden, vocabulary]),
        ("output_norm.weight".to_owned(), vec![hidden]),
    ];
    if !shape.tied {
        all.push(("output.weight".to_owned(), vec![hidden, vocabulary]));
    }
    for layer in 0..shape.layers {
        let mut block = vec![
            ("attn_norm", vec![hidden]),
            ("attn_q", vec![hidden, query]),
            ("attn_k", vec![hidden, kv]),
            ("attn_v", vec![hidden, kv]),
            ("attn_output", vec![query, hidden]),
            ("ffn_norm", vec![hidden]),
            ("ffn_gate", vec![hidden, ffn]),
            ("ffn_up", vec![hidden, ffn]),
            ("ffn_down", vec![ffn, hidden]),
        ];
        if shape.qk_norm {
            block.extend([("attn_q_norm", vec![dim]), ("attn_k_norm", vec![dim])]);
        }
        all.extend(block.into_iter().map(|(name, dims)| (format!("blk.{layer}.{name}.weight"), dims)));
    }
    all
}

/// How many weights it has.
pub(crate) fn parameters(shape: &Shape) -> u64 {
    tensors(shape).iter().map(|(_, dims)| dims.iter().product::<u64>()).sum()
}

/// Writes such a model.
pub(crate) fn write(path: &Path, shape: &Shape, quant: Quant) -> io::Result<()> {
    let key = |name: &str| format!("{}.{name}", shape.family);
    let mut file = GgufWriter::new()
        .meta_str("general.architecture", shape.family)
        .meta_u32(&key("block_count"), shape.layers)
        .meta_u32(&key("embedding_length"), shape.hidden)
        .meta_u32(&key("attention.head_count"), shape.heads)
        .meta_u32(&key("attention.head_count_kv"), shape.kv_heads)
        .meta_u32(&key("attention.key_length"), shape.head_dim)
        .meta_u32(&key("attention.value_length"), shape.head_dim)
        .meta_u32(&key("feed_forward_length"), shape.ffn)
        .meta_u32(&key("context_length"), 8192)
        .meta_f32(&key("rope.freq_base"), shape.rope_base)
        .meta_f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    for (name, dims) in tensors(shape) {
        let kind = if dims.len() == 1 { GgmlType::F32 } else { format(quant, dims[0]).1 };
        file = file.promise(&name, &dims, kind);
    }
    let drawn = [Quant::Q4_K, Quant::Q4_0, Quant::BF16].map(|quant| Weights::new(quant, WEIGHT_SIZE, 11));
    let mut tensor = 0u64;
    file.write_filling(path, |_, kind, bytes, to| {
        tensor += 1;
        let weights = match kind {
            GgmlType::Q4_K => &drawn[0],
            GgmlType::Q4_0 => &drawn[1],
            GgmlType::BF16 => &drawn[2],
            // Norms scale by one.
            _ => return to.write_all(&1f32.to_le_bytes().repeat(bytes as usize / size_of::<f32>())),
        };
        // Tensors begin at blocks of their own, so that no two layers are alike.
        let piece = PIECE_BYTES / kind.block_bytes() * kind.block_bytes();
        let begin = tensor * 977 * kind.block_bytes();
        for first in (0..bytes).step_by(piece as usize) {
            to.write_all(&weights.bytes((begin + first) as usize, piece.min(bytes - first) as usize))?;
        }
        Ok(())
    })
}

/// One thing that a model does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    /// Sequences that decode together.
    pub(crate) batches: &'a [u32],
    /// Tokens of their prompts.
    pub(crate) depth: u32,
    /// Tokens that each of them gets.
    pub(crate) generate: u32,
    /// Lengths of prompts that are read.
    pub(crate) prompts: &'a [u32],
    /// Rows of a step.
    pub(crate) step_tokens: u32,
    /// How often each is done.
    pub(crate) repetitions: usize,
}

/// What people ask of a server.
pub(crate) const PLAN: Plan<'static> = Plan {
    batches: &[1, 8, 32, 128, 256],
    depth: 128,
    generate: 32,
    prompts: &[512, 2048],
    step_tokens: 2048,
    repetitions: 3,
};

impl Plan<'_> {
    fn cases(&self) -> Vec<Case> {
        let (tokens, depth) = (self.generate, self.depth);
        let mut cases: Vec<Case> =
            self.batches.iter().map(|batch| Case::Generate { tokens, depth, batch: *batch }).collect();
        cases.extend(self.prompts.iter().map(|tokens| Case::Prompt { tokens: *tokens, depth: 0 }));
        cases
    }
}

fn test(case: Case) -> String {
    match case {
        Case::Prompt { tokens, .. } => format!("prefill {tokens}"),
        Case::Generate { batch, .. } => format!("decode, batch {batch}"),
    }
}

/// The limits that shares are of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ceilings {
    pub(crate) measured_bytes_per_s: f64,
    pub(crate) sheet: Option<Rates>,
}

impl Ceilings {
    /// A run in figures: tokens a second, and the shares of bandwidth and arithmetic of the one in the middle.
    fn json(&self, case: Case, runs: &mut [Run]) -> Value {
        runs.sort_by(|a, b| a.tokens_per_s().total_cmp(&b.tokens_per_s()));
        let rates: Vec<f64> = runs.iter().map(Run::tokens_per_s).collect();
        let run = &runs[runs.len() / 2];
        let seconds = run.elapsed.as_secs_f64();
        let share = |amount: u64, rate: f64| 100.0 * amount as f64 / seconds / rate;
        let mean =
            |times: &[Duration]| 1e3 * times.iter().map(Duration::as_secs_f64).sum::<f64>() / times.len().max(1) as f64;
        json!({
            "test": test(case), "batch": case.batch(), "tokens_per_s": run.tokens_per_s(), "samples": rates,
            "step_ms": mean(&run.steps), "planning_ms": mean(&run.planning), "bytes": run.bytes, "flops": run.ops,
            "seconds": seconds, "digest": format!("{:016x}", run.digest),
            "percent_of_copies": share(run.bytes, self.measured_bytes_per_s),
            "percent_of_sheet_bandwidth": self.sheet.map(|sheet| share(run.bytes, sheet.bytes_per_s)),
            "percent_of_sheet_bf16": self.sheet.map(|sheet| share(run.ops, sheet.bf16_per_s)),
        })
    }
}

/// Loads the model in `path` and does all that `plan` says, until `more` says that there is no time.
pub(crate) fn measure<B: Backend>(
    path: &Path,
    backend: B,
    plan: &Plan<'_>,
    ceilings: &Ceilings,
    more: &dyn Fn() -> bool,
) -> anyhow::Result<(Costs, Vec<Value>)> {
    let cases = plan.cases();
    let mut rig = Rig::load(path, backend, plan.step_tokens, &cases)?;
    let mut found = Vec::new();
    for case in cases {
        if !more() {
            found.push(json!({"test": test(case), "error": "not measured: no time was left"}));
            continue;
        }
        rig.run(case.warm_up())?;
        let mut runs = Vec::new();
        while runs.len() < plan.repetitions && (runs.is_empty() || more()) {
            runs.push(rig.run(case)?);
        }
        // The same tokens each time, or something races.
        if runs.iter().any(|run| run.digest != runs[0].digest) {
            bail!("{}: the same prompts gave different tokens", test(case));
        }
        found.push(ceilings.json(case, &mut runs));
    }
    Ok((rig.costs(), found))
}

/// A model as JSON, whether it could be measured or not.
pub(crate) fn report((name, shape): (&str, &Shape), found: anyhow::Result<(Costs, Vec<Value>)>) -> Value {
    match found {
        Ok((costs, tests)) => json!({
            "name": name, "parameters": parameters(shape), "weight_bytes": costs.weight_bytes, "kv_bytes_per_token": costs.position_bytes, "tests": tests,
        }),
        Err(why) => json!({"name": name, "error": format!("{why:#}")}),
    }
}

/// For a person.
pub(crate) fn print(model: &Value) {
    let name = model["name"].as_str().unwrap_or_default();
    if let Some(why) = model["error"].as_str() {
        println!("{name}: {why}");
        return;
    }
    for test in model["tests"].as_array().into_iter().flatten() {
        let what = test["test"].as_str().unwrap_or_default();
        match test["error"].as_str() {
            Some(why) => println!("{name}, {what}: {why}"),
            None => println!(
                "{:<46} {:>10.1} tokens/s {:>8.3} ms a step {:>6.1} % of copies",
                format!("{name}, {what}"),
                test["tokens_per_s"].as_f64().unwrap_or(f64::NAN),
                test["step_ms"].as_f64().unwrap_or(f64::NAN),
                test["percent_of_copies"].as_f64().unwrap_or(f64::NAN),
            ),
        }
    }
}
