//! The rows: what is measured, at which shape, what the roofline is, and what is asked. Shapes and targets are those of the design
//! of the kernels; its rooflines are of activations in bf16, whatever ours are, so that a target is the same for everybody.

use cuckoo_kernels::cuda::Profile;
use cuckoo_kernels::ops::Heads;
use cuckoo_kernels::{KvKind, Quant};
use serde_json::{Value, json};

use super::cost::{Cost, Target, Unit};
use super::op::{Op, pairs};

/// Llama-3.1-8B's attention.
pub(crate) const LLAMA: Heads = Heads { query: 32, kv: 8, dim: 128 };
/// Its layers, width, half of its gate and up, and vocabulary.
const LAYERS: usize = 32;
const HIDDEN: usize = 4096;
const FFN: usize = 14_336;
const VOCABULARY: usize = 128_256;

/// One row.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What it is called, in this table and by whoever measures beside it.
    pub(crate) name: String,
    /// What is done.
    pub(crate) op: Op,
    /// What may be done for speed.
    pub(crate) profile: Profile,
    /// The first milestone.
    pub(crate) first: Option<Target>,
    /// What looks impossible.
    pub(crate) impossible: Option<Target>,
}

/// Rows of the design's table for which there is no operation, and why.
pub(crate) const NOT_COVERED: [(&str, &str); 3] = [
    (
        "MoE layer of Qwen3-30B-A3B, 16 and 4096 tokens",
        "experts are composed of products and routing on the host; no kernel of its own",
    ),
    ("llama.cpp's kernels as a peer", "its CUDA build is not carried along: not measured"),
    ("FlashInfer's paged attention as a peer", "its kernels are not carried along: not measured"),
];

/// Activations that are rounded to bf16 differ by up to a 256th each; so much of that is left in a sum.
const FAST_ERROR: f64 = 1e-2;

impl Row {
    /// The error that its profile allows.
    pub(crate) fn allowed(&self) -> f64 {
        match self.profile {
            Profile::Exact => 0.0,
            Profile::Fast => FAST_ERROR,
        }
    }

    /// What the roofline counts: activations in bf16, a byte a value for 8-bit weights and caches, keys and values alone for
    /// attention. Integers are a way to store weights, so their products are counted as bf16's.
    pub(crate) fn roofline(&self) -> Cost {
        let memory = |bytes: usize| Cost { bytes: bytes as u64, link_bytes: 0, flops: 0, unit: Unit::Bf16 };
        let position = |heads: Heads, kind: KvKind| match kind {
            KvKind::Q8_0 => 2 * heads.kv * heads.dim,
            KvKind::F16 | KvKind::BF16 => 4 * heads.kv * heads.dim,
        };
        match self.op {
            // The residual is added: both are read and written.
            Op::Norm { rows, cols } => memory(8 * rows * cols),
            Op::RopeStore { sequences, rows, heads, kind } => {
                memory(sequences * rows * (2 * heads.qkv_cols() + 2 * heads.query * heads.dim + position(heads, kind)))
            }
            Op::Gate { rows, cols } => memory(6 * rows * cols),
            Op::Linear { quant, tokens, outputs, inputs } => {
                let weights = if quant == Quant::FP8 { inputs } else { quant.row_bytes(inputs) };
                Cost {
                    flops: (2 * tokens * outputs * inputs) as u64,
                    unit: if quant == Quant::FP8 { Unit::Fp8 } else { Unit::Bf16 },
                    ..memory(outputs * weights + 2 * tokens * (inputs + outputs))
                }
            }
            Op::Attention { sequences, rows, depth, heads, kind } => Cost {
                flops: (4 * pairs(sequences, rows, depth) * heads.query * heads.dim) as u64,
                ..memory(sequences * depth * position(heads, kind))
            },
            Op::Sample { rows, vocabulary } => memory(4 * rows * vocabulary),
            Op::CopyOut { tokens, layers, heads, kind } => memory(2 * tokens * layers * position(heads, kind)),
        }
    }

    /// For those who measure something else at the same shape.
    pub(crate) fn json(&self) -> Value {
        let (cost, roofline) = (self.op.cost(), self.roofline());
        json!({
            "name": self.name, "op": self.op.json(), "profile": format!("{:?}", self.profile).to_lowercase(),
            "bytes": cost.bytes, "flops": cost.flops,
            "roofline_bytes": roofline.bytes, "roofline_flops": roofline.flops,
            "first_milestone": self.first.map(Target::text), "impossible": self.impossible.map(Target::text),
        })
    }
}

fn percents(first: f64, impossible: f64) -> (Option<Target>, Option<Target>) {
    (Some(Target::Percent(first)), Some(Target::Percent(impossible)))
}

fn micros(first: f64, impossible: f64) -> (Option<Target>, Option<Target>) {
    (Some(Target::Micros(first)), Some(Target::Micros(impossible)))
}

const NONE: (Option<Target>, Option<Target>) = (None, None);

fn row(name: String, op: Op, (first, impossible): (Option<Target>, Option<Target>)) -> Row {
    Row { name, op, profile: Profile::Exact, first, impossible }
}

/// All rows, in the design's order.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = by_rows();
    // Fast where the table asks for it, and exact, as everybody computes unless told otherwise.
    let exact = float_products();
    let fast = exact.iter().filter(|row| matches!(row.op, Op::Linear { quant: Quant::BF16, .. })).cloned();
    rows.extend(fast.map(|row| Row { name: format!("{}, fast", row.name), profile: Profile::Fast, ..row }));
    rows.extend(exact);
    rows.extend(integer_products());
    rows.extend(attention());
    rows.extend([
        row(
            format!("sampling B=64, {VOCABULARY} tokens, top-k 50, top-p 0.9"),
            Op::Sample { rows: 64, vocabulary: VOCABULARY },
            micros(40.0, 15.0),
        ),
        row(
            "KV pack, 4096 tokens bf16, to the host".to_owned(),
            Op::CopyOut { tokens: 4096, layers: LAYERS, heads: LLAMA, kind: KvKind::BF16 },
            percents(75.0, 90.0),
        ),
    ]);
    rows
}

/// Norms, rotations and gates.
fn by_rows() -> Vec<Row> {
    let rope = |sequences: usize, rows: usize, targets| {
        let all = sequences * rows;
        let op = Op::RopeStore { sequences, rows, heads: LLAMA, kind: KvKind::BF16 };
        row(format!("rope + KV store, {all} {}", if all == 1 { "row" } else { "rows" }), op, targets)
    };
    vec![
        row("norm 8192x4096".to_owned(), Op::Norm { rows: 8192, cols: HIDDEN }, percents(75.0, 92.0)),
        // "No microsecond of its own" is a fused kernel; what stands alone cannot be asked for it.
        row("norm 64x4096".to_owned(), Op::Norm { rows: 64, cols: HIDDEN }, (Some(Target::Micros(3.0)), None)),
        rope(1, 8192, percents(70.0, 90.0)),
        rope(64, 1, micros(6.0, 2.5)),
        rope(1, 1, micros(6.0, 2.5)),
        row("gate 8192x14336".to_owned(), Op::Gate { rows: 8192, cols: FFN }, percents(80.0, 93.0)),
    ]
}

fn product(
    quant: Quant,
    tokens: usize,
    (outputs, inputs): (usize, usize),
    targets: (Option<Target>, Option<Target>),
) -> Row {
    row(format!("{quant} {outputs}x{inputs}, M={tokens}"), Op::Linear { quant, tokens, outputs, inputs }, targets)
}

/// Gate and up, and down, of Llama-3.1-8B: outputs and inputs.
const WIDE: (usize, usize) = (2 * FFN, HIDDEN);
const LONG: (usize, usize) = (HIDDEN, FFN);

fn float_products() -> Vec<Row> {
    let bf16 = |tokens, shape, targets| product(Quant::BF16, tokens, shape, targets);
    vec![
        bf16(1, WIDE, percents(75.0, 93.0)),
        bf16(1, LONG, percents(65.0, 90.0)),
        bf16(16, WIDE, NONE),
        bf16(16, LONG, NONE),
        bf16(64, WIDE, NONE),
        bf16(64, LONG, NONE),
        bf16(4096, WIDE, percents(65.0, 82.0)),
        bf16(4096, LONG, NONE),
        bf16(8192, (8192, 8192), percents(65.0, 83.0)),
        bf16(16, (6144, HIDDEN), percents(55.0, 82.0)),
        bf16(64, (6144, HIDDEN), percents(55.0, 82.0)),
        // Qwen3-8B.
        bf16(1, (24_576, HIDDEN), percents(75.0, 93.0)),
        bf16(1, (HIDDEN, 12_288), percents(65.0, 90.0)),
        // Output heads.
        bf16(1, (VOCABULARY, HIDDEN), percents(85.0, 95.0)),
        bf16(1, (151_936, HIDDEN), percents(85.0, 95.0)),
        product(Quant::FP8, 1, WIDE, percents(60.0, 88.0)),
        product(Quant::FP8, 4096, LONG, percents(45.0, 72.0)),
    ]
}

fn integer_products() -> Vec<Row> {
    let of = |quant: Quant| {
        // Of a whole prompt only Q4_K is asked for.
        let prompt = if quant == Quant::Q4_K { percents(40.0, 70.0) } else { NONE };
        [
            product(quant, 1, WIDE, percents(45.0, 80.0)),
            product(quant, 1, LONG, percents(35.0, 70.0)),
            product(quant, 16, WIDE, percents(40.0, 70.0)),
            product(quant, 16, LONG, NONE),
            product(quant, 64, WIDE, NONE),
            product(quant, 64, LONG, NONE),
            product(quant, 4096, WIDE, prompt),
            product(quant, 4096, LONG, NONE),
        ]
    };
    [Quant::Q4_0, Quant::Q4_K].into_iter().flat_map(of).collect()
}

fn attention() -> Vec<Row> {
    let of = |name: &str, (sequences, rows, depth): (usize, usize, usize), kind: KvKind, targets| {
        row(format!("{name} {kind}"), Op::Attention { sequences, rows, depth, heads: LLAMA, kind }, targets)
    };
    vec![
        of("paged decode B=32, KV 4096", (32, 1, 4096), KvKind::BF16, percents(65.0, 88.0)),
        of("paged decode B=64, KV 8192", (64, 1, 8192), KvKind::Q8_0, percents(50.0, 82.0)),
        of("paged decode B=1, KV 8192", (1, 1, 8192), KvKind::BF16, micros(20.0, 11.0)),
        of("prefill, causal 8192", (1, 8192, 8192), KvKind::BF16, percents(45.0, 70.0)),
        of("chunk of 2048 in 32768", (1, 2048, 32_768), KvKind::BF16, percents(40.0, 65.0)),
    ]
}
