//! What the contract says of some rows of an operation, and whether a backend gave that.

use cuckoo_kernels::cuda::{Cuda, Machine};
use cuckoo_kernels::ops::{Activation, Heads, KvShape, OpsError, Span, StepLayout};
use cuckoo_kernels::sampling::{TokenHistory, draw};
use cuckoo_kernels::{Exact, KvKind, Ops};
use serde_json::{Value, json};

use super::op::Op;
use super::work::{
    EPSILON, Layout, Numbers, Work, heads, mask, norm_weights, request, rope, rows_of, sampling, widths,
};

/// Rows of the output that are looked at, and columns where every one costs a row of weights.
const ROWS: usize = 3;
const OUTPUTS: usize = 16;

/// The contract's values: `(where in the output, value)`.
pub(crate) type Expected = Vec<(usize, f32)>;

/// What was found out about an output.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checked {
    /// Values that were compared with the contract's.
    pub(crate) compared: usize,
    /// Of these, those that are not equal to the bit.
    pub(crate) differ: usize,
    /// The length of the difference over the length of the contract's values.
    pub(crate) relative_error: f64,
    /// Values that are no finite numbers, of the whole output: poison that was left there, for one.
    pub(crate) not_finite: usize,
    /// The relative error that is allowed; none where every bit is asked for.
    pub(crate) allowed: f64,
}

impl Checked {
    /// Compares; an output that is too short differs.
    pub(crate) fn of(output: &[f32], expected: &Expected, allowed: f64) -> Self {
        let (mut differ, mut error, mut length) = (0, 0.0, 0.0);
        for (at, wanted) in expected {
            let got = output.get(*at).copied().unwrap_or(f32::NAN);
            differ += usize::from(got.to_bits() != wanted.to_bits());
            error += (f64::from(got) - f64::from(*wanted)).powi(2);
            length += f64::from(*wanted).powi(2);
        }
        let relative_error = if error == 0.0 { 0.0 } else { (error / length).sqrt() };
        let not_finite = output.iter().filter(|v| !v.is_finite()).count();
        Self { compared: expected.len(), differ, relative_error, not_finite, allowed }
    }

    /// A yes or no.
    fn of_whole(equal: bool) -> Self {
        let differ = usize::from(!equal);
        Self { compared: 1, differ, relative_error: differ as f64, not_finite: 0, allowed: 0.0 }
    }

    /// Finite everywhere and equal to the bit, or as near as is allowed.
    pub(crate) fn is_right(&self) -> bool {
        self.not_finite == 0 && (self.differ == 0 || self.relative_error < self.allowed)
    }

    pub(crate) fn json(&self) -> Value {
        // What is no number is no JSON either.
        let error = self.relative_error.is_finite().then_some(self.relative_error);
        json!({
            "right": self.is_right(), "compared": self.compared, "differ": self.differ, "relative_error": error,
            "not_finite": self.not_finite, "allowed": self.allowed,
        })
    }
}

/// Does the operation once on set `set`, where its output was poisoned, and compares. Gives the whole output as well.
pub(crate) fn check<M: Machine>(
    cuda: &mut Cuda<M>,
    work: &mut Work<Cuda<M>>,
    op: &Op,
    (set, numbers, allowed): (usize, &Numbers, f64),
) -> Result<(Checked, Vec<f32>), OpsError> {
    match op {
        Op::Sample { vocabulary, .. } => {
            let drawn = work.sample(cuda, set)?;
            let logits = work.output(cuda, set)?;
            let (params, history) = (sampling(), TokenHistory::default());
            let right = |(row, drawn): (usize, _)| {
                let logits = &logits[row * vocabulary..][..*vocabulary];
                Ok::<_, OpsError>(draw(logits, &request(row, &params, &history))? == drawn)
            };
            let right: Vec<bool> = drawn.into_iter().enumerate().map(right).collect::<Result<_, _>>()?;
            let differ = right.iter().filter(|right| !**right).count();
            let relative_error = differ as f64 / right.len().max(1) as f64;
            Ok((Checked { compared: right.len(), differ, relative_error, not_finite: 0, allowed: 0.0 }, Vec::new()))
        }
        Op::CopyOut { .. } => Ok((Checked::of_whole(work.comes_back(cuda)?), Vec::new())),
        _ => {
            work.poison(cuda, set)?;
            work.launch(cuda, set)?;
            let output = work.output(cuda, set)?;
            let expected = expected(&mut Exact::new(), op, set, numbers)?;
            Ok((Checked::of(&output, &expected, allowed), output))
        }
    }
}

/// Places in `0..count`: both ends, and some between.
fn picked(count: usize, most: usize) -> Vec<usize> {
    let mut picked: Vec<usize> = (0..most).map(|i| i * (count - 1) / (most - 1)).collect();
    picked.dedup();
    picked
}

/// What the contract says of some rows of set `set`, computed alone on `ops`: rows depend on nothing but themselves.
pub(crate) fn expected<O: Ops>(ops: &mut O, op: &Op, set: usize, numbers: &Numbers) -> Result<Expected, OpsError> {
    let (cols_in, cols_out) = widths(op);
    let rows = picked(rows_of(op), ROWS);
    let table = numbers.place(ops, cols_in)?;
    let drawn: Vec<u32> = rows.iter().map(|row| Numbers::drawn(*row, set)).collect();
    let mut x = ops.buffer(rows.len(), cols_in)?;
    ops.embed(&table, &drawn, &mut x)?;
    let (mut cols, mut out): (Vec<usize>, _) = ((0..cols_out).collect(), ops.buffer(rows.len(), cols_out)?);
    let values = match *op {
        Op::Norm { cols, .. } => {
            let weight = ops.vector(&norm_weights(cols))?;
            ops.norm(&x, &weight, EPSILON, &mut out)?;
            ops.read(&out)?
        }
        Op::Gate { .. } => {
            ops.gate(Activation::Silu, &x, &mut out)?;
            ops.read(&out)?
        }
        Op::Linear { outputs, inputs, .. } => {
            cols = picked(outputs, OUTPUTS);
            let (w, mut out) = (numbers.matrix(ops, &cols, inputs)?, ops.buffer(rows.len(), cols.len())?);
            ops.linear(&x, &w, &mut out)?;
            ops.read(&out)?
        }
        Op::RopeStore { rows: each, kind, .. } => turned(ops, op, &table, (&rows, &drawn), (each, kind))?,
        Op::Attention { rows: each, depth, heads, kind, .. } => {
            // Every sequence holds the same keys and values, each in blocks of its own.
            let one = Op::Attention { sequences: 1, rows: 1, depth, heads, kind };
            let work = Work::<O>::new(ops, one, 1, numbers)?;
            let positions: Vec<usize> = rows.iter().map(|row| depth - each + row % each).collect();
            attended(ops, &work, heads, &table, (&positions, &drawn))?
        }
        Op::Sample { .. } | Op::CopyOut { .. } => Vec::new(),
    };
    let places = rows.iter().flat_map(|row| cols.iter().map(move |col| row * cols_out + col));
    Ok(places.zip(values).collect())
}

/// Rows with their queries and keys turned.
fn turned<O: Ops>(
    ops: &mut O,
    op: &Op,
    table: &O::Matrix,
    (rows, drawn): (&[usize], &[u32]),
    (each, kind): (usize, KvKind),
) -> Result<Vec<f32>, OpsError> {
    let (heads, layout) = (heads(op), Layout::new(1, 1, each));
    let shape = KvShape { layers: 1, kv_heads: heads.kv, head_dim: heads.dim, blocks: layout.blocks.len(), kind };
    let (mut cache, rope) = (ops.kv_cache(shape)?, ops.rope_table(&rope(heads, each))?);
    let mut values = Vec::new();
    for (row, drawn) in rows.iter().zip(drawn) {
        let mut one = ops.buffer(1, heads.qkv_cols())?;
        ops.embed(table, &[*drawn], &mut one)?;
        let span = Span { first_row: 0, rows: 1, first_position: row % each, first_block: 0 };
        let step = StepLayout { spans: &[span], blocks: &layout.blocks };
        ops.rope_store(Some(&rope), &step, heads, &mut one, &mut cache, 0)?;
        values.extend(ops.read(&one)?);
    }
    Ok(values)
}

/// Attention of single rows at `positions`.
fn attended<O: Ops>(
    ops: &mut O,
    work: &Work<O>,
    heads: Heads,
    table: &O::Matrix,
    (positions, drawn): (&[usize], &[u32]),
) -> Result<Vec<f32>, OpsError> {
    let (cache, _) = work.kv.as_ref().expect("there is a cache");
    let mut values = Vec::new();
    for (position, drawn) in positions.iter().zip(drawn) {
        let (mut query, mut out) = (ops.buffer(1, heads.qkv_cols())?, ops.buffer(1, heads.query * heads.dim)?);
        ops.embed(table, &[*drawn], &mut query)?;
        let span = Span { first_row: 0, rows: 1, first_position: *position, first_block: 0 };
        let step = StepLayout { spans: &[span], blocks: &work.layout.blocks };
        ops.attention(&step, heads, mask(heads), None, &query, cache, 0, &mut out)?;
        values.extend(ops.read(&out)?);
    }
    Ok(values)
}
