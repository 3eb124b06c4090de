//! The operations a model is made of: one trait, one contract per operation. Backends implement it; the forward pass is
//! written once over it. An operation never knows which model, sequence or peer it works for.
//!
//! # Numerics
//!
//! `NUMERICS.md` of this crate fixes the rounding and the order of every operation, and [`crate::exact`] is that page as
//! code. The order depends on shapes and on positions inside a sequence only: never on how many rows share the step, on
//! where a prompt was cut into chunks, or on the number of threads. So *batched equals alone* and *chunked prefill equals
//! whole*, bit for bit, on every backend and between them.
//!
//! Values are rounded to less than `f32` in two places:
//! - `linear` and `linear_add` quantize each row of activations in blocks of [`ACTIVATION_BLOCK`] to signed 8-bit integers
//!   with one `f32` scale a block (see [`crate::quant::quantize_activations`]) where they meet quantized weights;
//!   `linear_fine` to integers of 15 bits, as two such planes; floating-point weights meet activations as they are;
//! - `rope_store` rounds keys and values to what the cache keeps: see [`KvKind::rounded`].

use std::ops::Range;

use crate::kv::KvKind;
use crate::low_rank::Adapted;
use crate::memory::Memory;
use crate::quant::Quant;
use crate::routing::{Routed, Routing};
use crate::sampling::{LogprobRequest, Logprobs, SampleRequest, Sampled};

/// Columns that share one activation scale.
pub const ACTIVATION_BLOCK: usize = 32;

/// Blocks of columns whose products are summed before they are added to the total: 256 columns.
pub const SEGMENT_BLOCKS: usize = 8;

/// What [`Ops::normalize`] divides shorter rows by.
pub const LENGTH_MIN: f32 = 1e-12;

/// Token positions in one KV block, on every backend.
pub const KV_BLOCK_TOKENS: usize = 16;

/// Positions whose part of an attention is summed by itself before it joins those before them; whole KV blocks.
pub const ATTENTION_SPLIT: usize = 256;

/// A matrix as it lies in a model file: row-major, each row quantized by itself.
#[derive(Clone, Copy, Debug)]
pub struct MatrixSource<'a> {
    /// How values are stored.
    pub quant: Quant,
    /// Output features.
    pub rows: usize,
    /// Input features; a multiple of [`ACTIVATION_BLOCK`] and of the format's block.
    pub cols: usize,
    /// `rows * quant.row_bytes(cols)` bytes.
    pub data: &'a [u8],
}

/// Consecutive rows of one sequence inside a step: a decode is a span of one row, a prefill chunk a span of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row of the step that belongs to this span.
    pub first_row: usize,
    /// Rows in this span, at least one.
    pub rows: usize,
    /// Position in the sequence of the first row; row `i` stands at `first_position + i`.
    pub first_position: usize,
    /// Where this sequence's block table begins in [`StepLayout::blocks`].
    pub first_block: usize,
}

impl Span {
    /// KV blocks that hold positions `0 ..= last` of this span.
    pub fn blocks(&self) -> usize {
        (self.first_position + self.rows).div_ceil(KV_BLOCK_TOKENS)
    }
}

/// Which rows of a step belong to which sequence, and where their keys and values live.
#[derive(Clone, Copy, Debug)]
pub struct StepLayout<'a> {
    /// In row order, without gaps: span `i + 1` begins where span `i` ends.
    pub spans: &'a [Span],
    /// Concatenated block tables. Block `b` of a span is `blocks[span.first_block + b]`.
    pub blocks: &'a [u32],
}

impl StepLayout<'_> {
    /// Rows of the whole step.
    pub fn rows(&self) -> usize {
        self.spans.last().map_or(0, |s| s.first_row + s.rows)
    }
}

/// Attention geometry. A row of the fused projection is `[query | key | value]`, heads contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads; a multiple of `kv`.
    pub query: usize,
    /// Key/value heads (grouped-query attention).
    pub kv: usize,
    /// Values per head; a multiple of 16.
    pub dim: usize,
}

impl Heads {
    /// Columns of the fused projection.
    pub fn qkv_cols(&self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }
}

/// Which two values of a head a rotation turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `(2i, 2i + 1)`: llama weights as GGUF stores them.
    Adjacent,
    /// `(i, i + dims / 2)`: the GPT-NeoX convention (qwen, gemma, phi).
    Halves,
}

/// Rotary position embedding (Su et al., arXiv 2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians that each pair turns a position. Twice as many leading values of each head are rotated.
    pub frequencies: Vec<f64>,
    /// What sines and cosines are multiplied by; 1 but where a context was stretched (YaRN, arXiv 2309.00071).
    pub magnitude: f32,
    /// Pairing.
    pub pairs: RopePairs,
    /// Positions that will ever be asked for; backends precompute a table of this length.
    pub positions: usize,
}

impl Rope {
    /// Cosine and sine of pair `i` at a position: of an f64 angle by musl's functions, which are the same on every host,
    /// times the magnitude, rounded once.
    pub fn turn(&self, position: usize, i: usize) -> (f32, f32) {
        let (sine, cosine) = libm::sincos(position as f64 * self.frequencies[i]);
        let magnitude = f64::from(self.magnitude);
        ((cosine * magnitude) as f32, (sine * magnitude) as f32)
    }
}

/// What a layer's attention is like beside its heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    /// Scores are products of queries and keys times this.
    pub scale: f32,
    /// `c * tanh(score / c)` (Gemma 2, arXiv 2408.00118).
    pub softcap: Option<f32>,
    /// How many of the newest positions are seen, the own one included.
    pub window: Option<usize>,
    /// Whether a row sees only positions up to its own; otherwise it sees the whole span and all before it.
    pub causal: bool,
}

impl Mask {
    /// The positions that row `row` of `span` sees.
    pub fn seen(&self, span: &Span, row: usize) -> Range<usize> {
        let own = span.first_position + row;
        let end = if self.causal { own + 1 } else { span.first_position + span.rows };
        (own + 1).saturating_sub(self.window.unwrap_or(usize::MAX))..end
    }
}

/// Activations of feed-forward networks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its approximation with `tanh` (arXiv 1606.08415), which is `x * sigmoid(1.5957691 (x + 0.044715 x^3))`.
    GeluTanh,
    /// GELU by `erf`, that by 7.1.26 of Abramowitz and Stegun.
    GeluErf,
    /// `g * sigmoid(alpha g)` of `g = min(x, limit)`; what it is multiplied by is clamped to `+-limit` and raised by 1.
    ClampedSwiglu {
        /// The sigmoid's steepness.
        alpha: f32,
        /// Where inputs are cut.
        limit: f32,
    },
}

/// Extent of one paged KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer layers.
    pub layers: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Blocks of [`KV_BLOCK_TOKENS`] positions, shared by all sequences.
    pub blocks: usize,
    /// How values are kept.
    pub kind: KvKind,
}

impl KvShape {
    /// Bytes that one block takes over all layers.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.kv_heads * self.kind.row_bytes(self.head_dim) * 2 * KV_BLOCK_TOKENS
    }

    /// Bytes of all blocks; [`usize::MAX`] where that is no number.
    pub fn bytes(&self) -> usize {
        self.blocks.saturating_mul(self.block_bytes())
    }
}

/// A device that could not do what was asked of it. Wrong shapes are bugs and panic; this is the world's fault.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// Asked for more memory than there is.
    #[error("{what} needs {bytes} bytes and the device refused them")]
    OutOfMemory {
        /// What was to be placed there.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// A matrix that contradicts itself.
    #[error("matrix of {rows}x{cols} {quant}: {why}")]
    BadMatrix {
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Storage format.
        quant: Quant,
        /// What is wrong with it.
        why: String,
    },
    /// The device failed while running.
    #[error("device fault: {0}")]
    Fault(String),
    /// The device failed in a way that nothing in this process mends.
    #[error("the device is lost until the process starts afresh: {0}")]
    Lost(String),
}

/// Draws that nobody waits for: tokens stay on the device until they are collected, and the next step can use them there.
pub trait DrawAhead<B> {
    /// Whether all of these can be drawn so, from rows of `vocabulary` logits.
    fn can_draw(&self, requests: &[SampleRequest<'_>], vocabulary: usize) -> bool;
    /// Draws as [`Ops::sample`] does. Where there are no requests, what is collected says when everything before is done.
    fn draw(&mut self, logits: &B, requests: &[SampleRequest<'_>]) -> Result<(), OpsError>;
    /// For each `(row, draw)` the next [`Ops::embed`] takes what draw `draw` of the last [`DrawAhead::draw`] gave, in place of
    /// what it is told for that row.
    fn feed(&mut self, rows: Vec<(usize, usize)>);
    /// Waits for the oldest draw that was not collected.
    fn collect(&mut self) -> Result<Vec<Sampled>, OpsError>;
}

/// A backend: [`Memory`] on a device, and the operations that work on it.
///
/// A `Buffer` is `f32`, row-major, created with a capacity in rows; operations that write one set how many rows are in
/// use. Buffers of one call never alias except where a contract says so.
pub trait Ops: Memory {
    /// Backend and instruction set, as a person would like to read it, e.g. `cpu avx2 x2 threads`.
    fn describe(&self) -> String;

    /// Waits until everything that was asked for is done. Whatever gives an answer waits for what it needs by itself.
    fn wait(&mut self) -> Result<(), OpsError> {
        Ok(())
    }

    /// Draws that stay on the device, if this backend has them.
    fn ahead(&mut self) -> Option<&mut dyn DrawAhead<Self::Buffer>> {
        None
    }

    /// Copies blocks, of all layers, to the host: `(block, slot)` one after the other, as if each were done before the next.
    ///
    /// Minimum bytes: `2 * block_bytes` each.
    fn copy_out(
        &mut self,
        cache: &Self::KvCache,
        host: &mut Self::HostKv,
        blocks: &[(u32, u32)],
    ) -> Result<(), OpsError>;

    /// Copies them back: `(slot, block)` one after the other. Every bit of a block is what it was when it was copied out.
    ///
    /// Minimum bytes: `2 * block_bytes` each.
    fn copy_in(&mut self, host: &Self::HostKv, cache: &mut Self::KvCache, slots: &[(u32, u32)])
    -> Result<(), OpsError>;

    /// `out[i] = table[tokens[i]]`, dequantized to `f32`.
    ///
    /// Every token is below `table.rows`. Minimum bytes: `tokens * (row_bytes + 4 * cols)`.
    fn embed(&mut self, table: &Self::Matrix, tokens: &[u32], out: &mut Self::Buffer) -> Result<(), OpsError>;

    /// `out[i] = x[i] * weight / sqrt(mean(x[i]^2) + epsilon)` (RMSNorm, arXiv 1910.07467).
    ///
    /// Minimum bytes: `8 * rows * cols + 4 * cols`.
    fn norm(
        &mut self,
        x: &Self::Buffer,
        weight: &Self::Vector,
        epsilon: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), OpsError>;

    /// `out[i] = w * x[i]`. For quantized weights rows of `x` are quantized as the module says: exact integer dot products
    /// per block, scales combined in `f32` in block order.
    ///
    /// Minimum bytes: `bytes(w) + 4 * rows * (w.cols + w.rows)`.
    fn linear(&mut self, x: &Self::Buffer, w: &Self::Matrix, out: &mut Self::Buffer) -> Result<(), OpsError>;

    /// [`Ops::linear`] with activations of 15 bits: twice the arithmetic for a 128th of the rounding, where that is worth it.
    /// With floating-point weights it is the same as [`Ops::linear`].
    ///
    /// Minimum bytes: as [`Ops::linear`].
    fn linear_fine(&mut self, x: &Self::Buffer, w: &Self::Matrix, out: &mut Self::Buffer) -> Result<(), OpsError>;

    /// `out[i] += w * x[i]`: [`Ops::linear`], rounded to `f32`, then added.
    fn linear_add(&mut self, x: &Self::Buffer, w: &Self::Matrix, out: &mut Self::Buffer) -> Result<(), OpsError>;

    /// `out[i] += scale * b * (a * x[i])` for the rows that `adapted` names, each part of an adapter in its own columns (LoRA,
    /// Hu et al., arXiv 2106.09685). The rows of its entries are apart and in order; other rows are not touched, and a row
    /// does not depend on any other.
    ///
    /// Minimum bytes: those of the adapters once, and `4 * rows * (inputs + 2 * outputs)`.
    fn lora_add(
        &mut self,
        x: &Self::Buffer,
        adapted: &[Adapted<'_, Self::LowRank>],
        out: &mut Self::Buffer,
    ) -> Result<(), OpsError>;

    /// `x[i] += bias`.
    ///
    /// Minimum bytes: `8 * rows * cols + 4 * cols`.
    fn add_bias(&mut self, bias: &Self::Vector, x: &mut Self::Buffer) -> Result<(), OpsError>;

    /// `out[i] = fma(scale, x[i], out[i])`.
    ///
    /// Minimum bytes: `12 * rows * cols`.
    fn add_scaled(&mut self, x: &Self::Buffer, scale: f32, out: &mut Self::Buffer) -> Result<(), OpsError>;

    /// `x[i] = factor * x[i]`, then `c * tanh(x[i] / c)` where `softcap` is `c`.
    ///
    /// Minimum bytes: `8 * rows * cols`.
    fn scale(&mut self, factor: f32, softcap: Option<f32>, x: &mut Self::Buffer) -> Result<(), OpsError>;

    /// [`Ops::norm`] of each of `heads` consecutive heads of every row of `x`, from head `first` on, in place.
    ///
    /// Minimum bytes: `8 * rows * heads * dim`.
    fn norm_heads(
        &mut self,
        weight: &Self::Vector,
        epsilon: f32,
        heads: Range<usize>,
        x: &mut Self::Buffer,
    ) -> Result<(), OpsError>;

    /// `out[i] = (x[i] - mean) / sqrt(variance + epsilon) * weight + bias` (layer norm, arXiv 1607.06450).
    ///
    /// Minimum bytes: `8 * rows * cols + 8 * cols`.
    fn layer_norm(
        &mut self,
        x: &Self::Buffer,
        weight: &Self::Vector,
        bias: &Self::Vector,
        epsilon: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), OpsError>;

    /// Rotates queries and keys of `qkv` in place by their positions, if there is a table, then stores keys and values of
    /// `layer` at those positions in the blocks that `step` names.
    ///
    /// Minimum bytes: `8 * rows * (query + kv) * dim + 2 * rows * kv * kind.row_bytes(dim)`.
    fn rope_store(
        &mut self,
        table: Option<&Self::RopeTable>,
        step: &StepLayout<'_>,
        heads: Heads,
        qkv: &mut Self::Buffer,
        cache: &mut Self::KvCache,
        layer: usize,
    ) -> Result<(), OpsError>;

    /// Attention of every row over the positions that `mask` lets it see, read from the cache: `out[i] = softmax(q k) v`,
    /// heads side by side. `sinks` holds one more score for each query head, which adds nothing to the result. KV blocks
    /// are folded in order of position with a running maximum (Milakov and Gimelshein, arXiv 1805.02867) into splits of
    /// [`ATTENTION_SPLIT`] positions, and splits joined in order: the same for a decode row and a prefill row, and
    /// whether splits are computed one after the other or side by side.
    ///
    /// Minimum bytes: `4 * rows * query * dim * 2` plus each span's blocks once: `2 * kv * kind.row_bytes(dim)` a position.
    #[allow(clippy::too_many_arguments, reason = "what attention depends on; each argument is one thing")]
    fn attention(
        &mut self,
        step: &StepLayout<'_>,
        heads: Heads,
        mask: Mask,
        sinks: Option<&Self::Vector>,
        qkv: &Self::Buffer,
        cache: &Self::KvCache,
        layer: usize,
        out: &mut Self::Buffer,
    ) -> Result<(), OpsError>;

    /// `out[i] = activation(gate) * up` where a row of `gate_up` is `[gate | up]` (GLU variants, arXiv 2002.05202).
    ///
    /// Minimum bytes: `12 * rows * cols(out)`.
    fn gate(&mut self, activation: Activation, gate_up: &Self::Buffer, out: &mut Self::Buffer) -> Result<(), OpsError>;

    /// `x[i] = activation(x[i])`, for networks without a gate.
    ///
    /// Minimum bytes: `8 * rows * cols`.
    fn activate(&mut self, activation: Activation, x: &mut Self::Buffer) -> Result<(), OpsError>;

    /// `rows` rows of zeros.
    fn zero(&mut self, rows: usize, out: &mut Self::Buffer) -> Result<(), OpsError>;

    /// The experts that each row of a router's logits chooses; see [`crate::routing::route`].
    fn route(&mut self, logits: &Self::Buffer, routing: &Routing) -> Result<Vec<Vec<Routed>>, OpsError>;

    /// `out[row] = fma(weight, x[i], out[row])` for `(row, weight) = to[i]`; no row stands there twice.
    ///
    /// Minimum bytes: `12 * to.len() * cols`.
    fn scatter_add(&mut self, x: &Self::Buffer, to: &[(usize, f32)], out: &mut Self::Buffer) -> Result<(), OpsError>;

    /// `out[i] = x[rows[i]]`.
    fn gather(&mut self, x: &Self::Buffer, rows: &[usize], out: &mut Self::Buffer) -> Result<(), OpsError>;

    /// `out[i]` is the mean of the rows `spans[i]` of `x`. No span is empty.
    ///
    /// Minimum bytes: `4 * cols * (rows of all spans + spans.len())`.
    fn mean_rows(&mut self, x: &Self::Buffer, spans: &[Range<usize>], out: &mut Self::Buffer) -> Result<(), OpsError>;

    /// `x[i] = x[i] / max(|x[i]|, 1e-12)`: every row gets length 1, but rows of zeros.
    ///
    /// Minimum bytes: `8 * rows * cols`.
    fn normalize(&mut self, x: &mut Self::Buffer) -> Result<(), OpsError>;

    /// Copies the rows in use to the host, row-major.
    fn read(&mut self, x: &Self::Buffer) -> Result<Vec<f32>, OpsError>;

    /// Draws one token for each request from the row of logits it names; see [`crate::sampling`].
    ///
    /// Minimum bytes: `4 * vocabulary` a request.
    fn sample(&mut self, logits: &Self::Buffer, requests: &[SampleRequest<'_>]) -> Result<Vec<Sampled>, OpsError>;

    /// How probable the row of logits that each request names holds its token, and which tokens it holds most probable;
    /// see [`crate::sampling::logprobs`].
    ///
    /// Minimum bytes: `4 * vocabulary` a request.
    fn logprobs(&mut self, logits: &Self::Buffer, requests: &[LogprobRequest]) -> Result<Vec<Logprobs>, OpsError>;
}
