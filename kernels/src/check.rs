//! Whether a backend computes the contract on this very machine: every operation once, on small numbers, against [`Exact`], bit
//! for bit. For devices that no test of the project has seen.

use std::fmt;

use bytemuck::cast_slice;

use crate::low_rank::{Adapted, LowRankSource};
use crate::ops::{Activation, Heads, KvShape, Mask, MatrixSource, Ops, OpsError, Rope, RopePairs, Span, StepLayout};
use crate::quant::quantize_row;
use crate::routing::{Gating, Routing};
use crate::sampling::{LogprobRequest, SampleRequest, SamplingParams, TokenHistory};
use crate::{Exact, KvKind, Quant};

/// Rows of a decode step, of a small batch, and of a prompt: each may be computed in a way of its own.
const ROWS: [usize; 3] = [1, 5, 70];

/// One thing that is checked.
#[derive(Clone, Copy, Debug)]
pub enum Case {
    /// `linear`, `linear_fine`, `linear_add`.
    Linear(Quant),
    /// `embed`.
    Embed(Quant),
    /// `lora_add`.
    LowRank(Quant),
    /// `norm`, `norm_heads`, `layer_norm`, `normalize`.
    Norms,
    /// `add_bias`, `add_scaled`, `scale`.
    Elementwise,
    /// `gate`, `activate`.
    Activations,
    /// `zero`, `gather`, `mean_rows`, `route`, `scatter_add`.
    Rows,
    /// `linear` of many rows with many.
    Wide(Quant),
    /// `rope_store`, `attention`, and copies of blocks to the host and back, with heads of so many values.
    Attention(KvKind, usize),
    /// `sample`.
    Sampling,
    /// Draws that nobody waits for, where there are such.
    Ahead,
    /// `logprobs`.
    Logprobs,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear(quant) => write!(f, "products with {quant}"),
            Self::Embed(quant) => write!(f, "rows of {quant}"),
            Self::LowRank(quant) => write!(f, "adapters in {quant}"),
            Self::Norms => f.write_str("norms"),
            Self::Elementwise => f.write_str("sums and factors"),
            Self::Activations => f.write_str("activations"),
            Self::Rows => f.write_str("rows and experts"),
            Self::Wide(quant) => write!(f, "large products with {quant}"),
            Self::Attention(kind, dim) => write!(f, "attention over {kind} heads of {dim}"),
            Self::Sampling => f.write_str("sampling"),
            Self::Ahead => f.write_str("tokens that stay on the device"),
            Self::Logprobs => f.write_str("log-probabilities"),
        }
    }
}

/// Why a case is not as the contract says.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// The backend could not do it.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// Values differ.
    #[error("{differ} of {all} values differ from the contract; the first is {got:e} and should be {expected:e}")]
    Values {
        /// How many.
        differ: usize,
        /// Of how many.
        all: usize,
        /// The first that differs.
        got: f32,
        /// What it should be.
        expected: f32,
    },
}

impl Case {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let floats = Quant::ALL.into_iter().filter(|quant| quant.is_float());
        let mut cases: Vec<Self> = Quant::ALL.into_iter().flat_map(|q| [Self::Linear(q), Self::Embed(q)]).collect();
        cases.extend(floats.filter(|quant| quant.block() == 1).map(Self::LowRank));
        cases.extend([Self::Norms, Self::Elementwise, Self::Activations, Self::Rows]);
        cases.extend(Quant::ALL.into_iter().filter(|quant| !quant.is_float()).map(Self::Wide));
        cases.extend(KvKind::ALL.into_iter().flat_map(|kind| [64, 256, 512].map(|dim| Self::Attention(kind, dim))));
        cases.extend([Self::Sampling, Self::Ahead, Self::Logprobs]);
        cases
    }

    /// A few that need everything: products, sums, exponentials, attention, draws. They take some hundredths of a second.
    pub const QUICK: [Self; 6] = [
        Self::Norms,
        Self::Activations,
        Self::Linear(Quant::Q8_0),
        Self::Linear(Quant::Q4_K),
        Self::Attention(KvKind::F16, 64),
        Self::Sampling,
    ];

    /// Computes it on `ops` and by the contract.
    pub fn check<O: Ops>(self, ops: &mut O) -> Result<(), Wrong> {
        let expected = self.run(&mut Exact::new())?;
        let got = self.run(ops)?;
        let pairs = || got.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits());
        match pairs().next() {
            _ if got.len() != expected.len() => {
                Err(OpsError::Fault(format!("{} values instead of {}", got.len(), expected.len())).into())
            }
            None => Ok(()),
            Some((got, wanted)) => {
                Err(Wrong::Values { differ: pairs().count(), all: expected.len(), got: *got, expected: *wanted })
            }
        }
    }

    fn run<O: Ops>(self, ops: &mut O) -> Result<Vec<f32>, OpsError> {
        match self {
            Self::Linear(quant) => linear(ops, quant),
            Self::Embed(quant) => embed(ops, quant),
            Self::LowRank(quant) => low_rank(ops, quant),
            Self::Norms => norms(ops),
            Self::Elementwise => elementwise(ops),
            Self::Activations => activations(ops),
            Self::Rows => rows(ops),
            Self::Wide(quant) => wide(ops, quant),
            Self::Attention(kind, dim) => attention(ops, kind, dim),
            Self::Sampling => sampling(ops),
            Self::Ahead => ahead(ops),
            Self::Logprobs => logprobs(ops),
        }
    }
}

/// What a backend gets wrong of [`Case::all`], and how. Takes seconds.
pub fn wrongs<O: Ops>(ops: &mut O) -> Vec<(Case, Wrong)> {
    Case::all().into_iter().filter_map(|case| Some((case, case.check(ops).err()?))).collect()
}

/// Refuses a device that gets any of [`Case::QUICK`] wrong: before it is given a model, and others its results.
pub fn refuse_unsound<O: Ops>(ops: &mut O) -> Result<(), OpsError> {
    for case in Case::QUICK {
        if let Err(wrong) = case.check(ops) {
            let why = format!("{case}: {wrong}; `cuckoo doctor` checks everything");
            return Err(OpsError::Fault(format!("this device does not compute what it should: {why}")));
        }
    }
    Ok(())
}

/// Numbers between -1 and 1 that have no pattern, the same everywhere: the high bits of a multiplicative sequence.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state = state.wrapping_mul(0x2C92_77B5).wrapping_add(0xAC56_4B05);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The bytes of a matrix.
fn stored(quant: Quant, rows: usize, cols: usize, seed: u32) -> Vec<u8> {
    let values = values(rows * cols, seed);
    values.chunks_exact(cols).flat_map(|row| quantize_row(quant, row)).collect()
}

/// A buffer that holds `values`, by the only door there is.
fn upload<O: Ops>(ops: &mut O, values: &[f32], cols: usize) -> Result<O::Buffer, OpsError> {
    let rows = values.len() / cols;
    let table = ops.matrix(&[MatrixSource { quant: Quant::F32, rows, cols, data: cast_slice(values) }])?;
    let mut out = ops.buffer(rows, cols)?;
    ops.embed(&table, &(0..rows as u32).collect::<Vec<_>>(), &mut out)?;
    Ok(out)
}

fn linear<O: Ops>(ops: &mut O, quant: Quant) -> Result<Vec<f32>, OpsError> {
    // A segment and a part of one where the format allows it, and rows that fill no tile.
    let (rows, cols) = (45, if quant.block() > 32 { 512 } else { 352 });
    let data = stored(quant, rows, cols, 1);
    let w = ops.matrix(&[MatrixSource { quant, rows, cols, data: &data }])?;
    let mut found = Vec::new();
    for count in ROWS {
        let x = upload(ops, &values(count * cols, count as u32), cols)?;
        let mut out = ops.buffer(count, rows)?;
        ops.linear_fine(&x, &w, &mut out)?;
        found.extend(ops.read(&out)?);
        ops.linear(&x, &w, &mut out)?;
        ops.linear_add(&x, &w, &mut out)?;
        found.extend(ops.read(&out)?);
    }
    Ok(found)
}

/// Enough for the largest tiles to keep a large device busy.
fn wide<O: Ops>(ops: &mut O, quant: Quant) -> Result<Vec<f32>, OpsError> {
    let (rows, cols, count) = (1024, quant.block().max(32), 2048);
    let data = stored(quant, rows, cols, 40);
    let w = ops.matrix(&[MatrixSource { quant, rows, cols, data: &data }])?;
    let x = upload(ops, &values(count * cols, 41), cols)?;
    let mut out = ops.buffer(count, rows)?;
    ops.linear(&x, &w, &mut out)?;
    ops.read(&out)
}

fn embed<O: Ops>(ops: &mut O, quant: Quant) -> Result<Vec<f32>, OpsError> {
    let (rows, cols) = (40, 512);
    let data = stored(quant, rows, cols, 2);
    // Two parts, so that tokens of either are looked for in both.
    let half = data.len() / 2;
    let part = |data| MatrixSource { quant, rows: rows / 2, cols, data };
    let table = ops.matrix(&[part(&data[..half]), part(&data[half..])])?;
    let mut out = ops.buffer(4, cols)?;
    ops.embed(&table, &[39, 0, 7, 20], &mut out)?;
    ops.read(&out)
}

fn low_rank<O: Ops>(ops: &mut O, quant: Quant) -> Result<Vec<f32>, OpsError> {
    let (inputs, rank, outputs, count) = (96, 8, 40, 6);
    let (a, b) = (stored(quant, rank, inputs, 3), stored(quant, outputs, rank, 4));
    let matrix = |rows, cols, data| MatrixSource { quant, rows, cols, data };
    let source =
        LowRankSource { first_col: 16, a: matrix(rank, inputs, &a), b: matrix(outputs, rank, &b), scale: 0.75 };
    let adapter = ops.low_rank(&[source])?;
    let x = upload(ops, &values(count * inputs, 5), inputs)?;
    let mut out = upload(ops, &values(count * 64, 6), 64)?;
    ops.lora_add(&x, &[Adapted { rows: 1..5, by: &adapter }], &mut out)?;
    ops.read(&out)
}

fn norms<O: Ops>(ops: &mut O) -> Result<Vec<f32>, OpsError> {
    let (count, cols) = (3, 1056);
    let x = upload(ops, &values(count * cols, 7), cols)?;
    let (weight, bias) = (ops.vector(&values(cols, 8))?, ops.vector(&values(cols, 9))?);
    let of_head = ops.vector(&values(96, 10))?;
    let mut out = ops.buffer(count, cols)?;
    ops.norm(&x, &weight, 1e-5, &mut out)?;
    let mut found = ops.read(&out)?;
    ops.norm_heads(&of_head, 1e-6, 2..7, &mut out)?;
    found.extend(ops.read(&out)?);
    ops.layer_norm(&x, &weight, &bias, 1e-12, &mut out)?;
    found.extend(ops.read(&out)?);
    ops.normalize(&mut out)?;
    found.extend(ops.read(&out)?);
    Ok(found)
}

fn elementwise<O: Ops>(ops: &mut O) -> Result<Vec<f32>, OpsError> {
    let cols = 96;
    let x = upload(ops, &values(3 * cols, 11), cols)?;
    let mut out = upload(ops, &values(3 * cols, 12), cols)?;
    let bias = ops.vector(&values(cols, 13))?;
    ops.add_bias(&bias, &mut out)?;
    ops.add_scaled(&x, 0.37, &mut out)?;
    ops.scale(1.7, None, &mut out)?;
    ops.scale(9.0, Some(5.0), &mut out)?;
    ops.read(&out)
}

fn activations<O: Ops>(ops: &mut O) -> Result<Vec<f32>, OpsError> {
    let cols = 96;
    let wide: Vec<f32> = values(4 * cols, 14).iter().map(|v| v * 9.0).collect();
    let gate_up = upload(ops, &wide, 2 * cols)?;
    let mut out = ops.buffer(2, cols)?;
    let mut found = Vec::new();
    for of in [
        Activation::Silu,
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 },
    ] {
        ops.gate(of, &gate_up, &mut out)?;
        found.extend(ops.read(&out)?);
        ops.activate(of, &mut out)?;
        found.extend(ops.read(&out)?);
    }
    Ok(found)
}

fn rows<O: Ops>(ops: &mut O) -> Result<Vec<f32>, OpsError> {
    let (count, cols) = (6, 64);
    let x = upload(ops, &values(count * cols, 15), cols)?;
    let routing = Routing { used: 4, gating: Gating::Softmax, normalize: true, scale: 1.0 };
    let routed = ops.route(&x, &routing)?;
    let mut found: Vec<f32> = routed.iter().flatten().flat_map(|r| [r.expert as f32, r.weight]).collect();
    let (mut some, mut out) = (ops.buffer(3, cols)?, ops.buffer(8, cols)?);
    ops.gather(&x, &[5, 0, 3], &mut some)?;
    ops.zero(8, &mut out)?;
    ops.scatter_add(&some, &[(7, 0.5), (2, -1.25), (0, 3.0)], &mut out)?;
    ops.scatter_add(&some, &[(2, 0.3), (7, 0.7), (1, 0.1)], &mut out)?;
    found.extend(ops.read(&out)?);
    ops.mean_rows(&x, &[0..1, 1..6, 2..4], &mut some)?;
    found.extend(ops.read(&some)?);
    Ok(found)
}

/// A prompt of 290 positions, which are two splits in 19 blocks, in two chunks; beside it another's decode steps, with everything that attention may have.
fn attention<O: Ops>(ops: &mut O, kind: KvKind, dim: usize) -> Result<Vec<f32>, OpsError> {
    let heads = if dim > 64 { Heads { query: 2, kv: 1, dim } } else { Heads { query: 6, kv: 2, dim } };
    let shape = KvShape { layers: 2, kv_heads: heads.kv, head_dim: heads.dim, blocks: 24, kind };
    let mut cache = ops.kv_cache(shape)?;
    let mut host = ops.host_kv(KvShape { blocks: 24, ..shape })?;
    let rope = |pairs| Rope {
        frequencies: (0..heads.dim / 2).map(|i| 0.5f64.powi(i as i32 / 4)).collect(),
        magnitude: 1.0,
        pairs,
        positions: 512,
    };
    let ropes = [ops.rope_table(&rope(RopePairs::Halves))?, ops.rope_table(&rope(RopePairs::Adjacent))?];
    let sinks = ops.vector(&values(heads.query, 16))?;
    let blocks: Vec<u32> = (0..24).map(|i| i * 7 % 24).collect();
    let span = |first_row, rows, first_position, first_block| Span { first_row, rows, first_position, first_block };
    let steps = [vec![span(0, 200, 0, 0)], vec![span(0, 1, 0, 20), span(1, 90, 200, 0)], vec![span(0, 1, 1, 20)]];
    let plain = Mask { scale: 0.125, softcap: None, window: None, causal: true };
    let masks = [(plain, false), (Mask { softcap: Some(30.0), window: Some(100), ..plain }, true)];
    let mut found = Vec::new();
    for (number, spans) in steps.iter().enumerate() {
        let layout = StepLayout { spans, blocks: &blocks };
        for (layer, (mask, has_sinks)) in masks.iter().enumerate() {
            let numbers = values(layout.rows() * heads.qkv_cols(), 17 + (number * 2 + layer) as u32);
            let mut qkv = upload(ops, &numbers, heads.qkv_cols())?;
            ops.rope_store(Some(&ropes[layer]), &layout, heads, &mut qkv, &mut cache, layer)?;
            let mut out = ops.buffer(layout.rows(), heads.query * heads.dim)?;
            let sinks = has_sinks.then_some(&sinks);
            ops.attention(&layout, heads, *mask, sinks, &qkv, &cache, layer, &mut out)?;
            found.extend(ops.read(&out)?);
        }
        // To the host and back, to other places: what the next step reads of the second sequence came that way.
        ops.copy_out(&cache, &mut host, &[(blocks[20], 3)])?;
        ops.copy_in(&host, &mut cache, &[(3, blocks[20])])?;
    }
    Ok(found)
}

fn sampling<O: Ops>(ops: &mut O) -> Result<Vec<f32>, OpsError> {
    let vocabulary = 3_008;
    let logits: Vec<f32> = values(4 * vocabulary, 30).iter().map(|v| v * 6.0).collect();
    let logits = upload(ops, &logits, vocabulary)?;
    let mut history = TokenHistory::default();
    history.push_prompt(&[1, 2, 3]);
    (0..40).for_each(|token| history.push_output(token * 31 % 3_008));
    let plain = SamplingParams::default();
    let all = [
        SamplingParams { temperature: 0.0, ..plain.clone() },
        plain.clone(),
        SamplingParams { temperature: 0.7, top_k: 40, top_p: 0.9, min_p: 0.02, ..plain.clone() },
        SamplingParams {
            temperature: 1.3,
            repetition_penalty: 1.2,
            presence_penalty: 0.4,
            frequency_penalty: 0.3,
            logit_bias: vec![(5, 4.0), (6, f32::NEG_INFINITY)],
            ..plain
        },
    ];
    let mut found = Vec::new();
    for position in 0..8 {
        let request = |(row, params)| SampleRequest {
            row,
            seed: 7,
            position,
            forbidden: &[0, 9],
            ..SampleRequest::new(params, &history)
        };
        let requests: Vec<SampleRequest<'_>> = all.iter().enumerate().map(request).collect();
        found.extend(ops.sample(&logits, &requests)?.iter().map(|sampled| sampled.token as f32));
    }
    Ok(found)
}

fn ahead<O: Ops>(ops: &mut O) -> Result<Vec<f32>, OpsError> {
    let (vocabulary, history) = (96, TokenHistory::default());
    let logits = upload(ops, &values(2 * vocabulary, 50), vocabulary)?;
    let table = values(vocabulary * 32, 51);
    let table =
        ops.matrix(&[MatrixSource { quant: Quant::F32, rows: vocabulary, cols: 32, data: cast_slice(&table) }])?;
    let mut out = ops.buffer(3, 32)?;
    let params = SamplingParams::default();
    let requests = [0, 1].map(|row| SampleRequest { row, seed: 3, ..SampleRequest::new(&params, &history) });
    let tokens = if let Some(ahead) = ops.ahead() {
        ahead.draw(&logits, &requests)?;
        ahead.feed(vec![(2, 0), (0, 1)]);
        ops.embed(&table, &[0, 5, 0], &mut out)?;
        ops.ahead().map_or_else(|| Ok(Vec::new()), |ahead| ahead.collect())?
    } else {
        let drawn = ops.sample(&logits, &requests)?;
        ops.embed(&table, &[drawn[1].token, 5, drawn[0].token], &mut out)?;
        drawn
    };
    let mut found = ops.read(&out)?;
    found.extend(tokens.iter().map(|sampled| sampled.token as f32));
    Ok(found)
}

fn logprobs<O: Ops>(ops: &mut O) -> Result<Vec<f32>, OpsError> {
    let vocabulary = 3_008;
    let logits: Vec<f32> = values(2 * vocabulary, 31).iter().map(|v| v * 12.0).collect();
    let logits = upload(ops, &logits, vocabulary)?;
    let requests = [LogprobRequest { row: 1, token: 17, top: 20 }, LogprobRequest { row: 0, token: 3_000, top: 0 }];
    let answers = ops.logprobs(&logits, &requests)?;
    let numbers = |a: &crate::sampling::Logprobs| {
        let top: Vec<f32> = a.top.iter().flat_map(|(token, logprob)| [*token as f32, *logprob]).collect();
        [vec![a.logprob, a.rank as f32], top].concat()
    };
    Ok(answers.iter().flat_map(numbers).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Cpu;

    #[test]
    fn the_cpu_computes_the_contract() {
        let wrongs = wrongs(&mut Cpu::new(2));
        assert!(wrongs.is_empty(), "{wrongs:?}");
    }

    #[test]
    fn what_is_wrong_is_told() {
        // As exact as it is, the oracle of f64 has other roundings.
        let mut oracle = crate::Reference::new(crate::reference::Rounding::AsBackends);
        let wrong = Case::Norms.check(&mut oracle).unwrap_err().to_string();
        assert!(wrong.contains("values differ from the contract; the first is"), "{wrong}");
        let refused = refuse_unsound(&mut oracle).unwrap_err().to_string();
        assert!(refused.contains("this device does not compute what it should: norms: "), "{refused}");
        assert!(refuse_unsound(&mut Cpu::new(1)).is_ok());
    }
}
