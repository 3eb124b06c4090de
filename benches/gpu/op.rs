//! The operations that are measured, as data: their shapes, and the bytes and operations that those need at least.

use cuckoo_kernels::KvKind;
use cuckoo_kernels::Quant;
use cuckoo_kernels::ops::Heads;
use serde_json::{Value, json};

use super::cost::{Cost, Unit};

/// One operation of `Ops`, or two of them, at a shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    /// `norm`.
    Norm { rows: usize, cols: usize },
    /// `rope_store` of `rows` rows: one prompt, or sequences of one row each.
    RopeStore { sequences: usize, rows: usize, heads: Heads, kind: KvKind },
    /// `gate` with SiLU.
    Gate { rows: usize, cols: usize },
    /// `linear`.
    Linear { quant: Quant, tokens: usize, outputs: usize, inputs: usize },
    /// `attention` of the last `rows` of `depth` positions of each sequence.
    Attention { sequences: usize, rows: usize, depth: usize, heads: Heads, kind: KvKind },
    /// `sample`: temperature 1, top-k 50, top-p 0.9; the answers are on the host in the end.
    Sample { rows: usize, vocabulary: usize },
    /// `copy_out` of the blocks of so many positions.
    CopyOut { tokens: usize, layers: usize, heads: Heads, kind: KvKind },
}

/// Bytes of keys and values of one position in one layer.
pub(crate) fn position_bytes(heads: Heads, kind: KvKind) -> usize {
    2 * heads.kv * kind.row_bytes(heads.dim)
}

/// Queries and keys that meet: each row sees all positions up to its own.
pub(crate) fn pairs(sequences: usize, rows: usize, depth: usize) -> usize {
    sequences * (depth - rows + 1..=depth).sum::<usize>()
}

impl Op {
    /// What it costs by the contracts of `Ops`: activations are f32, weights and caches are what they are.
    pub(crate) fn cost(&self) -> Cost {
        let memory = |bytes: usize| Cost { bytes: bytes as u64, link_bytes: 0, flops: 0, unit: Unit::Bf16 };
        match *self {
            Self::Norm { rows, cols } => memory(8 * rows * cols + 4 * cols),
            // Queries and keys are read and written, values read; keys and values are stored.
            Self::RopeStore { sequences, rows, heads, kind } => {
                let turned = 8 * (heads.query + heads.kv) * heads.dim;
                memory(sequences * rows * (turned + 4 * heads.kv * heads.dim + position_bytes(heads, kind)))
            }
            Self::Gate { rows, cols } => memory(12 * rows * cols),
            Self::Linear { quant, tokens, outputs, inputs } => Cost {
                flops: (2 * tokens * outputs * inputs) as u64,
                unit: match quant {
                    _ if !quant.is_float() => Unit::Int8,
                    Quant::FP8 => Unit::Fp8,
                    _ => Unit::Bf16,
                },
                ..memory(outputs * quant.row_bytes(inputs) + 4 * tokens * (inputs + outputs))
            },
            Self::Attention { sequences, rows, depth, heads, kind } => Cost {
                flops: (4 * pairs(sequences, rows, depth) * heads.query * heads.dim) as u64,
                ..memory(sequences * (8 * rows * heads.query * heads.dim + depth * position_bytes(heads, kind)))
            },
            Self::Sample { rows, vocabulary } => memory(4 * rows * vocabulary),
            Self::CopyOut { tokens, layers, heads, kind } => {
                let bytes = tokens * layers * position_bytes(heads, kind);
                Cost { link_bytes: bytes as u64, ..memory(bytes) }
            }
        }
    }

    /// Whether it answers something, so that its host has a part in it and launches cannot be kept.
    pub(crate) fn answers(&self) -> bool {
        matches!(self, Self::Sample { .. } | Self::CopyOut { .. })
    }

    /// For those who measure something else at the same shape.
    pub(crate) fn json(&self) -> Value {
        let heads = |heads: &Heads| json!({"query": heads.query, "kv": heads.kv, "dim": heads.dim});
        match self {
            Self::Norm { rows, cols } => json!({"kind": "norm", "rows": rows, "cols": cols}),
            Self::RopeStore { sequences, rows, heads: h, kind } => json!({
                "kind": "rope_store", "sequences": sequences, "rows": rows, "heads": heads(h), "kv": kind.to_string(),
            }),
            Self::Gate { rows, cols } => json!({"kind": "gate", "rows": rows, "cols": cols}),
            Self::Linear { quant, tokens, outputs, inputs } => json!({
                "kind": "linear", "quant": quant.to_string(), "tokens": tokens, "outputs": outputs, "inputs": inputs,
            }),
            Self::Attention { sequences, rows, depth, heads: h, kind } => json!({
                "kind": "attention", "sequences": sequences, "rows": rows, "depth": depth, "heads": heads(h),
                "kv": kind.to_string(),
            }),
            Self::Sample { rows, vocabulary } => json!({"kind": "sample", "rows": rows, "vocabulary": vocabulary}),
            Self::CopyOut { tokens, layers, heads: h, kind } => json!({
                "kind": "copy_out", "tokens": tokens, "layers": layers, "heads": heads(h), "kv": kind.to_string(),
            }),
        }
    }
}
