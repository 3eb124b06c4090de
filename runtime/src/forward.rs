//! The forward pass of a decoder-only transformer, once, over any backend. Knows no batch, actor or peer.

use std::fs::File;

use cuckoo_kernels::ops::{Heads, KvShape, MatrixSource, OpsError, Rope, RopePairs, StepLayout};
use cuckoo_kernels::quant::dequantize_row;
use cuckoo_kernels::{Ops, Quant};
use cuckoo_models::{ArchSpec, GgmlType, Gguf, TensorInfo};

/// Why weights could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("weights cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// The device refused them.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// The backend has no arithmetic for them.
    #[error(
        "tensor {tensor} is stored as {kind}, which cannot be computed with; use a file quantized as one of F32, \
         F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4"
    )]
    Unsupported {
        /// The tensor.
        tensor: String,
        /// Its format.
        kind: GgmlType,
    },
    /// A tensor that the architecture needs is not there.
    #[error("tensor {0} is missing: this is not a complete model file")]
    Missing(String),
}

/// Weights on a device.
pub struct Model<O: Ops> {
    spec: ArchSpec,
    embedding: O::Matrix,
    layers: Vec<Layer<O>>,
    norm: O::Vector,
    /// `None` where the output head is the embedding table.
    head: Option<O::Matrix>,
    rope: O::RopeTable,
}

struct Layer<O: Ops> {
    attention_norm: O::Vector,
    qkv: O::Matrix,
    output: O::Matrix,
    ffn_norm: O::Vector,
    gate_up: O::Matrix,
    down: O::Matrix,
}

/// Activations of one step, allocated once.
pub struct Workspace<O: Ops> {
    hidden: O::Buffer,
    normed: O::Buffer,
    qkv: O::Buffer,
    attended: O::Buffer,
    gate_up: O::Buffer,
    gated: O::Buffer,
    picked: O::Buffer,
    /// Logits of the rows that were asked for, in their order.
    pub logits: O::Buffer,
}

impl<O: Ops> Model<O> {
    /// Loads every tensor of `gguf` that `spec` names; `progress` hears the bytes loaded so far.
    pub fn load(
        ops: &mut O,
        gguf: &Gguf,
        file: &File,
        spec: &ArchSpec,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, LoadError> {
        let mut loader = Loader { ops, gguf, file, loaded_bytes: 0, progress: &mut progress };
        let embedding = loader.matrix(&["token_embd.weight".to_owned()])?;
        let layers = (0..spec.layers).map(|i| loader.layer(i)).collect::<Result<_, _>>()?;
        let norm = loader.vector("output_norm.weight")?;
        let head = match spec.tied_head {
            true => None,
            false => Some(loader.matrix(&["output.weight".to_owned()])?),
        };
        let factors = match gguf.tensor("rope_freqs.weight") {
            Some(_) => Some(loader.values("rope_freqs.weight")?),
            None => None,
        };
        let rope = ops.rope_table(&Rope {
            base: spec.rope_base,
            dims: spec.rope_dims,
            pairs: RopePairs::Adjacent,
            factors,
            positions: spec.context_tokens,
        })?;
        Ok(Self { spec: spec.clone(), embedding, layers, norm, head, rope })
    }

    /// What was loaded.
    pub fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    fn heads(&self) -> Heads {
        Heads { query: self.spec.heads, kv: self.spec.kv_heads, dim: self.spec.head_dim }
    }

    /// Runs `tokens`, laid out as `step` says, and leaves the logits of the rows in `wanted` in `work.logits`.
    pub fn forward(
        &self,
        ops: &mut O,
        work: &mut Workspace<O>,
        cache: &mut O::KvCache,
        tokens: &[u32],
        step: &StepLayout<'_>,
        wanted: &[usize],
    ) -> Result<(), OpsError> {
        let (heads, epsilon) = (self.heads(), self.spec.norm_epsilon);
        let scale = 1.0 / (heads.dim as f32).sqrt();
        ops.embed(&self.embedding, tokens, &mut work.hidden)?;
        for (i, layer) in self.layers.iter().enumerate() {
            ops.norm(&work.hidden, &layer.attention_norm, epsilon, &mut work.normed)?;
            ops.linear(&work.normed, &layer.qkv, &mut work.qkv)?;
            ops.rope_store(&self.rope, step, heads, &mut work.qkv, cache, i)?;
            ops.attention(step, heads, scale, &work.qkv, cache, i, &mut work.attended)?;
            ops.linear_add(&work.attended, &layer.output, &mut work.hidden)?;

            ops.norm(&work.hidden, &layer.ffn_norm, epsilon, &mut work.normed)?;
            ops.linear(&work.normed, &layer.gate_up, &mut work.gate_up)?;
            ops.swiglu(&work.gate_up, &mut work.gated)?;
            ops.linear_add(&work.gated, &layer.down, &mut work.hidden)?;
        }
        if wanted.is_empty() {
            return Ok(());
        }
        ops.gather(&work.hidden, wanted, &mut work.picked)?;
        ops.norm(&work.picked, &self.norm, epsilon, &mut work.normed)?;
        ops.linear(&work.normed, self.head.as_ref().unwrap_or(&self.embedding), &mut work.logits)
    }
}

impl<O: Ops> Workspace<O> {
    /// For steps of at most `rows` rows of which at most `wanted` need logits.
    pub fn new(ops: &mut O, spec: &ArchSpec, rows: usize, wanted: usize) -> Result<Self, OpsError> {
        let attended = spec.heads * spec.head_dim;
        let heads = Heads { query: spec.heads, kv: spec.kv_heads, dim: spec.head_dim };
        Ok(Self {
            hidden: ops.buffer(rows, spec.hidden)?,
            normed: ops.buffer(rows, spec.hidden)?,
            qkv: ops.buffer(rows, heads.qkv_cols())?,
            attended: ops.buffer(rows, attended)?,
            gate_up: ops.buffer(rows, 2 * spec.ffn)?,
            gated: ops.buffer(rows, spec.ffn)?,
            picked: ops.buffer(wanted, spec.hidden)?,
            logits: ops.buffer(wanted, spec.vocab)?,
        })
    }

    /// Bytes that [`Workspace::new`] will ask for.
    pub fn bytes(spec: &ArchSpec, rows: usize, wanted: usize) -> usize {
        let heads = Heads { query: spec.heads, kv: spec.kv_heads, dim: spec.head_dim };
        let row = 2 * spec.hidden + heads.qkv_cols() + spec.heads * spec.head_dim + 3 * spec.ffn;
        4 * (rows * row + wanted * (spec.hidden + spec.vocab))
    }
}

/// The KV cache that `spec` needs for `blocks` blocks.
pub fn kv_shape(spec: &ArchSpec, blocks: usize) -> KvShape {
    KvShape { layers: spec.layers, kv_heads: spec.kv_heads, head_dim: spec.head_dim, blocks }
}

struct Loader<'a, O: Ops> {
    ops: &'a mut O,
    gguf: &'a Gguf,
    file: &'a File,
    loaded_bytes: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a, O: Ops> Loader<'a, O> {
    fn layer(&mut self, i: usize) -> Result<Layer<O>, LoadError> {
        let name = |part: &str| format!("blk.{i}.{part}.weight");
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm"))?,
            qkv: self.matrix(&["attn_q", "attn_k", "attn_v"].map(name))?,
            output: self.matrix(&[name("attn_output")])?,
            ffn_norm: self.vector(&name("ffn_norm"))?,
            gate_up: self.matrix(&["ffn_gate", "ffn_up"].map(name))?,
            down: self.matrix(&[name("ffn_down")])?,
        })
    }

    /// Matrices stacked by rows into one.
    fn matrix(&mut self, names: &[String]) -> Result<O::Matrix, LoadError> {
        let parts = names
            .iter()
            .map(|name| {
                let info = self.info(name)?;
                Ok((info, quant(info)?, self.read(info)?))
            })
            .collect::<Result<Vec<_>, LoadError>>()?;
        let sources: Vec<MatrixSource<'_>> = parts
            .iter()
            .map(|(info, quant, data)| MatrixSource {
                quant: *quant,
                rows: info.dims.get(1).map_or(1, |d| *d as usize),
                cols: info.dims.first().map_or(1, |d| *d as usize),
                data,
            })
            .collect();
        let matrix = self.ops.matrix(&sources)?;
        self.loaded_bytes += parts.iter().map(|(_, _, data)| data.len() as u64).sum::<u64>();
        (self.progress)(self.loaded_bytes);
        Ok(matrix)
    }

    fn vector(&mut self, name: &str) -> Result<O::Vector, LoadError> {
        let values = self.values(name)?;
        Ok(self.ops.vector(&values)?)
    }

    fn values(&mut self, name: &str) -> Result<Vec<f32>, LoadError> {
        let info = self.info(name)?;
        let (quant, data) = (quant(info)?, self.read(info)?);
        let mut values = vec![0.0; info.dims.iter().product::<u64>() as usize];
        dequantize_row(quant, &data, &mut values);
        Ok(values)
    }

    fn info(&self, name: &str) -> Result<&'a TensorInfo, LoadError> {
        self.gguf.tensor(name).ok_or_else(|| LoadError::Missing(name.to_owned()))
    }

    fn read(&self, info: &TensorInfo) -> Result<Vec<u8>, LoadError> {
        Ok(self.gguf.read_tensor(self.file, info)?)
    }
}

fn quant(info: &TensorInfo) -> Result<Quant, LoadError> {
    Quant::from_gguf(info.kind.code())
        .ok_or_else(|| LoadError::Unsupported { tensor: info.name.clone(), kind: info.kind })
}
