//! What a model computes: one description of a transformer, read from metadata and proved against the tensors present.
//! It holds no weights and computes nothing.
//!
//! ```text
//! GGUF metadata ─▶ from_gguf ─┐                                     ┌▶ sizes, norms, ropes, scales   (ArchSpec)
//!                             ├▶ Facts + Family ─▶ build + Tensors ─┤
//! config.json ───▶ hf ────────┘                                     └▶ tensors of every layer        (LayerSpec)
//! ```
//!
//! Families differ in data (`family.rs`), not in code: an engine that computes every field of [`ArchSpec`] computes all
//! of them.

mod build;
mod facts;
mod family;
mod from_gguf;
mod hf;
mod layer;
mod names;
mod products;
mod quantization;
#[cfg(test)]
mod tests;

pub use build::Tensors;
pub use layer::{
    AttentionSpec, BranchNorms, Dense, ExpertWeights, Experts, FeedForward, Gating, LayerSpec, Linear, Norm, Packed,
    Qkv, SharedExpert, TensorSpec, Up,
};
pub use products::{Product, ProductSpec};
pub use quantization::HfQuantization;

use crate::gguf::Gguf;

/// A model. Every number was checked: bounds, divisibility, and agreement with every tensor's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchSpec {
    /// The architecture's GGUF name, such as `llama`.
    pub architecture: String,
    /// Transformer layers: the length of `blocks`.
    pub layers: usize,
    /// What each layer computes.
    pub blocks: Vec<LayerSpec>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Width of the (widest) feed-forward network; of an expert where there are only experts.
    pub ffn: usize,
    /// Tokens in the vocabulary: rows of the embedding and of the output head.
    pub vocab: usize,
    /// The longest sequence the model was trained for, in tokens.
    pub context_tokens: usize,
    /// The kind of the norms of the residual stream.
    pub norm: NormKind,
    /// The epsilon of norms.
    pub norm_epsilon: f32,
    /// What is added to the weights of RMS norms, per-head ones included: 1 for gemma in safetensors (in GGUF files it
    /// has been added), else 0.
    pub norm_weight_offset: f32,
    /// The rotations of positions; layers refer to them by index. Empty in BERT.
    pub ropes: Vec<RopeSpec>,
    /// The base of the first of `ropes` (the one of layers without a window).
    pub rope_base: f32,
    /// How many elements of a head are rotated; even, at most `head_dim`.
    pub rope_dims: usize,
    /// Whether `rope_freqs.weight` is present: `rope_dims / 2` divisors, one per frequency (llama 3.1 and later).
    pub rope_freqs: bool,
    /// What products of queries and keys are multiplied by.
    pub attention_scale: f32,
    /// `c * tanh(x / c)` on scaled products of queries and keys, before the mask.
    pub attention_softcap: Option<f32>,
    /// `c * tanh(x / c)` on logits.
    pub final_softcap: Option<f32>,
    /// What token embeddings are multiplied by, before anything is added to them.
    pub embedding_scale: f32,
    /// What each branch's result is multiplied by before it is added to the residual stream.
    pub residual_scale: f32,
    /// What logits are multiplied by, before `final_softcap`.
    pub logit_scale: f32,
    /// The activation of feed-forward networks.
    pub activation: Activation,
    /// Whether a token sees only what came before it.
    pub causal: bool,
    /// How an encoder's rows become one vector.
    pub pooling: Pooling,
    /// The tensors at the model's input.
    pub input: InputSpec,
    /// The tensors at the model's output.
    pub output: OutputSpec,
    /// Whether the output head is the token embedding (there is no `output.weight`).
    pub tied_head: bool,
}

/// What turns token ids into the residual stream: the sum of all that is there, then the norm.
#[derive(Debug, Clone, PartialEq)]
pub struct InputSpec {
    /// `[hidden, vocab]`.
    pub embedding: TensorSpec,
    /// `[hidden, context_tokens]`, a row for each position, added.
    pub positions: Option<TensorSpec>,
    /// `[hidden, types]`; row 0 is added (a text alone is all of type 0).
    pub token_types: Option<TensorSpec>,
    /// On the sum.
    pub norm: Option<Norm>,
}

/// What turns the residual stream into logits. An encoder has neither.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSpec {
    /// On the residual stream.
    pub norm: Option<Norm>,
    /// `[hidden, vocab]`; `None` where it is the embedding (`ArchSpec::tied_head`).
    pub head: Option<Linear>,
}

/// Kinds of norms of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) * weight`.
    Rms,
    /// `(x - mean) / deviation * weight + bias`.
    Layer,
}

/// Activations of feed-forward networks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its approximation with `tanh`.
    GeluTanh,
    /// GELU by `erf`.
    GeluErf,
    /// gpt-oss: with `g = min(gate, limit)` and `u` clamped to `-limit..=limit`, `g * sigmoid(alpha * g) * (u + 1)`.
    ClampedSwiglu {
        /// The sigmoid's steepness.
        alpha: f32,
        /// Where inputs are cut.
        limit: f32,
    },
}

/// How an encoder's rows become one vector. The codes are those of `pooling_type` in GGUF files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// No vector: logits, or one vector a token.
    None,
    /// The mean of all rows.
    Mean,
    /// The first row.
    First,
    /// The last row.
    Last,
}

/// One rotation of positions.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// The base of the frequencies: `base^(-2i / dims)`.
    pub base: f32,
    /// How many elements of a head are rotated, from the first; even.
    pub dims: usize,
    /// Which elements form a pair.
    pub pairs: RopePairing,
    /// How frequencies are changed for long contexts.
    pub scaling: RopeScaling,
    /// `[dims / 2]` divisors of the frequencies.
    pub factors: Option<TensorSpec>,
}

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// `2i` and `2i + 1`: llama and granite in GGUF files, whose rows were permuted for it.
    Adjacent,
    /// `i` and `i + dims / 2`: everything else, and everything in safetensors files.
    Halves,
}

/// How frequencies are changed for contexts longer than those first trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All are divided by `factor`.
    Linear {
        /// How much longer contexts become.
        factor: f32,
    },
    /// YaRN: high frequencies stay, low ones are divided by `factor`, those between are mixed.
    Yarn {
        /// How much longer contexts become.
        factor: f32,
        /// The context first trained on.
        original_context: usize,
        /// Rotations over the original context above which a frequency stays.
        beta_fast: f32,
        /// Rotations below which it is divided.
        beta_slow: f32,
        /// What sine and cosine are multiplied by: already the whole factor, `1 + 0.1 ln factor` included.
        attention_factor: f32,
        /// Whether the ends of the mixed range are rounded outwards to whole dimensions.
        truncate: bool,
    },
    /// llama 3.1 by its rule instead of its tensor of factors: wavelengths below `original_context / high` stay, those
    /// above `original_context / low` are divided by `factor`, those between are mixed linearly.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f32,
        /// Where low frequencies begin.
        low: f32,
        /// Where high frequencies begin.
        high: f32,
        /// The context first trained on.
        original_context: usize,
    },
    /// phi 3: each frequency has a divisor; one list for contexts up to `original_context`, one for longer ones. Which
    /// is used must be decided once for a device, not by a sequence's length: cached keys are rotated already.
    LongRope {
        /// The context first trained on.
        original_context: usize,
        /// Divisors for contexts up to it.
        short: RopeFactors,
        /// Divisors for longer ones.
        long: RopeFactors,
        /// What sine and cosine are multiplied by.
        attention_factor: f32,
    },
}

/// `dims / 2` divisors of frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeFactors {
    /// In the weights.
    Tensor(TensorSpec),
    /// In the configuration.
    Values(Vec<f32>),
}

/// Why a well-formed file is not a model that can run here.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation of the variants and their fields.
pub enum ArchError {
    #[error("the file has no general.architecture, so it is not a language model: give a model's .gguf file")]
    NoArchitecture,
    #[error("architecture {0:?} is not supported yet ({known} are): choose another model", known = family::known())]
    Unsupported(String),
    #[error("metadata key {0:?} is missing or has the wrong type: convert the model again")]
    MissingKey(String),
    #[error("metadata key {key:?} is {value}, outside {min}..={max}: damaged, or a model this engine cannot run")]
    OutOfBounds { key: String, value: String, min: String, max: String },
    #[error("{0}: damaged, or a model this engine cannot run")]
    Inconsistent(String),
    #[error("the model uses {0}, which this engine does not compute yet: choose another model")]
    Feature(String),
    #[error("tensor {0:?} is missing: the file is incomplete, download it again")]
    MissingTensor(String),
    #[error("tensor {tensor:?} has shape {found:?} where {expected:?} is needed: convert the model again")]
    Shape { tensor: String, found: Vec<u64>, expected: Vec<u64> },
    #[error(
        "tensor {tensor:?} is no part of the {architecture} architecture computed here: results would be wrong without it"
    )]
    UnknownTensor { tensor: String, architecture: String },
    #[error("config.json cannot be read: {0}")]
    Config(String),
}

impl ArchSpec {
    /// Reads and checks the model in `gguf`.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ArchError> {
        let (facts, family) = from_gguf::facts(gguf)?;
        build::spec(facts, family, names::Scheme::Gguf, None, gguf)
    }

    /// Reads and checks a model in the layout of Hugging Face: the text of its `config.json`, and the tensors of its
    /// safetensors files. `pooling` of an encoder stands in another file; see [`ArchSpec::with_pooling_config`].
    pub fn from_hf_config(config: &str, tensors: &dyn Tensors) -> Result<Self, ArchError> {
        let (facts, family) = hf::facts(config, tensors)?;
        let quantization = HfQuantization::from_hf_config(config)?;
        build::spec(facts, family, names::Scheme::Hf, quantization, tensors)
    }

    /// Takes an encoder's pooling from the text of `1_Pooling/config.json`, which sentence encoders ship.
    pub fn with_pooling_config(mut self, config: &str) -> Result<Self, ArchError> {
        self.pooling = hf::pooling(config)?;
        Ok(self)
    }

    /// Refuses an encoder whose `modules.json`, which sentence encoders ship, names steps beyond pooling and normalization.
    /// Vectors are always normalized.
    pub fn check_modules(&self, modules: &str) -> Result<(), ArchError> {
        hf::check_modules(modules)
    }

    /// Whether it makes one vector of a text, rather than tokens that follow it.
    pub fn is_encoder(&self) -> bool {
        !self.causal
    }

    /// The width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// The width of all key heads together, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
