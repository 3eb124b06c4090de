//! An operation with its operands on a backend, in as many sets as keep it out of the caches. Written once over `Ops`, so that the
//! contract (`Exact`) is asked for the same rows of the same numbers.

use cuckoo_kernels::ops::{
    Activation, Heads, KV_BLOCK_TOKENS, KvShape, Mask, MatrixSource, OpsError, Rope, RopePairs, Span, StepLayout,
};
use cuckoo_kernels::sampling::{SampleRequest, Sampled, SamplingParams, TokenHistory};
use cuckoo_kernels::{Ops, Quant};

use super::data::{Random, Weights};
use super::op::Op;

/// Different rows of activations; then they come again.
const DRAWN_ROWS: usize = 251;
/// Rows that keys and values are stored in at once.
const STORED_ROWS: usize = 2048;
/// Columns that logits are made of.
const LOGIT_INPUTS: usize = 32;
pub(crate) const EPSILON: f32 = 1e-5;
/// Weights are about this large, so that no sum grows.
const WEIGHT_SIZE: f32 = 0.05;
/// Positions that rotations are prepared for.
const POSITIONS: usize = 32_768;

/// What operands are made of, on the host: the same for every backend.
pub(crate) struct Numbers {
    /// Rows of activations.
    table: Vec<f32>,
    /// Bytes of a row of the matrix there is, if there is one.
    weights: Option<(Quant, Weights)>,
}

/// Columns of what goes in and what comes out.
pub(crate) fn widths(op: &Op) -> (usize, usize) {
    match *op {
        Op::Norm { cols, .. } => (cols, cols),
        Op::Gate { cols, .. } => (2 * cols, cols),
        Op::Linear { outputs, inputs, .. } => (inputs, outputs),
        Op::RopeStore { heads, .. } => (heads.qkv_cols(), heads.qkv_cols()),
        Op::Attention { heads, .. } | Op::CopyOut { heads, .. } => (heads.qkv_cols(), heads.query * heads.dim),
        Op::Sample { vocabulary, .. } => (LOGIT_INPUTS, vocabulary),
    }
}

impl Numbers {
    pub(crate) fn new(op: &Op) -> Self {
        let weights = match *op {
            Op::Linear { quant, .. } => Some((quant, Weights::new(quant, WEIGHT_SIZE, 3))),
            // So that logits spread like a model's: a sum of so many products of two values up to this.
            Op::Sample { .. } => Some((Quant::F32, Weights::new(Quant::F32, 1.5, 3))),
            _ => None,
        };
        Self { table: Random(7).values(DRAWN_ROWS * widths(op).0), weights }
    }

    /// The number of the drawn row that is row `row` of set `set`.
    pub(crate) fn drawn(row: usize, set: usize) -> u32 {
        ((row + 31 * set) % DRAWN_ROWS) as u32
    }

    /// The table on a backend.
    pub(crate) fn place<O: Ops>(&self, ops: &mut O, cols: usize) -> Result<O::Matrix, OpsError> {
        let data = bytes_of(&self.table);
        ops.matrix(&[MatrixSource { quant: Quant::F32, rows: DRAWN_ROWS, cols, data: &data }])
    }

    /// Rows `rows` of the matrix.
    pub(crate) fn matrix<O: Ops>(&self, ops: &mut O, rows: &[usize], cols: usize) -> Result<O::Matrix, OpsError> {
        let (quant, weights) = self.weights.as_ref().expect("the operation has weights");
        let each = quant.row_bytes(cols);
        let consecutive = rows.windows(2).all(|pair| pair[1] == pair[0] + 1);
        let data = match consecutive {
            true => weights.bytes(rows[0] * each, rows.len() * each),
            false => rows.iter().flat_map(|row| weights.bytes(row * each, each)).collect(),
        };
        ops.matrix(&[MatrixSource { quant: *quant, rows: rows.len(), cols, data: &data }])
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Where rows stand and where their keys and values lie.
pub(crate) struct Layout {
    spans: Vec<Span>,
    pub(crate) blocks: Vec<u32>,
}

impl Layout {
    /// `sequences` sequences of `depth` positions each, of which the last `rows` are computed. Blocks lie in no order.
    pub(crate) fn new(sequences: usize, rows: usize, depth: usize) -> Self {
        let each = depth.div_ceil(KV_BLOCK_TOKENS);
        let all = sequences * each;
        // A step that has no divisor in common with the number of blocks visits all of them.
        let step = (all * 5 / 8..).find(|step| gcd(*step, all) == 1).unwrap_or(1);
        let blocks = (0..all).map(|i| (i * step % all) as u32).collect();
        let span = |i| Span { first_row: i * rows, rows, first_position: depth - rows, first_block: i * each };
        Self { spans: (0..sequences).map(span).collect(), blocks }
    }

    fn step(&self) -> StepLayout<'_> {
        StepLayout { spans: &self.spans, blocks: &self.blocks }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

pub(crate) fn mask(heads: Heads) -> Mask {
    Mask { scale: 1.0 / (heads.dim as f32).sqrt(), softcap: None, window: None, causal: true }
}

/// Operands of one operation.
pub(crate) struct Work<O: Ops> {
    op: Op,
    pub(crate) sets: usize,
    table: O::Matrix,
    x: Vec<O::Buffer>,
    out: Vec<O::Buffer>,
    w: Vec<O::Matrix>,
    norm: Option<O::Vector>,
    rope: Option<O::RopeTable>,
    pub(crate) kv: Option<(O::KvCache, KvShape)>,
    host: Option<O::HostKv>,
    pub(crate) layout: Layout,
}

/// Rows of the operation that are computed: all of them, or those that the contract is asked for.
pub(crate) fn rows_of(op: &Op) -> usize {
    match *op {
        Op::Norm { rows, .. } | Op::Gate { rows, .. } | Op::Sample { rows, .. } => rows,
        Op::Linear { tokens, .. } => tokens,
        Op::RopeStore { sequences, rows, .. } | Op::Attention { sequences, rows, .. } => sequences * rows,
        Op::CopyOut { .. } => 1,
    }
}

impl<O: Ops> Work<O> {
    /// All operands, keys and values in place.
    pub(crate) fn new(ops: &mut O, op: Op, sets: usize, numbers: &Numbers) -> Result<Self, OpsError> {
        let (cols_in, cols_out) = widths(&op);
        let rows = rows_of(&op);
        let table = numbers.place(ops, cols_in)?;
        let (mut x, mut out, mut w) = (Vec::new(), Vec::new(), Vec::new());
        for set in 0..sets {
            let mut buffer = ops.buffer(rows, cols_in)?;
            let drawn: Vec<u32> = (0..rows).map(|row| Numbers::drawn(row, set)).collect();
            ops.embed(&table, &drawn, &mut buffer)?;
            x.push(buffer);
            if !matches!(op, Op::RopeStore { .. }) {
                out.push(ops.buffer(rows, cols_out)?);
            }
            if numbers.weights.is_some() {
                w.push(numbers.matrix(ops, &(0..cols_out).collect::<Vec<_>>(), cols_in)?);
            }
        }
        let norm = match op {
            Op::Norm { cols, .. } => Some(ops.vector(&norm_weights(cols))?),
            _ => None,
        };
        let mut work = Self {
            layout: Layout { spans: Vec::new(), blocks: Vec::new() },
            op,
            sets,
            table,
            x,
            out,
            w,
            norm,
            rope: None,
            kv: None,
            host: None,
        };
        work.place_keys(ops)?;
        if let Op::Sample { .. } = op {
            for set in 0..sets {
                ops.linear(&work.x[set], &work.w[set], &mut work.out[set])?;
            }
        }
        ops.wait()?;
        Ok(work)
    }

    /// Makes the cache, and fills all of it that attention will see.
    fn place_keys(&mut self, ops: &mut O) -> Result<(), OpsError> {
        let (heads, kind, layers, (sequences, rows, depth), filled) = match self.op {
            Op::RopeStore { sequences, rows, heads, kind } => (heads, kind, self.sets, (sequences, rows, rows), false),
            Op::Attention { sequences, rows, depth, heads, kind } => {
                (heads, kind, self.sets, (sequences, rows, depth), true)
            }
            Op::CopyOut { tokens, layers, heads, kind } => (heads, kind, layers, (1, 1, tokens), true),
            _ => return Ok(()),
        };
        self.layout = Layout::new(sequences, rows, depth);
        self.rope = Some(ops.rope_table(&rope(heads, depth.clamp(1, POSITIONS)))?);
        let blocks = self.layout.blocks.len();
        let shape = KvShape { layers, kv_heads: heads.kv, head_dim: heads.dim, blocks, kind };
        self.kv = Some((ops.kv_cache(shape)?, shape));
        if let Op::CopyOut { .. } = self.op {
            self.host = Some(ops.host_kv(shape)?);
        }
        if filled {
            for layer in 0..layers {
                for sequence in 0..sequences {
                    self.store(ops, (layer, sequence), depth)?;
                }
            }
        }
        Ok(())
    }

    /// Stores keys and values of a whole sequence, always the same ones, piece by piece.
    fn store(&mut self, ops: &mut O, (layer, sequence): (usize, usize), depth: usize) -> Result<(), OpsError> {
        let heads = heads(&self.op);
        let each = depth.min(STORED_ROWS);
        let mut rows = ops.buffer(each, heads.qkv_cols())?;
        let first_block = self.layout.spans[sequence].first_block;
        for first in (0..depth).step_by(each) {
            let count = each.min(depth - first);
            let drawn: Vec<u32> = (first..first + count).map(|row| Numbers::drawn(row, 1)).collect();
            ops.embed(&self.table, &drawn, &mut rows)?;
            let span = Span { first_row: 0, rows: count, first_position: first, first_block };
            let step = StepLayout { spans: &[span], blocks: &self.layout.blocks };
            let (cache, _) = self.kv.as_mut().expect("there is a cache");
            ops.rope_store(self.rope.as_ref(), &step, heads, &mut rows, cache, layer)?;
        }
        Ok(())
    }

    /// Does it once on set `set`.
    pub(crate) fn launch(&mut self, ops: &mut O, set: usize) -> Result<(), OpsError> {
        match self.op {
            Op::Norm { .. } => {
                let weight = self.norm.as_ref().expect("a norm has weights");
                ops.norm(&self.x[set], weight, EPSILON, &mut self.out[set])
            }
            Op::Gate { .. } => ops.gate(Activation::Silu, &self.x[set], &mut self.out[set]),
            Op::Linear { .. } => ops.linear(&self.x[set], &self.w[set], &mut self.out[set]),
            Op::RopeStore { heads, .. } => {
                let (cache, _) = self.kv.as_mut().expect("there is a cache");
                ops.rope_store(self.rope.as_ref(), &self.layout.step(), heads, &mut self.x[set], cache, set)
            }
            Op::Attention { heads, .. } => {
                let (cache, _) = self.kv.as_ref().expect("there is a cache");
                let step = self.layout.step();
                ops.attention(&step, heads, mask(heads), None, &self.x[set], cache, set, &mut self.out[set])
            }
            Op::Sample { .. } => self.sample(ops, set).map(drop),
            Op::CopyOut { .. } => {
                let (cache, shape) = self.kv.as_ref().expect("there is a cache");
                let all: Vec<(u32, u32)> = (0..shape.blocks as u32).map(|block| (block, block)).collect();
                ops.copy_out(cache, self.host.as_mut().expect("there is room on the host"), &all)
            }
        }
    }

    /// The tokens that are drawn.
    pub(crate) fn sample(&mut self, ops: &mut O, set: usize) -> Result<Vec<Sampled>, OpsError> {
        let (params, history) = (sampling(), TokenHistory::default());
        let request = |row| request(row, &params, &history);
        ops.sample(&self.out[set], &(0..rows_of(&self.op)).map(request).collect::<Vec<_>>())
    }

    /// What it works on and writes: logits for a sampler, rows in place for rotations.
    pub(crate) fn output(&mut self, ops: &mut O, set: usize) -> Result<Vec<f32>, OpsError> {
        match self.op {
            Op::RopeStore { .. } => ops.read(&self.x[set]),
            _ => ops.read(&self.out[set]),
        }
    }

    /// Makes the output what no operation may leave there; rotations work in place, on fresh rows.
    pub(crate) fn poison(&mut self, ops: &mut O, set: usize) -> Result<(), OpsError> {
        let rows = rows_of(&self.op);
        match self.op {
            Op::RopeStore { .. } => {
                let drawn: Vec<u32> = (0..rows).map(|row| Numbers::drawn(row, set)).collect();
                ops.embed(&self.table, &drawn, &mut self.x[set])
            }
            Op::Sample { .. } | Op::CopyOut { .. } => Ok(()),
            _ => {
                ops.zero(rows, &mut self.out[set])?;
                ops.scale(f32::NAN, None, &mut self.out[set])
            }
        }
    }

    /// Copies everything to the host, stores other keys and values over it, copies it back: whether attention sees what it saw
    /// before, and other things meanwhile.
    pub(crate) fn comes_back(&mut self, ops: &mut O) -> Result<bool, OpsError> {
        let Op::CopyOut { tokens, layers, heads, .. } = self.op else { return Ok(true) };
        let attend = |work: &mut Self, ops: &mut O| {
            let mut seen = Vec::new();
            for layer in [0, layers - 1] {
                let (cache, _) = work.kv.as_ref().expect("there is a cache");
                let step = work.layout.step();
                ops.attention(&step, heads, mask(heads), None, &work.x[0], cache, layer, &mut work.out[0])?;
                seen.extend(ops.read(&work.out[0])?.iter().map(|v| v.to_bits()));
            }
            Ok::<_, OpsError>(seen)
        };
        let before = attend(self, ops)?;
        self.launch(ops, 0)?;
        let rope = self.rope.take();
        // Without a rotation, keys are others.
        for layer in 0..layers {
            self.store(ops, (layer, 0), tokens)?;
        }
        self.rope = rope;
        let meanwhile = attend(self, ops)?;
        let (cache, shape) = self.kv.as_mut().expect("there is a cache");
        let all: Vec<(u32, u32)> = (0..shape.blocks as u32).map(|block| (block, block)).collect();
        ops.copy_in(self.host.as_ref().expect("there is room on the host"), cache, &all)?;
        let after = attend(self, ops)?;
        Ok(before == after && before != meanwhile)
    }
}

/// How tokens are drawn.
pub(crate) fn sampling() -> SamplingParams {
    SamplingParams { top_k: 50, top_p: 0.9, ..SamplingParams::default() }
}

/// The draw of a row: every one has a seed of its own.
pub(crate) fn request<'a>(row: usize, params: &'a SamplingParams, history: &'a TokenHistory) -> SampleRequest<'a> {
    SampleRequest { row, seed: 1 + row as u64, position: 17, ..SampleRequest::new(params, history) }
}

pub(crate) fn heads(op: &Op) -> Heads {
    match *op {
        Op::RopeStore { heads, .. } | Op::Attention { heads, .. } | Op::CopyOut { heads, .. } => heads,
        _ => panic!("the operation has no heads"),
    }
}

pub(crate) fn norm_weights(cols: usize) -> Vec<f32> {
    Random(5).values(cols).into_iter().map(|v| 1.0 + 0.25 * v).collect()
}

pub(crate) fn rope(heads: Heads, positions: usize) -> Rope {
    let frequencies = (0..heads.dim / 2).map(|i| 5e5f64.powf(-2.0 * i as f64 / heads.dim as f64)).collect();
    Rope { frequencies, magnitude: 1.0, pairs: RopePairs::Adjacent, positions }
}
